"""Whether a default server keeps the tables small under load: sizes and dead rows of every table, interval by interval.

    python -m benchmarks.health [--seconds 180] [--rate 1000] [--interval 10] [--keep 60] [--size 200] [--json]

Jobs come at a steady rate and are claimed and acknowledged as they come, in batches; half a second's worth always
waits. Beside them what else writes: calls of get() (50/s), progress of running tasks, workers that become idle and
busy, beats, and the pruning of results older than --keep seconds. --backlog puts that many future jobs into the
table first, --size is that of the arguments in bytes: above 2,000 they are stored out of line. Autovacuum looks at a
database once a minute (autovacuum_naptime), so a run of less than three minutes shows little.

It prints MB, dead rows and vacuums of each table, and `ratio`: the largest size of job with its indexes in the last
third of the run over the largest in the first; `ratio_first_tenth`: at the end over that after the first tenth, when
nothing has been vacuumed. A queue that stays healthy has a ratio of about 1; more than 2 ends the command with 1.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.full_tables import fill
from pgqueue.database import run, run_together
from pgqueue.embedded import Embedded
from pgqueue.ids import new_id
from pgqueue.sql import schema
from pgqueue.statements import Ended, Statements
from pgqueue.types import Claim, NewJob, Succeeded

LARGEST_RATIO = 2.0
STATEMENTS = Statements()
#: Batches a second, of the producer and of the consumer.
TICKS = 20
#: Calls of get(), progress of tasks, and times that a worker becomes idle, each a second.
GETS, TOLD, IDLE = 50, 50, 1

_SIZES = """
    select c.relname, pg_relation_size(c.oid), pg_indexes_size(c.oid),
           coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0), s.n_live_tup, s.n_dead_tup,
           s.autovacuum_count, s.autoanalyze_count
      from pg_class c join pg_stat_user_tables s on s.relid = c.oid
     where c.relnamespace = 'pgqueue'::regnamespace and c.relname <> 'alembic_version'
     order by c.relname
"""


@dataclass(frozen=True, slots=True)
class Size:
    """One table at one time; sizes in MB."""

    table: float
    indexes: float
    toast: float
    live: int
    dead: int
    vacuums: int
    analyzes: int

    @property
    def all(self) -> float:
        """With its indexes and what is stored out of line."""
        return self.table + self.indexes + self.toast


def sizes(connection: psycopg.Connection) -> dict[str, Size]:
    """Return what every table takes now."""
    return {
        name: Size(*(round(size / 2**20, 2) for size in (heap, indexes, toast)), *rest)
        for name, heap, indexes, toast, *rest in connection.execute(_SIZES.encode())
    }


class Load:
    """The threads that write.

    - `rate`: jobs a second; `size`: bytes of the arguments of each; `keep`: seconds that results are kept.
    """

    def __init__(self, dsn: str, rate: int, size: int, keep: float) -> None:
        self._dsn, self._rate, self._keep = dsn, rate, keep
        # By chance, since what can be compressed stays in the row.
        self._text = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=size))
        self._worker = new_id()
        self._end = threading.Event()
        self.done = 0
        self.failed: list[BaseException] = []
        self._claims: list[Claim] = []

    def start(self) -> list[threading.Thread]:
        """Start all threads and return them."""
        loops = [(self.produce, TICKS), (self.consume, TICKS), (self.get, GETS), (self.change, IDLE)]
        threads = [threading.Thread(target=self._repeat, args=loop) for loop in loops]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        """Let the threads end."""
        self._end.set()

    def _repeat(self, do: Callable[[psycopg.Connection], object], times: int) -> None:
        """Do it so many times a second, on a connection of its own."""
        try:
            with psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None) as connection:
                due = time.monotonic()
                while not self._end.wait(max(0.0, due - time.monotonic())):
                    do(connection)
                    due = max(due + 1 / times, time.monotonic() - 1.0)
        except BaseException as error:
            self.failed.append(error)
            self._end.set()

    def produce(self, connection: psycopg.Connection) -> None:
        """Enqueue what comes in one tick."""
        text = json.dumps([self._text])
        new = [NewJob(id=new_id(), task="t", args=text, kwargs="{}") for _ in range(self._rate // TICKS)]
        run(connection, STATEMENTS.enqueue(new, durable=True))

    def consume(self, connection: psycopg.Connection) -> None:
        """Acknowledge what was claimed in the last tick, and claim again."""
        ended = [Ended(claim, Succeeded("5"), 0.001) for claim in self._claims]
        _, self._claims = run_together(
            connection,
            STATEMENTS.finish(self._worker, ended),
            STATEMENTS.claim(self._worker, ["default"], 2 * self._rate // TICKS, []),
        )
        self.done += len(ended)
        for claim in self._claims[: TOLD // TICKS]:
            run(connection, STATEMENTS.set_state(claim.id, self._worker, claim.attempt, "PROGRESS", '{"done": 3}'))

    def get(self, connection: psycopg.Connection) -> None:
        """Wait for one result."""
        job, call = new_id(), new_id()
        run(connection, STATEMENTS.wait_for(job, call, 60))
        run(connection, STATEMENTS.stop_waiting(job, call))

    def change(self, connection: psycopg.Connection) -> None:
        """Be idle, be busy, beat and prune."""
        run(connection, STATEMENTS.say_idle(self._worker, ["default"]))
        run(connection, STATEMENTS.say_busy(self._worker))
        run(connection, STATEMENTS.beat(self._worker, []))
        run(connection, STATEMENTS.prune(self._keep, 2 * self._rate))


def watch(dsn: str, load: Load, seconds: float, interval: float) -> list[dict[str, Size]]:
    """Run the load for so long and return the sizes after each interval."""
    series = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        run(connection, STATEMENTS.register({**_WORKER, "id": load._worker}))
        threads = load.start()
        started = time.monotonic()
        for n in range(1, round(seconds / interval) + 1):
            if load.failed:
                break
            time.sleep(max(0.0, started + n * interval - time.monotonic()))
            series.append(sizes(connection))
            print(line(n * interval, series[-1], load.done), file=sys.stderr, flush=True)
        load.stop()
        for thread in threads:
            thread.join()
    if load.failed:
        raise load.failed[0]
    return series


_WORKER: dict[str, Any] = {
    "name": "load@host",
    "host": "host",
    "boot": "boot",
    "pid": 1,
    "pool": "solo",
    "slots": 1,
    "queues": ["default"],
}


def line(seconds: float, found: dict[str, Size], done: int) -> str:
    """Return one interval as a line for people: MB with indexes, and dead rows."""
    tables = "  ".join(
        f"{name} {size.all:.1f} MB {size.dead:,}" + (f" v{size.vacuums}" if size.vacuums else "")
        for name, size in found.items()
    )
    return f"{seconds:6.0f} s {done:>9,} jobs  {tables}"


def verdict(series: list[dict[str, Size]]) -> dict[str, float]:
    """Return how much job has grown; see the top of this file."""
    jobs = [found["job"].all for found in series]
    third, tenth = max(1, len(jobs) // 3), max(1, len(jobs) // 10)
    return {
        "ratio": round(max(jobs[-third:]) / max(jobs[:third]), 2),
        "ratio_first_tenth": round(jobs[-1] / jobs[tenth - 1], 2),
        "most_dead": max(found["job"].dead for found in series),
    }


def main() -> int:
    """Read the arguments, measure, print; 1 if the table grows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rate", type=int, default=1000, help="jobs a second (1000)")
    parser.add_argument("--interval", type=float, default=10)
    parser.add_argument("--keep", type=float, default=60, help="seconds that results are kept (60)")
    parser.add_argument("--size", type=int, default=200, help="bytes of the arguments of each job (200)")
    parser.add_argument("--backlog", type=int, default=0, help="future jobs that are there before (0)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder) / "server") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(schema().encode())
            fill(connection, 0, given.backlog)
        load = Load(server.dsn, given.rate, given.size, given.keep)
        series = watch(server.dsn, load, given.seconds, given.interval)
    found = verdict(series)
    if given.json:
        rows = [{name: {**_as_dict(size)} for name, size in tables.items()} for tables in series]
        print(json.dumps({**found, "jobs": load.done, "interval": given.interval, "series": rows}))
    else:
        print(f"{load.done:,} jobs in {given.seconds:.0f} s; size of job, last third over first: {found['ratio']}")
    return int(found["ratio"] > LARGEST_RATIO)


def _as_dict(size: Size) -> dict[str, float]:
    return {name: getattr(size, name) for name in Size.__slots__}


if __name__ == "__main__":
    sys.exit(main())
