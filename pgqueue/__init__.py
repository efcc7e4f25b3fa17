"""Celery's programming model on nothing but PostgreSQL."""

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
    TaskFailed,
    TaskRejectedError,
    TaskRevokedError,
    UnknownJob,
    UnknownTask,
    WorkerLostError,
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
    "State",
    "Task",
    "TaskFailed",
    "TaskRejectedError",
    "TaskRevokedError",
    "UnknownJob",
    "UnknownTask",
    "WorkerLostError",
]
