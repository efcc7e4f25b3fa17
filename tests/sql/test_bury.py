"""Workers: registered, beating, observed, and buried when they are dead."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest

from .helpers import LOST, NOON, OpenQueue, Queue, new_id


def test_a_job_of_a_killed_worker_starts_again_elsewhere(open_queue: OpenQueue, other: Queue) -> None:
    victim = open_queue()
    victim.register()
    job = victim.add(args=[1])
    (claim,) = victim.claim()
    victim.connection.close()
    assert other.claim() == []
    assert other.bury(victim.worker) == {job: "PENDING"}
    (again,) = other.claim()
    assert (again["id"], again["args"], again["attempt"], again["crashes"]) == (job, [1], 2, 1)
    assert not other.end(claim, worker=victim.worker)
    assert other.end(again)
    assert other.rows("select * from pgqueue.worker") == []


def test_a_job_comes_back_at_once_with_the_reason(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add()
    queue.claim()
    queue.set_clock(NOON + timedelta(minutes=1))
    queue.bury()
    row = queue.job(job)
    assert row is not None
    expected = {"worker": None, "claimed_at": None, "eta": NOON + timedelta(minutes=1), "error": LOST, "retries": 0}
    assert row | expected == row
    assert queue.state(job) == "PENDING"


def test_a_crash_is_counted_only_for_what_had_been_started(queue: Queue) -> None:
    started, prefetched = queue.add(), queue.add()
    queue.claim()
    assert queue.bury(started=[started], max_crashes=3) == {started: "PENDING", prefetched: "PENDING"}
    rows = {job: queue.job(job) or {} for job in (started, prefetched)}
    assert {job: (row["crashes"], row["error"]) for job, row in rows.items()} == {
        started: (1, LOST),
        prefetched: (0, None),
    }


def test_what_was_not_started_is_no_victim_of_a_poisonous_neighbour(queue: Queue) -> None:
    prefetched = queue.add("once")
    queue.register(at_most_once=["once"])
    queue.claim()
    assert queue.bury(started=[], max_crashes=1) == {prefetched: "PENDING"}
    assert len(queue.claim()) == 1


def test_a_job_that_had_begun_in_an_earlier_attempt_has_not_begun_in_this_one(queue: Queue) -> None:
    queue.register(at_most_once=["once"])
    first, second = queue.add("once"), queue.add("once")
    for claim in queue.claim():
        assert queue.end(claim, "RETRY")
    queue.claim()
    found = queue.rows(
        "select id::text, state from pgqueue.bury(%s, %s, %s::uuid[], 3, true, %s)",
        queue.worker, json.dumps(LOST), [first, second], [1, 2],
    )  # fmt: skip
    assert {row["id"]: row["state"] for row in found} == {first: "PENDING", second: "FAILURE"}


def test_a_worker_that_is_not_on_the_list_is_judged_by_what_the_others_say_of_their_tasks(
    queue: Queue, other: Queue
) -> None:
    other.register(at_most_once=["once"])
    once, often = queue.add("once"), queue.add("often")
    queue.claim()
    assert queue.bury() == {once: "FAILURE", often: "PENDING"}


def test_a_job_that_kills_its_workers_ends_as_failure(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add("poison", args=[1], headers={"h": 1}, root_id=new_id())
    states: list[str] = []
    for _ in range(4):
        queue.claim(alone=True)
        states += queue.bury(max_crashes=3).values()
    assert states == ["PENDING", "PENDING", "PENDING", "FAILURE"]
    assert queue.job(job) is None
    result = queue.result(job)
    assert result is not None
    expected = {"state": "FAILURE", "crashes": 4, "attempt": 4, "retries": 0, "error": LOST, "args": [1]}
    assert result | expected | {"headers": {"h": 1}, "finished_at": NOON, "claimed_at": NOON} == result
    assert str(result["worker"]) == queue.worker
    assert queue.claim(alone=True) == []


def test_each_crash_is_remembered_and_a_stop_is_not(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add()
    for counts in (True, False, True):
        queue.claim(alone=True)
        queue.bury(counts=counts)
    queue.claim(alone=True)
    assert queue.bury(max_crashes=0) == {job: "FAILURE"}
    assert queue.status(job)["history"] == [
        {"attempt": attempt, "at": NOON.isoformat(), "state": "CRASH", "error": LOST} for attempt in (1, 3)
    ]


def test_a_release_between_two_crashes_is_not_a_crash(queue: Queue) -> None:
    job = queue.add()
    for _ in range(2):
        queue.claim(alone=True)
        assert queue.bury() == {job: "PENDING"}
        queue.finish(*[{**claim, "state": "RELEASED"} for claim in queue.claim(alone=True)])
    row = queue.job(job)
    assert row is not None
    assert row["crashes"] == 2


def test_a_task_acknowledged_by_its_claim_ends_as_failure_and_never_runs_again(queue: Queue) -> None:
    queue.register(at_most_once=["once"])
    once, often = queue.add("once"), queue.add("often")
    queue.claim()
    assert queue.bury() == {once: "FAILURE", often: "PENDING"}
    assert queue.status(once) | {"state": "FAILURE", "error": LOST} == queue.status(once)
    assert [claim["id"] for claim in queue.claim(alone=True)] == [often]


def test_a_task_that_fails_if_lost_is_not_repeated_after_a_crash_but_after_a_stop(queue: Queue) -> None:
    queue.register(fail_if_lost=["fragile"])
    job = queue.add("fragile")
    queue.claim()
    assert queue.bury(counts=False) == {job: "PENDING"}
    queue.register(fail_if_lost=["fragile"])
    queue.claim()
    assert queue.bury() == {job: "FAILURE"}
    assert queue.status(job) | {"state": "FAILURE", "error": LOST} == queue.status(job)


def test_a_second_life_that_is_buried_overwrites_the_result_of_the_first(queue: Queue) -> None:
    job = queue.add("first")
    queue.run("FAILURE", error={"type": "E"}, runtime=1)
    queue.add("second", id=job, known=True)
    queue.claim()
    assert queue.bury(max_crashes=0) == {job: "FAILURE"}
    result = queue.result(job)
    assert result is not None
    assert result | {"task": "second", "error": LOST, "runtime": None, "attempt": 2} == result


def test_only_the_leases_of_the_dead_worker_are_taken(queue: Queue, other: Queue) -> None:
    queue.register()
    other.register()
    queue.enqueue({"task": "t"}, {"task": "t"})
    (mine,), (others,) = queue.claim(1), other.claim(1)
    waiting = queue.add()
    assert queue.bury() == {mine["id"]: "PENDING"}
    assert queue.state(waiting) == "PENDING"
    assert other.end(others)
    assert [str(row["id"]) for row in queue.rows("select id from pgqueue.worker")] == [other.worker]


def test_a_worker_with_nothing_is_struck_off_the_list(queue: Queue, other: Queue) -> None:
    queue.register()
    queue.rows("select pgqueue.say_idle(%s, '{default}')", queue.worker)
    assert other.bury(queue.worker) == {}
    assert queue.rows("select id from pgqueue.worker union all select worker from pgqueue.idle") == []
    assert other.bury(queue.worker) == {}


def test_what_a_transaction_holds_is_passed_over_and_found_by_the_next_call(queue: Queue, other: Queue) -> None:
    queue.register(at_most_once=["once"])
    held, free = queue.add("once", priority=9), queue.add()
    claim, _ = queue.claim()
    with queue.connection.transaction():
        queue.hold(claim)
        assert other.bury(queue.worker) == {free: "PENDING"}
        assert other.one("select count(*) from pgqueue.worker") == 1
        assert other.state(held) == "STARTED"
    assert other.bury(queue.worker) == {held: "FAILURE"}
    assert other.one("select count(*) from pgqueue.worker") == 0


def test_what_finishes_while_it_is_held_is_not_buried(queue: Queue, other: Queue) -> None:
    queue.register()
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        queue.hold(claim)
        assert other.bury(queue.worker) == {}
        assert queue.end(claim, value=1)
    assert other.bury(queue.worker) == {}
    assert queue.state(job) == "SUCCESS"
    assert other.one("select count(*) from pgqueue.worker") == 0


def test_who_waits_is_told_of_a_job_that_a_burial_ended(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.done")
    ended, back = queue.add("once"), queue.add()
    queue.register(at_most_once=["once"])
    for job in (ended, back):
        other.rows("select pgqueue.wait_for(%s, %s, 60)", job, new_id())
    queue.claim()
    queue.bury()
    assert other.heard(queue) == [("pgqueue.done", ended)]


def test_leases_of_a_worker_that_is_not_listed_are_found_when_they_are_old(queue: Queue, other: Queue) -> None:
    def orphans(at: int) -> list[str]:
        queue.set_clock(NOON + timedelta(seconds=at))
        return [row["id"] for row in queue.rows("select o::text as id from pgqueue.orphans(30) o")]

    other.register()
    for worker in (queue, other):
        worker.set_clock(NOON)
        worker.enqueue({"task": "t"}, {"task": "t"})
        worker.claim(2)
    queue.add()
    assert orphans(30) == []
    assert orphans(31) == [queue.worker]
    assert len(queue.bury()) == 2
    assert orphans(60) == []


def test_a_worker_hands_back_the_leases_that_it_has_not_heard_of(queue: Queue, other: Queue) -> None:
    queue.set_clock(NOON)
    other.set_clock(NOON)
    queue.enqueue(*({"task": "t"} for _ in range(3)))
    (known, unheard) = queue.claim(2)
    (others,) = other.claim()
    queue.set_clock(NOON + timedelta(seconds=5))
    found = queue.rows("select d::text as id from pgqueue.disown(%s, %s::uuid[]) d", queue.worker, [known["id"]])
    assert [row["id"] for row in found] == [unheard["id"]]
    row = queue.job(unheard["id"])
    assert row is not None
    expected = {"worker": None, "eta": NOON + timedelta(seconds=5), "crashes": 0, "retries": 0, "attempt": 1}
    assert row | expected == row
    assert queue.end(known)
    assert other.end(others)
    assert not queue.end(unheard), "nobody has it now"


def test_what_a_transaction_holds_is_not_handed_back(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        queue.hold(claim)
        assert other.rows("select * from pgqueue.disown(%s, '{}')", queue.worker) == []
    assert queue.state(job) == "STARTED"


# -- the list of workers


def test_a_worker_is_listed_as_it_registered(queue: Queue) -> None:
    queue.set_clock(NOON)
    queue.register(queues=["a", "b"], at_most_once=["once"], hooked=["*"], pid_started=5, locked=True, slots=4)
    (row,) = queue.rows("select * from pgqueue.worker")
    expected = {
        "queues": ["a", "b"],
        "at_most_once": ["once"],
        "hooked": ["*"],
        "pid_started": 5,
        "locked": True,
        "slots": 4,
    }
    assert row | expected | {"started_at": NOON, "beat_at": NOON, "beats": 0, "unknown": []} == row


def test_a_beat_counts_and_answers_whether_the_worker_is_still_listed(queue: Queue) -> None:
    queue.set_clock(NOON)
    queue.register()
    queue.set_clock(NOON + timedelta(seconds=10))
    assert queue.one("select pgqueue.beat(%s, '{shop.new}')", queue.worker) is True
    (row,) = queue.rows("select * from pgqueue.worker")
    assert (row["beats"], row["beat_at"], row["unknown"]) == (1, NOON + timedelta(seconds=10), ["shop.new"])
    queue.bury()
    assert queue.one("select pgqueue.beat(%s)", queue.worker) is False
    queue.register()
    queue.register()
    assert queue.one("select pgqueue.beat(%s)", queue.worker) is True


def test_the_others_are_observed_with_their_locks(queue: Queue, other: Queue, watcher: Queue) -> None:
    for worker in (queue, other, watcher):
        worker.register(locked=True, name=f"n{worker.pid}")
    for worker in (queue, watcher):
        assert worker.one("select pg_try_advisory_lock(pgqueue.lock_key(%s))", worker.worker) is True

    def held() -> dict[str, bool]:
        rows = queue.rows("select * from pgqueue.observe(%s)", queue.worker)
        assert all(row["server_started"] == queue.one("select pg_postmaster_start_time()") for row in rows)
        return {row["name"]: row["lock_held"] for row in rows}

    assert held() == {f"n{other.pid}": False, f"n{watcher.pid}": True}
    assert watcher.one("select pg_advisory_unlock(pgqueue.lock_key(%s))", watcher.worker) is True
    assert held() == {f"n{other.pid}": False, f"n{watcher.pid}": False}


def test_the_keys_of_locks_are_told_apart_whatever_their_sign(queue: Queue) -> None:
    for last in ("7fffffffffffffff", "ffffffffffffffff", "8000000000000001", "00000000ffffffff"):
        worker = f"00000000-0000-7000-{last[:4]}-{last[4:]}"
        queue.register(worker, locked=True)
        queue.one("select pg_try_advisory_lock(pgqueue.lock_key(%s))", worker)
    rows = queue.rows("select id::text, lock_held from pgqueue.observe(%s)", new_id())
    assert len(rows) == 4
    assert all(row["lock_held"] for row in rows)


# -- the sessions of a dead worker


def end_sessions(queue: Queue, worker: str, pid: int | None = None) -> int:
    return int(queue.one("select pgqueue.end_sessions(%s, 5, %s)", worker, pid))


def test_a_session_that_holds_a_job_of_a_dead_worker_is_ended_and_the_job_comes_back(
    queue: Queue, other: Queue, watcher: Queue
) -> None:
    job = queue.add()
    (claim,) = other.claim()
    other.connection.execute("begin")
    other.hold(claim)
    assert watcher.bury(other.worker) == {}
    assert end_sessions(watcher, queue.worker) == 0
    assert end_sessions(watcher, other.worker) == 1
    assert watcher.bury(other.worker) == {job: "PENDING"}
    with pytest.raises(psycopg.OperationalError):
        other.one("select 1")


def test_only_the_session_that_is_named_is_ended_and_none_after_its_transaction(
    queue: Queue, open_queue: OpenQueue, watcher: Queue
) -> None:
    first, second = open_queue(), open_queue()
    second.worker = first.worker
    for one in (first, second):
        queue.add()
        (claim,) = one.claim(1)
        one.connection.execute("begin")
        one.hold(claim)
    assert end_sessions(watcher, first.worker, second.pid) == 1
    assert first.one("select 1") == 1
    first.connection.execute("commit")
    assert end_sessions(watcher, first.worker) == 0
    assert first.one("select 1") == 1


def test_the_session_of_another_role_is_left_alone_and_its_job_waits_for_it(
    own_dsn: str, open_queue: OpenQueue
) -> None:
    queue, other, watcher = (open_queue(own_dsn) for _ in range(3))
    job = queue.add()
    (claim,) = other.claim()
    watcher.rows("drop role if exists pgqueue_stranger")
    watcher.rows("create role pgqueue_stranger")
    try:
        watcher.rows("grant usage on schema pgqueue to pgqueue_stranger")
        watcher.rows("grant execute on all functions in schema pgqueue to pgqueue_stranger")
        watcher.rows("grant all on all tables in schema pgqueue to pgqueue_stranger")
        other.connection.execute("begin")
        other.hold(claim)
        watcher.rows("set role pgqueue_stranger")
        assert end_sessions(watcher, other.worker) == 0
        assert watcher.bury(other.worker) == {}
        other.connection.execute("rollback")
        assert watcher.bury(other.worker) == {job: "PENDING"}
    finally:
        watcher.rows("reset role")
        watcher.rows("drop owned by pgqueue_stranger")
        watcher.rows("drop role pgqueue_stranger")
