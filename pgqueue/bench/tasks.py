"""The app of the benchmarks: tasks that do next to nothing, or say when they began."""

from __future__ import annotations

import time

from pgqueue.app import PgQueue

#: The only queue of the benchmarks, whatever PGQUEUE_DEFAULT_QUEUE says.
QUEUE = "bench"

app = PgQueue("bench", default_queue=QUEUE, set_as_current=False)


@app.task
def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y


@app.task
def carry(x: int, y: int, payload: str) -> int:
    """Return the sum, and let the payload be."""
    return x + y


@app.task
def stamp() -> float:
    """Return when it began, by the clock that all processes of this machine share."""
    return time.monotonic()


@app.task
def begin() -> float:
    """Return when it began, in seconds since 1970: to be compared with the times of the database."""
    return time.time()


@app.task
def linger(seconds: float) -> float:
    """Return when it began, after so many seconds."""
    began = time.time()
    time.sleep(seconds)
    return began
