"""One call that calls a task for each of many items, and a group of these."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

from pgqueue.canvas.calls import Callee, Signature, callee, revived_options
from pgqueue.canvas.groups import group
from pgqueue.errors import InvalidOption
from pgqueue.options import shown


def mapped(self: Any, task: str, it: Sequence[Any]) -> list[Any]:
    """Call a task for each item, one after the other, in this process; return the list of what it returns."""
    call = self.app.task_named(task)
    return [_value(call(item)) for item in it]


def starmapped(self: Any, task: str, it: Sequence[Sequence[Any]]) -> list[Any]:
    """Call a task for each list of arguments, one after the other, in this process; return the list of the values."""
    call = self.app.task_named(task)
    return [_value(call(*args)) for args in it]


def _value(found: Any) -> Any:
    return asyncio.run(found) if inspect.iscoroutine(found) else found


#: The tasks that every app has for this.
MAPS: dict[str, Callable[..., Any]] = {"pgqueue.map": mapped, "pgqueue.starmap": starmapped}


class _Map(Signature[list[Any]]):
    __slots__ = ()
    runs: ClassVar[str]

    def __init__(self, task: Any, it: Iterable[Any], app: Any = None, **options: Any) -> None:
        called = _called(task, app)
        own = {name: getattr(called, name, None) for name in ("queue", "priority")}
        super().__init__(
            callee(self.runs, called.app),
            kwargs={"task": called.name, "it": self._items(it)},
            options={name: value for name, value in own.items() if value is not None},
            immutable=True,
        )
        if options:
            self.set(**options)

    def _items(self, it: Iterable[Any]) -> list[Any]:
        """Return the items as they are kept."""
        return list(it)

    @classmethod
    def _revived(cls, d: Mapping[str, Any], app: Any) -> Signature[Any]:
        parts = d.get("kwargs") or {}
        made = cls(parts.get("task"), parts.get("it") or (), app)
        made.options = revived_options(d, app)
        return made

    def __repr__(self) -> str:
        return f"{self.kind}({self.kwargs['task']}, {self.kwargs['it']!r:.60})"


class xmap(_Map):  # noqa: N801 - Celery's name
    """One call that calls a task for each item, one after the other; its value is the list of the values.

    - `task`: the task, or its name. `it`: the items; a generator is read now.

        add_one.map([1, 2, 3]).delay().get(timeout=10)      # [2, 3, 4]

    It takes no argument from a call that it continues. Queue and priority are those of the task.
    """

    __slots__ = ()
    kind: ClassVar[str | None] = "xmap"
    runs: ClassVar[str] = "pgqueue.map"


class xstarmap(_Map):  # noqa: N801 - Celery's name
    """One call that calls a task for each list of arguments, one after the other; see `xmap`.

    add.starmap([(1, 1), (2, 2)]).delay().get(timeout=10)       # [2, 4]
    """

    __slots__ = ()
    kind: ClassVar[str | None] = "xstarmap"
    runs: ClassVar[str] = "pgqueue.starmap"

    def _items(self, it: Iterable[Any]) -> list[Any]:
        return [list(args) for args in it]


class chunks(group[Any]):  # noqa: N801 - Celery's name
    """A group of `xstarmap`, each of so many lists of arguments; its value is a list of lists.

    - `task`: the task, or its name. `it`: lists of arguments; a generator is read now. `n`: how many a call takes.

        add.chunks(zip(range(100), range(100)), 10).delay()     # ten jobs
    """

    __slots__ = ()

    def __init__(self, task: Any, it: Iterable[Sequence[Any]], n: int, app: Any = None, **options: Any) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InvalidOption(f"n={shown(n)} of chunks must be a number of items, 1 or more")
        super().__init__([xstarmap(task, part, app) for part in _pieces(it, n)], app=app, **options)

    def group(self) -> Signature[Any]:
        """Return the group that it is."""
        return group(self.tasks, **self.options)


def _pieces(it: Iterable[Any], n: int) -> Iterator[list[Any]]:
    rest = iter(it)
    while piece := list(islice(rest, n)):
        yield piece


def _called(task: Any, app: Any) -> Callee:
    """Return the task that is named by itself, its name, or a signature of it."""
    if isinstance(task, Signature):
        return task.task
    if isinstance(task, Mapping):
        task = task.get("task")
    if isinstance(task, str):
        return callee(task, app)
    if not hasattr(task, "apply_async"):
        raise InvalidOption(f"{shown(task)} is no task whose calls could be many")
    found: Callee = task
    return found
