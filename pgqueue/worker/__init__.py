"""The worker: processes that claim jobs, run them and acknowledge how they ended."""

from pgqueue.worker.board import Stop
from pgqueue.worker.options import POOLS, WorkerOptions
from pgqueue.worker.process import WorkerProcess
from pgqueue.worker.running import run_worker
from pgqueue.worker.supervisor import Supervisor

__all__ = ["POOLS", "Stop", "Supervisor", "WorkerOptions", "WorkerProcess", "run_worker"]
