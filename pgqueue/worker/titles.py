"""What `ps` shows for the processes of a worker, where setproctitle is installed (extra `proc`)."""

from __future__ import annotations

try:
    from setproctitle import setproctitle as _set
except ImportError:

    def _set(title: str) -> None:
        pass


def show(worker: str, role: str) -> None:
    """Name this process: `pgqueue: mail@host (prefork, 4 processes)`."""
    _set(f"pgqueue: {worker} ({role})")
