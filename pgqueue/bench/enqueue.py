"""Enqueue: calls a second, one by one and many at once, beside a bare INSERT and a bare COPY."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pgqueue.bench.clients import THREADS
from pgqueue.bench.cpu import Cpu, median_cpu, server_cpu
from pgqueue.bench.crew import Process
from pgqueue.bench.ground import Ground, Say


@dataclass(frozen=True, slots=True)
class EnqueueReport:
    """What `pgqueue bench enqueue` prints: medians of the rounds; a ratio is the median of the rounds' ratios.

    - `single_*`: `delay` in one client; `clients_*`: in `clients` at once, which are threads of `processes` processes.
    - `many_*`: one `enqueue_many` of `jobs` jobs; `bare_copy_per_second`: a COPY of as many into the same table.
    - `cpu_seconds_per_1000`: user and system time of the clients and of the server, by what was done.
    """

    jobs: int
    rounds: int
    seconds: float
    clients: int
    processes: int
    single_per_second: float
    bare_single_per_second: float
    single_ratio: float
    clients_per_second: float
    bare_clients_per_second: float
    clients_ratio: float
    many_per_second: float
    bare_copy_per_second: float
    many_ratio: float
    cpu_seconds_per_1000: dict[str, Cpu]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """One run: jobs per second, and what a thousand took."""

    per_second: float
    cpu: Cpu


def measure_enqueue(ground: Ground, jobs: int, rounds: int, seconds: float, clients: int, say: Say) -> EnqueueReport:
    """Enqueue in turn with pgqueue and without, round after round; no worker runs."""
    found: dict[str, list[Enqueued]] = {}
    with ExitStack() as stack:
        crew = [stack.enter_context(Process(ground, "pgqueue.bench.clients")) for _ in range(-(-clients // THREADS))]
        one, all_of_them = {"threads": [1], "seconds": seconds}, {"threads": _spread(clients, crew), "seconds": seconds}
        for number in range(rounds):
            for name, kind, request in (
                ("single", "single", one),
                ("bare_single", "bare", one),
                ("clients", "single", all_of_them),
                ("bare_clients", "bare", all_of_them),
                ("many", "many", {"jobs": [jobs]}),
                ("bare_copy", "copy", {"jobs": [jobs]}),
            ):
                found.setdefault(name, []).append(_run(ground, crew, kind, **request))
            last = ", ".join(f"{name} {runs[-1].per_second:,.0f}" for name, runs in found.items())
            say(f"round {number + 1} of {rounds}: {last} a second")
    return _report(found, jobs=jobs, rounds=rounds, seconds=seconds, clients=clients, processes=len(crew))


def _report(found: dict[str, list[Enqueued]], **known: Any) -> EnqueueReport:
    """Return the medians, and the medians of the ratios."""
    rate = {name: round(statistics.median(run.per_second for run in runs)) for name, runs in found.items()}

    def ratio(mine: str, bare: str) -> float:
        pairs = zip(found[mine], found[bare], strict=True)
        return round(statistics.median(ours.per_second / theirs.per_second for ours, theirs in pairs), 3)

    return EnqueueReport(
        **known,
        **{f"{name}_per_second": value for name, value in rate.items()},
        single_ratio=ratio("single", "bare_single"),
        clients_ratio=ratio("clients", "bare_clients"),
        many_ratio=ratio("many", "bare_copy"),
        cpu_seconds_per_1000={name: median_cpu([run.cpu for run in runs]) for name, runs in found.items()},
    )


def _spread(clients: int, crew: Sequence[Process]) -> list[int]:
    """Return how many clients each process has."""
    return [len(range(place, clients, len(crew))) for place in range(len(crew))]


def _run(ground: Ground, crew: Sequence[Process], kind: str, **request: Any) -> Enqueued:
    """Empty the tables, send a request to as many processes as it has shares for, and sum up their answers.

    - `request`: a list has a share for each process, anything else is for all.
    """
    ground.empty()
    shares = next(len(value) for value in request.values() if isinstance(value, list))
    with ground.connect() as connection:
        before = server_cpu(connection)
        for place, process in enumerate(crew[:shares]):
            process.tell(
                kind=kind,
                **{name: value[place] if isinstance(value, list) else value for name, value in request.items()},
            )
        answers = [process.hear() for process in crew[:shares]]
        after = server_cpu(connection)
    jobs, per_second, cpu = (sum(answer[key] for answer in answers) for key in ("jobs", "per_second", "cpu"))
    server = None if before is None or after is None else (after - before) * 1000 / jobs
    return Enqueued(per_second, Cpu(cpu * 1000 / jobs, server))
