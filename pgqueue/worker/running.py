"""Run a whole worker in the process that was started for it."""

from __future__ import annotations

import os
import signal
import sys

from pgqueue.app import PgQueue
from pgqueue.signals import worker_init, worker_ready, worker_shutdown
from pgqueue.worker import titles
from pgqueue.worker.board import EXIT_REPLACE, Stop
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.process import WorkerProcess
from pgqueue.worker.supervisor import Supervisor, tell_stop

#: What the signals of a process that is its own supervisor mean.
_MEANINGS: dict[int, Stop | None] = {
    signal.SIGTERM: Stop.WARM,
    signal.SIGINT: Stop.WARM,
    signal.SIGHUP: Stop.WARM,
    signal.SIGQUIT: Stop.COLD,
}


def run_worker(app: PgQueue, options: WorkerOptions) -> int:
    """Run a worker until it is stopped; return its exit code. Signals are heard, so this wants the main thread.

    `solo` runs here, and starts its program anew in this process where another pool would replace a child.
    """
    worker_init.send(app)
    if options.pool != "solo":
        code = Supervisor(app, options).run()
    else:
        titles.show(options.full_name, "solo")
        process = WorkerProcess(app, options, replace=_begin_anew)
        process.stop_on(_MEANINGS, lambda how, number: tell_stop(app, how, number))
        worker_ready.send(app)
        code = process.run()
        if code == EXIT_REPLACE:
            _begin_anew()
    worker_shutdown.send(app)
    return code


def _begin_anew() -> None:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
