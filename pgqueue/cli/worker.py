"""`pgqueue worker`: run tasks."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import rich_click as click

from pgqueue.cli.context import Context, pass_context

if TYPE_CHECKING:
    from pgqueue.app import PgQueue
    from pgqueue.worker import WorkerOptions

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_POOLS = ("prefork", "solo", "threads", "asyncio")
#: Coroutines that one process runs at once where nothing is said; they wait most of the time.
_COROUTINES = 100


@click.command()
@click.option("-Q", "--queues", metavar="A,B", help="Queues, served in this order; default those of the app.")
@click.option("-c", "--concurrency", type=click.IntRange(1), metavar="N", help="Processes, threads or coroutines.")
@click.option("-P", "--pool", type=click.Choice(_POOLS), default="prefork", show_default=True, help="How tasks run.")
@click.option("-n", "--hostname", default="pgqueue", metavar="NAME", help="Name of the worker, NAME or NAME@HOST.")
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least level that is logged.",
)
@click.option("--grace", type=click.FloatRange(0), metavar="SECONDS", help="Time for running tasks to end at a stop.")
@click.option("--burst", is_flag=True, help="End when there is nothing left to do.")
@pass_context
def worker(
    context: Context,
    queues: str | None,
    concurrency: int | None,
    pool: str,
    hostname: str,
    loglevel: str,
    grace: float | None,
    burst: bool,
) -> int:
    """Run the tasks of an app.

    Ctrl-C or SIGTERM once: claim no more, let running tasks end. Twice: hand their jobs back and end at once.
    """
    # Imported here because `pgqueue worker --help` does without the engine.
    from pgqueue.worker import Supervisor, WorkerOptions, WorkerProcess

    app = context.load_app()
    options = WorkerOptions(
        queues=tuple(dict.fromkeys(queues.split(","))) if queues else (app.default_queue,),
        pool=pool,
        concurrency=concurrency or _default_concurrency(pool),
        name=hostname,
        burst=burst,
        grace=app.settings.grace if grace is None else grace,
    )
    _check_schema(context, app)
    _log_to_stderr(loglevel)
    context.say(_greeting(context, app, options))
    if options.pool == "solo":
        process = WorkerProcess(app, options)
        process.stop_on(signal.SIGTERM, signal.SIGINT)
        code = process.run()
    else:
        code = Supervisor(app, options).run()
    app.close()
    return code


def _default_concurrency(pool: str) -> int:
    return {"solo": 1, "asyncio": _COROUTINES}.get(pool) or os.cpu_count() or 1


def _check_schema(context: Context, app: PgQueue) -> None:
    """Raise before anything starts if there is no database, or no schema; say so if the schema is another one."""
    # Imported here because the engine is loaded by now, and not before.
    from pgqueue.database import run
    from pgqueue.sql import version

    # A connection of its own: a pool would have threads, and they do not survive a fork.
    with app.database.connect("worker") as connection:
        found = run(connection, app.database.statements.version())[0]
    if found != version():
        context.say(f"The schema is {found} and this program is {version()}: run `pgqueue migrate` when you can.")


def _greeting(context: Context, app: PgQueue, options: WorkerOptions) -> str:
    tasks = "\n".join(f"    {name}" for name in sorted(app.tasks)) or "    none: is their module imported by this one?"
    return (
        f"pgqueue worker {options.full_name}\n"
        f"  app     {app.name}\n"
        f"  at      {context.place()}, schema {app.settings.schema_name}\n"
        f"  queues  {', '.join(options.queues)}\n"
        f"  pool    {options.pool}, {options.concurrency} at once\n"
        f"  tasks\n{tasks}"
    )


def _log_to_stderr(level: str) -> None:
    """Show the log of pgqueue, and of nobody else: the root logger belongs to the user's program."""
    logger = logging.getLogger("pgqueue")
    logger.setLevel(level.upper())
    logger.propagate = False
    if sys.stderr.isatty():
        # Imported here because only a terminal needs it.
        from rich.console import Console
        from rich.logging import RichHandler

        logger.addHandler(RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S"))
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(process)d] %(message)s"))
    logger.addHandler(handler)
