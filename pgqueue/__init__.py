"""Celery's programming model on nothing but PostgreSQL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgqueue.app import PgQueue
    from pgqueue.errors import (
        DatabaseUnavailable,
        Ignore,
        InvalidArguments,
        InvalidOption,
        LeaseLost,
        MaxRetriesExceededError,
        NotSerializable,
        PayloadTooLarge,
        PgQueueError,
        Reject,
        ResultTimeout,
        Retry,
        SchemaMissing,
        SettingsError,
        SoftTimeLimitExceeded,
        TaskFailed,
        TaskRejectedError,
        TaskRevokedError,
        TimeLimitExceeded,
        UnknownJob,
        UnknownTask,
        WorkerLostError,
        WorkerShutdown,
    )
    from pgqueue.result import AsyncResult
    from pgqueue.task import Signature, Task
    from pgqueue.types import State

__all__ = [
    "AsyncResult",
    "DatabaseUnavailable",
    "Ignore",
    "InvalidArguments",
    "InvalidOption",
    "LeaseLost",
    "MaxRetriesExceededError",
    "NotSerializable",
    "PayloadTooLarge",
    "PgQueue",
    "PgQueueError",
    "Reject",
    "ResultTimeout",
    "Retry",
    "SchemaMissing",
    "SettingsError",
    "Signature",
    "SoftTimeLimitExceeded",
    "State",
    "Task",
    "TaskFailed",
    "TaskRejectedError",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "UnknownJob",
    "UnknownTask",
    "WorkerLostError",
    "WorkerShutdown",
]

#: Modules of the names above; the others are errors.
_HOME = {
    "AsyncResult": "pgqueue.result",
    "PgQueue": "pgqueue.app",
    "Signature": "pgqueue.task",
    "State": "pgqueue.types",
    "Task": "pgqueue.task",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: `pgqueue --help` and `migrate` do without the engine and its 0.2 s."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME.get(name, "pgqueue.errors")), name)
    globals()[name] = value
    return value
