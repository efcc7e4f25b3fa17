"""When a failed attempt is repeated: a pure function of the exception and the retries so far."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which exceptions of a task lead to a retry, how often, and after how long.

    - `autoretry_for`: these are retried by themselves; default none.
    - `dont_autoretry_for`: these are not, although `autoretry_for` covers them.
    - `max_retries`: repeats after the first run; None for no limit. Default 3.
    - `delay`: seconds to wait where nothing else is said; default 180.
    - `backoff`: seconds of the first wait, doubled with every retry; 0 (default) waits `delay` each time.
    - `backoff_max`: longest wait in seconds; default 600.
    - `jitter`: wait a random time between 0 and the computed one, so that jobs which failed together do not
      come back together; default True. It applies to the backoff only.
    """

    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    delay: float = 180.0
    backoff: float = 0.0
    backoff_max: float = 600.0
    jitter: bool = True

    def covers(self, error: BaseException) -> bool:
        """Return whether this exception is retried without the task asking for it."""
        return isinstance(error, self.autoretry_for) and not isinstance(error, self.dont_autoretry_for)

    def allows(self, retries: int) -> bool:
        """Return whether another retry may follow after `retries` of them."""
        return self.max_retries is None or retries < self.max_retries

    def wait(self, retries: int) -> float:
        """Return the seconds to wait before the retry that follows `retries` earlier ones.

        Exponential backoff with full jitter, as Celery computes it:

            >>> RetryPolicy(backoff=2, jitter=False).wait(3)
            16.0
        """
        if not self.backoff:
            return self.delay
        # 2.0 ** 1024 overflows; the longest wait is reached long before.
        longest = min(self.backoff_max, max(1.0, self.backoff) * 2.0 ** min(retries, 60))
        return random.uniform(0.0, longest) if self.jitter else longest
