"""The database: connections, and the two short functions that run a statement on one. Knows no task."""

from pgqueue.database.callers import aenqueue_on, enqueue_on
from pgqueue.database.connections import Database
from pgqueue.database.listener import Listener
from pgqueue.database.running import (
    AnyConnection,
    arun,
    conflicts,
    connection_lost,
    guarded,
    passes,
    run,
    run_together,
    transient,
)

__all__ = [
    "AnyConnection",
    "Database",
    "Listener",
    "aenqueue_on",
    "arun",
    "conflicts",
    "connection_lost",
    "enqueue_on",
    "guarded",
    "passes",
    "run",
    "run_together",
    "transient",
]
