"""ResultSet: several handles asked and awaited together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from inspect import signature
from itertools import repeat
from typing import Any, TypeAlias

import psycopg
import pytest

import pgqueue.waiting
from pgqueue import AsyncResult, InvalidOption, PgQueue, ResultTimeout, State, TaskRevokedError, UnknownJob
from pgqueue.eager_result import EagerResult
from pgqueue.ids import new_id
from pgqueue.result_set import ResultSet
from pgqueue.statements import Ended, Statement, Statements
from pgqueue.tracer import Context
from pgqueue.tracer.context import _current
from pgqueue.types import Claim, ErrorReport, Failed, Ignored, NewJob, Outcome, Revoked, Succeeded

Connection: TypeAlias = psycopg.Connection[Any]
STATEMENTS = Statements()
BAD = Failed(ErrorReport("ValueError", "builtins", "bad", args=("bad",)))


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("shop", dsn=dsn)
    yield app
    app.close()


@pytest.fixture
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits looks once, and then not before an hour is over."""
    monkeypatch.setattr(pgqueue.waiting, "_pauses", lambda *_: repeat(3600.0))


class Jobs:
    """Enqueues jobs and ends them, as callers and a worker do."""

    def __init__(self, app: PgQueue, conn: Connection) -> None:
        self._app = app
        self._conn = conn
        self._worker = new_id()
        self._claims: dict[str, Claim] = {}

    def __call__(self, count: int) -> list[AsyncResult[Any]]:
        ids = [new_id() for _ in range(count)]
        self.run(STATEMENTS.enqueue([NewJob(id=id_, task="pair") for id_ in ids], durable=False))
        self._claims |= {
            claim.id: claim for claim in self.run(STATEMENTS.claim(self._worker, ["default"], count, [], relaxed=False))
        }
        return [self._app.AsyncResult(id_) for id_ in ids]

    def end(self, handle: AsyncResult[Any], outcome: Outcome, **how: Any) -> None:
        ended = Ended(self._claims[handle.id], outcome, **how)
        assert self.run(STATEMENTS.finish(self._worker, [ended])) == []

    def claim(self, handle: AsyncResult[Any]) -> Claim:
        return self._claims[handle.id]

    def run(self, statement: Statement[Any]) -> list[Any]:
        with psycopg.RawCursor(self._conn) as cursor:
            return statement.values(cursor.execute(statement.sql, statement.params).fetchall())


@pytest.fixture
def jobs(app: PgQueue, conn: Connection) -> Jobs:
    return Jobs(app, conn)


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait for what another thread does; the failure names it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def waiting(conn: Connection) -> int:
    (count,) = conn.execute("select count(*) from pgqueue.waiter").fetchone() or (None,)
    assert isinstance(count, int)
    return count


def listening(conn: Connection) -> bool:
    """Whether the listener listens by now: the LISTEN is the last that it ran."""
    row = conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name like 'pgqueue listen %' and query ilike 'listen %' and state = 'idle'"
    ).fetchone()
    return bool(row and row[0])


class Call(threading.Thread):
    """Calls a function in a thread of its own; `answer` is what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.answer: object = None
        self._function = function
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._function()
        except BaseException as error:
            self.answer = error

    def wait(self) -> object:
        self.join(30)
        assert not self.is_alive()
        return self.answer


# -- its members ----------------------------------------------------------------------------------------------------


def test_it_holds_handles_in_their_order(app: PgQueue) -> None:
    a, b, c = (app.AsyncResult(new_id()) for _ in range(3))
    results = ResultSet([a, b])
    results.add(a)
    results.update([b, c, c])
    assert (list(results), results.results, len(results), results[1], results[-1]) == ([a, b, c], [a, b, c], 3, b, c)
    assert repr(results) == f"<ResultSet: [{a.id}, {b.id}, {c.id}]>"
    results.remove(b.id)
    with pytest.raises(KeyError, match=b.id):
        results.remove(b)
    results.discard(b)
    results.discard(a)
    assert (list(results), results == ResultSet([c]), results != ResultSet([a]), results == [c]) == (
        [c],
        True,
        True,
        False,
    )
    results.clear()
    assert (len(results), list(results)) == (0, [])
    with pytest.raises(TypeError):
        hash(results)


def test_what_is_no_handle_or_of_another_app_is_refused(app: PgQueue) -> None:
    handle = app.AsyncResult(new_id())
    other = PgQueue("other", dsn="").AsyncResult(new_id())
    wrong: Any
    for wrong in (handle.id, None, 5):
        with pytest.raises(InvalidOption, match="is no result"):
            ResultSet([wrong])
    with pytest.raises(InvalidOption, match="another app"):
        ResultSet([handle, other])
    results = ResultSet([EagerResult(new_id(), 1, "SUCCESS"), handle])
    assert results.app is app
    with pytest.raises(InvalidOption, match="another app"):
        results.add(other)
    assert len(results) == 2


def test_an_empty_one_is_ready(app: PgQueue) -> None:
    results = ResultSet[Any]([])
    assert (results.get(), list(results.iterate()), list(results.iter_native())) == ([], [], [])
    assert (results.ready(), results.waiting(), results.successful(), results.failed()) == (True, False, True, False)
    assert (results.completed_count(), results.revoke()) == (0, [])
    results.forget()
    results.maybe_throw()


# -- looking --------------------------------------------------------------------------------------------------------


def test_states_are_asked_of_all(jobs: Jobs) -> None:
    a, b = handles = jobs(2)
    results = ResultSet(handles)

    def states() -> tuple[object, ...]:
        asked = (results.ready, results.waiting, results.successful, results.failed, results.completed_count)
        return tuple(ask() for ask in asked)

    assert states() == (False, True, False, False, 0)
    jobs.end(a, Succeeded("5"))
    assert states() == (False, True, False, False, 1)
    results.maybe_throw()
    jobs.end(b, BAD)
    assert states() == (True, False, False, True, 1)
    with pytest.raises(ValueError, match="bad"):
        results.maybe_throw()
    heard: list[Any] = []
    results.maybe_throw(lambda *given: heard.append(given), propagate=False)
    assert [id_ for id_, _ in heard] == [a, b]
    results.remove(b)
    assert states() == (True, False, True, False, 1)


# -- waiting --------------------------------------------------------------------------------------------------------


def test_get_has_the_order_of_celery() -> None:
    order = [
        "self", "timeout", "propagate", "interval", "callback", "no_ack", "on_message", "disable_sync_subtasks",
        "on_interval",
    ]  # fmt: skip
    for name in ("get", "join", "aget"):
        assert list(signature(getattr(ResultSet, name)).parameters) == order


@pytest.mark.usefixtures("slow_looks")
async def test_values_come_in_the_order_of_the_handles(app: PgQueue, jobs: Jobs, conn: Connection) -> None:
    handles = jobs(3)
    heard: list[object] = []
    results = ResultSet([*handles, handles[0]])  # one of them twice
    in_thread = Call(lambda: results.get(timeout=30, callback=lambda *given: heard.append(given)))
    in_loop = asyncio.create_task(ResultSet(handles).aget(timeout=30))
    await asyncio.to_thread(until, lambda: waiting(conn) == 6 and listening(conn))
    for handle in reversed(handles):
        jobs.end(handle, Succeeded(f'"{handle.id}"'))
    ids = [handle.id for handle in handles]
    assert await asyncio.to_thread(in_thread.wait) == [*ids, ids[0]]
    assert heard == [(id_, id_) for id_ in [*ids, ids[0]]]
    assert await in_loop == ids
    assert waiting(conn) == 0
    await app.aclose()


@pytest.mark.usefixtures("slow_looks")
async def test_the_first_error_in_the_order_is_raised_when_its_turn_has_come(
    app: PgQueue, jobs: Jobs, conn: Connection
) -> None:
    a, b, c, d = handles = jobs(4)
    jobs.end(c, Revoked("expired"))
    in_thread = Call(lambda: ResultSet(handles).get(timeout=30))
    in_loop = asyncio.create_task(ResultSet(handles).aget(timeout=30))
    await asyncio.to_thread(until, lambda: waiting(conn) == 6 and listening(conn))
    jobs.end(b, BAD)
    assert in_thread.is_alive()
    jobs.end(a, Succeeded("1"))
    assert isinstance(await asyncio.to_thread(in_thread.wait), ValueError)  # d is not awaited
    with pytest.raises(ValueError, match="bad"):
        await in_loop
    assert waiting(conn) == 0
    jobs.end(d, Ignored())
    first, *others = ResultSet(handles).get(timeout=5, propagate=False)
    assert first == 1
    assert list(map(type, others)) == [ValueError, TaskRevokedError, type(None)]
    await app.aclose()


async def test_the_timeout_is_that_of_all_together(app: PgQueue, jobs: Jobs, conn: Connection) -> None:
    handles = jobs(5)
    for handle in handles[:2]:
        jobs.end(handle, Succeeded("1"))
    started = time.monotonic()
    told = f"3 of 5 jobs have not ended after 0.2 s, such as {handles[2].id}, which is STARTED"
    with pytest.raises(ResultTimeout, match=told):
        ResultSet(handles).get(timeout=0.2)
    with pytest.raises(ResultTimeout, match=told):
        await ResultSet(handles).aget(timeout=0.2)
    for iterate in (ResultSet(handles).iterate, ResultSet(handles).iter_native):
        found: list[Any] = []
        with pytest.raises(ResultTimeout):
            found.extend(iterate(timeout=0.2))
        assert len(found) == 2
    assert 0.8 <= time.monotonic() - started < 10
    assert waiting(conn) == 0
    await app.aclose()


@pytest.mark.usefixtures("slow_looks")
def test_iterating_yields_in_the_order_of_the_ends(jobs: Jobs, conn: Connection) -> None:
    a, b, c = handles = jobs(3)
    found: list[Any] = []
    calls = [
        Call(lambda: found.extend(ResultSet(handles).iter_native(timeout=30))),
        Call(lambda: list(ResultSet(handles).iterate(timeout=30, propagate=False))),
    ]
    until(lambda: waiting(conn) == 6 and listening(conn))
    for handle, outcome, left in ((c, Succeeded("3"), 2), (a, BAD, 1), (b, Succeeded("2"), 0)):
        jobs.end(handle, outcome)
        until(lambda left=left: len(found) == 3 - left)  # type: ignore[misc]
    for call in calls:
        call.wait()
    assert [id_ for id_, _ in found] == [c, a, b]
    assert [meta["status"] for _, meta in found] == [State.SUCCESS, State.FAILURE, State.SUCCESS]
    assert (found[0][1], found[2][1]["result"]) == ({"status": "SUCCESS", "result": 3}, 2)
    assert (type(found[1][1]["result"]), str(found[1][1]["result"])) == (ValueError, "bad")
    assert isinstance(calls[1].answer, list)
    assert [type(value) for value in calls[1].answer] == [int, ValueError, int]
    with pytest.raises(ValueError, match="bad"):
        list(ResultSet([c, a, b]).iterate())
    assert waiting(conn) == 0


def test_who_stops_iterating_leaves_nothing_behind(jobs: Jobs, conn: Connection) -> None:
    a, b, c = jobs(3)
    jobs.end(a, Succeeded("1"))
    iterator: Any = ResultSet([a, b, c]).iterate(timeout=30)
    assert next(iterator) == 1
    call = Call(lambda: next(iterator))
    until(lambda: waiting(conn) == 2)
    jobs.end(b, Succeeded("2"))
    assert call.wait() == 2
    assert waiting(conn) == 2  # for c
    iterator.close()
    assert waiting(conn) == 0


async def test_what_is_not_waited_for_does_not_hold_up_the_others(app: PgQueue, jobs: Jobs, conn: Connection) -> None:
    (handle,) = jobs(1)
    jobs.end(handle, Succeeded("2"))
    results = ResultSet([EagerResult(new_id(), 1, State.SUCCESS), handle, AsyncResult(new_id(), app, ignored=True)])
    assert results.get(timeout=5) == await results.aget(timeout=5) == [1, 2, None]
    results.add(app.AsyncResult(new_id()))
    for propagate in (True, False):
        with pytest.raises(UnknownJob):
            results.get(timeout=5, propagate=propagate)
    *_, (id_, meta) = results.iter_native()
    assert (id_, meta["status"], type(meta["result"])) == (results[3].id, State.UNKNOWN, UnknownJob)
    await app.aclose()


def test_what_follows_a_job_that_failed_ends_as_it_did(app: PgQueue, jobs: Jobs, conn: Connection) -> None:
    (parent,) = jobs(1)
    child: AsyncResult[Any] = AsyncResult(new_id(), app, parent=parent)
    call = Call(lambda: ResultSet([child]).get(timeout=30))
    until(lambda: waiting(conn) == 1)
    jobs.end(parent, BAD)
    assert isinstance(call.wait(), ValueError)


def test_changes_and_looks_are_told(jobs: Jobs, conn: Connection) -> None:
    a, b = handles = jobs(2)
    heard, looks = list[Any](), list[str]()

    def step() -> None:
        looks.append("look")
        if len(looks) == 4:
            jobs.end(b, Succeeded("2"))
        if len(looks) == 6:
            jobs.end(a, Succeeded("1"))

    results = ResultSet(handles)
    assert results.get(timeout=20, interval=0.01, on_message=heard.append, on_interval=step) == [1, 2]
    assert [(meta["task_id"], meta["status"], meta["result"]) for meta in heard] == [
        (a, State.STARTED, None),
        (b, State.STARTED, None),
        (b, State.SUCCESS, 2),
        (a, State.SUCCESS, 1),
    ]
    with pytest.raises(InvalidOption, match="interval"):
        results.get(interval=0)


@pytest.mark.usefixtures("slow_looks")
def test_a_hundred_are_awaited_at_once(jobs: Jobs, conn: Connection) -> None:
    handles = jobs(100)
    call = Call(lambda: ResultSet(handles).get(timeout=60))
    until(lambda: waiting(conn) == 100 and listening(conn))
    for number, handle in enumerate(handles):
        jobs.end(handle, Succeeded(str(number)))
    assert call.wait() == list(range(100))
    assert waiting(conn) == 0


@pytest.mark.usefixtures("slow_looks")
def test_a_notification_costs_one_look(
    app: PgQueue, jobs: Jobs, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles, looks, run = jobs(5), list[object](), app.database.run

    def counted(statement: Statement[Any], *more: Any) -> Any:
        if ".status(" in statement.sql:
            looks.append(statement.params[0])
        return run(statement, *more)

    monkeypatch.setattr(app.database, "run", counted)
    results = ResultSet(handles)
    call = Call(lambda: results.get(timeout=60))
    until(lambda: waiting(conn) == 5 and listening(conn))
    # From the last on: once two have been seen, the looks for other reasons (announced, the listener listens) are over.
    handles.reverse()
    for number, handle in enumerate(handles):
        jobs.end(handle, Succeeded("1"))
        until(lambda handle=handle: handle._final is not None)  # type: ignore[misc]
        if number == 1:
            looks.clear()
    assert call.wait() == [1] * 5
    assert looks == handles[2:]


async def test_waiting_inside_a_task_is_refused(app: PgQueue, jobs: Jobs) -> None:
    (handle,) = jobs(1)
    results = ResultSet([handle])
    token = _current.set(Context("pair", jobs.claim(handle)))
    try:
        for refused in (results.get, lambda: list(results.iterate()), lambda: list(results.iter_native())):
            with pytest.raises(RuntimeError, match="inside a task"):
                refused()
        with pytest.raises(RuntimeError, match="inside a task"):
            await results.aget()
        jobs.end(handle, Succeeded("1"))
        assert results.get(disable_sync_subtasks=False) == await results.aget(disable_sync_subtasks=False) == [1]
    finally:
        _current.reset(token)
    await app.aclose()


# -- changing -------------------------------------------------------------------------------------------------------


def test_all_are_revoked_and_forgotten(app: PgQueue, jobs: Jobs, conn: Connection) -> None:
    (running,) = jobs(1)
    waits = app.AsyncResult(new_id())
    jobs.run(STATEMENTS.enqueue([NewJob(id=waits.id, task="pair")], durable=False))
    results = ResultSet([running, waits])
    with pytest.raises(InvalidOption, match="terminate"):
        results.revoke(terminate=True)
    assert waits.state is State.PENDING
    assert results.revoke() == [State.STARTED, State.REVOKED]
    jobs.end(running, Succeeded("1"))
    results.forget()
    assert [result.state for result in results] == [State.UNKNOWN, State.UNKNOWN]
