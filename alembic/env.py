"""What Alembic runs for every command: tables and functions in one transaction, by one process at a time.

No `__init__.py` may stand in this folder: it would hide the package `alembic` from whoever starts Python beside it.
"""

import os

import psycopg
from alembic import context
from sqlalchemy import NullPool, create_engine

from pgqueue import sql
from pgqueue.cli.migrate import CREATE_SCHEMA, LOCK_KEY, LOCK_TIMEOUT, installed_version, run_sql
from pgqueue.settings import find_dsn

# `pgqueue migrate` says where; for the program `alembic` the environment does.
ATTRIBUTES = context.config.attributes
SCHEMA = sql.check_schema_name(ATTRIBUTES.get("schema") or os.environ.get("PGQUEUE_SCHEMA") or sql.DEFAULT_SCHEMA)


def connect() -> psycopg.Connection:
    """Connect as libpq reads the DSN: sockets, services and several hosts have no place in SQLAlchemy's URLs."""
    return psycopg.connect(find_dsn(ATTRIBUTES.get("dsn")), application_name="pgqueue migrate", prepare_threshold=None)


def online() -> None:
    """Migrate the database, all or nothing."""
    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    with engine.begin() as connection:
        # Whoever holds a lock that we wait for, we hold up everybody behind us: give way, and come again.
        connection.exec_driver_sql(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
        connection.exec_driver_sql("select pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK_KEY, SCHEMA))
        raw = connection.connection.driver_connection
        ATTRIBUTES["found"] = installed_version(raw, SCHEMA)
        # CREATE SCHEMA IF NOT EXISTS asks for the right to create even where there is nothing to create.
        if connection.exec_driver_sql("select to_regnamespace(%s) is null", (SCHEMA,)).scalar():
            raw.execute(sql.rename(CREATE_SCHEMA, SCHEMA))
        context.configure(connection=connection, version_table_schema=SCHEMA)
        with context.begin_transaction():
            context.run_migrations()
        # Functions belong to the newest tables; `alembic upgrade` to an older revision leaves them alone.
        if context.get_context().get_current_heads() == tuple(context.script.get_heads()):
            run_sql(context.get_context(), sql.functions(SCHEMA))


def offline() -> None:
    """Print what `online` would do, for psql."""
    context.configure(url="postgresql+psycopg://", literal_binds=True, version_table_schema=SCHEMA)
    with context.begin_transaction():
        migration = context.get_context()
        run_sql(migration, f"do $$ begin perform pg_advisory_xact_lock({LOCK_KEY}, hashtext('{SCHEMA}')); end $$;")
        run_sql(migration, sql.rename(CREATE_SCHEMA, SCHEMA))
        context.run_migrations()
        run_sql(migration, sql.functions(SCHEMA))


if context.is_offline_mode():
    offline()
else:
    online()
