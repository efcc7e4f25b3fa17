"""What a running task may know about its job: `self.request`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from pgqueue.arguments import Arguments
from pgqueue.options import TaskOptions, seconds
from pgqueue.retry import RetryPolicy
from pgqueue.serialization import decode
from pgqueue.stamps import stamps_of
from pgqueue.types import Claim


class Traced(Protocol):
    """What the tracer needs of a task; its hooks are looked up by name."""

    @property
    def name(self) -> str: ...
    @property
    def run(self) -> Callable[..., Any]: ...
    @property
    def arguments(self) -> Arguments: ...
    @property
    def retry_policy(self) -> RetryPolicy: ...
    @property
    def bind(self) -> bool: ...
    @property
    def transactional(self) -> bool: ...
    @property
    def is_coroutine(self) -> bool: ...
    @property
    def has_own_call(self) -> bool: ...
    @property
    def options(self) -> TaskOptions: ...
    @property
    def max_payload_bytes(self) -> int: ...
    @property
    def max_requeues(self) -> int: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Transactor(Protocol):
    """Opens the transaction in which a task's writes and its acknowledgement commit together.

    `begin` raises LeaseLost if the attempt is not held any more. Whoever runs the tracer commits.
    """

    def begin(self, claim: Claim) -> Any: ...
    def rollback(self) -> None: ...
    async def abegin(self, claim: Claim) -> Any: ...
    async def arollback(self) -> None: ...


class Guard(Protocol):
    """Told when the user's function begins and ends: only between the two may something interrupt it.

    - `interruption`: the exception that was raised in it from outside, as a cancellation if it is a coroutine.
    """

    @property
    def interruption(self) -> BaseException | None: ...
    def enter(self) -> None: ...
    def aenter(self) -> None: ...
    def leave(self) -> None: ...


class Unguarded:
    """The guard where nobody interrupts."""

    interruption: BaseException | None = None

    def enter(self) -> None:
        """The function begins."""

    aenter = leave = enter


UNGUARDED = Unguarded()


class Context:
    """The request of the job that runs now, with Celery's names.

    Outside a worker `called_directly` is True and `id` is None. A header may be read as an attribute too; other unknown
    names: `get(name, default)`.

    - `task`: name of the task. `hostname`: name of the worker, `worker`: its id.
    - `around`: for a task that another calls directly: the context of the job that runs.
    - `is_eager`: whether it runs where the call was made, by `apply` or `task_always_eager`.
    - `max_retries`: the limit that `self.retry(max_retries=...)` has set for this attempt; None: the task's.
    - `begun`: whether `task_prerun` was sent. `entering`: the next call of the task is that of the tracer.
    - `asked`: the `Retry` that `self.retry(throw=False)` has returned.
    - `transacts`: whether the attempt has a transaction, whose COMMIT may be refused.
    - `unheard`: what receivers of `task_prerun` have raised.
    """

    #: Celery's words for what does not exist here: logging of one worker, replies, and parts of a canvas.
    loglevel = logfile = reply_to = origin = lang = None
    group = group_index = chord = chain = None
    #: Times are aware, always.
    utc = True
    # What most attempts never set stands here, so that a context costs no more than it holds.
    begun = entering = transacts = False
    unheard: tuple[tuple[str, BaseException], ...] = ()
    max_retries: int | None = None
    asked: BaseException | None = None
    _children: list[Any] | None = None

    def __init__(
        self,
        task: str | None = None,
        claim: Claim | None = None,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        hostname: str = "",
        transactor: Transactor | None = None,
        around: Context | None = None,
        worker: str | None = None,
        options: TaskOptions | None = None,
        is_eager: bool = False,
    ) -> None:
        self.task = task
        self.claim = claim
        self.args = args
        self.kwargs: Mapping[str, object] = kwargs or {}
        self.hostname = hostname
        self.transactor = transactor
        self.around = around
        self.worker = worker
        self.is_eager = is_eager
        self._options = options
        self.called_directly = claim is None

    @property
    def id(self) -> str | None:
        """Id of the job; None outside a worker."""
        return self.claim.id if self.claim else None

    @property
    def root_id(self) -> str | None:
        """Id of the job with which this workflow began: its own, unless another enqueued it."""
        return (self.claim.root_id or self.claim.id) if self.claim else None

    @property
    def parent_id(self) -> str | None:
        """Id of the job whose task enqueued this one."""
        return self.claim.parent_id if self.claim else None

    @property
    def retries(self) -> int:
        """How many repeats the task has asked for so far."""
        return self.claim.retries if self.claim else 0

    @property
    def crashes(self) -> int:
        """How many earlier attempts ended because their worker died."""
        return self.claim.crashes if self.claim else 0

    @property
    def attempt(self) -> int:
        """How many times the job has been claimed; a growing number, fit as a fence for other systems."""
        return self.claim.attempt if self.claim else 0

    @property
    def queue(self) -> str | None:
        """Queue from which the job was claimed."""
        return self.claim.queue if self.claim else None

    @property
    def priority(self) -> int | None:
        """Priority of the job, 0 to 9."""
        return self.claim.priority if self.claim else None

    @property
    def eta(self) -> str | None:
        """Earliest start, ISO 8601."""
        return self.claim.eta.isoformat() if self.claim else None

    @property
    def expires(self) -> str | None:
        """Latest start, ISO 8601; None for never."""
        return self.claim.expires.isoformat() if self.claim and self.claim.expires else None

    @property
    def headers(self) -> Mapping[str, Any] | None:
        """What the caller sent along; None if nothing."""
        if self.claim is None or self.claim.headers is None:
            return None
        found = decode(self.claim.headers)
        return found if isinstance(found, dict) else None

    @property
    def stamps(self) -> dict[str, Any]:
        """What the signature of the call was stamped with."""
        return stamps_of(self.headers)

    @property
    def stamped_headers(self) -> list[str]:
        """Their names."""
        return list(self.stamps)

    @property
    def time_limit(self) -> float | None:
        """Hard time limit of the attempt in seconds, that of the call or of the task; None for none."""
        return self._limit("time_limit")

    @property
    def soft_time_limit(self) -> float | None:
        """Soft time limit of the attempt in seconds; None for none."""
        return self._limit("soft_time_limit")

    @property
    def timelimit(self) -> list[float | None]:
        """Both limits, the hard one first."""
        return [self.time_limit, self.soft_time_limit]

    @property
    def ignore_result(self) -> bool | None:
        """Whether its result is not kept: as the call said, else the task."""
        said = self.claim.ignore_result if self.claim else None
        return said if said is not None or self._options is None else self._options.ignore_result

    @property
    def callbacks(self) -> list[Any] | None:
        """The links that a success will enqueue, as data; None if there are none."""
        return _decoded(self.claim.links) if self.claim else None

    @property
    def errbacks(self) -> list[Any] | None:
        """The links that a failure will enqueue, as data; None if there are none."""
        return _decoded(self.claim.errbacks) if self.claim else None

    @property
    def correlation_id(self) -> str | None:
        """The id of the job."""
        return self.id

    @property
    def shadow(self) -> str | None:
        """The name that the call gave it for logs."""
        found = self._option("shadow")
        return found if isinstance(found, str) else None

    @property
    def replaced_task_nesting(self) -> int:
        """How often `self.replace` has put another call in the place of this one."""
        found = self._option("replaced")
        return found if isinstance(found, int) else 0

    @property
    def properties(self) -> Mapping[str, object]:
        """What the message of a broker would carry, as far as it exists here."""
        return {"correlation_id": self.id, "priority": self.priority}

    @property
    def keeps_trail(self) -> bool:
        """Whether handles list the jobs that this one enqueues."""
        return self._options is None or self._options.trail

    @property
    def children(self) -> list[Any]:
        """Handles of the jobs that this attempt has enqueued."""
        if self._children is None:
            self._children = []
        return self._children

    @property
    def delivery_info(self) -> Mapping[str, object]:
        """Where the job came from, with Celery's keys; `redelivered` after a lost worker."""
        return {
            "exchange": "",
            "routing_key": self.queue,
            "priority": self.priority,
            "redelivered": self.crashes > 0,
            "is_eager": self.is_eager,
        }

    def get(self, name: str, default: object = None) -> Any:
        """Return an attribute, a header, or the default."""
        return default if name.startswith("_") else getattr(self, name, default)

    def as_execution_options(self) -> dict[str, object]:
        """Return the options with which another call would be like this one."""
        given = {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "queue": self.queue,
            "priority": self.priority,
            "shadow": self.shadow,
            "headers": self.headers,
            "ignore_result": self.ignore_result,
        }
        return {name: value for name, value in given.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        # Only for names that nothing else has: whatever a caller or a tracing library sent along.
        headers = None if name.startswith("_") else self.headers
        if headers is None or name not in headers:
            raise AttributeError(f"the request has neither an attribute nor a header {name!r}")
        return headers[name]

    def _limit(self, name: str) -> float | None:
        called = getattr(self.claim, name, None)
        limit = getattr(self._options, name, None) if called is None else called
        return None if limit is None else seconds(name, limit)

    def _option(self, name: str) -> object:
        if self.claim is None or self.claim.options is None:
            return None
        found = decode(self.claim.options)
        return found.get(name) if isinstance(found, dict) else None


def _decoded(text: str | None) -> list[Any] | None:
    found = None if text is None else decode(text)
    return found if isinstance(found, list) else None


_current: ContextVar[Context | None] = ContextVar("pgqueue_context", default=None)


def current_context() -> Context | None:
    """Return the context of the job that runs now in this thread or coroutine; None outside a worker.

    Within a direct call too: what a task does there, it does as a part of the job around it.
    """
    context = _current.get()
    return context if context is None or context.claim is not None else context.around


def request_of(task: str) -> Context:
    """Return the context in which a task's function runs now; where it does not run, one of a direct call."""
    context = _current.get()
    return context if context is not None and context.task == task else Context(task)


def current_name() -> str | None:
    """Return the name of the task whose function runs now in this thread or coroutine, as a job or called directly."""
    context = _current.get()
    return None if context is None else context.task


def enters(task: str) -> Context | None:
    """Return the context if this call of a task is the one that its tracer makes, once."""
    context = _current.get()
    if context is None or not context.entering or context.task != task:
        return None
    context.entering = False
    return context


@contextmanager
def entered(context: Context) -> Iterator[None]:
    """Make this the context of what runs inside."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def no_context(task: str) -> Iterator[Context]:
    """Run a task's function as a plain function: whatever it asks, it is not the job that runs around it."""
    context = Context(task, around=current_context())
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
