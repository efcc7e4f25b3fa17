"""The tasks of the soak. Each tells the ledger when its body starts and ends; transactional ones leave an effect.

The tasks of `ONCE` are declared where SOAK_ONCE is set: a worker that knows one commits all its claims synchronously,
and the others are to lose some.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.ledger import Pen
from pgqueue import PgQueue, Task

AnyTask = Task[..., Any, Any]

app = PgQueue("soak")

_EFFECT = "insert into soak.effect (job, attempt, xid) values (%s, %s, pg_current_xact_id()::text::bigint)"
_pen = Pen(Path(os.environ.get("SOAK_RUNS", os.devnull)))

ONCE = frozenset({"soak.early"})
FAILING = frozenset({"soak.fail", "soak.pay_and_fail"})
TRANSACTIONAL = frozenset({"soak.pay", "soak.apay", "soak.pay_late", "soak.apay_late", "soak.pay_again"})

#: Task to its share in a hundred calls.
MIXTURE = {
    "soak.quick": 34,
    "soak.aquick": 8,
    "soak.slow": 5,
    "soak.aslow": 3,
    "soak.retry": 6,
    "soak.fail": 4,
    "soak.early": 8,
    "soak.pay": 9,
    "soak.apay": 7,
    "soak.pay_late": 6,
    "soak.apay_late": 4,
    "soak.pay_again": 3,
    "soak.pay_and_fail": 3,
}
#: Those whose argument is seconds to take; most take little, some long enough to be met by a fault.
TIMED = frozenset({"soak.slow", "soak.aslow", "soak.early", *TRANSACTIONAL})


@contextmanager
def noted(task: AnyTask) -> Iterator[tuple[str, int]]:
    """Tell the ledger of the start and the end of a body; gives job and attempt."""
    job, attempt = str(task.request.id), task.request.attempt
    _pen.write("start", job, attempt, os.getpid())
    try:
        yield job, attempt
    finally:
        _pen.write("end", job, attempt, os.getpid())


@app.task(bind=True, name="soak.quick")
def quick(self: AnyTask, number: float) -> float:
    with noted(self):
        return number


@app.task(bind=True, name="soak.aquick")
async def aquick(self: AnyTask, number: float) -> float:
    with noted(self):
        return number


@app.task(bind=True, name="soak.slow")
def slow(self: AnyTask, seconds: float) -> None:
    with noted(self):
        time.sleep(seconds)


@app.task(bind=True, name="soak.aslow")
async def aslow(self: AnyTask, seconds: float) -> None:
    with noted(self):
        await asyncio.sleep(seconds)


@app.task(bind=True, name="soak.retry", max_retries=3, default_retry_delay=0.2)
def retry(self: AnyTask, number: float) -> int:
    with noted(self):
        if self.request.retries < 1 + int(number * 100) % 3:
            self.retry(exc=OSError("not yet"))
        return int(self.request.retries)


@app.task(bind=True, name="soak.fail")
def fail(self: AnyTask, number: float) -> None:
    with noted(self):
        raise ValueError(number)


@app.task(bind=True, transactional=True, name="soak.pay")
def pay(self: AnyTask, connection: psycopg.Connection[Any], seconds: float) -> None:
    with noted(self) as fence:
        connection.execute(_EFFECT, fence)
        time.sleep(seconds)


@app.task(bind=True, transactional=True, name="soak.apay")
async def apay(self: AnyTask, connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
    with noted(self) as fence:
        await asyncio.sleep(seconds)
        await connection.execute(_EFFECT, fence)


@app.task(bind=True, name="soak.pay_late")
def pay_late(self: AnyTask, seconds: float) -> None:
    with noted(self) as fence:
        time.sleep(seconds)  # the lease may be lost meanwhile
        with self.transaction() as connection:
            connection.execute(_EFFECT, fence)


@app.task(bind=True, name="soak.apay_late")
async def apay_late(self: AnyTask, seconds: float) -> None:
    with noted(self) as fence:
        await asyncio.sleep(seconds)
        async with self.transaction() as connection:
            await connection.execute(_EFFECT, fence)


@app.task(bind=True, transactional=True, name="soak.pay_again", max_retries=3, default_retry_delay=0.2)
def pay_again(self: AnyTask, connection: psycopg.Connection[Any], seconds: float) -> None:
    with noted(self) as fence:
        connection.execute(_EFFECT, fence)
        if self.request.retries == 0:
            self.retry(exc=OSError("not yet"))  # undoes the effect
        time.sleep(seconds)


@app.task(bind=True, transactional=True, name="soak.pay_and_fail")
def pay_and_fail(self: AnyTask, connection: psycopg.Connection[Any], number: float) -> None:
    with noted(self) as fence:
        connection.execute(_EFFECT, fence)
        raise ValueError(number)


if os.environ.get("SOAK_ONCE"):

    @app.task(bind=True, acks_late=False, name="soak.early", queue="once")
    def early(self: AnyTask, seconds: float) -> None:
        with noted(self):
            time.sleep(seconds)
