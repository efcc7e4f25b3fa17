"""A machine that tries the functions in every order, on several connections that may wait for one another.

After each step it compares the tables with a model of what was committed and what each caller was told, and reads
every row that was written since. The rules, by the names of their invariants:

- S1 a job is in one place, and held by one worker. S2 the attempt grows by one at a claim and nowhere else.
- S3 an attempt is ended at most once, and only while it is held. S4 nothing is lost: what was enqueued waits, runs,
  has ended, or was deleted by somebody who was told so.
- S5 an effect is committed with the end of its attempt or not at all. S6 a job with a SUCCESS has no unfinished row.
- S8 nothing is claimed before its eta or its commit. S9 a SUCCESS is final. S10 retries and crashes are counted
  right. S11 one unfinished job for a unique key. S13 what was revoked before its claim says so when it is claimed.
- S7 a SUCCESS has its link once, a FAILURE or REJECTED its errback, and nothing else has one.
- S15 answers are true. S16 nothing ends in a deadlock.

S12 (schedules) comes with what it is about; S14 is the sweep's, in the ring of whole workers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from .helpers import LOST, NOON
from .machine import Arena, Breach, Call, Refused, Session

LONG = int(os.environ.get("PGQUEUE_TEST_MACHINE", "0"))

#: How many may wait at once. Two that are let go together run side by side, and which is first is not for us to say.
WAITERS = 3 if LONG else 1

ENDS = ("SUCCESS", "FAILURE", "REJECTED", "IGNORED", "REVOKED")
BACK = ("RETRY", "RELEASED", "REQUEUE")

#: What must have come about in a long run.
KINDS = {*ENDS, *BACK, "claim", "suspect", "refused", "zombie", "repeat", "buried", "effect", "second life", "waited"}
KINDS |= {"link", "errback", "requeued too often"}

#: Which of several: 0 is the newest, so that a shrunk example speaks of few things.
nth = st.integers(0, 5)
bits = st.integers(0, 7)
held = st.booleans()
seldom = st.integers(0, 3).map(lambda n: n == 3)


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `job`; times in milliseconds of the clock of the arena."""

    eta: int
    priority: int
    task: str
    key: str | None
    expires: int | None
    life: int
    worker: str | None = None
    claimed_at: int | None = None
    attempt: int = 0
    retries: int = 0
    crashes: int = 0
    requeues: int = 0
    revoked: bool = False
    link: str | None = None
    errback: str | None = None

    def back(self, now: int, **changes: Any) -> Job:
        return replace(self, worker=None, claimed_at=None, **{"eta": max(self.eta, now), **changes})


@dataclass(frozen=True, slots=True)
class Result:
    """A row of `result`."""

    state: str
    worker: str | None
    attempt: int
    retries: int
    crashes: int
    finished_at: int


@dataclass(slots=True, eq=False)
class Attempt:
    """What a worker knows of one; it sends one outcome, perhaps again."""

    job: str
    life: int
    worker: str
    attempt: int
    refused: bool  # expired, revoked or succeeded when it was claimed: its body does not start
    retries: int
    requeues: int
    outcome: dict[str, Any] | None = None
    committed: bool = False  # its outcome has been


def milliseconds(text: str | None) -> int | None:
    return None if text is None else round((datetime.fromisoformat(text) - NOON) / timedelta(milliseconds=1))


def literal(value: object) -> str:
    return "'" + json.dumps(value).replace("'", "''") + "'"


def array(values: list[str]) -> str:
    return "'{" + ",".join(values) + "}'"


def all_of(call: str) -> str:
    return f"select coalesce(json_agg(to_json(x)), '[]') from {call} x"


def check(truth: object, name: str, message: str) -> None:
    if not truth:
        raise Breach(name, message)


#: The steps: when it can be taken, how often it is beside the others, and what is drawn for it.
STEPS: dict[str, tuple[Callable[[Any], Any], int, dict[str, st.SearchStrategy[Any]]]] = {}


def step(can: Callable[[Any], Any], weight: int, **given: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """One thing that somebody may do next.

    Not a rule of its own: Hypothesis leaves some rules out of each example, and then too little comes together.
    """

    def note(method: Any) -> Any:
        STEPS[method.__name__] = (can, weight, given)
        return method

    return note


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    names = [name for name, (_, weight, _) in STEPS.items() for _ in range(weight)]
    name = draw(st.sampled_from(names))
    return name, {key: draw(strategy) for key, strategy in STEPS[name][2].items()}


class Machine(RuleBasedStateMachine):
    """The functions against the model; `arena` is set by a subclass."""

    arena: Arena

    def __init__(self) -> None:
        super().__init__()
        self.arena.reset()
        self.jobs: dict[str, Job] = {}
        self.results: dict[str, Result] = {}
        self.effects: list[tuple[str, int]] = []
        self.follows: dict[str, str] = {}  # from a continuation to the job that it follows
        self.ids: list[str] = []  # every id that was ever used
        self.lives: Counter[str] = Counter()
        self.workers: list[str] = []
        self.listed: set[str] = set()
        self.attempts: list[Attempt] = []
        self.created = self.ended = self.calls = 0
        self.found: dict[str, Any] | None = None
        self.endings: Counter[tuple[str, int, int]] = Counter()
        self.lived: Counter[str] = Counter()
        self.effective: Counter[tuple[str, int]] = Counter()
        self.success_in: dict[tuple[str, int], int] = {}

    # -- how a statement is made, and how its answer enters the model

    @property
    def now(self) -> int:
        return self.arena.now

    @property
    def idle(self) -> list[Session]:
        return [session for session in self.arena.sessions if session.idle]

    @property
    def opened(self) -> list[Session]:
        return [session for session in self.arena.sessions if session.open and session.call is None]

    @property
    def busy(self) -> list[Session]:
        return [session for session in self.arena.sessions if not session.idle]

    def start(
        self,
        text: str,
        then: Callable[[Any, Call, bool], None],
        *,
        held: bool = False,
        session: Session | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Send a statement; `then` is told the answer, the call, and whether it can be foreseen exactly."""
        session = session or self.idle[0]
        # A transaction needs a session of its own, and one must be left for the rest.
        held = held and (session.open or len(self.idle) > 1)
        alone = all(other is session for other in self.busy)

        def told(answer: Any, call: Call) -> None:
            if isinstance(answer, Refused):
                if answer.code not in allow:
                    raise Breach("S16" if answer.code == "40P01" else "error", f"{answer} from {call.text}")
                if call.session.open:
                    self._end(call.session, "rollback")
            then(answer, call, alone and not call.waited)

        self._hear(self.arena.start(session, text, told, held=held))
        if session.call and sum(1 for other in self.arena.sessions if other.call) > WAITERS:
            self._drop(session)

    def _hear(self, calls: list[Call]) -> None:
        """Let the answers into the model, in the order in which the statements took effect."""
        self.found = self.arena.look()
        rows = self.found["history"]
        order: dict[int, int] = {}
        for row in rows:
            order.setdefault(row["pid"], row["seq"])
        self._replay(rows)
        # What wrote nothing comes last; what is not committed yet changes nothing for the others.
        calls.sort(key=lambda call: (call.held, order.get(call.session.pid, 1 << 60)))
        for call in calls:
            self.arena.seen["waited"] += call.waited
            call.wrote = call.session.pid in order
            call.then(call.answer, call)

    def _end(self, session: Session, how: str) -> None:
        calls = self.arena.end(session, how)
        self._over(session, committed=how == "commit")
        self._hear(calls)

    def _drop(self, session: Session) -> None:
        self.arena.drop(session)
        self._over(session, committed=False)
        self._hear(self.arena.settle())

    def _over(self, session: Session, *, committed: bool) -> None:
        steps = session.over()
        for step in steps if committed else ():
            step()

    @property
    def _attempts(self) -> list[Attempt]:
        """The newest last, and after all others those that hold a lease and have sent nothing yet.

        An id that is enqueued again when its result is gone counts from 1 again. The fence cannot tell an attempt from
        one of the same number that the same worker had in the life before; such a one speaks no more here.
        """
        last = {(a.job, a.worker, a.attempt): a for a in self.attempts}
        return sorted(last.values(), key=lambda attempt: attempt.outcome is None and self._holds(attempt, self.jobs))

    @staticmethod
    def _holds(attempt: Attempt, jobs: dict[str, Job]) -> bool:
        row = jobs.get(attempt.job)
        return row is not None and (row.worker, row.attempt) == (attempt.worker, attempt.attempt)

    def put(self, call: Call, job: str, row: Job | None) -> None:
        self._write(call, ("job", job), row)

    def store(self, call: Call, job: str, row: Result | None) -> None:
        self._write(call, ("result", job), row)

    def _write(self, call: Call, key: tuple[str, str], row: Any) -> None:
        def write() -> None:
            table: dict[str, Any] = self.jobs if key[0] == "job" else self.results
            if row is None:
                table.pop(key[1], None)
            else:
                table[key[1]] = row

        if call.held:
            call.session.delta[key] = row
            call.session.at_commit.append(write)
        else:
            write()

    def after(self, call: Call, step: Callable[[], None]) -> None:
        """Do this when the statement is committed."""
        if call.held:
            call.session.at_commit.append(step)
        else:
            step()

    def count(self, call: Call, *, created: int = 0, ended: int = 0) -> None:
        def step() -> None:
            self.created += created
            self.ended += ended

        self.after(call, step)

    def job(self, call: Call, job: str) -> Job | None:
        """The row as the statement sees it."""
        found: Job | None = call.session.delta.get(("job", job), self.jobs.get(job))
        return found

    # -- enqueueing

    @initialize()
    def begin(self) -> None:
        for _ in range(2):
            self.new_worker()

    @rule(step=steps())
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        name, given = step
        if STEPS[name][0](self):
            getattr(self, name)(**given)
        elif not self.idle:
            self.end(0, "commit")
        elif len(self.idle) > 2 and any(a.outcome is None and self._holds(a, self.jobs) for a in self.attempts):
            self.hold(0)
        elif any(row.worker is None and row.eta <= self.now for row in self.jobs.values()):
            self.claim(0, 2, True, False)
        elif self.opened:
            self.end(0, "commit")
        else:
            self.enqueue(2, 5, 0, None, None, None, "often", True, False)

    @step(
        lambda self: self.idle,
        3,
        count=st.integers(1, 2),
        priority=st.sampled_from((5, 9)),
        countdown=st.sampled_from((0, 0, 0, 5)),
        expires_in=st.sampled_from((None, None, 3)),
        key=st.sampled_from((None, None, "a", "b")),
        known=st.none() | nth,
        task=st.sampled_from(("often", "once")),
        followed=st.booleans(),
        held=held,
    )
    def enqueue(
        self,
        count: int,
        priority: int,
        countdown: int,
        expires_in: int | None,
        key: str | None,
        known: int | None,
        task: str,
        followed: bool,
        held: bool,
    ) -> None:
        given: list[dict[str, Any]] = []
        for n in range(count):
            job = {"task": task, "priority": priority, "countdown": countdown, "expires_in": expires_in}
            if followed:
                job |= {"links": [self._call()], "errbacks": [self._call()]}
            if known is not None and n == 0 and self.ids:
                given.append({**job, "id": self._nth(self.ids, known), "known": True, "unique_key": key})
            else:
                self.ids.append(str(UUID(int=len(self.ids) + 1)))
                given.append({**job, "id": self.ids[-1], "known": True, "unique_key": key if n == 0 else None})

        def told(answer: list[dict[str, Any]], call: Call, exact: bool) -> None:
            check(len(answer) == len(given), "S15", f"{len(answer)} answers for {len(given)} jobs")
            for job, said in zip(given, answer, strict=True):
                self._enqueued(job, said, call, exact)

        self.start(all_of(f"pgqueue.enqueue_many({literal(given)})"), told, held=held)

    def _call(self) -> dict[str, str]:
        """A continuation, in a queue from which nobody claims."""
        self.calls += 1
        return {"task": "next", "queue": "next", "id": str(UUID(int=(1 << 80) + self.calls))}

    def _enqueued(self, job: dict[str, Any], said: dict[str, Any], call: Call, exact: bool) -> None:
        key, jid = job["unique_key"], job["id"]
        taken = next((other for other, row in self.jobs.items() if key is not None and row.key == key), None)
        if taken is None and jid in self.jobs:
            taken = jid
        done = jid in self.results and self.results[jid].state == "SUCCESS"
        if said["created"]:
            check(said["id"] == jid, "S15", f"created under another id: {said}")
            check(taken is None, "S11", f"{jid} was created beside {taken}, of the same id or key {key}")
            check(not done, "S9", f"{jid} had succeeded and is to run again")
            self.lives[jid] += 1
            self.arena.seen["second life"] += self.lives[jid] > 1
            before = self.results.get(jid)
            row = Job(
                eta=call.at + job["countdown"] * 1000,
                priority=job["priority"],
                task=job["task"],
                key=key,
                expires=None if job["expires_in"] is None else call.at + job["expires_in"] * 1000,
                life=self.lives[jid],
                attempt=before.attempt if before else 0,
                link=job["links"][0]["id"] if "links" in job else None,
                errback=job["errbacks"][0]["id"] if "errbacks" in job else None,
            )
            self.put(call, jid, row)
            self.count(call, created=1)
        elif exact:
            expected = taken or (jid if done else None)
            check(expected is not None, "S15", f"{jid} was not created although nothing stands in its way")
            check(said["id"] == expected, "S15", f"{said['id']} is not {expected}, which stands in the way of {jid}")
        else:
            check(said["id"] in self.ids, "S15", f"{said} is no job")

    # -- attempts

    @step(lambda self: self.idle, 4, worker=nth, limit=st.integers(1, 3), alone=st.booleans(), held=held)
    def claim(self, worker: int, limit: int, alone: bool, held: bool) -> None:
        who = self._nth(self.workers, worker)

        def told(answer: list[dict[str, Any]], call: Call, exact: bool) -> None:
            for claim in answer:
                self._claimed(who, claim, call)
            suspects = [claim for claim in answer if claim["crashes"]]
            check(len(answer) <= limit, "S15", f"{len(answer)} jobs for a limit of {limit}")
            check(not suspects or (alone and len(answer) == 1), "S10", "a suspect is not claimed alone")
            if exact:
                got = {claim["id"] for claim in answer}
                due = {
                    job: row
                    for job, row in self.jobs.items()
                    if row.eta <= call.at and (row.worker is None or (job in got and not call.held))
                }
                lines = [[job for job in due if (due[job].crashes > 0) is suspect] for suspect in (False, True)]
                best = lines[1] if alone and lines[1] else lines[0]
                expected = sorted((-due[job].priority, due[job].eta) for job in best)[
                    : 1 if best is lines[1] else limit
                ]
                order = [(-due[claim["id"]].priority, due[claim["id"]].eta) for claim in answer]
                check(order == expected, "S15", f"claimed {order} (priority, eta) where {expected} is due")

        self.start(all_of(f"pgqueue.claim('{who}', '{{default}}', {limit}, p_alone => {alone})"), told, held=held)

    def _claimed(self, who: str, claim: dict[str, Any], call: Call) -> None:
        job = claim["id"]
        row = self.jobs.get(job)
        if row is None:
            raise Breach("S8", f"{job} was claimed and is not there")
        check(row.worker is None, "S1", f"{job} was claimed while {row.worker} holds it")
        check(row.eta <= call.at, "S8", f"{job} was claimed {row.eta - call.at} ms before its eta")
        check(claim["attempt"] == row.attempt + 1, "S2", f"attempt {claim['attempt']} of {job} follows {row.attempt}")
        counts = (claim["retries"], claim["crashes"], claim["requeues"])
        check(counts == (row.retries, row.crashes, row.requeues), "S10", f"{counts} are not the counts of {job}: {row}")
        check(claim["revoked"] == row.revoked, "S13", f"{job} does not say whether it was revoked")
        expired = row.expires is not None and row.expires <= call.at
        check(claim["expired"] == expired, "S8", f"{job} does not say whether it has expired")
        check(not claim["succeeded"], "S9", f"{job} had succeeded and was claimed again")
        self.put(call, job, replace(row, worker=who, claimed_at=call.at, attempt=row.attempt + 1))
        attempt = Attempt(job, row.life, who, row.attempt + 1, expired or row.revoked, row.retries, row.requeues)
        self.arena.seen["refused" if attempt.refused else "suspect" if row.crashes else "claim"] += 1
        self.after(call, lambda: self.attempts.append(attempt))

    @step(
        lambda self: self.idle and self.attempts,
        4,
        which=nth,
        second=st.none() | nth,
        state=st.sampled_from((*ENDS, *BACK)),
        keep=st.sampled_from((True, True, False)),
        countdown=st.sampled_from((0, 0, 5)),
        crashed=seldom,
        error=st.sampled_from(("own", "own", "same", "none")),
        held=seldom,
    )
    def finish(
        self,
        which: int,
        second: int | None,
        state: str,
        keep: bool,
        countdown: int,
        crashed: bool,
        error: str,
        held: bool,
    ) -> None:
        """By whoever has claimed it, however long ago, and perhaps not for the first time."""
        attempts = [self._nth(self._attempts, which)]
        others = [a for a in self.attempts if a.worker == attempts[0].worker and a.job != attempts[0].job]
        if second is not None and others:
            attempts.append(self._nth(others, second))
        for attempt in attempts:
            self._decide(attempt, state, keep, countdown, crashed, error)
        self._finish(attempts, held=held)

    def _decide(self, attempt: Attempt, state: str, keep: bool, countdown: int, crashed: bool, error: str) -> None:
        if attempt.outcome is None:
            outcome: dict[str, Any] = {"id": attempt.job, "attempt": attempt.attempt, "state": state}
            if attempt.refused:
                outcome["state"] = state = "REVOKED"
            if state == "RETRY":
                outcome["retries"] = attempt.retries
            if state == "REQUEUE":
                outcome |= {"requeues": attempt.requeues, "most": 0 if crashed else 2}
            elif state in BACK:
                outcome["countdown"] = countdown
            elif not keep:
                outcome["keep"] = False
            if state == "RELEASED":
                if crashed:
                    outcome |= {"crashed": True, "error": LOST}
            elif state == "SUCCESS":
                outcome["value"] = attempt.attempt
            elif state in ("FAILURE", "REVOKED", "REJECTED", "REQUEUE") or (error != "none" and state == "RETRY"):
                text = "same" if error == "same" else f"{attempt.job} {attempt.attempt} {attempt.worker}"
                outcome["error"] = {"type": "E", "message": text}
            attempt.outcome = outcome

    def _finish(self, attempts: list[Attempt], *, held: bool = False, session: Session | None = None) -> None:
        outcomes = [attempt.outcome for attempt in attempts]
        worker = attempts[0].worker

        def told(answer: list[str], call: Call, exact: bool) -> None:
            for attempt in attempts:
                self._finished(attempt, attempt.job not in answer, call)

        text = all_of(f"pgqueue.finish('{worker}', {literal(outcomes)})")
        self.start(text, told, held=held, session=session)

    def _finished(self, attempt: Attempt, acked: bool, call: Call) -> None:
        row = self.job(call, attempt.job)
        outcome = attempt.outcome
        assert outcome is not None
        state = outcome["state"]
        holds = row is not None and (row.worker, row.attempt) == (attempt.worker, attempt.attempt)
        if holds and row is not None and row.life != attempt.life:
            check(not acked, "S3", f"{attempt} of a former life was accepted")
        if not holds or row is None:
            self.arena.seen["repeat" if attempt.committed else "zombie"] += 1
            self._answered_late(attempt, acked, row, call)
            return
        check(acked, "S15", f"{attempt} holds its lease and was told that it is lost")

        def committed() -> None:
            check(not attempt.committed, "S3", f"{attempt} was accepted twice")
            attempt.committed = True
            self.arena.seen[state] += 1

        self.after(call, committed)
        if state == "REQUEUE" and row.requeues >= outcome["most"] and not row.revoked:
            self.arena.seen["requeued too often"] += 1
            state = "REJECTED"
        if state in BACK and not row.revoked:
            eta = call.at + outcome.get("countdown", 0) * 1000
            if state == "REQUEUE":
                pause = 100 * 2 ** (row.requeues - 1) if row.requeues else 0
                back = row.back(call.at, eta=call.at + pause, requeues=row.requeues + 1)
            elif state == "RETRY":
                back = row.back(call.at, eta=eta, retries=row.retries + 1)
            else:
                back = row.back(call.at, eta=eta, crashes=row.crashes + outcome.get("crashed", False))
            self.put(call, attempt.job, back)
            return
        ended = "REVOKED" if state in BACK else state
        self.put(call, attempt.job, None)
        self.count(call, ended=1)
        if state in BACK and call.waited:
            # Revoked while it waited for the row: retried and then revoked, or revoked at once, as the locks came.
            assert self.found is not None
            found = next((r for r in self.found["results"] if r["id"] == attempt.job), None)
            if found is not None and found["state"] == "REJECTED":
                ended = "REJECTED"  # it had been requeued too often, and may end as what it is
            elif found is not None and found["worker"] is None:
                row = replace(row, worker=None, retries=row.retries + (state == "RETRY"))
                row = replace(row, crashes=row.crashes + outcome.get("crashed", False))
        self._followed(call, attempt.job, row, ended)
        if outcome.get("keep", True) or (row.errback and ended in ("FAILURE", "REJECTED")):
            self.store(call, attempt.job, Result(ended, row.worker, row.attempt, row.retries, row.crashes, call.at))

    def _followed(self, call: Call, job: str, row: Job, ended: str) -> None:
        name = row.link if ended == "SUCCESS" else row.errback if ended in ("FAILURE", "REJECTED") else None
        if name is None:
            return

        def committed() -> None:
            self.follows[name] = job
            self.arena.seen["link" if ended == "SUCCESS" else "errback"] += 1

        self.after(call, committed)

    def _answered_late(self, attempt: Attempt, acked: bool, row: Job | None, call: Call) -> None:
        """The answer to who holds no lease: a zombie, or one who asks again."""
        assert attempt.outcome is not None
        result = self.results.get(attempt.job)
        waits = row is not None and row.worker is None and row.attempt == attempt.attempt and row.life == attempt.life
        ours = result is not None and (result.worker, result.attempt) == (attempt.worker, attempt.attempt)
        if acked:
            # To be released and to be handed back by others is the same.
            same = attempt.outcome["state"] == "RELEASED" and (waits or (ours and result.state == "REVOKED"))  # type: ignore[union-attr]
            check(attempt.committed or same, "S15", f"{attempt} was told that it is acknowledged, and it is not")
        elif attempt.committed and not call.waited:
            # What it left behind may have gone since; while it is there, it is known.
            check(not waits and not ours, "S15", f"{attempt} was acknowledged, and is told that it was not")

    # -- a transactional task: hold, effect, finish, commit

    @step(lambda self: len(self.idle) > 1 and self.attempts, 3, which=nth)
    def hold(self, which: int) -> None:
        attempt = self._nth(self._attempts, which)
        session = self.idle[0]
        session.stage, session.attempt = "hold", attempt

        def told(answer: Any, call: Call, exact: bool) -> None:
            row = self.jobs.get(attempt.job)
            holds = row is not None and (row.worker, row.attempt) == (attempt.worker, attempt.attempt)
            if isinstance(answer, Refused):
                check(not holds, "S15", f"{attempt} holds its lease and was told that it is lost")
            else:
                check(holds, "S15", f"{attempt} was told that it holds its lease, and it does not")
                session.stage = "held"

        text = f"select to_json(1) from pgqueue.hold('{attempt.job}', '{attempt.worker}', {attempt.attempt})"
        self.start(text, told, held=True, session=session, allow=("PQ001",))

    @step(
        lambda self: any(session.stage == "held" for session in self.opened),
        4,
        which=nth,
        state=st.sampled_from(("SUCCESS", "SUCCESS", "SUCCESS", "RETRY", "FAILURE")),
    )
    def act(self, which: int, state: str) -> None:
        """The effect of a task and its end, in the transaction that holds the job."""
        session = self._nth([session for session in self.opened if session.stage == "held"], which)
        attempt: Attempt = session.attempt
        if attempt.refused or attempt.outcome is not None:
            return  # no body runs for it, or it has run
        session.stage = "acted"
        if state == "SUCCESS":
            key = (attempt.job, attempt.attempt)
            session.run(f"insert into machine.effect (job, attempt) values ('{attempt.job}', {attempt.attempt})")
            session.at_commit.append(lambda: self.effects.append(key))
            session.at_commit.append(lambda: self.arena.seen.update(["effect"]))
        self._decide(attempt, state, True, 0, False, "own")

        self._finish([attempt], held=True, session=session)

    @step(lambda self: self.opened, 4, which=nth, how=st.sampled_from(("commit", "commit", "rollback", "drop")))
    def end(self, which: int, how: str) -> None:
        session = self._nth(self.opened, which)
        if how == "drop":
            self._drop(session)
        else:
            self._end(session, how)

    @step(lambda self: any(session.call for session in self.arena.sessions), 1, which=nth)
    def crash_while_waiting(self, which: int) -> None:
        self._drop(self._nth([session for session in self.arena.sessions if session.call], which))

    # -- workers

    @step(
        lambda self: self.idle,
        1,
    )
    def new_worker(self) -> None:
        """The others go on, unknown to this one: if they are dead, nobody has told them."""
        self.workers.append(str(UUID(int=(1 << 64) + len(self.workers))))
        self._register(self.workers[-1])

    def _register(self, who: str) -> None:
        entry = {"id": who, "name": "a@host", "host": "host", "boot": "b", "pid": 1, "pool": "solo", "slots": 1}
        entry |= {"queues": ["default"], "at_most_once": ["once"]}
        self.start(f"select to_json(1) from pgqueue.register({literal(entry)})", lambda *_: None)

    @step(lambda self: self.idle, 1, worker=nth, again=st.booleans())
    def beat(self, worker: int, again: bool) -> None:
        """Who hears that it was given up registers again, or is late to do so."""
        who = self._nth(self.workers, worker)
        before = set(self.listed)
        lost: list[bool] = []

        def told(answer: bool, call: Call, exact: bool) -> None:
            check(not exact or answer == (who in before), "S15", f"{who} is told {answer}, and listed are {before}")
            lost.append(not answer)

        self.start(f"select to_json(pgqueue.beat('{who}'))", told)
        if again and lost == [True] and self.idle:
            self._register(who)

    @step(
        lambda self: self.idle,
        3,
        worker=nth,
        started=st.none() | bits,
        max_crashes=st.sampled_from((0, 1, 3)),
        counts=st.booleans(),
        held=seldom,
    )
    def bury(self, worker: int, started: int | None, max_crashes: int, counts: bool, held: bool) -> None:
        """Of one that is dead, or that is only taken for dead."""
        who = self._nth(self.workers, worker)
        leased = [job for job, row in self.jobs.items() if row.worker == who]
        begun = None if started is None else [job for n, job in enumerate(leased) if started >> n % 3 & 1]
        once = {"once"} if who in self.listed else set()

        def told(answer: list[dict[str, Any]], call: Call, exact: bool) -> None:
            for said in answer:
                self._buried(who, said, begun, max_crashes, counts, once if exact else None, call)
            if exact:
                said_ids = {said["id"] for said in answer}
                check(said_ids == set(leased), "S4", f"{said_ids} were taken back from {who} of {leased}")

        names = "null" if begun is None else array(begun)
        text = f"pgqueue.bury('{who}', {literal(LOST)}, {names}, {max_crashes}, {counts})"
        self.start(all_of(text), told, held=held)

    def _buried(
        self,
        who: str,
        said: dict[str, Any],
        begun: list[str] | None,
        most: int,
        counts: bool,
        once: set[str] | None,
        call: Call,
    ) -> None:
        job, row = said["id"], self.jobs.get(said["id"])
        if row is None or row.worker != who:
            raise Breach("S3", f"{job} was taken back from {who}, who does not hold it: {row}")
        started = begun is None or job in begun
        crashed = started and counts
        failed = (crashed and row.crashes >= most) or (started and row.task in (once or ()))
        expected = "REVOKED" if row.revoked else "FAILURE" if failed else "PENDING"
        # Whether the worker was still listed, so that its tasks of once are known, only one call in peace can tell.
        if once is None and started and row.task == "once" and said["state"] == "FAILURE" and not row.revoked:
            expected = "FAILURE"
        self.arena.seen["buried"] += 1
        check(said["state"] == expected, "S10", f"{job} became {said['state']} and not {expected}: {row}")
        if expected == "PENDING":
            self.put(call, job, row.back(call.at, crashes=row.crashes + crashed))
        else:
            self.put(call, job, None)
            self._followed(call, job, row, expected)
            self.store(call, job, Result(expected, who, row.attempt, row.retries, row.crashes + crashed, call.at))
            self.count(call, ended=1)

    @step(lambda self: self.idle, 1, worker=nth, keep=bits, held=seldom)
    def disown(self, worker: int, keep: int, held: bool) -> None:
        who = self._nth(self.workers, worker)
        leased = [job for job, row in self.jobs.items() if row.worker == who]
        kept = [job for n, job in enumerate(leased) if keep >> n % 3 & 1]

        def told(answer: list[str], call: Call, exact: bool) -> None:
            for job in answer:
                row = self.jobs.get(job)
                if row is None or row.worker != who or job in kept:
                    raise Breach("S3", f"{job} was disowned by {who}, who does not hold it: {row}")
                self.put(call, job, row.back(call.at))
            check(not exact or set(answer) == set(leased) - set(kept), "S4", f"{answer} are not {leased} less {kept}")

        self.start(all_of(f"pgqueue.disown('{who}', {array(kept)})"), told, held=held)

    def _orphans(self, seconds: int) -> None:
        def told(answer: list[str], call: Call, exact: bool) -> None:
            limit = call.at - seconds * 1000
            leased = {row.worker for row in self.jobs.values() if (row.claimed_at or limit) < limit}
            check(not exact or set(answer) == leased - self.listed, "S15", f"orphans {answer}, not {leased}")

        self.start(all_of(f"pgqueue.orphans({seconds})"), told)

    # -- callers and administrators

    @step(lambda self: self.idle and self.ids, 2, job=nth, held=seldom)
    def revoke(self, job: int, held: bool) -> None:
        jid = self._nth(self.ids, job)

        def told(answer: str, call: Call, exact: bool) -> None:
            row = self.jobs.get(jid)
            result = self.results.get(jid)
            if not (call.session.has_written() if call.held else call.wrote):
                if not call.waited:
                    check(row is None or row.revoked, "S13", f"{jid} was not revoked but {answer}: {row}")
                    expected = "STARTED" if row else result.state if result else "UNKNOWN"
                    check(answer == expected, "S15", f"{jid} is {answer} and not {expected}")
            elif row is None:
                raise Breach("S13", f"{jid} is not there and was revoked")
            elif row.worker is not None:
                check(answer == "STARTED", "S15", f"{jid} runs and is {answer}")
                self.arena.seen["revoked while it ran"] += 1
                self.put(call, jid, replace(row, revoked=True))
            else:
                check(answer == "REVOKED", "S15", f"{jid} waited and is {answer}")
                self.put(call, jid, None)
                self.store(call, jid, Result("REVOKED", None, row.attempt, row.retries, row.crashes, call.at))
                self.count(call, ended=1)

        self.start(f"select to_json(pgqueue.revoke('{jid}'))", told, held=held)

    @step(lambda self: self.idle and self.results, 1, job=st.none() | nth, keep=st.sampled_from((0, 5)))
    def forget(self, job: int | None, keep: int) -> None:
        """One result, or all the old ones."""
        if job is None:
            self._prune(keep)
            return
        jid = self._nth(list(self.results), job)

        def told(answer: bool, call: Call, exact: bool) -> None:
            check(answer == (jid in self.results), "S15", f"{jid} forgotten: {answer}")
            self.results.pop(jid, None)

        self.start(f"select to_json(pgqueue.forget('{jid}'))", told)

    def _prune(self, keep: int) -> None:
        def told(answer: int, call: Call, exact: bool) -> None:
            old = [job for job, row in self.results.items() if row.finished_at < call.at - keep * 1000]
            gone = old if exact else self._gone(old, "results")
            check(answer == len(gone), "S4", f"{answer} results were deleted of {old}")
            for job in gone:
                del self.results[job]

        self.start(f"select to_json(pgqueue.prune('{keep} s'))", told)

    def _gone(self, jobs: list[str], place: str) -> list[str]:
        assert self.found is not None
        there = {row["id"] for row in self.found[place]}
        return [job for job in jobs if job not in there]

    @step(lambda self: self.idle, 1, really=seldom, seconds=st.sampled_from((1, 6)))
    def wait(self, really: bool, seconds: int) -> None:
        """Time passes; sometimes the queue is emptied."""
        self.arena.now += seconds * 1000
        if really:
            self._purge()

    def _purge(self) -> None:
        def told(answer: int, call: Call, exact: bool) -> None:
            waiting = [job for job, row in self.jobs.items() if row.worker is None]
            gone = waiting if exact else self._gone(waiting, "jobs")
            check(answer == len(gone), "S4", f"{answer} jobs were deleted of {waiting}")
            for job in gone:
                self.put(call, job, None)
            self.count(call, ended=len(gone))

        self.start("select to_json(pgqueue.purge('{default}'))", told)

    @step(lambda self: self.idle and self.ids, 1, job=nth, seconds=st.sampled_from((0, 5)))
    def ask(self, job: int, seconds: int) -> None:
        self._orphans(seconds)
        jid = self._nth(self.ids, job)

        def told(answer: str, call: Call, exact: bool) -> None:
            row, result = self.jobs.get(jid), self.results.get(jid)
            if row is not None:
                expected = "STARTED" if row.worker else "RETRY" if row.retries else "PENDING"
            else:
                expected = result.state if result else "UNKNOWN"
            check(answer == expected, "S15", f"{jid} is {answer} and not {expected}")

        self.start(f"select to_json(state) from pgqueue.status('{jid}')", told)

    # -- what must be true after each step

    @invariant()
    def tables_are_as_was_told(self) -> None:
        if self.found is None:
            return  # nothing has happened since
        found, self.found = self.found, None
        self.listed = set(found["workers"])
        follows = {row["id"]: row["parent_id"] for row in found["jobs"] if row["queue"] == "next"}
        check(follows == self.follows, "S7", f"there follow {follows}, and should {self.follows}")
        found["jobs"] = [row for row in found["jobs"] if row["id"] not in follows]
        jobs = {row["id"]: row for row in found["jobs"]}
        results = {row["id"]: row for row in found["results"]}
        check(len(jobs) == len(found["jobs"]) and len(results) == len(found["results"]), "S1", "one row, one place")
        check(
            self.created == len(jobs) + self.ended,
            "S4",
            f"{self.created} created, {len(jobs)} left, {self.ended} ended",
        )
        both = [job for job in jobs if job in results and results[job]["state"] == "SUCCESS"]
        check(not both, "S6", f"{both} have succeeded and are unfinished")
        keys = Counter(row["unique_key"] for row in found["jobs"] if row["unique_key"])
        check(all(count == 1 for count in keys.values()), "S11", f"unique keys: {keys}")
        check(set(jobs) == set(self.jobs), "S4", f"there are {sorted(jobs)} and should be {sorted(self.jobs)}")
        for job, row in self.jobs.items():
            self._same(job, row, jobs[job])
        check(set(results) == set(self.results), "S4", f"results {sorted(results)}, not {sorted(self.results)}")
        for job, result in self.results.items():
            told = (result.state, result.worker, result.attempt, result.retries, result.crashes)
            is_ = tuple(results[job][name] for name in ("state", "worker", "attempt", "retries", "crashes"))
            check(is_ == told, "S15" if is_[0] != told[0] else "S10", f"result of {job} is {is_}, not {told}")
        effects = [(row["job"], row["attempt"]) for row in found["effects"]]
        check(sorted(effects) == sorted(self.effects), "S5", f"effects {effects}, not {self.effects}")
        for row in found["effects"]:
            ended = self.success_in.get((row["job"], row["attempt"]))
            check(ended == row["xid"], "S5", f"an effect of {row['job']} without its SUCCESS, in {row['xid']}: {ended}")

    def _same(self, job: str, row: Job, found: dict[str, Any]) -> None:
        for rule_, name, told in (
            ("S1", "worker", row.worker),
            ("S2", "attempt", row.attempt),
            ("S10", "retries", row.retries),
            ("S10", "crashes", row.crashes),
            ("S10", "requeues", row.requeues),
            ("S13", "revoked", row.revoked),
            ("S11", "unique_key", row.key),
        ):
            check(found[name] == told, rule_, f"{name} of {job} is {found[name]}, not {told}")
        for name, when in (("eta", row.eta), ("expires", row.expires), ("claimed_at", row.claimed_at)):
            is_ = milliseconds(found[name])
            check(is_ == when, "S8", f"{name} of {job} is {is_}, not {when}")

    # -- what no transaction may have done

    def _replay(self, rows: list[dict[str, Any]]) -> None:
        stored = {(row["xid"], row["id"]) for row in rows if row["place"] == "result" and row["new"]}
        made = {(row["xid"], row["id"]) for row in rows if row["place"] == "job" and not row["old"]}
        left = {(row["xid"], row["id"]) for row in rows if row["place"] == "job" and not row["new"]}
        for row in rows:
            if row["place"] == "result":
                self._replay_result(row, left)
            elif row["old"] is None and row["new"]["queue"] == "next":
                check((row["xid"], row["new"]["parent_id"]) in left, "S7", f"{row['call']} made {row['new']} alone")
            elif row["old"] is None:
                self.lived[row["id"]] += 1
                check(row["call"] == "enqueue_many", "S8", f"{row['call']} made {row['id']}")
            elif row["new"] is None:
                self._replay_delete(row, stored, made)
            else:
                self._replay_update(row, made)

    def _replay_result(self, row: dict[str, Any], left: set[tuple[int, str]]) -> None:
        old, new = row["old"], row["new"]
        if new is None:
            check(row["call"] in ("forget", "prune"), "S4", f"{row['call']} deleted the result of {row['id']}")
            return
        check(old is None or old["state"] != "SUCCESS", "S9", f"{row['call']} overwrote the SUCCESS of {row['id']}")
        check((row["xid"], row["id"]) in left, "S1", f"{row['call']} stored {row['id']}, and its job is still there")
        if new["state"] == "SUCCESS":
            self.success_in[row["id"], new["attempt"]] = row["xid"]

    def _replay_delete(self, row: dict[str, Any], stored: set[tuple[int, str]], made: set[tuple[int, str]]) -> None:
        old, where = row["old"], (row["xid"], row["id"])
        if old["worker"] is None:
            check(row["call"] in ("revoke", "purge", "finish") or where in made, "S4", f"{row['call']} deleted {old}")
        else:
            check(row["call"] in ("finish", "bury"), "S3", f"{row['call']} ended {old}, which runs")
            self._ending(row)

    def _replay_update(self, row: dict[str, Any], made: set[tuple[int, str]]) -> None:
        old, new, call = row["old"], row["new"], row["call"]
        grown = new["attempt"] - old["attempt"]
        if old["worker"] is None and new["worker"] is not None:
            check(call == "claim" and grown == 1, "S2", f"{call} leased {old} as {new}")
            check(datetime.fromisoformat(old["eta"]) <= datetime.fromisoformat(row["clock"]), "S8", f"too early: {old}")
            return
        check(grown == 0 or (row["xid"], row["id"]) in made, "S2", f"{call} changed the attempt of {old}")
        if old["worker"] is not None and new["worker"] is None:
            check(call in ("finish", "bury", "disown"), "S3", f"{call} took the lease of {old}")
            self._ending(row)
        else:
            check(old["worker"] == new["worker"], "S1", f"{call} passed {old} to {new['worker']}")

    def _ending(self, row: dict[str, Any]) -> None:
        attempt = (row["id"], self.lived[row["id"]], row["old"]["attempt"])
        self.endings[attempt] += 1
        check(self.endings[attempt] == 1, "S3", f"attempt {attempt} has ended twice")

    @staticmethod
    def _nth(items: list[Any], n: int) -> Any:
        return items[-1 - n % len(items)]


# -- the tests


def explore(arena: Arena, examples: int, steps: int, *, shrink: bool = True) -> None:
    """Run the machine; raises what it finds, with the shortest list of steps to it."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    run_state_machine_as_test(
        type("QueueMachine", (Machine,), {"arena": arena}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not LONG,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def arenas(fresh_dsn: str) -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def make(*changes: tuple[str, str, str]) -> Arena:
        made.append(Arena(fresh_dsn, changes))
        return made[-1]

    yield make
    for arena in made:
        arena.close()


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_every_interleaving_keeps_every_promise(arenas: Callable[..., Arena], examples: int) -> None:
    """`PGQUEUE_TEST_MACHINE=1000` tries so many, other ones each time, and lets up to three sessions wait at once."""
    arena = arenas()
    explore(arena, LONG or examples, 40)
    missing = (
        KINDS - arena.seen.keys() if examples > 100 else {"claim", "zombie", "waited", "buried"} - arena.seen.keys()
    )
    assert not missing, f"these never came about, so nothing is known of them: {missing}"


Change = tuple[str, str, str]

#: Faults: the invariants that they may break, and what makes them: a function, a passage of it, and its replacement.
BROKEN: dict[str, tuple[set[str], list[Change]]] = {
    "an acknowledgement without a fence": (
        {"S1", "S3", "S15"},
        [
            ("finish", "(select o.id from outcome o)) and j.worker = p_worker", "(select o.id from outcome o))"),
            (
                "finish",
                "((j.id, j.attempt) in (select o.id, o.attempt from outcome o\n"
                "                                                 where o.state",
                "(j.id in (select o.id from outcome o\n                                                 where o.state",
            ),
            ("finish", "join outcome o on o.id = e.id and o.attempt = e.attempt", "join outcome o on o.id = e.id"),
            (
                "finish",
                "((o.id, o.attempt) in (select e.id, e.attempt from ended e))",
                "(o.id in (select e.id from ended e))",
            ),
        ],
    ),
    "an acknowledgement that does not ask for the attempt": (
        {"S1", "S3", "S10", "S15"},
        [
            (
                "put_back",
                "j.worker = p_worker and j.attempt = v_new.attempt and j.requeues",
                "j.worker is not null and j.requeues",
            ),
        ],
    ),
    "a claim that goes by id and does not look again under the lock": (
        {"S1", "S2"},
        [
            ("claim", "v_suspect tid;", "v_suspect uuid;"),
            ("claim", "select j.ctid into v_suspect", "select j.id into v_suspect"),
            ("claim", "select j.ctid as place", "select j.id as place"),
            ("claim", "where j.ctid = any(array(", "where j.id = any(array("),
            ("claim", "limit p_limit\n                  for update skip locked", "limit p_limit"),
            ("claim", "select v_suspect)) and j.worker is null", "select v_suspect))"),
        ],
    ),
    "a burial that waits for locked rows and does not look again": (
        {"S1", "S3", "S4", "S10", "S15"},
        [("bury", "order by j.id\n           for update skip locked", "order by j.id")],
    ),
    "a result that is not written": (
        {"S4"},
        [
            (
                "finish",
                "where (o.keep is distinct from false",
                "where o.state <> 'REJECTED' and (o.keep is distinct from false",
            )
        ],
    ),
    "a retry that keeps its lease": (
        {"S1", "S15"},
        [("put_back", "set worker = null, claimed_at = null,\n           eta = case when", "set eta = case when")],
    ),
    "a retry that counts twice": (
        {"S10"},
        [
            (
                "put_back",
                "j.retries + (v_new.state = 'RETRY')::integer",
                "j.retries + 2 * (v_new.state = 'RETRY')::integer",
            )
        ],
    ),
    "an enqueue that repeats what has succeeded": (
        {"S6", "S9"},
        [("enqueue_many", "and (r.state = 'SUCCESS' or r.id = any(v_resent))))\n", "and false))\n")],
    ),
    "a link that follows whatever the end": (
        {"S7"},
        [("enqueue_continuations", "where e.state = 'SUCCESS'", "where e.state <> 'FAILURE'")],
    ),
    "a burial without errbacks": (
        {"S7"},
        [("bury", "where e.state = 'FAILURE'\n    )", "where false\n    )")],
    ),
    "a revocation that does not lock what it looks at": (
        {"S1", "S3", "S4", "S13", "S15"},
        [("revoke", "where j.id = p_job for update", "where j.id = p_job")],
    ),
}


#: Found late, so that on a busy computer they take longer than the fast tests may.
LATE = {name for name in BROKEN if not name.startswith("an acknowledgement")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] if name in LATE else []) for name in BROKEN]
)
def test_a_fault_in_a_function_is_found(arenas: Callable[..., Arena], fault: str) -> None:
    names, changes = BROKEN[fault]
    arena = arenas(*changes)
    with pytest.raises(Breach) as found:
        explore(arena, 300, 25, shrink=bool(LONG))
    print(arena.seen["examples"], found.value, *found.value.__notes__, sep="\n")
    assert found.value.rule in names
