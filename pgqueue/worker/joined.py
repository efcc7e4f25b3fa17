"""Everything that an app does on one connection of its caller, in the transaction that he has open there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue.app import PgQueue
from pgqueue.database import Database, run
from pgqueue.database.sessions import Session
from pgqueue.errors import InvalidOption
from pgqueue.statements import Statement, Statements

T = TypeVar("T")
Connection = psycopg.Connection[Any]


@contextmanager
def joined(app: PgQueue, connection: object) -> Iterator[None]:
    """Have everything that an app does happen on one connection, in its open transaction, as long as this is entered.

    So the caller's rollback takes it all back: jobs that `delay` enqueued, what `drain` ran, results. Nothing is
    committed here, and nobody else sees any of it.

    - `connection`: a psycopg connection, or the alias of a Django database.

    Raises InvalidOption for another kind of connection, and for one that has no transaction open.

        with joined(app, "default"):    # in a TestCase of Django
            place_order(7)              # calls settle.delay(7)
            drain(app)
    """
    database = Joined(app.settings.schema_name, connection)
    database.check_open()
    before = app._database, app._listener
    app._database, app._listener = database, None
    try:
        yield
    finally:
        app._database, app._listener = before


class Joined(Database):
    """The database of an app that has joined a transaction: what asks for a connection is given that one."""

    def __init__(self, schema: str, connection: object) -> None:
        # Whoever waits for a result looks now and then, as behind a pooler: nothing is notified before the commit.
        super().__init__("", Statements(schema), pooler=True)
        self._alias = connection if isinstance(connection, str) else None
        self._connection = _of_django(connection) if isinstance(connection, str) else _of_psycopg(connection)

    def check_open(self) -> None:
        """Raise InvalidOption if there is no transaction that somebody else will end: our savepoint would commit."""
        if self._connection.info.transaction_status != TransactionStatus.IDLE:
            return
        if self._connection.autocommit:
            raise InvalidOption(
                "connection= has no transaction open, so what runs on it would be committed: open one around this "
                "(connection.transaction(), transaction.atomic()), or leave connection= out"
            )
        self._connection.execute("select")  # opens it, as any first statement does

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Contain what fails: an aborted transaction goes back to where this began, everything else stays."""
        self.check_open()
        if self._alias is not None:
            transaction = importlib.import_module("django.db").transaction
            with transaction.atomic(using=self._alias):
                yield
                if self._aborted:
                    transaction.set_rollback(True, using=self._alias)
            return
        with self._connection.transaction():
            yield
            if self._aborted:
                raise psycopg.Rollback

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Session]:
        """Lend the connection."""
        self.check_open()
        yield cast(Session, self._connection)

    def aconnection(self, timeout: float | None = None) -> NoReturn:
        """Raise InvalidOption: a coroutine cannot use the connection."""
        raise InvalidOption(
            "the app has joined a transaction on a connection that coroutines cannot use: drain coroutine tasks that "
            "open a transaction without connection="
        )

    def connect(self, purpose: str, timeout: float | None = None) -> NoReturn:
        """Raise InvalidOption: another connection would not see what happens on this one."""
        raise InvalidOption(
            f"a connection of its own ({purpose}) sees nothing of the transaction that the app has joined"
        )

    def run(self, statement: Statement[T], again: Callable[[], Statement[T]] | None = None) -> list[T]:
        """Run a statement in a savepoint."""
        self.check_open()
        with self._connection.transaction():
            return run(self._connection, statement)

    async def arun(self, statement: Statement[T], again: Callable[[], Statement[T]] | None = None) -> list[T]:
        """Run a statement as `run` does; the event loop waits meanwhile."""
        return self.run(statement)

    @property
    def _aborted(self) -> bool:
        return self._connection.info.transaction_status == TransactionStatus.INERROR


def _of_psycopg(connection: object) -> Connection:
    if not isinstance(connection, psycopg.Connection):
        raise InvalidOption(
            f"connection={connection!r:.80} cannot be joined; give a psycopg connection (of a SQLAlchemy session it is "
            "session.connection().connection.driver_connection), or the alias of a Django database"
        )
    return connection


def _of_django(alias: str) -> Connection:
    try:
        connections: Mapping[str, Any] = importlib.import_module("django.db").connections
    except ModuleNotFoundError:
        raise InvalidOption(
            f"connection={alias!r:.80} is read as the alias of a Django database, but Django is not installed"
        ) from None
    if alias not in connections:
        raise InvalidOption(f"connection={alias!r:.80} is not an alias in Django's DATABASES")
    database = connections[alias]
    database.ensure_connection()
    return _of_psycopg(database.connection)
