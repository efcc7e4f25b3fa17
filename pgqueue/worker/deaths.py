"""Worker processes that ended before their time: why, and what becomes of their jobs."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import run
from pgqueue.statements import Ended
from pgqueue.types import Claim, ErrorReport, Failed, Outcome, Released
from pgqueue.worker.board import Begun
from pgqueue.worker.pace import SESSION_END

logger = logging.getLogger("pgqueue.worker")


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended before its time and whose leases are not handed back yet.

    `begun` are the attempts that had begun: job and number. `ours`: the worker or its supervisor has ended it, so that
    it counts as no crash. `overdue` are attempts that did not heed their hard time limit.
    """

    worker: str
    pid: int
    cause: str
    begun: tuple[tuple[str, int], ...]
    ours: bool
    overdue: tuple[Begun, ...] = ()


def cause(code: int, *, out_of_memory: bool = False) -> str:
    """Return how a process ended, in words: the signal that killed it, or its exit code.

    - `out_of_memory`: whether the system has killed processes for want of memory at that moment.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}: the system was out of memory" if out_of_memory and -code == signal.SIGKILL else name


def bury(connection: psycopg.Connection[Any], app: PgQueue, death: Death) -> bool:
    """Hand back the leases of a dead worker; return whether that is done.

    Not yet, if a transaction of the dead worker still locks a job: the server ends it when it notices.
    """
    statements, limit = app.database.statements, app.settings.max_crashes
    run(connection, statements.end_sessions(death.worker, SESSION_END))
    if death.overdue:
        run(connection, statements.finish(death.worker, [_ended(begun, limit) for begun in death.overdue]))
    message = f"worker process {death.pid} died: {death.cause}"
    error = ErrorReport("WorkerLostError", "pgqueue.errors", message)
    for job in run(connection, statements.bury(death.worker, error, death.begun, limit, counts=not death.ours)):
        logger.info("%s[%s] of worker process %d is %s now", job.task, job.id[-12:], death.pid, job.state)
    return not run(connection, statements.listed(death.worker))[0]


def overdue(limit: float, crashes: int, max_crashes: int, *, repeats: bool) -> Outcome:
    """Return what an attempt over its hard time limit comes to: a failure, or one more crash if the task says so."""
    error = ErrorReport(
        "TimeLimitExceeded", "pgqueue.errors", f"the attempt ran longer than its time limit of {limit:g} s"
    )
    return Released(crash=error) if repeats and crashes < max_crashes else Failed(error, hooks=True)


def _ended(begun: Begun, max_crashes: int) -> Ended:
    outcome = overdue(begun.limit, begun.crashes, max_crashes, repeats=begun.repeats)
    now = datetime.now(UTC)  # only id and attempt of a claim are sent with its outcome
    claim = Claim(
        begun.job, "", "", 0, "[]", "{}", begun.attempt, 0, begun.crashes, now, now, None, False, False, None, None,
        None, None,
    )  # fmt: skip
    return Ended(claim, outcome, begun.limit)
