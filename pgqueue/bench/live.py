"""Held snapshot, live: a producer and two workers at a steady rate while the snapshot gets older and older.

How long a claim takes cannot be asked of a worker from outside, and a session that claims for the purpose of being
timed would have a cursor, a size of claims and a queue of its own. But every result has `claimed_at`, which the
database notes when the claim begins, and the task returns when its first line ran. So the time from there to the first
job of each claim is that claim of a real worker, with its way to the worker and into the task: some tenths of a
millisecond more than the statement. The clocks of the two machines, if they are two, are compared beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from pgqueue.bench.crew import SOLO, Process, await_ready
from pgqueue.bench.ground import Ground, Say
from pgqueue.bench.snapshot import held_snapshot
from pgqueue.bench.stream import clock_offset, produce, steadily
from pgqueue.bench.tasks import begin

WORKERS = 2

_INTERVALS = 6  # at least
_LONGEST = 60.0  # seconds of one interval

_NOW = "select extract(epoch from pgqueue.clock())::float8"
_WAITING = "select count(*) from pgqueue.job where worker is null and eta <= pgqueue.clock()"

#: Interval by interval: the claims of jobs that were enqueued in it, in seconds.
_CLAIMS = """
with claim as (
    select extract(epoch from min(enqueued_at))::float8 as enqueued, extract(epoch from claimed_at)::float8 as claimed,
           min((value #>> '{}')::float8) + %(offset)s as began
      from pgqueue.result
     group by worker, claimed_at
)
select least(floor((enqueued - %(begun)s) / %(length)s), %(count)s - 1)::int as n, count(*),
       percentile_cont(0.5) within group (order by began - claimed),
       percentile_cont(0.99) within group (order by began - claimed),
       percentile_cont(0.99) within group (order by claimed - enqueued)
  from claim
 group by 1
"""
#: Interval by interval: jobs enqueued in it, and those that waited at its end.
_JOBS = """
with job as (
    select extract(epoch from enqueued_at) as enqueued, extract(epoch from claimed_at) as claimed
      from (select enqueued_at, claimed_at from pgqueue.result
            union all select enqueued_at, claimed_at from pgqueue.job) as every
)
select count(*) filter (where enqueued >= ends - %(length)s and enqueued < ends),
       count(*) filter (where enqueued < ends and coalesce(claimed, 'infinity') >= ends)
  from generate_series(1, %(count)s) as n, lateral (select %(begun)s + n * %(length)s as ends) as border, job
 group by n
 order by n
"""


@dataclass(frozen=True, slots=True)
class Clock:
    """When it began by the clock of the database, how much that is ahead of ours, and the intervals; in seconds."""

    begun: float
    offset: float
    length: float
    count: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A part of the run: `until` seconds after its beginning, `backlog` at its end; None: nothing was claimed in it.

    `wait_p99_ms` is the time from the enqueue to the beginning of the claim.
    """

    until: float
    produced: int
    backlog: int
    claims: int
    claim_p50_ms: float | None
    claim_p99_ms: float | None
    wait_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class LiveReport:
    """What `pgqueue bench held-snapshot --live` prints.

    - `ratio`: claim p99 of the last interval to that of the first; None: nothing was claimed in one of them.
    - `backlog`: jobs that waited when the producer stopped.
    """

    seconds: float
    rate: float
    workers: int
    produced: int
    intervals: tuple[Interval, ...]
    ratio: float | None
    backlog: int


def measure_live(ground: Ground, seconds: float, rate: float, say: Say) -> LiveReport:
    """Produce so many jobs a second for two workers while a snapshot is held that is as old as the run."""
    count = max(_INTERVALS, round(seconds / _LONGEST))
    length = seconds / count
    with ExitStack() as stack:
        connection = stack.enter_context(ground.connect())
        crew = [stack.enter_context(Process(ground, *SOLO)) for _ in range(WORKERS)]
        await_ready(ground, connection, crew, WORKERS)
        stack.enter_context(held_snapshot(ground))
        offset = clock_offset(connection)
        ((begun,),) = ground.fetch(connection, _NOW)
        produced = _produce(seconds, rate, length, crew, say)
        ((backlog,),) = ground.fetch(connection, _WAITING)
    intervals = _intervals(ground, Clock(begun, offset, length, count))
    first, last = intervals[0].claim_p99_ms, intervals[-1].claim_p99_ms
    ratio = None if first is None or last is None else round(last / first, 2)
    return LiveReport(seconds, rate, WORKERS, produced, intervals, ratio, backlog)


def _produce(seconds: float, rate: float, length: float, crew: Sequence[Process], say: Say) -> int:
    """Enqueue at a steady rate, say so at the end of each interval, and return how many."""
    produced, border = 0, length
    for now, produced in produce(seconds, steadily(begin.s(), rate)):
        if now >= border:
            border += length
            say(f"second {now:.0f} of {seconds:.0f}: {produced:,} jobs produced")
            for process in crew:
                process.check()
    return produced


def _intervals(ground: Ground, clock: Clock) -> tuple[Interval, ...]:
    """Read from the tables what happened when."""
    known = asdict(clock)
    with ground.connect() as connection:
        jobs = ground.fetch(connection, _JOBS, **known)
        claims = {n: figures for n, *figures in ground.fetch(connection, _CLAIMS, **known)}
    found = []
    for n, (produced, backlog) in enumerate(jobs):
        count, *seconds = claims.get(n, [0, None, None, None])
        times = [None if each is None else round(each * 1000, 2) for each in seconds]
        found.append(Interval(round(clock.length * (n + 1), 1), produced, backlog, count, *times))
    return tuple(found)
