"""DBOS: durable workflows, here of one step, on a queue."""

# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import asyncio
import os
import signal
import time

import sqlalchemy
from dbos import DBOS, DBOSClient

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_POLL = 0.01  # seconds; default 1
_CHUNK = 1_000
_CALL = {"workflow_name": "add", "queue_name": "peers"}


@DBOS.workflow(name="add")
def add(x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


class System:
    """A process of the application, and its client."""

    packages = ("dbos", "sqlalchemy", "psycopg")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._url = dsn.replace("postgresql://", "postgresql+psycopg://")

    async def open(self) -> None:
        self._client = DBOSClient(system_database_url=self._url)
        self._engine = sqlalchemy.create_engine(self._url)

    async def prepare(self) -> None:
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        self._configure()
        DBOS.launch()
        # Closed: workers poll it and take nothing. Queues can be changed while they run.
        DBOS.register_queue("peers", polling_interval_sec=_POLL, worker_concurrency=0)
        DBOS.destroy()

    def _configure(self) -> None:
        DBOS(
            config={
                "name": "peers",
                "system_database_url": self._url,
                "application_version": "1",
                "executor_id": str(os.getpid()),
                "log_level": "ERROR",
            }
        )

    async def fill(self, first: int, count: int) -> bool:
        for start in range(first, first + count, _CHUNK):
            with self._engine.begin() as connection:
                for number in range(start, min(start + _CHUNK, first + count)):
                    self._client.enqueue_in_transaction(connection, _CALL, number, 3)
        return False

    async def enqueue(self, number: int) -> None:
        self._client.enqueue(_CALL, number, 3)

    async def left(self) -> int:
        return self._count("status in ('ENQUEUED', 'PENDING', 'DELAYED')")

    async def results(self) -> int:
        return self._count("status = 'SUCCESS'")

    def _count(self, condition: str) -> int:
        query = f"select count(*) from dbos.workflow_status where {condition}"
        with self._engine.connect() as connection:
            return int(connection.execute(sqlalchemy.text(query)).scalar_one())

    def work(self) -> None:
        # Before any thread is there: all inherit that the signal waits for `sigwait`.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._configure()
        DBOS.launch()
        time.sleep(1.0)  # its thread for the queue is there by then
        gate()
        queue = DBOS.retrieve_queue("peers")
        queue.set_worker_concurrency(None)
        signal.sigwait({signal.SIGTERM})
        os._exit(0)
