"""Create and upgrade the schema: `pgqueue migrate` and `pgqueue schema`.

Tables change by the migrations in the folder `alembic`, functions are replaced, both in one transaction.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pgqueue import sql
from pgqueue.cli.context import Context, pass_context
from pgqueue.errors import PgQueueError

if TYPE_CHECKING:
    import psycopg
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

#: First half of the advisory lock's key ("pgqu"); the second is the hash of the schema's name.
LOCK_KEY = 0x70677175

#: How long a migration waits for a lock before it gives way to those who queue up behind it.
LOCK_TIMEOUT = "2s"

CREATE_SCHEMA = "create schema if not exists pgqueue;"

_HAS_VERSION = "select to_regprocedure(%s) is not null"
_VERSION = "select pgqueue.version()"

# Who holds what a migration may have waited for: its advisory lock, or one of the tables.
_HOLDERS = """
    select distinct a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) as program, a.state,
           round(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
      from pg_locks l
      join pg_stat_activity a on a.pid = l.pid
     where l.granted and l.pid <> pg_backend_pid()
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       and (l.relation in (select c.oid from pg_class c where c.relnamespace = to_regnamespace(%(schema)s))
            or l.locktype = 'advisory' and l.classid::bigint = %(key)s and l.objsubid = 2
               and l.objid::bigint = hashtext(%(schema)s)::bigint & 4294967295)
     order by seconds desc nulls last
     limit 3"""


class NotMigrated(PgQueueError):
    """The schema could not be created or upgraded."""


class LocksHeld(NotMigrated, TimeoutError):
    """Somebody held a lock on the tables for too long."""


# -- what the migrations call ------------------------------------------------------------------------------------


def run_file(migration: MigrationContext, script: str) -> None:
    """Run the SQL file beside a migration: `script` is its `__file__`, the SQL has the same name."""
    text = Path(script).with_suffix(".sql").read_text(encoding="utf-8")
    run_sql(migration, sql.rename(text, migration.version_table_schema or sql.DEFAULT_SCHEMA))


def run_sql(migration: MigrationContext, text: str) -> None:
    """Run SQL commands as they are, in the transaction of the migration, or print them in offline mode.

    Alembic's own `op.execute` takes `:1` inside a text for a parameter.
    """
    if migration.as_sql:
        migration.impl.static_output(text)
        return
    assert migration.connection is not None
    driver: Any = migration.connection.connection.driver_connection
    driver.execute(text.encode())


def installed_version(connection: psycopg.Connection[Any], schema: str) -> str | None:
    """Return what `select pgqueue.version()` answers in a database; None if the function is not there."""
    row = connection.execute(_HAS_VERSION, (f"{schema}.version()",)).fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute(sql.rename(_VERSION, schema).encode()).fetchone()
    return None if row is None else str(row[0])


# -- what the commands do ----------------------------------------------------------------------------------------


def find_scripts() -> Path:
    """Return the folder of the migrations: that of the wheel, or in a checkout the one at the top."""
    package = Path(sql.__file__).parents[1]
    packaged = package / "_alembic"
    return packaged if packaged.exists() else package.parent / "alembic"


def offline_sql(schema: str, start: str = "base") -> str:
    """Return the SQL of `pgqueue migrate` from a revision on, for psql; needs no database."""
    # Imported here because alembic takes 0.3 s.
    from alembic import command

    output = io.StringIO()
    command.upgrade(_config(schema, output=output), f"{start}:head", sql=True)
    return output.getvalue()


def upgrade(context: Context, patience: float = 60.0) -> str | None:
    """Create or upgrade the schema, and return the version that was there before; None if there was none.

    Waits up to `patience` seconds for others who hold locks, and gives way to them every 2 s meanwhile.
    Raises NotMigrated for a role that may not, LocksHeld, and DatabaseUnavailable.
    """
    # Imported here because psycopg takes 0.1 s.
    import psycopg

    deadline = time.monotonic() + patience
    with context.connect("migrate") as observer:
        while True:
            try:
                return _upgrade_once(context)
            except psycopg.errors.LockNotAvailable:
                holders = _holders(observer, context.schema)
            except psycopg.errors.InsufficientPrivilege as error:
                raise _forbidden(observer, context, error) from error
            if time.monotonic() > deadline:
                raise LocksHeld(f"{context.place()} is not migrated, nothing is changed: {holders}")
            context.say(f"waiting: {holders}")
            time.sleep(0.5)


def _upgrade_once(context: Context) -> str | None:
    # Imported here because alembic takes 0.3 s.
    from alembic import command
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    config = _config(context.schema, context.dsn())
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        raise (error.orig or error) from error
    except CommandError as error:
        raise NotMigrated(
            f"the schema {context.schema!r} in {context.place()} is not one that this pgqueue can upgrade, perhaps "
            f"made by a newer one: {str(error).rstrip('.')}"
        ) from error
    found: str | None = config.attributes["found"]
    return found


def _config(schema: str, dsn: str | None = None, output: io.StringIO | None = None) -> Config:
    # Imported here because alembic takes 0.3 s.
    from alembic.config import Config

    config = Config(output_buffer=output)
    # Read with % as ConfigParser's own sign.
    config.set_main_option("script_location", str(find_scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(schema=schema, dsn=dsn)
    return config


def _holders(observer: psycopg.Connection[Any], schema: str) -> str:
    rows = observer.execute(_HOLDERS, {"schema": schema, "key": LOCK_KEY}).fetchall()
    if not rows:
        return "somebody held a lock that is free now"
    said = [f"{program} (pid {pid}, {state} for {seconds or 0} s)" for pid, program, state, seconds in rows]
    return f"the tables are in use by {', '.join(said)}"


def _forbidden(observer: psycopg.Connection[Any], context: Context, error: psycopg.Error) -> NotMigrated:
    row = observer.execute("select current_user, current_database(), to_regnamespace(%s)", (context.schema,)).fetchone()
    role, database, there = row or ("", "", None)
    cure = f"use the role that owns {there}" if there else f"grant create on database {database} to {role}"
    said = error.diag.message_primary
    return NotMigrated(
        f"role {role} may not install the schema {context.schema!r} in {context.place()} ({said}): {cure}"
    )


def check(context: Context) -> str | None:
    """Return why the database needs `pgqueue migrate`, in one sentence; None if it does not."""
    with context.connect("migrate") as connection:
        found = installed_version(connection, context.schema)
    if found == sql.version():
        return None
    state = "is not there" if found is None else f"has version {found}, and this program needs {sql.version()}"
    return f"the schema {context.schema!r} in {context.place()} {state}: run `pgqueue migrate`"


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit code 1 if there is something to do.")
@click.option("--sql", "only_print", is_flag=True, help="Print the SQL for psql instead of running it.")
@click.option("--from", "start", default="base", metavar="REVISION", help="With --sql: of a database at this revision.")
@click.option("--patience", default=60.0, metavar="SECONDS", help="Give up if others hold locks for so long. [60]")
@pass_context
def migrate(context: Context, only_check: bool, only_print: bool, start: str, patience: float) -> int | None:
    """Create or upgrade the tables and functions.

    Runs in one transaction, and may be run by any number of processes at once. Workers may go on meanwhile.
    """
    if only_check and only_print:
        raise click.UsageError("--check and --sql exclude each other")
    if only_print:
        click.echo(offline_sql(context.schema, start))
        return None
    if only_check:
        problem = check(context)
        context.say(problem or f"the schema {context.schema!r} in {context.place()} is up to date")
        return 1 if problem else None
    found, now = upgrade(context, patience), sql.version()
    done = {None: f"created at {now}", now: f"up to date at {now}"}.get(found, f"upgraded from {found} to {now}")
    context.say(f"the schema {context.schema!r} in {context.place()} is {done}")
    return None


@click.command()
@click.argument("name", required=False)
@pass_context
def schema(context: Context, name: str | None) -> None:
    """Print one SQL script that creates everything in an empty database: `pgqueue schema | psql`.

    NAME is that of the schema, as --schema.
    """
    click.echo(sql.schema(name or context.schema))
