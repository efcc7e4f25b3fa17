"""Bars of block characters, as plain lines of text: the plot of every benchmark."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL, _ASCII = "█", "#"
#: Borders of buckets within a power of ten: each about a quarter more than the one before it.
_STEPS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


class Bar(NamedTuple):
    """One bar; None has none. `note` stands behind the value, `bold` in colour: what the benchmark is about."""

    label: str
    value: float | None
    note: str = ""
    bold: bool = False


def bars(rows: Sequence[Bar], width: int = 40, *, blocks: bool = True) -> list[str]:
    """Return a line for each bar: label, bar, value, note. The longest has `width` characters, the others their share.

    - `blocks`: eighths of a character; without, only `#`.

    >>> bars([Bar("one", 10), Bar("half", 5)], 4)
    ['one   ████  10', 'half  ██     5']
    """
    most = max((row.value for row in rows if row.value is not None), default=0.0)
    labels = max((len(row.label) for row in rows), default=0)
    values = [shown(row.value) for row in rows]
    right = max(map(len, values), default=0)
    return [
        f"{row.label:<{labels}}  {bar(row.value, most, width, blocks=blocks):<{width}}  "
        f"{value:>{right}}  {row.note}".rstrip()
        for row, value in zip(rows, values, strict=True)
    ]


def bar(value: float | None, most: float, width: int, *, blocks: bool = True) -> str:
    """Return a bar that has `width` characters for `most`; the smallest value above 0 is still seen."""
    if value is None or most <= 0 or value <= 0:
        return ""
    if not blocks:
        return _ASCII * max(1, round(value / most * width))
    whole, part = divmod(max(1, round(value / most * width * 8)), 8)
    return _FULL * whole + _EIGHTHS[part].strip()


def shown(value: float | None) -> str:
    """Return a number with three digits that matter, or all of a large one.

    >>> [shown(value) for value in (23456.7, 234.56, 2.3456, 0.0234, 5, None)]
    ['23,457', '235', '2.35', '0.0234', '5', '-']
    """
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def histogram(values: Sequence[float], unit: str) -> list[Bar]:
    """Return how many values are in each bucket, each wider than the one before it; none that is empty at an end.

    >>> [(bar.label, bar.value) for bar in histogram([1.1, 1.2, 2.2], "ms")]
    [('1 to 1.25 ms', 2), ('1.25 to 1.5 ms', 0), ('1.5 to 2 ms', 0), ('2 to 2.5 ms', 1)]
    """
    if not any(values):
        return [Bar(f"0 {unit}", len(values))] if values else []
    least = max(min(values), max(values) / 10_000)  # a zero has no logarithm
    borders = list(_borders(least, max(values)))
    counts = [0] * (len(borders) - 1)
    for value in values:
        counts[max(0, bisect_right(borders, value) - 1)] += 1
    labels = [f"{low:g} to {high:g} {unit}" for low, high in pairwise(borders)]
    if min(values) < borders[0]:
        labels[0] = f"below {borders[1]:g} {unit}"
    return [Bar(label, count) for label, count in zip(labels, counts, strict=True)]


def _borders(least: float, most: float) -> Iterator[float]:
    """Yield the last border that is not above `least`, and all after it until one is above `most`."""
    power = math.floor(math.log10(least)) if least > 0 else 0
    steps = (round(step * 10.0**exponent, 9) for exponent in range(power, power + 300) for step in _STEPS)
    before = next(steps)
    for border in steps:
        if border > least:
            yield before
        if before > most:
            return
        before = border
