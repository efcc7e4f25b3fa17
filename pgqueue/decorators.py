"""What `app.task(...)` returns: for type checkers, who see through it which parameters callers have."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import psycopg

from pgqueue.task import Task

P = ParamSpec("P")
R = TypeVar("R")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


class PlainDecorator(Protocol):
    """Makes a task of a function or of a coroutine function, with the function's signature."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...


class BoundDecorator(Protocol):
    """The same for `bind=True`: callers do not see the first parameter, the task itself."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Task[..., Any, Any], P], Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Task[..., Any, Any], P], R], /) -> Task[P, R, R]: ...


class TransactionalDecorator(Protocol):
    """The same for `transactional=True`: callers do not see the first parameter, the connection."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Connection, P], R], /) -> Task[P, R, R]: ...


class BoundTransactionalDecorator(Protocol):
    """The same for both: the task first, then the connection."""

    @overload
    def __call__(
        self,
        function: Callable[Concatenate[Task[..., Any, Any], AsyncConnection, P], Coroutine[Any, Any, R]],
        /,
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Task[..., Any, Any], Connection, P], R], /) -> Task[P, R, R]: ...
