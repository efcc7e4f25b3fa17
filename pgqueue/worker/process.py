"""One worker process: starts the I/O thread, runs the slots, and stops when told."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading

from pgqueue.app import PgQueue
from pgqueue.ids import new_id
from pgqueue.worker.buffer import Board, LoopBuffer, ThreadBuffer
from pgqueue.worker.io_thread import IOThread
from pgqueue.worker.liveness import identify
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.signals import SignalThread
from pgqueue.worker.slots import Bench, Tracers, work, work_in_loop, work_in_threads

logger = logging.getLogger("pgqueue.worker")

#: Seconds that a thread may hold the interpreter while another waits for it. With Python's 5 ms the I/O thread
#: would fetch the next batch too late whenever tasks are short.
_SWITCH = 0.0005

EXIT_OK, EXIT_FAILED, EXIT_ABANDONED = 0, 1, 3


class WorkerProcess:
    """A worker of this process; `run` returns the exit code when it has stopped.

    - `app`: whose tasks it runs, from whose database.
    - `options`: how.
    - `worker`: id of this life of the process; default a fresh one. A supervisor chooses it beforehand.
    - `board`: shared with a supervisor; default one of its own.

    Exit codes: 0 everything ended or was handed back in time, 1 it could not go on, 3 tasks that did not end
    within the grace period were handed back and cut off.

        WorkerProcess(app, WorkerOptions(pool="solo", burst=True)).run()
    """

    def __init__(
        self, app: PgQueue, options: WorkerOptions, *, worker: str | None = None, board: Board | None = None
    ) -> None:
        self._app = app
        self._options = options
        self._board = board or Board(options.slots)
        self._identity = identify(worker or new_id(), options.full_name)
        self._io: IOThread | None = None
        self._starting = threading.Lock()
        self._stops = 0

    def run(self) -> int:
        """Work until stopped by `stop`, by a signal that leads to it, or by the end of a burst."""
        random.seed()  # forked siblings would jitter in step
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            if self._options.pool == "asyncio":
                asyncio.run(self._run_loop())
            else:
                self._run_threads()
        finally:
            sys.setswitchinterval(before)
        return self._outcome()

    def stop(self) -> None:
        """Stop warmly: claim no more, let running tasks end. The second time, hand their jobs back and end now."""
        with self._starting:
            self._stops += 1
            if self._io is not None:
                self._io.stop()

    def stop_on(self, *signals: int, once: bool = False) -> None:
        """Have these signals do what `stop` does; to be called in the main thread, before `run`.

        - `once`: however many arrive, they mean one stop.
        """
        SignalThread(signals, self.stop, grace=self._options.grace, once=once, exit_code=EXIT_ABANDONED).listen()

    def _run_threads(self) -> None:
        buffer = ThreadBuffer()
        bench = self._start(buffer)
        if self._options.slots == 1 and self._options.pool != "threads":
            work(bench, buffer)
        else:
            threads = work_in_threads(bench, buffer, self._options.slots)
            self._join(self._io_thread())
            for thread in threads:
                self._join(thread)
        self._join(self._io_thread())

    async def _run_loop(self) -> None:
        buffer = LoopBuffer(asyncio.get_running_loop())
        bench = self._start(buffer)
        await work_in_loop(bench, buffer, self._options.slots)
        self._join(self._io_thread())

    def _start(self, buffer: ThreadBuffer | LoopBuffer) -> Bench:
        io = IOThread(self._app, self._identity, self._options, buffer, self._abandon)
        with self._starting:
            self._io = io
            for _ in range(self._stops):  # that came before there was a thread to tell
                io.stop()
        io.start()
        tracers = Tracers(self._app.tasks, self._identity.name)
        return Bench(self._app.tasks, tracers, self._board, self._app.database, self._identity.id, io.report)

    def _abandon(self) -> None:
        """End the process from the I/O thread: tasks hold the slots and the grace period is over."""
        logger.warning(
            "the grace period is over; %d tasks are cut off, their jobs handed back", len(self._io_thread().abandoned)
        )
        for handler in logging.getLogger("pgqueue").handlers:
            handler.flush()
        sys.stdout.flush()
        os._exit(EXIT_ABANDONED)

    def _io_thread(self) -> IOThread:
        assert self._io is not None
        return self._io

    @staticmethod
    def _join(thread: threading.Thread) -> None:
        # A join without a timeout does not let signal handlers run on every platform.
        while thread.is_alive():
            thread.join(3600.0)

    def _outcome(self) -> int:
        io = self._io_thread()
        return EXIT_FAILED if io.failure is not None else EXIT_OK
