"""How a worker is to run."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pgqueue.errors import InvalidOption
from pgqueue.options import check_text, seconds

#: Ways to run tasks: processes with one slot each, one slot here, threads, coroutines of one loop.
POOLS = ("prefork", "solo", "threads", "asyncio")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What `pgqueue worker` may be told.

    - `queues`: served in this order, a later one only when those before it are empty.
    - `pool` and `concurrency`: `prefork` has that many processes of one slot, `threads` and `asyncio` one process of
      that many slots, `solo` one slot in the process that was started.
    - `name`: shown as name@host; default "pgqueue".
    - `burst`: end when there is nothing left to do.
    - `grace`: seconds that running tasks have to end when the worker stops.
    """

    queues: tuple[str, ...] = ("default",)
    pool: str = "prefork"
    concurrency: int = 1
    name: str = "pgqueue"
    burst: bool = False
    grace: float = 30.0

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InvalidOption(f"pool {self.pool!r} does not exist; choose {', '.join(POOLS)}")
        if isinstance(self.concurrency, bool) or not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise InvalidOption(f"concurrency must be a positive integer, not {self.concurrency!r}")
        if not self.queues:
            raise InvalidOption("a worker needs at least one queue")
        for queue in self.queues:
            check_text("queue", queue, 100)
        check_text("name", self.name, 100)
        seconds("grace", self.grace)

    @property
    def processes(self) -> int:
        """How many processes run the tasks."""
        return self.concurrency if self.pool == "prefork" else 1

    @property
    def slots(self) -> int:
        """How many attempts each process runs at once."""
        return self.concurrency if self.pool in ("threads", "asyncio") else 1

    @property
    def full_name(self) -> str:
        """The name with the host, unless it has one."""
        return self.name if "@" in self.name else f"{self.name}@{socket.gethostname()}"
