"""A call is checked by the signature where it is made, and converted by the annotations where it runs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Optional
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from pgqueue.arguments import Arguments
from pgqueue.errors import InvalidArguments
from pgqueue.serialization import decode, encode

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

ID = UUID("12345678-1234-5678-1234-567812345678")
AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Color(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    sku: str
    price: float = 0.0
    length: int = field(init=False, default=0)


class Order(BaseModel):
    id: UUID
    lines: list[Line] = []
    at: datetime = Field(default=AT, alias="createdAt")


class Options(TypedDict):
    at: datetime


class Plain:
    """A class that pydantic knows nothing about."""


def add(x: int, y: int) -> int:
    return x + y


def untyped(x, y=2, *rest, z=None, **more):  # type: ignore[no-untyped-def]
    return x


def every(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int, e: int = 5, **more: int) -> None: ...


def later(order: DefinedLater, unknown: OnlyForTypeCheckers, y: int) -> DefinedLater:
    raise NotImplementedError


class DefinedLater(BaseModel):
    x: int


def refusal(function: Callable[..., object], *args: object, **kwargs: object) -> str:
    """The message of `bind`, which must be that of `load`."""
    arguments = Arguments(function)
    with pytest.raises(InvalidArguments) as caught:
        arguments.bind(args, kwargs)
    with pytest.raises(InvalidArguments, match=re.escape(str(caught.value))):
        arguments.load(args, kwargs)
    assert caught.value.__cause__ is None
    return str(caught.value)


def one(annotation: object, value: object, **options: Any) -> object:
    """What a parameter with this annotation gets."""

    def function(x): ...  # type: ignore[no-untyped-def]

    function.__annotations__ = {"x": annotation}
    args, kwargs = Arguments(function, **options).load([value], {})
    assert kwargs == {}
    return args[0]


def loaded(function: Callable[..., object], *args: object, **kwargs: object) -> tuple[object, object]:
    return Arguments(function).load(args, kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refusal(add), "add(): missing argument 'x'; missing argument 'y'"),
        (lambda: refusal(add, 1), "add(): missing argument 'y'"),
        (lambda: refusal(add, 1, 2, 3, 4), "add(): takes at most 2 positional arguments"),
        (lambda: refusal(add, 1, 2, z=3), "add(): unexpected argument 'z'"),
        (lambda: refusal(add, 1, 2, y=3), "add(): argument 'y' is given twice"),
        (lambda: refusal(every, d=1), "every(): missing argument 'a'"),
        (lambda: refusal(every, 1), "every(): missing argument 'd'"),
        (lambda: refusal(add, 1, "two"), "add(): y: Input should be a valid integer, unable to parse string"),
        (lambda: refusal(add, 1, y=[]), "add(): y: Input should be a valid integer"),
        (
            lambda: refusal(every, 1, 2, 3, 4, "5", "six", d=1),
            "every(): rest[2]: Input should be a valid integer",
        ),
        (lambda: refusal(every, 1, d=1, more="x"), "every(): more: Input should be a valid integer"),
        (lambda: refusal(every, *"pqrs", d="t"), "every(): a: Input"),
        (lambda: refusal(untyped), "untyped(): missing argument 'x'"),
    ],
)
def test_a_call_that_does_not_fit_names_the_function_and_the_parameter(call: Callable[[], str], message: str) -> None:
    assert call().startswith(message)


def test_the_path_goes_into_the_value() -> None:
    def ship(order: Order, notes: dict[str, int] | None = None) -> None: ...

    message = refusal(ship, {"id": str(ID), "lines": [{"sku": "a"}, {"sku": "a", "price": "much"}]})
    assert message.startswith("ship(): order.lines[1].price: Input should be a valid number")
    assert refusal(ship, {"id": ID}, {"a b": "c"}).startswith("ship(): notes['a b']: Input should be a valid integer")


def test_a_refusal_is_short_and_shows_no_values() -> None:
    def many(a: int, b: int, c: Literal["x"], d: int, e: int) -> None: ...

    secret = "hunter2 " * 100_000
    message = refusal(many, secret, [secret], {secret: secret}, secret, e=secret)
    assert "hunter2" not in message
    assert message.endswith("; and 2 more")
    assert len(message) < 800
    assert len(refusal(add, **{secret: 1})) < 300


def test_bind_returns_the_callers_own_values() -> None:
    order = Order(id=ID)
    args, kwargs = [order, "5"], {"extra": (1, 2)}

    def ship(order: Order, count: int, extra: list[int]) -> None: ...

    bound = Arguments(ship).bind(args, kwargs)
    assert bound[0] is args
    assert bound[1] is kwargs


def test_a_whole_way_from_the_caller_to_the_worker() -> None:
    def ship(order: Order, line: Line, point: Point, color: Color, when: datetime, ids: set[UUID]) -> Order:
        return order

    given_args = (Order(id=ID, lines=[Line("a", 1.5)]), Line("b"), Point(1, 2), Color.RED, AT, {ID})
    arguments = Arguments(ship)
    args, kwargs = arguments.bind(given_args, {})
    stored: Any = (decode(encode(args, path="args")), decode(encode(kwargs, path="kwargs")))
    assert arguments.load(*stored) == (given_args, {})
    assert arguments.load_result(decode(encode(given_args[0], path="result"))) == given_args[0]


@pytest.mark.parametrize(
    ("annotation", "stored", "value"),
    [
        (UUID, str(ID), ID),
        (UUID, ID, ID),
        (datetime, "2026-01-31T12:00:00Z", AT),
        ("datetime", AT, AT),
        (Color, "red", Color.RED),
        (tuple[int, str], ["1", "a"], (1, "a")),
        (Point, [1, 2], Point(1, 2)),
        (set[int], [1, 1], {1}),
        (Options, {"at": "2026-01-31T12:00:00Z"}, {"at": AT}),
        ("list[Line]", [{"sku": "a", "price": 2}], [Line("a", 2.0)]),
        (Order, {"id": str(ID), "createdAt": AT}, Order(id=ID)),
        (Order, {"id": str(ID), "at": AT}, Order(id=ID)),
        (Optional["Color"], None, None),
        (Annotated[int, Field(gt=1)], "2", 2),
        (Any, (1,), (1,)),
        (Sequence[int], ["1"], [1]),
        (Iterable[int], ["1"], ["1"]),  # pydantic would make an iterator that can be read once
        (Iterable[int] | None, ["1"], ["1"]),
        (Plain, {"a": 1}, {"a": 1}),
        (list[Plain], ["1"], ["1"]),
        ("nowhere.Name", "1", "1"),
        ("1 +", "1", "1"),
        (Callable[[int], int] | Plain, 1, 1),
    ],
)
def test_values_become_what_the_annotation_says(annotation: object, stored: object, value: object) -> None:
    assert one(annotation, stored) == value
    assert type(one(annotation, stored)) is type(value)


def test_names_defined_later_are_found_and_unknown_ones_harm_nobody_else() -> None:
    assert loaded(later, {"x": "1"}, "1.5", "2") == ((DefinedLater(x=1), "1.5", 2), {})
    assert Arguments(later).load_result({"x": 1}) == DefinedLater(x=1)


def test_every_kind_of_parameter() -> None:
    assert loaded(every, "1", d="4") == ((1,), {"d": 4})
    assert loaded(every, "1", "2", c="3", d="4", more="6") == ((1, 2), {"c": 3, "d": 4, "more": 6})
    assert loaded(every, "1", "2", "3", "4", d="5", a="6") == ((1, 2, 3, 4), {"d": 5, "a": 6})
    assert loaded(untyped, 1, 2, 3, 4, z=5, q=6) == ((1, 2, 3, 4), {"z": 5, "q": 6})


def test_defaults_stay_with_the_function() -> None:
    def function(x: int = "not an int", y: list[int] = [], z: int = None) -> None: ...  # type: ignore[assignment] # noqa: B006, RUF013

    assert loaded(function) == ((), {})
    assert loaded(function, z=None) == ((), {"z": None})
    assert loaded(function, 1, ["2"], "3") == ((1, [2], 3), {})


def test_leading_parameters_are_skipped() -> None:
    def method(self: object, connection: Plain, x: int) -> None: ...

    def anything(*args: int) -> None: ...

    assert Arguments(method, skip=2).load(["1"], {}) == ((1,), {})
    with pytest.raises(InvalidArguments, match=r"method\(\): unexpected argument 'self'"):
        Arguments(method, skip=2).bind([1], {"self": 2})
    with pytest.raises(InvalidArguments, match=r"takes at most 1 positional arguments"):
        Arguments(method, skip=2).bind([1, 2], {})
    assert Arguments(anything, skip=1).load(["1"], {}) == ((1,), {})


def test_without_validation_only_the_shape_is_checked() -> None:
    arguments = Arguments(add, validate=False)
    assert arguments.load(["a"], {"y": "b"}) == (("a",), {"y": "b"})
    assert arguments.load_result("5") == "5"
    with pytest.raises(InvalidArguments, match="missing argument 'y'"):
        arguments.bind(["a"], {})


def test_other_callables() -> None:
    async def coroutine(x: int) -> tuple[int, ...]:
        return (x,)

    class Callee:
        def __call__(self, line: Line) -> None: ...

    @functools.wraps(add)
    def wrapped(*args: int) -> int:
        return add(*args)

    assert loaded(coroutine, "1") == ((1,), {})
    assert Arguments(coroutine).load_result([1]) == (1,)
    assert loaded(Callee(), {"sku": "a"}) == ((Line("a"),), {})
    assert loaded(functools.partial(add, 1), "2") == ((2,), {})
    assert loaded(wrapped, "1", "2") == ((1, 2), {})
    assert loaded(dict.fromkeys, "1", "2") == (("1", "2"), {})
    assert refusal(Callee()).startswith("Callee(): missing")


@pytest.mark.parametrize(
    ("annotation", "stored", "value"),
    [
        (Order, {"id": str(ID)}, Order(id=ID)),
        (tuple[int, ...], [1, 2], (1, 2)),
        (int, "many", "many"),
        (Order, {"other": 1}, {"other": 1}),
        (Plain, {"a": 1}, {"a": 1}),
        ("nowhere.Name", 1, 1),
        (None, 5, 5),
        (Any, 5, 5),
    ],
)
def test_results_become_what_the_annotation_says_or_stay(annotation: object, stored: object, value: object) -> None:
    def function(): ...  # type: ignore[no-untyped-def]

    assert Arguments(function).load_result(stored) is stored
    function.__annotations__ = {"return": annotation}
    assert Arguments(function).load_result(stored) == value


@pytest.mark.parametrize(("args", "kwargs"), [("ab", {}), (None, {}), ([], []), ({}, {})])
def test_a_row_with_other_json_is_refused(args: Any, kwargs: Any) -> None:
    with pytest.raises(InvalidArguments, match="needs a list of arguments and a dict of keyword arguments"):
        Arguments(untyped).load(args, kwargs)


def test_keyword_names_are_texts() -> None:
    kwargs: Any = decode('{"$map":[[1,2]]}')
    with pytest.raises(InvalidArguments, match=r"untyped\(\): names of keyword arguments must be texts"):
        Arguments(untyped).load([1], kwargs)


def two(x: int, y: int) -> dict[str, object]:
    return locals()


def several(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int, e: int = 5, **more: int) -> dict[str, object]:
    return locals()


def hardly(a, /, b=2, *, c, d=4):  # type: ignore[no-untyped-def]
    return locals()


@settings(deadline=None, max_examples=200, database=None)
@given(
    st.sampled_from([two, several, hardly]),
    st.lists(st.integers(), max_size=5),
    st.dictionaries(st.sampled_from("abcdexyz"), st.integers(), max_size=4),
)
def test_the_shape_is_that_of_python(
    function: Callable[..., object], args: list[object], kwargs: dict[str, object]
) -> None:
    # The call itself: Signature.bind of Python 3.11 refuses a positional-only name among **kwargs.
    try:
        expected = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidArguments):
            Arguments(function).bind(args, kwargs)
    else:
        loaded_args, loaded_kwargs = Arguments(function).load(args, kwargs)
        assert function(*loaded_args, **loaded_kwargs) == expected
