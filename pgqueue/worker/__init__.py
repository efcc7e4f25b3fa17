"""Worker processes: a main thread that runs the tasks, an I/O thread that claims and acknowledges."""

from pgqueue.worker.options import POOLS, WorkerOptions
from pgqueue.worker.process import WorkerProcess
from pgqueue.worker.supervisor import Supervisor

__all__ = ["POOLS", "Supervisor", "WorkerOptions", "WorkerProcess"]
