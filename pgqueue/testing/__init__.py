"""Tests of programs that use pgqueue: functions for any test runner; `pgqueue.testing.plugin` has pytest's fixtures."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgqueue.testing.database import temporary_schema
    from pgqueue.testing.jobs import EnqueuedJob, assert_enqueued, enqueued, refute_enqueued
    from pgqueue.testing.threads import worker
    from pgqueue.worker.drain import Drained, drain
    from pgqueue.worker.joined import joined

__all__ = [
    "Drained",
    "EnqueuedJob",
    "assert_enqueued",
    "drain",
    "enqueued",
    "joined",
    "refute_enqueued",
    "temporary_schema",
    "worker",
]

_HOME = {
    "Drained": "pgqueue.worker.drain",
    "drain": "pgqueue.worker.drain",
    "joined": "pgqueue.worker.joined",
    "temporary_schema": "pgqueue.testing.database",
    "worker": "pgqueue.testing.threads",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: pytest imports this package in every run, and before coverage begins."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME.get(name, "pgqueue.testing.jobs")), name)
    globals()[name] = value
    return value
