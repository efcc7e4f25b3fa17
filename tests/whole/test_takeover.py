"""Workers that die, freeze or are cut off: others take their jobs over, and nobody who lives loses one."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.ground import Ground, Process, await_true
from benchmarks.hosts import APART, Host, dsn_from, hosts, no_hosts, not_apart, server
from benchmarks.redelivery_tasks import app, hold, hold_row, hold_then_write
from pgqueue.embedded import Embedded
from pgqueue.sql import schema
from pgqueue.worker.liveness import LOCK_GRACE, LOOK_GAP

Serve = Callable[..., Embedded]

#: A frozen worker is given up in seconds; six beats in that time leave a loaded machine some room.
QUICK = {"PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "3"}
#: Seconds for what takes three seconds at most, on a loaded machine.
SOON = 20.0


@pytest.fixture
def ground(dsn: str, tmp_path: Path) -> Iterator[Ground]:
    """Workers on the shared database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table if not exists effect (amount int, attempt int)")
        connection.execute("delete from effect")
    app.configure(dsn=dsn)
    ground = Ground(dsn, tmp_path)
    yield ground
    ground.clear()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server that the test may stop, or that hosts reach over TCP."""
    bindir = os.environ.get("PGQUEUE_TEST_BINDIR")
    folder = Path("/tmp") / f"pgq-{secrets.token_hex(4)}"  # a short name: the server's socket keeps its place
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(*reached_by: Host) -> Embedded:
            running = stack.enter_context(server(folder, reached_by, bindir=Path(bindir) if bindir else None))
            with psycopg.connect(running.dsn, autocommit=True) as connection:
                connection.execute(schema().encode())
                connection.execute("create table effect (amount int, attempt int)")
            app.configure(dsn=running.dsn)
            return running

        yield start
        app.close()


def need(what: str, obstacle: str | None) -> None:
    """Skip where something is not to be had; fail where PGQUEUE_TEST_REQUIRE names it."""
    if obstacle is not None:
        required = what in re.split(r"[\s,]+", os.environ.get("PGQUEUE_TEST_REQUIRE", ""))
        (pytest.fail if required else pytest.skip)(obstacle)


def holding(ground: Ground, task: Any, **where: Any) -> tuple[Process, str, int]:
    """Start a worker of one process on the queue "work" and wait until it runs a job of this task; return both, and
    the pid of the process that runs it.
    """
    job: str = task.apply_async(queue="work").id
    process = ground.start("work", "-P", "prefork", "-c", "1", **where)
    begun = ground.began(job, 1, SOON)
    assert begun, ground.log(process)
    return process, job, begun[1]


def outcome(ground: Ground, job: str) -> tuple[str, int, int]:
    """Wait for the result of a job; return its state, how often it was claimed, how often it crashed."""
    query = "select state, attempt, crashes from pgqueue.result where id = %s"
    await_true(lambda: bool(ground.query(query, job)), f"job {job} has ended", SOON)
    state, attempt, crashes = ground.query(query, job)
    return str(state), int(str(attempt)), int(str(crashes))


def said(ground: Ground, process: Process, text: str) -> str:
    """Wait until a worker has said something, and return all that it has said."""
    await_true(lambda: text in ground.log(process), f"{text!r} is said", SOON)
    return ground.log(process)


def beats(ground: Ground) -> int:
    """Return the beats of the worker on the list that has beaten least."""
    return int(str(ground.query("select coalesce(min(beats), 0) from pgqueue.worker")[0]))


def alive(session: int) -> list[int]:
    """Return the processes of a session that have not ended: those that a worker and its children have started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def test_the_supervisor_hands_back_what_its_killed_child_was_doing(ground: Ground) -> None:
    process, job, pid = holding(ground, hold)
    os.kill(pid, signal.SIGKILL)
    again = ground.began(job, 2, SOON)
    assert again
    assert again[1] != pid
    assert outcome(ground, job) == ("SUCCESS", 2, 1)
    assert "SIGKILL" in ground.log(process)
    assert "is dead" not in ground.log(process)  # nobody had to sweep


def test_a_killed_worker_of_this_host_is_dead_by_proof(ground: Ground) -> None:
    process, job, pid = holding(ground, hold)
    rescuer = ground.rescuer("work")
    os.killpg(process.pid, signal.SIGKILL)
    assert ground.began(job, 2, SOON)
    assert outcome(ground, job) == ("SUCCESS", 2, 1)
    assert f"process {pid} on " in said(ground, rescuer, "has ended")
    assert alive(process.pid) == []


def test_children_do_not_outlive_their_supervisor(ground: Ground) -> None:
    jobs = [hold.apply_async(queue="work").id for _ in range(2)]
    process = ground.start("work", "-P", "prefork", "-c", "2", "--grace", "1")
    assert all(ground.began(job, 1, SOON) for job in jobs)
    assert len(alive(process.pid)) == 3
    rescuer = ground.rescuer("work")
    process.kill()
    await_true(lambda: alive(process.pid) == [], "no process of the worker is left", SOON)
    assert all(ground.began(job, 2, SOON) for job in jobs)
    assert [outcome(ground, job)[:2] for job in jobs] == [("SUCCESS", 2)] * 2
    assert rescuer.poll() is None


def test_a_killed_worker_of_another_host_is_dead_when_its_session_has_ended(ground: Ground) -> None:
    need("pidns", not_apart())
    process, job, _ = holding(ground, hold, prefix=APART, PGQUEUE_BEAT_INTERVAL="0.5")
    rescuer = ground.rescuer("work", PGQUEUE_BEAT_INTERVAL="0.5")
    # As long as it lives nobody takes its pid for that of a process here, which has ended or never was.
    before = beats(ground)
    await_true(lambda: beats(ground) >= before + 4, "everybody has beaten for two rounds of the sweep", SOON)
    assert not (ground.folder / f"{job}.2").exists()
    os.killpg(process.pid, signal.SIGKILL)
    assert ground.began(job, 2, SOON)
    assert outcome(ground, job) == ("SUCCESS", 2, 1)
    said(ground, rescuer, "its session ended")
    assert "has ended" not in ground.log(rescuer)


def thaw(ground: Ground, process: Process, job: str) -> None:
    """Let a frozen worker go on: its attempt ends, and counts for nothing."""
    ground.release([job])
    os.killpg(process.pid, signal.SIGCONT)
    assert said(ground, process, "the lease is lost").count("the lease is lost") == 1


@pytest.mark.slow
def test_a_frozen_worker_is_given_up_and_when_it_thaws_its_result_is_refused(ground: Ground) -> None:
    process, job, pid = holding(ground, hold, **QUICK)
    rescuer = ground.rescuer("work", **QUICK)
    os.killpg(process.pid, signal.SIGSTOP)
    assert ground.began(job, 2, SOON)
    said(ground, rescuer, "no beat for")
    assert outcome(ground, job) == ("SUCCESS", 2, 1)
    thaw(ground, process, job)
    assert outcome(ground, job) == ("SUCCESS", 2, 1)

    # It says so, and a fresh process with a fresh id goes on in its place.
    said(ground, process, "this worker had been given up for dead")
    os.killpg(rescuer.pid, signal.SIGTERM)
    assert rescuer.wait(SOON) == 0
    later = hold.apply_async(queue="work").id
    ground.release([later])
    assert outcome(ground, later) == ("SUCCESS", 1, 0)
    begun = ground.began(later, 1)
    assert begun
    assert begun[1] != pid
    assert ground.query("select count(distinct worker) from pgqueue.result") == (2,)


@pytest.mark.parametrize("task", [hold_then_write, hold_row], ids=["opened_afterwards", "open_meanwhile"])
def test_what_a_thawed_worker_writes_in_a_transaction_is_rolled_back(ground: Ground, task: Any) -> None:
    process, job, _ = holding(ground, task, **QUICK)
    ground.rescuer("work", **QUICK)
    os.killpg(process.pid, signal.SIGSTOP)
    assert ground.began(job, 2, SOON), "an open transaction must not keep the job with a frozen worker"
    assert outcome(ground, job) == ("SUCCESS", 2, 1)
    thaw(ground, process, job)
    assert ground.query("select array_agg(attempt) from effect") == ([2],)


@pytest.mark.slow
@pytest.mark.parametrize("task", [hold, hold_row])
def test_a_worker_behind_a_cut_link_is_given_up_long_before_its_beats_are_missed(
    serve: Serve, tmp_path: Path, task: Any
) -> None:
    need("netns", no_hosts())
    with hosts(1) as [host]:
        running = serve(host)
        ground = Ground(running.dsn, tmp_path, [host])
        try:
            process, job, _ = holding(ground, task, prefix=host.command(), dsn=dsn_from(host, running.dsn))
            rescuer = ground.rescuer("work")
            host.cut()
            # 3 + 3 x 1 s of keepalives, the grace of a free lock, two rounds of the sweep; 30 s for the beats.
            assert ground.began(job, 2, 15.0)
            assert outcome(ground, job) == ("SUCCESS", 2, 1)
            said(ground, rescuer, "its session ended")
            host.mend()
            ground.release([job])
            said(ground, process, "the lease is lost")
            assert outcome(ground, job) == ("SUCCESS", 2, 1)
            assert ground.query("select array_agg(attempt) from effect") == ([2] if task is hold_row else None,)
        finally:
            ground.clear()


@pytest.mark.slow
def test_a_restart_of_the_database_repeats_no_running_task(serve: Serve, tmp_path: Path) -> None:
    running = serve()
    ground = Ground(running.dsn, tmp_path, running=running)
    # Beats rarer than rounds of the sweep: whoever sweeps has seen the last beat of most others before the outage.
    env = {"PGQUEUE_BEAT_INTERVAL": "1.5", "PGQUEUE_DEAD_AFTER": "4"}
    try:
        jobs = [hold.apply_async(queue="work").id for _ in range(12)]
        workers = [ground.start("work", "-P", "threads", "-c", "3", **env) for _ in range(4)]
        assert all(ground.began(job, 1, SOON) for job in jobs)
        app.close()
        running.stop()
        time.sleep(5.0)  # nobody beats for longer than a worker may be silent
        running.start()
        assert running.dsn == ground.dsn
        registered = "select count(*) = 4 from pgqueue.worker where locked"
        await_true(lambda: ground.query(registered) == (True,), "all are back", SOON)
        # Time to give each other up, by a lock that was free or by beats that were missed.
        enough = beats(ground) + 1 + math.ceil((max(LOCK_GRACE, 4.0) + 1.0) / 1.5)
        await_true(lambda: beats(ground) >= enough, "all have beaten for a while", 2 * SOON)
        ground.release(jobs)
        assert [outcome(ground, job) for job in jobs] == [("SUCCESS", 1, 0)] * 12
        assert not any((ground.folder / f"{job}.2").exists() for job in jobs)
        assert not any("dead" in ground.log(worker) for worker in workers)
    finally:
        ground.clear()


@pytest.mark.slow
def test_an_observer_that_was_stopped_does_not_take_the_others_for_dead(ground: Ground) -> None:
    calm = {**QUICK, "PGQUEUE_DEAD_AFTER": "6"}
    observer = ground.rescuer("elsewhere", "observer", **calm)
    sweeps = (
        "select count(*) from pgqueue.duty d join pgqueue.worker w on w.id = d.holder"
        " where w.name = 'observer@here' and d.name = 'sweep'"
    )
    await_true(lambda: ground.query(sweeps) == (1,), "it sweeps", SOON)
    held = [holding(ground, hold, **calm) for _ in range(2)]
    mine = "select beats from pgqueue.worker where name = 'observer@here'"

    def let_it_look() -> None:
        """Wait for four beats: there is a round of the sweep between them."""
        (before,) = ground.query(mine)
        await_true(lambda: int(str(ground.query(mine)[0])) >= int(str(before)) + 4, "the observer looks", SOON)

    # The host is paused for longer than a worker may be silent, and the observer comes to itself first. The others
    # go first, and he sees their last beats: one that he had not seen yet would be news to him afterwards.
    let_it_look()
    for process, _, _ in held:
        os.killpg(process.pid, signal.SIGSTOP)
    let_it_look()
    os.killpg(observer.pid, signal.SIGSTOP)
    time.sleep(max(LOOK_GAP, float(calm["PGQUEUE_DEAD_AFTER"])) + 1.0)
    os.killpg(observer.pid, signal.SIGCONT)
    let_it_look()
    for process, _, _ in held:
        os.killpg(process.pid, signal.SIGCONT)

    before = beats(ground)
    await_true(lambda: beats(ground) > before + 1, "everybody beats", SOON)
    ground.release([job for _, job, _ in held])
    assert [outcome(ground, job) for _, job, _ in held] == [("SUCCESS", 1, 0)] * 2
    assert [job for _, job, _ in held if (ground.folder / f"{job}.2").exists()] == []
    assert "dead" not in ground.log(observer)
