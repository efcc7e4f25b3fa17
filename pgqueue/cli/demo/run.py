"""The run of the demonstration: a database, worker processes, the jobs, the kill, the count."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from pgqueue.cli.demo.place import Place, embedded_place, given_place
from pgqueue.cli.demo.report import Killed, Report, make_report
from pgqueue.cli.demo.show import Show, Tally, make_show
from pgqueue.cli.demo.tasks import app, index, source_files
from pgqueue.cli.demo.workers import Crew, kill_one
from pgqueue.cli.interrupting import catch_signals, ignore_signals
from pgqueue.errors import PgQueueError
from pgqueue.sql import rename

_FAILING = 12  # files that fail in their first attempt
_LOOK = 0.05  # seconds between two looks at the tables
_STALLED = 30.0  # seconds without a change after which we give up

_TALLY = """
select (select count(*) from demo.module),
       (select count(*) from pgqueue.job),
       (select coalesce(sum(retries), 0) from pgqueue.job) + (select coalesce(sum(retries), 0) from pgqueue.result),
       (select count(*) from pgqueue.worker)
"""


class NothingToIndex(PgQueueError):
    """The standard library of this interpreter has no source files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command was told; `dsn` None: a server of our own, in the folder `keep` or in one that is removed."""

    workers: int
    limit: int | None
    seed: int
    keep: Path | None
    dsn: str | None
    schema: str | None


def perform(plan: Plan, console: Console) -> Report:
    """Run the demonstration and return what the tables say; whatever happens, nothing is left running."""
    started = time.monotonic()
    files, failing = _choose(plan)
    with ExitStack() as stack:
        catch_signals(stack)
        place = given_place(stack, plan.dsn, plan.schema) if plan.dsn else embedded_place(stack, plan.keep, plan.schema)
        crew = stack.enter_context(Crew(place, plan.workers))
        _introduce(console, place, crew, len(files))
        _enqueue(place, files, failing)
        connection = stack.enter_context(psycopg.connect(place.dsn, autocommit=True))
        with make_show(console, len(files)) as show:
            killed = _watch(connection, place.schema, crew, len(files), show)
        crew.stop()  # before the count, which would else miss a late writer
        seconds = time.monotonic() - started
        report = make_report(connection, place.schema, files, killed, plan.workers, len(failing), seconds)
        ignore_signals()  # cleaning up is not to be interrupted
    return report


def _choose(plan: Plan) -> tuple[list[str], frozenset[str]]:
    """Return the files to index, and those of them that are to fail once."""
    chance, files = random.Random(plan.seed), source_files()
    if not files:
        raise NothingToIndex("the standard library of this Python has no source files (is it in a zip?)")
    if plan.limit is not None:
        files = sorted(chance.sample(files, min(plan.limit, len(files))))
    return files, frozenset(chance.sample(files, min(_FAILING, len(files))))


def _introduce(console: Console, place: Place, crew: Crew, files: int) -> None:
    console.print(
        f"Indexing Python's standard library: {files} files, a job each, enqueued in one transaction\n"
        f"  database  {place.words}\n"
        f"  look in   {place.entrance}\n"
        f"  workers   {crew.words}\n",
        markup=False,
        soft_wrap=True,
    )


def _enqueue(place: Place, files: list[str], failing: frozenset[str]) -> None:
    """Enqueue all jobs in one transaction."""
    app.configure(dsn=place.dsn, schema=place.schema)
    try:
        with app.transaction() as connection:
            app.enqueue_many((index.s(path, path in failing) for path in files), connection=connection)
    finally:
        app.close()


def _watch(connection: psycopg.Connection[Any], schema: str, crew: Crew, total: int, show: Show) -> Killed | None:
    """Show how the work gets on until none is left; half-way, kill a worker."""
    killed, last, moved = None, None, time.monotonic()
    while True:
        (row,) = connection.execute(rename(_TALLY, schema).encode()).fetchall()
        tally = Tally(*row)
        if tally != last:
            last, moved = tally, time.monotonic()
        show.update(tally)
        if not tally.waiting:
            return killed
        if killed is None and 2 * tally.rows >= total and (killed := kill_one(connection, schema)):
            show.say(f"Worker process {killed.pid} is killed (SIGKILL) with {killed.load} in its hands.")
        crew.check(stalled=time.monotonic() - moved > _STALLED)
        time.sleep(_LOOK)
