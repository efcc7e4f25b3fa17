"""A call as a value: to be made later, with others, or by the commit that ends another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from pgqueue.arguments import check_call
from pgqueue.errors import InvalidOption
from pgqueue.options import call_options, shown
from pgqueue.result import AsyncResult
from pgqueue.statements import job_json
from pgqueue.types import NewJob

R = TypeVar("R", covariant=True)


class Callee(Protocol):
    """What a signature needs of its task."""

    @property
    def name(self) -> str: ...
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


@dataclass(slots=True, eq=True)
class Signature(Generic[R]):
    """A call that is not made yet: a task, its arguments, its options; `add.s(2)` and `add.si(2)` make one.

    - `immutable`: takes no argument from the call that it continues.

        add.s(2, 3).set(priority=9).delay()
        add.apply_async((2, 3), link=log.s("sum"))   # log(5, "sum"), when add has succeeded
    """

    task: Callee
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    immutable: bool = False

    def __post_init__(self) -> None:
        check_call(self.task.name, self.args, self.kwargs)
        self.args = tuple(self.args)

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Give the call these options in addition, checked now; return it."""
        if "connection" in options:
            raise InvalidOption("a signature keeps no connection; give it where the call is made")
        merged = {**self.options, **options}
        call_options(merged)
        self.options = merged
        if immutable is not None:
            self.immutable = immutable
        return self

    def clone(self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None) -> Signature[R]:
        """Return a copy; arguments given now come before those that it has, if it is not immutable."""
        if self.immutable:
            args, kwargs = (), None
        return replace(
            self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})}, options={**self.options}
        )

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
        return self.task.apply_async(call.args, call.kwargs, **{**self.options, **options})

    async def aapply_async(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue the call as `apply_async` does, without blocking the event loop."""
        call = self.clone(args, kwargs)
        found: AsyncResult[R] = await self.task.aapply_async(call.args, call.kwargs, **{**self.options, **options})
        return found

    def apply(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Run the call here and now, as `Task.apply` does."""
        call = self.clone(args, kwargs)
        return self.task.apply(call.args, call.kwargs, **{**self.options, **options})

    def job(self) -> NewJob:
        """Return the call as a job, checked and encoded."""
        return self.task.job(self.args, self.kwargs, self.options)

    def continuation(self) -> NewJob:
        """Return the call as a job that another one will enqueue, with one more argument unless it is immutable."""
        job = self.task.job(self.args, self.kwargs, self.options, awaits=not self.immutable)
        return job._replace(immutable=self.immutable)

    def _link(self, option: str, call: Signature[Any]) -> Signature[Any]:
        _check(option, call)
        known = signatures(option, self.options.get(option))
        if call not in known:
            self.options = {**self.options, option: [*known, call]}
        return call

    def __repr__(self) -> str:
        given = [f"{value!r:.60}" for value in self.args] + [f"{k}={v!r:.60}" for k, v in self.kwargs.items()]
        return f"{self.task.name}({', '.join(given)})"


def signatures(option: str, value: object) -> list[Signature[Any]]:
    """Return what `link` or `link_error` names: a signature, several, or None for none; raises InvalidOption."""
    if value is None:
        return []
    found: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for call in found:
        _check(option, call)
    return found


def continuations(option: str, value: object) -> str | None:
    """Return the calls of `link` or `link_error` as a JSON array of jobs; None if there are none."""
    calls = signatures(option, value)
    if not calls:
        return None
    try:
        return f"[{','.join(job_json(call.continuation()) for call in calls)}]"
    except RecursionError:
        raise InvalidOption(f"{option}={shown(value)} leads back to itself; a chain of links has to end") from None


def _check(option: str, call: object) -> None:
    if not isinstance(call, Signature):
        raise InvalidOption(f"{option} must be a signature such as add.s(2), or a list of them, not {shown(call)}")
