"""JSON text to values."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from pgqueue.errors import InvalidArguments
from pgqueue.serialization.limits import shown

_SECONDS = re.compile(r"(-?)([0-9]{1,14})(?:\.([0-9]{1,6}))?")


def decode(text: str) -> object:
    """Return the value of a JSON text with its tags read; unknown tags are plain objects.

    Raises `InvalidArguments` when the text is not JSON or a tag has content that it cannot have.

    >>> decode('[2,{"$date":"2026-01-31"}]')
    [2, datetime.date(2026, 1, 31)]
    """
    # from_json against json.loads, us: [2,3] 0.15/1.1, five keys 0.4/1.8, 1 kB 5.7/11.6 (CPython 3.11).
    try:
        value = from_json(text, allow_inf_nan=False)
    except (ValueError, TypeError) as error:
        raise InvalidArguments(f"not JSON that can be read: {error}") from error
    return revive(value) if '"$' in text else value


def revive(value: Any) -> Any:
    """Replace the tags inside freshly parsed JSON, in place."""
    if type(value) is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = revive(item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(item) is dict or type(item) is list:
                value[key] = revive(item)
        if len(value) == 1:
            [(key, item)] = value.items()
            if key in _READERS:
                return _read(key, item)
    return value


def _read(tag: str, content: Any) -> object:
    kind, read = _READERS[tag]
    try:
        if type(content) is not kind:
            raise TypeError(f"needs a {'text' if kind is str else 'list'}")
        return read(content)
    except Exception as error:
        raise InvalidArguments(f"{tag} cannot hold {shown(content)}: {shown(error)}") from error


def _read_timedelta(content: str) -> timedelta:
    match = _SECONDS.fullmatch(content)
    if match is None:
        raise ValueError("needs seconds such as 90.5")
    sign, seconds, fraction = match.groups(default="")
    value = timedelta(seconds=int(seconds), microseconds=int(fraction.ljust(6, "0")))
    return -value if sign else value


def frozen(value: object) -> object:
    """A list among the members of a set or the keys of a dict was a tuple."""
    return tuple(map(frozen, value)) if type(value) is list else value


_READERS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "$datetime": (str, datetime.fromisoformat),
    "$date": (str, date.fromisoformat),
    "$time": (str, time.fromisoformat),
    "$timedelta": (str, _read_timedelta),
    "$decimal": (str, Decimal),
    "$uuid": (str, UUID),
    "$bytes": (str, lambda content: base64.b64decode(content, validate=True)),
    "$set": (list, lambda content: set(map(frozen, content))),
    "$frozenset": (list, lambda content: frozenset(map(frozen, content))),
    "$map": (list, lambda content: {frozen(key): item for key, item in content}),
}
