"""Where the demonstration takes place: a server that it starts itself, or a database that it is given."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgqueue.cli.demo.tasks import CREATE_TABLE
from pgqueue.embedded import Embedded, binaries
from pgqueue.errors import DatabaseUnavailable, PgQueueError
from pgqueue.sql import DEFAULT_SCHEMA, check_schema_name
from pgqueue.sql import schema as schema_script

_OWN_SCHEMA = "pgqueue_demo"  # in a database that is not ours


class PlaceTaken(PgQueueError):
    """The schemas of the demonstration are there already."""


@dataclass(frozen=True, slots=True)
class Place:
    """A database with the schemas in it; `words` say where it is, `entrance` how to get in."""

    dsn: str
    schema: str
    words: str
    entrance: str


def embedded_place(stack: ExitStack, keep: Path | None, schema: str | None) -> Place:
    """Start a server in a new folder; the stack stops it, and removes the folder unless it is to be kept."""
    _forget_libpq_variables()
    folder = keep or Path(tempfile.gettempdir(), f"pgqueue-demo-{secrets.token_hex(4)}")
    if keep is None:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = stack.enter_context(Embedded(folder))
    schema = check_schema_name(schema or DEFAULT_SCHEMA)
    version = _create(server.dsn, schema)
    fate = "removed at the end" if keep is None else "kept"
    words = f"PostgreSQL {version} of our own in {server.directory} ({fate})"
    return Place(server.dsn, schema, words, shlex.join([psql(), server.dsn]))


def given_place(stack: ExitStack, dsn: str, schema: str | None) -> Place:
    """Use a database in two new schemas, which the stack drops; raises PlaceTaken if one is there already."""
    schema = check_schema_name(schema or _OWN_SCHEMA)
    try:
        version = _create(dsn, schema)
    except psycopg.errors.DuplicateSchema as error:
        raise PlaceTaken(
            f"{error.diag.message_primary}: another demo runs here, or one was killed; after the latter: "
            f"drop schema if exists {schema}, demo cascade"
        ) from None
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"no connection to the database of --dsn: {str(error).strip()}") from error
    stack.callback(_drop, dsn, schema)
    words = f"PostgreSQL {version} of --dsn, schemas {schema} and demo (dropped at the end)"
    return Place(dsn, schema, words, "psql with the same DSN")


def look_at(folder: Path) -> int:
    """Start the server of a folder that was kept, and open psql on it until the user leaves."""
    _forget_libpq_variables()
    with Embedded(folder) as server:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # in psql Ctrl-C means: not this query
        return subprocess.run([psql(), server.dsn], check=False).returncode  # noqa: S603


def psql() -> str:
    """Return the name or path of a psql."""
    embedded = binaries() / "psql"
    return "psql" if shutil.which("psql") or not embedded.exists() else str(embedded)


def _create(dsn: str, schema: str) -> str:
    """Create the schemas, or neither of the two; return the version of the server."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create schema {schema}; {CREATE_TABLE}".encode())
        connection.execute(schema_script(schema).encode())
        return connection.info.parameter_status("server_version") or ""


def _drop(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"drop schema if exists {schema}, demo cascade".encode())


def _forget_libpq_variables() -> None:
    """Forget PGHOSTADDR and its kin, here and for the workers: they lead to other servers than our own."""
    for name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGQUEUE_")]:
        del os.environ[name]
