"""How much memory a process takes, and whether the system has ended processes for want of it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def memory_in_use() -> int:
    """Return the resident memory of this process in KiB; where only the largest so far is known, that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 1024
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most // 1024 if sys.platform == "darwin" else most  # bytes on macOS, KiB elsewhere


def oom_kills() -> int:
    """Return how many processes Linux has killed for want of memory since it started, in any container; else 0."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
