"""AsyncResult: what a handle says of its job, and waiting: woken by a notification, guaranteed by looking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import signature
from itertools import repeat
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import psycopg
import pytest

import pgqueue.waiting
from pgqueue import (
    AsyncResult,
    InvalidOption,
    PgQueue,
    ResultTimeout,
    State,
    TaskFailed,
    TaskRejectedError,
    TaskRevokedError,
    TimeLimitExceeded,
    UnknownJob,
    WorkerLostError,
)
from pgqueue.errors import IncompleteStream
from pgqueue.group_result import result_from_tuple
from pgqueue.ids import new_id
from pgqueue.result import AttemptError, _joining, allow_join_result
from pgqueue.statements import Ended, Statement, Statements
from pgqueue.tracer import Context
from pgqueue.tracer.context import _current
from pgqueue.types import (
    Claim,
    ErrorReport,
    Failed,
    Ignored,
    NewJob,
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
    monkeypatch.setattr(pgqueue.waiting, "_pauses", lambda *_: repeat(3600.0))


class Worker:
    """Claims and finishes with the SQL functions, as a worker does."""

    def __init__(self, conn: Connection) -> None:
        self.id = new_id()
        self._conn = conn

    def run(self, statement: Statement[Any]) -> list[Any]:
        with psycopg.RawCursor(self._conn) as cursor:
            return statement.values(cursor.execute(statement.sql, statement.params).fetchall())

    def enqueue(self, **job: Any) -> str:
        """Enqueue a job as a task or a continuation would."""
        job = {"id": new_id(), "task": "pair", **job}
        (enqueued,) = self.run(STATEMENTS.enqueue([NewJob(**job)], durable=False))
        return str(enqueued.id)

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


ENDS: list[tuple[Outcome, State, type[Exception], str]] = [
    (Failed(ERROR), State.FAILURE, TaskFailed, "no apples"),
    (Failed(ErrorReport("ValueError", "builtins", "bad", args=("bad",))), State.FAILURE, ValueError, "bad"),
    (Failed(ErrorReport("WorkerLostError", "pgqueue.errors", "signal 9")), State.FAILURE, WorkerLostError, "signal 9"),
    (Failed(ErrorReport("TimeLimitExceeded", "pgqueue.errors", "5 s")), State.FAILURE, TimeLimitExceeded, "5 s"),
    (Failed(ErrorReport("WorkerLostError", "other", "x")), State.FAILURE, TaskFailed, "x"),
    (Rejected("not mine"), State.REJECTED, TaskRejectedError, "not mine"),
    (Revoked("expired"), State.REVOKED, TaskRevokedError, "expired"),
]


@pytest.mark.parametrize(("outcome", "state", "kind", "message"), ENDS)
async def test_every_other_end_is_raised_returned_and_told_apart(
    outcome: Outcome, state: State, kind: type[Exception], message: str, app: PgQueue, worker: Worker
) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(outcome)
    with pytest.raises(kind) as caught:
        handle.get(timeout=5)
    assert str(caught.value) == message
    assert not isinstance(outcome, Failed) or type(caught.value).__name__ == outcome.error.type
    with pytest.raises(kind, match=message):
        await app.AsyncResult(handle.id).aget(timeout=5)
    await app.aclose()
    given = handle.get(timeout=5, propagate=False)
    assert isinstance(given, kind)
    assert isinstance(handle.result, kind)
    assert str(given) == str(handle.result) == message
    assert (handle.state, handle.ready(), handle.successful()) == (state, True, False)
    assert handle.failed() == (state is State.FAILURE)


def test_a_failure_carries_the_error_as_data(app: PgQueue, worker: Worker) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Failed(ERROR))
    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=5)
    assert caught.value.error == ERROR
    assert caught.value.traceback == handle.traceback == "Traceback: ..."
    assert isinstance(caught.value.__cause__, TaskFailed)  # shown with it: where it was raised
    assert "Traceback: ..." in str(caught.value.__cause__)


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
    assert isinstance(handle.result, TaskFailed)
    assert (type(handle.result).__name__, str(handle.info)) == ("OutOfStock", "no apples")
    (claim,) = worker.claim()
    assert (handle.state, handle.info) == (State.STARTED, None)
    worker.finish(claim, Released())
    assert (handle.state, handle.retries) == (State.RETRY, 1)
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


def test_a_handle_tells_all_that_is_known_of_its_job(app: PgQueue, worker: Worker, conn: Connection) -> None:
    parent = worker.enqueue()
    id_ = worker.enqueue(
        args='[1,{"$uuid":"00000000-0000-0000-0000-000000000001"}]',
        kwargs='{"y":2}',
        headers='{"trace":"abc"}',
        queue="mail",
        parent_id=parent,
        root_id=parent,
    )
    handle = app.AsyncResult(id_)
    assert (handle.task_id, handle.name, handle.queue, handle.exists()) == (id_, "pair", "mail", True)
    assert (handle.args, handle.kwargs, handle.headers) == ([1, UUID(int=1)], {"y": 2}, {"trace": "abc"})
    assert (str(handle.parent), str(handle.root), handle.attempt, handle.crashes) == (parent, parent, 0, 0)
    assert handle.date_enqueued is not None
    assert abs(handle.date_enqueued - datetime.now(UTC)) < timedelta(minutes=1)
    assert (handle.ignored, handle.supports_native_join, handle.errors, handle.children) == (False, False, [], [])
    other = app.AsyncResult(parent)
    assert (other.parent, str(other.root), list(map(str, other.children)), other.headers) == (None, parent, [id_], None)
    (claim,) = worker.claim()
    worker.finish(claim, Released(crash=ErrorReport("WorkerLostError", "pgqueue.errors", "signal 9")))
    assert (other.attempt, other.crashes) == (1, 1)
    nobody = app.AsyncResult(new_id())
    assert (nobody.exists(), nobody.name, nobody.args, nobody.kwargs, nobody.headers) == (False, None, None, None, None)
    assert (nobody.parent, nobody.root, nobody.children, nobody.errors, nobody.date_enqueued) == (
        None,
        None,
        [],
        [],
        None,
    )


def test_the_errors_of_earlier_attempts_and_of_hooks_are_kept(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    worker.end(Retried(ERROR, 0.0))
    worker.end(Succeeded("[1,null]"))
    worker.run(
        STATEMENTS.attach(
            handle.id,
            '{"attempt":2,"at":"2030-01-31T00:00:00+00:00","state":"HOOK","hook":"on_success",'
            '"error":{"type":"ValueError","module":"builtins","message":"bad"}}',
        )
    )
    first, second = app.AsyncResult(handle.id).errors
    assert (first.attempt, first.state, first.hook) == (1, "RETRY", None)
    assert (first.error.type, first.error.message, first.error.traceback) == (
        "OutOfStock",
        "no apples",
        "Traceback: ...",
    )
    assert abs(first.at - datetime.now(UTC)) < timedelta(minutes=1)
    assert second == AttemptError(
        2, datetime(2030, 1, 31, tzinfo=UTC), "HOOK", ErrorReport("ValueError", "builtins", "bad"), "on_success"
    )


def test_a_state_of_the_tasks_own_comes_with_its_meta(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    (claim,) = worker.claim()
    worker.run(STATEMENTS.set_state(handle.id, worker.id, claim.attempt, "PROGRESS", '{"done":3}'))
    assert (handle.state, type(handle.state), handle.status) == ("PROGRESS", str, "PROGRESS")
    assert handle.result == handle.info == {"done": 3}
    assert (handle.ready(), handle.failed(), handle.traceback, handle.maybe_throw()) == (False, False, None, None)
    with pytest.raises(ResultTimeout, match="is PROGRESS"):
        handle.get(timeout=0)
    worker.finish(claim, Succeeded("[1,null]"))
    assert handle.state is State.SUCCESS


def test_maybe_throw_raises_without_waiting(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle, heard = app.task_named("pair").delay(1), list[object]()
    assert handle.maybe_throw() is app.AsyncResult(new_id()).maybe_throw() is None
    worker.end(Revoked("expired"))
    with pytest.raises(TaskRevokedError, match="expired"):
        handle.throw(callback=lambda *given: heard.append(given))
    assert heard == []
    assert isinstance(handle.maybe_throw(propagate=False), TaskRevokedError)
    handle = app.task_named("pair").delay(1)
    worker.end(Succeeded("5"))
    assert handle.maybe_throw(callback=lambda *given: heard.append(given)) == 5
    assert heard == [(handle.id, 5)]


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


# -- the options of get ---------------------------------------------------------------------------------------------


def test_get_has_the_order_of_celery() -> None:
    order = [
        "self", "timeout", "propagate", "interval", "no_ack", "follow_parents", "callback", "on_message", "on_interval",
        "disable_sync_subtasks",
    ]  # fmt: skip
    for name in ("get", "aget", "wait"):
        assert list(signature(getattr(AsyncResult, name)).parameters) == order


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"interval": -1},
        {"interval": "1"},
        {"interval": float("nan")},
        {"interval": float("inf")},
        {"interval": True},
        {"timeout": "5"},
        {"timeout": float("nan")},
        {"on_message": 5},
        {"on_interval": 5},
    ],
)
async def test_an_option_that_cannot_be_used_is_named(options: dict[str, Any], app: PgQueue) -> None:
    (name,) = options
    handle = app.AsyncResult(new_id())
    with pytest.raises(InvalidOption, match=name):
        handle.get(**options)
    with pytest.raises(InvalidOption, match=name):
        await handle.aget(**options)


async def test_the_callback_hears_of_a_success_and_of_nothing_else(app: PgQueue, worker: Worker) -> None:
    heard: list[object] = []
    for outcome in (Succeeded("5"), Failed(ERROR), Ignored()):
        handle = app.task_named("pair").delay(1)
        worker.end(outcome)
        handle.get(timeout=5, propagate=False, callback=lambda *given: heard.append(given))
        await handle.aget(timeout=5, propagate=False, callback=lambda *given: heard.append(given))
        if outcome == Succeeded("5"):
            assert heard == [(handle.id, 5)] * 2
    assert len(heard) == 2
    await app.aclose()


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_changes_and_looks_are_told(colour: str, app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle, heard, looks = app.task_named("pair").delay(1), list[Any](), list[str]()

    def step() -> None:
        looks.append("look")
        match len(looks):
            case 3:
                (claim,) = worker.claim()
                claims.append(claim)
            case 5 | 7:
                meta = f'{{"done":{len(looks)}}}'
                worker.run(STATEMENTS.set_state(handle.id, worker.id, claims[0].attempt, "PROGRESS", meta))
            case 9:
                worker.finish(claims[0], Succeeded("5"))

    claims: list[Claim] = []
    options: Any = {"timeout": 20, "interval": 0.01, "on_message": heard.append, "on_interval": step}
    assert await (handle.aget(**options) if colour == "async" else asyncio.to_thread(handle.get, **options)) == 5
    await app.aclose()
    assert len(looks) == 9
    assert [(meta["task_id"], meta["status"], meta["result"]) for meta in heard] == [
        (handle.id, State.PENDING, None),
        (handle.id, State.STARTED, None),
        (handle.id, "PROGRESS", {"done": 5}),
        (handle.id, "PROGRESS", {"done": 7}),
        (handle.id, State.SUCCESS, 5),
    ]
    assert [meta["traceback"] for meta in heard] == [None] * 5


@pytest.mark.usefixtures("slow_looks")
def test_the_end_may_be_seen_by_another_first(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)

    def other(meta: Any) -> None:
        if meta["status"] == State.PENDING:
            worker.end(Succeeded("5"))
            assert handle.successful()  # and remembers it, before get() has judged what it saw

    assert handle.get(timeout=30, on_message=other) == 5


async def test_what_a_callback_raises_ends_the_waiting(app: PgQueue, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)

    def refuse() -> None:
        if waiting(conn):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        handle.get(timeout=20, on_interval=refuse)
    with pytest.raises(ZeroDivisionError):
        await handle.aget(timeout=20, on_interval=refuse)
    assert waiting(conn) == 0
    await app.aclose()


# -- a job that is not enqueued yet ---------------------------------------------------------------------------------


def chain(app: PgQueue, worker: Worker, length: int, **job: Any) -> list[AsyncResult[Any]]:
    """Enqueue the first of some jobs, each of which continues the one before; return their handles, the first first."""
    ids = [new_id() for _ in range(length)]
    links = ""
    for id_ in reversed(ids[1:]):
        more = f',"links":[{links}]' if links else ""
        links = f'{{"id":"{id_}","task":"pair"{more}}}'
    worker.enqueue(id=ids[0], links=f"[{links}]", **job)
    handles: list[AsyncResult[Any]] = []
    for id_ in ids:
        handles.append(AsyncResult(id_, app, parent=handles[-1] if handles else None))
    return handles


@pytest.mark.usefixtures("slow_looks")
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_the_last_of_a_chain_is_awaited_before_it_exists(
    colour: str, app: PgQueue, worker: Worker, conn: Connection
) -> None:
    handles = chain(app, worker, 4)
    last = handles[-1]
    assert (last.state, last.parent) == (State.UNKNOWN, handles[2])
    answer = asyncio.create_task(last.aget(30) if colour == "async" else asyncio.to_thread(last.get, 30))
    for handle in handles:
        # Until it waits for this one, and for none after it: a notification is all that wakes it.
        await asyncio.to_thread(until, partial(heard_of, conn, handle))
        (claim,) = worker.claim()
        assert claim.id == handle
        worker.finish(claim, Succeeded(f'"{handle.id}"'))
    assert await answer == last.id
    assert waiting(conn) == 0
    await app.aclose()


def heard_of(conn: Connection, handle: AsyncResult[Any]) -> bool:
    return announced(conn, handle) and bool(listeners(conn))


def announced(conn: Connection, handle: AsyncResult[Any]) -> bool:
    row = conn.execute("select exists (select from pgqueue.waiter where job = %s)", [handle.id]).fetchone()
    return row is not None and bool(row[0])


#: How the first of a chain may end, and what its last one raises.
BROKEN: list[tuple[Outcome, type[Exception], str]] = [
    (Failed(ErrorReport("ValueError", "builtins", "bad", args=("bad",))), ValueError, "bad"),
    (Rejected("not mine"), TaskRejectedError, "not mine"),
    (Revoked("expired"), TaskRevokedError, "expired"),
    (Ignored(), UnknownJob, "was never enqueued: .* before it ended as IGNORED"),
]


@pytest.mark.usefixtures("slow_looks")
@pytest.mark.parametrize(("outcome", "kind", "message"), BROKEN)
async def test_a_chain_that_broke_is_said_at_its_end(
    outcome: Outcome, kind: type[Exception], message: str, app: PgQueue, worker: Worker, conn: Connection
) -> None:
    *_, last = chain(app, worker, 3)
    getter = Getter(last)
    until(lambda: waiting(conn) and listeners(conn))
    worker.end(outcome)
    answer = getter.wait()
    assert isinstance(answer, kind)
    with pytest.raises(kind, match=message):
        last.get()  # at once, by now
    with pytest.raises(kind, match=message):
        await last.aget()
    if kind is not UnknownJob:
        assert isinstance(last.get(propagate=False), kind)
    assert (last.state, last.ready(), waiting(conn)) == (State.UNKNOWN, False, 0)
    await app.aclose()


def test_who_does_not_follow_parents_waits_on(app: PgQueue, worker: Worker, conn: Connection) -> None:
    last = chain(app, worker, 2)[-1]
    with pytest.raises(ResultTimeout, match=f"job {last.id} is not enqueued, {last.parent} before it is PENDING"):
        last.get(timeout=0)
    worker.end(Failed(ERROR))
    with pytest.raises(ResultTimeout, match="is UNKNOWN after"):
        last.get(timeout=0.05, follow_parents=False)
    worker.enqueue(id=last.id)
    worker.end(Succeeded("5"))
    assert last.get(timeout=5, follow_parents=False) == 5


@pytest.mark.usefixtures("slow_looks")
def test_a_chain_goes_on_over_a_job_whose_result_is_not_kept(app: PgQueue, worker: Worker, conn: Connection) -> None:
    first, second, last = chain(app, worker, 3, ignore_result=True)
    getter = Getter(last)
    until(lambda: waiting(conn) and listeners(conn))
    worker.end(Succeeded("1"), keep=False)
    assert (first.state, second.state) == (State.UNKNOWN, State.PENDING)
    until(lambda: announced(conn, second))
    worker.end(Succeeded("2"))
    until(lambda: announced(conn, last))
    worker.end(Succeeded("3"))
    assert getter.wait() == 3


def test_a_chain_that_nobody_enqueued_is_unknown_at_once(app: PgQueue, conn: Connection) -> None:
    last: AsyncResult[Any] = AsyncResult(new_id(), app, parent=AsyncResult(new_id(), app))
    with pytest.raises(UnknownJob, match=last.id):
        last.get(timeout=60)


def test_what_a_task_enqueued_does_not_fail_with_it(app: PgQueue, worker: Worker, conn: Connection) -> None:
    parent = worker.enqueue()
    child = app.AsyncResult(worker.enqueue(parent_id=parent, root_id=parent))
    worker.end(Failed(ERROR))
    assert child.parent == parent
    with pytest.raises(ResultTimeout):
        child.get(timeout=0)
    worker.end(Succeeded("5"))
    assert child.get(timeout=5) == 5
    child.forget()
    with pytest.raises(UnknownJob):  # not the parent's error
        child.get(timeout=5)


def test_forget_takes_those_before_it_along(app: PgQueue, worker: Worker, conn: Connection) -> None:
    first, last = chain(app, worker, 2)
    for _ in range(2):
        worker.end(Succeeded("5"))
    assert last.get(timeout=5) == first.get(timeout=5) == 5
    assert last.forget() is True
    assert (first.state, last.state) == (State.UNKNOWN, State.UNKNOWN)


# -- relatives ------------------------------------------------------------------------------------------------------


def family(app: PgQueue, worker: Worker) -> tuple[AsyncResult[Any], list[str]]:
    """Two generations: a root, its two children, and a child of the first; the root has ended, the others not."""
    root = worker.enqueue()
    (claim,) = worker.claim()
    first, second = (worker.enqueue(args=args, parent_id=root, root_id=root) for args in ("[1]", "[2]"))
    third = worker.enqueue(args="[3]", parent_id=first, root_id=root)
    worker.enqueue(parent_id=root, root_id=root, options='{"trail":false}', queue="elsewhere")
    worker.finish(claim, Succeeded("[0]"))
    return app.AsyncResult(root), [root, first, second, third]


def test_what_came_of_a_job_is_walked_level_by_level(app: PgQueue, worker: Worker, conn: Connection) -> None:
    root, (_, first, second, third) = family(app, worker)
    assert root.children == [first, second]
    walked = list[Any]()
    with pytest.raises(IncompleteStream, match=f"{first} is PENDING"):
        for pair in root.iterdeps():
            walked.append(pair)
    assert walked == [(None, root), (root, first)]
    with pytest.raises(IncompleteStream):
        _ = root.graph
    assert list(root.iterdeps(intermediate=True)) == [(None, root), (root, first), (root, second)]
    assert root.build_graph(intermediate=True) == {root: [first, second], first: [], second: []}
    for claim in worker.claim(3):
        worker.finish(claim, Succeeded(claim.args))
    assert list(root.iterdeps()) == [(None, root), (root, first), (root, second), (first, third)]
    assert root.graph == {root: [first, second], first: [third], second: [], third: []}
    assert root.get_leaf() == [3]


@pytest.mark.usefixtures("slow_looks")
def test_collect_waits_for_what_came_of_a_job(app: PgQueue, worker: Worker, conn: Connection) -> None:
    root, ids = family(app, worker)
    collected = list[Any]()

    def collect() -> None:
        collected.extend(root.collect(timeout=30))

    thread = threading.Thread(target=collect)
    thread.start()
    for id_ in ids[1:]:
        until(partial(heard_of, conn, app.AsyncResult(id_)))
        worker.end(Succeeded(f'"{id_}"'))
    thread.join(30)
    assert collected == [(root, [0]), *((id_, id_) for id_ in ids[1:])]


def test_collect_raises_what_one_of_them_ended_with(app: PgQueue, worker: Worker, conn: Connection) -> None:
    root, _ = family(app, worker)
    worker.end(Revoked("expired"))
    with pytest.raises(TaskRevokedError, match="expired"):
        list(root.collect(timeout=5))


def test_a_handle_goes_through_json_and_back(app: PgQueue) -> None:
    ids = [new_id() for _ in range(2000)]  # more than Python's stack
    handle: Any = None
    for id_ in ids:
        handle = AsyncResult(id_, app, parent=handle)
    assert handle.as_list() == ids[::-1]
    assert AsyncResult(ids[0], app).as_tuple() == ((ids[0], None), None)
    assert AsyncResult(ids[1], app, parent=AsyncResult(ids[0], app)).as_tuple() == (
        (ids[1], ((ids[0], None), None)),
        None,
    )
    assert result_from_tuple(handle.as_tuple(), app).as_list() == ids[::-1]
    assert result_from_tuple(handle, app) is handle
    assert result_from_tuple([[ids[1], [[ids[0], None], None]], None], app).as_list() == [ids[1], ids[0]]
    assert result_from_tuple((ids[0], None), app).as_list() == [ids[0]]


@pytest.mark.parametrize("value", [None, 5, "x", (), (1, 2, 3), (("x", None), None), ((str(uuid4()), None), [5])])
def test_what_is_no_tuple_of_a_result_is_refused(value: Any, app: PgQueue) -> None:
    with pytest.raises(InvalidOption):
        result_from_tuple(value, app)


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


async def test_waiting_inside_a_task_can_be_allowed(app: PgQueue, worker: Worker, conn: Connection) -> None:
    handle = app.task_named("pair").delay(1)
    (claim,) = worker.claim()
    worker.finish(claim, Succeeded("5"))
    token = _current.set(Context("pair", claim))
    try:
        with allow_join_result():
            assert handle.get(timeout=5) == await handle.aget(timeout=5) == 5
            beside = Thread()
        with pytest.raises(RuntimeError, match="inside a task"):
            handle.get(timeout=5)
    finally:
        _current.reset(token)
    assert beside.allowed is False
    await app.aclose()


class Thread(threading.Thread):
    """Whether a thread that starts now is allowed to wait: what one allows is not allowed to others."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: bool | None = None
        self.start()
        self.join()

    def run(self) -> None:
        self.allowed = _joining.get()


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


@pytest.mark.parametrize("options", [{"terminate": True}, {"signal": "SIGKILL"}, {"terminate": True, "signal": 9}])
def test_a_running_task_cannot_be_ended_and_nothing_is_done_instead(
    options: dict[str, Any], app: PgQueue, worker: Worker
) -> None:
    handle = app.task_named("pair").delay(1)
    with pytest.raises(InvalidOption, match="leave out terminate and signal"):
        handle.revoke(**options)
    assert handle.state is State.PENDING
    assert handle.revoke(wait=True, timeout=5) is State.REVOKED


def test_an_unknown_job_that_is_revoked_stays_unknown(app: PgQueue, conn: Connection) -> None:
    handle = app.AsyncResult(str(uuid4()))
    assert handle.revoke() is handle.state is State.UNKNOWN
