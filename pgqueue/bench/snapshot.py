"""Held snapshot: a drain while another session holds an old snapshot, so that nothing dead can be removed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pgqueue.bench.cpu import Cpu
from pgqueue.bench.drain import WORKER, Drained, drain, fill, per_1000, refill_and_drain
from pgqueue.bench.ground import Ground, Say

_NORMAL = 0.9  # of the rate without a snapshot
_STAY = """
select set_config(name, '0', false) from pg_settings
 where name in ('idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')
"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How soon after the release a drain was at 0.9 of its pace without a snapshot; None: not in time.

    `ratio` is that of the last drain, of a sixth of the jobs, to the first sixth of the clean ones (median).
    """

    seconds: float | None
    ratio: float


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What `pgqueue bench held-snapshot` prints: jobs per second by sixths, medians of the rounds.

    - `ratio`: the last sixth with a held snapshot to the last one without, median of the rounds.
    - `cpu_seconds_per_1000`: of the worker and of the server, `clean` and `held`; the start of the worker included.
    """

    jobs: int
    rounds: int
    clean_sixths: tuple[float, ...]
    held_sixths: tuple[float, ...]
    ratio: float
    recovery: Recovery
    cpu_seconds_per_1000: dict[str, Cpu]


@contextmanager
def held_snapshot(ground: Ground) -> Iterator[None]:
    """Hold a REPEATABLE READ snapshot, with a transaction id, in a session of its own."""
    with ground.connect() as connection:
        connection.execute(_STAY)
        connection.execute("begin isolation level repeatable read")
        connection.execute("select pg_current_xact_id()")
        yield
        connection.execute("rollback")  # fails if something has ended it meanwhile


def measure_snapshot(ground: Ground, jobs: int, rounds: int, patience: float, say: Say) -> SnapshotReport:
    """Drain without a snapshot and with one in turn, round after round; then see how soon all is normal again.

    - `patience`: seconds after which that is given up.
    """
    clean: list[Drained] = []
    held: list[Drained] = []
    for number in range(rounds):
        clean.append(refill_and_drain(ground, WORKER, jobs, 1, 0))
        say(f"round {number + 1} of {rounds}: {_shown(clean[-1].sixths)} jobs/s without a snapshot")
        ground.empty()
        fill(jobs, 0)
        with held_snapshot(ground):
            held.append(drain(ground, WORKER, jobs))
            say(f"round {number + 1} of {rounds}: {_shown(held[-1].sixths)} jobs/s with one held")
    # Beside the first sixth, which a fresh worker has drained as well.
    normal = statistics.median(drained.sixths[0] for drained in clean)
    recovery = _recover(ground, max(1, jobs // 6), normal, patience)
    ratios = [mine.sixths[-1] / bare.sixths[-1] for mine, bare in zip(held, clean, strict=True)]
    return SnapshotReport(
        jobs=jobs,
        rounds=rounds,
        clean_sixths=_medians(clean),
        held_sixths=_medians(held),
        ratio=round(statistics.median(ratios), 3),
        recovery=recovery,
        cpu_seconds_per_1000={
            name: per_1000([drained.cpu for drained in drains], Cpu(0.0, 0.0), jobs)
            for name, drains in (("clean", clean), ("held", held))
        },
    )


def _recover(ground: Ground, jobs: int, normal: float, patience: float) -> Recovery:
    """Drain again and again, in the tables as they are, until the pace is normal; the snapshot has just gone."""
    released = time.perf_counter()
    while True:
        fill(jobs, 0)
        ratio = drain(ground, WORKER, jobs).per_second / normal
        passed = time.perf_counter() - released
        if ratio >= _NORMAL or passed > patience:
            return Recovery(round(passed, 1) if ratio >= _NORMAL else None, round(ratio, 3))


def _medians(drains: list[Drained]) -> tuple[float, ...]:
    return tuple(round(statistics.median(rates)) for rates in zip(*(each.sixths for each in drains), strict=True))


def _shown(rates: tuple[float, ...]) -> str:
    return " ".join(f"{rate:,.0f}" for rate in rates)
