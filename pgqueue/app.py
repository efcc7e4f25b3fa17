"""The app: settings, the registry of tasks, and the way of a job into the database."""

from __future__ import annotations

import difflib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Literal, ParamSpec, TypeVar, overload

from pgqueue.database import Database, Listener, aenqueue_on, enqueue_on
from pgqueue.decorators import (
    AsyncConnection,
    BoundDecorator,
    BoundTransactionalDecorator,
    Connection,
    PlainDecorator,
    TransactionalDecorator,
)
from pgqueue.errors import InvalidOption, UnknownTask
from pgqueue.options import TASK_OPTIONS, TaskOptions, call_options, check_names, check_text
from pgqueue.result import AsyncResult
from pgqueue.settings import Settings, find_dsn, load_settings
from pgqueue.statements import Statement, Statements
from pgqueue.task import Signature, Task, new_job
from pgqueue.types import Enqueued, NewJob

P = ParamSpec("P")
R = TypeVar("R")
Handle = AsyncResult


class PgQueue:
    """Tasks of one program and the database in which their jobs are.

    - `name`: name of the app; tasks defined in `__main__` are called after it.
    - `dsn`: libpq's connection string or URI; default PGQUEUE_DSN, DATABASE_URL, or PG* variables. Nothing is
      connected to before the first call that needs it.
    - `schema`: schema of the tables; default "pgqueue".
    - further settings: see `Settings`.

    Raises SettingsError for a setting that is wrong.

        app = PgQueue("shop", dsn="postgresql:///shop")

        @app.task
        def add(x: int, y: int) -> int:
            return x + y
    """

    def __init__(self, name: str, *, dsn: str | None = None, schema: str | None = None, **settings: Any) -> None:
        self.name = check_text("name", name, 100)
        self.settings: Settings = load_settings({"schema_name": schema, **settings})
        self.tasks: dict[str, Task[..., Any, Any]] = {}
        self._dsn = dsn
        self._lock = threading.Lock()  # over making the two below
        self._database: Database | None = None
        self._listener: Listener | None = None

    # -- declaring -------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    @overload
    def task(
        self, *, bind: Literal[True], transactional: Literal[True], **options: Any
    ) -> BoundTransactionalDecorator: ...
    @overload
    def task(self, *, bind: Literal[True], transactional: Literal[False] = ..., **options: Any) -> BoundDecorator: ...
    @overload
    def task(
        self, *, transactional: Literal[True], bind: Literal[False] = ..., **options: Any
    ) -> TransactionalDecorator: ...
    @overload
    def task(self, **options: Any) -> PlainDecorator: ...
    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Make a task of a function or coroutine function; with or without options.

        Options: see `TaskOptions`. Raises InvalidOption for an unknown one (naming what was probably meant), or
        for a name that another function has (the same function may be declared again, as notebooks do).

            @app.task(bind=True, autoretry_for=(OSError,), retry_backoff=2)
            def fetch(self, url: str) -> str: ...
        """
        check_names("task option", options, TASK_OPTIONS)
        checked = TaskOptions(**options)

        def decorate(function: Callable[..., Any]) -> Task[..., Any, Any]:
            if not callable(function):
                raise InvalidOption(f"app.task makes a task of a function, not of {function!r:.80}; its name is name=")
            name = check_text("name", self._name_of(function) if checked.name is None else checked.name, 255)
            known = self.tasks.get(name)
            if known is not None and _place(known.run) != _place(function):
                raise InvalidOption(f"task {name!r} is declared twice, by {_place(known.run)} and {_place(function)}")
            self.tasks[name] = Task(self, function, name, checked)
            return self.tasks[name]

        return decorate if function is None else decorate(function)

    def task_named(self, name: str) -> Task[..., Any, Any]:
        """Return a registered task; raises UnknownTask with the nearest names."""
        try:
            return self.tasks[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.tasks, 3, 0.5)
            raise UnknownTask(
                f"no task {name!r} is registered in {self.name}; "
                + (f"did you mean {' or '.join(map(repr, near))}?" if near else "is its module imported?")
            ) from None

    # -- enqueueing ------------------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[Any]:
        """Enqueue a call by name, without the code of the task; options as for `Task.apply_async`.

        A registered name is checked like any other call. Raises what `Task.apply_async` raises.
        """
        if name in self.tasks:
            return self.tasks[name].apply_async(args, kwargs, connection=connection, **options)
        return self.enqueue(self._named_job(name, args, kwargs, options), connection)

    async def asend_task(
        self,
        name: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[Any]:
        """Enqueue a call by name as `send_task` does, without blocking the event loop."""
        if name in self.tasks:
            return await self.tasks[name].aapply_async(args, kwargs, connection=connection, **options)
        return await self.aenqueue(self._named_job(name, args, kwargs, options), connection)

    def enqueue_many(self, calls: Iterable[Signature[R]], *, connection: object = None) -> list[Handle[R]]:
        """Enqueue any number of calls in one statement: all of them or none.

        - `calls`: signatures, such as `add.s(2, 3)` or `add.s(2, 3).set(priority=9)`.
        - `connection`: as for `Task.apply_async`.

        Returns their handles in the same order. Every call is checked before anything is sent.

            app.enqueue_many(add.s(n, n) for n in range(10_000))
        """
        signatures = list(calls)
        jobs = [signature.job() for signature in signatures]
        return self._handles(signatures, self._enqueue(jobs, connection))

    async def aenqueue_many(self, calls: Iterable[Signature[R]], *, connection: object = None) -> list[Handle[R]]:
        """Enqueue any number of calls as `enqueue_many` does, without blocking the event loop."""
        signatures = list(calls)
        jobs = [signature.job() for signature in signatures]
        return self._handles(signatures, await self._aenqueue(jobs, connection))

    def enqueue(self, job: NewJob, connection: object = None, **handle: Any) -> Handle[Any]:
        """Enqueue one job that has been checked and encoded; `delay` and its kin end here."""
        (id_, created) = self._enqueue([job], connection)[0]
        return Handle(id_, self, created=created, **handle)

    async def aenqueue(self, job: NewJob, connection: object = None, **handle: Any) -> Handle[Any]:
        """Enqueue one job as `enqueue` does, without blocking the event loop."""
        (id_, created) = (await self._aenqueue([job], connection))[0]
        return Handle(id_, self, created=created, **handle)

    def AsyncResult(self, id: str) -> Handle[Any]:  # noqa: N802 - Celery's name
        """Return the handle on a job by its id; raises InvalidOption if it is no UUID."""
        return Handle(id, self)

    # -- the database ----------------------------------------------------------------------------------------

    @property
    def database(self) -> Database:
        """The connections of this app; raises SettingsError if no database is named anywhere."""
        if self._database is None:
            with self._lock:
                if self._database is None:
                    self._database = Database(
                        find_dsn(self._dsn),
                        Statements(self.settings.schema_name),
                        name=self.name,
                        pool_size=self.settings.pool_size,
                        connect_timeout=self.settings.connect_timeout,
                        statement_timeout=self.settings.statement_timeout,
                        pooler=self.settings.pooler,
                    )
        return self._database

    @property
    def listener(self) -> Listener:
        """The connection that listens for finished jobs while somebody waits for one."""
        database = self.database
        with self._lock:
            if self._listener is None:
                self._listener = Listener(database)
            return self._listener

    @property
    def default_queue(self) -> str:
        """Queue of tasks and calls that name none."""
        return self.settings.default_queue

    @property
    def max_payload_bytes(self) -> int:
        """Largest args, kwargs, headers or result of a job, in bytes of JSON."""
        return self.settings.max_payload_bytes

    def configure(self, *, dsn: str | None = None, schema: str | None = None) -> None:
        """Point the app at another database or schema: what the command line says wins over the code."""
        self.close()
        if dsn is not None:
            self._dsn = dsn
        if schema is not None:
            self.settings = load_settings({**self.settings.model_dump(), "schema_name": schema})
        self._database = self._listener = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction on a pooled connection, for business writes and enqueues that belong together.

        with app.transaction() as connection:
            connection.execute("insert into orders ...")
            settle.apply_async((order,), connection=connection)
        """
        with self.database.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def atransaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction as `transaction` does, on an async connection."""
        async with self.database.aconnection() as connection, connection.transaction():
            yield connection

    def close(self) -> None:
        """Close the connections that this app opened in threads; the next call opens them again."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._database is not None:
            self._database.close()

    async def aclose(self) -> None:
        """Close the connections that this app opened on the running event loop, and the others."""
        if self._database is not None:
            await self._database.aclose()
        self.close()

    def __repr__(self) -> str:
        return f"<PgQueue {self.name!r}: {len(self.tasks)} tasks>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _name_of(self, function: Callable[..., Any]) -> str:
        if not hasattr(function, "__qualname__"):  # functools.partial, an object with __call__
            raise InvalidOption(f"{function!r:.80} has no name of its own; say name=")
        module = self.name if function.__module__ == "__main__" else function.__module__
        return f"{module}.{function.__qualname__.replace('<locals>.', '')}"

    def _named_job(
        self,
        name: str,
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        options: Mapping[str, Any],
    ) -> NewJob:
        checked = call_options(options)
        return new_job(
            check_text("name", name, 255),
            args,
            kwargs or {},
            checked,
            queue=checked.queue or self.default_queue,
            priority=5 if checked.priority is None else checked.priority,
            limit=self.max_payload_bytes,
        )

    def _enqueue(self, jobs: Sequence[NewJob], connection: object) -> Sequence[tuple[str, bool]]:
        if not jobs:
            return []
        statements = self.database.statements
        if connection is not None:
            return enqueue_on(connection, statements.enqueue(jobs, durable=False))
        return self.database.run(statements.enqueue(jobs, durable=True), _once_more(statements, jobs))

    async def _aenqueue(self, jobs: Sequence[NewJob], connection: object) -> Sequence[tuple[str, bool]]:
        if not jobs:
            return []
        statements = self.database.statements
        if connection is not None:
            return await aenqueue_on(connection, statements.enqueue(jobs, durable=False))
        return await self.database.arun(statements.enqueue(jobs, durable=True), _once_more(statements, jobs))

    def _handles(self, signatures: Sequence[Signature[R]], rows: Sequence[tuple[str, bool]]) -> list[Handle[R]]:
        return [
            Handle(id_, self, created=created, **signature.task.handle(signature.options))
            for signature, (id_, created) in zip(signatures, rows, strict=True)
        ]


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _once_more(statements: Statements, jobs: Sequence[NewJob]) -> Statement[Enqueued]:
    """Return what to send after a lost connection: the first may have been committed, so the ids may be known."""
    return statements.enqueue([replace(job, known=True, resent=True) for job in jobs], durable=True)
