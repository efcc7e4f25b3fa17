"""PgQueuer, in its default and in its fastest documented mode."""

# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import asyncio
import json
import signal

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_CHUNK = 5_000  # jobs of one call of `enqueue` with lists


class System:
    """`best`: uvloop and batches of 2,000; `default`: asyncio and batches of 10."""

    packages = ("pgqueuer", "asyncpg", "uvloop")

    def __init__(self, mode: str, dsn: str) -> None:
        self._dsn = dsn
        self._batch = 2_000 if mode == "best" else 10
        self.loop: Loop = uvloop.new_event_loop if mode == "best" else None

    async def open(self) -> None:
        self._connection = await asyncpg.connect(self._dsn)
        self._queries = Queries(AsyncpgDriver(self._connection))

    async def prepare(self) -> None:
        await self.open()
        await self._queries.install()
        await self._connection.close()

    async def fill(self, first: int, count: int) -> bool:
        for start in range(first, first + count, _CHUNK):
            payloads = [json.dumps((n, 3)).encode() for n in range(start, min(start + _CHUNK, first + count))]
            await self._queries.enqueue(["add"] * len(payloads), payloads, [0] * len(payloads))
        return True

    async def enqueue(self, number: int) -> None:
        await self._queries.enqueue("add", json.dumps((number, 3)).encode())

    async def left(self) -> int:
        return int(await self._connection.fetchval("select count(*) from pgqueuer"))

    async def results(self) -> int:
        return 0

    def work(self) -> None:
        with asyncio.Runner(loop_factory=self.loop) as runner:
            runner.run(self._work())

    async def _work(self) -> None:
        queue = PgQueuer.from_asyncpg_connection(await asyncpg.connect(self._dsn))

        @queue.entrypoint("add")
        async def add(job: object) -> int:
            x, y = json.loads(job.payload)  # type: ignore[attr-defined]
            started(x)
            return int(x + y)

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
        gate()
        await queue.run(batch_size=self._batch)
