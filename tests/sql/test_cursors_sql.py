"""Claims that begin at a cursor, and the search for what they pass over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from .helpers import NOON, OpenQueue, Queue

SECOND = timedelta(seconds=1)


def claim_after(queue: Queue, after: Sequence[datetime | None], queues: Sequence[str] = ("default",)) -> list[str]:
    found = queue.rows(
        "select id::text from pgqueue.claim(%s, %s, 100, p_after => %s::timestamptz[])",
        queue.worker, list(queues), list(after),
    )  # fmt: skip
    return [row["id"] for row in found]


def found(queue: Queue, *queues: str, search: bool = True) -> list[tuple[str, int, datetime]]:
    rows = queue.rows("select * from pgqueue.look_back(%s, %s)", list(queues), search)
    assert all(row["now"] == NOON for row in rows)
    return sorted((row["queue"], row["priority"], row["eta"]) for row in rows if row["queue"] is not None)


def at(line: Queue, seconds: float, **fields: object) -> str:
    """Enqueue a job at so many seconds from noon; then it is noon."""
    line.set_clock(NOON + timedelta(seconds=seconds))
    job = line.add(**fields)
    line.set_clock(NOON)
    return job


def serve(queue: Queue, *queues: str) -> None:
    queue.register(queues=list(queues))


def test_a_claim_looks_at_nothing_before_its_cursor(queue: Queue) -> None:
    before, there, after = (at(queue, seconds) for seconds in (-20, -10, -5))
    assert claim_after(queue, [None, None, None, None, NOON - 10 * SECOND]) == [there, after]
    assert claim_after(queue, []) == [before]


def test_each_queue_and_each_priority_has_a_cursor_of_its_own(queue: Queue) -> None:
    jobs = {
        (name, priority): at(queue, -10, queue=name, priority=priority)
        for name in ("mail", "default") for priority in range(10)
    }  # fmt: skip
    for place, lane in enumerate((name, priority) for name in ("mail", "default") for priority in range(9, -1, -1)):
        after = [NOON] * 20
        after[place] = NOON - 10 * SECOND
        assert claim_after(queue, after, ("mail", "default")) == [jobs[lane]]


def test_a_suspect_is_claimed_wherever_the_cursors_are(queue: Queue) -> None:
    job = at(queue, -10)
    queue.rows("update pgqueue.job set crashes = 1")
    query = "select id::text from pgqueue.claim(%s, '{default}', 1, p_alone => true, p_after => %s::timestamptz[])"
    assert queue.rows(query, queue.worker, [NOON] * 10) == [{"id": job}]


def test_a_search_finds_the_first_that_waits_in_each_lane(queue: Queue) -> None:
    serve(queue, "default", "mail")
    for seconds in (-20, -30):
        at(queue, seconds)
    at(queue, -10, priority=9)
    at(queue, -5, queue="mail")
    assert found(queue, "default") == [("default", 5, NOON - 30 * SECOND), ("default", 9, NOON - 10 * SECOND)]
    assert found(queue, "mail", search=False) == [("mail", 5, NOON - 5 * SECOND)]


def test_what_is_claimed_or_not_due_or_suspect_or_of_nobody_does_not_wait(queue: Queue) -> None:
    serve(queue, "default")
    at(queue, -20)
    assert len(queue.claim()) == 1
    at(queue, -15)
    queue.rows("update pgqueue.job set crashes = 1 where worker is null")
    queue.add(eta=NOON + SECOND)
    at(queue, -10, queue="elsewhere")
    assert found(queue, "default", "elsewhere") == []


def test_without_a_search_the_last_one_is_answered_until_the_next(queue: Queue, other: Queue) -> None:
    other.set_clock(NOON)
    serve(queue, "default")
    at(queue, -20)
    assert found(queue, "default") == [("default", 5, NOON - 20 * SECOND)]
    assert len(queue.claim()) == 1
    assert found(other, "default", search=False) == [("default", 5, NOON - 20 * SECOND)]
    assert found(queue, "default") == []
    assert found(other, "default", search=False) == []


def test_a_search_that_finds_the_same_writes_nothing(queue: Queue) -> None:
    serve(queue, "default")
    at(queue, -20)
    found(queue, "default")
    version = queue.one("select xmin::text from pgqueue.lane")
    found(queue, "default")
    assert queue.one("select xmin::text from pgqueue.lane") == version


def test_what_is_committed_late_stands_below_the_cursors_and_is_found(queue: Queue, open_queue: OpenQueue) -> None:
    serve(queue, "default")
    late = open_queue(autocommit=False)
    late.set_clock(NOON - 60 * SECOND)
    job = late.add()
    cursor = [NOON - 5 * SECOND] * 10
    at(queue, -5)
    assert len(claim_after(queue, cursor)) == 1
    late.connection.commit()
    assert claim_after(queue, cursor) == []
    assert found(queue, "default") == [("default", 5, NOON - 60 * SECOND)]
    assert claim_after(queue, [None] * 4 + [NOON - 60 * SECOND]) == [job]
