"""The parent of several worker processes: starts them, replaces the dead, hands their leases back, stops them."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import run
from pgqueue.errors import DatabaseUnavailable
from pgqueue.ids import new_id
from pgqueue.types import ErrorReport
from pgqueue.worker.buffer import Board
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.pace import backoff
from pgqueue.worker.process import EXIT_ABANDONED, EXIT_OK, WorkerProcess

logger = logging.getLogger("pgqueue.worker")

#: A child that lived shorter than this, in seconds, is replaced with a pause that grows.
_SHORT_LIFE = 5.0
#: Seconds beyond the grace period after which a child is ended by force.
_MARGIN = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """One worker process as its parent sees it."""

    place: int
    pid: int
    worker: str
    started: float


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended before its time and whose leases are not handed back yet; `ours`: we have ended it."""

    worker: str
    pid: int
    status: int
    begun: tuple[str, ...]
    ours: bool


class Supervisor:
    """Runs `options.processes` worker processes and waits for their end.

    The parent holds no connection while it forks, and imports nothing of the user's later than its children. It
    knows what each child has begun (the board), so that a crash counts for those jobs alone.

        Supervisor(app, WorkerOptions(concurrency=4)).run()
    """

    def __init__(self, app: PgQueue, options: WorkerOptions) -> None:
        self._app = app
        self._options = options
        self._boards = [Board(options.slots) for _ in range(options.processes)]
        self._children: dict[int, Child] = {}
        self._restarts: list[tuple[float, int]] = []  # when, place
        self._deaths: list[Death] = []
        self._failures = [0] * options.processes
        self._retry_at = 0.0
        self._signals = 0
        self._stop_at: float | None = None
        self._forced = False
        self._abandoned = False

    def run(self) -> int:
        """Work until stopped; return the exit code (see `WorkerProcess`)."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        handlers: dict[int, Callable[..., None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGCHLD: lambda *_: None,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            for place in range(self._options.processes):
                self._start(place)
            while self._children or self._restarts or self._deaths:
                self._turn(reader)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)
        return EXIT_ABANDONED if self._abandoned else EXIT_OK

    # -- one turn --------------------------------------------------------------------------------------------

    def _turn(self, reader: int) -> None:
        select.select([reader], [], [], self._patience())
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            pass
        self._reap()
        self._bury()
        self._obey()
        now = time.monotonic()
        due = [place for when, place in self._restarts if when <= now]
        self._restarts = [(when, place) for when, place in self._restarts if when > now]
        for place in due:
            self._start(place)

    def _patience(self) -> float:
        now = time.monotonic()
        times = [when for when, _ in self._restarts]
        if self._deaths:
            times.append(self._retry_at)
        if self._stop_at is not None and not self._forced:
            times.append(self._stop_at)
        return max(0.0, min(times, default=now + 3600.0) - now)

    def _on_stop(self, *_: object) -> None:
        self._signals += 1

    def _obey(self) -> None:
        """Stop warmly at the first signal; end the children at the second, or when they take too long."""
        now = time.monotonic()
        if self._signals and self._stop_at is None:
            logger.info("stopping: running tasks have %g s to end", self._options.grace)
            self._stop_at = now + self._options.grace + _MARGIN
            self._restarts.clear()
            self._tell_children(signal.SIGTERM)
        elif self._stop_at is not None and not self._forced and (self._signals > 1 or now >= self._stop_at):
            logger.warning("stopping at once: %d processes are ended, their jobs handed back", len(self._children))
            self._forced, self._abandoned = True, True
            self._tell_children(signal.SIGKILL)

    def _tell_children(self, number: int) -> None:
        for pid in self._children:
            os.kill(pid, number)

    # -- children --------------------------------------------------------------------------------------------

    def _start(self, place: int) -> None:
        worker, parent = new_id(), os.getpid()
        self._boards[place].clear()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal between the fork and the child's own handlers would be taken by those of the parent, and be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        pid = os.fork()
        if pid == 0:
            self._be_child(place, worker, parent, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._children[pid] = Child(place, pid, worker, time.monotonic())
        logger.debug("worker process %d started", pid)

    def _be_child(self, place: int, worker: str, parent: int, mask: set[int | signal.Signals]) -> None:
        """Run in the forked child, and never return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            process = WorkerProcess(self._app, self._options, worker=worker, board=self._boards[place])
            # Ctrl-C reaches the whole group of a terminal, SIGTERM perhaps too; the parent decides what is the second.
            signal.signal(signal.SIGINT, lambda *_: None)
            process.stop_on(signal.SIGTERM, once=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _end_with_parent(parent, process)
            code = process.run()
        except BaseException:
            logger.critical("worker process %d failed", os.getpid(), exc_info=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._ended(self._children.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        if code != EXIT_OK:
            ours = self._forced or code == EXIT_ABANDONED
            begun = tuple(self._boards[child.place].begun())
            self._deaths.append(Death(child.worker, child.pid, code, begun, ours))
            self._retry_at = 0.0
            if not ours:
                logger.error("worker process %d died: %s", child.pid, cause(code))
        self._abandoned = self._abandoned or code == EXIT_ABANDONED
        if self._stop_at is not None or (self._options.burst and code == EXIT_OK):
            return
        short = time.monotonic() - child.started < _SHORT_LIFE
        self._failures[child.place] = self._failures[child.place] + 1 if short else 0
        pause = backoff(self._failures[child.place], 0.5) if short else 0.0
        self._restarts.append((time.monotonic() + pause, child.place))

    def _bury(self) -> None:
        """Hand back the leases of children that died; if the database is away, try again in a moment."""
        if not self._deaths or time.monotonic() < self._retry_at:
            return
        try:
            with closing(self._app.database.connect("supervisor")) as connection:
                while self._deaths:
                    self._bury_one(connection, self._deaths[0])
                    del self._deaths[0]
        except (psycopg.Error, DatabaseUnavailable) as error:
            logger.warning("the leases of dead workers cannot be handed back yet: %s", error)
            self._retry_at = time.monotonic() + 1.0
            if self._stop_at is not None:
                self._deaths.clear()  # stopping waits for no database; other workers will notice

    def _bury_one(self, connection: psycopg.Connection[object], death: Death) -> None:
        message = f"worker process {death.pid} died: {cause(death.status)}"
        error = ErrorReport("WorkerLostError", "pgqueue.errors", message)
        statements = self._app.database.statements
        limit = self._app.settings.max_crashes
        for job in run(connection, statements.bury(death.worker, error, death.begun, limit, counts=not death.ours)):
            logger.info("%s[%s] of worker process %d is %s now", job.task, job.id[-12:], death.pid, job.state)


def cause(code: int) -> str:
    """Return how a process ended, in words: the signal that killed it, or its exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name + (" (out of memory?)" if -code == signal.SIGKILL else "")


def _end_with_parent(parent: int, process: WorkerProcess) -> None:
    """Have this process stop warmly when its parent dies, where the system can tell (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        process.stop()
