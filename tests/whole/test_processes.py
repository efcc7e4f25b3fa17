"""The processes of a worker: how many there are, when they are replaced, and what a crash leads to."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, State, WorkerLostError

Start = Callable[..., subprocess.Popen[str]]
Said = Callable[..., list[list[str]]]
Until = Callable[..., Any]
Gate = Callable[[], None]
Connection = psycopg.Connection[Any]


def log_of(process: subprocess.Popen[str]) -> str:
    return process.log.read_text()  # type: ignore[attr-defined,no-any-return]


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


# -- how many ---------------------------------------------------------------------------------------------------


def test_processes_multiply_the_pool(yard: PgQueue, start: Start, until: Until, conn: Connection) -> None:
    worker = start("-P", "threads", "-c", "3", "--processes", "2")
    until("select count(*) = 2 from pgqueue.worker")
    assert conn.execute("select pool, slots from pgqueue.worker").fetchall() == [("threads", 3)] * 2
    assert end(worker) == 0, log_of(worker)


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "count"), [("prefork", 3), ("asyncio", 5)])
def test_autoscale_starts_processes_while_jobs_wait_and_ends_them_afterwards(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until, pool: str, count: int
) -> None:
    for _ in range(count + 1):
        yard.tasks["yard.held"].delay(1)
    slots = [] if pool == "prefork" else ["-c", "2"]
    worker = start("-P", pool, *slots, "--autoscale", "3,1")
    pids = {pid for *_, pid in said(count)}
    assert len(pids) == 3, log_of(worker)
    gate()
    until("select count(*) = 0 from pgqueue.job")
    until("select count(*) = 1 from pgqueue.worker", timeout=40)
    yard.tasks["yard.sleep"].delay(0).get(timeout=10)
    assert end(worker) == 0, log_of(worker)


def test_max_jobs_ends_the_worker_after_so_many(yard: PgQueue, start: Start, conn: Connection) -> None:
    add = yard.tasks["yard.add"]
    yard.enqueue_many(add.s(n, n) for n in range(50))
    worker = start("-c", "2", "--max-jobs", "7")
    assert worker.wait(30) == 0, log_of(worker)
    assert conn.execute("select count(*) from pgqueue.result").fetchone() == (7,)
    rows = conn.execute("select count(*), count(worker), max(attempt) from pgqueue.job").fetchone()
    assert rows is not None
    assert rows[:2] == (43, 0)


# -- replaced ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow), "solo"])
def test_a_process_is_replaced_after_so_many_tasks(yard: PgQueue, start: Start, pool: str, conn: Connection) -> None:
    results = [yard.tasks["yard.sleep"].delay(0) for _ in range(9)]
    worker = start("-P", pool, "-c", "1", "--max-tasks-per-child", "3", "--burst")
    assert worker.wait(40) == 0, log_of(worker)
    pids = Counter(result.get(timeout=0) for result in results)
    assert sorted(pids.values()) == ([9] if pool == "solo" else [3, 3, 3])
    workers = conn.execute("select count(distinct worker), max(crashes) from pgqueue.result").fetchone()
    assert workers == (3, 0)


def test_a_process_that_has_grown_too_large_is_replaced(yard: PgQueue, start: Start) -> None:
    results = [yard.tasks["yard.grow"].delay(200) for _ in range(3)]
    worker = start("-c", "1", "--max-memory-per-child", "150000", "--burst")
    assert worker.wait(40) == 0, log_of(worker)
    assert len({result.get(timeout=0) for result in results}) == 3


def test_what_is_left_of_max_jobs_outlives_the_replacement_of_a_solo_worker(
    yard: PgQueue, start: Start, conn: Connection
) -> None:
    for number in range(10):
        yard.tasks["yard.say"].delay(f"word-{number}")
    worker = start("-P", "solo", "--max-tasks-per-child", "2", "--max-jobs", "6", PYTHONUNBUFFERED="")
    assert worker.wait(40) == 0, log_of(worker)
    assert conn.execute("select count(*), count(distinct worker) from pgqueue.result").fetchone() == (6, 3)
    assert log_of(worker).count("word-") == 6  # nothing that was printed got lost


# -- crashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "concurrency"),
    [("prefork", "1"), ("threads", "8"), pytest.param("asyncio", "8", marks=pytest.mark.slow)],
)
def test_poison_starts_as_often_as_it_may_and_takes_no_innocent_job_with_it(
    yard: PgQueue, start: Start, said: Said, conn: Connection, pool: str, concurrency: str
) -> None:
    innocent = [yard.tasks["yard.asleep"].delay(0.5) for _ in range(20)]
    poison = yard.tasks["yard.poison"].delay()
    innocent += [yard.tasks["yard.asleep"].delay(0.5) for _ in range(20)]
    worker = start("-P", pool, "-c", concurrency, "--burst")
    assert worker.wait(90) == 0, log_of(worker)
    assert len(said(4)) == 4
    with pytest.raises(WorkerLostError, match="died: SIGKILL"):
        poison.get(timeout=0)
    assert conn.execute("select crashes from pgqueue.result where state = 'FAILURE'").fetchall() == [(4,)]
    assert {result.state for result in innocent} == {State.SUCCESS}
    assert conn.execute("select max(crashes) <= 1 from pgqueue.result where state = 'SUCCESS'").fetchone() == (True,)
    assert conn.execute("select count(*) from pgqueue.job").fetchone() == (0,)


@pytest.mark.slow
def test_a_suspect_is_run_although_there_is_always_other_work(
    yard: PgQueue, start: Start, said: Said, until: Until
) -> None:
    add = yard.tasks["yard.sleep"]
    yard.enqueue_many(add.s(0.01) for _ in range(1500))
    poison = yard.tasks["yard.poison"].apply_async((), priority=9)
    worker = start("-c", "1")
    assert len(said(4)) == 4
    until("select count(*) = 1 from pgqueue.result where state = 'FAILURE'")
    assert yard.database.run(yard.database.statements.backlog(["default"], []))[0] == (True, False)
    assert isinstance(poison.result, WorkerLostError)
    assert end(worker) == 0, log_of(worker)


def test_a_commit_that_breaks_its_connection_each_time_comes_to_an_end(
    yard: PgQueue, start: Start, conn: Connection
) -> None:
    conn.execute("drop table if exists breaking_effect")
    conn.execute("create table breaking_effect (amount int)")
    conn.execute(
        "create or replace function break() returns trigger language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$"
    )
    conn.execute(
        "create constraint trigger breaking after insert on breaking_effect deferrable initially deferred"
        " for each row execute function break()"
    )
    result = yard.tasks["yard.pay_and_break"].delay(1)
    worker = start("-c", "1", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert result.state is State.FAILURE
    assert conn.execute("select attempt, crashes from pgqueue.result").fetchall() == [(4, 3)]
    assert conn.execute("select count(*) from breaking_effect").fetchone() == (0,)


@pytest.mark.slow
def test_a_failure_after_a_broken_transaction_is_the_tasks_own(yard: PgQueue, start: Start, conn: Connection) -> None:
    conn.execute("create table if not exists breaking_effect (amount int)")
    yard.tasks["yard.pay_and_break"].delay(1)
    failed = [yard.tasks["yard.fail"].apply_async(("why",), priority=0) for _ in range(3)]
    worker = start("-P", "solo", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert {result.state for result in failed} == {State.FAILURE}
    rows = conn.execute("select attempt, crashes from pgqueue.result where task = 'yard.fail'").fetchall()
    assert rows == [(1, 0)] * 3


@pytest.mark.slow
def test_a_job_that_is_locked_holds_up_no_other(
    yard: PgQueue, start: Start, said: Said, gate: Gate, connect: Any, conn: Connection, until: Until
) -> None:
    held = yard.tasks["yard.held"].delay(1)
    worker = start("-P", "threads", "-c", "4")
    said()
    other = connect(autocommit=False)
    other.execute("select pgqueue.revoke(%s)", [held.id])
    gate()
    until("select true from pg_stat_activity where wait_event_type = 'Lock'")
    results = [yard.tasks["yard.add"].delay(n, n) for n in range(20)]
    assert [result.get(timeout=15) for result in results] == [2 * n for n in range(20)]
    assert held.state is State.STARTED
    other.rollback()
    assert held.get(timeout=30) == 1
    assert end(worker) == 0, log_of(worker)


@pytest.mark.slow
def test_suspects_that_nobody_knows_do_not_start_a_process_every_second(
    yard: PgQueue, start: Start, conn: Connection, until: Until
) -> None:
    conn.execute("select pgqueue.enqueue('nobody.knows')")
    conn.execute("update pgqueue.job set crashes = 1")
    worker = start("-P", "threads", "-c", "2", "-l", "debug")
    until("select attempt >= 2 from pgqueue.job", timeout=30)
    yard.tasks["yard.asleep"].delay(3).get(timeout=20)
    row = conn.execute("select attempt from pgqueue.job").fetchone()
    assert row is not None
    assert row[0] <= 4
    assert end(worker) == 0, log_of(worker)


@pytest.mark.parametrize("code", [0, *(pytest.param(code, marks=pytest.mark.slow) for code in (3, 4, 5))])
def test_a_task_that_leaves_the_process_has_crashed_whatever_code_it_leaves(
    yard: PgQueue, start: Start, said: Said, code: int
) -> None:
    result = yard.tasks["yard.leave_at_once"].delay(code)
    worker = start("-c", "1", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert len(said(4)) == 4
    assert f"died: exit code {code}" in str(result.result)


def test_a_job_that_is_not_to_be_repeated_after_a_crash_fails_at_the_first(
    yard: PgQueue, start: Start, conn: Connection
) -> None:
    result = yard.tasks["yard.fragile"].delay()
    worker = start("-c", "1", "--burst")
    assert worker.wait(30) == 0, log_of(worker)
    assert isinstance(result.result, WorkerLostError)
    assert conn.execute("select attempt, crashes from pgqueue.result").fetchall() == [(1, 1)]


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group of 128 MiB, which only root may make."""
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"pgqueue-test-{secrets.token_hex(6)}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(128 * 2**20))
            yield group
            return
        except FileNotFoundError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group for memory can be made here")


def test_a_process_that_the_system_kills_for_its_memory_is_said_to_have_been(
    yard: PgQueue, start: Start, small_cgroup: Path
) -> None:
    result = yard.tasks["yard.exhaust"].delay(str(small_cgroup))
    worker = start("-c", "1", "--burst")
    assert worker.wait(60) == 0, log_of(worker)
    assert "died: SIGKILL: the system was out of memory" in str(result.result)


# -- the user's world -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_signals_tell_of_the_life_of_worker_and_processes(yard: PgQueue, start: Start, tmp_path: Path) -> None:
    written = tmp_path / "signals"
    worker = start("-c", "1", "--max-tasks-per-child", "1", YARD_SIGNALS=str(written))
    first = yard.tasks["yard.sleep"].delay(0).get(timeout=20)
    second = yard.tasks["yard.sleep"].delay(0).get(timeout=20)
    assert end(worker) == 0, log_of(worker)
    lines = [line.split(maxsplit=3) for line in written.read_text().splitlines()]
    assert all(sender == "True" for _, _, sender, _ in lines)
    of: dict[str, list[str]] = {}
    for pid, name, *_ in lines:
        of.setdefault(pid, []).append(name)
    parent = of[str(worker.pid)]
    assert parent[:3] == ["worker_init", "worker_before_create_process", "worker_ready"]
    assert parent[-2:] == ["worker_shutting_down", "worker_shutdown"]
    assert parent.count("worker_before_create_process") == len(of) - 1
    for child in (first, second):
        assert of[str(child)] == ["worker_process_init", "worker_process_shutdown"]
    assert "('how', 'Warm'), ('sig', 'SIGTERM')" in written.read_text()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_signal_handlers_and_the_root_logger_are_the_tasks_own(yard: PgQueue, start: Start, pool: str) -> None:
    result = yard.tasks["yard.use_signals"].apply_async((), soft_time_limit=10)
    worker = start("-P", pool, "-c", "1", "--burst", "-l", "debug")
    assert worker.wait(20) == 0, log_of(worker)
    assert result.get(timeout=0) == ["alarm", "[]", "30"]


def test_processes_have_titles(yard: PgQueue, start: Start, until: Until, conn: Connection) -> None:
    worker = start("-c", "1", "-n", "shop@here")
    until("select count(*) = 1 from pgqueue.worker")
    row = conn.execute("select pid from pgqueue.worker").fetchone()
    assert row is not None
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode() for pid in (worker.pid, row[0])]
    assert titles == ["pgqueue: shop@here (prefork, 1 process)", "pgqueue: shop@here (prefork 1)"]
    assert end(worker) == 0


def test_queues_may_be_left_out(yard: PgQueue, start: Start, conn: Connection, until: Until) -> None:
    worker = start("-Q", "a,b,c", "-X", "b", "-c", "1", "--without-gossip")
    until("select count(*) = 1 from pgqueue.worker")
    assert conn.execute("select queues from pgqueue.worker").fetchone() == (["a", "c"],)
    assert end(worker) == 0
    assert log_of(worker).count("--without-gossip has no effect") == 1
    for words in (["-Q", "a", "-X", "a"], ["-X", "b"], ["--autoscale", "1,2"], ["--autoscale", "x"]):
        refused = start(*words)
        assert refused.wait(20) == 2, log_of(refused)


def test_a_burst_does_not_end_before_the_jobs_of_a_dead_child_are_back(
    yard: PgQueue, start: Start, said: Said, gate: Gate, until: Until, connect: Callable[..., Connection]
) -> None:
    result = yard.tasks["yard.held"].delay(1)
    worker = start("-c", "1", "--burst")
    ((_, _, pid),) = said()
    with connect(autocommit=False) as locking:
        locking.execute("select from pgqueue.job for update")  # as its own session may, until the server sees its end
        os.kill(int(pid), signal.SIGKILL)
        # A replacement comes, finds nothing and goes, while the dead one still has the job.
        until("select count(*) = 2 from pgqueue.worker")
        until("select count(*) = 1 from pgqueue.worker")
        gate()
    assert worker.wait(30) == 0, log_of(worker)
    assert result.get(timeout=0) == 2
