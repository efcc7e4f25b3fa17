"""Make the tracer of a task: one closure, specialised once for what the task uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from pgqueue.errors import LeaseLost, WorkerShutdown
from pgqueue.tracer.conclude import conclude_error, conclude_value
from pgqueue.tracer.context import UNGUARDED, Context, Guard, Traced, Transactor, _current
from pgqueue.tracer.prepare import prepare
from pgqueue.types import Claim, Outcome

logger = logging.getLogger("pgqueue.tracer")


class Trace(Protocol):
    """Runs a claim of a function."""

    def __call__(self, claim: Claim, transactor: Transactor | None, guard: Guard = ...) -> Outcome: ...


class AsyncTrace(Protocol):
    """Runs a claim of a coroutine function."""

    def __call__(
        self, claim: Claim, transactor: Transactor | None, guard: Guard = ...
    ) -> Coroutine[Any, Any, Outcome]: ...


@dataclass(frozen=True, slots=True)
class Tracer:
    """Turns claims of one task into outcomes: `trace` for a function, `atrace` for a coroutine function."""

    trace: Trace | None
    atrace: AsyncTrace | None


def build_tracer(task: Traced, hostname: str = "") -> Tracer:
    """Return the tracer of a task, specialised for whether it is bound, transactional, a coroutine.

    - `hostname`: name of the worker, for `self.request.hostname`.

    Neither form raises, but for a cancellation of the coroutine from outside: then nothing happened.

        outcome = build_tracer(task).trace(claim, None)
    """
    return (
        Tracer(None, _build_async(task, hostname)) if task.is_coroutine else Tracer(_build_sync(task, hostname), None)
    )


def _build_sync(task: Traced, hostname: str) -> Trace:
    invoke = _invoke_in_transaction(task) if task.transactional else _invoke(task)

    def trace(claim: Claim, transactor: Transactor | None, guard: Guard = UNGUARDED) -> Outcome:
        context = prepare(task, claim, hostname, transactor)
        if not isinstance(context, Context):
            return context
        token = _current.set(context)
        try:
            try:
                guard.enter()
                value = invoke(context)
            finally:
                guard.leave()
        except BaseException as error:  # SystemExit and KeyboardInterrupt of a task are its failures, not the worker's
            return conclude_error(task, context, _interruption(guard) or error)
        finally:
            _current.reset(token)
        return conclude_value(task, value)

    return trace


def _build_async(task: Traced, hostname: str) -> AsyncTrace:
    invoke = _ainvoke_in_transaction(task) if task.transactional else _invoke(task)

    async def atrace(claim: Claim, transactor: Transactor | None, guard: Guard = UNGUARDED) -> Outcome:
        context = prepare(task, claim, hostname, transactor)
        if not isinstance(context, Context):
            return context
        cancels = _cancels()
        token = _current.set(context)
        try:
            try:
                guard.aenter()
                value = await invoke(context)
            finally:
                guard.leave()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and guard.interruption is not None:
                return conclude_error(task, context, guard.interruption)
            # Counted from before: an attempt that called cancel() itself must not look like a stop to the next one.
            if isinstance(error, asyncio.CancelledError) and _cancels() > cancels:
                raise
            return conclude_error(task, context, _interruption(guard) or error)
        finally:
            _current.reset(token)
        return conclude_value(task, value)

    return atrace


def _interruption(guard: Guard) -> BaseException | None:
    """Return what the worker has interrupted an attempt with for its own sake: it goes back, whatever the task says."""
    return guard.interruption if isinstance(guard.interruption, WorkerShutdown | LeaseLost) else None


def _cancels() -> int:
    """Return how often the coroutine's asyncio task has been asked to end."""
    current = asyncio.current_task()
    return 0 if current is None else current.cancelling()


def _invoke(task: Traced) -> Callable[[Context], Any]:
    run = task.run
    if task.bind:
        return lambda context: run(task, *context.args, **context.kwargs)
    return lambda context: run(*context.args, **context.kwargs)


def _invoke_in_transaction(task: Traced) -> Callable[[Context], Any]:
    run, first = task.run, (task,) if task.bind else ()

    def invoke(context: Context) -> Any:
        with TransactionBlock(context) as connection:
            return run(*first, connection, *context.args, **context.kwargs)

    return invoke


def _ainvoke_in_transaction(task: Traced) -> Callable[[Context], Any]:
    run, first = task.run, (task,) if task.bind else ()

    async def invoke(context: Context) -> Any:
        async with TransactionBlock(context) as connection:
            return await run(*first, connection, *context.args, **context.kwargs)

    return invoke


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
