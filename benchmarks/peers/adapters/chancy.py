"""Chancy."""

# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import asyncio

import psycopg
from chancy import Chancy, Job, Queue, Worker, job

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_FLUSH = 0.1  # seconds until ended jobs are written; by default 1, all of which would count at the end of a drain


@job(queue="default")
async def add(*, x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


def _call(number: int) -> Job:
    return add.job.with_kwargs(x=number, y=3)


class System:
    """A worker whose executor is the event loop."""

    packages = ("chancy", "psycopg")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._dsn = dsn

    async def open(self) -> None:
        self._chancy = Chancy(self._dsn)
        await self._chancy.__aenter__()
        self._counting = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)

    async def prepare(self) -> None:
        async with Chancy(self._dsn) as chancy:
            await chancy.migrate()
            await chancy.declare(
                Queue(
                    "default", concurrency=500, executor=Chancy.Executor.Async, polling_interval=1, eager_polling=True
                ),
                upsert=True,
            )

    async def fill(self, first: int, count: int) -> bool:
        async for _ in self._chancy.push_many([_call(number) for number in range(first, first + count)]):
            pass
        return True

    async def enqueue(self, number: int) -> None:
        await self._chancy.push(_call(number))

    async def left(self) -> int:
        query = "select count(*) from chancy_jobs where state not in ('succeeded', 'failed')"
        row = await (await self._counting.execute(query)).fetchone()
        return int(row[0]) if row else 0

    async def results(self) -> int:
        return 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with Chancy(self._dsn) as chancy:
            gate()
            async with Worker(chancy) as worker:
                worker.send_outgoing_interval = _FLUSH
                await worker.wait_for_shutdown()
