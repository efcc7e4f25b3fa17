"""What every command needs: the app, the database, and the way to the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from pgqueue.errors import DatabaseUnavailable, SettingsError
from pgqueue.sql import DEFAULT_SCHEMA, check_schema_name

if TYPE_CHECKING:
    import psycopg

    from pgqueue.app import PgQueue

#: A URI in which libpq takes a piece of the password for a host, a port or a database: it then shows it to everybody.
_MISREAD = re.compile(r"postgres(ql)?://([^@/]*/[^@?]*@|[^@/]*@[^?]*@)")

_CONNECT_TIMEOUT = "10"  # seconds, where neither the DSN nor PGCONNECT_TIMEOUT says it


@dataclass(slots=True)
class Context:
    """What was said on the command line, and what follows from it; a command gets it through `pass_context`.

    - `given_app`, `given_dsn`, `given_schema`: the options as they were given, else None.
    - `quiet`: say nothing but answers and errors; `verbose`: say more, and show tracebacks.
    """

    given_app: str | None = None
    given_dsn: str | None = None
    given_schema: str | None = None
    quiet: bool = False
    verbose: bool = False
    _app: PgQueue | None = field(default=None, repr=False)
    _dsn: str | None = field(default=None, repr=False)

    @property
    def app_name(self) -> str | None:
        """module[:attr] of the app, from -A or PGQUEUE_APP; None if neither names one."""
        return self.given_app or os.environ.get("PGQUEUE_APP") or None

    def load_app(self) -> PgQueue:
        """Import the app that is named; --dsn and --schema win over its own settings.

        Raises AppNotFound with one sentence, and with the traceback of the user's module if that fails.
        """
        if self._app is None:
            # Imported here because it imports the engine, which most commands do without.
            from pgqueue.cli.finding import broken_code, find_app

            app = find_app(self.app_name)
            if self.given_dsn is not None or self.given_schema is not None:
                app.configure(dsn=self.given_dsn, schema=self.given_schema)
            with broken_code(self.app_name or ""):
                app.load_tasks()
            self._app = app
        return self._app

    def any_app(self) -> PgQueue:
        """Return the app that is named, or one without tasks for the database that is."""
        if self.app_name is not None:
            return self.load_app()
        # Imported here because `--help` does without the engine.
        from pgqueue.app import PgQueue

        return PgQueue("cli", dsn=self.dsn(), schema=self.schema)

    def dsn(self) -> str:
        """Return the DSN: --dsn, else that of the app if one is named, else PGQUEUE_DSN, DATABASE_URL, or PG*."""
        app = self.load_app() if self.given_dsn is None and self.app_name is not None else None
        # Imported here because pydantic-settings takes 0.2 s.
        from pgqueue.settings import find_dsn

        try:
            self._dsn = find_dsn(self.given_dsn) if app is None else app.database.dsn
        except SettingsError as error:
            # For a script it is all the same whether no database is named or none answers.
            raise DatabaseUnavailable(str(error)) from None
        return self._dsn

    def dsn_parts(self) -> dict[str, str]:
        """Return what the DSN says, name by name; raises SettingsError, without the password, if it is malformed."""
        # Imported here because psycopg takes 0.1 s.
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        dsn = self.dsn()
        try:
            parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
        except psycopg.ProgrammingError:
            parts = None
        if parts is None or _MISREAD.match(dsn):
            raise SettingsError(
                "the DSN cannot be read: write it as postgresql://user:password@host:5432/name, "
                "with @ and / in the password as %40 and %2F"
            )
        return parts

    @property
    def schema(self) -> str:
        """The schema: --schema, else that of the app if one is named, else PGQUEUE_SCHEMA, else "pgqueue"."""
        if self.given_schema is None and self.app_name is not None:
            return self.load_app().settings.schema_name
        return check_schema_name(self.given_schema or os.environ.get("PGQUEUE_SCHEMA") or DEFAULT_SCHEMA)

    def known_dsns(self) -> list[str]:
        """Return every DSN that may be in use, without looking for one: for those who hide passwords."""
        found = (self.given_dsn, self._dsn, *map(os.environ.get, ("PGQUEUE_DSN", "DATABASE_URL")))
        return [dsn for dsn in found if dsn]

    def place(self) -> str:
        """Return where the database is, in words and without the password: `database shop at db.example`."""
        known = self.dsn_parts()
        user = known.get("user") or os.environ.get("PGUSER")
        database = known.get("dbname") or os.environ.get("PGDATABASE") or user
        service = known.get("service") or os.environ.get("PGSERVICE")
        if service and "dbname" not in known:
            return f"the database of service {service}"
        host = known.get("host") or known.get("hostaddr") or os.environ.get("PGHOST") or "the default socket"
        port = known.get("port") or os.environ.get("PGPORT") or "5432"
        at = host if port == "5432" or host.startswith("/") else f"{host}:{port}"
        return f"database {database} at {at}" if database else f"the database at {at}"

    def connect(self, command: str) -> psycopg.Connection[Any]:
        """Return a connection in autocommit mode, called `pgqueue <command>`; the caller closes it.

        Raises DatabaseUnavailable, or SettingsError for a DSN that cannot be read; neither shows the password.
        """
        # Imported here because psycopg takes 0.1 s.
        import psycopg

        options: dict[str, Any] = {"application_name": f"pgqueue {command}"}
        if "connect_timeout" not in self.dsn_parts():
            options["connect_timeout"] = os.environ.get("PGCONNECT_TIMEOUT") or _CONNECT_TIMEOUT
        try:
            return psycopg.connect(self.dsn(), autocommit=True, prepare_threshold=None, **options)
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"no connection to {self.place()}: {_reason(error)}") from error

    def say(self, sentence: str) -> None:
        """Tell what happens, on stderr, unless --quiet: stdout is for answers."""
        if not self.quiet:
            click.echo(sentence, err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
        """Print a table; where stdout is no terminal, a line of tab-separated texts for each row."""
        # Imported here because Rich's tables take 0.03 s.
        from pgqueue.cli.output import print_table, print_text

        if sys.stdout.isatty():
            print_table(columns, rows, title)
        else:
            print_text(columns, rows)

    def as_json(self, value: object) -> None:
        """Print a value as JSON: times as ISO 8601, durations in seconds, ids as texts."""
        # Imported here because only --json needs it.
        from pgqueue.cli.output import json_text

        click.echo(json_text(value))


pass_context = click.make_pass_decorator(Context)


def _reason(error: Exception) -> str:
    """Return what libpq says in one line: its last attempt, without advice and without where it tried."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Is the server running", "Multiple connection"))]
    return said[-1].rpartition(" failed: ")[2] if said else type(error).__name__
