"""Time limits, in real workers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, SoftTimeLimitExceeded, State, TimeLimitExceeded, WorkerLostError

Start = Callable[..., subprocess.Popen[str]]
Said = Callable[..., list[list[str]]]
Until = Callable[..., Any]
Gate = Callable[[], None]
Connection = psycopg.Connection[Any]

OTHERS = [pytest.param(pool, "2", marks=pytest.mark.slow) for pool in ("threads", "asyncio")]
FORKING = [("prefork", "1"), *OTHERS]
POOLS = [*FORKING, pytest.param("solo", "1", marks=pytest.mark.slow)]


def log_of(process: subprocess.Popen[str]) -> str:
    return process.log.read_text()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_the_soft_limit_is_raised_in_the_task_which_may_end_in_peace(
    yard: PgQueue, start: Start, pool: str, concurrency: str
) -> None:
    naps = {
        (name, catch): yard.tasks[f"yard.{name}"].delay(catch) for name in ("nap", "anap") for catch in (True, False)
    }
    worker = start("-P", pool, "-c", concurrency, "--burst")
    assert worker.wait(40) == 0, log_of(worker)
    for (_, catch), result in naps.items():
        if catch:
            assert result.get(timeout=0) == "woken"
        else:
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=0)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_the_limit_of_the_call_comes_before_that_of_the_task_and_that_before_the_workers(
    yard: PgQueue, start: Start, pool: str, concurrency: str
) -> None:
    long, short = yard.tasks["yard.anap"], yard.tasks["yard.asleep"]
    by_call = short.apply_async((30,), soft_time_limit=0.2)
    by_worker = short.apply_async((30,))
    patient = short.apply_async((0.6,), soft_time_limit=20)
    other = long.apply_async((True,), soft_time_limit=0.5)
    worker = start("-P", pool, "-c", concurrency, "--burst", "--soft-time-limit", "0.3")
    assert worker.wait(40) == 0, log_of(worker)
    assert "SoftTimeLimitExceeded" in repr(by_call.result)
    assert "SoftTimeLimitExceeded" in repr(by_worker.result)
    assert isinstance(patient.get(timeout=0), int)
    assert other.get(timeout=0) == "woken"


@pytest.mark.parametrize("task", ["sleep", "asleep"])
@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_the_hard_limit_ends_the_attempt_as_a_failure_and_replaces_the_process(
    yard: PgQueue, start: Start, pool: str, concurrency: str, task: str
) -> None:
    before = yard.tasks["yard.sleep"].apply_async((0,), priority=9)
    late = yard.tasks[f"yard.{task}"].apply_async((60,), time_limit=0.5)
    worker = start("-P", pool, "-c", concurrency, "-l", "info")
    with pytest.raises(TimeLimitExceeded, match=r"longer than its time limit of 0.5 s"):
        late.get(timeout=30)
    pid = yard.tasks["yard.sleep"].delay(0).get(timeout=30)
    first = before.get(timeout=0)
    # A solo worker begins its program anew in the same process.
    assert (pid == first) == (pool == "solo"), log_of(worker)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, log_of(worker)
    assert "TimeLimitExceeded" in log_of(worker)


def test_what_runs_in_the_other_slots_goes_back_and_counts_nothing(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection
) -> None:
    held = yard.tasks["yard.held"].delay(1)
    worker = start("-P", "threads", "-c", "2")
    assert said()[0][1] == "1"
    late = yard.tasks["yard.sleep"].apply_async((60,), time_limit=0.3)
    assert said()[0][1] == "2"
    gate()
    assert held.get(timeout=20) == 2
    assert isinstance(late.result, TimeLimitExceeded)
    assert conn.execute("select crashes, retries from pgqueue.result where id = %s", [held.id]).fetchone() == (0, 0)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, log_of(worker)


@pytest.mark.parametrize("in_sql", [False, True])
@pytest.mark.parametrize(("pool", "concurrency"), FORKING)
def test_the_open_transaction_of_an_attempt_over_its_limit_is_rolled_back(
    yard: PgQueue, start: Start, conn: Connection, pool: str, concurrency: str, in_sql: bool
) -> None:
    conn.execute("create table if not exists effect (amount int, attempt int)")
    conn.execute("delete from effect")
    late = yard.tasks["yard.pay_slowly"].delay(1, in_sql)
    worker = start("-P", pool, "-c", concurrency)
    with pytest.raises(TimeLimitExceeded):
        late.get(timeout=20)
    assert conn.execute("select count(*) from effect").fetchone() == (0,)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) in (0, 4), log_of(worker)  # 4: before the process was replaced


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_no_limit_interrupts_a_commit(
    yard: PgQueue, start: Start, conn: Connection, pool: str, concurrency: str
) -> None:
    conn.execute("create table if not exists slow_effect (amount int)")
    conn.execute("delete from slow_effect")
    conn.execute(
        "create or replace function slow_commit() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(1.2); return null; end $$"
    )
    conn.execute("drop trigger if exists slow on slow_effect")
    conn.execute(
        "create constraint trigger slow after insert on slow_effect deferrable initially deferred"
        " for each row execute function slow_commit()"
    )
    result = yard.tasks["yard.commit_slowly"].delay(7)
    worker = start("-P", pool, "-c", concurrency, "--burst")
    assert worker.wait(40) == 0, log_of(worker)
    assert result.get(timeout=0) == 7
    assert conn.execute("select amount from slow_effect").fetchall() == [(7,)]
    assert conn.execute("select attempt, crashes from pgqueue.result").fetchall() == [(1, 0)]


def test_a_task_that_keeps_its_timeouts_unacknowledged_is_repeated_as_often_as_after_crashes(
    yard: PgQueue, start: Start, said: Said, conn: Connection
) -> None:
    result = yard.tasks["yard.overrun"].delay()
    worker = start("-c", "1", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert len(said(4)) == 4
    assert isinstance(result.result, TimeLimitExceeded)
    assert conn.execute("select attempt, crashes, state from pgqueue.result").fetchall() == [(4, 3, "FAILURE")]


def test_a_task_that_holds_the_interpreter_is_ended_by_the_supervisor(yard: PgQueue, start: Start) -> None:
    stuck = yard.tasks["yard.hold_the_lock"].delay()
    worker = start("-c", "1", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert isinstance(stuck.result, TimeLimitExceeded)
    assert "does not heed a time limit" in log_of(worker)


def test_limits_that_make_no_sense_are_refused_where_they_are_given(yard: PgQueue, start: Start) -> None:
    from pgqueue import InvalidOption

    with pytest.raises(InvalidOption, match=r"soft_time_limit=5 must be less than time_limit=5"):
        yard.tasks["yard.add"].apply_async((1, 1), time_limit=5, soft_time_limit=5)
    with pytest.raises(InvalidOption, match=r"time_limit must be at least 0.001 seconds"):
        yard.tasks["yard.add"].apply_async((1, 1), time_limit=0)
    with pytest.raises(InvalidOption, match=r"time_limit must be seconds"):
        yard.task(name="yard.never", time_limit="soon")(os.getpid)
    worker = start("--time-limit", "1", "--soft-time-limit", "2")
    assert worker.wait(20) == 2
    assert "must be less than" in log_of(worker)


def test_a_finished_attempt_has_no_limit_any_more(yard: PgQueue, start: Start) -> None:
    quick = yard.tasks["yard.sleep"]
    results = [quick.apply_async((0,), time_limit=0.4, soft_time_limit=0.3) for _ in range(20)]
    after = quick.apply_async((1.0,), priority=0)
    worker = start("-c", "1", "--burst")
    assert worker.wait(30) == 0, log_of(worker)
    assert {result.state for result in results} == {State.SUCCESS}
    assert {after.get(timeout=0)} == {result.get(timeout=0) for result in results}


def test_what_waits_in_a_process_that_meets_a_limit_has_not_begun(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection
) -> None:
    late = yard.tasks["yard.sleep"].apply_async((60,), time_limit=1.0, priority=9)
    held = [yard.tasks["yard.held_once"].delay(1) for _ in range(4)]
    worker = start("-P", "threads", "-c", "2")
    assert said()[0][1] == "1"
    with pytest.raises(TimeLimitExceeded):
        late.get(timeout=20)
    gate()
    ended = [result.get(timeout=20, propagate=False) for result in held]
    assert [isinstance(value, WorkerLostError) for value in ended].count(True) == 1  # the one that ran beside it
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, log_of(worker)


def test_a_limit_that_is_met_during_a_stop_does_not_cancel_it(
    yard: PgQueue, start: Start, conn: Connection, until: Until
) -> None:
    late = yard.tasks["yard.sleep"].apply_async((60,), time_limit=1.5)
    worker = start("-P", "solo", "--grace", "20")
    until("select count(*) = 1 from pgqueue.job where worker is not null")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 4, log_of(worker)
    assert isinstance(late.result, TimeLimitExceeded)


def test_the_hard_limit_of_another_slot_lets_hooks_end(yard: PgQueue, start: Start, said: Said, gate: Gate) -> None:
    yard.tasks["yard.linger"].delay()
    worker = start("-P", "threads", "-c", "2", "--burst")
    assert said()[0][0] == "lingers"
    late = yard.tasks["yard.asleep"].apply_async((60,), time_limit=0.2)
    with pytest.raises(TimeLimitExceeded):
        late.get(timeout=10)
    gate()
    assert said()[0][0] == "lingered"
    assert worker.wait(20) == 0, log_of(worker)
