"""How other threads, and signals, get the I/O thread out of its wait."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence


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

    def on_signals(self) -> None:
        """Wake on every signal that has a Python handler; to be called in the main thread.

        The wait ends even while the main thread is deep in a C function that lets no handler run, such as a driver
        that waits for its server.
        """
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def attend(self) -> None:
        """Count from here: what is said from now on ends the next wait."""
        self._woken = False

    def wait(self, others: Sequence[int], timeout: float) -> tuple[bool, bytes]:
        """Wait until woken, until one of the other file descriptors can be read, or `timeout` seconds.

        Returns whether one of the others can be read, and the numbers of the signals that have arrived.
        """
        ready, _, _ = select.select([self._reader, *others], [], [], timeout)
        heard = os.read(self._reader, 4096) if self._reader in ready else b""
        return any(other in ready for other in others), heard.replace(b"\0", b"")
