"""Celery's signals: functions of yours that pgqueue calls when something happens in a worker.

    from pgqueue.signals import worker_process_init

    @worker_process_init.connect
    def seed(**kwargs):
        random.seed()

Receivers run in the process and the thread where it happens, one after the other, and what waits for them is named
below: keep them short. Not built on blinker: it knows no dispatch_uid, lets an exception of one receiver keep the
others from being called, and calls them in another way, so most of this would have to be written around it.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar, overload

from pgqueue.errors import InvalidOption

logger = logging.getLogger("pgqueue.signals")

Receiver = Callable[..., object]
R = TypeVar("R", bound=Receiver)

#: Held while a tuple of receivers is replaced, never while receivers run. A fork waits for it: a child must not
#: inherit it held by a thread that it does not have. Reentrant: a signal handler or a destructor may connect.
_replacing = threading.RLock()
os.register_at_fork(before=_replacing.acquire, after_in_parent=_replacing.release, after_in_child=_replacing.release)


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """One connected receiver; `reference` returns it, or None when it is gone."""

    reference: Callable[[], Receiver | None]
    sender: object
    uid: Hashable

    def wants(self, sender: object) -> bool:
        return self.sender is None or _same_sender(self.sender, sender)

    def is_for(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        same = self.uid == uid if self.uid is not None or uid is not None else _same(self.reference(), receiver)
        return same and _same_sender(self.sender, sender)


class Signal:
    """Something that happens, and the functions to be called then.

    - `name`: shown in logs.
    - `payload`: names of the arguments that receivers get besides `signal` and `sender`.

    `receivers` is empty if nobody listens: `if worker_ready.receivers:` spares the making of a payload.
    """

    def __init__(self, name: str, *payload: str) -> None:
        self.name = name
        self.payload = payload
        #: Replaced as a whole and never changed, so that it can be walked without a lock.
        self.receivers: tuple[_Link, ...] = ()

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    @overload
    def connect(self, receiver: R, sender: object = None, weak: bool = True, dispatch_uid: Hashable = None) -> R: ...
    @overload
    def connect(
        self, receiver: None = None, sender: object = None, weak: bool = True, dispatch_uid: Hashable = None
    ) -> Callable[[R], R]: ...
    def connect(
        self, receiver: Any = None, sender: object = None, weak: bool = True, dispatch_uid: Hashable = None
    ) -> Any:
        """Have a function called as `receiver(signal=..., sender=..., **payload)`; return it. Also a decorator.

        - `sender`: only for this one; default for all. It is kept alive.
        - `weak`: a function or method that nobody else holds any more, such as a local one, is disconnected.
        - `dispatch_uid`: what the receiver is known by instead of itself. Connecting it again with the same sender
          changes nothing.

        Raises InvalidOption for what cannot be called this way.

            @worker_ready.connect
            def announce(sender, **kwargs): ...
        """
        if receiver is None:
            return lambda found: self.connect(found, sender, weak, dispatch_uid)
        self._check(receiver)
        link = _Link(_weak(receiver) if weak else lambda: receiver, sender, dispatch_uid)
        with _replacing:
            kept = self._living()
            known = any(other.is_for(receiver, sender, dispatch_uid) for other in kept)
            self.receivers = kept if known else (*kept, link)
        return receiver

    def disconnect(
        self,
        receiver: Receiver | None = None,
        sender: object = None,
        weak: bool | None = None,
        dispatch_uid: Hashable = None,
    ) -> bool:
        """Call a receiver no more; return whether it was connected with this sender and this uid.

        A `send` that another thread has begun may still call it. `weak` is there because Celery has it.
        """
        with _replacing:
            before = self._living()
            self.receivers = tuple(link for link in before if not link.is_for(receiver, sender, dispatch_uid))
            return len(self.receivers) < len(before)

    def heard_by(self, sender: object) -> bool:
        """Return whether anybody wants to hear of this sender, so that a payload is worth making."""
        return any(link.wants(sender) for link in self.receivers)

    def send(self, sender: object = None, **named: object) -> list[tuple[Receiver, object]]:
        """Call the receivers in the order in which they were connected; return each with its answer or its exception.

        An exception is logged and stops nobody. What is no `Exception` goes through at once: SystemExit is a
        receiver that wants the process to end, and the others were thrown into this thread and are not for us.
        """
        answers: list[tuple[Receiver, object]] = []
        gone = False
        for link in self.receivers:
            receiver = link.reference()
            if receiver is None:
                gone = True
            elif link.wants(sender):
                answers.append((receiver, self._call(receiver, sender, named)))
        if gone:
            with _replacing:
                self.receivers = self._living()
        return answers

    def _call(self, receiver: Receiver, sender: object, named: dict[str, object]) -> object:
        try:
            return receiver(signal=self, sender=sender, **named)
        except Exception as error:
            logger.exception("the receiver %s of the signal %s failed", _name(receiver), self.name)
            return error

    def _living(self) -> tuple[_Link, ...]:
        return tuple(link for link in self.receivers if link.reference() is not None)

    def _check(self, receiver: Receiver) -> None:
        """Refuse now what would fail at every call."""
        if not callable(receiver):
            raise InvalidOption(f"a receiver of {self.name} must be a function, not {receiver!r:.80}")
        if inspect.iscoroutinefunction(receiver):
            raise InvalidOption(f"the receiver {_name(receiver)} of {self.name} is a coroutine; use a plain function")
        names = ("signal", "sender", *self.payload)
        try:
            signature = inspect.signature(receiver)
        except (ValueError, TypeError):  # some functions written in C do not tell
            return
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            raise InvalidOption(f"the receiver {_name(receiver)} of {self.name} must accept **kwargs")
        try:
            signature.bind(**dict.fromkeys(names))
        except TypeError as error:
            raise InvalidOption(
                f"the receiver {_name(receiver)} of {self.name} is called by name with {', '.join(names)}: {error}"
            ) from None


def _weak(receiver: Receiver) -> Callable[[], Receiver | None]:
    if isinstance(receiver, MethodType):
        return weakref.WeakMethod(receiver)
    try:
        return weakref.ref(receiver)
    except TypeError:
        raise InvalidOption(f"{_name(receiver)} cannot be held weakly: connect it with weak=False") from None


def _same(one: object, other: object) -> bool:
    # Two looks at one method give two objects; they are equal if function and instance are the same.
    return one is other or (isinstance(one, MethodType) and one == other)


def _same_sender(one: object, other: object) -> bool:
    # Not == in general: a sender may compare as it likes. Names of tasks are texts, equal without being the same.
    return one is other or (isinstance(one, str) and one == other)


def _name(receiver: object) -> str:
    found = getattr(receiver, "__qualname__", None) or type(receiver).__qualname__
    return f"{getattr(receiver, '__module__', '?')}.{found}"


# -- of workers: their sender is the app ----------------------------------------------------------------------------
# "The started process" is the one that `pgqueue worker` is: the parent of the worker processes with -P prefork,
# threads and asyncio, the only process with -P solo, which sends no signal of children. All in its main thread.

#: In the started process, once, before anything is forked.
worker_init = Signal("worker_init")
#: In the started process, before each fork, replacements of dead children too: close what a child must not inherit.
worker_before_create_process = Signal("worker_before_create_process")
#: In each child, after the fork and before its first job: open connections of your own here. It delays those jobs.
worker_process_init = Signal("worker_process_init")
#: In each child, when it has run its last job and its outcome is committed. `pid`: of the child; `exitcode`: that it
#: will have. A child that is killed or cut off sends nothing.
worker_process_shutdown = Signal("worker_process_shutdown", "pid", "exitcode")
#: In the started process, once, when all its children are started, or a solo worker is about to claim.
worker_ready = Signal("worker_ready")
#: In the started process (with -P solo in a thread beside the main one), at each stage of a stop. `sig`: name of the
#: system's signal, such as "SIGTERM"; `how`: "Warm", "Soft" or "Cold"; `exitcode`: that the worker will have if all
#: goes well.
worker_shutting_down = Signal("worker_shutting_down", "sig", "how", "exitcode")
#: In the started process, once, when all children have ended: the last thing before the process ends.
worker_shutdown = Signal("worker_shutdown")


# -- of calls: their sender is the name of the task -------------------------------------------------------------------

#: Before a call is sent to the database, in the process that makes it. `body`: (args, kwargs, {}); `headers`: what goes
#: along, with id and task; what a receiver adds to it is sent too and found in `self.request.headers`. `routing_key`:
#: name of the queue. The other words of Celery's are there and empty.
before_task_publish = Signal(
    "before_task_publish", "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"
)
#: When the database has taken a call; in a transaction of the caller's it is not committed then.
after_task_publish = Signal("after_task_publish", "body", "exchange", "routing_key", "headers")

# -- of tasks: their sender is the task; they are sent where the attempt runs ------------------------------------------

#: When a job has been claimed, in the I/O thread of the worker: `request`: its context.
task_received = Signal("task_received", "request")
#: Before an attempt.
task_prerun = Signal("task_prerun", "task_id", "task", "args", "kwargs")
#: After an attempt that `task_prerun` was sent for, last of all. `state`: None if the attempt counts for nothing.
task_postrun = Signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state")
#: When a SUCCESS is committed.
task_success = Signal("task_success", "result")
#: When a FAILURE is committed, or a rejection.
task_failure = Signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo")
#: When a retry is committed. `reason`: the `Retry`.
task_retry = Signal("task_retry", "request", "reason", "einfo")
#: When a worker has met a job that is revoked or has expired. A job that waits is revoked in the database, by nobody.
task_revoked = Signal("task_revoked", "request", "terminated", "signum", "expired")
#: When a hook or another receiver has failed; the attempt keeps its outcome.
task_internal_error = Signal(
    "task_internal_error", "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"
)
#: When the arguments of a job cannot be read. `message`: its context.
task_rejected = Signal("task_rejected", "message", "exc")
#: When a worker meets a job whose task it does not have, in its I/O thread; the sender is the app.
task_unknown = Signal("task_unknown", "message", "exc", "name", "id")

# -- of logging: the sender is the app ---------------------------------------------------------------------------------

#: Before `pgqueue worker` sets up logging; with a receiver it leaves that to it.
setup_logging = Signal("setup_logging", "loglevel", "logfile", "format", "colorize")
