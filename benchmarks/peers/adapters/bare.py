"""What psycopg can do with two tables and no queue: the yardstick of each round."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

_BATCH = 100  # jobs a claim; more gain little, and make the jobs of a lost worker more
_IDLE = 0.001  # seconds

_TABLES = """
create table job (
    id bigint generated always as identity primary key, task text not null, args json not null,
    worker integer, claimed_at timestamptz
) with (fillfactor = 60);
create table result (id bigint primary key, value json, finished_at timestamptz not null);
"""
# The cursor passes over what is dead at the front of the index, also while an old snapshot keeps it there.
_CLAIM = """
update job set worker = %s, claimed_at = now() where id = any(array(
    select id from job where id > %s and worker is null order by id limit %s for update skip locked
)) returning id, task, args::text
"""
_ACK = """
with ended as (
    delete from job using unnest(%s::bigint[], %s::json[]) as done (id, value)
    where job.id = done.id and job.worker = %s returning done.id, done.value
) insert into result select id, value, now() from ended
"""

_Claims = list[tuple[int, str, str]]


def add(x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


class System:
    """Two tables and a loop."""

    packages = ("psycopg",)
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._dsn = dsn
        self._tasks: dict[str, Callable[..., object]] = {"add": add}
        self._cursor = 0

    async def open(self) -> None:
        self._connection = psycopg.connect(self._dsn, autocommit=True)

    async def prepare(self) -> None:
        with psycopg.connect(self._dsn) as connection:
            connection.execute(_TABLES)

    async def fill(self, first: int, count: int) -> bool:
        with self._connection.cursor() as cursor, cursor.copy("copy job (task, args) from stdin") as copy:
            for number in range(first, first + count):
                copy.write_row(("add", json.dumps((number, 3))))
        return True

    async def enqueue(self, number: int) -> None:
        self._connection.execute("insert into job (task, args) values ('add', %s)", [json.dumps((number, 3))])

    async def left(self) -> int:
        return self._count("select count(*) from job")

    async def results(self) -> int:
        return self._count("select count(*) from result")

    def _count(self, query: str) -> int:
        row = self._connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0

    def work(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with psycopg.connect(self._dsn, autocommit=True) as connection, ThreadPoolExecutor(1) as beside:
            gate()
            claims = self._exchange(connection, [], [])
            ended: tuple[list[int], list[str]] = [], []
            while True:
                trip = beside.submit(self._exchange, connection, *ended)
                ended = self._run(claims)
                if not claims and not trip.result():
                    time.sleep(_IDLE)
                claims = trip.result()

    def _run(self, claims: _Claims) -> tuple[list[int], list[str]]:
        values = [json.dumps(self._tasks[task](*json.loads(args))) for _, task, args in claims]
        return [job for job, _, _ in claims], values

    def _exchange(self, connection: psycopg.Connection, jobs: list[int], values: list[str]) -> _Claims:
        """Acknowledge and claim in one round trip and one commit."""
        worker = os.getpid()
        with connection.pipeline():
            if jobs:
                connection.execute(_ACK, (jobs, values, worker))
            claimed = connection.execute(_CLAIM, (worker, self._cursor, _BATCH))
        claims: _Claims = sorted(claimed.fetchall())
        self._cursor = claims[-1][0] if claims else 0
        return claims
