"""The parent of several worker processes: starts them, replaces the dead, hands their leases back, stops them."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType

import psycopg

from pgqueue.app import PgQueue
from pgqueue.errors import PgQueueError
from pgqueue.ids import new_id
from pgqueue.signals import worker_before_create_process, worker_ready, worker_shutting_down
from pgqueue.worker import titles
from pgqueue.worker.board import (
    EXIT_CUT_OFF,
    EXIT_FAILED,
    EXIT_LIMIT,
    EXIT_OK,
    EXIT_REPLACE,
    EXIT_UNTOLD,
    Begun,
    Board,
    Stop,
)
from pgqueue.worker.child import be_child
from pgqueue.worker.deaths import Death, bury, cause
from pgqueue.worker.memory import oom_kills
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.pace import SOFT, backoff
from pgqueue.worker.quota import Quota

logger = logging.getLogger("pgqueue.worker")

#: Seconds between two looks at the boards.
_TICK = 0.5
#: A child that lived shorter than this, in seconds, is replaced with a pause that grows.
_SHORT_LIFE = 5.0
#: Seconds beyond the grace period, or beyond a hard time limit, after which a child is ended by force.
_MARGIN = 5.0
#: Seconds between two tries to hand back the leases of the dead.
_RETRY = 1.0
#: Seconds to wait for a connection: the supervisor has one thread.
_CONNECT = 3.0
#: Seconds between two processes that autoscale starts, and seconds without work after which it ends one.
_SCALE_UP, _SCALE_DOWN = 1.0, 10.0


@dataclass(slots=True, eq=False)
class Child:
    """One worker process as its parent sees it.

    `isolated`: it runs suspects only. `dismissed`: it is to end and not to be replaced.
    """

    place: int
    pid: int
    worker: str
    started: float
    board: Board
    isolated: bool
    dismissed: bool = False
    overdue: tuple[Begun, ...] = ()


class Supervisor:
    """Runs the worker processes that `options` ask for, and waits for their end.

    The parent holds no connection while it forks, and imports nothing of the user's later than its children. It
    knows what each child has begun (the board), so that a crash counts for those jobs alone.

        Supervisor(app, WorkerOptions(concurrency=4)).run()
    """

    def __init__(self, app: PgQueue, options: WorkerOptions) -> None:
        self._app = app
        self._options = options
        self._boards = [Board(options.slots) for _ in range(options.most_processes)]
        self._quota = Quota(options.max_jobs) if options.max_jobs else None
        self._children: dict[int, Child] = {}
        self._restarts: list[tuple[float, int]] = []  # when, place
        self._deaths: list[Death] = []
        self._failures = [0] * options.most_processes
        self._retry_at = 0.0
        self._buried_at = 0.0
        self._unreachable = False
        self._scale_at = 0.0
        self._oom_kills = oom_kills()
        self._asked: tuple[Stop, int] | None = None
        self._stop: Stop | None = None
        self._stop_at = float("inf")
        self._forced = False
        self._wants_isolation = False  # a job may have become a suspect
        self._isolate_at, self._isolate_pause = 0.0, 1.0
        self._exit_code = EXIT_OK

    def run(self) -> int:
        """Work until stopped; return the exit code (see `WorkerProcess`)."""
        count = self._options.fewest_processes
        titles.show(self._options.full_name, f"{self._options.pool}, {count} process{'' if count == 1 else 'es'}")
        with self._signals() as reader:
            for place in range(self._options.fewest_processes):
                self._start(place)
            worker_ready.send(self._app)
            while self._children or self._restarts or self._deaths:
                self._turn(reader)
        return self._exit_code

    # -- one turn --------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Hear signals; give the end of a pipe that can be read when one has come."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        handlers: dict[int, Callable[[int, FrameType | None], None]] = dict.fromkeys(stop_signals(), self._on_stop)
        handlers[signal.SIGCHLD] = lambda *_: None
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _turn(self, reader: int) -> None:
        select.select([reader], [], [], self._patience())
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            pass
        now = time.monotonic()
        self._obey(now)
        self._reap()
        self._bury(now)
        self._end_overdue(now)
        self._scale(now)
        seen = any(child.board.suspects for child in self._children.values())
        if self._wants_isolation or (seen and now >= self._isolate_at):
            self._isolate()
        self._oom_kills = oom_kills()
        due = [place for when, place in self._restarts if when <= now]
        self._restarts = [(when, place) for when, place in self._restarts if when > now]
        for place in due:
            self._start(place)

    def _patience(self) -> float:
        times = [when for when, _ in self._restarts]
        if self._deaths:
            times.append(self._retry_at)
        if not self._forced:
            times.append(self._stop_at)
        return max(0.0, min([_TICK, *(when - time.monotonic() for when in times)]))

    # -- stopping --------------------------------------------------------------------------------------------

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        before = self._asked[0] if self._asked else None
        if number == signal.SIGQUIT:
            how = Stop.COLD
        else:
            how = Stop.WARM if before is None else Stop(min(before + 1, Stop.COLD))
        if before is None or how > before:
            self._asked = (how, number)
            for child in list(self._children.values()):  # now: the main thread may be waiting for the database
                self._tell(child, how)

    def _obey(self, now: float) -> None:
        """Tell the children to stop as the signals say; end by force what takes too long."""
        if self._asked is not None and self._asked[0] is not self._stop:
            how, number = self._asked
            left = {Stop.WARM: self._options.grace, Stop.SOFT: SOFT, Stop.COLD: 0.0}[how]
            logger.info("%s stop: running tasks have %g s to end", how.name.lower(), left)
            self._stop, self._stop_at = how, min(self._stop_at, now + left + _MARGIN)
            self._restarts.clear()
            self._unreachable, self._retry_at = False, 0.0  # one more try
            for child in self._children.values():
                self._tell(child, how)
            tell_stop(self._app, how, number)
        elif now >= self._stop_at and not self._forced:
            logger.warning(
                "%d processes do not end in time: they are ended, their jobs handed back", len(self._children)
            )
            self._forced, self._stop_at = True, now + SOFT
            self._exit_code = self._exit_code or EXIT_CUT_OFF
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)

    def _tell(self, child: Child, how: Stop) -> None:
        child.board.stop = how
        with suppress(ProcessLookupError):  # a signal may come between its end and our taking note
            os.kill(child.pid, signal.SIGTERM)

    # -- children --------------------------------------------------------------------------------------------

    def _start(self, place: int, *, isolated: bool = False) -> None:
        board = Board(1) if isolated else self._boards[place]
        board.clear()
        worker, parent = new_id(), os.getpid()
        options = self._options
        if isolated:
            options = replace(
                options, pool="solo", concurrency=1, processes=1, autoscale=None, burst=True, suspects_only=True
            )
        worker_before_create_process.send(self._app)
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal between the fork and the child's own handlers would be taken by those of the parent, and be lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
        try:
            pid = os.fork()
            if pid == 0:
                be_child(self._app, options, worker, board, self._quota, place, parent, mask)
            self._children[pid] = Child(place, pid, worker, time.monotonic(), board, isolated)
            logger.debug("worker process %d started", pid)
        except OSError as error:  # no memory, too many processes
            logger.error("a worker process cannot be started: %s", error)
            if not isolated:
                self._failures[place] += 1
                self._restarts.append((time.monotonic() + backoff(self._failures[place], 0.5), place))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _isolate(self) -> None:
        """Start a process that runs suspects alone, unless there are enough; single slots see to them themselves."""
        self._wants_isolation = False
        running = sum(child.isolated for child in self._children.values())
        if self._options.slots > 1 and self._stop is None and running < (os.cpu_count() or 1):
            for child in self._children.values():
                child.board.suspects = False  # they look again
            self._start(running, isolated=True)

    def _scale(self, now: float) -> None:
        """Start a process while jobs wait and all are busy; end one that has nothing to do."""
        if self._options.autoscale is None or self._stop is not None or now < self._scale_at:
            return
        working = [child for child in self._children.values() if not child.isolated and not child.dismissed]
        taken = {child.place for child in self._children.values() if not child.isolated}
        free = {*range(self._options.most_processes)} - taken
        free -= {place for _, place in self._restarts}
        if free and working and all(child.board.waiting for child in working):
            self._scale_at = now + _SCALE_UP
            logger.info("jobs wait: process %d is started", len(working) + 1)
            self._start(min(free))
            return
        idle = [child for child in working if 0.0 < child.board.idle_since < now - _SCALE_DOWN]
        if idle and len(working) > self._options.fewest_processes:
            self._scale_at = now + _SCALE_UP
            logger.info("nothing to do: process %d is ended", len(working))
            idle[-1].dismissed = True
            self._tell(idle[-1], Stop.WARM)

    def _end_overdue(self, now: float) -> None:
        """End processes that have not done so themselves at a hard time limit: a task holds the interpreter's lock."""
        for child in self._children.values():
            overdue = tuple(begun for begun in child.board.begun() if 0.0 < begun.deadline < now - _MARGIN)
            if overdue and not child.overdue:
                logger.error("worker process %d does not heed a time limit: it is ended", child.pid)
                child.overdue = overdue
                os.kill(child.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._ended(self._children.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        # Any task may call os._exit: only a code that the worker has announced is its own.
        planned = child.board.parting == code
        if planned and code in (EXIT_UNTOLD, EXIT_CUT_OFF):
            self._exit_code = max(code, self._exit_code, key=(EXIT_OK, EXIT_CUT_OFF, EXIT_UNTOLD).index)
        if not (planned and code in (EXIT_OK, EXIT_REPLACE)):
            ours = self._forced or bool(child.overdue) or (planned and code in (EXIT_UNTOLD, EXIT_CUT_OFF, EXIT_LIMIT))
            why = cause(code, out_of_memory=oom_kills() > self._oom_kills)
            begun = (*(begun[:2] for begun in child.board.begun()), *child.board.begun_once())
            self._deaths.append(Death(child.worker, child.pid, why, begun, ours, child.overdue))
            self._retry_at = 0.0
            if not ours:
                logger.error("worker process %d died: %s", child.pid, why)
        self._wants_isolation = self._wants_isolation or child.board.suspects
        if child.isolated and planned and not child.board.begun():
            # It ran nothing: perhaps the suspects are of tasks that this program does not know.
            self._isolate_at = time.monotonic() + self._isolate_pause
            self._isolate_pause = min(2 * self._isolate_pause, 60.0)
        elif child.isolated:
            self._isolate_pause = 1.0
        if self._stop is not None or child.isolated or child.dismissed:
            return
        # A burst is not over before somebody has looked after the jobs of the dead have come back.
        looked = not self._deaths and child.started > self._buried_at
        if planned and code == EXIT_OK and (self._quota is not None or (self._options.burst and looked)):
            return
        crashed = (
            (not planned or code == EXIT_FAILED)
            and not child.overdue
            and time.monotonic() - child.started < _SHORT_LIFE
        )
        self._failures[child.place] = self._failures[child.place] + 1 if crashed else 0
        pause = backoff(self._failures[child.place], 0.5) if crashed else _RETRY / 10 if code == EXIT_OK else 0.0
        self._restarts.append((time.monotonic() + pause, child.place))

    def _bury(self, now: float) -> None:
        """Hand back the leases of children that died; if the database is away, try again in a moment."""
        if not self._deaths or now < self._retry_at:
            return
        if self._unreachable and self._stop is not None and not self._children:
            self._give_up()
            return
        try:
            with closing(self._app.database.connect("supervisor", _CONNECT)) as connection:
                self._deaths = [death for death in self._deaths if not bury(connection, self._app, death)]
            self._retry_at = now + (_RETRY if self._stop is None else _RETRY / 10)
            self._buried_at = time.monotonic()
            self._wants_isolation = True
            self._unreachable = False
            if self._deaths and not self._children and now >= self._stop_at:
                self._give_up()
        except (psycopg.Error, PgQueueError) as error:
            level = logging.DEBUG if self._unreachable else logging.WARNING
            logger.log(level, "the leases of dead workers cannot be handed back yet: %s", error)
            self._unreachable, self._retry_at = True, time.monotonic() + _RETRY

    def _give_up(self) -> None:
        logger.warning("stopping waits for no database; other workers take over what is left")
        self._deaths.clear()
        self._exit_code = EXIT_UNTOLD


def stop_signals() -> list[int]:
    """Return the signals that stop a worker; not SIGHUP under nohup."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
    return [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def tell_stop(app: PgQueue, how: Stop, number: int) -> None:
    """Tell the receivers of `worker_shutting_down` that a signal stops the worker."""
    worker_shutting_down.send(app, sig=signal.Signals(number).name, how=how.name.capitalize(), exitcode=EXIT_OK)
