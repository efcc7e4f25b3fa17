"""When each job was asked for and when it started: records in shared memory, which cost no system a round trip.

Only the standard library is imported here: this runs in the environments of the other systems.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

#: The number of a job plus one (0: not written yet) and CLOCK_MONOTONIC, which all processes of a machine share.
_RECORD = struct.Struct("<qd")
_CAPACITY = 1 << 21  # records a process; the file is sparse


class Notebook:
    """Where one thread of one process writes."""

    def __init__(self, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(_CAPACITY * _RECORD.size)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._place = 0

    def add(self, number: int) -> None:
        """Write down that something happened to this job now."""
        now = time.monotonic()
        _RECORD.pack_into(self._memory, self._place, number + 1, now)
        self._place += _RECORD.size


@functools.cache
def _notebook(process: int, thread: int) -> Notebook:
    return Notebook(Path(os.environ["PEERS_FOLDER"]) / f"starts.{process}.{thread}")


def started(number: int) -> None:
    """The first line of every task."""
    _notebook(os.getpid(), threading.get_ident()).add(number)


class Reader:
    """What the processes of one measurement have written into a folder.

    - `kind`: "starts" of tasks, or "calls" of producers.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._pages: dict[Path, tuple[mmap.mmap, int]] = {}

    def count(self) -> int:
        """Return how many records there are, reading on from where it was."""
        for path in self._folder.glob(f"{self._kind}.*"):
            if path not in self._pages and path.stat().st_size:
                with path.open("rb") as file:
                    self._pages[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 0
        for path, (memory, seen) in self._pages.items():
            while seen < _CAPACITY and _RECORD.unpack_from(memory, seen * _RECORD.size)[0]:
                seen += 1
            self._pages[path] = memory, seen
        return sum(seen for _, seen in self._pages.values())

    def records(self) -> Iterator[tuple[int, float]]:
        """Yield number and time of each record, process by process."""
        self.count()
        for memory, seen in self._pages.values():
            for place in range(seen):
                number, when = _RECORD.unpack_from(memory, place * _RECORD.size)
                yield number - 1, when
