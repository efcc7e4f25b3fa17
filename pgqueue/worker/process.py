"""One worker process: starts the I/O thread, runs the slots, and stops when told."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping

from pgqueue.app import PgQueue
from pgqueue.errors import SoftTimeLimitExceeded
from pgqueue.ids import new_id
from pgqueue.tracer import Where
from pgqueue.worker import failures
from pgqueue.worker.board import EXIT_LIMIT, Board, Stop
from pgqueue.worker.buffer import LoopBuffer, ThreadBuffer
from pgqueue.worker.io_thread import IOThread
from pgqueue.worker.limits import LimitThread, Rules
from pgqueue.worker.liveness import identify
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.quota import Quota
from pgqueue.worker.signals import SignalThread
from pgqueue.worker.slot import INTERRUPT, Slot
from pgqueue.worker.slots import Bench, Tracers, work, work_in_loop, work_in_threads

logger = logging.getLogger("pgqueue.worker")

#: Seconds that a thread may hold the interpreter while another waits for it. With Python's 5 ms the I/O thread
#: would fetch the next batch too late whenever tasks are short.
_SWITCH = 0.0005
#: Seconds until another look at an attempt that could not be interrupted.
_AGAIN = 0.05
_SOFT_LIMIT = "the soft time limit of the attempt is over"


class WorkerProcess:
    """A worker of this process; `run` returns the exit code when it has stopped.

    - `app`: whose tasks it runs, from whose database.
    - `options`: how.
    - `worker`: id of this life of the process; default a fresh one. A supervisor chooses it beforehand.
    - `board`, `quota`: shared with a supervisor; default its own.
    - `replace`: called instead of ending the process at a hard time limit; it must not return.

    Exit codes: 0 everything ended in time, 1 it could not go on, 3 tasks were cut off and the database was away, 4
    tasks were cut off and their jobs handed back, 5 it wants to be replaced (`max_tasks_per_child` and the like), 6 a
    hard time limit has ended it, whatever else ran in it.

        WorkerProcess(app, WorkerOptions(pool="solo", burst=True)).run()
    """

    def __init__(
        self,
        app: PgQueue,
        options: WorkerOptions,
        *,
        worker: str | None = None,
        board: Board | None = None,
        quota: Quota | None = None,
        replace: Callable[[], object] | None = None,
    ) -> None:
        failures.install(app)
        self._app = app
        self._options = options
        self._board = board or Board(options.slots, shared=False)
        self._quota = quota or (Quota(options.max_jobs) if options.max_jobs else None)
        self._identity = identify(worker or new_id(), options.full_name)
        self._limit_thread = LimitThread(self._look_at_limits)
        rules = Rules(app.tasks, options)
        self._slots = [Slot(number, self._board, rules, self._limit_thread.expect) for number in range(options.slots)]
        self._replace = replace
        self._io: IOThread | None = None
        self._starting = threading.Lock()
        self._stop: Stop | None = None

    def run(self) -> int:
        """Work until stopped by `stop`, by a signal that leads to it, or by the end of a burst."""
        random.seed()  # forked siblings would jitter in step
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        gc.freeze()  # what is there now stays: no collection has to walk over it any more
        try:
            if self._options.pool == "asyncio":
                asyncio.run(self._run_loop())
            else:
                self._run_threads()
        finally:
            gc.unfreeze()
            sys.setswitchinterval(before)
        code = self._io_thread().exit_code
        self._board.parting = code
        return code

    def stop(self, how: Stop = Stop.WARM) -> None:
        """Stop: let running tasks end (warm), interrupt them (soft), or hand their jobs back at once (cold).

        A later call may be more urgent than an earlier one, never less.
        """
        with self._starting:
            self._stop = max(how, self._stop or how)
            if self._io is not None:
                self._io.stop(self._stop)

    def stop_on(self, signals: Mapping[int, Stop | None], tell: Callable[[Stop, int], object] | None = None) -> None:
        """Have these signals stop the process; to be called in the main thread, before `run`.

        - `signals`: what each means; None: the supervisor has said it on the board, or has died: warm.
        - `tell`: called as well, with the number of the signal.

        Where a signal means something itself, the second one of any kind means at least soft, the third cold.
        """

        def stop(how: Stop, number: int) -> None:
            self.stop(how)
            if tell is not None:
                tell(how, number)

        SignalThread(signals, self._board, stop, grace=self._options.grace).listen()

    # -- inside ----------------------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        buffer = ThreadBuffer()
        bench = self._start(buffer)
        if self._options.slots == 1 and self._options.pool != "threads":
            self._work_here(bench, buffer)
        else:
            threads = work_in_threads(bench, buffer, self._slots)
            self._join(self._io_thread())
            for thread in threads:
                self._join(thread)
        self._join(self._io_thread())

    def _work_here(self, bench: Bench, buffer: ThreadBuffer) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main:
            signal.signal(INTERRUPT, self._slots[0].on_signal)
        try:
            work(bench, buffer, self._slots[0])
        finally:
            if main:
                signal.signal(INTERRUPT, signal.SIG_IGN)  # one may be on its way

    async def _run_loop(self) -> None:
        buffer = LoopBuffer(asyncio.get_running_loop())
        bench = self._start(buffer)
        await work_in_loop(bench, buffer, self._slots)
        self._join(self._io_thread())

    def _start(self, buffer: ThreadBuffer | LoopBuffer) -> Bench:
        io = IOThread(
            self._app, self._identity, self._options, buffer, self._slots, self._board, self._quota, self._end_now
        )
        with self._starting:
            self._io = io
            if self._stop is not None:  # said before there was a thread to tell
                io.stop(self._stop)
        io.start()
        tracers = Tracers(self._app.tasks, Where(self._identity.name, self._identity.id))
        crashes = self._app.settings.max_crashes
        return Bench(self._app.tasks, tracers, self._app.database, self._identity.id, crashes, io.report, io.attach)

    def _look_at_limits(self, now: float) -> float:
        """Interrupt what is over its soft limit, wake the I/O thread for what is over its hard one; say when next."""
        following = math.inf
        for slot in self._slots:
            claim = slot.claim  # first: an attempt that begins meanwhile has another
            soft, hard = slot.soft_at, slot.hard_at
            if soft <= now and not slot.interrupt(claim, SoftTimeLimitExceeded(_SOFT_LIMIT)):
                following = min(following, now + _AGAIN)  # not inside yet, or no longer
            if hard <= now:
                self._io_thread().look_at_limits()
            following = min([following, *(at for at in (soft, hard) if at > now)])
        return following

    def _end_now(self, code: int) -> None:
        """End the process from the I/O thread: tasks hold the slots, and what could be said has been said."""
        self._board.parting = code
        for handler in (*logging.getLogger("pgqueue").handlers, *logging.getLogger().handlers):
            handler.flush()
        sys.stdout.flush()
        if code == EXIT_LIMIT and self._replace is not None and self._stop is None:
            self._replace()
        os._exit(code)

    def _io_thread(self) -> IOThread:
        assert self._io is not None
        return self._io

    @staticmethod
    def _join(thread: threading.Thread) -> None:
        # A join without a timeout does not let signal handlers run on every platform.
        while thread.is_alive():
            thread.join(3600.0)
