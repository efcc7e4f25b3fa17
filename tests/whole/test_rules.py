"""One test for each rule by which pgqueue departs from Celery where that loses, doubles or distorts work.

Numbers are those of the list of rules; 24, 26 to 30 and 39 are about canvases (chains, groups, chords): they are in
`test_canvas_rows.py`.

Workers are real; each is forked from a process that has imported everything, which is what keeps this short. What their
tasks do they write into a table. Races are staged with workers that the test plays itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgqueue import (
    InvalidArguments,
    InvalidOption,
    PgQueue,
    State,
    TaskFailed,
    TaskRejectedError,
    TaskRevokedError,
    TimeLimitExceeded,
    UnknownJob,
    WorkerLostError,
    signals,
)
from pgqueue.ids import new_id

APPS = Path(__file__).parent / "apps"

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]
Until = Callable[..., Any]
Said = Callable[..., list[list[str]]]
Gate = Callable[[], None]

LOST = '{"type": "WorkerLostError", "module": "pgqueue.errors", "message": "it was killed"}'
#: Where a process is killed: before an acknowledgement is sent, before its end is, and when it is committed.
KILLS = {
    "not sent": ("together.finish", "before"),
    "not committed": ("together.sync", "before"),
    "committed": ("together.sync", "after"),
}
#: A worker of these tests notices soon that a time has come, or that another has died.
SETTINGS = {"PGQUEUE_POLL_INTERVAL": "0.1", "PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "2"}
POOLS = {
    "prefork": ("-c", "1"),
    "threads": ("-P", "threads", "-c", "2"),
    "asyncio": ("-P", "asyncio", "-c", "2"),
    "solo": ("-P", "solo"),
}


# -- the stage -----------------------------------------------------------------------------------------------


class Forks:
    """The process of which workers are forked: `apps/failpoints.py` as a program."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._parent = subprocess.Popen(
            [sys.executable, "failpoints.py"],
            cwd=APPS,
            env={**os.environ, "PGQUEUE_DSN": dsn, **SETTINGS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready\n"

    def start(self, folder: Path, failpoints: list[dict[str, object]], arguments: tuple[str, ...]) -> int:
        """Start `pgqueue -A rules worker ...` as a group of processes; return its pid."""
        command = ["-A", "rules", "--dsn", self._dsn, "worker", "--grace", "5", *arguments]
        order = {"arguments": command, "log": str(folder / "log"), "folder": str(folder), "failpoints": failpoints}
        return int(self._ask({"start": order}))

    def ended(self, pid: int) -> int | None:
        """Return the exit code of a worker, None while it runs."""
        return self._ask({"poll": pid})  # type: ignore[no-any-return]

    def close(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(10)
        self._parent.stdout.close()

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._parent.stdout is not None
        ready, _, _ = select.select([self._parent.stdout], [], [], 20)
        assert ready, "the process that forks workers does not answer"
        return self._parent.stdout.readline()


class Worker:
    """A worker that runs: its processes are a group."""

    def __init__(self, forks: Forks, folder: Path, failpoints: list[dict[str, object]], *arguments: str) -> None:
        self._forks = forks
        self._folder = folder
        self.pid = forks.start(folder, failpoints, arguments)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def wait(self, timeout: float = 30.0) -> int:
        """Wait until it has ended; return its exit code."""
        deadline = time.monotonic() + timeout
        while (code := self._forks.ended(self.pid)) is None:
            assert time.monotonic() < deadline, f"it still runs: {self.log}"
            time.sleep(0.02)
        return code

    def end(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def kill(self) -> None:
        """Kill all its processes at once."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class Told:
    """What tasks have told so far, in order."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def __call__(self, job: Any = None) -> list[str]:
        """Return the words, of all or about one job."""
        return [word for word, _ in self.states(job)]

    def states(self, job: Any = None) -> list[tuple[str, str | None]]:
        """Return the words, each with the state that the job had for everybody when it was said."""
        return self._conn.execute(
            "select word, state from told where coalesce(job = %s, %s) order by n",
            [None if job is None else str(job), job is None],
        ).fetchall()


Work = Callable[..., Worker]


@pytest.fixture(scope="module")
def forks(_shared_dsn: str) -> Iterator[Forks]:
    found = Forks(_shared_dsn)
    yield found
    found.close()


@pytest.fixture
def rules(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgQueue]:
    """The app of these tests, on an empty database."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.syspath_prepend(str(APPS))
    import rules

    app: PgQueue = rules.app
    app.configure(dsn=dsn)
    yield app
    app.close()


@pytest.fixture
def told(conn: Connection) -> Told:
    conn.execute(
        "create table if not exists told (n bigint generated always as identity primary key,"
        " word text not null, job uuid, pid int, state text)"
    )
    conn.execute("delete from told")
    return Told(conn)


@pytest.fixture
def start(forks: Forks, rules: PgQueue, told: Told, tmp_path: Path) -> Iterator[Work]:
    """Starts a worker: `start("-c", "1", kill="committed")`; what still runs at the end is killed.

    `kill`: where the process is killed that acknowledges, the first time. `receivers`: signals are listened to.
    """
    started: list[Worker] = []

    def start(*arguments: str, kill: str = "", receivers: bool = False) -> Worker:
        folder = tmp_path / f"worker{len(started)}"
        folder.mkdir()
        if receivers:
            (folder / "receivers").touch()
        failpoints: list[dict[str, object]] = []
        if kill:
            point, when = KILLS[kill]
            failpoints.append({"point": point, "when": when, "action": "kill"})
        started.append(Worker(forks, folder, failpoints, "-n", f"w{len(started)}", *arguments))
        return started[-1]

    yield start
    for worker in started:
        if forks.ended(worker.pid) is None:
            worker.kill()


@pytest.fixture
def work(start: Work) -> Work:
    """Does what there is to do: `work("-c", "1")` runs a worker until nothing is left, and returns it."""

    def work(*arguments: str, **more: Any) -> Worker:
        worker = start("--burst", *(arguments or ("-c", "1")), **more)
        assert worker.wait() == 0, worker.log
        return worker

    return work


@pytest.fixture
def orders(conn: Connection) -> None:
    """A table for what transactional tasks do."""
    conn.execute("set lock_timeout = '5s'")
    conn.execute("drop table if exists orders")
    conn.execute("create table orders (number int)")


class Player:
    """A worker that the test plays itself."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id = new_id()

    def claim(self) -> list[tuple[str, int]]:
        """Claim what there is, suspects as well."""
        return self.connection.execute(
            "select id::text, attempt from pgqueue.claim(%s, '{default}', 10, p_alone => true)", [self.id]
        ).fetchall()

    def finish(self, job: Any, attempt: int, state: str, **more: object) -> bool:
        """Acknowledge an attempt; return whether that was accepted."""
        outcome = {"id": str(job), "attempt": attempt, "state": state, **more}
        rows = self.connection.execute("select pgqueue.finish(%s, %s)", [self.id, json.dumps([outcome])]).fetchall()
        return not rows

    def die(self) -> None:
        self.connection.execute("select from pgqueue.bury(%s, %s)", [self.id, LOST])


def count(conn: Connection, table: str) -> int:
    row = conn.execute(f"select count(*) from pgqueue.{table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def row(conn: Connection, table: str, job: Any) -> dict[str, Any]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(f"select * from pgqueue.{table} where id = %s".encode(), [str(job)]).fetchone()
        assert found is not None
        return dict(found)


@contextmanager
def in_thread(function: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(function)


DRAINED = "select not exists (select from pgqueue.job)"
BLOCKED = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%%finish%%')"


# -- one end for each attempt --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REJECTED", "IGNORED"])
def test_rule_01_a_late_retry_never_overwrites_what_became_of_the_job(
    rules: PgQueue, conn: Connection, state: str
) -> None:
    job = rules.tasks["rules.twice"].delay()
    late, present = Player(conn), Player(conn)
    assert late.claim() == [(job.id, 1)]
    late.die()
    assert present.claim() == [(job.id, 2)]
    for attempt in (1, 2):  # its own, and one that it never had
        assert not late.finish(job, attempt, "RETRY", countdown=0, retries=0)
    assert row(conn, "job", job)["retries"] == 0
    assert present.finish(job, 2, state, value=5)
    before = row(conn, "result", job)
    for player in (late, present):
        for attempt in (1, 2):
            assert not player.finish(job, attempt, "RETRY", countdown=0, retries=0)
    assert (count(conn, "job"), row(conn, "result", job)) == (0, before)
    assert job.state == state


@pytest.mark.parametrize("first", ["RETRY", "SUCCESS"])
def test_rule_01_of_two_outcomes_of_an_attempt_one_counts(
    rules: PgQueue, conn: Connection, connect: Connect, until: Until, first: str
) -> None:
    job = rules.tasks["rules.twice"].delay()
    player = Player(connect(autocommit=False))
    player.claim()
    player.connection.commit()
    other = Player(connect())
    other.id = player.id
    second = {"RETRY": "SUCCESS", "SUCCESS": "RETRY"}[first]
    assert player.finish(job, 1, first, value=5, countdown=0, retries=0)
    with in_thread(lambda: other.finish(job, 1, second, value=5, countdown=0, retries=0)) as accepted:
        until(BLOCKED)
        player.connection.commit()
        assert not accepted.result(10)
    assert (job.state, job.retries) == {"RETRY": (State.RETRY, 1), "SUCCESS": (State.SUCCESS, 0)}[first]
    assert count(conn, "job") + count(conn, "result") == 1


def test_rule_02_result_and_links_are_one_commit(rules: PgQueue, conn: Connection, connect: Connect) -> None:
    follow = rules.tasks["rules.follow"]
    job = rules.tasks["rules.add"].apply_async((2, 3), link=[follow.s("a"), follow.s("b")])
    player = Player(connect(autocommit=False))
    player.claim()
    player.connection.commit()
    for ending in (player.connection.rollback, player.connection.commit):
        assert player.finish(job, 1, "SUCCESS", value=5)
        assert (count(conn, "job"), count(conn, "result"), job.state) == (1, 0, State.STARTED)
        ending()
    assert (count(conn, "job"), count(conn, "result"), job.state) == (2, 1, State.SUCCESS)
    assert [child.args for child in job.children] == [[5, "a"], [5, "b"]]


def test_rule_02_a_link_that_cannot_be_stored_leaves_no_result_behind(
    rules: PgQueue, conn: Connection, work: Work
) -> None:
    job = rules.tasks["rules.add"].apply_async((2, 3), link=rules.tasks["rules.follow"].s())
    # As another client may have written it: a continuation that no row can hold.
    conn.execute('update pgqueue.job set links = \'[{"task": "rules.follow", "priority": 99}]\'')
    work()
    assert job.state == State.FAILURE
    assert (count(conn, "job"), count(conn, "result")) == (0, 1)


@pytest.mark.parametrize("kill", KILLS)
def test_rule_02_a_crash_at_the_acknowledgement_neither_loses_nor_doubles_a_link(
    rules: PgQueue, conn: Connection, told: Told, until: Until, start: Work, kill: str
) -> None:
    job = rules.tasks["rules.add"].apply_async((2, 3), link=rules.tasks["rules.follow"].s("once"))
    start("-c", "1", kill=kill)
    until(DRAINED)
    assert job.state == State.SUCCESS
    assert [(child.state, child.result) for child in job.children] == [(State.SUCCESS, [5, "once"])]
    assert told(job).count("body") == (1 if kill == "committed" else 2)
    assert ("follow", "SUCCESS") in told.states(job)  # the link never begins before the result is there
    assert told(job).count("follow") == 1
    assert (count(conn, "job"), count(conn, "result")) == (0, 2)


def test_rule_02_hooks_run_before_the_body_or_after_the_commit(rules: PgQueue, told: Told, work: Work) -> None:
    job = rules.tasks["rules.add"].delay(2)
    work()
    assert told.states(job) == [
        ("before_start", "STARTED"),
        ("body", "STARTED"),
        ("on_success", "SUCCESS"),
        ("after_return SUCCESS without", "SUCCESS"),
    ]


@pytest.mark.parametrize("kill", KILLS)
def test_rule_03_a_retry_is_the_same_row_whenever_the_worker_is_killed(
    rules: PgQueue, conn: Connection, told: Told, until: Until, start: Work, kill: str
) -> None:
    job = rules.tasks["rules.twice"].apply_async(link=rules.tasks["rules.follow"].s())
    start("-c", "1", kill=kill)
    until(DRAINED)
    crashed = kill != "committed"
    bodies = [word for word in told(job) if word.startswith("body")]
    assert len(bodies) == len(set(bodies)) == 2 + crashed  # one for each attempt that was begun
    assert (job.state, job.retries, job.crashes) == (State.SUCCESS, 1, int(crashed))
    assert [error.state for error in job.errors] == ["CRASH", "RETRY"][not crashed :]
    assert (count(conn, "job"), count(conn, "result")) == (0, 2)
    assert told(job).count("follow") == 1


def test_rule_04_a_hard_limit_is_reported_once(rules: PgQueue, conn: Connection, told: Told, work: Work) -> None:
    job = rules.tasks["rules.overrun"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    work(receivers=True)
    assert sorted(told(job)) == [
        "after_return FAILURE with",
        "before_start",
        "body",
        "mourn",
        "on_failure TimeLimitExceeded TimeLimitExceeded",
        "task_failure",
    ]
    assert isinstance(job.result, TimeLimitExceeded)
    assert (job.attempt, job.errors) == (1, [])
    assert [child.result for child in job.children] == [["TimeLimitExceeded"]]


def test_rule_05_a_timeout_that_is_not_acknowledged_is_no_failure_until_the_last_attempt(
    rules: PgQueue, told: Told, work: Work
) -> None:
    job = rules.tasks["rules.overrun_unacknowledged"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    work(receivers=True)
    said = told.states(job)
    assert said[:6] == [("before_start", "STARTED"), ("body", "STARTED")] * 3
    assert sorted(said[6:]) == [
        ("after_return FAILURE with", "FAILURE"),
        ("mourn", "FAILURE"),
        ("on_failure TimeLimitExceeded TimeLimitExceeded", "FAILURE"),
        ("task_failure", "FAILURE"),
    ]
    assert (job.attempt, job.crashes) == (3, 2)


def test_rule_06_a_poisoned_job_has_an_end(rules: PgQueue, told: Told, work: Work) -> None:
    job = rules.tasks["rules.poison"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    beside = [rules.tasks["rules.pid"].delay() for _ in range(5)]
    work()
    said = told(job)
    assert said.count("body") == 3  # the first, and max_crashes repeats
    assert [said.count(word) for word in ("mourn", "on_failure WorkerLostError WorkerLostError")] == [1, 1]
    assert isinstance(job.result, WorkerLostError)
    assert [error.state for error in job.errors] == ["CRASH"] * 2
    assert {other.state for other in beside} == {State.SUCCESS}


def test_rule_07_a_failure_that_is_not_acknowledged_is_kept_with_its_reason(
    rules: PgQueue, conn: Connection, work: Work
) -> None:
    kept = rules.tasks["rules.dead_letter"].apply_async((1,), {"y": "two"}, headers={"from": "us"})
    dropped = rules.tasks["rules.dropped"].apply_async((1,), {"y": "two"})
    work()
    found = row(conn, "result", kept)
    assert [found[name] for name in ("state", "args", "kwargs", "headers")] == [
        "FAILURE", [1], {"y": "two"}, {"from": "us"},
    ]  # fmt: skip
    assert found["error"]["message"] == "kept"
    assert rules.AsyncResult(dropped.id).state == State.UNKNOWN
    assert count(conn, "job") == 0


@pytest.mark.parametrize("task", ["hand_back", "hand_back_early"])
def test_rule_08_reject_with_requeue_hands_back_whatever_is_acknowledged_when_and_has_an_end(
    rules: PgQueue, told: Told, start: Work, task: str
) -> None:
    job = rules.tasks[f"rules.{task}"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    start("-c", "1")
    with pytest.raises(TaskRejectedError, match="not now"):
        job.get(timeout=20)
    (mourner,) = job.children
    assert mourner.get(timeout=20) == ["TaskRejectedError"]
    assert told.states(job) == [("body", "STARTED")] * 3 + [("mourn", "REJECTED")]
    assert (job.retries, job.crashes) == (0, 0)
    assert [error.state for error in job.errors] == ["REQUEUE"] * 2


def test_rule_09_whoever_waits_for_an_ignored_job_is_answered(rules: PgQueue, until: Until, start: Work) -> None:
    job = rules.tasks["rules.ignore"].delay()
    with in_thread(lambda: job.get(timeout=20)) as answer:
        until("select exists (select from pgqueue.waiter)")
        start("-c", "1")
        assert answer.result(20) is None
    assert (job.state, job.ready(), job.successful(), job.failed()) == (State.IGNORED, True, False, False)


def test_rule_10_a_task_that_is_out_of_memory_fails_and_only_its_process_is_replaced(
    rules: PgQueue, conn: Connection, told: Told, said: Said, gate: Gate, start: Work
) -> None:
    held = rules.tasks["rules.held"].delay()
    start("-c", "2")
    said()
    job = rules.tasks["rules.run_out_of_memory"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    with pytest.raises(MemoryError, match="asked for too much"):
        job.get(timeout=20)
    after = rules.tasks["rules.pid"].delay().get(timeout=20)
    gate()
    assert held.get(timeout=20) == 1  # it ran beside, and was not begun anew
    pids = dict(conn.execute("select word, pid from told").fetchall())
    assert len({after, pids["body"], pids["held 1"]}) == 3
    assert (job.retries, job.crashes) == (0, 0)
    assert told(job)[:2] == ["before_start", "body"]
    assert told(job).count("on_failure MemoryError MemoryError") == told(job).count("mourn") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_rule_11_whatever_a_body_raises_is_recorded_in_every_pool(rules: PgQueue, work: Work, pool: str) -> None:
    kinds = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "Unheard")
    mourn = rules.tasks["rules.mourn"]
    jobs = {
        (task, kind): rules.tasks[f"rules.{task}"].apply_async((kind,), link_error=mourn.s())
        for task in ("leave", "aleave")
        for kind in kinds
    }
    last = rules.tasks["rules.pid"].apply_async(priority=0)
    work(*POOLS[pool])
    for (task, kind), job in jobs.items():
        assert (job.state, job.retries, job.crashes) == (State.FAILURE, 0, 0), (task, kind)
        with pytest.raises(TaskFailed, match="leaving") as failure:
            job.get(timeout=0)
        assert (type(failure.value).__name__, failure.value.error.type) == (kind, kind)
        assert [child.result for child in job.children] == [[kind]]
    assert last.successful()


def test_rule_12_hooks_and_receivers_that_fail_change_nothing(rules: PgQueue, told: Told, work: Work) -> None:
    more: dict[str, Any] = {"link": rules.tasks["rules.follow"].s(), "link_error": rules.tasks["rules.mourn"].s()}
    good, bad, again = (rules.tasks["rules.clumsy"].apply_async((how,), **more) for how in ("return", "fail", "retry"))
    work(receivers=True)
    assert (good.state, good.result, bad.state, again.state, again.retries) == (
        State.SUCCESS, "return", State.FAILURE, State.SUCCESS, 1,
    )  # fmt: skip
    assert isinstance(bad.result, ValueError)
    assert sorted(told(good)) == ["after_return", "body", "follow", "on_success"]
    assert sorted(told(bad)) == ["after_return", "body", "mourn", "on_failure", "task_failure"]
    assert sorted(told(again)) == ["after_return", "body", "body", "follow", "on_retry", "on_success"]
    hooked = {job: [(error.hook, error.error.message) for error in job.errors] for job in (good, bad, again)}
    assert hooked[good] == [
        ("on_success", "in on_success"), ("task_success", "in task_success"), ("after_return", "in after_return"),
    ]  # fmt: skip
    assert hooked[bad] == [
        ("on_failure", "in on_failure"), ("task_failure", "in task_failure"), ("after_return", "in after_return"),
    ]  # fmt: skip
    assert sorted(hook for hook, _ in hooked[again] if hook) == [
        "after_return", "on_retry", "on_success", "task_success",
    ]  # fmt: skip


# -- states --------------------------------------------------------------------------------------------------


def refuses(rules: PgQueue, told: Told, start: Work, states: tuple[str, ...]) -> None:
    """A task, and whoever knows an id, try to give a job these states; none of it is accepted."""
    meta = {"not": "an exception"}
    task = rules.tasks["rules.claim_state"]
    jobs = [task.delay(state, meta) for state in states]
    for job, state in zip(jobs, states, strict=True):
        with pytest.raises(InvalidOption, match=state):
            task.update_state(job.id, state, meta)
        assert job.state == State.PENDING
    start("-c", "1")
    for job in jobs:
        assert job.get(timeout=20) == "real"
        assert job.state == State.SUCCESS
    assert told.states() == [("said", "PROGRESS")] * len(states)


def test_rule_13_a_task_cannot_say_that_it_has_failed(
    rules: PgQueue, conn: Connection, told: Told, start: Work
) -> None:
    refuses(rules, told, start, ("FAILURE", "RETRY", "REVOKED", "REJECTED", "IGNORED"))
    job = rules.tasks["rules.add"].apply_async((1,), countdown=60)
    with pytest.raises(psycopg.Error, match="cannot say that its state is FAILURE") as refused:
        conn.execute("select pgqueue.set_state(%s, null, null, 'FAILURE', '{}')", [job.id])
    assert refused.value.sqlstate == "PQ002"
    assert job.state == State.PENDING


def test_rule_14_a_task_cannot_say_that_it_has_succeeded(
    rules: PgQueue, conn: Connection, told: Told, start: Work
) -> None:
    refuses(rules, told, start, ("SUCCESS", "STARTED", "PENDING", "UNKNOWN"))
    job = rules.tasks["rules.add"].apply_async((1,), countdown=60)
    with pytest.raises(psycopg.Error, match="cannot say that its state is SUCCESS"):
        conn.execute("select pgqueue.set_state(%s, null, null, 'SUCCESS', '7')", [job.id])
    assert job.state == State.PENDING


# -- retries -------------------------------------------------------------------------------------------------


def test_rule_15_limits_of_one_job_are_nothing_to_the_next(
    rules: PgQueue, conn: Connection, told: Told, start: Work
) -> None:
    limited, backed_off, kwargs = (rules.tasks[f"rules.{name}"] for name in ("limited", "backed_off", "retry_kwargs"))
    start("-c", "1")  # a single process: what leaks meets the next
    before = kwargs.delay().get(timeout=20)
    bodies = []
    for task, args in ((limited, (1,)), (limited, ()), (backed_off, ()), (backed_off, ())):
        job = task.apply_async(args)
        assert isinstance(job.get(timeout=20, propagate=False), RuntimeError | OSError)
        assert told(job).count("body") == job.retries + 1
        bodies.append(job.retries + 1)
    assert bodies == [2, 4, 3, 3]
    assert kwargs.delay().get(timeout=20) == before == repr(({"max_retries": 2, "countdown": 5},) * 2)
    assert conn.execute("select count(distinct pid) from told").fetchone() == (1,)


def test_rule_16_automatic_retries_let_pass_what_a_task_says_itself(rules: PgQueue, told: Told, start: Work) -> None:
    task = rules.tasks["rules.predicate"]
    jobs = {kind: task.delay(kind) for kind in ("ignore", "reject", "requeue", "retry", "raised")}
    start("-c", "1")
    ended = {kind: job.get(timeout=20, propagate=False) for kind, job in jobs.items()}
    assert {kind: (job.state, job.retries, told(job).count("body")) for kind, job in jobs.items()} == {
        "ignore": (State.IGNORED, 0, 1),
        "reject": (State.REJECTED, 0, 1),
        "requeue": (State.REJECTED, 0, 3),
        "retry": (State.SUCCESS, 1, 2),
        "raised": (State.SUCCESS, 1, 2),
    }
    assert ended["retry"] == ended["raised"] == "done"


@pytest.fixture
def eager(dsn: str) -> Iterator[PgQueue]:
    """An app whose calls run here and now, and raise what they fail with."""
    app = PgQueue("eager", dsn=dsn, set_as_current=False)
    app.conf.update({"task_always_eager": True, "task_eager_propagates": True})
    yield app
    app.close()


def test_rule_17_eager_runs_retry_and_raise_only_what_they_fail_with_at_last(eager: PgQueue, conn: Connection) -> None:
    attempts: list[int] = []

    @eager.task(bind=True, max_retries=2, default_retry_delay=3600, autoretry_for=(KeyError,))
    def third_time(self: Any, how: str, ends: int) -> int:
        attempts.append(self.request.retries)
        if self.request.retries >= ends:
            return len(attempts)
        if how == "auto":
            raise KeyError(self.request.retries)
        self.retry(exc=KeyError(self.request.retries), countdown=3600)
        return 0

    calls: list[Callable[..., Any]] = [
        lambda *args: third_time.delay(*args),
        lambda *args: third_time.apply(args, throw=True),
        lambda *args: third_time.s(*args).apply_async(),
    ]
    for how in ("auto", "explicit"):
        for call in calls:
            attempts.clear()
            assert call(how, 2).get() == 3
            assert attempts == [0, 1, 2]
            attempts.clear()
            with pytest.raises(KeyError, match="2"):
                call(how, 9)
            assert attempts == [0, 1, 2]
    assert (count(conn, "job"), count(conn, "result")) == (0, 0)


def test_rule_18_links_of_eager_runs_run_here_too(eager: PgQueue, conn: Connection) -> None:
    ran: list[tuple[Any, ...]] = []

    @eager.task(bind=True)
    def note(self: Any, *args: Any) -> str:
        ran.append((self.request.is_eager, self.request.parent_id, *args))
        return "noted"

    @eager.task
    def halve(x: int) -> float:
        if x % 2:
            raise ValueError("odd")
        return x / 2

    links: dict[str, Any] = {
        "link": [note.s("first").set(link=note.s("second")), note.si("alone")],
        "link_error": note.s("failed"),
    }
    good = halve.apply((4,), **links)
    first, alone = good.children
    assert ran == [(True, good.id, 2.0, "first"), (True, first.id, "noted", "second"), (True, good.id, "alone")]
    assert alone.get() == "noted"
    ran.clear()
    bad = halve.apply((3,), throw=False, **links)
    assert ran == [(True, bad.id, bad.id, "failed")]
    assert (count(conn, "job"), count(conn, "result")) == (0, 0)


def test_rule_19_options_of_a_call_outlast_a_retry(rules: PgQueue, conn: Connection, work: Work) -> None:
    once_more = rules.tasks["rules.once_more"]
    job = once_more.apply_async(
        (3600,), {"x": 2}, priority=7, queue="other", headers={"a": {"b": [1]}}, shadow="shown", time_limit=50,
        soft_time_limit=40, expires=3000, ignore_result=True, unique_key="one", add_to_parent=False,
        link=rules.tasks["rules.follow"].s("l"), link_error=rules.tasks["rules.mourn"].s("e"),
    )  # fmt: skip
    before = row(conn, "job", job)
    work("-c", "1", "-Q", "other")
    after = row(conn, "job", job)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"eta", "attempt", "retries", "history"}
    assert after["retries"] == 1


def test_rule_19_a_result_that_a_call_ignores_is_ignored_after_a_retry_and_a_crash(
    rules: PgQueue, conn: Connection, told: Told, until: Until, start: Work
) -> None:
    once_more, dropped = rules.tasks["rules.once_more"], rules.tasks["rules.dropped"]
    ignored = [once_more.apply_async((0,), ignore_result=True) for _ in range(2)]
    kept = dropped.apply_async((1,), {"y": ""}, ignore_result=False)
    start("-c", "1", kill="not sent")
    until(DRAINED)
    assert {told(job).count("body") for job in ignored} <= {2, 3}
    assert [rules.AsyncResult(job.id).state for job in ignored] == [State.UNKNOWN] * 2
    assert kept.state == State.FAILURE
    assert (count(conn, "job"), count(conn, "result")) == (0, 1)


# -- calls ---------------------------------------------------------------------------------------------------


def test_rule_20_a_call_changes_neither_the_defaults_nor_what_it_was_given(rules: PgQueue, conn: Connection) -> None:
    add, follow = rules.tasks["rules.add"], rules.tasks["rules.follow"]
    options: dict[str, Any] = {
        "queue": "other", "priority": 9, "headers": {"a": 1}, "expires": 60, "ignore_result": True, "time_limit": 9.0,
        "soft_time_limit": 8.0, "shadow": "s", "countdown": 5, "link": [follow.s()], "link_error": [follow.s()],
    }  # fmt: skip
    given = {name: value.copy() if hasattr(value, "copy") else value for name, value in options.items()}
    args, kwargs = [1], {"y": 2}
    own = {name: value for name, value in vars(add).items() if not name.startswith("_")}

    def trace(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = "t"

    plain = [add.apply_async(args, kwargs)]
    signals.before_task_publish.connect(trace)
    try:
        rich = add.apply_async(args, kwargs, **options)
        traced = add.apply_async(args, kwargs)
    finally:
        signals.before_task_publish.disconnect(trace)
    plain.append(add.apply_async(args, kwargs))
    assert (options, args, kwargs) == (given, [1], {"y": 2})
    assert {name: value for name, value in vars(add).items() if not name.startswith("_")} == own
    first, last = (
        {name: value for name, value in row(conn, "job", job).items() if name not in ("id", "eta", "enqueued_at")}
        for job in plain
    )
    assert first == last
    assert (row(conn, "job", rich)["headers"], row(conn, "job", traced)["headers"]) == (
        {"a": 1, "trace": "t"}, {"trace": "t"},
    )  # fmt: skip


WRONG_LIMITS: list[dict[str, Any]] = [
    {"time_limit": 0},
    {"time_limit": -1},
    {"time_limit": "soon"},
    {"time_limit": True},
    {"time_limit": float("nan")},
    {"time_limit": float("inf")},
    {"time_limit": timedelta(0)},
    {"soft_time_limit": 0},
    {"soft_time_limit": -0.5},
    {"soft_time_limit": [5]},
    {"time_limit": 5, "soft_time_limit": 5},
    {"time_limit": timedelta(seconds=5), "soft_time_limit": 6},
]


@pytest.mark.parametrize("limits", WRONG_LIMITS, ids=str)
def test_rule_21_time_limits_are_checked_where_the_call_is_made(
    rules: PgQueue, conn: Connection, connect: Connect, limits: dict[str, Any]
) -> None:
    add = rules.tasks["rules.add"]
    theirs = connect(autocommit=False)
    for call in (
        lambda: add.apply_async((1,), **limits),
        lambda: add.apply_async((1,), connection=theirs, **limits),
        lambda: add.s(1).set(**limits),
        lambda: add.s(1).apply_async(**limits),
        lambda: rules.send_task("elsewhere.add", (1,), **limits),
        lambda: add.apply((1,), **limits),
        lambda: rules.task(name="rules.never", **limits)(os.getpid),
    ):
        with pytest.raises(InvalidOption, match="time_limit"):
            call()
    theirs.commit()
    assert count(conn, "job") == 0


# -- never again ---------------------------------------------------------------------------------------------


def test_rule_22_an_id_that_has_succeeded_is_never_run_again(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    add, follow = rules.tasks["rules.add"], rules.tasks["rules.follow"]
    job = add.apply_async((2, 3), link=follow.s())
    copy = row(conn, "job", job)
    work()
    stored = row(conn, "result", job)
    again = add.apply_async((20, 30), task_id=job.id, link=follow.s())
    assert (again.id, again.created, count(conn, "job")) == (job.id, False, 0)
    # By other ways than a call: rows of a backup, for example.
    conn.execute(
        "insert into pgqueue.job (id, task, args, links, eta, enqueued_at) values (%s, %s, '[9]', %s, now(), now())",
        [job.id, copy["task"], json.dumps(copy["links"])],
    )
    work()
    assert (told(job).count("body"), told(job).count("follow")) == (1, 1)
    assert (count(conn, "job"), row(conn, "result", job)) == (0, stored)


def test_rule_22_an_outcome_that_is_sent_twice_is_continued_once(
    rules: PgQueue, conn: Connection, until: Until, connect: Connect
) -> None:
    follow = rules.tasks["rules.follow"]
    job = rules.tasks["rules.add"].apply_async((2, 3), link=[follow.s("a"), follow.s("b")])
    player, echo = Player(connect(autocommit=False)), Player(conn)
    echo.id = player.id
    assert echo.claim() == [(job.id, 1)]
    # A connection breaks during COMMIT, nobody heard the answer, and the worker asks again on another one.
    player.finish(job, 1, "SUCCESS", value=5)
    other = Player(connect())
    other.id = player.id
    with in_thread(lambda: other.finish(job, 1, "SUCCESS", value=5)) as accepted:
        until(BLOCKED)
        player.connection.commit()
        assert accepted.result(10)
    assert echo.finish(job, 1, "SUCCESS", value=5)
    assert (count(conn, "job"), count(conn, "result")) == (2, 1)
    for link in job.children:  # when they have ended as well
        conn.execute("select pgqueue.revoke(%s)", [link.id])
    assert echo.finish(job, 1, "SUCCESS", value=5)
    assert (count(conn, "job"), count(conn, "result")) == (0, 3)


def test_rule_23_a_revocation_needs_no_worker_and_outlasts_all_of_them(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    add = rules.tasks["rules.add"]
    waiting, later = add.delay(1), add.apply_async((2,), countdown=3600)
    for job in (waiting, later):
        assert job.revoke() == State.REVOKED
    assert count(conn, "job") == 0  # nothing lingers in anybody's memory
    for _ in range(2):
        work()
    assert told() == []
    for job in (waiting, later):
        assert job.state == State.REVOKED
        with pytest.raises(TaskRevokedError):
            job.get(timeout=0)


def test_rule_23_a_revocation_of_what_runs_outlasts_its_worker(
    rules: PgQueue, told: Told, said: Said, gate: Gate, start: Work
) -> None:
    job = rules.tasks["rules.held"].apply_async(link_error=rules.tasks["rules.mourn"].s())
    first = start("-c", "1")
    said()
    assert job.revoke() == State.STARTED
    first.kill()
    second = start("-c", "1")
    with pytest.raises(TaskRevokedError):
        job.get(timeout=20)
    gate()
    assert second.end() == 0, second.log
    assert told() == ["held 1"]


def test_rule_23_a_revocation_never_overwrites_a_result(rules: PgQueue, conn: Connection, work: Work) -> None:
    jobs = [
        rules.tasks[f"rules.{name}"].apply_async(args)
        for name, args in (("add", (1,)), ("fail", ()), ("ignore", ()), ("predicate", ("reject",)))
    ]
    work()
    before = [row(conn, "result", job) for job in jobs]
    assert [job.revoke() for job in jobs] == [State.SUCCESS, State.FAILURE, State.IGNORED, State.REJECTED]
    assert [row(conn, "result", job) for job in jobs] == before
    assert rules.AsyncResult(new_id()).revoke() == State.UNKNOWN
    assert (count(conn, "job"), count(conn, "result")) == (0, len(jobs))


def test_rule_25_an_eta_is_in_the_row_and_no_worker_holds_it(
    rules: PgQueue, conn: Connection, told: Told, until: Until, start: Work
) -> None:
    workers = [start("-c", "1") for _ in range(3)]
    until("select count(*) >= 3 from pgqueue.worker")
    eta = datetime.now(UTC) + timedelta(hours=1)
    job = rules.tasks["rules.describe"].apply_async(eta=eta)
    assert rules.tasks["rules.add"].delay(1).get(timeout=20) == 1  # somebody has looked since
    for worker in workers[:2]:
        worker.kill()
    waiting = row(conn, "job", job)
    assert (waiting["eta"], waiting["worker"], waiting["attempt"]) == (eta, None, 0)
    # The hour passes. Were the time in a worker's memory, it would not know.
    conn.execute("update pgqueue.job set eta = now() + interval '0.3 seconds' where id = %s", [job.id])
    soon = row(conn, "job", job)["eta"]
    assert json.loads(job.get(timeout=20)) == [1, soon.isoformat(), 0]
    assert row(conn, "result", job)["claimed_at"] >= soon
    assert job.crashes == 0


# -- what callers see ----------------------------------------------------------------------------------------


def test_rule_31_an_exception_never_loses_its_name(rules: PgQueue, work: Work) -> None:
    kinds = ("coded", "picky", "local", "remote", "odd", "caused", "group")
    jobs = {kind: rules.tasks["rules.raise_one"].delay(kind) for kind in kinds}
    work()
    import rules as module

    found = {kind: job.get(timeout=0, propagate=False) for kind, job in jobs.items()}
    assert {kind: (type(error).__module__, type(error).__qualname__) for kind, error in found.items()} == {
        "coded": ("rules", "Coded"),
        "picky": ("rules", "Picky"),
        "local": ("rules", "raise_one.<locals>.Local"),
        "remote": ("only.the.worker.has.it", "Remote"),
        "odd": ("rules", "Coded"),
        "caused": ("rules", "Coded"),
        "group": ("builtins", "ExceptionGroup"),
    }
    assert type(found["coded"]) is module.Coded
    assert list(found["coded"].args) == ["a", 1, {"b": [2]}]
    assert "code 7" in str(found["picky"])
    assert found["remote"].error.args == ("far", 1)
    assert isinstance(found["caused"], module.Coded)
    assert found["caused"].__notes__ == ["a note"]
    remote = found["caused"].__cause__
    assert isinstance(remote, TaskFailed)
    assert "KeyError: 'below'" in str(remote)
    assert isinstance(remote.__cause__, KeyError)
    assert [type(error) for error in found["group"].exceptions] == [module.Coded, KeyError]
    for job in jobs.values():
        assert "raise_one" in (job.traceback or "")
    assert "only.the.worker.has.it" not in sys.modules


def test_rule_32_a_job_that_waits_is_not_one_that_nobody_knows(rules: PgQueue, connect: Connect) -> None:
    nobody = rules.AsyncResult(new_id())
    assert (nobody.state, nobody.exists(), nobody.ready()) == (State.UNKNOWN, False, False)
    with pytest.raises(UnknownJob, match=nobody.id):
        nobody.get(timeout=0.1)
    theirs = connect(autocommit=False)
    job = rules.tasks["rules.add"].apply_async((1,), connection=theirs)
    assert (job.state, job.exists()) == (State.UNKNOWN, False)
    theirs.commit()
    assert (job.state, job.exists(), job.ready()) == (State.PENDING, True, False)


def test_rule_33_a_cold_stop_hands_back_and_counts_nothing(
    rules: PgQueue, conn: Connection, told: Told, said: Said, gate: Gate, start: Work
) -> None:
    errback = rules.tasks["rules.mourn"].s()
    late = rules.tasks["rules.held"].apply_async(priority=9, link_error=errback)
    early = rules.tasks["rules.held_once"].apply_async(priority=9, link_error=errback)
    waiting = [rules.tasks["rules.held"].delay() for _ in range(10)]
    done = rules.tasks["rules.add"].apply_async((1,), priority=9)
    first = start("-P", "threads", "-c", "3")
    assert len(said(7)) == 7  # four times the one that ends, then one that waited takes its place
    assert done.get(timeout=20) == 1
    first.end(signal.SIGQUIT)
    # Not RETRY: nothing was asked for. What may start only once cannot be handed back, and is not forgotten either.
    assert (late.state, late.crashes, late.retries, late.errors) == (State.PENDING, 0, 0, [])
    assert isinstance(early.result, WorkerLostError)
    assert {(job.state, job.crashes) for job in waiting} == {(State.PENDING, 0)}
    assert conn.execute("select count(*) from pgqueue.job where worker is not null").fetchone() == (0,)
    gate()
    start("-P", "threads", "-c", "3")
    assert late.get(timeout=20) > 1
    for job in waiting:
        assert job.get(timeout=20)
    assert sum(word.startswith("held") for word in told()) == 1 + 2 + 11
    assert told(done).count("body") == 1
    assert told(early).count("held 1") == told(early).count("mourn") == 1
    assert "mourn" not in told(late)


@pytest.mark.usefixtures("orders")
def test_rule_34_a_call_is_part_of_the_callers_transaction(
    rules: PgQueue, conn: Connection, connect: Connect, told: Told, work: Work
) -> None:
    add, follow, mourn = (rules.tasks[f"rules.{name}"] for name in ("add", "follow", "mourn"))
    theirs = connect(autocommit=False)
    for ending in (theirs.rollback, theirs.commit):
        theirs.execute("insert into orders values (1)")
        job = add.apply_async((1,), connection=theirs, link=follow.s(), link_error=mourn.s())
        assert (count(conn, "job"), Player(conn).claim(), job.state) == (0, [], State.UNKNOWN)
        ending()
    assert conn.execute("select count(*) from orders").fetchone() == (1,)
    assert (count(conn, "job"), job.state) == (1, State.PENDING)
    good, bad = (rules.tasks["rules.order"].delay(number, settled) for number, settled in ((2, True), (3, False)))
    work()
    assert (good.state, bad.state) == (State.SUCCESS, State.FAILURE)
    assert conn.execute("select number from orders order by number").fetchall() == [(1,), (2,)]
    assert bad.children == []
    assert [child.result for child in good.children] == [2]
    assert sorted(told()).count("follow") == sorted(told()).count("body") == 2
    assert "mourn" not in told()
    assert count(conn, "job") == 0


def test_rule_35_waiting_is_refused_in_a_task_and_not_beside_it(
    rules: PgQueue, until: Until, said: Said, gate: Gate, start: Work
) -> None:
    awaited = rules.tasks["rules.held"].delay()
    beside = rules.tasks["rules.wait_beside"].delay(awaited.id)
    start("-P", "threads", "-c", "2")
    assert len(said(2)) == 2
    until("select exists (select from pgqueue.waiter)")
    gate()
    assert beside.get(timeout=20) == ["get()", 1, 1]


def send(conn: Connection, task: str, args: str, kwargs: str, **more: object) -> str:
    """Enqueue as a client does that knows nothing of the task."""
    text = f'[{{"task": "{task}", "args": {args}, "kwargs": {kwargs}, "errbacks": [{{"task": "rules.mourn"}}]}}]'
    found = conn.execute("select id::text from pgqueue.enqueue_many(%s)", [text]).fetchone()
    assert found is not None
    return str(found[0])


# -- hooks and errors ----------------------------------------------------------------------------------------


def test_rule_36_every_failure_calls_the_same_hooks_whoever_finds_it(
    rules: PgQueue, conn: Connection, told: Told, until: Until, said: Said, start: Work
) -> None:
    lost_alone = rules.tasks["rules.held_or_lost"].delay()
    first = start("-c", "1")
    said()
    first.kill()  # with its supervisor: others have to find out
    jobs = {
        "ValueError": rules.tasks["rules.fail"].delay(),
        "InvalidArguments": rules.AsyncResult(send(conn, "rules.strict", '["no number"]', "{}")),
        "TimeLimitExceeded": rules.tasks["rules.overrun"].delay(),
        "WorkerLostError": rules.tasks["rules.lose"].delay(),
    }
    start("-c", "1", receivers=True)
    until("select count(*) = 5 from told where word like 'after_return%%'")
    for name, job in (*jobs.items(), ("WorkerLostError", lost_alone)):
        failure = [said for said in told.states(job) if said[0].startswith(("on_", "after_", "task_"))]
        assert failure[0] == (f"on_failure {name} {name}", "FAILURE")
        assert failure[-1] == ("after_return FAILURE with", "FAILURE")
        assert len(failure) == 3
        assert job.retries == 0


def test_rule_37_a_task_that_calls_itself_is_not_its_job_there(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    job = rules.tasks["rules.call_myself"].delay(1)
    work()
    # Outside: the job, before and after. Inside: a plain call, whose retry() raises.
    assert job.result == [False, 0, True, True, None]
    assert (job.attempt, job.retries, job.args) == (1, 0, [1])
    assert told() == ["inner True None"]
    assert (count(conn, "job"), count(conn, "result")) == (0, 1)


@pytest.mark.parametrize("pool", POOLS)
def test_rule_38_of_an_exception_only_text_outlives_its_attempt(
    rules: PgQueue, told: Told, start: Work, pool: str
) -> None:
    hows = ("raise", "retry", "reject")
    start(*POOLS[pool][:-1], "1" if pool != "solo" else "solo")  # one slot: what is left over is there to be seen
    watched = rules.tasks["rules.watched_hoard"].delay("raise")
    jobs = [rules.tasks[f"rules.{task}"].delay(how) for task in ("hoard", "ahoard") for how in hows]
    for job in (watched, *jobs):
        if job.args != ["retry"]:
            job.get(timeout=20, propagate=False)
    after = rules.tasks["rules.left_over"].apply_async(priority=0)
    assert after.get(timeout=20) == [7, 0, 0]
    assert told(watched) == ["on_failure frames text"]  # it is told after the commit, and frees it then
    for job in (watched, *jobs):
        assert "below" in (job.traceback or "") or job.args == ["reject"]


def test_rule_40_errbacks_are_jobs_that_are_given_the_id(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    mourn, shortly, vain = (rules.tasks[f"rules.{name}"] for name in ("mourn", "mourn_shortly", "mourn_in_vain"))
    job = rules.tasks["rules.fail"].apply_async(
        ("why",),
        link_error=[
            mourn.s("bound", 2),
            shortly.s(),
            vain.s("b", "c"),  # as many as Celery would call in the worker that has failed
            rules.tasks["rules.follow"].si("alone"),
            rules.signature("elsewhere.mourn", ("x",)),
        ],
    )
    work()
    assert isinstance(job.result, ValueError)
    bound, alike, failing, alone, elsewhere = job.children
    assert (bound.result, alike.result, alone.result) == (["ValueError", "bound", 2], job.id, ["alone"])
    assert failing.state == State.FAILURE  # nobody mourns for mourners, and nothing changes
    assert (elsewhere.state, elsewhere.args) == (State.PENDING, [job.id, "x"])
    assert [said for said in told.states(job) if said[0] == "mourn"] == [("mourn", "FAILURE")] * 3
    assert {row(conn, "result", errback)["parent_id"] for errback in (bound, failing)} == {
        row(conn, "result", job)["id"]
    }


BAD_ARGUMENTS = [
    ('["no number"]', "{}"),
    ("[]", "{}"),
    ("[1, 2, 3]", "{}"),
    ("[1]", '{"z": 1}'),
    ("[1]", '{"y": "no number"}'),
    ("[1]", '{"x": 2}'),
    ("[1]", '{"not a name": 1, "": 2}'),
    ("[null]", "{}"),
]


def test_rule_41_arguments_that_do_not_fit_are_a_failure(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    ids = [send(conn, "rules.strict", *given) for given in BAD_ARGUMENTS]
    for args, kwargs in (("{}", "{}"), ("[1]", "[]"), ("[1]", '"y"'), ("5", "{}")):
        with pytest.raises(psycopg.errors.CheckViolation):  # no row can have them
            send(conn, "rules.strict", args, kwargs)
    work(receivers=True)
    for id_ in ids:
        job = rules.AsyncResult(id_)
        assert (job.state, job.crashes) == (State.FAILURE, 0)
        with pytest.raises(InvalidArguments):
            job.get(timeout=0)
        assert sorted(told(id_)) == [
            "after_return FAILURE with", "mourn", "on_failure InvalidArguments InvalidArguments", "task_failure",
        ]  # fmt: skip


UNREADABLE = [
    ('["\\ud800"]', "{}"),
    ('[{"$datetime": "no time"}]', "{}"),
    ("[1]", '{"y": {"$decimal": [1]}}'),
    ("[1e400]", "{}"),
    ("[" * 900 + "]" * 900, "{}"),
]


def test_rule_42_what_cannot_be_read_is_kept_as_a_failure(
    rules: PgQueue, conn: Connection, told: Told, work: Work
) -> None:
    ids = [new_id() for _ in UNREADABLE]
    for id_, given in zip(ids, UNREADABLE, strict=True):  # enqueue_many would refuse some of it
        conn.execute(
            "insert into pgqueue.job (id, task, args, kwargs, errbacks, eta, enqueued_at)"
            " values (%s, 'rules.strict', %s, %s, '[{\"task\": \"rules.mourn\"}]', now(), now())",
            [id_, *given],
        )
    beside = rules.tasks["rules.add"].delay(1)
    work(receivers=True)
    for id_, given in zip(ids, UNREADABLE, strict=True):
        job = rules.AsyncResult(id_)
        assert (job.state, job.crashes) == (State.FAILURE, 0), given[0][:40]
        assert isinstance(job.result, InvalidArguments), given[0][:40]
        stored = conn.execute("select args::text, kwargs::text from pgqueue.result where id = %s", [id_]).fetchone()
        assert stored == given
        assert told(id_).count("mourn") == 1
        assert "body" not in told(id_)
    assert beside.result == 1


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_rule_43_no_limit_reaches_the_commit_or_what_is_told_after_it(
    rules: PgQueue, conn: Connection, told: Told, work: Work, pool: str
) -> None:
    conn.execute(
        "create or replace function slow_commit() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(1.2); return null; end $$"
    )
    conn.execute(
        "create constraint trigger slow after insert on orders deferrable initially deferred"
        " for each row execute function slow_commit()"
    )
    jobs = [rules.tasks[f"rules.{name}"].delay(7) for name in ("commit_slowly", "acommit_slowly")]
    hooked = rules.tasks["rules.report_slowly"].delay()
    work("-P", pool, "-c", "3")
    for job in jobs:
        assert (job.state, job.result, job.crashes) == (State.SUCCESS, 7, 0)
    assert conn.execute("select number from orders").fetchall() == [(7,), (7,)]
    assert (hooked.state, hooked.crashes, hooked.errors, told(hooked)) == (State.SUCCESS, 0, [], ["on_success"])
