"""Who is dead: facts about processes of this host, and a verdict that is a function of what was seen."""

from __future__ import annotations

import math
import os
import platform
import select
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pgqueue.statements import Observed

#: Seconds that a free lock must stay free, without proof that the process is gone: it may be reconnecting.
LOCK_GRACE = 3.0
#: Seconds that a process must have been gone: its supervisor, which knows what it had begun, comes first.
GONE_GRACE = 0.3
#: Seconds until the server has noticed that a process on its host is gone, most of the time.
_NOTICE = 0.05
#: Seconds without a look after which earlier looks say nothing: the observer itself was stopped or cut off. At most
#: half of `dead_after`.
LOOK_GAP = 5.0
#: The same for a short `dead_after`: twice the time between two looks.
_LEAST_GAP = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """One life of a worker process; `pid` and `pid_started` are proof only where `boot` is the same."""

    id: str
    name: str
    host: str
    boot: str
    pid: int
    pid_started: int | None


def identify(worker: str, name: str) -> Identity:
    """Return the identity of this process for the worker id."""
    return Identity(worker, name, socket.gethostname(), boot_identity(), os.getpid(), process_started(os.getpid()))


def boot_identity() -> str:
    """Return what two processes share only if their pids mean the same: the boot, and the pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {platform.system()}"


def process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where that cannot be known, 0 if it is gone."""
    try:
        # The name in field 2 may hold spaces and brackets; field 22 is counted from behind its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0 if Path("/proc/self/stat").exists() else None
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def process_gone(pid: int, started: int | None) -> bool:
    """Return whether it is proven that a process of this boot has ended (a reused pid is another process)."""
    now = process_started(pid)
    if now is None:
        return False
    return now == 0 or (started is not None and now != started)


@dataclass(slots=True)
class _Seen:
    beats: int
    changed: float
    lock_free_since: float | None = None
    gone_since: float | None = None
    due: float = math.inf


class Verdict(NamedTuple):
    """Who is dead, and the evidence; `proven`: its process has ended, so that no duty is needed to say so."""

    other: Observed
    evidence: str
    proven: bool


class Watch:
    """Remembers what one observer has seen of the others, and says who is dead.

    - `identity`: who observes.
    - `dead_after`: seconds of the observer's own clock without a beat; default 30.
    """

    def __init__(self, identity: Identity, dead_after: float = 30.0) -> None:
        self._me = identity
        self._dead_after = dead_after
        self._seen: dict[str, _Seen] = {}
        self._looked = float("-inf")
        self._server: datetime | None = None

    @property
    def due(self) -> float:
        """When a suspicion becomes a verdict, unless it is removed before; infinite if there is none."""
        return min((seen.due for seen in self._seen.values()), default=math.inf)

    def look(self, others: Iterable[Observed], now: float) -> list[Verdict]:
        """Return who is dead, with the evidence; `now` is monotonic and in seconds.

        A restart of the server drops every lock at once, and a pause of the observer hides every beat: after
        either, watching begins anew.
        """
        found = list(others)
        server = found[0].server_started if found else self._server
        if now - self._looked > min(LOOK_GAP, max(_LEAST_GAP, self._dead_after / 2)) or server != self._server:
            self._seen.clear()
        self._looked, self._server = now, server
        self._seen = {other.id: self._update(other, now) for other in found}
        verdicts = (self._verdict(other, now) for other in found)
        return [verdict for verdict in verdicts if verdict is not None]

    def _update(self, other: Observed, now: float) -> _Seen:
        seen = self._seen.get(other.id) or _Seen(other.beats, now)
        if seen.beats != other.beats:
            seen.beats, seen.changed = other.beats, now
        seen.lock_free_since = _since(seen.lock_free_since, other.locked and not other.lock_held, now)
        ended = other.boot == self._me.boot and process_gone(other.pid, other.pid_started)
        seen.gone_since = _since(seen.gone_since, ended and not other.lock_held, now)
        seen.due = math.inf
        if seen.lock_free_since is not None:
            seen.due = seen.lock_free_since + LOCK_GRACE
        if seen.gone_since is not None:
            seen.due = seen.gone_since + GONE_GRACE
        elif ended:
            seen.due = now + _NOTICE
        return seen

    def _verdict(self, other: Observed, now: float) -> Verdict | None:
        seen = self._seen[other.id]
        if seen.gone_since is not None and now - seen.gone_since >= GONE_GRACE:
            return Verdict(other, f"process {other.pid} on {other.host} has ended", True)
        if seen.lock_free_since is not None and now - seen.lock_free_since >= LOCK_GRACE:
            return Verdict(other, f"its session ended {LOCK_GRACE:g} s ago", False)
        if now - seen.changed >= self._dead_after:
            return Verdict(other, f"no beat for {self._dead_after:g} s", False)
        return None


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Return since when something holds: from before, from now, or not at all."""
    if not holds:
        return None
    return now if before is None else before


class Neighbours:
    """The worker processes of this boot: Linux says at once when one of them ends; elsewhere nobody does.

    - `boot`: of this process.
    """

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._descriptors: dict[str, int] = {}
        self._ended: set[str] = set()

    @property
    def descriptors(self) -> list[int]:
        """To be waited for: one can be read when its process has ended."""
        return list(self._descriptors.values())

    def keep(self, others: Iterable[Observed]) -> None:
        """Watch those of `others` who are neighbours, and nobody else."""
        here = {other.id: other for other in others if other.boot == self._boot}
        for gone in self._descriptors.keys() - here.keys():
            os.close(self._descriptors.pop(gone))
        self._ended &= here.keys()
        for id_, other in here.items():
            if id_ not in self._descriptors and id_ not in self._ended:
                self._open(other)

    def ended(self) -> bool:
        """Return whether one has ended since the last time."""
        poll = select.poll()
        for descriptor in self._descriptors.values():
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(0)}
        for id_, descriptor in list(self._descriptors.items()):
            if descriptor in ready:
                os.close(self._descriptors.pop(id_))
                self._ended.add(id_)
        return bool(ready)

    def close(self) -> None:
        """Watch nobody any more."""
        self.keep(())

    def _open(self, other: Observed) -> None:
        if not hasattr(os, "pidfd_open"):
            return
        try:
            descriptor = os.pidfd_open(other.pid)
        except OSError:  # it has ended; the next look finds out
            return
        if process_gone(other.pid, other.pid_started):  # another process has its number
            os.close(descriptor)
            self._ended.add(other.id)
        else:
            self._descriptors[other.id] = descriptor
