"""Celery's programming model on nothing but PostgreSQL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgqueue.app import PgQueue, shared_task
    from pgqueue.canvas import (
        GroupStampingVisitor,
        Signature,
        StampingVisitor,
        chain,
        chord,
        chunks,
        group,
        maybe_signature,
        signature,
        xmap,
        xstarmap,
    )
    from pgqueue.eager_result import EagerResult
    from pgqueue.errors import (
        ChordError,
        DatabaseUnavailable,
        Ignore,
        IncompleteStream,
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
    from pgqueue.group_result import GroupResult, result_from_tuple
    from pgqueue.result import AsyncResult, allow_join_result
    from pgqueue.result_set import ResultSet
    from pgqueue.task import Task
    from pgqueue.types import State

__all__ = [
    "AsyncResult",
    "ChordError",
    "DatabaseUnavailable",
    "EagerResult",
    "GroupResult",
    "GroupStampingVisitor",
    "Ignore",
    "IncompleteStream",
    "InvalidArguments",
    "InvalidOption",
    "LeaseLost",
    "MaxRetriesExceededError",
    "NotSerializable",
    "PayloadTooLarge",
    "PgQueue",
    "PgQueueError",
    "Reject",
    "ResultSet",
    "ResultTimeout",
    "Retry",
    "SchemaMissing",
    "SettingsError",
    "Signature",
    "SoftTimeLimitExceeded",
    "StampingVisitor",
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
    "allow_join_result",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "result_from_tuple",
    "shared_task",
    "signature",
    "xmap",
    "xstarmap",
]

#: Modules of the names above; the others are errors.
_HOME = {
    "AsyncResult": "pgqueue.result",
    "EagerResult": "pgqueue.eager_result",
    "PgQueue": "pgqueue.app",
    "ResultSet": "pgqueue.result_set",
    "GroupResult": "pgqueue.group_result",
    "GroupStampingVisitor": "pgqueue.canvas",
    "Signature": "pgqueue.canvas",
    "StampingVisitor": "pgqueue.canvas",
    "State": "pgqueue.types",
    "Task": "pgqueue.task",
    "allow_join_result": "pgqueue.result",
    "chain": "pgqueue.canvas",
    "chord": "pgqueue.canvas",
    "chunks": "pgqueue.canvas",
    "group": "pgqueue.canvas",
    "maybe_signature": "pgqueue.canvas",
    "result_from_tuple": "pgqueue.group_result",
    "shared_task": "pgqueue.app",
    "signature": "pgqueue.canvas",
    "xmap": "pgqueue.canvas",
    "xstarmap": "pgqueue.canvas",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: `pgqueue --help` and `migrate` do without the engine and its 0.2 s."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME.get(name, "pgqueue.errors")), name)
    globals()[name] = value
    return value
