"""Rows and values as people and programs want to read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PROSE = 24  # characters: a text wider than this is wrapped, if there are spaces in it
_NUMBERS = (int, float, Decimal, timedelta)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table for a terminal; columns of numbers to the right."""
    shown = [tuple(row) for row in rows]
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    needed = 0
    for column, *values in zip(columns, *shown, strict=True):
        width = max(map(len, (column, *map(cell, values))))
        prose = width > _PROSE and any(isinstance(value, str) and " " in value for value in values)
        needed += 2 + (_PROSE if prose else width)
        numeric = any(isinstance(value, _NUMBERS) and not isinstance(value, bool) for value in values)
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=not prose, min_width=min(width, _PROSE)
        )
    for row in shown:
        # A task's name or an error's message is not our markup.
        table.add_row(*(Text(cell(value)) for value in row))
    # In too narrow a window the terminal breaks the lines: an id can still be copied.
    console = Console()
    console.width = max(console.width, needed)
    console.print(table, crop=False)


def print_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a heading and rows with tabs between, for cut, awk and their kin."""
    for row in ([*columns], *rows):
        click.echo("\t".join(" ".join(cell(value).split()) for value in row))


def cell(value: object) -> str:
    """Return a value as one cell: nothing for None, lists with commas, times to the second."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(" ", "seconds")
        case timedelta():
            return duration(value)
        case list() | tuple():
            return ",".join(map(cell, value))
        case dict():
            return json_text(value)
        case _:
            return str(value)


def duration(value: timedelta) -> str:
    """Return a duration in the unit that suits it.

    >>> [duration(timedelta(seconds=seconds)) for seconds in (0.0421, 7.25, 192, 3 * 86_400 + 3600)]
    ['42ms', '7.2s', '3m12s', '3d1h']
    """
    seconds = value.total_seconds()
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f}ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f}s"
    whole, sign = round(abs(seconds)), "-" if seconds < 0 else ""
    for unit, next_unit, size, next_size in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{sign}{whole // size}{unit}{whole % size // next_size}{next_unit}"
    return f"{sign}{whole}s"


def json_text(value: object) -> str:
    """Return a value as JSON; raises TypeError for what has no form in it."""
    return json.dumps(value, default=_plain, ensure_ascii=False, indent=2)


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return float(value)
        case _:
            return str(value)
