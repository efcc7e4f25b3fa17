"""The handle on a job: where it is, what it returned, waiting for it, and the jobs that it enqueued."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from pgqueue.errors import IncompleteStream, InvalidOption, TaskRejectedError, TaskRevokedError, UnknownJob
from pgqueue.reports import revive
from pgqueue.serialization import decode, decode_error
from pgqueue.stamps import stamps_of
from pgqueue.statements import Status
from pgqueue.tracer import current_context
from pgqueue.types import READY_STATES, ErrorReport, State
from pgqueue.waiting import LONGEST_LOOK, Awaited, Found, Terms, Waiting, awatch, watch

R = TypeVar("R")

#: What `as_tuple` gives: ((id, the same of the parent), None, or those of the members of a group).
Tuple: TypeAlias = "tuple[tuple[str, Any], list[Any] | None]"

_joining: ContextVar[bool] = ContextVar("pgqueue_joining", default=False)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let this thread or coroutine wait for results inside a task, where `get` otherwise refuses.

    A slot that waits is a slot less for what it waits for: a worker whose slots all wait stands still.

        with allow_join_result():
            part.delay(1).get(timeout=10)
    """
    token = _joining.set(True)
    try:
        yield
    finally:
        _joining.reset(token)


def refuse_inside_task(disable_sync_subtasks: bool) -> None:
    """Raise RuntimeError inside a task, unless waiting is allowed there."""
    around = current_context()
    if disable_sync_subtasks and around is not None and not around.called_directly and not _joining.get():
        raise RuntimeError(
            "get() inside a task waits with a slot that the awaited job may need; let a continuation take the "
            "result, or pass disable_sync_subtasks=False"
        )


@dataclass(frozen=True, slots=True)
class AttemptError:
    """What went wrong in an attempt that did not end the job, or in a hook after one.

    - `attempt`: number of the attempt.
    - `at`: when, by the clock of the database.
    - `state`: RETRY, CRASH (its worker died), REQUEUE, or HOOK.
    - `error`: the exception as data.
    - `hook`: name of the hook or signal that raised it.
    """

    attempt: int
    at: datetime
    state: str
    error: ErrorReport
    hook: str | None = None


class Before(Protocol):
    """What a handle may continue: another one, or that of a group."""

    id: str

    @property
    def parent(self) -> Any: ...
    @property
    def _parent(self) -> Any: ...
    @property
    def get(self) -> Callable[..., Any]: ...
    @property
    def ready(self) -> Callable[[], bool]: ...
    @property
    def as_tuple(self) -> Callable[[], Tuple]: ...
    def _own_ids(self) -> list[str]: ...
    def _tuple(self, parent: Any) -> Tuple: ...


class AsyncResult(Awaited, Generic[R]):
    """The handle on one job, by its id; `delay` and `apply_async` return it at once.

    - `id`: id of the job; `task_id` is the same.
    - `app`: the app whose database has it.
    - `parent`: the handle on the job that this one continues, after whose success it is enqueued; of a group, if it
      is called when all of that have succeeded.
    - `convert`: makes of the stored value what the task's annotation says; default: leaves it as stored.
    - `created`: False if a job with this id or unique key was there already.
    - `ignored`: whether the result is not kept, so that `get` returns None at once.

        result = add.delay(2, 3)
        result.get(timeout=10)      # 5

    A ready state is read once and remembered; the others are read anew each time.
    """

    #: Celery's question whether many are fetched in one go; here each is looked at by itself.
    supports_native_join = False

    def __init__(
        self,
        id: str,
        app: Waiting,
        *,
        parent: Before | None = None,
        convert: Callable[[object], object] | None = None,
        created: bool = True,
        ignored: bool = False,
    ) -> None:
        super().__init__(id, app, parent if isinstance(parent, Awaited) else None, ignored)
        self._parent = parent
        self.created = created
        self._convert = convert

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """Celery's name of `id`."""
        return self.id

    @property
    def state(self) -> State | str:
        """Where the job is: a `State` (UNKNOWN for an id nobody has), or the text that the task gave `update_state`."""
        return _state(self._look().state)

    status = state

    @property
    def result(self) -> Any:
        """What the task returned, or the exception that `get()` would raise, or that led to a retry.

        In a state that the task gave itself: the meta that it gave with it. Otherwise None; STARTED too: who runs it
        says `worker`.
        """
        return self._result(self._look())

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failure, or of the attempt that led to a retry, as text."""
        status = self._look()
        return decode_error(status.error).traceback if status.error else None

    @property
    def errors(self) -> list[AttemptError]:
        """What went wrong in the attempts before the last one, and in hooks: the oldest first, at most twenty."""
        return [_attempt_error(entry) for entry in json.loads(self._look().history or "[]")]

    @property
    def name(self) -> str | None:
        """Name of the task."""
        return self._look().task

    @property
    def args(self) -> list[Any] | None:
        """Positional arguments of the job."""
        return cast("list[Any] | None", _decoded(self._look().args))

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """Keyword arguments of the job."""
        return cast("dict[str, Any] | None", _decoded(self._look().kwargs))

    @property
    def headers(self) -> dict[str, Any] | None:
        """What the caller sent along; None if nothing."""
        return cast("dict[str, Any] | None", _decoded(self._look().headers))

    @property
    def stamps(self) -> dict[str, Any]:
        """What its signature was stamped with."""
        return stamps_of(self.headers)

    @property
    def queue(self) -> str | None:
        """Queue of the job."""
        return self._look().queue

    @property
    def worker(self) -> str | None:
        """Id of the worker that has or had it."""
        return self._look().worker

    @property
    def retries(self) -> int:
        """How many repeats the task has asked for."""
        return self._look().retries or 0

    @property
    def crashes(self) -> int:
        """How many attempts ended because their worker died."""
        return self._look().crashes or 0

    @property
    def attempt(self) -> int:
        """How many times the job has been claimed."""
        return self._look().attempt or 0

    @property
    def date_enqueued(self) -> datetime | None:
        """When it was enqueued, by the clock of the database."""
        return self._look().enqueued_at

    @property
    def date_done(self) -> datetime | None:
        """When it ended, by the clock of the database."""
        return self._look().finished_at

    def ready(self) -> bool:
        """Return whether it has ended, however."""
        return self._look().state in READY_STATES

    def successful(self) -> bool:
        """Return whether it has ended as SUCCESS."""
        return self._look().state == State.SUCCESS

    def failed(self) -> bool:
        """Return whether it has ended as FAILURE."""
        return self._look().state == State.FAILURE

    def exists(self) -> bool:
        """Return whether the database knows the id: as a job, or by its result."""
        return self._look().state != State.UNKNOWN

    def meta(self, status: Status) -> dict[str, object]:
        """Return a state as callbacks get it: task_id, status, result and traceback."""
        traceback = decode_error(status.error).traceback if status.error else None
        return {**super().meta(status), "result": self._result(status), "traceback": traceback}

    # -- waiting ---------------------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = LONGEST_LOOK,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, R], object] | None = None,
        on_message: Callable[[Mapping[str, object]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the result and return it.

        - `timeout`: seconds to wait at most; None (default) for as long as it takes.
        - `propagate`: raise what the task ended with (default), or return that exception.
        - `interval`: longest time in seconds between two looks, where no notification comes; default 1.
        - `no_ack`: accepted from Celery; nothing is to be acknowledged.
        - `follow_parents`: if the job continues others that will not succeed, raise what they ended with (default),
          or wait on.
        - `callback`: called with the id and the value after a success.
        - `on_message`: called with task_id, status, result and traceback, whenever a look finds them changed.
        - `on_interval`: called at every look.
        - `disable_sync_subtasks`: refuse to wait inside a task (default), where all slots may wait for each other.

        Raises what the task raised (see `TaskFailed`), WorkerLostError, TimeLimitExceeded, TaskRevokedError or
        TaskRejectedError for how it ended, ResultTimeout if it has not, UnknownJob if nobody knows the id (its
        enqueueing may not be committed yet), RuntimeError inside a task.

            add.delay(2, 3).get(timeout=10)     # 5
        """
        refuse_inside_task(disable_sync_subtasks)
        terms = Terms(timeout, interval, follow_parents, on_interval, on_message)
        (found,) = watch(self.app, [self], terms)
        return _answer(found, propagate, callback)

    wait = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = LONGEST_LOOK,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, R], object] | None = None,
        on_message: Callable[[Mapping[str, object]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the result as `get` does, without blocking the event loop; the callbacks are plain functions."""
        refuse_inside_task(disable_sync_subtasks)
        terms = Terms(timeout, interval, follow_parents, on_interval, on_message)
        (found,) = [found async for found in awatch(self.app, [self], terms)]
        return _answer(found, propagate, callback)

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], object] | None = None) -> Any:
        """Raise what the job ended with, without waiting; return the value of a success, None if it is not ready.

        - `propagate`: raise (default), or return the exception.
        - `callback`: called with the id and what is returned.
        """
        status = self._look()
        value = self._result(status) if status.state in READY_STATES else None
        if propagate and isinstance(value, BaseException) and status.state != State.SUCCESS:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value

    throw = maybe_throw

    # -- changing --------------------------------------------------------------------------------------------

    def forget(self) -> bool:
        """Delete the stored result, and those of the jobs that this one continues; return whether it had one."""
        database = self.app.database
        line = self._line()
        had = [database.run(database.statements.forget(id_))[0] for handle in line for id_ in handle._own_ids()]
        for handle in line:
            if isinstance(handle, Awaited):
                handle._final = None
        return had[0]

    def revoke(
        self, terminate: bool = False, signal: object = None, wait: bool = False, timeout: float | None = None
    ) -> State | str:
        """Revoke the job, durably: a waiting one ends as REVOKED now, a running one is not started again.

        - `wait`, `timeout`: accepted from Celery; the revocation is committed when this returns.

        Returns the state that it has afterwards. Raises InvalidOption for `terminate` and `signal`: a running task
        cannot be ended from here yet.
        """
        if terminate or signal is not None:
            raise InvalidOption(
                "revoke() prevents the next start and cannot end a running task yet; leave out terminate and signal, "
                "and give the task a time_limit"
            )
        database = self.app.database
        return _state(database.run(database.statements.revoke(self.id))[0])

    # -- its relatives ---------------------------------------------------------------------------------------

    @property
    def parent(self) -> AsyncResult[Any] | Before | None:
        """The job that this one continues, or whose task enqueued it; None if it came from outside.

        For the body of a chord, as `apply_async` returned it, the GroupResult of its header.
        """
        if self._parent is not None:
            return self._parent
        return self._handle(self._look().parent_id)

    @property
    def root(self) -> AsyncResult[Any] | None:
        """The job with which the workflow began: this one, unless another enqueued it; None for an unknown id."""
        status = self._look()
        return self._handle(status.root_id or (self.id if status.state != State.UNKNOWN else None))

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """The jobs that this one enqueued, in that order; without those of a task whose option `trail` is False."""
        database = self.app.database
        return [AsyncResult(id_, self.app) for id_ in database.run(database.statements.children(self.id))]

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[AsyncResult[Any] | None, AsyncResult[Any]]]:
        """Yield this job and all that came of it, level by level, each after the one that enqueued it.

        - `intermediate`: pass over the children of a job that has not ended, instead of raising IncompleteStream.
        """
        line: deque[tuple[AsyncResult[Any] | None, AsyncResult[Any]]] = deque([(None, self)])
        while line:
            parent, node = line.popleft()
            yield parent, node
            if node.ready():
                line.extend((node, child) for child in node.children)
            elif not intermediate:
                raise IncompleteStream(f"job {node.id} is {node.state}: what it enqueues is not known before it ends")

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[AsyncResult[Any], Any]]:
        """Wait for this job and for all that came of it; yield each handle with its value, level by level.

        Options: those of `get`, for each job.

            for handle, value in result.collect(timeout=10): ...
        """
        for _, node in self.iterdeps(intermediate):
            yield node, node.get(**options)

    def get_leaf(self) -> Any:
        """Wait for this job and for all that came of it; return the value of the last one."""
        (last,) = deque(self.collect(), maxlen=1)
        return last[1]

    def build_graph(self, intermediate: bool = False) -> dict[AsyncResult[Any], list[AsyncResult[Any]]]:
        """Return this job and all that came of it, each with its children: a plain dict, unlike Celery's graph.

        Raises IncompleteStream if one of them has not ended, unless `intermediate`.
        """
        graph: dict[AsyncResult[Any], list[AsyncResult[Any]]] = {}
        for parent, node in self.iterdeps(intermediate):
            graph[node] = []
            if parent is not None:
                graph[parent].append(node)
        return graph

    @property
    def graph(self) -> dict[AsyncResult[Any], list[AsyncResult[Any]]]:
        """What `build_graph` returns."""
        return self.build_graph()

    def as_list(self) -> list[str]:
        """Return the ids of this job and of those that it continues, as far as this handle knows them."""
        return [handle.id for handle in self._line()]

    def as_tuple(self) -> Tuple:
        """Return the handle as ((id, the same of the parent), None), of which `result_from_tuple` makes it again."""
        made: Tuple | None = None
        for handle in reversed(self._line()):
            made = handle._tuple(made)
        return cast(Tuple, made)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    # -- inside ----------------------------------------------------------------------------------------------

    def _line(self) -> list[Before]:
        """Return this handle, and those that it continues."""
        found: list[Before] = [self]
        while found[-1]._parent is not None:
            found.append(found[-1]._parent)
        return found

    def _own_ids(self) -> list[str]:
        return [self.id]

    def _tuple(self, parent: Any) -> Tuple:
        return (self.id, parent), None

    def _handle(self, id_: str | None) -> AsyncResult[Any] | None:
        return None if id_ is None else AsyncResult(id_, self.app)

    def _error(self, status: Status) -> BaseException | None:
        """Return what `get` raises for a status."""
        match status.state:
            case State.FAILURE:
                return _exception(status.error or "{}")
            case State.REVOKED:
                return TaskRevokedError(decode_error(status.error).message if status.error else "revoked")
            case State.REJECTED:
                return TaskRejectedError(decode_error(status.error).message if status.error else "rejected")
            case State.UNKNOWN:
                return UnknownJob(
                    f"no job and no result has the id {self.id}: it was never enqueued, its transaction is not "
                    "committed, its result is ignored, or it has expired"
                )
        return None

    def _value(self, status: Status) -> object:
        value = _decoded(status.value)
        return self._convert(value) if self._convert is not None and status.state == State.SUCCESS else value

    def _result(self, status: Status) -> object:
        if status.state == State.RETRY and status.error is not None:
            return _exception(status.error)
        error = self._error(status)
        return self._value(status) if error is None else error


def outcome(found: Found[AsyncResult[Any]]) -> tuple[Any, BaseException | None]:
    """Return the value of an awaited job, and the exception with which it ended."""
    handle, by = found.handle, cast("AsyncResult[Any]", found.by)
    error = by._error(found.status)
    if error is None and by is not handle:
        error = UnknownJob(f"job {handle.id} was never enqueued: {by.id} before it ended as {found.status.state}")
    return (handle._value(found.status) if error is None else None), error


def answer(found: Found[AsyncResult[R]], propagate: bool) -> R:
    """Return what `get` returns for an awaited job, or raise what it raises."""
    value, error = outcome(found)
    if error is None:
        return cast(R, value)
    # The state first: what a task raised may answer the question for its class with an exception.
    if propagate or (found.status.state != State.FAILURE and isinstance(error, UnknownJob)):
        raise error
    return cast(R, error)


def _answer(found: Found[AsyncResult[R]], propagate: bool, callback: Callable[[str, R], object] | None) -> R:
    value = answer(found, propagate)
    if callback is not None and found.status.state == State.SUCCESS:
        callback(found.handle.id, value)
    return value


def _state(text: str) -> State | str:
    return State(text) if text in State.__members__ else text


def _exception(text: str) -> Exception:
    return revive(decode_error(text))


def _decoded(text: str | None) -> object:
    return None if text is None else decode(text)


def _attempt_error(entry: Mapping[str, Any]) -> AttemptError:
    error = decode_error(json.dumps(entry.get("error") or {}))
    at = datetime.fromisoformat(entry["at"])
    return AttemptError(entry["attempt"], at, entry["state"], error, entry.get("hook"))
