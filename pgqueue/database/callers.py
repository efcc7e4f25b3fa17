"""Enqueue on the connection of the caller, so that the job belongs to his transaction: one adapter a kind.

A kind is told by the module of the object's class, and the library is looked up only then, so nothing is
imported that the caller does not use.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any, TypeVar, cast

import psycopg

from pgqueue.database.running import arun, run
from pgqueue.errors import InvalidOption
from pgqueue.statements import Statement

T = TypeVar("T")

_PLACE = re.compile(r"\$(\d+)")

_KINDS = (
    "a psycopg connection or cursor, an asyncpg connection, a SQLAlchemy Connection, Session, AsyncConnection or "
    "AsyncSession, or the alias of a Django database"
)


def enqueue_on(connection: object, statement: Statement[T]) -> list[T]:
    """Run a statement on a caller's connection, in his transaction; he commits.

    Raises InvalidOption for an object of another kind, and for an async one: that wants `aapply_async`.
    """
    kind = _kind(connection)
    if isinstance(connection, psycopg.Cursor):
        return run(connection.connection, statement)
    if isinstance(connection, psycopg.Connection):
        return run(connection, statement)
    if kind == "sqlalchemy":
        if _is_async(connection):
            raise _wants_async(connection)
        result = cast(Any, connection).execute(*_for_sqlalchemy(statement))
        return [statement.row(tuple(row)) for row in result.all()]
    if kind == "django":
        return _run_django(cast(str, connection), statement)
    raise _wants_async(connection)


async def aenqueue_on(connection: object, statement: Statement[T]) -> list[T]:
    """Run a statement on a caller's connection, in his transaction; he commits. Takes async and sync kinds."""
    kind = _kind(connection)
    if isinstance(connection, psycopg.AsyncCursor):
        return await arun(connection.connection, statement)
    if isinstance(connection, psycopg.AsyncConnection):
        return await arun(connection, statement)
    if kind == "asyncpg":
        rows = await cast(Any, connection).fetch(statement.sql, *statement.params)
        return [statement.row(tuple(row)) for row in rows]
    if kind == "sqlalchemy" and _is_async(connection):
        # Through SQLAlchemy's own execute: its dialect for asyncpg opens the transaction with the first statement
        # that it sees, so a statement on the raw connection before that would commit by itself.
        result = await cast(Any, connection).execute(*_for_sqlalchemy(statement))
        return [statement.row(tuple(row)) for row in result.all()]
    return enqueue_on(connection, statement)


def _kind(connection: object) -> str:
    """Return which library a connection comes from; raises InvalidOption for none that is known."""
    if isinstance(connection, str):
        return "django"
    for base in type(connection).__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("psycopg", "asyncpg", "sqlalchemy"):
            return package
    raise InvalidOption(f"connection={connection!r:.80} cannot be used; give {_KINDS}")


def _is_async(connection: object) -> bool:
    return inspect.iscoroutinefunction(cast(Any, connection).execute)


def _wants_async(connection: object) -> InvalidOption:
    name = type(connection).__qualname__
    return InvalidOption(f"connection= is a {name}, which is asynchronous: await aapply_async() or aenqueue_many()")


def _for_sqlalchemy(statement: Statement[Any]) -> tuple[Any, dict[str, object]]:
    text = importlib.import_module("sqlalchemy").text
    names = {f"p{number}": value for number, value in enumerate(statement.params, 1)}
    return text(_PLACE.sub(r":p\1", statement.sql)), names


def _run_django(alias: str, statement: Statement[T]) -> list[T]:
    connections = importlib.import_module("django.db").connections
    try:
        database = connections[alias]
    except importlib.import_module("django.utils.connection").ConnectionDoesNotExist:
        raise InvalidOption(f"connection={alias!r} is not an alias in Django's DATABASES") from None
    if database.vendor != "postgresql":
        raise InvalidOption(f"connection={alias!r} is a {database.vendor} database; pgqueue needs PostgreSQL")
    # Django's own cursor, so that its lazy connection and its atomic() blocks are in charge.
    with database.cursor() as cursor:
        cursor.execute(_PLACE.sub("%s", statement.sql), statement.params)
        return [statement.row(tuple(row)) for row in cursor.fetchall()]
