"""The worker processes of the demonstration, as `pgqueue worker` starts them, and the murder of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

import psycopg

from pgqueue.cli.demo.place import Place
from pgqueue.cli.demo.report import Killed
from pgqueue.errors import PgQueueError
from pgqueue.sql import rename
from pgqueue.worker.child import end_with_us
from pgqueue.worker.liveness import boot_identity

_GRACE = 2  # seconds for running tasks, which take milliseconds, to end
_FORCE = 10  # seconds after which the workers are ended by force
_SETTLING = 0.02  # seconds for statements that a stopped worker has sent off to end

_VICTIMS = "select id::text, pid from pgqueue.worker where boot = %s order by id"

# The transaction of an attempt locks its job; what cannot be locked is in the middle of its work.
_HELD = """
with free as materialized (select id from pgqueue.job where worker = %(worker)s for key share skip locked)
select j.id::text, j.id not in (select id from free) as running from pgqueue.job j where j.worker = %(worker)s
"""


class WorkersFailed(PgQueueError):
    """The workers ended or got stuck; `details` is the end of their log."""

    def __init__(self, message: str, details: str) -> None:
        self.details = details
        super().__init__(message)


class Crew:
    """`pgqueue worker` in a process of its own, which ends with this one.

    with Crew(place, 2) as crew: ...
    """

    def __init__(self, place: Place, count: int) -> None:
        words = ["-m", "pgqueue", "-A", "pgqueue.cli.demo.tasks:app", "worker"]
        self._command = [sys.executable, *words, "-c", str(count), "--grace", str(_GRACE)]
        self._environ = {**os.environ, "PGQUEUE_DSN": place.dsn, "PGQUEUE_SCHEMA": place.schema}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it

    @property
    def words(self) -> str:
        """The command that is run, in words."""
        return " ".join(["python", *self._command[1:]])

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environ,
            cwd="/",  # a worker looks for modules where it stands: no select.py of the user's
            process_group=0,  # Ctrl-C is for us, who then stop them
            preexec_fn=end_with_us(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the workers and wait for their end; may be repeated."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_FORCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None
        self._log.close()

    def check(self, stalled: bool) -> None:
        """Raise WorkersFailed, with the end of their log, if they have ended or do not get on."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise WorkersFailed(f"the workers have ended with exit code {code}", self._end_of_log())
        if stalled:
            raise WorkersFailed("the workers do not get on", self._end_of_log())

    def _end_of_log(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4000))
        return self._log.read().decode(errors="replace")


def kill_one(connection: psycopg.Connection[Any], schema: str) -> Killed | None:
    """Kill a worker of ours with SIGKILL in the middle of a job; None if there is none in that state just now.

    To be sure, it is stopped before we look at what it holds, and goes on if that is nothing.
    """
    for worker, pid in connection.execute(rename(_VICTIMS, schema).encode(), [boot_identity()]).fetchall():
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        fate = signal.SIGCONT  # also if we are interrupted
        try:
            time.sleep(_SETTLING)
            held = connection.execute(rename(_HELD, schema).encode(), {"worker": worker}).fetchall()
            if any(running for _, running in held):
                fate = signal.SIGKILL
                return Killed(worker, pid, [job for job, _ in held])
        finally:
            os.kill(pid, fate)
    return None
