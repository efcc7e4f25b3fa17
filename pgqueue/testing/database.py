"""A database for a run of tests, a schema in it, and empty tables for each test."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from pgqueue.embedded import Embedded, binaries
from pgqueue.errors import DatabaseUnavailable
from pgqueue.settings import find_dsn
from pgqueue.sql import schema as schema_script

#: Of a server whose data nobody wants to find again.
_FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
#: What an earlier test has left open is an error, to be seen soon.
_PATIENCE = "5s"


@contextmanager
def server() -> Iterator[str]:
    """Yield the DSN of PGQUEUE_TEST_DSN, or of a server that is started now and gone afterwards.

    Raises DatabaseUnavailable, naming the cure, where there is neither.
    """
    given = os.environ.get("PGQUEUE_TEST_DSN")
    if given:
        yield find_dsn(given)
        return
    try:
        bindir = binaries()
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(
            f"{str(error).rstrip('.')}; or name a database for the tests: PGQUEUE_TEST_DSN=postgresql://..., or a "
            "fixture pgqueue_dsn of your own"
        ) from None
    # Not mkdtemp: where PostgreSQL has to run as another user, the launcher makes the folder itself.
    folder = Path(tempfile.gettempdir(), f"pgqueue-test-{secrets.token_hex(6)}")
    try:
        with Embedded(folder, settings=_FAST, bindir=bindir) as embedded:
            yield embedded.dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_schema(dsn: str) -> Iterator[str]:
    """Create a schema with all tables and functions of pgqueue; yield its name, and drop it afterwards.

    - `dsn`: of a database whose user may create schemas in it.

        with temporary_schema(dsn) as schema:
            app.configure(dsn=dsn, schema=schema)
    """
    name, dsn = f"pgqueue_test_{secrets.token_hex(6)}", find_dsn(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(schema_script(name).encode())
    try:
        yield name
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"set lock_timeout = '{_PATIENCE}'; set client_min_messages = warning".encode())
            connection.execute(f"drop schema if exists {name} cascade".encode())


def empty(dsn: str, schema: str) -> None:
    """Delete all jobs, results and workers of a schema: 10 to 30 ms with the connection; a new one takes 200."""
    with psycopg.connect(find_dsn(dsn), autocommit=True) as connection:
        connection.execute(f"set lock_timeout = '{_PATIENCE}'".encode())
        tables = connection.execute(
            "select relname from pg_class where relnamespace = to_regnamespace(%s) and relkind = 'r'"
            " and relname <> 'alembic_version'",
            [schema],
        ).fetchall()
        # In one statement the order does not matter: foreign keys are checked at its end.
        deletes = [
            sql.SQL("{} as (delete from {})").format(sql.Identifier(table), sql.Identifier(schema, table))
            for (table,) in tables
        ]
        connection.execute(sql.SQL("with {} select").format(sql.SQL(", ").join(deletes)))
