"""Status and forget: one row for every id, whatever became of it."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from .helpers import NOON, Queue, new_id

NOTHING = dict.fromkeys(
    ("value", "error", "task", "queue", "args", "kwargs", "retries", "attempt", "worker", "finished_at")
)
NOTHING |= dict.fromkeys(("parent_id", "root_id", "history", "options", "headers", "enqueued_at", "crashes"))


def test_an_id_that_nobody_knows_has_one_row(queue: Queue) -> None:
    assert queue.status(new_id()) == {"state": "UNKNOWN", **NOTHING}


def test_the_states_of_a_life_follow_each_other(queue: Queue) -> None:
    queue.set_clock(NOON)
    given = {"queue": "mail", "args": [2], "kwargs": {"k": 1}, "headers": {"h": 1}, "options": {"shadow": "s"}}
    family = {"parent_id": UUID(new_id()), "root_id": UUID(new_id())}
    job = queue.add("shop.add", **given, **family)
    waiting = {**NOTHING, **given, **family, "task": "shop.add", "enqueued_at": NOON, "crashes": 0}
    assert queue.status(job) == {**waiting, "state": "PENDING", "retries": 0, "attempt": 0}

    (claim,) = queue.claim(queues=["mail"])
    started = queue.status(job)
    worker = started["worker"]
    assert str(worker) == queue.worker
    assert started == {**waiting, "state": "STARTED", "retries": 0, "attempt": 1, "worker": worker}

    assert queue.end(claim, "RETRY", error={"type": "E"})
    waiting["history"] = [{"attempt": 1, "at": NOON.isoformat(), "state": "RETRY", "error": {"type": "E"}}]
    assert queue.status(job) == {**waiting, "state": "RETRY", "retries": 1, "attempt": 1, "error": {"type": "E"}}

    (claim,) = queue.claim(queues=["mail"])
    assert queue.state(job) == "STARTED"
    queue.set_clock(NOON + timedelta(seconds=5))
    assert queue.end(claim, "SUCCESS", value=[1])
    ended = {"state": "SUCCESS", "value": [1], "retries": 1, "attempt": 2, "worker": worker}
    assert queue.status(job) == {**waiting, **ended, "finished_at": NOON + timedelta(seconds=5)}


def test_a_second_life_hides_the_result_of_the_first(queue: Queue) -> None:
    job = queue.add()
    queue.run("FAILURE", error={"type": "E"})
    queue.add(id=job, known=True)
    assert queue.status(job) | {"state": "PENDING", "error": None} == queue.status(job)


def test_a_job_is_never_unknown_while_it_becomes_its_result(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim)
        assert (queue.state(job), other.state(job)) == ("SUCCESS", "STARTED")
    assert other.state(job) == "SUCCESS"


def test_forget_deletes_the_result_and_says_whether_there_was_one(queue: Queue) -> None:
    job, waiting = queue.add(priority=9), queue.add()
    queue.run()
    assert queue.one("select pgqueue.forget(%s)", job) is True
    assert queue.one("select pgqueue.forget(%s)", job) is False
    assert queue.one("select pgqueue.forget(%s)", waiting) is False
    assert (queue.state(job), queue.state(waiting)) == ("UNKNOWN", "PENDING")
