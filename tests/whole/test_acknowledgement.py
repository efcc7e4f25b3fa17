"""What is acknowledged, when, and how often it is started: every option against every outcome, in real workers.

One run of workers for all rows; the tests look at what it has left. Each row is played twice where that says more: with
a result that is kept, for the state, and with one that is ignored, for whether a failure is kept all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue import AsyncResult, PgQueue
from pgqueue.ids import new_id

APPS = Path(__file__).parent / "apps"
sys.path.insert(0, str(APPS))
from semantics import ACKS, Played, ack_task, play  # noqa: E402

sys.path.remove(str(APPS))

#: One repetition after a crash, two after `Reject(requeue=True)`.
SETTINGS = {"PGQUEUE_MAX_CRASHES": "1", "PGQUEUE_MAX_REQUEUES": "2"}
WORKERS = (("-Q", "calm,other", "-c", "3"), ("-Q", "deadly", "-c", "8"))

#: Outcomes: the word for the task, and options of the call.
OUTCOMES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "success": ("returns", {}),
    "exception": ("exception", {}),
    "soft limit": ("sleeps", {"soft_time_limit": 0.05}),
    "retry": ("retry", {}),
    "too many retries": ("retry for ever", {}),
    "ignore": ("ignore", {}),
    "reject": ("reject", {}),
    "requeue once": ("requeue once", {}),
    "requeue": ("requeue", {}),
    "SystemExit": ("SystemExit", {}),
    "MemoryError": ("MemoryError", {}),
    "revoked": ("returns", {}),
    "expired": ("returns", {"expires": timedelta(0)}),
    "hard limit": ("sleeps", {"time_limit": 0.15}),
    "worker lost": ("killed", {}),
    "worker lost once": ("killed once", {}),
}
DEADLY = ("hard limit", "worker lost", "worker lost once")
#: Each costs a process or two, so these are not tried with options that have nothing to do with them.
ACKS_OF = {
    "MemoryError": ("default", "no failure"),
    "worker lost": ("default", "neither"),
    "worker lost once": ("default", "neither"),
}


@dataclass(frozen=True)
class Ended:
    """How a row ends: state, how often it was started, and whether it is kept although results are ignored."""

    state: str
    starts: int
    kept: bool = False


def expected(late: bool, acks: str, lost: bool, outcome: str) -> Ended:
    """Say what the options promise."""
    keeps_failures = acks in ("neither", "no failure", "timeout after all")
    repeats_overdue = late and acks in ("neither", "no timeout", "failure after all")
    match outcome:
        case "success":
            return Ended("SUCCESS", 1)
        case "exception" | "soft limit" | "SystemExit" | "MemoryError":
            return Ended("FAILURE", 1, keeps_failures)
        # A retry is asked for, whenever the claim was acknowledged: the same job waits again.
        case "retry":
            return Ended("SUCCESS", 2)
        case "too many retries":
            return Ended("FAILURE", 2, keeps_failures)
        case "ignore":
            return Ended("IGNORED", 1)
        case "reject":
            return Ended("REJECTED", 1)
        case "requeue once":
            return Ended("SUCCESS", 2)
        case "requeue":
            return Ended("REJECTED", 3)
        case "revoked" | "expired":
            return Ended("REVOKED", 0)
        # Who finds these failures knows of no result to be ignored: they are always kept.
        case "hard limit":
            return Ended("FAILURE", 2 if repeats_overdue else 1, True)
        case "worker lost":
            return Ended("FAILURE", 2 if late and lost else 1, True)
        case "worker lost once":
            return Ended("SUCCESS", 2) if late and lost else Ended("FAILURE", 1, True)
    raise AssertionError(outcome)


MATRIX = [
    (late, acks, lost, outcome)
    for outcome in OUTCOMES
    for late, acks, lost in product((True, False), ACKS_OF.get(outcome, tuple(ACKS)), (True, False))
]


# -- other rows --------------------------------------------------------------------------------------------------

#: c.2: the options of a call whose request is to be the same after a repetition.
CALL: dict[str, Any] = {
    "headers": {"trace": "abc"},
    "priority": 7,
    "expires": datetime.now(UTC) + timedelta(hours=1),
    "time_limit": 50,
    "soft_time_limit": 40,
    "shadow": "nickname",
    "root_id": new_id(),
    "parent_id": new_id(),
}
REPETITIONS = ("retry", "autoretry", "requeue", "crash")
#: What `retry` may change, and what the request then has.
OVERRIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "queue": ({"queue": "other"}, {"queue": "other"}),
    "priority": ({"priority": 3}, {"priority": 3}),
    "headers": ({"headers": {"b": 2}}, {"headers": {"b": 2}}),
    "time limits": ({"time_limit": 60, "soft_time_limit": 45}, {"timelimit": [60, 45]}),
    "ignore_result": ({"ignore_result": True}, {"ignore_result": True}),
    "kwargs": ({"kwargs": {"named": 9}}, {"kwargs": {"overrides": None, "named": 9}}),
    "args": ({"args": ["changed"], "kwargs": {}}, {"args": ["changed"], "kwargs": {}}),
}

#: c.3: the task, what it does, and what comes of it: state, starts and error, or the seconds that it waits.
AUTOMATICALLY: Mapping[str, tuple[str, str, tuple[str, int, str | None] | float]] = {
    "what is covered": ("covered", "exception", ("FAILURE", 3, "ValueError")),
    "what is not": ("not covered", "exception", ("FAILURE", 1, "ValueError")),
    "what is excepted": ("excepted", "exception", ("FAILURE", 1, "ValueError")),
    "Reject": ("all", "reject", ("REJECTED", 1, "TaskRejectedError")),
    "Reject of all": ("all of them", "reject", ("REJECTED", 1, "TaskRejectedError")),
    "Ignore": ("all", "ignore", ("IGNORED", 1, None)),
    "Retry": ("all", "retry", ("SUCCESS", 2, None)),
    "retry is used up": ("all", "too many retries", ("FAILURE", 1, "MaxRetriesExceededError")),
    "retry with a limit of its own": ("all", "retry for ever", ("FAILURE", 2, "KeyError")),
    "SystemExit is no Exception": ("all", "SystemExit", ("FAILURE", 1, "SystemExit")),
    "SystemExit that is named": ("all of them", "SystemExit", ("FAILURE", 3, "SystemExit")),
    "max_retries of retry_kwargs": ("kwargs", "exception", ("FAILURE", 2, "ValueError")),
    "countdown of retry_kwargs": ("countdown", "exception", 90.0),
    "default_retry_delay": ("delay", "exception", 180.0),
    "backoff": ("backoff", "exception", 100.0),
    "backoff beyond its maximum, which wins over countdown": ("capped", "exception", 60.0),
    "countdown of retry()": ("delay", "retry later", 70.0),
}

#: Rule 43: what comes between the body and the end of its hooks is in no time limit.
UNLIMITED = {
    "soft limit while the value is stored": (("slow value",), {}, {"soft_time_limit": 0.25}, "slow"),
    "soft limit while a hook runs": (("returns",), {"breaks": "slow"}, {"soft_time_limit": 0.3}, 7),
    "hard limit while a hook runs": (("returns",), {"breaks": "slow"}, {"time_limit": 0.4}, 7),
}


# -- the run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The run: the app, the ids of the rows, and what was noted."""

    app: PgQueue
    jobs: dict[object, str]
    played: Played

    def result(self, row: object) -> AsyncResult[Any]:
        return self.app.AsyncResult(self.jobs[row])

    def starts(self, row: object) -> int:
        return len(self.played.of(self.jobs[row], "body"))

    def requests(self, row: object) -> list[dict[str, Any]]:
        """Return the requests that the starts of a row have seen."""
        return [noted["seen"] for noted in self.played.of(self.jobs[row], "request")]


@pytest.fixture(scope="module")
def run(pg_server: Any, pg_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Enqueue a job for each row, in a database of this run, and have workers run them all."""
    name = f"{pg_template.dbname}_acknowledgement"
    with ExitStack() as stack:
        server = stack.enter_context(psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True))
        names = map(sql.Identifier, (name, pg_template.template_dbname))
        server.execute(sql.SQL("create database {} template {}").format(*names))
        stack.callback(server.execute, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
        app = PgQueue("acknowledgement", dsn=pg_server.dsn(name))
        stack.callback(app.close)
        jobs = enqueue_matrix(app) | enqueue_others(app)
        yield Run(app, jobs, play(app.database.dsn, tmp_path_factory.mktemp("acks"), WORKERS, SETTINGS))


def enqueue_matrix(app: PgQueue) -> dict[object, str]:
    jobs: dict[object, str] = {}
    for row in MATRIX:
        *options, outcome = row
        what, call = OUTCOMES[outcome]
        for ignored in (False, True):
            if outcome in DEADLY and ignored == (outcome == "worker lost once"):
                continue
            # Ahead of all others, so that a worker meets it before anybody hands it back.
            priority = 9 if outcome == "revoked" else 5
            jobs[(*row, ignored)] = app.send_task(
                ack_task(*options), (what,), ignore_result=ignored, priority=priority,  # type: ignore[arg-type]
                queue="deadly" if outcome in (*DEADLY, "MemoryError") else "calm", **call,
            ).id  # fmt: skip
    with psycopg.connect(app.database.dsn, autocommit=True) as connection:
        # revoke() ends a waiting job at once; a worker meets only what was revoked while it ran and then came back.
        revoked = [id_ for row, id_ in jobs.items() if isinstance(row, tuple) and row[3] == "revoked"]
        connection.execute("update pgqueue.job set revoked = true where id = any(%s::uuid[])", [revoked])
    return jobs


def enqueue_others(app: PgQueue) -> dict[object, str]:
    jobs: dict[object, str] = {}

    def send(row: object, task: str, args: tuple[object, ...], kwargs: dict[str, Any], **options: Any) -> None:
        jobs[row] = app.send_task(f"semantics.{task}", args, kwargs, **{"queue": "calm", **options}).id

    def followed() -> dict[str, Any]:
        links = {name: app.signature(f"semantics.{name}", queue="calm") for name in ("linked", "errback")}
        return {"link": links["linked"], "link_error": links["errback"]}

    for how in REPETITIONS:
        for ignored in (False, True):
            send(("repeated", how, ignored), "remember", (how,), {"named": 5}, ignore_result=ignored,
                 queue="deadly" if how == "crash" else "calm", **CALL, **followed())  # fmt: skip
    for row, (overrides, _) in OVERRIDES.items():
        send(("changed", row), "remember", ("retry",), {"overrides": overrides, "named": 5}, **CALL, **followed())
    send("expires", "remember", ("retry",), {"overrides": {"expires": 7200}}, **CALL)
    for row, (task, what, _) in AUTOMATICALLY.items():
        send(row, f"auto.{task}", (what,), {})
    for row, (args, kwargs, options, _) in UNLIMITED.items():
        send(row, "do", args, kwargs, **options)
    send("hooks without receivers", "do_fragile", ("killed",), {}, queue="deadly")
    return jobs


# -- the matrix --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: f"{row[3]}-late={row[0]}-{row[1]}-lost={row[2]}")
def test_a_job_ends_and_is_started_as_its_options_promise(run: Run, row: tuple[bool, str, bool, str]) -> None:
    found = {
        ignored: (str(run.result((*row, ignored)).state), run.starts((*row, ignored)))
        for ignored in (False, True)
        if (*row, ignored) in run.jobs
    }
    promised = expected(*row)
    ways = {
        False: (promised.state, promised.starts),
        True: (promised.state if promised.kept else "UNKNOWN", promised.starts),
    }
    assert found == {ignored: ways[ignored] for ignored in found}


def test_nothing_is_left_of_the_matrix(run: Run) -> None:
    waiting = [("countdown", "exception"), ("delay", "exception"), ("backoff", "exception")]
    with psycopg.connect(run.app.database.dsn) as connection:
        tasks = connection.execute("select task from pgqueue.job").fetchall()
    assert len(tasks) == sum(isinstance(found, float) for _, _, found in AUTOMATICALLY.values())
    assert {f"semantics.auto.{task}" for task, _ in waiting} <= {task for (task,) in tasks}


def test_the_hooks_of_a_lost_attempt_run_where_no_receiver_asks_for_all_of_them(run: Run) -> None:
    attempts = run.played.attempts(run.jobs["hooks without receivers"])
    called = [[noted["name"] for noted in attempt] for attempt in attempts]
    assert called == [["on_failure", "after_return"], ["before_start", "body"]]


# -- the soft limit between body and result ----------------------------------------------------------------------


@pytest.mark.parametrize("name", UNLIMITED)
def test_no_limit_reaches_what_comes_after_the_body(run: Run, name: str) -> None:
    args, kwargs, _, value = UNLIMITED[name]
    result = run.result(name)
    assert (result.state, result.get(timeout=0), result.errors) == ("SUCCESS", value, [])
    assert run.starts(name) == 1
    assert len(run.played.of(run.jobs[name], "slept")) == ("breaks" in kwargs)
    assert args


# -- what survives a repetition ----------------------------------------------------------------------------------

COUNTS = {"retries", "crashes", "attempt"}


@pytest.mark.parametrize("how", REPETITIONS)
def test_a_repetition_keeps_every_option_of_the_call(run: Run, how: str) -> None:
    first, second = run.requests(("repeated", how, False))
    assert {name for name in first if first[name] != second[name]} <= COUNTS
    assert (second["retries"], second["crashes"]) == (int("retry" in how), int(how == "crash"))
    assert second["attempt"] > first["attempt"]
    assert {name: first[name] for name in ("headers", "priority", "shadow", "root_id", "parent_id")} == {
        name: CALL[name] for name in ("headers", "priority", "shadow", "root_id", "parent_id")
    }
    assert (first["timelimit"], first["ignore_result"], first["kwargs"]["named"]) == ([50, 40], False, 5)
    assert datetime.fromisoformat(first["expires"]) == CALL["expires"]  # absolute: it does not begin anew
    assert [len(first[name]) for name in ("callbacks", "errbacks")] == [1, 1]


@pytest.mark.parametrize("how", REPETITIONS)
def test_links_run_once_however_often_the_job_is_repeated(run: Run, how: str) -> None:
    job = run.jobs["repeated", how, False]
    assert run.result(("repeated", how, False)).get(timeout=0) == "done"
    assert [(link["value"], link["root"]) for link in run.played.of(job, "link")] == [("done", CALL["root_id"])]
    assert run.played.of(job, "errback") == []


@pytest.mark.parametrize("how", REPETITIONS)
def test_a_result_that_the_call_ignores_is_ignored_after_a_repetition_too(run: Run, how: str) -> None:
    row = ("repeated", how, True)
    assert [request["ignore_result"] for request in run.requests(row)] == [True, True]
    assert run.result(row).state == "UNKNOWN"
    assert len(run.played.of(run.jobs[row], "link")) == 1


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_retry_changes_what_it_is_told_to_and_nothing_else(run: Run, name: str) -> None:
    first, second = run.requests(("changed", name))
    changes = OVERRIDES[name][1]
    for option, value in changes.items():
        found = second[option]
        assert found == value or all(found[key] == value[key] for key in value if value[key] is not None)
    assert {option for option in first if first[option] != second[option]} <= COUNTS | changes.keys()


def test_a_retry_may_expire_later_counted_from_its_own_time(run: Run) -> None:
    first, second = run.requests("expires")
    again = datetime.fromisoformat(second["expires"]) - datetime.now(UTC)
    assert timedelta(seconds=7200 - 120) < again <= timedelta(seconds=7200)
    assert {option for option in first if first[option] != second[option]} <= COUNTS | {"expires"}


# -- automatic retries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in AUTOMATICALLY.items() if isinstance(row[2], tuple)])
def test_what_is_retried_automatically_ends_with_its_own_error(run: Run, name: str) -> None:
    result = run.result(name)
    error = result.result if isinstance(result.result, BaseException) else None
    found = (str(result.state), run.starts(name), type(error).__name__ if error else None)
    assert found == AUTOMATICALLY[name][2]


@pytest.mark.parametrize("name", [name for name, row in AUTOMATICALLY.items() if isinstance(row[2], float)])
def test_a_retry_waits_as_long_as_it_is_told_to(run: Run, name: str) -> None:
    result = run.result(name)
    assert (result.state, run.starts(name), result.retries) == ("RETRY", 1, 1)
    with psycopg.connect(run.app.database.dsn) as connection:
        waits = connection.execute(
            "select extract(epoch from eta - (history -> -1 ->> 'at')::timestamptz)::float from pgqueue.job"
            " where id = %s",
            [result.id],
        ).fetchone()
    assert waits == (pytest.approx(AUTOMATICALLY[name][2], abs=0.001),)
