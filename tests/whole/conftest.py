"""Real workers for the tests: started as subprocesses, awaited through the database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue

APPS = Path(__file__).parent / "apps"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def yard(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgQueue]:
    """The app of the worker tests, on an empty database."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.syspath_prepend(str(APPS))
    import yard

    app: PgQueue = yard.app
    app.configure(dsn=dsn)
    yield app
    app.close()


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `pgqueue -A yard worker ...`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, prefix: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        log = (tmp_path / f"worker{len(started)}.log").open("w")
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "pgqueue", "-A", "yard", "worker", *arguments],
            cwd=APPS,
            env={**os.environ, "PGQUEUE_DSN": dsn, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        process.log = Path(log.name)  # type: ignore[attr-defined]
        log.close()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def said(connect: Callable[..., psycopg.Connection[Any]]) -> Callable[..., list[list[str]]]:
    """Waits for what tasks of the yard tell: `said(2)` returns the next two, each split into words."""
    connection = connect()
    connection.execute("listen yard")

    def said(count: int = 1, timeout: float = 20.0) -> list[list[str]]:
        heard = [notice.payload.split() for notice in connection.notifies(timeout=timeout, stop_after=count)]
        assert len(heard) >= count, f"heard {heard} and no more in {timeout} s"
        return heard

    return said


@pytest.fixture
def gate(connect: Callable[..., psycopg.Connection[Any]]) -> Iterator[Callable[[], None]]:
    """Gate 1 is closed; call it to open the gate for the tasks that wait there."""
    connection = connect()
    connection.execute("select pg_advisory_lock(1)")
    yield lambda: connection.execute("select pg_advisory_unlock_all()") and None
    if not connection.closed:
        connection.execute("select pg_advisory_unlock_all()")


@pytest.fixture
def until(conn: psycopg.Connection[Any]) -> Callable[..., Any]:
    """Waits until a query returns a true value, and returns it: for what nobody announces."""

    def until(query: str, params: tuple[object, ...] = (), timeout: float = 20.0) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            row = conn.execute(query.encode(), params).fetchone()
            if row is not None and row[0]:
                return row[0]
            assert time.monotonic() < deadline, f"not true within {timeout} s: {query}"
            list(conn.notifies(timeout=0.02))

    return until
