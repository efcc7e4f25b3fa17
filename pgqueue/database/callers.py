"""Enqueue on the connection of the caller, so that the job belongs to his transaction: one adapter a kind.

A kind is told by the module of the object's class, and the library is looked up only then, so nothing is
imported that the caller does not use.
"""

from __future__ import annotations

import importlib
import re
from typing import Any, TypeVar, cast

from pgqueue.database.running import arun, guarded, run
from pgqueue.errors import InvalidOption
from pgqueue.statements import Statement

T = TypeVar("T")

_PLACE = re.compile(r"\$(\d+)")
_FUNCTION = re.compile(r"\w+\.\w+\(")

#: Package and name of a class, its own or inherited, to the kind of connection. By name: nothing is imported, and
#: an object of the same library that is no connection (a pool, an engine) is not mistaken for one.
_CLASSES = {
    ("psycopg", "Connection"): "psycopg",
    ("psycopg", "Cursor"): "psycopg cursor",
    ("psycopg", "AsyncConnection"): "async psycopg",
    ("psycopg", "AsyncCursor"): "async psycopg cursor",
    ("asyncpg", "Connection"): "async asyncpg",
    ("asyncpg", "PoolConnectionProxy"): "async asyncpg",
    ("sqlalchemy", "Connection"): "sqlalchemy",
    ("sqlalchemy", "Session"): "sqlalchemy",
    ("sqlalchemy", "scoped_session"): "sqlalchemy",
    ("sqlalchemy", "AsyncConnection"): "async sqlalchemy",
    ("sqlalchemy", "AsyncSession"): "async sqlalchemy",
    ("sqlalchemy", "async_scoped_session"): "async sqlalchemy",
}

_KINDS = (
    "a psycopg connection or cursor, an asyncpg connection, a SQLAlchemy Connection, Session, AsyncConnection or "
    "AsyncSession, or the alias of a Django database"
)


def enqueue_on(connection: object, statement: Statement[T]) -> list[T]:
    """Run a statement on a caller's connection, in his transaction; he commits.

    Raises InvalidOption, before anything is sent, for an object of another kind, for a database that is not
    PostgreSQL, and for an async connection: that wants `aapply_async`.
    """
    given = cast(Any, connection)
    match _kind(connection):
        case "psycopg":
            return run(given, statement)
        case "psycopg cursor":
            return run(given.connection, statement)
        case "sqlalchemy":
            call = _for_sqlalchemy(given, statement)
            with guarded(word=_function(statement)):
                return statement.values(given.execute(*call).all())
        case "django":
            return _run_django(given, statement)
    name = type(connection).__qualname__
    raise InvalidOption(f"connection= is a {name}, which is asynchronous: await aapply_async() or aenqueue_many()")


async def aenqueue_on(connection: object, statement: Statement[T]) -> list[T]:
    """Run a statement on a caller's connection, in his transaction; he commits. Takes async and sync kinds."""
    given = cast(Any, connection)
    match _kind(connection):
        case "async psycopg":
            return await arun(given, statement)
        case "async psycopg cursor":
            return await arun(given.connection, statement)
        case "async asyncpg":
            with guarded():
                return statement.values(await given.fetch(statement.sql, *statement.params))
        case "async sqlalchemy":
            # Through SQLAlchemy's own execute: its dialect for asyncpg opens the transaction with the first
            # statement that it sees, so a statement on the raw connection before that would commit by itself.
            call = _for_sqlalchemy(given, statement)
            with guarded(word=_function(statement)):
                return statement.values((await given.execute(*call)).all())
    return enqueue_on(connection, statement)


def _kind(connection: object) -> str:
    """Return which kind of connection this is; raises InvalidOption for none that is known."""
    if isinstance(connection, str):
        return "django"
    for base in type(connection).__mro__:
        kind = _CLASSES.get((base.__module__.partition(".")[0], base.__qualname__))
        if kind is not None:
            return kind
    raise InvalidOption(f"connection={connection!r:.80} cannot be used; give {_KINDS}")


def _function(statement: Statement[Any]) -> str:
    """Return the first function of ours that a statement calls, as it is written there."""
    return found[0] if (found := _FUNCTION.search(statement.sql)) else ""


def _for_sqlalchemy(connection: Any, statement: Statement[Any]) -> tuple[Any, dict[str, object]]:
    """Return what `execute` takes: the statement as SQLAlchemy's text, and its parameters by name."""
    sqlalchemy = importlib.import_module("sqlalchemy")
    try:
        bind = connection.get_bind() if hasattr(connection, "get_bind") else connection
    except sqlalchemy.exc.UnboundExecutionError:
        raise InvalidOption(
            "connection= is a Session without a database of its own; give session.connection(bind_arguments={...})"
        ) from None
    if bind.dialect.name != "postgresql":
        raise InvalidOption(f"connection= leads to a {bind.dialect.name} database; pgqueue needs PostgreSQL")
    # In brackets: text() does not see a name that a colon follows, and a cast is written with two.
    names = {f"p{number}": value for number, value in enumerate(statement.params, 1)}
    return sqlalchemy.text(_PLACE.sub(r"(:p\1)", statement.sql)), names


def _run_django(alias: str, statement: Statement[T]) -> list[T]:
    if "://" in alias or "=" in alias:  # not shown: it may hold a password
        raise InvalidOption(f"connection= is a DSN, which has no transaction to join; give {_KINDS}")
    try:
        connections = importlib.import_module("django.db").connections
        exceptions = importlib.import_module("django.core.exceptions")
    except ModuleNotFoundError:
        raise InvalidOption(
            f"connection={alias!r:.80} is read as the alias of a Django database, but Django is not installed; "
            f"give {_KINDS}"
        ) from None
    try:
        database = connections[alias]
    except (exceptions.ImproperlyConfigured, importlib.import_module("django.utils.connection").ConnectionDoesNotExist):
        raise InvalidOption(f"connection={alias!r:.80} is not an alias in Django's DATABASES") from None
    if database.vendor != "postgresql":
        raise InvalidOption(f"connection={alias!r:.80} is a {database.vendor} database; pgqueue needs PostgreSQL")
    try:
        # Django's own cursor, so that its lazy connection and its atomic() blocks are in charge.
        with guarded(), database.cursor() as cursor:
            cursor.execute(_PLACE.sub("%s", statement.sql), statement.params)
            return statement.values(cursor.fetchall())
    except exceptions.SynchronousOnlyOperation:
        raise InvalidOption(
            f"connection={alias!r:.80}: Django's connections do not work in a coroutine; "
            "await sync_to_async(task.apply_async)(...) instead"
        ) from None
