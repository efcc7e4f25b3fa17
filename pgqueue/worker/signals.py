"""Signals, heard by a thread of their own: the main thread may be deep in C, the I/O thread in a statement."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection

logger = logging.getLogger("pgqueue.worker")

#: Seconds beyond the grace period after which the process ends, whatever still holds it up.
MARGIN = 2.0


class SignalThread(threading.Thread):
    """Calls `on_stop` for every signal that means so, and ends the process when that is not heeded in time.

    - `numbers`: the signals; `once`: all of them together mean one stop, as for a child whose parent and whose whole
      group are told.
    - `grace`: seconds that running tasks have; the second signal leaves them none.
    - `exit_code`: of a process that had to be ended.
    """

    def __init__(
        self, numbers: Collection[int], on_stop: Callable[[], None], *, grace: float, once: bool, exit_code: int
    ) -> None:
        super().__init__(name="pgqueue-signals", daemon=True)
        self._numbers = frozenset(numbers)
        self._on_stop = on_stop
        self._grace = grace
        self._once = once
        self._exit_code = exit_code
        self._deadline: float | None = None
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def listen(self) -> None:
        """Have signals arrive here, and begin; to be called in the main thread.

        A child that a task forks gets Python's own handling back, and does not speak into our pipe.
        """
        for number in self._numbers:
            # A handler of ours keeps the default from acting; an ignored signal would not be heard at all, and would
            # be ignored by the programs that tasks start.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # Blocked around a fork: what is meant for the child must not meet our handlers in it.
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._forget)
        self.start()

    def run(self) -> None:
        """Wait for signals, and for the end of the time that they leave."""
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], left)
            if not ready:
                self._end()
            for number in os.read(self._reader, 4096):
                if number in self._numbers:
                    self._stop()

    def _stop(self) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._grace + MARGIN
            self._on_stop()
        elif not self._once:
            self._deadline = min(self._deadline, now + MARGIN)
            self._on_stop()

    def _end(self) -> None:
        logger.warning("this process does not end by itself in time; it is ended, and others take its jobs back")
        sys.stderr.flush()
        os._exit(self._exit_code)

    def _block(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._unblock()
