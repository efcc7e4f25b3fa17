"""Hooks of failures that others have found: of a lost worker, of a hard time limit.

The commit that stores such a failure enqueues a job for them, if the lost worker had said that somebody listens. So
they run once, in any worker, in a slot like everything of the user's, and not in whoever noticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pgqueue.app import PgQueue
from pgqueue.errors import Reject
from pgqueue.serialization import decode_error, encode, encode_error
from pgqueue.signals import task_failure
from pgqueue.task import Task
from pgqueue.tracer import Aftermath, Context, Listeners, current_context
from pgqueue.types import Claim, ErrorReport, Failed

#: Name of the task, which SQL knows too: `bury` and `finish`.
REPORT = "pgqueue.report_failure"


def hooked(tasks: Mapping[str, Task[..., Any, Any]]) -> list[str]:
    """Return the names of the tasks of which somebody wants to hear of failures; ["*"] for all."""
    if task_failure.heard_by(None):  # whatever the sender, tasks declared later included
        return ["*"]
    return sorted(name for name, task in tasks.items() if Listeners(task).failure)


def hook_entry(attempt: int, hook: str, error: ErrorReport) -> str:
    """Return how a hook failed as `attach` takes it."""
    return f'{{"attempt":{attempt},"state":"HOOK","hook":"{hook}","error":{encode_error(error)}}}'


def install(app: PgQueue) -> None:
    """Give an app the task that runs these hooks."""

    def report_failure(
        id: str, task: str, args: Sequence[object], kwargs: Mapping[str, object], error: Mapping[str, object]
    ) -> None:
        failed = app.tasks.get(task)
        if failed is None:
            raise Reject(f"task {task!r} is not registered here", requeue=True)
        found = decode_error(encode(error, path="error"))
        around = current_context()
        hostname = "" if around is None else around.hostname
        context = Context(task, _claim(id, task, args, kwargs), args, kwargs, hostname, options=failed.options)
        for hook, problem in Aftermath(failed, context).tell(Failed(found), acked=True):
            app.database.run(app.database.statements.attach(id, hook_entry(app.AsyncResult(id).attempt, hook, problem)))

    if REPORT not in app.tasks:
        app.task(
            name=REPORT, base=Task, ignore_result=True, max_retries=0, acks_late=True, time_limit=None,
            soft_time_limit=None, typing=False, pydantic=False,
        )(report_failure)  # fmt: skip


def _claim(id_: str, task: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Claim:
    """Return the attempt that failed, as far as it is still known."""
    now = datetime.now(UTC)
    return Claim(
        id_, task, "", 0, encode(list(args), path="args"), encode(dict(kwargs), path="kwargs"), 0, 0, 0, now, now, None,
        False, False, None, None, None, None,
    )  # fmt: skip
