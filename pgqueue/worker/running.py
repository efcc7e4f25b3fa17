"""Run a whole worker in the process that was started for it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from pgqueue.app import PgQueue
from pgqueue.signals import worker_init, worker_ready, worker_shutdown
from pgqueue.worker import titles
from pgqueue.worker.board import EXIT_OK, EXIT_REPLACE, Stop
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.process import WorkerProcess
from pgqueue.worker.quota import Quota
from pgqueue.worker.supervisor import Supervisor, stop_signals, tell_stop


def run_worker(app: PgQueue, options: WorkerOptions) -> int:
    """Run a worker until it is stopped; return its exit code. Signals are heard, so this wants the main thread.

    `solo` runs here, and starts its program anew in this process where another pool would replace a child.
    """
    worker_init.send(app)
    code = _run_solo(app, options) if options.pool == "solo" else Supervisor(app, options).run()
    worker_shutdown.send(app)
    return code


def _run_solo(app: PgQueue, options: WorkerOptions) -> int:
    titles.show(options.full_name, "solo")
    quota = Quota(options.max_jobs) if options.max_jobs else None
    here = Path.cwd()
    process = WorkerProcess(app, options, quota=quota, replace=lambda: _begin_anew(here, quota))
    meanings = {number: Stop.COLD if number == signal.SIGQUIT else Stop.WARM for number in stop_signals()}
    process.stop_on(meanings, lambda how, number: tell_stop(app, how, number))
    worker_ready.send(app)
    code = process.run()
    if code == EXIT_REPLACE:
        _begin_anew(here, quota)
    return code


def _begin_anew(here: Path, quota: Quota | None) -> None:
    """Start the program again in this process, where it was started; of --max-jobs it gets what is left."""
    for handler in (*logging.getLogger("pgqueue").handlers, *logging.getLogger().handlers):
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(here)
    if quota is not None and quota.left == 0:
        os._exit(EXIT_OK)
    left = [] if quota is None else ["--max-jobs", str(quota.left)]
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *left])  # noqa: S606
