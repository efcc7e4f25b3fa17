"""The nouns that every part shares: states, a job to enqueue, a claim, the outcomes of an attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


class State(StrEnum):
    """Where a job is in its life; the first three are read from `job`, the next five from `result`."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    RETRY = "RETRY"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"
    REJECTED = "REJECTED"
    IGNORED = "IGNORED"
    #: Neither a job nor a result has this id: never enqueued, not committed yet, or forgotten.
    UNKNOWN = "UNKNOWN"


READY_STATES = frozenset({State.SUCCESS, State.FAILURE, State.REVOKED, State.REJECTED, State.IGNORED})


class NewJob(NamedTuple):
    """One call to be enqueued (a tuple: many are made at a time); `args`, `kwargs` and `headers` are JSON already.

    `eta` wins over `countdown` (seconds from the database's clock). `known` says that the id was chosen
    by the caller, so that a job or a result may have it already; `resent` that the answer to the same got lost.
    `links` and `errbacks` are JSON arrays of jobs to be enqueued when it succeeds or fails; as one of these, an
    `immutable` job is given no argument more. `options` is a JSON object of options that only Python reads.

    In a workflow, `steps` are the ids of what waits for it, `place` is its place among their members, `depth` how many
    headers of chords it stands in. One that `waits` for others (so many) is a step: it `takes` "nothing" from them, the
    "value" of the only one, or the "values" of all as a list.
    """

    id: str
    task: str
    args: str = "[]"
    kwargs: str = "{}"
    queue: str = "default"
    priority: int = 5
    eta: datetime | None = None
    countdown: float | None = None
    expires: datetime | None = None
    expires_in: float | None = None
    unique_key: str | None = None
    headers: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    ignore_result: bool | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    known: bool = False
    resent: bool = False
    links: str | None = None
    errbacks: str | None = None
    options: str | None = None
    immutable: bool = False
    steps: tuple[str, ...] = ()
    depth: int = 0
    waits: int = 0
    takes: str | None = None
    place: int = 0  # the last: members of one chord differ in it, and are alike in what stands before


#: The task of a step that is never run: its value is the list of the values of its members.
GATHER = ""


class Enqueued(NamedTuple):
    """What the database answers to one `NewJob`: its id, or that of the job or result already there."""

    id: str
    created: bool


class Claim(NamedTuple):
    """One job leased to a worker, as `claim` returns it (a tuple: hundreds are made at a time).

    `attempt`, with the id of the worker, is the fence. `expired` and `revoked` were decided by the
    database's clock when it was claimed; `succeeded` says that this id has a SUCCESS result already.
    """

    id: str
    task: str
    queue: str
    priority: int
    args: str
    kwargs: str
    attempt: int
    retries: int
    crashes: int
    eta: datetime
    enqueued_at: datetime
    expires: datetime | None
    expired: bool
    revoked: bool
    headers: str | None
    root_id: str | None
    parent_id: str | None
    ignore_result: bool | None
    succeeded: bool = False
    time_limit: float | None = None
    soft_time_limit: float | None = None
    links: str | None = None
    errbacks: str | None = None
    options: str | None = None
    requeues: int = 0


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """An exception as data: names, texts and JSON-safe arguments; `revive` makes an exception of it.

    `args` are data where they are small and JSON can say them, else texts that show them. `exceptions` are the
    members of an exception group. `traceback` shows causes and members too, which have none of their own.
    """

    type: str
    module: str
    message: str
    args: tuple[Json, ...] = ()
    notes: tuple[str, ...] = ()
    cause: ErrorReport | None = None
    traceback: str | None = None
    exceptions: tuple[ErrorReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned; `value` is the JSON text of what it returned."""

    value: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raised and will not be tried again.

    - `hooks`: it was found by another than the tracer, so the hooks of the task are still to be run, as a job.
    - `expected`: it is one of those that the task `throws`.
    """

    error: ErrorReport
    hooks: bool = False
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Retried:
    """The task asked to be run again, at `eta` or after `countdown` seconds of the database's clock.

    The others replace what the job has, where not None; `args`, `kwargs`, `headers`, `options` are JSON texts.
    """

    error: ErrorReport | None
    countdown: float = 0.0
    eta: datetime | None = None
    args: str | None = None
    kwargs: str | None = None
    queue: str | None = None
    priority: int | None = None
    expires: datetime | None = None
    headers: str | None = None
    options: str | None = None
    ignore_result: bool | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Replaced:
    """The task asked for another call in its place: under its id, with its continuations and these (JSON arrays).

    `plan` is a workflow instead, as a JSON array of jobs: the one with its id has its continuations; the others of
    these fields mean nothing then.
    """

    task: str
    args: str
    kwargs: str
    queue: str | None = None
    priority: int | None = None
    countdown: float = 0.0
    eta: datetime | None = None
    expires: datetime | None = None
    headers: str | None = None
    options: str | None = None
    links: str | None = None
    errbacks: str | None = None
    ignore_result: bool | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The task raised `Reject`: it ends as REJECTED, or goes back untried if `requeue`, but `most` times in all."""

    reason: str
    requeue: bool = False
    most: int = 100


@dataclass(frozen=True, slots=True)
class Ignored:
    """The task raised `Ignore`: it ends as IGNORED, a ready state without a value."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The attempt was refused before it started: `reason` is "expired" or "revoked"."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The job goes back untried, and no count of it changes; `delay` in seconds.

    - `crash`: what ended the attempt from outside; then one crash is counted.
    """

    delay: float = 0.0
    crash: ErrorReport | None = None


Outcome: TypeAlias = Succeeded | Failed | Retried | Replaced | Rejected | Ignored | Revoked | Released
