"""How `pgqueue demo` shows that it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Tally(NamedTuple):
    """How far the work is."""

    rows: int
    waiting: int
    retries: int
    workers: int


class Show(Protocol):
    """Something to look at while the workers work."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, tally: Tally) -> None: ...
    def say(self, sentence: str) -> None: ...


def make_show(console: Console, total: int) -> Show:
    """Return a bar where one can be drawn, else lines."""
    return Bar(console, total) if console.is_terminal and not console.is_dumb_terminal else Lines(console, total)


class Bar:
    """A progress bar with rate, remaining time, workers and retries."""

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f}/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[workers]} workers, {task.fields[retries]} retries"),
            console=console,
        )
        self._task = self._progress.add_task("", total=total, rate=0.0, workers=0, retries=0)
        self._begun: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, tally: Tally) -> None:
        """Move the bar."""
        now = time.monotonic()
        if self._begun is None and tally.rows:
            self._begun = now
        rate = tally.rows / max(now - self._begun, 0.1) if self._begun else 0.0
        self._progress.update(self._task, completed=tally.rows, rate=rate, workers=tally.workers, retries=tally.retries)

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(sentence, markup=False, highlight=False)


class Lines:
    """A line for each tenth of the work."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._told = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, tally: Tally) -> None:
        """Print a line if another tenth is done."""
        tenth = 10 * tally.rows // max(self._total, 1)
        if tenth > self._told:
            self._told = tenth
            self.say(
                f"{10 * tenth:3d} %  {tally.rows} of {self._total} files, "
                f"{tally.workers} workers, {tally.retries} retries"
            )

    def say(self, sentence: str) -> None:
        """Print a line."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)
