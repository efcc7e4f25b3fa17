"""Claim and acknowledgement beside millions of finished results and future jobs, against the same in empty tables.

    python -m benchmarks.full_tables [--results 10000000] [--future 1000000] [--jobs 5000] [--sizes 100,1] [--json]

Two databases of one server, one full and one empty. The same jobs wait in both, and one loop drains them in turn, a
claim and its acknowledgement here, then there, so that whatever else the machine does meets both alike. For each size
of a batch it prints microseconds a job of both (medians over the batches, and CPU of the server's process), and how
many times those of the empty tables the full ones take; the goal is 1.3. The results are of the last day, the future
jobs of the next thirty and of all priorities.

The server is the embedded one with its default settings, in a temporary directory on a disk. Ten million results
take 5 GB there, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgqueue.database import run
from pgqueue.embedded import Embedded
from pgqueue.ids import new_id
from pgqueue.sql import schema
from pgqueue.statements import Ended, Statements
from pgqueue.types import Claim, NewJob, Succeeded

GOAL = 1.3
STATEMENTS = Statements()
#: Rows of one statement, so that the log of a default server keeps up.
CHUNK = 500_000

# Ids as clients make them (UUIDv7): those of the same time stand together.
_ID = """(lpad(to_hex((extract(epoch from {at}) * 1000)::bigint), 12, '0') || '7' || substr(md5(g::text), 1, 3)
          || '8' || substr(md5(g::text), 4, 15))::uuid"""
_RESULTS = f"""
    insert into pgqueue.result (id, enqueued_at, claimed_at, finished_at, worker, root_id, parent_id, attempt, retries,
                                crashes, runtime, priority, state, task, queue, args, kwargs, value, error)
    select {_ID.format(at="at")}, at, at + interval '20 ms', at + interval '50 ms', worker, null,
           case when g %% 10 = 0 then gen_random_uuid() end, 1, 0, 0, random(), g %% 10,
           case when g %% 50 = 0 then 'FAILURE' else 'SUCCESS' end, 'shop.tasks.settle', 'default',
           json_build_array(g, 3), '{{}}', case when g %% 50 <> 0 then to_json(g + 3) end,
           case when g %% 50 = 0 then '{{"type": "ValueError", "module": "builtins", "message": "no"}}'::json end
      from (select g, now() - interval '1 day' + g * interval '1 day' / %(rows)s as at from generate_series(
                 %(first)s::bigint, %(last)s::bigint) g) g,
           (select gen_random_uuid() as worker) w
"""
_FUTURE = f"""
    insert into pgqueue.job (id, task, args, eta, enqueued_at, priority)
    select {_ID.format(at="now()")}, 'shop.tasks.remind', json_build_array(g, 3),
           now() + interval '2 hours' + random() * interval '30 days', now(), g %% 10
      from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""


@dataclass
class Side:
    """One of the two databases, and what its batches took.

    - `claims`, `finishes`: seconds a job, of each batch; `cpu`: of the server's process, in all.
    """

    connection: psycopg.Connection
    claims: list[float] = field(default_factory=list)
    finishes: list[float] = field(default_factory=list)
    cpu: float = 0.0
    jobs: int = 0
    worker: str = field(default_factory=new_id)

    def enqueue(self, jobs: int) -> None:
        """Enqueue that many."""
        for first in range(0, jobs, 1000):
            new = [
                NewJob(id=new_id(), task="shop.tasks.settle", args=f"[{n},3]", kwargs="{}")
                for n in range(first, min(first + 1000, jobs))
            ]
            run(self.connection, STATEMENTS.enqueue(new, durable=True))

    def step(self, size: int) -> bool:
        """Claim and acknowledge one batch; return whether there was one."""
        cpu, started = backend_cpu(self.connection), time.perf_counter()
        claims: list[Claim] = run(self.connection, STATEMENTS.claim(self.worker, ["default"], size, []))
        claimed = time.perf_counter()
        ended = [Ended(claim, Succeeded("5"), 0.001) for claim in claims]
        refused = run(self.connection, STATEMENTS.finish(self.worker, ended))
        if refused:
            raise AssertionError(f"{len(refused)} outcomes were refused: nobody else works here")
        if claims:
            self.claims.append((claimed - started) / len(claims))
            self.finishes.append((time.perf_counter() - claimed) / len(claims))
            self.cpu += backend_cpu(self.connection) - cpu
            self.jobs += len(claims)
        return bool(claims)

    def figures(self) -> dict[str, float]:
        """Return microseconds a job since the last call: medians, and CPU of the server's process."""
        both = [claim + finish for claim, finish in zip(self.claims, self.finishes, strict=True)]
        found = {
            "claim": 1e6 * statistics.median(self.claims),
            "finish": 1e6 * statistics.median(self.finishes),
            "both": 1e6 * statistics.median(both),
            "cpu": 1e6 * self.cpu / self.jobs,
        }
        self.claims, self.finishes, self.cpu, self.jobs = [], [], 0.0, 0
        return found


def backend_cpu(connection: psycopg.Connection) -> float:
    """Return the CPU seconds of the server's process of a connection: to a nanosecond where Linux tells, else 10 ms."""
    process = Path(f"/proc/{connection.info.backend_pid}")
    try:
        return int((process / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        ticks = (process / "stat").read_text().rpartition(")")[2].split()
        return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def fill(connection: psycopg.Connection, results: int, future: int) -> None:
    """Put in results and future jobs, and leave the tables as autovacuum would."""
    for text, rows in ((_RESULTS, results), (_FUTURE, future)):
        for first in range(1, rows + 1, CHUNK):
            last = min(first + CHUNK - 1, rows)
            connection.execute(text.encode(), {"first": first, "last": last, "rows": rows})
            print(f"    {last:>12,} of {rows:,}", file=sys.stderr, flush=True)
    connection.execute("vacuum (analyze) pgqueue.job, pgqueue.result")
    connection.execute("checkpoint")


def measure(empty: Side, full: Side, size: int, jobs: int) -> dict[str, float]:
    """Drain the same jobs from both in turn; return microseconds a job, and the ratios."""
    sides = (empty, full)
    for side in sides:
        side.enqueue(jobs + size)
        side.step(size)  # plans, and pages that have not been read for long
        side.figures()
    left = True
    while left:
        sides = sides[::-1]
        found = [side.step(size) for side in sides]
        left = all(found)
    before, beside = empty.figures(), full.figures()
    return {
        "size": size,
        **{f"empty_{name}_us": round(value, 1) for name, value in before.items()},
        **{f"full_{name}_us": round(value, 1) for name, value in beside.items()},
        **{f"{name}_ratio": round(beside[name] / before[name], 3) for name in before},
    }


def open_database(dsn: str, name: str) -> psycopg.Connection:
    """Make a database with the schema, and connect to it as a worker does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    opened = psycopg.connect(dsn, dbname=name, autocommit=True, prepare_threshold=None)
    opened.execute(schema().encode())
    return opened


def compare(dsn: str, results: int, future: int, jobs: int, sizes: Sequence[int]) -> dict[str, object]:
    """Fill one of two new databases, measure both for each size of a batch, and return all figures."""
    with open_database(dsn, "empty") as empty, open_database(dsn, "full_tables") as full:
        started = time.perf_counter()
        fill(full, results, future)
        filled = time.perf_counter() - started
        size = full.execute("select pg_size_pretty(pg_database_size(current_database()))").fetchone()
        rounds = [measure(Side(empty), Side(full), size, jobs if size > 1 else jobs // 5) for size in sizes]
        return {
            "results": results,
            "future": future,
            "fill_seconds": round(filled),
            "size": size and size[0],
            "rounds": rounds,
            "ratio": max(round_["both_ratio"] for round_ in rounds),
            "goal": GOAL,
        }


def main() -> int:
    """Read the arguments, measure, print; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--results", type=int, default=10_000_000)
    parser.add_argument("--future", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=5_000, help="for each size; a fifth of them for size 1")
    parser.add_argument("--sizes", default="100,1", help="of a batch, and in this order (100,1)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder) / "server") as server:
        found = compare(server.dsn, given.results, given.future, given.jobs, [int(n) for n in given.sizes.split(",")])
    if given.json:
        print(json.dumps(found))
    else:
        print(f"{given.results:,} results and {given.future:,} future jobs ({found['size']}) against none")
        for row in found["rounds"]:  # type: ignore[attr-defined]
            print(f"  batches of {row['size']}, microseconds a job (cpu: of the server):")
            for name in ("claim", "finish", "both", "cpu"):
                empty, full, ratio = row[f"empty_{name}_us"], row[f"full_{name}_us"], row[f"{name}_ratio"]
                print(f"    {name:8} {empty:>10,} empty {full:>10,} full {ratio:6.2f} times")
    return int(float(str(found["ratio"])) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
