"""What is sent to the database: JSON that PostgreSQL accepts, for every job and every outcome."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.ids import new_id
from pgqueue.serialization import encode, encode_error
from pgqueue.statements import _CALLS, Ended, Statements, job_json, outcome_json
from pgqueue.types import (
    GATHER,
    Claim,
    ErrorReport,
    Failed,
    Ignored,
    NewJob,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)

fuzz = settings(deadline=None, max_examples=200, database=None)

FULL_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
IDS = st.uuids().map(str)
SECONDS = st.floats(0, 4e9)
OFFSETS = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone)
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=OFFSETS | st.just(UTC))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
JSON = VALUES.map(lambda value: encode(value, path="value"))
JSON_LISTS = st.lists(VALUES, max_size=3).map(lambda value: encode(value, path="args"))
JSON_OBJECTS = st.dictionaries(TEXT, VALUES, max_size=3).map(lambda value: encode(value, path="kwargs"))
JSON_CALLS = st.just("[]") | JSON_OBJECTS.map(lambda kwargs: f'[{{"task":"t","kwargs":{kwargs}}}]')
PRIORITIES = st.integers(0, 9)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "eta": st.none() | TIMES,
    "queue": st.none() | TEXT,
    "priority": st.none() | PRIORITIES,
    "expires": st.none() | TIMES,
    "headers": st.none() | JSON_OBJECTS,
    "options": st.none() | JSON_OBJECTS,
    "ignore_result": st.none() | st.booleans(),
    "time_limit": st.none() | SECONDS,
    "soft_time_limit": st.none() | SECONDS,
}

JOBS = st.builds(
    NewJob,
    id=IDS,
    task=TEXT,
    args=JSON_LISTS,
    kwargs=JSON_OBJECTS,
    queue=TEXT,
    priority=PRIORITIES,
    eta=st.none() | TIMES,
    countdown=st.none() | SECONDS,
    expires=st.none() | TIMES,
    expires_in=st.none() | SECONDS,
    unique_key=st.none() | TEXT,
    steps=st.lists(IDS, max_size=3).map(tuple),
    takes=st.none() | st.sampled_from(["nothing", "value", "values"]),
    headers=st.none() | JSON_OBJECTS,
    root_id=IDS,
    parent_id=st.none() | IDS,
    ignore_result=st.none() | st.booleans(),
    time_limit=st.none() | SECONDS,
    soft_time_limit=st.none() | SECONDS,
    known=st.booleans(),
    resent=st.booleans(),
    links=st.none() | JSON_CALLS,
    errbacks=st.none() | JSON_CALLS,
    options=st.none() | JSON_OBJECTS,
    immutable=st.booleans(),
)
REPORTS = st.builds(
    ErrorReport,
    type=FULL_TEXT,
    module=FULL_TEXT,
    message=FULL_TEXT,
    args=st.lists(FULL_TEXT | st.floats(), max_size=2).map(tuple),
    traceback=st.none() | FULL_TEXT,
)
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Succeeded, JSON),
    st.builds(Failed, REPORTS, st.booleans()),
    st.builds(
        Retried,
        st.none() | REPORTS,
        countdown=SECONDS,
        args=st.none() | JSON_LISTS,
        kwargs=st.none() | JSON_OBJECTS,
        **CHANGES,
    ),
    st.builds(
        Replaced,
        TEXT,
        JSON_LISTS,
        JSON_OBJECTS,
        countdown=SECONDS,
        links=st.none() | JSON_CALLS,
        errbacks=st.none() | JSON_CALLS,
        **CHANGES,
    ),
    st.builds(Released, SECONDS),
    st.builds(Rejected, FULL_TEXT, st.booleans(), st.integers(0, 1000)),
    st.builds(Revoked, st.sampled_from(["expired", "revoked"])),
    st.just(Ignored()),
)
NOW = datetime(2026, 1, 31, tzinfo=UTC)
CLAIM = Claim(new_id(), "add", "default", 5, "[]", "{}", 7, 0, 0, NOW, NOW, None, False, False, None, None, None, None)


def strict(text: str) -> Any:
    """Read JSON as strictly as PostgreSQL does: no NaN, no NUL, no lone surrogate, no key twice."""

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    value = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    shown = json.dumps(value, ensure_ascii=False)
    shown.encode()
    assert "\0" not in shown
    assert "\\u0000" not in json.dumps(value).replace("\\\\", "")
    return value


@fuzz
@given(JOBS)
def test_every_job_is_json_with_every_value_that_it_has(job: NewJob) -> None:
    sent = strict(job_json(job))
    assert (sent["id"], sent["task"] or GATHER) == (job.id, job.task)
    assert (sent["queue"], sent["priority"]) == (job.queue, job.priority)
    assert (sent["args"], sent["kwargs"]) == (json.loads(job.args), json.loads(job.kwargs))
    for name in ("countdown", "expires_in", "unique_key", "ignore_result"):
        assert sent.get(name) == getattr(job, name)
    for name in ("eta", "expires"):
        time = getattr(job, name)
        assert (datetime.fromisoformat(sent[name]) if name in sent else None) == time
        assert name not in sent or sent[name].endswith("+00:00")
    for name in ("headers", "links", "errbacks", "options"):
        text = getattr(job, name)
        assert sent.get(name) == (None if text is None else json.loads(text))
    assert sent.get("parent_id") == job.parent_id
    assert sent.get("root_id") == job.root_id
    assert (sent.get("steps", []), sent.get("depth", 0)) == (list(job.steps), job.depth)
    assert sent.get("place", 0) == (job.place if job.steps else 0)
    assert (sent.get("waits", 0), sent.get("takes")) == (job.waits, job.takes if job.waits else None)
    assert (sent.get("known", False), sent.get("immutable", False)) == (job.known, job.immutable)


@fuzz
@given(st.lists(JOBS, max_size=3))
def test_any_number_of_jobs_is_one_array(jobs: list[NewJob]) -> None:
    statement = Statements().enqueue([job._replace(known=True) for job in jobs], durable=True)
    text, durable = statement.params
    assert [job["id"] for job in strict(str(text))] == [job.id for job in jobs]
    assert durable is True


PLAIN = NewJob(new_id(), "add", "[1]")


@pytest.mark.parametrize(
    ("changes", "function"),
    [
        ([{}], "enqueue_one"),
        ([{"ignore_result": False, "root_id": PLAIN.id, "parent_id": PLAIN.id, "kwargs": '{"a":1}'}], "enqueue_one"),
        *[
            ([{field: value}], "enqueue_alike")
            for field, value in {
                "eta": NOW,
                "countdown": 1.0,
                "expires": NOW,
                "expires_in": 1.0,
                "headers": '{"a":1}',
                "time_limit": 1.0,
                "soft_time_limit": 1.0,
                "options": '{"shadow":"s"}',
            }.items()
        ],
        ([{}, {}], "enqueue_alike"),
        ([{"queue": f"q{number}"} for number in range(16)], "enqueue_alike"),
        ([{"queue": f"q{number}"} for number in range(17)], "enqueue_many"),
        *[
            ([{}, {field: value}, {}], "enqueue_many")
            for field, value in {
                "known": True,
                "resent": True,
                "unique_key": "k",
                "links": "[]",
                "errbacks": "[]",
            }.items()
        ],
        ([], "enqueue_many"),
    ],
)
def test_a_call_takes_the_shortest_way_that_can_do_what_it_asks(changes: list[dict[str, Any]], function: str) -> None:
    statement = Statements().enqueue([PLAIN._replace(**change) for change in changes], durable=True)
    assert f"pgqueue.{function}(" in statement.sql
    assert (statement.answer is None) == (function == "enqueue_many")


@fuzz
@given(st.lists(VALUES, max_size=3))
def test_arguments_are_one_line(args: list[Any]) -> None:
    """What `enqueue_alike` is sent relies on it."""
    assert len(encode([*args, "a\nb\r\u2028"], path="args").split("\n")) == 1


def test_a_plain_job_is_short() -> None:
    assert job_json(NewJob("i", "t")) == ('{"id":"i","task":"t","args":[],"kwargs":{},"queue":"default","priority":5}')


class Rank(int, Enum):
    HIGH = 8


def test_an_enum_is_sent_as_its_number() -> None:
    assert strict(job_json(NewJob("i", "t", priority=Rank.HIGH)))["priority"] == 8
    assert strict(outcome_json(Ended(CLAIM, Retried(None, priority=Rank.HIGH))))["priority"] == 8


@fuzz
@given(OUTCOMES, st.floats(0, 1e6), st.booleans())
def test_every_outcome_is_json_under_its_fence(outcome: Outcome, runtime: float, keep: bool) -> None:
    sent = strict(outcome_json(Ended(CLAIM, outcome, runtime, keep)))
    assert (sent["id"], sent["attempt"], sent.get("keep", True)) == (CLAIM.id, 7, keep)
    assert sent["runtime"] == pytest.approx(runtime, abs=1e-6)
    states = {"SUCCESS", "FAILURE", "RETRY", "RELEASED", "REJECTED", "REVOKED", "IGNORED", "REQUEUE", "REPLACED"}
    assert sent["state"] in states


@fuzz
@given(st.lists(OUTCOMES, max_size=3))
def test_any_number_of_outcomes_is_one_array(outcomes: list[Outcome]) -> None:
    ended = [Ended(CLAIM, outcome) for outcome in outcomes]
    statement = Statements().finish(new_id(), ended)
    assert len(strict(str(statement.params[1]))) == len(outcomes)


@pytest.mark.parametrize(
    ("outcome", "sent"),
    [
        (Succeeded('{"a":[1]}'), {"state": "SUCCESS", "value": {"a": [1]}}),
        (Ignored(), {"state": "IGNORED"}),
        (Released(2.5), {"state": "RELEASED", "countdown": 2.5}),
        (
            Released(crash=ErrorReport("E", "m", "no")),
            {
                "state": "RELEASED",
                "countdown": 0.0,
                "crashed": True,
                "error": json.loads(encode_error(ErrorReport("E", "m", "no"))),
            },
        ),
        (
            Rejected("no", requeue=True, most=7),
            {
                "state": "REQUEUE",
                "requeues": CLAIM.requeues,
                "most": 7,
                "error": json.loads(encode_error(ErrorReport("TaskRejectedError", "pgqueue.errors", "no"))),
            },
        ),
        (
            Failed(ErrorReport("E", "m", "no"), hooks=True),
            {"state": "FAILURE", "hooks": True, "error": json.loads(encode_error(ErrorReport("E", "m", "no")))},
        ),
        (Retried(None, 3.0), {"state": "RETRY", "retries": CLAIM.retries, "countdown": 3.0}),
        (
            Retried(None, 0.0, NOW, "[1]", "{}", "q", 0, NOW, "{}", '{"o":1}', False, 2.0, 1.0),
            {
                "state": "RETRY",
                "retries": CLAIM.retries,
                "countdown": 0.0,
                "eta": "2026-01-31T00:00:00+00:00",
                "args": [1],
                "kwargs": {},
                "queue": "q",
                "priority": 0,
                "expires": "2026-01-31T00:00:00+00:00",
                "headers": {},
                "options": {"o": 1},
                "ignore_result": False,
                "time_limit": 2.0,
                "soft_time_limit": 1.0,
            },
        ),
        (
            Replaced("other", "[1]", "{}", links='[{"task":"a"}]', errbacks="[]", options='{"replaced":1}'),
            {
                "state": "REPLACED",
                "task": "other",
                "args": [1],
                "kwargs": {},
                "countdown": 0.0,
                "links": [{"task": "a"}],
                "errbacks": [],
                "options": {"replaced": 1},
            },
        ),
    ],
)
def test_what_an_outcome_says(outcome: Outcome, sent: dict[str, Any]) -> None:
    found = strict(outcome_json(Ended(CLAIM, outcome, 0.5)))
    assert found == {"id": CLAIM.id, "attempt": 7, "runtime": 0.5, **sent}


@pytest.mark.parametrize(
    ("outcome", "state", "type_", "message"),
    [
        (Failed(ErrorReport("E", "m", "no")), "FAILURE", "E", "no"),
        (Rejected("not mine"), "REJECTED", "TaskRejectedError", "not mine"),
        (Revoked("expired"), "REVOKED", "TaskRevokedError", "expired"),
    ],
)
def test_an_end_without_success_carries_an_error(outcome: Outcome, state: str, type_: str, message: str) -> None:
    found = strict(outcome_json(Ended(CLAIM, outcome)))
    assert (found["state"], found["error"]["type"], found["error"]["message"]) == (state, type_, message)


def test_another_schema_has_other_sql_and_nothing_else_changes() -> None:
    ours, theirs = Statements(), Statements("jobs_of_shop")
    for name in _CALLS:
        assert theirs._sql[name] == ours._sql[name].replace("pgqueue.", "jobs_of_shop.")
