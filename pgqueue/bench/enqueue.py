"""Enqueue: calls a second, one by one and many at once, beside a bare INSERT and a bare COPY."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass

from pgqueue.bench.clients import THREADS
from pgqueue.bench.crew import Process
from pgqueue.bench.ground import Ground, Say


@dataclass(frozen=True, slots=True)
class EnqueueReport:
    """What `pgqueue bench enqueue` prints: medians of the rounds; a ratio is the median of the rounds' ratios.

    - `single_*`: `delay` in one client; `clients_*`: in `clients` at once, which are threads of `processes` processes.
    - `many_*`: one `enqueue_many` of `jobs` jobs; `bare_copy_per_second`: a COPY of as many into the same table.
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


def measure_enqueue(ground: Ground, jobs: int, rounds: int, seconds: float, clients: int, say: Say) -> EnqueueReport:
    """Enqueue in turn with pgqueue and without, round after round; no worker runs."""
    count = -(-clients // THREADS)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        crew = [stack.enter_context(Process(ground, "pgqueue.bench.clients")) for _ in range(count)]
        for number in range(rounds):
            for kind in ("single", "bare_single"):
                found.setdefault(kind, []).append(_one_by_one(ground, crew[:1], 1, kind, seconds))
                found.setdefault(f"{kind}s", []).append(_one_by_one(ground, crew, clients, kind, seconds))
            for kind in ("many", "bare_copy"):
                ground.empty()
                crew[0].tell(kind=kind, jobs=jobs)
                found.setdefault(kind, []).append(float(crew[0].hear()["per_second"]))
            last = ", ".join(f"{kind} {rates[-1]:,.0f}" for kind, rates in found.items())
            say(f"round {number + 1} of {rounds}: {last} a second")
    rate = {kind: round(statistics.median(rates)) for kind, rates in found.items()}

    def ratio(mine: str, bare: str) -> float:
        return round(statistics.median(a / b for a, b in zip(found[mine], found[bare], strict=True)), 3)

    return EnqueueReport(
        jobs=jobs,
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        processes=count,
        single_per_second=rate["single"],
        bare_single_per_second=rate["bare_single"],
        single_ratio=ratio("single", "bare_single"),
        clients_per_second=rate["singles"],
        bare_clients_per_second=rate["bare_singles"],
        clients_ratio=ratio("singles", "bare_singles"),
        many_per_second=rate["many"],
        bare_copy_per_second=rate["bare_copy"],
        many_ratio=ratio("many", "bare_copy"),
    )


def _one_by_one(ground: Ground, crew: list[Process], clients: int, kind: str, seconds: float) -> float:
    """Have so many clients enqueue singly, spread over the processes; return jobs per second of all."""
    ground.empty()
    for place, process in enumerate(crew):
        process.tell(kind=kind, threads=len(range(place, clients, len(crew))), seconds=seconds)
    return sum(float(process.hear()["per_second"]) for process in crew)
