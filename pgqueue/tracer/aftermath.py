"""What is said about an attempt when its outcome is committed: hooks of the task, and signals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from pgqueue.errors import Reject, Retry
from pgqueue.reports import clear_frames, report, revive
from pgqueue.serialization.reports import name_of
from pgqueue.signals import (
    Signal,
    task_failure,
    task_internal_error,
    task_postrun,
    task_retry,
    task_revoked,
    task_success,
)
from pgqueue.tracer.context import Context, Traced, entered
from pgqueue.tracer.hooks import ExceptionInfo, overridden
from pgqueue.types import (
    ErrorReport,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Revoked,
    State,
    Succeeded,
)

logger = logging.getLogger("pgqueue.tracer")

T = TypeVar("T")


class Listeners:
    """Whether somebody wants to hear of the outcomes of a task: its own hooks, looked up once, or receivers."""

    def __init__(self, task: Traced) -> None:
        self._task = task
        after = overridden(task, "after_return")
        self.success = after or overridden(task, "on_success")
        self._failure = after or overridden(task, "on_failure")
        self._retry = overridden(task, "on_retry")
        self._once = not task.options.acks_late

    def want(self, outcome: Outcome) -> bool:
        """Return whether anybody has to be told of an outcome."""
        if self.hears(task_postrun):
            return True
        match outcome:
            case Succeeded():
                return self.success or self.hears(task_success)
            case Failed():
                return self.failure
            case Retried():
                return self._retry or self.hears(task_retry)
            case Rejected(requeue=False):
                return self.hears(task_failure)
            case Revoked():
                return self.hears(task_revoked)
            case Released():  # one that may start once cannot go back: it ends as a failure
                return self._once and self.failure
        return False

    @property
    def failure(self) -> bool:
        """Whether anybody has to be told of a failure that others find."""
        return self._failure or self.hears(task_failure)

    def hears(self, signal: Signal) -> bool:
        """Return whether anybody hears a signal of this task."""
        return bool(signal.receivers) and signal.heard_by(self._task)


class Aftermath:
    """An attempt whose outcome is not committed yet, and what is to be said about it then.

    - `value`: what the task returned; `error`: what it raised.
    - `spared`: an exception of whoever runs the attempt eagerly, which must stay whole.
    - `begun`: whether `task_prerun` was sent, so that `task_postrun` has to be.
    """

    __slots__ = ("_errors", "begun", "context", "error", "spared", "task", "value")

    def __init__(
        self, task: Traced, context: Context, value: object = None, error: BaseException | None = None
    ) -> None:
        self.task = task
        self.context = context
        self.value = value
        self.error = error
        self.begun = context.begun
        self.spared: BaseException | None = None
        self._errors: list[tuple[str, ErrorReport]] = []

    def tell(self, outcome: Outcome, acked: bool) -> list[tuple[str, ErrorReport]]:
        """Call the hooks and receivers; return what failed among them: the name of the hook or signal, and how.

        - `outcome`: what was committed: not always what the tracer had come to, since a COMMIT may be refused.
        - `acked`: False if the lease was lost; then nothing has happened, and only `task_postrun` is sent.
        """
        try:
            with entered(self.context):
                for name, error in self.context.unheard:
                    self._note(name, error)
                self.context.unheard = ()
                state, retval = self._told(outcome) if acked else (None, None)
                if self.begun:
                    self._send(
                        task_postrun,
                        task_id=self.context.id, task=self.task, args=self.context.args, kwargs=self.context.kwargs,
                        retval=retval, state=state,
                    )  # fmt: skip
            return self._errors
        finally:
            if self.error is not None:
                clear_frames(self.error, self.spared)
                self.error = None

    # -- inside ----------------------------------------------------------------------------------------------

    def _told(self, outcome: Outcome) -> tuple[str | None, object]:
        """Tell of an outcome; return the state and the value for `task_postrun`."""
        match outcome:
            case Succeeded():
                self._call("on_success", self.value, *self._job)
                self._send(task_success, result=self.value)
                self._call("after_return", State.SUCCESS.value, self.value, *self._job, None)
                return State.SUCCESS.value, self.value
            case Failed(error):
                return State.FAILURE.value, self._failed(error)
            case Retried(error):
                return State.RETRY.value, self._retried(outcome, error)
            case Rejected(reason, requeue):
                rejected = self.error if _is(self.error, Reject) else Reject(reason, requeue)
                if not requeue:
                    self._send_failure(rejected, ExceptionInfo(rejected, None))
                return State.REJECTED.value, rejected
            case Ignored() | Replaced():
                return State.IGNORED.value, self.error
            case Revoked(reason):
                expired = reason == "expired"
                self._send(task_revoked, request=self.context, terminated=False, signum=None, expired=expired)
                return State.REVOKED.value, None
        return None, None

    def _failed(self, error: ErrorReport) -> BaseException:
        raised = self.error
        if raised is None or name_of(type(raised)) != error.type:  # not what it raised, but what has become of it
            raised = revive(error)
        info = ExceptionInfo(raised, error)
        self._call("on_failure", raised, *self._job, info)
        self._send_failure(raised, info)
        self._call("after_return", State.FAILURE.value, raised, *self._job, info)
        return raised

    def _retried(self, outcome: Retried, error: ErrorReport | None) -> Retry:
        asked = self.error
        if not _is(asked, Retry):
            asked = Retry(exc=asked, countdown=outcome.countdown, eta=outcome.eta)
        info = ExceptionInfo(asked.exc if _is(asked.exc, BaseException) else asked, error)
        self._call("on_retry", asked.exc, *self._job, info)
        self._send(task_retry, request=self.context, reason=asked, einfo=info)
        return asked

    @property
    def _job(self) -> tuple[str | None, object, object]:
        return self.context.id, self.context.args, self.context.kwargs

    def _send_failure(self, error: BaseException, info: ExceptionInfo) -> None:
        self._send(
            task_failure,
            task_id=self.context.id, exception=error, args=self.context.args, kwargs=self.context.kwargs,
            traceback=info.tb, einfo=info,
        )  # fmt: skip

    def _call(self, name: str, *args: Any) -> None:
        """Call a hook, if the task has one of its own."""
        if overridden(self.task, name):
            hook: Callable[..., object] = getattr(self.task, name)
            try:
                hook(*args)
            except BaseException as error:  # a slot must never die of a hook
                self._note(name, error, f"{name} of %s[%s] failed: %s")

    def _send(self, signal: Signal, **payload: object) -> None:
        if not signal.receivers:
            return
        try:
            answers = signal.send(self.task, **payload)
        except BaseException as error:
            self._note(signal.name, error, f"a receiver of {signal.name} for %s[%s] failed: %s")
            return
        for _, answer in answers:
            if _is(answer, BaseException):
                self._note(signal.name, answer)  # send has logged it

    def _note(self, name: str, error: BaseException, said: str | None = None) -> None:
        found = report(error)
        if said is not None:  # the text of the report: logging cannot show an exception whose class refuses to tell
            logger.error(said, self.task.name, self.context.id, (found.traceback or found.type).rstrip())
        self._errors.append((name, found))
        if task_internal_error.receivers and name != task_internal_error.name:
            info = ExceptionInfo(error, found)
            self._send(
                task_internal_error,
                task_id=self.context.id, args=self.context.args, kwargs=self.context.kwargs, request=self.context,
                exception=error, traceback=info.tb, einfo=info,
            )  # fmt: skip
        clear_frames(error, self.spared)


def _is(value: object, kind: type[T]) -> TypeGuard[T]:
    """Return whether a value is of a class, without asking it: `isinstance` reads `__class__`, which may raise."""
    return issubclass(type(value), kind)
