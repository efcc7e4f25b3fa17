"""What a running task says of itself: shown for the attempt that said it, and gone with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from .helpers import NOON, Queue, Row, new_id, wait_until_blocked


def say(queue: Queue, job: str, state: str = "PROGRESS", meta: str | None = '{"done": 1}') -> bool:
    """By anybody."""
    return bool(queue.one("select pgqueue.set_state(%s, null, null, %s, %s)", job, state, meta))


def say_own(queue: Queue, claim: Row, state: str = "PROGRESS", meta: str = '{"done": 1}') -> bool:
    """By the attempt."""
    params = (claim["id"], queue.worker, claim["attempt"], state, meta)
    return bool(queue.one("select pgqueue.set_state(%s, %s, %s, %s, %s)", *params))


def shown(queue: Queue, job: str) -> tuple[str, Any]:
    status = queue.status(job)
    return (status["state"], status["value"])


def said(queue: Queue) -> int:
    return int(queue.one("select count(*) from pgqueue.progress"))


def test_what_an_attempt_says_is_its_state_and_its_meta_the_value(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add()
    (claim,) = queue.claim()
    assert say_own(queue, claim, meta='{"done": 1.50}')
    assert shown(queue, job) == ("PROGRESS", {"done": 1.5})
    assert queue.one("select value::text from pgqueue.status(%s)", job) == '{"done": 1.50}'
    assert say_own(queue, claim, "ALMOST", "null")
    assert shown(queue, job) == ("ALMOST", None)
    (row,) = queue.rows("select * from pgqueue.progress")
    assert (str(row["worker"]), row["attempt"], row["at"]) == (queue.worker, 1, NOON)


def test_anybody_may_say_it_of_a_job_that_is_not_finished(queue: Queue, other: Queue) -> None:
    job = queue.add()
    assert say(other, job, "WAITING")
    assert shown(queue, job) == ("WAITING", {"done": 1})
    queue.claim()
    assert shown(queue, job) == ("STARTED", None)
    assert say(other, job)
    assert shown(queue, job) == ("PROGRESS", {"done": 1})


def test_of_what_has_ended_or_never_was_nothing_can_be_said(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    assert queue.end(claim, value=5)
    assert not say(queue, job)
    assert not say_own(queue, claim)
    assert not say(queue, new_id())
    assert shown(queue, job) == ("SUCCESS", 5)
    assert said(queue) == 0


def test_who_has_lost_the_lease_says_nothing_any_more(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (old,) = queue.claim()
    queue.bury()
    assert not say_own(queue, old)
    (new,) = other.claim()
    assert not say_own(queue, old)
    assert not say_own(other, old)
    assert shown(queue, job) == ("STARTED", None)
    assert say_own(other, new)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED", "UNKNOWN", "", None])
def test_the_states_of_finished_jobs_cannot_be_said(queue: Queue, state: str | None) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    for call in (say, say_own):
        with pytest.raises(psycopg.Error) as caught:
            call(queue, job if call is say else claim, state)  # type: ignore[operator]
        assert caught.value.sqlstate == "PQ002"
        assert "PROGRESS" in str(caught.value.diag.message_hint)


# -- gone with the attempt


ENDS: dict[str, Callable[[Queue, Row], object]] = {
    "SUCCESS": lambda queue, claim: queue.end(claim),
    "FAILURE": lambda queue, claim: queue.end(claim, "FAILURE", error={"type": "E"}),
    "RETRY": lambda queue, claim: queue.end(claim, "RETRY"),
    "RELEASED": lambda queue, claim: queue.end(claim, "RELEASED"),
    "REQUEUE": lambda queue, claim: queue.end(claim, "REQUEUE"),
    "REQUEUE too often": lambda queue, claim: queue.end(claim, "REQUEUE", most=0),
    "REPLACED": lambda queue, claim: queue.end(claim, "REPLACED", task="t"),
    "buried": lambda queue, claim: queue.bury(),
    "buried for good": lambda queue, claim: queue.bury(max_crashes=0),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_is_deleted_when_the_attempt_ends(queue: Queue, other: Queue, end: str) -> None:
    running = other.add()
    (theirs,) = other.claim()
    job = queue.add()
    (claim,) = queue.claim()
    assert say_own(queue, claim)
    assert say_own(other, theirs)
    ENDS[end](queue, claim)
    assert shown(queue, job)[0] != "PROGRESS"
    assert said(queue) == 1
    assert shown(queue, running)[0] == "PROGRESS"


def test_a_refused_outcome_deletes_nothing(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (old,) = queue.claim()
    queue.bury()
    (new,) = other.claim()
    say_own(other, new)
    for state in ("SUCCESS", "RETRY"):
        assert not queue.end(old, state)
    assert queue.bury() == {}
    assert shown(queue, job)[0] == "PROGRESS"


def test_revoking_a_waiting_job_deletes_it_and_a_running_one_keeps_it(queue: Queue) -> None:
    waiting, running = queue.add(), queue.add(priority=9)
    (claim,) = queue.claim(1)
    say(queue, waiting)
    say_own(queue, claim)
    for job in (waiting, running):
        queue.one("select pgqueue.revoke(%s)", job)
    assert shown(queue, running)[0] == "PROGRESS"
    assert said(queue) == 1


def test_a_job_that_a_transaction_holds_keeps_it_when_its_worker_is_buried(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    say_own(queue, claim)
    with queue.connection.transaction():
        queue.hold(claim)
        assert other.bury(queue.worker) == {}
        assert shown(other, job)[0] == "PROGRESS"


def test_what_is_left_behind_is_not_shown_and_is_pruned_after_a_minute(queue: Queue, other: Queue) -> None:
    """Written at the moment in which the attempt ended."""
    queue.set_clock(NOON)
    job, gone, running = queue.add(), queue.add(), queue.add()
    for claim in queue.claim():
        say_own(queue, claim)
    with other.connection.transaction():
        other.rows("select from pgqueue.progress where job in (%s, %s) for update", job, gone)
        assert queue.end({"id": job, "attempt": 1}, "RETRY")
        assert queue.end({"id": gone, "attempt": 1})
    assert said(queue) == 3
    assert shown(queue, job) == ("RETRY", None)
    queue.claim()
    assert shown(queue, job) == ("STARTED", None)
    for seconds, left in ((60, 3), (61, 1)):
        queue.set_clock(NOON + timedelta(seconds=seconds))
        queue.one("select pgqueue.prune('1 day')")
        assert said(queue) == left
    assert shown(queue, running)[0] == "PROGRESS"


# -- it waits for nobody


def test_it_does_not_wait_for_the_transaction_of_its_own_attempt(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    other.worker = queue.worker
    with queue.connection.transaction():
        queue.hold(claim)
        assert say_own(other, claim)
        assert shown(other, job)[0] == "PROGRESS"
        assert queue.end(claim)
    assert queue.state(job) == "SUCCESS"


def test_an_end_does_not_wait_for_what_is_being_said(queue: Queue, other: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    say_own(queue, claim)
    with other.connection.transaction():
        assert say(other, job)
        assert queue.end(claim)
    assert queue.state(job) == "SUCCESS"


def test_two_who_speak_at_once_wait_for_one_another_and_the_last_word_counts(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with queue.connection.transaction():
        say_own(queue, claim, "FIRST")
        answer = aside.submit(say, other, job, "SECOND")
        wait_until_blocked(watcher, other)
    assert answer.result()
    assert shown(queue, job)[0] == "SECOND"


# -- what is added after the end


def test_an_entry_is_added_to_the_history_of_a_job_or_of_its_result(queue: Queue) -> None:
    def attach(job: str, n: int) -> bool:
        return bool(queue.one("select pgqueue.attach(%s, %s)", job, f'{{"state": "HOOK", "attempt": {n}}}'))

    queue.set_clock(NOON)
    job = queue.add()
    assert attach(job, 1)
    row = queue.job(job)
    assert row is not None
    assert row["history"] == [{"at": NOON.isoformat(), "state": "HOOK", "attempt": 1}]
    queue.run()
    for n in range(2, 25):
        assert attach(job, n)
    assert [entry["attempt"] for entry in queue.status(job)["history"]] == list(range(5, 25)), "20, the newest"
    assert not attach(new_id(), 1)
