"""Revoking: durable, and never a lie about what runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from .helpers import NOON, Queue, new_id, wait_until_blocked


def revoke(queue: Queue, job: str) -> str:
    return str(queue.one("select pgqueue.revoke(%s)", job))


@pytest.mark.parametrize("countdown", [0, 3600])
def test_a_waiting_job_ends_as_revoked_and_is_never_claimed(queue: Queue, countdown: int) -> None:
    queue.set_clock(NOON)
    job = queue.add("shop.add", args=[1], countdown=countdown, unique_key="k")
    queue.set_clock(NOON + timedelta(seconds=1))
    assert revoke(queue, job) == "REVOKED"
    assert queue.job(job) is None
    status = queue.status(job)
    assert status | {"state": "REVOKED", "task": "shop.add", "args": [1], "attempt": 0, "worker": None} == status
    assert status["finished_at"] == NOON + timedelta(seconds=1)
    assert status["error"] == {"type": "TaskRevokedError", "module": "pgqueue.errors", "message": "revoked"}
    queue.set_clock(NOON + timedelta(days=1))
    assert queue.claim() == []
    assert queue.enqueue({"task": "t", "unique_key": "k"})[0][1]


def test_a_retried_job_that_waits_ends_as_revoked(queue: Queue) -> None:
    job = queue.add()
    queue.run("RETRY", countdown=60)
    assert revoke(queue, job) == "REVOKED"
    assert queue.status(job) | {"state": "REVOKED", "retries": 1, "attempt": 1} == queue.status(job)


def test_a_running_job_is_marked_and_keeps_its_lease(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert revoke(other, job) == "STARTED"
    assert revoke(other, job) == "STARTED"
    row = queue.job(job)
    assert row is not None
    assert (row["revoked"], str(row["worker"]), row["attempt"]) == (True, queue.worker, 1)
    assert queue.end(claim)


def test_a_running_job_that_was_revoked_is_not_started_again_after_a_crash(queue: Queue) -> None:
    job = queue.add()
    queue.claim()
    revoke(queue, job)
    assert queue.bury() == {job: "REVOKED"}
    assert queue.state(job) == "REVOKED"
    assert queue.claim() == []


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REJECTED"])
def test_a_finished_job_stays_as_it_is(queue: Queue, state: str) -> None:
    job = queue.add()
    queue.run(state)
    before = queue.everything()
    assert revoke(queue, job) == state
    assert queue.everything() == before


def test_an_id_that_nobody_knows_is_told_so(queue: Queue) -> None:
    assert revoke(queue, new_id()) == "UNKNOWN"
    assert queue.everything() == []


def test_a_second_life_that_is_revoked_overwrites_the_result_of_the_first(queue: Queue) -> None:
    job = queue.add()
    queue.run("FAILURE", error={"type": "E"}, runtime=1)
    queue.add("second", id=job, known=True)
    assert revoke(queue, job) == "REVOKED"
    result = queue.result(job)
    assert result is not None
    expected = {"state": "REVOKED", "task": "second", "worker": None, "claimed_at": None, "runtime": None}
    assert result | expected == result


def test_a_rolled_back_revocation_changes_nothing(queue: Queue) -> None:
    job = queue.add()
    before = queue.everything()
    with queue.connection.transaction(force_rollback=True):
        revoke(queue, job)
    assert queue.everything() == before


@pytest.mark.parametrize(("state", "told"), [("SUCCESS", "SUCCESS"), ("RETRY", "REVOKED")])
def test_a_revocation_waits_for_an_ending_attempt_and_tells_what_became_of_it(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor, state: str, told: str
) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim, state)
        answer = aside.submit(revoke, other, job)
        wait_until_blocked(watcher, other)
    assert answer.result() == told
    assert queue.state(job) == told


def test_an_attempt_that_asks_for_a_retry_while_it_is_being_revoked_ends_as_revoked(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with other.connection.transaction():
        assert revoke(other, job) == "STARTED"
        answer = aside.submit(queue.end, claim, "RETRY")
        wait_until_blocked(watcher, queue)
    assert answer.result()
    assert queue.state(job) == "REVOKED"
    assert queue.job(job) is None


def test_a_job_that_is_being_revoked_is_not_claimed(queue: Queue, other: Queue) -> None:
    job = queue.add()
    with queue.connection.transaction():
        assert revoke(queue, job) == "REVOKED"
        assert other.claim() == []
    assert other.claim() == []
