"""Between the I/O thread and the slots: claims that wait for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Protocol

from pgqueue.types import Claim


class Buffer(Protocol):
    """Claims that no slot has taken yet; filled and drained by the I/O thread. None sends one slot home."""

    def put(self, claims: Sequence[Claim | None]) -> None: ...
    def drain(self) -> list[Claim]: ...
    def __len__(self) -> int: ...


class ThreadBuffer:
    """A buffer for slots that are threads: `get` blocks."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Claim | None] = SimpleQueue()
        self.get = self._queue.get
        self.get_nowait = self._queue.get_nowait

    def put(self, claims: Sequence[Claim | None]) -> None:
        """Hand claims to the slots."""
        put = self._queue.put
        for claim in claims:
            put(claim)

    def drain(self) -> list[Claim]:
        """Take back what no slot has taken."""
        found: list[Claim] = []
        try:
            while True:
                claim = self._queue.get_nowait()
                if claim is not None:
                    found.append(claim)
        except Empty:
            return found

    def __len__(self) -> int:
        return self._queue.qsize()


class LoopBuffer:
    """A buffer for slots that are coroutines of one loop: `get` is awaited; the I/O thread wakes the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inner = ThreadBuffer()
        self._filled = asyncio.Semaphore(0)

    async def get(self) -> Claim | None:
        """Wait for a claim; None sends the slot home."""
        while True:
            await self._filled.acquire()
            try:
                return self._inner.get_nowait()
            except Empty:
                pass  # the I/O thread has taken it back

    def put(self, claims: Sequence[Claim | None]) -> None:
        """Hand claims to the slots."""
        self._inner.put(claims)
        self._loop.call_soon_threadsafe(self._wake, len(claims))

    def drain(self) -> list[Claim]:
        """Take back what no slot has taken."""
        return self._inner.drain()

    def __len__(self) -> int:
        return len(self._inner)

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._filled.release()
