"""All that pgqueue raises at its users, all that a task may raise at pgqueue, and the SQLSTATEs between.

The docstring of a class without its own text is its default message.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pgqueue.types import ErrorReport, NewJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class PgQueueError(Exception):
    """Something went wrong in pgqueue."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class SettingsError(PgQueueError, ValueError):
    """A setting is wrong."""


class InvalidOption(PgQueueError, ValueError):
    """An option of a task or of a call is unknown or has a value that cannot be used."""


class InvalidArguments(PgQueueError, TypeError):
    """The arguments do not fit the signature of the task."""


class NotSerializable(PgQueueError, TypeError):
    """A value cannot be stored as JSON. `path` says where it is, such as `args[0].lines[3].price`."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class PayloadTooLarge(PgQueueError, ValueError):
    """A payload is larger than the setting `max_payload_bytes` allows."""


class UnknownTask(PgQueueError, KeyError):
    """No task of this name is registered."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotation marks


class UnknownJob(PgQueueError, LookupError):
    """Neither a job nor a result has this id: never enqueued, not committed yet, ignored, or expired."""


class DatabaseUnavailable(PgQueueError, ConnectionError):
    """The database cannot be reached."""


class SchemaMissing(PgQueueError):
    """The tables and functions of pgqueue are not there, or are older than this program: `pgqueue migrate`."""


class BenchFailed(PgQueueError):
    """A benchmark cannot go on; `details` is the end of the log of the process that is to blame."""

    def __init__(self, message: str, details: str = "") -> None:
        self.details = details
        super().__init__(message)


class LeaseLost(PgQueueError):
    """The lease of this attempt has passed to another worker; nothing that it writes is accepted."""


class ResultTimeout(PgQueueError, TimeoutError):
    """The result did not arrive in time. The job goes on; `get()` may be called again."""


class IncompleteStream(PgQueueError):
    """A job has not ended yet, so it is not known what it enqueues."""


class TaskFailed(PgQueueError):
    """The job ended as FAILURE; `error` is the exception as data, `traceback` its text.

    - `text`: what it says; default: the type and the message of the exception.
    """

    def __init__(self, error: ErrorReport, text: str | None = None) -> None:
        self.error = error
        super().__init__((f"{error.type}: {error.message}" if error.message else error.type) if text is None else text)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.error, *self.args)

    @property
    def traceback(self) -> str | None:
        """The traceback of the exception in the worker, as text."""
        return self.error.traceback


class TaskRevokedError(PgQueueError):
    """The job was revoked, or it expired before it could start."""


class TaskRejectedError(PgQueueError):
    """The task rejected the job."""


class ChordError(PgQueueError):
    """A part of the header of a chord did not succeed, so the body is not run; the message names it.

    Its `__cause__` is what that part ended with.
    """


class WorkerLostError(PgQueueError):
    """The worker died while the job was running."""


class TimeLimitExceeded(PgQueueError):
    """The attempt ran longer than its hard time limit, and its process was ended."""


class SoftTimeLimitExceeded(PgQueueError):
    """The attempt runs longer than its soft time limit. Raised in the task, which may clean up and end."""


class WorkerShutdown(SystemExit):
    """The worker ends now. Raised in the task, which may clean up; its job goes back untried."""


class MaxRetriesExceededError(PgQueueError):
    """The task asked for another retry than `max_retries` allows; `task_args`, `task_kwargs`: of the job."""

    def __init__(
        self, message: str | None = None, task_args: Sequence[object] = (), task_kwargs: object = None
    ) -> None:
        self.task_args = task_args
        self.task_kwargs = task_kwargs or {}
        super().__init__(message)


class TaskPredicate(Exception):
    """What a task raises to say how its attempt is to end; a task must let these pass."""


class Ignore(TaskPredicate):
    """Ends the attempt as IGNORED: ready, no value, no error."""


class Replace(Ignore):
    """Ends the attempt and puts another call in the place of this one, under its id; `self.replace()` raises it.

    - `job`: the call, or `plan`: a workflow, one part of which has the id.
    """

    def __init__(self, job: NewJob | None = None, plan: Sequence[NewJob] = ()) -> None:
        self.job = job
        self.plan = plan
        super().__init__(f"replaced by {f'a workflow of {len(plan)}' if job is None else job.task}")


class TransactionUnavailable(TaskPredicate):
    """The transaction of the attempt could not begin now; the job goes back untried."""


class Reject(TaskPredicate):
    """Ends the attempt as REJECTED, or hands the job back untried.

    - `reason`: a text or an exception, kept with the result.
    - `requeue`: hand the job back instead of ending it; default False. The first time it waits no longer, then ever
      longer, up to a minute; after `max_requeues` times it ends as REJECTED.
    """

    def __init__(self, reason: object = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)


class Retry(TaskPredicate):
    """Ends the attempt and runs the job again later; `self.retry()` raises it.

    - `message`: a text for logs.
    - `exc`: the exception that led to the retry; it is kept and shown.
    - `countdown`: seconds to wait; default 0.
    - `eta`: earliest time to run again; wins over `countdown`.
    - the others replace what the job has, where not None.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        countdown: float | None = None,
        *,
        eta: datetime | None = None,
        args: tuple[object, ...] | None = None,
        kwargs: Mapping[str, object] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        expires: datetime | None = None,
        headers: Mapping[str, object] | None = None,
        ignore_result: bool | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
    ) -> None:
        self.message = message
        self.exc = exc
        self.countdown = countdown
        self.eta = eta
        self.call_args = args
        self.call_kwargs = kwargs
        self.queue = queue
        self.priority = priority
        self.expires = expires
        self.headers = headers
        self.ignore_result = ignore_result
        self.time_limit = time_limit
        self.soft_time_limit = soft_time_limit
        super().__init__(message, exc, countdown)

    @property
    def when(self) -> datetime | float | None:
        """When it is to run again: a time, or seconds from now."""
        return self.countdown if self.eta is None else self.eta

    def __str__(self) -> str:
        when = f"at {self.eta.isoformat()}" if self.eta else f"in {self.countdown or 0:g}s"
        reason = self.message or ("" if self.exc is None else repr(self.exc))
        return f"Retry {when}: {reason}" if reason else f"Retry {when}"


#: SQLSTATEs raised by our own SQL functions. The standard keeps the classes 0-4 and A-H for itself.
SQLSTATES: dict[str, type[PgQueueError]] = {
    "PQ001": LeaseLost,
    "PQ002": InvalidOption,
}

#: What PostgreSQL answers when our schema, a table, a function or a column is not there.
SCHEMA_SQLSTATES = frozenset({"3F000", "42P01", "42883", "42703", "42704"})
