"""A place where one attempt runs, as the other threads of the process see it, and the way to interrupt it."""

from __future__ import annotations

import asyncio
import ctypes
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pgqueue.types import Claim
from pgqueue.worker.board import Begun, Board
from pgqueue.worker.limits import Rules

#: The signal that brings an exception into the main thread. Not SIGALRM or SIGUSR1: tasks use these themselves.
INTERRUPT: int = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2


class Slot:
    """The attempt of one slot: what runs there, until when it may, and how to raise an exception in it.

    The tracer says `enter` and `leave` around the user's function; only between the two, and once an attempt, an
    exception can be raised in it: in the main thread by a signal, in a coroutine by cancellation, in another thread
    at its next bytecode (so never while it is inside a C function).

    - `number`: of this slot; `board`: where it notes what it has begun.
    - `rules`: of the tasks.
    - `expect`: called with the time (monotonic, seconds) of each time limit.
    """

    def __init__(
        self,
        number: int,
        board: Board,
        rules: Rules,
        expect: Callable[[float], None],
    ) -> None:
        self.number = number
        self.claim: Claim | None = None
        self.interruption: BaseException | None = None
        self.soft_at = self.hard_at = math.inf
        self.limit = 0.0
        #: Whether hooks of an attempt that has ended are still to be run here.
        self.telling = False
        #: Process id of the server's side of the transaction that the attempt has open.
        self.session: int | None = None
        self._board = board
        self._rules = rules
        self._expect = expect
        self._lock = threading.Lock()
        self._limited = self._condemned = False
        self._inside = self._shielded = self._raised = False
        self._main = threading.main_thread().ident or 0
        self._thread = 0
        self._coroutine: tuple[asyncio.AbstractEventLoop, asyncio.Task[object]] | None = None

    # -- by the slot itself ----------------------------------------------------------------------------------

    def begin(self, claim: Claim) -> None:
        """Begin an attempt."""
        self._inside = False  # an exception may have come in the middle of `leave`
        self.claim, self.interruption, self._raised = claim, None, False
        rule = self._rules[claim.task]
        hard, soft, _, once = rule
        if claim.time_limit is not None or claim.soft_time_limit is not None:
            hard, soft = rule.limits(claim)
        if once:
            self._board.begin_once(claim.id, claim.attempt)
        if hard is None:
            self._board.begin(self.number, claim.id, claim.attempt)
            if soft is None:
                return
        now = time.monotonic()
        self._limited = True
        if soft is not None:
            self.soft_at = now + soft
            self._expect(self.soft_at)
        if hard is not None:
            self.limit, self.hard_at = hard, now + hard
            begun = Begun(claim.id, claim.attempt, claim.crashes, rule.repeats, self.hard_at, hard)
            self._board.begin_limited(self.number, begun)
            self._expect(self.hard_at)

    def end(self) -> bool:
        """Stop the clock before anything is committed; return whether the attempt still counts.

        False: its hard limit came first, and the process is about to end.
        """
        if not self._limited:
            return True
        with self._lock:
            if self._condemned:
                return False
            self._limited = False
            self.soft_at = self.hard_at = math.inf
        self._board.disarm(self.number)
        return True

    # -- by the tracer ---------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The user's function begins, in this thread."""
        self._thread = threading.get_ident()
        self._coroutine = None
        self._inside = True

    def aenter(self) -> None:
        """The user's coroutine begins, in this loop."""
        current = asyncio.current_task()
        assert current is not None
        self._coroutine = (asyncio.get_running_loop(), current)
        self._inside = True

    def leave(self) -> None:
        """The user's function has ended: what is to be raised in it from now on comes too late."""
        self._inside = False
        with self._lock:  # whoever is just raising something has done so now, or will not
            if self._coroutine is None and self._thread != self._main and self._raised:
                _raise_in(self._thread, None)

    # -- by others -------------------------------------------------------------------------------------------

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let nothing be raised in the middle of this; it is raised at the end. For functions, in their own thread."""
        with self._lock:
            self._shielded = True
        try:
            yield
        finally:
            with self._lock:
                self._shielded = False
                late = self.interruption if self._inside and not self._raised else None
                self._raised = self._raised or late is not None
            if late is not None:
                raise late

    def interrupt(self, claim: Claim | None, error: BaseException) -> bool:
        """Raise an exception in the attempt of a claim; return whether it was running and is interrupted by this."""
        with self._lock:
            if claim is None or self.claim is not claim or not self._inside or self.interruption is not None:
                return False
            self.interruption = error
            self.soft_at = math.inf
            if self._shielded:
                return True
            if self._coroutine is not None:
                self._coroutine[0].call_soon_threadsafe(self._cancel, claim, self._coroutine[1])
            elif self._thread == self._main:
                signal.pthread_kill(self._main, INTERRUPT)
            else:
                self._raised = True
                _raise_in(self._thread, type(error))
            return True

    def condemn(self, now: float) -> bool:
        """Return whether the attempt is over its hard limit; then it commits nothing any more."""
        with self._lock:
            self._condemned = self._condemned or (self._limited and self.hard_at <= now)
            return self._condemned

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Raise, in the main thread, what `interrupt` has left for it."""
        if self._inside and not self._shielded and not self._raised and self.interruption is not None:
            self._raised = True
            raise self.interruption

    def _cancel(self, claim: Claim, task: asyncio.Task[object]) -> None:
        if self._inside and self.claim is claim:
            task.cancel()


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Have CPython raise an exception in another thread at its next bytecode; None takes it back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind))
