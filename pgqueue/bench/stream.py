"""A stream of jobs at a steady rate, and the clocks of two machines beside one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from pgqueue.bench.tasks import app
from pgqueue.canvas import Signature

TICK = 0.02  # seconds: what is due in it is enqueued by one call
_LOOKS = 50  # at the clock of the database

_CLOCK = "select extract(epoch from clock_timestamp())::float8"


def produce(seconds: float, due: Callable[[float, float], list[Signature[Any]]]) -> Iterator[tuple[float, int]]:
    """Enqueue for so long what is due, every 20 ms; yield each time when it is, and how many there are by then.

    - `due`: told two times in seconds since the beginning, it says what is to be enqueued between them.
    """
    count, started, last = 0, time.perf_counter(), 0.0
    while last < seconds:
        time.sleep(max(0.0, last + TICK - (time.perf_counter() - started)))
        now = min(seconds, time.perf_counter() - started)
        calls = due(last, now)
        if calls:
            app.enqueue_many(calls)
        count += len(calls)
        last = now
        yield now, count


def steadily(call: Signature[Any], rate: float) -> Callable[[float, float], list[Signature[Any]]]:
    """Return the `due` of a call that comes so many times a second."""
    return lambda last, now: [call] * (int(now * rate) - int(last * rate))


def clock_offset(connection: psycopg.Connection[Any]) -> float:
    """Return how many seconds the clock of the database is ahead of that of this machine.

    Of some looks at it the one that took least; it is wrong by half of that at most.
    """
    looks = []
    for _ in range(_LOOKS):
        before = time.time()
        (there,) = connection.execute(_CLOCK).fetchone() or (before,)
        after = time.time()
        looks.append((after - before, there - (before + after) / 2))
    return min(looks)[1]
