"""Values to JSON text that PostgreSQL accepts, and back.

What JSON cannot say is a single-key object whose key is one of a closed set of tags, `{"$uuid": "..."}`.
A text is only ever data: nothing is imported, called or constructed because of a name in it.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import reprlib
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

from pgqueue.errors import InvalidArguments, NotSerializable, PayloadTooLarge
from pgqueue.types import ErrorReport, Json

#: Levels of arrays and objects. The reader stops at 200, and an escaped object takes three levels for one.
MAX_DEPTH = 64
#: Bytes. Above it an array of small numbers needs more memory as jsonb than PostgreSQL gives to one value.
MAX_BYTES = 32 * 1024 * 1024
#: What Python and the reader convert at most (`sys.int_info.default_max_str_digits`).
MAX_DIGITS = 4300
#: Causes of causes that an error report keeps.
MAX_CAUSES = 10

Kinds: TypeAlias = frozenset[type]
Convert: TypeAlias = Callable[[Any, int, Kinds], object]

_SCALARS: Kinds = frozenset({str, int, float, bool, type(None)})
#: For the second walk, made only when the text looks wrong: it looks into each scalar that can be wrong.
_SAFE_SCALARS: Kinds = frozenset({bool, type(None)})

_INT_LIMIT: int = 10**MAX_DIGITS
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_SECONDS = re.compile(r"(-?)([0-9]{1,14})(?:\.([0-9]{1,6}))?")


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
    allowed = MAX_BYTES if limit is None else min(limit, MAX_BYTES)
    if len(data) > allowed:
        raise PayloadTooLarge(
            f"{path}: {len(data):,} bytes of JSON, more than the {allowed:,} that max_payload_bytes allows"
        )
    return data.decode()


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
    return _revive(value) if '"$' in text else value


def _to_bytes(value: object) -> bytes:
    """Walk and write; whatever looks wrong in the text is walked again, slowly, to be refused by its path."""
    # to_json against json.dumps, us: [2,3] 0.2/1.0, five keys 0.5/1.9, 1 kB 4.9/13.4 (CPython 3.11).
    plain = _plain(value, 1, _SCALARS)
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
        raise _Refused(f"{_short(error)} while reading this {kind.__name__}") from error


def _list(values: Sequence[object], depth: int, scalars: Kinds) -> object:
    source = values if type(values) is list else list(values)
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
            identity = _frozen(_revive(from_json(to_json(plain))))
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
    if not -_INT_LIMIT < value < _INT_LIMIT:
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


def _revive(value: Any) -> Any:
    """Replace the tags inside freshly parsed JSON, in place."""
    if type(value) is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = _revive(item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(item) is dict or type(item) is list:
                value[key] = _revive(item)
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
        raise InvalidArguments(f"{tag} cannot hold {_short(content)}: {_short(error)}") from error


def _read_timedelta(content: str) -> timedelta:
    match = _SECONDS.fullmatch(content)
    if match is None:
        raise ValueError("needs seconds such as 90.5")
    sign, seconds, fraction = match.groups(default="")
    value = timedelta(seconds=int(seconds), microseconds=int(fraction.ljust(6, "0")))
    return -value if sign else value


def _frozen(value: object) -> object:
    """A list among the members of a set or the keys of a dict was a tuple."""
    return tuple(map(_frozen, value)) if type(value) is list else value


_READERS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "$datetime": (str, datetime.fromisoformat),
    "$date": (str, date.fromisoformat),
    "$time": (str, time.fromisoformat),
    "$timedelta": (str, _read_timedelta),
    "$decimal": (str, Decimal),
    "$uuid": (str, UUID),
    "$bytes": (str, lambda content: base64.b64decode(content, validate=True)),
    "$set": (list, lambda content: set(map(_frozen, content))),
    "$frozenset": (list, lambda content: frozenset(map(_frozen, content))),
    "$map": (list, lambda content: {_frozen(key): item for key, item in content}),
}


def _step(key: object) -> str:
    return f".{key}" if type(key) is str and len(key) < 80 and key.isidentifier() else f"[{_short(key)}]"


def _braced(member: object) -> str:
    return f"{{{_short(member)}}}"


def _short(value: object) -> str:
    """Show a value in at most 80 or so characters; never raises."""
    try:
        return _visible(_REPR.repr(value))
    except Exception:
        return f"<{type(value).__name__}>"


def encode_error(report: ErrorReport) -> str:
    """Return an error report as JSON text that PostgreSQL accepts; never raises.

    - `report`: what JSON or UTF-8 cannot say in it is replaced visibly; at most 10 causes are kept.

    >>> encode_error(ErrorReport("ValueError", "builtins", "bad"))[:31]
    '{"type":"ValueError","module":"'
    """
    return to_json(_as_json(_report_fields(report, MAX_CAUSES), 1)).decode()


def decode_error(text: str) -> ErrorReport:
    """Return the error report of a JSON text; never raises: a failure is shown however it was written.

    >>> decode_error('{"type": "ValueError", "message": "bad"}').message
    'bad'
    """
    try:
        return _error_of(from_json(text), MAX_CAUSES)
    except (ValueError, TypeError):
        return ErrorReport("Exception", "builtins", str(text))


def _report_fields(report: ErrorReport, causes: int) -> dict[str, object]:
    cause = _report_fields(report.cause, causes - 1) if report.cause and causes else None
    return _fields(report) | {"cause": cause}


def _error_of(value: object, causes: int) -> ErrorReport:
    if not isinstance(value, dict):
        return ErrorReport("Exception", "builtins", str(value))
    args, notes, cause, traceback = (value.get(name) for name in ("args", "notes", "cause", "traceback"))
    return ErrorReport(
        type=str(value.get("type") or "Exception"),
        module=str(value.get("module") or "builtins"),
        message=str(value.get("message") or ""),
        args=tuple(args) if isinstance(args, list) else (),
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
        cause=None if cause is None or causes == 0 else _error_of(cause, causes - 1),
        traceback=None if traceback is None else str(traceback),
    )


def _as_json(value: object, depth: int) -> Json:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _visible(value)
    if type(value) is int and -_INT_LIMIT < value < _INT_LIMIT:
        return value
    if type(value) is float and isfinite(value):
        return value
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [_as_json(item, depth + 1) for item in value]
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {_visible(key): _as_json(item, depth + 1) for key, item in value.items()}
    return _short(value)


def _visible(text: object) -> str:
    r"""Write NUL as \x00 and a lone surrogate as \udXXX; what is not a text is shown shortly."""
    if not isinstance(text, str):
        return _short(text)
    return str.__str__(text).replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()
