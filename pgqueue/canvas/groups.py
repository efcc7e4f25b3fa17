"""Calls that run side by side, and one that takes the values of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

from pgqueue.canvas.calls import Signature, maybe_signature
from pgqueue.canvas.parts import NOTHING, Given, Segment, Step
from pgqueue.canvas.stamping import StampingVisitor
from pgqueue.canvas.workflow import Canvas, frozen, members
from pgqueue.errors import InvalidOption
from pgqueue.group_result import GroupResult
from pgqueue.ids import new_id

R = TypeVar("R", covariant=True)

#: Of a chord they are for the header alone: when the body may start is known only then.
_TIMES = ("countdown", "eta")


class group(Canvas[list[R]]):  # noqa: N801 - Celery's name
    """Calls that run side by side; its value is the list of theirs, in this order.

    - `tasks`: signatures, or one iterable of them. Groups among them are taken apart.
    - the options: for all of them.

        group(add.s(n, n) for n in range(3)).delay().get(timeout=10)     # [0, 2, 4]

    `link` is for the first of them alone, as in Celery; a chord has one call after all of them.
    """

    __slots__ = ("tasks",)
    kind: ClassVar[str | None] = "group"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        super().__init__(app, **options)
        self.tasks: tuple[Signature[Any], ...] = members(tasks, app)

    def parts(self) -> Sequence[Signature[Any]]:
        """Return its members."""
        return self.tasks

    def apply_async(self, args: Any = None, kwargs: Any = None, *, connection: object = None, **options: Any) -> Any:
        """Enqueue all of them in one transaction and return a GroupResult; see `Canvas.apply_async`.

        Raises TypeError for `link` and `link_error`.
        """
        _refuse_links(options)
        return super().apply_async(args, kwargs, connection=connection, **options)

    async def aapply_async(
        self, args: Any = None, kwargs: Any = None, *, connection: object = None, **options: Any
    ) -> Any:
        """Enqueue all of them as `apply_async` does, without blocking the event loop."""
        _refuse_links(options)
        return await super().aapply_async(args, kwargs, connection=connection, **options)

    def link(self, callback: Signature[Any]) -> Signature[Any]:
        """Have a call made after the success of the first of them, without its value, as in Celery; return it."""
        if self.tasks:
            first = self.tasks[0].clone()
            callback = callback.clone().set(immutable=True)
            first.link(callback)
            self.tasks = (first, *self.tasks[1:])
        return callback

    def link_error(self, errback: Signature[Any]) -> Signature[Any]:
        """Have a call made after each failure of one of them, with its id; return that call."""
        self.tasks = tuple(part.clone().on_error(errback) for part in self.tasks)
        return errback

    def set_immutable(self, immutable: bool) -> None:
        """Say whether they take no argument from what comes before them."""
        self.tasks = tuple(part.clone().set(immutable=immutable) for part in self.tasks)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group[R]:
        """Have them start one after the other, so many seconds apart; return the group."""
        made = []
        for number, part in enumerate(self.tasks):
            wait = start + number * step
            made.append(part.clone().set(countdown=wait if stop is None else min(wait, stop)))
        self.tasks = tuple(made)
        return self

    def unfold(self, given: Given, unroll: bool) -> list[Segment | Step]:
        """Return its members, without those that are empty."""
        found: list[tuple[Signature[Any], Given]] = []
        id_ = given.id or self.id or ""
        stack: list[tuple[Signature[Any], Given]] = [(self, given)]
        while stack:
            part, said = stack.pop()
            if isinstance(part, group):
                stack.extend(reversed(part._given_members(part.around(said))))
            elif not part.is_empty():
                found.append((part, said))
        if unroll and len(found) == 1:
            return [(found[0][0], replace(found[0][1], id=given.id), True)]
        return [Segment(None, NOTHING, found, id_ or new_id())]

    def _given_members(self, given: Given) -> list[tuple[Signature[Any], Given]]:
        if not self.tasks:
            return []
        rest = replace(given, links=(), id=None)
        links = tuple(call.clone().set(immutable=True) for call in given.links)
        first = replace(rest, links=links) if links else rest
        return [(self.tasks[0], first), *((part, rest) for part in self.tasks[1:])]

    def _nothing(self, options: Mapping[str, Any]) -> Any:
        return GroupResult(options.get("task_id") or self.id or new_id(), [], app=self.app)

    def _freeze(self, id_: str) -> None:
        super()._freeze(id_)
        self.tasks = frozen(self.tasks)

    def _clone_parts(self) -> None:
        self.tasks = tuple(part.clone() for part in self.tasks)

    @classmethod
    def _revived(cls, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        return cls((d.get("kwargs") or {}).get("tasks") or (), app=app)._revive(d, app)


class chord(Canvas[R]):  # noqa: N801 - Celery's name
    """Calls that run side by side, and one that takes the list of their values when all have succeeded.

    - `header`: signatures, or a group. `body`: what takes the list; any signature.
    - `args`, `kwargs`: for the header.

        chord(add.s(n, n) for n in range(3))(total.s()).get(timeout=10)     # total([0, 2, 4])

    If one of the header does not succeed, the body ends with a ChordError that names it, when all have ended.
    """

    __slots__ = ("body", "header")
    kind: ClassVar[str | None] = "chord"
    _own = ("header", "body")

    def __init__(
        self,
        header: Any = (),
        body: Any = None,
        args: Sequence[object] = (),
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        header = maybe_signature(header, app)
        self.header: group[Any] = header if isinstance(header, group) else group(*members((header,), app), app=app)
        self.body: Signature[R] | None = None if body is None else members((body,), app)[0]
        self.args = tuple(args)
        self.kwargs = {} if kwargs is None else dict(kwargs)

    @property
    def tasks(self) -> tuple[Signature[Any], ...]:
        """What is in the header."""
        return self.header.tasks

    @property
    def id(self) -> str | None:
        """Id of the body to be; None before `freeze`, unless it was set."""
        return super().id or (None if self.body is None else self.body.id)

    def parts(self) -> Sequence[Signature[Any]]:
        """Return header and body."""
        return (self.header,) if self.body is None else (self.header, self.body)

    def __call__(self, body: Any = None, *args: object, **options: Any) -> Any:
        """Enqueue it with this body: `chord(header)(body)`."""
        return self._with(body).apply_async(args, **options)

    def apply_async(self, args: Any = None, kwargs: Any = None, *, connection: object = None, **options: Any) -> Any:
        """Enqueue it in one transaction and return the handle on the body; see `Canvas.apply_async`."""
        made, kwargs = self._called(kwargs)
        return super(chord, made).apply_async(args, kwargs, connection=connection, **options)

    async def aapply_async(
        self, args: Any = None, kwargs: Any = None, *, connection: object = None, **options: Any
    ) -> Any:
        """Enqueue it as `apply_async` does, without blocking the event loop."""
        made, kwargs = self._called(kwargs)
        return await super(chord, made).aapply_async(args, kwargs, connection=connection, **options)

    def link(self, callback: Signature[Any]) -> Signature[Any]:
        """Have a call made by the commit that stores the success of the body; return that call."""
        return self._of_body().link(callback)

    def link_error(self, errback: Signature[Any]) -> Signature[Any]:
        """Have a call made when the body fails, or cannot run since the header has; return that call.

        With the setting `task_allow_error_cb_on_chord_header`, after each failure of a member of the header too.
        """
        body = self._of_body()
        if self.app.errbacks_of_headers:
            self.header = cast("group[Any]", self.header.clone())
            self.header.link_error(errback)
        return body.link_error(errback)

    def set_immutable(self, immutable: bool) -> None:
        """Say whether the header takes no argument from what comes before it."""
        self.header = cast("group[Any]", self.header.clone().set(immutable=immutable))

    def unfold(self, given: Given, unroll: bool) -> list[Segment | Step]:
        """Return header and body."""
        if self.body is None:
            raise InvalidOption(f"{self!r:.80} has no body: chord(header)(body), or chord(header, body)")
        given = self.around(given)
        errbacks = given.errbacks if self.app.errbacks_of_headers else ()
        (header,) = self.header.unfold(replace(given, links=(), errbacks=errbacks, id=None), False)
        assert isinstance(header, Segment)
        options = {name: value for name, value in given.options.items() if name not in _TIMES}
        return [
            header._replace(header=True),
            (self.body, Given(options=options, links=given.links, errbacks=given.errbacks, id=given.id), False),
        ]

    def with_body(self, body: Signature[Any]) -> chord[Any]:
        """Return a copy with this body."""
        made = cast("chord[Any]", self._copy())
        made.body = body
        return made

    def _stamp_parts(self, visitor: StampingVisitor | None, append_stamps: bool, stamps: dict[str, Any]) -> None:
        more = self._asked(None if visitor is None else visitor.on_chord_header_start(self, **stamps))
        for part in self.header.tasks:
            part.stamp(visitor, append_stamps, **{**stamps, **more})
        if visitor is not None:
            visitor.on_chord_header_end(self, **stamps)
        if self.body is not None:
            more = self._asked(None if visitor is None else visitor.on_chord_body(self, **stamps))
            self.body.stamp(visitor, append_stamps, **{**stamps, **more})

    def _with(self, body: Any) -> chord[Any]:
        return self if body is None else self.with_body(members((body,), self._app)[0])

    def _called(self, kwargs: Mapping[str, Any] | None) -> tuple[chord[Any], Mapping[str, Any]]:
        """Return it with the body that was given among the keyword arguments, and the others."""
        rest = dict(kwargs or {})
        return self._with(rest.pop("body", None)), rest

    def _of_body(self) -> Signature[Any]:
        if self.body is None:
            raise InvalidOption(f"{self!r:.80} has no body yet that something could follow")
        self.body = self.body.clone()
        return self.body

    def _freeze(self, id_: str) -> None:
        super()._freeze(id_)
        self.header = cast("group[Any]", self.header._copy())
        self.header._freeze(self.header.id or new_id())
        if self.body is not None:
            self.body = self.body._copy()
            self.body._freeze(id_)

    def _clone_parts(self) -> None:
        self.header = cast("group[Any]", self.header.clone())
        self.body = None if self.body is None else self.body.clone()

    def _parts_dict(self) -> dict[str, Any]:
        return {"header": self.header.to_dict(), "body": None if self.body is None else self.body.to_dict()}

    @classmethod
    def _revived(cls, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        parts = d.get("kwargs") or {}
        return cls(parts.get("header") or (), parts.get("body"), app=app)._revive(d, app)


def _refuse_links(options: Mapping[str, Any]) -> None:
    for option in ("link", "link_error"):
        if options.get(option) is not None:
            raise TypeError(f"a group has no {option}: what follows all of it is the body of a chord, group | call")
