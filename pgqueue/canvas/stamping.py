"""Values that the calls of a canvas carry along: who is asked for them, and what becomes of the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pgqueue.errors import InvalidOption
from pgqueue.ids import new_id
from pgqueue.options import shown
from pgqueue.stamps import NAMES

Answer = Mapping[str, Any] | None


class StampingVisitor(ABC):
    """Is asked for the stamps of each call of a canvas: `canvas.stamp(visitor)`.

    Each method takes a signature, and as keywords the stamps that it is given by what it stands in. The answer is a
    mapping of stamps; if it has a key `stamped_headers`, the stamps are those that it names, and the rest are options.

        class Trace(StampingVisitor):
            def on_signature(self, sig, **stamps):
                return {"trace": uuid4().hex}

        (add.s(2, 3) | double.s()).stamp(Trace()).delay()
    """

    @abstractmethod
    def on_signature(self, sig: Any, **stamps: Any) -> Answer:
        """Return what a single call carries along."""

    def on_group_start(self, group: Any, **stamps: Any) -> Answer:
        """Return what all members of a group carry along."""
        return None

    def on_group_end(self, group: Any, **stamps: Any) -> None:  # noqa: B027 - it may be left as it is
        """Hear that the members of a group have been stamped."""

    def on_chain_start(self, chain: Any, **stamps: Any) -> Answer:
        """Return what all links of a chain carry along."""
        return None

    def on_chain_end(self, chain: Any, **stamps: Any) -> None:  # noqa: B027 - it may be left as it is
        """Hear that the links of a chain have been stamped."""

    def on_chord_header_start(self, chord: Any, **stamps: Any) -> Answer:
        """Return what all members of a header carry along; by default what `on_group_start` answers."""
        return self.on_group_start(chord.header, **stamps)

    def on_chord_header_end(self, chord: Any, **stamps: Any) -> None:
        """Hear that the members of a header have been stamped."""
        self.on_group_end(chord.header, **stamps)

    def on_chord_body(self, chord: Any, **stamps: Any) -> Answer:
        """Return what the body of a chord carries along besides."""
        return None

    def on_callback(self, callback: Any, **stamps: Any) -> Answer:
        """Return what a link carries along besides."""
        return None

    def on_errback(self, errback: Any, **stamps: Any) -> Answer:
        """Return what an errback carries along besides."""
        return None


class GroupStampingVisitor(StampingVisitor):
    """Stamps each call with `groups`: the ids of the groups that it stands in, the outermost first."""

    def __init__(self) -> None:
        self.groups: list[str] = []

    def on_signature(self, sig: Any, **stamps: Any) -> Answer:
        """Return the groups that are open."""
        return {"groups": list(self.groups)}

    def on_group_start(self, group: Any, **stamps: Any) -> Answer:
        """Open a group; one that has no id yet is told by one of the stamp's own."""
        self.groups.append(group.id or new_id())
        return None

    def on_group_end(self, group: Any, **stamps: Any) -> None:
        """Close it."""
        self.groups.pop()


def check_visitor(visitor: object) -> None:
    """Raise InvalidOption for what is no visitor."""
    if visitor is not None and not isinstance(visitor, StampingVisitor):
        raise InvalidOption(f"visitor must be a StampingVisitor, not {shown(visitor)}; a stamp needs another name")


def parted(answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the stamps and the options of an answer.

    >>> parted({"customer": 7, "priority": 9, "stamped_headers": ["customer"]})
    ({'customer': 7}, {'priority': 9})
    """
    found = dict(answer or {})
    names = found.pop(NAMES, None)
    stamps = found if names is None else {name: found.pop(name) for name in names if name in found}
    return (stamps, {}) if names is None else (stamps, found)


def appended(before: Mapping[str, Any], stamps: Mapping[str, Any]) -> dict[str, Any]:
    """Return stamps in which a name that was there before has a list of all its values.

    >>> appended({"customer": 7, "trace": 1}, {"customer": [8, 9]})
    {'customer': [7, 8, 9], 'trace': 1}
    """
    return {**before, **{name: [*_many(before[name]), *_many(value)] if name in before else value
                         for name, value in stamps.items()}}  # fmt: skip


def _many(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
