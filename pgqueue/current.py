"""The app that is meant where none is named: the one made last, or told to be current."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class Current:
    """Which app is current, without keeping it alive.

    >>> Current()() is None
    True
    """

    def __init__(self) -> None:
        self._app: Callable[[], Any] = lambda: None

    def __call__(self) -> Any:
        """Return the app; None if there is none, or none any more."""
        return self._app()

    def use(self, app: object) -> None:
        """Make this app the current one."""
        self._app = weakref.ref(app)


#: Of the whole program, as `logging` has loggers: calls by name and revived signatures find their tasks by it.
CURRENT = Current()
