"""Notifications: only for who has said that he waits, and only after the commit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from .helpers import NOON, Queue, new_id

WORK = [("pgqueue.work", "default")]


def say_idle(queue: Queue, *queues: str) -> None:
    queue.rows("select pgqueue.say_idle(%s, %s)", queue.worker, list(queues or ("default",)))


def say_busy(queue: Queue) -> None:
    queue.register()
    queue.rows("select pgqueue.say_busy(%s)", queue.worker)


def wait_for(queue: Queue, job: str, call: str | None = None, seconds: float = 60) -> str:
    call = call or new_id()
    queue.rows("select pgqueue.wait_for(%s, %s, %s)", job, call, seconds)
    return call


# -- work


def test_an_enqueue_is_silent_while_no_worker_is_idle(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    queue.add()
    say_idle(other, "mail")
    queue.add()
    assert other.heard(queue) == []


def test_who_says_that_he_is_idle_is_called_for_a_minute(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    for speaker in (queue, other):
        speaker.set_clock(NOON)
    say_idle(other)
    queue.set_clock(NOON + timedelta(seconds=59))
    queue.add()
    assert other.heard(queue) == WORK
    queue.set_clock(NOON + timedelta(seconds=60))
    queue.add()
    assert other.heard(queue) == []
    other.set_clock(NOON + timedelta(seconds=30))
    say_idle(other)
    queue.add()
    assert other.heard(queue) == WORK


def test_what_was_said_is_taken_back_whole_and_pruned_when_it_is_over(queue: Queue, other: Queue) -> None:
    for seconds in (0, 30, 50):
        for speaker in (queue, other):
            speaker.set_clock(NOON + timedelta(seconds=seconds))
        say_idle(queue)
        say_idle(other, "mail")
    say_busy(queue)
    queue.set_clock(NOON + timedelta(seconds=80))
    assert queue.rows("select distinct worker::text from pgqueue.idle") == [{"worker": other.worker}]
    queue.rows("select pgqueue.prune('1 day')")
    assert queue.rows("select queue, count(*) from pgqueue.idle group by 1") == [{"queue": "mail", "count": 2}]


def test_an_enqueue_calls_an_idle_worker_of_its_queue_once_per_transaction(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other, "default", "mail")
    say_idle(other, "default", "mail")
    queue.enqueue(*({"task": "t", "queue": name} for name in ("default", "mail", "default", "else")))
    assert sorted(other.heard(queue)) == [*WORK, ("pgqueue.work", "mail")]


def test_the_call_comes_with_the_commit_and_not_before(queue: Queue, other: Queue, watcher: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    with queue.connection.transaction():
        queue.add()
        assert other.heard(watcher) == []
    assert other.heard(watcher) == WORK


def test_a_rolled_back_enqueue_calls_nobody(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    with queue.connection.transaction(force_rollback=True):
        queue.add()
    assert other.heard(queue) == []


def test_a_job_for_later_calls_nobody(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    queue.add(countdown=60)
    assert other.heard(queue) == []


def test_a_worker_that_is_busy_again_is_not_called(queue: Queue, other: Queue, watcher: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    say_idle(watcher)
    say_busy(other)
    queue.add()
    assert other.heard(queue) == WORK, "another one is still idle"
    say_busy(watcher)
    queue.add()
    assert other.heard(queue) == []


def test_a_job_that_comes_back_calls_an_idle_worker(queue: Queue, other: Queue, watcher: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    queue.add()
    (claim,) = queue.claim()
    assert other.heard(watcher) == WORK
    assert queue.end(claim, "RETRY", countdown=60)
    assert other.heard(watcher) == []  # it is not due
    queue.rows("update pgqueue.job set eta = now()")
    (claim,) = queue.claim()
    assert queue.end(claim, "RELEASED")
    assert other.heard(watcher) == WORK
    queue.claim()
    queue.bury()
    assert other.heard(watcher) == WORK
    queue.claim()
    queue.rows("select pgqueue.disown(%s, '{}')", queue.worker)
    assert other.heard(watcher) == WORK


def test_plain_sql_calls_idle_workers_too(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    say_idle(other)
    queue.rows("select pgqueue.enqueue('t')")
    assert other.heard(queue) == WORK


# -- done


@pytest.mark.parametrize("keep", [True, False])
def test_an_end_is_told_to_who_waits_for_this_job(queue: Queue, other: Queue, keep: bool) -> None:
    other.listen("pgqueue.done")
    jobs = [queue.add(priority=level) for level in (9, 8, 7)]
    for _ in range(2):
        wait_for(other, jobs[1])
    assert not queue.finish(*({"id": c["id"], "attempt": 1, "state": "SUCCESS", "keep": keep} for c in queue.claim()))
    assert other.heard(queue) == [("pgqueue.done", jobs[1])]


def test_an_end_is_silent_while_nobody_waits(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.done")
    queue.add()
    queue.run()
    job = queue.add()
    call = wait_for(other, job)
    other.rows("select pgqueue.stop_waiting(%s, %s)", job, call)
    queue.run()
    assert other.heard(queue) == []
    assert other.rows("select * from pgqueue.waiter") == []


def test_the_word_comes_with_the_commit_and_not_before(queue: Queue, other: Queue, watcher: Queue) -> None:
    other.listen("pgqueue.done")
    job = queue.add()
    wait_for(other, job)
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim)
        assert other.heard(watcher) == []
    assert other.heard(watcher) == [("pgqueue.done", job)]


@pytest.mark.parametrize("state", ["RETRY", "RELEASED", "REQUEUE", "REPLACED"])
def test_what_goes_back_is_no_end(queue: Queue, other: Queue, state: str) -> None:
    other.listen("pgqueue.done")
    wait_for(other, queue.add())
    queue.run(state, task="t")
    assert other.heard(queue) == []


def test_a_refused_outcome_tells_nobody(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.done")
    wait_for(other, queue.add())
    (claim,) = queue.claim()
    assert not queue.end(claim, worker=new_id())
    assert other.heard(queue) == []


def test_a_revocation_is_an_end_for_a_waiting_job_only(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.done")
    running = queue.add()
    queue.claim()
    waiting = queue.add()
    for job in (running, waiting):
        wait_for(other, job)
        queue.one("select pgqueue.revoke(%s)", job)
    assert other.heard(queue) == [("pgqueue.done", waiting)]


def test_one_call_that_stops_waiting_leaves_the_others(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.done")
    job = queue.add()
    first = wait_for(other, job)
    wait_for(other, job)
    other.rows("select pgqueue.stop_waiting(%s, %s)", job, first)
    queue.run()
    assert other.heard(queue) == [("pgqueue.done", job)]


def test_to_wait_again_moves_the_time(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = new_id()
    call = wait_for(queue, job, seconds=10)
    wait_for(queue, job, call, seconds=60)
    assert queue.one("select until from pgqueue.waiter") == NOON + timedelta(seconds=60)
