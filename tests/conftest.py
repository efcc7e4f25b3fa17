"""One PostgreSQL server for the whole run, started by the first test that needs a database.

- `PGQUEUE_TEST_DSN`: use this server instead; its user must be allowed to create databases.
- `PGQUEUE_TEST_BINDIR`: start the binaries of this folder, such as `/usr/lib/postgresql/15/bin`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from pgqueue.embedded import Embedded

Connect = Callable[..., psycopg.Connection[Any]]

_TMPFS = Path("/dev/shm")
_TMPFS_FREE = 512 * 2**20  # a cluster takes 40 MB and each database 8; a container's default is 64
# A test that forgets to say where must not find a developer's own database.
_LEADING_ELSEWHERE = ("PGQUEUE_DSN", "DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE")


def pytest_configure() -> None:
    for name in _LEADING_ELSEWHERE:
        os.environ.pop(name, None)


@dataclass(frozen=True, slots=True)
class Server:
    """What pytest-postgresql's `depends_on` reads."""

    host: str
    port: int
    user: str
    password: str | None
    options: str
    maintenance_dbname: str
    template_dbname: None = None

    @classmethod
    def at(cls, dsn: str) -> Server:
        known = conninfo_to_dict(dsn)
        return cls(
            host=str(known.get("host", "localhost")),
            port=int(known.get("port", 5432)),
            user=str(known.get("user", "postgres")),
            password=known.get("password"),  # type: ignore[arg-type]
            options=str(known.get("options", "")),
            maintenance_dbname=str(known.get("dbname", "postgres")),
        )

    def dsn(self, dbname: str) -> str:
        """A URI that psycopg, asyncpg, SQLAlchemy and `pgqueue --dsn` all understand."""
        login = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        return f"postgresql://{login}@/{dbname}?host={quote(self.host, safe='')}&port={self.port}"


@pytest.fixture(scope="session")
def pg_server() -> Iterator[Server]:
    """The server: where it is and how to reach its databases."""
    if dsn := os.environ.get("PGQUEUE_TEST_DSN"):
        yield Server.at(dsn)
        return
    bindir = os.environ.get("PGQUEUE_TEST_BINDIR")
    # Not mkdtemp: where PostgreSQL has to run as nobody, the launcher must make the folder itself.
    directory = _fast_folder() / f"pgqueue-test-{secrets.token_hex(8)}"
    server = Embedded(directory, settings={"max_connections": "200"}, bindir=Path(bindir) if bindir else None)
    try:
        with server:
            yield Server.at(server.dsn)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fast_folder() -> Path:
    usable = os.access(_TMPFS, os.W_OK) and shutil.disk_usage(_TMPFS).free >= _TMPFS_FREE
    return _TMPFS if usable else Path(tempfile.gettempdir())


def _load_schema(**where: Any) -> None:
    # Here, so that a fault in the SQL package does not keep the tests without a database from running.
    from pgqueue.sql import schema

    with psycopg.connect(**where) as connection:
        connection.execute(schema())


# The name is this run's own: two runs may share the server of PGQUEUE_TEST_DSN.
pg_template = factories.postgresql_noproc(
    depends_on="pg_server", dbname=f"pgqueue_test_{os.getpid()}", load=[_load_schema], load_autocommit=True
)
# A database for each test, with the schema: pytest-postgresql's own fixture, on our server.
postgresql = factories.postgresql("pg_template")


@pytest.fixture(scope="session")
def _shared_dsn(pg_server: Server, pg_template: NoopExecutor) -> Iterator[str]:
    dbname = f"{pg_template.dbname}_shared"
    with DatabaseJanitor(
        user=pg_server.user,
        password=pg_server.password,
        host=pg_server.host,
        port=pg_server.port,
        dbname=dbname,
        template_dbname=pg_template.template_dbname,
        maintenance_dbname=pg_server.maintenance_dbname,
    ):
        yield pg_server.dsn(dbname)


@pytest.fixture
def dsn(_shared_dsn: str) -> str:
    """DSN of a database with the schema `pgqueue` and nothing in its tables."""
    with psycopg.connect(_shared_dsn, autocommit=True) as connection:
        # What an earlier test has left open is an error of that test, to be seen at once.
        connection.execute("set lock_timeout = '5s'")
        _empty(connection)
    return _shared_dsn


def _empty(connection: psycopg.Connection[Any]) -> None:
    """DELETE costs 2 ms, TRUNCATE 10 on tmpfs and 100 on a disk."""
    tables = connection.execute(
        "select relname from pg_class where relnamespace = to_regnamespace('pgqueue')"
        " and relkind in ('r', 'p') and not relispartition and relname <> 'alembic_version'"
    ).fetchall()
    if tables:
        # In one statement the order does not matter: foreign keys are checked at its end.
        deletes = [
            sql.SQL("{} as (delete from {})").format(sql.Identifier(name), sql.Identifier("pgqueue", name))
            for (name,) in tables
        ]
        connection.execute(sql.SQL("with {} select").format(sql.SQL(", ").join(deletes)))


@pytest.fixture
def connect(dsn: str) -> Iterator[Connect]:
    """Opens further connections, autocommit unless told otherwise, to `dsn` or another; closed at the end."""
    opened: list[psycopg.Connection[Any]] = []

    def connect(conninfo: str = dsn, *, autocommit: bool = True, **options: Any) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(conninfo, autocommit=autocommit, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def conn(connect: Connect) -> psycopg.Connection[Any]:
    """An autocommit connection to `dsn`."""
    return connect()


@pytest.fixture
def fresh_dsn(pg_server: Server) -> Iterator[str]:
    """DSN of a new and empty database, without the schema; for migrations, DDL and crashes."""
    name = f"pgqueue_fresh_{secrets.token_hex(6)}"
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        yield pg_server.dsn(name)
    finally:
        with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
