"""Between a function's signature and stored arguments: a call is checked where made, converted where run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property, partial
from inspect import Parameter, Signature
from typing import Any, Optional, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails, SchemaValidator

from pgqueue.errors import InvalidArguments

if sys.version_info >= (3, 14):
    from annotationlib import Format

    #: A name that exists only for type checkers must not make the signature unreadable.
    _signature = partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature

Call: TypeAlias = tuple[Sequence[object], Mapping[str, object]]
Validate: TypeAlias = Callable[..., Any]

#: Stands for every default, so that pydantic neither copies defaults nor passes them on.
_OMITTED = object()
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NO_SIGNATURE = Signature([Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)])
#: Characters of one problem, and problems, in one message: a value may be huge.
_PROBLEM_LENGTH = 200
_PROBLEMS = 3


def check_call(name: str, args: object, kwargs: object) -> None:
    """Raise InvalidArguments unless a call has a list or tuple of arguments and a dict of keyword arguments."""
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        given = f"{type(args).__name__} and {type(kwargs).__name__}"
        raise InvalidArguments(f"{name}: args must be a list or tuple and kwargs a dict, not {given}")


class Arguments:
    """The arguments of one function; annotations are resolved at the first use, when all names exist.

    - `function`: a function or a coroutine function; any other callable works too.
    - `skip`: leading parameters that the caller does not give (`self`, a connection); default 0.
    - `validate`: check and convert values by the annotations; False checks the shape of the call alone.

    >>> def add(x: int, y: int) -> int: ...
    >>> Arguments(add).load(["2"], {"y": 3})
    ((2,), {'y': 3})
    """

    def __init__(self, function: Callable[..., object], *, skip: int = 0, validate: bool = True) -> None:
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._skip = skip
        self._typed = validate

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Call:
        """Check a call at the caller and return it unchanged: what is stored are the caller's own values.

        - `args`, `kwargs`: the call, without the skipped parameters.

        Raises `InvalidArguments`, which names the function and the parameter.

        >>> def add(x: int, y: int) -> int: ...
        >>> Arguments(add).bind([2, 3], {})
        ([2, 3], {})
        """
        self._validated(args, kwargs)
        return args, kwargs

    def load(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Call:
        """Convert decoded arguments to what the annotations ask for; defaults stay with the function.

        - `args`, `kwargs`: as `decode` returns them.

        Raises `InvalidArguments`, which names the function and the parameter.

        >>> from uuid import UUID
        >>> def show(id: UUID): ...
        >>> Arguments(show).load(["12345678-1234-5678-1234-567812345678"], {})
        ((UUID('12345678-1234-5678-1234-567812345678'),), {})
        """
        return self._validated(args, kwargs)

    def load_result(self, value: object) -> object:
        """Convert a decoded result by the return annotation; a value that does not fit it stays as it is.

        - `value`: as `decode` returns it.

        >>> def pair() -> tuple[int, int]: ...
        >>> Arguments(pair).load_result([2, 3])
        (2, 3)
        """
        if self._validate_result is None:
            return value
        try:
            return self._validate_result(value, by_alias=True, by_name=True)
        except Exception:  # a validator of the user's; the value itself says more than its error
            return value

    def _validated(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Call:
        if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
            raise InvalidArguments(f"{self.name}(): needs a list of arguments and a dict of keyword arguments")
        try:
            # 0.5 us for two ints; inspect.Signature.bind, which converts nothing, takes 1.7 (CPython 3.11).
            call: Call = self._validate(ArgsKwargs(tuple(args), kwargs), by_alias=True, by_name=True)
        except ValidationError as error:
            # Not `from error`: its text holds the values.
            raise InvalidArguments(self._explain(error)) from None
        return call

    @cached_property
    def _parameters(self) -> list[Parameter]:
        parameters = list(self._own_signature.parameters.values())
        leading = [p for p in parameters[: self._skip] if p.kind in _POSITIONAL]
        return parameters[len(leading) :]

    @cached_property
    def _own_signature(self) -> Signature:
        try:
            return _signature(self._function)
        except (ValueError, TypeError):  # some callables written in C
            return _NO_SIGNATURE

    @cached_property
    def _validate(self) -> Validate:
        hints = {p.name: self._hint(p) for p in self._parameters}
        try:
            return _build(self._parameters, hints)
        except Exception:  # pydantic and the schema hooks of any class; the good annotations are kept
            return _build(self._parameters, {name: _usable(hint) for name, hint in hints.items()})

    @cached_property
    def _validate_result(self) -> Validate | None:
        hint = self._resolve(self._own_signature.return_annotation)
        if hint is Any or _usable(hint) is Any:
            return None
        return TypeAdapter[Any](hint).validator.validate_python

    def _hint(self, parameter: Parameter) -> Any:
        hint = self._resolve(parameter.annotation)
        return Optional[hint] if parameter.default is None else hint  # noqa: UP045 - `|` fails on some hints

    def _resolve(self, annotation: object) -> Any:
        """Return an annotation without forward references, or Any if it has none that can be used."""
        if not self._typed or annotation is Parameter.empty:
            return Any

        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        try:
            hint = get_type_hints(holder, _namespace(self._function), include_extras=True)["it"]
        except Exception:  # a name that exists only for type checkers; anything that an annotation evaluates
            return Any
        return Any if _is_lazy(hint) else hint

    def _explain(self, error: ValidationError) -> str:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problems = list(dict.fromkeys(self._problem(detail) for detail in details))
        more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
        return f"{self.name}(): {'; '.join(problems[:_PROBLEMS])}{more}"

    def _problem(self, detail: ErrorDetails) -> str:
        where = self._path(detail["loc"])
        match detail["type"]:
            case "missing_argument" | "missing_keyword_only_argument" | "missing_positional_only_argument":
                return f"missing argument '{where}'"
            case "unexpected_keyword_argument":
                return f"unexpected argument '{where}'"
            case "unexpected_positional_argument":
                return f"takes at most {len(self._positional)} positional arguments"
            case "multiple_argument_values":
                return f"argument '{where}' is given twice"
            case "invalid_key":
                return "names of keyword arguments must be texts"
        return f"{where}: {detail['msg']}"[:_PROBLEM_LENGTH]

    @property
    def _positional(self) -> list[str]:
        return [p.name for p in self._parameters if p.kind in _POSITIONAL]

    def _path(self, loc: tuple[int | str, ...]) -> str:
        """Write pydantic's location as a path, such as `order.lines[3].price`."""
        names = self._positional
        head, *rest = loc or ("arguments",)
        if isinstance(head, int):
            extra = next((p.name for p in self._parameters if p.kind is Parameter.VAR_POSITIONAL), "args")
            head = names[head] if head < len(names) else f"{extra}[{head - len(names)}]"
        return head[:80] + "".join(
            f".{step}" if isinstance(step, str) and step.isidentifier() else f"[{step!a:.80}]" for step in rest
        )


def _build(parameters: list[Parameter], hints: dict[str, Any]) -> Validate:
    """Return pydantic's validator of a call; every forward reference is resolved already."""
    optional = any(p.default is not Parameter.empty for p in parameters)

    def given(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
        if optional:
            args = tuple(value for value in args if value is not _OMITTED)
            kwargs = {name: value for name, value in kwargs.items() if value is not _OMITTED}
        return args, kwargs

    stub: Any = given
    stub.__annotations__ = hints
    stub.__signature__ = Signature(
        [
            p.replace(
                annotation=hints[p.name],
                default=Parameter.empty if p.default is Parameter.empty else _OMITTED,
            )
            for p in parameters
        ]
    )
    adapter = TypeAdapter[Any](stub)
    schema = adapter.core_schema
    if schema["type"] == "call" and not optional:  # what `given` would return, a third faster
        return SchemaValidator(schema["arguments_schema"]).validate_python
    return adapter.validator.validate_python


def _usable(hint: Any) -> Any:
    """Return an annotation, or Any if pydantic cannot build a schema for it."""
    try:
        TypeAdapter(hint)
    except Exception:
        return Any
    return hint


def _is_lazy(hint: Any) -> bool:
    """Whether pydantic would hand over an iterator that can be read only once."""
    kind = get_origin(hint) or hint
    return kind is Iterable or kind is Generator or any(map(_is_lazy, get_args(hint)))


def _namespace(function: Any) -> dict[str, Any]:
    """Return the globals in which a callable was defined."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - an object with __call__
    return getattr(function, "__globals__", {})
