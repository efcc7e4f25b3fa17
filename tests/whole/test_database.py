"""The connections of an app: lost, refused, exhausted, forked, closed; and what becomes of the jobs."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from pgqueue import DatabaseUnavailable, LeaseLost, PgQueue, SchemaMissing, SettingsError
from pgqueue.database import connection_lost, run, run_together
from pgqueue.ids import new_id
from pgqueue.statements import Ended, Statement, Statements
from pgqueue.types import NewJob, Succeeded

Connection: TypeAlias = psycopg.Connection[Any]
STATEMENTS = Statements()


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("shop", dsn=dsn, connect_timeout=3)
    app.task(name="add")(add)
    yield app
    app.close()


def add(x: int, y: int = 0) -> int:
    return x + y


def jobs(conn: Connection) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("select * from pgqueue.job order by id").fetchall()


def only(conn: Connection) -> dict[str, Any]:
    (found,) = jobs(conn)
    return found


def succeed(conn: Connection) -> None:
    """Claim the one job that waits, and end it as SUCCESS."""
    worker = new_id()
    (claim,) = run(conn, STATEMENTS.claim(worker, ["default"], 1, [], relaxed=False))
    assert run(conn, STATEMENTS.finish(worker, [Ended(claim, Succeeded("1"))])) == []


def test_a_short_call_that_fails_costs_no_connection(app: PgQueue, conn: Connection) -> None:
    taken = STATEMENTS.enqueue([NewJob(new_id(), "add")], durable=True)
    assert app.database.run(taken) == [(taken.params[0], True)]
    before = own_backends(conn, app)
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.database.run(taken)
    assert app.database.run(STATEMENTS.enqueue([NewJob(new_id(), "add")], durable=True))
    assert own_backends(conn, app) == before


# -- connections that are lost --------------------------------------------------------------------------------------


def own_backends(conn: Connection, app: PgQueue) -> list[int]:
    return [
        row[0]
        for row in conn.execute(
            "select pid from pg_stat_activity where datname = current_database() and application_name like %s",
            [f"pgqueue % {app.name}@%"],
        )
    ]


def kill(conn: Connection, app: PgQueue) -> None:
    """Terminate the pooled connections; return when they are gone."""
    pids = own_backends(conn, app)
    assert pids
    conn.execute("select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [pids])
    assert not set(pids) & set(own_backends(conn, app))


def test_a_connection_killed_between_two_enqueues_costs_no_job_and_makes_none_twice(
    app: PgQueue, conn: Connection
) -> None:
    for n in range(3):
        app.task_named("add").delay(n)
        kill(conn, app)
    app.task_named("add").delay(3)
    assert [job["args"] for job in jobs(conn)] == [[0], [1], [2], [3]]


async def test_an_async_connection_killed_between_two_enqueues_neither(app: PgQueue, conn: Connection) -> None:
    for n in range(3):
        await app.task_named("add").adelay(n)
        await asyncio.to_thread(kill, conn, app)
    await app.task_named("add").adelay(3)
    await app.aclose()
    assert [job["args"] for job in jobs(conn)] == [[0], [1], [2], [3]]


async def test_a_transaction_of_the_app_begins_on_a_live_connection(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    add.delay(0)
    await add.adelay(0)
    kill(conn, app)
    with app.transaction() as connection:
        add.apply_async((1,), connection=connection)
    async with app.atransaction() as aconnection:
        await add.aapply_async((2,), connection=aconnection)
    await app.aclose()
    assert sorted(job["args"][0] for job in jobs(conn)) == [0, 0, 1, 2]


async def test_so_it_does_when_a_dead_connection_joins_the_pool_after_the_check(
    app: PgQueue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was being made when the sessions were ended: staged by a first check that finds nothing."""
    add = app.task_named("add")
    add.delay(0)
    await add.adelay(0)
    kill(conn, app)
    pool, apool = app.database._sync_pool(), await app.database._async_pool()
    check, acheck = pool.check, apool.check

    def miss() -> None:
        monkeypatch.setattr(pool, "check", check)

    async def amiss() -> None:
        monkeypatch.setattr(apool, "check", acheck)

    monkeypatch.setattr(pool, "check", miss)
    monkeypatch.setattr(apool, "check", amiss)
    with app.transaction() as connection:
        add.apply_async((1,), connection=connection)
    async with app.atransaction() as aconnection:
        await add.aapply_async((2,), connection=aconnection)
    await app.aclose()
    assert sorted(job["args"][0] for job in jobs(conn)) == [0, 0, 1, 2]


async def test_an_enqueue_whose_connection_dies_under_it_is_sent_once_more(
    app: PgQueue, conn: Connection, dsn: str
) -> None:
    """It waits for the unique key of an open transaction when its backend is killed; the second try gets through."""
    add = app.task_named("add")
    with psycopg.connect(dsn) as other:
        other.execute("select pgqueue.enqueue('add', p_unique_key => 'k')")
        waiting = asyncio.create_task(add.aapply_async((1,), unique_key="k"))
        threaded = asyncio.create_task(asyncio.to_thread(add.apply_async, (1,), unique_key="k"))
        blocked = await asyncio.to_thread(blocked_backends, conn, 2)
        conn.execute("select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [blocked])
        other.rollback()
    handles = [await waiting, await threaded]
    await app.aclose()
    assert sorted(handle.created for handle in handles) == [False, True]
    assert only(conn)["unique_key"] == "k"


def blocked_backends(conn: Connection, wanted: int) -> list[int]:
    """Wait until so many sessions wait for a lock; return their pids."""
    deadline = time.monotonic() + 20
    while True:
        found = conn.execute(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchall()
        if len(found) >= wanted:
            return [row[0] for row in found]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def cutting(dsn: str, cut: Callable[[], object]) -> Iterator[str]:
    """A proxy to the server. It swallows the first answer of a commit, calls `cut`, then drops that connection."""
    where = conninfo_to_dict(dsn)
    host, port = str(where["host"]), int(str(where["port"]))
    is_cut = threading.Event()

    def serve(client: socket.socket) -> None:
        unix = host.startswith("/")
        with closing(client), closing(socket.socket(socket.AF_UNIX if unix else socket.AF_INET)) as server:
            server.connect(str(Path(host) / f".s.PGSQL.{port}") if unix else (host, port))
            back = threading.Thread(target=answer, args=(server, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join(10)

    def answer(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if b"created" in data and not is_cut.is_set():  # a column of enqueue_many: it is committed by now
                    is_cut.set()
                    cut()
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        login = f"{where['user']}:{where['password']}" if where.get("password") else where["user"]
        yield f"postgresql://{login}@127.0.0.1:{listening.getsockname()[1]}/{where['dbname']}?sslmode=disable"
        listening.shutdown(socket.SHUT_RDWR)
        assert is_cut.is_set()


async def test_an_enqueue_that_was_committed_unheard_is_not_made_twice(conn: Connection, dsn: str) -> None:
    cut = threading.Event()
    with cutting(dsn, cut.set) as through:
        app = PgQueue("shop", dsn=through)
        handles = await asyncio.to_thread(app.enqueue_many, [app.task(name="add")(add).s(1)])
        app.close()
    assert cut.is_set()
    assert [str(job["id"]) for job in jobs(conn)] == [handle.id for handle in handles]


def test_an_enqueue_committed_unheard_and_run_meanwhile_is_not_run_again(conn: Connection, dsn: str) -> None:
    """The second try says that its id may be known: what it answers is the job of the first."""
    with cutting(dsn, lambda: succeed(conn)) as through:
        app = PgQueue("shop", dsn=through)
        handle = app.task(name="add")(add).delay(1)
        assert handle.get(timeout=5) == 1
        app.close()
    assert jobs(conn) == []


async def test_an_async_enqueue_committed_unheard_is_not_run_again_either(conn: Connection, dsn: str) -> None:
    with cutting(dsn, lambda: succeed(conn)) as through:
        app = PgQueue("shop", dsn=through)
        handle = await app.task(name="add")(add).adelay(1)
        assert await handle.aget(timeout=5) == 1
        await app.aclose()
    assert jobs(conn) == []


def test_a_server_that_became_read_only_is_left_for_a_new_connection(dsn: str, conn: Connection) -> None:
    """A demoted leader keeps its sessions; the address leads to the new one."""
    app = PgQueue("shop", dsn=dsn, pool_size=1)
    app.task(name="add")(add)
    with app.database.connection() as connection:
        connection.execute("set default_transaction_read_only = on")
    app.task_named("add").delay(1)
    app.close()
    assert only(conn)["args"] == [1]


async def test_so_it_is_for_the_async_connections(dsn: str, conn: Connection) -> None:
    app = PgQueue("shop", dsn=dsn, pool_size=1)
    app.task(name="add")(add)
    async with app.database.aconnection() as connection:
        await connection.execute("set default_transaction_read_only = on")
    await app.task_named("add").adelay(1)
    await app.aclose()
    assert only(conn)["args"] == [1]


def test_no_server_is_a_typed_error_that_says_why() -> None:
    app = PgQueue("shop", dsn="postgresql://me:secret@127.0.0.1:1/shop", connect_timeout=0.2)
    calls: tuple[Callable[[], object], ...] = (
        lambda: app.send_task("add"),
        lambda: asyncio.run(app.asend_task("add")),
    )
    for call in calls:
        with pytest.raises(
            DatabaseUnavailable, match=r"no connection to the database at 127\.0\.0\.1: .*refused"
        ) as caught:
            call()
        assert "secret" not in str(caught.value)
    app.close()


@pytest.mark.parametrize("dsn", ["nonsense secret", "mysql://me:secret@db/shop", "postgresql://me:secret@[db/shop"])
def test_a_dsn_that_cannot_be_read_is_a_typed_error_at_once(dsn: str) -> None:
    app = PgQueue("shop", dsn=dsn)
    with pytest.raises(SettingsError, match="the dsn cannot be read") as caught:
        app.send_task("add")
    assert "secret" not in str(caught.value)


def test_an_exhausted_pool_says_so(app: PgQueue, conn: Connection, dsn: str) -> None:
    small = PgQueue("small", dsn=dsn, pool_size=1, connect_timeout=0.2)
    with small.transaction() as connection:
        with pytest.raises(DatabaseUnavailable, match=r"all 1 connections were in use for 0\.2 s"):
            small.send_task("add")
        small.send_task("add", connection=connection)
    small.close()
    assert len(jobs(conn)) == 1


# -- fork -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_connections_of_its_own(conn: Connection, dsn: str) -> None:
    program = """
    import asyncio, gc, os, sys
    from pgqueue import PgQueue, ResultTimeout

    app = PgQueue("forked", dsn=sys.argv[1])

    def here(who):
        handle = app.send_task("add", headers={"who": who})
        try:
            handle.get(timeout=0.1)
        except ResultTimeout:
            pass
        gc.collect()
        pool = app.database._pool
        print(who, *sorted(connection.info.backend_pid for connection in pool._pool), sep=":", flush=True)

    async def main(who):
        await app.asend_task("add", headers={"who": who})
        await app.aclose()

    here("parent")
    child = os.fork()
    if not child:
        here("child")
        asyncio.run(main("child async"))
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    here("parent again")
    asyncio.run(main("parent async"))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), dsn],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pids = {who: set(found) for who, *found in (line.split(":") for line in done.stdout.splitlines())}
    assert pids["parent"]
    assert pids["parent"] <= pids["parent again"]  # a second may still have been on its way
    assert pids["child"]
    assert not pids["child"] & pids["parent again"]
    assert [job["headers"]["who"] for job in jobs(conn)] == [
        "parent",
        "child",
        "child async",
        "parent again",
        "parent async",
    ]


def test_a_program_that_closes_nothing_ends_quietly(conn: Connection, dsn: str) -> None:
    program = """
    import asyncio, sys
    from pgqueue import PgQueue, ResultTimeout
    app = PgQueue("careless", dsn=sys.argv[1])
    try:
        app.send_task("add").get(timeout=0.1)
    except ResultTimeout:
        pass
    asyncio.run(app.asend_task("add"))
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), dsn],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 10
    assert len(jobs(conn)) == 2


def test_close_ends_the_connections_and_the_next_call_opens_new_ones(app: PgQueue, conn: Connection) -> None:
    app.task_named("add").delay(1)
    assert own_backends(conn, app)
    app.close()
    gc.collect()
    deadline = time.monotonic() + 10
    while own_backends(conn, app) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own_backends(conn, app) == []
    app.task_named("add").delay(2)
    assert len(jobs(conn)) == 2


def test_a_close_that_meets_the_end_of_a_call_leaves_no_connection_of_the_closed_pool(
    app: PgQueue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = app.task_named("add")
    add.delay(1)
    warm = app.database._warm
    keep, before = warm.keep, []

    def closed_before(connection: Any) -> Any:
        before.append(connection)
        app.database.close()
        return keep(connection)

    monkeypatch.setattr(warm, "keep", closed_before)
    add.delay(2)
    monkeypatch.undo()
    assert before[0].closed
    add.delay(3)
    assert len(jobs(conn)) == 3


def test_every_connection_says_what_it_is_for_and_notices_a_dead_peer(app: PgQueue, conn: Connection) -> None:
    with app.database.connection() as pooled, closing(app.database.connect("listen")) as single:
        for connection, purpose in ((pooled, "enqueue"), (single, "listen")):
            parameters = connection.info.get_parameters()
            assert parameters["application_name"].startswith(f"pgqueue {purpose} shop@")
            assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == ("3", "5000")
            assert connection.autocommit
            assert connection.prepare_threshold is None


# -- statements -----------------------------------------------------------------------------------------------------


def sql(text: str) -> Statement[Any]:
    return Statement(text, (), lambda row: row[0])


def test_several_statements_are_one_transaction(app: PgQueue, conn: Connection) -> None:
    with app.database.connection() as connection:
        found = run_together(connection, sql("select txid_current()"), sql("select txid_current()"))
        assert found[0] == found[1]
        with pytest.raises(psycopg.errors.DivisionByZero):
            run_together(
                connection, sql("insert into pgqueue.duty values ('x', gen_random_uuid(), now())"), sql("select 1 / 0")
            )
        assert run(connection, sql("select count(*) from pgqueue.duty")) == [0]


def test_an_sqlstate_of_ours_becomes_our_error(app: PgQueue, conn: Connection) -> None:
    worker = new_id()
    app.task_named("add").delay(1)
    (claim,) = run(conn, STATEMENTS.claim(worker, ["default"], 1, [], relaxed=False))
    with conn.transaction():
        run(conn, STATEMENTS.hold(claim, worker))
    with pytest.raises(LeaseLost):
        run(conn, STATEMENTS.hold(claim, new_id()))


def test_what_our_statements_miss_is_ours_and_what_the_users_miss_is_theirs(app: PgQueue, conn: Connection) -> None:
    with pytest.raises(SchemaMissing, match="pgqueue migrate"):
        run(conn, sql("select * from pgqueue.nowhere"))
    with pytest.raises(psycopg.errors.UndefinedTable), app.transaction() as connection:
        connection.execute("select * from nowhere")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg.InterfaceError("the connection is closed"), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CannotConnectNow(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), True),
        (psycopg.errors.ConnectionFailure(), True),
        (DatabaseUnavailable(), True),
        (psycopg.errors.LockNotAvailable(), False),
        (psycopg.errors.QueryCanceled(), False),
        (psycopg.errors.DiskFull(), False),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.ProgrammingError("wrong"), False),
        (ConnectionError(), False),
    ],
)
def test_an_error_says_whether_the_connection_or_the_statement_is_at_fault(error: Exception, lost: bool) -> None:
    assert connection_lost(error) is lost


def test_an_error_of_the_statement_is_not_called_a_lost_connection(app: PgQueue, conn: Connection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        app.database.run(sql("select pg_cancel_backend(pg_backend_pid()) and pg_sleep(5)::text is null"))
