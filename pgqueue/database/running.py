"""Run a statement on a psycopg connection, in each colour, and turn what PostgreSQL answers into our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.rows import tuple_row

from pgqueue.database.sessions import Punctual
from pgqueue.errors import SCHEMA_SQLSTATES, SQLSTATES, DatabaseUnavailable, SchemaMissing
from pgqueue.statements import Statement

T = TypeVar("T")

Connection: TypeAlias = "psycopg.Connection[Any]"
AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any]"
AnyConnection: TypeAlias = "Connection | AsyncConnection"

#: SQLSTATE classes and codes after which the same may be tried again on a fresh connection: connection errors,
#: shutdown and restart of the server, too many connections, a demoted leader, a pooler that gave up.
READ_ONLY = "25006"
_LOST = ("08", "57P01", "57P02", "57P03", "57P05", "53300", READ_ONLY)


def run(connection: Connection, statement: Statement[T]) -> list[T]:
    """Run a statement on a connection and return its rows, each made a value."""
    with guarded(), Punctual(connection, statement), psycopg.RawCursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(statement.sql.encode(), statement.params, binary=statement.binary)
        return [statement.row(row) for row in cursor.fetchall()]


def run_together(connection: Connection, *statements: Statement[Any]) -> list[list[Any]]:
    """Run several statements in one round trip and one transaction; return the rows of each."""
    with guarded(), Punctual(connection, *statements):
        cursors = [psycopg.RawCursor(connection, row_factory=tuple_row) for _ in statements]
        with connection.pipeline():
            for cursor, statement in zip(cursors, statements, strict=True):
                cursor.execute(statement.sql.encode(), statement.params, binary=statement.binary)
        return [
            [statement.row(row) for row in cursor.fetchall()]
            for cursor, statement in zip(cursors, statements, strict=True)
        ]


async def arun(connection: AsyncConnection, statement: Statement[T]) -> list[T]:
    """Run a statement on an async connection and return its rows, each made a value."""
    with guarded(), Punctual(connection, statement):
        async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(statement.sql.encode(), statement.params, binary=statement.binary)
            return [statement.row(row) for row in await cursor.fetchall()]


@contextmanager
def guarded(*, word: str = "") -> Iterator[None]:
    """Turn errors of a driver that pgqueue has a word for into that word; the others pass as they are.

    - `word`: one that only our statement has, where others may be sent with it: a Session of SQLAlchemy may send
      pending rows of the caller before it, and a table that these miss is his own affair.
    """
    try:
        yield
    except Exception as error:
        state = _sqlstate(error)
        if state in SQLSTATES and isinstance(error, psycopg.Error):
            diag = error.diag
            raise SQLSTATES[state](". ".join(filter(None, (diag.message_primary, diag.message_hint)))) from error
        if state in SCHEMA_SQLSTATES and word in str(getattr(error, "statement", "")):
            raise SchemaMissing from error
        raise


def connection_lost(error: BaseException) -> bool:
    """Return whether an error says that the connection, and not the statement, is at fault."""
    if isinstance(error, DatabaseUnavailable):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_LOST)


def passes(error: psycopg.Error) -> bool:
    """Return whether an error of a statement passes by itself: a conflict, a lock, a timeout, no room, the system."""
    return (error.sqlstate or "").startswith(("40", "53", "55", "57", "58"))


def transient(error: BaseException) -> bool:
    """Return whether the same may do later, on this connection or another."""
    return connection_lost(error) or (isinstance(error, psycopg.Error) and passes(error))


def conflicts(error: BaseException) -> bool:
    """Return whether PostgreSQL asks to run the transaction once more: a serialization failure or a deadlock."""
    return isinstance(error, psycopg.Error) and error.sqlstate in ("40001", "40P01")


def _sqlstate(error: Exception) -> str:
    """Return the SQLSTATE of an error of psycopg or asyncpg, or of the one that SQLAlchemy or Django put around it."""
    for found in (error, getattr(error, "orig", None), error.__cause__):
        state = getattr(found, "sqlstate", None) or getattr(found, "pgcode", None)
        if isinstance(state, str):
            return state
    return ""
