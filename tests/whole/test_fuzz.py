"""Whatever tasks do, no job is stuck, no result unreadable and no continuation lost or doubled; with a database.

`PGQUEUE_FUZZ=100000` tries so many examples in all; see tests/pure/test_fuzz_tracer.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from whole.apps import fuzzed
from whole.apps.fuzzed import (
    ARGS,
    CALLEES,
    CALLS,
    EXAMPLES,
    KWARGS,
    PROGRAMS,
    RUNNERS,
    AnyTask,
    Program,
    fuzz,
    job_of,
    typed,
)  # fmt: skip

from pgqueue.database import run
from pgqueue.ids import new_id
from pgqueue.serialization import encode_error
from pgqueue.serialization.reports import name_of
from pgqueue.statements import Ended
from pgqueue.tracer import Aftermath, Concluded, Tracer, Where, build_tracer
from pgqueue.types import READY_STATES, Claim, Failed, Outcome, Rejected, Replaced, Retried
from pgqueue.worker.acks import Acks

pytestmark = pytest.mark.timeout(max(120, EXAMPLES))

APPS = Path(__file__).parent / "apps"
#: Jobs that are enqueued, claimed and acknowledged together.
BATCH = 200

#: A job: its program, by which task, and how many links and errbacks of it are enqueued when it ends.
Job = tuple[Program, AnyTask, int, int]
JOBS = st.tuples(PROGRAMS, st.sampled_from(RUNNERS), st.integers(0, 2), st.integers(0, 2))


@pytest.fixture(autouse=True)
def unstorable(dsn: str) -> Iterator[list[str]]:
    """The app on an empty database; what the worker's code says of outcomes that it could not store."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    acks, logger = logging.getLogger("pgqueue.worker"), logging.getLogger("pgqueue")
    handler.addFilter(lambda record: record.filename == "acks.py")
    acks.addHandler(handler)
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    fuzzed.app.configure(dsn=dsn)
    yield said
    fuzzed.app.close()
    logger.propagate = True
    acks.removeHandler(handler)


def jobs(share: float) -> list[Job]:
    """Return so many of the examples at once: a database wants batches."""
    found: list[Job] = []

    @settings(fuzz(share), phases=[Phase.generate])
    @given(JOBS)
    def collect(job: Job) -> None:
        found.append(job)

    collect()
    return found


def enqueue(jobs: Sequence[Job]) -> list[str]:
    calls = [
        task.s(program).set(
            link=[fuzzed.told.s("link", n) for n in range(links)],
            link_error=[fuzzed.told.si("errback", n) for n in range(errbacks)],
        )
        for program, task, links, errbacks in jobs
    ]
    return [handle.id for handle in fuzzed.app.enqueue_many(calls)]


class Loop:
    """A worker without processes and threads: claims, traces, acknowledges with the worker's own code, and tells."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.worker = new_id()
        self.statements = fuzzed.app.database.statements
        self.outcomes: dict[str, list[Outcome]] = {}
        where = Where("fuzz", self.worker)
        self._tracers: dict[str, Tracer] = {task.name: build_tracer(task, where) for task in RUNNERS}
        self._acks = Acks(self.statements, self.worker, lambda claim: None)

    def turn(self) -> int:
        """Claim what is there and see it through; return how many there were."""
        claims = run(self.connection, self.statements.claim(self.worker, ["fuzz"], BATCH, []))
        afterwards: list[tuple[Claim, Aftermath]] = []
        for claim in claims:
            outcome, aftermath = self._traced(claim)
            if aftermath is not None:
                afterwards.append((claim, aftermath))
            self._acks.waiting.append(Ended(claim, outcome, told=partial(self._note, claim)))
        while self._acks.waiting:
            self._acks.finish(self.connection, None)
        assert not len(self._acks)
        for claim, aftermath in afterwards:
            for name, error in aftermath.tell(self.outcomes[claim.id][-1], True):
                entry = f'{{"attempt":{claim.attempt},"state":"HOOK","hook":"{name}","error":{encode_error(error)}}}'
                assert run(self.connection, self.statements.attach(claim.id, entry)) == [True]
        return len(claims)

    def _traced(self, claim: Claim) -> Concluded:
        tracer = self._tracers[claim.task]
        if tracer.trace is not None:
            return tracer.trace(claim, None)
        assert tracer.atrace is not None
        return asyncio.run(tracer.atrace(claim, None))

    def _note(self, claim: Claim, outcome: Outcome, acked: bool) -> None:
        assert acked
        self.outcomes.setdefault(claim.id, []).append(outcome)


def test_no_job_is_stuck_unreadable_or_followed_by_too_little_or_too_much(
    conn: psycopg.Connection[Any], unstorable: list[str]
) -> None:
    tried = jobs(0.15)
    for first in range(0, len(tried), BATCH):
        batch = tried[first : first + BATCH]
        ids = enqueue(batch)
        loop = Loop(conn)
        while loop.turn():
            pass
        assert not unstorable
        assert conn.execute("select count(*) from pgqueue.job where worker is not null").fetchone() == (0,)
        followed = Counter(conn.execute(_FOLLOWED).fetchall())
        for id_, job in zip(ids, batch, strict=True):
            try:
                check(id_, job, loop.outcomes[id_], followed)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}, of the job {job}") from None


#: The parent of each continuation, and which it is.
_FOLLOWED = """
select parent_id::text, case when args->>-2 = 'link' and json_array_length(args) = 3 then 'link'
                             when args->>0 = 'errback' and json_array_length(args) = 2 then 'errback' end
  from pgqueue.job where task = 'fuzzed.told'
"""


def check(id_: str, job: Job, outcomes: list[Outcome], followed: Counter[Any]) -> None:
    """Read all that can be known of a job, and hold it against what its attempts have come to."""
    _, task, links, errbacks = job
    handle = task.AsyncResult(id_)
    state = handle.state
    assert handle.name in {task.name, fuzzed.run.name}  # or replaced
    for read in (lambda: handle.result, lambda: handle.info, lambda: handle.traceback, lambda: handle.errors):
        read()
    if state in READY_STATES:
        value = handle.get(timeout=5, propagate=False)
        last = outcomes[-1]
        if isinstance(last, Failed):
            assert state == "FAILURE"
            assert name_of(type(value)) == last.error.type
    else:
        # It waits for its time, as it has asked.
        assert isinstance(outcomes[-1], Retried | Replaced | Rejected)
        assert state == "RETRY" or (state == "PENDING" and not handle.retries)
    again = [outcome for outcome in outcomes if isinstance(outcome, Retried | Replaced)]
    begun = max((n for n, outcome in enumerate(again, 1) if isinstance(outcome, Replaced)), default=0)
    assert handle.retries == len(again) - begun
    assert followed[id_, "link"] == (links if state == "SUCCESS" else 0)
    assert followed[id_, "errback"] == (errbacks if state in ("FAILURE", "REJECTED") else 0)


@fuzz(0.05)
@given(CALLEES, ARGS, KWARGS, CALLS)
def test_a_call_that_is_refused_writes_nothing_and_any_other_is_a_job(
    conn: psycopg.Connection[Any], name: str, args: Any, kwargs: Any, options: dict[str, Any]
) -> None:
    def make() -> Any:
        return fuzzed.app.enqueue(job_of(name, args, kwargs, options))

    before = count(conn)
    handle = typed(make)
    if handle is None:
        assert count(conn) == before
    else:
        assert count(conn) == before + handle.created
        assert handle.state == "PENDING"


def count(conn: psycopg.Connection[Any]) -> int:
    (found,) = conn.execute("select count(*) from pgqueue.job").fetchone() or (0,)
    return int(found)


@pytest.fixture
def worker(dsn: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of four threads that ends when nothing is left to do."""
    command = [sys.executable, "-m", "pgqueue", "-A", "fuzzed", "worker", "-Q", "fuzz", "-P", "threads", "-c", "4"]
    with (tmp_path / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--burst"],
            cwd=APPS,
            env={**os.environ, "PGQUEUE_DSN": dsn, "PYTHONPATH": str(APPS)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_worker_outlives_its_tasks(
    conn: psycopg.Connection[Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ids = enqueue(jobs(0.1))
    worker: subprocess.Popen[bytes] = request.getfixturevalue("worker")
    try:
        code: int | None = worker.wait(60 + len(ids) / 10)
    except subprocess.TimeoutExpired:
        code = None
    assert code == 0, (tmp_path / "worker.log").read_text()[-5000:]
    assert conn.execute("select count(*) from pgqueue.job where worker is not null").fetchone() == (0,)
    # What is left waits for its time, as it has asked.
    due = conn.execute("select count(*) from pgqueue.job where queue = 'fuzz' and eta < now() - interval '1 s'")
    assert due.fetchone() == (0,)
    for id_ in ids:
        handle = fuzzed.app.AsyncResult(id_)
        assert handle.state in {*READY_STATES, "RETRY", "PENDING"}
        for name in ("info", "traceback", "errors"):
            getattr(handle, name)
