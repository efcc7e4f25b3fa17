"""A task: a registered function with its options, and the calls that can be made of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from pgqueue.arguments import Arguments
from pgqueue.errors import InvalidArguments, InvalidOption, MaxRetriesExceededError, Retry
from pgqueue.ids import new_id
from pgqueue.options import (
    CallOptions,
    TaskOptions,
    call_options,
    check_limit,
    check_priority,
    check_text,
    check_time,
    check_time_limits,
    seconds,
)
from pgqueue.result import AsyncResult
from pgqueue.serialization import encode
from pgqueue.tracer import Context, TransactionBlock, current_context, no_context, request_of
from pgqueue.types import NewJob

P = ParamSpec("P")
R = TypeVar("R")
#: What a direct call returns: R, or for a coroutine function the coroutine of it.
C = TypeVar("C")


class TaskApp(Protocol):
    """What a task needs of its app."""

    @property
    def name(self) -> str: ...
    @property
    def default_queue(self) -> str: ...
    @property
    def max_payload_bytes(self) -> int: ...
    def enqueue(self, job: NewJob, connection: object, **handle: Any) -> AsyncResult[Any]: ...
    async def aenqueue(self, job: NewJob, connection: object, **handle: Any) -> AsyncResult[Any]: ...


class Task(Generic[P, R, C]):
    """A function that can be called later, elsewhere; `app.task` makes it.

    Called directly it is the function. `delay` and `apply_async` enqueue a job; the twins with an a are for
    coroutines.

        @app.task(queue="mail")
        def greet(name: str) -> str: ...

        greet.delay("Ada")                          # typed like the function
        greet.apply_async(("Ada",), countdown=60)   # with options
    """

    def __init__(self, app: TaskApp, function: Callable[..., C], name: str, options: TaskOptions) -> None:
        update_wrapper(self, function)  # first: an attribute of the function must not hide one of the task
        self.app = app
        self.name = name
        self.options = options
        self.run: Callable[..., Any] = function
        self.bind = options.bind
        self.transactional = options.transactional
        self.is_coroutine = inspect.iscoroutinefunction(function)
        self.arguments = Arguments(function, skip=int(options.bind) + int(options.transactional), validate=True)
        self.retry_policy = options.policy()
        self.max_payload_bytes = app.max_payload_bytes

    # -- calling ---------------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Call the function here and now; whatever it asks of `self.request`, it is not a job."""
        if self.transactional:
            short = self.name.rpartition(".")[2]
            first = f"{short}, connection" if self.bind else "connection"
            raise TypeError(f"{self.name} needs a connection: call {short}.run({first}, ...)")
        if self.is_coroutine:
            return cast(C, self._call_coroutine(args, kwargs))
        with no_context(self.name):
            return cast(C, self.run(*self._first(), *args, **kwargs))

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Enqueue a call with the options of the task; return its handle at once.

        Raises InvalidArguments, NotSerializable or PayloadTooLarge before anything is sent.
        """
        return self._enqueue(args, kwargs, {}, None)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Enqueue a call as `delay` does, without blocking the event loop."""
        return await self._aenqueue(args, kwargs, {}, None)

    def apply_async(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Enqueue a call with options of its own; return its handle at once.

        - `connection`: enqueue in the transaction of this connection, which the caller commits: one of psycopg,
          SQLAlchemy, or a Django alias; default: a transaction of its own.
        - the others: see `CallOptions`: countdown, eta, expires, queue, priority, task_id, unique_key, headers,
          ignore_result, time_limit, soft_time_limit.

        Raises InvalidOption as well, naming the option and what was probably meant.

            settle.apply_async((order.id,), countdown=60, connection=session)
        """
        return self._enqueue(args, kwargs or {}, options, connection)

    async def aapply_async(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Enqueue a call as `apply_async` does; `connection` may be asynchronous (asyncpg as well)."""
        return await self._aenqueue(args, kwargs or {}, options, connection)

    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Return the call as a value, to be enqueued later or with others (`app.enqueue_many`)."""
        return Signature(cast("Task[Any, R, Any]", self), args, kwargs)

    # -- inside a running task -------------------------------------------------------------------------------

    @property
    def request(self) -> Context:
        """The context of the job that runs now; where none does, one with `called_directly` True."""
        return request_of(self.name)

    def retry(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        expires: datetime | None = None,
    ) -> Retry:
        """Ask for this job to be run again later: raises Retry, which the task must let pass.

        - `args`, `kwargs`, `queue`, `priority`, `expires`: replace those of the job.
        - `exc`: why; kept with the job, and raised itself when no retry is left.
        - `throw`: raise (default), or return the Retry for the task to raise.
        - `eta` or `countdown` (seconds): when; default `default_retry_delay`.
        - `max_retries`: the limit for the rest of this attempt, instead of the task's.

        Raises `exc` or MaxRetriesExceededError when no retry is left, and `exc` when called outside a worker.

            raise self.retry(exc=error, countdown=2 ** self.request.retries)
        """
        request = self.request
        if request.called_directly:
            raise Retry("the task can be retried, but it was called directly") if exc is None else exc
        if args is not None and not isinstance(args, list | tuple):
            raise InvalidArguments(f"args of a retry must be a list or tuple, not {args!r:.80}")
        if max_retries is not None:
            check_limit("max_retries", max_retries)
            request.max_retries = max_retries  # automatic retries of this attempt keep to it
        limit = self.options.max_retries if request.max_retries is None else request.max_retries
        if limit is not None and request.retries >= limit:
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(f"{self.name}[{request.id}] has been retried {limit} times, its limit")
        if eta is not None:
            check_time("eta", eta)
        wait = self.options.default_retry_delay if countdown is None else seconds("countdown", countdown)
        asked = Retry(
            exc=exc,
            countdown=wait,
            eta=eta,
            args=None if args is None else tuple(args),
            kwargs=kwargs,
            queue=None if queue is None else check_text("queue", queue, 100),
            priority=None if priority is None else check_priority(priority),
            expires=None if expires is None else check_time("expires", expires),
        )
        if throw:
            raise asked from exc
        return asked

    def transaction(self) -> TransactionBlock:
        """Open the transaction in which the rest of this attempt commits together with its acknowledgement.

        For `with` or `async with`; gives the connection. Left in peace it commits when the task returns, left by
        an exception it is rolled back. Keep it short: until then it holds back vacuum.

        Raises LeaseLost if the attempt is not held any more, RuntimeError outside a worker.

            with self.transaction() as connection:
                connection.execute("update orders set settled = true where id = %s", [order])
        """
        return TransactionBlock(self.request)

    def __repr__(self) -> str:
        return f"<Task: {self.name}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _first(self) -> tuple[object, ...]:
        return (self,) if self.bind else ()

    async def _call_coroutine(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
        with no_context(self.name):
            return await self.run(*self._first(), *args, **kwargs)

    def _enqueue(
        self, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any], connection: object
    ) -> AsyncResult[R]:
        return self.app.enqueue(self.job(args, kwargs, options), connection, **self.handle(options))

    async def _aenqueue(
        self, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any], connection: object
    ) -> AsyncResult[R]:
        return await self.app.aenqueue(self.job(args, kwargs, options), connection, **self.handle(options))

    def handle(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the handle of a call with these options needs to know."""
        ignored = options.get("ignore_result")
        return {
            "convert": self.arguments.load_result,
            "ignored": self.options.ignore_result if ignored is None else ignored,
        }

    def job(self, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any]) -> NewJob:
        """Return a call as a job, checked and encoded; nothing has been sent yet."""
        checked = call_options(options)
        if checked.expires is None and self.options.expires is not None:
            checked = replace(checked, expires=self.options.expires)
        given, named = self.arguments.bind(args, kwargs) if self.options.typing else (args, kwargs)
        return new_job(
            self.name,
            given,
            named,
            checked,
            queue=checked.queue or self.options.queue or self.app.default_queue,
            priority=self.options.priority if checked.priority is None else checked.priority,
            limit=self.max_payload_bytes,
        )


def new_job(
    task: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: CallOptions,
    *,
    queue: str,
    priority: int,
    limit: int,
) -> NewJob:
    """Return a job with a fresh id (unless one is given), whose parent is the job that runs now, if one does."""
    around = current_context()
    headers = options.headers
    expires = options.expires
    hard, soft = check_time_limits(options.time_limit, options.soft_time_limit)
    return NewJob(
        id=options.task_id or new_id(),
        known=options.task_id is not None,
        task=task,
        args=encode(list(args), path="args", limit=limit),
        kwargs=encode(kwargs, path="kwargs", limit=limit) if kwargs else "{}",
        queue=queue,
        priority=priority,
        eta=options.eta,
        countdown=None if options.countdown is None else seconds("countdown", options.countdown),
        expires=expires if isinstance(expires, datetime) else None,
        expires_in=None if expires is None or isinstance(expires, datetime) else seconds("expires", expires),
        unique_key=options.unique_key,
        headers=None if headers is None else encode(dict(headers), path="headers", limit=limit),
        ignore_result=options.ignore_result,
        time_limit=hard,
        soft_time_limit=soft,
        root_id=around.root_id if around else None,
        parent_id=around.id if around else None,
    )


@dataclass(frozen=True, slots=True)
class Signature(Generic[R]):
    """A call that is not made yet: a task, its arguments, its options. `set` returns one with more options."""

    task: Task[Any, R, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def set(self, **options: Any) -> Signature[R]:
        """Return the same call with these options in addition; they are checked now."""
        if "connection" in options:
            raise InvalidOption("a signature keeps no connection; give it where the call is made")
        merged = {**self.options, **options}
        call_options(merged)
        return replace(self, options=merged)

    def delay(self) -> AsyncResult[R]:
        """Enqueue the call."""
        return self.task.apply_async(self.args, self.kwargs, **self.options)

    async def adelay(self) -> AsyncResult[R]:
        """Enqueue the call without blocking the event loop."""
        return await self.task.aapply_async(self.args, self.kwargs, **self.options)

    def job(self) -> NewJob:
        """Return the call as a job, checked and encoded."""
        return self.task.job(self.args, self.kwargs, self.options)
