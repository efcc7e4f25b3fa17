"""Acknowledging: the only way out of an attempt, for its holder alone, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from .helpers import LOST, NOON, Queue, new_id, wait_until_blocked

ERROR = {"type": "ValueError", "module": "builtins", "message": "bad"}
OUTCOMES: dict[str, dict[str, Any]] = {
    "SUCCESS": {"value": {"sum": 5}},
    "FAILURE": {"error": ERROR},
    "REVOKED": {"error": ERROR},
    "REJECTED": {"error": ERROR},
    "IGNORED": {},
    "RETRY": {"countdown": 60, "error": ERROR},
    "RELEASED": {"countdown": 60},
    "REQUEUE": {"error": ERROR},
    "REPLACED": {"task": "other", "args": [9], "countdown": 60},
}
BACK = ("RETRY", "RELEASED", "REQUEUE", "REPLACED")
ENDS = [state for state in OUTCOMES if state not in BACK]


@pytest.mark.parametrize("state", ENDS)
def test_an_end_deletes_the_job_and_stores_its_result(queue: Queue, state: str) -> None:
    queue.set_clock(NOON)
    family = {"root_id": new_id(), "parent_id": new_id()}
    given = {
        "args": [2, 3],
        "kwargs": {"k": 1},
        "headers": {"h": 1},
        "options": {"o": 1},
        "queue": "mail",
        "priority": 7,
    }
    job = queue.add("shop.add", **given, **family)
    queue.set_clock(NOON + timedelta(seconds=1))
    (claim,) = queue.claim(queues=["mail"])
    queue.set_clock(NOON + timedelta(seconds=2))
    assert queue.end(claim, state, runtime=0.5, **OUTCOMES[state])
    assert queue.job(job) is None
    result = queue.result(job)
    assert result is not None
    assert {name: str(v) if name.endswith("id") or name == "worker" else v for name, v in result.items()} == {
        "id": job,
        "enqueued_at": NOON,
        "claimed_at": NOON + timedelta(seconds=1),
        "finished_at": NOON + timedelta(seconds=2),
        "worker": queue.worker,
        **family,
        "attempt": 1,
        "retries": 0,
        "crashes": 0,
        "runtime": 0.5,
        "state": state,
        "task": "shop.add",
        "history": None,
        "steps": None,
        "again": None if state == "SUCCESS" else {"place": 0, "depth": 0},
        **given,
        "value": OUTCOMES[state].get("value"),
        "error": OUTCOMES[state].get("error"),
    }


def test_an_unknown_state_is_refused_by_the_table(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with pytest.raises(psycopg.errors.CheckViolation):
        queue.end(claim, "FINE")
    assert queue.state(job) == "STARTED"


def test_a_batch_is_judged_outcome_by_outcome(queue: Queue, other: Queue) -> None:
    queue.enqueue(*({"task": "t", "priority": 9 - at} for at in range(9)))
    claims = queue.claim()
    states = list(OUTCOMES)
    outcomes = [
        {"id": claim["id"], "attempt": 1, "state": state, **OUTCOMES[state]}
        for claim, state in zip(claims, states, strict=True)
    ]
    lost = [{"id": new_id(), "attempt": 1, "state": state} for state in ("SUCCESS", *BACK)]
    stolen = claims[1]
    queue.rows("update pgqueue.job set worker = %s where id = %s", other.worker, stolen["id"])
    refused = queue.finish(*lost, *outcomes)
    assert sorted(refused) == sorted([*(outcome["id"] for outcome in lost), stolen["id"]])
    now = ["SUCCESS", "STARTED", "REVOKED", "REJECTED", "IGNORED", "RETRY", "PENDING", "PENDING", "PENDING"]
    assert [queue.state(claim["id"]) for claim in claims] == now


def test_an_empty_batch_refuses_nothing(queue: Queue) -> None:
    assert queue.finish() == []


def test_an_outcome_without_an_attempt_is_refused(queue: Queue) -> None:
    one, two = queue.add(), queue.add()
    queue.claim()
    assert queue.finish({"id": one, "state": "SUCCESS"}, {"id": two, "attempt": 1, "state": "SUCCESS"}) == [one]
    assert queue.state(one) == "STARTED"


@pytest.mark.parametrize("durable", ["finish", "bury"])
def test_an_acknowledgement_commits_synchronously_whatever_the_session_says(queue: Queue, durable: str) -> None:
    queue.add()
    (claim,) = queue.claim()
    queue.rows("set synchronous_commit to off")
    with queue.connection.transaction():
        if durable == "finish":
            queue.end(claim)
        else:
            queue.bury()
        assert queue.one("show synchronous_commit") == "on"


def test_keep_false_stores_no_result(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.end(claim, "SUCCESS", value=1, keep=False)
    assert queue.everything() == []
    assert queue.state(job) == "UNKNOWN"


def test_a_second_life_overwrites_the_whole_result_of_the_first(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add("first", args=[1], headers={"h": 1}, queue="mail", priority=9)
    (claim,) = queue.claim(queues=["mail"])
    assert queue.end(claim, "FAILURE", error=ERROR, runtime=9)
    queue.set_clock(NOON + timedelta(hours=1))
    parent = new_id()
    queue.add("second", id=job, known=True, kwargs={"k": 2}, parent_id=parent)
    (claim,) = queue.claim()
    worker = new_id()
    queue.rows("update pgqueue.job set worker = %s", worker)
    assert queue.end(claim, "SUCCESS", value=2, worker=worker)
    result = queue.result(job)
    assert result is not None
    expected = {
        "enqueued_at": NOON + timedelta(hours=1),
        "claimed_at": NOON + timedelta(hours=1),
        "finished_at": NOON + timedelta(hours=1),
        "attempt": 2,
        "runtime": None,
        "priority": 5,
        "state": "SUCCESS",
        "task": "second",
        "queue": "default",
        "args": [],
        "kwargs": {"k": 2},
        "headers": None,
        "value": 2,
        "error": None,
    }
    assert result | expected == result
    assert (str(result["worker"]), str(result["parent_id"])) == (worker, parent)


# -- going back


def test_a_retry_waits_for_its_countdown_and_is_counted(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add(args=[1], kwargs={"k": 1}, queue="mail", priority=7, expires_in=600)
    (claim,) = queue.claim(queues=["mail"])
    assert queue.end(claim, "RETRY", countdown=60, error=ERROR)
    row = queue.job(job)
    assert row is not None
    unchanged = {
        "args": [1],
        "kwargs": {"k": 1},
        "queue": "mail",
        "priority": 7,
        "expires": NOON + timedelta(minutes=10),
    }
    back = {"eta": NOON + timedelta(minutes=1), "retries": 1, "crashes": 0, "error": ERROR, "worker": None}
    assert row | unchanged | back | {"claimed_at": None, "attempt": 1} == row
    assert queue.state(job) == "RETRY"
    assert queue.claim(queues=["mail"]) == []
    queue.set_clock(NOON + timedelta(minutes=1))
    (again,) = queue.claim(queues=["mail"])
    assert (again["attempt"], again["retries"]) == (2, 1)


def test_a_retry_may_change_arguments_queue_priority_and_expiry(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add(args=[1], kwargs={"k": 1})
    (claim,) = queue.claim()
    changed: dict[str, Any] = {"args": [2], "kwargs": {"k": 2}, "queue": "mail", "priority": 9}
    expires = NOON + timedelta(hours=1)
    assert queue.end(claim, "RETRY", eta=NOON + timedelta(seconds=5), countdown=900, expires=expires, **changed)
    row = queue.job(job)
    assert row is not None
    assert row | changed | {"eta": NOON + timedelta(seconds=5), "expires": expires} == row


@pytest.mark.parametrize("state", ["RETRY", "RELEASED", "REPLACED"])
@pytest.mark.parametrize("when", [{}, {"countdown": -60}, {"eta": NOON - timedelta(days=1)}], ids=str)
def test_what_goes_back_with_an_eta_in_the_past_is_stored_as_now(queue: Queue, state: str, when: Any) -> None:
    queue.set_clock(NOON - timedelta(hours=2))
    job = queue.add()
    (claim,) = queue.claim()
    queue.set_clock(NOON)
    assert queue.end(claim, state, **{"task": "t"} | when)
    row = queue.job(job)
    assert row is not None
    assert row["eta"] == NOON


def test_a_release_counts_nothing(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.end(claim, "RELEASED", countdown=30)
    row = queue.job(job)
    assert row is not None
    assert (row["retries"], row["crashes"], row["error"], row["worker"]) == (0, 0, None, None)
    assert row["eta"] == NOON + timedelta(seconds=30)
    assert queue.state(job) == "PENDING"


@pytest.mark.parametrize("state", BACK)
def test_what_was_revoked_while_it_ran_does_not_go_back(queue: Queue, other: Queue, state: str) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert other.one("select pgqueue.revoke(%s)", job) == "STARTED"
    assert queue.end(claim, state, error=ERROR)
    assert queue.job(job) is None
    assert queue.status(job) | {"state": "REVOKED", "error": ERROR} == queue.status(job)
    assert queue.end(claim, state, error=ERROR), "asked again, the answer is the same"


def test_what_was_revoked_while_it_ran_may_still_finish(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    other.one("select pgqueue.revoke(%s)", job)
    assert queue.end(claim, "SUCCESS", value=1)
    assert queue.state(job) == "SUCCESS"


def test_a_retry_may_change_what_else_the_call_says_and_keeps_the_rest(queue: Queue) -> None:
    given = {"headers": {"h": 1}, "options": {"o": 1}, "ignore_result": True, "time_limit": 5, "soft_time_limit": 4}
    changed = {"headers": {"h": 2}, "options": {"o": 2}, "ignore_result": False, "time_limit": 2, "soft_time_limit": 1}
    links = {"links": [{"task": "next"}], "errbacks": [{"task": "complain"}]}
    job = queue.add(**given, **links)
    for expected in (given, changed):
        queue.run("RETRY", **({} if expected is given else changed))
        row = queue.job(job)
        assert row is not None
        assert row | expected | links == row


# -- rejected, to be tried again


def test_what_is_requeued_comes_back_at_once_and_then_after_ever_longer(queue: Queue) -> None:
    now = NOON
    pauses = []
    queue.set_clock(now)
    job = queue.add(eta=NOON - timedelta(hours=1))
    for n in range(14):
        (claim,) = queue.claim()
        assert claim["requeues"] == n
        assert queue.end(claim, "REQUEUE", error=ERROR, most=20)
        row = queue.job(job)
        assert row is not None
        assert row | {"requeues": n + 1, "retries": 0, "crashes": 0, "worker": None, "error": ERROR} == row
        pauses.append((row["eta"] - now).total_seconds())
        queue.set_clock(now := row["eta"])
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60, 60]
    assert queue.state(job) == "PENDING"


@pytest.mark.parametrize(("most", "given"), [(2, {"most": 2}), (0, {"most": 0}), (100, {})])
def test_what_is_requeued_too_often_ends_as_rejected(queue: Queue, most: int, given: dict[str, int]) -> None:
    job = queue.add(errbacks=[{"task": "complain", "queue": "mail"}])
    queue.rows("update pgqueue.job set requeues = %s", most - 1 if most else 0)
    if most:
        queue.run("REQUEUE", error=ERROR, **given)
    queue.set_clock(datetime.now(UTC) + timedelta(minutes=2))
    (claim,) = queue.claim()
    for _ in range(2):
        assert queue.end(claim, "REQUEUE", error=ERROR, runtime=0.5, **given), "asked again, the answer is the same"
        assert queue.job(job) is None
        status = queue.status(job)
        assert status | {"state": "REJECTED", "error": ERROR} == status
        assert len(queue.rows("select id from pgqueue.job where task = 'complain'")) == 1
    (result,) = queue.rows("select runtime from pgqueue.result")
    assert result["runtime"] == 0.5


def test_a_bound_that_no_count_can_reach_holds_nothing_up(queue: Queue) -> None:
    job = queue.add()
    queue.rows("update pgqueue.job set requeues = 32766")
    queue.run("REQUEUE", error=ERROR, most=10**9)
    queue.set_clock(datetime.now(UTC) + timedelta(minutes=2))
    queue.run("REQUEUE", error=ERROR, most=10**9)
    assert queue.state(job) == "REJECTED"


def test_a_requeue_in_a_batch_ends_alone(queue: Queue) -> None:
    queue.enqueue(*({"task": "t"} for _ in range(3)))
    a, b, c = queue.claim()
    queue.rows("update pgqueue.job set requeues = 5 where id = %s", b["id"])
    outcomes = [{"id": claim["id"], "attempt": 1, "state": "REQUEUE", "error": ERROR, "most": 5} for claim in (a, b, c)]
    assert queue.finish(*outcomes) == []
    assert [queue.state(claim["id"]) for claim in (a, b, c)] == ["PENDING", "REJECTED", "PENDING"]


# -- replaced


def test_another_call_takes_over_the_id_the_continuations_and_the_history(queue: Queue) -> None:
    queue.set_clock(NOON)
    family = {"root_id": new_id(), "parent_id": new_id()}
    old = {"headers": {"h": 1}, "options": {"o": 1}, "ignore_result": True, "time_limit": 5, "soft_time_limit": 4}
    job = queue.add("old", args=[1], kwargs={"k": 1}, priority=7, unique_key="k", expires_in=60, **old, **family)
    queue.run("RETRY", error=ERROR)
    (claim,) = queue.claim()
    assert queue.end(claim, "REPLACED", task="new", args=[2], kwargs={"k": 2}, countdown=30)
    row = queue.job(job)
    assert row is not None
    expected: dict[str, Any] = {"task": "new", "args": [2], "kwargs": {"k": 2}, "queue": "default", "priority": 7}
    expected |= {"unique_key": "k", "worker": None, "claimed_at": None, "attempt": 2, "retries": 0, "requeues": 0}
    expected |= dict.fromkeys([*old, "expires"]) | {"eta": NOON + timedelta(seconds=30)}
    assert row | expected == row
    assert {name: str(row[name]) for name in family} == family
    assert [entry["state"] for entry in row["history"]] == ["RETRY"]
    assert queue.state(job) == "PENDING"


def test_the_call_that_takes_over_brings_what_it_says(queue: Queue) -> None:
    job = queue.add("old", priority=7)
    call = {"headers": {"h": 1}, "options": {"o": 1}, "ignore_result": True, "time_limit": 5, "soft_time_limit": 4}
    call |= {"task": "new", "queue": "mail", "priority": 2}
    times = {"eta": NOON, "expires": NOON + timedelta(hours=1)}
    queue.run("REPLACED", **call, **times)
    row = queue.job(job)
    assert row is not None
    assert row | call | times | {"args": [], "kwargs": {}} == row


@pytest.mark.parametrize("name", ["links", "errbacks"])
@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        (None, None, None),
        (["a"], None, ["a"]),
        (None, ["b"], ["b"]),
        (["a"], ["b", "c"], ["a", "b", "c"]),
        ([], ["b"], ["b"]),
        (["a"], [], ["a"]),
    ],
)
def test_continuations_are_added_to_those_that_the_job_has(
    queue: Queue, name: str, old: list[str] | None, new: list[str] | None, both: list[str] | None
) -> None:
    def calls(names: list[str] | None) -> list[dict[str, str]] | None:
        return None if names is None else [{"task": name} for name in names]

    job = queue.add(**{name: calls(old)})
    queue.run("REPLACED", task="new", **{name: calls(new)})
    row = queue.job(job)
    assert row is not None
    assert row[name] == calls(both)


def test_a_call_that_cannot_take_over_is_refused_and_the_job_can_then_fail(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    for call in ({}, {"task": "new", "links": [{}]}, {"task": "new", "errbacks": {}}, {"task": "new", "args": {}}):
        with pytest.raises(psycopg.Error):
            queue.end(claim, "REPLACED", **call)
    assert queue.state(job) == "STARTED"
    assert queue.end(claim, "FAILURE", error=ERROR)


def test_what_was_replaced_is_told_from_what_was_buried(queue: Queue) -> None:
    job = queue.add("t", args=[1], options={"replaced": 1})
    (claim,) = queue.claim()
    assert queue.bury() == {job: "PENDING"}
    for other in ({"args": [2]}, {"kwargs": {"k": 1}}, {"task": "u"}, {"options": {"replaced": 2}}):
        call = {"task": "t", "args": [1], "kwargs": {}, "options": {"replaced": 1}} | other
        assert not queue.end(claim, "REPLACED", **call)


# -- history


def test_each_attempt_that_does_not_end_the_job_leaves_an_entry(queue: Queue) -> None:
    error = {"type": "E", "module": "m", "message": "no", "args": [1], "traceback": "tb", "cause": None}
    kept = {"type": "E", "module": "m", "message": "no", "traceback": "tb"}
    queue.set_clock(NOON)
    job = queue.add()
    queue.run("RETRY", error=error)
    queue.run("RELEASED", error=error)  # counts nothing, so it is not remembered
    queue.run("REQUEUE", error=error)
    queue.run("RETRY")
    queue.run("RELEASED", crashed=True, error=error)
    (claim,) = queue.claim(alone=True)
    assert queue.end(claim, value=1)
    at = NOON.isoformat()
    assert queue.status(job)["history"] == [
        {"attempt": 1, "at": at, "state": "RETRY", "error": kept},
        {"attempt": 3, "at": at, "state": "REQUEUE", "error": kept},
        {"attempt": 4, "at": at, "state": "RETRY", "error": {}},
        {"attempt": 5, "at": at, "state": "CRASH", "error": kept},
    ]


def test_a_history_keeps_the_newest_entries_and_the_ends_of_long_texts(queue: Queue) -> None:
    error = {"type": "E", "message": "a" * 2000 + "b", "traceback": "b" + "a" * 4000}
    job = queue.add()
    for _ in range(25):
        queue.run("RETRY", error=error)
    history = queue.status(job)["history"]
    assert [entry["attempt"] for entry in history] == list(range(6, 26))
    assert all(entry["error"] == {"type": "E", "message": "a" * 2000, "traceback": "a" * 4000} for entry in history)


@pytest.mark.parametrize("error", [None, "text", 5, [1], {}, {"message": None}, {"message": {"a": 1}}], ids=str)
def test_an_error_of_any_shape_is_remembered(queue: Queue, error: object) -> None:
    job = queue.add()
    queue.run("RETRY", error=error)
    assert len(queue.status(job)["history"]) == 1


def test_an_error_that_no_text_can_hold_is_left_out_of_the_history(queue: Queue) -> None:
    for error in (r'{"message": "\u0000"}', r'{"message": "\ud800"}'):
        entry = queue.one("select pgqueue.remember(null, 1, now(), 'CRASH', %s)", error)
        assert [set(one) for one in entry] == [{"attempt", "at", "state"}]


# -- the fence


@pytest.mark.parametrize("state", OUTCOMES)
def test_another_worker_is_refused_and_changes_nothing(queue: Queue, other: Queue, state: str) -> None:
    queue.add(unique_key="k")
    (claim,) = queue.claim()
    before = queue.everything()
    assert not other.end(claim, state, **OUTCOMES[state])
    assert queue.everything() == before
    assert queue.end(claim)


@pytest.mark.parametrize("state", OUTCOMES)
def test_an_old_attempt_is_refused_and_changes_nothing(queue: Queue, other: Queue, state: str) -> None:
    queue.add()
    (old,) = queue.claim()
    queue.bury()
    (new,) = other.claim()
    assert new["attempt"] == 2
    before = queue.everything()
    assert not queue.end(old, state, **OUTCOMES[state])
    assert not other.end(old, state, **OUTCOMES[state])
    assert queue.everything() == before
    assert other.end(new)


@pytest.mark.parametrize("state", OUTCOMES)
def test_an_old_attempt_of_the_same_worker_is_refused_by_its_number(queue: Queue, state: str) -> None:
    queue.add()
    (old,) = queue.claim()
    queue.bury()
    (new,) = queue.claim()
    before = queue.everything()
    assert not queue.end(old, state, **OUTCOMES[state])
    assert queue.everything() == before
    assert queue.end(new)


@pytest.mark.parametrize("revoked", [False, True])
def test_the_fence_holds_while_old_and_new_attempt_end_in_one_batch(queue: Queue, revoked: bool) -> None:
    job = queue.add()
    (old,) = queue.claim()
    queue.bury()
    queue.claim()
    if revoked:
        queue.one("select pgqueue.revoke(%s)", job)
    outcomes = [
        {"id": job, "attempt": old["attempt"], "state": "FAILURE", "error": ERROR},
        {"id": job, "attempt": 2, "state": "SUCCESS", "value": 2},
    ]
    assert queue.finish(*outcomes) == [job]
    assert queue.status(job) | {"state": "SUCCESS", "value": 2, "attempt": 2} == queue.status(job)


@pytest.mark.parametrize("state", [state for state in OUTCOMES if state != "RELEASED"])
def test_after_a_burial_the_late_worker_is_refused_though_nobody_has_the_lease_yet(queue: Queue, state: str) -> None:
    """bury leaves the attempt as it is: what is told to be stored must not be told from that alone."""
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.bury() == {job: "PENDING"}
    before = queue.everything()
    assert not queue.end(claim, state, **OUTCOMES[state])
    assert queue.everything() == before


def test_a_retry_without_an_error_is_refused_after_a_burial_too(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.bury() == {job: "PENDING"}
    before = queue.everything()
    assert not queue.end(claim, "RETRY", countdown=3600, args=[9])
    assert queue.everything() == before


@pytest.mark.parametrize("state", OUTCOMES)
@pytest.mark.parametrize("buried", ["FAILURE", "REVOKED"])
def test_after_a_burial_that_ended_the_job_the_late_worker_is_refused(queue: Queue, state: str, buried: str) -> None:
    """The result of bury has this worker and this attempt, and still is not what this worker stores."""
    outcome = OUTCOMES[state] | ({"error": ERROR} if state in ("IGNORED", "RELEASED", "REPLACED") else {})
    job = queue.add()
    (claim,) = queue.claim()
    if buried == "REVOKED":
        queue.one("select pgqueue.revoke(%s)", job)
    assert queue.bury(max_crashes=0) == {job: buried}
    before = queue.everything()
    assert not queue.end(claim, state, **outcome)
    assert queue.everything() == before
    assert queue.status(job)["error"] == LOST


@pytest.mark.parametrize("state", OUTCOMES)
def test_the_same_outcomes_again_are_not_refused_and_change_nothing(queue: Queue, state: str) -> None:
    queue.enqueue(*({"task": "t"} for _ in range(3)))
    outcomes = [
        {"id": claim["id"], "attempt": 1, "retries": 0, "requeues": 0, "state": state, **OUTCOMES[state]}
        for claim in queue.claim()
    ]
    assert queue.finish(*outcomes) == []
    before = queue.everything()
    assert queue.finish(*outcomes) == []
    assert queue.everything() == before


def test_an_answer_that_was_lost_with_a_rollback_is_given_again_by_doing_it(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction(force_rollback=True):
        assert queue.end(claim)
    assert queue.state(job) == "STARTED"
    assert queue.end(claim)
    assert queue.state(job) == "SUCCESS"


# -- hold


def test_hold_accepts_the_holder_alone(queue: Queue, other: Queue) -> None:
    queue.add()
    (claim,) = queue.claim()
    queue.hold(claim)
    for worker, attempt in ((other.worker, 1), (queue.worker, 2), (queue.worker, 0)):
        with pytest.raises(psycopg.Error) as caught:
            queue.hold({**claim, "attempt": attempt}, worker=worker)
        assert caught.value.sqlstate == "PQ001"


def test_hold_raises_for_a_job_that_has_ended_gone_back_or_never_was(queue: Queue) -> None:
    queue.enqueue(*({"task": "t"} for _ in range(2)))
    ended, back = queue.claim()
    assert queue.end(ended)
    assert queue.end(back, "RELEASED")
    for claim in (ended, back, {"id": new_id(), "attempt": 1}):
        with pytest.raises(psycopg.Error) as caught:
            queue.hold(claim)
        assert caught.value.sqlstate == "PQ001"


def test_a_held_job_finishes_together_with_what_its_task_wrote(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        queue.hold(claim)
        written = queue.add("written")
        assert queue.end(claim)
        assert (other.state(job), other.state(written)) == ("STARTED", "UNKNOWN")
    assert (other.state(job), other.state(written)) == ("SUCCESS", "PENDING")


@pytest.mark.parametrize("state", ["SUCCESS", "RETRY"])
@pytest.mark.parametrize("committed", [True, False])
def test_hold_waits_for_a_transaction_in_doubt_and_tells_its_outcome(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor, state: str, committed: bool
) -> None:
    queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction(force_rollback=not committed):
        assert queue.end(claim, state)
        answer = aside.submit(other.hold, claim, worker=queue.worker)
        wait_until_blocked(watcher, other)
    error = answer.exception()
    if committed:
        assert isinstance(error, psycopg.Error)
        assert error.sqlstate == "PQ001"
    else:
        assert error is None
