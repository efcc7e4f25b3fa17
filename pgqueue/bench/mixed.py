"""Mixed: long tasks and short ones in two processes: does a short one have to wait for a long one?

One long task runs at a time, so one of the two processes is always free for the short ones. A part of them is enqueued
together with a long one, before and behind it, so that one claim brings both.

How long a short one waited *for a long one* is not written anywhere: it is taken for its whole wait while a long one
ran. That is too much rather than too little: it may have waited for other short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pgqueue.bench.crew import WORKER, Process, await_ready, await_results
from pgqueue.bench.figures import percentile
from pgqueue.bench.ground import Ground, Say
from pgqueue.bench.stream import clock_offset, produce, steadily
from pgqueue.bench.tasks import begin, linger
from pgqueue.signature import Signature

PROCESSES = 2

_REST = 1.5  # a long task comes every so many times its length
_NEIGHBOURS = 10  # short ones before and behind each long one, in the same call

_JOBS = """
select task, extract(epoch from enqueued_at)::float8, (value #>> '{}')::float8 + %(offset)s
  from pgqueue.result
 where state = 'SUCCESS'
"""

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class MixedReport:
    """What `pgqueue bench mixed` prints: the wait of short tasks from enqueue to first line, in milliseconds.

    - `waited_for_long_ms`: the longest part of such a wait that passed while a long task ran.
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
        produced, told = 0, 0.0
        for now, produced in produce(seconds, due):
            if now >= told + 5.0:
                told = now
                say(f"second {now:.0f} of {seconds:.0f}: {produced:,} jobs produced")
                crew.check()
        await_results(ground, connection, produced, crew)
        jobs = ground.fetch(connection, _JOBS, offset=offset)
    longs = [(began, began + long_seconds) for task, _, began in jobs if task == linger.name]
    shorts = [(enqueued, began) for task, enqueued, began in jobs if task == begin.name]
    waits = [max(0.0, began - enqueued) for enqueued, began in shorts]
    return MixedReport(
        seconds=seconds,
        rate=rate,
        long_seconds=long_seconds,
        processes=PROCESSES,
        long=len(longs),
        short=len(shorts),
        p50_ms=_ms(percentile(waits, 50)),
        p99_ms=_ms(percentile(waits, 99)),
        max_ms=_ms(max(waits)),
        waited_for_long_ms=_ms(max(overlap(wait, longs) for wait in shorts)),
        waits_ms=tuple(map(_ms, waits)),
    )


def overlap(wait: Span, runs: Sequence[Span]) -> float:
    """Return how much of a wait passed while one of the runs went on; these do not overlap one another.

    >>> overlap((1.0, 4.0), [(0.0, 1.5), (3.0, 9.0)])
    1.5
    """
    return sum(max(0.0, min(wait[1], end) - max(wait[0], start)) for start, end in runs)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
