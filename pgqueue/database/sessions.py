"""Connections of our own: what is set on them, whether the session behind is theirs, how long they wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from time import monotonic
from typing import Any, TypeVar

import psycopg

from pgqueue.statements import Statement

T = TypeVar("T")

#: Seconds that the server has beyond its own deadline, so that it has the first word.
_MARGIN = 2.0
#: Bytes of parameters that earn a statement another second: a million jobs may be enqueued by one.
_BYTES_A_SECOND = 100_000
#: Seconds that BEGIN and COMMIT may take: deferred constraints and a synchronous standby are no fault.
_COMMIT = 300.0
#: Uses of a statement in a session before it is prepared; the default of psycopg.
_OFTEN = 5

#: Keepalives of our side of every connection: a peer that vanished is noticed after 3 + 3 x 1 s, not after two hours.
CLIENT = {"keepalives_idle": 3, "keepalives_interval": 1, "keepalives_count": 3, "tcp_user_timeout": 5000}
#: The same for the server's side, so that a client that vanished holds its locks no longer. In s or ms.
SERVER = {
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "client_connection_check_interval": "1000",
}


def engine_settings(seconds: float) -> dict[str, str]:
    """Return what is set where nothing but statements of ours runs, whatever the role or the database says.

    - `seconds`: that the server gives each of them.

    `default_transaction_read_only` is not among them: it says that this server is not the one to write to.
    """
    return {
        **SERVER,
        "statement_timeout": f"{seconds * 1000:.0f}",
        "lock_timeout": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "transaction_timeout": "0",
        "default_transaction_isolation": "read committed",
    }


class Overdue(psycopg.OperationalError):
    """The server was silent for longer than it is given; the connection is closed."""


def give(session: Session | AsyncSession, seconds: float) -> None:
    """Have a session wait so long for whatever runs on it: the server has the first word, so a little longer."""
    session.limit, session.patience = seconds, seconds + _MARGIN


class Prepared:
    """Which statements the server knows by name in a session: those that are sent often.

    psycopg prepares after five uses too, but its statements go through cursors and adapters, which ours do not.
    """

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}
        self._names: dict[bytes, bytes] = {}

    def name(self, text: bytes, kind: bytes) -> bytes | None:
        """Return the name of a statement, or None if the server does not know it; count this use of its kind."""
        found = self._names.get(text)
        if found is None:
            self._uses[kind] = self._uses.get(kind, 0) + 1
        return found

    def new_name(self, kind: bytes) -> bytes | None:
        """Return the name under which a statement is to be prepared now; None if its kind is not used often enough."""
        return b"pgqueue_%d" % len(self._names) if self._uses[kind] > _OFTEN else None

    def add(self, text: bytes, name: bytes) -> None:
        """Hear that it has been prepared."""
        self._names[text] = name


class Session(psycopg.Connection[Any]):
    """A connection that does not wait for ever.

    - `real`: whether the session is ours alone; not so behind a transaction pooler.
    - `limit`: seconds without a byte that statements of ours may take.
    - `patience`: the same for what runs now; None for as long as it takes, while statements of the user's run.
    - `answered`: when a statement of ours was answered last, on the monotonic clock.
    - `lent`: when the pool has given it out.
    - `prepared`: the statements that the server knows by name.
    """

    real = True
    limit = 15.0
    patience: float | None = limit + _MARGIN
    answered = -inf
    lent = -inf

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prepared = Prepared()

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        if self.patience is None:
            return super().wait(gen, *args, **options)
        try:
            return super().wait(_within(gen, self.patience), *args, **options)
        except Overdue:
            self.pgconn.finish()
            raise

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """As psycopg's; its BEGIN and COMMIT do not wait for ever, what runs between them may."""
        before, self.patience = self.patience, _COMMIT
        try:
            with super().transaction(*args, **options) as transaction:
                self.patience = before
                try:
                    yield transaction
                finally:
                    self.patience = _COMMIT
        finally:
            self.patience = before


class AsyncSession(psycopg.AsyncConnection[Any]):
    """The same for coroutines."""

    real = True
    limit = 15.0
    patience: float | None = limit + _MARGIN
    answered = -inf

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        if self.patience is None:
            return await super().wait(gen, *args, **options)
        try:
            return await super().wait(_within(gen, self.patience), *args, **options)
        except Overdue:
            self.pgconn.finish()
            raise

    @asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        """As psycopg's; its BEGIN and COMMIT do not wait for ever, what runs between them may."""
        before, self.patience = self.patience, _COMMIT
        try:
            async with super().transaction(*args, **options) as transaction:
                self.patience = before
                try:
                    yield transaction
                finally:
                    self.patience = _COMMIT
        finally:
            self.patience = before


def patience_for(session: Session | AsyncSession, size: int) -> float:
    """Return the seconds that the server may be silent over a statement of ours with so many bytes of parameters."""
    return session.limit + _MARGIN + size / _BYTES_A_SECOND


class Punctual:
    """While it is entered, a connection of ours gives the server so long to answer these statements of ours.

    A class and not a generator: it stands around every statement of a worker.
    """

    __slots__ = ("_before", "_session", "_statements")

    def __init__(self, connection: object, *statements: Statement[Any]) -> None:
        self._session = connection if isinstance(connection, Session | AsyncSession) else None
        self._statements = statements

    def __enter__(self) -> None:
        session = self._session
        if session is not None:
            self._before = session.patience
            size = sum(len(value) for one in self._statements for value in one.params if isinstance(value, str))
            session.patience = patience_for(session, size)

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.patience = self._before


def _within(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """Go through a generator of psycopg's, which is told every 100 ms that nothing came; raise Overdue in the end."""
    deadline = monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                deadline = monotonic() + seconds
            elif monotonic() > deadline:
                raise Overdue(f"no answer from the server for {seconds:.3g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        value: T = end.value
        return value
