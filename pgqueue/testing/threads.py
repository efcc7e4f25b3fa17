"""A real worker in a background thread of this process."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pgqueue.app import PgQueue
from pgqueue.errors import InvalidOption
from pgqueue.ids import new_id
from pgqueue.options import check_names
from pgqueue.worker import Stop, WorkerOptions, WorkerProcess
from pgqueue.worker.board import EXIT_FAILED
from pgqueue.worker.joined import Joined

#: Seconds that running tasks have when the worker stops; in the last two they are interrupted.
_GRACE = 5.0
#: Seconds that the worker has beyond that, and to begin.
_PATIENCE = 5.0
_LOOK = 0.01
_OPTIONS = {option.name for option in fields(WorkerOptions)}


@contextmanager
def worker(app: PgQueue, **options: Any) -> Iterator[WorkerProcess]:
    """Run a worker in a thread of this process as long as this is entered; it serves when the body begins.

    - `options`: those of `WorkerOptions`; default one slot in a thread (`pool="threads"`, `concurrency=1`), the queues
      of the app, and 5 seconds of `grace` for what still runs at the end.

    Raises InvalidOption for an option that does not fit in a thread, SchemaMissing, and at the end RuntimeError, with
    the place where it stands, if a task does not end.

        with worker(app, concurrency=2):
            assert add.delay(2, 3).get(timeout=10) == 5
    """
    check_names("worker option", options, _OPTIONS)
    chosen = WorkerOptions(**{"pool": "threads", "grace": _GRACE, "queues": app.queues, **options})
    if chosen.pool == "prefork" or chosen.autoscale is not None or chosen.processes > 1:
        raise InvalidOption("this worker is a thread: its pool is threads, asyncio or solo, without more processes")
    if isinstance(app.database, Joined):
        raise InvalidOption("a worker sees nothing of the transaction that the app has joined; use drain()")
    app.load_tasks()
    app.database.run(app.database.statements.version())  # raises SchemaMissing here, and not in a thread
    running = _Running(app, chosen)
    running.start()
    try:
        yield running.process
    finally:
        running.stop()


class _Running:
    """The thread of a worker."""

    def __init__(self, app: PgQueue, options: WorkerOptions) -> None:
        self._app = app
        self._id = new_id()
        self._grace = options.grace
        self.process = _Process(app, options, worker=self._id)
        self._thread = threading.Thread(target=self._run, name="pgqueue-worker", daemon=True)
        self._code = 0
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start it, and wait until it is on the list of workers."""
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        listed = self._app.database.statements.listed(self._id)
        while self._thread.is_alive() and not self._app.database.run(listed)[0]:
            if time.monotonic() > deadline:
                self.process.stop(Stop.COLD)
                raise RuntimeError(f"the worker has not begun within {_PATIENCE:g} s; see the log of pgqueue.worker")
            self._thread.join(_LOOK)
        if not self._thread.is_alive():
            self._check()

    def stop(self) -> None:
        """Stop it and wait for its end."""
        self.process.stop(Stop.WARM)
        deadline = time.monotonic() + self._grace + _PATIENCE
        while self._thread.is_alive() and self.process.ended_with is None and time.monotonic() < deadline:
            self._thread.join(_LOOK)
        self._check()

    def _run(self) -> None:
        try:
            self._code = self.process.run()
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError("the worker could not go on") from self._error
        if self.process.is_overdue:
            raise RuntimeError(
                "a task has met its hard time limit, which ends the process of a worker; this one has ended alone, "
                f"and the task goes on{self._places()}"
            )
        if self._thread.is_alive() or self.process.ended_with is not None:
            raise RuntimeError(f"the worker could not end within {self._grace:g} s: a task goes on{self._places()}")
        if self._code == EXIT_FAILED:
            raise RuntimeError("the worker could not go on; the log of pgqueue.worker says why")

    def _places(self) -> str:
        """Return where the tasks are that do not end."""
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [
            "".join(traceback.format_stack(frame, 3)[-3:])
            for ident, frame in frames.items()
            if names.get(ident, "").startswith(("pgqueue-slot", "pgqueue-function"))
        ]
        return ":\n" + "\n".join(stacks) if stacks else ""


class _Process(WorkerProcess):
    """A worker that never ends the process, which is that of the tests: it stops at once, and leaves what runs."""

    #: The exit code with which the process would have ended at once.
    ended_with: int | None = None

    @property
    def is_overdue(self) -> bool:
        """Whether a task has met its hard time limit."""
        return any(slot._condemned for slot in self._slots)

    def _end_now(self, code: int) -> None:
        if self.ended_with is None:
            self.ended_with = code
        self.stop(Stop.COLD)
