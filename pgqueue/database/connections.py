"""Connections of one app: two pools (sync, async), made when first used, and single connections with a purpose."""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import chain, islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue.database.running import READ_ONLY, arun, atell, conflicts, connection_lost, run, tell, tell_all
from pgqueue.database.sessions import CLIENT, SERVER, AsyncSession, Overdue, Session, engine_settings, give
from pgqueue.database.warm import Warm
from pgqueue.errors import DatabaseUnavailable, SettingsError
from pgqueue.statements import Statement, Statements

T = TypeVar("T")
W = TypeVar("W")

#: Seconds for which a connection that has answered is taken to be alive; if it is not, the statement is run once more.
_FRESH = 1.0


class Database:
    """The connections of one app to one schema.

    - `dsn`: libpq's connection string or URI; "" leaves everything to PG* variables.
    - `statements`: the statements of the schema.
    - `name`: shown as application_name.
    - `pool_size`: most connections of each pool; default 10.
    - `connect_timeout`: seconds to wait for a connection; default 10.
    - `statement_timeout`: seconds that a statement of pgqueue may take before its connection is given up; default 15.
    - `pooler`: whether a transaction pooler stands between; default None: each connection finds out.

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
        statement_timeout: float = 15.0,
        pooler: bool | None = None,
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
        self._limit = statement_timeout
        self._pooler = pooler
        #: Whether a transaction pooler stands between, as far as it is known: sessions are not ours then.
        self.pooled = pooler
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ConnectionPool[Session] | None = None
        self._warm = Warm()
        self._apools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool[AsyncSession]]
        self._apools = WeakKeyDictionary()

    def connect(self, purpose: str, timeout: float | None = None) -> Session:
        """Return a connection of its own, outside the pools, for statements of ours alone; the caller closes it.

        Whatever the role says about timeouts and isolation does not hold on it, unless a pooler stands between.
        Raises DatabaseUnavailable if there is none to be had within `timeout` seconds (`connect_timeout`).
        """
        parameters = self._parameters(purpose)
        if timeout is not None:
            parameters["connect_timeout"] = max(2, round(timeout))
        try:
            connection = Session.connect(self.dsn, **parameters)
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error
        try:
            self._settle(connection, engine_settings(self._limit))
        except psycopg.Error as error:
            raise self._unavailable(error) from error
        return connection

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Session]:
        """Lend a pooled connection in autocommit mode; wait for one at most `timeout` seconds (`connect_timeout`).

        What the role says about timeouts and isolation holds on it, and statements may take what they take.
        """
        pool = self._sync_pool()
        connection = self._lend(pool, timeout, anew=True)
        try:
            with connection:  # what is left open is committed
                connection.patience = None
                try:
                    yield connection
                finally:
                    give(connection, self._limit)
        except BaseException as error:
            self._give_up(pool, connection, error)
            raise
        finally:
            pool.putconn(connection)

    @asynccontextmanager
    async def aconnection(self, timeout: float | None = None) -> AsyncIterator[AsyncSession]:
        """Lend a pooled async connection in autocommit mode; wait as `connection` does."""
        pool = await self._async_pool()
        connection = await self._alend(pool, timeout, anew=True)
        try:
            async with connection:
                connection.patience = None
                try:
                    yield connection
                finally:
                    give(connection, self._limit)
        except BaseException as error:
            await self._agive_up(pool, connection, error)
            raise
        finally:
            await pool.putconn(connection)

    def run(self, statement: Statement[T], again: Callable[[], Statement[T]] | None = None) -> list[T]:
        """Run a statement in a transaction of its own; again while connections die under it, for `connect_timeout`.

        - `again`: makes what is run after the first time, if not the same: the first may have been committed unheard.
        """
        patience: _Patience | None = None
        while True:
            try:
                return self._run(tell, statement)
            except psycopg.Error as error:
                patience = patience or _Patience(self._timeout)
                if (pause := patience.pause(error)) is None:
                    if connection_lost(error):
                        raise self._unavailable(error) from error
                    raise
            statement = statement if again is None else again()
            self._check(self._sync_pool())
            time.sleep(pause)

    def run_all(self, statements: Iterable[Statement[T]], again: Callable[[], Statement[T]]) -> list[T]:
        """Run statements in one transaction, all or none; each is made while the server works on the one before.

        One alone is run by itself. What is raised while one is made undoes them all.

        - `again`: makes one of all of them, for `run`, if the connection is lost.
        """
        rest = iter(statements)
        first = list(islice(rest, 2))
        if len(first) < 2:
            return self.run(first[0], again) if first else []
        try:
            return self._run(tell_all, chain(first, rest))
        except psycopg.Error as error:
            if not connection_lost(error) and not conflicts(error):
                raise
            for _ in rest:  # `again` makes one of those that have been made
                pass
        return self.run(again(), again)

    async def arun(self, statement: Statement[T], again: Callable[[], Statement[T]] | None = None) -> list[T]:
        """Run a statement as `run` does, without blocking the event loop."""
        patience: _Patience | None = None
        while True:
            try:
                return await self._arun(statement)
            except psycopg.Error as error:
                patience = patience or _Patience(self._timeout)
                if (pause := patience.pause(error)) is None:
                    if connection_lost(error):
                        raise self._unavailable(error) from error
                    raise
            statement = statement if again is None else again()
            await (await self._async_pool()).check()
            await asyncio.sleep(pause)

    def close(self) -> None:
        """Close the connections of the sync pool; the next use opens it again."""
        if self._pid != os.getpid():  # a forked child has none
            self._pool = None
            return
        with self._lock:
            pool, self._pool = self._pool, None
            kept = self._warm.empty()  # before there is another pool
        if pool is not None:
            for connection in kept:
                pool.putconn(connection)
            pool.close()

    async def aclose(self) -> None:
        """Close the connections that belong to the running event loop."""
        pool = self._apools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _sync_pool(self) -> ConnectionPool[Session]:
        pool = self._pool
        if pool is not None and self._pid == os.getpid():
            return pool
        self._forget_parents()
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(
                    self.dsn, connection_class=Session, configure=self._configure, open=True, **self._pool_options()
                )
            return self._pool

    async def _async_pool(self) -> AsyncConnectionPool[AsyncSession]:
        self._forget_parents()
        loop = asyncio.get_running_loop()
        pool = self._apools.get(loop)
        if pool is None:
            pool = AsyncConnectionPool(
                self.dsn, connection_class=AsyncSession, configure=self._aconfigure, open=False, **self._pool_options()
            )
            self._apools[loop] = pool
            try:
                # Waited for: asked before it has its first connection, a pool begins a second one, and a pool that is
                # connecting when asyncio.run() ends takes no notice of that, so the program hangs.
                await pool.open(wait=True, timeout=self._timeout)
            except PoolTimeout as error:
                del self._apools[loop]
                await asyncio.to_thread(lambda: self.connect("enqueue").close())  # says why
                raise self._exhausted(self._timeout) from error
        return pool

    def _run(self, work: Callable[[Session, W], list[T]], what: W) -> list[T]:
        # Without `with`: every enqueue comes by here, and the context managers cost it as much as its arguments do.
        pool = self._sync_pool()
        connection = self._lend(pool)
        try:
            found = work(connection, what)
        except BaseException as error:
            self._give_up(pool, connection, error)
            pool.putconn(connection)
            raise
        connection.answered = time.monotonic()
        back = self._warm.keep(connection) if pool is self._pool else connection
        if back is not None:
            pool.putconn(back)
        if pool is not self._pool and self._warm.drop(connection):  # closed in between
            pool.putconn(connection)
        return found

    async def _arun(self, statement: Statement[T]) -> list[T]:
        pool = await self._async_pool()
        connection = await self._alend(pool)
        try:
            found = await (arun(connection, statement) if statement.answer is None else atell(connection, statement))
            connection.answered = time.monotonic()
        except BaseException as error:
            await self._agive_up(pool, connection, error)
            raise
        finally:
            await pool.putconn(connection)
        return found

    def _lend(self, pool: ConnectionPool[Session], timeout: float | None = None, *, anew: bool = False) -> Session:
        """Take a connection out of the pool that the server has not ended, as far as it can be told.

        - `anew`: look even if it was in use just now: the caller could not run his statements once more.
        """
        try:
            connection = self._take(pool, timeout)
            for _ in range(self._pool_size):  # one that was on its way during the check may be dead as well
                if not ((anew or _rested(connection)) and _told(connection)):
                    break
                pool.putconn(connection)
                self._check(pool)  # its own check= waits a second, then two, four ... between dead connections
                connection = self._take(pool, timeout)
        except PoolTimeout as error:
            self.connect("enqueue").close()  # says why, if the server is the reason
            raise self._exhausted(timeout or self._timeout) from error
        return connection

    async def _alend(
        self, pool: AsyncConnectionPool[AsyncSession], timeout: float | None = None, *, anew: bool = False
    ) -> AsyncSession:
        try:
            connection = await self._atake(pool, timeout)
            for _ in range(self._pool_size):
                if not ((anew or _rested(connection)) and _told(connection)):
                    break
                await pool.putconn(connection)
                await pool.check()
                connection = await self._atake(pool, timeout)
        except PoolTimeout as error:
            await asyncio.to_thread(lambda: self.connect("enqueue").close())
            raise self._exhausted(timeout or self._timeout) from error
        return connection

    def _give_up(self, pool: ConnectionPool[Session], connection: Session, error: BaseException) -> None:
        """Close a connection that is of no use after an error, and the others if they are not either."""
        useless = _useless(error)
        if useless or connection.pgconn.transaction_status == TransactionStatus.ACTIVE:  # interrupted
            connection.close()
        if useless:
            for other in self._warm.empty():
                pool.putconn(other)
            getattr(pool, "drain", pool.check)()  # (drain came with psycopg-pool 3.3)

    async def _agive_up(
        self, pool: AsyncConnectionPool[AsyncSession], connection: AsyncSession, error: BaseException
    ) -> None:
        useless = _useless(error)
        if useless or connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            await connection.close()
        if useless:
            await getattr(pool, "drain", pool.check)()

    def _take(self, pool: ConnectionPool[Session], timeout: float | None) -> Session:
        connection = self._warm.take()
        if connection is not None:
            return connection
        try:
            # A long wait in short ones: a pool tries anew to grow when it is asked, not while somebody waits.
            until = time.monotonic() + (timeout or self._timeout)
            while (left := until - time.monotonic()) > 0:
                with suppress(PoolTimeout):
                    connection = pool.getconn(min(left, self._timeout))
                    return connection
            raise PoolTimeout
        finally:
            self._warm.served(connection, time.monotonic())

    def _check(self, pool: ConnectionPool[Session]) -> None:
        """Have the pool look at all connections that are not in use."""
        for connection in self._warm.empty():
            pool.putconn(connection)
        pool.check()

    async def _atake(self, pool: AsyncConnectionPool[AsyncSession], timeout: float | None) -> AsyncSession:
        until = time.monotonic() + (timeout or self._timeout)
        while (left := until - time.monotonic()) > 0:
            try:
                return await pool.getconn(min(left, self._timeout))
            except PoolTimeout:
                pass
        raise PoolTimeout

    def _forget_parents(self) -> None:
        """In a forked child, forget the pools without a word to the server: the parent owns those connections."""
        if self._pid != os.getpid():
            # The lock too: another thread of the parent may have held it, and is not here to let it go.
            self._lock, self._pool, self._apools = threading.Lock(), None, WeakKeyDictionary()
            self._warm = Warm()
            self._pid = os.getpid()

    def _configure(self, connection: Session) -> None:
        self._settle(connection, SERVER)

    async def _aconfigure(self, connection: AsyncSession) -> None:
        if self._pooler:
            connection.real = False
        else:
            give(connection, self._timeout)
            try:
                (connection.real,) = await arun(connection, self._whose(connection, SERVER))
            except BaseException:
                await connection.close()
                raise
            self.pooled = not connection.real
        give(connection, self._limit)

    def _settle(self, connection: Session, settings: dict[str, str]) -> None:
        """Find out whether the session of a fresh connection is ours, and set this on it if so."""
        if self._pooler:
            connection.real = False
        else:
            give(connection, self._timeout)
            try:
                (connection.real,) = run(connection, self._whose(connection, settings))
            except BaseException:
                connection.close()
                raise
            self.pooled = not connection.real
        give(connection, self._limit)

    def _whose(self, connection: Session | AsyncSession, settings: dict[str, str]) -> Statement[bool]:
        # A pooler gives out process ids of its own invention. Told that there is none, we believe it.
        pid = None if self._pooler is False else connection.info.backend_pid
        return self.statements.session(pid, settings)

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
            **CLIENT,
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


def _told(connection: Session | AsyncSession) -> bool:
    """Return whether the server has said something unasked, such as goodbye: a system call, not a round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _rested(connection: Session | AsyncSession) -> bool:
    """Return whether the server had time to end a connection since it answered last: asking costs a system call."""
    return time.monotonic() - connection.answered > _FRESH


def _useless(error: BaseException) -> bool:
    """Return whether the other pooled connections are of no use either: a demoted leader keeps them, a proxy hangs."""
    return isinstance(error, Overdue) or (isinstance(error, psycopg.Error) and error.sqlstate == READ_ONLY)


class _Patience:
    """How long to repeat a statement: at once the first time, then with pauses that grow, until `seconds` are over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None
        self._longest = 0.025

    def pause(self, error: psycopg.Error) -> float | None:
        """Return the seconds to wait before the next time, half of them by chance, or None if there is to be none."""
        if not connection_lost(error) and not conflicts(error):
            return None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
            return 0.0
        self._longest = min(1.0, 2 * self._longest)
        return self._longest * (0.5 + random.random() / 2) if now < self._until else None
