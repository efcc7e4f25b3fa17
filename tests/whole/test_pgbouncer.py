"""The whole engine through PgBouncer in transaction mode, whose sessions are nobody's: by polling, and by beats."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from harbour import Harbour, Producer, ask, check_effects, free_port, over_tcp, own_server, prepare, until
from psycopg.conninfo import conninfo_to_dict

from pgqueue import PgQueue, ResultTimeout
from pgqueue.embedded import Embedded

# Minutes in all, since most of it is waiting for what is to come back.
pytestmark = pytest.mark.slow

QUICK = {"PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "4", "PGQUEUE_POLL_INTERVAL": "0.2"}
ALL_DONE = "select not exists (select from pgqueue.job)"
NOBODY = 65534
POOL_SIZE = 2


def binary() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if "pgbouncer" in os.environ.get("PGQUEUE_TEST_REQUIRE", "").split(","):
            pytest.fail("there is no pgbouncer, and PGQUEUE_TEST_REQUIRE asks for it")
        pytest.skip("there is no pgbouncer: apt-get install pgbouncer")
    return found


class Bouncer:
    """A PgBouncer of this test's own, in transaction mode; as nobody where we are root, which it refuses."""

    def __init__(self, program: str, server: str) -> None:
        self._program = program
        self._folder = Path(f"/tmp/pgqueue-bouncer-{secrets.token_hex(6)}")
        self._process: subprocess.Popen[bytes] | None = None
        known, self._port = conninfo_to_dict(server), free_port()
        password = f" password={known['password']}" if known.get("password") else ""
        self._folder.mkdir(mode=0o755)
        self._user = NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, NOBODY, NOBODY)
        (self._folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"shop = host={known['host']} port={known.get('port', 5432)} dbname={known['dbname']}"
            f" user={known.get('user', 'postgres')}{password}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 200\n"
            "server_login_retry = 1\n"
        )
        self.dsn = f"postgresql://postgres@127.0.0.1:{self._port}/shop"

    def start(self) -> Bouncer:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._folder / "pgbouncer.ini")],
                stdout=log,
                stderr=log,
                user=self._user,
                group=self._user,
                extra_groups=() if self._user is not None else None,
                cwd="/",
            )
        until(lambda: ask(self.dsn, "select true"), 20, (self._folder / "log").read_text)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="module")
def machine() -> Iterator[Embedded]:
    """A server on a port: where we are root, the pooler is another user, who may not enter the socket's folder."""
    binary()
    with own_server() as server:
        yield server.start()


@pytest.fixture
def direct(machine: Embedded) -> str:
    """DSN without the pooler, of a database with an empty schema."""
    prepare(machine.dsn)
    return over_tcp(machine)


@pytest.fixture
def bouncer(direct: str) -> Iterator[Bouncer]:
    bouncer = Bouncer(binary(), direct)
    try:
        yield bouncer.start()
    finally:
        bouncer.close()


@pytest.fixture
def harbour(bouncer: Bouncer, tmp_path: Path) -> Iterator[Harbour]:
    harbour = Harbour(tmp_path, bouncer.dsn)
    yield harbour
    harbour.close()


def left_behind(direct: str) -> int:
    """How many sessions of the pooler have something that belongs to a client: a lock, or a LISTEN."""
    return int(
        ask(
            direct,
            "select count(*) from pg_stat_activity a where a.datname = current_database()"
            " and (exists (select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory')"
            "      or a.query ilike 'listen%%')",
        )
    )


def test_a_pooler_is_found_out_and_nothing_is_set_on_its_sessions(bouncer: Bouncer, direct: str) -> None:
    app = PgQueue("found", dsn=bouncer.dsn)
    with app.database.connect("worker") as connection:
        assert not connection.real
        assert connection.execute("show statement_timeout").fetchone() == ("0",)
    with app.database.connection() as connection:
        assert not connection.real
        assert connection.execute("show client_connection_check_interval").fetchone() == ("0",)
    assert app.database.pooled
    app.close()
    app.configure(dsn=direct)
    assert app.database.pooled is None
    with app.database.connect("worker") as connection:
        assert connection.real
    assert app.database.pooled is False
    app.close()


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", "2"), ("solo", "1"), ("threads", "6"), ("asyncio", "6")])
def test_every_pool_works_through_a_pooler(harbour: Harbour, direct: str, pool: str, concurrency: str) -> None:
    worker = harbour.start("-P", pool, "-c", concurrency, **QUICK)
    sums = [harbour.task(("add", "aadd")[n % 2]).delay(n, 1) for n in range(40)]
    paid = [harbour.task(("pay", "apay")[n % 2]).delay(n) for n in range(40)]
    third = harbour.task("third_time").delay()
    assert [handle.get(timeout=40) for handle in sums] == list(range(1, 41))
    assert {handle.get(timeout=40) for handle in paid} == {None}
    assert third.get(timeout=40) == 2

    async def awaited() -> object:
        handle = await harbour.task("add").adelay(1, 1)
        value = await handle.aget(timeout=40)
        await harbour.app.aclose()
        return value

    assert asyncio.run(awaited()) == 2
    assert ask(direct, "select count(*) from effect") == 40
    assert ask(direct, "select not bool_or(locked) from pgqueue.worker")
    assert harbour.end(worker) == 0
    assert left_behind(direct) == 0
    assert ask(direct, "select count(*) from pgqueue.worker") == 0
    assert "beginning anew" not in harbour.log()


def test_waiting_for_a_result_leaves_no_listen_on_a_session_of_the_pooler(
    harbour: Harbour, bouncer: Bouncer, direct: str
) -> None:
    handle = harbour.task("held").delay(1)
    harbour.start("-P", "solo", **QUICK)
    harbour.started()
    waiting = PgQueue("waiting", dsn=bouncer.dsn)
    # The server's own log of what ran is not ours to read; a channel that is listened to can be asked for instead,
    # on each of the few sessions that the pooler has.
    with pytest.raises(ResultTimeout):
        waiting.AsyncResult(handle.id).get(timeout=2)
    channels = []
    with psycopg.connect(bouncer.dsn) as one, psycopg.connect(bouncer.dsn) as two:
        harbour.app.close()
        for connection in (one, two):
            channels += connection.execute("select * from pg_listening_channels()").fetchall()
    assert channels == []
    harbour.open_gate()
    assert waiting.AsyncResult(handle.id).get(timeout=20) == 1
    waiting.close()


def test_the_jobs_of_a_killed_worker_are_taken_over_by_beats(harbour: Harbour, direct: str) -> None:
    handle = harbour.task("held").delay(1)
    first = harbour.start("-P", "solo", **QUICK)
    harbour.started()
    # Another boot, so that the process being gone is no proof: only its beats speak.
    until(lambda: ask(direct, "update pgqueue.worker set boot = 'elsewhere' returning true"))
    harbour.start("-P", "solo", **QUICK)
    until(lambda: ask(direct, "select count(*) = 2 from pgqueue.worker"))
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed = time.monotonic()
    [_, (_, attempt, _)] = harbour.started(2)
    assert attempt == 2
    assert time.monotonic() - killed > 3  # dead_after is 4, and it had beaten at most 0.5 before
    harbour.open_gate()
    assert handle.get(timeout=20) == 2


def test_a_running_task_ends_before_a_warm_stop_through_a_pooler(harbour: Harbour) -> None:
    handle = harbour.task("held").delay(1)
    worker = harbour.start("-P", "prefork", "-c", "1", **QUICK)
    harbour.started()
    worker.send_signal(signal.SIGTERM)
    harbour.says("stopping")
    harbour.open_gate()
    assert worker.wait(20) == 0
    assert handle.get(timeout=5) == 1


def test_a_pooler_that_restarts_under_load_costs_no_job_and_makes_none_twice(
    harbour: Harbour, bouncer: Bouncer, direct: str
) -> None:
    harbour.start("-P", "prefork", "-c", "2", **QUICK)
    harbour.start("-P", "asyncio", "-c", "4", **QUICK)
    until(lambda: ask(direct, "select count(*) = 3 from pgqueue.worker"))
    producer = Producer(harbour)
    producer.start()
    for _ in range(3):
        enough = ask(direct, "select count(*) + 50 from pgqueue.result")
        until(lambda enough=enough: ask(direct, "select count(*) >= %s from pgqueue.result", enough), 60, harbour.log)
        bouncer.stop()
        bouncer.start()
    producer.stop()
    until(lambda: ask(direct, ALL_DONE), 60, harbour.log)
    check_effects(direct, producer)
    assert left_behind(direct) == 0


def test_told_that_there_is_a_pooler_it_asks_nothing_and_told_that_there_is_none_it_believes(
    bouncer: Bouncer, direct: str
) -> None:
    app = PgQueue("told", dsn=direct, pooler=True)
    with app.database.connect("worker") as connection:
        assert not connection.real
        assert connection.execute("show client_connection_check_interval").fetchone() == ("0",)
    app.close()
    app = PgQueue("told", dsn=bouncer.dsn, pooler=False)
    with app.database.connect("worker") as connection:
        assert connection.real
    app.close()
