"""Connections of one app: two pools (sync, async), made when first used, and single connections with a purpose."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue.database.running import READ_ONLY, AsyncConnection, Connection, arun, connection_lost, run
from pgqueue.errors import DatabaseUnavailable, SettingsError
from pgqueue.statements import Statement, Statements

T = TypeVar("T")

#: Keepalives of every connection: a peer that vanished is noticed after 3 + 3 x 1 s, not after two hours.
_KEEPALIVES = {
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}


class Database:
    """The connections of one app to one schema.

    - `dsn`: libpq's connection string or URI; "" leaves everything to PG* variables.
    - `statements`: the statements of the schema.
    - `name`: shown as application_name.
    - `pool_size`: most connections of each pool; default 10.
    - `connect_timeout`: seconds to wait for a connection; default 10.

    Pools open when they are first used, and are made anew in a forked child: a connection is never shared over
    a fork. The async pool belongs to the running event loop; each loop gets its own.

    Raises SettingsError if the DSN cannot be read.
    """

    def __init__(
        self,
        dsn: str,
        statements: Statements,
        *,
        name: str = "",
        pool_size: int = 10,
        connect_timeout: float = 10.0,
    ) -> None:
        try:
            self._where = psycopg.conninfo.conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # Without libpq's own words: they quote the DSN, and it may hold a password.
            raise SettingsError(
                "the dsn cannot be read; give a URI such as postgresql://user@host:5432/dbname"
            ) from None
        self.dsn = dsn
        self.statements = statements
        self._name = name
        self._pool_size = pool_size
        self._timeout = connect_timeout
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ConnectionPool[Connection] | None = None
        self._apools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool[AsyncConnection]]
        self._apools = WeakKeyDictionary()

    def connect(self, purpose: str) -> Connection:
        """Return a connection of its own, outside the pools; the caller closes it.

        Raises DatabaseUnavailable if there is none to be had within `connect_timeout`.
        """
        try:
            return psycopg.connect(self.dsn, **self._parameters(purpose))
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a pooled connection in autocommit mode; wait for one at most `timeout` seconds (`connect_timeout`)."""
        with ExitStack() as lent:
            try:
                pool = self._sync_pool()
                connection = lent.enter_context(pool.connection(timeout))
                if _told(connection):
                    lent.close()
                    pool.check()  # its own check= waits a second, then two, four ... between dead connections
                    connection = lent.enter_context(pool.connection(timeout))
            except PoolTimeout as error:
                self.connect("enqueue").close()  # says why, if the server is the reason
                raise self._exhausted(timeout or self._timeout) from error
            yield connection

    @asynccontextmanager
    async def aconnection(self, timeout: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Lend a pooled async connection in autocommit mode; wait as `connection` does."""
        async with AsyncExitStack() as lent:
            try:
                pool = await self._async_pool()
                connection = await lent.enter_async_context(pool.connection(timeout))
                if _told(connection):
                    await lent.aclose()
                    await pool.check()
                    connection = await lent.enter_async_context(pool.connection(timeout))
            except PoolTimeout as error:
                await asyncio.to_thread(lambda: self.connect("enqueue").close())
                raise self._exhausted(timeout or self._timeout) from error
            yield connection

    def run(self, statement: Statement[T], again: Statement[T] | None = None) -> list[T]:
        """Run a statement in a transaction of its own; once more if the pooled connection turns out to be dead.

        - `again`: what to run the second time, if not the same: the first may have been committed unheard.
        """
        try:
            with self.connection() as connection:
                return run(connection, statement)
        except psycopg.Error as error:
            if not connection_lost(error):
                raise
            pool = self._sync_pool()
            # A demoted leader keeps its sessions; they are of no use. (drain came with psycopg-pool 3.3)
            getattr(pool, "drain" if error.sqlstate == READ_ONLY else "check", pool.check)()
        try:
            with self.connection() as connection:
                return run(connection, again or statement)
        except psycopg.Error as error:
            if not connection_lost(error):
                raise
            raise self._unavailable(error) from error

    async def arun(self, statement: Statement[T], again: Statement[T] | None = None) -> list[T]:
        """Run a statement as `run` does, without blocking the event loop."""
        try:
            async with self.aconnection() as connection:
                return await arun(connection, statement)
        except psycopg.Error as error:
            if not connection_lost(error):
                raise
            apool = await self._async_pool()
            await getattr(apool, "drain" if error.sqlstate == READ_ONLY else "check", apool.check)()
        try:
            async with self.aconnection() as connection:
                return await arun(connection, again or statement)
        except psycopg.Error as error:
            if not connection_lost(error):
                raise
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Close the connections of the sync pool; the next use opens it again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()

    async def aclose(self) -> None:
        """Close the connections that belong to the running event loop."""
        pool = self._apools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _sync_pool(self) -> ConnectionPool[Connection]:
        with self._lock:
            if self._pid != os.getpid():
                # Forked: the parent owns those connections. Forget them without a word to the server.
                self._pid, self._pool = os.getpid(), None
                self._apools = WeakKeyDictionary()
            if self._pool is None:
                self._pool = ConnectionPool(self.dsn, open=True, **self._pool_options())
            return self._pool

    async def _async_pool(self) -> AsyncConnectionPool[AsyncConnection]:
        loop = asyncio.get_running_loop()
        pool = self._apools.get(loop)
        if pool is None:
            pool = AsyncConnectionPool(self.dsn, open=False, **self._pool_options())
            self._apools[loop] = pool
            await pool.open()
        return pool

    def _pool_options(self) -> dict[str, Any]:
        return {
            "kwargs": self._parameters("enqueue"),
            "min_size": 1,
            "max_size": self._pool_size,
            "timeout": self._timeout,
            "reconnect_timeout": self._timeout,
            "name": "pgqueue",
        }

    def _parameters(self, purpose: str) -> dict[str, Any]:
        return {
            "autocommit": True,
            # PL/pgSQL keeps the plans; a prepared statement would only get in the way of a transaction pooler.
            "prepare_threshold": None,
            "connect_timeout": max(2, round(self._timeout)),
            "application_name": f"pgqueue {purpose} {self._name}@{socket.gethostname()}"[:63],
            **_KEEPALIVES,
        }

    def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        place = f"{self._where.get('host') or os.environ.get('PGHOST', 'the default socket')}"
        reason = " ".join(str(error).split()) or type(error).__name__
        return DatabaseUnavailable(f"no connection to the database at {place}: {reason}")

    def _exhausted(self, waited: float) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"all {self._pool_size} connections were in use for {waited:g} s; end transactions sooner, or raise "
            "the setting pool_size"
        )


def _told(connection: Connection | AsyncConnection) -> bool:
    """Return whether the server has said something unasked, such as goodbye: a system call, not a round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
