"""A task: a registered function with its options, and the calls that can be made of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import update_wrapper
from types import MethodType
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, cast

from pgqueue.arguments import Arguments, check_call
from pgqueue.calling import TaskApp, in_zone, like_job, new_job
from pgqueue.canvas import Signature, chunks, lay_out, xmap, xstarmap
from pgqueue.eager import attempt_eagerly, claim_of, run_eagerly
from pgqueue.errors import InvalidArguments, InvalidOption, MaxRetriesExceededError, Replace, Retry
from pgqueue.ids import check_id
from pgqueue.options import (
    NO_OPTIONS,
    REFUSED_TASK_OPTIONS,
    TASK_OPTIONS,
    WARNED_TASK_OPTIONS,
    TaskOptions,
    call_options,
    check_limit,
    check_text,
    check_time,
    check_time_limits,
    seconds,
    shown,
    task_options,
)
from pgqueue.result import AsyncResult
from pgqueue.retry import RetryPolicy
from pgqueue.serialization import encode
from pgqueue.statements import Statement, job_json
from pgqueue.tracer import (
    HOOKS,
    Context,
    Hooks,
    TransactionBlock,
    current_context,
    enters,
    no_context,
    request_of,
)
from pgqueue.types import NewJob, Outcome, State

P = ParamSpec("P")
R = TypeVar("R")
#: What a direct call returns: R, or for a coroutine function the coroutine of it.
C = TypeVar("C")
Handle = AsyncResult

#: Options that a class may give its tasks as attributes.
_ATTRIBUTES = (*TASK_OPTIONS, *REFUSED_TASK_OPTIONS, *WARNED_TASK_OPTIONS)
#: What `retry` may change of a call besides its arguments and its time.
_OF_RETRY = ("queue", "priority", "expires", "headers", "ignore_result", "time_limit", "soft_time_limit")


class Task(Hooks, Generic[P, R, C]):
    """A function that can be called later, elsewhere; `app.task` makes it, or a subclass with a `run` of its own does.

    Called directly it is the function. `delay` and `apply_async` enqueue a job; the twins with an a are for
    coroutines. Every option is an attribute too, such as `max_retries`; setting one holds for this process.

        @app.task(queue="mail")
        def greet(name: str) -> str: ...

        greet.delay("Ada")                          # typed like the function
        greet.apply_async(("Ada",), countdown=60)   # with options

        class Greet(app.Task):
            queue = "mail"
            def run(self, name): ...

        greet = app.register_task(Greet())
    """

    MaxRetriesExceededError = MaxRetriesExceededError

    app: TaskApp
    name: str
    options: TaskOptions
    # The options as attributes; `apply_options` gives them their values.
    bind: bool
    transactional: bool
    queue: str | None
    priority: int | None
    expires: float | timedelta | None
    ignore_result: bool
    store_errors_even_if_ignored: bool
    acks_late: bool
    acks_on_failure_or_timeout: bool
    acks_on_failure: bool | None
    acks_on_timeout: bool | None
    reject_on_worker_lost: bool
    time_limit: float | timedelta | None
    soft_time_limit: float | timedelta | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: Sequence[type[BaseException]]
    dont_autoretry_for: Sequence[type[BaseException]]
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    typing: bool
    pydantic: bool
    throws: Sequence[type[BaseException]]
    trail: bool
    rate_limit: str | float | None
    track_started: bool
    send_events: bool
    serializer: str | None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work: the body of the task. `app.task` puts the function here, a subclass defines it."""
        raise NotImplementedError(f"{type(self).__qualname__} has no run(); define one")

    def declare(self, app: TaskApp, name: str, function: Callable[..., Any] | None, options: Mapping[str, Any]) -> None:
        """Make this the task `name` of an app, which calls it; with a function its `run` is that.

        - `options`: those given where it is declared; they come before attributes of the class.
        """
        if function is not None:
            update_wrapper(self, function, updated=())
            for name_, value in vars(function).items() if hasattr(function, "__dict__") else ():
                if not hasattr(Task, name_):  # it must not hide one of the task
                    object.__setattr__(self, name_, value)
            self.run = MethodType(function, self) if options.get("bind") else function  # type: ignore[method-assign]
        else:
            self.__name__ = type(self).__name__
        self.app = app
        self.name = name
        self.function = function
        self.declared = dict(options)
        self._set_by_hand: dict[str, Any] = {}
        self._annotated: tuple[str, ...] = ()
        self.is_coroutine = inspect.iscoroutinefunction(self.run)
        self.has_own_call = type(self).__call__ is not Task.__call__
        for hook in HOOKS:
            if inspect.iscoroutinefunction(getattr(self, hook)):
                raise InvalidOption(f"{hook} of {name} is a coroutine function; hooks are plain functions")
        self.apply_options(*self.resolve())
        self.on_bound(app)

    def resolve(self) -> tuple[TaskOptions, dict[str, Any]]:
        """Work out the options: from annotations, else the declaration, else the class, else the configuration.

        Returns them, and what annotations say besides: hooks, and attributes that the task reads itself.
        """
        found: dict[str, Any] = dict(self.app.defaults(self.name))
        for kind in reversed(type(self).__mro__):
            if kind not in Task.__mro__:
                found |= {option: vars(kind)[option] for option in _ATTRIBUTES if option in vars(kind)}
        found |= self.declared
        attributes = {}
        for annotation in self.app.annotations(self.name):
            for attribute, value in annotation.items():
                if attribute in _ATTRIBUTES:
                    found[attribute] = value
                else:
                    attributes[attribute] = MethodType(value, self) if inspect.isfunction(value) else value
        return task_options(found | self._set_by_hand | {"name": self.name}), attributes

    def apply_options(self, options: TaskOptions, attributes: Mapping[str, Any]) -> None:
        """Take over what `resolve` has found."""
        skip = int(options.transactional)
        own: dict[str, Any] = {
            **{option.name: getattr(options, option.name) for option in fields(options)},
            **attributes,
            "options": options,
            "retry_policy": options.policy(),
            "arguments": Arguments(self.run, skip=skip, validate=options.pydantic),
            "_shape": Arguments(self.run, skip=skip, validate=False),
            "_annotated": tuple(attributes),
            "_common": None,
        }
        for name in self._annotated:
            vars(self).pop(name, None)
        for name, value in own.items():
            object.__setattr__(self, name, value)

    retry_policy: RetryPolicy
    arguments: Arguments
    _shape: Arguments
    _common: NewJob | None

    def __setattr__(self, name: str, value: object) -> None:
        if name not in TASK_OPTIONS or name == "name" or "options" not in vars(self):
            object.__setattr__(self, name, value)
            return
        changed: dict[str, Any] = {name: value}
        options = replace(self.options, **changed)
        self._set_by_hand |= changed
        self.apply_options(options, {name: vars(self)[name] for name in self._annotated})

    def __deepcopy__(self, memo: object) -> Task[P, R, C]:
        return self

    @property
    def max_payload_bytes(self) -> int:
        """Largest args, kwargs, headers or result of a call, in bytes of JSON."""
        return self.app.max_payload_bytes

    @property
    def max_requeues(self) -> int:
        """How often `Reject(requeue=True)` hands a job back."""
        return self.app.max_requeues

    def on_bound(self, app: TaskApp) -> object:
        """Called when the task has become one of an app; here it does nothing."""

    def on_replace(self, sig: Signature[Any]) -> Any:
        """Put a call in the place of this one; `replace` ends here."""
        if sig.single:
            raise Replace(sig.job())
        request = self.request
        plan = lay_out(sig, options={"task_id": request.id}, one=True)
        # Of the parent that the job itself has: as its own parent's parent it would lead round in a circle.
        raise Replace(plan=plan.jobs_of(cast(str, request.root_id), request.parent_id))

    # -- calling ---------------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Call the function here and now; whatever it asks of `self.request`, it is not a job."""
        if enters(self.name) is not None:  # a __call__ of a subclass, which the worker has called, calls this one
            return cast(C, self.run(*args, **kwargs))
        if self.transactional:
            raise TypeError(f"{self.name} needs a connection: call {self.name.rpartition('.')[2]}.run(connection, ...)")
        if self.is_coroutine:
            return cast(C, self._call_coroutine(args, kwargs))
        with no_context(self.name):
            return cast(C, self.run(*args, **kwargs))

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a call with the options of the task; return its handle at once.

        Raises InvalidArguments, NotSerializable or PayloadTooLarge before anything is sent.
        """
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a call as `delay` does, without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        task_id: str | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[R]:
        """Enqueue a call with options of its own; return its handle at once.

        - `task_id`: id of the job, a UUID; default a fresh one.
        - `connection`: enqueue in the transaction of this connection, which the caller commits: one of psycopg,
          SQLAlchemy, or a Django alias; default: a transaction of its own.
        - the others: see `CallOptions`: countdown, eta, expires, queue, priority, unique_key, headers, link,
          link_error, ignore_result, time_limit, soft_time_limit, shadow, add_to_parent.

        Raises InvalidOption as well, naming the option and what was probably meant.

            settle.apply_async((order.id,), countdown=60, connection=session)
        """
        if task_id is not None:
            options["task_id"] = task_id
        if self.app.always_eager:
            return self._applied(args, kwargs, options)
        job = self.job(args or (), kwargs or {}, options)
        return self.app.enqueue(job, connection, **self.handle(options))

    async def aapply_async(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        task_id: str | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[R]:
        """Enqueue a call as `apply_async` does; `connection` may be asynchronous (asyncpg as well)."""
        if task_id is not None:
            options["task_id"] = task_id
        if self.app.always_eager:
            return self._applied(args, kwargs, options)
        job = self.job(args or (), kwargs or {}, options)
        return await self.app.aenqueue(job, connection, **self.handle(options))

    def apply(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        task_id: str | None = None,
        *,
        retries: int = 0,
        throw: bool | None = None,
        **options: Any,
    ) -> Handle[R]:
        """Run a call here and now, with the tracer around it and without a queue; return its result, an `EagerResult`.

        Retries really run, at once; links run in the same way; nothing is stored.

        - `retries`: how many there are to have been before.
        - `throw`: raise what the call fails with at last; default the setting `task_eager_propagates`.
        - the others: as for `apply_async`.

            assert add.apply((2, 3)).get() == 5
        """
        if task_id is not None:
            options["task_id"] = task_id
        options.pop("connection", None)
        job = self.job(args or (), kwargs or {}, options)
        throws = self.app.eager_propagates if throw is None else throw
        return run_eagerly(self.app, self, job, retries=retries, throw=throws, load=self.arguments.load_result)

    def trace(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        retries: int = 0,
        **options: Any,
    ) -> Outcome:
        """Run one attempt of a call here and now, without a database, and return its outcome, for tests.

        - `retries`: how many there are to have been before.
        - the others: as for `apply_async`.

            assert fetch.trace(("http://down.example",)) == Retried(..., countdown=180)
        """
        job = self.job(args, kwargs or {}, options)
        outcome, aftermath = attempt_eagerly(self.app, self, claim_of(job, retries))
        if aftermath is not None:
            aftermath.tell(outcome, acked=True)
        return outcome

    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Return the call as a value, to be enqueued later, with others (`app.enqueue_many`), or as a link."""
        return Signature(cast("Task[Any, R, Any]", self), args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Return the call as a value that takes no argument from the call that it continues."""
        return Signature(cast("Task[Any, R, Any]", self), args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        **more: Any,
    ) -> Signature[R]:
        """Return the call as a value, with options."""
        task, given = cast("Task[Any, R, Any]", self), cast("tuple[Any, ...]", args)
        call: Signature[R] = Signature(task, given, {} if kwargs is None else kwargs, immutable=immutable)
        return call.set(**{**(options or {}), **more})

    subtask = signature

    def map(self, it: Iterable[Any]) -> xmap:
        """Return one call that calls the task for each item, one after the other: see `xmap`."""
        return xmap(self, it)

    def starmap(self, it: Iterable[Sequence[Any]]) -> xstarmap:
        """Return one call that calls the task for each list of arguments, one after the other: see `xstarmap`."""
        return xstarmap(self, it)

    def chunks(self, it: Iterable[Sequence[Any]], n: int) -> chunks:
        """Return a group of calls, each of which calls the task for `n` lists of arguments: see `chunks`."""
        return chunks(self, it, n)

    def AsyncResult(self, task_id: str) -> Handle[R]:  # noqa: N802 - Celery's name
        """Return the handle on a job of this task by its id."""
        return Handle(task_id, cast(Any, self.app), convert=self.arguments.load_result)

    # -- inside a running task -------------------------------------------------------------------------------

    @property
    def request(self) -> Context:
        """The context of the job that runs now; where none does, one with `called_directly` True."""
        return request_of(self.name)

    def retry(
        self,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        exc: BaseException | type[BaseException] | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Ask for this job to be run again later: raises Retry, which the task must let pass.

        It stays the same job, with all its options.

        - `args`, `kwargs`, and the options queue, priority, expires, headers, ignore_result, time_limit and
          soft_time_limit: replace those of the job.
        - `exc`: why; kept with the job, and raised itself when no retry is left.
        - `throw`: raise (default), or return the Retry: the task goes on, and what it returns then is not kept.
        - `eta` or `countdown` (seconds): when; default `default_retry_delay`.
        - `max_retries`: the limit for the rest of this attempt, instead of the task's.

        Raises `exc`, the exception that is being handled or MaxRetriesExceededError when no retry is left, and when it
        is called outside a worker.

            raise self.retry(exc=error, countdown=2 ** self.request.retries)
        """
        request = self.request
        exc = _made(exc)
        if request.called_directly:
            _raise(exc, Retry("the task can be retried, but it was called directly"))
        if args is not None and not isinstance(args, list | tuple):
            raise InvalidArguments(f"args of a retry must be a list or tuple, not {shown(args)}")
        if max_retries is not None:
            check_limit("max_retries", max_retries)
            request.max_retries = max_retries  # automatic retries of this attempt keep to it
        for option in options:
            if option not in _OF_RETRY:
                raise InvalidOption(f"retry() cannot change {option!r}; it can {', '.join(_OF_RETRY)}: the rest stays")
        checked = call_options(self._localized(options))
        limit = self.max_retries if request.max_retries is None else request.max_retries
        if limit is not None and request.retries >= limit:
            problem = f"{self.name}[{request.id}] has been retried {limit} times, its limit"
            if exc is None:
                raise MaxRetriesExceededError(problem, request.args, request.kwargs)
            _raise(exc, exc)
        if eta is not None:
            eta = check_time("eta", self._localized({"eta": eta})["eta"])
        expires = checked.expires
        if expires is not None and not isinstance(expires, datetime):
            expires = datetime.now(UTC) + timedelta(seconds=seconds("expires", expires))
        hard, soft = check_time_limits(checked.time_limit, checked.soft_time_limit)
        asked = Retry(
            exc=exc,
            countdown=self.default_retry_delay if countdown is None else seconds("countdown", countdown),
            eta=eta,
            args=None if args is None else tuple(args),
            kwargs=kwargs,
            queue=None if checked.queue is None else self.app.check_queue(checked.queue),
            priority=checked.priority,
            expires=expires,
            headers=checked.headers,
            ignore_result=checked.ignore_result,
            time_limit=hard,
            soft_time_limit=soft,
        )
        if throw:
            raise asked from exc
        request.asked = asked
        return asked

    def replace(self, sig: Signature[Any]) -> Any:
        """Put another call in the place of this one: it goes on under this id, with the links of this job and its own.

        A workflow as well: what comes last in it has this id then, a group the list of its values as the result.

        Raises Replace, which the task must let pass. The job has no result of its own then: that of the other call is
        its result. What a transactional task has written is rolled back, as whenever it does not return.

            return self.replace(import_rows.s(path, first=1000))
        """
        if self.request.called_directly:
            raise RuntimeError(f"{self.name} was called directly: there is no job that another could replace")
        if not isinstance(sig, Signature):
            raise InvalidOption(f"replace() needs a signature such as add.s(2, 3), not {shown(sig)}")
        if sig.is_empty():
            raise InvalidOption("replace() needs something to do; return the empty value instead")
        for option in ("task_id", "unique_key"):
            if sig.options.get(option) is not None:
                raise InvalidOption(f"{option} of a call that replaces another has no meaning: that of the first stays")
        return self.on_replace(sig)

    def add_to_chord(self, sig: Signature[Any], lazy: bool = False) -> Handle[Any]:
        """Enqueue one more call in the header of the chord in which this job is; return its handle.

        At once, not with the acknowledgement. Its value comes last in the list that the body takes.

        Raises ValueError if this job is in no header, InvalidOption for more than a single call, and for `lazy`.

            self.add_to_chord(add.s(4, 4))
        """
        request = self.request
        if lazy:
            raise InvalidOption("add_to_chord(lazy=True) has no meaning here: a member is counted and enqueued at once")
        if not isinstance(sig, Signature) or not sig.single:
            raise InvalidOption(f"add_to_chord() needs a single call such as add.s(2, 3), not {shown(sig)}")
        if request.id is not None and not request.is_eager:
            job = sig.job()
            statement = self.app.database.statements.add_member(
                request.id, request.worker, request.attempt, job_json(job)
            )
            if self.app.database.run(statement)[0]:
                return self.add_trail(Handle(job.id, cast(Any, self.app), **sig.task.handle(sig.options)))
        raise ValueError(f"{self.name} is not in the header of a chord, so nothing can be added to it")

    def add_trail(self, result: Handle[Any]) -> Handle[Any]:
        """Add a handle to `self.request.children`, if the task keeps a trail; calls of it do so themselves."""
        if self.trail:
            self.request.children.append(result)
        return result

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: object = None) -> bool:
        """Say how far a job is: handles then have this `state`, and `meta` as their `info`, while it runs.

        - `task_id`: of which job; default the one that runs now, and then only while it is held.
        - `state`: any text of up to 100 characters but a state of pgqueue's own.
        - `meta`: a value that can be stored as JSON.

        Written at once, not with the acknowledgement. Returns whether it was: False if the job has ended, or its lease
        is lost. In an eager run nothing is written.

            self.update_state(state="PROGRESS", meta={"done": 3, "of": 10})
        """
        statement = self._state(task_id, state, meta)
        return True if statement is None else bool(self.app.database.run(statement)[0])

    async def aupdate_state(self, task_id: str | None = None, state: str | None = None, meta: object = None) -> bool:
        """Say how far a job is as `update_state` does, without blocking the event loop."""
        statement = self._state(task_id, state, meta)
        return True if statement is None else bool((await self.app.database.arun(statement))[0])

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
        return f"<Task: {vars(self).get('name') or type(self).__qualname__}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _applied(
        self, args: Sequence[object] | None, kwargs: Mapping[str, object] | None, options: Mapping[str, Any]
    ) -> Handle[R]:
        """Run a call that would have been enqueued."""
        found = self.apply(args, kwargs, **options)
        around = current_context()
        if around is not None and around.keeps_trail and options.get("add_to_parent") is not False:
            around.children.append(found)
        return found

    async def _call_coroutine(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
        with no_context(self.name):
            return await self.run(*args, **kwargs)

    def _state(self, task_id: str | None, state: object, meta: object) -> Statement[bool] | None:
        request = self.request
        if task_id is None and request.id is None:
            raise InvalidOption("update_state() outside a running task needs task_id=")
        if state is None:
            raise InvalidOption("update_state() needs state=, such as 'PROGRESS'")
        if check_text("state", state, 100) in _RESERVED:
            raise InvalidOption(
                f"state {state!r} is one of pgqueue's own: the outcome of the task decides it; choose another word, "
                "such as 'PROGRESS'"
            )
        text = encode(meta, path="meta", limit=self.max_payload_bytes)
        if task_id is not None and task_id != request.id:
            return self.app.database.statements.set_state(check_id(task_id, "task_id"), None, 0, str(state), text)
        if request.is_eager or request.id is None:
            return None
        return self.app.database.statements.set_state(request.id, request.worker, request.attempt, str(state), text)

    def handle(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the handle of a call with these options needs to know."""
        ignored = options.get("ignore_result")
        return {
            "convert": self.arguments.load_result,
            "ignored": self.ignore_result if ignored is None else ignored,
        }

    def job(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        options: Mapping[str, Any],
        *,
        awaits: bool = False,
    ) -> NewJob:
        """Return a call as a job, checked and encoded; nothing has been sent yet.

        - `awaits`: it is a continuation, and is given one more argument, before the others.
        """
        if not options and not awaits and (like := self._like()) is not None:
            if self.typing:
                self.arguments.bind(args, kwargs)
            else:
                check_call(self.name, args, kwargs)
            return like_job(like, args, kwargs, self.app.max_payload_bytes)
        given = self._localized(options) if options else options
        route = self.app.route(self.name, args, kwargs, given, self)
        if route:
            own = {name: value for name, value in route.items() if getattr(self.options, name, None) is None}
            given = {**own, **{name: value for name, value in given.items() if value is not None}}
        checked = call_options(given)
        if checked.expires is None and self.expires is not None:
            checked = replace(checked, expires=self.expires)
        if awaits:
            self._shape.bind((None, *args), kwargs)
        elif self.typing:
            args, kwargs = self.arguments.bind(args, kwargs)
        priority = self.priority if checked.priority is None else checked.priority
        return new_job(self.app, self.name, args, kwargs, checked, queue=checked.queue or self.queue, priority=priority)

    def _like(self) -> NewJob | None:
        """Return what all calls without options have in common, or None where each has to be looked at."""
        if current_context() is not None or self.app.has_routes:
            return None
        like = self._common
        if like is None:
            options = NO_OPTIONS if self.expires is None else replace(NO_OPTIONS, expires=self.expires)
            like = new_job(self.app, self.name, (), {}, options, queue=self.queue, priority=self.priority)
            object.__setattr__(self, "_common", like)
        return like

    def _localized(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return options whose times without a time zone are in that of the app, if it has one."""
        zone = self.app.timezone
        if zone is None:
            return options
        return {name: in_zone(value, zone) if name in ("eta", "expires") else value for name, value in options.items()}


_RESERVED = frozenset(State)


def _made(exc: object) -> BaseException | None:
    """Return the exception that a task gives; a class stands for an instance of it, as after `raise`."""
    if isinstance(exc, type) and issubclass(exc, BaseException):
        return exc()
    if exc is None or isinstance(exc, BaseException):
        return exc
    raise InvalidArguments(f"exc of a retry must be an exception, not {shown(exc)}")


def _raise(exc: BaseException | None, otherwise: BaseException) -> NoReturn:
    """Raise the exception that is being handled, or `exc` because of it, or what is left to say."""
    current = sys.exception()
    if current is not None and exc in (None, current):
        raise current
    if exc is None:
        raise otherwise
    raise exc from current
