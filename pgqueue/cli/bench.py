"""`pgqueue bench`: measure drain, enqueue, latency, a held snapshot and mixed tasks on the user's own database."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from pgqueue.cli.context import Context, pass_context
from pgqueue.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pgqueue.bench.ground import Ground, Say
    from pgqueue.bench.pages import Report

_AT_LEAST_1 = click.IntRange(1)
_ABOVE_0 = click.FloatRange(0, min_open=True)
_SVG_WIDTH = 110  # characters

F = TypeVar("F", bound=Callable[..., Any])


def _writable(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse what cannot be written before anything is measured."""
    if path is None:
        return None
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}: make it, or write elsewhere")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written by this user")
    return path


def _store_schema(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Context).given_schema = value


def _output(command: F) -> F:
    """Add the options that every benchmark has."""
    # Not the one of other commands: PGQUEUE_SCHEMA names that of the user.
    command = click.option("--schema", metavar="NAME", expose_value=False, callback=_store_schema,
                           help="The schema to make and drop. [default: pgqueue_bench]")(command)  # fmt: skip
    svg = click.Path(path_type=Path)
    command = click.option("--svg", type=svg, metavar="FILE", callback=_writable, help="Write the plot as SVG.")(
        command
    )
    return click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")(command)


def _jobs(default: int) -> Callable[[F], F]:
    return click.option("--jobs", type=_AT_LEAST_1, default=default, show_default=True, metavar="N", help="Jobs.")


def _rounds(default: int, what: str = "Rounds; medians count.") -> Callable[[F], F]:
    return click.option("--rounds", type=_AT_LEAST_1, default=default, show_default=True, metavar="N", help=what)


@click.group()
@click.rich_config({"text_paragraph_linebreaks": "\n\n"})
def bench() -> None:
    """Measure how fast pgqueue is on this machine and this database.

    It works in a schema of its own, pgqueue_bench or that of --schema, which it creates and drops; no other is
    touched. Where no database is named it starts one of its own in a temporary folder, with fsync on.

    Compare ratios, which are taken in turns within one run. Absolute figures move by a factor of two from hour to hour
    on shared machines. docs/benchmarking.md says more.
    """


@bench.command()
@_jobs(50_000)
@_rounds(3)
@click.option("--processes", type=_AT_LEAST_1, default=1, show_default=True, metavar="N", help="Worker processes.")
@click.option("--payload", type=click.IntRange(0), default=0, show_default=True, metavar="BYTES",
              help="A text of so many bytes as a third argument.")  # fmt: skip
@_output
@pass_context
def drain(
    context: Context, as_json: bool, svg: Path | None, jobs: int, rounds: int, processes: int, payload: int
) -> None:
    """Empty a full queue: jobs per second of worker processes, beside the bare loop.

    A job takes two small integers and stores their sum. The worker is `pgqueue worker -P solo`: late ack, results
    stored, fence checked. The bare loop is psycopg in pipeline mode over the same SQL: it claims 500, calls the
    functions, and acknowledges them in the round trip of the next claim. Time runs from the first claim to the last
    acknowledgement, by the clock of the database.

    ratio: of what the database gives a Python program, how much the worker makes of it. CPU seconds: what a thousand
    jobs cost; those of the server count all its processes, and are missing where it is not on this machine. With
    --processes, scaling says what the others add: less than their number when the server or the cores are full.
    """
    # Imported here, as in the other commands: `--help` does without the engine.
    from pgqueue.bench.drain import measure_drain

    _run(
        context, "drain", as_json, svg, lambda ground, say: measure_drain(ground, jobs, rounds, processes, payload, say)
    )


@bench.command()
@_jobs(100_000)
@_rounds(3)
@click.option("--seconds", type=_ABOVE_0, default=2.0, show_default=True, metavar="S", help="Length of a single run.")
@click.option("--clients", type=_AT_LEAST_1, default=32, show_default=True, metavar="N", help="Clients at once.")
@_output
@pass_context
def enqueue(
    context: Context, as_json: bool, svg: Path | None, jobs: int, rounds: int, seconds: float, clients: int
) -> None:
    """Enqueue: calls per second, one by one and many at once, beside a bare INSERT and a bare COPY.

    One by one is `task.delay(n, 3)`, a transaction each: by one client, then by --clients at once, which are threads
    of several processes, 8 each, for pgqueue and for the bare INSERT alike. At once is one `enqueue_many` of --jobs
    calls, beside a COPY of the same rows into the same table. No worker runs.

    single_ratio and clients_ratio say what checking, encoding and the function in the database cost beside a commit;
    many_ratio what they cost where there is one commit for all.
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.bench.enqueue import measure_enqueue

    _run(
        context,
        "enqueue",
        as_json,
        svg,
        lambda ground, say: measure_enqueue(ground, jobs, rounds, seconds, clients, say),
    )


@bench.command()
@click.option("--jobs", type=_AT_LEAST_1, metavar="N", help="Jobs. [default: 300; 20 without notifications]")
@click.option("--interval", type=_ABOVE_0, default=0.02, show_default=True, metavar="S", help="Seconds between calls.")
@click.option("--without-notifications", is_flag=True, help="A worker that only polls; calls come after a rest.")
@_output
@pass_context
def latency(
    context: Context, as_json: bool, svg: Path | None, jobs: int | None, interval: float, without_notifications: bool
) -> None:
    """Wait for an idle worker: milliseconds from just before the call to the first line of the task.

    One worker process, `pgqueue worker -P solo`, and one call every 20 ms. The time contains the commit of the
    enqueue, the notification, the claim and the way into the task; `call` is the enqueue alone.

    --without-notifications measures what is promised if every notification gets lost, as behind a transaction pooler:
    each call comes at a random moment after the worker has rested, and none waits longer than poll_interval
    (PGQUEUE_POLL_INTERVAL, 1 s) and what the claim takes.
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.bench.latency import measure_latency

    count = jobs or (20 if without_notifications else 300)
    _run(context, "latency", as_json, svg,
         lambda ground, say: measure_latency(ground, count, interval, not without_notifications, say))  # fmt: skip


@bench.command()
@_jobs(150_000)
@_rounds(1)
@click.option("--recovery", type=_ABOVE_0, default=60.0, show_default=True, metavar="S",
              help="Longest time after the release until the pace must be normal.")  # fmt: skip
@click.option("--live", is_flag=True, help="A producer and two workers beside a snapshot; not a drain.")
@click.option("--seconds", type=_ABOVE_0, default=60.0, show_default=True, metavar="S", help="Length of --live.")
@click.option("--rate", type=_ABOVE_0, default=500.0, show_default=True, metavar="N", help="Jobs per second of --live.")
@_output
@pass_context
def held_snapshot(
    context: Context, as_json: bool, svg: Path | None, jobs: int, rounds: int, recovery: float, live: bool,
    seconds: float, rate: float,
) -> None:  # fmt: skip
    """Drain while another session holds an old snapshot, so that the server can remove nothing dead.

    A forgotten transaction, a long report or a lagging replica does that to every queue on PostgreSQL: each claim
    walks over what the earlier ones have left. --jobs are drained without a snapshot and with one; ratio compares the
    last sixth of the jobs, and recovery is how soon all is normal after the release.

    --live is the same in daily life: --rate jobs per second for two workers, for --seconds, which is also the age of
    the snapshot at the end; 900 is a real trial. A claim is timed from its beginning in the server to the first line of
    the first task that it brought. ratio: claim p99 of the last interval to that of the first; backlog: jobs that
    waited at the end.
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.bench.live import measure_live
    from pgqueue.bench.snapshot import measure_snapshot

    def measure(ground: Ground, say: Say) -> Report:
        if live:
            return measure_live(ground, seconds, rate, say)
        return measure_snapshot(ground, jobs, rounds, recovery, say)

    _run(context, "held-snapshot", as_json, svg, measure)


@bench.command()
@click.option("--seconds", type=_ABOVE_0, default=20.0, show_default=True, metavar="S", help="Length of the run.")
@click.option("--rate", type=_ABOVE_0, default=100.0, show_default=True, metavar="N", help="Short tasks per second.")
@click.option("--long", "long_seconds", type=_ABOVE_0, default=1.0, show_default=True, metavar="S",
              help="Length of a long task.")  # fmt: skip
@_output
@pass_context
def mixed(context: Context, as_json: bool, svg: Path | None, seconds: float, rate: float, long_seconds: float) -> None:
    """Mix long tasks with short ones, in two processes: does a short one wait for a long one?

    Long tasks come one after the other, with a rest, so that one process is always free for the short ones; some of
    these are enqueued in one call with a long one. The wait of a short task is from its enqueue to its first line.

    waited_for_long_ms is the longest time that a short task was leased to the process that ran a long one: a worker
    that keeps what it has claimed would show the length of a long task here. The rest of its wait is for other ones.
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.bench.mixed import measure_mixed

    _run(context, "mixed", as_json, svg, lambda ground, say: measure_mixed(ground, seconds, rate, long_seconds, say))


def _run(
    context: Context, name: str, as_json: bool, svg: Path | None, measure: Callable[[Ground, Say], Report]
) -> None:
    """Measure on a ground of our own, then print; whatever happens, nothing is left of it."""
    # `--help` does without the engine and without Rich.
    from rich.console import Console  # imported here

    from pgqueue.bench.pages import page, show  # imported here

    with _ground(context) as ground:
        context.say(f"{ground.words}, schema {ground.schema} (dropped at the end)")
        report = measure(ground, context.say)
    # A title of a window and a figure without its server say nothing.
    title = f"pgqueue bench {name}, PostgreSQL {ground.version}, {os.cpu_count()} cores"
    if svg is not None:
        recorder = Console(record=True, width=_SVG_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
        show(recorder, page(report))
        recorder.save_svg(str(svg), title=title)
    if as_json:
        context.as_json({"bench": name, "server": ground.version, "cores": os.cpu_count(), **asdict(report)})
    else:
        show(Console(highlight=False), page(report))


@contextmanager
def _ground(context: Context) -> Iterator[Ground]:
    """Give a schema in the database that is named, or in a server of our own if none is."""
    # Imported here because `--help` does without the engine.
    from pgqueue.bench.ground import embedded_ground, given_ground
    from pgqueue.cli.interrupting import catch_signals, ignore_signals

    try:
        dsn: str | None = context.dsn()
    except DatabaseUnavailable:  # none is named anywhere
        dsn = None
    with ExitStack() as stack:
        catch_signals(stack)
        if dsn is None:
            ground = stack.enter_context(embedded_ground(context.given_schema))
        else:
            keeper = stack.enter_context(context.connect("bench"))
            place = f"({context.place()})"
            ground = stack.enter_context(given_ground(keeper, dsn, context.given_schema, place, context.say))
        yield ground
        ignore_signals()  # cleaning up is not to be interrupted
