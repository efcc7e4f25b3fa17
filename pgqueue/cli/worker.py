"""`pgqueue worker`: run tasks."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import rich_click as click

from pgqueue.cli.context import Context, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.app import PgQueue
    from pgqueue.worker import WorkerOptions

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_POOLS = ("prefork", "solo", "threads", "asyncio")
#: Coroutines that one process runs at once where nothing is said; they wait most of the time.
_COROUTINES = 100
#: Options of Celery's worker that people have in their scripts and that mean nothing here.
_WITHOUT_EFFECT = ("without_gossip", "without_mingle", "without_heartbeat")

#: Options that the app may have as settings, for when the command line does not say them.
_CONFIGURED = {
    "pool": "worker_pool",
    "concurrency": "worker_concurrency",
    "prefetch_multiplier": "worker_prefetch_multiplier",
    "max_tasks_per_child": "worker_max_tasks_per_child",
    "max_memory_per_child": "worker_max_memory_per_child",
}

_LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"


class _Autoscale(click.ParamType):  # type: ignore[type-arg]
    name = "MAX,MIN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            most, _, fewest = str(value).partition(",")
            return int(most), int(fewest or 1)
        except ValueError:
            self.fail(f"{value!r} is not MAX,MIN, such as 8,2: the most and the fewest processes", param, ctx)


_AT_LEAST_1 = click.IntRange(1)
_SECONDS = click.FloatRange(0, min_open=True)


@click.command()
@click.option("-Q", "--queues", metavar="A,B", help="Queues, served in this order; default that of the app.")
@click.option("-X", "--exclude-queues", metavar="A,B", help="Queues not to serve.")
@click.option("-c", "--concurrency", type=_AT_LEAST_1, metavar="N", help="Processes, threads or coroutines.")
@click.option("-P", "--pool", type=click.Choice(_POOLS), help="How tasks run; default prefork.")
@click.option("--processes", type=_AT_LEAST_1, default=1, metavar="N", help="Multiply the pool by N processes.")
@click.option("--autoscale", type=_Autoscale(), metavar="MAX,MIN", help="Most and fewest processes, as jobs wait.")
@click.option("--prefetch-multiplier", type=click.IntRange(0), metavar="N",
              help="Claim at most N jobs a slot ahead; default as many as pay.")  # fmt: skip
@click.option("--time-limit", type=_SECONDS, metavar="SECONDS", help="End attempts that run longer.")
@click.option("--soft-time-limit", type=_SECONDS, metavar="SECONDS", help="Raise SoftTimeLimitExceeded in them.")
@click.option("--max-tasks-per-child", type=_AT_LEAST_1, metavar="N", help="Replace a process after N jobs.")
@click.option("--max-memory-per-child", type=_AT_LEAST_1, metavar="KIB", help="Replace a process that takes more.")
@click.option("--max-jobs", type=_AT_LEAST_1, metavar="N", help="End after N jobs.")
@click.option("--burst", is_flag=True, help="End when there is nothing left to do.")
@click.option("--grace", type=click.FloatRange(0), metavar="SECONDS", help="Time for running tasks to end at a stop.")
@click.option("-n", "--hostname", default="pgqueue", metavar="NAME", help="Name of the worker, NAME or NAME@HOST.")
@click.option("-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), default="INFO", show_default=True,
              help="Least level that is logged.")  # fmt: skip
@click.option("--pidfile", type=click.Path(dir_okay=False, path_type=Path), help="Write the process id here.")
@click.option("--reload", is_flag=True, help="Start again when a source file changes, for development.")
@click.option("--without-gossip", is_flag=True, hidden=True)
@click.option("--without-mingle", is_flag=True, hidden=True)
@click.option("--without-heartbeat", is_flag=True, hidden=True)
@pass_context
def worker(context: Context, /, **given: Any) -> int:
    """Run the tasks of an app.

    Ctrl-C or SIGTERM once: claim no more, let running tasks end. Twice: interrupt them. SIGQUIT: hand their jobs back
    and end at once.
    """
    if given["reload"]:
        return _reload(context, given["grace"])
    # Imported here because `pgqueue worker --help` does without the engine.
    from pgqueue.cli.pidfile import pidfile
    from pgqueue.signals import setup_logging
    from pgqueue.worker import run_worker

    app = context.load_app()
    app.set_current()
    options = _options(app, given)
    if setup_logging.receivers:
        setup_logging.send(app, loglevel=given["loglevel"], logfile=None, format=_LOG_FORMAT, colorize=False)
    else:
        _log_to_stderr(given["loglevel"])
    for option in _WITHOUT_EFFECT:
        if given[option]:
            context.say(f"--{option.replace('_', '-')} has no effect: workers know of each other through the database.")
    with ExitStack() as stack:
        if given["pidfile"] is not None:
            stack.enter_context(pidfile(given["pidfile"], context.say))
        if not _wait_for_schema(context, app):
            return 0
        context.say(_greeting(context, app, options))
        code = run_worker(app, options)
    app.close()
    return code


def _options(app: PgQueue, given: dict[str, Any]) -> WorkerOptions:
    # Imported here because the engine is loaded by now, and not before.
    from pgqueue.worker import WorkerOptions

    given = {**given, **{option: app.conf.get(name) for option, name in _CONFIGURED.items() if given[option] is None}}
    pool, concurrency, autoscale = given["pool"] or "prefork", given["concurrency"], given["autoscale"]
    if autoscale is not None and "worker_concurrency" in app.conf:
        concurrency = None  # the command line has the last word
    if autoscale is not None and pool == "prefork" and (concurrency is not None or given["processes"] > 1):
        raise click.UsageError(
            "--autoscale says how many processes there are: leave out --concurrency and --processes."
        )
    return WorkerOptions(
        queues=_queues(app, given["queues"], given["exclude_queues"]),
        pool=pool,
        concurrency=concurrency or _default_concurrency(pool),
        processes=given["processes"],
        autoscale=autoscale,
        name=given["hostname"],
        burst=given["burst"],
        max_jobs=given["max_jobs"],
        grace=app.settings.grace if given["grace"] is None else given["grace"],
        time_limit=given["time_limit"],
        soft_time_limit=given["soft_time_limit"],
        max_tasks_per_child=given["max_tasks_per_child"],
        max_memory_per_child=given["max_memory_per_child"],
        prefetch_multiplier=given["prefetch_multiplier"] or 0,
    )


def _queues(app: PgQueue, given: str | None, excluded: str | None) -> tuple[str, ...]:
    queues = tuple(dict.fromkeys(given.split(","))) if given else app.queues
    without = set(excluded.split(",")) if excluded else set()
    if unknown := sorted(without - set(queues)):
        raise click.UsageError(f"-X names queues that are not served anyway: {', '.join(unknown)}.")
    left = tuple(queue for queue in queues if queue not in without)
    if not left:
        raise click.UsageError("-X leaves no queue to be served.")
    return left


def _default_concurrency(pool: str) -> int:
    return {"solo": 1, "asyncio": _COROUTINES}.get(pool) or os.cpu_count() or 1


def _reload(context: Context, grace: float | None) -> int:
    # Imported here because only development needs it.
    from pgqueue.cli.reload import run_with_reload

    arguments = [word for word in sys.argv[1:] if word != "--reload"]
    return run_with_reload(arguments, [Path.cwd()], 30.0 if grace is None else grace, context.say)


def _wait_for_schema(context: Context, app: PgQueue) -> bool:
    """Return whether to go on: wait while the database is away, unless a signal says stop.

    Raises what the database says about a missing schema or a wrong password; says so if the schema is another one.
    """
    # Imported here because the engine is loaded by now, and not before.
    from pgqueue.database import run
    from pgqueue.errors import DatabaseUnavailable
    from pgqueue.sql import version
    from pgqueue.worker.pace import backoff

    failures = 0
    with _stop_event() as stopped:
        while not stopped.is_set():
            try:
                # A connection of its own: a pool would have threads, and they do not survive a fork.
                with app.database.connect("worker") as connection:
                    found = run(connection, app.database.statements.version())[0]
            except DatabaseUnavailable as error:
                if not _may_come(error):
                    raise
                logging.getLogger("pgqueue.worker").warning("waiting for the database: %s", error)
                stopped.wait(max(1.0, backoff(failures, random.random())))
                failures += 1
                continue
            if found != version():
                context.say(
                    f"The schema is {found} and this program is {version()}: run `pgqueue migrate` when you can."
                )
            return True
    return False


def _may_come(error: Exception) -> bool:
    """Return whether waiting helps: nobody answers yet, or a server that starts, stops, stands by or is full.

    Not where a server has answered and refuses: the password, the user or the database is wrong.
    """
    said = str(error)
    passing = ("starting up", "shutting down", "recovery", "too many", "connection slots", "not accepting")
    return "FATAL" not in said or any(words in said for words in passing)


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Give an event that is set when a signal says stop."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _greeting(context: Context, app: PgQueue, options: WorkerOptions) -> str:
    own = sorted(name for name in app.tasks if not name.startswith("pgqueue."))
    tasks = "\n".join(f"    {name}" for name in own) or "    none: is their module imported by this one?"
    return (
        f"pgqueue worker {options.full_name}\n"
        f"  app     {app.name}\n"
        f"  at      {context.place()}, schema {app.settings.schema_name}\n"
        f"  queues  {', '.join(options.queues)}\n"
        f"  pool    {_pool(options)}\n"
        f"  tasks\n{tasks}"
    )


def _pool(options: WorkerOptions) -> str:
    if options.autoscale is not None:
        count = f"{options.fewest_processes} to {options.most_processes} processes"
        return f"{options.pool}, {count}" + (f" of {options.slots}" if options.slots > 1 else "")
    return f"{options.pool}, {options.most_processes * options.slots} at once"


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
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logger.addHandler(handler)
