"""What a running task may know about its job: `self.request`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from pgqueue.arguments import Arguments
from pgqueue.retry import RetryPolicy
from pgqueue.serialization import decode
from pgqueue.types import Claim


class Traced(Protocol):
    """What the tracer needs of a task."""

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
    def max_payload_bytes(self) -> int: ...


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

    Outside a worker `called_directly` is True and `id` is None. Unknown names: `get(name, default)`.

    - `around`: for a task that another calls directly: the context of the job that runs.
    - `max_retries`: the limit that `self.retry(max_retries=...)` has set for this attempt; None: the task's.
    """

    __slots__ = (
        "args",
        "around",
        "called_directly",
        "claim",
        "hostname",
        "kwargs",
        "max_retries",
        "task",
        "transactor",
    )

    def __init__(
        self,
        task: str | None = None,
        claim: Claim | None = None,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        hostname: str = "",
        transactor: Transactor | None = None,
        around: Context | None = None,
    ) -> None:
        self.task = task
        self.claim = claim
        self.args = args
        self.kwargs: Mapping[str, object] = kwargs or {}
        self.hostname = hostname
        self.transactor = transactor
        self.around = around
        self.max_retries: int | None = None
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
    def delivery_info(self) -> Mapping[str, object]:
        """Where the job came from, with Celery's keys; `redelivered` after a lost worker."""
        return {
            "exchange": "",
            "routing_key": self.queue,
            "priority": self.priority,
            "redelivered": self.crashes > 0,
        }

    def get(self, name: str, default: object = None) -> Any:
        """Return an attribute, a header, or the default."""
        if not name.startswith("_") and hasattr(self, name):
            return getattr(self, name)
        return (self.headers or {}).get(name, default)


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


@contextmanager
def no_context(task: str) -> Iterator[Context]:
    """Run a task's function as a plain function: whatever it asks, it is not the job that runs around it."""
    context = Context(task, around=current_context())
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
