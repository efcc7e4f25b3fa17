"""Workflows: a chord beside as many plain jobs, and how fast the links of a chain follow one another.

    python -m benchmarks.canvas [--members 10000] [--links 1000] [--rounds 4] [--workers 1] [--json] [--dsn DSN]

Chord: so many no-op members and a body, beside as many no-op jobs of one `enqueue_many`, in turn. Rates are from the
first claim to the last acknowledgement, and from the call; `body_ms` is the time from the acknowledgement of the last
member to the claim of the body.

Chain: so many links with one call each; one commit ends a link and enqueues the next. Idle workers wait for it.

Compare ratios: single figures drift with the machine. Without --dsn it starts the embedded server in a temporary
directory (on a disk, fsync on).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import chain, chord
from pgqueue.bench.tasks import QUEUE, add, app
from pgqueue.embedded import Embedded
from pgqueue.sql import schema

WORKER = ("-m", "pgqueue", "-A", "pgqueue.bench.tasks:app", "worker", "-Q", QUEUE, "-P", "solo", "-l", "error")
TIMES = """
select extract(epoch from max(finished_at) - min(enqueued_at))::float8,
       extract(epoch from max(finished_at) - min(claimed_at))::float8
  from pgqueue.result"""
BODY = """
select 1000 * extract(epoch from (select claimed_at from pgqueue.result where id = %(body)s)
                                 - (select max(finished_at) from pgqueue.result where id <> %(body)s))::float8"""

Connection = psycopg.Connection[Any]


def main() -> None:
    """Measure and print."""
    given = arguments()
    with ExitStack() as stack:
        dsn = given.dsn
        if dsn is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-canvas-"))
            dsn = stack.enter_context(Embedded(Path(folder) / "server")).dsn
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        connection.execute(schema().encode())
        app.configure(dsn=dsn)
        stack.callback(app.close)
        stack.enter_context(workers(given.workers, dsn, connection))
        found = measure(connection, given.members, given.links, given.rounds)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"chord of {given.members:,} members, of as many plain jobs: {found['chord_ratio']:.3f}")
    print(f"  with the call:                       {found['chord_ratio_with_enqueue']:.3f}")
    print(f"  body claimed after the last member:  {found['body_ms']:.0f} ms")
    print(f"chain of {given.links:,}: {found['links_per_second']:.0f} links a second")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dsn", help="a database in which a schema can be made; default: a server of our own")
    return parser.parse_args()


@contextmanager
def workers(count: int, dsn: str, connection: Connection) -> Iterator[None]:
    """Have so many idle workers."""
    environ = {**os.environ, "PGQUEUE_DSN": dsn}
    started = [subprocess.Popen([sys.executable, *WORKER], env=environ) for _ in range(count)]
    try:
        until(connection, "select count(distinct worker) from pgqueue.idle", count)
        yield
    finally:
        for worker in started:
            worker.send_signal(signal.SIGTERM)
        for worker in started:
            worker.wait()


def until(connection: Connection, query: str, wanted: int) -> None:
    """Wait until a count has come so far."""
    while (row := connection.execute(query.encode()).fetchone()) is not None and row[0] < wanted:
        time.sleep(0.05)


def ended(connection: Connection, jobs: int, body: str | None = None) -> tuple[float, float, float]:
    """Wait for the end of all; return jobs per second from the call and from the first claim, and the body's delay."""
    until(connection, "select count(*) from pgqueue.result", jobs)
    call, claim = connection.execute(TIMES.encode()).fetchone() or (0.0, 0.0)
    (delay,) = connection.execute(BODY.encode(), {"body": body}).fetchone() or (0.0,)
    connection.execute("delete from pgqueue.result")
    connection.execute("vacuum pgqueue.job, pgqueue.result, pgqueue.step, pgqueue.part")
    return jobs / call, jobs / claim, delay or 0.0


def measure(connection: Connection, members: int, links: int, rounds: int) -> dict[str, float]:
    """Measure in turn; return medians of the rounds."""
    ratios, from_call, delays, rates = [], [], [], []
    for _ in range(rounds):
        app.enqueue_many(add.si(1, 2) for _ in range(members))
        plain = ended(connection, members)
        body = chord((add.si(1, 2) for _ in range(members)), add.si(1, 2)).apply_async()
        whole = ended(connection, members + 1, body.id)
        chain(add.si(1, 2) for _ in range(links)).apply_async()
        rates.append(ended(connection, links)[1])
        ratios.append(whole[1] / plain[1])
        from_call.append(whole[0] / plain[0])
        delays.append(whole[2])
    return {
        "chord_ratio": round(statistics.median(ratios), 3),
        "chord_ratio_with_enqueue": round(statistics.median(from_call), 3),
        "body_ms": round(statistics.median(delays), 1),
        "links_per_second": round(statistics.median(rates)),
    }


if __name__ == "__main__":
    main()
