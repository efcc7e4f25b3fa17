"""A workflow run here and now, without a database, by the rules by which the database runs one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pgqueue.eager_result import EagerResult
from pgqueue.errors import ChordError, UnknownTask
from pgqueue.reports import report
from pgqueue.serialization import decode, encode
from pgqueue.types import GATHER, NewJob, State

logger = logging.getLogger("pgqueue.eager")


class RunsJobs(Protocol):
    """What a workflow needs of its app."""

    def run_job(self, job: NewJob, throw: bool = False) -> EagerResult[Any]: ...


class _Culprit(NamedTuple):
    """Whose failure it is: its id, in how many headers it stands, and what it ended with."""

    id: str
    depth: int
    state: State | str
    error: BaseException | None


class _Part(NamedTuple):
    """What a member of a step came to: the JSON text of its value, or a culprit."""

    id: str
    text: str
    culprit: _Culprit | None
    ignored: bool


def run_plan(app: RunsJobs, plan: Sequence[NewJob]) -> dict[str, EagerResult[Any]]:
    """Run the jobs and steps of a plan to the end; return what became of each, by its id."""
    run = _Run(app, plan)
    while run.ready:
        run.next()
    return run.ended


class _Run:
    def __init__(self, app: RunsJobs, plan: Sequence[NewJob]) -> None:
        self._app = app
        self._steps = {job.id: job for job in plan if job.waits}
        self._parts: dict[str, dict[int, _Part]] = {id_: {} for id_ in self._steps}
        self.ready = deque(job for job in plan if not job.waits)
        self.ended: dict[str, EagerResult[Any]] = {}

    def next(self) -> None:
        """Run the first job that is ready."""
        job = self.ready.popleft()
        found = self._app.run_job(job)
        self.ended[job.id] = found
        ignored = found.state == State.IGNORED
        culprit, text = None, "null"
        if found.state == State.SUCCESS:
            text = encode(found.result, path="result")
        elif found.state in (State.FAILURE, State.REVOKED, State.REJECTED) or ignored:
            error = found.result
            culprit = _Culprit(job.id, job.depth, found.state, error if isinstance(error, BaseException) else None)
        self._count(job, _Part(job.id, text, culprit, ignored))

    def _count(self, job: NewJob, part: _Part) -> None:
        """Count what has ended in the steps that wait for it, and these in theirs."""
        line: list[tuple[NewJob, _Part]] = [(job, part)]
        for one, came in line:
            for id_ in one.steps:
                step, parts = self._steps[id_], self._parts[id_]
                parts[one.place] = came
                if len(parts) == step.waits:
                    ended = self._complete(step, [parts[place] for place in sorted(parts)])
                    if ended is not None:
                        line.append((step, ended))

    def _complete(self, step: NewJob, parts: Sequence[_Part]) -> _Part | None:
        """Make a job of a step whose members have ended, or end it; return what it came to, if it has."""
        forgiven = step.takes == "values"
        culprit = next((part.culprit for part in parts if part.culprit and not (forgiven and part.ignored)), None)
        if culprit is not None:
            return self._fail(step, culprit)
        text = f"[{','.join(part.text for part in parts)}]" if forgiven else parts[0].text
        if step.task == GATHER:
            value = decode(text)
            self.ended[step.id] = EagerResult(step.id, value, State.SUCCESS)
            return _Part(step.id, text, None, False)
        if step.takes != "nothing":
            step = step._replace(args=f"[{text}]" if step.args == "[]" else f"[{text},{step.args[1:]}")
        self.ready.append(step._replace(parent_id=parts[-1].id))
        return None

    def _fail(self, step: NewJob, culprit: _Culprit) -> _Part:
        if culprit.depth > step.depth:
            why = "ended as " + str(culprit.state) if culprit.error is None else "raised " + _said(culprit.error)
            error = ChordError(f"Dependency {culprit.id} {why}")
            error.__cause__ = culprit.error
            culprit = _Culprit(step.id, step.depth, State.FAILURE, error)
            run_followers(self._app, followers(step.errbacks, step.id, step.root_id or step.id, step.id))
        self.ended[step.id] = EagerResult(step.id, None, culprit.state, name=step.task or None, error=culprit.error)
        return _Part(step.id, "null", culprit, culprit.state == State.IGNORED)


def _said(error: BaseException) -> str:
    found = report(error)
    return f"{found.type}({found.message})"


def continuations(text: str | None) -> list[Mapping[str, Any]]:
    """Return the calls of a JSON array of jobs."""
    found = None if text is None else decode(text)
    return found if isinstance(found, list) else []


def followers(text: str | None, first: object, root_id: str, parent_id: str) -> list[list[NewJob]]:
    """Return what follows a job, each as a plan of its own."""
    return [
        [
            job_of(row)._replace(root_id=root_id) if "waits" in row else continued(row, first, root_id, parent_id)
            for row in call.get("plan", [call])
        ]
        for call in continuations(text)
    ]


def run_followers(app: RunsJobs, plans: Sequence[Sequence[NewJob]]) -> list[EagerResult[Any]]:
    """Run what follows; return what became of the jobs that come first in each.

    A task that is not registered here would have waited for another worker.
    """
    found: list[EagerResult[Any]] = []
    for plan in plans:
        try:
            ended = run_plan(app, plan)
            found += [ended[job.id] for job in plan if not job.waits]
        except UnknownTask as error:
            logger.warning("what follows an eager call is not run: %s", error)
    return found


def continued(call: Mapping[str, Any], first: object, root_id: str, parent_id: str) -> NewJob:
    """Return a call that another one has enqueued as a job, with its first argument unless it is immutable."""
    job = job_of(call)
    args = call.get("args", [])
    args = encode(args if call.get("immutable") else [first, *args], path="args")
    return job._replace(args=args, root_id=root_id, parent_id=parent_id, immutable=False)


def job_of(call: Mapping[str, Any]) -> NewJob:
    """Return a job that was written as JSON; when it may start and expires has no meaning here."""
    more: dict[str, Any] = {
        name: None if call.get(name) is None else encode(call[name], path=name)
        for name in ("headers", "options", "links", "errbacks")
    }
    plain = ("root_id", "parent_id", "ignore_result", "time_limit", "soft_time_limit", "takes")
    more |= {name: call.get(name) for name in plain}
    return NewJob(
        id=call["id"],
        task=call.get("task") or GATHER,
        args=encode(call.get("args", []), path="args"),
        kwargs=encode(call.get("kwargs", {}), path="kwargs"),
        queue=call.get("queue", "default"),
        priority=call.get("priority", 5),
        steps=tuple(call.get("steps", ())),
        place=call.get("place", 0),
        depth=call.get("depth", 0),
        waits=call.get("waits", 0),
        **more,
    )
