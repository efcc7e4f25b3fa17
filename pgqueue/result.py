"""The handle on a job: where it is, what it returned, and waiting for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, cast

from pgqueue.database import Database, Listener
from pgqueue.errors import (
    PgQueueError,
    ResultTimeout,
    TaskFailed,
    TaskRejectedError,
    TaskRevokedError,
    TimeLimitExceeded,
    UnknownJob,
    WorkerLostError,
)
from pgqueue.ids import check_id, new_id
from pgqueue.serialization import decode, decode_error
from pgqueue.statements import Status
from pgqueue.tracer import current_context
from pgqueue.types import READY_STATES, State

R = TypeVar("R")

#: Seconds between two looks at a result that nobody announces: the first, the factor, the longest.
_FIRST_LOOK, _SLOWER, _LONGEST_LOOK = 0.02, 1.5, 1.0


class Waiting(Protocol):
    """What a handle needs of its app."""

    @property
    def database(self) -> Database: ...
    @property
    def listener(self) -> Listener: ...


class AsyncResult(Generic[R]):
    """The handle on one job, by its id; `delay` and `apply_async` return it at once.

    - `id`: id of the job.
    - `app`: the app whose database has it.
    - `convert`: makes of the stored value what the task's annotation says; default: leaves it as stored.
    - `created`: False if a job with this id or unique key was there already.

        result = add.delay(2, 3)
        result.get(timeout=10)      # 5

    A ready state is read once and remembered; the others are read anew each time.
    """

    def __init__(
        self,
        id: str,
        app: Waiting,
        *,
        convert: Callable[[object], object] | None = None,
        created: bool = True,
        ignored: bool = False,
    ) -> None:
        self.id = check_id(id, "id")
        self.created = created
        self.ignored = ignored
        self._app = app
        self._convert = convert
        self._final: Status | None = None

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """PENDING, STARTED, RETRY; SUCCESS, FAILURE, REVOKED, REJECTED, IGNORED; UNKNOWN for an id nobody has."""
        return State(self._look().state)

    status = state

    @property
    def result(self) -> Any:
        """What the task returned, or the exception that `get()` would raise; None if it is not ready."""
        status = self._look()
        error = _error(self.id, status)
        return error if error is not None else self._value(status)

    @property
    def traceback(self) -> str | None:
        """The traceback of a failure, or of the attempt that led to a retry, as text."""
        status = self._look()
        return decode_error(status.error).traceback if status.error else None

    @property
    def retries(self) -> int:
        """How many repeats the task has asked for."""
        return self._look().retries or 0

    @property
    def date_done(self) -> datetime | None:
        """When it ended, by the clock of the database."""
        return self._look().finished_at

    @property
    def name(self) -> str | None:
        """Name of the task."""
        return self._look().task

    @property
    def queue(self) -> str | None:
        """Queue of the job."""
        return self._look().queue

    @property
    def worker(self) -> str | None:
        """Id of the worker that has or had it."""
        return self._look().worker

    def ready(self) -> bool:
        """Return whether it has ended, however."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        """Return whether it has ended as SUCCESS."""
        return self.state is State.SUCCESS

    def failed(self) -> bool:
        """Return whether it has ended as FAILURE."""
        return self.state is State.FAILURE

    # -- waiting ---------------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None, *, propagate: bool = True, disable_sync_subtasks: bool = True) -> R:
        """Wait for the result and return it.

        - `timeout`: seconds to wait at most; None (default) for as long as it takes.
        - `propagate`: raise what the task ended with (default), or return that exception.
        - `disable_sync_subtasks`: refuse to wait inside a task, where all slots may wait for each other.

        Raises TaskFailed, WorkerLostError, TimeLimitExceeded, TaskRevokedError or TaskRejectedError for how it
        ended, ResultTimeout if it has not, UnknownJob if nobody knows the id (its enqueueing may not be committed yet).

            add.delay(2, 3).get(timeout=10)     # 5
        """
        self._check_wait(disable_sync_subtasks)
        if self.ignored:
            return cast(R, None)
        status = self._look()
        if status.state not in READY_STATES and status.state != State.UNKNOWN and timeout != 0:
            status = self._wait(timeout)
        return self._answer(status, propagate, timeout)

    async def aget(
        self, timeout: float | None = None, *, propagate: bool = True, disable_sync_subtasks: bool = True
    ) -> R:
        """Wait for the result as `get` does, without blocking the event loop."""
        self._check_wait(disable_sync_subtasks)
        if self.ignored:
            return cast(R, None)
        status = await self._alook()
        if status.state not in READY_STATES and status.state != State.UNKNOWN and timeout != 0:
            status = await self._await(timeout)
        return self._answer(status, propagate, timeout)

    # -- changing --------------------------------------------------------------------------------------------

    def forget(self) -> bool:
        """Delete the stored result; return whether there was one."""
        self._final = None
        database = self._app.database
        return database.run(database.statements.forget(self.id))[0]

    def revoke(self) -> State:
        """Revoke the job, durably: a waiting one ends as REVOKED now, a running one is not started again.

        Returns the state that it has afterwards.
        """
        database = self._app.database
        return State(database.run(database.statements.revoke(self.id))[0])

    def __repr__(self) -> str:
        return f"<AsyncResult: {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    # -- inside ----------------------------------------------------------------------------------------------

    def _look(self) -> Status:
        if self._final is None:
            database = self._app.database
            return self._remember(database.run(database.statements.status(self.id))[0])
        return self._final

    async def _alook(self) -> Status:
        if self._final is None:
            database = self._app.database
            return self._remember((await database.arun(database.statements.status(self.id)))[0])
        return self._final

    def _remember(self, status: Status) -> Status:
        if status.state in READY_STATES:
            self._final = status
        return status

    def _wait(self, timeout: float | None) -> Status:
        database, call, told = self._app.database, new_id(), threading.Event()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._app.listener.subscribe(self.id, told.set):
            database.run(database.statements.wait_for(self.id, call, timeout or 86_400.0))
            try:
                pause = _FIRST_LOOK
                while True:
                    status = self._look()
                    left = _left(deadline)
                    if status.state in READY_STATES or status.state == State.UNKNOWN or left <= 0:
                        return status
                    if told.wait(min(pause, left)):
                        told.clear()
                    pause = min(pause * _SLOWER, _LONGEST_LOOK)
            finally:
                database.run(database.statements.stop_waiting(self.id, call))

    async def _await(self, timeout: float | None) -> Status:
        database, call, told = self._app.database, new_id(), asyncio.Event()
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._app.listener.subscribe(self.id, lambda: _tell(loop, told)):
            await database.arun(database.statements.wait_for(self.id, call, timeout or 86_400.0))
            try:
                pause = _FIRST_LOOK
                while True:
                    status = await self._alook()
                    left = _left(deadline)
                    if status.state in READY_STATES or status.state == State.UNKNOWN or left <= 0:
                        return status
                    try:
                        # Not wait_for, which in Python 3.11 swallows a cancellation that meets the notification.
                        async with asyncio.timeout(min(pause, left)):
                            await told.wait()
                        told.clear()
                    except TimeoutError:
                        pass
                    pause = min(pause * _SLOWER, _LONGEST_LOOK)
            finally:
                await database.arun(database.statements.stop_waiting(self.id, call))

    def _answer(self, status: Status, propagate: bool, timeout: float | None) -> R:
        if status.state not in READY_STATES and status.state != State.UNKNOWN:
            raise ResultTimeout(
                f"job {self.id} is {status.state} after {timeout} s; it goes on, get() may be called again"
            )
        error = _error(self.id, status)
        if error is None:
            return cast(R, self._value(status))
        if propagate or status.state == State.UNKNOWN:
            raise error
        return cast(R, error)

    def _value(self, status: Status) -> object:
        value = decode(status.value) if status.value is not None else None
        return self._convert(value) if self._convert is not None and status.state == State.SUCCESS else value

    @staticmethod
    def _check_wait(disabled: bool) -> None:
        around = current_context()
        if disabled and around is not None and not around.called_directly:
            raise RuntimeError(
                "get() inside a task waits with a slot that the awaited job may need; let a continuation take the "
                "result, or pass disable_sync_subtasks=False"
            )


def _left(deadline: float | None) -> float:
    return float("inf") if deadline is None else deadline - time.monotonic()


def _tell(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(told.set)
    except RuntimeError:
        pass  # the loop closed between the last look and this notification


#: What ends an attempt without the task having a say.
_FROM_OUTSIDE: dict[str, type[PgQueueError]] = {
    "WorkerLostError": WorkerLostError,
    "TimeLimitExceeded": TimeLimitExceeded,
}


def _error(job: str, status: Status) -> PgQueueError | None:
    """Return the exception of a state that propagates; a closed set of classes, never one that a row names."""
    match status.state:
        case State.FAILURE:
            error = decode_error(status.error or '{"type": "Exception", "module": "builtins", "message": ""}')
            outside = _FROM_OUTSIDE.get(error.type) if error.module == "pgqueue.errors" else None
            return TaskFailed(error) if outside is None else outside(error.message)
        case State.REVOKED:
            return TaskRevokedError(decode_error(status.error).message if status.error else "revoked")
        case State.REJECTED:
            return TaskRejectedError(decode_error(status.error).message if status.error else "rejected")
        case State.UNKNOWN:
            return UnknownJob(
                f"no job and no result has the id {job}: it was never enqueued, its transaction is not committed, "
                "its result is ignored, or it has expired"
            )
    return None
