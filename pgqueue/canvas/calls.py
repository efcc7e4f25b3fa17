"""A call as a value: to be made later, with others, or by the commit that ends another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pgqueue.arguments import check_call
from pgqueue.canvas.parts import Given, Segment, Step
from pgqueue.canvas.stamping import StampingVisitor, appended, check_visitor, parted
from pgqueue.current import CURRENT
from pgqueue.errors import InvalidOption
from pgqueue.ids import check_id, new_id
from pgqueue.options import call_options, shown
from pgqueue.result import AsyncResult
from pgqueue.stamps import merged
from pgqueue.statements import job_json
from pgqueue.types import NewJob

R = TypeVar("R", covariant=True)

#: The classes of what is more than one call, and of those that make one call of many, by their `subtask_type`.
KINDS: dict[str, type[Signature[Any]]] = {}
_KEYS = ("task", "args", "kwargs", "options", "subtask_type", "immutable")


class Callee(Protocol):
    """What a signature needs of its task."""

    @property
    def name(self) -> str: ...
    @property
    def app(self) -> Any: ...
    def job(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        options: Mapping[str, Any],
        *,
        awaits: bool = False,
    ) -> NewJob: ...
    def handle(self, options: Mapping[str, Any]) -> dict[str, Any]: ...
    @property
    def apply_async(self) -> Callable[..., AsyncResult[Any]]: ...
    @property
    def aapply_async(self) -> Callable[..., Any]: ...
    @property
    def apply(self) -> Callable[..., AsyncResult[Any]]: ...


class Signature(Mapping[str, Any], Generic[R]):
    """A call that is not made yet: a task, its arguments, its options; `add.s(2)` and `add.si(2)` make one.

    - `task`: the task; a text is the name of one of the current app.
    - `immutable`: takes no argument from the call that it continues.

        add.s(2, 3).set(priority=9).delay()
        add.apply_async((2, 3), link=log.s("sum"))   # log(5, "sum"), when add has succeeded
        (add.s(2, 3) | double.s()).delay()           # a chain; `group` and `chord` for what runs side by side

    It is a mapping too: `dict(call)` is data that JSON can say, of which `signature` makes the call again; as an
    argument of a task it arrives so.
    """

    __slots__ = ("args", "immutable", "kwargs", "options", "task")
    #: Name of its class in a mapping; None for a plain call.
    kind: ClassVar[str | None] = None
    #: Whether it is one job.
    single: ClassVar[bool] = True

    def __init__(
        self,
        task: Callee | str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        app: Any = None,
    ) -> None:
        self.task: Callee = callee(task, app) if isinstance(task, str) else task
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        check_call(self.task.name, args, self.kwargs)
        self.args: tuple[Any, ...] = tuple(args)
        self.options: dict[str, Any] = {} if options is None else dict(options)
        self.immutable = immutable

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.kind is not None and "kind" in vars(cls):
            KINDS[cls.kind] = cls

    # -- what it says ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def app(self) -> Any:
        """The app of the task."""
        return self.task.app

    @property
    def id(self) -> str | None:
        """Id of the job to be; None before `freeze`, unless `task_id` was set."""
        return self.options.get("task_id")

    @property
    def root_id(self) -> str | None:
        """Id of the workflow that it is to belong to, if that was said."""
        return self.options.get("root_id")

    @property
    def parent_id(self) -> str | None:
        """Id of the job whose task makes the call, if that was said."""
        return self.options.get("parent_id")

    @property
    def subtask_type(self) -> str | None:
        """Name of its class in a mapping, such as "chain"; None for a plain call."""
        return self.kind

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Give the call these options in addition, checked now; return it."""
        if "connection" in options:
            raise InvalidOption("a signature keeps no connection; give it where the call is made")
        found = merged(self.options, options)
        call_options(found)
        self.options = found
        if immutable is not None:
            self.set_immutable(immutable)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Say whether it takes no argument from the call that it continues."""
        self.immutable = immutable

    def clone(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> Signature[R]:
        """Return a copy; arguments given now come before those that it has, if it is not immutable."""
        made = self._copy()
        if not self.immutable:
            made.args = (*args, *self.args)
            made.kwargs = {**self.kwargs, **(kwargs or {})}
        return made.set(**options) if options else made

    def replace(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Signature[R]:
        """Return a copy with exactly these arguments, keyword arguments or options, where they are given."""
        made = self._copy()
        if args is not None:
            made.args = tuple(args)
        if kwargs is not None:
            made.kwargs = dict(kwargs)
        if options is not None:
            call_options(options)
            made.options = dict(options)
        return made

    def link(self, callback: Signature[Any]) -> Signature[Any]:
        """Have a call made by the commit that stores the success of this one, with its value; return that call."""
        return self._link("link", callback)

    def link_error(self, errback: Signature[Any]) -> Signature[Any]:
        """Have a call made by the commit that stores the failure of this one, with its id; return that call."""
        return self._link("link_error", errback)

    def on_error(self, errback: Signature[Any]) -> Signature[R]:
        """Do what `link_error` does; return this call."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Signature[Any]]:
        """Return this call, and all that its success leads to by links."""
        found: list[Signature[Any]] = [self]
        for call in found:
            found.extend(signatures("link", call.options.get("link")))
        return found

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **stamps: Any) -> Signature[R]:
        """Give the call, and what follows it by links, values to carry along; return it.

        - `visitor`: is asked for more; see StampingVisitor.
        - `append_stamps`: keep the values that there are already, in a list with the new ones; default: the new ones.
        - `stamps`: JSON-ready values.

            add.s(2, 3).stamp(customer=7).delay().stamps        # {"customer": 7}

        Retries and replacements keep them. The task finds them in `self.request.stamps`.
        """
        check_visitor(visitor)
        stamps, options = parted(stamps)
        self.stamp_links(visitor, append_stamps, **stamps)
        more, others = parted(None if visitor is None else visitor.on_signature(self, **stamps))
        found = {**stamps, **more}
        if append_stamps:
            found = appended(self.options.get("stamps") or {}, found)
        return self.set(**{**options, **others, "stamps": found})

    def stamp_links(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **stamps: Any) -> None:
        """Give what follows the call by links values to carry along; see `stamp`."""
        for option, ask in (("link", "on_callback"), ("link_error", "on_errback")):
            calls = [call.clone() for call in signatures(option, self.options.get(option))]
            for call in calls:
                more, options = parted(None if visitor is None else getattr(visitor, ask)(call, **stamps))
                call.stamp(visitor, append_stamps, **{**stamps, **more}).set(**options)
            if calls:
                self.options = {**self.options, option: calls}

    def freeze(self, _id: str | None = None, root_id: str | None = None, parent_id: str | None = None) -> Any:
        """Give the call its id now, once and for all; return the handle that `apply_async` would.

        - `_id`: the id, a UUID; default a fresh one.
        - `root_id`, `parent_id`: as the options of a call; both or neither.
        """
        id_ = self.id or (new_id() if _id is None else check_id(_id))
        self._freeze(id_)
        if root_id is not None and parent_id is not None:
            self.options |= {"root_id": root_id, "parent_id": parent_id}
        return AsyncResult(id_, self.app, **self.task.handle(self.options))

    # -- making it -------------------------------------------------------------------------------------------

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call the function here and now; arguments given now come before those that it has."""
        call: Any = self.clone(args, kwargs)
        return call.task(*call.args, **call.kwargs)

    def delay(self, *args: object, **kwargs: object) -> AsyncResult[R]:
        """Enqueue the call; arguments given now come before those that it has."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: object, **kwargs: object) -> AsyncResult[R]:
        """Enqueue the call without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue the call with more options; those given now come first."""
        call = self.clone(args, kwargs)
        return self.task.apply_async(call.args, call.kwargs, **merged(self.options, options))

    async def aapply_async(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue the call as `apply_async` does, without blocking the event loop."""
        call = self.clone(args, kwargs)
        found: AsyncResult[R] = await self.task.aapply_async(call.args, call.kwargs, **merged(self.options, options))
        return found

    def apply(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Run the call here and now, as `Task.apply` does."""
        call = self.clone(args, kwargs)
        return self.task.apply(call.args, call.kwargs, **merged(self.options, options))

    def __invert__(self) -> R:
        """Enqueue the call, wait for its value and return it: `~add.s(2, 3)`."""
        return self.delay().get()

    def __or__(self, other: object) -> Signature[Any]:
        """Continue the call with another one: see `chain`."""
        if not isinstance(other, Signature):
            return NotImplemented
        chain: Any = KINDS["chain"]
        joined: Signature[Any] = chain(self, other)
        return joined

    # -- as data ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, of which `signature` makes it again; the arguments as they are."""
        return self._dict(self.task.name, {name: _plain(value) for name, value in self.kwargs.items()})

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> Signature[Any]:
        """Make it again of what `to_dict` returned, whichever kind it is; see `signature`."""
        return KINDS.get(str(d.get("subtask_type")), Signature)._revived(d, app)

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            return self.to_dict() == (other.to_dict() if isinstance(other, Signature) else dict(other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __copy__(self) -> Signature[R]:
        return self._copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature[R]:
        made = self._copy()
        made.args = copy.deepcopy(self.args, memo)
        made.kwargs = copy.deepcopy(self.kwargs, memo)
        made.options = copy.deepcopy(self.options, memo)
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return signature, (self.to_dict(),)

    def __repr__(self) -> str:
        given = [f"{value!r:.60}" for value in self.args] + [f"{k}={v!r:.60}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(given)})"

    # -- as rows ---------------------------------------------------------------------------------------------

    def job(self) -> NewJob:
        """Return the call as a job, checked and encoded."""
        return self.task.job(self.args, self.kwargs, self.options)

    def continuation(self) -> NewJob:
        """Return the call as a job that another one will enqueue, with one more argument unless it is immutable."""
        job = self.task.job(self.args, self.kwargs, self.options, awaits=not self.immutable)
        return job._replace(immutable=self.immutable)

    def followers(self) -> list[str]:
        """Return it as jobs that another one will enqueue, in JSON."""
        return [job_json(self.continuation())]

    def unfold(self, given: Given, unroll: bool) -> list[Segment | Step]:
        """Return what it consists of, as a link of a chain; see `pgqueue.canvas.layout`."""
        return [Segment(self, given)]

    def is_empty(self) -> bool:
        """Return whether there is nothing to be done: a group or chain of nothing."""
        return False

    # -- inside ----------------------------------------------------------------------------------------------

    def _copy(self) -> Signature[R]:
        made: Signature[R] = object.__new__(type(self))
        for name in ("task", "args", "kwargs", "immutable"):
            setattr(made, name, getattr(self, name))
        made.options = dict(self.options)
        return made

    def _freeze(self, id_: str) -> None:
        self.options = {**self.options, "task_id": id_}

    def _dict(self, task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {name: _plain(value) for name, value in self.options.items()}
        for option in ("link", "link_error"):
            if options.get(option) is not None:
                options[option] = [call.to_dict() for call in signatures(option, self.options[option])]
        args = tuple(map(_plain, self.args))
        values = (task, args, kwargs, options, self.kind, self.immutable)
        return dict(zip(_KEYS, values, strict=True))

    @classmethod
    def _revived(cls, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        name = d.get("task")
        if not isinstance(name, str):
            raise InvalidOption(f"{shown(d)} is no signature: it names no task")
        args, kwargs = d.get("args") or (), d.get("kwargs") or {}
        return Signature(name, args, kwargs, revived_options(d, app), bool(d.get("immutable")), app)

    def _link(self, option: str, call: Signature[Any]) -> Signature[Any]:
        known = signatures(option, self.options.get(option))
        if call not in known:
            self.options = {**self.options, option: signatures(option, [*known, call])}
        return call


def callee(name: str, app: Any) -> Callee:
    """Return the task of a name, registered or not, of an app or of the current one; raises InvalidOption."""
    found = CURRENT() if app is None else app
    if found is None:
        raise InvalidOption(f"whose task is {name!r}? There is no app here; pass app=, or app.signature({name!r})")
    task: Callee = found.callee(name)
    return task


def signature(
    task: Signature[Any] | Mapping[str, Any] | str | Callee,
    args: Sequence[object] = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    immutable: bool = False,
    app: Any = None,
    **more: Any,
) -> Signature[Any]:
    """Return a call as a value: of a task or its name, of the mapping that one was made into, or a copy of one.

    - `args`, `kwargs`, `immutable`: of a call by name.
    - `options`, and all that is given besides: as for `Task.apply_async`.
    - `app`: whose tasks are meant; default the current app.

        signature("shop.bill", (order,), countdown=10).delay()
        signature(json.loads(text)).delay()

    Raises InvalidOption for what is no signature.
    """
    if isinstance(task, Signature):
        found = task.clone()
    elif isinstance(task, Mapping):
        found = Signature.from_dict(task, app)
    else:
        found = Signature(task, args, kwargs, immutable=immutable, app=app)
    extra = {**(options or {}), **more}
    return found.set(**extra) if extra else found


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Any:
    """Return the signature of a mapping; a signature (a copy of it, if `clone`) or anything else as it is.

    maybe_signature(callback)   # in a task, one of whose arguments is a signature
    """
    if isinstance(d, Signature):
        return d.clone() if clone else d
    return Signature.from_dict(d, app) if isinstance(d, Mapping) else d


def revived_options(d: Mapping[str, Any], app: Any) -> dict[str, Any]:
    """Return the options of a signature that is a mapping: links are mappings as well."""
    options = {name: value for name, value in (d.get("options") or {}).items() if value is not None}
    for option in ("link", "link_error"):
        if option in options:
            calls = options[option]
            calls = calls if isinstance(calls, list | tuple) else [calls]
            options[option] = [maybe_signature(call, app) for call in calls]
    call_options(options)
    return options


def signatures(option: str, value: object) -> list[Signature[Any]]:
    """Return what `link` or `link_error` names: a signature, several, or None for none; raises InvalidOption."""
    if value is None:
        return []
    found: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for call in found:
        if not isinstance(call, Signature):
            raise InvalidOption(f"{option} must be a signature such as add.s(2), or a list of them, not {shown(call)}")
    return found


def continuations(option: str, value: object) -> str | None:
    """Return the calls of `link` or `link_error` as a JSON array of jobs; None if there are none."""
    calls = signatures(option, value)
    try:
        texts = [text for call in calls for text in call.followers()]
        return f"[{','.join(texts)}]" if texts else None
    except RecursionError:
        raise InvalidOption(f"{option}={shown(value)} leads back to itself; a chain of links has to end") from None


def _plain(value: Any) -> Any:
    """Return a value with the signatures in it as data."""
    if isinstance(value, Signature):
        return value.to_dict()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value
