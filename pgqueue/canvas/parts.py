"""What is said from outside to a part of a canvas, and what a canvas unfolds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from pgqueue.stamps import STAMPS


@dataclass(frozen=True, slots=True)
class Given:
    """What a part of a canvas is given in addition to what it says itself.

    - `args`, `kwargs`: for what comes first in it, before its own.
    - `options`: for what comes first in it, or side by side; they win over its own. Stamps among them: for all of it.
    - `links`: for what comes last in it. `errbacks`: for all of it.
    - `id`: of what comes last in it; of a group, its own.
    - `ignores`: it takes nothing from what comes before it.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[Any, ...] = ()
    errbacks: tuple[Any, ...] = ()
    id: str | None = None
    ignores: bool = False

    def only(self, *, first: bool, last: bool) -> Given:
        """Return what of it is for one link of a chain."""
        if first and last:
            return self
        made = self if first else replace(self, args=(), kwargs={}, options=for_all(self.options), ignores=False)
        return made if last else replace(made, links=(), id=None)


def for_all(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a chain that are not for its first link alone."""
    return {name: value for name, value in options.items() if name == STAMPS}


NOTHING = Given()


class Segment(NamedTuple):
    """One link of a chain: a call, or `members` that run side by side.

    `id`: of the group. `header`: it is that of a chord, whose body is called even if it has no members.
    """

    call: Any
    given: Given
    members: Sequence[tuple[Any, Given]] = ()
    id: str = ""
    header: bool = False


#: What is to be unfolded further; the last says whether a group of one is to be that one.
Step: TypeAlias = "tuple[Any, Given, bool]"
