"""How much to claim, how long to wait: plain functions of what has been measured."""

from __future__ import annotations

#: Seconds of work that a claim should bring, and that is claimed ahead of it: while one batch runs, the server has
#: acknowledgements and the next claim to see to.
BATCH_SECONDS = 0.025
#: Most jobs of one claim; beyond it the cost of a job does not fall any more.
LARGEST_CLAIM = 500
#: Most jobs that wait for a slot of one process: a batch that runs, and the next.
MOST_AHEAD = 2 * LARGEST_CLAIM
#: Seconds that a claimed job may wait for a slot before it is handed back, so that a long task holds up no other.
STALLED = 0.15
#: Seconds that an outcome waits at most for others to be acknowledged with.
ACK_WAIT = 0.005
#: Most outcomes of one acknowledgement.
LARGEST_ACK = 500
#: First pause of a worker that found nothing; it doubles up to the setting `poll_interval`.
FIRST_PAUSE = 0.05
#: Seconds of uninterrupted work after which a worker takes back that it is idle.
BUSY_AFTER = 1.0
#: Seconds after which a worker that is still idle says so again: it holds for a minute.
IDLE_AGAIN = 30.0
#: Seconds that an interrupted task has to clean up before its worker ends without it.
SOFT = 2.0
#: Seconds until another try to store an outcome whose row somebody locks; it doubles.
LATER = 1.0
#: Seconds to wait for a session to end whose attempt is dead or over its limit.
SESSION_END = 2.0
#: Seconds between two looks at what waits, of a worker that has no slot free.
BACKLOG_SECONDS = 1.0


def claim_size(slots: int, free: int, unstarted: int, runtime: float | None, last: int, most: int = MOST_AHEAD) -> int:
    """Return how many jobs to claim now.

    - `slots`, `free`: of this process; `unstarted`: claimed and waiting for a slot.
    - `runtime`: seconds that a job takes, on average; None before the first.
    - `last`: size of the last claim: it may grow fourfold at a time, since one fast job says little.
    - `most`: jobs to be claimed ahead at most.

        >>> claim_size(slots=1, free=1, unstarted=0, runtime=None, last=0)
        1
        >>> claim_size(slots=1, free=1, unstarted=0, runtime=0.0001, last=500)
        500
        >>> claim_size(slots=4, free=0, unstarted=0, runtime=2.0, last=4)
        0
    """
    batch = 0 if runtime is None else int(min(LARGEST_CLAIM, slots * BATCH_SECONDS / max(runtime, 1e-6)))
    batch = min(batch, max(slots, 4 * last))
    if unstarted > batch:
        return 0
    return min(LARGEST_CLAIM, max(free - unstarted, min(batch, most - unstarted), 0))


class Demand:
    """How much a worker wants to claim, and when it looks next: remembers what claims and tasks have been like.

    - `slots`: how many attempts run at once.
    - `longest_pause`: seconds between two looks of an idle worker, at most.
    - `most`: jobs to be claimed ahead at most.

    All times are monotonic and in seconds.
    """

    def __init__(self, slots: int, longest_pause: float, most: int = MOST_AHEAD) -> None:
        self._slots = slots
        self._most = most
        self._longest_pause = longest_pause
        self._runtime: float | None = None
        self._last = 0
        self._pause = FIRST_PAUSE
        self._hint = False
        self._stuck = False
        self.next_look = 0.0
        self.found_nothing_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether several looks in a row have found nothing."""
        return self._pause > 2 * FIRST_PAUSE

    def ended(self, runtimes: list[float]) -> None:
        """Note how long attempts have run."""
        self._runtime = average(self._runtime, runtimes)
        if runtimes:
            self._stuck = False

    def stuck(self) -> None:
        """Note that every slot is in a long task: claim nothing ahead until one ends, however short the others were."""
        self._stuck = True

    def notified(self) -> None:
        """Note that somebody has enqueued."""
        self._hint = True

    def look_now(self) -> None:
        """Look at the next occasion, whatever was found before."""
        self.next_look = 0.0

    def said_idle(self) -> None:
        """Look now and after the first pause: an enqueue under way has not seen it, nor one that asked just before."""
        self._pause, self.next_look = FIRST_PAUSE, 0.0

    def looking(self) -> None:
        """Note that a claim begins: what is enqueued from now on is worth another look."""
        self._hint = False

    def claimed(self, count: int, now: float, wanted: int = 0) -> None:
        """Note what a claim has brought; after nothing the pause doubles, after as much as was wanted there is none.

        After less than half of it (others may have been faster with some) there is hardly more: the next
        acknowledgement brings a claim along.
        """
        self._last = count
        if count:
            self._pause, self.next_look = FIRST_PAUSE, now + FIRST_PAUSE if 2 * count < wanted else 0.0
            return
        self.found_nothing_at = now
        self.next_look = now + self._pause
        self._pause = min(2 * self._pause, self._longest_pause)

    def size(self, running: int, unstarted: int) -> int:
        """Return how many jobs there is room for, sooner or later."""
        free = max(0, self._slots - running)
        runtime = None if self._stuck else self._runtime
        return claim_size(self._slots, free, unstarted, runtime, self._last, self._most)

    def size_now(self, running: int, unstarted: int, now: float) -> int:
        """Return how many jobs to claim now: 0 while the pause lasts and nobody has notified."""
        return self.size(running, unstarted) if self._hint or now >= self.next_look else 0


def average(before: float | None, runtimes: list[float]) -> float | None:
    """Return the moving average of run times, in which a long task weighs at once and a short one slowly."""
    for runtime in runtimes:
        if before is None or runtime > before * 10:
            before = runtime
        else:
            before += (runtime - before) / 4  # a long one is forgotten after some twenty short ones
    return before


def backoff(failures: int, chance: float) -> float:
    """Return the seconds to wait before connection attempt `failures` + 1: 50 ms to 2 s, half of it by chance."""
    longest = min(2.0, 0.05 * 2.0 ** min(failures, 10))
    return longest * (0.5 + chance / 2)
