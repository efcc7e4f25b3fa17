"""The inspection queries: each runs as it is, answers rightly, and never looks at a row for every row."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import sql

PROGRAM = Path(sys.executable).with_name("pgqueue")
NAMES = sql.names("inspect")
HERE, GONE = "018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002"
ERROR = {
    "type": "OSError",
    "module": "builtins",
    "message": "connection reset\nby a peer",
    "traceback": 'Traceback ...\n  File "/lib/a.py", line 1, in a\n  File "/shop/b.py", line 42, in b\nOSError: ...',
}

Connection = psycopg.Connection[Any]


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `pgqueue`, and see that it ends with this exit code."""
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done


def query(name: str, dsn: str) -> list[dict[str, Any]]:
    """What `pgqueue sql NAME --json` prints."""
    rows: list[dict[str, Any]] = json.loads(run("sql", name, "--json", "--dsn", dsn).stdout)
    return rows


@pytest.fixture
def staged(conn: Connection) -> Connection:
    """Two workers, one of them silent; jobs in each state of their life; six results."""
    conn.execute(
        """insert into pgqueue.worker (id, started_at, beat_at, pid, slots, name, host, boot, pool, queues, unknown)
           values (%s, now(), now(), 11, 4, 'a@here', 'here', '', 'threads', '{mail,default}', '{shop.new}'),
                  (%s, now(), now() - interval '1 minute', 12, 1, 'b@gone', 'gone', '', 'solo', '{slow}', '{}')""",
        (HERE, GONE),
    )
    conn.execute(
        """insert into pgqueue.job (id, eta, enqueued_at, claimed_at, worker, attempt, retries, priority, task, queue,
                                    error)
           select pgqueue.new_id(), now() + later * interval '1 second', now(), now() - held * interval '1 second',
                  worker::uuid, attempt, retries, priority, task, queue, error::json
             from (values (-90, null, null, 0, 0, 5, 'shop.mail', 'mail', null),
                          (-80, null, null, 0, 0, 9, 'shop.urgent', 'mail', null),
                          (600, null, null, 1, 1, 5, 'shop.fetch', 'mail', %(error)s),
                          (-70, 30.0, %(here)s, 1, 0, 5, 'shop.mail', 'mail', null),
                          (-60, 50.0, %(gone)s, 2, 0, 5, 'shop.big', 'slow', null))
               as staged (later, held, worker, attempt, retries, priority, task, queue, error)""",
        {"here": HERE, "gone": GONE, "error": json.dumps(ERROR)},
    )
    conn.execute(
        """insert into pgqueue.result (id, enqueued_at, finished_at, attempt, retries, crashes, runtime, priority,
                                       state, task, queue, args, kwargs, error)
           select pgqueue.new_id(), now(), now() - n * interval '1 second', 1, 2, 0, n, 5,
                  state, task, 'mail', '[]', '{}', case state when 'FAILURE' then %s::json end
             from (values (1, 'SUCCESS', 'shop.mail'), (2, 'FAILURE', 'shop.fetch'), (3, 'SUCCESS', 'shop.mail'),
                          (4, 'REVOKED', 'shop.mail'), (5, 'FAILURE', 'shop.big'), (6, 'SUCCESS', 'shop.big'))
               as staged (n, state, task)""",
        (json.dumps(ERROR),),
    )
    return conn


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_plain_select_that_says_what_it_is_for(name: str, conn: Connection) -> None:
    text = sql.read(f"inspect/{name}")
    lines = text.splitlines()
    code = "\n".join(line for line in lines if not line.startswith("--"))
    assert lines[0].startswith("-- ")
    assert lines[1].startswith("-- ")  # how to act
    assert text.endswith(";\n")
    assert code.count(";") == 1
    assert "limit " in code
    # Psycopg would take a % for a placeholder, psql a colon before a word for a variable.
    assert not re.search(r"%[sbt(]|(?<!:):\w", code)
    conn.execute("set default_transaction_read_only = on")
    assert conn.execute(text.encode()).description


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_on_an_empty_database(name: str, dsn: str) -> None:
    assert query(name, dsn) == []


def test_queues(staged: Connection, dsn: str) -> None:
    rows = {row["queue"]: row for row in query("queues", dsn)}
    assert {
        name: [row[key] for key in ("waiting", "later", "running", "retrying", "workers")] for name, row in rows.items()
    } == {
        "mail": [2, 1, 1, 1, 1],
        "slow": [0, 0, 1, 0, 0],  # its only worker is silent
        "default": [0, 0, 0, 0, 1],  # a queue without jobs
    }
    assert 90 <= rows["mail"]["lag"] < 150
    assert rows["slow"]["lag"] is None
    assert next(iter(rows)) == "mail"


def test_running(staged: Connection, dsn: str) -> None:
    first, second = query("running", dsn)
    assert (first["task"], first["worker"], first["host"], first["pid"], first["attempt"]) == (
        "shop.big", "b@gone", "gone", 12, 2,
    )  # fmt: skip
    assert 50 <= first["running_for"] < 110
    assert first["beat_age"] >= 60
    assert second["worker"] == "a@here"


def test_a_running_job_whose_worker_is_struck_off_is_shown(staged: Connection, dsn: str) -> None:
    staged.execute("delete from pgqueue.worker where id = %s", (GONE,))
    assert query("running", dsn)[0]["worker"] is None


def test_retrying(staged: Connection, dsn: str) -> None:
    (row,) = query("retrying", dsn)
    assert (row["task"], row["retries"], row["error"], row["message"]) == (
        "shop.fetch",
        1,
        "OSError",
        "connection reset",
    )


def test_failures(staged: Connection, dsn: str) -> None:
    rows = query("failures", dsn)
    assert [row["task"] for row in rows] == ["shop.fetch", "shop.big"]
    assert (rows[0]["error"], rows[0]["message"], rows[0]["place"]) == ("OSError", "connection reset", "/shop/b.py:42")


def test_slow(staged: Connection, dsn: str) -> None:
    rows = {row["task"]: row for row in query("slow", dsn)}
    assert list(rows) == ["shop.big", "shop.mail", "shop.fetch"]
    assert rows["shop.mail"] == {
        "task": "shop.mail", "jobs": 3, "total": 8.0, "average": 2.6667, "p50": 3.0, "p95": 3.9, "max": 4.0,
    }  # fmt: skip


def test_workers(staged: Connection, dsn: str) -> None:
    silent, lively = query("workers", dsn)
    assert (silent["name"], silent["alive"], silent["running"]) == ("b@gone", False, 1)
    assert (lively["name"], lively["alive"], lively["running"], lively["slots"]) == ("a@here", True, 1, 4)
    assert lively["queues"] == ["mail", "default"]
    assert lively["unknown"] == ["shop.new"]


def test_waiting(staged: Connection, dsn: str) -> None:
    assert [row["task"] for row in query("waiting", dsn)] == ["shop.urgent", "shop.mail"]


def test_another_schema(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(sql.schema("jobs_2").encode())
        for name in NAMES:
            connection.execute(sql.read(f"inspect/{name}", "jobs_2").encode())


def test_status(staged: Connection, dsn: str) -> None:
    done = run("status", "--dsn", dsn)
    heading, line = done.stdout.splitlines()
    assert heading.split("\t")[:2] == ["worker", "pool"]
    assert line.split("\t")[:5] == ["a@here: OK", "threads", "4", "1", "mail,default"]
    assert done.stderr == "1 worker online\n"
    staged.execute("update pgqueue.worker set beat_at = now() - interval '1 hour'")
    assert run("status", "--dsn", dsn, code=1).stdout == ""


def test_sql_lists_prints_and_guesses(dsn: str) -> None:
    listed = run("sql").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["name", *NAMES]
    assert "queues\tHow long is the line at each queue, and is somebody serving it?" in listed
    printed = run("sql", "queues", "--print", "--schema", "jobs_2").stdout
    assert printed == sql.read("inspect/queues", "jobs_2")
    assert "did you mean queues?" in run("sql", "quueus", code=2).stderr
    assert run("sql", "queues", "--dsn", dsn).stdout.startswith("queue\twaiting\tlater")


# -- cost --------------------------------------------------------------------------------------------------------

JOBS = 20_000
_MANY = ("Scan", "Join", "Loop")


@pytest.fixture
def crowded(connect: Any, fresh_dsn: str) -> Connection:
    """20,000 jobs and as many results, in 10 queues, with 100 workers who run 2,000 of them. No statistics yet."""
    connection: Connection = connect(fresh_dsn)
    connection.execute(sql.schema().encode())
    connection.execute("alter table pgqueue.job set (autovacuum_enabled = off)")
    connection.execute("alter table pgqueue.result set (autovacuum_enabled = off)")
    connection.execute(
        """insert into pgqueue.worker (id, started_at, beat_at, pid, slots, name, host, boot, pool, queues)
           select ('018f0000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, now(), now(), n, 20, 'w' || n, 'h', '',
                  'solo', array(select 'q' || q from generate_series(0, 9) q)
             from generate_series(1, 100) n""",
    )
    connection.execute(
        """insert into pgqueue.job (id, eta, enqueued_at, claimed_at, worker, retries, priority, task, queue)
           select pgqueue.new_id(), now() + (n %% 2 - 0.5) * interval '1 hour', now(),
                  case when n %% 10 = 0 then now() end,
                  case when n %% 10 = 0
                       then ('018f0000-0000-7000-8000-' || lpad((n %% 100 + 1)::text, 12, '0'))::uuid end,
                  n %% 3, n / 10 %% 10, 't' || n %% 20, 'q' || n %% 10
             from generate_series(1, %s) n""",
        (JOBS,),
    )
    connection.execute(
        """insert into pgqueue.result (id, enqueued_at, finished_at, attempt, retries, crashes, runtime, priority,
                                       state, task, queue, args, kwargs)
           select pgqueue.new_id(), now(), now() - n * interval '1 second', 1, 0, 0, 1, 5,
                  case when n %% 5 = 0 then 'FAILURE' else 'SUCCESS' end, 't' || n %% 20, 'q', '[]', '{}'
             from generate_series(1, %s) n""",
        (JOBS,),
    )
    return connection


def explained(connection: Connection, name: str, options: str = "") -> dict[str, Any]:
    text = f"explain ({options}format json) {sql.read(f'inspect/{name}')}"
    row = connection.execute(text.encode()).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def touched(node: dict[str, Any]) -> float:
    """How many rows a node of a plan has looked at, in all its loops."""
    counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
    return float(sum(node.get(count, 0) for count in counts) * node["Actual Loops"])


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
def test_none_looks_at_rows_again_and_again(crowded: Connection, analyzed: bool) -> None:
    """No scan and no join of a plan sees more rows than its table has, whatever the planner knows."""
    if analyzed:
        crowded.execute("analyze")
    for name in NAMES:
        plan = explained(crowded, name, "analyze, timing off, ")
        seen = [(touched(node), node["Node Type"]) for node in nodes(plan) if node["Node Type"].endswith(_MANY)]
        assert max(seen) <= (1.1 * JOBS, ""), (name, seen)


@pytest.mark.parametrize(
    ("name", "index"),
    [("waiting", "job_line"), ("failures", "result_not_success"), ("slow", "result_finished_at")],
)
def test_those_that_need_not_read_it_all_use_an_index(crowded: Connection, name: str, index: str) -> None:
    crowded.execute("analyze")
    scans = [node for node in nodes(explained(crowded, name)) if "Relation Name" in node]
    assert {node.get("Index Name") for node in scans} == {index}
