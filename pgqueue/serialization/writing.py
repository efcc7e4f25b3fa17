"""Values to JSON text."""

from __future__ import annotations

import base64
import dataclasses
from collections import UserString, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from math import isfinite
from pathlib import PurePath
from typing import Any, TypeAlias, cast
from uuid import UUID

from pydantic import AnyUrl, BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from pgqueue.errors import NotSerializable, PayloadTooLarge
from pgqueue.serialization.limits import INT_LIMIT, MAX_BYTES, MAX_DEPTH, MAX_DIGITS, shown
from pgqueue.serialization.reading import frozen, revive

Kinds: TypeAlias = frozenset[type]
Convert: TypeAlias = Callable[[Any, int, Kinds], object]

_SCALARS: Kinds = frozenset({str, int, float, bool, type(None)})
#: For the second walk, made only when the text looks wrong: it looks into each scalar that can be wrong.
_SAFE_SCALARS: Kinds = frozenset({bool, type(None)})
#: Whatever they are, nothing can be wrong with a text of at most MAX_DIGITS characters.
_SAFE = _SAFE_SCALARS | {int}

_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)


class _Refused(Exception):
    """A value cannot be stored; every container on the way out adds its step to the path."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self.steps: list[str] = []
        self._passed: set[int] = set()

    def leaves(self, value: object) -> None:
        """Note a container on the way out; one that was passed before contains itself."""
        if id(value) in self._passed:
            self.problem = "contains itself"
            self.steps.clear()
        self._passed.add(id(value))


def encode(value: object, *, path: str, limit: int | None = None) -> str:
    """Return the JSON text of a value; PostgreSQL accepts every text that this returns.

    - `path`: what the value is called in errors, such as `"args"`.
    - `limit`: bytes of UTF-8 allowed, `max_payload_bytes`; default and most 32 MiB.

    Raises `NotSerializable` with the exact path, or `PayloadTooLarge`.

    >>> encode([2, date(2026, 1, 31)], path="args")
    '[2,{"$date":"2026-01-31"}]'
    """
    try:
        data = _to_bytes(value)
    except _Refused as refused:
        raise NotSerializable(path + "".join(reversed(refused.steps)), refused.problem) from refused.__cause__
    if len(data) > MAX_BYTES or (limit is not None and len(data) > limit):
        allowed = MAX_BYTES if limit is None else min(limit, MAX_BYTES)
        raise PayloadTooLarge(
            f"{path}: {len(data):,} bytes of JSON, more than the {allowed:,} that max_payload_bytes allows"
        )
    return data.decode()


def _to_bytes(value: object) -> bytes:
    """Walk and write; whatever looks wrong in the text is walked again, slowly, to be refused by its path."""
    # to_json against json.dumps, us: [2,3] 0.2/1.0, five keys 0.5/1.9, 1 kB 4.9/13.4 (CPython 3.11).
    flat = type(value) is list and _SCALARS.issuperset(kinds := set(map(type, value)))  # as those of most calls are
    plain = value if flat else _plain(value, 1, _SCALARS)
    if flat and _SAFE.issuperset(kinds) and len(data := to_json(plain)) <= MAX_DIGITS:
        return data
    try:
        data = to_json(plain)
    except PydanticSerializationError:
        return to_json(_plain(value, 1, _SAFE_SCALARS))  # a lone surrogate
    if (
        b"NaN" in data
        or b"Infinity" in data
        or b"\\u0000" in data
        or (len(data) > MAX_DIGITS and _LONG_NUMBER in data.translate(_ZEROS))
    ):
        return to_json(_plain(value, 1, _SAFE_SCALARS))
    return data


def _plain(value: object, depth: int, scalars: Kinds) -> object:
    """Return the value with JSON types only: itself where nothing changes."""
    kind: Any = type(value)
    if kind in scalars:
        return value
    if depth > MAX_DEPTH and kind not in _SCALARS:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels")
    try:
        return (_CONVERT.get(kind) or _convert_for(kind))(value, depth, scalars)
    except _Refused as refused:
        refused.leaves(value)
        raise
    except Exception as error:  # the code of a model, a mapping, a time zone
        raise _Refused(f"{shown(error)} while reading this {kind.__name__}") from error


def _list(values: Sequence[object], depth: int, scalars: Kinds) -> object:
    source = values if type(values) is list else list(values)
    if scalars.issuperset(map(type, source)):  # asked of all at once it costs a fifth
        return source
    out = source
    index = 0
    try:
        for index, item in enumerate(source):
            if type(item) in scalars:
                continue
            new = _plain(item, depth + 1, scalars)
            if new is not item:
                if out is source:
                    out = source.copy()
                out[index] = new
    except _Refused as refused:
        refused.steps.append(f"[{index}]")
        raise
    return out


def _dict(values: dict[Any, object], depth: int, scalars: Kinds) -> object:
    out = values
    key: Any = ""
    checked = str not in scalars
    try:
        for key, item in values.items():
            if type(key) is not str or checked:
                break
            if type(item) in scalars:
                continue
            new = _plain(item, depth + 1, scalars)
            if new is not item:
                if out is values:
                    out = values.copy()
                out[key] = new
        else:
            return {"$map": [[key, out[key]]]} if key[:1] == "$" and len(out) == 1 else out
    except _Refused as refused:
        refused.steps.append(_step(key))
        raise
    return _keyed(values, depth, scalars)


def _keyed(values: dict[Any, object], depth: int, scalars: Kinds) -> object:
    """The careful twin of `_dict`: keys are converted and checked too; `$map` holds what no object can."""
    keys = [_member(key, depth + 3, _step) for key in values]
    if len({identity for _, identity in keys}) != len(values):
        raise _Refused("two of its keys would become the same")
    is_object = all(type(key) is str for key, _ in keys)
    pairs = []
    for (key, _), (given, item) in zip(keys, values.items(), strict=True):
        try:
            pairs.append([key, _plain(item, depth + (1 if is_object else 3), scalars)])
        except _Refused as refused:
            refused.steps.append(_step(given))
            raise
    if not is_object or (len(pairs) == 1 and cast(str, pairs[0][0])[:1] == "$"):
        return {"$map": pairs}
    return {cast(str, key): item for key, item in pairs}


def _set(values: set[object] | frozenset[object], depth: int, scalars: Kinds) -> object:
    members = [_member(value, depth + 2, _braced) for value in values]
    if len({identity for _, identity in members}) != len(values):
        raise _Refused("two of its members would become the same")
    return {"$frozenset" if isinstance(values, frozenset) else "$set": [plain for plain, _ in members]}


def _member(value: object, depth: int, step: Callable[[object], str]) -> tuple[object, object]:
    """Return a key or a member of a set, checked, and what it will be when it is read back."""
    try:
        plain = _plain(value, depth, _SAFE_SCALARS)
        if type(plain) in _SCALARS:
            return plain, plain
        try:
            identity = frozen(revive(from_json(to_json(plain))))
            hash(identity)
        except Exception as error:
            raise _Refused("would not be hashable when it is read back") from error
    except _Refused as refused:
        refused.steps.append(step(value))
        raise
    return plain, identity


def _text(value: str, depth: int, scalars: Kinds) -> str:
    text = str.__str__(value)
    if "\0" in text:
        raise _Refused("a text with a NUL character, which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Refused("a text with a lone surrogate, which UTF-8 cannot say") from None
    return text


def _int(value: int, depth: int, scalars: Kinds) -> int:
    if not -INT_LIMIT < value < INT_LIMIT:
        raise _Refused(f"an integer of more than {MAX_DIGITS} digits")
    return int.__int__(value)


def _float(value: float, depth: int, scalars: Kinds) -> float:
    if not isfinite(value):
        raise _Refused(f"{value} is not a number that JSON has")
    return float.__float__(value)


def _timedelta(value: timedelta) -> str:
    micro = abs(value) // timedelta(microseconds=1)
    return f"{'-' if value < timedelta(0) else ''}{micro // 1_000_000}.{micro % 1_000_000:06}"


def _tag(tag: str, write: Callable[[Any], str]) -> Convert:
    return lambda value, depth, scalars: {tag: write(value)}


def _via(change: Callable[[Any], object]) -> Convert:
    """A converter for what is stored as something else is."""
    return lambda value, depth, scalars: _plain(change(value), depth, scalars)


def _dataclass(value: Any, depth: int, scalars: Kinds) -> object:
    return _dict(_fields(value), depth, scalars)


def _fields(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _dump(model: BaseModel) -> object:
    # By name and without computed fields, so that the model accepts its own dump.
    return model.model_dump(mode="python", by_alias=False, round_trip=True)


_base64 = _tag("$bytes", lambda value: base64.b64encode(bytes(value)).decode())

#: In this order for subclasses: an enum may be a str, and a datetime is a date.
_CONVERT: dict[type, Convert] = {
    list: _list,
    dict: _dict,
    Enum: _via(lambda member: member.value),
    BaseModel: _via(_dump),
    str: _text,
    int: _int,
    float: _float,
    datetime: _tag("$datetime", datetime.isoformat),
    date: _tag("$date", date.isoformat),
    time: _tag("$time", time.isoformat),
    timedelta: _tag("$timedelta", _timedelta),
    Decimal: _tag("$decimal", Decimal.__str__),
    UUID: _tag("$uuid", UUID.__str__),
    bytes: _base64,
    bytearray: _base64,
    memoryview: _base64,
    tuple: _list,
    deque: _list,
    set: _set,
    frozenset: _set,
}
#: Stored as text; they come back where the parameter is annotated with them.
_AS_TEXT = (PurePath, IPv4Address, IPv6Address, IPv4Network, IPv6Network, AnyUrl, UserString)


@lru_cache(maxsize=1024)
def _convert_for(kind: type) -> Convert:
    """Find the converter of a type that is not itself in the table."""
    if issubclass(kind, _AS_TEXT):
        return _via(str)
    for base, convert in _CONVERT.items():
        if issubclass(kind, base):
            return convert
    if dataclasses.is_dataclass(kind):
        return _dataclass
    if issubclass(kind, Mapping):
        return lambda value, depth, scalars: _dict(dict(value), depth, scalars)
    if issubclass(kind, Sequence) and kind is not range:  # a range can be far larger than it looks
        return _list
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise _Refused(f"values of type {name} cannot be stored as JSON")


def _step(key: object) -> str:
    return f".{key}" if type(key) is str and len(key) < 80 and key.isidentifier() else f"[{shown(key)}]"


def _braced(member: object) -> str:
    return f"{{{shown(member)}}}"
