"""Which app the tasks of `shared_task` belong to: every app has them, and calls of them go to the current one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pgqueue.current import Current
from pgqueue.task import Task

AnyTask = Task[..., Any, Any]
#: A task that somebody holds, and how to declare another one like it.
_Declared = tuple["weakref.ref[AnyTask]", type[AnyTask], Callable[..., Any], Mapping[str, Any]]


class Adopting(Protocol):
    """What a shared task needs of an app that it joins."""

    def adopt(self, task: AnyTask, function: Callable[..., Any], options: Mapping[str, Any]) -> AnyTask: ...


class Shared:
    """The shared tasks of a program and its apps. Neither is kept alive by this.

    - `make_default`: makes the app for programs that have none when a shared task is first declared.
    - `current`: says which app is current, and is told.
    """

    def __init__(self, make_default: Callable[[], Adopting], current: Current) -> None:
        self._make_default = make_default
        self._lock = threading.RLock()
        self._declared: list[_Declared] = []
        self._apps: weakref.WeakSet[Adopting] = weakref.WeakSet()
        self._current = current
        self._default: Adopting | None = None

    def add(self, task: AnyTask, function: Callable[..., Any], options: Mapping[str, Any]) -> AnyTask:
        """Declare a task in every app that there is, and in those to come; return it, as one of the current app."""
        with self._lock:
            current = self._current()
            if current is None:
                current = self._default = self._default or self._make_default()
                self._current.use(current)
            for app in list(self._apps):
                if app is not current:
                    app.adopt(type(task)(), function, options)
            current.adopt(task, function, options)
            self._declared.append((weakref.ref(task), type(task), function, options))
        return task

    def join(self, app: Adopting, *, current: bool) -> None:
        """Declare the shared tasks in a new app."""
        with self._lock:
            before = self._current()
            self._apps.add(app)
            for task, kind, function, options in self._living():
                if current and before is not None and before is not app:
                    before.adopt(kind(), function, options)  # every app keeps a task of its own
                if not current or before is not app:
                    app.adopt(task if current else kind(), function, options)
            if current:
                self._current.use(app)

    @property
    def current(self) -> Adopting | None:
        """The app to which calls of shared tasks go; None if there is none any more."""
        found: Adopting | None = self._current()
        return found

    def use(self, app: Adopting) -> None:
        """Have calls of shared tasks go to this app."""
        self.join(app, current=True)

    def _living(self) -> list[tuple[AnyTask, type[AnyTask], Callable[..., Any], Mapping[str, Any]]]:
        self._declared = [entry for entry in self._declared if entry[0]() is not None]
        found = ((task(), kind, function, options) for task, kind, function, options in self._declared)
        return [(task, kind, function, options) for task, kind, function, options in found if task is not None]
