"""The options of a task and of one call, checked where they are given."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pgqueue.errors import InvalidOption
from pgqueue.ids import check_id
from pgqueue.retry import RetryPolicy

#: Longest countdown and farthest eta: a hundred years, in seconds. A longer one is a mistake in the unit.
LONGEST = 100 * 366 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What may be said about one call; None leaves it to the task.

    - `countdown`: seconds (or a timedelta) to wait before the earliest start.
    - `eta`: earliest start, an aware datetime. Only one of the two may be given.
    - `expires`: latest start: seconds from now, a timedelta, or an aware datetime.
    - `queue`: name of the queue; `priority`: 0 to 9, 9 runs first.
    - `task_id`: id of the job, a UUID; an id that has succeeded is not run again.
    - `unique_key`: at most one unfinished job has it; the call returns that job's id.
    - `headers`: JSON-ready values for `self.request.headers`.
    - `stamps`: JSON-ready values for `self.request.stamps`; retries and replacements keep them, whatever their headers.
    - `ignore_result`: keep no result row.
    - `time_limit`, `soft_time_limit`: seconds that an attempt may run; see `TaskOptions`.
    - `link`, `link_error`: a signature, or a list of them, to be enqueued by the commit that stores the success (with
      the value as first argument) or the failure (with the id of the failed job).
    - `shadow`: another name of the task for logs.
    - `add_to_parent`: whether the handle of the task that makes the call lists it among its `children`; default True.
    - `root_id`, `parent_id`: ids for where a job came from; default those of the job that makes the call.
    - `serializer`: "json".
    - `retry`, `retry_policy`, `argsrepr`, `kwargsrepr`: taken, not used: an enqueue whose connection broke is always
      sent once more, and the database has the arguments themselves.
    """

    countdown: float | timedelta | None = None
    eta: datetime | None = None
    expires: float | timedelta | datetime | None = None
    queue: str | None = None
    priority: int | None = None
    task_id: str | None = None
    unique_key: str | None = None
    headers: Mapping[str, object] | None = None
    stamps: Mapping[str, object] | None = None
    ignore_result: bool | None = None
    time_limit: float | timedelta | None = None
    soft_time_limit: float | timedelta | None = None
    link: Any = None
    link_error: Any = None
    shadow: str | None = None
    add_to_parent: bool | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retry: bool | None = None
    retry_policy: Mapping[str, object] | None = None
    serializer: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None

    def __post_init__(self) -> None:
        if self.countdown is not None and self.eta is not None:
            raise InvalidOption("countdown and eta are both given; one of them says when the job may start")
        if self.countdown is not None:
            seconds("countdown", self.countdown)
        if self.eta is not None:
            check_time("eta", self.eta)
        if isinstance(self.expires, datetime):
            check_time("expires", self.expires)
        elif self.expires is not None:
            seconds("expires", self.expires)
        if self.queue is not None:
            check_text("queue", self.queue, 100)
        if self.priority is not None:
            check_priority(self.priority)
        if self.unique_key is not None:
            check_text("unique_key", self.unique_key, 500)
        if self.task_id is not None:
            object.__setattr__(self, "task_id", _uuid("task_id", self.task_id, "; leave it out to have one made"))
        for option in ("headers", "stamps"):
            value = getattr(self, option)
            if value is not None and not isinstance(value, Mapping):
                raise InvalidOption(f"{option} must be a mapping, not {type(value).__name__}")
        for option in ("ignore_result", "add_to_parent", "retry"):
            value = getattr(self, option)
            if value is not None and not isinstance(value, bool):
                raise InvalidOption(f"{option} must be True or False, not {shown(value)}")
        if self.shadow is not None:
            check_text("shadow", self.shadow, 255)
        for option in ("root_id", "parent_id"):
            if getattr(self, option) is not None:
                object.__setattr__(self, option, _uuid(option, getattr(self, option)))
        if (self.root_id is None) != (self.parent_id is None):
            raise InvalidOption("root_id and parent_id belong together; give both or neither")
        check_serializer(self.serializer)
        check_time_limits(self.time_limit, self.soft_time_limit)


def _uuid(option: str, value: object, cure: str = "") -> str:
    if not isinstance(value, str | UUID):
        raise InvalidOption(f"{option}={shown(value)} is not a UUID{cure}")
    return check_id(str(value), option)


CALL_OPTIONS = tuple(CallOptions.__slots__)

_QUEUES_ONLY = "there are only queues here; name one with queue="
#: Options of Celery's that would change what happens if they were ignored, and the cure.
REFUSED_CALL_OPTIONS: Mapping[str, str] = {
    "exchange": _QUEUES_ONLY,
    "routing_key": _QUEUES_ONLY,
    "exchange_type": _QUEUES_ONLY,
    "reply_to": "results are rows that anybody may read; use the handle, or AsyncResult(id)",
    "producer": "there is no broker; pass connection= to enqueue in a transaction of yours",
    "publisher": "there is no broker; pass connection= to enqueue in a transaction of yours",
    "chord": "canvas sets it, not a call",
    "chain": "canvas sets it, not a call",
    "group_id": "canvas sets it, not a call",
    "group_index": "canvas sets it, not a call",
    "replaced_task_nesting": "self.replace counts it",
    "stamped_headers": 'stamp the signature, add.s(2, 3).stamp(customer=7), or pass stamps={"customer": 7}',
}
#: Options of Celery's that can be left out: taken with a warning.
WARNED_CALL_OPTIONS: Mapping[str, str] = {
    "compression": "PostgreSQL compresses large values itself",
    "delivery_mode": "every job is durable",
    "mandatory": "a job waits in its queue until a worker takes it",
    "immediate": "a job waits in its queue until a worker takes it",
}


def call_options(options: Mapping[str, object]) -> CallOptions:
    """Return the options of a call, checked; raises InvalidOption naming an unknown one and what was meant."""
    if not options:
        return NO_OPTIONS
    known = without_celerys("option", options, REFUSED_CALL_OPTIONS, WARNED_CALL_OPTIONS)
    check_names("option", known, (*CALL_OPTIONS, "connection"))
    return CallOptions(**known)


def without_celerys(
    kind: str, options: Mapping[str, Any], refused: Mapping[str, str], warned: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return options without those of Celery's that mean nothing here, after a UserWarning that names each.

    Raises InvalidOption for those that would change what happens if they were ignored. An option that is None was not
    given.
    """
    if refused.keys().isdisjoint(options) and warned.keys().isdisjoint(options):
        return options
    kept = {}
    for name, value in options.items():
        if name in refused and value is not None:
            raise InvalidOption(f"{kind} {name!r} has no meaning on PostgreSQL: {refused[name]}")
        if name in warned and value is not None:
            warnings.warn(f"{kind} {name!r} has no meaning on PostgreSQL: {warned[name]}", stacklevel=5)
        if name not in refused and name not in warned:
            kept[name] = value
    return kept


def check_serializer(value: object) -> None:
    """Raise InvalidOption unless a serializer is JSON, or None for the same."""
    if value is None or (isinstance(value, str) and value in ("json", "application/json")):
        return
    why = "it runs whatever code the text names" if value == "pickle" else "args and results are columns of type json"
    raise InvalidOption(f"serializer={shown(value)} is not offered: {why}; only 'json' is, dates and decimals included")


_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/([smh]))?")


def check_rate(value: object) -> None:
    """Raise InvalidOption unless a rate limit is a number of jobs a second, or a text such as '10/m'; None for none."""
    if value is None or (not isinstance(value, bool) and isinstance(value, int | float) and value >= 0):
        return
    if not isinstance(value, str) or _RATE.fullmatch(value) is None:
        raise InvalidOption(
            f"rate_limit must be a number of jobs a second or a text such as '10/m', not {shown(value)}"
        )


def check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidOption for the first name that is not known, with the nearest one that is."""
    choices = sorted(known)
    for name in given:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, 1) if isinstance(name, str) else []
            raise InvalidOption(
                f"unknown {kind} {shown(name)}; "
                + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(choices)}")
            )


def shown(value: object) -> str:
    """Return a value as an error message shows it; never raises (the repr of a huge integer does)."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"<{type(value).__name__}>"


def check_text(option: str, value: object, longest: int) -> str:
    """Return a name that PostgreSQL can store: a text of 1 to `longest` characters without NUL."""
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise InvalidOption(f"{option} must be a text of 1 to {longest} characters, not {shown(value)}")
    if "\0" in value or (not value.isascii() and value.encode("utf-8", "replace").decode() != value):
        raise InvalidOption(f"{option}={shown(value)} has a character that PostgreSQL cannot store")
    return value


def check_priority(value: object) -> int:
    """Return a priority; raises InvalidOption unless it is an integer from 0 to 9."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise InvalidOption(f"priority must be an integer from 0 to 9 (9 runs first), not {shown(value)}")
    return value


def check_time(option: str, value: object) -> datetime:
    """Return a point in time; raises InvalidOption unless it is an aware datetime of the next hundred years."""
    if not isinstance(value, datetime):
        raise InvalidOption(f"{option} must be a datetime, not {shown(value)}")
    try:
        offset = value.utcoffset()
        away = value.astimezone(UTC) - datetime.now(UTC) if offset is not None else timedelta(0)
    except OverflowError:
        away = timedelta.max
    except Exception as error:  # the code of its time zone
        raise InvalidOption(f"{option} has a time zone that does not know it: {shown(error)}") from error
    if offset is None:
        raise InvalidOption(f"{option}={value.isoformat()} has no time zone; add one, such as tzinfo=timezone.utc")
    if away.total_seconds() > LONGEST:
        raise InvalidOption(f"{option}={value.isoformat()} is more than a hundred years away")
    return value


def seconds(option: str, value: object) -> float:
    """Return a duration in seconds; raises InvalidOption unless it is finite, not negative and below 100 years."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST  # NaN is in no range
    ):
        raise InvalidOption(f"{option} must be seconds from 0 to a hundred years (or a timedelta), not {shown(value)}")
    return float(value)


def check_time_limits(hard: object, soft: object) -> tuple[float | None, float | None]:
    """Return the hard and the soft time limit of an attempt in seconds; raises InvalidOption if they make no sense."""
    limits = []
    for option, value in (("time_limit", hard), ("soft_time_limit", soft)):
        limit = None if value is None else seconds(option, value)
        if limit is not None and limit < 0.001:  # PostgreSQL's real has no 1e-50, and nobody means a microsecond
            raise InvalidOption(f"{option} must be at least 0.001 seconds; leave it out for no limit")
        limits.append(limit)
    if limits[0] is not None and limits[1] is not None and limits[1] >= limits[0]:
        raise InvalidOption(
            f"soft_time_limit={limits[1]:g} must be less than time_limit={limits[0]:g}: it warns of the end"
        )
    return limits[0], limits[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What may be said about a task where it is declared; the names and meanings are Celery's.

    - `name`: default module.function; rows carry it, so it must not change while jobs wait.
    - `bind`: pass the task as first argument, for `self.retry()` and `self.request`.
    - `transactional`: run the body in the transaction of its acknowledgement, and pass the connection first.
    - `queue`, `priority`, `expires`, `ignore_result`: for calls that do not say it themselves; default the queue
      "default", priority 5, never, False.
    - `acks_late`: acknowledge when it has ended (default True: at least once), or with the claim (False: at most
      once; a lost worker then leaves a FAILURE).
    - `reject_on_worker_lost`: whether a job whose worker died waits again (default, up to `max_crashes` times) or ends
      as FAILURE at once (False).
    - `store_errors_even_if_ignored`: keep the result row of a failure although results are ignored; default False. That
      of a lost worker or a hard time limit is kept in any case.
    - `time_limit`: seconds after which an attempt ends as FAILURE and its process is replaced; default that of the
      worker. `soft_time_limit`: seconds after which SoftTimeLimitExceeded is raised in the task.
    - `acks_on_failure_or_timeout`: the default of the next two; default True.
    - `acks_on_timeout`: False has an attempt that met its `time_limit` repeated as if its worker had died, up to
      `max_crashes` times.
    - `acks_on_failure`: False keeps the result row of a failure although results are ignored: with its arguments and
      its error it is what others call a dead letter. A task that raises ends as FAILURE either way.
    - `max_retries`: repeats after the first run, None for no limit; default 3.
    - `default_retry_delay`: seconds before a retry where nothing else is said; default 180.
    - `autoretry_for`, `dont_autoretry_for`: exceptions that are, and are not, retried by themselves.
    - `retry_kwargs`: `max_retries` and `countdown` for automatic retries.
    - `retry_backoff`: seconds of the first wait, doubled each time (True: 1); `retry_backoff_max`: longest wait,
      default 600; `retry_jitter`: wait a random part of it, default True.
    - `typing`: check arguments where the call is made; default True. `pydantic`: convert them to what the annotations
      say, in the worker too; default True, False checks their number and names alone.
    - `throws`: exceptions that are no surprise: logged without traceback, as information.
    - `trail`: whether handles list the jobs that this task enqueues as `children`; default True.
    - `rate_limit`: checked, but not kept yet.
    - `track_started`, `send_events`: accepted; the database always knows what has started.
    - `serializer`: "json".
    """

    name: str | None = None
    bind: bool = False
    transactional: bool = False
    queue: str | None = None
    priority: int | None = None
    expires: float | timedelta | None = None
    ignore_result: bool = False
    store_errors_even_if_ignored: bool = False
    acks_late: bool = True
    reject_on_worker_lost: bool = True
    acks_on_failure_or_timeout: bool = True
    acks_on_failure: bool | None = None
    acks_on_timeout: bool | None = None
    time_limit: float | timedelta | None = None
    soft_time_limit: float | timedelta | None = None
    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    autoretry_for: Sequence[type[BaseException]] = ()
    dont_autoretry_for: Sequence[type[BaseException]] = ()
    retry_kwargs: Mapping[str, Any] = field(default_factory=dict)
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    typing: bool = True
    pydantic: bool = True
    throws: Sequence[type[BaseException]] = ()
    trail: bool = True
    rate_limit: str | float | None = None
    track_started: bool = False
    send_events: bool = True
    serializer: str | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_text("queue", self.queue, 100)
        if self.expires is not None:
            seconds("expires", self.expires)
        if self.priority is not None:
            check_priority(self.priority)
        for option in ("default_retry_delay", "retry_backoff_max"):
            seconds(option, getattr(self, option))
        if not isinstance(self.retry_backoff, bool):
            seconds("retry_backoff", self.retry_backoff)
        check_time_limits(self.time_limit, self.soft_time_limit)
        for option in _FLAGS:
            if not isinstance(getattr(self, option), bool):
                raise InvalidOption(f"{option} must be True or False, not {shown(getattr(self, option))}")
        for option in ("acks_on_failure", "acks_on_timeout"):
            if not isinstance(getattr(self, option), bool | None):
                raise InvalidOption(f"{option} must be True or False, not {shown(getattr(self, option))}")
        check_serializer(self.serializer)
        check_rate(self.rate_limit)
        for option in ("autoretry_for", "dont_autoretry_for", "throws"):
            _check_exceptions(option, getattr(self, option))
        check_limit("max_retries", self.max_retries)
        if not isinstance(self.retry_kwargs, Mapping):
            raise InvalidOption(f"retry_kwargs must be a mapping, not {shown(self.retry_kwargs)}")
        check_names("key of retry_kwargs", self.retry_kwargs, ("max_retries", "countdown"))
        check_limit("max_retries of retry_kwargs", self.retry_kwargs.get("max_retries"))
        seconds("countdown of retry_kwargs", self.retry_kwargs.get("countdown", 0))

    @property
    def keeps_errors(self) -> bool:
        """Whether the result row of a failure is kept although results are ignored."""
        kept = self.acks_on_failure_or_timeout if self.acks_on_failure is None else self.acks_on_failure
        return self.store_errors_even_if_ignored or not kept

    @property
    def repeats_overdue(self) -> bool:
        """Whether an attempt that met its hard time limit is repeated."""
        acked = self.acks_on_failure_or_timeout if self.acks_on_timeout is None else self.acks_on_timeout
        return self.acks_late and not acked  # what is acknowledged with its claim has no second start

    def policy(self) -> RetryPolicy:
        """Return the retry policy that these options describe."""
        return RetryPolicy(
            autoretry_for=tuple(self.autoretry_for),
            dont_autoretry_for=tuple(self.dont_autoretry_for),
            max_retries=self.retry_kwargs.get("max_retries", self.max_retries),
            delay=seconds("countdown", self.retry_kwargs.get("countdown", self.default_retry_delay)),
            backoff=max(1.0, self._backoff()) if self.retry_backoff else 0.0,
            backoff_max=seconds("retry_backoff_max", self.retry_backoff_max),
            jitter=self.retry_jitter,
        )

    def _backoff(self) -> float:
        value = self.retry_backoff
        return float(value) if isinstance(value, bool) else seconds("retry_backoff", value)


TASK_OPTIONS = tuple(TaskOptions.__slots__)

_FLAGS = (
    "bind", "transactional", "ignore_result", "store_errors_even_if_ignored", "acks_late", "reject_on_worker_lost",
    "acks_on_failure_or_timeout", "retry_jitter", "typing", "pydantic", "trail", "track_started", "send_events",
)  # fmt: skip

#: Options of Celery's that would change what happens if they were ignored, and the cure.
REFUSED_TASK_OPTIONS: Mapping[str, str] = {
    "exchange": _QUEUES_ONLY,
    "routing_key": _QUEUES_ONLY,
    "backend": "results are rows of the same database; a database is chosen for the whole app",
    "Strategy": "the worker has no such place for code of yours; see before_start and the signals",
    "Request": "the worker has no such place for code of yours; see the hooks of Task and the signals",
    "pydantic_context": "validate with the context in the task",
    "pydantic_strict": "say it in the annotation: Annotated[int, Strict()]",
    "pydantic_dump_kwargs": "return model.model_dump(...) from the task",
    "store_eager_result": "an eager run stores nothing",
}
#: Options of Celery's that can be left out: taken with a warning.
WARNED_TASK_OPTIONS: Mapping[str, str] = {
    "compression": "PostgreSQL compresses large values itself",
    "resultrepr_maxsize": "results are not written into logs",
    "delivery_mode": "every job is durable",
    "lazy": "a task is registered where it is declared",
    "shared": "app.task belongs to its app; shared_task to every app",
}


def task_options(options: Mapping[str, Any]) -> TaskOptions:
    """Return the options of a task, checked; raises InvalidOption naming an unknown one and what was meant."""
    known = without_celerys("task option", options, REFUSED_TASK_OPTIONS, WARNED_TASK_OPTIONS)
    check_names("task option", known, TASK_OPTIONS)
    return TaskOptions(**known)


def check_limit(option: str, value: object) -> None:
    """Raise InvalidOption unless a limit of retries is an integer from 0, or None for no limit."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidOption(f"{option} must be an integer from 0 or None for no limit, not {shown(value)}")


def _check_exceptions(option: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        raise InvalidOption(f"{option} must be a tuple of exception classes, such as (OSError,), not {shown(value)}")


NO_OPTIONS = CallOptions()
