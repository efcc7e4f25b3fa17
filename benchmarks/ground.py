"""Workers for measurements and tests of faults: started as subprocesses, watched through notes of their tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.hosts import Host
from benchmarks.redelivery_tasks import app
from pgqueue.embedded import Embedded

Process = subprocess.Popen[bytes]


@dataclass
class Ground:
    """Where it all happens: a database, a folder of notes, and the processes of one measurement."""

    dsn: str
    folder: Path
    hosts: Sequence[Host] = ()
    running: Embedded | None = None
    processes: list[Process] = field(default_factory=list)

    def query(self, text: str, *params: object) -> tuple[object, ...]:
        """Return the first row."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(text.encode(), params).fetchone() or ()

    def start(self, queue: str, *options: str, prefix: Sequence[str] = (), dsn: str = "", **env: str) -> Process:
        """Start a worker in a session of its own, whose group is killed as a whole.

        - `prefix`: before the command, such as `APART`; `dsn`: as the worker's host sees the server.
        - `env`: further variables.
        """
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            command = [sys.executable, "-m", "pgqueue", "-A", "benchmarks.redelivery_tasks", "worker"]
            process = subprocess.Popen(
                [*prefix, *command, "-Q", queue, "-l", "warning", *options],
                env={**os.environ, "PGQUEUE_DSN": dsn or self.dsn, "REDELIVERY_NOTES": str(self.folder), **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self, process: Process) -> str:
        """Return what a worker has said."""
        return (self.folder / f"{self.processes.index(process)}.log").read_text()

    def rescuer(self, queue: str, name: str = "rescuer", *, prefix: Sequence[str] = (), **env: str) -> Process:
        """Start a worker with free slots, and wait until it is on the list and idle."""
        process = self.start(queue, "-P", "threads", "-c", "8", "-n", f"{name}@here", prefix=prefix, **env)
        idle = "select count(*) from pgqueue.idle i join pgqueue.worker w on w.id = i.worker where w.name = %s"
        await_true(lambda: self.query(idle, f"{name}@here") != (0,), f"{name} is idle")
        return process

    def began(self, job: str, attempt: int, patience: float = 60.0) -> tuple[float, int] | None:
        """Wait until an attempt has begun; return when and in which process, or None if it does not in time."""
        note, deadline = self.folder / f"{job}.{attempt}", time.monotonic() + patience
        while not note.exists():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        when, pid = note.read_text().split()
        return float(when), int(pid)

    def release(self, jobs: Sequence[str]) -> None:
        """Let first attempts end."""
        for job in jobs:
            (self.folder / f"{job}.open").touch()

    def clear(self) -> None:
        """End all processes, and forget their jobs."""
        # Not asked whether they have ended: that would give their pids free, and their children have the same group.
        waited_for = [process for process in self.processes if process.returncode is None]
        for process in waited_for:
            os.killpg(process.pid, signal.SIGKILL)
        for process in waited_for:
            process.wait()
        self.processes.clear()
        for host in self.hosts:
            host.mend()
        # The transactions of victims that were cut off are still open where the server has not noticed.
        self.query(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
            " where pid <> pg_backend_pid() and backend_type = 'client backend' and application_name like 'pgqueue%%'"
            " and datname = current_database()"
        )
        app.close()
        with psycopg.connect(self.dsn) as connection:
            connection.execute("delete from pgqueue.job; delete from pgqueue.result; delete from pgqueue.worker")
            connection.execute("delete from pgqueue.idle; delete from pgqueue.duty")


def await_true(question: Callable[[], bool], what: str, patience: float = 60.0) -> None:
    """Wait for what nobody announces."""
    deadline = time.monotonic() + patience
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.05)
