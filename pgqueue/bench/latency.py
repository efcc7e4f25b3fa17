"""Latency: from just before the call until the first line of the task, in an idle worker."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass

from pgqueue.bench.crew import SOLO, Process, await_ready
from pgqueue.bench.figures import percentile
from pgqueue.bench.ground import Ground, Say
from pgqueue.bench.tasks import app, stamp

#: What a claim and its way take beside the wait for the next poll; generous, for a machine with other things to do.
_ALLOWANCE = 0.25  # seconds
_PATIENCE = 60.0  # seconds for a result
_WARM_UP = 20  # jobs before the first that counts


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """What `pgqueue bench latency` prints, in milliseconds.

    - `call_p50_ms`: how long `delay` itself takes, of which the latency contains the commit.
    - `poll_interval_ms`: the longest time between two looks of an idle worker, the setting `poll_interval`.
    - `bounded`: whether none took longer than that and `allowance_ms` more.
    - `latencies_ms`: all of them.
    """

    jobs: int
    notifications: bool
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    call_p50_ms: float
    poll_interval_ms: float
    allowance_ms: float
    bounded: bool
    latencies_ms: tuple[float, ...]


def measure_latency(ground: Ground, jobs: int, interval: float, notifications: bool, say: Say) -> LatencyReport:
    """Enqueue one job after the other for one idle worker.

    - `interval`: seconds between two calls.
    - `notifications`: without, the worker is told that a transaction pooler stands between, so that it only polls,
      and each call waits until it has looked in vain for as long as it ever does.
    """
    poll = app.settings.poll_interval
    told = {} if notifications else {"PGQUEUE_POOLER": "true"}
    with Process(ground, *SOLO, **told) as worker, closing(ground.connect()) as connection:
        await_ready(ground, connection, [worker], 1, idle=notifications)
        for _ in range(_WARM_UP):
            stamp.delay().get(timeout=_PATIENCE)
        say(f"{jobs} jobs" + (f", one every {interval * 1000:g} ms" if notifications else ", each after a rest"))
        due, calls = time.monotonic() + interval, []
        for _ in range(jobs):
            time.sleep(max(0.0, due - time.monotonic()))
            called = time.monotonic()
            result = stamp.delay()
            calls.append((called, time.monotonic() - called, result))
            due += interval
            if not notifications:
                # At a random moment of its rhythm, after this has become as slow as it gets.
                result.get(timeout=_PATIENCE)
                due = time.monotonic() + poll * (2 + random.random())
        taken = [result.get(timeout=_PATIENCE) - called for called, _, result in calls]
    return LatencyReport(
        jobs=jobs,
        notifications=notifications,
        p50_ms=_ms(percentile(taken, 50)),
        p95_ms=_ms(percentile(taken, 95)),
        p99_ms=_ms(percentile(taken, 99)),
        max_ms=_ms(max(taken)),
        call_p50_ms=_ms(percentile([seconds for _, seconds, _ in calls], 50)),
        poll_interval_ms=_ms(poll),
        allowance_ms=_ms(_ALLOWANCE),
        bounded=max(taken) <= poll + _ALLOWANCE,
        latencies_ms=tuple(map(_ms, taken)),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
