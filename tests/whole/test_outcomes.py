"""How attempts end in real workers: what is stored, which hooks and signals run where, what follows, what is logged.

One run of workers for all rows, for each pool; the tests look at what it has left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue import AsyncResult, PgQueue

APPS = Path(__file__).parent / "apps"
sys.path.insert(0, str(APPS))
from semantics import Played, play  # noqa: E402

sys.path.remove(str(APPS))

#: Pools, the arguments of their workers, and the twin of `do` that is called there.
POOLS: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {
    # What kills its process has a worker of its own: it must not take others with it before they are acknowledged.
    "prefork": ((("-Q", "calm", "-c", "2"), ("-Q", "deadly", "-c", "6")), ""),
    "threads": ((("-Q", "calm", "-P", "threads", "-c", "3"),), ""),
    "asyncio": ((("-Q", "calm", "-P", "asyncio", "-c", "8"),), "a"),
}
SETTINGS = {"PGQUEUE_MAX_CRASHES": "1", "PGQUEUE_MAX_REQUEUES": "2", "SEMANTICS_SIGNALS": "yes"}

UNSTARTED = ["task_prerun", "before_start"]
BEGUN = [*UNSTARTED, "body"]
SUCCESS = ["on_success", "task_success", "after_return", "task_postrun"]
FAILURE = ["on_failure", "task_failure", "after_return", "task_postrun"]
RETRY = ["on_retry", "task_retry", "task_postrun"]
REPORTED = ["on_failure", "task_failure", "after_return"]

INFO, WARNING, ERROR, TRACED = ("INFO", False), ("WARNING", False), ("ERROR", False), ("ERROR", True)


@dataclass(frozen=True)
class Row:
    """One way to end.

    - `what`: the word for `do`. `task`: which of its kind. `options`: of the call.
    - `state`, `value`: as stored; the value is that of a success, or the name of the error.
    - `attempts`: what is called in each of them; `reported`: and what elsewhere, of a failure that others find.
    - `postrun`: the states that `task_postrun` has.
    - `log`: levels, and whether with a traceback.
    - `deadly`: it kills its process.
    """

    what: str
    state: str
    value: object
    attempts: list[list[str]]
    log: list[tuple[str, bool]]
    task: str = "do"
    options: dict[str, Any] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    postrun: list[str] = field(default_factory=list)
    deadly: bool = False
    breaks: str | None = None

    @property
    def called(self) -> list[list[str]]:
        return ([self.reported] if self.reported else []) + self.attempts


def success(what: str = "returns", value: object = 7, **more: Any) -> Row:
    return Row(what, "SUCCESS", value, [BEGUN + SUCCESS], [INFO], postrun=["SUCCESS"], **more)


def failure(what: str, error: str, **more: Any) -> Row:
    given = {"log": [TRACED], "attempts": [BEGUN + FAILURE], "postrun": ["FAILURE"], **more}
    return Row(what, "FAILURE", error, **given)


def lost(what: str, task: str, error: str = "WorkerLostError", attempts: int = 1, **more: Any) -> Row:
    return Row(what, "FAILURE", error, [BEGUN] * attempts, more.pop("log", []), task=task, reported=REPORTED,
               deadly=True, **more)  # fmt: skip


ROWS: dict[str, Row] = {
    "returns": success(),
    "exception": failure("exception", "ValueError"),
    "exception that it throws": failure("exception", "ValueError", task="do_throwing", log=[INFO]),
    "value that cannot be stored": failure("object", "NotSerializable"),
    "retry": Row(
        "retry", "SUCCESS", "again", [BEGUN + RETRY, BEGUN + SUCCESS], [INFO, INFO], postrun=["RETRY", "SUCCESS"]
    ),
    "retry by hand": Row(
        "raises Retry", "FAILURE", "ValueError", [BEGUN + RETRY, BEGUN + FAILURE], [INFO, TRACED],
        postrun=["RETRY", "FAILURE"],
    ),
    "retry is used up": Row(
        "retry for ever", "FAILURE", "KeyError", [BEGUN + RETRY, BEGUN + FAILURE], [INFO, TRACED],
        postrun=["RETRY", "FAILURE"],
    ),
    "retry is never allowed": failure("too many retries", "MaxRetriesExceededError"),
    "autoretry": Row(
        "exception", "FAILURE", "ValueError", [BEGUN + RETRY, BEGUN + FAILURE], [INFO, TRACED], task="do_again",
        postrun=["RETRY", "FAILURE"],
    ),
    "replace": Row(
        "replace", "SUCCESS", 7, [[*BEGUN, "task_postrun"], BEGUN + SUCCESS], [INFO, INFO],
        postrun=["IGNORED", "SUCCESS"],
    ),
    "ignore": Row("ignore", "IGNORED", None, [[*BEGUN, "task_postrun"]], [INFO], postrun=["IGNORED"]),
    "reject": Row(
        "reject", "REJECTED", "TaskRejectedError", [[*BEGUN, "task_failure", "task_postrun"]], [WARNING],
        postrun=["REJECTED"],
    ),
    "reject, requeue": Row(
        "requeue once", "SUCCESS", "again", [[*BEGUN, "task_postrun"], BEGUN + SUCCESS], [WARNING, INFO],
        postrun=["REJECTED", "SUCCESS"],
    ),
    "reject, requeue, too often": Row(
        "requeue", "REJECTED", "TaskRejectedError",
        [*[[*BEGUN, "task_postrun"]] * 2, [*BEGUN, "task_failure", "task_postrun"]], [WARNING] * 3,
        postrun=["REJECTED"] * 3,
    ),
    "SystemExit": failure("SystemExit", "SystemExit"),
    "KeyboardInterrupt": failure("KeyboardInterrupt", "KeyboardInterrupt"),
    "MemoryError": failure("MemoryError", "MemoryError"),
    "soft limit": failure("sleeps", "SoftTimeLimitExceeded", options={"soft_time_limit": 0.2}),
    "soft limit, caught": success("sleeps and catches", "caught", options={"soft_time_limit": 0.2}),
    "before_start raises": failure("before exception", "ValueError", attempts=[UNSTARTED + FAILURE]),
    "before_start retries": Row(
        "before retry", "FAILURE", "NotImplementedError", [UNSTARTED + RETRY, BEGUN + FAILURE], [INFO, TRACED],
        postrun=["RETRY", "FAILURE"],
    ),
    "before_start ignores": Row(
        "before ignore", "IGNORED", None, [[*UNSTARTED, "task_postrun"]], [INFO], postrun=["IGNORED"]
    ),
    "expired": Row(
        "returns", "REVOKED", "TaskRevokedError", [["task_revoked"]], [INFO], options={"expires": timedelta(0)}
    ),
    "COMMIT is refused": failure("returns", "UniqueViolation", task="unlawful", attempts=[UNSTARTED + FAILURE]),
    "hard limit": lost("sleeps", "do", "TimeLimitExceeded", options={"time_limit": 0.3}, log=[ERROR]),
    "worker lost, which is a failure": lost("killed", "do_fragile"),
    "worker lost, acknowledged early": lost("killed", "do_once"),
    "worker lost too often": lost("killed", "do", attempts=2),
    "worker lost once": Row(
        "killed once", "SUCCESS", "again", [BEGUN, BEGUN + SUCCESS], [INFO], postrun=["SUCCESS"], deadly=True
    ),
}  # fmt: skip

#: a.5: what is broken after the commit, and in which outcome.
BROKEN: dict[str, Row] = {
    f"{name} is broken": Row(row.what, row.state, row.value, row.attempts, row.log, task=row.task, breaks=name)
    for row, names in (
        (ROWS["returns"], ["task_prerun", *SUCCESS]),
        (ROWS["exception"], FAILURE[:3]),
        (ROWS["retry"], RETRY[:2]),
    )
    for name in names
} | {
    "on_failure of a lost worker is broken": lost("killed", "do_fragile", breaks="on_failure"),
    "task_failure of a hard limit is broken": lost(
        "sleeps", "do", "TimeLimitExceeded", options={"time_limit": 0.3}, log=[ERROR], breaks="task_failure"
    ),
}
CALLED = ROWS | BROKEN


@dataclass(frozen=True)
class Run:
    """A run of one pool: the app, the ids of the rows, and what was noted."""

    app: PgQueue
    jobs: dict[str, str]
    played: Played

    def result(self, name: str) -> AsyncResult[Any]:
        return self.app.AsyncResult(self.jobs[name])

    def called(self, name: str) -> list[list[str]]:
        """Return what was called in the attempts of a row, before them what was called elsewhere."""
        return [[noted["name"] for noted in attempt] for attempt in self.played.attempts(self.jobs[name])]

    def notes(self, name: str) -> list[dict[str, Any]]:
        """Return what was noted in the attempts of a row."""
        return [noted for attempt in self.played.attempts(self.jobs[name]) for noted in attempt]


@pytest.fixture(scope="module")
def runs(pg_server: Any, pg_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Run]]:
    """Run all rows in a pool, the first time that somebody asks, in a database of this run."""
    known: dict[str, Run] = {}
    with ExitStack() as stack:
        server = stack.enter_context(psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True))

        def run(pool: str) -> Run:
            if pool not in known:
                name = f"{pg_template.dbname}_outcomes_{pool}"
                names = map(sql.Identifier, (name, pg_template.template_dbname))
                server.execute(sql.SQL("create database {} template {}").format(*names))
                stack.callback(server.execute, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
                app = PgQueue("outcomes", dsn=pg_server.dsn(name))
                stack.callback(app.close)
                workers, twin = POOLS[pool]
                jobs = enqueue(app, twin, deadly=pool == "prefork")
                played = play(app.database.dsn, tmp_path_factory.mktemp(pool), workers, SETTINGS, left=1)
                known[pool] = Run(app, jobs, played)
            return known[pool]

        yield run


@pytest.fixture
def run(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    """The run of the pool of this test."""
    return runs(request.param)


def enqueue(app: PgQueue, twin: str, *, deadly: bool) -> dict[str, str]:
    """Enqueue a job for each row; return their ids."""
    jobs = {}
    for name, row in CALLED.items():
        if row.deadly and not deadly:
            continue
        jobs[name] = app.send_task(
            f"semantics.{twin if row.task.startswith('do') else ''}{row.task}", (row.what,),
            {} if row.breaks is None else {"breaks": row.breaks}, queue="deadly" if row.deadly else "calm",
            link=app.signature("semantics.linked", queue="calm"),
            link_error=app.signature("semantics.errback", queue="calm"), **row.options,
        ).id  # fmt: skip
    with psycopg.connect(app.database.dsn, autocommit=True) as connection:
        connection.execute("create table lawful (amount integer unique deferrable initially deferred)")
        for name, task, args in (
            ("unknown", "nowhere", "[]"),
            ("arguments that cannot be read", f"{twin}do", '[{"$uuid": "none"}]'),
            ("arguments that do not fit", f"{twin}do", "[1, 2, 3]"),
            ("revoked", f"{twin}do", '["returns"]'),
        ):
            # Of the first claim: one that has to wait in a worker and goes back ends as revoked without being told.
            enqueued = "select pgqueue.enqueue(%s, %s::jsonb, p_queue => 'calm', p_priority => 9)::text"
            (jobs[name],) = connection.execute(enqueued, [f"semantics.{task}", args]).fetchone() or ("",)
        # revoke() ends a waiting job at once; a worker meets only what was revoked while it ran and then came back.
        connection.execute("update pgqueue.job set revoked = true where id = %s", [jobs["revoked"]])
    return jobs


def cases(*names: str) -> pytest.MarkDecorator:
    """Give a test the run of each pool and the name of each row; what kills its process only where it runs alone."""
    found = [
        pytest.param(pool, name, id=f"{pool}-{name}")
        for pool in POOLS
        for name in names
        if pool == "prefork" or name not in CALLED or not CALLED[name].deadly
    ]
    return pytest.mark.parametrize(("run", "name"), found, indirect=["run"])


every_pool = pytest.mark.parametrize("run", POOLS, indirect=True)


# -- what is stored ----------------------------------------------------------------------------------------------


@cases(*CALLED)
def test_a_row_ends_in_its_state(run: Run, name: str) -> None:
    row, result = CALLED[name], run.result(name)
    assert result.state == row.state
    if row.state == "SUCCESS":
        assert result.get(timeout=0) == row.value
    elif row.value is not None:
        assert type(result.result).__name__ == row.value


# -- who is called -----------------------------------------------------------------------------------------------


@cases(*ROWS)
def test_hooks_and_signals_are_called_once_in_order(run: Run, name: str) -> None:
    assert run.called(name) == ROWS[name].called


@cases(*(name for name, row in ROWS.items() if len(row.attempts[0]) > 1))
def test_an_attempt_and_its_hooks_are_in_one_process(run: Run, name: str) -> None:
    pids = [{noted["pid"] for noted in attempt} for attempt in run.played.attempts(run.jobs[name])]
    assert all(len(found) == 1 for found in pids)
    if ROWS[name].reported:  # the process of the attempt is gone
        assert pids[0].isdisjoint(set.union(*pids[1:]))


@cases(*ROWS)
def test_hooks_see_what_is_stored_and_the_request(run: Run, name: str) -> None:
    row = ROWS[name]
    hooks = [noted for noted in run.notes(name) if noted.get("stored")]
    assert all(noted["stored"] == row.state and noted["request"] for noted in hooks)
    assert len(hooks) == 2 * (row.state in ("SUCCESS", "FAILURE"))


@cases(*ROWS)
def test_the_end_of_an_attempt_is_told_with_its_state(run: Run, name: str) -> None:
    assert [noted["state"] for noted in run.notes(name) if noted["name"] == "task_postrun"] == ROWS[name].postrun


@cases(*CALLED)
def test_what_follows_is_enqueued_once(run: Run, name: str) -> None:
    row, job = CALLED[name], run.jobs[name]
    links, errbacks = run.played.of(job, "link"), run.played.of(job, "errback")
    assert [noted["value"] for noted in links] == ([row.value] if row.state == "SUCCESS" else [])
    assert [(noted["value"], noted["stored"]) for noted in errbacks] == (
        [(job, row.state)] if row.state in ("FAILURE", "REJECTED") else []
    )


# -- what is logged ----------------------------------------------------------------------------------------------


@cases(*CALLED)
def test_a_line_is_logged_for_each_attempt(run: Run, name: str) -> None:
    assert run.played.logged(run.jobs[name]) == CALLED[name].log


# -- hooks and receivers that fail -------------------------------------------------------------------------------


@cases(*BROKEN)
def test_a_hook_that_fails_is_told_logged_and_kept_with_the_job_and_changes_nothing(run: Run, name: str) -> None:
    row = BROKEN[name]
    hooks = [error for error in run.result(name).errors if error.state == "HOOK"]
    assert row.breaks is not None
    assert {(error.hook, error.error.type, error.error.message) for error in hooks} == {
        (row.breaks, "ValueError", f"{row.breaks} is broken")
    }
    called = run.called(name)
    assert [[one for one in attempt if one != "task_internal_error"] for attempt in called] == row.called
    for attempt in called:
        assert attempt.count("task_internal_error") == attempt.count(row.breaks)
    assert len(hooks) == sum(attempt.count(row.breaks) for attempt in called)
    assert {error.attempt for error in hooks} <= {*range(1, run.result(name).attempt + 1)}


# -- what never starts -------------------------------------------------------------------------------------------


@every_pool
def test_an_unknown_task_is_told_and_left_to_others(run: Run) -> None:
    assert run.result("unknown").state == "PENDING"
    assert {noted["name"] for noted in run.played.notes if noted["job"] == run.jobs["unknown"]} == {"task_unknown"}
    assert any("'semantics.nowhere'" in line and " WARNING " in line for line in run.played.log)


@every_pool
@pytest.mark.parametrize(
    ("name", "first"), [("arguments that cannot be read", ["task_rejected"]), ("arguments that do not fit", [])]
)
def test_bad_arguments_are_a_failure_without_a_run(run: Run, name: str, first: list[str]) -> None:
    result = run.result(name)
    assert (result.state, type(result.result).__name__) == ("FAILURE", "InvalidArguments")
    assert run.called(name) == [[*first, *REPORTED]]
    assert run.played.logged(run.jobs[name]) == [TRACED]


@every_pool
def test_a_revoked_job_is_told_and_not_run(run: Run) -> None:
    assert run.result("revoked").state == "REVOKED"
    assert run.called("revoked") == [["task_revoked"]]
    assert run.played.logged(run.jobs["revoked"]) == [INFO]


# -- the process -------------------------------------------------------------------------------------------------


@every_pool
def test_a_process_that_ran_out_of_memory_is_replaced(run: Run) -> None:
    assert sum("ran out of memory" in line for line in run.played.log) == 1
    (end,) = (noted for noted in run.notes("MemoryError") if noted["name"] == "task_postrun")
    later = run.played.notes[run.played.notes.index(end) + 1 :]
    # What its other slots had in hand may still be told; nothing begins there any more.
    assert not [noted for noted in later if noted["pid"] == end["pid"] and noted["name"] == "task_prerun"]
