"""The options of one call, checked where they are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pgqueue.errors import InvalidOption
from pgqueue.ids import check_id

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
