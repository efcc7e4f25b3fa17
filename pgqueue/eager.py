"""Run a call here and now, without a queue: `apply`, `task_always_eager`, `Task.trace`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import psycopg

from pgqueue.eager_plan import continuations, followers, job_of, run_followers, run_plan
from pgqueue.eager_result import EagerResult
from pgqueue.errors import TaskPredicate, TaskRejectedError, TaskRevokedError
from pgqueue.reports import report, revive
from pgqueue.serialization import decode
from pgqueue.tracer import Aftermath, Concluded, ExceptionInfo, Traced, Tracer, Where, build_tracer
from pgqueue.types import (
    Claim,
    Failed,
    Ignored,
    NewJob,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Revoked,
    State,
    Succeeded,
)


class EagerApp(Protocol):
    """What an eager run needs of the app: the transactions of its tasks, and the tasks that it continues with."""

    def transaction(self) -> Any: ...
    def atransaction(self) -> Any: ...
    async def close_loop(self) -> None: ...
    def run_job(self, job: NewJob, throw: bool = False) -> EagerResult[Any]: ...


class EagerTransaction:
    """The transaction of an eager attempt: one of the app's, committed when the task has succeeded."""

    def __init__(self, app: EagerApp) -> None:
        self._app = app
        self._stack: ExitStack | None = None
        self._astack: AsyncExitStack | None = None

    def begin(self, claim: Claim) -> Any:
        """Open it."""
        self._check_closed()
        with ExitStack() as stack:
            connection = stack.enter_context(self._app.transaction())
            self._stack = stack.pop_all()
        return connection

    def rollback(self) -> None:
        """Undo what was written in it."""
        self.end(commit=False)

    def end(self, *, commit: bool) -> None:
        """Commit or undo, if it is open."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(*((None, None, None) if commit else (psycopg.Rollback, psycopg.Rollback(), None)))

    async def abegin(self, claim: Claim) -> Any:
        """Open it, on an async connection."""
        self._check_closed()
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._app.atransaction())
            self._astack = stack.pop_all()
        return connection

    async def arollback(self) -> None:
        """Undo what was written in it."""
        await self.aend(commit=False)

    async def aend(self, *, commit: bool) -> None:
        """Commit or undo, if it is open."""
        stack, self._astack = self._astack, None
        if stack is not None:
            await stack.__aexit__(*((None, None, None) if commit else (psycopg.Rollback, psycopg.Rollback(), None)))

    def _check_closed(self) -> None:
        if self._stack is not None or self._astack is not None:
            raise RuntimeError("this attempt has a transaction already; one can be open at a time")


def claim_of(job: NewJob, retries: int = 0) -> Claim:
    """Return a call as if a worker had claimed it just now."""
    now = datetime.now(UTC)
    expires = job.expires if job.expires_in is None else now + timedelta(seconds=job.expires_in)
    return Claim(
        job.id, job.task, job.queue, job.priority, job.args, job.kwargs, 1 + retries, retries, 0, now, now, expires,
        expires is not None and expires <= now, False, job.headers, job.root_id, job.parent_id, job.ignore_result,
        time_limit=job.time_limit, soft_time_limit=job.soft_time_limit, links=job.links, errbacks=job.errbacks,
        options=job.options,
    )  # fmt: skip


def attempt_eagerly(app: EagerApp, task: Traced, claim: Claim) -> tuple[Outcome, Aftermath | None]:
    """Run one attempt here and now; return what it comes to, with its transaction committed or undone."""
    tracer = build_tracer(task, Where("eager", None, True), always=True)
    if tracer.trace is not None:
        transaction = EagerTransaction(app)
        outcome, aftermath = tracer.trace(claim, transaction)
        try:
            transaction.end(commit=isinstance(outcome, Succeeded))
        except Exception as error:  # a deferred constraint, for example
            outcome = Failed(report(error))
        return outcome, aftermath
    return _in_a_loop(lambda: _aattempt(app, tracer, claim))


async def _aattempt(app: EagerApp, tracer: Tracer, claim: Claim) -> Concluded:
    assert tracer.atrace is not None
    transaction = EagerTransaction(app)
    try:
        outcome, aftermath = await tracer.atrace(claim, transaction)
        try:
            await transaction.aend(commit=isinstance(outcome, Succeeded))
        except Exception as error:
            outcome = Failed(report(error))
        return outcome, aftermath
    finally:
        await app.close_loop()


def _in_a_loop(make: Callable[[], Coroutine[Any, Any, Concluded]]) -> Concluded:
    """Run a coroutine to its end, in a thread of its own where this one has a loop that runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    with ThreadPoolExecutor(1, thread_name_prefix="pgqueue-eager") as executor:
        return executor.submit(copy_context().run, lambda: asyncio.run(make())).result()


def run_eagerly(
    app: EagerApp, task: Traced, job: NewJob, *, retries: int = 0, throw: bool = False, load: Callable[[object], object]
) -> EagerResult[Any]:
    """Run a call to its end here and now: retries really run, without their delays, and so do its links.

    - `retries`: how many there are to have been before.
    - `throw`: raise what it fails with at last.
    - `load`: makes of the stored value what the annotation says.
    """
    claim: Claim | None = claim_of(job, retries)
    around = sys.exception()  # of the caller, who may be handling one
    while claim is not None:
        current = claim
        outcome, aftermath = attempt_eagerly(app, task, current)
        assert aftermath is not None
        aftermath.spared = around
        error, context = aftermath.error, aftermath.context
        trace = None if error is None else ExceptionInfo(error, None).tb
        if isinstance(outcome, Released):  # nobody is there to hand it back to
            outcome = Failed(report(error or RuntimeError("the attempt was given up")))
        claim, outcome = _again(current, outcome)
        aftermath.tell(outcome, acked=True)
        if error is not None and not issubclass(type(error), (Exception, *_OURS)):
            raise BaseException.with_traceback(error, trace)  # Ctrl-C, the failure of a test: the caller's, not a job's
    if isinstance(outcome, Replaced):
        if outcome.plan is not None:
            return _replaced_by_plan(app, current, outcome.plan, throw)
        return app.run_job(_replacement(current, outcome), throw)
    if isinstance(outcome, Failed):
        raised = revive(outcome.error) if error is None or issubclass(type(error), TaskPredicate) else error
        error = raised if raised is not error else BaseException.with_traceback(raised, trace)
    value = load(decode(outcome.value)) if isinstance(outcome, Succeeded) else None
    children = [*context.children, *run_followers(app, _continuations(current, outcome))]
    if throw and isinstance(outcome, Failed) and error is not None:
        raise error
    return EagerResult(
        current.id, value, _STATES[type(outcome)],
        traceback=outcome.error.traceback if isinstance(outcome, Failed) else None,
        name=task.name, args=context.args, kwargs=context.kwargs,
        error=_error(outcome, error), children=children,
    )  # fmt: skip


#: What is no `Exception` and yet no more than the end of an attempt, as in a worker.
_OURS = (SystemExit, asyncio.CancelledError)


_STATES = {
    Succeeded: State.SUCCESS,
    Failed: State.FAILURE,
    Rejected: State.REJECTED,
    Revoked: State.REVOKED,
    Ignored: State.IGNORED,
}


def _again(claim: Claim, outcome: Outcome) -> tuple[Claim | None, Outcome]:
    """Return the claim of the next attempt, if one follows, and the outcome of this one."""
    match outcome:
        case Retried():
            changed = {
                name: getattr(outcome, name)
                for name in (
                    "args", "kwargs", "queue", "priority", "expires", "headers", "options", "ignore_result",
                    "time_limit", "soft_time_limit",
                )
                if getattr(outcome, name) is not None
            }  # fmt: skip
            return claim._replace(retries=claim.retries + 1, attempt=claim.attempt + 1, **changed), outcome
        case Rejected(reason, True, most):
            if claim.requeues < most:
                return claim._replace(requeues=claim.requeues + 1, attempt=claim.attempt + 1), outcome
            return None, Rejected(reason)
    return None, outcome


def _replacement(claim: Claim, asked: Replaced) -> NewJob:
    """Return the call that takes the place of another, with the continuations of both."""
    return NewJob(
        id=claim.id,
        task=asked.task,
        args=asked.args,
        kwargs=asked.kwargs,
        queue=asked.queue or claim.queue,
        priority=claim.priority if asked.priority is None else asked.priority,
        headers=asked.headers or claim.headers,
        root_id=claim.root_id,
        parent_id=claim.parent_id,
        time_limit=asked.time_limit,
        soft_time_limit=asked.soft_time_limit,
        links=_joined(claim.links, asked.links),
        errbacks=_joined(claim.errbacks, asked.errbacks),
        options=asked.options,
    )


def _replaced_by_plan(app: EagerApp, claim: Claim, plan: str, throw: bool) -> EagerResult[Any]:
    """Run the workflow that takes the place of a call; the node with its id has the continuations of both."""
    jobs = [
        job._replace(links=_joined(claim.links, job.links), errbacks=_joined(claim.errbacks, job.errbacks))
        if job.id == claim.id
        else job
        for job in map(job_of, continuations(plan))
    ]
    ended = run_plan(app, jobs)[claim.id]
    if throw:
        ended.maybe_throw()
    return ended


def _joined(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return one or other
    return f"{one.rstrip()[:-1]},{other.lstrip()[1:]}"


def _continuations(claim: Claim, outcome: Outcome) -> list[list[NewJob]]:
    """Return what an outcome leads to: what the database would enqueue in the commit that stores it."""
    match outcome:
        case Succeeded(value):
            calls, first = claim.links, decode(value)
        case Failed() | Rejected():
            calls, first = claim.errbacks, claim.id
        case _:
            return []
    return followers(calls, first, claim.root_id or claim.id, claim.id)


def _error(outcome: Outcome, error: BaseException | None) -> BaseException | None:
    """Return what the handle raises."""
    match outcome:
        case Rejected(reason):
            return TaskRejectedError(reason)
        case Revoked(reason):
            return TaskRevokedError(reason)
    return error if isinstance(outcome, Failed) else None
