"""Enqueueing beside the bare statement: 32 clients singly beside insert + commit, and enqueue_many beside COPY.

    python -m benchmarks.enqueue [--clients 32] [--processes 4] [--seconds 2] [--jobs 100000] [--rounds 5]
                                 [--prepared] [--json] [--dsn DSN]

Singly: the same arrangement on both sides, as a web server has it: some processes, in each of them its share of the
clients as threads, each client with a connection of its own (the pool of pgqueue is as large). They run for the same
time, one side after the other, round after round, the order turned about each time. The bare clients send one INSERT
of a row with id, times, task and arguments, in autocommit mode, as an ordinary psycopg connection that may stand before
a transaction pooler does (prepare_threshold=None); with --prepared it is prepared in the session. Ours call
`task.delay`, which also checks and encodes the arguments, and looks for idle workers.

In bulk: one client, `app.enqueue_many` with signatures made on the way, beside COPY of the same rows by psycopg's
`write_row`, ids made by the client on both sides, all in one transaction on both sides.

CPU is user + system in microseconds a job, of the clients (processes of ours, start and warm-up left out) and of the
server's client backends (the sum over /proc). Compare ratios: single figures drift with the machine. Without --dsn it
starts the embedded server in a temporary directory (on a disk, fsync on).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.tasks import add, app
from pgqueue.embedded import Embedded
from pgqueue.ids import new_id
from pgqueue.sql import schema

INSERT = """
    insert into pgqueue.job (id, eta, enqueued_at, task, args)
    values (%s, clock_timestamp(), clock_timestamp(), 'benchmarks.tasks.add', %s)"""
COPY = "copy pgqueue.job (id, eta, enqueued_at, task, args) from stdin"
SIDES = ("pgqueue", "bare")


@dataclass
class Run:
    """What one side has done: jobs, seconds, and CPU seconds of clients and server."""

    jobs: int
    seconds: float
    client: float
    server: float

    def figures(self) -> dict[str, float]:
        """Return jobs per second, and CPU in microseconds a job."""
        return {
            "per_second": self.jobs / self.seconds,
            "client_us": self.client / self.jobs * 1e6,
            "server_us": self.server / self.jobs * 1e6,
        }


# -- the clients, in processes of their own --------------------------------------------------------------------------


def crew(side: str, dsn: str, threads: int, seconds: float, prepared: bool) -> None:
    """Run so many clients: connect, say so, wait for a line, run for so long, print jobs and CPU seconds."""
    gate, counts = threading.Barrier(threads + 1), [0] * threads
    client = {"pgqueue": client_of_pgqueue, "bare": bare_client}[side]
    workers = [
        threading.Thread(target=client, args=(dsn, gate, counts, number, seconds, prepared))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    gate.wait()  # all are connected
    gate.wait()  # all are warm
    print("ready", flush=True)
    sys.stdin.readline()
    before, started = time.process_time(), time.perf_counter()
    gate.wait()
    for worker in workers:
        worker.join()
    print(json.dumps([sum(counts), time.perf_counter() - started, time.process_time() - before]), flush=True)


def client_of_pgqueue(
    dsn: str, gate: threading.Barrier, counts: list[int], number: int, seconds: float, prepared: bool
) -> None:
    """Call `delay` for so long."""
    with app.database.connection():  # each thread holds one until all have one: so many are open and warm
        gate.wait()
    repeat(lambda n: add.delay(n, 3), gate, counts, number, seconds)


def bare_client(
    dsn: str, gate: threading.Barrier, counts: list[int], number: int, seconds: float, prepared: bool
) -> None:
    """Insert and commit one row by hand for so long."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=5 if prepared else None) as connection:
        gate.wait()
        repeat(lambda n: connection.execute(INSERT, (new_id(), f"[{n},3]")), gate, counts, number, seconds)


def repeat(
    call: Callable[[int], object], gate: threading.Barrier, counts: list[int], number: int, seconds: float
) -> None:
    """Call for so long, from when all others do; leave the number of calls."""
    for n in range(20):
        call(n)
    gate.wait()
    gate.wait()
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        call(count)
        count += 1
    counts[number] = count


# -- measuring ---------------------------------------------------------------------------------------------------


@contextmanager
def empty(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Empty the table, and lend a connection."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("truncate pgqueue.job")
        connection.execute("checkpoint")
        yield connection


def backends(connection: psycopg.Connection[Any]) -> dict[int, float]:
    """Return the CPU seconds of every client backend but the one that asks; {} where /proc does not say."""
    pids = connection.execute(
        "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    ).fetchall()
    found = {}
    for (pid,) in pids:
        path = Path(f"/proc/{pid}/schedstat")  # nanoseconds; the ticks of `stat` are too coarse
        if path.exists():
            found[pid] = int(path.read_text().split()[0]) / 1e9
    return found


def singly(side: str, dsn: str, clients: int, processes: int, seconds: float, prepared: bool) -> Run:
    """Have the clients of one side enqueue one by one for so long."""
    command = [sys.executable, "-m", "benchmarks.enqueue", "--dsn", dsn, "--crew", side]
    command += ["--clients", str(clients // processes), "--seconds", str(seconds)]
    command += ["--prepared"] if prepared else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with empty(dsn) as connection:
        crews = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        try:
            for one in crews:
                assert one.stdout.readline() == "ready\n", f"{side}: a client process has failed"
            before = backends(connection)
            for one in crews:
                one.stdin.write("go\n")
                one.stdin.flush()
            # Read before the processes end: with them go their backends, and what these have used.
            time.sleep(seconds * 0.9)
            after = backends(connection)
            ((stored,),) = connection.execute("select count(*) from pgqueue.job").fetchall()
            told = [json.loads(one.stdout.readline()) for one in crews]
        finally:
            for one in crews:
                one.kill()
                one.wait()
    jobs, cpu = sum(one[0] for one in told), sum(one[2] for one in told)
    server = sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
    return Run(jobs, max(one[1] for one in told), cpu, server * jobs / max(1, stored))


def bulk(side: str, dsn: str, jobs: int) -> Run:
    """Enqueue so many at once with one client of one side."""
    with empty(dsn) as connection, psycopg.connect(dsn, autocommit=True) as bare:
        app.enqueue_many([add.s(1, 3)])
        before, used, started = backends(connection), time.process_time(), time.perf_counter()
        if side == "bare":
            now = datetime.now(UTC)
            with bare.cursor().copy(COPY) as copy:
                for n in range(jobs):
                    copy.write_row((new_id(), now, now, add.name, f"[{n},3]"))
        else:
            app.enqueue_many(add.s(n, 3) for n in range(jobs))
        ended, client, after = time.perf_counter(), time.process_time() - used, backends(connection)
        assert connection.execute("select count(*) from pgqueue.job").fetchone() == (jobs + 1,)
    return Run(jobs, ended - started, client, sum(after[pid] - before.get(pid, 0.0) for pid in after))


def measure(dsn: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turn, round after round; return medians, and medians of the ratios of each round."""
    calls: dict[str, Callable[[str], Run]] = {}
    if given.seconds:
        calls["single"] = lambda side: singly(side, dsn, given.clients, given.processes, given.seconds, given.prepared)
    if given.jobs:
        calls["many"] = lambda side: bulk(side, dsn, given.jobs)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {name: {side: [] for side in SIDES} for name in calls}
    for number in range(given.rounds):
        for name, call in calls.items():
            for side in SIDES if number % 2 else SIDES[::-1]:
                runs[name][side].append(call(side).figures())
    found: dict[str, Any] = {}
    for name, sides in runs.items():
        for side, figures in sides.items():
            for what in figures[0]:
                found[f"{name}_{side}_{what}"] = round(statistics.median(one[what] for one in figures), 1)
        rates = zip(sides["pgqueue"], sides["bare"], strict=True)
        found[f"{name}_ratio"] = round(statistics.median(a["per_second"] / b["per_second"] for a, b in rates), 3)
    return found


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run with single calls; 0: none")
    parser.add_argument("--jobs", type=int, default=100_000, help="of each run in bulk; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepared", action="store_true", help="let the bare clients prepare their INSERT")
    parser.add_argument("--dsn", help="measure on this database, whose pgqueue tables will be emptied")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--crew", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.crew:
        app.settings = app.settings.model_copy(update={"pool_size": given.clients})
        app.configure(dsn=given.dsn)
        crew(given.crew, given.dsn, given.clients, given.seconds, given.prepared)
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
        figures = measure(dsn, given)
        app.close()
    if given.json:
        print(json.dumps(figures))
    else:
        print(f"{os.cpu_count()} cores, {given.clients} clients in {given.processes} processes, {given.jobs:,} jobs")
        for name, value in figures.items():
            print(f"  {name:28} {value:>12,}")


if __name__ == "__main__":
    main()
