"""The plots of the page, made with matplotlib in an environment of its own.

python -m benchmarks.peers.plots BENCHMARKS_JSON FOLDER
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.peers import report

_OURS, _OTHERS = "#336791", "#b8c4ce"
_LINES = (_OURS, "#d9822b", "#7a7f87", "#5b9a68", "#a05195", "#c8a13a")  # ours first


def drain(systems: list[dict[str, Any]]) -> Figure:
    """Bars: jobs a second of one worker process as a part of the bare loop's."""
    there = sorted(report.measured(systems, "drain"), key=report.ratio)
    figure = Figure(figsize=(8, 0.42 * len(there) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    parts = [report.ratio(system) for system in there]
    colors = [_OURS if system["name"] == "pgqueue" else _OTHERS for system in there]
    bars = axes.barh([_label(system) for system in there], parts, color=colors)
    axes.bar_label(bars, [f"{part:.2f}" for part in parts], padding=4)
    axes.set_xlim(0, max(1.0, *parts) * 1.08)
    axes.set_xlabel("no-op tasks a second, one worker process; the bare loop is 1")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def held(systems: list[dict[str, Any]]) -> Figure:
    """Lines: the rate of each sixth as a part of the first one's."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for system, color in zip(_ours_first(report.measured(systems, "held")), _LINES, strict=False):
        rates = system["held"]["sixths"]
        ours = system["name"] == "pgqueue"
        axes.plot(range(1, 7), [rate / rates[0] for rate in rates], marker="o", label=_label(system), color=color,
                  linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2)  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sixth of the jobs")
    axes.set_ylabel("rate, the first sixth is 1")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def live(systems: list[dict[str, Any]]) -> Figure:
    """Two panels over time: latency (p50 and p99) and backlog; the time of the snapshot is shaded."""
    there = _ours_first(report.measured(systems, "live"))
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for system, color in zip(there, _LINES, strict=False):
        found = system["live"]
        at = [point["at"] for point in found["points"]]
        above.plot(at, [_gap(point["p99"]) for point in found["points"]], color=color,
                   label=f"{_label(system)}, {report.count(found['rate'])} jobs/s: p99")  # fmt: skip
        above.plot(at, [_gap(point["p50"]) for point in found["points"]], color=color, linestyle=":", label="p50")
        below.plot(at, [point["backlog"] for point in found["points"]], color=color)
    for axes, name in ((above, "call to start, ms"), (below, "backlog, jobs")):
        axes.axvspan(there[0]["live"]["held_from"], there[0]["live"]["held_to"], color="#f1ede4", zorder=0)
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_yscale("log")
    above.set_ylim(bottom=1)
    above.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    above.yaxis.set_minor_formatter(StrMethodFormatter(""))
    below.set_yscale("symlog", linthresh=10)
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    below.set_ylim(0, max(100, *(point["backlog"] for system in there for point in system["live"]["points"])) * 1.2)
    figure.legend(frameon=False, fontsize="small", loc="outside upper center", ncols=2)
    below.set_xlabel("seconds; the snapshot is held where it is shaded")
    return figure


def _label(system: dict[str, Any]) -> str:
    return str(system["title"]) if system["name"] == "bare" else f"{system['title']} {report.version(system)}"


def _ours_first(systems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(systems, key=lambda system: system["name"] != "pgqueue")


def _gap(value: float | None) -> float:
    return float("nan") if value is None else value


def main() -> None:
    """Write those plots for which there are figures."""
    source, folder = map(Path, sys.argv[1:])
    systems = json.loads(source.read_text())["systems"]
    # The same figures make the same file; text stays text.
    mpl.rcParams.update({"svg.hashsalt": "pgqueue", "svg.fonttype": "none", "font.family": "sans-serif"})
    for make in (drain, held, live):
        if report.measured(systems, make.__name__):
            make(systems).savefig(folder / f"benchmarks-{make.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
