"""Connections kept at hand between two statements: who gets one, and when it goes back to the pool."""

from __future__ import annotations

from typing import cast

from pgqueue.database.sessions import Session
from pgqueue.database.warm import Warm


class Connection:
    """What Warm looks at."""

    def __init__(self, lent: float = 0.0, answered: float = 0.0) -> None:
        self.lent, self.answered = lent, answered


def session(lent: float = 0.0, answered: float = 0.0) -> Session:
    return cast(Session, Connection(lent, answered))


def test_the_one_used_last_is_taken_first() -> None:
    warm, first, second = Warm(), session(), session()
    assert warm.keep(first) is None
    assert warm.keep(second) is None
    assert (warm.take(), warm.take(), warm.take()) == (second, first, None)


def test_nothing_is_kept_while_somebody_asks_the_pool() -> None:
    warm, used = Warm(), session()
    assert warm.take() is None
    assert warm.keep(used) is used  # the pool gives it to whoever waits there
    warm.served(used, 0.0)
    assert warm.keep(used) is None
    assert warm.take() is used


def test_one_that_the_pool_has_not_seen_for_long_goes_back_to_it() -> None:
    warm = Warm()
    old = session(lent=0.0, answered=31.0)
    assert warm.keep(old) is old
    assert warm.take() is None
    warm.served(old, 31.0)
    assert warm.keep(old) is None


def test_one_that_is_not_needed_goes_back_when_another_is_used() -> None:
    warm, idle, busy = Warm(), session(answered=1.0), session(lent=40.0, answered=40.0)
    warm.keep(idle)
    assert warm.keep(busy) is idle
    assert warm.empty() == [busy]
    assert warm.empty() == []
