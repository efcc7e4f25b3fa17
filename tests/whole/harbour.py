"""For the tests of outages and poolers: an app whose tasks signal through files, its workers, and a proxy.

Nothing here needs the database to be there, for that is what is taken away.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue import DatabaseUnavailable, PgQueue
from pgqueue.embedded import Embedded, binaries
from pgqueue.sql import schema

APP = '''
import os, signal, subprocess, sys, time
from pathlib import Path
import psycopg
from pgqueue import PgQueue

HERE = Path(__file__).parent
app = PgQueue("harbour", connect_timeout=5)


@app.task
def add(x, y):
    return x + y


@app.task
async def aadd(x, y):
    return x + y


@app.task(transactional=True)
def pay(connection, number):
    connection.execute("insert into effect (number) values (%s)", [number])


@app.task(transactional=True)
async def apay(connection, number):
    await connection.execute("insert into effect (number) values (%s)", [number])


@app.task(bind=True)
def third_time(self):
    if self.request.retries < 2:
        self.retry(countdown=0, exc=RuntimeError("again"))
    return self.request.retries


@app.task(bind=True)
def held(self, number):
    with (HERE / "started").open("a") as file:
        file.write(f"{number} {self.request.attempt} {os.getpid()}\\n")
    while not (HERE / "gate").exists():
        time.sleep(0.02)
    return self.request.attempt


@app.task
def fork_and_enqueue():
    """Enqueue before, in and after a forked child, on the pool of the app."""
    add.delay(1, 0)
    child = os.fork()
    if not child:
        code = 1
        try:
            add.delay(2, 0)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    add.delay(3, 0)
    return code
'''


class Harbour:
    """An app in a folder, and its workers as processes."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        (folder / "harbour.py").write_text(APP)
        self.app: PgQueue = _load(folder / "harbour.py").app
        self.app.configure(dsn=dsn)
        self._workers: list[subprocess.Popen[bytes]] = []

    def task(self, name: str) -> Any:
        return self.app.tasks[f"harbour.{name}"]

    def start(self, *arguments: str, dsn: str = "", **env: str) -> subprocess.Popen[bytes]:
        """Start `pgqueue worker` with these arguments."""
        with self._log(len(self._workers)).open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "-A", "harbour", "worker", *arguments],
                cwd=self.folder,
                env={**os.environ, "PGQUEUE_DSN": dsn or self.dsn, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._workers.append(worker)
        return worker

    def _log(self, number: int) -> Path:
        return self.folder / f"worker{number}.log"

    def log(self, number: int = 0) -> str:
        """What a worker has written so far."""
        return self._log(number).read_text()

    def says(self, text: str, number: int = 0, timeout: float = 30.0, times: int = 1) -> None:
        """Wait until a worker has written this."""
        until(lambda: self.log(number).count(text) >= times, timeout, lambda: f"{text!r} not in: {self.log(number)}")

    def started(self, count: int = 1, timeout: float = 30.0) -> list[list[int]]:
        """Wait until `held` has been started so often; return number, attempt and pid of each."""
        file = self.folder / "started"

        def lines() -> list[str]:
            return file.read_text().splitlines() if file.exists() else []

        until(lambda: len(lines()) >= count, timeout, self.log)
        return [[int(word) for word in line.split()] for line in lines()]

    def open_gate(self) -> None:
        (self.folder / "gate").touch()

    def end(self, worker: subprocess.Popen[bytes], number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        worker.send_signal(number)
        return worker.wait(timeout)

    def close(self) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        self.app.close()


def _load(file: Path) -> ModuleType:
    # Not by its name: each test has a module of its own in a folder of its own.
    spec = util.spec_from_file_location("harbour", file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(true: Callable[[], object], timeout: float = 30.0, why: Callable[[], object] = lambda: "") -> None:
    """Wait until something is true that nobody announces; an outage on the way counts as not yet."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(psycopg.OperationalError, DatabaseUnavailable):
            if true():
                return
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


def bindir() -> Path:
    given = os.environ.get("PGQUEUE_TEST_BINDIR")
    return Path(given) if given else binaries()


def new_folder() -> Path:
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path("/tmp")
    return place / f"pgqueue-test-{secrets.token_hex(8)}"


@contextmanager
def own_server() -> Iterator[Embedded]:
    """A server that a test may stop, kill and fill; on a socket and on a port. It is to be started."""
    directory = new_folder()
    settings = {"max_connections": "100", "listen_addresses": "127.0.0.1", "port": str(free_port())}
    server = Embedded(directory, settings=settings, bindir=bindir())
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def over_tcp(server: Embedded) -> str:
    return make_conninfo(server.dsn, host="127.0.0.1")


def prepare(dsn: str) -> None:
    """Give a database the schema and the table of effects, both empty."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop schema if exists pgqueue cascade")
        connection.execute("drop table if exists effect")
        connection.execute(schema().encode())
        connection.execute("create table effect (number int)")


def ask(dsn: str, query: str, *params: object) -> Any:
    """Return the first column of the first row, from a connection made for it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode(), params).fetchone()
        return row and row[0]


class Producer(threading.Thread):
    """Enqueues `pay` with one number after the other until told to stop, whatever happens to the database.

    `known` are the numbers that were enqueued for certain, `unknown` those where the database was away for too long.
    """

    def __init__(self, harbour: Harbour, pause: float = 0.005) -> None:
        super().__init__(daemon=True)
        self._pay = (harbour.task("pay"), harbour.task("apay"))
        self._pause = pause
        self._stopping = threading.Event()
        self.known: list[int] = []
        self.unknown: list[int] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        number = 0
        while not self._stopping.wait(self._pause):
            number += 1
            try:
                self._pay[number % 2].delay(number)
                self.known.append(number)
            except DatabaseUnavailable:
                self.unknown.append(number)
            except Exception as error:
                self.failure = error
                return

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
        assert self.failure is None, self.failure
        assert not self.is_alive()


def check_effects(dsn: str, producer: Producer) -> None:
    """Nothing lost and nothing done twice; to be called when no job is left."""
    with psycopg.connect(dsn) as connection:
        done = [number for (number,) in connection.execute("select number from effect")]
        failed = connection.execute(
            "select state, attempt, error from pgqueue.result where state <> 'SUCCESS'"
        ).fetchall()
    assert len(done) == len(set(done)), "done twice"
    assert not failed, failed
    assert not set(producer.known) - set(done), "lost"
    assert not set(done) - set(producer.known) - set(producer.unknown)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


class Proxy:
    """Between clients and a server; can swallow what the server says to those who are connected now."""

    def __init__(self, dsn: str) -> None:
        known = conninfo_to_dict(dsn)
        host, port = str(known["host"]), int(str(known["port"]))
        self._family = socket.AF_UNIX if host.startswith("/") else socket.AF_INET
        self._where: Any = str(Path(host) / f".s.PGSQL.{port}") if host.startswith("/") else (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._mute: set[int] = set()
        self._count = 0
        self.swallowed = threading.Event()
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listening.getsockname()[1], sslmode="disable")
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """From now on, those who are connected hear nothing; the connections stay open."""
        self._mute = set(range(self._count))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                threading.Thread(target=self._serve, args=(client, self._count), daemon=True).start()
                self._count += 1

    def _serve(self, client: socket.socket, number: int) -> None:
        with closing(client), closing(socket.socket(self._family)) as server:
            server.connect(self._where)
            back = threading.Thread(target=self._answer, args=(server, client, number), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join(10)

    def _answer(self, server: socket.socket, client: socket.socket, number: int) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if number in self._mute:
                    self.swallowed.set()
                else:
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(dsn: str) -> Iterator[Proxy]:
    proxy = Proxy(dsn)
    try:
        yield proxy
    finally:
        proxy.close()
