"""The ledger of a soak: what callers were told and what tasks did, written beside the database and held against it.

Producers and tasks append lines to local files, one write a line, so that nothing that happens to the database or to
a process can take a line back. `check` is a function of these lines and of the rows at the end.

    <seconds> invoke <job> <task> <plan>     before the call; plan: plain, commit or rollback
    <seconds> ok | fail | info <job>         its answer; info: the connection broke, the outcome is unknown
    <seconds> start | end <job> <attempt> <pid>     the body of a task

Seconds are those of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: What must be nobody's fate; each is an attribute of `Verdict`.
FATAL = ("lost", "unexpected", "doubled_effects", "zombie_writes", "stuck", "doubled_early")


class Pen:
    """Appends lines to a ledger; may be shared by processes and threads.

    - `durable`: reach the disk before `write` returns.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._durable = durable

    def write(self, *words: object) -> None:
        """Append one line that begins with the time."""
        os.write(self._file, (" ".join([f"{time.monotonic():.6f}", *map(str, words)]) + "\n").encode())
        if self._durable:
            os.fdatasync(self._file)


@dataclass(slots=True)
class Call:
    """One call of a producer and what it was told, in order; `plan`: see above."""

    task: str
    plan: str = "plain"
    answers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """One start of a task's body; `ended` None: it never came to its end."""

    job: str
    attempt: int
    pid: int
    started: float
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of `result`; `xid` is the transaction that inserted it, `reason` the type of its error."""

    state: str
    attempt: int
    retries: int = 0
    xid: int = 0
    worker: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """A row that a transactional task has written."""

    job: str
    attempt: int
    xid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The database at the end: results, ids still in `job`, effects, and ids of business rows."""

    results: Mapping[str, Stored]
    waiting: Collection[str] = ()
    effects: Collection[Effect] = ()
    business: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which tasks write effects, which are at most once, which fail on purpose; pids of worker ids where known."""

    transactional: Collection[str] = ()
    once: Collection[str] = ()
    failing: Collection[str] = ()
    pids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of the calls, as ids of jobs.

    - `recovered`: told info, and it had been committed.
    - `lost`: told ok, or begun, or committed with its business row, and it has neither a result nor a row in `job`.
    - `unexpected`: there although it was never invoked, or although its transaction was not committed.
    - `doubled_effects`: more than one effect, an effect without SUCCESS, or SUCCESS of a transactional task without.
    - `zombie_writes`: written by an attempt that was not the last one: see `_zombie`.
    - `stuck`: still in `job` after the drain, waiting or leased.
    - `doubled_early`: acks_late=False and begun more than once.
    - `doubled_executions`: starts beyond the first that no retry asked for. At least once allows them.
    - `refused`: attempts that came to their end after a later one had begun, and whose writes were refused: what
      stands behind a zero of `zombie_writes`.
    - `failures`: FAILURE results by the type of their error and the task.
    """

    attempted: int
    acknowledged: int
    recovered: int
    undone: int
    starts: int
    succeeded: int
    effects: int
    doubled_executions: int
    refused: int
    failures: dict[str, int]
    lost: frozenset[str]
    unexpected: frozenset[str]
    doubled_effects: frozenset[str]
    zombie_writes: frozenset[str]
    stuck: frozenset[str]
    doubled_early: frozenset[str]

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return not any(getattr(self, name) for name in FATAL)


def read_calls(paths: Iterable[Path]) -> dict[str, Call]:
    """Return the calls of the producers' ledgers by job."""
    calls: dict[str, Call] = {}
    for words in _lines(paths):
        match words:
            case [_, "invoke", job, task, plan]:
                calls.setdefault(job, Call(task, plan))
            case [_, answer, job]:
                calls[job].answers.append(answer)
    return calls


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the runs of the tasks' ledgers in the order of their starts."""
    runs: list[Run] = []
    unended: dict[tuple[str, str, str], list[Run]] = {}
    for when, kind, job, attempt, pid in sorted(_lines(paths), key=lambda words: float(words[0])):
        begun = unended.setdefault((job, attempt, pid), [])
        if kind == "start":
            runs.append(Run(job, int(attempt), int(pid), float(when)))
            begun.append(runs[-1])
        elif begun:
            begun.pop(0).ended = float(when)
    return runs


def _lines(paths: Iterable[Path]) -> Iterator[list[str]]:
    for path in paths:
        if path.exists():
            yield from (line.split() for line in path.read_text().splitlines())


def check(calls: Mapping[str, Call], runs: Iterable[Run], rows: Rows, rules: Rules) -> Verdict:
    """Hold the ledger against the rows at the end of a drained soak."""
    begun: dict[str, list[Run]] = {}
    for run in runs:
        begun.setdefault(run.job, []).append(run)
    written: dict[str, list[Effect]] = {}
    for effect in rows.effects:
        written.setdefault(effect.job, []).append(effect)
    results, waiting, business = rows.results, set(rows.waiting), set(rows.business)
    told = {job for job, call in calls.items() if "ok" in call.answers}
    undone = {
        job
        for job, call in calls.items()
        if call.plan == "rollback" or (call.plan == "commit" and job not in business and job not in told)
    }
    there = results.keys() | waiting
    seen = there | begun.keys() | written.keys()
    unexpected = {job for job in seen if job not in calls or job in undone}
    once = {job for job, call in calls.items() if call.task in rules.once}
    return Verdict(
        attempted=len(calls),
        acknowledged=len(told),
        recovered=sum("info" in call.answers and job not in told and job in there for job, call in calls.items()),
        undone=len(undone),
        starts=sum(map(len, begun.values())),
        succeeded=sum(stored.state == "SUCCESS" for stored in results.values()),
        effects=len(rows.effects),
        doubled_executions=sum(_repeats(begun[job], results.get(job)) for job in begun),
        refused=sum(map(_overtaken, begun.values())),
        failures=_failures(calls, results, rules.failing),
        lost=frozenset((told | begun.keys() | (business & calls.keys())) - there - unexpected),
        unexpected=frozenset(unexpected),
        doubled_effects=frozenset(
            job
            for job in results.keys() | written.keys()
            if not _effects_right(results.get(job), len(written.get(job, ())), calls.get(job), rules.transactional)
        ),
        zombie_writes=frozenset(
            job
            for job, stored in results.items()
            if _zombie(stored, begun.get(job, ()), written.get(job, ()), rules.pids)
        ),
        stuck=frozenset(waiting),
        doubled_early=frozenset(job for job in once if len(begun.get(job, ())) > 1),
    )


def _repeats(runs: Collection[Run], stored: Stored | None) -> int:
    return max(0, len(runs) - 1 - (stored.retries if stored else 0))


def _overtaken(runs: Collection[Run]) -> int:
    """Return how many runs of a job ended after a later attempt had begun."""
    return sum(
        any(run.attempt < other.attempt and other.started < (run.ended or 0.0) for other in runs) for run in runs
    )


def _effects_right(stored: Stored | None, effects: int, call: Call | None, transactional: Collection[str]) -> bool:
    if stored is None or stored.state != "SUCCESS":
        return effects == 0
    return effects == (call is not None and call.task in transactional)


def _zombie(stored: Stored, runs: Collection[Run], effects: Collection[Effect], pids: Mapping[str, int]) -> bool:
    """Return whether an attempt that was not the last one has written a result or an effect.

    1. The result is of an earlier attempt than one that had begun: claims count attempts up and nothing counts them
       down, so the later claim was committed before, and the earlier one had no lease any more.
    2. An effect is not of the attempt of the result, or not of the very transaction that stored it.
    3. A SUCCESS is of an attempt that never began, or was stored for a worker that never began that attempt.
    """
    if any(run.attempt > stored.attempt for run in runs):
        return True
    if any((effect.attempt, effect.xid) != (stored.attempt, stored.xid) for effect in effects):
        return True
    if stored.state != "SUCCESS":
        return False
    beginners = {run.pid for run in runs if run.attempt == stored.attempt}
    return not beginners or pids.get(stored.worker or "", next(iter(beginners))) not in beginners


def _failures(calls: Mapping[str, Call], results: Mapping[str, Stored], failing: Collection[str]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for job, stored in results.items():
        if stored.state == "FAILURE":
            task = calls[job].task if job in calls else "unknown"
            meant = task in failing and stored.reason != "WorkerLostError"
            reasons["on purpose" if meant else f"{stored.reason} of {task}"] += 1
    return dict(reasons.most_common())
