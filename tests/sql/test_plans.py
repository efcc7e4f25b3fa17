"""Plans: whatever the statistics say, a call touches what it is about and no more.

The functions are PL/pgSQL, so EXPLAIN shows no plan; the server's counters tell what was done. `seq_scan` tells a walk
over a table. A walk over an index hides from `idx_tup_read` when the condition is checked inside the index, but not
from the pages that it asks for, found in memory or not. Of a whole call EXPLAIN tells the pages at least.

Every call is in `_measure`, and every kind of statistics in `_STATISTICS`; a session's plans are new, or old and made
beside other tables, or forced to be generic or custom.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql as compose

from pgqueue import sql

from . import plan_workflows
from .helpers import OpenQueue, Queue, new_id
from .plan_workflows import Call

ROWS = 80_000
WORKFLOW_ROWS = 20_000
BATCH = 10
# A descent takes 3 or 4 pages, in each index of a row that moves; a walk over one of these indexes 200 to 600. Those of
# workflows have 100, and the workflows measured a few jobs.
PAGES_PER_CALL = 60
PAGES_PER_JOB = 12
PAGES_OF_WORKFLOWS = 50
TUPLES_PER_CALL = 60
TUPLES_PER_JOB = 12
# It looks up a hundred steps that have parts, three pages each in every index. A walk over the parts of all steps asks
# for 40,000.
PAGES_OF_PRUNE = 1_000

TABLES = ("job", "result", *plan_workflows.TABLES)
SESSIONS = ("new", "old", "generic", "custom")

Counters = dict[str, tuple[int, int, int]]
#: From the name of a call to what it did, by table (scans, tuples read by them, 0) and index (tuples, pages, 0).
Measured = dict[str, Counters]

# The views with these numbers join so much that they would take as long as what is measured.
_COUNTERS = """
    select c.relname as name, case c.relkind when 'r' then pg_stat_get_numscans(c.oid) else 0 end as scans,
           case c.relkind when 'i' then pg_stat_get_tuples_returned(c.oid) else 0 end as tuples,
           case c.relkind when 'i' then pg_stat_get_blocks_fetched(c.oid) else 0 end as pages
      from pg_class c where c.relnamespace = 'pgqueue'::regnamespace and c.relkind in ('r', 'i')
"""
_FILL_JOB = """
    insert into pgqueue.job (id, task, eta, enqueued_at, parent_id, root_id)
    select gen_random_uuid(), 't', clock_timestamp() - interval '1 hour' + g * interval '1 microsecond', now(),
           case when g %% 4 = 0 then gen_random_uuid() end, case when g %% 4 = 1 then gen_random_uuid() end
      from generate_series(1, %s) g
"""
_FILL_RESULT = """
    insert into pgqueue.result (id, enqueued_at, finished_at, attempt, retries, crashes, priority, state, task,
                                queue, args, kwargs, parent_id, root_id, again)
    select gen_random_uuid(), now(), now(), 1, 0, 0, 5, case when g %% 4 = 1 then 'FAILURE' else 'SUCCESS' end, 't',
           'default', '[]', '{}', case when g %% 4 = 0 then gen_random_uuid() end,
           case when g %% 4 = 1 then gen_random_uuid() end, case when g %% 4 = 1 then '{}'::json end
      from generate_series(1, %s) g
"""


def _fill(queue: Queue, rows: int = ROWS) -> None:
    queue.rows(_FILL_JOB, rows)
    queue.rows(_FILL_RESULT, rows)
    plan_workflows.fill(queue, rows * WORKFLOW_ROWS // ROWS)


def _never_analysed(queue: Queue) -> None:
    pass


def _analysed_while_empty(queue: Queue) -> None:
    for table in TABLES:
        queue.rows(f"vacuum (analyze) pgqueue.{table}")


def _analysed_while_full(queue: Queue) -> None:
    """Before anything had failed."""
    _fill(queue, ROWS // 4)
    queue.rows("delete from pgqueue.result where state <> 'SUCCESS'")
    _analysed_while_empty(queue)
    queue.rows("truncate " + ", ".join(f"pgqueue.{table}" for table in TABLES))


def _after_a_mass_delete(queue: Queue) -> None:
    _fill(queue, ROWS // 4)
    for table in TABLES:
        queue.rows(f"delete from pgqueue.{table}")
    _analysed_while_empty(queue)


def _analysed_beside_future_jobs(queue: Queue) -> None:
    """As beside a million: so many rows for each page that there is."""
    queue.rows(
        "insert into pgqueue.job (id, task, eta, enqueued_at, priority)"
        " select gen_random_uuid(), 't', now() + g * interval '1 minute', now(), g %% 10 from generate_series(1, %s) g",
        ROWS // 10,
    )
    _analysed_while_empty(queue)
    queue.rows(
        "update pg_class set reltuples = reltuples * 50, relpages = greatest(1, relpages / 50)"
        " where relnamespace = 'pgqueue'::regnamespace and (relname = 'job' or relname like 'job%%')"
    )


def _analysed_beside_another_queue(queue: Queue) -> None:
    """Nearly all in one queue, of one priority and of one workflow, and not in the one that is used then."""
    queue.rows(
        "insert into pgqueue.job (id, task, queue, eta, enqueued_at, priority, parent_id, root_id)"
        " select gen_random_uuid(), 't', case when g %% 1000 = 0 then 'default' else 'bulk' end, now(), now(), 0,"
        "        %s, %s from generate_series(1, %s) g",
        new_id(),
        new_id(),
        ROWS // 4,
    )
    queue.rows(_FILL_RESULT.replace("'SUCCESS'", "'FAILURE'"), ROWS // 4)
    plan_workflows.fill(queue, ROWS // 4, of_one=True)
    _analysed_while_empty(queue)


_STATISTICS: dict[str, Callable[[Queue], None]] = {
    "never analysed": _never_analysed,
    "analysed while empty": _analysed_while_empty,
    "analysed while full": _analysed_while_full,
    "after a mass delete": _after_a_mass_delete,
    "beside a million future jobs": _analysed_beside_future_jobs,
    "beside another queue": _analysed_beside_another_queue,
}


def _outcomes(claims: list[dict[str, Any]], state: str, **fields: object) -> list[dict[str, Any]]:
    kept = ("id", "attempt", "retries")
    return [{**{name: claim.get(name, 0) for name in kept}, "state": state, **fields} for claim in claims]


def _use(queue: Queue) -> None:
    """Every call often enough that the session keeps its plans, made while the tables are empty."""
    nobody: dict[str, Any] = {"id": new_id(), "attempt": 1}
    for _ in range(6):
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
        _say(queue, lambda name, do: do())
        with queue.connection.transaction(force_rollback=True):
            plan_workflows.measure(queue, lambda name, do: do())
        queue.one("select pgqueue.prune('0 s', 10)")  # so that no scan comes by what was rolled back here again


def _say(queue: Queue, call: Call) -> None:
    """What workers and callers say of themselves."""
    call("beat", lambda: queue.one("select pgqueue.beat(%s)", queue.worker))
    call("say idle", lambda: queue.one("select pgqueue.say_idle(%s, '{default}')", queue.worker))
    call("call idle", lambda: queue.one("select pgqueue.call_idle('{default}')"))
    call("say busy", lambda: queue.one("select pgqueue.say_busy(%s)", queue.worker))
    job, get = new_id(), new_id()
    call("wait for", lambda: queue.one("select pgqueue.wait_for(%s, %s, 60)", job, get))
    call("stop waiting", lambda: queue.one("select pgqueue.stop_waiting(%s, %s)", job, get))


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
    call("enqueue one", lambda: queue.one("select pgqueue.enqueue('t', '[1]')"))
    call("claim from several", lambda: queue.claim(BATCH, ["nowhere", "default", "bulk"]))
    plan_workflows.measure(queue, call)
    assert call("prune", lambda: queue.one("select pgqueue.prune('0 s', %s)", BATCH)) == BATCH
    _say(queue, call)
    return measured


@pytest.fixture(scope="module", params=_STATISTICS)
def measured(request: pytest.FixtureRequest, pg_server: Any) -> Iterator[dict[str, Measured]]:
    """What every call costs in 80,000 jobs and results and 20,000 steps, in sessions with plans of every kind."""
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
            for table in TABLES:
                queue.rows(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
            queue.register()
            _STATISTICS[request.param](queue)
            _use(queue)
            _fill(queue)
            found = {"old": _measure(queue), "new": _measure(Queue(new))}
            for kind in ("generic", "custom"):
                new.execute(f"set plan_cache_mode = force_{kind}_plan; discard plans".encode())
                found[kind] = _measure(Queue(new))
            yield found
    finally:
        maintenance.execute(compose.SQL("drop database {} with (force)").format(compose.Identifier(name)))
        maintenance.close()


@pytest.mark.parametrize("session", SESSIONS)
def test_no_call_scans_a_table(measured: dict[str, Measured], session: str) -> None:
    scanned = {
        (name, table)
        for name, counters in measured[session].items()
        for table in TABLES
        if counters[table][0]
        # A view has no settings of its own. Beside one large workflow a plan for all would be to scan, so the server
        # makes one for each call, unless it is told not to.
        and not (session == "generic" and name.startswith("view: "))
    }
    assert scanned == set()


@pytest.mark.parametrize("session", SESSIONS)
def test_no_call_walks_an_index(measured: dict[str, Measured], session: str) -> None:

    def most_tuples(name: str) -> int:
        return PAGES_OF_PRUNE if name == "prune" else TUPLES_PER_CALL + TUPLES_PER_JOB * BATCH

    def most_pages(name: str, index: str) -> int:
        if name == "prune":
            return PAGES_OF_PRUNE
        of_workflows = index.startswith(plan_workflows.TABLES)
        return PAGES_OF_WORKFLOWS if of_workflows else PAGES_PER_CALL + PAGES_PER_JOB * BATCH

    walked = {
        (name, index): (tuples, pages)
        for name, counters in measured[session].items()
        for index, (_, tuples, pages) in counters.items()
        if tuples > most_tuples(name) or pages > most_pages(name, index)
    }
    assert walked == {}


def _pages(queue: Queue, query: str, *params: object) -> int:
    """How many pages a call asks for, of tables and indexes, in whatever it calls."""
    (plan,) = queue.one(f"explain (analyze, buffers, format json) {query}", *params)
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def _calls(queue: Queue, number: int) -> dict[str, int]:
    """How many pages the calls of a busy worker and of its callers ask for."""
    pages: dict[str, int] = {}
    for size in (1, number):
        jobs = json.dumps([{"task": "t"}] * size)
        pages[f"enqueue {size}"] = _pages(queue, "select pgqueue.enqueue_many(%s)", jobs)
        claims = queue.claim(size)
        outcomes = json.dumps(_outcomes(claims, "SUCCESS"))
        pages[f"finish {size}"] = _pages(queue, "select pgqueue.finish(%s, %s)", queue.worker, outcomes)
        back = json.dumps(_outcomes(queue.claim(size), "RETRY"))
        pages[f"retry {size}"] = _pages(queue, "select pgqueue.finish(%s, %s)", queue.worker, back)
    (claim,) = queue.claim(1)
    say = "select pgqueue.set_state(%s, %s, %s, 'PROGRESS')"
    pages["say"] = _pages(queue, say, claim["id"], queue.worker, claim["attempt"])
    pages["status"] = _pages(queue, "select pgqueue.status(%s)", claim["id"])
    pages["finish what has said something"] = _pages(
        queue, "select pgqueue.finish(%s, %s)", queue.worker, json.dumps(_outcomes([claim], "SUCCESS"))
    )
    pages["say idle"] = _pages(queue, "select pgqueue.say_idle(%s, '{default}')", queue.worker)
    pages["say busy"] = _pages(queue, "select pgqueue.say_busy(%s)", queue.worker)
    pages["call idle"] = _pages(queue, "select pgqueue.call_idle('{default}')")
    pages["wait for"] = _pages(queue, "select pgqueue.wait_for(%s, %s, 60)", claim["id"], new_id())
    return pages


# What was said, to be taken back while somebody holds a snapshot that may still see it.
_SAID = (
    """insert into pgqueue.idle (queue, worker, until)
       select 'default', %s, now() - g * interval '10 ms' from generate_series(1, 20000) g""",
    """insert into pgqueue.waiter (job, id, until)
       select gen_random_uuid(), %s, now() from generate_series(1, 20000) g""",
    """insert into pgqueue.progress (job, worker, attempt, state, at)
       select gen_random_uuid(), %s, 1, 'PROGRESS', now() from generate_series(1, 20000) g""",
)


def test_what_was_taken_back_beside_a_held_snapshot_costs_nobody_anything(own_dsn: str, open_queue: OpenQueue) -> None:
    """Twenty thousand deleted rows in each small table: the calls ask for as many pages as without, but a few."""
    queue, holder = open_queue(own_dsn), open_queue(own_dsn, autocommit=False)
    queue.register()
    queue.enqueue(*[{"task": "t"}] * (10 * BATCH))
    _calls(queue, BATCH)  # a session's first calls read the catalog, too
    before = _calls(queue, BATCH)
    holder.rows("set transaction isolation level repeatable read")
    holder.rows("select pg_current_xact_id()")
    for said in _SAID:
        queue.rows(said, queue.worker)
    for table in ("idle", "waiter", "progress"):
        queue.rows(f"delete from pgqueue.{table}")
        queue.rows(f"vacuum (analyze) pgqueue.{table}")
    after = _calls(queue, BATCH)
    more = {name: (before[name], pages) for name, pages in after.items() if pages > before[name] + 4 * BATCH}
    assert more == {}


def test_known_ids_are_looked_up_one_by_one(own_dsn: str, open_queue: OpenQueue) -> None:
    """Ten times as many ids cost ten times as much, not a hundred, after the tables have been emptied."""
    queue = open_queue(own_dsn)
    _after_a_mass_delete(queue)
    _fill(queue, 20_000)

    def pages(number: int) -> int:
        jobs = [{"task": "t", "id": new_id(), "known": True} for _ in range(number)]
        return _pages(queue, "select pgqueue.enqueue_many(%s)", json.dumps(jobs))

    pages(10)
    assert pages(100) < 20 * pages(10)


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
