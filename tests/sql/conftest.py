"""What the SQL ring shares: connections that cannot wait for ever, with the functions in reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgqueue import sql

from .helpers import OpenQueue, Queue


@pytest.fixture
def open_queue(connect: Callable[..., psycopg.Connection[Any]], dsn: str) -> OpenQueue:
    """Opens a connection, autocommit unless told otherwise, to `dsn` or another."""

    def open_queue(conninfo: str = dsn, schema: str = sql.DEFAULT_SCHEMA, *, autocommit: bool = True) -> Queue:
        options = "-c statement_timeout=30s -c timezone=UTC"
        return Queue(connect(conninfo, autocommit=autocommit, options=options), schema)

    return open_queue


@pytest.fixture
def queue(open_queue: OpenQueue) -> Queue:
    return open_queue()


@pytest.fixture
def other(open_queue: OpenQueue) -> Queue:
    """A second connection, which is also a second worker."""
    return open_queue()


@pytest.fixture
def watcher(open_queue: OpenQueue) -> Queue:
    """A third one, to look at what the others wait for."""
    return open_queue()


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Runs in a thread what is going to wait."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def own_dsn(fresh_dsn: str) -> str:
    """A database of this test's own, with the schema: for large tables and changes that outlive a DELETE."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(sql.schema())
    return fresh_dsn
