"""A TCP proxy in front of a PostgreSQL server that can cut a connection at the worst moment of a commit."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Self

#: When a connection is cut, seen from the statement that commits:
#: - before: it never reaches the server
#: - held: nor does it, and the server does not hear of the cut for a while: the transaction stays open
#: - half: the server gets the first half of it
#: - after: it is carried out and its answer swallowed
#: - late: the client is cut off first, and the server gets it seconds later
CUTS = ("before", "held", "half", "after", "late")

#: What a statement that commits can be told by: the end of a transaction, an acknowledgement, an enqueue, a claim.
MARKS = (b"COMMIT", b".finish(", b".enqueue_many(", b".claim(")

_CHUNK = 1 << 18
_READY = b"Z\x00\x00\x00\x05"  # ReadyForQuery; one byte follows. The server has carried out all that was asked
_ANSWER = 5.0  # seconds to wait for it


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to the Unix socket of a server, in a thread of its own.

    - `upstream`: path of the socket, such as `/tmp/.s.PGSQL.5432`.
    - `done`: cuts that have happened, by (kind, mark).

        with Proxy(socket) as proxy:
            proxy.arm("after", b"COMMIT", 0.0)
    """

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._armed: list[tuple[str, bytes, float]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.done: Counter[tuple[str, str]] = Counter()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    def arm(self, kind: str, mark: bytes, seconds: float) -> None:
        """Cut the next connection that sends a statement with this mark; `seconds` are those of held and late."""
        self._loop.call_soon_threadsafe(self._armed.append, (kind, mark, seconds))

    def disarm(self) -> None:
        """Forget what is armed and has not happened."""
        self._loop.call_soon_threadsafe(self._armed.clear)

    def cut_all(self) -> None:
        """Cut every connection."""
        for link in list(self._links):
            self._loop.call_soon_threadsafe(link.cut)

    def stall(self, seconds: float) -> None:
        """Let nothing through for a while, in either direction, and lose nothing."""
        self._loop.call_soon_threadsafe(self._flowing.clear)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._flowing.set)

    def heal(self) -> None:
        """Be an ordinary proxy from now on."""
        self.disarm()
        self._loop.call_soon_threadsafe(self._flowing.set)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        self._server.close()
        self._flowing.set()
        for link in list(self._links):
            link.cut()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports end in the next turn of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flowing.wait()
            server = await asyncio.open_unix_connection(str(self._upstream), limit=_CHUNK)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.serve()
        except asyncio.CancelledError:  # the proxy ends; the callback of streams takes it for an error
            pass
        finally:
            self._links.discard(link)
            link.cut()

    async def flow(self) -> None:
        """Wait while the proxy is stalled."""
        await self._flowing.wait()

    def armed_for(self, chunk: bytes) -> tuple[str, float] | None:
        """Return how to cut the connection that sends this, and strike it off the list."""
        for at, (kind, mark, seconds) in enumerate(self._armed):
            if mark in chunk:
                del self._armed[at]
                self.done[kind, mark.decode().strip(".(")] += 1
                return kind, seconds
        return None


_Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection: a client, the server, and the two directions between them."""

    def __init__(self, proxy: Proxy, client: _Side, server: _Side) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._swallowed: asyncio.Future[None] | None = None

    def cut(self) -> None:
        """End both sides at once, with whatever is under way."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def serve(self) -> None:
        """Forward until one side ends."""
        ways = {asyncio.ensure_future(self._ask()), asyncio.ensure_future(self._answer())}
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.exception()  # a reset is the end, and no error of ours
        finally:
            for way in ways:
                way.cancel()

    async def _ask(self) -> None:
        """Forward what the client sends; return when it has ended or the connection is cut."""
        while chunk := await self._client[0].read(_CHUNK):
            await self._proxy.flow()
            cut = self._proxy.armed_for(chunk)
            if cut is not None:
                await self._break(*cut, chunk)
                return
            await self._send(chunk)

    async def _break(self, kind: str, seconds: float, chunk: bytes) -> None:
        if kind in ("held", "late"):
            self._swallowed = asyncio.get_running_loop().create_future()
            self._client[1].transport.abort()
            await asyncio.sleep(seconds)
        if kind == "half":
            await self._send(chunk[: len(chunk) // 2])
        if kind in ("after", "late"):
            self._swallowed = asyncio.get_running_loop().create_future()
            await self._send(chunk)
            await asyncio.wait([self._swallowed], timeout=_ANSWER)

    async def _send(self, chunk: bytes) -> None:
        self._server[1].write(chunk)
        await self._server[1].drain()

    async def _answer(self) -> None:
        """Forward what the server sends, or swallow it and look for the end of an answer."""
        while chunk := await self._server[0].read(_CHUNK):
            await self._proxy.flow()
            if self._swallowed is None:
                self._client[1].write(chunk)
                await self._client[1].drain()
            elif chunk[-6:-1] == _READY and not self._swallowed.done():
                self._swallowed.set_result(None)
