"""What each benchmark has found, as a page: facts, and bars beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

from rich.console import Console
from rich.text import Text

from pgqueue.bench.cpu import Cpu
from pgqueue.bench.drain import DrainReport
from pgqueue.bench.enqueue import EnqueueReport
from pgqueue.bench.latency import LatencyReport
from pgqueue.bench.live import LiveReport
from pgqueue.bench.mixed import MixedReport
from pgqueue.bench.plot import Bar, bars, histogram, shown
from pgqueue.bench.snapshot import SnapshotReport

Report = DrainReport | EnqueueReport | LatencyReport | SnapshotReport | LiveReport | MixedReport


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars under a caption."""

    caption: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Page:
    """A heading, facts as pairs of name and value, and plots."""

    heading: str
    facts: Sequence[tuple[str, str]]
    plots: Sequence[Plot]


def show(console: Console, page: Page) -> None:
    """Print a page."""
    blocks = console.encoding.lower().startswith("utf")
    console.print(Text(page.heading, "bold"), soft_wrap=True)
    for plot in page.plots:
        console.print(f"\n{plot.caption}", soft_wrap=True, markup=False, highlight=False)
        for row, line in zip(plot.bars, bars(plot.bars, blocks=blocks), strict=True):
            console.print(Text(f"  {line}", "cyan" if row.bold else ""), soft_wrap=True)
    console.print()
    left = max((len(name) for name, _ in page.facts), default=0)
    for name, value in page.facts:
        console.print(Text.assemble((f"{name:<{left}}", "dim"), f"  {value}"), soft_wrap=True)


@singledispatch
def page(report: Report) -> Page:
    """Return the page of a report."""
    raise TypeError(type(report).__name__)


@page.register
def _(report: DrainReport) -> Page:
    many = f" of {report.processes} processes" if report.processes > 1 else ""
    cpu = (report.worker_cpu_seconds_per_1000, report.server_cpu_seconds_per_1000)
    bare = (report.bare_cpu_seconds_per_1000, report.bare_server_cpu_seconds_per_1000)
    rows = [
        Bar("worker", report.jobs_per_second, bold=True),
        Bar("bare loop", report.bare_jobs_per_second),
    ]
    facts = [
        ("ratio", f"{report.ratio:g}  (rounds: {_each(report.ratios)})"),
        ("CPU seconds per 1,000 jobs", f"worker {shown(cpu[0])} + server {shown(cpu[1])}"),
        ("  of the bare loop", f"{shown(bare[0])} + server {shown(bare[1])}"),
    ]
    if report.scaling is not None:
        rows.append(Bar("one worker", report.one_process_per_second))
        facts.append(("scaling", f"{report.scaling:g} times one process"))
    heading = f"Drain: {report.jobs:,} jobs, {_rounds(report.rounds)}, late ack, results stored"
    return Page(heading, facts, [Plot(f"jobs per second{many}, median", rows)])


@page.register
def _(report: EnqueueReport) -> Page:
    clients = f"{report.clients} clients"
    singly = [
        Bar("delay, 1 client", report.single_per_second, bold=True),
        Bar("bare INSERT, 1 client", report.bare_single_per_second),
        Bar(f"delay, {clients}", report.clients_per_second, bold=True),
        Bar(f"bare INSERT, {clients}", report.bare_clients_per_second),
    ]
    together = [
        Bar("enqueue_many", report.many_per_second, bold=True),
        Bar("bare COPY", report.bare_copy_per_second),
    ]
    facts = [
        ("ratio, 1 client", f"{report.single_ratio:g}"),
        (f"ratio, {clients}", f"{report.clients_ratio:g}"),
        ("ratio, enqueue_many to COPY", f"{report.many_ratio:g}"),
        *_costs(report.cpu_seconds_per_1000),
    ]
    heading = f"Enqueue: {_rounds(report.rounds)}, {clients} in {report.processes} processes, no worker"
    plots = [
        Plot("one by one, a commit each, per second, median", singly),
        Plot(f"{report.jobs:,} at once, per second, median", together),
    ]
    return Page(heading, facts, plots)


@page.register
def _(report: LatencyReport) -> Page:
    how = "notified" if report.notifications else "without notifications"
    facts = [
        ("p50, p95, p99, max", _each_ms((report.p50_ms, report.p95_ms, report.p99_ms, report.max_ms))),
        ("delay() itself, p50", f"{shown(report.call_p50_ms)} ms"),
    ]
    if not report.notifications:
        limit = f"{shown(report.poll_interval_ms)} ms and {shown(report.allowance_ms)} for the rest"
        facts.append(("bounded by poll_interval", f"{'yes' if report.bounded else 'NO'}: {limit}"))
    heading = f"Latency: {report.jobs} jobs for an idle worker, {how}, from the call to the first line of the task"
    return Page(heading, facts, [Plot("jobs by latency", histogram(report.latencies_ms, "ms"))])


@page.register
def _(report: SnapshotReport) -> Page:
    rows = []
    for number, (clean, held) in enumerate(zip(report.clean_sixths, report.held_sixths, strict=True), 1):
        rows += [Bar(f"{number}  clean", clean), Bar("   held", held, bold=True)]
    soon = report.recovery.seconds
    after = "not in time" if soon is None else f"{soon:g} s after the release"
    facts = [
        ("ratio, last sixth", f"{report.ratio:g}"),
        ("normal again", f"{after} (at {report.recovery.ratio:g} of the clean first sixth)"),
        *_costs(report.cpu_seconds_per_1000),
    ]
    heading = (
        f"Held snapshot: {report.jobs:,} jobs drained with an old snapshot held and without, {_rounds(report.rounds)}"
    )
    return Page(heading, facts, [Plot("jobs per second by sixths of the jobs", rows)])


@page.register
def _(report: LiveReport) -> Page:
    rows = [
        Bar(f"until {each.until:g} s", each.claim_p99_ms, f"p50 {shown(each.claim_p50_ms)}, backlog {each.backlog:,}")
        for each in report.intervals
    ]
    facts = [
        ("ratio, last p99 to first", shown(report.ratio)),
        ("backlog at the end", f"{report.backlog:,} of {report.produced:,} jobs"),
    ]
    heading = f"Held snapshot, live: {report.rate:g} jobs/s for {report.seconds:g} s, {report.workers} workers"
    return Page(heading, facts, [Plot("claim, p99 in ms", rows)])


@page.register
def _(report: MixedReport) -> Page:
    facts = [
        ("wait of short tasks", "p50, p99, max " + _each_ms((report.p50_ms, report.p99_ms, report.max_ms))),
        ("waited for a long one", f"{shown(report.waited_for_long_ms)} ms at most"),
    ]
    long = f"{report.long} tasks of {report.long_seconds:g} s"
    heading = f"Mixed: {report.short:,} short tasks and {long} in {report.processes} processes"
    return Page(
        heading, facts, [Plot("short tasks by wait, from the call to the first line", histogram(report.waits_ms, "ms"))]
    )


def _costs(spent: Mapping[str, Cpu]) -> list[tuple[str, str]]:
    return [
        (f"CPU seconds per 1,000, {name.replace('_', ' ')}", f"{shown(cpu.processes)} + server {shown(cpu.server)}")
        for name, cpu in spent.items()
    ]


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _each_ms(values: Sequence[float]) -> str:
    return ", ".join(map(shown, values)) + " ms"
