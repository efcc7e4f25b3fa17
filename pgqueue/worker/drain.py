"""Run what is due here and now: a worker without a process, threads or waiting, for tests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import psycopg

from pgqueue.app import PgQueue
from pgqueue.database import Database, run, transient
from pgqueue.errors import InvalidOption, TaskPredicate, TaskRejectedError, TaskRevokedError
from pgqueue.ids import new_id
from pgqueue.options import check_text, shown
from pgqueue.reports import report, revive
from pgqueue.serialization import decode
from pgqueue.signals import task_received
from pgqueue.sql import rename
from pgqueue.statements import Ended, Statement
from pgqueue.tracer import Aftermath, Context, Tracer, Where, build_tracer
from pgqueue.types import (
    Claim,
    ErrorReport,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Retried,
    Revoked,
    State,
    Succeeded,
)
from pgqueue.worker import failures, journal
from pgqueue.worker.board import Board
from pgqueue.worker.joined import Joined, joined
from pgqueue.worker.limits import Rules
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.slot import Slot
from pgqueue.worker.slots import Bench, Tracers, _asettle, _lost, _settle, untried
from pgqueue.worker.transactions import AttemptTransaction

logger = logging.getLogger("pgqueue.worker")

T = TypeVar("T")
Connection = psycopg.Connection[Any]

_QUEUES = "select distinct j.queue from pgqueue.job j where j.worker is null order by j.queue"
_NEXT = """
    select min(j.eta)::text from pgqueue.job j
     where j.worker is null and j.eta > pgqueue.clock() and j.queue = any($1::text[]) and j.task <> all($2::text[])"""
_SET_CLOCK = "select set_config('pgqueue_clock.now', $1, true)"
_CLOCK = "select coalesce(current_setting('pgqueue_clock.now', true), '')"


@dataclass(frozen=True, slots=True)
class Drained:
    """One attempt that `drain` has run, and what became of it.

    - `id`, `task`: of the job.
    - `state`: where the job was then: a ready state, or RETRY or PENDING if it was to be run again.
    - `value`: what the task returned. `error`: the exception of a FAILURE or a retry, or why it was refused.
    """

    id: str
    task: str
    state: str
    value: Any = None
    error: BaseException | None = None


def drain(
    app: PgQueue,
    queues: str | Sequence[str] | None = None,
    *,
    connection: object = None,
    scheduled: bool = False,
    limit: int = 10_000,
) -> list[Drained]:
    """Run every job that is due, in this thread, until nothing is; return the attempts in the order of their ends.

    Jobs that tasks enqueue, and continuations, are run too. It does what a worker does, hooks, signals and
    transactions included, but for time limits: nothing interrupts a task. What a task raises is returned, and stored as
    always.

    - `queues`: served in this order; default: all.
    - `connection`: happen on this connection, in its open transaction, and commit nothing; see `joined`.
    - `scheduled`: run later jobs and retries as well: whenever nothing is due, the clock of the database is put forward
      for this call, to the next of them.
    - `limit`: most attempts.

    Jobs of tasks that the app does not have stay where they are. Raises RuntimeError, naming the task, when there is
    more to run after `limit` attempts: a task that retries or enqueues itself for ever.

        add.delay(2, 3)
        (done,) = drain(app)
        assert done.value == 5
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidOption(f"limit must be a positive integer, not {shown(limit)}")
    names = None if queues is None else [queues] if isinstance(queues, str) else list(queues)
    for name in names or ():
        check_text("queue", name, 100)
    app.load_tasks()
    failures.install(app)
    with ExitStack() as stack:
        if connection is not None:
            stack.enter_context(joined(app, connection))
        loop = stack.enter_context(_Loop(app.database))
        lent = stack.enter_context(_lent(app.database))
        drain = _Drain(app, lent, names, loop)
        stack.enter_context(drain.clock_kept())
        return list(drain.attempts(limit, scheduled=scheduled))


class _Drain:
    """One call of `drain`: a worker with one slot that nobody else can see."""

    def __init__(self, app: PgQueue, connection: Connection, queues: list[str] | None, loop: _Loop) -> None:
        self._app = app
        self._connection = connection
        self._statements = app.database.statements
        self._worker = new_id()
        self._given = queues
        self._queues: list[str] = queues or []
        self._unknown: list[str] = []  # names of tasks that the app does not have
        self._now: str | None = None  # what the clock has been put to
        self._loop = loop
        self._slot = Slot(0, Board(1, shared=False), Rules(app.tasks, WorkerOptions()), lambda at: None)
        self._transaction = AttemptTransaction(app.database, self._worker, self._slot)
        tracers = _Tracers(app.tasks, Where("drain", self._worker))
        crashes = app.settings.max_crashes
        self._bench = Bench(
            app.tasks, tracers, app.database, self._worker, crashes, self._report, self._attach
        )  # fmt: skip

    def attempts(self, limit: int, *, scheduled: bool) -> Iterator[Drained]:
        """Run one job after the other."""
        count = 0
        while (claim := self._claim(scheduled=scheduled)) is not None:
            if count == limit:
                self._run(self._statements.finish(self._worker, [untried(claim)]))
                raise RuntimeError(
                    f"{limit} attempts have been run and there is more: the next is {claim.task}[{claim.id}], its "
                    f"attempt {claim.attempt}; if that is right, give a larger limit="
                )
            count += 1
            yield self._attempt(claim)

    @contextmanager
    def clock_kept(self) -> Iterator[None]:
        """Leave the clock of the session as it is found; a rollback does so by itself."""
        (before,) = self._run(self._statement(_CLOCK))
        try:
            yield
        finally:
            if self._now is not None:
                self._now = None
                with suppress(psycopg.Error):
                    self._run(self._statement(_SET_CLOCK, before))

    # -- what comes next -------------------------------------------------------------------------------------

    def _claim(self, *, scheduled: bool) -> Claim | None:
        """Claim the next job that can be run; with `scheduled` put the clock forward to it."""
        while True:
            for claim in self._run(
                self._statements.claim(self._worker, self._queues, 1, self._unknown, alone=True)
            ):  # at most one
                if claim.succeeded:
                    self._run(self._statements.finish(self._worker, [Ended(claim, Ignored(), keep=False)]))
                elif claim.task not in self._app.tasks:
                    self._leave_to_others(claim)
                else:
                    return claim
                break
            else:
                if not self._found_queues() and not (scheduled and self._put_forward()):
                    return None

    def _found_queues(self) -> bool:
        """Look for queues that were not there before; they come after those that were."""
        if self._given is not None:
            return False
        found = [name for name in self._run(self._statement(_QUEUES)) if name not in self._queues]
        self._queues = [*self._queues, *found]
        return bool(found)

    def _put_forward(self) -> bool:
        """Put the clock forward to the next job; return whether there is one."""
        (following,) = self._run(self._statement(_NEXT, self._queues, self._unknown))
        self._now = following or self._now
        return following is not None

    def _leave_to_others(self, claim: Claim) -> None:
        self._run(self._statements.finish(self._worker, [untried(claim)]))
        self._unknown.append(claim.task)
        logger.warning("task %r of job %s is not registered here; such jobs stay where they are", claim.task, claim.id)

    # -- one attempt -----------------------------------------------------------------------------------------

    def _attempt(self, claim: Claim) -> Drained:
        if task_received.receivers:
            request = Context(claim.task, claim, hostname="drain")
            task_received.send(self._app.tasks[claim.task], request=request)
        with self._contained():
            ended, told, aftermath, error = self._body(claim)
        ended, acked = self._acknowledge(ended, told)
        if aftermath is not None:
            with self._contained():
                errors = aftermath.tell(ended.outcome, acked)
            self._attach(claim, errors)
        if error is not None and not isinstance(error, Exception | SystemExit | asyncio.CancelledError):
            raise error  # Ctrl-C, pytest.fail() and its kin are not meant for the task alone
        return self._drained(ended, acked, error)

    def _contained(self) -> AbstractContextManager[None]:
        """Keep what is the user's from breaking the transaction that was joined."""
        database = self._bench.database
        return database.savepoint() if isinstance(database, Joined) else nullcontext()

    def _body(self, claim: Claim) -> tuple[Ended, bool | None, Aftermath | None, BaseException | None]:
        """Run the task, and commit its transaction or undo it as `slots.work` does; return the exception too."""
        transaction, bench = self._transaction, self._bench
        transaction.renew()
        tracer = bench.tracers[claim.task]
        started = perf_counter()
        outcome: Outcome
        aftermath: Aftermath | None
        error: BaseException | None
        try:
            if tracer.trace is not None:
                outcome, aftermath = tracer.trace(claim, transaction)
            else:
                assert tracer.atrace is not None
                outcome, aftermath = self._loop.run(tracer.atrace(claim, transaction))
            error = None if aftermath is None else aftermath.error
        except BaseException as stray:  # a coroutine that cancels itself, or Ctrl-C in one
            outcome, aftermath, error = Failed(report(stray)), None, stray
        if transaction.error is not None:
            outcome = _lost(bench, claim, outcome)
        ended = Ended(claim, outcome, perf_counter() - started, tracer.keeps(claim, outcome))
        if not transaction.is_open:
            return ended, None, aftermath, error
        if tracer.trace is not None:
            return *_settle(bench, ended, transaction), aftermath, error
        return *self._loop.run(_asettle(bench, ended, transaction)), aftermath, error

    def _acknowledge(self, ended: Ended, acked: bool | None) -> tuple[Ended, bool]:
        """Store an outcome, unless the transaction of the attempt has; return what was stored, and whether it was."""
        if acked is None:
            try:
                acked = not self._run(self._statements.finish(self._worker, [ended]))
            except psycopg.Error as error:
                if transient(error):
                    raise
                ended = ended._replace(outcome=Failed(report(error)))
                acked = not self._run(self._statements.finish(self._worker, [ended]))
        journal.tell(ended, acked)
        return ended, acked

    def _report(self, ended: Ended, acked: bool | None) -> None:
        self._acknowledge(ended, acked)

    def _attach(self, claim: Claim, errors: Sequence[tuple[str, ErrorReport]]) -> None:
        """Keep with the job what went wrong in hooks."""
        for name, error in errors:
            entry = failures.hook_entry(claim.attempt, name, error)
            self._run(self._statements.attach(claim.id, entry))

    def _drained(self, ended: Ended, acked: bool, error: BaseException | None) -> Drained:
        claim, outcome = ended.claim, ended.outcome
        state = _ENDS.get(type(outcome)) if acked else None
        if state is None or (isinstance(outcome, Rejected) and outcome.requeue):
            state = self._run(self._statements.status(claim.id))[0].state  # it waits again, or was revoked meanwhile
        value = None
        if isinstance(outcome, Succeeded):
            value = self._app.tasks[claim.task].arguments.load_result(decode(outcome.value))
        return Drained(claim.id, claim.task, state, value, _error(outcome, error))

    # -- the database ----------------------------------------------------------------------------------------

    def _run(self, statement: Statement[T]) -> list[T]:
        """Run a statement by itself, or in a savepoint of a transaction that was joined, at the time of the clock."""
        if self._now is None and self._connection.autocommit and not isinstance(self._bench.database, Joined):
            return run(self._connection, statement)
        with self._connection.transaction():
            if self._now is not None:
                run(self._connection, self._statement(_SET_CLOCK, self._now))
            return run(self._connection, statement)

    def _statement(self, text: str, *params: object) -> Statement[Any]:
        return Statement(rename(text, self._statements.schema), params, lambda row: row[0])


class _Tracers(Tracers):
    """Tracers that keep the exception itself."""

    def __missing__(self, name: str) -> Tracer:
        self[name] = build_tracer(self._tasks[name], self._where, always=True)
        return self[name]


class _Loop:
    """Runs coroutines to their ends in one event loop, in a thread of its own where this one has a loop that runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # With a factory it leaves the loop that others may have set for this thread alone.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._used = False
        self._thread: ThreadPoolExecutor | None = None
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pgqueue-drain")

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        if self._used:
            if not isinstance(self._database, Joined):
                self.run(self._database.aclose())
            self._call(self._runner.close)
        if self._thread is not None:
            self._thread.shutdown()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what it returns."""
        self._used = True
        return self._call(lambda: self._runner.run(coroutine))

    def _call(self, function: Callable[[], T]) -> T:
        return function() if self._thread is None else self._thread.submit(function).result()


@contextmanager
def _lent(database: Database) -> Iterator[Connection]:
    """Lend a connection for the statements of the drain: not one of the pool, that its tasks may need them all."""
    if isinstance(database, Joined):
        with database.connection() as connection:
            yield connection
    else:
        with closing(database.connect("drain")) as connection:
            yield connection


_ENDS: dict[type[Outcome], str] = {
    Succeeded: State.SUCCESS,
    Failed: State.FAILURE,
    Rejected: State.REJECTED,
    Revoked: State.REVOKED,
    Ignored: State.IGNORED,
}


def _error(outcome: Outcome, error: BaseException | None) -> BaseException | None:
    """Return what a handle on the job would raise, or what led to the retry; the exception itself where it is there."""
    match outcome:
        case Failed(found):
            return revive(found) if error is None or isinstance(error, TaskPredicate) else error
        case Retried(found) if found is not None:
            return revive(found)
        case Rejected(reason):
            return TaskRejectedError(reason)
        case Revoked(reason):
            return TaskRevokedError(reason)
    return None
