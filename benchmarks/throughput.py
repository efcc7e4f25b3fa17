"""Jobs per second of enqueueing and of draining, beside a bare psycopg loop that runs the same SQL.

    python -m benchmarks.throughput [--jobs 30000] [--rounds 3] [--json] [--dsn DSN]

Drain: one worker process (pool solo, no log lines for successes), late ack, results stored, fence checked, from the
start of the process's loop to its end. The bare loop claims 500 with the same function, calls the same task through
a dictionary, JSON in and out, and acknowledges in batches; claim and acks travel in one pipelined round trip. Both
run in processes of their own, in turn, round after round: compare the ratio, single figures drift with the machine.
Without --dsn it starts the embedded server in a temporary directory (on a disk, fsync on).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from benchmarks.tasks import add, app
from pgqueue.database import run, run_together
from pgqueue.embedded import Embedded
from pgqueue.ids import new_id
from pgqueue.serialization import decode, encode
from pgqueue.sql import schema
from pgqueue.statements import Ended
from pgqueue.types import Claim, Succeeded
from pgqueue.worker import WorkerOptions, WorkerProcess

BATCH = 500


def fill(dsn: str, jobs: int) -> float:
    """Empty the tables, enqueue the jobs in thousands, and return jobs per second of that."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("delete from pgqueue.job")
        connection.execute("delete from pgqueue.result")
        connection.execute("vacuum pgqueue.job, pgqueue.result")
        connection.execute("checkpoint")
    started = time.perf_counter()
    for first in range(0, jobs, 1000):
        app.enqueue_many(add.s(n, 3) for n in range(first, min(first + 1000, jobs)))
    return jobs / (time.perf_counter() - started)


def single(seconds: float) -> float:
    """Enqueue one by one for so long and return jobs per second."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        add.delay(count, 3)
        count += 1
    return count / (time.perf_counter() - started)


def bare_single(dsn: str, seconds: float) -> float:
    """Insert and commit one row by hand for so long and return rows per second."""
    count = 0
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            connection.execute(
                "insert into pgqueue.job (id, eta, enqueued_at, task, args)"
                " values (%s, clock_timestamp(), clock_timestamp(), 'benchmarks.tasks.add', %s)",
                (new_id(), f"[{count},3]"),
            )
            count += 1
        return count / (time.perf_counter() - started)


def bare_drain(dsn: str) -> tuple[int, float]:
    """Drain with a loop over psycopg; return the number of jobs and the seconds."""
    worker, statements, tasks = new_id(), app.database.statements, {add.name: add.run}
    done, ended = 0, []
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        started = time.perf_counter()
        claims: list[Claim] = run(connection, statements.claim(worker, ["default"], BATCH, [], relaxed=False))
        while claims:
            ended = [bare_call(tasks, claim) for claim in claims]
            done += len(ended)
            refused, claims = run_together(
                connection,
                statements.finish(worker, ended),
                statements.claim(worker, ["default"], BATCH, [], relaxed=False),
            )
            assert not refused
        return done, time.perf_counter() - started


def bare_call(tasks: dict[str, object], claim: Claim) -> Ended:
    """Run one claim as little as it takes."""
    value = tasks[claim.task](*decode(claim.args), **decode(claim.kwargs))  # type: ignore[operator]
    return Ended(claim, Succeeded(encode(value, path="result")))


def drain() -> tuple[int, float]:
    """Drain with a worker process of pgqueue; return the number of jobs and the seconds."""
    with app.database.connection() as connection:
        (jobs,) = connection.execute("select count(*) from pgqueue.job").fetchone() or (0,)
    started = time.perf_counter()
    WorkerProcess(app, WorkerOptions(pool="solo", burst=True)).run()
    return jobs, time.perf_counter() - started


def apart(what: str, dsn: str) -> float:
    """Run one kind of drain in a process of its own and return jobs per second."""
    command = [sys.executable, "-m", "benchmarks.throughput", "--only", what, "--dsn", dsn]
    jobs, seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(jobs / seconds)


def measure(dsn: str, jobs: int, rounds: int) -> dict[str, float]:
    """Run everything in turn and return the medians."""
    figures: dict[str, list[float]] = {name: [] for name in ("enqueue_many", "drain", "bare", "delay", "bare_insert")}
    for _ in range(rounds):
        figures["enqueue_many"].append(fill(dsn, jobs))
        figures["drain"].append(apart("drain", dsn))
        fill(dsn, jobs)
        figures["bare"].append(apart("bare", dsn))
        figures["delay"].append(single(1.0))
        figures["bare_insert"].append(bare_single(dsn, 1.0))
    found = {f"{name}_per_second": round(statistics.median(values)) for name, values in figures.items()}
    ratios = [pgqueue / bare for pgqueue, bare in zip(figures["drain"], figures["bare"], strict=True)]
    return {
        **found,
        "drain_ratio": round(statistics.median(ratios), 3),
        "delay_ratio": round(found["delay_per_second"] / found["bare_insert_per_second"], 3),
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn", help="measure on this database, whose pgqueue tables will be emptied")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("drain", "bare"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        app.configure(dsn=given.dsn)
        print(json.dumps(drain() if given.only == "drain" else bare_drain(given.dsn)))
        app.close()
        return
    with ExitStack() as stack:
        dsn = given.dsn
        if dsn is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server"
            dsn = stack.enter_context(Embedded(folder)).dsn
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(schema().encode())
        app.configure(dsn=dsn)
        figures = measure(dsn, given.jobs, given.rounds)
        app.close()
    if given.json:
        print(json.dumps(figures))
    else:
        print(f"{os.cpu_count()} cores, {given.jobs} jobs, {given.rounds} rounds, medians")
        for name, value in figures.items():
            print(f"  {name:24} {value:>12,}")


if __name__ == "__main__":
    main()
