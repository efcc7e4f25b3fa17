"""From the figures of a run to its page: no measuring here, so an old run can be printed again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Figures = dict[str, Any]

_COMMAND = "python -m benchmarks.peers"


def page(found: Figures) -> str:
    """Return the whole page in Markdown, from what `benchmarks.json` holds."""
    systems: list[Figures] = found["systems"]
    sections = [
        _head(found),
        _section(systems, "drain", "Drain", _DRAIN, drain_table),
        _section(systems, "drain", "Cost", _COST, cost_table),
        _section(systems, "enqueue", "Enqueue", _ENQUEUE, enqueue_table),
        _section(systems, "latency", "Latency of an idle worker", _LATENCY, latency_table),
        _section(systems, "held", "Draining while a snapshot is held", _HELD, held_table),
        _section(systems, "live", "Living with a held snapshot", _LIVE, live_table),
        _configurations(systems),
        _failures(systems),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_DRAIN = """No-op tasks are waiting: two small integers in, their sum out. The clock runs from the moment
when workers that are ready may claim until the system itself says that all have ended. Each drain stands right behind
one of the bare loop; the ratio is the median of these pairs (and their range), which is what can be compared: absolute
figures drift with the machine.

![Drain, of the bare loop](benchmarks-drain.svg)"""
_COST = "User and system seconds for 1,000 jobs of the same drains, one worker process."
_ENQUEUE = """Jobs a second, each committed on its own, by one client process and by eight; no worker runs. Bulk is one
call for many jobs, where the system has one: the filling of the queue for the drain."""
_LATENCY = """One job every 20 ms for one idle worker, milliseconds from just before the call to the first line of the
task."""
_HELD = """One worker drains while another session holds a REPEATABLE READ snapshot that is older than the jobs, so that
nothing dead can be cleaned away. Jobs started a second in each sixth of the jobs, from the first start on.

![Draining while a snapshot is held](benchmarks-held.svg)"""
_LIVE = """Producers, one for each 250 jobs a second, enqueue singly at a rate that the system can follow; two worker
processes run, and a snapshot is held in the time between. Latency from the call to the first line of the task, before
the snapshot and in its last interval; the backlog is what had been enqueued and not started at its end.

![Latency and backlog beside a held snapshot](benchmarks-live.svg)"""


def drain_table(systems: Sequence[Figures]) -> str:
    """One worker process, its ratio to the bare loop, two worker processes; the fastest first."""
    ordered = sorted(systems, key=lambda system: -ratio(system))
    return table(
        ("system", "version", "results stored", "jobs/s, 1 worker", "of the bare loop", "jobs/s, 2 workers"),
        (
            (
                system["title"],
                version(system),
                "yes" if system["stores"] else "no",
                count(median(system, "drain", "one", "per_second")),
                _spread(_ratios(system)),
                count(median(system, "drain", "two", "per_second")),
            )
            for system in ordered
        ),
    )


def cost_table(systems: Sequence[Figures]) -> str:
    """CPU seconds of worker and server."""

    def cost(system: Figures, name: str) -> float:
        return median(system, "drain", "one", name) or 0.0

    ordered = sorted(systems, key=lambda system: cost(system, "worker_cpu") + cost(system, "server_cpu"))
    return table(
        ("system", "worker", "server"),
        ((s["title"], f"{cost(s, 'worker_cpu'):.3f}", f"{cost(s, 'server_cpu'):.3f}") for s in ordered),
    )


def enqueue_table(systems: Sequence[Figures]) -> str:
    """Single calls and bulk."""
    ordered = sorted(systems, key=lambda system: -system["enqueue"]["eight"])
    return table(
        ("system", "single, 1 client", "single, 8 clients", "bulk"),
        (
            (
                s["title"],
                count(s["enqueue"]["single"]),
                count(s["enqueue"]["eight"]),
                count(median(s, "drain", "one", "bulk_per_second")),
            )
            for s in ordered
        ),
    )


def latency_table(systems: Sequence[Figures]) -> str:
    """Percentiles."""
    names = ("p50", "p95", "p99")
    ordered = sorted(systems, key=lambda system: system["latency"]["p50"])
    return table(("system", *names), ((s["title"], *(f"{s['latency'][n]:.1f}" for n in names)) for s in ordered))


def held_table(systems: Sequence[Figures]) -> str:
    """Six rates and what is left of the first."""
    ordered = sorted(systems, key=lambda system: -system["held"]["per_second"])
    return table(
        ("system", "jobs", *(f"{n}" for n in range(1, 7)), "last / first"),
        (
            (
                s["title"],
                count(s["held"]["jobs"]),
                *(count(rate) for rate in s["held"]["sixths"]),
                f"{s['held']['sixths'][-1] / s['held']['sixths'][0]:.2f}",
            )
            for s in ordered
        ),
    )


def live_table(systems: Sequence[Figures]) -> str:
    """Before the snapshot, and when it had been held for the whole time."""
    rows = []
    for system in systems:
        found = system["live"]
        before = [point for point in found["points"] if point["at"] < found["held_from"]]
        during = [point for point in found["points"] if found["held_from"] <= point["at"] < found["held_to"]]
        rows.append(
            (
                system["title"],
                f"{found['asked']:,}",
                count(found["rate"]),
                f"{found['held_to'] - found['held_from']:,.0f} s",
                f"{_typical(before, 'p50')} / {_typical(before, 'p99')}",
                f"{_typical(during[-1:], 'p50')} / {_typical(during[-1:], 'p99')}",
                count(during[-1]["backlog"]) if during else "-",
            )
        )
    return table(
        ("system", "jobs/s asked", "jobs/s", "held for", "p50 / p99 before, ms", "p50 / p99 at the end, ms", "backlog"),
        rows,
    )


# -- figures ---------------------------------------------------------------------------------------------------------


def median(system: Figures, workload: str, run: str, name: str) -> float | None:
    """Return the median of the rounds of one workload; None if there is none."""
    rounds = system.get(workload, {}).get("rounds", [])
    values = [a_round[run][name] for a_round in rounds if a_round[run][name] is not None]
    return statistics.median(values) if values else None


def ratio(system: Figures) -> float:
    """Return the median ratio of one worker process to the bare loop of the same round."""
    return statistics.median(_ratios(system))


def version(system: Figures) -> str:
    """Return the version of the system itself, the first of its packages."""
    return next(iter(_versions(system).values()), "?")


def measured(systems: Iterable[Figures], workload: str) -> list[Figures]:
    """Return the systems that have figures of a workload."""
    return [system for system in systems if workload in system and "error" not in system[workload]]


def _versions(system: Figures) -> dict[str, str]:
    return {} if "error" in system["versions"] else system["versions"]


def _ratios(system: Figures) -> list[float]:
    return [a_round["one"]["per_second"] / a_round["bare"]["per_second"] for a_round in system["drain"]["rounds"]]


# -- Markdown --------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; what looks like a number stands at the right."""
    body = [tuple(row) for row in rows]
    right = [bool(body) and all(row[column][:1].isdigit() or row[column] == "-" for row in body)
             for column in range(len(head))]  # fmt: skip
    lines = [head, tuple("---:" if here else "---" for here in right), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(value: float | None) -> str:
    """Return a rate or a number of jobs as readers want it: three digits are known, if so many."""
    if value is None:
        return "-"
    return f"{round(value, -max(0, len(str(int(value))) - 3)):,.0f}"


def _spread(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _typical(points: Sequence[Figures], name: str) -> str:
    values = [point[name] for point in points if point[name] is not None]
    return f"{statistics.median(values):,.1f}" if values else "-"


def _section(
    systems: Sequence[Figures], workload: str, title: str, text: str, make: Callable[[Sequence[Figures]], str]
) -> str:
    there = measured(systems, workload)
    return f"## {title}\n\n{text}\n\n{make(there)}" if there else ""


def _head(found: Figures) -> str:
    machine = found["machine"]
    settings = ", ".join(f"{name} {value}" for name, value in machine["settings"].items())
    rounds = "one round" if found["rounds"] == 1 else f"{found['rounds']} rounds"
    return f"""# pgqueue beside its alternatives

Made by `{found["command"]}` on {found["date"]}, in {found["minutes"]:.0f} minutes; the raw figures are in
[benchmarks.json](benchmarks.json). It installs the other systems into environments of their own and needs no server:

```text
{_COMMAND}
{_COMMAND} --only pgqueue,pgqueuer --workloads drain --jobs 20000
{_COMMAND} --from docs/benchmarks.json    # this page and its plots again, without measuring
```

{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]:.0f} GiB, {machine["system"]},
Python {machine["python"]}. PostgreSQL {machine["postgresql"]}:
{settings}, everything else default.
TCP loopback, server and workers on the same cores, one system at a time, {rounds}. The load of the machine was
{machine["load"]:.1f} before it began.

The bare loop is what psycopg can do with two tables: the yardstick. Every measurement checks that each job ran
exactly once, and where results are stored that all of them are."""


def _configurations(systems: Sequence[Figures]) -> str:
    rows = [
        (system["title"], ", ".join(f"{name} {v}" for name, v in _versions(system).items()) or "?",
         system["configuration"])
        for system in systems
    ]  # fmt: skip
    return f"## Versions and configurations\n\n{table(('system', 'versions', 'configuration'), rows)}"


def _failures(systems: Sequence[Figures]) -> str:
    rows = [
        (system["title"], workload, figures["error"].replace("|", "/").replace("\n", " "))
        for system in systems
        for workload, figures in system.items()
        if isinstance(figures, dict) and "error" in figures
    ]
    return f"## What could not be measured\n\n{table(('system', 'workload', 'why'), rows)}" if rows else ""
