"""The app: settings, the registry of tasks, and the way of a job into the database."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta, tzinfo
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

from pgqueue.calling import NamedTask
from pgqueue.canvas import MAPS, Callee, Signature
from pgqueue.conf import Conf, import_object, read_envvar, read_object
from pgqueue.current import CURRENT
from pgqueue.database import Database, Listener
from pgqueue.decorators import (
    AsyncConnection,
    BoundDecorator,
    BoundTransactionalDecorator,
    Connection,
    PlainDecorator,
    TransactionalDecorator,
)
from pgqueue.eager import run_eagerly
from pgqueue.eager_plan import run_plan
from pgqueue.eager_result import EagerResult
from pgqueue.enqueueing import aenqueue, aenqueue_plan, enqueue, enqueue_calls, enqueue_plan, jobs_of
from pgqueue.errors import InvalidOption, SettingsError, UnknownTask
from pgqueue.group_result import GroupResults
from pgqueue.options import check_text, shown, task_options
from pgqueue.publishing import announce, told
from pgqueue.result import AsyncResult
from pgqueue.result_set import ResultSet
from pgqueue.routes import Router, annotate
from pgqueue.settings import Settings, find_dsn, load_settings
from pgqueue.shared import Shared
from pgqueue.sql import check_schema_name
from pgqueue.statements import Statements
from pgqueue.task import Task
from pgqueue.tracer import current_context, current_name
from pgqueue.types import NewJob
from pgqueue.workflow import Workflow

P = ParamSpec("P")
R = TypeVar("R")
Handle = AsyncResult
AnyTask = Task[..., Any, Any]

#: Defaults of tasks that are settings in Celery's words.
_DEFAULTS = {
    "priority": "task_default_priority",
    "rate_limit": "task_default_rate_limit",
    "ignore_result": "task_ignore_result",
    "store_errors_even_if_ignored": "task_store_errors_even_if_ignored",
    "acks_late": "task_acks_late",
    "acks_on_failure_or_timeout": "task_acks_on_failure_or_timeout",
    "acks_on_failure": "task_acks_on_failure",
    "acks_on_timeout": "task_acks_on_timeout",
    "reject_on_worker_lost": "task_reject_on_worker_lost",
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
}


#: How long results are kept that never expire: the database's clock cannot go back for ever.
_FOR_EVER = timedelta(days=36_525)


class Tasks(dict[str, AnyTask]):
    """The tasks of an app by name; asked for one that it has not, it says which is meant."""

    def __init__(self, app: str) -> None:
        super().__init__()
        self._app = app

    def __missing__(self, name: str) -> AnyTask:
        near = difflib.get_close_matches(name, self, 3, 0.5)
        raise UnknownTask(
            f"no task {name!r} is registered in {self._app}; "
            + (f"did you mean {' or '.join(map(repr, near))}?" if near else "is its module imported?")
        )


class PgQueue:
    """Tasks of one program and the database in which their jobs are.

    - `name`: name of the app; tasks defined in `__main__` are called after it.
    - `dsn`: libpq's connection string or URI; default PGQUEUE_DSN, DATABASE_URL, or PG* variables. Nothing is
      connected to before the first call that needs it.
    - `schema`: schema of the tables; default "pgqueue".
    - `include`: modules with tasks, imported by `load_tasks`, which every worker calls.
    - `task_cls`: class of the tasks that `app.task` makes; default `Task`.
    - `set_as_current`: whether tasks of `shared_task` belong to this app when they are called; default True: they do to
      the app that was made last.
    - further settings: see `Settings`. `conf` has those that Celery knows, under its names.

    Raises SettingsError for a setting that is wrong.

        app = PgQueue("shop", dsn="postgresql:///shop")

        @app.task
        def add(x: int, y: int) -> int:
            return x + y
    """

    def __init__(
        self,
        name: str,
        *,
        dsn: str | None = None,
        schema: str | None = None,
        include: Sequence[str] = (),
        task_cls: type[AnyTask] = Task,
        set_as_current: bool = True,
        **settings: Any,
    ) -> None:
        self.name = check_text("name", name, 100)
        self.settings: Settings = load_settings({"schema_name": schema, **settings})
        self.tasks = Tasks(self.name)
        self.task_cls = task_cls
        self.conf = Conf(self._configured)
        self._router = Router(None, import_object)
        self.has_routes = False
        # What the configuration says, in plain attributes: every call reads it.
        #: In which times without a time zone are meant: the setting `timezone`, else none.
        self.timezone: tzinfo | None = None
        #: Whether calls run where they are made, and raise what they fail with.
        self.always_eager = self.eager_propagates = False
        #: Whether calls that a task makes have its priority.
        self.inherits_priority = False
        #: Whether errbacks of a chord are for its header too.
        self.errbacks_of_headers = False
        #: Queue of tasks and calls that name none.
        self.default_queue = self.settings.default_queue
        self._only_known_queues = False
        self._settings = self.settings  # without what the configuration says
        self._to_import: list[Callable[[], Iterable[str]]] = [
            lambda: include,
            lambda: (*self.conf.get("imports", ()), *self.conf.get("include", ())),
        ]
        self._dsn = dsn
        self._lock = threading.Lock()  # over making the two below
        self._database: Database | None = None
        self._listener: Listener | None = None
        SHARED.join(self, current=set_as_current)

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
    def task(
        self, function: Callable[..., Any] | None = None, *, base: type[AnyTask] | None = None, **options: Any
    ) -> Any:
        """Make a task of a function or coroutine function; with or without options.

        - `base`: class of the task, a subclass of `Task` with hooks or options of its own.

        Options: see `TaskOptions`. Raises InvalidOption for an unknown one (naming what was probably meant), or
        for a name that another function has (the same function may be declared again, as notebooks do).

            @app.task(bind=True, autoretry_for=(OSError,), retry_backoff=2)
            def fetch(self, url: str) -> str: ...
        """
        kind = self.task_cls if base is None else base
        if not (isinstance(kind, type) and issubclass(kind, Task)):
            raise InvalidOption(f"base must be a subclass of Task, not {shown(kind)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # declare() warns
            task_options(options)

        def decorate(function: Callable[..., Any]) -> AnyTask:
            if not callable(function):
                raise InvalidOption(f"app.task makes a task of a function, not of {shown(function)}; its name is name=")
            return self._register(_made(kind), function, options)

        return decorate if function is None else decorate(function)

    def register_task(self, task: AnyTask | type[AnyTask]) -> AnyTask:
        """Make an instance of a subclass of `Task`, or the class, a task of this app; return the instance.

        Its name is the attribute `name`, else module and class.

            greet = app.register_task(Greet())
        """
        found = _made(task) if isinstance(task, type) else task
        if not isinstance(found, Task):
            raise InvalidOption(f"register_task() takes an instance of a subclass of Task, not {shown(task)}")
        return self._register(found, None, {})

    @property
    def Task(self) -> type[AnyTask]:  # noqa: N802 - Celery's name
        """The class of tasks, to be subclassed."""
        return self.task_cls

    def task_named(self, name: str) -> AnyTask:
        """Return a registered task, with the modules imported that were named; raises UnknownTask."""
        if name not in self.tasks:
            self.load_tasks()
        return self.tasks[name]

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the name of a task that has none of its own; override it for another rule."""
        return f"{self.name if module == '__main__' else module}.{name}"

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Have `load_tasks` import the module `related_name` of packages, where there is one.

        - `packages`: names, or a function that returns them; default Django's installed apps.
        - `related_name`: name of the module, default "tasks"; None: the package itself.
        - `force`: import them now.
        """
        if isinstance(packages, str):
            raise InvalidOption(f"autodiscover_tasks takes a list of packages: [{packages!r}]")

        def modules() -> Iterator[str]:
            for package in _django_apps() if packages is None else packages() if callable(packages) else packages:
                name = f"{package}.{related_name}" if related_name else package
                if related_name is None or _is_there(package, name):
                    yield name

        self._to_import.append(modules)
        if force:
            self.load_tasks()

    def load_tasks(self) -> None:
        """Import the modules of `include`, of the settings `imports` and `include`, and of `autodiscover_tasks`.

        Workers, the command line and a call by name do it; until then they may import the app themselves.
        """
        for name, function in MAPS.items():
            if name not in self.tasks:
                self._register(Task(), function, {"name": name, "bind": True})
        for modules in list(self._to_import):
            for name in modules():
                importlib.import_module(name)

    @property
    def current_task(self) -> AnyTask | None:
        """The task whose function runs now, as a job or called directly; None outside of one."""
        name = current_name()
        return None if name is None else self.tasks.get(name)

    @property
    def current_worker_task(self) -> AnyTask | None:
        """The task of the job that runs now, whatever it calls directly; None outside of one."""
        around = current_context()
        return None if around is None or around.task is None else self.tasks.get(around.task)

    def set_current(self) -> None:
        """Have tasks of `shared_task` belong to this app when they are called."""
        SHARED.use(self)

    # -- configuration ---------------------------------------------------------------------------------------

    def config_from_object(
        self, obj: object, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Read settings, under Celery's names, from a module, a class, an object, a mapping, or the dotted name of one.

        - `silent`: do nothing if the named module does not exist.
        - `namespace`: read NAMESPACE_X as x: with "CELERY", CELERY_TASK_ACKS_LATE is task_acks_late.
        - `force`: taken; it is always read at once.

        Raises SettingsError, naming the setting; nothing changes then.

            app.config_from_object("django.conf:settings", namespace="CELERY")
        """
        try:
            found = read_object(obj, namespace or "")
        except SettingsError as error:
            if silent and isinstance(error.__cause__, ImportError):
                return
            raise
        self.conf.update(found)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> None:
        """Read settings from the module that a variable of the environment names; see `config_from_object`."""
        try:
            found = read_envvar(variable_name)
        except SettingsError:
            if silent:
                return
            raise
        self.conf.update(found)

    def _configured(self) -> None:
        """Take over what `conf` says now."""
        conf, settings = self.conf, self._settings
        router = Router(conf.get("task_routes"), import_object)
        if "result_expires" in conf:
            expires = _FOR_EVER if conf["result_expires"] is None else conf["result_expires"]
            settings = settings.model_copy(update={"result_expires": expires})
        tasks = [(task, task.resolve()) for task in list(self.tasks.values())]
        # Everything has been checked; from here on nothing fails.
        self._router, self.settings = router, settings
        self.has_routes = bool(router)
        self.timezone = conf.get("timezone")
        self.always_eager = bool(conf.get("task_always_eager"))
        self.eager_propagates = bool(conf.get("task_eager_propagates"))
        self.inherits_priority = bool(conf.get("task_inherit_parent_priority"))
        self.errbacks_of_headers = bool(conf.get("task_allow_error_cb_on_chord_header"))
        named = "task_default_queue" in conf  # else `conf` gives a default of its own
        self.default_queue = conf["task_default_queue"] if named else settings.default_queue
        self._only_known_queues = not conf.get("task_create_missing_queues", True)
        for task, (options, attributes) in tasks:
            task.apply_options(options, attributes)

    def defaults(self, task: str) -> dict[str, Any]:
        """Return what the configuration says about all tasks."""
        conf = self.conf
        return {option: conf[setting] for option, setting in _DEFAULTS.items() if setting in conf}

    def annotations(self, task: str) -> Iterator[dict[str, Any]]:
        """Yield what the configuration changes of a task."""
        found = None if task.startswith("pgqueue.") else self.conf.get("task_annotations")
        return iter(()) if not found else annotate(found, task, self.tasks.get(task))

    def route(
        self, task: str, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any], found: object
    ) -> Mapping[str, Any]:
        """Return what `task_routes` says about a call."""
        return self._router.route(task, args, kwargs, options, found) if self._router else {}

    def check_queue(self, queue: str) -> str:
        """Return the name of a queue; raises InvalidOption if the configuration has a list and it is not on it."""
        if self._only_known_queues and queue not in self.queues:
            raise InvalidOption(f"queue {queue!r} is not in task_queues: {', '.join(self.queues)}")
        return queue

    @property
    def queues(self) -> tuple[str, ...]:
        """What a worker serves that is not told: the setting `task_queues`, else the default queue alone."""
        return self.conf.get("task_queues") or (self.default_queue,)

    @property
    def max_requeues(self) -> int:
        """How often `Reject(requeue=True)` hands a job back."""
        return self.settings.max_requeues

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
        return self._named(name).apply_async(args, kwargs, connection=connection, **options)

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
        return await self._named(name).aapply_async(args, kwargs, connection=connection, **options)

    def signature(
        self,
        name: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature[Any]:
        """Return a call by name as a value, without the code of the task; options as for `Task.apply_async`."""
        given = cast("tuple[Any, ...]", () if args is None else args)
        call = Signature[Any](self._named(name), given, {} if kwargs is None else kwargs, immutable=immutable)
        return call.set(**options)

    subtask = signature

    def enqueue_many(self, calls: Iterable[Signature[R]], *, connection: object = None) -> list[Handle[R]]:
        """Enqueue any number of calls in one transaction: all of them or none.

        - `calls`: signatures, such as `add.s(2, 3)` or `add.s(2, 3).set(priority=9)`.
        - `connection`: as for `Task.apply_async`.

        Returns their handles in the same order. If one of them is refused, nothing is enqueued.

            app.enqueue_many(add.s(n, n) for n in range(10_000))
        """
        if self.always_eager:
            return self._applied(calls)
        if connection is None:
            return enqueue_calls(self, calls)
        jobs, knows = jobs_of(calls)
        return enqueue(self, jobs, knows, connection)

    async def aenqueue_many(self, calls: Iterable[Signature[R]], *, connection: object = None) -> list[Handle[R]]:
        """Enqueue any number of calls as `enqueue_many` does, without blocking the event loop."""
        if self.always_eager:
            return self._applied(calls)
        jobs, knows = jobs_of(calls)
        return await aenqueue(self, jobs, knows, connection)

    def workflow(self) -> Workflow:
        """Return a workflow without a step: calls with names, each after others (see `Workflow.step`).

        flow = app.workflow()
        fetch = flow.step("fetch", download.s(url))
        flow.step("resize", resize.s(100), after=fetch)
        flow.apply_async()
        """
        return Workflow(self)

    def enqueue(self, job: NewJob, connection: object = None, **handle: Any) -> Handle[Any]:
        """Enqueue one job that has been checked and encoded; `delay` and its kin end here."""
        return enqueue(self, [job], [handle], connection)[0]

    async def aenqueue(self, job: NewJob, connection: object = None, **handle: Any) -> Handle[Any]:
        """Enqueue one job as `enqueue` does, without blocking the event loop."""
        return (await aenqueue(self, [job], [handle], connection))[0]

    def enqueue_plan(self, plan: Sequence[NewJob], connection: object = None) -> None:
        """Create a workflow that has been checked and encoded; canvases end here."""
        plan = announce(plan)
        enqueue_plan(self, plan, connection)
        told(plan, (Handle(job.id, self) for job in plan))

    async def aenqueue_plan(self, plan: Sequence[NewJob], connection: object = None) -> None:
        """Create a workflow as `enqueue_plan` does, without blocking the event loop."""
        plan = announce(plan)
        await aenqueue_plan(self, plan, connection)
        told(plan, (Handle(job.id, self) for job in plan))

    def run_plan(self, plan: Sequence[NewJob]) -> dict[str, EagerResult[Any]]:
        """Run a workflow here and now; eager canvases end here. Raises UnknownTask."""
        return run_plan(self, plan)

    def run_job(self, job: NewJob, throw: bool = False) -> EagerResult[Any]:
        """Run a job here and now; eager runs continue with it. Raises UnknownTask."""
        task = self.task_named(job.task)
        return run_eagerly(self, task, job, throw=throw, load=task.arguments.load_result)

    def AsyncResult(self, id: str) -> Handle[Any]:  # noqa: N802 - Celery's name
        """Return the handle on a job by its id; raises InvalidOption if it is no UUID."""
        return Handle(id, self)

    @property
    def GroupResult(self) -> GroupResults:  # noqa: N802 - Celery's name
        """Makes handles on groups, and restores those that were saved: `app.GroupResult.restore(id)`."""
        return GroupResults(self)

    def ResultSet(self, results: Iterable[Handle[Any]] = ()) -> ResultSet[Any]:  # noqa: N802 - Celery's name
        """Return several handles as one."""
        return ResultSet(list(results), self)

    # -- the database ----------------------------------------------------------------------------------------

    @property
    def database(self) -> Database:
        """The connections of this app; raises SettingsError if no database is named anywhere."""
        if self._database is None:
            with self._lock:
                if self._database is None:
                    self._database = Database(
                        find_dsn(self._dsn or self.conf.get("broker_url")),
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
    def max_payload_bytes(self) -> int:
        """Largest args, kwargs, headers or result of a job, in bytes of JSON."""
        return self.settings.max_payload_bytes

    def configure(self, *, dsn: str | None = None, schema: str | None = None) -> None:
        """Point the app at another database or schema: what the command line says wins over the code."""
        self.close()
        if dsn is not None:
            self._dsn = dsn
        if schema is not None:
            changed = {"schema_name": check_schema_name(schema)}
            self._settings = self._settings.model_copy(update=changed)
            self.settings = self.settings.model_copy(update=changed)
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

    async def close_loop(self) -> None:
        """Close the connections that belong to the running event loop, if there are any."""
        if self._database is not None:
            await self._database.aclose()

    async def aclose(self) -> None:
        """Close the connections that this app opened on the running event loop, and the others."""
        if self._database is not None:
            await self._database.aclose()
        self.close()

    def __repr__(self) -> str:
        return f"<PgQueue {self.name!r}: {len(self.tasks)} tasks>"

    # -- inside ----------------------------------------------------------------------------------------------

    def adopt(self, task: AnyTask, function: Callable[..., Any], options: Mapping[str, Any]) -> AnyTask:
        """Make a shared task one of this app's."""
        return self._register(task, function, options)

    def _register(self, task: AnyTask, function: Callable[..., Any] | None, options: Mapping[str, Any]) -> AnyTask:
        place = type(task) if function is None else function
        given = options.get("name")
        if given is None:
            given = getattr(type(task), "name", None)
        name = check_text("name", self._name_of(place) if given is None else given, 255)
        known = self.tasks.get(name)
        if known is not None and _place_of(known) != _place(place):
            raise InvalidOption(f"task {name!r} is declared twice, by {_place_of(known)} and {_place(place)}")
        if options.get("rate_limit") is not None:
            warnings.warn(f"task {name!r}: rate_limit is not kept yet", stacklevel=4)
        task.declare(self, name, function, options)
        self.tasks[name] = task
        return task

    def _name_of(self, place: Any) -> str:
        if not hasattr(place, "__qualname__"):  # functools.partial, an object with __call__
            raise InvalidOption(f"{shown(place)} has no name of its own; say name=")
        return self.gen_task_name(place.__qualname__.replace("<locals>.", ""), place.__module__)

    def callee(self, name: str) -> Callee:
        """Return the task of a name, or if it is not registered what can be called by it."""
        return self._named(name)

    def _named(self, name: str) -> AnyTask | NamedTask:
        return self.tasks[name] if name in self.tasks else NamedTask(self, name)

    def _applied(self, calls: Iterable[Signature[R]]) -> list[Handle[R]]:
        signatures = list(calls)
        for signature in signatures:
            signature.job()  # all are checked before the first is run
        return [signature.apply() for signature in signatures]


def _made(kind: type[AnyTask]) -> AnyTask:
    try:
        return kind()
    except TypeError as error:
        raise InvalidOption(f"{kind.__qualname__} cannot be made without arguments, as tasks are: {error}") from error


def _place(function: Any) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _place_of(task: AnyTask) -> str:
    return _place(type(task) if task.function is None else task.function)


def _django_apps() -> list[str]:
    """Return the names of Django's installed apps; raises InvalidOption where there is no Django."""
    apps: Any = sys.modules.get("django.apps")
    if apps is None:
        raise InvalidOption(
            "autodiscover_tasks() without packages takes Django's installed apps, and there is no Django"
        )
    return [config.name for config in apps.apps.get_app_configs()]


def _is_there(package: str, module: str) -> bool:
    """Return whether a module exists; the package itself must be importable."""
    importlib.import_module(package)
    return importlib.util.find_spec(module) is not None


#: The tasks of `shared_task`: of the whole program, as `logging` has loggers.
SHARED = Shared(lambda: PgQueue("default", set_as_current=False), CURRENT)


@overload
def shared_task(function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R, R]: ...
@overload
def shared_task(
    *, bind: Literal[True], transactional: Literal[True], **options: Any
) -> BoundTransactionalDecorator: ...
@overload
def shared_task(*, bind: Literal[True], transactional: Literal[False] = ..., **options: Any) -> BoundDecorator: ...
@overload
def shared_task(
    *, transactional: Literal[True], bind: Literal[False] = ..., **options: Any
) -> TransactionalDecorator: ...
@overload
def shared_task(**options: Any) -> PlainDecorator: ...
def shared_task(
    function: Callable[..., Any] | None = None, *, base: type[AnyTask] | None = None, **options: Any
) -> Any:
    """Make a task of a function without an app, for modules that do not know it; options as for `PgQueue.task`.

    Every app has it; calls of it go to the app that was made last, or has said `set_current()`.

        @shared_task
        def resize(image: str) -> None: ...
    """

    def decorate(function: Callable[..., Any]) -> AnyTask:
        if not callable(function):
            raise InvalidOption(f"shared_task makes a task of a function, not of {shown(function)}; its name is name=")
        return SHARED.add(_made(Task if base is None else base), function, options)

    return decorate if function is None else decorate(function)
