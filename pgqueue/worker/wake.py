"""How other threads get the I/O thread out of its wait."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable


class Wake:
    """A pipe on which the I/O thread waits beside its connection."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._woken = False

    def __call__(self) -> None:
        """End the wait that is under way, or the next one. Cheap when that has been said already."""
        if not self._woken:
            self._woken = True
            try:
                os.write(self._writer, b"\0")
            except BlockingIOError:
                pass  # a full pipe wakes as well

    def attend(self) -> None:
        """Count from here: what is said from now on ends the next wait."""
        self._woken = False

    def wait(self, others: Iterable[int], timeout: float) -> set[int]:
        """Wait until woken, until one of the other file descriptors can be read, or `timeout` seconds.

        Returns those of the others that can be read.
        """
        poll = select.poll()  # not select: a process with many files open has descriptors that it cannot take
        poll.register(self._reader, select.POLLIN)
        for other in others:
            poll.register(other, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
        if self._reader in ready:
            os.read(self._reader, 4096)
            ready.discard(self._reader)
        return ready
