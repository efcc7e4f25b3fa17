"""One connection that listens for finished jobs, for all the calls of get() in a process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgqueue.database.connections import Database
from pgqueue.errors import PgQueueError

logger = logging.getLogger("pgqueue.listener")

#: Seconds that the thread stays when nobody waits any more; starting one costs a connection.
_LINGER = 10.0

#: Seconds after which the thread looks whether it is to end, so the longest that `close` waits.
_SLICE = 0.1


class Listener:
    """Calls back when a job is finished, as long as somebody waits.

    A hint, never a promise: whoever waits also looks now and then. The thread and its connection exist only
    while there are waiters, and `_LINGER` seconds longer. Behind a transaction pooler there is neither: the LISTEN
    would stay on a session that others use.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._callbacks: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closing = threading.Event()

    @contextmanager
    def subscribe(self, job: str, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback`, in the thread of the listener, whenever `job` is said to be finished."""
        if self._database.pooled:
            yield
            return
        if self._pid != os.getpid():
            # Forked: the thread is the parent's, and the lock may be held for ever by what was that thread.
            self._pid, self._lock, self._thread = os.getpid(), threading.Lock(), None
            self._callbacks.clear()
        with self._lock:
            self._callbacks[job].append(callback)
            if self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(target=self._listen, name="pgqueue-listener", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks[job].remove(callback)
                if not self._callbacks[job]:
                    del self._callbacks[job]

    def close(self) -> None:
        """End the thread and close its connection."""
        self._closing.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(timeout=5.0)

    def _listen(self) -> None:
        try:
            while not self._done() and not self._database.pooled:
                try:
                    self._listen_once()
                except (psycopg.Error, PgQueueError) as error:
                    # Whoever waits goes on by looking; come back when the database does.
                    logger.debug("the listener lost its connection: %s", error)
                    self._closing.wait(1.0)
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _listen_once(self) -> None:
        channel = sql.Identifier(f"{self._database.statements.schema}.done")
        with contextlib.closing(self._database.connect("listen")) as connection:
            if not connection.real:
                return
            connection.execute(sql.SQL("listen {}").format(channel))
            self._call(None)  # What was notified before the LISTEN took effect was missed.
            quiet = 0.0
            while not self._closing.is_set():
                for notice in connection.notifies(timeout=_SLICE, stop_after=1):
                    self._call(notice.payload)
                with self._lock:
                    quiet = 0.0 if self._callbacks else quiet + _SLICE
                if quiet >= _LINGER and self._done():
                    return

    def _call(self, job: str | None) -> None:
        with self._lock:
            found = (
                [callback for callbacks in self._callbacks.values() for callback in callbacks]
                if job is None
                else list(self._callbacks.get(job, ()))
            )
        for callback in found:
            callback()

    def _done(self) -> bool:
        """Return whether the thread may end; under the lock, so that a new waiter either is seen or starts another."""
        with self._lock:
            if self._callbacks and not self._closing.is_set():
                return False
            self._thread = None
            return True
