"""A producer of the soak: `python -m benchmarks.soak_producer LEDGER SEED RATE MODE PAUSE`, until SIGTERM.

- `LEDGER`: file for what it calls and what it is told.
- `RATE`: calls a second at most. MODE: sync or async.
- `PAUSE`: while this file exists, there is enough to do already.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.ledger import Pen
from benchmarks.soak_tasks import MIXTURE, ONCE, TIMED, app
from pgqueue import PgQueueError
from pgqueue.ids import new_id

_TRANSACTIONS = 0.2  # share of calls that belong to a transaction of the caller; a third of these is rolled back
_BUSINESS = "insert into soak.business (job) values (%s)"
_BROKEN = (psycopg.Error, PgQueueError, OSError)


@dataclass(slots=True)
class Order:
    """A call to be made; `repeat`: make it again, with the same id, while nobody knows what became of it."""

    task: str
    number: float
    plan: str
    repeat: bool
    id: str = field(default_factory=new_id)

    @property
    def options(self) -> dict[str, Any]:
        """What `send_task` takes beside the name."""
        return {"args": (self.number,), "task_id": self.id, "queue": "once" if self.task in ONCE else None}


class _RolledBack(Exception):
    """The caller thinks better of it."""


def orders(seed: int) -> Iterator[Order]:
    """Yield calls without end, the same for the same seed but for their ids."""
    chance = random.Random(seed)
    names, shares = list(MIXTURE), list(MIXTURE.values())
    while True:
        task = chance.choices(names, shares)[0]
        number = chance.uniform(0.2, 2.0) if "slow" in task or chance.random() < 0.15 else chance.uniform(0.0, 0.02)
        plan = "plain"
        if chance.random() < _TRANSACTIONS:
            plan = chance.choice(("commit", "commit", "rollback"))
        # Nobody repeats blindly what must not run twice.
        repeat = plan == "plain" and task not in ONCE and chance.random() < 0.5
        yield Order(task, round(number, 3) if task in TIMED else round(chance.random(), 3), plan, repeat)


def call(order: Order) -> str:
    """Enqueue, and return what is known of it: ok, fail or info."""
    try:
        if order.plan == "plain":
            app.send_task(order.task, **order.options)
        else:
            with app.transaction() as connection:
                connection.execute(_BUSINESS, [order.id])
                app.send_task(order.task, connection=connection, **order.options)
                if order.plan == "rollback":
                    raise _RolledBack
    except _RolledBack:
        return "fail"
    except _BROKEN:
        return "fail" if order.plan == "rollback" else "info"
    return "ok"


async def acall(order: Order) -> str:
    """Do the same in a coroutine."""
    try:
        if order.plan == "plain":
            await app.asend_task(order.task, **order.options)
        else:
            async with app.atransaction() as connection:
                await connection.execute(_BUSINESS, [order.id])
                await app.asend_task(order.task, connection=connection, **order.options)
                if order.plan == "rollback":
                    raise _RolledBack
    except _RolledBack:
        return "fail"
    except _BROKEN:
        return "fail" if order.plan == "rollback" else "info"
    return "ok"


async def produce(ledger: Path, seed: int, rate: float, mode: str, pause: Path) -> None:
    """Call until SIGTERM; then end with the answer of the last call."""
    pen, stopping = Pen(ledger, durable=True), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    for order in orders(seed):
        if await _told_to_stop(pause, stopping):
            break
        begun = time.monotonic()
        pen.write("invoke", order.id, order.task, order.plan)
        while True:
            answer = await acall(order) if mode == "async" else await asyncio.to_thread(call, order)
            pen.write(answer, order.id)
            if answer != "info" or not order.repeat or stopping.is_set():
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(max(0.0, begun + 1.0 / rate - time.monotonic()))
    await app.aclose()


async def _told_to_stop(pause: Path, stopping: asyncio.Event) -> bool:
    """Wait while there is enough to do; return whether to stop."""
    while pause.exists() and not stopping.is_set():  # noqa: ASYNC110, ASYNC240 - a file is what processes share
        await asyncio.sleep(0.05)
    return stopping.is_set()


if __name__ == "__main__":
    _ledger, _seed, _rate, _mode, _pause = sys.argv[1:]
    asyncio.run(produce(Path(_ledger), int(_seed), float(_rate), _mode, Path(_pause)))
