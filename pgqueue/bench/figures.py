"""Figures of many values: percentiles, medians, and the pace of a drain."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50)
    2.0
    """
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Pace:
    """How a drain went on: jobs done as a function of time, straight from one acknowledgement to the next.

    - `began`: time of the first claim, in seconds; `acks`: time and number of jobs of each acknowledgement, in order.

    >>> Pace(0.0, [(1.0, 500), (3.0, 500)]).parts(2)
    [500.0, 250.0]
    """

    def __init__(self, began: float, acks: Sequence[tuple[float, int]]) -> None:
        self._times = [began, *(time for time, _ in acks)]
        self._done = [0.0, *accumulate(float(jobs) for _, jobs in acks)]

    def per_second(self, opened: float, closed: float) -> float:
        """Return jobs per second between two times."""
        return (self._done_at(closed) - self._done_at(opened)) / (closed - opened)

    def parts(self, count: int) -> list[float]:
        """Return jobs per second in each of so many equal parts of the jobs."""
        share = self._done[-1] / count
        borders = [self._time_of(share * part) for part in range(count + 1)]
        return [share / (later - earlier) for earlier, later in pairwise(borders)]

    def _done_at(self, time: float) -> float:
        return _between(self._times, self._done, time, bisect_right(self._times, time))

    def _time_of(self, done: float) -> float:
        return _between(self._done, self._times, done, bisect_left(self._done, done))


def _between(xs: Sequence[float], ys: Sequence[float], x: float, place: int) -> float:
    """Return y at x, on the straight line of the two points before and after `place`."""
    right = min(max(place, 1), len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
