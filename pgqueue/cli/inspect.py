"""Look into the database: `pgqueue status`, `pgqueue sql` and `pgqueue psql`."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Sequence
from typing import Any

import rich_click as click

from pgqueue import sql as files
from pgqueue.cli.context import Context, pass_context

Row = tuple[Any, ...]


def run_query(context: Context, name: str, command: str) -> tuple[list[str], list[Row]]:
    """Run the inspection query `name`, and return its columns and rows."""
    with context.connect(command) as connection:
        cursor = connection.execute(files.read(f"inspect/{name}", context.schema).encode())
        return [column.name for column in cursor.description or ()], cursor.fetchall()


def records(columns: Sequence[str], rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return rows as JSON has them."""
    return [dict(zip(columns, row, strict=True)) for row in rows]


@click.command()
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def status(context: Context, as_json: bool) -> int | None:
    """List the workers that are online; exit code 1 if there is none."""
    columns, rows = run_query(context, "workers", "status")
    online = [worker for worker in records(columns, rows) if worker["alive"]]
    if as_json:
        context.as_json(online)
    elif online:
        shown = ("pool", "slots", "running", "queues", "beat_age", "unknown")
        context.table(("worker", *shown), [(f"{w['name']}: OK", *(w[name] for name in shown)) for w in online])
    context.say(f"{len(online) or 'no'} worker{'s' * (len(online) > 1)} online")
    return None if online else 1


@click.command()
@click.argument("name", required=False)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-p", "--print", "only_print", is_flag=True, help="Print the query and run nothing.")
@pass_context
def sql(context: Context, name: str | None, as_json: bool, only_print: bool) -> None:
    """Run the inspection query NAME; without a name, list them.

    Each is a plain SELECT, and says in its first lines what it answers and what to do then: --print shows them.
    """
    names = files.names("inspect")
    if name is None:
        _list(context, names, as_json)
        return
    if name not in names:
        near = difflib.get_close_matches(name, names, 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise click.BadParameter(f"there is no query {name!r}; {hint}")
    if only_print:
        click.echo(files.read(f"inspect/{name}", context.schema), nl=False)
        return
    columns, rows = run_query(context, name, "sql")
    if as_json:
        context.as_json(records(columns, rows))
    else:
        context.table(columns, rows)


def _list(context: Context, names: Sequence[str], as_json: bool) -> None:
    rows = [(name, files.read(f"inspect/{name}").partition("\n")[0].removeprefix("-- ")) for name in names]
    if as_json:
        context.as_json(dict(rows))
    else:
        context.table(("name", "answers"), rows)


# No short options of ours here: -A and -h are psql's.
@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    }
)
@click.option("--app", metavar="MODULE[:ATTR]", help="The app.  [env: PGQUEUE_APP]")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@pass_context
def psql(context: Context, app: str | None, args: tuple[str, ...]) -> None:
    """Open psql on the database, with the schema in its search_path.

    ARGS are psql's own, and come last: pgqueue psql -Atc "select * from status('...')"
    """
    context.given_app = app or context.given_app
    # Imported here because psycopg takes 0.1 s.
    from psycopg.conninfo import make_conninfo

    known = context.dsn_parts()
    password = known.pop("password", None)
    earlier = known.get("options") or os.environ.get("PGOPTIONS") or ""
    known["options"] = f"{earlier} -c search_path={context.schema},public".strip()
    environ = dict(os.environ)
    if password:
        # Every user of the machine sees the arguments of a process.
        environ["PGPASSWORD"] = password
    program = _find_psql()
    os.execve(program, [program, "-d", make_conninfo("", **known), *args], environ)  # noqa: S606 - that is the command


def _find_psql() -> str:
    if on_path := shutil.which("psql"):
        return on_path
    # Imported here because only machines without PostgreSQL's own programs come so far.
    from pgqueue.embedded import binaries
    from pgqueue.errors import DatabaseUnavailable

    try:
        embedded = binaries() / "psql"
    except DatabaseUnavailable:
        embedded = None
    if embedded is None or not embedded.exists():
        raise click.ClickException("there is no psql on PATH: install PostgreSQL's client programs")
    return str(embedded)
