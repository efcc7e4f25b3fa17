"""How a worker is to run."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pgqueue.errors import InvalidOption
from pgqueue.options import check_text, check_time_limits, seconds, shown

#: Ways to run tasks: processes with one slot each, one slot here, threads, coroutines of one loop.
POOLS = ("prefork", "solo", "threads", "asyncio")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What `pgqueue worker` may be told.

    - `queues`: served in this order, a later one only when those before it are empty.
    - `pool` and `concurrency`: `prefork` has that many processes of one slot, `threads` and `asyncio` one process of
      that many slots, `solo` one slot in the process that was started.
    - `processes`: how many times that.
    - `autoscale`: (most, fewest) processes: more are started while jobs wait, and ended when they have nothing to do.
    - `name`: shown as name@host; default "pgqueue".
    - `burst`: end when there is nothing left to do.
    - `max_jobs`: end after so many jobs, all processes together.
    - `grace`: seconds that running tasks have to end when the worker stops; in the last two they are interrupted.
    - `time_limit`, `soft_time_limit`: seconds, for tasks and calls that say nothing themselves.
    - `max_tasks_per_child`: jobs after which a process is replaced; `max_memory_per_child`: KiB of memory.
    - `prefetch_multiplier`: jobs claimed ahead at most, as a multiple of the slots; 0 (default): as many as pay.
    - `suspects_only`: run nothing but jobs whose worker has died, one at a time; a supervisor uses it.
    """

    queues: tuple[str, ...] = ("default",)
    pool: str = "prefork"
    concurrency: int = 1
    processes: int = 1
    autoscale: tuple[int, int] | None = None
    name: str = "pgqueue"
    burst: bool = False
    max_jobs: int | None = None
    grace: float = 30.0
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    prefetch_multiplier: int = 0
    suspects_only: bool = False

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InvalidOption(f"pool {self.pool!r} does not exist; choose {', '.join(POOLS)}")
        for option in ("concurrency", "processes", "max_jobs", "max_tasks_per_child", "max_memory_per_child"):
            value = getattr(self, option)
            if option in ("concurrency", "processes") or value is not None:
                _check_count(option, value)
        if self.prefetch_multiplier != 0:
            _check_count("prefetch_multiplier", self.prefetch_multiplier)
        if self.autoscale is not None:
            _check_count("the most of autoscale", self.autoscale[0])
            _check_count("the fewest of autoscale", self.autoscale[1])
            if self.autoscale[0] < self.autoscale[1]:
                raise InvalidOption(f"autoscale={self.autoscale}: the first is the most, the second the fewest")
            if self.pool == "solo":
                raise InvalidOption("autoscale starts processes, and solo is one: choose another pool")
        if self.pool == "solo" and self.processes > 1:
            raise InvalidOption("solo is one process; choose another pool for several")
        if not self.queues:
            raise InvalidOption("a worker needs at least one queue")
        for queue in self.queues:
            check_text("queue", queue, 100)
        check_text("name", self.name, 100)
        seconds("grace", self.grace)
        check_time_limits(self.time_limit, self.soft_time_limit)

    @property
    def most_processes(self) -> int:
        """How many processes run tasks at most."""
        if self.autoscale is not None:
            return self.autoscale[0]
        return self.processes * (self.concurrency if self.pool == "prefork" else 1)

    @property
    def fewest_processes(self) -> int:
        """How many processes run tasks at least."""
        return self.most_processes if self.autoscale is None else self.autoscale[1]

    @property
    def slots(self) -> int:
        """How many attempts each process runs at once."""
        return self.concurrency if self.pool in ("threads", "asyncio") else 1

    @property
    def full_name(self) -> str:
        """The name with the host, unless it has one."""
        return self.name if "@" in self.name else f"{self.name}@{socket.gethostname()}"


def _check_count(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{option} must be a positive integer, not {shown(value)}")
