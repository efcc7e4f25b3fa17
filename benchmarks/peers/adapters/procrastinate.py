"""Procrastinate."""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined"

from __future__ import annotations

import asyncio

import procrastinate
import psycopg

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_CHUNK = 1_000  # jobs of one call of `batch_defer`
_CONCURRENCY = 20


class System:
    """An asyncio worker."""

    packages = ("procrastinate", "psycopg")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=4, max_size=_CONCURRENCY)
        self._app = procrastinate.App(connector=connector)
        self._dsn = dsn

        @self._app.task(name="add")
        async def add(x: int, y: int) -> int:
            started(x)
            return x + y

        self._add = add

    async def open(self) -> None:
        await self._app.open_async()
        self._counting = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)

    async def prepare(self) -> None:
        await self._app.open_async()
        await self._app.schema_manager.apply_schema_async()
        await self._app.close_async()

    async def fill(self, first: int, count: int) -> bool:
        for start in range(first, first + count, _CHUNK):
            await self._add.batch_defer_async(
                *({"x": n, "y": 3} for n in range(start, min(start + _CHUNK, first + count)))
            )
        return True

    async def enqueue(self, number: int) -> None:
        await self._add.defer_async(x=number, y=3)

    async def left(self) -> int:
        query = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
        row = await (await self._counting.execute(query)).fetchone()
        return int(row[0]) if row else 0

    async def results(self) -> int:
        return 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with self._app.open_async():
            gate()
            await self._app.run_worker_async(concurrency=_CONCURRENCY)
