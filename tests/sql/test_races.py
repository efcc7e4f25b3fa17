"""Two connections, one job. Each interleaving is staged: the second is seen waiting before the first goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import Any

import psycopg
import pytest
from psycopg import sql

from .helpers import OpenQueue, Queue, new_id, wait_until_blocked

GATE = 4711


class Gated:
    """A second user whose statements wait at a gate after they have taken their snapshot.

    Row security asks a function about each row that a statement looks at; the function waits for a lock. The
    owner of the database is not asked, so it can change the row in between.
    """

    def __init__(self, owner: Queue, visitor: Queue, watcher: Queue) -> None:
        self.owner, self.visitor, self._watcher = owner, visitor, watcher

    @contextmanager
    def closed(self) -> Iterator[Callable[[], None]]:
        """Closes the gate; the value waits until the visitor stands before it. Open again at the end."""
        self._watcher.one("select pg_advisory_lock(%s)", GATE)
        try:
            yield lambda: wait_until_blocked(self.owner, self.visitor)
        finally:
            self._watcher.one("select pg_advisory_unlock(%s)", GATE)


@pytest.fixture
def gated(own_dsn: str, open_queue: OpenQueue) -> Iterator[Gated]:
    owner = open_queue(own_dsn)
    role = f"visitor_{new_id()[:8]}"
    owner.connection.execute(
        sql.SQL(
            """
            create role {role};
            grant usage on schema pgqueue to {role};
            grant all on all tables in schema pgqueue to {role};
            grant execute on all functions in schema pgqueue to {role};
            create function public.gate() returns boolean language plpgsql volatile as $$
            begin
                perform pg_advisory_lock_shared({gate});
                perform pg_advisory_unlock_shared({gate});
                return true;
            end $$;
            create policy gate on pgqueue.job using (public.gate());
            alter table pgqueue.job enable row level security;
            """
        ).format(role=sql.Identifier(role), gate=sql.Literal(GATE))
    )
    visitor = open_queue(own_dsn)
    visitor.connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
    try:
        yield Gated(owner, visitor, open_queue(own_dsn))
    finally:
        visitor.connection.close()
        owner.connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)))


def test_a_job_that_is_taken_between_the_look_and_the_lock_is_not_claimed_twice(
    gated: Gated, aside: ThreadPoolExecutor
) -> None:
    gated.owner.add()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.claim)
        wait()
        (claim,) = gated.owner.claim()
    assert answer.result() == []
    assert gated.owner.end(claim)


def test_a_job_that_went_back_to_wait_between_the_look_and_the_lock_is_not_claimed_early(
    gated: Gated, aside: ThreadPoolExecutor
) -> None:
    job = gated.owner.add()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.claim)
        wait()
        gated.owner.run("RETRY", countdown=3600)
    assert answer.result() == []
    assert gated.owner.state(job) == "RETRY"


def test_a_job_that_is_taken_and_released_between_the_look_and_the_lock_is_claimed_with_its_new_attempt(
    gated: Gated, aside: ThreadPoolExecutor
) -> None:
    gated.owner.add()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.claim)
        wait()
        old = gated.owner.run("RELEASED")
    claims = answer.result() or gated.visitor.claim()
    assert [claim["attempt"] for claim in claims] == [2]
    assert not gated.owner.end(old)
    assert gated.visitor.end(claims[0])


@pytest.mark.parametrize("state", ["SUCCESS", "RETRY", "RELEASED"])
def test_an_attempt_that_loses_its_lease_while_it_is_acknowledged_is_refused(
    gated: Gated, aside: ThreadPoolExecutor, state: str
) -> None:
    job = gated.owner.add()
    (old,) = gated.visitor.claim()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.end, old, state)
        wait()
        gated.owner.bury(gated.visitor.worker)
        (new,) = gated.owner.claim()
    assert answer.result() is False
    row = gated.owner.job(job)
    assert row is not None
    assert (str(row["worker"]), row["attempt"], row["retries"]) == (gated.owner.worker, 2, 0)
    assert gated.owner.end(new)


def test_a_lease_that_is_given_back_while_its_worker_is_buried_is_not_taken_from_the_next(
    gated: Gated, aside: ThreadPoolExecutor
) -> None:
    job = gated.owner.add()
    (old,) = gated.owner.claim()
    following = new_id()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.bury, gated.owner.worker)
        wait()
        assert gated.owner.end(old, "RELEASED")
        (new,) = gated.owner.claim(worker=following)
    assert answer.result() == {}
    row = gated.owner.job(job)
    assert row is not None
    assert (str(row["worker"]), row["crashes"]) == (following, 0)
    assert gated.owner.end(new, worker=following)


def test_a_job_that_is_claimed_between_the_look_and_the_lock_is_not_purged(
    gated: Gated, aside: ThreadPoolExecutor
) -> None:
    gated.owner.add()
    with gated.closed() as wait:
        answer = aside.submit(gated.visitor.one, "select pgqueue.purge('{default}')")
        wait()
        (claim,) = gated.owner.claim()
    assert answer.result() == 0
    assert gated.owner.end(claim)


def test_a_claim_passes_over_what_another_is_claiming_and_takes_it_when_that_is_rolled_back(
    queue: Queue, other: Queue
) -> None:
    first, second = queue.add(priority=9), queue.add()
    with queue.connection.transaction(force_rollback=True):
        assert [claim["id"] for claim in queue.claim(1)] == [first]
        assert [claim["id"] for claim in other.claim(1)] == [second]
        assert other.claim(1) == []
    (claim,) = other.claim()
    assert (claim["id"], claim["attempt"]) == (first, 1), "a claim that was rolled back is no attempt"


def test_a_burial_and_an_acknowledgement_at_once_leave_one_truth(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    with other.connection.transaction():
        assert other.bury(queue.worker) == {job: "PENDING"}
        answer = aside.submit(queue.end, claim)
        wait_until_blocked(watcher, queue)
    assert answer.result() is False
    assert queue.state(job) == "PENDING"


# -- every operation against every other on the same jobs


def _operations(worker: str, jobs: list[str]) -> dict[str, Callable[[Queue], Any]]:
    """Operations on jobs that `worker` holds, each in an order of its own."""

    def outcomes(state: str, order: list[str]) -> list[dict[str, Any]]:
        return [{"id": job, "attempt": 1, "state": state} for job in order]

    mixed = [*outcomes("RETRY", jobs[::-2]), *outcomes("SUCCESS", jobs[-2::-2])]
    again = [{"task": "t", "id": job, "known": True} for job in jobs[::-1]]
    return {
        "success": lambda queue: queue.finish(*outcomes("SUCCESS", jobs), worker=worker),
        "retry": lambda queue: queue.finish(*outcomes("RETRY", jobs[::-1]), worker=worker),
        "mixed": lambda queue: queue.finish(*mixed, worker=worker),
        "bury": lambda queue: queue.bury(worker),
        "revoke": lambda queue: queue.one("select pgqueue.revoke(%s)", jobs[0]),
        "enqueue": lambda queue: queue.enqueue(*again),
        "claim": lambda queue: queue.claim(),
        "purge": lambda queue: queue.one("select pgqueue.purge('{default}')"),
    }


_NAMES = list(_operations("", [""]))


@pytest.mark.parametrize(("first", "second"), [*product(_NAMES, _NAMES)])
def test_two_operations_on_the_same_jobs_never_deadlock_or_lose_one(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor, first: str, second: str
) -> None:
    queue.register()
    jobs = sorted(job for job, _ in queue.enqueue(*({"task": "t"} for _ in range(4))))
    queue.claim()
    operations = _operations(queue.worker, jobs)
    with queue.connection.transaction():
        operations[first](queue)
        answer = aside.submit(operations[second], other)
        wait_until_blocked_or_done(watcher, other, answer.done)
    answer.result()
    places = watcher.rows(
        "select id::text, count(*) from (select id from pgqueue.job union all select id from pgqueue.result"
        " where state = 'SUCCESS') x group by id"
    )
    # What waits again may be purged; all else is in one place, and only there.
    assert {row["id"] for row in places} <= set(jobs)
    assert all(row["count"] == 1 for row in places)
    if "purge" not in (first, second):
        known = {row["id"] for row in places} | {
            row["id"] for row in watcher.rows("select id::text from pgqueue.result")
        }
        assert known == set(jobs)


def wait_until_blocked_or_done(watcher: Queue, blocked: Queue, done: Callable[[], bool]) -> None:
    while not done() and watcher.one("select cardinality(pg_blocking_pids(%s))", blocked.pid) == 0:
        pass


def test_under_load_of_every_kind_no_job_is_lost_or_runs_twice_at_once(own_dsn: str, open_queue: OpenQueue) -> None:
    """Claims, acknowledgements, retries, burials and repeated enqueues of the same ids, all at once."""
    ids = [new_id() for _ in range(300)]
    queues = [open_queue(own_dsn) for _ in range(6)]
    for queue in queues:
        queue.register()

    def enqueue(number: int) -> list[tuple[str, int]]:
        queue = queues[number]
        for start in range(0, len(ids), 30):
            batch = ids[start : start + 30][:: 1 if number else -1]
            queue.enqueue(*({"task": "t", "id": job, "known": True} for job in batch))
        return []

    def work(number: int) -> list[tuple[str, int]]:
        queue = queues[number]
        ran: list[tuple[str, int]] = []
        for turn in range(40):
            claims = queue.claim(17)
            ran += [(claim["id"], claim["attempt"]) for claim in claims]
            states = ("SUCCESS", "RETRY", "RELEASED", "FAILURE")
            outcomes = [
                {"id": claim["id"], "attempt": claim["attempt"], "state": states[(at + turn) % 4]}
                for at, claim in enumerate(claims)
            ]
            queue.finish(*outcomes[::-1])
            if turn % 9 == number:
                queue.claim(3)
                queues[number].bury(queues[(number + 1) % 6].worker, max_crashes=100)
        return ran

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(enqueue, 0), pool.submit(enqueue, 1), *(pool.submit(work, at) for at in range(2, 6))]
        ran = [attempt for future in futures for attempt in future.result()]
    assert len(ran) == len(set(ran)), "no attempt was given out twice"
    queue = queues[0]
    assert (
        queue.one(
            "select count(distinct id) from (select id from pgqueue.job union all select id from pgqueue.result) x"
        )
        == 300
    )
    assert queue.one("select count(*) from pgqueue.job join pgqueue.result r using (id) where r.state = 'SUCCESS'") == 0


def test_a_claim_under_repeatable_read_fails_rather_than_taking_what_it_cannot_see(queue: Queue, other: Queue) -> None:
    queue.add()
    with pytest.raises(psycopg.errors.SerializationFailure), queue.connection.transaction():
        queue.rows("set transaction isolation level repeatable read")
        queue.one("select count(*) from pgqueue.job")
        other.claim()
        queue.claim()
