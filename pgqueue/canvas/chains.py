"""Calls that run one after the other, and what `|` makes of two canvases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pgqueue.canvas.calls import Signature
from pgqueue.canvas.groups import chord, group
from pgqueue.canvas.layout import given_of
from pgqueue.canvas.parts import Given, Segment, Step, for_all
from pgqueue.canvas.workflow import Canvas, frozen, members

R = TypeVar("R", covariant=True)


class chain(Canvas[R]):  # noqa: N801 - Celery's name
    """Calls that run one after the other, each with the value of the one before as first argument.

    - `tasks`: signatures, or one iterable of them.
    - the options: for the first of them; `task_id` and `link` for the last, `link_error` for each.

        chain(add.s(2, 3), double.s()).delay().get(timeout=10)      # 10; the same as add.s(2, 3) | double.s()

    A group in front of a call becomes a chord: `group | call` waits for all, and the call takes the list. If one does
    not succeed, those behind it end as it did, in the same commit.
    """

    __slots__ = ("tasks",)
    kind: ClassVar[str | None] = "chain"
    tasks: tuple[Signature[Any], ...]

    def __new__(cls, *tasks: Any, app: Any = None, **options: Any) -> Any:
        """Return what `|` makes of the signatures: a group in front makes a chord of it."""
        found = members(tasks, app)
        line = _Line()
        for part in found:
            line.add(part)
        made = line.made() if len(found) > 1 else cls.of(line.items)
        if app is not None and isinstance(made, Canvas):
            made._app = app
        return made.clone().set(**options) if options else made

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        """Nothing is left to do."""

    @classmethod
    def of(cls, tasks: Sequence[Signature[Any]]) -> chain[Any]:
        """Return a chain of just these, as they are."""
        made: chain[Any] = object.__new__(cls)
        Canvas.__init__(made)
        made.tasks = tuple(tasks)
        return made

    def parts(self) -> Sequence[Signature[Any]]:
        """Return its links."""
        return self.tasks

    @property
    def id(self) -> str | None:
        """Id of the last job to be; None before `freeze`, unless it was set."""
        return super().id or (self.tasks[-1].id if self.tasks else None)

    def set_immutable(self, immutable: bool) -> None:
        """Say whether the first takes no argument from what comes before it."""
        self.tasks = (*(part.clone().set(immutable=immutable) for part in self.tasks[:1]), *self.tasks[1:])

    def unfold(self, given: Given, unroll: bool) -> list[Segment | Step]:
        """Return its links, without those that are empty."""
        found = [part for part in self.tasks if not part.is_empty()]
        given = self.around(given)
        if len(found) < 2:
            return [(part, given, True) for part in found]
        middle = given.only(first=False, last=False)
        first, last = given.only(first=True, last=False), given.only(first=False, last=True)
        return [(found[0], first, True), *((part, middle, True) for part in found[1:-1]), (found[-1], last, True)]

    def unchained(self) -> list[Signature[Any]]:
        """Return its links, with what the chain says of them."""
        found = list(self.tasks)
        if not found or not (self.args or self.kwargs or self.options):
            return found
        given = given_of(self.args, self.kwargs, self.options)
        found = [
            found[0].clone(given.args, given.kwargs, **given.options),
            *(part.clone(**for_all(given.options)) for part in found[1:]),
        ]
        for part in found:
            for call in given.errbacks:
                part.link_error(call)
        for call in given.links:
            found[-1].link(call)
        return found

    def _freeze(self, id_: str) -> None:
        super()._freeze(id_)
        if self.tasks:
            last = self.tasks[-1]._copy()
            last._freeze(id_)
            self.tasks = (*frozen(self.tasks[:-1]), last)

    def _clone_parts(self) -> None:
        self.tasks = tuple(part.clone() for part in self.tasks)

    @classmethod
    def _revived(cls, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        made = cls.of(members(((d.get("kwargs") or {}).get("tasks") or (),), app))
        made._app = app
        return made._revive(d, app)


class _Line:
    """What `|` makes of signatures, one after the other, as Celery does; never changes one of them.

    - `items`: the links so far. `chained`: whether they are a chain, even a single one.
    - `body`: of the last of them, a chord that takes up what follows it.
    """

    def __init__(self, items: Sequence[Signature[Any]] = (), chained: bool = False) -> None:
        self.items = list(items)
        self.chained = chained
        self.body: _Line | None = None

    @classmethod
    def of(cls, call: Signature[Any] | None) -> _Line:
        """Return the line that a signature is."""
        if isinstance(call, chain):
            return cls(call.unchained(), True)
        return cls([] if call is None else [call])

    def add(self, right: Signature[Any]) -> None:
        """Continue with another one."""
        last = self.items[-1] if self.items else None
        bare = not self.chained
        if isinstance(right, group):
            if right.is_empty():
                return
            if last is not None and not (bare and isinstance(last, group)):
                right = unrolled(right)
        if last is None:
            self.items, self.chained = (right.unchained(), True) if isinstance(right, chain) else ([right], False)
        elif isinstance(right, chain):
            self._add_chain(last, right)
        elif isinstance(last, group):
            self._add_to_group(last, right)
        elif isinstance(last, chord) and not isinstance(right, chord if self.chained else group):
            self._extend(last, right)
        else:
            self._append([right])

    def _add_chain(self, last: Signature[Any], right: chain[Any]) -> None:
        if not self.chained and isinstance(last, group):
            self.items[-1] = chord(last, right)
        elif not self.chained and isinstance(last, chord):
            self._append(right.unchained())
        else:
            for part in right.unchained():
                self.add(part)

    def _add_to_group(self, last: group[Any], right: Signature[Any]) -> None:
        if self.chained and isinstance(right, group):
            self._append([right])
        else:
            self.items[-1] = chord(last, right)

    def _extend(self, last: chord[Any], right: Signature[Any]) -> None:
        if self.body is None:
            self.body = _Line.of(last.body)
        self.body.add(right)

    def _append(self, more: Sequence[Signature[Any]]) -> None:
        self._close()
        self.items += more
        self.chained = True

    def _close(self) -> None:
        if self.body is not None:
            last = self.items[-1]
            assert isinstance(last, chord)
            self.items[-1] = last.with_body(self.body.made())
            self.body = None

    def made(self) -> Signature[Any]:
        """Return what has become of them."""
        self._close()
        return self.items[0] if len(self.items) == 1 and not self.chained else chain.of(self.items)


def unrolled(call: Signature[Any]) -> Signature[Any]:
    """Return the one member of a group that has no other, with what the group says of it; else what was given."""
    while isinstance(call, group) and len(call.tasks) == 1:
        given = given_of(call.args, call.kwargs, call.options)
        call = call.tasks[0].clone(given.args, given.kwargs, **given.options)
    return call
