"""The handle on a call that was run here and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pgqueue.errors import TaskFailed, TaskRejectedError, TaskRevokedError
from pgqueue.result import AsyncResult, Before
from pgqueue.statements import Status
from pgqueue.types import ErrorReport, State
from pgqueue.waiting import BLANK, Waiting

R = TypeVar("R")


class EagerResult(AsyncResult[R]):
    """What `apply` returns: like an AsyncResult, but ready from the beginning and in no database.

    - `id`: id of the call.
    - `ret_value`: what it returned; or the exception, as Celery has it, if it failed and `error` is None.
    - `state`: how it ended.
    - `traceback`: of the failure, as text.
    - `name`, `args`, `kwargs`: of the task and the call.
    - `error`: the exception itself, which `get` raises.
    - `children`: handles on what it called in its turn.
    - `parent`: the handle on the call that it continues.

        add.apply((2, 3)).get()     # 5

    In a state that is no end (RETRY, for example) `get` returns None.
    """

    def __init__(
        self,
        id: str,
        ret_value: R | BaseException | None,
        state: State | str,
        traceback: str | None = None,
        name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        error: BaseException | None = None,
        children: Sequence[AsyncResult[Any]] = (),
        parent: Before | None = None,
    ) -> None:
        super().__init__(id, cast(Waiting, None), parent=parent)  # nothing here asks for an app
        self._final = BLANK._replace(state=state, task=name)
        self._returned = ret_value
        self._raised = error if error is not None else ret_value if isinstance(ret_value, BaseException) else None
        self._traceback = traceback
        self._args = args
        self._kwargs = kwargs
        self._children = list(children)

    @property
    def traceback(self) -> str | None:
        """The traceback of the failure, as text."""
        return self._traceback

    @property
    def args(self) -> list[Any] | None:
        """Positional arguments of the call."""
        return None if self._args is None else list(self._args)

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """Keyword arguments of the call."""
        return None if self._kwargs is None else dict(self._kwargs)

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """What the call called in its turn."""
        return list(self._children)

    @property
    def parent(self) -> AsyncResult[Any] | Before | None:
        """The call that this one continues, as far as it was given."""
        return self._parent

    @property
    def root(self) -> AsyncResult[Any] | None:
        """The first of the calls that this one continues."""
        line = [handle for handle in self._line() if isinstance(handle, AsyncResult)]
        return line[-1]

    def ready(self) -> bool:
        """Return True."""
        return True

    def forget(self) -> bool:
        """Return False: nothing is stored."""
        return False

    def revoke(
        self, terminate: bool = False, signal: object = None, wait: bool = False, timeout: float | None = None
    ) -> State | str:
        """Say from now on that the state is REVOKED; what has been done is done. The options have no meaning here."""
        self._final = BLANK._replace(state=State.REVOKED, task=self.name)
        return State.REVOKED

    def _error(self, status: Status) -> BaseException | None:
        match status.state:
            case State.FAILURE:
                # Celery's tests make results of a failure without an exception.
                if self._raised is not None:  # not `or`: an exception may be false
                    return self._raised
                return TaskFailed(ErrorReport("Exception", "builtins", str(self._returned)))
            case State.REVOKED:
                return self._raised if isinstance(self._raised, TaskRevokedError) else TaskRevokedError("revoked")
            case State.REJECTED:
                return self._raised if isinstance(self._raised, TaskRejectedError) else TaskRejectedError("rejected")
        return None

    def _value(self, status: Status) -> object:
        return self._returned if status.state == State.SUCCESS else None

    def _result(self, status: Status) -> object:
        error = self._error(status)
        if error is not None:
            return error
        return self._returned if self._raised is None else self._raised
