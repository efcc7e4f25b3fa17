"""Tasks that note when each of their attempts begins; the first holds on until it is let go, the second ends.

They speak through files, not through the database: that is the one which goes away. A note's name is the job's id and
the attempt; in it stand the time of the monotonic clock, which all processes of the machine share, and the pid.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import PgQueue, Task

app = PgQueue("redelivery")

ANY_TASK = Task[..., Any, Any]

_FOLDER = Path(os.environ.get("REDELIVERY_NOTES", "."))
#: Seconds between two looks whether a first attempt may end.
_LOOK = 0.1


def note(task: ANY_TASK) -> Path | None:
    """Note that an attempt has begun; return the file that it has to wait for, or None if it may end."""
    request = task.request
    now = time.monotonic()
    unfinished = _FOLDER / f"{request.id}.{request.attempt}.new"
    unfinished.write_text(f"{now!r} {os.getpid()}")
    unfinished.rename(unfinished.with_suffix(""))
    return _FOLDER / f"{request.id}.open" if request.attempt == 1 else None


@app.task(bind=True)
def hold(self: ANY_TASK) -> int:
    """Hold on in a function."""
    gate = note(self)
    while gate is not None and not gate.exists():
        time.sleep(_LOOK)
    return self.request.attempt


@app.task(bind=True)
async def ahold(self: ANY_TASK) -> int:
    """Hold on in a coroutine."""
    gate = note(self)
    while gate is not None and not gate.exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(_LOOK)
    return self.request.attempt


@app.task(bind=True, transactional=True)
def hold_row(self: ANY_TASK, connection: psycopg.Connection[Any]) -> int:
    """Hold on with a transaction open, which holds the row of the job."""
    connection.execute("insert into effect (attempt) values (%s)", [self.request.attempt])
    gate = note(self)
    while gate is not None and not gate.exists():
        time.sleep(_LOOK)
    return self.request.attempt


@app.task(bind=True)
def hold_then_write(self: ANY_TASK) -> int:
    """Hold on, and open a transaction afterwards."""
    gate = note(self)
    while gate is not None and not gate.exists():
        time.sleep(_LOOK)
    with self.transaction() as connection:
        connection.execute("insert into effect (attempt) values (%s)", [self.request.attempt])
    return self.request.attempt
