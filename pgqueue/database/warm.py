"""Connections that have just been used, kept at hand between two statements of ours."""

from __future__ import annotations

from threading import Lock

from pgqueue.database.sessions import Session

#: Seconds after which a connection goes back to the pool, which looks after its age and whether so many are needed.
_WARM = 30.0


class Warm:
    """What stands before the pool: the connection that was used last.

    A pool logs, counts and checks whatever goes in or out, 4 to 7 us for each call. Who finds nothing here asks the
    pool, and from then on nothing is kept here until he has one: he would wait for it in vain.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: list[Session] = []
        self._asking = 0

    def take(self) -> Session | None:
        """Return the connection that was used last, or None: ask the pool then, and say `served` afterwards."""
        with self._lock:
            if self._kept:
                return self._kept.pop()
            self._asking += 1
            return None

    def served(self, connection: Session | None, now: float) -> None:
        """Hear that who found nothing here has asked the pool; `connection` is what it has given."""
        with self._lock:
            self._asking -= 1
        if connection is not None:
            connection.lent = now

    def keep(self, connection: Session) -> Session | None:
        """Keep a connection that was answered just now; return the one that is to go back to the pool, if one is."""
        now = connection.answered
        if now - connection.lent > _WARM:
            return connection
        with self._lock:
            if self._asking:
                return connection
            self._kept.append(connection)
            return self._kept.pop(0) if now - self._kept[0].answered > _WARM else None

    def drop(self, connection: Session) -> bool:
        """Keep a connection no longer; return whether it was kept."""
        with self._lock:
            if connection not in self._kept:
                return False
            self._kept.remove(connection)
            return True

    def empty(self) -> list[Session]:
        """Return all that are kept here, and keep none of them."""
        with self._lock:
            kept, self._kept = self._kept, []
        return kept
