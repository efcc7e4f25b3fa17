"""AsyncResult: what a handle says of its job, and waiting: woken by a notification, guaranteed by looking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import psycopg
import pytest

import pgqueue.result
from pgqueue import (
    AsyncResult,
    InvalidOption,
    PgQueue,
    PgQueueError,
    ResultTimeout,
    State,
    TaskFailed,
    TaskRejectedError,
    TaskRevokedError,
    UnknownJob,
    WorkerLostError,
)
from pgqueue.ids import new_id
from pgqueue.statements import Ended, Statement, Statements
from pgqueue.tracer import Context
from pgqueue.tracer.context import _current
from pgqueue.types import (
    Claim,
    ErrorReport,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Released,
    Retried,
    Revoked,
    Succeeded,
)

Connection: TypeAlias = psycopg.Connection[Any]
STATEMENTS = Statements()
ERROR = ErrorReport("OutOfStock", "shop.errors", "no apples", args=("apples", 3), traceback="Traceback: ...")


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("shop", dsn=dsn)
    app.task(name="pair")(pair)
    yield app
    app.close()


def pair(x: int) -> tuple[int, datetime]:
    raise NotImplementedError


@pytest.fixture
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits looks once, and then not before an hour is over."""
    monkeypatch.setattr(pgqueue.result, "_FIRST_LOOK", 3600.0)
    monkeypatch.setattr(pgqueue.result, "_LONGEST_LOOK", 3600.0)


class Worker:
    """Claims and finishes with the SQL functions, as a worker does."""

    def __init__(self, conn: Connection) -> None:
        self.id = new_id()
        self._conn = conn

    def run(self, statement: Statement[Any]) -> list[Any]:
        with psycopg.RawCursor(self._conn) as cursor:
            return [statement.row(row) for row in cursor.execute(statement.sql, statement.params).fetchall()]

    def claim(self, limit: int = 1) -> list[Claim]:
        return self.run(STATEMENTS.claim(self.id, ["default"], limit, [], relaxed=False))

    def finish(self, claim: Claim, outcome: Outcome, **how: Any) -> None:
        assert self.run(STATEMENTS.finish(self.id, [Ended(claim, outcome, **how)])) == []

    def end(self, outcome: Outcome, **how: Any) -> None:
        (claim,) = self.claim()
        self.finish(claim, outcome, **how)


@pytest.fixture
def worker(conn: Connection) -> Worker:
    return Worker(conn)


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait for what another thread or process does; the failure names it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def waiting(conn: Connection) -> int:
    (count,) = conn.execute("select count(*) from pgqueue.waiter").fetchone() or (None,)
    assert isinstance(count, int)
    return count


def listeners(conn: Connection) -> list[int]:
    """Pids of sessions that listen by now: the LISTEN is the last that they ran."""
    return [
        row[0]
        for row in conn.execute(
            "select pid from pg_stat_activity where datname = current_database()"
            " and application_name like 'pgqueue listen %' and query ilike 'listen %' and state = 'idle'"
        )
    ]


class Getter(threading.Thread):
    """Calls get() in a thread of its own; `answer` is what it returned or raised."""

    def __init__(self, handle: AsyncResult[Any], timeout: float | None = 30.0) -> None:
        super().__init__(daemon=True)
        self.answer: object = None
        self._handle = handle
        self._timeout = timeout
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._handle.get(self._timeout)
        except BaseException as error:
            self.answer = error

    def wait(self) -> object:
        self.join(30)
        assert not self.is_alive()
        return self.answer


# -- how it ended ---------------------------------------------------------------------------------------------------


def test_a_success_is_its_value_as_the_annotation_says(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Succeeded('[1,{"$datetime":"2026-01-31T00:00:00+00:00"}]'))
    value = (1, datetime(2026, 1, 31, tzinfo=UTC))
    assert handle.get(timeout=5) == value
    assert handle.result == value
    assert (handle.state, handle.status) == (State.SUCCESS, "SUCCESS")
    assert (handle.ready(), handle.successful(), handle.failed(), handle.traceback) == (True, True, False, None)
    assert (handle.name, handle.queue, handle.worker, handle.retries) == ("pair", "default", worker.id, 0)
    assert handle.date_done is not None
    assert abs(handle.date_done - datetime.now(UTC)) < timedelta(minutes=1)
    assert app.AsyncResult(handle.id).get(timeout=5) == [1, value[1]]  # without the task nothing is converted


ENDS: list[tuple[Outcome, State, type[PgQueueError], str]] = [
    (Failed(ERROR), State.FAILURE, TaskFailed, "OutOfStock: no apples"),
    (Failed(ErrorReport("WorkerLostError", "pgqueue.errors", "signal 9")), State.FAILURE, WorkerLostError, "signal 9"),
    (Failed(ErrorReport("WorkerLostError", "other", "x")), State.FAILURE, TaskFailed, "WorkerLostError: x"),
    (Rejected("not mine"), State.REJECTED, TaskRejectedError, "not mine"),
    (Revoked("expired"), State.REVOKED, TaskRevokedError, "expired"),
]


@pytest.mark.parametrize(("outcome", "state", "kind", "message"), ENDS)
async def test_every_other_end_is_raised_returned_and_told_apart(
    outcome: Outcome, state: State, kind: type[PgQueueError], message: str, app: PgQueue, worker: Worker
) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(outcome)
    with pytest.raises(kind) as caught:
        handle.get(timeout=5)
    assert str(caught.value) == message
    assert type(caught.value) is kind
    with pytest.raises(kind, match=message):
        await app.AsyncResult(handle.id).aget(timeout=5)
    await app.aclose()
    given = handle.get(timeout=5, propagate=False)
    assert (type(given), str(given), type(handle.result)) == (kind, message, kind)
    assert (handle.state, handle.ready(), handle.successful()) == (state, True, False)
    assert handle.failed() == (state is State.FAILURE)


def test_a_failure_carries_the_error_as_data(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Failed(ERROR))
    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=5)
    assert caught.value.error == ERROR
    assert caught.value.traceback == handle.traceback == "Traceback: ..."


def test_ignored_is_ready_and_has_no_value(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Ignored())
    assert handle.get(timeout=5) is None
    assert (handle.state, handle.ready(), handle.successful(), handle.failed()) == (State.IGNORED, True, False, False)


def test_the_states_on_the_way_are_told_apart(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    assert (handle.state, handle.result, handle.worker, handle.date_done) == (State.PENDING, None, None, None)
    (claim,) = worker.claim()
    assert (handle.state, handle.worker, handle.ready()) == (State.STARTED, worker.id, False)
    worker.finish(claim, Retried(ERROR, 0.0))
    assert (handle.state, handle.retries, handle.traceback) == (State.RETRY, 1, "Traceback: ...")
    (claim,) = worker.claim()
    assert handle.state is State.STARTED
    worker.finish(claim, Released())
    assert (handle.state, handle.retries) == (State.RETRY, 1)
    assert handle.result is None
    worker.end(Succeeded("[2,null]"))
    assert (handle.state, handle.retries) == (State.SUCCESS, 1)


def test_a_result_that_is_not_kept_is_unknown_afterwards(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").apply_async((1,), ignore_result=True)
    assert handle.get() is None  # at once: there will be none
    worker.end(Succeeded("1"), keep=False)
    assert handle.state is State.UNKNOWN


def test_a_ready_state_is_read_once(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Succeeded("5"))
    assert handle.get(timeout=5) == 5
    conn.execute("delete from pgqueue.result")
    assert (handle.get(timeout=5), handle.state) == (5, State.SUCCESS)
    assert app.AsyncResult(handle.id).state is State.UNKNOWN


# -- ids ------------------------------------------------------------------------------------------------------------


async def test_an_unknown_id_is_said_at_once(app: PgQueue, conn: Connection) -> None:
    handle = app.AsyncResult(str(uuid4()))
    started = time.monotonic()
    for propagate in (True, False):
        with pytest.raises(UnknownJob, match=handle.id):
            handle.get(timeout=60, propagate=propagate)
        with pytest.raises(UnknownJob, match=handle.id):
            await handle.aget(propagate=propagate)
    assert time.monotonic() - started < 30
    await app.aclose()
    assert (handle.state, handle.ready()) == (State.UNKNOWN, False)
    assert isinstance(handle.result, UnknownJob)
    assert waiting(conn) == 0


def test_a_job_that_is_not_committed_is_unknown_to_others(app: PgQueue, conn: Connection) -> None:
    with app.transaction() as connection:
        handle = app.task_named("pair").apply_async((1,), connection=connection)
        with pytest.raises(UnknownJob):
            handle.get(timeout=60)
    assert handle.state is State.PENDING


def test_a_handle_is_its_id(app: PgQueue, conn: Connection) -> None:
    id_ = str(uuid4())
    handle = app.AsyncResult(id_.upper())
    assert (str(handle), repr(handle), handle.id) == (id_, f"<AsyncResult: {id_}>", id_)
    assert handle == app.AsyncResult(id_) == id_
    assert len({handle, app.AsyncResult(id_)}) == 1
    assert handle != app.AsyncResult(str(uuid4()))
    assert handle != 5
    for wrong in ("", "order-1", None, 5):
        with pytest.raises(InvalidOption, match="is not a UUID"):
            app.AsyncResult(wrong)  # type: ignore[arg-type]


# -- waiting --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow_looks")
@pytest.mark.parametrize("outcome", [Succeeded("5"), *(end[0] for end in ENDS), Ignored()])
def test_get_is_woken_by_the_notification_of_every_end(
    outcome: Outcome, app: PgQueue, worker: Worker, conn: Connection
) -> None:
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn) and listeners(conn))
    worker.end(outcome)
    answer = getter.wait()
    assert not isinstance(answer, ResultTimeout)
    assert waiting(conn) == 0


@pytest.mark.usefixtures("slow_looks")
def test_get_is_woken_when_the_job_is_revoked(app: PgQueue, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    getter = Getter(handle)
    until(lambda: waiting(conn) and listeners(conn))
    assert app.AsyncResult(handle.id).revoke() is State.REVOKED
    assert isinstance(getter.wait(), TaskRevokedError)


@pytest.mark.usefixtures("slow_looks")
def test_a_retry_does_not_end_the_waiting(app: PgQueue, worker: Worker, conn: Connection) -> None:
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn) and listeners(conn))
    worker.end(Retried(ERROR, 0.0))
    assert getter.is_alive()
    worker.end(Succeeded("5"))
    assert getter.wait() == 5


@pytest.mark.usefixtures("slow_looks")
def test_what_ended_before_the_listener_listened_is_looked_up_when_it_does(
    app: PgQueue, worker: Worker, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may = app.database.connect, threading.Event()

    def late(purpose: str) -> Any:
        assert may.wait(20)
        return connect(purpose)

    monkeypatch.setattr(app.database, "connect", late)
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn))
    worker.end(Succeeded("5"))
    may.set()
    assert getter.wait() == 5


@pytest.mark.usefixtures("slow_looks")
def test_a_killed_listener_listens_again_and_looks(app: PgQueue, worker: Worker, conn: Connection) -> None:
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn) and listeners(conn))
    (pid,) = listeners(conn)
    conn.execute("select pg_terminate_backend(%s, 5000)", [pid])
    worker.end(Succeeded("5"))
    assert getter.wait() == 5
    assert listeners(conn) != [pid]


def test_looking_is_enough_where_nobody_can_listen(
    app: PgQueue, worker: Worker, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(purpose: str) -> Any:
        raise psycopg.OperationalError("a pooler that forbids it")

    monkeypatch.setattr(app.database, "connect", refuse)
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn))
    worker.end(Succeeded("5"))
    assert getter.wait() == 5
    assert listeners(conn) == []


def test_looking_is_enough_where_every_notification_is_lost(app: PgQueue, worker: Worker, conn: Connection) -> None:
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn) and listeners(conn))
    conn.execute("delete from pgqueue.waiter")  # so that nothing is notified
    worker.end(Succeeded("5"))
    assert getter.wait() == 5


def test_a_pooled_connection_killed_while_somebody_waits_is_replaced(
    app: PgQueue, worker: Worker, conn: Connection
) -> None:
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn))
    for _ in range(3):
        conn.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and application_name like 'pgqueue %'"
        )
        time.sleep(0.02)  # a kill every now and then, not a signal to wait for
    worker.end(Succeeded("5"))
    assert getter.wait() == 5


async def test_a_timeout_is_typed_and_leaves_nothing_behind(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    for timeout in (0, 0.05, -1):
        with pytest.raises(ResultTimeout, match=f"job {handle.id} is PENDING after {timeout} s"):
            handle.get(timeout=timeout)
        with pytest.raises(ResultTimeout, match=f"job {handle.id} is PENDING after {timeout} s"):
            await handle.aget(timeout=timeout)
    (claim,) = worker.claim()
    with pytest.raises(TimeoutError, match="is STARTED"):
        handle.get(timeout=0.05, propagate=False)
    assert waiting(conn) == 0
    worker.finish(claim, Succeeded("5"))
    assert handle.get(timeout=0) == 5
    await app.aclose()


def test_get_waits_for_as_long_as_its_timeout_says(app: PgQueue, conn: Connection) -> None:
    started = time.monotonic()
    with pytest.raises(ResultTimeout):
        app.task_named("pair").delay(1).get(timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 3


@pytest.mark.usefixtures("slow_looks")
async def test_twenty_coroutines_wait_at_once(app: PgQueue, conn: Connection, worker: Worker) -> None:
    handles = await app.aenqueue_many([app.task_named("pair").s(n) for n in range(20)])
    answers = asyncio.gather(*[handle.aget(timeout=30) for handle in handles])
    await asyncio.to_thread(until, lambda: waiting(conn) == 20 and listeners(conn))
    claims = worker.claim(20)
    for claim in claims:
        worker.finish(claim, Succeeded(claim.args))
    assert await answers == [[n] for n in range(20)]
    assert waiting(conn) == 0
    await app.aclose()


@pytest.mark.usefixtures("slow_looks")
async def test_twenty_coroutines_wait_for_one_job(app: PgQueue, conn: Connection, worker: Worker) -> None:
    handle = await app.task_named("pair").adelay(1)
    answers = asyncio.gather(*[app.AsyncResult(handle.id).aget(timeout=30) for _ in range(20)])
    await asyncio.to_thread(until, lambda: waiting(conn) == 20 and listeners(conn))
    worker.end(Succeeded("5"))
    assert await answers == [5] * 20
    assert waiting(conn) == 0
    await app.aclose()


async def test_a_cancelled_wait_takes_its_row_back(app: PgQueue, conn: Connection) -> None:
    handle = await app.task_named("pair").adelay(1)
    waiter = asyncio.create_task(handle.aget())
    await asyncio.to_thread(until, lambda: waiting(conn))
    waiter.cancel()
    with suppress(asyncio.CancelledError):
        await waiter
    assert waiter.cancelled()
    assert waiting(conn) == 0
    await app.aclose()


@pytest.mark.usefixtures("slow_looks")
def test_many_threads_wait_on_one_connection(app: PgQueue, conn: Connection, worker: Worker) -> None:
    assert app.listener is app.listener
    handles = app.enqueue_many([app.task_named("pair").s(n) for n in range(30)])
    getters = [Getter(handle) for handle in handles]
    until(lambda: waiting(conn) == 30 and listeners(conn))
    assert len(listeners(conn)) == 1
    assert [thread.name for thread in threading.enumerate()].count("pgqueue-listener") == 1
    for claim in worker.claim(30):
        worker.finish(claim, Succeeded(claim.args))
    assert [getter.wait() for getter in getters] == [[n] for n in range(30)]
    assert waiting(conn) == 0


def test_the_listener_ends_with_the_app(app: PgQueue, conn: Connection) -> None:
    with pytest.raises(ResultTimeout):
        app.task_named("pair").delay(1).get(timeout=0.05)
    until(lambda: listeners(conn))
    app.close()
    assert "pgqueue-listener" not in [thread.name for thread in threading.enumerate()]
    until(lambda: not listeners(conn))


def test_the_listener_ends_by_itself_when_nobody_waits_any_more(
    app: PgQueue, conn: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.database.listener._LINGER", 0.0)
    with pytest.raises(ResultTimeout):
        app.task_named("pair").delay(1).get(timeout=0.05)
    until(lambda: not listeners(conn))
    until(lambda: "pgqueue-listener" not in [thread.name for thread in threading.enumerate()])
    getter = Getter(app.task_named("pair").delay(1))
    until(lambda: waiting(conn) and listeners(conn))
    for claim in worker.claim(2):
        worker.finish(claim, Succeeded("5"))
    assert getter.wait() == 5


@pytest.mark.usefixtures("slow_looks")
def test_get_works_again_after_close(app: PgQueue, conn: Connection, worker: Worker) -> None:
    for _ in range(3):
        getter = Getter(app.task_named("pair").delay(1))
        until(lambda: waiting(conn) and listeners(conn))
        worker.end(Succeeded("5"))
        assert getter.wait() == 5
        app.close()


# -- inside a task --------------------------------------------------------------------------------------------------


async def test_waiting_inside_a_task_is_refused(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    (claim,) = worker.claim()
    token = _current.set(Context("pair", claim))
    try:
        with pytest.raises(RuntimeError, match="inside a task"):
            handle.get(timeout=5)
        with pytest.raises(RuntimeError, match="inside a task"):
            await handle.aget(timeout=5)
        worker.finish(claim, Succeeded("5"))
        assert handle.get(timeout=5, disable_sync_subtasks=False) == 5
        assert await app.AsyncResult(handle.id).aget(timeout=5, disable_sync_subtasks=False) == 5
        assert handle.state is State.SUCCESS
    finally:
        _current.reset(token)
    await app.aclose()


def test_a_task_that_is_called_directly_may_wait(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    app.task(name="outer")(lambda: handle.get(timeout=5))
    worker.end(Succeeded("5"))
    outer: Any = app.task_named("outer")
    assert outer() == 5


# -- forget and revoke ----------------------------------------------------------------------------------------------


def test_forget_deletes_the_result_and_nothing_else(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    assert handle.forget() is False
    assert handle.state is State.PENDING
    worker.end(Succeeded("5"))
    assert handle.get(timeout=5) == 5
    assert handle.forget() is True
    assert (handle.forget(), handle.state) == (False, State.UNKNOWN)
    with pytest.raises(UnknownJob):
        handle.get(timeout=5)


def test_a_waiting_job_that_is_revoked_ends_at_once_and_is_never_claimed(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    assert handle.revoke() is State.REVOKED
    assert (handle.state, handle.revoke()) == (State.REVOKED, State.REVOKED)
    assert worker.claim() == []
    with pytest.raises(TaskRevokedError, match="revoked"):
        handle.get(timeout=5)


def test_a_running_job_that_is_revoked_may_finish(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    (claim,) = worker.claim()
    assert handle.revoke() is handle.revoke() is State.STARTED
    worker.finish(claim, Succeeded("5"))
    assert handle.get(timeout=5) == 5
    assert handle.revoke() is State.SUCCESS


@pytest.mark.parametrize("outcome", [Retried(ERROR, 0.0), Released()])
def test_a_running_job_that_is_revoked_is_not_started_again(outcome: Outcome, app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    (claim,) = worker.claim()
    handle.revoke()
    worker.finish(claim, outcome)
    assert worker.claim() == []
    with pytest.raises(TaskRevokedError):
        handle.get(timeout=5)


def test_a_job_between_two_attempts_is_revoked_like_one_that_waits(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Retried(ERROR, 60.0))
    assert handle.revoke() is State.REVOKED
    assert handle.state is State.REVOKED


@pytest.mark.parametrize("outcome", [Succeeded("5"), *(end[0] for end in ENDS), Ignored()])
def test_a_finished_job_stays_as_it_is(outcome: Outcome, app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(outcome)
    assert app.AsyncResult(handle.id).revoke() is handle.state


def test_an_unknown_job_that_is_revoked_stays_unknown(app: PgQueue, conn: Connection) -> None:
    handle = app.AsyncResult(str(uuid4()))
    assert handle.revoke() is handle.state is State.UNKNOWN
