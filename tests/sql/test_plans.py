"""Plans: whatever the statistics say, a call touches what it is about and no more.

The functions are PL/pgSQL, so EXPLAIN shows nothing; the server's counters do. `seq_scan` tells a walk over a
table. A walk over an index hides from `idx_tup_read` when the condition is checked inside the index, but not from
the pages that it asks for, found in memory or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql as compose

from pgqueue import sql

from .helpers import Queue, new_id

ROWS = 200_000
BATCH = 10
# A descent takes 3 or 4 pages, in each index of a row that moves; a walk over one of these indexes 500 to 1,500.
PAGES_PER_CALL = 60
PAGES_PER_JOB = 12
TUPLES_PER_CALL = 60
TUPLES_PER_JOB = 12

Counters = dict[str, tuple[int, int, int]]
#: Does a thing under a name, and returns its answer.
Call = Callable[[str, Callable[[], Any]], Any]
#: From the name of a call to what it did, by table (scans, tuples read by them, 0) and index (tuples, pages, 0).
Measured = dict[str, Counters]

_COUNTERS = """
    select relname as name, seq_scan as scans, 0::bigint as tuples, 0::bigint as pages
      from pg_stat_user_tables where schemaname = 'pgqueue'
     union all
    select indexrelname, 0, i.idx_tup_read, s.idx_blks_hit + s.idx_blks_read
      from pg_stat_user_indexes i join pg_statio_user_indexes s using (indexrelid, indexrelname)
     where i.schemaname = 'pgqueue'
"""
_FILL_JOB = """
    insert into pgqueue.job (id, task, eta, enqueued_at, parent_id)
    select gen_random_uuid(), 't', clock_timestamp() - interval '1 hour' + g * interval '1 microsecond', now(),
           case when g %% 4 = 0 then gen_random_uuid() end
      from generate_series(1, %s) g
"""
_FILL_RESULT = """
    insert into pgqueue.result (id, enqueued_at, finished_at, attempt, retries, crashes, priority, state, task,
                                queue, args, kwargs, parent_id)
    select gen_random_uuid(), now(), now(), 1, 0, 0, 5, 'SUCCESS', 't', 'default', '[]', '{}',
           case when g %% 4 = 0 then gen_random_uuid() end
      from generate_series(1, %s) g
"""


def _fill(queue: Queue, rows: int = ROWS) -> None:
    queue.rows(_FILL_JOB, rows)
    queue.rows(_FILL_RESULT, rows)


def _never_analysed(queue: Queue) -> None:
    pass


def _analysed_while_empty(queue: Queue) -> None:
    queue.rows("vacuum (analyze) pgqueue.job")
    queue.rows("vacuum (analyze) pgqueue.result")


def _analysed_while_full(queue: Queue) -> None:
    _fill(queue, ROWS // 4)
    _analysed_while_empty(queue)
    queue.rows("truncate pgqueue.job, pgqueue.result")


def _after_a_mass_delete(queue: Queue) -> None:
    _fill(queue, ROWS // 4)
    queue.rows("delete from pgqueue.job")
    queue.rows("delete from pgqueue.result")
    _analysed_while_empty(queue)


_STATISTICS: dict[str, Callable[[Queue], None]] = {
    "never analysed": _never_analysed,
    "analysed while empty": _analysed_while_empty,
    "analysed while full": _analysed_while_full,
    "after a mass delete": _after_a_mass_delete,
}


def _outcomes(claims: list[dict[str, Any]], state: str, **fields: object) -> list[dict[str, Any]]:
    kept = ("id", "attempt", "retries")
    return [{**{name: claim.get(name, 0) for name in kept}, "state": state, **fields} for claim in claims]


def _use(queue: Queue) -> None:
    """Every call often enough that the session keeps its plans, made while the tables are empty."""
    nobody: dict[str, Any] = {"id": new_id(), "attempt": 1}
    for _ in range(12):
        queue.claim()
        queue.claim(alone=True)
        with queue.connection.transaction(force_rollback=True):
            _enqueue_one(queue)
            _enqueue_alike(queue)
        queue.rows("select * from pgqueue.backlog('{default}')")
        queue.finish(*_outcomes([nobody], "SUCCESS"), *_outcomes([{**nobody, "id": new_id()}], "RETRY"))
        queue.finish(*_outcomes([nobody], "REQUEUE"), *_outcomes([{**nobody, "id": new_id()}], "REPLACED"))
        queue.status(nobody["id"])
        queue.one("select pgqueue.set_state(%s, null, null, 'PROGRESS')", nobody["id"])
        queue.one("select pgqueue.attach(%s, '{}')", nobody["id"])
        queue.rows("select pgqueue.children(%s)", nobody["id"])
        with pytest.raises(psycopg.Error):
            queue.hold(nobody)
        queue.one("select pgqueue.revoke(%s)", nobody["id"])
        queue.one("select pgqueue.forget(%s)", nobody["id"])


def _enqueue_one(queue: Queue) -> None:
    queue.one("select pgqueue.enqueue_one(%s, 't', '[]', '{}', 'default', 5::smallint)", new_id())


def _enqueue_alike(queue: Queue) -> None:
    ids, numbers = [new_id() for _ in range(BATCH)], [1 + place % 3 for place in range(BATCH)]
    kinds = '[{"task": "a"}, {"task": "b", "priority": 0}, {"task": "c"}]'
    queue.one(
        "select pgqueue.enqueue_alike(%s, %s::int[], %s::uuid[], array_fill('[]'::json, array[%s]), null)",
        kinds, numbers, ids, BATCH,
    )  # fmt: skip


def _put_back(queue: Queue, call: Call, state: str) -> None:
    claims = queue.claim(BATCH)
    outcomes = _outcomes(claims, state, task="t", requeues=0)
    assert call(f"finish: {state}", lambda: queue.finish(*outcomes)) == []
    assert call(f"finish: {state} again", lambda: queue.finish(*outcomes)) == []


def _follow(queue: Queue, call: Call, state: str) -> None:
    jobs = [
        {"task": "t", "priority": 9, "links": [{"task": "t"}], "errbacks": [{"task": "t", "id": new_id()}]}
        for _ in range(BATCH)
    ]
    call("enqueue with continuations", lambda: queue.enqueue(*jobs))
    claims = queue.claim(BATCH)
    assert all(claim["links"] for claim in claims)
    assert call(f"finish: {state} with continuations", lambda: queue.finish(*_outcomes(claims, state))) == []
    children = call("children", lambda: queue.rows("select pgqueue.children(%s)", claims[0]["id"]))
    assert len(children) == 1


def _measure(queue: Queue) -> Measured:
    measured: Measured = {}

    def look() -> Counters:
        queue.rows("select pg_stat_force_next_flush()")
        found = queue.rows(_COUNTERS)
        return {row["name"]: (row["scans"], row["tuples"], row["pages"]) for row in found}

    def call(name: str, do: Callable[[], Any]) -> Any:
        before = look()
        answer = do()
        after = look()
        measured[name] = {
            key: (value[0] - before[key][0], value[1] - before[key][1], value[2] - before[key][2])
            for key, value in after.items()
        }
        return answer

    (first, *_) = claims = call("claim", lambda: queue.claim(BATCH))
    assert len(claims) == BATCH
    call("hold", lambda: queue.hold(first))
    call("say", lambda: queue.one("select pgqueue.set_state(%s, null, null, 'PROGRESS')", first["id"]))
    call("status of a job", lambda: queue.status(first["id"]))
    call("attach to a job", lambda: queue.one("select pgqueue.attach(%s, '{}')", first["id"]))
    assert call("finish: retry", lambda: queue.finish(*_outcomes(claims, "RETRY", countdown=60))) == []
    assert call("finish: retry again", lambda: queue.finish(*_outcomes(claims, "RETRY"))) == []
    for state in ("REQUEUE", "REPLACED"):
        _put_back(queue, call, state)
    (first, *_) = claims = call("claim again", lambda: queue.claim(BATCH))
    call("claim one", lambda: queue.claim(1))
    call("claim alone", lambda: queue.claim(1, alone=True))
    call("claim suspects only", lambda: queue.claim(0, alone=True))
    call("backlog", lambda: queue.rows("select * from pgqueue.backlog('{default}')"))
    call("revoke a running job", lambda: queue.one("select pgqueue.revoke(%s)", first["id"]))
    assert call("finish: success", lambda: queue.finish(*_outcomes(claims, "SUCCESS"))) == []
    assert call("finish: success again", lambda: queue.finish(*_outcomes(claims, "SUCCESS"))) == []
    late = [{**claim, "attempt": 7} for claim in claims]
    assert len(call("finish: refused", lambda: queue.finish(*_outcomes(late, "SUCCESS")))) == BATCH
    call("status of a result", lambda: queue.status(first["id"]))
    call("attach to a result", lambda: queue.one("select pgqueue.attach(%s, '{}')", first["id"]))
    call("forget", lambda: queue.one("select pgqueue.forget(%s)", first["id"]))
    waiting = queue.one("select id::text from pgqueue.job where worker is null limit 1")
    call("revoke a waiting job", lambda: queue.one("select pgqueue.revoke(%s)", waiting))
    known = [{"task": "t", "id": new_id(), "known": True, "unique_key": str(at)} for at in range(BATCH)]
    call("enqueue one", lambda: _enqueue_one(queue))
    call("enqueue alike", lambda: _enqueue_alike(queue))
    call("enqueue", lambda: queue.enqueue(*known))
    call("enqueue again", lambda: queue.enqueue(*known))
    done = [{"task": "t", "id": claim["id"], "known": True} for claim in claims[1:]]
    answers = call("enqueue what has succeeded", lambda: queue.enqueue(*done))
    assert not any(created for _, created in answers)
    for state in ("SUCCESS", "FAILURE"):
        _follow(queue, call, state)
    return measured


@pytest.fixture(scope="module", params=_STATISTICS)
def measured(request: pytest.FixtureRequest, pg_server: Any) -> Iterator[dict[str, Measured]]:
    """What every call costs in 200,000 rows: in a session whose plans are new, and in one whose plans are old."""
    name = f"pgqueue_plans_{new_id().replace('-', '')[:12]}"
    maintenance = psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True)
    maintenance.execute(compose.SQL("create database {}").format(compose.Identifier(name)))
    try:
        with (
            psycopg.connect(pg_server.dsn(name), autocommit=True) as old,
            psycopg.connect(pg_server.dsn(name), autocommit=True) as new,
        ):
            queue = Queue(old)
            old.execute(sql.schema())
            for table in ("job", "result"):
                queue.rows(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
            _STATISTICS[request.param](queue)
            _use(queue)
            _fill(queue)
            yield {"old": _measure(queue), "new": _measure(Queue(new))}
    finally:
        maintenance.execute(compose.SQL("drop database {} with (force)").format(compose.Identifier(name)))
        maintenance.close()


@pytest.mark.parametrize("session", ["new", "old"])
def test_no_call_scans_a_table(measured: dict[str, Measured], session: str) -> None:
    scanned = {
        (name, table)
        for name, counters in measured[session].items()
        for table in ("job", "result")
        if counters[table][0]
    }
    assert scanned == set()


@pytest.mark.parametrize("session", ["new", "old"])
def test_no_call_walks_an_index(measured: dict[str, Measured], session: str) -> None:
    walked = {
        (name, index): (tuples, pages)
        for name, counters in measured[session].items()
        for index, (_, tuples, pages) in counters.items()
        if tuples > TUPLES_PER_CALL + TUPLES_PER_JOB * BATCH or pages > PAGES_PER_CALL + PAGES_PER_JOB * BATCH
    }
    assert walked == {}


def test_a_claim_beside_future_jobs_of_higher_priority_does_not_walk_over_them(own_dsn: str) -> None:
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        queue = Queue(connection)
        queue.rows(
            "insert into pgqueue.job (id, task, eta, enqueued_at, priority)"
            " select gen_random_uuid(), 't', now() + g * interval '1 hour', now(), 9 from generate_series(1, 50000) g"
        )
        job = queue.add(priority=0)
        look = "select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 'job'"
        queue.rows("select pg_stat_force_next_flush()")
        before = queue.one(look)
        assert [claim["id"] for claim in queue.claim()] == [job]
        queue.rows("select pg_stat_force_next_flush()")
        assert queue.one(look) - before < 20


def test_the_backlog_does_not_change_what_a_claim_reads(own_dsn: str) -> None:
    """Neither a limit that is reached nor several queues make a claim sort or read what it leaves."""
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        queue = Queue(connection)
        queue.rows(
            "insert into pgqueue.job (id, task, eta, enqueued_at, queue, priority) select gen_random_uuid(), 't',"
            " now(), now(), 'q' || g %% 3, g %% 10 from generate_series(1, %s) g",
            60_000,
        )
        look = "select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 'job'"
        queue.rows("select pg_stat_force_next_flush()")
        before = queue.one(look)
        assert len(queue.claim(BATCH, ["q2", "q0", "q1"])) == BATCH
        queue.rows("select pg_stat_force_next_flush()")
        assert queue.one(look) - before <= 3 * BATCH


def test_prune_reads_what_it_deletes(own_dsn: str) -> None:
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        queue = Queue(connection)
        queue.rows(_FILL_RESULT, 50_000)
        look = (
            "select coalesce(sum(idx_tup_read), 0) + (select seq_tup_read from pg_stat_user_tables"
            " where relname = 'result') from pg_stat_user_indexes where relname = 'result'"
        )
        queue.rows("select pg_stat_force_next_flush()")
        before = queue.one(look)
        assert queue.one("select pgqueue.prune('0 s', 10)") == 10
        queue.rows("select pg_stat_force_next_flush()")
        assert queue.one(look) - before <= 40
