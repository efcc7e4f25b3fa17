"""The measurements. Each takes a fresh database, checks that every job ran, and returns plain figures."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import psycopg

from benchmarks.peers.stage import Run, Stage
from benchmarks.peers.systems import Peer

Figures = dict[str, Any]

_LATE = 30.0  # seconds that jobs of the live measurement get after the last call


def drain(stage: Stage, peer: Peer, jobs: int, workers: int, *, held: bool = False) -> Figures:
    """Drain so many waiting jobs, from the moment when ready workers may claim until the system says that all ended.

    - `held`: another session holds a REPEATABLE READ snapshot older than the jobs.
    """
    with stage.run(peer) as run, snapshot(run.dsn) if held else nullcontext():
        began = time.monotonic()
        at_once = run.ask("fill", 0, jobs)
        filled = time.monotonic() - began
        run.settle()
        run.workers(workers)
        before, opened = run.cpu(), run.open()
        run.wait(lambda: run.starts.count() >= jobs, f"{jobs} jobs have started", run.starts.count)
        run.wait(lambda: _all_ended(run, jobs), f"{jobs} jobs have ended")
        end, after = time.monotonic(), run.cpu()
        times = check(run, range(jobs))
        return {
            "jobs": jobs,
            "per_second": jobs / (end - opened),
            "sixths": sixths(times),
            "bulk_per_second": jobs / filled if at_once else None,
            "worker_cpu": (after[0] - before[0]) / jobs * 1000,
            "server_cpu": (after[1] - before[1]) / jobs * 1000,
        }


def enqueue(stage: Stage, peer: Peer, seconds: float) -> Figures:
    """Enqueue singly, by one client and by eight, while no worker runs; return jobs a second."""
    found: Figures = {}
    for clients, name in ((1, "single"), (8, "eight")):
        with stage.run(peer) as run:
            jobs, found[name] = run.produced(run.producers(clients, seconds), seconds)
            if (stored := run.ask("left")) != jobs:
                raise RuntimeError(f"{jobs} jobs were enqueued and {stored} are there")
    return found


def latency(stage: Stage, peer: Peer, calls: int, every: float = 0.02) -> Figures:
    """Enqueue for an idle worker, one job at a time; return milliseconds from before the call to the task."""
    with stage.run(peer) as run:
        run.workers(1)
        run.open()
        time.sleep(1.0)  # it is idle by then
        run.produced(run.producers(1, 3600, every, calls), calls * every)
        run.wait(lambda: run.starts.count() >= calls, f"{calls} jobs have started", run.starts.count)
        check(run, range(calls))
        asked = dict(run.calls.records())
        waited = sorted((when - asked[number]) * 1000 for number, when in run.starts.records())
        return {name: percentile(waited, part) for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def live(stage: Stage, peer: Peer, seconds: float) -> Figures:
    """Producers, two workers, and a snapshot that is held for so many seconds after a while without.

    Returns points over time: seconds since the first call, latency in milliseconds, jobs called and not started.
    """
    lead = min(30.0, max(5.0, seconds / 6))
    with stage.run(peer) as run:
        run.workers(2)
        run.open()
        time.sleep(1.0)
        count = math.ceil(peer.live / 250)  # one alone could not keep up with a slow commit
        producers = run.producers(count, seconds + 2 * lead, count / peer.live)
        time.sleep(lead)
        with snapshot(run.dsn):
            time.sleep(seconds)
        jobs, rate = run.produced(producers, 2 * lead)
        deadline = time.monotonic() + _LATE
        while run.starts.count() < jobs and time.monotonic() < deadline:
            time.sleep(0.05)
        asked = dict(run.calls.records())
        starts = dict(run.starts.records())
        if (again := run.starts.count() - len(starts)) > 0:
            raise RuntimeError(f"{again} jobs ran again")
        begin = min(asked.values())
        return {
            "asked": peer.live,
            "rate": rate,
            "held_from": lead,
            "held_to": lead + seconds,
            "jobs": jobs,
            "started": len(starts),
            "points": points(
                sorted((when - begin, starts[number] - begin if number in starts else None)
                       for number, when in asked.items()),
                width=max(1.0, (seconds + 2 * lead) / 60),
            ),
        }  # fmt: skip


# -- parts -----------------------------------------------------------------------------------------------------------


@contextmanager
def snapshot(dsn: str) -> Iterator[None]:
    """Keep everything visible that is visible now, as a long report or a forgotten session does."""
    if not dsn.startswith("postgresql:"):
        yield
        return
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from pg_class")
        yield
        connection.rollback()


def check(run: Run, numbers: range) -> list[float]:
    """Return when the jobs started, in order; RuntimeError unless each has run exactly once."""
    records = list(run.starts.records())
    counts = Counter(number for number, _ in records)
    missing, again = len(numbers) - len(counts.keys() & set(numbers)), len(records) - len(counts)
    if missing or again or len(records) != len(numbers):
        raise RuntimeError(f"of {len(numbers)} jobs {missing} did not run, {again} ran again")
    return sorted(when for _, when in records)


def _all_ended(run: Run, jobs: int) -> bool:
    return run.ask("left") == 0 and (not run.peer.stores or run.ask("results") == jobs)


def sixths(times: Sequence[float]) -> list[float]:
    """Return jobs a second in each sixth of the jobs, from the times of their starts, sorted."""
    last = len(times) - 1
    edges = [times[last * part // 6] for part in range(7)]
    return [last / 6 / max(end - begin, 1e-9) for begin, end in pairwise(edges)]


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest value that so large a part of the sorted values does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def points(jobs: Sequence[tuple[float, float | None]], width: float) -> list[Figures]:
    """Return median, p99 and backlog for each interval of `width` seconds.

    - `jobs`: when each was called, sorted, and when it started; None: it never did.
    """
    found = []
    calls = [called for called, _ in jobs]
    starts = sorted(start for _, start in jobs if start is not None)
    for interval in range(int(calls[-1] / width) + 1 if calls else 0):
        begin, end = interval * width, (interval + 1) * width
        here = jobs[bisect_left(calls, begin) : bisect_left(calls, end)]
        waited = sorted((start - called) * 1000 for called, start in here if start is not None)
        found.append(
            {
                "at": (begin + end) / 2,
                "p50": percentile(waited, 0.5) if waited else None,
                "p99": percentile(waited, 0.99) if waited else None,
                "backlog": bisect_left(calls, end) - bisect_left(starts, end),
            }
        )
    return found
