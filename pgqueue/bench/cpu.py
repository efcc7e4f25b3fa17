"""CPU seconds of a PostgreSQL server on this machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_PROC = Path("/proc")
_TOLERANCE = 2.0  # seconds between the start of a process and what the server says about it
_ME = """
select pid, extract(epoch from backend_start)::float8 from pg_stat_activity where pid = pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of our processes and of the server; None: it is not to be seen from here."""

    processes: float
    server: float | None


def median_cpu(spent: Sequence[Cpu]) -> Cpu:
    """Return the medians, rounded."""
    server = [cpu.server for cpu in spent if cpu.server is not None]
    processes = statistics.median(cpu.processes for cpu in spent)
    return Cpu(round(processes, 4), round(statistics.median(server), 4) if server else None)


def server_cpu(connection: psycopg.Connection[Any]) -> float | None:
    """Return the CPU seconds of the server since its start, of all its processes, also of those that have ended.

    None if it is not on this machine, or if the system does not show it: elsewhere than on Linux, or in a container.
    """
    try:
        pid, started = connection.execute(_ME).fetchone() or (0, 0.0)
        mine = _stat(pid)
        if mine[0] != "postgres" or abs(_started(mine) - started) > _TOLERANCE:
            return None  # on another machine, whose process ids mean nothing here
        parent = int(mine[2])
        children = (int(child) for thread in (_PROC / f"{parent}/task").iterdir() for child in _children(thread))
        return _seconds(parent) + sum(map(_seconds, children))
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> list[str]:
    """Return name, state, parent and so on: proc_pid_stat(5), whose third is our second."""
    _, _, text = (_PROC / f"{pid}/stat").read_text().partition("(")
    name, _, rest = text.rpartition(")")
    return [name, *rest.split()]


def _children(thread: Path) -> list[str]:
    return (thread / "children").read_text().split()


def _seconds(pid: int) -> float:
    """Return user and system time, with that of children which have been waited for; 0 for a process that is gone."""
    try:
        return sum(map(int, _stat(pid)[12:16])) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return 0.0


def _started(stat: list[str]) -> float:
    """Return when a process started, in seconds since 1970."""
    booted = next(line for line in (_PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    return int(booted.split()[1]) + int(stat[20]) / os.sysconf("SC_CLK_TCK")
