"""The command line. A sub-command is imported when it is called, so that `pgqueue --help` answers at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import rich_click as click

from pgqueue.cli.context import Context

#: Where each command is, and its line in the help.
COMMANDS = {
    "demo": ("pgqueue.cli.demo:demo", "Show it all in half a minute: a database, workers, tasks."),
    "worker": ("pgqueue.cli.worker:worker", "Run tasks."),
    "call": ("pgqueue.cli.calls:call", "Enqueue a call of a task."),
    "result": ("pgqueue.cli.calls:result", "Show what became of a job."),
    "purge": ("pgqueue.cli.calls:purge", "Delete the waiting jobs of queues."),
    "workflows": ("pgqueue.cli.workflows:workflows", "List, show, draw, retry and revoke workflows."),
    "status": ("pgqueue.cli.inspect:status", "List the workers that are online."),
    "sql": ("pgqueue.cli.inspect:sql", "Run or print one of the inspection queries."),
    "psql": ("pgqueue.cli.inspect:psql", "Open psql on the database."),
    "migrate": ("pgqueue.cli.migrate:migrate", "Create or upgrade the tables and functions."),
    "schema": ("pgqueue.cli.migrate:schema", "Print the SQL of all tables and functions."),
    "bench": ("pgqueue.cli.bench:bench", "Measure how fast it is here, beside a bare psycopg loop."),
    "celery-check": ("pgqueue.cli.celery_check:celery_check", "Tell what becomes of a Celery program, word by word."),
}

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _store(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        setattr(ctx.ensure_object(Context), f"given_{param.name}", value)


def _where() -> list[click.Option]:
    """Return the options that may stand before the command and after it; a later one wins."""
    common: dict[str, Any] = {"expose_value": False, "callback": _store}
    return [
        click.Option(["-A", "--app"], metavar="MODULE[:ATTR]", help="The app.  [env: PGQUEUE_APP]", **common),
        click.Option(["--dsn"], metavar="DSN", help="The database.  [env: PGQUEUE_DSN, DATABASE_URL, PG*]", **common),
        click.Option(["--schema"], metavar="NAME", help="Its schema.  [env: PGQUEUE_SCHEMA]", **common),
    ]


def _no_color(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"  # Rich reads it, and so do the processes that we start


def _load(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    _add_where(command)
    return command


def _add_where(command: click.Command) -> None:
    own = {option for param in command.params for option in param.opts}
    command.params += [option for option in _where() if own.isdisjoint(option.opts)]
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_where(inner)


class _Commands(click.RichGroup):
    """The commands of the table, in its order; for the help a line stands for each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest


@click.command(
    cls=_Commands,
    commands={name: click.RichCommand(name=name, short_help=line) for name, (_, line) in COMMANDS.items()},
    params=_where(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a negative answer, 2 wrong usage, 3 no database, 4 timed out, 130 interrupted.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say only what was asked for, and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of an error.")
@click.option(
    "-C", "--no-color", is_flag=True, is_eager=True, expose_value=False, callback=_no_color, help="No colours."
)
@click.version_option(package_name="pgqueue-tasks", message="pgqueue %(version)s")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Celery's programming model on nothing but PostgreSQL."""
    context = ctx.ensure_object(Context)
    context.quiet, context.verbose = quiet, verbose


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and end the process with the code that the epilog of the help explains.

    A command returns its exit code, or None for 0; what it raises becomes one sentence here.
    """
    context = Context()
    try:
        code = cli.main(arguments, prog_name="pgqueue", standalone_mode=False, obj=context)
    except click.Abort as error:
        # Click raises it for Ctrl-C, for the end of the input, and for a "no" to its question.
        code = _INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else 1
    except KeyboardInterrupt:  # between two commands of ours, so Click has not met it
        code = _INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        code = _report(error, context)
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is tidied up: a second Ctrl-C would only spoil the code
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, context: Context) -> int:
    # Imported here because most calls end without an error, and psycopg takes a tenth of a second.
    from pgqueue.cli.failures import explain, mask

    failure = explain(error, context)
    if failure is None or context.verbose:
        click.echo(mask("".join(traceback.format_exception(error)), context), err=True, nl=False)
    if failure is None:
        return 1
    if failure.details:
        click.echo(failure.details, err=True, nl=False)
    click.echo(f"Error: {failure.sentence}", err=True)
    return failure.code
