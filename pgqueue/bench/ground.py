"""Where a benchmark takes place: a schema of its own, which is dropped at the end however that comes."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.bench.tasks import app
from pgqueue.embedded import Embedded
from pgqueue.errors import BenchFailed
from pgqueue.sql import check_schema_name, rename
from pgqueue.sql import schema as schema_script

SCHEMA = "pgqueue_bench"

#: The comment of the schema: what has it may be dropped.
_MARK = "Made by pgqueue bench, which drops it at its end."
#: One bench at a time in a schema; whoever finds it free knows that what it finds there is a left-over.
_LOCK = "select pg_try_advisory_lock(hashtextextended('pgqueue bench ' || %s, 0))"
_FOUND = "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = %s"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Ground:
    """A database with an empty schema; `version` of the server, `words` say where it is."""

    dsn: str
    schema: str
    version: str
    words: str

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection in autocommit mode; the caller closes it."""
        return psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None, application_name="pgqueue bench")

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that works here; nobody else sees the password in it."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PGQUEUE_APP", "PGQUEUE_DSN")}
        return {**kept, "PGQUEUE_SCHEMA": self.schema, **({"PGQUEUE_DSN": self.dsn} if self.dsn else {})}

    def fetch(self, connection: psycopg.Connection[Any], query: str, **params: object) -> list[Any]:
        """Return the rows of a query that is written for the schema `pgqueue`, with %(name)s for parameters."""
        return connection.execute(rename(query, self.schema).encode(), params).fetchall()

    def empty(self) -> None:
        """Empty the tables, and begin a new checkpoint if this user may: else one comes in somebody's measurement."""
        with self.connect() as connection:
            connection.execute(rename("truncate pgqueue.job, pgqueue.result", self.schema).encode())
            with suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("checkpoint")


@contextmanager
def embedded_ground(schema: str | None) -> Iterator[Ground]:
    """Start a server in a temporary folder, with fsync; at the end both are gone."""
    folder = Path(tempfile.gettempdir(), f"pgqueue-bench-{secrets.token_hex(4)}")
    try:
        with Embedded(folder) as server, psycopg.connect(server.dsn, autocommit=True) as keeper:
            place = f"of our own in {folder} (removed at the end)"
            with given_ground(keeper, server.dsn, schema, place, lambda sentence: None) as ground:
                yield ground
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def given_ground(
    keeper: psycopg.Connection[Any], dsn: str, schema: str | None, place: str, say: Say
) -> Iterator[Ground]:
    """Make a schema in a database, and drop it at the end.

    - `keeper`: a connection that is open as long as this goes on: it holds the lock.
    - `schema`: default "pgqueue_bench"; `place`: the database in words; `say`: told of a left-over.

    Raises BenchFailed if the schema is somebody else's, or if another bench runs in it.
    """
    schema = check_schema_name(schema or SCHEMA)
    (free,) = keeper.execute(_LOCK, [schema]).fetchone() or (False,)
    if not free:
        raise BenchFailed(
            f"another bench runs in the schema {schema}: wait for its end, or name another: --schema NAME"
        )
    found = keeper.execute(_FOUND, [schema]).fetchone()
    if found is not None and found[0] != _MARK:
        raise BenchFailed(
            f"the schema {schema} is there already, and no bench has made it: a bench drops its schema at the end, so "
            "name one that does not exist: --schema NAME"
        )
    if found is not None:
        say(f"an earlier bench has left the schema {schema} behind: it is dropped")
        _drop(keeper, schema)
    version = keeper.info.parameter_status("server_version") or ""
    ground = Ground(dsn, schema, version, f"PostgreSQL {version} {place}")
    # Before anything is dropped: somebody else may just have made it.
    keeper.execute(f"create schema {schema}; comment on schema {schema} is '{_MARK}'".encode())
    try:
        keeper.execute(schema_script(schema).encode())
        app.configure(dsn=dsn or None, schema=schema)
        yield ground
    finally:
        app.close()
        # The keeper's connection may be what went wrong.
        with ground.connect() as connection:
            _drop(connection, schema)


def _drop(connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute(f"set client_min_messages = warning; drop schema if exists {schema} cascade".encode())
