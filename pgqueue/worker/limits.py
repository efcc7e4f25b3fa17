"""What holds for the attempts of a task, and the thread that says when a time limit is over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pgqueue.options import check_time_limits
from pgqueue.task import Task
from pgqueue.types import Claim
from pgqueue.worker.options import WorkerOptions

#: The hard and the soft time limit of an attempt in seconds.
Limits = tuple[float | None, float | None]


class Rule(NamedTuple):
    """What holds for the attempts of a task.

    `hard` and `soft`: their time limits in seconds. `repeats`: one that meets the hard limit is repeated. `once`: none
    is repeated after a crash.
    """

    hard: float | None
    soft: float | None
    repeats: bool
    once: bool

    def limits(self, claim: Claim) -> Limits:
        """Return the limits of one attempt: what the call said comes first."""
        return within(
            self.hard if claim.time_limit is None else claim.time_limit,
            self.soft if claim.soft_time_limit is None else claim.soft_time_limit,
        )


class Rules(dict[str, Rule]):
    """The rules of tasks by name; their own limits come before those of the worker."""

    def __init__(self, tasks: Mapping[str, Task[..., Any, Any]], options: WorkerOptions) -> None:
        super().__init__()
        self._tasks = tasks
        self._options = options

    def __missing__(self, name: str) -> Rule:
        own = self._tasks[name].options
        hard, soft = check_time_limits(own.time_limit, own.soft_time_limit)
        hard, soft = within(
            self._options.time_limit if hard is None else hard,
            self._options.soft_time_limit if soft is None else soft,
        )
        once = not (own.acks_late and own.reject_on_worker_lost)
        self[name] = Rule(hard, soft, own.repeats_overdue, once)
        return self[name]


def within(hard: float | None, soft: float | None) -> Limits:
    """Return the limits without a soft one that would come after the hard one: they were given in different places."""
    return (hard, None) if hard is not None and soft is not None and soft >= hard else (hard, soft)


class LimitThread(threading.Thread):
    """Calls back when a time is reached; it sleeps until the earliest of them, and starts with the first.

    - `look`: given the time now (monotonic, in seconds), does what is due and returns when the next thing is,
      or infinity.
    """

    def __init__(self, look: Callable[[float], float]) -> None:
        super().__init__(name="pgqueue-limits", daemon=True)
        self._look = look
        self._changed = threading.Condition()
        self._next = math.inf

    def expect(self, at: float) -> None:
        """Look at `at`, if not before."""
        with self._changed:
            if self.ident is None:
                self.start()
            if at < self._next:
                self._next = at
                self._changed.notify()

    def run(self) -> None:
        """Look when it is time."""
        with self._changed:
            while True:
                wait = self._next - time.monotonic()
                if wait > 0:
                    self._changed.wait(None if wait == math.inf else wait)
                    continue
                self._next = self._look(time.monotonic())
