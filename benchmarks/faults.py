"""The faults of a soak: a schedule that a seed decides, and how each is done."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from benchmarks.ledger import Run
from benchmarks.proxy import CUTS, MARKS, Proxy
from benchmarks.soak_crew import DEAD_AFTER, Crew, Place, children
from benchmarks.soak_server import Server

#: Kind to its weight. cut_*: the proxy cuts a connection at a commit (see `proxy.CUTS`).
KINDS = {
    "kill_child": 6,
    "kill_solo": 3,
    "kill_supervisor": 3,
    "freeze": 5,
    "warm_stop": 3,
    "terminate": 8,  # pg_terminate_backend, of a connection chosen by its role
    "kill_backend": 1,  # kill -9: the server throws everybody out and recovers
    "crash_server": 2,  # pg_ctl stop -m immediate, and start
    **{f"cut_{kind}": 4 for kind in CUTS},
    "cut_all": 2,
    "stall": 2,
}
_GAP = (0.3, 2.0)  # seconds between two faults
_FROZEN = 3  # processes at once, so that somebody is left to take over

#: Backends of pgqueue by their roles, without those that have just come or are going.
_BACKENDS = """
select pid, split_part(application_name, ' ', 2) from pg_stat_activity
 where application_name like 'pgqueue %' and backend_type = 'client backend' order by pid
"""

#: Processes of workers by what they hold: bodies outside a transaction, which become zombies when they are frozen, and
#: anything at all.
_HOLDING = """
select distinct w.pid from pgqueue.worker w join pgqueue.job j on j.worker = w.id
 where j.task = any(coalesce(%s, array[j.task])) order by 1
"""
_ZOMBIES = ["soak.slow", "soak.aslow", "soak.pay_late", "soak.apay_late"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come: `at` seconds after the start, `chance` from 0 to 1 chooses the victim and the details."""

    at: float
    kind: str
    chance: float


@dataclass(frozen=True, slots=True)
class Struck:
    """One fault that happened to processes that may have had attempts in their hands."""

    kind: str
    at: float
    pids: frozenset[int]


def schedule(seed: int, seconds: float, kinds: Collection[str] = ()) -> list[Planned]:
    """Return the faults of a soak, of these kinds only if any are named; the same seed gives the same."""
    chance, weights = random.Random(seed), {kind: KINDS[kind] for kind in kinds} or KINDS
    planned: list[Planned] = []
    at = chance.uniform(*_GAP)
    while at < seconds:
        kind = chance.choices(list(weights), list(weights.values()))[0]
        planned.append(Planned(at, kind, chance.random()))
        at += chance.uniform(*_GAP)
    return planned


def redeliveries(
    struck: Iterable[Struck], runs: Collection[Run], outages: Collection[tuple[float, float]] = ()
) -> dict[str, dict[str, float]]:
    """Return, by kind of fault, the seconds until attempts that it broke began anew: count, median, worst.

    An attempt is broken if its process was struck while its body ran, and it counts if its job began again. Where the
    server was away meanwhile, the kind says so.
    """
    by_job: dict[str, list[Run]] = {}
    for run in runs:
        by_job.setdefault(run.job, []).append(run)
    waits: dict[str, list[float]] = {}
    for fault in struck:
        for run in runs:
            if run.pid in fault.pids and run.started < fault.at and (run.ended is None or run.ended > fault.at):
                later = [other.started for other in by_job[run.job] if other.started > fault.at and other is not run]
                if later:
                    away = any(begun < min(later) and fault.at < over for begun, over in outages)
                    kind = f"{fault.kind}, server away" if away else fault.kind
                    waits.setdefault(kind, []).append(min(later) - fault.at)
    return {
        kind: {"count": len(found), "median": round(statistics.median(found), 3), "worst": round(max(found), 3)}
        for kind, found in sorted(waits.items())
    }


class Faults:
    """Does what is planned, and remembers what was done.

    - `done`: faults that happened, by kind; a planned one that found no victim does not count.
    - `terminated`: roles of the connections that were terminated.
    - `struck`: those that hit processes of workers.
    - `outages`: from when to when the server was away.
    """

    def __init__(self, crew: Crew, server: Server, proxy: Proxy, planned: list[Planned]) -> None:
        self.planned = planned
        self._crew = crew
        self._server = server
        self._proxy = proxy
        self._done: Counter[str] = Counter()
        self.terminated: Counter[str] = Counter()
        self.struck: list[Struck] = []
        self.outages: list[tuple[float, float]] = []

    @property
    def done(self) -> dict[str, int]:
        """Faults that happened, by kind; cuts as the proxy counted them, with what was cut."""
        cuts = Counter(f"cut_{kind} at {mark}" for (kind, mark), n in self._proxy.done.items() for _ in range(n))
        return dict(sorted((self._done + cuts).items()))

    def strike(self, planned: Planned) -> None:
        """Do one fault."""
        kind, chance = planned.kind, random.Random(planned.chance)
        match kind:
            case "kill_child":
                self._kill_process(kind, chance, self._children())
            case "kill_solo":
                self._kill_process(kind, chance, self._alone())
            case "kill_supervisor":
                self._kill_supervisor(chance)
            case "freeze":
                self._freeze(chance)
            case "warm_stop":
                self._stop(chance)
            case "terminate":
                self._terminate(chance)
            case "kill_backend":
                self._kill_backend(chance)
            case "crash_server":
                self._crash()
            case "cut_all":
                self._proxy.cut_all()
                self._done[kind] += 1
            case "stall":
                self._proxy.stall(chance.uniform(1.0, 4.0))
                self._done[kind] += 1
            case _:
                # COMMITs are fewer than acknowledgements and matter more.
                mark = chance.choices(MARKS, (4, 3, 2, 1))[0]
                self._proxy.arm(kind.removeprefix("cut_"), mark, chance.uniform(1.0, 5.0))

    def _running(self) -> list[Place]:
        """Return the places whose worker is up and was not told to stop."""
        return [place for place in self._crew.places if place.process is not None and place.stop_at is None]

    def _children(self) -> list[int]:
        """Return the processes that run tasks under a supervisor."""
        return [pid for place in self._running() if place.pool != "solo" for pid in children(place.pid)]

    def _alone(self) -> list[int]:
        """Return the processes that run tasks without a supervisor."""
        return [place.pid for place in self._running() if place.pool == "solo"]

    def _victim(self, chance: random.Random, pids: list[int], tasks: list[str] | None = None) -> int | None:
        """Choose a process, most often one that holds a job, of these tasks if any are named."""
        holding = {pid for (pid,) in self._server.rows(_HOLDING, tasks)}
        best = [pid for pid in pids if pid in holding]
        choice = best if best and chance.random() < 0.8 else pids
        return chance.choice(choice) if choice else None

    def _note(self, kind: str, pids: Iterable[int]) -> None:
        self._done[kind] += 1
        self.struck.append(Struck(kind, time.monotonic(), frozenset(pids)))

    def _kill_process(self, kind: str, chance: random.Random, pids: list[int]) -> None:
        victim = self._victim(chance, pids)
        if victim is not None:
            self._note(kind, [victim])
            self._crew.kill(victim)

    def _kill_supervisor(self, chance: random.Random) -> None:
        places = [place for place in self._running() if place.pool != "solo"]
        if places:
            place = chance.choice(places)
            self._note("kill_supervisor", [place.pid, *children(place.pid)])
            self._crew.kill(place.pid)

    def _freeze(self, chance: random.Random) -> None:
        """Stop a process for longer than it takes to be given up for dead; then it goes on as a zombie."""
        processes = [pid for pid in (*self._children(), *self._alone()) if pid not in self._crew.frozen]
        victim = self._victim(chance, processes, _ZOMBIES) if len(self._crew.frozen) < _FROZEN else None
        if victim is not None:
            self._note("freeze", [victim])
            # Whoever watches the others may be the one who is frozen, and the next one begins anew.
            self._crew.freeze(victim, chance.uniform(2.0, 5.0) * DEAD_AFTER, until_overtaken=chance.random() < 0.7)

    def _stop(self, chance: random.Random) -> None:
        if places := self._running():
            self._crew.stop(chance.choice(places))
            self._done["warm_stop"] += 1

    def _terminate(self, chance: random.Random) -> None:
        """Choose the role first: there are many more connections of some roles than of others."""
        backends = self._server.rows(_BACKENDS)
        if backends:
            role = chance.choice(sorted({role for _, role in backends}))
            pid = chance.choice([pid for pid, other in backends if other == role])
            if self._server.rows("select pg_terminate_backend(%s)", pid)[0][0]:
                self._done["terminate"] += 1
                self.terminated[role] += 1

    def _kill_backend(self, chance: random.Random) -> None:
        if backends := self._server.rows(_BACKENDS):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(backends)[0], signal.SIGKILL)
                self._done["kill_backend"] += 1
                self._outage(time.monotonic())

    def _crash(self) -> None:
        begun = time.monotonic()
        self._server.crash()
        self._done["crash_server"] += 1
        self._outage(begun)

    def _outage(self, begun: float) -> None:
        with suppress(psycopg.Error):
            self._server.rows("select 1")
        self.outages.append((begun, time.monotonic()))
