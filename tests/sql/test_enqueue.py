"""Enqueueing: one transaction with its caller, once per key, once per success."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql as compose

from pgqueue import sql

from .helpers import NOON, OpenQueue, Queue, new_id, wait_until_blocked

ERROR = {"type": "ValueError", "message": "bad"}


def test_a_job_without_options_waits_in_the_default_queue(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.job(queue.add("shop.add"))
    assert job is not None
    assert {name: value for name, value in job.items() if value is not None and name != "id"} == {
        "eta": NOON,
        "enqueued_at": NOON,
        "attempt": 0,
        "retries": 0,
        "crashes": 0,
        "requeues": 0,
        "place": 0,
        "depth": 0,
        "priority": 5,
        "revoked": False,
        "task": "shop.add",
        "queue": "default",
        "args": [],
        "kwargs": {},
    }


def test_every_key_of_an_element_is_stored(queue: Queue) -> None:
    given: dict[str, Any] = {
        "id": new_id(),
        "task": "shop.add",
        "args": [1, {"a": None}],
        "kwargs": {"b": 2},
        "queue": "mail",
        "priority": 9,
        "unique_key": "k",
        "headers": {"trace": "x"},
        "root_id": new_id(),
        "parent_id": new_id(),
        "ignore_result": True,
        "links": [{"task": "next", "links": [{"task": "last", "immutable": True}]}],
        "errbacks": [{"task": "complain"}],
        "options": {"shadow": "s"},
    }
    later = {"eta": NOON + timedelta(hours=1), "expires": NOON + timedelta(hours=2)}
    queue.set_clock(NOON)
    assert queue.enqueue({**given, **later}) == [(given["id"], True)]
    job = queue.job(given["id"])
    assert job is not None
    stored = {name: str(value) if name.endswith("id") else value for name, value in job.items()}
    assert stored == stored | given | later


def test_countdown_and_expires_in_count_from_the_clock_of_the_database(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.job(queue.add(countdown=90, expires_in=0.5))
    assert job is not None
    assert (job["eta"], job["expires"]) == (NOON + timedelta(seconds=90), NOON + timedelta(seconds=0.5))


@pytest.mark.parametrize("past", [{"eta": NOON - timedelta(days=1)}, {"countdown": -60}], ids=["eta", "countdown"])
def test_an_eta_in_the_past_is_stored_as_now(queue: Queue, past: dict[str, Any]) -> None:
    queue.set_clock(NOON)
    job = queue.job(queue.add(**past))
    assert job is not None
    assert job["eta"] == NOON


def test_eta_wins_over_countdown(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.job(queue.add(eta=NOON + timedelta(hours=1), countdown=1))
    assert job is not None
    assert job["eta"] == NOON + timedelta(hours=1)


def test_plain_sql_enqueues_with_jsonb_and_an_interval(queue: Queue) -> None:
    queue.set_clock(NOON)
    found = queue.one(
        "select pgqueue.enqueue('shop.mail', '[2]', p_kwargs => '{\"to\": \"ada\"}', p_queue => 'mail',"
        " p_priority => 7, p_countdown => '10 minutes', p_unique_key => 'k', p_headers => '{\"h\": 1}')"
    )
    job = queue.job(found)
    assert job is not None
    assert (job["task"], job["args"], job["kwargs"], job["queue"]) == ("shop.mail", [2], {"to": "ada"}, "mail")
    assert (job["priority"], job["eta"], job["unique_key"]) == (7, NOON + timedelta(minutes=10), "k")
    assert job["headers"] == {"h": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        "''",
        "null",
        "'t', '{}'",
        "'t', null",
        "'t', p_kwargs => '[]'",
        "'t', p_kwargs => null",
        "'t', p_priority => 10",
        "'t', p_priority => -1",
        "'t', p_priority => null",
    ],
)
def test_plain_sql_is_told_what_is_wrong_with_an_argument(queue: Queue, arguments: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        queue.rows(f"select pgqueue.enqueue({arguments})")
    assert caught.value.sqlstate == "PQ002"
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": None},
        {"task": ""},
        {"priority": 10},
        {"args": {}},
        {"kwargs": []},
        {"queue": ""},
        {"unique_key": ""},
    ],
    ids=str,
)
def test_a_wrong_element_refuses_the_whole_batch(queue: Queue, wrong: dict[str, object]) -> None:
    with pytest.raises(psycopg.IntegrityError):
        queue.enqueue({"task": "good"}, {"task": "t", **wrong})
    assert queue.everything() == []


def test_ids_that_the_database_makes_are_version_7_and_in_the_order_of_time(queue: Queue) -> None:
    first, second = queue.add(), queue.add()
    assert first[14] == second[14] == "7"
    assert first[19] in "89ab"
    assert first[:13] <= second[:13]
    age = queue.one(
        "select abs(extract(epoch from clock_timestamp()) * 1000 - ('x' || %s)::bit(48)::bigint)::float8",
        second.replace("-", "")[:12],
    )
    assert age < 60_000


def test_a_rolled_back_transaction_leaves_nothing(queue: Queue, other: Queue) -> None:
    with pytest.raises(ZeroDivisionError), queue.connection.transaction():
        queue.add(unique_key="k")
        queue.enqueue({"task": "t"}, {"task": "t"})
        assert other.claim() == []
        raise ZeroDivisionError
    assert queue.everything() == []
    assert other.claim() == []
    assert other.enqueue({"task": "t", "unique_key": "k"})[0][1]


def test_what_the_caller_wrote_and_the_job_commit_together(queue: Queue, other: Queue) -> None:
    queue.rows("create temp table written (x integer)")
    with queue.connection.transaction():
        queue.rows("insert into written values (1)")
        job = queue.add()
        assert other.state(job) == "UNKNOWN"
    assert other.state(job) == "PENDING"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_it_works_at_every_isolation_level(queue: Queue, isolation: str) -> None:
    first = queue.add(unique_key="k")
    queue.rows(f"set default_transaction_isolation to '{isolation}'")
    assert queue.enqueue({"task": "t", "unique_key": "k"}, {"task": "t"})[0] == (first, False)


def test_a_durable_enqueue_commits_synchronously_whatever_the_session_says(queue: Queue) -> None:
    queue.rows("set synchronous_commit to off")
    with queue.connection.transaction():
        queue.rows('select * from pgqueue.enqueue_many(\'[{"task": "t"}]\')')
        assert queue.one("show synchronous_commit") == "off"
        queue.rows('select * from pgqueue.enqueue_many(\'[{"task": "t"}]\', true)')
        assert queue.one("show synchronous_commit") == "on"


# -- unique keys


def test_a_unique_key_returns_the_unfinished_job_that_has_it(queue: Queue) -> None:
    first = queue.add(unique_key="k")
    assert queue.enqueue({"task": "t", "unique_key": "k"}) == [(first, False)]
    (claim,) = queue.claim()
    assert queue.enqueue({"task": "t", "unique_key": "k"}) == [(first, False)]
    assert queue.end(claim, "RETRY", countdown=60)
    assert queue.enqueue({"task": "t", "unique_key": "k"}) == [(first, False)]
    assert queue.one("select count(*) from pgqueue.job") == 1


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REJECTED", "IGNORED"])
def test_a_unique_key_is_free_again_when_its_job_has_finished(queue: Queue, state: str) -> None:
    first = queue.add(unique_key="k")
    queue.run(state)
    ((second, created),) = queue.enqueue({"task": "t", "unique_key": "k"})
    assert created
    assert second != first


def test_a_unique_key_given_twice_in_one_batch_makes_one_job(queue: Queue) -> None:
    (first, created), again = queue.enqueue({"task": "t", "unique_key": "k"}, {"task": "t", "unique_key": "k"})
    assert created
    assert again == (first, False)
    assert queue.one("select count(*) from pgqueue.job") == 1


def test_a_unique_key_waits_for_the_transaction_that_has_it_and_joins_its_job(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    with queue.connection.transaction():
        first = queue.add(unique_key="k")
        answer = aside.submit(other.enqueue, {"task": "t", "unique_key": "k"})
        wait_until_blocked(watcher, other)
    assert answer.result() == [(first, False)]


def test_a_unique_key_whose_job_is_just_ending_makes_a_new_one(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    first = queue.add(unique_key="k")
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim)
        answer = aside.submit(other.enqueue, {"task": "t", "unique_key": "k"})
        wait_until_blocked(watcher, other)
    ((second, created),) = answer.result()
    assert created
    assert second != first
    assert queue.state(second) == "PENDING"


@pytest.mark.parametrize("field", ["unique_key", "id"])
def test_batches_with_the_same_keys_in_any_order_never_deadlock(open_queue: OpenQueue, field: str) -> None:
    keys = [new_id() for _ in range(1500)]
    queues = [open_queue() for _ in range(4)]

    def enqueue(number: int) -> list[tuple[str, bool]]:
        mine = [{"task": "t", field: key, "known": field == "id"} for key in keys]
        random.Random(number).shuffle(mine)
        return queues[number].enqueue(*mine)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(enqueue, range(4)))
    assert sum(created for answer in answers for _, created in answer) == len(keys)
    assert len({frozenset(job for job, _ in answer) for answer in answers}) == 1
    assert queues[0].one("select count(*) from pgqueue.job") == len(keys)


# -- sent twice


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REJECTED", "IGNORED"])
def test_a_call_sent_again_is_the_job_that_it_made_however_that_has_ended(queue: Queue, state: str) -> None:
    given = {"task": "t", "id": new_id()}
    queue.enqueue(given)
    again = {**given, "known": True, "resent": True}
    assert queue.enqueue(again) == [(given["id"], True)]
    queue.run(state)
    before = queue.everything()
    assert queue.enqueue(again, {"task": "t"})[0] == (given["id"], True)
    assert [row for row in queue.everything() if row["place"] == "result"] == before
    assert len(queue.claim()) == 1


def test_a_call_sent_again_that_never_arrived_is_made(queue: Queue) -> None:
    job = new_id()
    assert queue.enqueue({"task": "t", "id": job, "known": True, "resent": True}) == [(job, True)]
    assert queue.state(job) == "PENDING"


def test_a_call_sent_again_that_met_a_unique_key_is_still_that_of_another(queue: Queue) -> None:
    first = queue.add(unique_key="k")
    given = {"task": "t", "id": new_id(), "unique_key": "k", "known": True, "resent": True}
    assert queue.enqueue(given) == [(first, False)]


# -- known ids


def test_a_known_id_that_is_unfinished_is_not_enqueued_again(queue: Queue) -> None:
    job = queue.add("first", id=new_id())
    assert queue.enqueue({"task": "second", "id": job, "known": True}) == [(job, False)]
    (claim,) = queue.claim()
    assert claim["task"] == "first"
    assert queue.enqueue({"task": "second", "id": job, "known": True}) == [(job, False)]


def test_a_known_id_that_has_succeeded_is_not_run_again(queue: Queue) -> None:
    job = queue.add()
    queue.run("SUCCESS", value=5)
    before = queue.everything()
    assert queue.enqueue({"task": "t", "id": job, "known": True}) == [(job, False)]
    assert queue.one("select pgqueue.enqueue('t', p_id => %s)::text", job) == job
    assert queue.claim() == []
    assert queue.everything() == before


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED", "REJECTED", "IGNORED"])
def test_a_known_id_that_ended_otherwise_runs_again_and_goes_on_counting_attempts(queue: Queue, state: str) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.end(claim, "RETRY")
    queue.run(state, error=ERROR)
    assert queue.enqueue({"task": "t", "id": job, "known": True}) == [(job, True)]
    assert queue.state(job) == "PENDING"
    (again,) = queue.claim()
    assert (again["id"], again["attempt"], again["retries"]) == (job, 3, 0)
    assert not queue.end(claim)
    assert queue.end(again, "SUCCESS", value=1)
    assert queue.status(job) | {"state": "SUCCESS", "value": 1, "error": None} == queue.status(job)


def test_the_same_id_twice_in_one_batch_makes_one_job(queue: Queue) -> None:
    job = new_id()
    given = {"task": "t", "id": job, "known": True}
    assert queue.enqueue(given, given) == [(job, True), (job, False)]


def test_a_mixed_batch_is_answered_in_the_order_given(queue: Queue) -> None:
    done = queue.add()
    queue.run()
    failed = queue.add()
    queue.run("FAILURE", error=ERROR)
    waiting, keyed = queue.add(), queue.add(unique_key="k")
    fresh, twice = new_id(), new_id()
    known: dict[str, object] = {"task": "t", "known": True}
    answers = queue.enqueue(
        {"task": "t", "unique_key": "z"},
        {**known, "id": done},
        {"task": "t", "unique_key": "k"},
        {**known, "id": fresh},
        {**known, "id": waiting},
        {"task": "t", "unique_key": "a"},
        {**known, "id": twice},
        {**known, "id": failed},
        {"task": "t", "unique_key": "z"},
        {**known, "id": twice},
        {"task": "t"},
    )
    last, first = answers[8][0], answers[0][0]
    assert [created for _, created in answers] == [
        True,
        False,
        False,
        True,
        False,
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    assert last == first
    assert [answers[at][0] for at in (1, 2, 3, 4, 6, 7, 9)] == [done, keyed, fresh, waiting, twice, failed, twice]
    named = {row["id"]: row["unique_key"] for row in queue.rows("select id::text, unique_key from pgqueue.job")}
    assert (named[first], named[answers[5][0]], named[answers[10][0]]) == ("z", "a", None)


def test_an_empty_batch_is_answered_with_nothing(queue: Queue) -> None:
    assert queue.enqueue() == []


@pytest.mark.parametrize(
    ("state", "created", "attempt"), [("SUCCESS", False, None), ("FAILURE", True, 1)], ids=["success", "failure"]
)
def test_an_id_that_is_just_ending_is_judged_by_how_it_ended(
    queue: Queue,
    other: Queue,
    watcher: Queue,
    aside: ThreadPoolExecutor,
    state: str,
    created: bool,
    attempt: int | None,
) -> None:
    """Asked "is there a SUCCESS?" before the insert, the database says no, and the job runs twice."""
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim, state)
        answer = aside.submit(other.enqueue, {"task": "t", "id": job, "known": True})
        wait_until_blocked(watcher, other)
    assert answer.result() == [(job, created)]
    row = queue.job(job)
    assert (row and row["attempt"]) == attempt


def test_an_id_whose_ending_is_rolled_back_is_still_the_same_job(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction(force_rollback=True):
        assert queue.end(claim)
        answer = aside.submit(other.enqueue, {"task": "t", "id": job, "known": True})
        wait_until_blocked(watcher, other)
    assert answer.result() == [(job, False)]
    assert queue.state(job) == "STARTED"


# -- what needs nothing looked up

ONE = (
    "select pgqueue.enqueue_one(%s::uuid, %s, %s::json, %s::json, %s, %s::smallint, %s::boolean, %s::uuid, %s::uuid,"
    " %s::boolean)"
)
ALIKE = (
    "select pgqueue.enqueue_alike(%s::json, %s::int[], %s::uuid[], %s::text[]::json[], %s::text[]::json[], %s::boolean)"
)


def one(queue: Queue, durable: bool = False, /, **fields: Any) -> str:
    """Enqueue what enqueue_many would take as this element."""
    given = {"id": new_id(), "task": "t", "args": [], "kwargs": {}, "queue": "default", "priority": 5, **fields}
    names = ("id", "task", "args", "kwargs", "queue", "priority", "ignore_result", "root_id", "parent_id")
    values = [given.get(name) for name in names]
    queue.rows(ONE, *[json.dumps(value) if isinstance(value, list | dict) else value for value in values], durable)
    return str(given["id"])


def alike(queue: Queue, kinds: list[dict[str, Any]], *numbers: int, durable: bool = False) -> list[str]:
    """Enqueue a call of each of these kinds, with its place as argument."""
    ids, args = [new_id() for _ in numbers], [f"[{place}]" for place, _ in enumerate(numbers)]
    queue.rows(ALIKE, json.dumps(kinds, default=str), list(numbers), ids, args, None, durable)
    return ids


def stored(queue: Queue, *ids: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in (queue.job(id_) or {}).items() if name != "id"} for id_ in ids]


def test_one_call_is_stored_as_enqueue_many_stores_it(queue: Queue) -> None:
    queue.set_clock(NOON)
    more = {"ignore_result": True, "root_id": new_id(), "parent_id": new_id(), "priority": 9, "queue": "mail"}
    for fields in ({}, {"args": [1, {"a": None}], "kwargs": {"b": 2}, **more}):
        first, second = stored(queue, one(queue, **fields), queue.add(**fields))
        assert first == second


def test_calls_of_few_kinds_are_stored_as_enqueue_many_stores_them(queue: Queue) -> None:
    queue.set_clock(NOON)
    kinds: list[dict[str, Any]] = [
        {"task": "t"},
        {"task": "t", "queue": "mail", "priority": 0, "headers": {"h": 1}, "ignore_result": False},
        {
            "task": "u",
            "eta": NOON + timedelta(hours=1),
            "expires": NOON + timedelta(hours=2),
            "options": {"shadow": "s"},
        },
        {"task": "u", "countdown": 90, "expires_in": 0.5, "time_limit": 3, "soft_time_limit": 1.5},
        {"task": "u", "eta": NOON - timedelta(hours=1), "root_id": new_id(), "parent_id": new_id()},
    ]
    numbers = [3, 1, 2, 5, 4, 1]
    found = stored(queue, *alike(queue, kinds, *numbers))
    expected = stored(
        queue, *[queue.add(**kinds[number - 1] | {"args": [place]}) for place, number in enumerate(numbers)]
    )
    assert found == expected


def test_of_one_kind_no_numbers_are_needed_and_arguments_are_those_of_their_ids(queue: Queue) -> None:
    ids = [new_id(), new_id()]
    queue.rows(ALIKE, '[{"task": "t"}]', None, ids, ["[1]", "[2]"], ["{}", '{"a": 1}'], False)
    assert [(job["args"], job["kwargs"]) for job in stored(queue, *ids)] == [([1], {}), ([2], {"a": 1})]
    queue.rows(ALIKE, '[{"task": "t"}]', None, [], [], None, False)
    assert len(queue.everything()) == 2


@pytest.mark.parametrize(
    ("numbers", "ids", "args", "kwargs"),
    [
        (None, 2, ["[]"], None),
        (None, 1, ["[]"], ["{}", "{}"]),
        ([1], 2, ["[]", "[]"], None),
        ([1, 2], 2, ["[]", "[]"], None),
        ([0, 1], 2, ["[]", "[]"], None),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(
    queue: Queue, numbers: list[int] | None, ids: int, args: list[str], kwargs: list[str] | None
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        queue.rows(ALIKE, '[{"task": "t"}]', numbers, [new_id() for _ in range(ids)], args, kwargs, False)
    assert caught.value.sqlstate == "PQ002"
    assert caught.value.diag.message_hint
    assert queue.everything() == []


@pytest.mark.parametrize(
    "wrong", [{"task": ""}, {"priority": 10}, {"args": {}}, {"kwargs": []}, {"queue": ""}], ids=str
)
def test_one_wrong_call_is_refused(queue: Queue, wrong: dict[str, Any]) -> None:
    with pytest.raises(psycopg.IntegrityError):
        one(queue, **wrong)
    assert queue.everything() == []


def test_an_id_that_is_there_is_refused_with_all_that_came_with_it(queue: Queue) -> None:
    job = queue.add()
    with pytest.raises(psycopg.errors.UniqueViolation):
        one(queue, id=job)
    with pytest.raises(psycopg.errors.UniqueViolation):
        queue.rows(ALIKE, '[{"task": "t"}]', None, [new_id(), job], ["[]", "[]"], None, False)
    assert len(queue.everything()) == 1


def test_workers_are_called_only_where_one_is_idle_and_only_for_what_may_start(queue: Queue, other: Queue) -> None:
    other.rows('listen "pgqueue.work"')
    later = {"task": "t", "queue": "mail", "countdown": 60}
    mail = {"task": "t", "queue": "mail"}

    def heard() -> list[str]:
        other.rows("select")
        return [notice.payload for notice in other.connection.notifies(timeout=0)]

    one(queue, queue="mail")
    alike(queue, [mail, {"task": "t"}], 1, 2, 1)
    assert heard() == []
    queue.rows("select pgqueue.say_idle(%s, '{mail}')", queue.worker)
    one(queue)
    alike(queue, [later, {"task": "t"}], 1, 2)
    assert heard() == []
    one(queue, queue="mail")
    assert heard() == ["mail"]
    alike(queue, [mail, later, {"task": "t"}], 1, 2, 3, 1)
    assert heard() == ["mail"]


@pytest.mark.parametrize("durable", [False, True])
def test_these_two_commit_synchronously_where_they_are_asked_to(queue: Queue, durable: bool) -> None:
    queue.rows("set synchronous_commit to off")
    for enqueue in (lambda: one(queue, durable), lambda: alike(queue, [{"task": "t"}], 1, durable=durable)):
        with queue.connection.transaction():
            enqueue()
            assert queue.one("show synchronous_commit") == ("on" if durable else "off")


def test_who_may_call_enqueue_many_may_call_these(queue: Queue) -> None:
    role = compose.Identifier(f"clerk_{new_id()[:8]}")
    with queue.connection.transaction(force_rollback=True):
        queue.connection.execute(compose.SQL("create role {}").format(role))
        queue.connection.execute(compose.SQL("grant execute on function pgqueue.enqueue_many to {}").format(role))
        queue.connection.execute(sql.functions())
        may = queue.rows(
            "select p.proname as name from pg_proc p where p.pronamespace = 'pgqueue'::regnamespace"
            " and has_function_privilege(%s, p.oid, 'execute') order by 1",
            role.as_string(queue.connection).strip('"'),
        )
    assert [row["name"] for row in may] == [
        "enqueue_alike", "enqueue_many", "enqueue_members", "enqueue_one", "enqueue_workflow", "store_steps",
    ]  # fmt: skip


def test_jobs_of_one_large_call_are_due_one_after_the_other(queue: Queue) -> None:
    """A claim cursor stands between two moments: of one moment, it would have to begin with all of them each time."""
    ids = [job for job, _ in queue.enqueue(*({"task": "t"} for _ in range(100)))]
    alike = [new_id() for _ in range(100)]
    queue.rows(
        "select pgqueue.enqueue_alike('[{\"task\": \"t\"}]', null, %s::uuid[], array_fill('[]'::json, '{100}'), null)",
        alike,
    )
    found = {row["id"]: row for row in queue.rows("select id::text, eta, enqueued_at from pgqueue.job")}
    etas = [found[job]["eta"] for job in (*ids, *alike)]
    assert etas == sorted(etas)
    assert len({*etas[:100]}) > 10 < len({*etas[100:]})  # several in a microsecond do no harm
    assert all(row["eta"] == row["enqueued_at"] for row in found.values())
