"""Claiming: in order, on time, once; cheap in the pages of the table."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from threading import Barrier
from time import monotonic
from typing import Any

from .helpers import NOON, OpenQueue, Queue, new_id


def test_a_claim_returns_all_that_an_attempt_needs_and_leases_the_job(queue: Queue) -> None:
    queue.set_clock(NOON)
    given = {
        "args": [1],
        "kwargs": {"a": 2},
        "headers": {"h": 3},
        "ignore_result": True,
        "time_limit": 2.5,
        "soft_time_limit": 1.5,
        "links": [{"task": "next"}],
        "errbacks": [{"task": "complain"}],
        "options": {"shadow": "s"},
    }
    family = {"root_id": new_id(), "parent_id": new_id()}
    job = queue.add("shop.add", queue="mail", priority=3, expires_in=60, **given, **family)
    (claim,) = queue.claim(queues=["mail"])
    assert {name: str(value) if name.endswith("_id") else value for name, value in claim.items()} == {
        "id": job,
        "task": "shop.add",
        "queue": "mail",
        "priority": 3,
        "attempt": 1,
        "retries": 0,
        "crashes": 0,
        "requeues": 0,
        "eta": NOON,
        "enqueued_at": NOON,
        "expires": NOON + timedelta(seconds=60),
        "expired": False,
        "revoked": False,
        "succeeded": False,
        **given,
        **family,
    }
    row = queue.job(job)
    assert row is not None
    assert (str(row["worker"]), row["claimed_at"], row["attempt"]) == (queue.worker, NOON, 1)


def test_a_leased_job_is_claimed_by_nobody(queue: Queue, other: Queue) -> None:
    queue.add()
    assert len(queue.claim()) == 1
    assert queue.claim() == []
    assert other.claim() == []


def test_the_higher_priority_runs_first(queue: Queue) -> None:
    levels = list(range(10))
    random.Random(1).shuffle(levels)
    queue.enqueue(*({"task": "t", "priority": level} for level in levels))
    assert [queue.claim(1)[0]["priority"] for _ in range(4)] == [9, 8, 7, 6]
    assert [claim["priority"] for claim in queue.claim()] == [5, 4, 3, 2, 1, 0]


def test_queues_are_served_in_the_order_given_before_any_priority(queue: Queue) -> None:
    queue.enqueue(*({"task": "t", "queue": name, "priority": level} for name in "abc" for level in (1, 8)))
    assert [(claim["queue"], claim["priority"]) for claim in queue.claim(3, ["c", "a"])] == [
        ("c", 8),
        ("c", 1),
        ("a", 8),
    ]
    assert [claim["queue"] for claim in queue.claim(10, ["a"])] == ["a"]
    assert [claim["queue"] for claim in queue.claim(10, ["c", "b"])] == ["b", "b"]


def test_within_a_priority_the_earlier_eta_runs_first(queue: Queue) -> None:
    seconds = list(range(30))
    random.Random(2).shuffle(seconds)
    queue.set_clock(NOON)
    queue.enqueue(*({"task": "t", "countdown": second} for second in seconds))
    queue.set_clock(NOON + timedelta(minutes=1))
    etas = [claim["eta"] for _ in range(3) for claim in queue.claim(10)]
    assert len(etas) == 30
    assert all(one < two for one, two in pairwise(etas))


def test_the_limit_is_kept_across_queues_and_priorities(queue: Queue) -> None:
    queue.enqueue(*({"task": "t", "queue": name, "priority": level} for name in "ab" for level in range(10)))
    assert len(queue.claim(7, ["a", "b"])) == 7
    assert queue.one("select count(*) from pgqueue.job where worker is not null") == 7


def test_nothing_is_claimed_before_its_eta(queue: Queue) -> None:
    queue.set_clock(NOON)
    job = queue.add(eta=NOON + timedelta(seconds=10))
    queue.set_clock(NOON + timedelta(seconds=10, microseconds=-1))
    assert queue.claim() == []
    queue.set_clock(NOON + timedelta(seconds=10))
    assert [claim["id"] for claim in queue.claim()] == [job]


def test_a_job_claimed_after_it_has_expired_says_so(queue: Queue) -> None:
    queue.set_clock(NOON)
    queue.add("late", expires_in=10)
    queue.add("in_time", expires_in=10.001)
    queue.set_clock(NOON + timedelta(seconds=10))
    assert {claim["task"]: claim["expired"] for claim in queue.claim()} == {"late": True, "in_time": False}


def test_excluded_tasks_stay_where_they_are(queue: Queue, other: Queue) -> None:
    queue.add("unknown")
    queue.add("known")
    before = queue.rows("select * from pgqueue.job where task = 'unknown'")
    assert [claim["task"] for claim in queue.claim(exclude=["unknown", "other"])] == ["known"]
    assert queue.rows("select * from pgqueue.job where task = 'unknown'") == before
    assert [claim["task"] for claim in other.claim()] == ["unknown"]


def test_an_id_that_has_succeeded_and_came_back_by_other_ways_is_marked(queue: Queue) -> None:
    done, failed = queue.add(priority=9), queue.add()
    queue.run("SUCCESS", value=1)
    queue.run("FAILURE")
    for job in (done, failed):
        queue.rows("insert into pgqueue.job (id, task, eta, enqueued_at) values (%s, 't', now(), now())", job)
    claims = {claim["id"]: claim for claim in queue.claim()}
    assert {job: claim["succeeded"] for job, claim in claims.items()} == {done: True, failed: False}
    assert queue.end(claims[done], "IGNORED", keep=False)
    assert queue.status(done) | {"state": "SUCCESS", "value": 1} == queue.status(done)


def test_every_claim_of_a_job_counts_one_attempt(queue: Queue) -> None:
    queue.add()
    for attempt in range(1, 5):
        (claim,) = queue.claim()
        assert claim["attempt"] == attempt
        assert queue.end(claim, "RELEASED")


def test_only_a_relaxed_claim_commits_asynchronously(queue: Queue) -> None:
    for relaxed, expected in ((False, "on"), (True, "off")):
        with queue.connection.transaction():
            queue.rows("select * from pgqueue.claim(%s, '{default}', 1, '{}', %s)", queue.worker, relaxed)
            assert queue.one("show synchronous_commit") == expected
    assert queue.one("show synchronous_commit") == "on"


def test_a_claim_is_a_hot_update_and_an_acknowledgement_no_update(own_dsn: str, open_queue: OpenQueue) -> None:
    queue = open_queue(own_dsn)
    look = (
        "select n_tup_upd as updated, n_tup_hot_upd as hot, n_tup_del as deleted from pg_stat_user_tables"
        " where schemaname = 'pgqueue' and relname = 'job'"
    )
    queue.rows("alter table pgqueue.job set (autovacuum_enabled = off)")
    queue.enqueue(*({"task": "shop.tasks.add", "args": [2, 3]} for _ in range(1000)))
    finished = 0
    while claims := queue.claim(10):
        assert not queue.finish(*({"id": c["id"], "attempt": 1, "state": "SUCCESS"} for c in claims))
        finished += len(claims)
    queue.rows("select pg_stat_force_next_flush()")
    (counted,) = queue.rows(look)
    assert (finished, counted["updated"], counted["deleted"]) == (1000, 1000, 1000)
    # Where a batch meets the end of a page there may be no room for the new version.
    assert counted["hot"] >= 950


def test_no_index_covers_a_column_that_a_claim_changes(queue: Queue) -> None:
    covered = queue.rows(
        "select a.attname as name from pg_index i join pg_attribute a on a.attrelid = i.indrelid"
        " and a.attnum = any(i.indkey::int2[]) where i.indrelid = 'pgqueue.job'::regclass"
    )
    conditions = queue.one(
        "select string_agg(pg_get_expr(indpred, indrelid), ' ') from pg_index where indrelid = 'pgqueue.job'::regclass"
    )
    for column in ("worker", "attempt", "claimed_at"):
        assert {"name": column} not in covered
        assert column not in conditions


def test_eight_connections_claim_twenty_thousand_jobs_once_each_beside_future_ones(
    own_dsn: str, open_queue: OpenQueue
) -> None:
    queue = open_queue(own_dsn)
    insert = (
        "insert into pgqueue.job (id, task, eta, enqueued_at, priority) select pgqueue.new_id(), 't',"
        " clock_timestamp() + %s * interval '1 second', clock_timestamp(), 5 + g %% 3 from generate_series(1, %s) g"
    )
    queue.rows(insert, 3600, 100_000)
    queue.rows(insert, -60, 20_000)
    workers = [open_queue(own_dsn) for _ in range(8)]
    start = Barrier(8)

    def work(worker: Queue) -> list[str]:
        mine: list[str] = []
        start.wait()
        while claims := worker.claim(100):
            mine += [claim["id"] for claim in claims]
            assert not worker.finish(
                *({"id": claim["id"], "attempt": 1, "state": "SUCCESS"} for claim in claims[: len(claims) // 2])
            )
        return mine

    began = monotonic()
    with ThreadPoolExecutor(8) as pool:
        shares = list(pool.map(work, workers))
    took = monotonic() - began
    claimed = [job for share in shares for job in share]
    assert len(claimed) == len(set(claimed)) == 20_000
    assert queue.one("select count(*) from pgqueue.result") + queue.one(
        "select count(*) from pgqueue.job where worker is not null and attempt = 1"
    ) == (20_000)
    assert queue.one("select count(*) from pgqueue.job where worker is null and attempt = 0") == 100_000
    assert took < 15


def _suspect(queue: Queue, line: str = "default", **fields: Any) -> str:
    """A job whose worker has died once."""
    job = queue.add(queue=line, **fields)
    queue.claim(queues=[line], worker=(dead := new_id()), alone=False)
    queue.bury(dead, started=[job])
    return job


def test_a_suspect_is_claimed_alone_and_only_by_who_holds_nothing(queue: Queue) -> None:
    suspect = _suspect(queue, priority=9)
    others = [queue.add() for _ in range(3)]
    assert [claim["id"] for claim in queue.claim(1, alone=False)] == others[:1]
    (claim,) = queue.claim(100, alone=True)
    assert (claim["id"], claim["crashes"], claim["attempt"]) == (suspect, 1, 2)
    assert [claim["id"] for claim in queue.claim(100, alone=True)] == others[1:]
    assert queue.claim(100, alone=True) == []


def test_who_wants_suspects_only_gets_nothing_else(queue: Queue) -> None:
    suspect = _suspect(queue)
    queue.add()
    assert [claim["id"] for claim in queue.claim(0, alone=True)] == [suspect]
    assert queue.claim(0, alone=True) == []


def test_suspects_wait_for_their_time_their_queue_and_a_worker_that_knows_them(queue: Queue) -> None:
    queue.set_clock(NOON)
    early = _suspect(queue, "mail")
    queue.rows("update pgqueue.job set eta = %s where id = %s", NOON + timedelta(minutes=1), early)
    foreign = _suspect(queue, task="foreign")
    assert queue.claim(1, ["mail", "default"], ["foreign"], alone=True) == []
    queue.set_clock(NOON + timedelta(minutes=1))
    claimed = [queue.claim(1, ["mail", "default"], alone=True) for _ in range(3)]
    assert [[claim["id"] for claim in claims] for claims in claimed] == [[foreign], [early], []]


def test_two_who_want_a_suspect_get_two(queue: Queue, other: Queue) -> None:
    first, second = _suspect(queue), _suspect(queue)
    with queue.connection.transaction():
        (one,) = queue.claim(alone=True)
        (two,) = other.claim(alone=True)
    assert {one["id"], two["id"]} == {first, second}


def test_a_suspect_that_is_retried_stays_one(queue: Queue) -> None:
    job = _suspect(queue)
    (claim,) = queue.claim(alone=True)
    queue.finish({**claim, "state": "RETRY", "countdown": 0})
    assert queue.claim(alone=False) == []
    assert [(claim["id"], claim["crashes"]) for claim in queue.claim(alone=True)] == [(job, 1)]


def test_a_release_may_count_a_crash(queue: Queue) -> None:
    job = queue.add()
    (claim,) = queue.claim()
    error = {"type": "TimeLimitExceeded", "module": "pgqueue.errors", "message": "5 s"}
    assert queue.finish({**claim, "state": "RELEASED", "crashed": True, "error": error}) == []
    row = queue.job(job)
    assert row is not None
    assert (row["crashes"], row["error"], row["worker"]) == (1, error, None)
    assert queue.claim(alone=False) == []


def test_the_backlog_tells_what_could_start_now(queue: Queue) -> None:
    def backlog(*exclude: str) -> tuple[bool, bool]:
        (row,) = queue.rows("select * from pgqueue.backlog('{mail,default}', %s)", list(exclude))
        return row["waiting"], row["suspects"]

    queue.add(queue="elsewhere")
    queue.add(countdown=60)
    assert backlog() == (False, False)
    queue.add(queue="mail", priority=0)
    assert (backlog(), backlog("t")) == ((True, False), (False, False))
    queue.claim(10, ["mail"])
    assert backlog() == (False, False)
    queue.bury()
    assert (backlog(), backlog("t")) == ((False, True), (False, False))
