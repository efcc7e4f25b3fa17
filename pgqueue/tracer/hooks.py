"""The methods of a task that are called around its attempts, and what they are told of an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from pgqueue.types import ErrorReport

HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class ExceptionInfo:
    """An exception as hooks and receivers are given it, with Celery's names; `str()` is the text of its traceback.

    - `exception`, `type`: the exception and its class. `report`: the same as data, as it is stored.
    - `tb`: the traceback itself; None where another process has found the failure.
    """

    __slots__ = ("exception", "report", "tb")

    #: Whether it was raised outside the task: never here.
    internal = False

    def __init__(self, exception: BaseException, report: ErrorReport | None) -> None:
        self.exception = exception
        self.report = report
        # Not exception.__traceback__, which its class may have made something else.
        self.tb: TracebackType | None = vars(BaseException)["__traceback__"].__get__(exception)

    @property
    def type(self) -> type[BaseException]:
        """The class of the exception."""
        return type(self.exception)

    @property
    def traceback(self) -> str:
        """The text of the traceback, as it is stored."""
        return (self.report.traceback or "") if self.report else ""

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r:.200}>"


class Hooks:
    """What a task may do around its attempts: override what you need; here they do nothing.

    `before_start` belongs to the attempt: what it raises is as if the body had raised it. The others run when the
    outcome is committed, in the same slot, and `self.request` is still the job's; an error of theirs is logged and kept
    with the job, and changes nothing. They are plain functions, for coroutine tasks too.
    """

    def before_start(self, task_id: str, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Called before the body, in the same attempt."""

    def on_success(self, retval: object, task_id: str, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Called when a SUCCESS is committed."""

    def on_failure(
        self,
        exc: BaseException,
        task_id: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        einfo: ExceptionInfo,
    ) -> object:
        """Called when a FAILURE is committed; also, in any worker, when the process of the attempt is gone."""

    def on_retry(
        self,
        exc: BaseException | None,
        task_id: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        einfo: ExceptionInfo,
    ) -> object:
        """Called when a retry is committed; `exc` is what led to it."""

    def after_return(
        self,
        status: str,
        retval: object,
        task_id: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        einfo: ExceptionInfo | None,
    ) -> object:
        """Called after `on_success` and `on_failure`; `retval` is what the task returned or raised."""


def overridden(task: object, name: str) -> bool:
    """Return whether a task has a hook of its own: in its class, or set on it by an annotation."""
    return getattr(getattr(task, name), "__func__", None) is not getattr(Hooks, name)
