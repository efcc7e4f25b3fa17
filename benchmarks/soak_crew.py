"""The worker and producer processes of a soak, and how they are hurt. Linux only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.proxy import Proxy
from benchmarks.soak_server import Server
from pgqueue.worker.liveness import process_started

ROOT = Path(__file__).parents[1]
GRACE = 5.0  # seconds that workers give running tasks, the longest of which take 2
LEEWAY = 20.0  # seconds beyond the grace period after which a stop counts as hung
DEAD_AFTER = 4.0
MOST = 30  # unfinished jobs above which producers wait: redelivery is measured, and not the length of the queue

_SETTINGS = {
    "PGQUEUE_BEAT_INTERVAL": "1",
    "PGQUEUE_DEAD_AFTER": f"{DEAD_AFTER:g}",
    "PGQUEUE_RESULT_EXPIRES": "86400",
    "PGQUEUE_MAX_CRASHES": "50",  # random kills must not look like poison
    "PGQUEUE_CONNECT_TIMEOUT": "3",
}

_HELD_BY = """
select j.id::text, j.attempt from pgqueue.job j join pgqueue.worker w on w.id = j.worker where w.pid = %s
"""
_IN_HANDS = "select id::text, attempt from pgqueue.job where id = any(%s::uuid[]) and worker is not null"


@dataclass(slots=True)
class Place:
    """A worker that is always there: replaced when it has ended, for whatever reason."""

    name: str
    pools: tuple[str, ...]  # taken in turn, life after life
    concurrency: int
    proxied: bool
    once: bool
    lives: int = 0
    process: subprocess.Popen[bytes] | None = None
    stop_at: float | None = None  # when it was told to stop

    @property
    def pool(self) -> str:
        """How the present life runs its tasks."""
        return self.pools[(self.lives - 1) % len(self.pools)]

    @property
    def pid(self) -> int:
        """Process id of the present life."""
        assert self.process is not None
        return self.process.pid


@dataclass(frozen=True, slots=True)
class Frozen:
    """A process that goes on at a time, or when one of the jobs (with the attempt) that it held is another's."""

    until: float
    held: dict[str, int]


def _places() -> list[Place]:
    return [
        Place("straight", ("prefork",), 3, proxied=False, once=False),
        Place("far", ("prefork",), 2, proxied=True, once=True),
        Place("many", ("asyncio", "threads"), 4, proxied=True, once=False),
        Place("alone", ("solo",), 1, proxied=False, once=True),
    ]


@dataclass(slots=True)
class Crew:
    """The workers and producers, and the processes that a killed supervisor left behind."""

    server: Server
    proxy: Proxy
    folder: Path
    exits: Counter[int] = field(default_factory=Counter)  # of workers that were told to stop
    unasked: Counter[int] = field(default_factory=Counter)  # of workers that nobody told or killed
    hung: int = 0
    orphans: int = 0
    pids: dict[str, int] = field(default_factory=dict)  # of worker ids
    frozen: dict[int, Frozen] = field(default_factory=dict)  # by pid
    places: list[Place] = field(default_factory=_places)
    _left: dict[int, tuple[int | None, float]] = field(default_factory=dict)
    _producers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _killed: set[int] = field(default_factory=set)
    _look_at: float = 0.0

    @property
    def runs(self) -> Path:
        """The ledger of the tasks."""
        return self.folder / "runs.ledger"

    @property
    def calls(self) -> list[Path]:
        """The ledgers of the producers."""
        return sorted(self.folder.glob("calls-*.ledger"))

    def start(self, seed: int, rate: float) -> None:
        """Start everybody; `rate` is the calls a second of all producers together."""
        for place in self.places:
            self._start(place)
        for number, (mode, proxied) in enumerate((("sync", False), ("sync", True), ("async", True))):
            words = [str(self.folder / f"calls-{number}.ledger"), str(seed * 3 + number), str(rate / 3), mode]
            command = [sys.executable, "-m", "benchmarks.soak_producer", *words, str(self.folder / "pause")]
            self._producers.append(self._spawn(command, f"producer-{number}", proxied=proxied))

    def tend(self) -> None:
        """Replace workers that have ended, let go on whose time it is, and have producers wait for a long queue."""
        now = time.monotonic()
        for pid in [pid for pid, frozen in self.frozen.items() if self._thawing(frozen, now)]:
            self.thaw(pid)
        for place in self.places:
            self._look_after(place, now)
        self._look_for_orphans(now)
        if now >= self._look_at:
            self._look_at = now + 0.3
            self.pids.update(self.server.rows("select id::text, pid from pgqueue.worker"))
            pause = self.folder / "pause"
            if self.waiting() > MOST:
                pause.touch()
            else:
                pause.unlink(missing_ok=True)

    def waiting(self) -> int:
        """Return how many jobs are unfinished."""
        return int(self.server.rows("select count(*) from pgqueue.job")[0][0])

    def kill(self, pid: int) -> None:
        """SIGKILL a process of a worker; the children of a supervisor become orphans."""
        if any(place.process is not None and pid == place.pid for place in self.places):
            self._killed.add(pid)
            for child in children(pid):
                self._left[child] = (process_started(child), time.monotonic() + GRACE + LEEWAY)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def freeze(self, pid: int, seconds: float, *, until_overtaken: bool) -> None:
        """SIGSTOP a process for a while.

        - `until_overtaken`: or until one of its jobs is in the hands of another, if that comes first: then the two
          meet, and the frozen one has to lose.
        """
        rows = self.server.rows(_HELD_BY, pid) if until_overtaken else []
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.frozen[pid] = Frozen(time.monotonic() + seconds, {job: int(attempt) for job, attempt in rows})

    def thaw(self, pid: int) -> None:
        """SIGCONT a frozen process; an orphan has its time to go from now on."""
        del self.frozen[pid]
        if pid in self._left:
            self._left[pid] = (self._left[pid][0], time.monotonic() + GRACE + LEEWAY)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _thawing(self, frozen: Frozen, now: float) -> bool:
        if now >= frozen.until or not frozen.held:
            return now >= frozen.until
        attempts = self.server.rows(_IN_HANDS, list(frozen.held))
        return any(attempt > frozen.held[job] for job, attempt in attempts)

    def stop(self, place: Place) -> None:
        """SIGTERM a worker; `tend` notes its exit code and replaces it."""
        if place.process is not None and place.stop_at is None:
            place.stop_at = time.monotonic()
            place.process.send_signal(signal.SIGTERM)

    def stop_producers(self) -> None:
        """SIGTERM the producers and wait for the answers to their last calls."""
        for producer in self._producers:
            producer.terminate()
        for producer in self._producers:
            if producer.wait(90) != 0:
                raise RuntimeError(f"a producer ended with exit code {producer.returncode}: see its log")

    def stop_all(self) -> None:
        """Stop all workers warmly and wait for their end."""
        for pid in list(self.frozen):
            self.thaw(pid)
        for place in self.places:
            self.stop(place)
        while any(place.process is not None for place in self.places) or self._left:
            for place in self.places:
                self._look_after(place, time.monotonic(), replace=False)
            self._look_for_orphans(time.monotonic())
            time.sleep(0.02)

    def close(self) -> None:
        """Kill whatever still runs; only processes that are ours."""
        left = [pid for pid, (started, _) in self._left.items() if process_started(pid) == started]
        processes = [*self._producers, *(place.process for place in self.places if place.process is not None)]
        for process in processes:
            if process.poll() is None:
                left += [*children(process.pid), process.pid]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.wait()

    def _look_after(self, place: Place, now: float, *, replace: bool = True) -> None:
        process = place.process
        assert process is not None or not replace
        if process is None:
            return
        if process.poll() is None:
            if place.stop_at is not None and now > place.stop_at + GRACE + LEEWAY and process.pid not in self.frozen:
                self.hung += 1
                self.kill(process.pid)
                process.wait()
            else:
                return
        if place.stop_at is not None and process.pid not in self._killed:
            self.exits[process.returncode] += 1
        elif process.pid not in self._killed:
            self.unasked[process.returncode] += 1
        place.process = place.stop_at = None
        if replace:
            self._start(place)

    def _look_for_orphans(self, now: float) -> None:
        """Children of a killed supervisor have to go by themselves, as soon as their tasks have ended."""
        for pid, (started, until) in list(self._left.items()):
            if process_started(pid) != started:
                del self._left[pid]
            elif pid not in self.frozen and now > until:
                self.orphans += 1
                del self._left[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _start(self, place: Place) -> None:
        place.lives += 1
        options = ["-P", place.pool, "-c", str(place.concurrency), "-n", place.name, "--grace", f"{GRACE:g}"]
        queues = "once,default" if place.once else "default"
        command = [sys.executable, "-m", "pgqueue", "-A", "benchmarks.soak_tasks", "worker", "-Q", queues, *options]
        place.process = self._spawn(command, place.name, proxied=place.proxied, once=place.once)

    def _spawn(self, command: list[str], name: str, *, proxied: bool, once: bool = False) -> subprocess.Popen[bytes]:
        # A soak that is killed takes its processes along.
        lifeline = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        through = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres?sslmode=disable&gssencmode=disable"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        env = {**ours, **_SETTINGS, "PYTHONPATH": str(ROOT), "SOAK_RUNS": str(self.runs)}
        env["PGQUEUE_DSN"] = through if proxied else self.server.dsn
        if once:
            env["SOAK_ONCE"] = "1"
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*lifeline, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process; none if it has gone."""
    return list(_children(pid))


def _children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in field 2 may hold spaces and brackets; the parent is the second field behind it.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state not in "ZX":
                yield int(stat.parent.name)
