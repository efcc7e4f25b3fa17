"""Mixed: long tasks and short ones in two processes: does a short one have to wait for a long one?

One long task runs at a time, so one of the two processes is always free for the short ones. A part of them is enqueued
together with a long one, before and behind it, so that one claim brings both.

A short one waits *for a long one* while the process that runs it has leased the short one as well. Nothing of that is
kept once the lease is handed back, so the table is looked at every 20 ms. The rest of its wait is for other short ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pgqueue.bench.crew import WORKER, Process, await_ready, await_results
from pgqueue.bench.figures import percentile
from pgqueue.bench.ground import Ground, Say
from pgqueue.bench.stream import clock_offset, produce, steadily
from pgqueue.bench.tasks import begin, linger
from pgqueue.canvas import Signature

PROCESSES = 2

_REST = 1.5  # a long task comes every so many times its length
_NEIGHBOURS = 10  # short ones before and behind each long one, in the same call

_JOBS = """
select task, extract(epoch from enqueued_at)::float8, (value #>> '{}')::float8 + %(offset)s
  from pgqueue.result
 where state = 'SUCCESS'
"""

#: Short jobs in the hands of a process that has a long one, and for how many seconds.
_HELD = """
select short.id::text, short.attempt,
       extract(epoch from pgqueue.clock() - greatest(short.claimed_at, long.claimed_at))::float8
  from pgqueue.job long join pgqueue.job short on short.worker = long.worker
 where long.task = %(long)s and short.task <> long.task
"""


@dataclass(frozen=True, slots=True)
class MixedReport:
    """What `pgqueue bench mixed` prints: the wait of short tasks from enqueue to first line, in milliseconds.

    - `waited_for_long_ms`: the longest time that a short one was in the hands of a process with a long one.
    - `waits_ms`: all of them.
    """

    seconds: float
    rate: float
    long_seconds: float
    processes: int
    long: int
    short: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    waited_for_long_ms: float
    waits_ms: tuple[float, ...]


class Held:
    """How long jobs were held in all, as far as one has looked.

    >>> held = Held()
    >>> for seconds in (0.01, 0.03):
    ...     held.look([("a", 1, seconds), ("a", 2, 0.02), ("b", 1, 0.04)])
    >>> held.longest
    0.05
    """

    def __init__(self) -> None:
        self._seconds: dict[str, dict[int, float]] = {}

    def look(self, rows: Iterable[tuple[str, int, float]]) -> None:
        """Note what is held now: job, attempt, and for how long."""
        for job, attempt, seconds in rows:
            attempts = self._seconds.setdefault(job, {})
            attempts[attempt] = max(seconds, attempts.get(attempt, 0.0))

    @property
    def longest(self) -> float:
        """The most seconds of one job, all its attempts together."""
        return max((sum(attempts.values()) for attempts in self._seconds.values()), default=0.0)


def measure_mixed(ground: Ground, seconds: float, rate: float, long_seconds: float, say: Say) -> MixedReport:
    """Produce short tasks at a steady rate for so long, and long ones of `long_seconds` among them."""
    every, short = long_seconds * _REST, steadily(begin.s(), rate)

    def due(last: float, now: float) -> list[Signature[Any]]:
        calls = short(last, now)
        if int(now / every) > int(last / every):
            neighbours: list[Signature[Any]] = [begin.s()] * _NEIGHBOURS
            calls += [*neighbours, linger.s(long_seconds), *neighbours]
        return calls

    with ExitStack() as stack:
        connection = stack.enter_context(ground.connect())
        crew = stack.enter_context(Process(ground, *WORKER, "-P", "prefork", "-c", str(PROCESSES)))
        await_ready(ground, connection, [crew], PROCESSES)
        offset = clock_offset(connection)
        produced, told, held = 0, 0.0, Held()
        for now, produced in produce(seconds, due):
            held.look(ground.fetch(connection, _HELD, long=linger.name))
            if now >= told + 5.0:
                told = now
                say(f"second {now:.0f} of {seconds:.0f}: {produced:,} jobs produced")
                crew.check()
        await_results(ground, connection, produced, crew)
        jobs = ground.fetch(connection, _JOBS, offset=offset)
    waits = [max(0.0, began - enqueued) for task, enqueued, began in jobs if task == begin.name]
    return MixedReport(
        seconds=seconds,
        rate=rate,
        long_seconds=long_seconds,
        processes=PROCESSES,
        long=len(jobs) - len(waits),
        short=len(waits),
        p50_ms=_ms(percentile(waits, 50)),
        p99_ms=_ms(percentile(waits, 99)),
        max_ms=_ms(max(waits)),
        waited_for_long_ms=_ms(held.longest),
        waits_ms=tuple(map(_ms, waits)),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
