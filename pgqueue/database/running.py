"""Run a statement on a psycopg connection, in each colour, and turn what PostgreSQL answers into our errors."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import tuple_row

from pgqueue.database.sessions import AsyncSession, Overdue, Prepared, Punctual, Session, patience_for
from pgqueue.errors import SCHEMA_SQLSTATES, SQLSTATES, DatabaseUnavailable, PgQueueError, SchemaMissing
from pgqueue.statements import Statement

T = TypeVar("T")

Connection: TypeAlias = "psycopg.Connection[Any]"
AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any]"
AnyConnection: TypeAlias = "Connection | AsyncConnection"

#: SQLSTATE classes and codes after which the same may be tried again on a fresh connection: connection errors,
#: shutdown and restart of the server, too many connections, a demoted leader, a pooler that gave up.
READ_ONLY = "25006"
_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
_LOST = ("08", "57P01", "57P02", "57P03", "57P05", "53300", READ_ONLY)


def run(connection: Connection, statement: Statement[T]) -> list[T]:
    """Run a statement on a connection and return its rows, each made a value."""
    with guarded(), Punctual(connection, statement), psycopg.RawCursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(statement.sql.encode(), statement.params, binary=statement.binary)
        return statement.values(cursor.fetchall())


def tell(session: Session, statement: Statement[T]) -> list[T]:
    """Run a statement whose answer is known beforehand on a connection of ours; do not read its rows.

    It does what `run` does for half of the client's CPU time: neither cursor nor adapters, straight to libpq. All its
    parameters are texts. Interrupted (Ctrl-C, a time limit), it leaves a connection that has to be closed. What is told
    often is prepared, where the session is ours: a fifteenth of what the server does for one job is parsing.
    """
    if statement.answer is None or session.pgconn.parameter_status(b"client_encoding") != b"UTF8":
        return run(session, statement)
    try:
        patience, heard = _send_named(session, statement)
        values = statement.values(())
        result = _hear(session.pgconn, patience)
    except psycopg.errors.InvalidSqlStatementName:  # somebody has said DISCARD or DEALLOCATE; nothing was done
        session.prepared = Prepared()
        return tell(session, statement)
    except psycopg.Error as error:
        if (ours := _in_our_words(error)) is not None:
            raise ours from error
        raise
    if heard is not None:
        heard(result.get_value(0, 0))
    return values


def tell_all(session: Session, statements: Iterable[Statement[T]]) -> list[T]:
    """Run statements in one transaction, as `tell` does where it can; each is taken while the server works on the last.

    What is raised while one is taken undoes them all, and stays as it is: it is not ours.
    """
    values: list[T] = []
    unheard: float | None = None  # the patience for a statement whose end has not been heard yet
    straight = session.pgconn.parameter_status(b"client_encoding") == b"UTF8"
    session.execute(b"begin")
    try:
        for statement in statements:
            with guarded():
                if unheard is not None:
                    patience, unheard = unheard, None
                    _hear(session.pgconn, patience)
                if straight and statement.answer is not None:
                    unheard = _send(session, statement)
                    values += statement.values(())
                else:
                    values += run(session, statement)
        with guarded():
            if unheard is not None:
                patience, unheard = unheard, None
                _hear(session.pgconn, patience)
            session.execute(b"commit")
    except Exception:
        with suppress(psycopg.Error):
            if unheard is not None:
                _hear(session.pgconn, unheard)
        with suppress(psycopg.Error):
            session.execute(b"rollback")
        raise
    return values


def _send(session: Session, statement: Statement[Any]) -> float:
    """Send a statement straight to libpq; return the seconds that the server may be silent over it."""
    texts, patience = _texts(session, statement)
    session.pgconn.send_query_params(statement.bare, texts)
    _send_all(session.pgconn, patience)
    return patience


def _send_named(session: Session, statement: Statement[Any]) -> tuple[float, Callable[[bytes | None], None] | None]:
    """Send a statement as `_send` does; one that is sent often, where the session is ours, by a name.

    Return who is to hear the first value of the answer, too.
    """
    prepared = session.prepared
    text, heard = (statement.bare, None) if statement.prepared is None else statement.prepared()
    if (name := prepared.name(text, statement.bare)) is None:
        if not session.real or (name := prepared.new_name(statement.bare)) is None:
            return _send(session, statement), None
        session.pgconn.send_prepare(name, text)
        _send_all(session.pgconn, patience_for(session, 0))
        _hear(session.pgconn, patience_for(session, 0))
        prepared.add(text, name)
    texts, patience = _texts(session, statement)
    session.pgconn.send_query_prepared(name, texts)
    _send_all(session.pgconn, patience)
    return patience, heard


def _texts(session: Session | AsyncSession, statement: Statement[Any]) -> tuple[list[bytes | None], float]:
    """Return the parameters of a statement as libpq takes them, and the patience that they earn."""
    params: Sequence[Any] = statement.params
    texts = [None if text is None else text.encode() for text in params]
    return texts, patience_for(session, sum(map(len, filter(None, texts))))


def _hear(pgconn: PGconn, patience: float) -> PGresult:
    """Wait for the end of what has been sent and return the answer; raise what the server says against it."""
    answer: PGresult | None = None
    failed: PGresult | None = None
    # To the last one: else the connection is of no more use.
    while True:
        while pgconn.is_busy():
            _await(pgconn, select.POLLIN, patience)
        if (result := pgconn.get_result()) is None:
            break
        if result.status in _DONE:
            answer = result
        else:
            failed = failed or result
    if failed is not None:
        raise psycopg.errors.error_from_result(failed, "utf-8")
    if answer is None:
        raise psycopg.OperationalError("the server has answered nothing")
    return answer


def _send_all(pgconn: PGconn, patience: float) -> None:
    while pgconn.flush():
        _await(pgconn, select.POLLIN | select.POLLOUT, patience)  # the server may say something before it has it all


def _await(pgconn: PGconn, events: int, patience: float) -> None:
    """Wait until the socket is ready, and read what has come; raise Overdue if nothing happens for so many seconds."""
    poll = select.poll()
    poll.register(pgconn.socket, events)
    if not poll.poll(patience * 1000):
        pgconn.finish()
        raise Overdue(f"no answer from the server for {patience:.3g} s")
    pgconn.consume_input()


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


async def atell(session: AsyncSession, statement: Statement[T]) -> list[T]:
    """Run a statement as `tell` does, without blocking the event loop."""
    pgconn = session.pgconn
    if pgconn.parameter_status(b"client_encoding") != b"UTF8":
        return await arun(session, statement)
    with guarded(), Punctual(session, statement):
        texts, _ = _texts(session, statement)
        pgconn.send_query_params(statement.bare, texts)
        for result in await session.wait(generators.execute(pgconn)):
            if result.status not in _DONE:
                raise psycopg.errors.error_from_result(result, "utf-8")
    return statement.values(())


async def arun(connection: AsyncConnection, statement: Statement[T]) -> list[T]:
    """Run a statement on an async connection and return its rows, each made a value."""
    with guarded(), Punctual(connection, statement):
        async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(statement.sql.encode(), statement.params, binary=statement.binary)
            return statement.values(await cursor.fetchall())


@contextmanager
def guarded(*, word: str = "") -> Iterator[None]:
    """Turn errors of a driver that pgqueue has a word for into that word; the others pass as they are.

    - `word`: one that only our statement has, where others may be sent with it: a Session of SQLAlchemy may send
      pending rows of the caller before it, and a table that these miss is his own affair.
    """
    try:
        yield
    except Exception as error:
        if (ours := _in_our_words(error, word)) is not None:
            raise ours from error
        raise


def _in_our_words(error: Exception, word: str = "") -> PgQueueError | None:
    state = _sqlstate(error)
    if state in SQLSTATES and isinstance(error, psycopg.Error):
        diag = error.diag
        return SQLSTATES[state](". ".join(filter(None, (diag.message_primary, diag.message_hint))))
    if state in SCHEMA_SQLSTATES and word in str(getattr(error, "statement", "")):
        return SchemaMissing()
    return None


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
