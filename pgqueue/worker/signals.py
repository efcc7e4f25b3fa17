"""Signals, heard by a thread of their own: the main thread may be deep in C, the I/O thread in a statement."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

from pgqueue.worker.board import EXIT_UNTOLD, Board, Stop
from pgqueue.worker.pace import SOFT

logger = logging.getLogger("pgqueue.worker")

#: Seconds beyond the time that a stop leaves after which the process ends, whatever still holds it up.
MARGIN = 2.0


class SignalThread(threading.Thread):
    """Says how to stop when a signal means so, and ends the process when that is not heeded in time.

    - `signals`: what each means. None: what the supervisor has said on the `board`, else warm. It, the whole group of
      the terminal and the system may all tell a child, so its signals are not counted. Others are: the
      second means at least soft, the third cold.
    - `on_stop`: told how, and the number of the signal.
    - `grace`: seconds that running tasks have after a warm stop.
    """

    def __init__(
        self, signals: Mapping[int, Stop | None], board: Board, on_stop: Callable[[Stop, int], None], *, grace: float
    ) -> None:
        super().__init__(name="pgqueue-signals", daemon=True)
        self._signals = dict(signals)
        self._board = board
        self._on_stop = on_stop
        self._left = {Stop.WARM: grace, Stop.SOFT: SOFT, Stop.COLD: 0.0}
        self._heard: Stop | None = None
        self._deadline: float | None = None
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def listen(self) -> None:
        """Have signals arrive here, and begin; to be called in the main thread.

        A child that a task forks gets Python's own handling back, and does not speak into our pipe.
        """
        for number in self._signals:
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
                if number in self._signals:
                    self._hear(number)

    def _hear(self, number: int) -> None:
        meant = self._signals[number]
        if meant is None:
            how = self._board.stop or Stop.WARM
        else:
            how = meant if self._heard is None else max(meant, Stop(min(self._heard + 1, Stop.COLD)))
        if self._heard is not None and how <= self._heard:
            return
        self._heard = how
        deadline = time.monotonic() + self._left[how] + MARGIN
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        self._on_stop(how, number)

    def _end(self) -> None:
        logger.warning("this process does not end by itself in time; it is ended, and others take its jobs back")
        sys.stderr.flush()
        self._board.parting = EXIT_UNTOLD
        os._exit(EXIT_UNTOLD)

    def _block(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in {*self._signals, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._unblock()
