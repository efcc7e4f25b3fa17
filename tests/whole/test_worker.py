"""Real worker processes on a real database, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, State, TaskFailed, TaskRevokedError, WorkerLostError
from pgqueue.sql import schema

Start = Callable[..., subprocess.Popen[str]]
Said = Callable[..., list[list[str]]]
Until = Callable[..., Any]
Gate = Callable[[], None]
Connection = psycopg.Connection[Any]


def log_of(process: subprocess.Popen[str]) -> str:
    return process.log.read_text()  # type: ignore[attr-defined,no-any-return]


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
    process.send_signal(number)
    return process.wait(timeout)


@pytest.fixture
def effects(conn: Connection) -> Callable[[], list[int]]:
    conn.execute("create table if not exists effect (amount int, attempt int)")
    conn.execute("delete from effect")
    return lambda: [amount for (amount,) in conn.execute("select amount from effect order by 1")]


POOLS = [("prefork", "2"), ("solo", "1"), ("threads", "3"), ("asyncio", "3")]


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_every_pool_runs_functions_and_coroutines_to_every_end(
    yard: PgQueue, start: Start, pool: str, concurrency: str
) -> None:
    tasks = yard.tasks
    sums = [tasks["yard.add"].delay(n, 1) for n in range(20)] + [tasks["yard.aadd"].delay(n, 1) for n in range(20)]
    failed, flaky, third = (
        tasks["yard.fail"].delay("why"),
        tasks["yard.flaky"].delay(),
        tasks["yard.third_time"].delay(),
    )
    ignored, rejected = tasks["yard.ignore"].delay(), tasks["yard.reject"].delay()
    left, child = tasks["yard.leave"].delay(), tasks["yard.parent"].delay()
    worker = start("-P", pool, "-c", concurrency, "--burst", "-l", "info")
    assert worker.wait(30) == 0, log_of(worker)

    assert [result.get(timeout=0) for result in sums] == [*range(1, 21), *range(1, 21)]
    with pytest.raises(ValueError, match="why") as caught:
        failed.get(timeout=0)
    assert "raise ValueError(text)" in str(caught.value.__cause__)
    assert "raise ValueError(text)" in str(failed.traceback)
    assert (flaky.state, flaky.retries) == (State.FAILURE, 2)
    assert third.get(timeout=0) == 3
    assert (ignored.state, ignored.get(timeout=0)) == (State.IGNORED, None)
    assert rejected.state is State.REJECTED
    assert type(left.result).__name__ == "SystemExit"
    assert yard.AsyncResult(child.get(timeout=0)).get(timeout=0) == 2
    assert "attempt 1 succeeded" in log_of(worker)


def test_many_jobs_run_once_each_on_four_processes(yard: PgQueue, start: Start, conn: Connection) -> None:
    add = yard.tasks["yard.add"]
    yard.enqueue_many(add.s(n, n) for n in range(5000))
    worker = start("-c", "4", "--burst", "-l", "warning")
    assert worker.wait(60) == 0, log_of(worker)
    row = conn.execute("select count(*), max(attempt), sum((value #>> '{}')::int) from pgqueue.result").fetchone()
    assert row == (5000, 1, sum(2 * n for n in range(5000)))
    assert conn.execute("select count(*) from pgqueue.worker").fetchone() == (0,)


def test_a_child_that_is_killed_is_replaced_and_its_job_starts_again(
    yard: PgQueue, start: Start, said: Said, gate: Gate
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    worker = start("-c", "1")
    [(_, attempt, pid)] = said()
    assert attempt == "1"
    os.kill(int(pid), signal.SIGKILL)
    [(_, attempt, second)] = said()
    assert (attempt, second != pid) == ("2", True)
    gate()
    assert result.get(timeout=10) == 2
    assert end(worker) == 0
    assert "died: SIGKILL" in log_of(worker)


def test_a_crash_counts_for_the_job_that_ran_and_not_for_those_claimed_with_it(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, until: Until
) -> None:
    add = yard.tasks["yard.add"]
    held = yard.tasks["yard.held"].apply_async((1,), priority=5)
    yard.enqueue_many(add.s(n, n).set(priority=9) for n in range(200))
    yard.enqueue_many(add.s(n, n).set(priority=0) for n in range(200))
    worker = start("-c", "1", "-l", "warning")
    [(*_, pid)] = said()
    os.kill(int(pid), signal.SIGKILL)
    said()
    gate()
    held.get(timeout=10)
    until("select count(*) = 401 from pgqueue.result")
    assert conn.execute("select task, crashes from pgqueue.result where crashes > 0").fetchall() == [("yard.held", 1)]
    assert end(worker) == 0


def test_the_job_of_a_killed_worker_is_taken_back_by_another(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    first = start("-P", "solo")
    said()
    second = start("-P", "solo", "-n", "second")
    until("select count(*) = 2 from pgqueue.worker")
    killed = time.monotonic()
    first.kill()
    [(_, attempt, _pid)] = said()
    assert attempt == "2"
    assert time.monotonic() - killed < 5
    gate()
    assert result.get(timeout=10) == 2
    assert end(second) == 0
    assert "is dead: process" in log_of(second)


def test_children_of_a_killed_supervisor_finish_their_jobs_and_go(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    waiting = yard.tasks["yard.held"].delay(1)
    worker = start("-c", "1")
    said()
    worker.kill()
    _await_line(worker, "stopping")
    gate()
    assert result.get(timeout=10) == 1
    until("select count(*) = 0 from pgqueue.worker")
    assert waiting.state is State.PENDING


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "asyncio"])
def test_a_warm_stop_lets_the_running_task_end_and_starts_no_other(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until, conn: Connection, pool: str
) -> None:
    running = yard.tasks["yard.held"].delay(1)
    worker = start("-P", pool, "-c", "1")
    said()
    waiting = yard.tasks["yard.add"].delay(1, 1)
    worker.send_signal(signal.SIGTERM)
    _await_line(worker, "stopping: 1 running")
    gate()
    assert worker.wait(20) == 0, log_of(worker)
    assert running.get(timeout=0) == 1
    assert waiting.state is State.PENDING
    assert conn.execute("select count(*) from pgqueue.job where worker is not null").fetchone() == (0,)
    assert conn.execute("select count(*) from pgqueue.worker").fetchone() == (0,)


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_task_that_outlasts_the_grace_period_is_handed_back_and_counts_nothing(
    yard: PgQueue, start: Start, said: Said, conn: Connection, gate: Gate, pool: str
) -> None:
    yard.tasks["yard.held"].delay(1)
    worker = start("-P", pool, "-c", "1", "--grace", "0.3")
    said()
    assert end(worker) == 4, log_of(worker)
    assert conn.execute("select worker, attempt, retries, crashes from pgqueue.job").fetchall() == [(None, 1, 0, 0)]


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_an_open_transaction_does_not_keep_a_worker_from_stopping(
    yard: PgQueue, start: Start, said: Said, conn: Connection, gate: Gate, effects: Callable[[], list[int]], pool: str
) -> None:
    result = yard.tasks["yard.pay"].delay(5, gate=1)
    worker = start("-P", pool, "-c", "1", "--grace", "0.3")
    said()
    assert end(worker) == 4, log_of(worker)
    gate()
    assert start("-P", "solo").poll() is None
    assert result.get(timeout=20) == 5
    assert effects() == [5]


def test_a_row_that_somebody_keeps_locked_does_not_stop_the_beats(
    yard: PgQueue,
    start: Start,
    said: Said,
    gate: Gate,
    conn: Connection,
    connect: Callable[..., Connection],
    until: Until,
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    worker = start("-P", "solo", PGQUEUE_BEAT_INTERVAL="0.5")
    said()
    other = connect(autocommit=False)
    other.execute("select from pgqueue.job for update")
    gate()
    before = conn.execute("select beats from pgqueue.worker").fetchone() or (0,)
    until(f"select beats > {before[0] + 2} from pgqueue.worker")
    assert result.state is State.STARTED
    other.rollback()
    assert result.get(timeout=10) == 1
    assert end(worker) == 0


def test_a_second_signal_ends_at_once_and_hands_the_job_back(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, until: Until
) -> None:
    yard.tasks["yard.held"].delay(1)
    worker = start("-c", "1", "--grace", "600")
    said()
    worker.send_signal(signal.SIGINT)
    assert "stopping" in _await_line(worker, "stopping")
    assert end(worker, signal.SIGINT) == 4, log_of(worker)
    assert conn.execute("select worker, attempt, crashes from pgqueue.job").fetchall() == [(None, 1, 0)]


def _await_line(process: subprocess.Popen[str], text: str, timeout: float = 20.0) -> str:
    deadline = time.monotonic() + timeout
    while text not in log_of(process):
        assert time.monotonic() < deadline, log_of(process)
        os.sched_yield()
    return log_of(process)


def test_an_unknown_task_is_left_for_workers_that_know_it_and_reported(
    yard: PgQueue, start: Start, conn: Connection, until: Until
) -> None:
    unknown = yard.send_task("yard.nobody_knows", (1,), priority=9)
    known = yard.tasks["yard.add"].delay(1, 1)
    worker = start("-P", "solo", PGQUEUE_BEAT_INTERVAL="0.2")
    assert known.get(timeout=10) == 2
    until("select unknown = '{yard.nobody_knows}' from pgqueue.worker")
    assert end(worker) == 0
    assert log_of(worker).count("is not registered here") == 1
    assert (unknown.state, unknown.retries) == (State.PENDING, 0)
    assert conn.execute("select retries, crashes, worker from pgqueue.job").fetchall() == [(0, 0, None)]


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_writes_of_a_transactional_task_commit_with_its_acknowledgement(
    yard: PgQueue, start: Start, effects: Callable[[], list[int]], pool: str, concurrency: str
) -> None:
    names = ("pay", "apay", "pay_late", "apay_late")
    results = [yard.tasks[f"yard.{name}"].delay(number) for number, name in enumerate(names)]
    undone = [yard.tasks[f"yard.{name}"].delay(99) for name in ("pay_and_fail", "pay_then_fail")]
    better = yard.tasks["yard.pay_then_think_better"].delay(98)
    worker = start("-P", pool, "-c", concurrency, "--burst")
    assert worker.wait(30) == 0, log_of(worker)
    assert [result.get(timeout=0) for result in results] == [0, 1, 2, 3]
    assert [result.state for result in undone] == [State.FAILURE, State.FAILURE]
    assert better.get(timeout=0) == 98
    assert effects() == [0, 1, 2, 3]


def test_effects_and_results_come_from_the_same_transaction(
    yard: PgQueue, start: Start, conn: Connection, effects: Callable[[], list[int]]
) -> None:
    yard.tasks["yard.pay"].delay(1)
    assert start("-P", "solo", "--burst").wait(30) == 0
    row = conn.execute("select e.xmin = r.xmin from effect e, pgqueue.result r").fetchone()
    assert row == (True,)


def test_a_constraint_that_only_commit_checks_fails_the_task(yard: PgQueue, start: Start, conn: Connection) -> None:
    conn.execute("drop table if exists lawful")
    conn.execute("create table lawful (amount int, constraint once unique (amount) deferrable initially deferred)")
    result = yard.tasks["yard.pay_unlawfully"].delay(5)
    worker = start("-P", "solo", "--burst")
    assert worker.wait(30) == 0, log_of(worker)
    with pytest.raises(psycopg.errors.UniqueViolation):
        result.get(timeout=0)
    assert conn.execute("select count(*) from lawful").fetchone() == (0,)
    conn.execute("drop table lawful")


def test_a_transactional_attempt_cannot_be_taken_back_before_its_commit(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, effects: Callable[[], list[int]]
) -> None:
    result = yard.tasks["yard.pay"].delay(7, gate=1)
    worker = start("-P", "solo")
    said()
    (holder,) = conn.execute("select worker from pgqueue.job").fetchone() or (None,)
    assert conn.execute("select * from pgqueue.bury(%s, '{}')", [holder]).fetchall() == []
    gate()
    assert result.get(timeout=10) == 7
    assert effects() == [7]
    assert end(worker) == 0


def test_a_late_worker_changes_nothing_and_says_so(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    first = start("-P", "solo", "-n", "first")
    said()
    first.send_signal(signal.SIGSTOP)
    (holder,) = conn.execute("select worker from pgqueue.job").fetchone() or (None,)
    conn.execute("select pgqueue.bury(%s, '{}')", [holder])
    second = start("-P", "solo", "-n", "second")
    [(_, attempt, _pid)] = said()
    assert attempt == "2"
    gate()
    assert result.get(timeout=10) == 2
    before = conn.execute("select xmin, * from pgqueue.result").fetchone()
    first.send_signal(signal.SIGCONT)
    _await_line(first, "the lease is lost")
    assert conn.execute("select xmin, * from pgqueue.result").fetchone() == before
    assert end(first) == 0, log_of(first)
    assert end(second) == 0


def test_a_job_acknowledged_early_is_not_run_again_after_a_lost_worker(
    yard: PgQueue, start: Start, said: Said, gate: Gate
) -> None:
    result = yard.tasks["yard.held_once"].delay(1)
    worker = start("-c", "1")
    [(*_, pid)] = said()
    os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=10)
    assert end(worker) == 0


def test_a_job_that_kills_its_workers_ends_as_failure(yard: PgQueue, start: Start, conn: Connection) -> None:
    poison = yard.tasks["yard.kill_myself"].delay()
    worker = start("-c", "1")
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        poison.get(timeout=20)
    assert conn.execute("select attempt, crashes from pgqueue.result").fetchall() == [(4, 4)]
    innocent = yard.tasks["yard.add"].delay(1, 1)
    assert innocent.get(timeout=20) == 2
    assert end(worker) == 0


@pytest.mark.parametrize("worker", ["idle", "busy"])
def test_what_was_committed_after_its_place_in_the_line_was_passed_is_run_soon(
    yard: PgQueue, start: Start, conn: Connection, worker: str
) -> None:
    add = yard.tasks["yard.add"]
    start("-P", "solo")
    assert add.delay(1, 1).get(timeout=20) == 2  # now it has a cursor
    with yard.transaction() as late:
        late.execute("select set_config('pgqueue_clock.now', (clock_timestamp() - interval '1 minute')::text, true)")
        passed_over = add.apply_async((2, 2), connection=late)
        assert add.delay(3, 3).get(timeout=20) == 6
    if worker == "busy":  # never idle, and its claims always bring as much as they ask for
        line = yard.enqueue_many(add.s(n, n) for n in range(5000))
    assert passed_over.get(timeout=20) == 4
    if worker == "busy":
        assert line[-1].get(timeout=60) == 9998


def test_a_burst_does_not_end_before_what_was_committed_late_has_run(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until
) -> None:
    add = yard.tasks["yard.add"]
    with yard.transaction() as late:
        late.execute("select set_config('pgqueue_clock.now', (clock_timestamp() - interval '1 minute')::text, true)")
        passed_over = add.apply_async((2, 2), connection=late)
        long = yard.tasks["yard.held"].delay(1)
        worker = start("-P", "solo", "--burst")
        said()
        assert long.state is State.STARTED  # so its cursor has left the minute behind
    gate()
    assert worker.wait(20) == 0, log_of(worker)
    assert passed_over.get(timeout=0) == 4


def test_jobs_behind_a_long_one_are_handed_back_to_others(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until
) -> None:
    add = yard.tasks["yard.add"]
    yard.enqueue_many(add.s(n, 0).set(priority=9) for n in range(300))
    long = yard.tasks["yard.held"].apply_async((1,), priority=5)
    behind = yard.enqueue_many(add.s(n, 0).set(priority=1) for n in range(20))
    first = start("-P", "solo", "-n", "first", "-l", "debug")
    said()
    second = start("-P", "solo", "-n", "second")
    assert [result.get(timeout=10) for result in behind] == list(range(20))
    assert long.state is State.STARTED
    gate()
    assert long.get(timeout=10) == 1
    assert end(first) == end(second) == 0


def test_a_worker_survives_the_loss_of_its_connections(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, until: Until
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    worker = start("-P", "solo")
    said()
    killed = conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %yard%'"
        " and application_name not like 'pgqueue enqueue%' and datname = current_database()"
    ).fetchall()
    assert len(killed) >= 2
    gate()
    assert result.get(timeout=15) == 1
    later = yard.tasks["yard.add"].delay(1, 1)
    assert later.get(timeout=15) == 2
    until("select locked from pgqueue.worker")
    assert end(worker) == 0
    assert "with a fresh connection" in log_of(worker)


def test_an_idle_worker_is_woken_by_the_enqueue_and_not_by_its_poll(yard: PgQueue, start: Start, until: Until) -> None:
    worker = start("-P", "solo", PGQUEUE_POLL_INTERVAL="5")
    until("select count(*) > 0 from pgqueue.idle")
    waits = []
    for n in range(5):
        began = time.monotonic()
        assert yard.tasks["yard.add"].delay(n, n).get(timeout=10) == 2 * n
        waits.append(time.monotonic() - began)
    assert sorted(waits)[2] < 1.0, waits
    assert end(worker) == 0


def test_an_expired_or_revoked_job_is_not_run(yard: PgQueue, start: Start) -> None:
    expired = yard.tasks["yard.kill_myself"].apply_async(expires=0)
    revoked = yard.tasks["yard.kill_myself"].delay()
    assert revoked.revoke() is State.REVOKED
    worker = start("-P", "solo", "--burst")
    assert worker.wait(20) == 0, log_of(worker)
    for result, reason in ((expired, "expired"), (revoked, "revoked")):
        with pytest.raises(TaskRevokedError, match=reason):
            result.get(timeout=0)


def test_a_row_whose_id_has_succeeded_is_removed_without_being_run(
    yard: PgQueue, start: Start, conn: Connection, until: Until
) -> None:
    done = yard.tasks["yard.add"].delay(1, 1)
    assert start("-P", "solo", "--burst").wait(20) == 0
    before = conn.execute("select xmin, * from pgqueue.result").fetchone()
    conn.execute(
        "insert into pgqueue.job (id, eta, enqueued_at, task) values (%s, now(), now(), 'yard.kill_myself')", [done.id]
    )
    assert start("-P", "solo", "--burst").wait(20) == 0
    assert conn.execute("select count(*) from pgqueue.job").fetchone() == (0,)
    assert conn.execute("select xmin, * from pgqueue.result").fetchone() == before


def test_leases_of_a_worker_that_is_not_on_the_list_are_taken_back(
    yard: PgQueue, start: Start, conn: Connection
) -> None:
    result = yard.tasks["yard.add"].delay(1, 1)
    conn.execute("select pgqueue.claim(%s, '{default}', 1)", [result.id])
    conn.execute("update pgqueue.job set claimed_at = now() - interval '31 s'")
    worker = start("-P", "solo")
    assert result.get(timeout=20) == 2
    assert end(worker) == 0
    assert "not on the list" in log_of(worker)


def test_a_worker_on_a_schema_of_another_version_says_what_to_do(start: Start, fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(schema().encode())
        connection.execute("drop function pgqueue.claim")
    worker = start("-P", "solo", PGQUEUE_DSN=fresh_dsn)
    assert worker.wait(20) == 1
    assert "pgqueue migrate" in log_of(worker)
    assert "Traceback" not in log_of(worker)


def test_an_ignored_result_leaves_no_row(yard: PgQueue, start: Start, conn: Connection) -> None:
    results = [yard.tasks["yard.forgettable"].delay(), yard.tasks["yard.add"].apply_async((1, 1), ignore_result=True)]
    kept = yard.tasks["yard.forgettable"].apply_async(ignore_result=False)
    assert start("-P", "solo", "--burst").wait(20) == 0
    assert [result.get() for result in results] == [None, None]
    assert kept.get(timeout=0) == 1
    assert conn.execute("select count(*) from pgqueue.result").fetchone() == (1,)


def test_old_results_are_pruned_in_small_batches(yard: PgQueue, start: Start, conn: Connection, until: Until) -> None:
    conn.execute("set pgqueue_clock.now = '2020-01-01 00:00+00'")
    conn.execute("select pgqueue.enqueue_many(json_agg(json_build_object('task', 'x'))) from generate_series(1, 2500)")
    conn.execute("select pgqueue.claim(%s, '{default}', 2500)", [yard.tasks["yard.add"].delay(1, 1).id])
    conn.execute(
        "select pgqueue.finish(worker, json_agg(json_build_object('id', id, 'attempt', 1, 'state', 'SUCCESS')))"
        " from pgqueue.job where worker is not null group by worker"
    )
    conn.execute("reset pgqueue_clock.now")
    worker = start("-P", "solo")
    until("select count(*) <= 1 from pgqueue.result")
    assert end(worker) == 0


def test_a_task_in_pure_python_does_not_keep_the_io_thread_from_beating(
    yard: PgQueue, start: Start, said: Said, until: Until
) -> None:
    yard.tasks["yard.spin"].delay(2.0)
    worker = start("-P", "solo", PGQUEUE_BEAT_INTERVAL="0.2")
    said()
    until("select beats >= 4 from pgqueue.worker", timeout=1.9)
    assert end(worker) == 0


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_an_effect_whose_connection_breaks_before_its_commit_happens_once(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, effects: Callable[[], list[int]], pool: str
) -> None:
    result = yard.tasks["yard.pay"].delay(7, gate=1)
    worker = start("-P", pool, "-c", "1")
    said()
    cut = conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and state = 'idle in transaction'"
    ).fetchall()
    assert cut == [(True,)]
    gate()
    assert result.get(timeout=8) == 7
    assert effects() == [7]
    assert end(worker) == 0


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_job_acknowledged_early_and_cut_off_is_not_run_again(
    yard: PgQueue, start: Start, said: Said, gate: Gate, pool: str
) -> None:
    result = yard.tasks["yard.held_once"].delay(1)
    worker = start("-P", pool, "-c", "1", "--grace", "0.3")
    said()
    assert end(worker) == 4
    with pytest.raises(WorkerLostError, match="stopped"):
        result.get(timeout=0)


def test_a_sigterm_to_the_whole_group_is_one_warm_stop(yard: PgQueue, start: Start, said: Said, gate: Gate) -> None:
    results = [yard.tasks["yard.held"].delay(1) for _ in range(3)]
    worker = start("-c", "3")
    said(3)
    os.killpg(worker.pid, signal.SIGTERM)
    for _ in range(3):
        _await_line(worker, "stopping: 1 running")
    gate()
    assert worker.wait(20) == 0, log_of(worker)
    assert [result.get(timeout=0) for result in results] == [1, 1, 1]


@pytest.mark.parametrize("pool", ["solo", "prefork", "asyncio"])
def test_a_sigterm_while_it_starts_is_not_lost(start: Start, pool: str) -> None:
    worker = start("-P", pool, "-c", "4" if pool == "prefork" else "1")
    _await_line(worker, "pgqueue worker")
    assert end(worker, timeout=10) in (0, -signal.SIGTERM), log_of(worker)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_a_slot_survives_whatever_its_task_does(yard: PgQueue, start: Start, pool: str, concurrency: str) -> None:
    yard.tasks["yard.declare_late"].delay()
    selfish = [yard.tasks["yard.cancel_myself"].delay() for _ in range(4)]
    late = yard.send_task("yard.late", countdown=0.5)
    worker = start("-P", pool, "-c", concurrency, "-l", "warning")
    with pytest.raises(TaskFailed) as caught:
        selfish[-1].get(timeout=10)
    assert type(caught.value).__name__ == "CancelledError"
    if pool != "prefork":  # there another process may meet it, and leaves it
        assert late.get(timeout=10) == "late"
    assert yard.tasks["yard.add"].delay(1, 1).get(timeout=10) == 2
    assert [result.state for result in selfish] == [State.FAILURE] * 4
    assert end(worker) == 0, log_of(worker)


def test_a_child_of_a_task_has_its_own_signals(yard: PgQueue, start: Start) -> None:
    result = yard.tasks["yard.end_a_child"].delay()
    worker = start("-c", "1")
    assert result.get(timeout=15) == -signal.SIGTERM
    assert yard.tasks["yard.add"].delay(1, 1).get(timeout=10) == 2
    assert end(worker) == 0


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_locked_table_does_not_keep_a_worker_from_stopping(
    yard: PgQueue, start: Start, connect: Callable[..., Connection], until: Until, pool: str
) -> None:
    worker = start("-P", pool, "-c", "1", "--grace", "0.3")
    until("select count(*) = 1 from pgqueue.worker")
    other = connect(autocommit=False)
    other.execute("lock table pgqueue.job in access exclusive mode")
    assert end(worker, timeout=10) in (0, 3), log_of(worker)
    other.rollback()
