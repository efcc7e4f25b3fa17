"""For the tests of canvases: short words for calls, a database of one's own, and workers on it.

Values are texts that say what was called with what (`apps/flows.py`), so one value shows the order of all results.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import AsyncResult, PgQueue, chain, chord, group
from pgqueue.sql import schema

APPS = Path(__file__).parent / "apps"
sys.path.insert(0, str(APPS))
import flows  # noqa: E402

sys.path.remove(str(APPS))

#: Seconds for a canvas to end; a hanging one fails by it.
PATIENCE = 30.0


def t(tag: str, **options: Any) -> Any:
    """One call."""
    return flows.mark.s(tag=tag).set(**options)


def g(*tags: str) -> Any:
    return group([t(tag) for tag in tags])


def c(*tags: str) -> Any:
    return chain(*(t(tag) for tag in tags))


def ch(tags: str, body: str) -> Any:
    return chord([t(tag) for tag in tags], t(body))


class Flow:
    """The app `flows` on a database of its own, and workers that run it."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.app: PgQueue = flows.app
        self.app.configure(dsn=dsn)
        self.app.set_current()  # tests of another module have one of their own
        self.dsn = dsn
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def work(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker; it leads a group of processes."""
        with (self._folder / f"worker{len(self._workers)}.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "-A", "flows", "worker", *arguments],
                cwd=APPS,
                env={**os.environ, "PGQUEUE_DSN": self.dsn, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker with all of its processes."""
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        self._workers.remove(worker)

    def ask(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.app.database.connection() as connection:
            return connection.execute(query.encode(), params).fetchall()

    def until(self, question: Callable[[], Any]) -> Any:
        """Wait for what nobody announces: until the answer is true; return it."""
        with self.app.database.connection() as connection:
            for _ in range(int(PATIENCE / 0.05)):
                if found := question():
                    return found
                list(connection.notifies(timeout=0.05))
        raise AssertionError(f"not true within {PATIENCE} s")

    def handle(self, id_: object) -> AsyncResult[Any]:
        """Return a handle that knows no more than its id."""
        return self.app.AsyncResult(str(id_))

    def calls(self, tag: str) -> list[Sequence[Any]]:
        """Wait until no call of `complain` with this tag waits; return the first argument and parent of each."""
        mine = "task = 'flows.complain' and kwargs ->> 'tag' = %s"
        self.until(lambda: not self.ask(f"select from pgqueue.job where {mine}", tag))
        found = self.ask(f"select args ->> 0, parent_id::text from pgqueue.result where {mine}", tag)
        return sorted(found, key=str)

    def close(self) -> None:
        for worker in list(self._workers):
            self.kill(worker)
        self.app.close()


@contextmanager
def flowing(server: Any, folder: Path) -> Iterator[Flow]:
    """Make a database for the app `flows`; at the end, kill its workers."""
    name = f"flows_{secrets.token_hex(6)}"
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    dsn = server.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(schema().encode())
    flow = Flow(dsn, folder)
    try:
        yield flow
    finally:
        flow.close()
        with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
