"""`drain` runs what is due in this thread, as a worker would; `joined` keeps it all in the caller's transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import Ignore, InvalidOption, PgQueue, Reject, Retry, TaskRejectedError, TaskRevokedError
from pgqueue.signals import task_postrun, task_prerun, task_success
from pgqueue.worker.drain import Drained, drain
from pgqueue.worker.joined import joined

Connection = psycopg.Connection[Any]


@pytest.fixture
def app(dsn: str, conn: Connection) -> Iterator[PgQueue]:
    conn.execute("drop table if exists note; create table note (line text unique)")
    app = PgQueue("drained", dsn=dsn, set_as_current=False)
    yield app
    app.close()
    conn.execute("drop table note")


@pytest.fixture
def caller(app: PgQueue, connect: Callable[..., Connection]) -> Iterator[Connection]:
    """A connection that commits nothing by itself."""
    connection = connect(autocommit=False)
    yield connection
    connection.rollback()


def count(connection: Connection, table: str) -> int:
    return connection.execute(f"select count(*) from {table}".encode()).fetchone()[0]  # type: ignore[index,no-any-return]


def said(done: list[Drained]) -> list[tuple[str, str, Any]]:
    return [(one.task.rpartition(".")[2], str(one.state), one.value) for one in done]


def test_it_runs_what_is_due_in_this_thread_and_returns_how_it_ended(app: PgQueue, conn: Connection) -> None:
    threads = []

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        threads.append(threading.current_thread())
        return x + y

    @app.task(name="fail")
    def fail() -> None:
        raise LookupError("no such cart")

    results = [add.delay(2, 3), fail.delay(), add.apply_async((1, 1), countdown=60)]
    done = drain(app)
    assert said(done) == [("add", "SUCCESS", 5), ("fail", "FAILURE", None)]
    assert [one.id for one in done] == [result.id for result in results[:2]]
    assert isinstance(done[1].error, LookupError)
    assert threads == [threading.current_thread()]
    assert results[0].get(timeout=0) == 5
    with pytest.raises(LookupError, match="no such cart"):
        results[1].get(timeout=0)
    assert count(conn, "pgqueue.job") == 1
    assert drain(app) == []


def test_queues_are_served_in_their_order_and_all_without_names(app: PgQueue) -> None:
    @app.task(name="show")
    def show(queue: str) -> str:
        return queue

    def enqueue() -> None:
        for queue in ("b", "a", "c"):
            show.apply_async((queue,), queue=queue)

    enqueue()
    assert [one.value for one in drain(app, ["c", "a"])] == ["c", "a"]
    assert [one.value for one in drain(app, "b")] == ["b"]
    enqueue()
    assert [one.value for one in drain(app)] == ["a", "b", "c"]


def test_what_tasks_enqueue_and_continue_with_is_run_too(app: PgQueue) -> None:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="outer")
    def outer() -> None:
        add.apply_async((1, 1), queue="elsewhere", link=add.s(10))

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError

    @app.task(name="mourn")
    def mourn(failed: str) -> str:
        return failed

    outer.delay()
    lost = fail.apply_async(link_error=mourn.s())
    assert sorted(said(drain(app)), key=str) == [
        ("add", "SUCCESS", 12), ("add", "SUCCESS", 2), ("fail", "FAILURE", None), ("mourn", "SUCCESS", lost.id),
        ("outer", "SUCCESS", None),
    ]  # fmt: skip


def test_retries_that_are_due_are_run_and_later_ones_only_when_scheduled(app: PgQueue, conn: Connection) -> None:
    @app.task(name="flaky", bind=True, max_retries=3, default_retry_delay=3600)
    def flaky(self: Any) -> int:
        if self.request.retries == 0:
            raise self.retry(exc=OSError("down"), countdown=0)
        if self.request.retries == 1:
            raise Retry(exc=OSError("still down"), countdown=3600)
        return self.request.retries  # type: ignore[no-any-return]

    result = flaky.delay()
    first = drain(app)
    assert said(first) == [("flaky", "RETRY", None), ("flaky", "RETRY", None)]
    assert [str(one.error) for one in first] == ["down", "still down"]
    assert said(drain(app, scheduled=True)) == [("flaky", "SUCCESS", 2)]
    assert result.get(timeout=0) == 2
    (now,) = conn.execute("select abs(extract(epoch from pgqueue.clock() - clock_timestamp())) < 5").fetchone() or ()
    assert now


def test_scheduled_jobs_are_run_in_the_order_of_their_times(app: PgQueue) -> None:
    @app.task(name="at")
    def at(hours: int) -> int:
        if hours == 3:
            at.apply_async((5,), countdown=2 * 3600)
        return hours

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    at.apply_async((24,), eta=tomorrow)
    at.apply_async((3,), countdown=3 * 3600)
    at.apply_async((9,), countdown=9 * 3600, expires=8 * 3600)
    at.delay(0)
    assert [(str(one.state), one.value) for one in drain(app, scheduled=True)] == [
        ("SUCCESS", 0), ("SUCCESS", 3), ("SUCCESS", 5), ("REVOKED", None), ("SUCCESS", 24),
    ]  # fmt: skip


def test_every_way_to_end_is_told(app: PgQueue) -> None:
    @app.task(name="end", bind=True)
    def end(self: Any, how: str) -> str:
        match how:
            case "ignore":
                raise Ignore
            case "reject":
                raise Reject("not mine")
            case "requeue" if self.request.delivery_info["redelivered"] is False:
                raise Reject("not now", requeue=True)
            case "replace":
                raise self.replace(end.s("plain"))
            case "exit":
                raise SystemExit(3)
        return how

    def ends(how: str, **options: Any) -> list[tuple[str, Any]]:
        end.apply_async((how,), **options)
        return [(str(one.state), one.value) for one in drain(app)]

    assert ends("ignore") == [("IGNORED", None)]
    assert ends("reject") == [("REJECTED", None)]
    assert ends("replace") == [("PENDING", None), ("SUCCESS", "plain")]
    assert ends("exit") == [("FAILURE", None)]
    assert ends("plain", ignore_result=True) == [("SUCCESS", "plain")]
    assert ends("late", expires=datetime.now(UTC) - timedelta(seconds=1)) == [("REVOKED", None)]
    end.apply_async(("reject",))
    end.apply_async(("late",), expires=datetime.now(UTC) - timedelta(seconds=1))
    assert [type(one.error) for one in drain(app)] == [TaskRejectedError, TaskRevokedError]


def test_a_rejected_job_is_tried_again_and_is_pending_meanwhile(app: PgQueue) -> None:
    tries = []

    @app.task(name="picky")
    def picky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise Reject("not now", requeue=True)
        return len(tries)

    picky.delay()
    assert said(drain(app, scheduled=True)) == [
        ("picky", "PENDING", None), ("picky", "PENDING", None), ("picky", "SUCCESS", 3),
    ]  # fmt: skip


def test_hooks_and_signals_are_run_after_the_commit_and_their_errors_kept(app: PgQueue) -> None:
    told: list[Any] = []

    class Base(app.Task):  # type: ignore[name-defined,misc]
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            told.append("before_start")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            told.append(("on_success", retval, str(app.AsyncResult(task_id).state)))
            raise ValueError("a bad hook")

    @app.task(name="work", base=Base)
    def work() -> int:
        return 7

    def hear(signal: Any, **_: Any) -> None:
        told.append(signal.name)

    signals = (task_prerun, task_success, task_postrun)
    for signal in signals:
        signal.connect(hear)
    try:
        result = work.delay()
        drain(app)
    finally:
        for signal in signals:
            signal.disconnect(hear)
    assert told == ["task_prerun", "before_start", ("on_success", 7, "SUCCESS"), "task_success", "task_postrun"]
    assert [(error.hook, error.error.message) for error in result.errors] == [("on_success", "a bad hook")]


def test_a_transactional_task_commits_with_its_acknowledgement_or_not_at_all(app: PgQueue, conn: Connection) -> None:
    @app.task(name="write", transactional=True)
    def write(connection: Connection, line: str) -> str:
        connection.execute("insert into note values (%s)", [line])
        if line == "bad":
            raise ValueError(line)
        return line

    @app.task(name="awrite", transactional=True)
    async def awrite(connection: psycopg.AsyncConnection[Any], line: str) -> str:
        await connection.execute("insert into note values (%s)", [line])
        if line == "abad":
            raise ValueError(line)
        return line

    for task, line in ((write, "good"), (write, "bad"), (awrite, "agood"), (awrite, "abad")):
        task.delay(line)
    assert said(drain(app)) == [
        ("write", "SUCCESS", "good"), ("write", "FAILURE", None),
        ("awrite", "SUCCESS", "agood"), ("awrite", "FAILURE", None),
    ]  # fmt: skip
    assert conn.execute("select line from note order by line").fetchall() == [("agood",), ("good",)]


def test_coroutines_run_in_one_loop_also_where_another_is_running(app: PgQueue) -> None:
    loops = []

    @app.task(name="wait")
    async def wait(n: int) -> int:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        if n == 3:
            await wait.adelay(4)
        return n

    async def inside() -> list[Drained]:
        return drain(app)

    wait.delay(1)
    wait.delay(2)
    assert [one.value for one in drain(app)] == [1, 2]
    assert loops[0] is loops[1]
    wait.delay(3)
    assert [one.value for one in asyncio.run(inside())] == [3, 4]
    assert all(loop.is_closed() for loop in loops)


def test_the_limit_names_the_task_that_has_no_end_and_leaves_its_job_waiting(app: PgQueue, conn: Connection) -> None:
    @app.task(name="endless", bind=True, max_retries=None)
    def endless(self: Any) -> None:
        raise self.retry(countdown=0)

    endless.delay()
    with pytest.raises(RuntimeError, match=r"5 attempts .* endless\["):
        drain(app, limit=5)
    assert conn.execute("select worker, retries from pgqueue.job").fetchall() == [(None, 5)]
    with pytest.raises(InvalidOption, match="limit must be a positive integer"):
        drain(app, limit=0)


def test_jobs_of_unknown_tasks_stay_where_they_are(
    app: PgQueue, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="known")
    def known() -> None: ...

    app.send_task("elsewhere")
    app.send_task("elsewhere")
    known.delay()
    assert said(drain(app, scheduled=True)) == [("known", "SUCCESS", None)]
    assert conn.execute("select task, worker, crashes from pgqueue.job").fetchall() == [("elsewhere", None, 0)] * 2
    assert "elsewhere" in caplog.text


def test_an_exception_that_is_not_for_the_task_ends_the_drain(app: PgQueue, conn: Connection) -> None:
    @app.task(name="interrupted")
    def interrupted() -> None:
        raise KeyboardInterrupt

    @app.task(name="ainterrupted")
    async def ainterrupted() -> None:
        pytest.fail("from a task")

    results = [interrupted.delay(), ainterrupted.delay()]
    with pytest.raises(KeyboardInterrupt):
        drain(app)
    with pytest.raises(pytest.fail.Exception, match="from a task"):
        drain(app)
    assert [str(result.state) for result in results] == ["FAILURE", "FAILURE"]
    assert count(conn, "pgqueue.job") == 0


def test_a_value_that_cannot_be_stored_is_a_failure(app: PgQueue) -> None:
    @app.task(name="strange")
    def strange() -> object:
        return object()

    strange.delay()
    assert said(drain(app)) == [("strange", "FAILURE", None)]


# -- in the transaction of the caller ------------------------------------------------------------------------------


def test_on_a_connection_nothing_is_committed(app: PgQueue, conn: Connection, caller: Connection) -> None:
    @app.task(name="write", transactional=True)
    def write(connection: Connection, line: str) -> str:
        assert connection is caller
        connection.execute("insert into note values (%s)", [line])
        if line == "bad":
            raise ValueError(line)
        plain.delay(line)
        return line

    @app.task(name="plain")
    def plain(line: str) -> str:
        return line

    write.apply_async(("good",), connection=caller, link=plain.s())
    write.apply_async(("bad",), connection=caller)
    done = drain(app, connection=caller)
    assert sorted(said(done), key=str) == [
        ("plain", "SUCCESS", "good"), ("plain", "SUCCESS", "good"),
        ("write", "FAILURE", None), ("write", "SUCCESS", "good"),
    ]  # fmt: skip
    assert caller.execute("select line from note").fetchall() == [("good",)]
    assert count(caller, "pgqueue.result") == 4
    assert (count(conn, "pgqueue.result"), count(conn, "pgqueue.job"), count(conn, "note")) == (0, 0, 0)
    caller.rollback()
    assert (count(conn, "pgqueue.result"), count(conn, "pgqueue.job"), count(conn, "note")) == (0, 0, 0)
    plain.delay("again")  # the app has its own database back
    assert count(conn, "pgqueue.job") == 1


def test_a_task_that_breaks_the_transaction_takes_only_itself_back(app: PgQueue, caller: Connection) -> None:
    @app.task(name="break")
    def break_() -> None:
        caller.execute("insert into note values ('twice')")
        caller.execute("insert into note values ('twice')")

    @app.task(name="keep")
    def keep() -> None:
        caller.execute("insert into note values ('kept')")
        raise ValueError

    caller.execute("insert into note values ('before')")
    with joined(app, caller):
        lost, kept = break_.delay(), keep.delay()
        done = drain(app)
        assert [type(one.error) for one in done] == [psycopg.errors.UniqueViolation, ValueError]
        assert (str(lost.state), str(kept.state)) == ("FAILURE", "FAILURE")
    # As in a worker, what a plain task has written stays although it fails.
    assert caller.execute("select line from note order by line").fetchall() == [("before",), ("kept",)]


def test_scheduled_jobs_on_a_connection_leave_its_clock_as_it_was(app: PgQueue, caller: Connection) -> None:
    @app.task(name="later", bind=True)
    def later(self: Any) -> int:
        if self.request.retries == 0:
            raise self.retry(countdown=3600)
        return 1

    caller.execute("set local pgqueue_clock.now = '2030-01-01 12:00+00'")
    later.apply_async(countdown=86400, connection=caller)
    assert said(drain(app, connection=caller, scheduled=True)) == [("later", "RETRY", None), ("later", "SUCCESS", 1)]
    assert caller.execute("select finished_at from pgqueue.result").fetchone() == (
        datetime(2030, 1, 2, 13, tzinfo=UTC),
    )
    assert caller.execute("select pgqueue.clock()").fetchone() == (datetime(2030, 1, 1, 12, tzinfo=UTC),)


def test_hooks_on_a_connection_see_what_was_stored(app: PgQueue, caller: Connection) -> None:
    seen = []

    class Base(app.Task):  # type: ignore[name-defined,misc]
        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append(str(app.AsyncResult(task_id).state))
            caller.execute("this is no sql")

    @app.task(name="work", base=Base)
    def work() -> None: ...

    result = work.apply_async(connection=caller)
    drain(app, connection=caller)
    assert seen == ["SUCCESS"]
    with joined(app, caller):
        assert [error.hook for error in result.errors] == ["on_success"]


def test_joined_takes_everything_that_the_app_does_into_the_transaction(
    app: PgQueue, conn: Connection, connect: Callable[..., Connection]
) -> None:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="aadd")
    async def aadd(x: int, y: int) -> int:
        return (await add.adelay(x, y)).created and x + y

    connection = connect()
    with connection.transaction(force_rollback=True), joined(app, connection):
        result, other = add.delay(2, 3), aadd.delay(2, 3)
        assert str(result.state) == "PENDING"
        with app.transaction() as same:
            assert same is connection
        assert len(drain(app)) == 3
        assert result.get(timeout=1) == other.get(timeout=1) == 5
        assert count(conn, "pgqueue.job") + count(conn, "pgqueue.result") == 0
    assert count(conn, "pgqueue.job") + count(conn, "pgqueue.result") == 0
    assert str(app.AsyncResult(result.id).state) == "UNKNOWN"


def test_a_coroutine_that_wants_a_transaction_is_told_why_it_cannot_have_it(app: PgQueue, caller: Connection) -> None:
    @app.task(name="awrite", transactional=True)
    async def awrite(connection: psycopg.AsyncConnection[Any]) -> None: ...

    awrite.apply_async(connection=caller)
    (done,) = drain(app, connection=caller)
    assert isinstance(done.error, InvalidOption)
    assert "without connection=" in str(done.error)


@pytest.mark.parametrize(
    ("given", "message"), [(None, "no transaction open"), (object(), "cannot be joined"), (3, "cannot be joined")]
)
def test_a_connection_that_cannot_be_joined_is_refused(
    app: PgQueue, conn: Connection, given: object, message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        drain(app, connection=given or conn)
    assert app.database.dsn
