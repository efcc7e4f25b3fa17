"""The I/O thread: owns the database connection of a worker process, claims, acknowledges, beats and listens."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import run, transient
from pgqueue.errors import DatabaseUnavailable, LeaseLost, PgQueueError, UnknownTask, WorkerShutdown
from pgqueue.signals import task_received, task_unknown
from pgqueue.statements import Ended, Statement
from pgqueue.tracer import Context
from pgqueue.types import Claim, ErrorReport, Failed, Ignored, Released, Succeeded
from pgqueue.worker import journal
from pgqueue.worker.acks import Acks
from pgqueue.worker.board import (
    EXIT_CUT_OFF,
    EXIT_FAILED,
    EXIT_LIMIT,
    EXIT_OK,
    EXIT_REPLACE,
    EXIT_UNTOLD,
    Board,
    Stop,
)
from pgqueue.worker.buffer import Buffer
from pgqueue.worker.cursors import Cursors
from pgqueue.worker.deaths import overdue
from pgqueue.worker.duties import STOPPED, Presence, Rounds
from pgqueue.worker.failures import hook_entry
from pgqueue.worker.liveness import Identity
from pgqueue.worker.memory import memory_in_use
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.pace import (
    ACK_WAIT,
    BACKLOG_SECONDS,
    BUSY_AFTER,
    IDLE_AGAIN,
    LARGEST_CLAIM,
    MOST_AHEAD,
    SESSION_END,
    SOFT,
    STALLED,
    Demand,
    backoff,
)
from pgqueue.worker.quota import Quota
from pgqueue.worker.slot import Slot
from pgqueue.worker.slots import untried
from pgqueue.worker.wake import Wake

logger = logging.getLogger("pgqueue.worker")

Connection = psycopg.Connection[Any]

#: Seconds after a new connection during which a claim of the old one may still be committed.
_UNHEARD = 60.0


class IOThread(threading.Thread):
    """Claims for the slots of one process and acknowledges what they report, until told to stop.

    Slots call `report`, the main thread `stop`; everything else happens in this thread. One turn of the loop:
    collect what has ended, end what is over its time limit, hand back what waits too long, acknowledge and claim in
    one round trip, do the rounds, wait. `exit_code` says how it ended.

    - `slots`, `board`, `quota`: those of the process.
    - `end_now`: ends the process with an exit code, whatever the slots are doing.
    """

    def __init__(
        self,
        app: PgQueue,
        identity: Identity,
        options: WorkerOptions,
        buffer: Buffer,
        slots: Sequence[Slot],
        board: Board,
        quota: Quota | None,
        end_now: Callable[[int], None],
    ) -> None:
        super().__init__(name="pgqueue-io", daemon=True)
        self._app = app
        self._statements = app.database.statements
        self._identity = identity
        self._options = options
        self._buffer = buffer
        self._slots = slots
        self._board = board
        self._quota = quota
        self._end_now = end_now
        self._presence = Presence(app, identity, options)
        self._careful = any(not task.options.acks_late for task in app.tasks.values())
        self.exit_code = EXIT_OK
        self._cut_off: list[Claim] = []

        self._ended: deque[tuple[Ended, bool | None]] = deque()  # from the slots
        self._notes: deque[tuple[Claim, str, ErrorReport]] = deque()  # from the slots
        self._acks = Acks(self._statements, identity.id, self._drop)
        self._held: dict[str, Claim] = {}  # claimed and neither acknowledged nor handed back
        self._unknown: list[str] = []  # task names that this program does not have
        self._stop_at: float | None = None
        self._interrupt_at = math.inf
        self._retiring = False  # to be replaced by a fresh process
        self._leave_at = math.inf  # at the latest
        self._tasks_ended = 0
        self._make_room = False  # a suspect waits for a process that holds nothing else
        self._alone = False  # what it holds is a suspect
        self._next_backlog = 0.0
        self._registered = False
        self._cursors = Cursors(options.queues)
        self._rounds = Rounds(app, identity, self._cursors, 0.0)
        self._wake = Wake()
        self._parked = False

        most = options.slots * options.prefetch_multiplier or MOST_AHEAD
        self._demand = Demand(options.slots, app.settings.poll_interval, most)
        self._from_start = False  # the last claim looked at all there was
        self._said_idle, self._say_idle_at = False, 0.0
        self._unstarted = 0
        self._progress_at = 0.0
        self._disown_until = 0.0

    # -- called by others ------------------------------------------------------------------------------------

    def report(self, ended: Ended, acked: bool | None) -> None:
        """Take an attempt that has ended; see `slots.Report`."""
        self._ended.append((ended, acked))
        if self._parked or not len(self._buffer) or ended.told is not None:
            self._wake()

    def attach(self, claim: Claim, errors: Sequence[tuple[str, ErrorReport]]) -> None:
        """Take what went wrong in hooks after an attempt had ended, to be kept with the job."""
        self._notes.extend((claim, name, error) for name, error in errors)
        if errors or self._is_ending or self._options.burst:
            self._wake()

    def stop(self, how: Stop) -> None:
        """Claim no more. Warm: running attempts may end within the grace period; they are interrupted shortly before
        it is over. Soft: they are interrupted now. Cold: their jobs are handed back now.
        """
        now = time.monotonic()
        left = {Stop.WARM: self._options.grace, Stop.SOFT: SOFT, Stop.COLD: 0.0}[how]
        self._stop_at = now + left if self._stop_at is None else min(now + left, self._stop_at)
        if how is Stop.WARM:
            self._interrupt_at = self._stop_at - min(SOFT, left / 2)
        logger.info("stopping: %d running tasks have %.3g s to end", max(0, self._running), self._stop_at - now)
        if how is Stop.SOFT:
            self._interrupt()  # here, since the I/O thread may be waiting for the database
            self._interrupt_at = now  # and what begins meanwhile
        self._wake()

    def look_at_limits(self) -> None:
        """See to the attempts that are over their hard time limit."""
        self._wake()

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped, and send the slots home; cut off what has not ended by then."""
        try:
            self._serve_always()
        except BaseException as error:
            self.exit_code = EXIT_FAILED
            logger.critical("the worker cannot go on: %s", error, exc_info=not isinstance(error, PgQueueError))
        finally:
            self._presence.close()
            self._buffer.drain()
            self._buffer.put([None] * self._options.slots)
        if self.exit_code == EXIT_FAILED:
            self._cut_off = list(self._held.values())  # nobody could store how they end
        if self._cut_off or (self._telling and self._is_ending):
            if self._cut_off:
                logger.warning("%d tasks are cut off", len(self._cut_off))
            else:
                logger.warning("hooks of acknowledged tasks are cut off")
            self._end_now(self.exit_code)

    def _serve_always(self) -> None:
        """Serve on one connection after the other, until stopped."""
        failures = 0
        while True:
            try:
                with contextlib.closing(self._app.database.connect("worker")) as connection:
                    self._greet(connection)
                    failures = 0
                    self._serve(connection)
                    self._leave(connection)
                    return
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not transient(error):
                    raise
                logger.warning("beginning anew with a fresh connection: %s", str(error).strip())
            if self._out_of_time() or (self._stop_at is not None and self._at_rest()):
                self._cut_off = list(self._held.values())
                if self._cut_off:
                    self.exit_code = EXIT_UNTOLD
                return
            self._sleep(backoff(failures, random.random()))
            failures += 1
            if time.monotonic() >= self._interrupt_at:
                self._interrupt()

    def _greet(self, connection: Connection) -> None:
        """Begin with a fresh connection: be on the list, listen, and hand back claims that nobody heard of."""
        connection.add_notify_handler(self._notified)
        self._register(connection)
        if self._presence.real_sessions:  # else there is only polling
            connection.execute(self._statements.listen().sql.encode())
        self._collect()
        run(connection, self._statements.disown(self._identity.id, list(self._held)))
        # A claim that was under way when the connection broke may commit even now: look again with the next beats.
        self._disown_until = time.monotonic() + _UNHEARD
        self._said_idle, self._say_idle_at = False, 0.0
        self._demand.look_now()
        self._rounds.neighbours.close()
        self._cursors = Cursors(self._options.queues)
        self._rounds = Rounds(self._app, self._identity, self._cursors, time.monotonic())

    def _register(self, connection: Connection) -> None:
        if self._presence.register(connection) and self._registered:
            self._given_up()
        self._registered = True

    def _serve(self, connection: Connection) -> None:
        while True:
            self._wake.attend()
            now = time.monotonic()
            flowing = self._collect()
            self._beat(connection, now)  # first: who was stopped for long may have been given up, and must not claim
            self._end_overdue(connection, now)
            if flowing and self._is_worn_out():
                self._retiring = True
            self._hand_back(now)
            if now >= self._interrupt_at:
                self._interrupt()
            self._acks.finish_later(connection, now, hurry=self._is_ending)
            wanted = self._wanted(now)
            if self._acks.waiting or wanted:
                self._exchange(connection, wanted)
            if self._notes:
                self._attach(connection)
            self._rest(connection, now)
            if self._finished(now):
                return
            self._wait(connection, flowing)

    def _collect(self) -> bool:
        """Take what the slots have reported; return whether there was anything."""
        runtimes = []
        take, waiting = self._ended.popleft, self._acks.waiting.append
        while self._ended:
            ended, acked = take()
            runtimes.append(ended.runtime)
            if acked is None and type(ended.outcome) is Succeeded:
                waiting(ended)
                continue
            if isinstance(ended.outcome, Released):
                ended = self._interrupted(ended, ended.outcome)
            elif isinstance(ended.outcome, Failed) and ended.outcome.error.type == "MemoryError":
                logger.warning("a task ran out of memory; a fresh process replaces this one")
                self._retiring = True
            if acked is None:
                self._acks.waiting.append(ended)
            else:
                self._drop(ended.claim)
                journal.tell(ended, acked)
                if ended.told is not None:
                    ended.told(ended.outcome, acked)
        self._tasks_ended += len(runtimes)
        self._demand.ended(runtimes)
        return bool(runtimes)

    def _interrupted(self, ended: Ended, released: Released) -> Ended:
        """Return what an attempt comes to that was interrupted: it goes back, unless its claim has acknowledged it."""
        given_up = self._leave_at < math.inf  # then its job was handed back by others
        if self._stop_at is not None and released.crash is None and not given_up:
            self.exit_code = EXIT_CUT_OFF
        if self._app.tasks[ended.claim.task].options.acks_late:
            return ended
        return ended._replace(outcome=Failed(released.crash or STOPPED))

    def _hand_back(self, now: float) -> None:
        """Take from the buffer what has waited for a slot too long, or everything when stopping."""
        unstarted = len(self._buffer)
        if unstarted != self._unstarted or unstarted == 0:
            self._unstarted, self._progress_at = unstarted, now
        if unstarted and (self._is_ending or self._make_room or now - self._progress_at > STALLED):
            self._acks.waiting += map(self._untried, self._buffer.drain())
            self._unstarted = 0
            self._demand.stuck()

    def _untried(self, claim: Claim) -> Ended:
        if self._quota is not None:
            self._quota.take(-1)
        return untried(claim)

    @property
    def _running(self) -> int:
        waiting = len(self._buffer) + len(self._acks) + len(self._ended)
        return len(self._held) - waiting

    @property
    def _is_ending(self) -> bool:
        return self._stop_at is not None or self._retiring

    @property
    def _claims_nothing(self) -> bool:
        """Whether there is a reason not to claim, however much room there is."""
        return (
            self._is_ending
            or (self._quota is not None and self._quota.left == 0)
            or self._tasks_left <= 0
            or (bool(self._held) and (self._make_room or self._options.suspects_only or self._alone))
        )

    @property
    def _tasks_left(self) -> int:
        most = self._options.max_tasks_per_child
        return LARGEST_CLAIM if most is None else most - self._tasks_ended - len(self._held)

    def _wanted(self, now: float) -> int:
        """Return how many jobs to claim now."""
        if self._claims_nothing:
            return 0
        size = self._demand.size_now(self._running, len(self._buffer), now)
        if not size and self._acks.waiting and len(self._held) <= len(self._acks.batch):
            # Nothing is left when these are acknowledged, and what follows one of them comes with the same commit.
            size = self._demand.size(self._running, len(self._buffer))
        return min(size, self._tasks_left)

    def _exchange(self, connection: Connection, wanted: int) -> None:
        """Acknowledge what has ended and claim what is wanted, in one round trip and one commit."""
        if self._quota is not None:
            wanted = self._quota.take(wanted)
        claimed: list[Claim] | None = None
        began = time.monotonic()
        try:
            claimed = self._acks.finish(connection, self._claim(wanted) if wanted else None)
        finally:
            if self._quota is not None:
                self._quota.take(len(claimed or ()) - wanted)
        if claimed is not None:
            self._claimed(claimed, wanted, began)

    def _claim(self, wanted: int) -> Statement[Claim]:
        self._demand.looking()
        options, ending = self._options, len(self._acks.batch)
        after = self._cursors.after
        self._from_start = after is None
        return self._statements.claim(
            self._identity.id,
            options.queues,
            0 if options.suspects_only else wanted,
            self._unknown,
            relaxed=not ending and not self._careful,
            # Suspects run alone, so nothing else may be held: what ends in the same transaction is not. A process of
            # many slots is never empty for long: others are started for them.
            alone=options.slots == 1 and len(self._held) <= ending,
            after=after,
        )

    def _drop(self, claim: Claim) -> None:
        """Forget a claim, unless this worker has claimed the same job again meanwhile."""
        held = self._held.get(claim.id)
        if held is not None and held.attempt == claim.attempt:
            del self._held[claim.id]

    def _claimed(self, claims: list[Claim], wanted: int, began: float) -> None:
        now = time.monotonic()
        if not self._options.suspects_only:
            self._cursors.claimed(claims, wanted=wanted, began=began, ended=now)
        self._make_room = False
        self._alone = bool(claims) and claims[0].crashes > 0
        known = []
        held, tasks = self._held, self._app.tasks
        for claim in claims:
            held[claim.id] = claim
            if claim.succeeded:
                self._acks.waiting.append(Ended(claim, Ignored(), keep=False))
            elif claim.task in tasks:
                known.append(claim)
                if task_received.receivers:
                    task = self._app.tasks[claim.task]
                    task_received.send(task, request=Context(claim.task, claim, hostname=self._identity.name))
            else:
                self._leave_to_others(claim)
        if known:
            self._buffer.put(known)
            self._unstarted, self._progress_at = len(self._buffer), now
        self._demand.claimed(len(claims), now, wanted)

    def _leave_to_others(self, claim: Claim) -> None:
        """Hand back a job whose task this program does not have; from now on claims leave such jobs where they are."""
        self._acks.waiting.append(self._untried(claim))
        if claim.task not in self._unknown:
            self._unknown.append(claim.task)
            if task_unknown.receivers:
                error = UnknownTask(f"no task {claim.task!r} is registered in {self._app.name}")
                task_unknown.send(
                    self._app, message=Context(claim.task, claim), exc=error, name=claim.task, id=claim.id
                )
            logger.warning(
                "task %r of job %s is not registered here; such jobs are left to workers that know it",
                claim.task,
                claim.id,
            )

    def _attach(self, connection: Connection) -> None:
        """Keep with their jobs what went wrong in hooks; that is no reason to stop working."""
        while self._notes:
            claim, name, error = self._notes[0]
            try:
                run(connection, self._statements.attach(claim.id, hook_entry(claim.attempt, name, error)))
            except psycopg.Error as problem:
                if transient(problem):
                    raise
                logger.error("job %s: an error of its hook %s cannot be stored: %s", claim.id, name, problem)
            self._notes.popleft()

    # -- beside the work -------------------------------------------------------------------------------------

    def _beat(self, connection: Connection, now: float) -> None:
        """Beat when it is time, and see whether this worker has been given up."""
        if not self._rounds.beat_due(now):
            return
        if not run(connection, self._statements.beat(self._identity.id, self._unknown))[0]:
            self._given_up()
        if self._presence.lock_missing:
            self._register(connection)
        if now < self._disown_until:
            self._collect()
            run(connection, self._statements.disown(self._identity.id, list(self._held)))

    def _rest(self, connection: Connection, now: float) -> None:
        """Do the rounds when they are due, and say idle or busy when that has changed for a while."""
        if self._presence.lock_lost:
            self._presence.close()
            self._register(connection)
        if self._rounds.go(connection, now):
            self._next_backlog = now  # there may be suspects
        if self._cursors.went_back:
            self._demand.look_now()
        self._look_at_backlog(connection, now)
        if bool(self._held) == bool(self._board.idle_since):
            self._board.idle_since = 0.0 if self._held else now
        idle = not self._held and not self._is_ending and self._demand.idle
        if self._said_idle and self._held and now - self._demand.found_nothing_at > BUSY_AFTER:
            run(connection, self._statements.say_busy(self._identity.id))
            self._said_idle, self._say_idle_at = False, 0.0
        elif (idle or self._said_idle) and now >= self._say_idle_at and self._presence.real_sessions:
            run(connection, self._statements.say_idle(self._identity.id, self._options.queues))
            if not self._said_idle:
                self._demand.said_idle()
            self._said_idle, self._say_idle_at = True, now + IDLE_AGAIN

    def _given_up(self) -> None:
        """Let go of everything and be replaced: others have taken it over, and nothing that is written for it counts.

        A fresh process has a fresh id. Under the old one, an answer to a lost attempt could pass for that to a later
        one: a job whose id was chosen, and enqueued again, begins to count its attempts anew.
        """
        if not self._retiring:
            logger.warning("this worker had been given up for dead; its leases are gone, a fresh process replaces it")
        self._retiring = True
        self._leave_at = time.monotonic() + SOFT  # nothing that still runs then is worth waiting for
        for slot in self._slots:
            if slot.claim is not None and slot.claim.id in self._held:
                slot.interrupt(slot.claim, LeaseLost())

    def _look_at_backlog(self, connection: Connection, now: float) -> None:
        """See now and then what waits although this process claims nothing, for the supervisor and for suspects."""
        if now < self._next_backlog or self._is_ending or self._options.suspects_only:
            return
        self._next_backlog = now + BACKLOG_SECONDS
        single = self._options.slots == 1
        if single and not self._held:
            self._board.waiting = False  # it claims, and sees for itself
            return
        [backlog] = run(connection, self._statements.backlog(self._options.queues, self._unknown))
        self._board.waiting = backlog.waiting and self._running >= self._options.slots
        if single:
            self._make_room = backlog.suspects
        else:
            self._board.suspects = backlog.suspects
            if backlog.suspects and self._board.shared:
                os.kill(os.getppid(), signal.SIGCHLD)  # look at the board now

    def _interrupt(self) -> None:
        self._interrupt_at = math.inf
        for slot in self._slots:
            slot.interrupt(slot.claim, WorkerShutdown("the worker ends"))

    def _end_overdue(self, connection: Connection, now: float) -> None:
        """End the process if an attempt is over its hard time limit: there is no other way to end the attempt.

        What has ended is acknowledged first; what runs in other slots is handed back and counts nothing.
        """
        late = [slot for slot in self._slots if slot.hard_at <= now and slot.condemn(now)]
        if not late:
            return
        self._acks.waiting += map(self._untried, self._buffer.drain())
        for slot in late:
            assert slot.claim is not None
            if slot.session is not None:  # its open transaction locks the row
                run(connection, self._statements.end_sessions(self._identity.id, SESSION_END, slot.session))
            repeats = self._app.tasks[slot.claim.task].options.repeats_overdue
            outcome = overdue(slot.limit, slot.claim.crashes, self._app.settings.max_crashes, repeats=repeats)
            if not any(ended.claim is slot.claim for ended in self._acks.waiting):  # from before the connection broke
                self._acks.waiting.append(Ended(slot.claim, outcome, slot.limit))
        self._collect()
        while self._acks.waiting:
            self._exchange(connection, 0)
        self._let_hooks_end(connection)
        self._cut_off = list(self._held.values())
        self.exit_code = EXIT_LIMIT if self._stop_at is None else EXIT_CUT_OFF
        self._leave(connection)
        self._end_now(self.exit_code)

    def _let_hooks_end(self, connection: Connection) -> None:
        """Give the hooks of attempts that are acknowledged a moment before the process ends, and keep their errors."""
        self._retiring = True  # so that a slot wakes this thread when it is done
        until = time.monotonic() + SOFT
        while self._telling and time.monotonic() < until:
            self._wake.wait([], until - time.monotonic())
            self._wake.attend()
        self._attach(connection)

    def _is_worn_out(self) -> bool:
        """Return whether the process has run as many tasks, or takes as much memory, as it may."""
        tasks, memory = self._options.max_tasks_per_child, self._options.max_memory_per_child
        return bool((tasks and self._tasks_ended >= tasks) or (memory and memory_in_use() > memory))

    def _leave(self, connection: Connection) -> None:
        self._presence.leave(connection, [(claim.id, claim.attempt) for claim in self._cut_off])

    def _finished(self, now: float) -> bool:
        """Return whether the loop may end; a worker in burst stops when it has found nothing and runs nothing."""
        if not self._is_ending and self._at_rest():
            no_more = self._quota is not None and self._quota.left == 0
            nothing = self._options.burst and self._demand.found_nothing_at >= now
            if no_more or (nothing and self._from_start):
                self._stop_at = now
            elif nothing:  # above its cursors: something may have been passed over
                self._cursors.forget()
                self._demand.look_now()
        if now >= self._leave_at and not self._at_rest():
            self._cut_off = list(self._held.values())
            self.exit_code = EXIT_LIMIT
            return True
        if self._out_of_time() and not self._at_rest():
            # Leaving hands them back, but for those whose transaction is open: that ends with this process.
            waiting = {ended.claim.id for ended in self._acks.waiting if isinstance(ended.outcome, Released)}
            self._cut_off = [claim for id_, claim in self._held.items() if id_ not in waiting]
            self.exit_code = EXIT_CUT_OFF
            return True
        if self._is_ending and self._at_rest():
            if self._retiring and self._stop_at is None:
                self.exit_code = EXIT_REPLACE
            return True
        return False

    def _at_rest(self) -> bool:
        # In this order: a slot leaves its notes before it says that it tells no more.
        return not self._held and not self._ended and not self._telling and not self._notes

    @property
    def _telling(self) -> bool:
        return any(slot.telling for slot in self._slots)

    def _out_of_time(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _wait(self, connection: Connection, flowing: bool) -> None:
        """Wait for a notification, a report of a slot, or the next thing that is due."""
        now = time.monotonic()
        if self._wanted(now):
            return  # a notification came with the answer of a statement
        until = self._rounds.next
        if self._stop_at is not None:
            until = min(until, max(self._stop_at, now + ACK_WAIT), self._interrupt_at)
        elif not self._claims_nothing and self._demand.size(self._running, len(self._buffer)):
            until = min(until, self._demand.next_look)
        if len(self._buffer):
            until = min(until, self._progress_at + STALLED + ACK_WAIT)
        if flowing and self._held:
            # Outcomes are coming in: look after them in a moment, without every one of them having to wake us.
            until = min(until, now + ACK_WAIT)
        else:
            self._parked = True
        if not (self._parked and self._ended):
            self._select(connection, max(0.0, until - now))
        self._parked = False

    def _select(self, connection: Connection, timeout: float) -> None:
        socket = connection.fileno()
        ready = self._wake.wait([socket, *self._rounds.neighbours.descriptors], timeout)
        if ready - {socket} and self._rounds.neighbours.ended():
            self._rounds.noticed(time.monotonic())
        if socket in ready:
            connection.pgconn.consume_input()
            while notice := connection.pgconn.notifies():
                self._notified(psycopg.Notify("", notice.extra.decode(), notice.be_pid))

    def _sleep(self, seconds: float) -> None:
        self._wake.attend()
        due = min(self._interrupt_at, self._stop_at or math.inf) - time.monotonic()
        self._wake.wait([], min(seconds, max(0.0, due)))

    def _notified(self, notice: psycopg.Notify) -> None:
        if notice.payload in self._options.queues:
            self._demand.notified()
