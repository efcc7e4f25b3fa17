"""The handle on a group, and handles as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from pgqueue.errors import InvalidOption
from pgqueue.ids import check_id
from pgqueue.result import AsyncResult, Tuple
from pgqueue.result_set import ResultSet
from pgqueue.waiting import Waiting

R = TypeVar("R")


class GroupResult(ResultSet[R]):
    """The handle on calls that run side by side: what `group` returns, and the parent of what follows them.

    - `id`: id of the group; nothing else has it.
    - `results`: the handles on its members, in order.
    - `parent`: the handle on what the group continues.
    - `app`: the app whose database has them; default: that of the handles.

        result = group(add.s(n, n) for n in range(3)).delay()
        result.get(timeout=10)      # [0, 2, 4]
        result.save()               # app.GroupResult.restore(result.id) is the same one, anywhere
    """

    def __init__(
        self,
        id: str,
        results: Iterable[AsyncResult[R]] = (),
        parent: AsyncResult[Any] | GroupResult[Any] | None = None,
        app: Waiting | None = None,
    ) -> None:
        super().__init__(results, app)
        self.id = check_id(id, "id")
        self._parent = parent

    @property
    def parent(self) -> AsyncResult[Any] | GroupResult[Any] | None:
        """What the group continues, as far as this handle knows."""
        return self._parent

    @property
    def children(self) -> list[AsyncResult[R]]:
        """The handles on its members."""
        return self.results

    def as_list(self) -> list[str]:
        """Return the ids of the members."""
        return [result.id for result in self.results]

    def as_tuple(self) -> Tuple:
        """Return the handle as ((id, the same of the parent), those of the members)."""
        return self._tuple(None if self._parent is None else self._parent.as_tuple())

    # -- kept in the database --------------------------------------------------------------------------------

    def save(self) -> None:
        """Keep the ids of the group and its members in the database, until `delete`, or as long as a result."""
        database = cast(Waiting, self.app).database
        database.run(database.statements.save_group(self.id, json.dumps(self.as_tuple())))

    async def asave(self) -> None:
        """Keep the ids as `save` does, without blocking the event loop."""
        database = cast(Waiting, self.app).database
        await database.arun(database.statements.save_group(self.id, json.dumps(self.as_tuple())))

    def delete(self) -> bool:
        """Delete what `save` has kept; return whether there was anything."""
        database = cast(Waiting, self.app).database
        return database.run(database.statements.delete_group(self.id))[0]

    async def adelete(self) -> bool:
        """Delete what `save` has kept, without blocking the event loop."""
        database = cast(Waiting, self.app).database
        return (await database.arun(database.statements.delete_group(self.id)))[0]

    @classmethod
    def restore(cls, id: str, app: Waiting) -> GroupResult[Any] | None:
        """Return the group that was saved under an id; None if none was. See `app.GroupResult`."""
        found = app.database.run(app.database.statements.saved_group(check_id(id, "id")))
        return _restored(found, app)

    @classmethod
    async def arestore(cls, id: str, app: Waiting) -> GroupResult[Any] | None:
        """Return the group that was saved under an id, without blocking the event loop."""
        found = await app.database.arun(app.database.statements.saved_group(check_id(id, "id")))
        return _restored(found, app)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (self.id, self.results) == (other.id, other.results)
        return NotImplemented

    __hash__ = None  # its members change

    def __bool__(self) -> bool:
        return True  # as it has an id, even without members

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(map(str, self.results))}]>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _own_ids(self) -> list[str]:
        return self.as_list()

    def _tuple(self, parent: Any) -> Tuple:
        return (self.id, parent), [result.as_tuple() for result in self.results]


def result_from_tuple(value: Sequence[Any] | AsyncResult[Any] | GroupResult[Any], app: Waiting) -> Any:
    """Return the handle that `as_tuple` gave, with its parents; a handle is returned as it is.

    - `value`: ((id, the same of the parent or None), None, or those of the members of a group), or lists of these, as
      JSON has them.
    - `app`: the app whose database has the jobs.

    Raises InvalidOption for anything else.
    """
    if isinstance(value, AsyncResult | GroupResult):
        return value
    line: list[tuple[str, Sequence[Any] | None]] = []
    rest: Any = value
    while rest is not None:
        try:
            (first, members) = rest
            (id_, rest) = (first, None) if isinstance(first, str) else first
        except (TypeError, ValueError):
            raise InvalidOption(f"{rest!r:.80} is no result: ((id, parent), None) is one") from None
        line.append((check_id(id_, "id"), members))
    if not line:
        raise InvalidOption("None is no result: ((id, parent), None) is one")
    handle: Any = None
    for id_, members in reversed(line):
        if members is None:
            handle = AsyncResult(id_, app, parent=handle)
        else:
            handle = GroupResult(id_, [result_from_tuple(member, app) for member in members], handle, app)
    return handle


def _restored(found: Sequence[str | None], app: Waiting) -> GroupResult[Any] | None:
    text = found[0] if found else None
    return None if text is None else result_from_tuple(json.loads(text), app)


class GroupResults:
    """The groups of one app: `app.GroupResult(id, results)` makes a handle, `app.GroupResult.restore(id)` finds one."""

    def __init__(self, app: Waiting) -> None:
        self._app = app

    def __call__(
        self,
        id: str,
        results: Iterable[AsyncResult[Any]] = (),
        parent: AsyncResult[Any] | GroupResult[Any] | None = None,
    ) -> GroupResult[Any]:
        """Return the handle on a group."""
        return GroupResult(id, results, parent, self._app)

    def restore(self, id: str) -> GroupResult[Any] | None:
        """Return the group that was saved under an id; None if none was."""
        return GroupResult.restore(id, self._app)

    async def arestore(self, id: str) -> GroupResult[Any] | None:
        """Return the group that was saved under an id, without blocking the event loop."""
        return await GroupResult.arestore(id, self._app)
