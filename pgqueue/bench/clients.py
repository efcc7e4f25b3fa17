"""The clients of the enqueue benchmark: processes of a few threads each.

Threads of one process share Python's interpreter lock, so 32 threads in one process would measure that lock. Here
are at most 8 in a process, and the bare insert runs in the same processes and threads.

`python -m pgqueue.bench.clients` reads requests from stdin, one JSON object a line, and answers each with one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

from pgqueue.bench.tasks import QUEUE, add, app
from pgqueue.ids import new_id
from pgqueue.sql import rename

#: Threads of one process at most: the pool of an app has ten connections.
THREADS = 8

_WARM_UP = 20  # calls of each thread before its time begins: connections open, plans are made
_INSERT = """
insert into pgqueue.job (id, eta, enqueued_at, task, queue, args)
values (%s, clock_timestamp(), clock_timestamp(), %s, %s, %s)
"""
_COPY = "copy pgqueue.job (id, eta, enqueued_at, task, queue, args) from stdin"
_NOW = "select clock_timestamp()"

#: Enqueues one job with this number.
Call = Callable[[int], object]


@contextmanager
def pgqueue_call() -> Iterator[Call]:
    """Give the call of a user: `task.delay`."""
    yield lambda number: add.delay(number, 3)


@contextmanager
def bare_call() -> Iterator[Call]:
    """Give an insert of the same row, and its commit, on a connection of its own."""
    insert = rename(_INSERT, app.settings.schema_name).encode()
    with psycopg.connect(app.database.dsn, autocommit=True) as connection:
        yield lambda number: connection.execute(insert, (new_id(), add.name, QUEUE, f"[{number},3]"))


def one_by_one(kind: str, threads: int, seconds: float) -> dict[str, float]:
    """Enqueue singly in so many threads for so long; answer how many in all, and how many a second."""
    make = pgqueue_call if kind == "single" else bare_call
    together = threading.Barrier(threads)

    def work() -> tuple[int, float]:
        with make() as call:
            for number in range(_WARM_UP):
                call(number)
            together.wait()
            count, started = 0, time.perf_counter()
            while (passed := time.perf_counter() - started) < seconds:
                call(count)
                count += 1
            return count + _WARM_UP, count / passed

    with ThreadPoolExecutor(threads) as pool:
        counts, rates = zip(*pool.map(lambda _: work(), range(threads)), strict=True)
    return {"jobs": sum(counts), "per_second": sum(rates)}


def at_once(kind: str, jobs: int) -> dict[str, float]:
    """Enqueue in one call, or copy the same rows; answer how many in all, and how many a second."""
    with psycopg.connect(app.database.dsn, autocommit=True) as connection:
        started = time.perf_counter()
        if kind == "many":
            app.enqueue_many(add.s(number, 3) for number in range(jobs))
        else:
            bare_copy(connection, jobs)
        return {"jobs": jobs, "per_second": jobs / (time.perf_counter() - started)}


def bare_copy(connection: psycopg.Connection[Any], jobs: int) -> None:
    """Copy so many jobs into the table, and commit."""
    (now,) = connection.execute(_NOW).fetchone() or (None,)
    text = str(now)
    with connection.cursor() as cursor, cursor.copy(rename(_COPY, app.settings.schema_name).encode()) as copy:
        for number in range(jobs):
            copy.write_row((new_id(), text, text, add.name, QUEUE, f"[{number},3]"))


def main() -> None:
    """Serve the bench that has started this process until it closes stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        before = time.process_time()
        answer = at_once(**request) if "jobs" in request else one_by_one(**request)
        print(json.dumps({**answer, "cpu": time.process_time() - before}), flush=True)
    app.close()


if __name__ == "__main__":
    main()
