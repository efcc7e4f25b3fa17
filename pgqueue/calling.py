"""From a call to a job: what the caller said and what the configuration adds; and tasks known by their name alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, Protocol

from pgqueue.arguments import check_call
from pgqueue.canvas import continuations
from pgqueue.database import Database
from pgqueue.eager import EagerApp
from pgqueue.ids import new_id
from pgqueue.options import NO_OPTIONS, CallOptions, call_options, check_text, check_time_limits, seconds
from pgqueue.result import AsyncResult
from pgqueue.serialization import encode
from pgqueue.stamps import stamped
from pgqueue.tracer import current_context
from pgqueue.types import NewJob

Handle = AsyncResult

#: Priority of a call where nobody says one.
_PRIORITY = 5


class TaskApp(EagerApp, Protocol):
    """What a task needs of its app."""

    @property
    def name(self) -> str: ...
    @property
    def default_queue(self) -> str: ...
    @property
    def max_payload_bytes(self) -> int: ...
    @property
    def max_requeues(self) -> int: ...
    @property
    def timezone(self) -> tzinfo | None: ...
    @property
    def always_eager(self) -> bool: ...
    @property
    def eager_propagates(self) -> bool: ...
    @property
    def inherits_priority(self) -> bool: ...
    @property
    def database(self) -> Database: ...
    def defaults(self, task: str) -> Mapping[str, Any]: ...
    def annotations(self, task: str) -> Iterator[Mapping[str, Any]]: ...
    def route(
        self, task: str, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any], found: object
    ) -> Mapping[str, Any]: ...
    @property
    def has_routes(self) -> bool: ...
    def check_queue(self, queue: str) -> str: ...
    def enqueue(self, job: NewJob, connection: object, **handle: Any) -> Handle[Any]: ...
    async def aenqueue(self, job: NewJob, connection: object, **handle: Any) -> Handle[Any]: ...
    def AsyncResult(self, id: str) -> Handle[Any]: ...  # noqa: N802


def in_zone(value: object, zone: tzinfo) -> object:
    """Return a time without a zone as one of this zone, and anything else as it is."""
    return value.replace(tzinfo=zone) if isinstance(value, datetime) and value.tzinfo is None else value


def new_job(
    app: TaskApp,
    task: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: CallOptions,
    *,
    queue: str | None,
    priority: int | None,
) -> NewJob:
    """Return a job with a fresh id (unless one is given), whose parent is the job that runs now, if one does."""
    check_call(task, args, kwargs)
    around = current_context()
    limit = app.max_payload_bytes
    if priority is None:
        inherited = around.priority if around is not None and app.inherits_priority else None
        priority = _PRIORITY if inherited is None else inherited
    job = NewJob(
        options.task_id or new_id(),
        task,
        encode(list(args), path="args", limit=limit),
        encode(kwargs, path="kwargs", limit=limit) if kwargs else "{}",
        app.check_queue(queue or app.default_queue),
        priority,
    )
    if around is None and options is NO_OPTIONS:
        return job
    headers, expires = stamped(options.headers, options.stamps), options.expires
    hard, soft = check_time_limits(options.time_limit, options.soft_time_limit)
    rare: dict[str, object] = {}
    if options.shadow is not None:
        rare["shadow"] = options.shadow
    if options.add_to_parent is False or (around is not None and not around.keeps_trail):
        rare["trail"] = False
    return job._replace(
        known=options.task_id is not None,
        eta=options.eta,
        countdown=None if options.countdown is None else seconds("countdown", options.countdown),
        expires=expires if isinstance(expires, datetime) else None,
        expires_in=None if expires is None or isinstance(expires, datetime) else seconds("expires", expires),
        unique_key=options.unique_key,
        headers=None if headers is None else encode(dict(headers), path="headers", limit=limit),
        ignore_result=options.ignore_result,
        time_limit=hard,
        soft_time_limit=soft,
        root_id=options.root_id or (around.root_id if around else None),
        parent_id=options.parent_id or (around.id if around else None),
        links=continuations("link", options.link),
        errbacks=continuations("link_error", options.link_error),
        options=encode(rare, path="options") if rare else None,
    )


def like_job(like: NewJob, args: Sequence[object], kwargs: Mapping[str, object], limit: int) -> NewJob:
    """Return a job that differs from another in its id and its arguments alone."""
    text = encode(list(args), path="args", limit=limit)
    fields = (new_id(), like.task, text, encode(kwargs, path="kwargs", limit=limit) if kwargs else "{}", *like[4:])
    return tuple.__new__(NewJob, fields)  # as _make does, which is a call in Python more


def leaves_trail(job: NewJob) -> bool:
    """Return whether the job that makes a call is to list it among its children."""
    return job.options is None or '"trail":false' not in job.options


class NamedTask:
    """A task of which only the name is known here: what `app.send_task` and `app.signature` call."""

    def __init__(self, app: TaskApp, name: str) -> None:
        self.app = app
        self.name = check_text("name", name, 255)

    def apply_async(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[Any]:
        """Enqueue a call; see `Task.apply_async`."""
        return self.app.enqueue(self.job(args or (), kwargs or {}, options), connection, **self.handle(options))

    async def aapply_async(
        self,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> Handle[Any]:
        """Enqueue a call without blocking the event loop."""
        job = self.job(args or (), kwargs or {}, options)
        return await self.app.aenqueue(job, connection, **self.handle(options))

    def apply(
        self, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> Handle[Any]:
        """Run a call here and now; raises UnknownTask unless the task is registered by now."""
        return self.app.run_job(self.job(args, kwargs or {}, options))

    def job(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        options: Mapping[str, Any],
        *,
        awaits: bool = False,
    ) -> NewJob:
        """Return a call as a job; its arguments cannot be checked."""
        zone = self.app.timezone
        given = {name: value if zone is None else in_zone(value, zone) for name, value in options.items()}
        route = self.app.route(self.name, args, kwargs, given, None)
        if route:
            given = {**route, **{name: value for name, value in given.items() if value is not None}}
        checked = call_options(given)
        return new_job(self.app, self.name, args, kwargs, checked, queue=checked.queue, priority=checked.priority)

    def handle(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the handle of a call with these options needs to know."""
        return {"ignored": bool(options.get("ignore_result"))}

    def __repr__(self) -> str:
        return f"<NamedTask: {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedTask) and (self.app, self.name) == (other.app, other.name)

    def __hash__(self) -> int:
        return hash(self.name)
