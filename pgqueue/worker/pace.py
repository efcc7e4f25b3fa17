"""How much to claim, how long to wait: plain functions of what has been measured."""

from __future__ import annotations

#: Seconds of work that a claim should bring: a round trip and a commit cost about two milliseconds.
BATCH_SECONDS = 0.05
#: Most jobs of one claim; beyond it the cost of a job does not fall any more.
LARGEST_CLAIM = 500
#: Seconds that a claimed job may wait for a slot before it is handed back, so that a long task holds up no other.
STALLED = 0.2
#: Seconds that an outcome waits at most for others to be acknowledged with.
ACK_WAIT = 0.005
#: Most outcomes of one acknowledgement.
LARGEST_ACK = 500
#: First pause of a worker that found nothing; it doubles up to the setting `poll_interval`.
FIRST_PAUSE = 0.05
#: Seconds of uninterrupted work after which a worker takes back that it is idle.
BUSY_AFTER = 1.0


def claim_size(slots: int, free: int, unstarted: int, runtime: float | None, last: int) -> int:
    """Return how many jobs to claim now.

    - `slots`, `free`: of this process; `unstarted`: claimed and waiting for a slot.
    - `runtime`: seconds that a job takes, on average; None before the first.
    - `last`: size of the last claim: it may grow fourfold at a time, since one fast job says little.

        >>> claim_size(slots=1, free=1, unstarted=0, runtime=None, last=0)
        1
        >>> claim_size(slots=1, free=1, unstarted=0, runtime=0.0001, last=500)
        500
        >>> claim_size(slots=4, free=0, unstarted=0, runtime=2.0, last=4)
        0
    """
    ahead = 0 if runtime is None else int(min(LARGEST_CLAIM, slots * BATCH_SECONDS / max(runtime, 1e-6)))
    ahead = min(ahead, max(slots, 4 * last))
    if unstarted > ahead // 2:
        return 0
    return min(LARGEST_CLAIM, max(free, ahead) - unstarted)


def average(before: float | None, runtimes: list[float]) -> float | None:
    """Return the moving average of run times, in which a long task weighs at once and a short one slowly."""
    for runtime in runtimes:
        if before is None or runtime > before * 10:
            before = runtime
        else:
            before += (runtime - before) / 16
    return before


def backoff(failures: int, chance: float) -> float:
    """Return the seconds to wait before connection attempt `failures` + 1: 50 ms to 2 s, half of it by chance."""
    longest = min(2.0, 0.05 * 2.0 ** min(failures, 10))
    return longest * (0.5 + chance / 2)
