"""SAQ on PostgreSQL."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio

import psycopg
from saq import Worker
from saq.queue.postgres import PostgresQueue

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_CONCURRENCY = 50


async def add(context: object, *, x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


class System:
    """An asyncio worker."""

    packages = ("saq", "psycopg")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._dsn = dsn

    async def open(self) -> None:
        self._queue = PostgresQueue.from_url(self._dsn, min_size=1)
        await self._queue.connect()
        self._counting = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)

    async def prepare(self) -> None:
        queue = PostgresQueue.from_url(self._dsn)
        await queue.connect()
        await queue.disconnect()

    async def fill(self, first: int, count: int) -> bool:
        waiting = iter(range(first, first + count))

        async def some() -> None:
            for number in waiting:
                await self.enqueue(number)

        await asyncio.gather(*(some() for _ in range(8)))
        return False

    async def enqueue(self, number: int) -> None:
        await self._queue.enqueue("add", x=number, y=3)

    async def left(self) -> int:
        return await self._count("status not in ('complete', 'failed', 'aborted')")

    async def results(self) -> int:
        return await self._count("status = 'complete'")

    async def _count(self, condition: str) -> int:
        query = f"select count(*) from saq_jobs where {condition}"
        row = await (await self._counting.execute(query.encode())).fetchone()
        return int(row[0]) if row else 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        queue = PostgresQueue.from_url(self._dsn, max_size=_CONCURRENCY)
        await queue.connect()
        worker = Worker(queue, functions=[add], concurrency=_CONCURRENCY)
        gate()
        await worker.start()
        await queue.disconnect()
