"""What is more than one call: what chain, group and chord have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

from pgqueue.canvas.calls import Signature, maybe_signature, revived_options
from pgqueue.canvas.eagerly import eager_handle
from pgqueue.canvas.layout import Plan, given_of, lay_out
from pgqueue.canvas.parts import Given
from pgqueue.canvas.stamping import StampingVisitor, check_visitor, parted
from pgqueue.current import CURRENT
from pgqueue.errors import InvalidOption
from pgqueue.ids import check_id, new_id
from pgqueue.options import call_options, shown
from pgqueue.stamps import merged
from pgqueue.tracer import current_context
from pgqueue.types import NewJob

R = TypeVar("R", covariant=True)


class Canvas(Signature[R]):
    """Calls that make a workflow: all of it is created in one transaction, every id is known at once."""

    __slots__ = ("_app",)
    single: ClassVar[bool] = False

    def __init__(self, app: Any = None, **options: Any) -> None:
        self._app = app
        self.args = ()
        self.kwargs = {}
        self.immutable = False
        self.options = {}
        if options:
            self.set(**options)

    @property
    def name(self) -> str:
        """What it is."""
        return f"pgqueue.{self.kind}"

    @property
    def app(self) -> Any:
        """The app of its tasks; the current one if it has none."""
        if self._app is None:
            self._app = next((part.app for part in self._below() if part.single), None)
        return CURRENT() if self._app is None else self._app

    def parts(self) -> Sequence[Signature[Any]]:
        """Return what it consists of, in order."""
        return ()

    def is_empty(self) -> bool:
        """Return whether there is nothing to be done."""
        return not any(part.single for part in self._below())

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **stamps: Any) -> Signature[R]:
        """Give all calls in it, and what follows them by links, values to carry along; see `Signature.stamp`."""
        check_visitor(visitor)
        stamps = self._asked(stamps)
        self.stamp_links(visitor, append_stamps, **stamps)
        self._clone_parts()
        self._stamp_parts(visitor, append_stamps, stamps)
        return self

    def _stamp_parts(self, visitor: StampingVisitor | None, append_stamps: bool, stamps: dict[str, Any]) -> None:
        """Stamp its parts, which nobody else has."""
        kind = self.kind
        more = self._asked(None if visitor is None else getattr(visitor, f"on_{kind}_start")(self, **stamps))
        for part in self.parts():
            part.stamp(visitor, append_stamps, **{**stamps, **more})
        if visitor is not None:
            getattr(visitor, f"on_{kind}_end")(self, **stamps)

    def _asked(self, answer: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take the options of an answer, and return its stamps."""
        more, options = parted(answer)
        if options:
            self.set(**options)
        return more

    # -- making it -------------------------------------------------------------------------------------------

    def __call__(self, *args: object, **options: Any) -> Any:
        """Enqueue it, as Celery's are."""
        return self.apply_async(args, **options)

    def delay(self, *args: object, **kwargs: object) -> Any:
        """Enqueue it; the arguments are for what comes first in it, before its own."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: object, **kwargs: object) -> Any:
        """Enqueue it without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Any:
        """Enqueue it in one transaction and return its handle at once.

        - `args`, `kwargs`: for what comes first in it: the first of a chain, all of a group, the header of a chord.
        - `connection`: as for `Task.apply_async`.
        - the others: see `CallOptions`; for the first of a chain, all of a group, header and body of a chord (countdown
          and eta: the header alone). `task_id` is that of what comes last, which `link` is for as well, and
          `link_error` is for each.

        Returns the handle on what comes last, a GroupResult for a group; its `parent` is the one before. An empty chain
        is None.
        """
        if self.is_empty():
            return self._nothing(options)
        if self.app.always_eager:
            return self.apply(args, kwargs, **options)
        plan = self._plan(args, kwargs, options)
        jobs = plan.jobs()
        if len(jobs) == 1:
            self.app.enqueue(jobs[0], connection)
            return plan.handle
        self.app.enqueue_plan(jobs, connection)
        return self._told(plan, options)

    async def aapply_async(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Any:
        """Enqueue it as `apply_async` does, without blocking the event loop."""
        if self.is_empty():
            return self._nothing(options)
        if self.app.always_eager:
            return self.apply(args, kwargs, **options)
        plan = self._plan(args, kwargs, options)
        jobs = plan.jobs()
        if len(jobs) == 1:
            await self.app.aenqueue(jobs[0], connection)
            return plan.handle
        await self.app.aenqueue_plan(jobs, connection)
        return self._told(plan, options)

    def apply(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        *,
        throw: bool | None = None,
        **options: Any,
    ) -> Any:
        """Run it here and now, as `Task.apply` does, with the same results and errors; see `apply_async`."""
        options.pop("connection", None)
        if self.is_empty():
            return self._nothing(options)
        plan = self._plan(args, kwargs, options)
        ended = self.app.run_plan(plan.jobs())
        handle = eager_handle(plan.handle, ended)
        if self.app.eager_propagates if throw is None else throw:
            handle.maybe_throw()
        return handle

    def freeze(self, _id: str | None = None, root_id: str | None = None, parent_id: str | None = None) -> Any:
        """Give all of its parts their ids now, once and for all; return the handle that `apply_async` would."""
        self._freeze(self.id or (new_id() if _id is None else check_id(_id)))
        if root_id is not None and parent_id is not None:
            self.options |= {"root_id": root_id, "parent_id": parent_id}
        return self._nothing({}) if self.is_empty() else lay_out(self).handle

    def plan(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> list[NewJob]:
        """Return the rows that `apply_async` would create: one for each job and each step."""
        return [] if self.is_empty() else self._plan(args, kwargs, options).jobs()

    # -- inside ----------------------------------------------------------------------------------------------

    def _below(self) -> Iterator[Signature[Any]]:
        """Yield all that it consists of, whatever the order: without recursion, which ends at a thousand."""
        stack: list[Signature[Any]] = [self]
        while stack:
            part = stack.pop()
            yield part
            if isinstance(part, Canvas):
                stack.extend(part.parts())

    def job(self) -> NewJob:
        """Raise InvalidOption: it is no single job."""
        raise InvalidOption(f"{self!r:.80} is more than one call: enqueue it by its own delay() or apply_async()")

    continuation = job

    def followers(self) -> list[str]:
        """Return it as jobs that another one will enqueue, in JSON; the steps that wait for them stand behind them."""
        return [] if self.is_empty() else lay_out(self).followers()

    def around(self, given: Given) -> Given:
        """Return what its parts are given: what it is given, with what it says itself."""
        if not (self.args or self.kwargs or self.options or self.immutable):
            return given
        own = given_of(self.args, self.kwargs, self.options)
        mine = (
            (self.args, self.kwargs) if self.immutable else ((*given.args, *self.args), {**self.kwargs, **given.kwargs})
        )
        return Given(
            *mine,
            merged(own.options, given.options),
            (*own.links, *(call for call in given.links if call not in own.links)),
            (*own.errbacks, *(call for call in given.errbacks if call not in own.errbacks)),
            given.id or own.id,
            given.ignores,
        )

    def _plan(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Plan:
        call_options(options)
        return lay_out(self, args or (), kwargs or {}, options)

    def _nothing(self, options: Mapping[str, Any]) -> Any:
        return None

    def _told(self, plan: Plan, options: Mapping[str, Any]) -> Any:
        around = current_context()
        if around is not None and around.keeps_trail and options.get("add_to_parent") is not False:
            around.children.append(plan.handle)
        return plan.handle

    def _copy(self) -> Signature[R]:
        made: Canvas[R] = object.__new__(type(self))
        for name in ("_app", "args", "kwargs", "immutable", *self._own):
            setattr(made, name, getattr(self, name))
        made.options = dict(self.options)
        return made

    #: What a copy has besides.
    _own: ClassVar[tuple[str, ...]] = ("tasks",)

    def clone(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> Signature[R]:
        """Return a copy, with copies of its parts; arguments given now are for what comes first in it."""
        made = cast("Canvas[R]", super().clone(args, kwargs, **options))
        made._clone_parts()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature[R]:
        made = cast("Canvas[R]", super().__deepcopy__(memo))
        for name in self._own:
            setattr(made, name, copy.deepcopy(getattr(made, name), memo))
        return made

    def _clone_parts(self) -> None:
        """Have copies of its parts."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, of which `signature` makes it again; the arguments as they are."""
        extra = {"kwargs": dict(self.kwargs)} if self.kwargs else {}
        return self._dict(self.name, {**self._parts_dict(), **extra})

    def _parts_dict(self) -> dict[str, Any]:
        return {"tasks": [part.to_dict() for part in self.parts()]}

    def _revive(self, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        """Take over from a mapping what every kind has."""
        self.args = tuple(d.get("args") or ())
        self.kwargs = dict((d.get("kwargs") or {}).get("kwargs") or {})
        self.options = revived_options(d, app)
        self.immutable = bool(d.get("immutable"))
        return self

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.parts()))})"


def members(given: Sequence[Any], app: Any) -> tuple[Signature[Any], ...]:
    """Return signatures that were given one by one, or as one iterable of them; mappings are revived."""
    if len(given) == 1 and not isinstance(given[0], Mapping) and isinstance(given[0], Iterable):
        given = tuple(given[0])
    found = tuple(maybe_signature(part, app) for part in given)
    for part in found:
        if not isinstance(part, Signature):
            raise InvalidOption(f"{shown(part)} is no signature; add.s(2, 3) is one")
    return found


def frozen(tasks: Sequence[Signature[Any]]) -> tuple[Signature[Any], ...]:
    """Return copies of signatures that have their ids."""
    found = tuple(part._copy() for part in tasks)
    for part in found:
        part._freeze(part.id or new_id())
    return found
