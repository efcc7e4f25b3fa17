"""What a worker does beside working: beating, holding its lock, sweeping for the dead, pruning old results."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import asdict
from typing import Any

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import run
from pgqueue.statements import Observed
from pgqueue.types import ErrorReport
from pgqueue.worker.cursors import Cursors, rest
from pgqueue.worker.failures import hooked
from pgqueue.worker.liveness import Identity, Neighbours, Watch
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.pace import SESSION_END

logger = logging.getLogger("pgqueue.worker")

Connection = psycopg.Connection[Any]

SWEEP_SECONDS = 1.0
PRUNE_SECONDS = 60.0
#: Results that are deleted once a second at most: as many as end in that time, or they pile up.
PRUNE_BATCH = 5000
#: Seconds that a duty is taken for; whoever has it renews it, and others take over when it does not.
_DUTY_SECONDS = 2.0
#: Seconds between two looks of a worker without the duty, to know its neighbours.
_LOOK_SECONDS = 5.0

#: How a job ends whose worker stopped while it ran, if it may not run again.
STOPPED = ErrorReport("WorkerLostError", "pgqueue.errors", "the worker stopped before the task had ended")


class Presence:
    """The entry of a worker in the list, and its session lock on a connection that does nothing else."""

    def __init__(self, app: PgQueue, identity: Identity, options: WorkerOptions) -> None:
        self._app = app
        self._statements = app.database.statements
        self._identity = identity
        self._lock: Connection | None = None
        #: Whether a connection is a session of its own: not behind a transaction pooler, and on plain PostgreSQL.
        self.real_sessions = False
        self._entry: dict[str, object] = {
            **asdict(identity),
            "pool": options.pool,
            "slots": options.slots,
            "queues": list(options.queues),
            "at_most_once": sorted(name for name, task in app.tasks.items() if not task.options.acks_late),
            "hooked": hooked(app.tasks),
            "fail_if_lost": sorted(name for name, task in app.tasks.items() if not task.options.reject_on_worker_lost),
        }

    def register(self, connection: Connection) -> bool:
        """Enter the worker in the list, holding its lock if sessions are real here; return whether it was not on it."""
        if self._lock is None or self._lock.closed:
            self._lock = self._take_lock()
        return run(connection, self._statements.register({**self._entry, "locked": self._lock is not None}))[0]

    def leave(self, connection: Connection, cut_off: list[tuple[str, int]]) -> None:
        """Strike the worker off the list and hand back whatever it still holds; none of it counts as a crash.

        - `cut_off`: attempts that had begun and did not end in time: job and number.
        """
        run(connection, self._statements.bury(self._identity.id, STOPPED, cut_off, 1, counts=False))

    def close(self) -> None:
        """End the session that holds the lock; `register` takes it anew."""
        if self._lock is not None:
            self._lock.close()

    @property
    def lock_lost(self) -> bool:
        """Whether the session of the lock has ended without us: it is to be taken again soon."""
        return self._lock is not None and (self._lock.closed or _hung_up(self._lock))

    @property
    def lock_missing(self) -> bool:
        """Whether the lock could not be taken: its former session, whose end the server had not noticed, held it."""
        return self.real_sessions and self._lock is None

    def _take_lock(self) -> Connection | None:
        """Take the lock, or return None where it would prove nothing.

        Behind a pooler the session is not ours, and on Citus every node grants the same lock.
        """
        connection = self._app.database.connect("alive")
        (distributed,) = run(connection, self._statements.surroundings())
        self.real_sessions = connection.real and not distributed
        if self.real_sessions:
            if run(connection, self._statements.take_lock(self._identity.id))[0]:
                return connection
            logger.warning("the lock of this worker is still held by its former session; going by its beats")
        connection.close()
        return None


def _hung_up(connection: Connection) -> bool:
    """Return whether the server has closed an idle connection: then there is something to read, and it is an error."""
    try:
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return connection.pgconn.status != psycopg.pq.ConnStatus.OK


class Rounds:
    """The beats and the rounds of one worker: what is due, by a monotonic clock in seconds."""

    def __init__(self, app: PgQueue, identity: Identity, cursors: Cursors, now: float) -> None:
        self._cursors = cursors
        self._settings = app.settings
        self._statements = app.database.statements
        self._identity = identity
        self._watch = Watch(identity, app.settings.dead_after)
        self.neighbours = Neighbours(identity.boot)
        self._next_look = now
        self._next_beat = now + app.settings.beat_interval
        self._next_sweep = now + random.uniform(0.0, SWEEP_SECONDS)
        self._next_search = self._next_prune = self._next_orphans = now

    @property
    def next(self) -> float:
        """When the next of them is due."""
        return min(self._next_beat, self._next_sweep)

    def beat_due(self, now: float) -> bool:
        """Return whether to beat now; answers True once an interval."""
        if now < self._next_beat:
            return False
        self._next_beat = now + self._settings.beat_interval
        return True

    def go(self, connection: Connection, now: float) -> bool:
        """Sweep and prune if it is time, and if nobody else has that duty; return whether somebody was dead."""
        if now < self._next_sweep:
            return False
        buried = False
        on_duty = run(connection, self._statements.take_duty("sweep", self._identity.id, _DUTY_SECONDS))[0]
        if on_duty or now >= self._next_look or self.neighbours.ended():
            buried = self._look(connection, now, on_duty=on_duty)
        self._look_back(connection, now)
        self._next_sweep = now + SWEEP_SECONDS
        if self._watch.due > now:
            self._next_sweep = min(self._next_sweep, self._watch.due + 0.01)
            self._next_look = min(self._next_look, self._next_sweep)
        if on_duty and now >= self._next_prune:
            self._next_prune = now + (SWEEP_SECONDS if self._prune(connection) else PRUNE_SECONDS)
        if on_duty and now >= self._next_orphans:
            self._next_orphans = now + PRUNE_SECONDS
            self._take_back_orphans(connection)
        return buried

    def noticed(self, now: float) -> None:
        """Look at once: a neighbour has ended."""
        self._next_sweep = self._next_look = now

    def _look(self, connection: Connection, now: float, *, on_duty: bool) -> bool:
        """See who is dead. Who has the duty sees to all; the others to neighbours that are proven gone."""
        self._next_look = now + _LOOK_SECONDS
        boot = None if on_duty else self._identity.boot
        others = run(connection, self._statements.observe(self._identity.id, boot))
        self.neighbours.keep(others)
        dead = [verdict for verdict in self._watch.look(others, now) if on_duty or verdict.proven]
        for verdict in dead:
            self._bury(connection, verdict.other, verdict.evidence)
        return bool(dead)

    def _look_back(self, connection: Connection, now: float) -> None:
        """See what claims have passed over; whoever has that duty searches for it, and rarely if that takes long."""
        # Not the duty to sweep: a worker of an older version may have it, and does not search.
        search = (
            now >= self._next_search
            and run(connection, self._statements.take_duty("look_back", self._identity.id, _DUTY_SECONDS))[0]
        )
        began = time.monotonic()
        found = run(connection, self._statements.look_back(self._cursors.queues, search=search))
        now = time.monotonic()
        if search:
            self._next_search = now + rest(now - began)
        self._cursors.look_back(found, now)

    def _prune(self, connection: Connection) -> bool:
        """Delete old results; return whether there is more to delete."""
        keep = self._settings.result_expires.total_seconds()
        return run(connection, self._statements.prune(keep, PRUNE_BATCH))[0] == PRUNE_BATCH

    def _take_back_orphans(self, connection: Connection) -> None:
        """Take back leases of nobody."""
        for worker in run(connection, self._statements.orphans(self._settings.dead_after)):
            error = ErrorReport("WorkerLostError", "pgqueue.errors", f"worker {worker} died and is not on the list")
            run(connection, self._statements.bury(worker, error, None, self._settings.max_crashes))
            logger.warning("leases of worker %s, which is not on the list, are taken back", worker)

    def _bury(self, connection: Connection, other: Observed, evidence: str) -> None:
        error = ErrorReport(
            "WorkerLostError", "pgqueue.errors", f"worker {other.name} (pid {other.pid}) died: {evidence}"
        )
        # A frozen process, or one whose host has vanished, keeps its transactions open, and they lock their jobs.
        run(connection, self._statements.end_sessions(other.id, SESSION_END))
        jobs = run(connection, self._statements.bury(other.id, error, None, self._settings.max_crashes))
        logger.warning("worker %s (pid %d) is dead: %s; %d jobs taken back", other.name, other.pid, evidence, len(jobs))
