"""How far a worker has claimed, so that its next claim need not walk over what has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter

from pgqueue.statements import PassedOver
from pgqueue.types import Claim

#: A claim begins so many claimed jobs before the last one, or so much earlier, whichever is nearer: what was
#: committed late is usually found at once.
SLACK_JOBS = 2000
SLACK = timedelta(seconds=5)
#: Seconds for each second that a look from far back has taken, before there is another one: 2 % of the time. But no
#: more than so many seconds in all: it may have been the network that was slow.
_RARELY, _REST = 50, 10.0

_PRIORITIES = range(9, -1, -1)
_lane = attrgetter("queue", "priority")


def rest(seconds: float) -> float:
    """Return the seconds to wait after a look from far back that took so many."""
    return min(_RARELY * seconds, _REST)


class Cursors:
    """Where the next claim of a worker begins, for each of its queues and each priority.

    - `queues`: in the order in which they are claimed from.

    A cursor is a hint. What stands below it is found by the function `look_back`, and the cursor then goes back.

        cursors = Cursors(["default"])
        cursors.claimed(claims, wanted=500, began=time.monotonic())
        statements.claim(worker, ["default"], 500, [], after=cursors.after)
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self.queues = tuple(queues)
        self._lanes = {(queue, priority): _Cursor() for queue in queues for priority in _PRIORITIES}
        self._clock: tuple[datetime, float] | None = None
        self._rests_until = 0.0
        #: Whether the next claim begins earlier than the last one, because something was passed over.
        self.went_back = False

    @property
    def after(self) -> str | None:
        """What `claim` takes: an array of times; None to begin at the very start."""
        starts = [self._lanes[queue, priority].start for queue in self.queues for priority in _PRIORITIES]
        if not any(starts):
            return None
        return "{" + ",".join("NULL" if start is None else f'"{start.isoformat()}"' for start in starts) + "}"

    def forget(self) -> None:
        """Begin the next claim at the very start."""
        for cursor in self._lanes.values():
            cursor.forget()

    def claimed(self, claims: Sequence[Claim], *, wanted: int, began: float, ended: float) -> None:
        """Note what a claim has brought.

        - `wanted`: how many it asked for: where there were fewer, nothing else was found.
        - `began`, `ended`: when, by a monotonic clock in seconds.
        """
        if self.went_back:
            self.went_back = False
            self._rests_until = ended + rest(ended - began)
        suspect = bool(claims) and claims[0].crashes > 0  # came by another way, and alone
        if suspect:
            return
        if claims and _lane(claims[0]) == _lane(claims[-1]):  # nearly always: they are sorted by it
            self._lanes[_lane(claims[0])].advance(claims[-1].eta, len(claims))
        else:
            for lane, some in groupby(claims, _lane):
                passed = [claim.eta for claim in some]
                self._lanes[lane].advance(passed[-1], len(passed))
        if len(claims) < wanted and self._clock is not None:
            then, at = self._clock
            looked = then + timedelta(seconds=began - at) - SLACK
            for cursor in self._lanes.values():
                cursor.raise_to(looked)

    def look_back(self, found: Sequence[PassedOver], now: float) -> None:
        """Go back to what was passed over, if there is anything; by a monotonic clock in seconds."""
        self._clock = found[0].now.astimezone(UTC), now
        if now < self._rests_until:
            return
        for queue, priority, eta in ((row.queue, row.priority, row.eta) for row in found):
            if queue is None or priority is None or eta is None:
                continue
            self.went_back |= self._lanes[queue, priority].go_back(eta)


class _Cursor:
    """The cursor of one queue and priority: claims begin at `start`; None: at the very start."""

    __slots__ = ("_count", "_recent", "start")

    def __init__(self) -> None:
        self.start: datetime | None = None
        self._recent: deque[tuple[datetime, int]] = deque()  # the last eta and the size of each claim
        self._count = 0

    def advance(self, eta: datetime, count: int) -> None:
        eta = eta.astimezone(UTC)  # times of one zone are compared as clocks show them, which go back once a year
        self._recent.append((eta, count))
        self._count += count
        self.raise_to(eta - SLACK)
        while self._count - self._recent[0][1] >= SLACK_JOBS:
            passed, count = self._recent.popleft()
            self._count -= count
            self.raise_to(passed)

    def raise_to(self, start: datetime) -> None:
        if self.start is None or start > self.start:
            self.start = start

    def go_back(self, eta: datetime) -> bool:
        eta = eta.astimezone(UTC)
        if self.start is None or self.start <= eta:
            return False
        self.forget()
        self.start = eta
        return True

    def forget(self) -> None:
        self.start = None
        self._recent.clear()
        self._count = 0
