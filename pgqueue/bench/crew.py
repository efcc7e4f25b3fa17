"""The processes of a benchmark: workers, bare loops, clients. They end with this one, however that happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Self

import psycopg

from pgqueue.bench.ground import Ground
from pgqueue.bench.tasks import QUEUE
from pgqueue.errors import BenchFailed
from pgqueue.worker.child import end_with_us

#: `pgqueue worker` as a user starts it; no log lines for successes.
WORKER = ("pgqueue", "-A", "pgqueue.bench.tasks:app", "worker", "-Q", QUEUE, "-l", "warning", "--grace", "2")
SOLO = (*WORKER, "-P", "solo")

_FORCE = 10.0  # seconds after which a process is ended by force
_LOOK = 0.01  # seconds between two looks for workers: nobody announces that one is ready
_PATIENCE = 30.0  # seconds for workers to come
_IDLE = 5.0  # seconds for them to say that they are idle, which behind a transaction pooler they never do

_RESULTS = "select count(*) from pgqueue.result"
_READY = "select (select count(*) from pgqueue.worker), (select count(distinct worker) from pgqueue.idle)"


class Process:
    """One `python -m ...`, in a process group of its own: Ctrl-C is for us, who then stop it.

    - `ground`: where it works; `words`: the module and its arguments; `env`: further variables.

    with Process(ground, *SOLO, "--burst") as worker:
        print(worker.join())
    """

    def __init__(self, ground: Ground, *words: str, **env: str) -> None:
        self._words = words
        self._environ = {**ground.environ(), **env}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environ,
            cwd="/",  # a worker looks for modules where it stands: no select.py of the user's
            process_group=0,
            preexec_fn=end_with_us(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_FORCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._process = None

    def join(self) -> float:
        """Wait for its end; return the CPU seconds that it and its children took in all."""
        assert self._process is not None
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.check()
        return usage.ru_utime + usage.ru_stime

    def check(self) -> None:
        """Raise BenchFailed, with the end of its log, if it has ended with another code than 0."""
        assert self._process is not None
        if self._process.poll():
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - 4000))
            said = self._log.read().decode(errors="replace")
            raise BenchFailed(f"{self._words[0]} has ended with exit code {self._process.returncode}", said)

    def tell(self, **request: Any) -> None:
        """Send a request: one line of JSON."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._gone()

    def hear(self) -> dict[str, Any]:
        """Wait for the answer to a request."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> None:
        assert self._process is not None
        self._process.wait(_FORCE)
        self.check()
        raise BenchFailed(f"{self._words[0]} has ended")


def await_ready(
    ground: Ground, connection: psycopg.Connection[Any], crew: Sequence[Process], workers: int, *, idle: bool = True
) -> None:
    """Wait until so many workers are on the list, and `idle` also until they have said so.

    Raises BenchFailed if they do not come.
    """
    started = time.monotonic()
    while True:
        ((listed, resting),) = ground.fetch(connection, _READY)
        waited = time.monotonic() - started
        if listed >= workers and (not idle or resting >= workers or waited > _IDLE):
            return
        for process in crew:
            process.check()
        if waited > _PATIENCE:
            raise BenchFailed(f"{listed} of {workers} workers have come within {_PATIENCE:.0f} s")
        time.sleep(_LOOK)


def await_results(ground: Ground, connection: psycopg.Connection[Any], jobs: int, crew: Process) -> None:
    """Wait until so many jobs have ended; raises BenchFailed if their number does not grow any more."""
    seen, moved = 0, time.monotonic()
    while True:
        ((count,),) = ground.fetch(connection, _RESULTS)
        if count >= jobs:
            return
        crew.check()
        if count > seen:
            seen, moved = count, time.monotonic()
        if time.monotonic() - moved > _PATIENCE:
            raise BenchFailed(f"{count} of {jobs} jobs have ended, and for {_PATIENCE:.0f} s none more")
        time.sleep(_LOOK)
