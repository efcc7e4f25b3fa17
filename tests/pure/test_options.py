"""The options of a call: what is accepted comes out as it was meant, everything else is an InvalidOption."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import IntEnum
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.errors import InvalidOption, PgQueueError
from pgqueue.options import (
    CALL_OPTIONS,
    LONGEST,
    CallOptions,
    TaskOptions,
    call_options,
    check_names,
    check_priority,
    check_text,
    check_time,
    seconds,
    shown,
)

fuzz = settings(deadline=None, max_examples=200, database=None)

FULL_TEXT = st.text(st.characters(codec=None, exclude_categories=[]))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(lambda n: n * 10**5000),
    st.floats(),
    FULL_TEXT,
    st.binary(),
    st.timedeltas(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.lists(st.integers()),
    st.dictionaries(FULL_TEXT, st.integers()),
    st.builds(object),
)


@fuzz
@given(st.dictionaries(st.sampled_from([*CALL_OPTIONS, "connection", "routing_key"]), ANYTHING))
def test_any_options_are_accepted_or_refused_with_the_name_of_one(options: dict[str, Any]) -> None:
    refused = None
    try:
        call_options({name: value for name, value in options.items() if name != "connection"})
    except InvalidOption as error:
        refused = str(error)
    if refused is not None:
        assert any(name in refused for name in options)
        assert len(refused) < 500


def test_what_is_not_given_is_none() -> None:
    assert call_options({}) == CallOptions()
    assert [getattr(CallOptions(), name) for name in CALL_OPTIONS] == [None] * len(CALL_OPTIONS)


def test_a_connection_is_an_option_of_every_call() -> None:
    with pytest.raises(InvalidOption, match="did you mean 'connection'"):
        call_options({"conection": object()})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("count_down", "countdown"),
        ("task", "task_id"),
        ("prio", "priority"),
        ("uniquekey", "unique_key"),
        ("ETA", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(given: str, meant: str | None) -> None:
    with pytest.raises(InvalidOption) as caught:
        call_options({given: 1})
    expected = f"did you mean {meant!r}?" if meant else "known are add_to_parent, argsrepr, connection, "
    assert str(caught.value) == f"unknown option {given!r}; {expected}" or expected in str(caught.value)


def test_known_names_pass() -> None:
    check_names("option", {"a": 1}, ["a", "b"])
    check_names("option", [], [])


# -- seconds --------------------------------------------------------------------------------------------------------


@fuzz
@given(st.integers() | st.floats() | st.timedeltas() | st.integers().map(lambda n: n * 10**400))
def test_seconds_are_a_finite_number_in_range_or_refused(value: Any) -> None:
    given_seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if 0 <= given_seconds <= LONGEST:
        assert seconds("countdown", value) == given_seconds
        assert type(seconds("countdown", value)) is float
    else:
        with pytest.raises(InvalidOption, match=r"^countdown must be seconds from 0 to a hundred years"):
            seconds("countdown", value)


@pytest.mark.parametrize("value", [True, "60", None, b"1", [1], 1j, float("nan"), float("inf"), -0.001])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption):
        seconds("expires", value)


# -- times ----------------------------------------------------------------------------------------------------------


class Zone(tzinfo):
    """A time zone that knows no offset."""

    def utcoffset(self, moment: datetime | None) -> None: ...
    def tzname(self, moment: datetime | None) -> str:
        return "nowhere"

    def dst(self, moment: datetime | None) -> None: ...


@pytest.mark.parametrize("value", [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Zone())])
def test_a_time_without_a_zone_is_refused(value: datetime) -> None:
    for option in ("eta", "expires"):
        with pytest.raises(InvalidOption, match=f"^{option}=2030.* has no time zone; add one"):
            call_options({option: value})


OFFSETS = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone)


@fuzz
@given(st.datetimes(timezones=OFFSETS | st.just(UTC)))
def test_an_aware_time_is_accepted_unless_it_is_a_hundred_years_away(value: datetime) -> None:
    try:
        away = (value.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except OverflowError:
        away = float("inf")
    if away < LONGEST - 60:
        assert check_time("eta", value) is value
    elif away > LONGEST + 60:
        with pytest.raises(InvalidOption, match="is more than a hundred years away"):
            check_time("eta", value)


@pytest.mark.parametrize("value", [5, "2030-01-01", None, timedelta(1), datetime(2030, 1, 1).date()])
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="eta must be a datetime"):
        check_time("eta", value)


def test_countdown_and_eta_exclude_each_other() -> None:
    with pytest.raises(InvalidOption, match="countdown and eta are both given"):
        call_options({"countdown": 0, "eta": datetime.now(UTC)})


# -- texts, priorities, ids -----------------------------------------------------------------------------------------


@fuzz
@given(FULL_TEXT)
def test_a_text_that_is_accepted_can_be_stored(value: str) -> None:
    storable = 1 <= len(value) <= 20 and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
    if storable:
        assert check_text("queue", value, 20) is value
    else:
        with pytest.raises(InvalidOption, match=r"^queue"):
            check_text("queue", value, 20)


class Size(IntEnum):
    LARGE = 9


@pytest.mark.parametrize("value", [0, 5, 9, Size.LARGE])
def test_priorities_are_0_to_9(value: int) -> None:
    assert check_priority(value) == value


@pytest.mark.parametrize("value", [-1, 10, 5.0, "5", True, None, 10**5000], ids=lambda value: shown(value))
def test_every_other_priority_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="priority must be an integer from 0 to 9"):
        check_priority(value)


@fuzz
@given(st.uuids())
def test_a_task_id_is_a_uuid_in_any_of_its_spellings(value: UUID) -> None:
    for spelling in (value, str(value), value.hex, str(value).upper(), f"{{{value}}}", value.urn):
        assert call_options({"task_id": spelling}).task_id == str(value)


@pytest.mark.parametrize("value", ["order-1", "", 5, b"x" * 16, str(uuid4())[:-1]])
def test_an_id_that_is_no_uuid_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="is not a UUID; leave it out to have one made"):
        call_options({"task_id": value})


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "'x'"), ("x" * 100, "'" + "x" * 79), (10**5000, "<int>"), (Unprintable(), "<Unprintable>")],
    ids=["text", "long", "huge", "unprintable"],
)
def test_any_value_can_be_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_all_refusals_are_errors_of_pgqueue_and_of_values() -> None:
    assert issubclass(InvalidOption, PgQueueError)
    assert issubclass(InvalidOption, ValueError)


def test_waits_of_a_task_may_be_given_as_timedeltas() -> None:
    minute: Any = timedelta(minutes=1)
    policy = TaskOptions(
        default_retry_delay=minute, retry_backoff=minute, retry_backoff_max=2 * minute, retry_jitter=False
    ).policy()
    assert (policy.delay, policy.wait(0), policy.wait(5)) == (60.0, 60.0, 120.0)
    assert TaskOptions(retry_backoff=True, retry_jitter=False).policy().wait(1) == 2.0
    assert TaskOptions(default_retry_delay=minute).policy().wait(3) == 60.0
