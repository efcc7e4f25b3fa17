"""Drain: how fast worker processes empty a full queue, beside the bare loop."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pgqueue.bench.cpu import Cpu, median_cpu, server_cpu
from pgqueue.bench.crew import SOLO, Process
from pgqueue.bench.figures import Pace
from pgqueue.bench.ground import Ground, Say
from pgqueue.bench.tasks import add, app, carry
from pgqueue.errors import BenchFailed

WORKER: tuple[str, ...] = (*SOLO, "--burst")
BARE: tuple[str, ...] = ("pgqueue.bench.bare",)

_CHUNK = 1000  # jobs in one enqueue_many
_ENOUGH = 0.5  # of the jobs are to be done while all processes are at work

_NOW = "select pgqueue.clock()"
_CREW = """
select extract(epoch from min(claimed_at))::float8, extract(epoch from max(finished_at))::float8,
       count(*) filter (where state = 'SUCCESS')
  from pgqueue.result
 where finished_at > %(since)s
 group by worker
"""
_ACKS = """
select extract(epoch from finished_at)::float8, count(*)
  from pgqueue.result
 where finished_at > %(since)s
 group by finished_at
 order by finished_at
"""


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain, by the clock of the database.

    - `measured`: the share of the jobs that were done while all processes were at work, from which `per_second` is.
    - `sixths`: jobs per second in each sixth of the jobs.
    """

    per_second: float
    measured: float
    sixths: tuple[float, ...]
    cpu: Cpu


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What `pgqueue bench drain` prints: medians of the rounds.

    - `ratios`: of the rounds; `ratio`: their median.
    - `*_cpu_seconds_per_1000`: user and system time for a thousand jobs, without that of starting and stopping.
    - `one_process_per_second`, `scaling`: the same with one process and how many times that; None if there is but one.
    """

    jobs: int
    rounds: int
    processes: int
    payload: int
    jobs_per_second: float
    bare_jobs_per_second: float
    ratio: float
    ratios: tuple[float, ...]
    worker_cpu_seconds_per_1000: float
    server_cpu_seconds_per_1000: float | None
    bare_cpu_seconds_per_1000: float
    bare_server_cpu_seconds_per_1000: float | None
    one_process_per_second: float | None
    scaling: float | None


def measure_drain(ground: Ground, jobs: int, rounds: int, processes: int, payload: int, say: Say) -> DrainReport:
    """Drain in turn with workers and with as many bare loops, round after round."""
    start = {who: work(ground, who, 1) for who in (WORKER, BARE)}  # on an empty queue
    found: dict[tuple[str, ...], list[Drained]] = {WORKER: [], BARE: []}
    single: list[Drained] = []
    for number in range(rounds):
        for who, drains in found.items():
            drains.append(refill_and_drain(ground, who, jobs, processes, payload))
        if processes > 1:
            single.append(refill_and_drain(ground, WORKER, jobs, 1, payload))
        worker, bare = found[WORKER][-1].per_second, found[BARE][-1].per_second
        say(f"round {number + 1} of {rounds}: {worker:,.0f} jobs/s, bare loop {bare:,.0f}, ratio {worker / bare:.3f}")
    if min(drained.measured for drains in found.values() for drained in drains) < _ENOUGH:
        say(f"{jobs:,} jobs are too few: some processes had ended before others were well at work; use more --jobs")
    cpu = {
        who: per_1000([drained.cpu for drained in drains], start[who], jobs, processes) for who, drains in found.items()
    }
    ratios = [mine.per_second / bare.per_second for mine, bare in zip(found[WORKER], found[BARE], strict=True)]
    rate, one = median_rate(found[WORKER]), median_rate(single) if single else None
    return DrainReport(
        jobs=jobs,
        rounds=rounds,
        processes=processes,
        payload=payload,
        jobs_per_second=round(rate),
        bare_jobs_per_second=round(median_rate(found[BARE])),
        ratio=round(statistics.median(ratios), 3),
        ratios=tuple(round(ratio, 3) for ratio in ratios),
        worker_cpu_seconds_per_1000=cpu[WORKER].processes,
        server_cpu_seconds_per_1000=cpu[WORKER].server,
        bare_cpu_seconds_per_1000=cpu[BARE].processes,
        bare_server_cpu_seconds_per_1000=cpu[BARE].server,
        one_process_per_second=None if one is None else round(one),
        scaling=None if one is None else round(rate / one, 2),
    )


def median_rate(drains: Sequence[Drained]) -> float:
    """Return the median of jobs per second."""
    return statistics.median(drained.per_second for drained in drains)


def refill_and_drain(ground: Ground, who: Sequence[str], jobs: int, processes: int, payload: int) -> Drained:
    """Empty the tables, enqueue, and drain."""
    ground.empty()
    fill(jobs, payload)
    return drain(ground, who, jobs, processes)


def fill(jobs: int, payload: int) -> None:
    """Enqueue jobs that carry so many bytes beside their two integers."""
    text = "x" * payload
    for first in range(0, jobs, _CHUNK):
        numbers = range(first, min(first + _CHUNK, jobs))
        app.enqueue_many(carry.s(n, 3, text) if payload else add.s(n, 3) for n in numbers)


def drain(ground: Ground, who: Sequence[str], jobs: int, processes: int = 1) -> Drained:
    """Drain the queue with so many processes; raises BenchFailed if a job does not succeed.

    Time runs from the first claim to the last acknowledgement. Of several processes, only while all were at work: from
    the first claim of the last one to begin until the last acknowledgement of the first one to end.
    """
    with ground.connect() as connection:
        ((since,),) = ground.fetch(connection, _NOW)
        cpu = work(ground, who, processes)
        crew = ground.fetch(connection, _CREW, since=since)
        acks = ground.fetch(connection, _ACKS, since=since)
    succeeded = sum(count for _, _, count in crew)
    if succeeded != jobs:
        raise BenchFailed(f"{succeeded} of {jobs} jobs have succeeded: does another worker serve {ground.schema}?")
    pace = Pace(min(began for began, _, _ in crew), acks)
    opened, closed = max(began for began, _, _ in crew), min(ended for _, ended, _ in crew)
    if closed <= opened:  # one had ended before another began
        opened, closed = min(began for began, _, _ in crew), max(ended for _, ended, _ in crew)
    rate = pace.per_second(opened, closed)
    return Drained(rate, rate * (closed - opened) / jobs, tuple(pace.parts(6)), cpu)


def work(ground: Ground, who: Sequence[str], processes: int) -> Cpu:
    """Run processes that end when the queue is empty, and return what they and the server took."""
    with ExitStack() as stack:
        connection = stack.enter_context(ground.connect())
        before = server_cpu(connection)
        crew = [stack.enter_context(Process(ground, *who)) for _ in range(processes)]
        seconds = sum(process.join() for process in crew)
        after = server_cpu(connection)
    return Cpu(seconds, None if before is None or after is None else after - before)


def per_1000(spent: Sequence[Cpu], start: Cpu, jobs: int, processes: int = 1) -> Cpu:
    """Return the medians for a thousand jobs, without what starting and stopping so many processes alone take."""

    def share(seconds: float | None, start: float | None) -> float | None:
        return None if seconds is None or start is None else (seconds - processes * start) * 1000 / jobs

    mine = (cpu.processes - processes * start.processes for cpu in spent)
    return median_cpu(
        [Cpu(own * 1000 / jobs, share(cpu.server, start.server)) for own, cpu in zip(mine, spent, strict=True)]
    )
