"""A soak: real workers and producers under random faults, and a ledger that tells whether anything went wrong.

    python -m benchmarks.soak [--seconds 120] [--seed N] [--rate 60] [--json] [--bindir DIR] [--broken fence]

It starts a PostgreSQL server of its own with a proxy in front, four workers (two prefork supervisors, one of threads
or coroutines, one solo) and three producers; some go straight to the server and some through the proxy. Processes are
killed and frozen, backends terminated, the server crashed, connections cut before, in the middle of and after a
commit. Then everything heals, the queue drains, and the ledger of the callers and of the tasks is held against the
tables (see `benchmarks.ledger`). The exit code is 1 if anything is lost, unexpected, doubled, a zombie's or stuck.

The schedule of the faults comes from the seed; what they meet does not, so a seed repeats a run only roughly. On
failure the folder with the ledgers and the logs is kept. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

if not __package__:  # run as a file: its folder stands where the project's should
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.faults import KINDS, Faults, redeliveries, schedule
from benchmarks.ledger import FATAL, Effect, Rows, Rules, Stored, Verdict, check, read_calls, read_runs
from benchmarks.proxy import Proxy
from benchmarks.soak_crew import Crew
from benchmarks.soak_server import BROKEN, Server
from benchmarks.soak_tasks import FAILING, ONCE, TRANSACTIONAL

_TICK = 0.05  # seconds between two looks at the processes
_DRAIN = 60.0  # seconds for the queue to become empty, beyond the longest redelivery that was seen
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOWN = 5  # ids that are shown of each kind of failure

_RESULTS = """
select id::text, state, attempt, retries, xmin::text::bigint, worker::text, error->>'type' from pgqueue.result
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What a soak has found; `hung` counts stops that did not end, `orphans` children that outlived a supervisor."""

    seed: int
    seconds: float
    verdict: Verdict
    faults: dict[str, int]
    terminated: dict[str, int]
    redelivery: dict[str, dict[str, float]]
    exit_codes: dict[int, int]
    unasked_exits: dict[int, int]
    hung: int
    orphans: int
    drain_seconds: float
    longest_outage: float

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return self.verdict.good and not self.hung and not self.orphans

    def figures(self) -> dict[str, Any]:
        """Return it as JSON takes it: counts instead of ids, and the first ids of what went wrong."""
        found = asdict(self)
        verdict = found.pop("verdict")
        ids = {name: sorted(verdict[name]) for name in FATAL}
        evidence = {name: jobs[:_SHOWN] for name, jobs in ids.items() if jobs}
        return {**found, **verdict, **{name: len(jobs) for name, jobs in ids.items()}, "evidence": evidence}


def soak(
    seconds: float,
    seed: int,
    *,
    rate: float = 60.0,
    bindir: Path | None = None,
    broken: str | None = None,
    kinds: Collection[str] = (),
    always_keep: bool = False,
) -> Report:
    """Run a soak and return what it has found; the folder with its traces is kept if that is not good."""
    # Not mkdtemp: where PostgreSQL has to run as nobody, the launcher must make its folder itself.
    folder = Path(tempfile.mkdtemp(prefix="pgqueue-soak-"))
    folder.chmod(0o711)
    keep = True
    try:
        with ExitStack() as stack:
            server = stack.enter_context(Server(folder / "server", bindir, broken))
            proxy = stack.enter_context(Proxy(server.socket))
            crew = Crew(server, proxy, folder)
            stack.callback(crew.close)
            faults = Faults(crew, server, proxy, schedule(seed, seconds, kinds))
            report = _perform(seconds, seed, rate, faults, crew, server, proxy)
        keep = always_keep or not report.good
        return report
    except SystemExit:  # somebody has had enough
        keep = False
        raise
    finally:
        if keep:
            print(f"ledgers and logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _perform(
    seconds: float, seed: int, rate: float, faults: Faults, crew: Crew, server: Server, proxy: Proxy
) -> Report:
    crew.start(seed, rate)
    _tend_until(crew, lambda: crew.runs.exists() and crew.runs.stat().st_size > 0, 60.0)
    begun = time.monotonic()
    for planned in faults.planned:
        _tend_until(crew, lambda at=begun + planned.at: time.monotonic() >= at, seconds + 60.0)  # type: ignore[misc]
        faults.strike(planned)
    _tend_until(crew, lambda: time.monotonic() >= begun + seconds, seconds + 60.0)
    proxy.heal()
    crew.stop_producers()
    drained = time.monotonic()
    seen = redeliveries(faults.struck, read_runs([crew.runs]))
    bound = _DRAIN + max((kind["worst"] for kind in seen.values()), default=0.0)
    _tend_until(crew, lambda: not crew.waiting(), bound)
    drain_seconds = time.monotonic() - drained
    stuck = [job for (job,) in server.rows("select id::text from pgqueue.job")]
    crew.stop_all()
    runs = read_runs([crew.runs])
    return Report(
        seed=seed,
        seconds=seconds,
        verdict=check(read_calls(crew.calls), runs, _rows(server, stuck), _rules(crew)),
        faults=faults.done,
        terminated=dict(sorted(faults.terminated.items())),
        redelivery=redeliveries(faults.struck, runs, faults.outages),
        exit_codes=dict(crew.exits),
        unasked_exits=dict(crew.unasked),
        hung=crew.hung,
        orphans=crew.orphans,
        drain_seconds=round(drain_seconds, 3),
        longest_outage=round(max((over - begun for begun, over in faults.outages), default=0.0), 3),
    )


def _tend_until(crew: Crew, condition: Callable[[], bool], timeout: float) -> None:
    """Look after the processes until something is so; after the time-out go on all the same."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        crew.tend()
        time.sleep(_TICK)


def _rows(server: Server, stuck: list[str]) -> Rows:
    effects = server.rows("select job::text, attempt, xid from soak.effect")
    return Rows(
        results={job: Stored(*row) for job, *row in server.rows(_RESULTS)},
        waiting=stuck,
        effects=[Effect(*row) for row in effects],
        business=[job for (job,) in server.rows("select job::text from soak.business")],
    )


def _rules(crew: Crew) -> Rules:
    return Rules(transactional=TRANSACTIONAL, once=ONCE, failing=FAILING, pids=crew.pids)


def _show(report: Report) -> None:
    """Print the report as a table."""
    for name, value in report.figures().items():
        if isinstance(value, dict) and value:
            print(f"{name}")
            for key, inner in value.items():
                print(f"    {key!s:32} {_words(inner)}")
        elif not isinstance(value, dict):
            print(f"{name:36} {value:>10}")
    print("nothing wrong" if report.good else "SOMETHING IS WRONG")


def _words(value: object) -> str:
    match value:
        case dict():
            return "  ".join(f"{key} {number:g}" for key, number in value.items())
        case list():
            return " ".join(map(str, value))
    return f"{value:>3}"


def _unwind(number: int, _: FrameType | None) -> None:
    """End with everything cleaned up, which further signals are not to disturb."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Read the arguments, run, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults go on (120)")
    parser.add_argument("--seed", type=int, help="of the faults and the calls; a random one is chosen and printed")
    parser.add_argument("--rate", type=float, default=60.0, help="calls a second at most (60)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bindir", type=Path, help="folder of the PostgreSQL binaries to use")
    parser.add_argument("--faults", nargs="+", choices=tuple(KINDS), default=(), metavar="KIND", help="these alone")
    parser.add_argument("--broken", choices=tuple(BROKEN), help="break the engine on purpose: it must be found out")
    parser.add_argument("--keep", action="store_true", help="keep the ledgers and logs, whatever comes of it")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} seconds, {os.cpu_count()} cores", file=sys.stderr)
    for number in _SIGNALS:
        signal.signal(number, _unwind)
    report = soak(
        given.seconds,
        seed,
        rate=given.rate,
        bindir=given.bindir,
        broken=given.broken,
        kinds=given.faults,
        always_keep=given.keep,
    )
    if given.json:
        print(json.dumps(report.figures()))
    else:
        _show(report)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
