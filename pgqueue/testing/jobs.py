"""What is enqueued: looked at, asserted, refuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import EllipsisType
from typing import Any, TypeAlias

from pgqueue.app import PgQueue
from pgqueue.database import enqueue_on
from pgqueue.errors import InvalidOption
from pgqueue.options import seconds
from pgqueue.serialization import decode, encode
from pgqueue.sql import rename
from pgqueue.statements import Statement
from pgqueue.task import Task

#: A task, or the name of one.
Named: TypeAlias = "Task[..., Any, Any] | str"
#: When: a time, seconds after the enqueue, None for at once; `...` for whenever.
When: TypeAlias = "datetime | timedelta | float | EllipsisType | None"

_JOBS = """
    select j.id::text, j.task, j.args::text, j.kwargs::text, j.queue, j.priority, j.eta, j.enqueued_at,
           j.worker is not null
      from pgqueue.job j
     order by j.enqueued_at, j.id"""
#: Jobs shown by a failing assertion.
_SHOWN = 20
#: Seconds by which an eta may differ: the database counts in microseconds, floats do not.
_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """An unfinished job.

    - `id`, `task` (a name), `args`, `kwargs`, `queue`, `priority`: of the call.
    - `eta`: not to be run before; `enqueued_at` if it is to be run at once.
    - `running`: whether a worker has it.
    """

    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int
    eta: datetime
    enqueued_at: datetime
    running: bool

    @property
    def delay(self) -> float:
        """Seconds from the enqueue until it may be run."""
        return (self.eta - self.enqueued_at).total_seconds()

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        when = f", eta {self.eta.isoformat()} ({self.delay:.6g} s after its enqueue)" if self.delay > 0 else ""
        state = ", running" if self.running else ""
        return f"{self.task}({', '.join(given)}): queue {self.queue}, priority {self.priority}{when}{state}"


def enqueued(
    app: PgQueue, task: Named | None = None, *, queue: str | None = None, connection: object = None
) -> list[EnqueuedJob]:
    """Return the unfinished jobs, in the order of their enqueues.

    - `task`: a task or the name of one; default all. `queue`: default all.
    - `connection`: look in the transaction of this connection, of any kind that `apply_async` takes.

        assert [job.args for job in enqueued(app, add)] == [[2, 3]]
    """
    statement = Statement(rename(_JOBS, app.settings.schema_name), (), _job)
    jobs = app.database.run(statement) if connection is None else enqueue_on(connection, statement)
    name = _name(task)
    return [job for job in jobs if name in (None, job.task) and queue in (None, job.queue)]


def assert_enqueued(
    app: PgQueue,
    task: Named,
    args: Sequence[object] | None = None,
    kwargs: Mapping[str, object] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    eta: When = ...,
    count: int = 1,
    connection: object = None,
) -> list[EnqueuedJob]:
    """Assert that a call has been enqueued and is not finished; return its jobs. What is not given may be anything.

    - `task`: a task or the name of one.
    - `args`, `kwargs`: exactly these, as the call gave them.
    - `eta`: a time, or a countdown (seconds or timedelta), or None: to be run at once. Default: whenever.
    - `count`: exactly so many jobs; default 1.
    - `connection`: as for `enqueued`.

    Raises AssertionError, showing the jobs that there are.

        assert_enqueued(app, settle, args=(7,), eta=60)
    """
    __tracebackhide__ = True  # pytest shows the line that calls this
    jobs, found = _look(app, task, args, kwargs, queue, priority, eta, connection)
    if len(found) != count:
        wanted = _wanted(task, args, kwargs, queue, priority, eta)
        raise AssertionError(f"{wanted}: {_times(len(found))} enqueued, not {_times(count)}.{_shown(jobs, found)}")
    return found


def refute_enqueued(
    app: PgQueue,
    task: Named,
    args: Sequence[object] | None = None,
    kwargs: Mapping[str, object] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    eta: When = ...,
    connection: object = None,
) -> None:
    """Assert that no unfinished job is of such a call; parameters as for `assert_enqueued`.

    refute_enqueued(app, remind)
    """
    __tracebackhide__ = True  # pytest shows the line that calls this
    jobs, found = _look(app, task, args, kwargs, queue, priority, eta, connection)
    if found:
        wanted = _wanted(task, args, kwargs, queue, priority, eta)
        raise AssertionError(f"{wanted}: {_times(len(found))} enqueued, which it should not be.{_shown(jobs, found)}")


def _job(row: tuple[Any, ...]) -> EnqueuedJob:
    id_, task, args, kwargs, *rest = row
    return EnqueuedJob(id_, task, decode(args), decode(kwargs), *rest)  # type: ignore[arg-type]


def _look(
    app: PgQueue,
    task: Named,
    args: Sequence[object] | None,
    kwargs: Mapping[str, object] | None,
    queue: str | None,
    priority: int | None,
    eta: When,
    connection: object,
) -> tuple[list[EnqueuedJob], list[EnqueuedJob]]:
    """Return all unfinished jobs, and those that match."""
    if isinstance(args, str | bytes):
        raise InvalidOption(f"args must be a list or tuple, not {args!r:.80}; ({args!r:.80},) is one")
    stored_args = None if args is None else decode(encode(list(args), path="args"))
    stored_kwargs = None if kwargs is None else decode(encode(dict(kwargs), path="kwargs"))
    jobs = enqueued(app, connection=connection)
    return jobs, [
        job
        for job in jobs
        if job.task == _name(task)
        and stored_args in (None, job.args)
        and stored_kwargs in (None, job.kwargs)
        and queue in (None, job.queue)
        and priority in (None, job.priority)
        and _is_at(job, eta)
    ]


def _is_at(job: EnqueuedJob, eta: When) -> bool:
    if isinstance(eta, EllipsisType):
        return True
    if isinstance(eta, datetime):
        if eta.tzinfo is None:
            raise InvalidOption(f"eta={eta.isoformat()} has no time zone")
        return abs((job.eta - eta).total_seconds()) < _TOLERANCE
    return abs(job.delay - (0.0 if eta is None else seconds("eta", eta))) < _TOLERANCE


def _name(task: Named | None) -> str | None:
    return task.name if isinstance(task, Task) else task


def _times(count: int) -> str:
    return {0: "not", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _wanted(
    task: Named,
    args: Sequence[object] | None,
    kwargs: Mapping[str, object] | None,
    queue: str | None,
    priority: int | None,
    eta: When,
) -> str:
    asked = {"args": args, "kwargs": kwargs, "queue": queue, "priority": priority}
    said = [f"{name}={value!r}" for name, value in asked.items() if value is not None]
    if not isinstance(eta, EllipsisType):
        said.append(f"eta={eta!r}")
    return " ".join([str(_name(task)), f"with {', '.join(said)}"] if said else [str(_name(task))])


def _shown(jobs: list[EnqueuedJob], found: list[EnqueuedJob]) -> str:
    if not jobs:
        return " There are no unfinished jobs."
    lines = [f"\n{'->' if job in found else '  '} {job}" for job in jobs[:_SHOWN]]
    more = f"\n   and {len(jobs) - _SHOWN} more" if len(jobs) > _SHOWN else ""
    return f" Unfinished jobs:{''.join(lines)}{more}"
