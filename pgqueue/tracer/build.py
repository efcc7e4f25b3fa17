"""Make the tracer of a task: one closure, specialised once for what the task uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pgqueue.errors import LeaseLost, WorkerShutdown
from pgqueue.reports import clear_frames, report
from pgqueue.signals import task_postrun, task_prerun, task_rejected, task_success
from pgqueue.tracer.aftermath import Aftermath, Listeners
from pgqueue.tracer.conclude import conclude_error, conclude_value
from pgqueue.tracer.context import UNGUARDED, Context, Guard, Traced, Transactor, _current
from pgqueue.tracer.hooks import overridden
from pgqueue.tracer.prepare import Refusal, Where, prepare
from pgqueue.types import Claim, Failed, Outcome, Succeeded

logger = logging.getLogger("pgqueue.tracer")

#: What an attempt comes to, and what is to be said about it when that is committed; None: nobody wants to hear.
Concluded: TypeAlias = tuple[Outcome, Aftermath | None]


class Trace(Protocol):
    """Runs a claim of a function."""

    def __call__(self, claim: Claim, transactor: Transactor | None, guard: Guard = ...) -> Concluded: ...


class AsyncTrace(Protocol):
    """Runs a claim of a coroutine function."""

    def __call__(
        self, claim: Claim, transactor: Transactor | None, guard: Guard = ...
    ) -> Coroutine[Any, Any, Concluded]: ...


@dataclass(frozen=True, slots=True)
class Tracer:
    """Turns claims of one task into outcomes: `trace` for a function, `atrace` for a coroutine function."""

    trace: Trace | None
    atrace: AsyncTrace | None
    task: Traced

    def keeps(self, claim: Claim, outcome: Outcome) -> bool:
        """Return whether a result is to be stored."""
        ignored = claim.ignore_result
        if ignored is None:
            ignored = self.task.options.ignore_result
        return not ignored or (self.task.options.keeps_errors and isinstance(outcome, Failed))


def build_tracer(task: Traced, where: Where = Where(), *, always: bool = False) -> Tracer:  # noqa: B008 - a value
    """Return the tracer of a task, specialised for what it uses: hooks, a transaction, a `__call__` of its own.

    - `where`: which worker it belongs to, for `self.request`.
    - `always`: give an aftermath with every outcome, and leave the exception whole until it is told.

    Neither form raises, but for a cancellation of the coroutine from outside: then nothing happened.

        outcome, aftermath = build_tracer(task).trace(claim, None)
    """
    conclude = _Conclusions(task, always=always)
    if task.is_coroutine:
        return Tracer(None, _build_async(task, where, conclude), task)
    return Tracer(_build_sync(task, where, conclude), None, task)


def _build_sync(task: Traced, where: Where, conclude: _Conclusions) -> Trace:
    invoke = _with_before_start(task, _invoke_in_transaction(task) if task.transactional else _invoke(task))
    begin, end = _current.set, _current.reset

    def trace(claim: Claim, transactor: Transactor | None, guard: Guard = UNGUARDED) -> Concluded:
        context = prepare(task, claim, where, transactor)
        if isinstance(context, Refusal):
            return conclude.refusal(context)
        token = begin(context)
        try:
            if task_prerun.receivers and task_prerun.heard_by(task):
                _begin(task, context)
            try:
                guard.enter()
                value = invoke(context)
            finally:
                guard.leave()
        except BaseException as error:  # SystemExit and KeyboardInterrupt of a task are its failures, not the worker's
            return conclude.error(context, _interruption(guard) or error)
        finally:
            end(token)
        return conclude.value(context, value)

    return trace


def _build_async(task: Traced, where: Where, conclude: _Conclusions) -> AsyncTrace:
    invoke = _awith_before_start(task, _ainvoke_in_transaction(task) if task.transactional else _invoke(task))

    async def atrace(claim: Claim, transactor: Transactor | None, guard: Guard = UNGUARDED) -> Concluded:
        context = prepare(task, claim, where, transactor)
        if isinstance(context, Refusal):
            return conclude.refusal(context)
        cancels = _cancels()
        token = _current.set(context)
        try:
            if task_prerun.receivers and task_prerun.heard_by(task):
                _begin(task, context)
            try:
                guard.aenter()
                value = await invoke(context)
            finally:
                guard.leave()
        except BaseException as error:
            cancelled = issubclass(type(error), asyncio.CancelledError)  # asks its class nothing
            if cancelled and guard.interruption is not None:
                # It was never raised itself: where the coroutine was is known by the cancellation.
                return conclude.error(context, guard.interruption.with_traceback(error.__traceback__))
            # Counted from before: an attempt that called cancel() itself must not look like a stop to the next one.
            if cancelled and _cancels() > cancels:
                _end(task, context)
                raise
            return conclude.error(context, _interruption(guard) or error)
        finally:
            _current.reset(token)
        return conclude.value(context, value)

    return atrace


class _Conclusions:
    """Value, exception or refusal to outcome and aftermath. What nobody wants to hear of is dropped at once."""

    def __init__(self, task: Traced, *, always: bool) -> None:
        self._task = task
        self._listeners = Listeners(task)
        self._always = always
        #: Whether a success is only told to receivers and to whom it concerns in this attempt: the rule, made cheap.
        self._plain = not (always or self._listeners.success)

    def value(self, context: Context, value: object) -> Concluded:
        if context.asked is not None:  # by retry(throw=False): one job cannot both end and go on
            return self.error(context, context.asked)
        try:
            outcome = conclude_value(self._task, value)
        except BaseException as error:  # a value's own code has run, such as a model's; it may raise anything
            return self._with_error(context, Failed(report(error)), error)
        if self._plain and not (
            task_postrun.receivers or task_success.receivers or context.unheard or context.transacts
        ):
            return outcome, None
        if self._wanted(context, outcome):
            return outcome, Aftermath(self._task, context, value)
        return outcome, None

    def error(self, context: Context, error: BaseException) -> Concluded:
        return self._with_error(context, conclude_error(self._task, context, error), error)

    def refusal(self, refusal: Refusal) -> Concluded:
        outcome, context, error, readable = refusal
        if not readable and task_rejected.receivers:
            task_rejected.send(self._task, message=context, exc=error)
        return self._with_error(context, outcome, error)

    def _with_error(self, context: Context, outcome: Outcome, error: BaseException | None) -> Concluded:
        if self._wanted(context, outcome):
            return outcome, Aftermath(self._task, context, error=error)
        if error is not None:
            clear_frames(error)
        return outcome, None

    def _wanted(self, context: Context, outcome: Outcome) -> bool:
        if self._always or context.unheard or self._listeners.want(outcome):
            return True
        # A COMMIT may be refused: then it is a failure.
        return context.transacts and isinstance(outcome, Succeeded) and self._listeners.failure


def _begin(task: Traced, context: Context) -> None:
    context.begun = True
    answers = task_prerun.send(task, task_id=context.id, task=task, args=context.args, kwargs=context.kwargs)
    for _, answer in answers:
        if isinstance(answer, BaseException):
            context.unheard += ((task_prerun.name, answer),)


def _end(task: Traced, context: Context) -> None:
    """Send what pairs with `task_prerun` where an attempt was cancelled as if it had never been."""
    if context.begun:
        task_postrun.send(
            task, task_id=context.id, task=task, args=context.args, kwargs=context.kwargs, retval=None, state=None
        )


def _interruption(guard: Guard) -> BaseException | None:
    """Return what the worker has interrupted an attempt with for its own sake: it goes back, whatever the task says."""
    return guard.interruption if isinstance(guard.interruption, WorkerShutdown | LeaseLost) else None


def _cancels() -> int:
    """Return how often the coroutine's asyncio task has been asked to end."""
    current = asyncio.current_task()
    return 0 if current is None else current.cancelling()


def _function(task: Traced) -> Callable[..., Any]:
    """Return what is called: `run`, or the task itself if its class has a `__call__` of its own."""
    return task if task.has_own_call else task.run


def _invoke(task: Traced) -> Callable[[Context], Any]:
    function = _function(task)
    if not task.has_own_call:
        return lambda context: function(*context.args, **context.kwargs)

    def invoke(context: Context) -> Any:
        context.entering = True
        return function(*context.args, **context.kwargs)

    return invoke


def _invoke_in_transaction(task: Traced) -> Callable[[Context], Any]:
    function = _function(task)

    def invoke(context: Context) -> Any:
        with TransactionBlock(context) as connection:
            context.entering = task.has_own_call
            return function(connection, *context.args, **context.kwargs)

    return invoke


def _ainvoke_in_transaction(task: Traced) -> Callable[[Context], Any]:
    function = _function(task)

    async def invoke(context: Context) -> Any:
        async with TransactionBlock(context) as connection:
            context.entering = task.has_own_call
            return await function(connection, *context.args, **context.kwargs)

    return invoke


def _with_before_start(task: Traced, invoke: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """Put the hook before the body, in the same attempt."""
    if not overridden(task, "before_start"):
        return invoke
    hook: Callable[..., object] = task.before_start  # type: ignore[attr-defined]

    def started(context: Context) -> Any:
        hook(context.id, context.args, context.kwargs)
        return invoke(context)

    return started


def _awith_before_start(task: Traced, invoke: Callable[[Context], Any]) -> Callable[[Context], Any]:
    started = _with_before_start(task, invoke)
    if started is invoke:
        return invoke

    async def astarted(context: Context) -> Any:
        return await started(context)

    return astarted


class TransactionBlock:
    """The transaction of an attempt, for `with` and `async with`.

    Left by an exception it is rolled back. Left in peace it stays open: it commits together with the
    acknowledgement when the task has returned, and everything in it is rolled back if the task fails after all.
    A rollback that fails is logged: the connection is gone, so the server has rolled back, and how the attempt
    ends is decided by the exception of the body.
    """

    __slots__ = ("_claim", "_transactor")

    def __init__(self, context: Context) -> None:
        if context.transactor is None or context.claim is None:
            raise RuntimeError("a transaction that commits with the acknowledgement needs a worker around the task")
        self._transactor = context.transactor
        self._claim = context.claim
        context.transacts = True

    def __enter__(self) -> Any:
        return self._transactor.begin(self._claim)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            try:
                self._transactor.rollback()
            except Exception as failed:
                logger.warning("job %s: its transaction could not be rolled back: %s", self._claim.id, failed)

    async def __aenter__(self) -> Any:
        return await self._transactor.abegin(self._claim)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            try:
                await self._transactor.arollback()
            except Exception as failed:
                logger.warning("job %s: its transaction could not be rolled back: %s", self._claim.id, failed)
