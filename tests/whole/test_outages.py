"""The database goes away, comes back, is full, is slow, is another one: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harbour import (
    Harbour,
    Producer,
    ask,
    bindir,
    check_effects,
    new_folder,
    over_tcp,
    own_server,
    prepare,
    proxy_to,
    until,
)
from psycopg.conninfo import make_conninfo

from pgqueue import DatabaseUnavailable, PgQueue, State
from pgqueue.database import sessions
from pgqueue.embedded import Embedded

# Minutes in all, since most of it is waiting for what is to come back.
pytestmark = pytest.mark.slow

QUICK = {"PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "4", "PGQUEUE_POLL_INTERVAL": "0.2"}
ALL_DONE = "select not exists (select from pgqueue.job)"


@pytest.fixture(scope="module")
def machine() -> Iterator[Embedded]:
    """A server of this module's own: it is stopped, killed and filled."""
    with own_server() as server:
        yield server


@pytest.fixture
def server(machine: Embedded) -> Embedded:
    """That server, running, with an empty schema."""
    prepare(machine.start().dsn)
    return machine


@pytest.fixture
def harbour(server: Embedded, tmp_path: Path) -> Iterator[Harbour]:
    harbour = Harbour(tmp_path, server.dsn)
    yield harbour
    harbour.close()


def idle(harbour: Harbour, server: Embedded, workers: int = 1) -> None:
    """Wait until so many workers are on the list."""
    until(lambda: ask(server.dsn, "select count(*) = %s from pgqueue.worker where locked", workers), 30, harbour.log)


def all_done(server: Embedded, harbour: Harbour, timeout: float = 60) -> None:
    until(lambda: ask(server.dsn, ALL_DONE), timeout, harbour.log)


# -- away ---------------------------------------------------------------------------------------------------------


def test_a_worker_waits_for_a_database_that_is_not_there_yet(harbour: Harbour, server: Embedded) -> None:
    server.stop()
    harbour.start("-P", "solo", **QUICK)
    harbour.says("waiting for the database", times=3)
    lines = harbour.log().count("waiting for the database")
    started = time.monotonic()
    harbour.says("waiting for the database", times=lines + 2)
    assert time.monotonic() - started > 0.9  # two more lines are at least a second apart
    server.start()
    assert harbour.task("add").delay(1, 2).get(timeout=30) == 3


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_that_waits_for_the_database_ends_at_once(harbour: Harbour, server: Embedded, pool: str) -> None:
    server.stop()
    worker = harbour.start("-P", pool, **QUICK)
    harbour.says("waiting for the database")
    told = time.monotonic()
    assert harbour.end(worker) == 0
    assert time.monotonic() - told < 3


def restart(server: Embedded) -> None:
    server.stop()
    server.start()


def crash(server: Embedded) -> None:
    """Everything that was not flushed is gone, all at once."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGQUIT)
    until(lambda: server.pid is None)
    server.stop()
    server.start()


def kill_a_backend(server: Embedded) -> None:
    """Then the server ends all the others too, and recovers."""
    pid = ask(server.dsn, "select pid from pg_stat_activity where application_name like 'pgqueue worker %%' limit 1")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError), psycopg.connect(server.dsn) as connection:
        while True:
            connection.execute("select pg_sleep(0.01)")
    until(lambda: ask(server.dsn, "select true"))


@pytest.mark.parametrize("fault", [restart, crash, kill_a_backend])
def test_a_server_that_restarts_under_load_costs_no_job_and_makes_none_twice(
    harbour: Harbour, server: Embedded, fault: Any
) -> None:
    harbour.start("-P", "prefork", "-c", "2", **QUICK)
    harbour.start("-P", "asyncio", "-c", "4", **QUICK)
    idle(harbour, server, 3)
    producer = Producer(harbour)
    producer.start()
    for _ in range(3):
        enough = ask(server.dsn, "select count(*) + 50 from pgqueue.result")
        until(lambda enough=enough: ask(server.dsn, "select count(*) >= %s from pgqueue.result", enough), 60)
        fault(server)
    idle(harbour, server, 3)
    producer.stop()
    all_done(server, harbour)
    check_effects(server.dsn, producer)


def test_an_outage_longer_than_a_worker_may_be_silent_is_no_death(harbour: Harbour, server: Embedded) -> None:
    handles = [harbour.task("held").delay(n) for n in range(2)]
    harbour.start("-P", "threads", "-c", "2", **{**QUICK, "PGQUEUE_DEAD_AFTER": "2"})
    harbour.start("-P", "threads", "-c", "2", **{**QUICK, "PGQUEUE_DEAD_AFTER": "2"})
    harbour.started(2)
    server.stop()
    time.sleep(5)  # the outage itself
    server.start()
    idle(harbour, server, 2)
    again = harbour.log().count("is dead") + harbour.log(1).count("is dead")
    # Both have beaten often since: had one been taken for dead, it would have been by now.
    beats = ask(server.dsn, "select max(beats) + 6 from pgqueue.worker")
    until(lambda: ask(server.dsn, "select min(beats) >= %s from pgqueue.worker", beats))
    harbour.open_gate()
    assert [handle.get(timeout=20) for handle in handles] == [1, 1]
    assert (len(harbour.started(2)), again) == (2, 0)


@pytest.mark.parametrize(("pool", "task"), [("solo", True), ("threads", True), ("prefork", True), ("solo", False)])
def test_a_worker_stops_within_its_grace_period_though_the_database_is_away(
    harbour: Harbour, server: Embedded, pool: str, task: bool
) -> None:
    if task:
        harbour.task("held").delay(1)
    worker = harbour.start("-P", pool, "-c", "1", "--grace", "2", **QUICK)
    if task:
        harbour.started()
    idle(harbour, server)
    server.stop()
    harbour.says("beginning anew")
    told = time.monotonic()
    code = harbour.end(worker)
    # Two seconds of grace, and as much again for a process that is busy ending; a parent gives its children five.
    assert time.monotonic() - told < (9 if pool == "prefork" else 5)
    assert code == (3 if task else 0)


def test_a_result_is_waited_for_and_a_job_enqueued_across_a_restart(harbour: Harbour, server: Embedded) -> None:
    harbour.start("-P", "threads", "-c", "4", **QUICK)
    held = [harbour.task("held").delay(n) for n in range(2)]
    harbour.started(2)
    found: dict[str, object] = {}

    def wait() -> None:
        try:
            found["get"] = held[0].get(timeout=60)
        except Exception as error:
            found["get"] = error

    async def await_() -> None:
        try:
            found["aget"] = await held[1].aget(timeout=60)
        except Exception as error:
            found["aget"] = error

    waiting = [threading.Thread(target=wait), threading.Thread(target=lambda: asyncio.run(await_()))]
    for thread in waiting:
        thread.start()
    until(lambda: ask(server.dsn, "select count(*) = 2 from pgqueue.waiter"))
    server.stop()
    back = threading.Timer(1.0, lambda: None)
    enqueued: list[Any] = []
    sending = threading.Thread(target=lambda: enqueued.append(harbour.task("add").delay(20, 3)))
    sending.start()
    back.start()
    back.join()
    assert not enqueued
    server.start()
    sending.join(30)
    harbour.open_gate()
    for thread in waiting:
        thread.join(60)
    assert found == {"get": 1, "aget": 1}
    assert enqueued[0].get(timeout=30) == 23


# -- full, cut, slow ------------------------------------------------------------------------------------------------


def test_a_worker_comes_back_when_a_full_server_has_room_again(harbour: Harbour, server: Embedded) -> None:
    harbour.start("-P", "solo", **QUICK)
    idle(harbour, server)
    with psycopg.connect(server.dsn, autocommit=True) as holder, ExitStack() as crowd:
        with suppress(psycopg.OperationalError):
            while True:
                crowd.enter_context(closing(psycopg.connect(server.dsn)))
        holder.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %'")
        with suppress(psycopg.OperationalError):
            while True:  # its places too, before it can take them again
                crowd.enter_context(closing(psycopg.connect(server.dsn)))
        harbour.says("too many clients")
    assert harbour.task("add").delay(1, 2).get(timeout=30) == 3


def test_sessions_that_are_ended_twice_a_second_cost_no_job_and_make_none_twice(
    harbour: Harbour, server: Embedded
) -> None:
    harbour.start("-P", "prefork", "-c", "2", **QUICK)
    harbour.start("-P", "threads", "-c", "3", **QUICK)
    idle(harbour, server, 3)
    producer = Producer(harbour)
    producer.start()
    with psycopg.connect(server.dsn, autocommit=True) as killer:
        for _ in range(20):
            killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %'"
            )
            time.sleep(0.5)  # the fault itself: twice a second
        count = killer.execute("select count(*) from pgqueue.result").fetchone()
        assert count is not None
        # It flows again, at once: a second of what the producer makes.
        until(lambda: ask(server.dsn, "select count(*) >= %s from pgqueue.result", count[0] + 100), 10, harbour.log)
    producer.stop()
    all_done(server, harbour)
    check_effects(server.dsn, producer)
    assert len(producer.known) > 100


def clerk(server: Embedded, **settings: str) -> str:
    """Make the role `clerk` with settings of its own; return its DSN."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("drop role if exists clerk")
        connection.execute("create role clerk superuser login")
        for name, value in settings.items():
            known = connection.execute("select from pg_settings where name = %s", [name]).fetchone()
            if known is not None:  # transaction_timeout came with PostgreSQL 17
                connection.execute(f"alter role clerk set {name} = '{value}'".encode())
    return make_conninfo(server.dsn, user="clerk")


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", "2"), ("threads", "3"), ("asyncio", "3")])
def test_what_a_role_sets_does_not_hold_for_the_sessions_of_a_worker(
    harbour: Harbour, server: Embedded, pool: str, concurrency: str
) -> None:
    dsn = clerk(
        server,
        statement_timeout="100ms",
        lock_timeout="50ms",
        idle_session_timeout="200ms",
        idle_in_transaction_session_timeout="200ms",
        transaction_timeout="150ms",
        default_transaction_isolation="serializable",
    )
    harbour.start("-P", pool, "-c", concurrency, dsn=dsn, **QUICK)
    workers = 2 if pool == "prefork" else 1
    idle(harbour, server, workers)
    with psycopg.connect(server.dsn) as other:  # their next beat waits for longer than the role allows
        other.execute("select from pgqueue.worker for update")
        waiting = "select count(*) = %s from pg_stat_activity where wait_event_type = 'Lock' and usename = 'clerk'"
        until(lambda: ask(server.dsn, waiting + " and query_start < now() - interval '0.4 s'", workers))
    sums = harbour.app.enqueue_many([harbour.task(("add", "aadd")[n % 2]).s(n, n) for n in range(500)])
    assert [handle.get(timeout=30) for handle in sums] == [2 * n for n in range(500)]
    beats = ask(server.dsn, "select max(beats) + 3 from pgqueue.worker")
    until(lambda: ask(server.dsn, "select min(beats) >= %s from pgqueue.worker", beats))
    assert "beginning anew" not in harbour.log()
    locks = "select count(*) from pg_locks where locktype = 'advisory' and granted"
    assert ask(server.dsn, locks) == workers  # idle for longer than the role allows, and never lost


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_tasks_with_a_transaction_succeed_whatever_isolation_their_role_asks_for(
    harbour: Harbour, server: Embedded, isolation: str
) -> None:
    harbour.start("-P", "threads", "-c", "4", dsn=clerk(server, default_transaction_isolation=isolation), **QUICK)
    idle(harbour, server)
    paid = harbour.app.enqueue_many([harbour.task(("pay", "apay")[n % 2]).s(n) for n in range(100)])
    assert {handle.get(timeout=60) for handle in paid} == {None}
    assert ask(server.dsn, "select count(*) from effect") == 100


def test_a_session_says_goodbye_for_a_client_that_vanished(server: Embedded) -> None:
    app = PgQueue("vanishing", dsn=over_tcp(server))
    shown = (
        "select current_setting('tcp_keepalives_idle') || ' ' || current_setting('tcp_keepalives_interval') || ' ' ||"
        " current_setting('tcp_keepalives_count') || ' ' || current_setting('tcp_user_timeout') || ' ' ||"
        " current_setting('client_connection_check_interval')"
    )

    async def asynchronous() -> Any:
        async with app.database.aconnection() as connection:
            cursor = await connection.execute(shown)
            row = await cursor.fetchone()
        await app.aclose()
        return row

    with closing(app.database.connect("alive")) as single, app.database.connection() as pooled:
        for connection in (single, pooled):
            assert connection.real
            assert connection.execute(shown).fetchone() == ("3 1 3 5000 1s",)
    assert asyncio.run(asynchronous()) == ("3 1 3 5000 1s",)
    app.close()


def test_what_a_role_sets_holds_for_the_statements_of_the_user(server: Embedded) -> None:
    dsn = clerk(server, statement_timeout="1234ms", default_transaction_isolation="serializable")
    app = PgQueue("clerk", dsn=dsn, statement_timeout=15)
    with app.transaction() as connection:
        assert connection.execute("show statement_timeout").fetchone() == ("1234ms",)
        assert connection.execute("show transaction_isolation").fetchone() == ("serializable",)
    with closing(app.database.connect("worker")) as connection:
        assert connection.execute("show statement_timeout").fetchone() == ("15s",)
        assert connection.execute("show transaction_isolation").fetchone() == ("read committed",)
    app.close()


# -- silent -----------------------------------------------------------------------------------------------------------


def test_a_worker_does_not_wait_for_ever_for_an_answer(harbour: Harbour, server: Embedded) -> None:
    with proxy_to(over_tcp(server)) as proxy:
        harbour.start("-P", "solo", dsn=proxy.dsn, **QUICK, PGQUEUE_STATEMENT_TIMEOUT="1")
        idle(harbour, server)
        proxy.swallow()
        assert harbour.task("add").delay(1, 2).get(timeout=30) == 3
        assert "no answer from the server for 3" in harbour.log()


def test_an_enqueue_does_not_wait_for_ever_for_an_answer_and_is_not_made_twice(server: Embedded) -> None:
    async def asynchronous(app: PgQueue) -> None:
        await app.asend_task("add", (0,))
        proxy.swallow()
        await app.asend_task("add", (1,))
        await app.aclose()

    with proxy_to(over_tcp(server)) as proxy:
        app = PgQueue("silent", dsn=proxy.dsn, statement_timeout=0.1)
        app.send_task("add", (0,))
        proxy.swallow()
        app.send_task("add", (1,))
        asyncio.run(asynchronous(app))
        app.close()
        assert proxy.swallowed.is_set()
    assert ask(server.dsn, "select array_agg(args->>0 order by args->>0) from pgqueue.job") == ["0", "0", "1", "1"]


def test_a_commit_does_not_wait_for_ever_for_an_answer_but_the_users_statement_may(
    server: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_COMMIT", 0.5)
    with proxy_to(over_tcp(server)) as proxy:
        app = PgQueue("silent", dsn=proxy.dsn, statement_timeout=0.1)
        with app.transaction() as connection:
            connection.execute("select pg_sleep(3)")
            with connection.transaction():
                connection.execute("select pg_sleep(3)")
        silent = pytest.raises(psycopg.OperationalError, match=r"no answer from the server for 0\.5 s")
        with silent, app.transaction() as connection:
            connection.execute("insert into effect values (1)")
            proxy.swallow()
        app.close()
    assert ask(server.dsn, "select count(*) from effect") == 1


# -- another server ---------------------------------------------------------------------------------------------------


def read_only(server: Embedded, on: bool) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("set default_transaction_read_only = off")
        connection.execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}".encode())
        connection.execute("select pg_reload_conf()")


def test_a_server_that_becomes_read_only_is_tried_again_until_it_is_not(harbour: Harbour, server: Embedded) -> None:
    worker = harbour.start("-P", "threads", "-c", "2", **QUICK)
    idle(harbour, server)
    producer = Producer(harbour)
    producer.start()
    until(lambda: ask(server.dsn, "select count(*) > 20 from effect"), 30, harbour.log)
    read_only(server, True)
    try:
        harbour.says("read-only transaction")
        until(lambda: producer.unknown)  # and the clients get a typed error after `connect_timeout`
        assert worker.poll() is None
    finally:
        read_only(server, False)
    known = len(producer.known)
    until(lambda: len(producer.known) > known + 20, 30)
    producer.stop()
    all_done(server, harbour)
    check_effects(server.dsn, producer)


def test_a_transaction_on_a_demoted_leader_leaves_no_such_connection_behind(server: Embedded) -> None:
    app = PgQueue("demoted", dsn=server.dsn, pool_size=2)
    with app.database.connection() as first, app.database.connection() as second:
        for connection in (first, second):
            connection.execute("set default_transaction_read_only = on")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), app.transaction() as connection:
        connection.execute("insert into effect values (1)")
    for _ in range(2):
        with app.transaction() as connection:
            connection.execute("insert into effect values (1)")
    app.close()


def alone_again(server: Embedded) -> None:
    """Have no commit of this server wait for a standby any more, and end it."""
    with psycopg.connect(server.start().dsn, autocommit=True) as connection:
        connection.execute("alter system reset synchronous_standby_names")
    server.stop()


def test_a_failover_costs_no_job_and_makes_none_twice(server: Embedded, tmp_path: Path) -> None:
    """Synchronous replication, two hosts in the DSN; the first ends without a goodbye, the second is promoted."""
    directory = new_folder()
    directory.mkdir(mode=0o700)
    owner = Path(server.directory, "data").stat()
    command = [str(bindir() / "pg_basebackup"), "-d", server.dsn, "-D", str(directory / "data"), "-R", "-c", "fast"]
    subprocess.run(command, check=True, capture_output=True)
    for place in (directory, *directory.rglob("*")):
        os.chown(place, owner.st_uid, owner.st_gid)
    (directory / "data").chmod(0o700)
    standby = Embedded(directory, bindir=bindir())
    stack = ExitStack()
    stack.callback(shutil.rmtree, directory, True)
    stack.callback(alone_again, server)
    stack.callback(standby.stop)
    with stack:
        standby.start()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            until(lambda: ask(server.dsn, "select count(*) = 1 from pg_stat_replication where state = 'streaming'"))
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
        until(lambda: ask(server.dsn, "select count(*) = 1 from pg_stat_replication where sync_state = 'sync'"))
        first, second = (psycopg.conninfo.conninfo_to_dict(one.dsn) for one in (server, standby))
        dsn = (
            f"host={second['host']},{first['host']} port={second['port']},{first['port']} user=postgres"
            " dbname=postgres target_session_attrs=read-write"
        )
        harbour = Harbour(tmp_path, dsn)
        stack.callback(harbour.close)
        harbour.start("-P", "prefork", "-c", "2", **QUICK)
        harbour.start("-P", "asyncio", "-c", "4", **QUICK)
        idle(harbour, server, 3)
        producer = Producer(harbour)
        producer.start()
        until(lambda: ask(server.dsn, "select count(*) > 50 from pgqueue.result"), 60, harbour.log)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGQUIT)
        until(lambda: server.pid is None)
        harbour.says("beginning anew")
        ask(standby.dsn, "select pg_promote()")
        known, before = len(producer.known), ask(standby.dsn, "select count(*) from pgqueue.result")
        until(lambda: len(producer.known) > known + 50, 60)
        until(lambda: ask(standby.dsn, "select count(*) > %s from pgqueue.result", before + 50), 60, harbour.log)
        producer.stop()
        all_done(standby, harbour)
        check_effects(standby.dsn, producer)
        with psycopg.connect(standby.dsn, autocommit=True) as connection:
            assert connection.execute("select pg_is_in_recovery()").fetchone() == (False,)


def test_a_worker_whose_only_server_is_a_standby_says_so_and_waits(harbour: Harbour, server: Embedded) -> None:
    read_only(server, True)
    try:
        worker = harbour.start("-P", "solo", **QUICK)
        harbour.says("read-only transaction", times=2)
        assert harbour.end(worker) == 0
    finally:
        read_only(server, False)


# -- fork -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "asyncio"])
def test_a_task_that_forks_shares_no_connection_with_its_child(harbour: Harbour, server: Embedded, pool: str) -> None:
    forks = [harbour.task("fork_and_enqueue").delay() for _ in range(3)]
    harbour.start("-P", pool, "-c", "1", **QUICK)
    assert [fork.get(timeout=30) for fork in forks] == [0, 0, 0]
    all_done(server, harbour)
    assert ask(server.dsn, "select array_agg(distinct attempt) from pgqueue.result") == [1]
    assert ask(server.dsn, "select count(*) from pgqueue.result where task = 'harbour.add'") == 9
    assert "beginning anew" not in harbour.log()


def test_a_child_forked_while_another_thread_opens_the_pool_is_not_stuck(server: Embedded) -> None:
    program = """
    import os, sys, threading, time
    from pgqueue import PgQueue
    app = PgQueue("forked", dsn=sys.argv[1])
    app.send_task("add")
    app.database._lock.acquire()    # as a thread does that is not there in the child
    child = os.fork()
    if not child:
        app.send_task("add")
        os._exit(0)
    app.database._lock.release()
    deadline = time.monotonic() + 20
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    if not done[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
    app.close()
    sys.exit(os.waitstatus_to_exitcode(done[1]) if done[0] else 1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ask(server.dsn, "select count(*) from pgqueue.job") == 2


def test_a_database_that_stays_away_is_a_typed_error_in_time(server: Embedded) -> None:
    app = PgQueue("late", dsn=server.dsn, connect_timeout=2)
    app.send_task("add")
    server.stop()
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        app.send_task("add")
    assert time.monotonic() - started < 10
    server.start()
    assert app.AsyncResult(app.send_task("add").id).state is State.PENDING
    app.close()
