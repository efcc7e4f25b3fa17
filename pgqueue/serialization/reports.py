"""Error reports to JSON text, and back: neither way can fail, and every report is bounded."""

from __future__ import annotations

import reprlib
from math import isfinite
from typing import Any, cast

from pydantic_core import from_json, to_json

from pgqueue.serialization.limits import MAX_CAUSES, visible
from pgqueue.types import ErrorReport, Json

#: Bytes of the JSON text of an error report, with its causes and members.
MAX_ERROR_BYTES = 300_000
#: Characters of a message, a note or a text among the args; of a name; of a traceback, whose middle is left out.
LONGEST_TEXT, LONGEST_NAME, LONGEST_TRACEBACK = 10_000, 1_000, 60_000
#: Characters of an argument that is not a text, as data or as its repr.
LONGEST_DATA = 1_000
#: Args, notes, or members of a group that are kept; reports in one with its causes and members, all levels together.
MOST_ITEMS, MOST_ERRORS = 20, 50

_DEEPEST_DATA = 6

# Unlike repr it does not look at all of a long list, which may be most of a second's work.
_REPR = reprlib.Repr()
_REPR.maxlevel = _DEEPEST_DATA
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = _REPR.maxdeque = 100
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = LONGEST_DATA


def encode_error(report: ErrorReport) -> str:
    """Return an error report as JSON text that PostgreSQL accepts, at most 300 kB of it; never raises.

    - `report`: what JSON or UTF-8 cannot say in it is replaced visibly, what is too long is cut. At most 10 causes
      of causes are kept, 20 members of a group, and 50 reports in all.

    >>> encode_error(ErrorReport("ValueError", "builtins", "bad"))[:31]
    '{"type":"ValueError","module":"'
    """
    longest = LONGEST_TEXT
    while True:
        text = to_json(_fields(report, longest, MAX_CAUSES, MOST_ERRORS))
        if len(text) <= MAX_ERROR_BYTES or longest == 1:
            return text.decode()
        longest //= 2


def decode_error(text: str) -> ErrorReport:
    """Return the error report of a JSON text; never raises: a failure is shown however it was written.

    >>> decode_error('{"type": "ValueError", "message": "bad"}').message
    'bad'
    """
    try:
        return _error_of(from_json(text), MAX_CAUSES)
    except Exception:
        return ErrorReport("Exception", "builtins", str(text))


def shares(room: int, cause: bool, members: int) -> tuple[int, int, int]:
    """Divide the number of reports that one may consist of, itself included, so that none starves another.

    Returns how many its cause may consist of, how many members are kept, and how many reports each of these may be.
    """
    room -= 1
    for_cause = 0 if not cause else room // 2 if members else room
    room -= for_cause
    kept = min(members, MOST_ITEMS, room)
    return for_cause, kept, room // kept if kept else 0


def cut(text: object, longest: int = LONGEST_TEXT) -> str:
    """Return the beginning of a text, without what PostgreSQL refuses; a subclass of str has no say in it."""
    if issubclass(type(text), str):
        text = str.__getitem__(cast(str, text), slice(longest))
    return visible(text)[:longest]


def cut_middle(text: object, longest: int = LONGEST_TRACEBACK) -> str:
    """Return a text without its middle if it is longer than allowed by more than the words that say so."""
    text = visible(text)
    left_out = len(text) - longest
    if left_out <= 100:
        return text
    half = longest // 2
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"


def name_of(kind: type) -> str:
    """Return the qualified name of a class, whatever its metaclass would answer."""
    return cut(vars(type)["__qualname__"].__get__(kind), LONGEST_NAME) or "Exception"


def as_json(value: object, longest: int = LONGEST_TEXT) -> Json:
    """Return a scalar, or small lists and dicts of scalars, as JSON can say them, else a short repr; never raises.

    - `longest`: characters kept of a text. Anything else has at most 1,000.
    """
    small = min(longest, LONGEST_DATA)
    try:
        return cut(value, longest) if issubclass(type(value), str) else _data(value, [small], _DEEPEST_DATA)
    except BaseException:  # too large, no data, or changed by another thread meanwhile
        return _shown(value, small)


def _shown(value: object, longest: int) -> str:
    try:
        return cut(_REPR.repr(value), longest)
    except BaseException:
        return f"<{name_of(type(value))} without a readable text>"[:longest]


def _data(value: Any, room: list[int], depth: int) -> Json:
    """Return a value as JSON, or raise ValueError; `room` is what is left of the characters allowed."""
    kind = type(value)
    found: Json = None
    if value is None or kind is bool:
        found, size = value, 5
    elif issubclass(kind, str):
        found = cut(value, room[0] + 1)
        size = len(found)
    elif issubclass(kind, int):
        found = int.__int__(value)
        size = found.bit_length() // 3
    elif issubclass(kind, float) and isfinite(found := float.__float__(value)):
        size = 20
    elif kind in (list, tuple, dict) and depth:
        size = 2 * len(value)
    else:
        raise ValueError
    room[0] -= size
    if room[0] < 0:
        raise ValueError
    if kind in (list, tuple):
        return [_data(item, room, depth - 1) for item in value]
    if kind is dict:
        return {str(_data(key, room, 0)): _data(item, room, depth - 1) for key, item in value.items()}
    return found


def _fields(report: ErrorReport, longest: int, depth: int, room: int) -> dict[str, object]:
    cause, members = (report.cause, report.exceptions) if depth else (None, ())
    for_cause, kept, for_member = shares(room, cause is not None, len(members))
    return {
        "type": cut(report.type, min(longest, LONGEST_NAME)),
        "module": cut(report.module, min(longest, LONGEST_NAME)),
        "message": cut(report.message, longest),
        "args": [as_json(value, longest) for value in report.args[:MOST_ITEMS]],
        "notes": [cut(note, longest) for note in report.notes[:MOST_ITEMS]],
        "cause": _fields(cause, longest, depth - 1, for_cause) if cause and for_cause else None,
        "traceback": None if report.traceback is None else cut_middle(report.traceback, 6 * longest),
        "exceptions": [_fields(member, longest, depth - 1, for_member) for member in members[:kept]],
    }


def _error_of(value: object, depth: int) -> ErrorReport:
    if not isinstance(value, dict):
        return ErrorReport("Exception", "builtins", str(value))
    args, notes, cause, traceback, members = map(value.get, ("args", "notes", "cause", "traceback", "exceptions"))
    members = members[:MOST_ITEMS] if isinstance(members, list) and depth else []
    return ErrorReport(
        type=str(value.get("type") or "Exception"),
        module=str(value.get("module") or "builtins"),
        message=str(value.get("message") or ""),
        args=tuple(args) if isinstance(args, list) else (),
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
        cause=None if cause is None or depth == 0 else _error_of(cause, depth - 1),
        traceback=None if traceback is None else str(traceback),
        exceptions=tuple(_error_of(member, depth - 1) for member in members),
    )
