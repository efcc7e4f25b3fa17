"""The I/O thread: owns the database connection of a worker process, claims, acknowledges, beats and listens."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import connection_lost, passes, run, run_together
from pgqueue.errors import DatabaseUnavailable, PgQueueError
from pgqueue.statements import Ended, Statement
from pgqueue.tracer import report
from pgqueue.types import Claim, Failed, Ignored
from pgqueue.worker import journal
from pgqueue.worker.buffer import Buffer
from pgqueue.worker.duties import Presence, Rounds
from pgqueue.worker.liveness import Identity
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.pace import ACK_WAIT, BUSY_AFTER, LARGEST_ACK, STALLED, Demand, backoff
from pgqueue.worker.slots import untried
from pgqueue.worker.wake import Wake

logger = logging.getLogger("pgqueue.worker")

Connection = psycopg.Connection[Any]


class IOThread(threading.Thread):
    """Claims for the slots of one process and acknowledges what they report, until told to stop.

    Slots call `report`, the main thread `stop`; everything else happens in this thread. One turn of the loop:
    collect what has ended, hand back what waits too long, acknowledge and claim in one round trip, do the rounds,
    wait. `failure` is what ended it, if something did; `abandoned` are the jobs that did not end in time.
    """

    def __init__(
        self,
        app: PgQueue,
        identity: Identity,
        options: WorkerOptions,
        buffer: Buffer,
        on_abandon: Callable[[], None],
    ) -> None:
        super().__init__(name="pgqueue-io", daemon=True)
        self._app = app
        self._statements = app.database.statements
        self._identity = identity
        self._options = options
        self._buffer = buffer
        self._on_abandon = on_abandon
        self._presence = Presence(app, identity, options)
        self._careful = any(not task.options.acks_late for task in app.tasks.values())
        self.failure: BaseException | None = None
        self.abandoned: list[Claim] = []

        self._ended: deque[tuple[Ended, bool | None]] = deque()  # from the slots
        self._outcomes: list[Ended] = []  # to be acknowledged
        self._held: dict[str, Claim] = {}  # claimed and neither acknowledged nor handed back
        self._unknown: list[str] = []  # task names that this program does not have
        self._stop_at: float | None = None
        self._wake = Wake()
        self._parked = False

        self._demand = Demand(options.slots, app.settings.poll_interval)
        self._said_idle = False
        self._unstarted = 0
        self._progress_at = 0.0
        self._disown_again = False

    # -- called by others ------------------------------------------------------------------------------------

    def report(self, ended: Ended, acked: bool | None) -> None:
        """Take an attempt that has ended; see `slots.Report`."""
        self._ended.append((ended, acked))
        if self._parked or not len(self._buffer):
            self._wake()

    def stop(self) -> None:
        """Claim no more, let running attempts end within the grace period, then end; the second time, end now."""
        now = time.monotonic()
        self._stop_at = now + self._options.grace if self._stop_at is None else min(now, self._stop_at)
        logger.info("stopping: %d running tasks have %.3g s to end", max(0, self._running), self._stop_at - now)
        self._wake()

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped, and send the slots home; cut off what has not ended by then."""
        try:
            self._serve_always()
        except BaseException as error:
            self.failure = error
            logger.critical("the worker cannot go on: %s", error, exc_info=not isinstance(error, PgQueueError))
        finally:
            self._presence.close()
            self._buffer.drain()
            self._buffer.put([None] * self._options.slots)
        if self.abandoned:
            self._on_abandon()

    def _serve_always(self) -> None:
        """Serve on one connection after the other, until stopped."""
        failures = 0
        while True:
            try:
                with contextlib.closing(self._app.database.connect("worker")) as connection:
                    self._greet(connection)
                    failures = 0
                    self._serve(connection)
                    self._presence.leave(connection, [claim.id for claim in self.abandoned])
                    return
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not connection_lost(error) and not (isinstance(error, psycopg.Error) and passes(error)):
                    raise
                logger.warning("beginning anew with a fresh connection: %s", str(error).strip())
            if self._out_of_time() or (self._stop_at is not None and self._at_rest()):
                self.abandoned = list(self._held.values())
                return
            self._sleep(backoff(failures, random.random()))
            failures += 1

    def _greet(self, connection: Connection) -> None:
        """Begin with a fresh connection: be on the list, listen, and hand back claims that nobody heard of."""
        connection.add_notify_handler(self._notified)
        self._presence.register(connection)
        if self._presence.real_sessions:  # else there is only polling
            connection.execute(self._statements.listen().sql.encode())
        self._collect()
        run(connection, self._statements.disown(self._identity.id, list(self._held)))
        # A claim that was under way when the connection broke may commit even now: look once more at the next beat.
        self._disown_again = True
        self._said_idle = False
        self._demand.look_now()
        self._rounds = Rounds(self._app, self._identity, time.monotonic())

    def _serve(self, connection: Connection) -> None:
        while True:
            self._wake.attend()
            now = time.monotonic()
            flowing = self._collect()
            self._hand_back(now)
            stopping = self._stop_at is not None
            wanted = 0 if stopping else self._demand.size_now(self._running, len(self._buffer), now)
            if self._outcomes or wanted:
                self._exchange(connection, wanted)
            self._rest(connection, now)
            if self._finished(now):
                return
            self._wait(connection, flowing)

    def _collect(self) -> bool:
        """Take what the slots have reported; return whether there was anything."""
        runtimes = []
        while self._ended:
            ended, acked = self._ended.popleft()
            runtimes.append(ended.runtime)
            if acked is None:
                self._outcomes.append(ended)
            else:
                self._drop(ended.claim)
                journal.tell(ended, acked)
        self._demand.ended(runtimes)
        return bool(runtimes)

    def _hand_back(self, now: float) -> None:
        """Take from the buffer what has waited for a slot too long, or everything when stopping."""
        unstarted = len(self._buffer)
        if unstarted != self._unstarted or unstarted == 0:
            self._unstarted, self._progress_at = unstarted, now
        if unstarted and (self._stop_at is not None or now - self._progress_at > STALLED):
            self._outcomes += [untried(claim) for claim in self._buffer.drain()]
            self._unstarted = 0
            self._demand.stuck()

    @property
    def _running(self) -> int:
        return len(self._held) - len(self._buffer) - len(self._outcomes) - len(self._ended)

    def _exchange(self, connection: Connection, wanted: int) -> None:
        """Acknowledge what has ended and claim what is wanted, in one round trip and one commit."""
        ending = self._outcomes[:LARGEST_ACK]
        if not ending:
            self._claimed(run(connection, self._claim(wanted, relaxed=not self._careful)))
            return
        statements: list[Statement[Any]] = [self._statements.finish(self._identity.id, ending)]
        if wanted:
            statements.append(self._claim(wanted, relaxed=False))
        try:
            refused, *claimed = run_together(connection, *statements)
        except psycopg.Error as error:
            if connection_lost(error):
                raise
            self._finish_singly(connection, ending)
            return
        self._acknowledged(ending, refused)
        if claimed:
            self._claimed(claimed[0])

    def _claim(self, wanted: int, *, relaxed: bool) -> Statement[Claim]:
        self._demand.looking()
        return self._statements.claim(self._identity.id, self._options.queues, wanted, self._unknown, relaxed=relaxed)

    def _finish_singly(self, connection: Connection, ending: list[Ended]) -> None:
        """Acknowledge the outcomes of a batch that failed one by one, so that a bad one does not hold up the others."""
        for ended in ending:
            try:
                refused = run(connection, self._statements.finish(self._identity.id, [ended]))
            except psycopg.Error as error:
                if connection_lost(error):
                    raise
                if passes(error):  # somebody holds the row, the disk is full: it stays for a later turn
                    logger.warning("job %s: its outcome cannot be stored yet: %s", ended.claim.id, error)
                    self._sleep(ACK_WAIT)
                    return
                logger.error("job %s: its outcome cannot be stored: %s", ended.claim.id, error)
                at = self._outcomes.index(ended)
                self._outcomes[at] = ended = replace(ended, outcome=Failed(report(error)))
                refused = run(connection, self._statements.finish(self._identity.id, [ended]))
            self._acknowledged([ended], refused)

    def _acknowledged(self, ending: list[Ended], refused: list[str]) -> None:
        gone = set(map(id, ending))
        self._outcomes = [ended for ended in self._outcomes if id(ended) not in gone]
        for ended in ending:
            self._drop(ended.claim)
            journal.tell(ended, ended.claim.id not in refused)

    def _drop(self, claim: Claim) -> None:
        """Forget a claim, unless this worker has claimed the same job again meanwhile."""
        held = self._held.get(claim.id)
        if held is not None and held.attempt == claim.attempt:
            del self._held[claim.id]

    def _claimed(self, claims: list[Claim]) -> None:
        now = time.monotonic()
        known = []
        for claim in claims:
            self._held[claim.id] = claim
            if claim.succeeded:
                self._outcomes.append(Ended(claim, Ignored(), keep=False))
            elif claim.task in self._app.tasks:
                known.append(claim)
            else:
                self._leave_to_others(claim)
        if known:
            self._buffer.put(known)
            self._unstarted, self._progress_at = len(self._buffer), now
        self._demand.claimed(len(claims), now)

    def _leave_to_others(self, claim: Claim) -> None:
        """Hand back a job whose task this program does not have; from now on claims leave such jobs where they are."""
        self._outcomes.append(untried(claim))
        if claim.task not in self._unknown:
            self._unknown.append(claim.task)
            logger.warning(
                "task %r of job %s is not registered here; such jobs are left to workers that know it",
                claim.task,
                claim.id,
            )

    # -- beside the work -------------------------------------------------------------------------------------

    def _rest(self, connection: Connection, now: float) -> None:
        """Beat and do the rounds when they are due, and say idle or busy when that has changed for a while."""
        if self._rounds.beat_due(now):
            if not run(connection, self._statements.beat(self._identity.id, self._unknown))[0]:
                logger.warning("this worker had been given up for dead; its leases are gone, it registers again")
                self._presence.register(connection)
                for claim in self._buffer.drain():  # somebody else's by now
                    self._drop(claim)
                self._said_idle = False
            if self._disown_again:
                self._collect()
                run(connection, self._statements.disown(self._identity.id, list(self._held)))
                self._disown_again = False
        if self._presence.lock_lost:
            self._presence.close()
            self._presence.register(connection)
        self._rounds.go(connection, now)
        idle = not self._held and self._stop_at is None and self._demand.idle
        if idle and not self._said_idle and self._presence.real_sessions:
            run(connection, self._statements.say_idle(self._identity.id, self._options.queues))
            self._said_idle = True
            self._demand.look_now()  # an enqueue under way may not have seen it
        elif self._said_idle and self._held and now - self._demand.found_nothing_at > BUSY_AFTER:
            run(connection, self._statements.say_busy(self._identity.id))
            self._said_idle = False

    def _finished(self, now: float) -> bool:
        """Return whether the loop may end; a worker in burst stops when it has found nothing and runs nothing."""
        if self._options.burst and self._stop_at is None and self._at_rest() and self._demand.found_nothing_at >= now:
            self._stop_at = now
        if self._out_of_time() and not self._at_rest():
            # Leaving hands them back, but for those whose transaction is open: that ends with this process.
            waiting = {ended.claim.id for ended in self._outcomes}
            self.abandoned = [claim for id_, claim in self._held.items() if id_ not in waiting]
            return True
        return self._stop_at is not None and self._at_rest()

    def _at_rest(self) -> bool:
        return not self._held and not self._ended

    def _out_of_time(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _wait(self, connection: Connection, flowing: bool) -> None:
        """Wait for a notification, a report of a slot, or the next thing that is due."""
        now = time.monotonic()
        if self._stop_at is None and self._demand.size_now(self._running, len(self._buffer), now):
            return  # a notification came with the answer of a statement
        until = self._rounds.next
        if self._stop_at is not None:
            until = min(until, max(self._stop_at, now + ACK_WAIT))
        elif self._demand.size(self._running, len(self._buffer)):
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
        if self._wake.wait([connection.fileno()], timeout):
            connection.pgconn.consume_input()
            while notice := connection.pgconn.notifies():
                self._notified(psycopg.Notify("", notice.extra.decode(), notice.be_pid))

    def _sleep(self, seconds: float) -> None:
        self._wake.attend()
        self._wake.wait([], seconds)

    def _notified(self, notice: psycopg.Notify) -> None:
        if notice.payload in self._options.queues:
            self._demand.notified()
