"""Measure pgqueue and its alternatives, and write docs/benchmarks.md, its plots and the raw figures.

    python -m benchmarks.peers [--only NAMES] [--workloads NAMES] [--jobs N] [--rounds N] [--seconds S] [--out FOLDER]
    python -m benchmarks.peers --from docs/benchmarks.json [--out FOLDER]

Everything takes about 25 minutes on two cores. The other systems are installed by pip into `.venv-peers`, each into an
environment of its own. One that fails gets a line in the page, and the others are measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import report, workloads
from benchmarks.peers.environments import installed
from benchmarks.peers.stage import SETTINGS, Stage
from benchmarks.peers.systems import BARE, PEERS, PLOTTING, Peer

Figures = dict[str, Any]

_WORKLOADS = ("drain", "enqueue", "latency", "held", "live")
_SHOWN = ("fsync", "synchronous_commit", "full_page_writes", *SETTINGS)


def measure(stage: Stage, peer: Peer, wanted: list[str], given: argparse.Namespace) -> Figures:
    """Return all figures of one system; a workload that fails has its error instead of figures."""
    found: Figures = {
        "name": peer.name, "title": peer.title, "configuration": peer.configuration, "stores": peer.stores
    }  # fmt: skip
    runs: dict[str, Callable[[], Figures]] = {
        "versions": lambda: versions(stage, peer),
        "drain": lambda: rounds(stage, peer, max(600, int(given.jobs * peer.share)), given),
        "enqueue": lambda: workloads.enqueue(stage, peer, given.enqueue_seconds),
        "latency": lambda: workloads.latency(stage, peer, given.calls),
    }
    if peer.held:
        jobs = max(600, int(given.held_jobs * peer.held))
        runs["held"] = lambda: workloads.drain(stage, peer, jobs, 1, held=True)
    if peer.live:
        runs["live"] = lambda: workloads.live(stage, peer, given.seconds)
    for name, run in runs.items():
        if name in wanted or name == "versions":
            began = time.monotonic()
            try:
                found[name] = run()
            except Exception as error:  # one system must not end the comparison
                found[name] = {"error": f"{type(error).__name__}: {error}"}
            shown = found[name].get("error") or brief(name, found[name])
            print(f"{peer.name:18} {name:9} {time.monotonic() - began:5.0f} s  {shown}", flush=True)
            if "error" in found["versions"]:
                break
    return found


def versions(stage: Stage, peer: Peer) -> Figures:
    """Return the versions of the packages, of Redis too."""
    with stage.run(peer) as run:
        found: Figures = run.ask("versions")
        return found


def rounds(stage: Stage, peer: Peer, jobs: int, given: argparse.Namespace) -> Figures:
    """Drain in rounds: the bare loop, one worker, two workers, one right after the other."""
    found = []
    for _ in range(given.rounds):
        bare = workloads.drain(stage, BARE, given.jobs, 1)
        one = bare if peer is BARE else workloads.drain(stage, peer, jobs, 1)
        found.append({"bare": bare, "one": one, "two": workloads.drain(stage, peer, jobs, 2)})
    return {"rounds": found}


def brief(workload: str, figures: Figures) -> str:
    """Return one line for whoever watches."""
    if workload == "drain":
        system: Figures = {"drain": figures}
        one, two = (report.median(system, "drain", run, "per_second") for run in ("one", "two"))
        return f"{report.count(one)} and {report.count(two)} jobs/s, {report.ratio(system):.3f} of the bare loop"
    if workload == "held":
        return " ".join(report.count(rate) for rate in figures["sixths"])
    if workload == "live":
        return f"{figures['started']:,} of {figures['jobs']:,} started"
    return " ".join(f"{name} {value:,.1f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in figures.items())  # fmt: skip


def machine(stage: Stage) -> Figures:
    """Return what a reader must know of the place."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(": ")[2] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "postgresql": stage.query("show server_version"),
        "settings": {name: stage.query(f"show {name}") for name in _SHOWN},
        "load": os.getloadavg()[0],
    }


def run_all(given: argparse.Namespace, peers: list[Peer], wanted: list[str]) -> Figures:
    """Measure every system that is asked for, and keep the raw figures after each."""
    began = time.monotonic()
    with Stage(given.environments) as stage:
        found: Figures = {
            "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rounds": given.rounds,
            "machine": machine(stage),
            "systems": [],
        }
        for peer in peers:
            found["systems"].append(measure(stage, peer, wanted, given))
            found["minutes"] = (time.monotonic() - began) / 60
            (given.out / "benchmarks.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def write(given: argparse.Namespace, found: Figures) -> None:
    """Write page and plots from figures; without matplotlib there are no new plots."""
    raw = given.out / "benchmarks.json"
    raw.write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "benchmarks.md").write_text(report.page(found))
    try:
        python = installed(given.environments / "plotting", PLOTTING)
        root = Path(__file__).parents[2]
        command = [python, "-m", "benchmarks.peers.plots", raw.absolute(), given.out.absolute()]
        subprocess.run(command, check=True, cwd=root)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"There are no new plots: {error}", file=sys.stderr)


def chosen(text: str | None, known: list[str], option: str) -> list[str]:
    """Return the names of a list with commas, all without one."""
    names = text.split(",") if text else known
    if unknown := set(names) - set(known):
        sys.exit(f"{option} does not know {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    return names


def main() -> None:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n")[0])
    names = [peer.name for peer in (BARE, *PEERS)]
    parser.add_argument("--only", metavar="NAMES", help=f"of {','.join(names)}; default all")
    parser.add_argument("--workloads", metavar="NAMES", help=f"of {','.join(_WORKLOADS)}; default all")
    parser.add_argument("--jobs", type=int, default=50_000, help="of a drain; slow systems get a part of them")
    parser.add_argument("--held-jobs", type=int, default=100_000, help="of the drain with a held snapshot")
    parser.add_argument("--rounds", type=int, default=3, help="of the drain")
    parser.add_argument("--enqueue-seconds", type=float, default=3.0, metavar="S")
    parser.add_argument("--calls", type=int, default=300, help="of the latency measurement")
    parser.add_argument("--seconds", type=float, default=90.0, help="for which the live snapshot is held")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER", help="default docs")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), metavar="FOLDER")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="print these figures, measure nothing")
    given = parser.parse_args()
    only = chosen(given.only, names, "--only")
    wanted = chosen(given.workloads, list(_WORKLOADS), "--workloads")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.source:
        write(given, json.loads(given.source.read_text()))
    else:
        write(given, run_all(given, [peer for peer in (BARE, *PEERS) if peer.name in only], wanted))
    print(f"{given.out / 'benchmarks.md'} is written")


if __name__ == "__main__":
    main()
