"""The options of a task and of one call, checked where they are given."""

from __future__ import annotations

import difflib
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
    - `ignore_result`: keep no result row.
    - `time_limit`, `soft_time_limit`: seconds that an attempt may run; see `TaskOptions`.
    """

    countdown: float | timedelta | None = None
    eta: datetime | None = None
    expires: float | timedelta | datetime | None = None
    queue: str | None = None
    priority: int | None = None
    task_id: str | None = None
    unique_key: str | None = None
    headers: Mapping[str, object] | None = None
    ignore_result: bool | None = None
    time_limit: float | timedelta | None = None
    soft_time_limit: float | timedelta | None = None

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
            given: object = self.task_id
            if not isinstance(given, str | UUID):
                raise InvalidOption(f"task_id={shown(given)} is not a UUID; leave it out to have one made")
            object.__setattr__(self, "task_id", check_id(self.task_id))
        if self.headers is not None and not isinstance(self.headers, Mapping):
            raise InvalidOption(f"headers must be a mapping, not {type(self.headers).__name__}")
        if self.ignore_result is not None and not isinstance(self.ignore_result, bool):
            raise InvalidOption(f"ignore_result must be True or False, not {shown(self.ignore_result)}")
        check_time_limits(self.time_limit, self.soft_time_limit)


CALL_OPTIONS = tuple(CallOptions.__slots__)


def call_options(options: Mapping[str, object]) -> CallOptions:
    """Return the options of a call, checked; raises InvalidOption naming an unknown one and what was meant."""
    check_names("option", options, (*CALL_OPTIONS, "connection"))
    return CallOptions(**options)  # type: ignore[arg-type]


def check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidOption for the first name that is not known, with the nearest one that is."""
    choices = sorted(known)
    for name in given:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, 1)
            raise InvalidOption(
                f"unknown {kind} {name!r}; "
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
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidOption(f"{option}={value.isoformat()} has no time zone; add one, such as tzinfo=timezone.utc")
    try:
        away = value.astimezone(UTC) - datetime.now(UTC)
    except OverflowError:
        away = timedelta.max
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
        if limit == 0:
            raise InvalidOption(f"{option} must be more than 0 seconds; leave it out for no limit")
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
    - `queue`, `priority`, `expires`, `ignore_result`: for calls that do not say it themselves.
    - `acks_late`: acknowledge when it has ended (default True: at least once), or with the claim (False: at most
      once; a lost worker then leaves a FAILURE).
    - `reject_on_worker_lost`: whether a job whose worker died waits again (default, up to `max_crashes` times) or ends
      as FAILURE at once (False).
    - `time_limit`: seconds after which an attempt ends as FAILURE and its process is replaced; default that of the
      worker. `soft_time_limit`: seconds after which SoftTimeLimitExceeded is raised in the task.
    - `acks_on_failure_or_timeout`: False has an attempt that met its `time_limit` repeated as if its worker had died,
      up to `max_crashes` times; a task that raises ends as FAILURE either way. Default True.
    - `max_retries`: repeats after the first run, None for no limit; default 3.
    - `default_retry_delay`: seconds before a retry where nothing else is said; default 180.
    - `autoretry_for`, `dont_autoretry_for`: exceptions that are, and are not, retried by themselves.
    - `retry_kwargs`: `max_retries` and `countdown` for automatic retries.
    - `retry_backoff`: seconds of the first wait, doubled each time (True: 1); `retry_backoff_max`: longest wait,
      default 600; `retry_jitter`: wait a random part of it, default True.
    - `typing`: check arguments where the call is made; default True.
    """

    name: str | None = None
    bind: bool = False
    transactional: bool = False
    queue: str | None = None
    priority: int = 5
    expires: float | timedelta | None = None
    ignore_result: bool = False
    acks_late: bool = True
    reject_on_worker_lost: bool = True
    acks_on_failure_or_timeout: bool = True
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

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_text("queue", self.queue, 100)
        if self.expires is not None:
            seconds("expires", self.expires)
        check_priority(self.priority)
        for option in ("default_retry_delay", "retry_backoff_max"):
            seconds(option, getattr(self, option))
        if not isinstance(self.retry_backoff, bool):
            seconds("retry_backoff", self.retry_backoff)
        check_time_limits(self.time_limit, self.soft_time_limit)
        for option in _FLAGS:
            if not isinstance(getattr(self, option), bool):
                raise InvalidOption(f"{option} must be True or False, not {shown(getattr(self, option))}")
        for option in ("autoretry_for", "dont_autoretry_for"):
            _check_exceptions(option, getattr(self, option))
        check_limit("max_retries", self.max_retries)
        if not isinstance(self.retry_kwargs, Mapping):
            raise InvalidOption(f"retry_kwargs must be a mapping, not {shown(self.retry_kwargs)}")
        check_names("key of retry_kwargs", self.retry_kwargs, ("max_retries", "countdown"))
        check_limit("max_retries of retry_kwargs", self.retry_kwargs.get("max_retries"))
        seconds("countdown of retry_kwargs", self.retry_kwargs.get("countdown", 0))

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
    "bind", "transactional", "ignore_result", "acks_late", "reject_on_worker_lost", "acks_on_failure_or_timeout",
    "retry_jitter", "typing",
)  # fmt: skip


def check_limit(option: str, value: object) -> None:
    """Raise InvalidOption unless a limit of retries is an integer from 0, or None for no limit."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidOption(f"{option} must be an integer from 0 or None for no limit, not {shown(value)}")


def _check_exceptions(option: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        raise InvalidOption(f"{option} must be a tuple of exception classes, such as (OSError,), not {shown(value)}")
