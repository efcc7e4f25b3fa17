"""Resident memory of one worker while its tasks fail, each with large locals in the frames of its exception.

    python -m benchmarks.failing [--jobs 100000] [--locals 1000000] [--only plain,cause,...] [--pool solo] [--json]

Each variant runs in a worker of its own. It prints the memory in MB when the first task begins, after every tenth of
the attempts and at the end, and attempts per second; it is `flat` if the worker holds at the end less than three
exceptions' locals, and 10 MB, more than after the first tenth.

    plain       an exception from a function three calls deep, each with locals
    cause       one that is raised because of another, which is raised while a third is handled
    group       a group of two
    kept        one that the task and a receiver of task_failure keep, with its traceback, until the next: as programs
                do that report errors elsewhere
    cycle       one that a local variable of its own frame holds, so that counting references frees neither
    hooks       one that on_failure, after_return, task_failure and task_postrun are told of
    coroutine   one from a coroutine
    retried     one that leads to a retry first, and then to the failure: two attempts a job

The server is the embedded one, in a temporary directory on a disk; results are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import PgQueue, Task, signals
from pgqueue.embedded import Embedded
from pgqueue.sql import schema
from pgqueue.worker import WorkerOptions, WorkerProcess
from pgqueue.worker.memory import memory_in_use

app = PgQueue("failing")

ANY_TASK = Task[..., Any, Any]
#: What a module keeps of the last failure.
KEPT: list[object] = []
#: More than this much more at the end than after the first tenth is growth, besides the locals of three exceptions.
SLACK_MB = 10.0


class Meter:
    """Counts the attempts of this process and notes its memory at every tenth of them.

    - `attempts`: how many there will be.
    - `heard`: called with each note: attempts so far, and MB.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self.count = 0
        self.notes: list[float] = []
        self.heard: Callable[[int, float], object] = lambda count, megabytes: None

    def tick(self) -> None:
        """One more attempt begins."""
        if self.attempts and self.count * 10 // self.attempts >= len(self.notes):
            self.note()
        self.count += 1

    def note(self) -> None:
        """Note the memory."""
        self.notes.append(memory_in_use() / 1024)
        self.heard(self.count, self.notes[-1])


METER = Meter()


def large(size: int) -> bytes:
    """Return so many bytes that are really there: those of `bytes(size)` cost nothing until they are written."""
    return b"x" * size


def fail(size: int) -> None:
    """Raise from three calls deep, with locals of `size` bytes in all."""
    mine = large(size // 2)
    fail_deeper(size - len(mine))


def fail_deeper(size: int) -> None:
    mine = large(size // 2)
    fail_deepest(size - len(mine))


def fail_deepest(size: int) -> None:
    mine = large(size)
    raise ValueError(f"{len(mine)} bytes")


@app.task
def plain(size: int) -> None:
    """Fail."""
    METER.tick()
    fail(size)


@app.task
def cause(size: int) -> None:
    """Fail because of a failure, which came while a third was handled."""
    METER.tick()
    try:
        try:
            fail(size // 3)
        except ValueError:
            fail(size // 3)
    except ValueError as error:
        mine = large(size // 3)
        raise LookupError(f"{len(mine)} bytes") from error


@app.task
def group(size: int) -> None:
    """Fail with two exceptions at once."""
    METER.tick()
    members = []
    for _ in range(2):
        try:
            fail(size // 2)
        except ValueError as error:
            members.append(error)
    raise ExceptionGroup("both", members)


@app.task
def kept(size: int) -> None:
    """Fail with an exception that a module keeps until the next one."""
    METER.tick()
    try:
        fail(size)
    except ValueError as error:
        KEPT[:] = [error, error.__traceback__]
        raise


@app.task
def cycle(size: int) -> None:
    """Fail with an exception that a frame of its own traceback holds."""
    METER.tick()
    held = None
    try:
        fail(size)
    except ValueError as error:
        held = error
    if held is not None:
        raise held


class Hooked(Task[..., Any, Any]):
    """Looks at what it is told."""

    def on_failure(self, exc: BaseException, task_id: str, args: object, kwargs: object, einfo: Any) -> None:
        self.last = str(einfo), exc

    def after_return(self, status: str, retval: object, task_id: str, args: object, kwargs: object, einfo: Any) -> None:
        self.returned = status, retval, einfo


@app.task(base=Hooked)
def hooks(size: int) -> None:
    """Fail, so that hooks and receivers are told."""
    METER.tick()
    fail(size)


@app.task
async def coroutine(size: int) -> None:
    """Fail in a coroutine, with an exception that its own frame holds."""
    METER.tick()
    mine, held = large(size // 2), Exception()
    try:
        fail(size - len(mine))
    except ValueError as error:
        held = error
    raise held


@app.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def retried(size: int) -> None:
    """Fail twice."""
    METER.tick()
    fail(size)


VARIANTS: dict[str, ANY_TASK] = {
    task.name.rpartition(".")[2]: task for task in (plain, cause, group, kept, cycle, hooks, coroutine, retried)
}


def keep(sender: object = None, **told: object) -> None:
    """Receive a failure, and keep all that is told of it."""
    KEPT[:] = [told]


def work(variant: str, jobs: int, pool: str) -> dict[str, object]:
    """Drain the queue with a worker of this process; return its figures."""
    handler = logging.StreamHandler(open(os.devnull, "w"))  # noqa: SIM115, PTH123 - what a log costs belongs to it
    logging.getLogger("pgqueue").addHandler(handler)
    if variant in ("kept", "hooks"):
        signals.task_failure.connect(keep, weak=False)
    if variant == "hooks":
        signals.task_postrun.connect(keep, weak=False)
    METER.attempts = jobs * (2 if variant == "retried" else 1)
    METER.heard = lambda count, megabytes: print(f"    {count:>8} {megabytes:8.1f} MB", file=sys.stderr, flush=True)
    started = time.perf_counter()
    code = WorkerProcess(app, WorkerOptions(pool=pool, concurrency=1 if pool == "solo" else 4, burst=True)).run()
    seconds = time.perf_counter() - started
    METER.note()
    return {
        "exit_code": code,
        "attempts": METER.count,
        "per_second": round(METER.count / seconds),
        "megabytes": [round(note, 1) for note in METER.notes],
    }


def apart(variant: str, given: argparse.Namespace, dsn: str) -> dict[str, Any]:
    """Run one variant in a process of its own; return its figures."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("truncate pgqueue.job, pgqueue.result")
    task = VARIANTS[variant]
    for first in range(0, given.jobs, 1000):
        app.enqueue_many(task.s(given.locals) for _ in range(first, min(first + 1000, given.jobs)))
    command = [sys.executable, "-m", "benchmarks.failing", "--worker", variant, "--dsn", dsn]
    command += ["--jobs", str(given.jobs), "--pool", given.pool]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL if given.json else None}
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, text=True, **streams).stdout)
    with psycopg.connect(dsn, autocommit=True) as connection:
        (failures,) = connection.execute("select count(*) from pgqueue.result where state = 'FAILURE'").fetchone() or (
            0,
        )
    after_first_tenth, last = found["megabytes"][1], found["megabytes"][-1]
    grown = last - after_first_tenth
    flat = grown < SLACK_MB + 3 * given.locals / 2**20
    return {**found, "failures": failures, "grown_megabytes": round(grown, 1), "flat": flat}


def measure(given: argparse.Namespace, variants: Sequence[str], dsn: str) -> bool:
    """Measure the variants one after the other, and print; return whether all is well."""
    figures = {}
    for variant in variants:
        if not given.json:
            print(f"{variant}: {given.jobs} jobs, {given.locals} bytes of locals, pool {given.pool}", flush=True)
        figures[variant] = found = apart(variant, given, dsn)
        if not given.json:
            verdict = "flat" if found["flat"] else "GROWS"
            print(f"  {verdict}: {found['grown_megabytes']} MB more, {found['per_second']} attempts/s", flush=True)
    if given.json:
        print(json.dumps(figures))
    return all(
        found["flat"] and found["exit_code"] == 0 and found["failures"] == given.jobs for found in figures.values()
    )


def main() -> None:
    """Read the arguments, measure, print; the exit code is 1 if memory grows or a job did not end as FAILURE."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--locals", type=int, default=1_000_000)
    parser.add_argument("--only", help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--pool", choices=("solo", "threads"), default="solo")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        app.configure(dsn=given.dsn)
        print(json.dumps(work(given.worker, given.jobs, given.pool)))
        app.close()
        return
    variants = given.only.split(",") if given.only else list(VARIANTS)
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder) / "server") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(schema().encode())
        app.configure(dsn=server.dsn)
        well = measure(given, variants, server.dsn)
        app.close()
    sys.exit(not well)


if __name__ == "__main__":
    main()
