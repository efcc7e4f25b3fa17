"""What happens in a forked worker process, from the fork to its end."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from pgqueue.app import PgQueue
from pgqueue.signals import worker_process_init, worker_process_shutdown
from pgqueue.worker import titles
from pgqueue.worker.board import EXIT_FAILED, Board, Stop
from pgqueue.worker.options import WorkerOptions
from pgqueue.worker.process import WorkerProcess
from pgqueue.worker.quota import Quota

logger = logging.getLogger("pgqueue.worker")

_PR_SET_PDEATHSIG = 1


def be_child(
    app: PgQueue,
    options: WorkerOptions,
    worker: str,
    board: Board,
    quota: Quota | None,
    place: int,
    parent: int,
    mask: Iterable[int],
) -> NoReturn:
    """Run a worker in a process that has just been forked, and end the process.

    - `place`: which of its parent's it is; `parent`: its process id; `mask`: the signals that were blocked before.
    """
    code = EXIT_FAILED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # They reach the whole group of a terminal; the parent decides what they mean.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        titles.show(options.full_name, "suspects" if options.suspects_only else f"{options.pool} {place + 1}")
        process = WorkerProcess(app, options, worker=worker, board=board, quota=quota)
        process.stop_on({signal.SIGTERM: None})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _end_with_parent(parent, process)
        worker_process_init.send(app)
        code = process.run()
        worker_process_shutdown.send(app, pid=os.getpid(), exitcode=code)
    except BaseException:
        logger.critical("worker process %d failed", os.getpid(), exc_info=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent(parent: int, process: WorkerProcess) -> None:
    """Have this process stop warmly when its parent dies, where the system can tell (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        process.stop(Stop.WARM)


def end_with_us() -> Callable[[], None] | None:
    """Return what a new process has to do first in order to get SIGTERM when this one dies, however that happens."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # found before the fork: after it we must not take a lock

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
