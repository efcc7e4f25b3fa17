"""Handles on what was enqueued as handles on what has run here and now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgqueue.eager_result import EagerResult
from pgqueue.group_result import GroupResult


def eager_handle(handle: Any, ended: Mapping[str, EagerResult[Any]]) -> Any:
    """Return a handle and all that it continues as results that are ready."""
    line = [handle]
    while line[-1]._parent is not None:
        line.append(line[-1]._parent)
    made: Any = None
    for one in reversed(line):
        if isinstance(one, GroupResult):
            found: Any = GroupResult(one.id, [eager_handle(member, ended) for member in one.results], made)
        else:
            found = ended[one.id]
            found._parent = made
        made = found
    return made
