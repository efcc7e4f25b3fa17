"""What `encode` writes is JSON that PostgreSQL accepts, `decode` brings it back, and a text is never code."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, UserString, deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, RootModel, SecretStr, computed_field

from pgqueue.errors import InvalidArguments, NotSerializable, PayloadTooLarge
from pgqueue.serialization import decode, decode_error, encode, encode_error
from pgqueue.types import ErrorReport

fuzz = settings(deadline=None, max_examples=100, database=None)

FULL_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
# In seconds: CPython 3.11 itself reads an offset below a second as UTC.
OFFSETS = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))


def without_fold(value: Any) -> Any:
    """ISO 8601 has no fold, and no fixed offset needs one."""
    return value.replace(fold=0)


HASHABLES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.datetimes().map(without_fold),
    st.datetimes(timezones=OFFSETS | st.just(UTC)).map(without_fold),
    st.dates(),
    st.times().map(without_fold),
    st.times(timezones=OFFSETS).map(without_fold),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.binary(max_size=20),
)
KEYS = HASHABLES | st.tuples(HASHABLES, HASHABLES) | st.frozensets(HASHABLES, max_size=3)
TAG_LIKE = st.sampled_from(["$datetime", "$uuid", "$map", "$set", "$new", "$", "$$map"])
VALUES = st.recursive(
    HASHABLES | st.sets(HASHABLES, max_size=3) | st.frozensets(KEYS, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | TAG_LIKE, inner, max_size=4)
        | st.dictionaries(TAG_LIKE, inner, min_size=1, max_size=1)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)
#: Everything that somebody may try to enqueue, allowed or not.
ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | FULL_TEXT | st.decimals() | st.sets(FULL_TEXT, max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FULL_TEXT | st.floats(), inner, max_size=4),
    max_leaves=10,
)


class Color(Enum):
    RED = "red"


class Size(IntEnum):
    LARGE = 3


class Mood(StrEnum):
    GOOD = "good"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    sku: str
    price: Any


@dataclass(frozen=True)
class Frozen:
    x: int


class Order(BaseModel):
    id: UUID
    lines: list[Line]
    at: datetime = Field(alias="createdAt")
    total: Any = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.lines)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class BrokenZone(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        raise RuntimeError("no zone today")

    def dst(self, dt: datetime | None) -> None: ...

    def tzname(self, dt: datetime | None) -> None: ...


ID = UUID("12345678-1234-5678-1234-567812345678")
AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def back(value: object) -> Any:
    return decode(encode(value, path="args"))


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True differ, and Decimal 1.0 and 1.00."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=False)
        return len(left) == len(right) and all(same(one, two) for one, two in pairs)
    if isinstance(left, (set, frozenset)):
        return bool(left == right)
    return bool(left == right and repr(left) == repr(right))


def strict(text: str) -> object:
    """Read JSON as strictly as PostgreSQL does; return it."""

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    text.encode()
    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogate behind an escape
    assert "\\u0000" not in json.dumps(value).replace("\\\\", "")
    return value


def refusal(value: object, path: str = "args") -> tuple[str, str]:
    with pytest.raises(NotSerializable) as caught:
        encode(value, path=path)
    assert str(caught.value) == f"{caught.value.path}: {caught.value.problem}"
    str(caught.value).encode()
    return caught.value.path, caught.value.problem


@fuzz
@given(VALUES)
def test_everything_comes_back_as_what_it_was(value: object) -> None:
    text = encode(value, path="args")
    strict(text)
    assert same(decode(text), value)


@fuzz
@given(VALUES)
def test_values_survive_the_spaces_and_the_key_order_of_jsonb(value: object) -> None:
    text = json.dumps(strict(encode(value, path="args")), sort_keys=True, indent=1)
    assert decode(text) == value


@fuzz
@given(ANYTHING)
def test_what_is_not_refused_is_json_for_postgresql(value: object) -> None:
    try:
        text = encode(value, path="args")
    except NotSerializable as error:
        str(error).encode()
    else:
        strict(text)


@fuzz
@given(FULL_TEXT)
def test_any_text_is_stored_as_it_is_or_refused(value: str) -> None:
    storable = "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
    if storable:
        assert back([value, {value: value}, {value, "x"}]) == [value, {value: value}, {value, "x"}]
    else:
        for wrong, path in [([value], "args[0]"), ({"k": value}, "args.k"), (Text(value), "args")]:
            assert refusal(wrong)[0] == path
        refusal({value: 1})
        refusal({value})


@fuzz
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(value: float) -> None:
    assert repr(back(value)) == repr(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([2, 3], "[2,3]"),
        ({"a": None, "é": True}, '{"a":null,"é":true}'),
        (AT, '{"$datetime":"2026-01-31T12:00:00+00:00"}'),
        (date(2026, 1, 31), '{"$date":"2026-01-31"}'),
        (time(1, 2, 3), '{"$time":"01:02:03"}'),
        (timedelta(days=1, microseconds=5), '{"$timedelta":"86400.000005"}'),
        (timedelta(microseconds=-1), '{"$timedelta":"-0.000001"}'),
        (Decimal("1.50"), '{"$decimal":"1.50"}'),
        (ID, '{"$uuid":"12345678-1234-5678-1234-567812345678"}'),
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        ({1}, '{"$set":[1]}'),
        (frozenset({1}), '{"$frozenset":[1]}'),
        ({1: "a"}, '{"$map":[[1,"a"]]}'),
        ({"$uuid": "a"}, '{"$map":[["$uuid","a"]]}'),
        ({"$new": 1}, '{"$map":[["$new",1]]}'),
        ({"$uuid": "a", "b": 1}, '{"$uuid":"a","b":1}'),
        ("NaN Infinity \\u0000", r'"NaN Infinity \\u0000"'),
    ],
)
def test_the_stored_form(value: object, text: str) -> None:
    assert encode(value, path="args") == text
    assert same(decode(text), value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (deque([1, AT]), [1, AT]),
        (Color.RED, "red"),
        (Size.LARGE, 3),
        (Mood.GOOD, "good"),
        ({Mood.GOOD: 1, Color.RED: 2}, {"good": 1, "red": 2}),
        ({Size.LARGE: 1}, {3: 1}),
        (Text("abc"), "abc"),
        ({Text("abc"): 1}, {"abc": 1}),
        (UserString("abc"), "abc"),
        (OrderedDict(a=AT), {"a": AT}),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (Line("a", Decimal(1)), {"sku": "a", "price": Decimal(1)}),
        ([Line("a", {Line: 1}.keys().__len__())], [{"sku": "a", "price": 1}]),
        (RootModel[list[int]]([1, 2]), [1, 2]),
        ({(1, 2): {frozenset({1})}}, {(1, 2): {frozenset({1})}}),
        (PurePosixPath("/tmp/a"), "/tmp/a"),
        (ip_address("::1"), "::1"),
        (AnyUrl("https://example.org/"), "https://example.org/"),
        (10**4299, 10**4299),
        (Decimal("Infinity"), Decimal("Infinity")),
    ],
)
def test_other_types_are_stored_as_their_plain_relatives(value: object, stored: object) -> None:
    assert same(back(value), stored)


def test_a_model_is_stored_by_name_so_that_it_accepts_its_own_dump() -> None:
    order = Order(id=ID, lines=[Line("a", Decimal("1.5"))], createdAt=AT, total={Color.RED})
    stored = {"id": ID, "lines": [{"sku": "a", "price": Decimal("1.5")}], "at": AT, "total": {"red"}}
    assert same(back(order), stored)
    assert Order.model_validate(stored, by_name=True).at == AT


def test_not_a_number_is_kept_where_it_is_a_decimal() -> None:
    assert back(Decimal("NaN")).is_qnan()
    assert back(Decimal("sNaN")).is_snan()


def test_an_aware_datetime_keeps_its_instant_and_offset() -> None:
    for fold in (0, 1):  # twice 02:30, an hour apart
        given_at = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        read = back(given_at)
        assert read.astimezone(UTC) == given_at.astimezone(UTC)
        assert read.utcoffset() == given_at.utcoffset()


def test_nothing_that_is_given_is_changed() -> None:
    inner: list[object] = [1, (2,), {"a": {3}}]
    value = {"x": inner, "$map": [AT]}
    encode([value], path="args")
    assert value == {"x": inner, "$map": [AT]}
    assert inner == [1, (2,), {"a": {3}}]


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ([object()], "args[0]", "values of type object cannot be stored as JSON"),
        ([1, {"lines": [0, {"price": 1j}]}], "args[1].lines[1].price", "values of type complex cannot be"),
        ([{"a b": float("nan")}], "args[0]['a b']", "nan is not a number that JSON has"),
        ([[], [float("-inf")]], "args[1][0]", "-inf is not a number that JSON has"),
        (["a\0"], "args[0]", "a text with a NUL character"),
        ([{"a\0": 1}], r"args[0]['a\x00']", "a text with a NUL character"),
        ([{"k": "\ud800"}], "args[0].k", "a text with a lone surrogate"),
        ([{"\ud800": 1}], r"args[0]['\ud800']", "a text with a lone surrogate"),
        ([10**4300], "args[0]", "an integer of more than 4300 digits"),
        ([1, -(10**4300)], "args[1]", "an integer of more than 4300 digits"),
        ([Line("a", [object])], "args[0].price[0]", "values of type type cannot"),
        ([{(1, 2): {"x": print}}], "args[0][(1, 2)].x", "values of type builtin_function_or_method cannot"),
        ([{1, float("inf")}], "args[0]{inf}", "inf is not"),
        ([{Frozen(1)}], "args[0]{Frozen(x=1)}", "would not be hashable"),
        ([{Color.RED: 1, "red": 2}], "args[0]", "two of its keys would become the same"),
        ([{Color.RED, "red"}], "args[0]", "two of its members would become the same"),
        ([range(10**12)], "args[0]", "values of type range cannot"),
        ([iter([])], "args[0]", "values of type list_iterator cannot"),
        (
            [datetime(2026, 1, 1, tzinfo=BrokenZone())],
            "args[0]",
            "RuntimeError('no zone today') while reading",
        ),
        ([SecretStr("x")], "args[0]", "values of type pydantic.types.SecretStr cannot"),
    ],
)
def test_a_refusal_names_the_place_and_the_problem(value: object, path: str, problem: str) -> None:
    where, what = refusal(value)
    assert where == path
    assert what.startswith(problem)


def test_a_refusal_inside_a_model_names_the_field() -> None:
    order = Order(id=ID, lines=[Line("a", 1), Line("b", object())], createdAt=AT)
    assert refusal([order])[0] == "args[0].lines[1].price"
    assert refusal({"order": order}, path="kwargs")[0] == "kwargs.order.lines[1].price"


def test_nesting_and_cycles() -> None:
    def nested(levels: int, value: object) -> object:
        for _ in range(levels):
            value = [value]
        return value

    assert same(back(nested(64, "NaN")), nested(64, "NaN"))
    assert refusal(nested(65, 1)) == ("args" + "[0]" * 64, "nested deeper than 64 levels")
    refusal(nested(100_000, 1))
    keyed: object = 1
    for _ in range(21):
        keyed = {1: keyed}
    assert same(back(keyed), keyed)
    refusal({1: {1: keyed}})
    tagged: object = 1
    for _ in range(64):
        tagged = {"$set": tagged}
    assert same(back(tagged), tagged)

    cycle: list[object] = [0]
    cycle.append({"me": cycle})
    assert refusal([1, cycle]) == ("args[1]", "contains itself")
    line = Line("a", [])
    line.price.append(line)
    assert refusal({"line": line})[1] == "contains itself"


def test_the_size_limit_counts_bytes_of_utf8() -> None:
    assert encode(["é"], path="args", limit=6) == '["é"]'
    with pytest.raises(PayloadTooLarge) as caught:
        encode(["é" * 1000], path="kwargs", limit=2003)
    assert str(caught.value) == "kwargs: 2,004 bytes of JSON, more than the 2,003 that max_payload_bytes allows"
    with pytest.raises(PayloadTooLarge, match="33,554,432"):
        encode("x" * 32 * 1024 * 1024, path="args", limit=10**9)


HOSTILE = [
    '{"$import":"os.system"}',
    '{"$os.system":["true"]}',
    '{"py/object":"antigravity.fly"}',
    '{"$type":"wave.Wave_read","$value":["x"]}',
    '{"__reduce__":["os.system",["true"]]}',
    '{"$datetime":"2026-01-31T12:00:00","$x":1}',
    '{"$model":{"module":"antigravity"}}',
    '{"exc_type":"system","exc_module":"os","exc_message":["true"]}',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_in_a_text_are_only_data(text: str) -> None:
    before = set(sys.modules)
    assert decode(text) == json.loads(text)
    assert decode_error(text).message in ("", str(json.loads(text)))
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"$uuid":"zzz"}', "$uuid cannot hold 'zzz': ValueError('badly formed hexadecimal UUID string')"),
        ('[{"$datetime":5}]', "$datetime cannot hold 5: TypeError('needs a text')"),
        ('{"$date":"2026-02-31"}', "$date cannot hold '2026-02-31'"),
        ('{"$time":"25:00"}', "$time cannot hold"),
        ('{"$timedelta":"1e9"}', "$timedelta cannot hold '1e9': ValueError('needs seconds such as 90.5')"),
        ('{"$timedelta":"99999999999999"}', "$timedelta cannot hold"),
        ('{"$decimal":"one"}', "$decimal cannot hold 'one'"),
        ('{"$bytes":"a*b="}', "$bytes cannot hold 'a*b='"),
        ('{"$set":"abc"}', "$set cannot hold 'abc': TypeError('needs a list')"),
        ('{"$set":[{"a":1}]}', "$set cannot hold"),
        ('{"$frozenset":[{"$set":[1]}]}', "$frozenset cannot hold"),
        ('{"$map":[[1]]}', "$map cannot hold"),
        ('{"$map":[[{},1]]}', "$map cannot hold"),
        ("[NaN]", "not JSON that can be read"),
        ("[1", "not JSON that can be read"),
        (r'"\ud800"', "not JSON that can be read"),
        ("[" * 1000 + "]" * 1000, "not JSON that can be read"),
    ],
)
def test_what_cannot_be_read_is_a_typed_error(text: str, message: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        decode(text)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


@fuzz
@given(st.recursive(HASHABLES.map(repr) | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_any_content_of_a_tag_gives_a_value_or_a_typed_error(content: object) -> None:
    for tag in (
        "datetime",
        "date",
        "time",
        "timedelta",
        "decimal",
        "uuid",
        "bytes",
        "set",
        "frozenset",
        "map",
    ):
        with suppress(InvalidArguments):
            decode(json.dumps({f"${tag}": content}))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | FULL_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FULL_TEXT, inner, max_size=3),
    max_leaves=6,
)
REPORTS = st.recursive(
    st.none(),
    lambda cause: st.builds(
        ErrorReport,
        type=FULL_TEXT,
        module=FULL_TEXT,
        message=FULL_TEXT,
        args=st.lists(JSON_VALUES, max_size=3).map(tuple),
        notes=st.lists(FULL_TEXT, max_size=2).map(tuple),
        cause=cause,
        traceback=st.none() | FULL_TEXT,
    ),
    max_leaves=3,
).filter(bool)


@fuzz
@given(REPORTS)
def test_any_error_report_is_json_for_postgresql(report: ErrorReport) -> None:
    text = encode_error(report)
    strict(text)
    decode_error(text)


def test_an_error_report_comes_back() -> None:
    cause = ErrorReport("KeyError", "builtins", "'k'", args=("k",))
    report = ErrorReport(
        "Bad",
        "shop",
        "not good",
        args=(1, None, {"$uuid": "x"}, [1.5]),
        notes=("n",),
        cause=cause,
        traceback="tb",
    )
    assert decode_error(encode_error(report)) == report


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_what_cannot_be_said_in_an_error_report_is_shown() -> None:
    args: Any = (float("nan"), "a\0", {1: "\udc80"}, object, Unprintable(), 10**5000, {Unprintable(): 1})
    report = decode_error(encode_error(ErrorReport("E", "m", "NUL \0 and \ud800", args=args)))
    assert report.message == r"NUL \x00 and \ud800"
    assert report.args[:4] == ("nan", r"a\x00", {"1": r"\udc80"}, "<class 'object'>")
    assert all("Unprintable" in str(arg) for arg in (report.args[4], report.args[6]))
    assert isinstance(report.args[5], str)


def test_causes_are_bounded() -> None:
    report = None
    for number in range(1000):
        report = ErrorReport("E", "m", str(number), cause=report)
    assert report is not None
    read: ErrorReport | None = decode_error(encode_error(report))
    kept = []
    while read is not None:
        kept.append(read.message)
        read = read.cause
    assert kept == [str(number) for number in range(999, 988, -1)]
    args: Any = [1]
    for _ in range(1000):
        args = [args]
    strict(encode_error(ErrorReport("E", "m", "", args=(args,))))


@pytest.mark.parametrize("text", ["", "no json", "[1]", "null", '{"type":5,"args":1,"notes":"x","cause":[]}', "{}"])
def test_any_text_is_read_as_an_error_report(text: str) -> None:
    assert isinstance(decode_error(text), ErrorReport)
