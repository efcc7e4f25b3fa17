"""pgqueue through its public API and its command."""

from __future__ import annotations

import os
import sys

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started
from pgqueue import PgQueue
from pgqueue.signals import worker_ready
from pgqueue.sql import schema

app = PgQueue("peers")  # PGQUEUE_DSN


@app.task
def add(x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


@worker_ready.connect
def _ready(**_: object) -> None:
    gate()


class System:
    """`pgqueue worker` and the app."""

    packages = ("pgqueue-tasks", "psycopg")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._dsn = dsn
        os.environ["PGQUEUE_DSN"] = dsn

    async def open(self) -> None:
        with app.database.connection() as connection:
            connection.execute("select 1")

    async def prepare(self) -> None:
        with app.database.connection() as connection:
            connection.execute(schema().encode())

    async def fill(self, first: int, count: int) -> bool:
        app.enqueue_many(add.s(number, 3) for number in range(first, first + count))
        return True

    async def enqueue(self, number: int) -> None:
        add.delay(number, 3)

    async def left(self) -> int:
        return self._count("select count(*) from pgqueue.job")

    async def results(self) -> int:
        return self._count("select count(*) from pgqueue.result where state = 'SUCCESS'")

    def _count(self, query: str) -> int:
        with app.database.connection() as connection:
            row = connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0

    def work(self) -> None:
        command = [sys.executable, "-m", "pgqueue", "-A", "benchmarks.peers.adapters.pgqueue", "worker"]
        os.execv(sys.executable, [*command, "-P", "solo", "-l", "warning", "-n", f"peer{os.getpid()}"])
