"""How a worker stops: warm, soft and cold, and what its exit code says."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue

Start = Callable[..., subprocess.Popen[str]]
Said = Callable[..., list[list[str]]]
Until = Callable[..., Any]
Gate = Callable[[], None]
Connection = psycopg.Connection[Any]

POOLS = [
    ("prefork", "1"),
    pytest.param("solo", "1", marks=pytest.mark.slow),
    pytest.param("asyncio", "2", marks=pytest.mark.slow),
]
WAITING = [(None, 0, 0)]


def log_of(process: subprocess.Popen[str]) -> str:
    return process.log.read_text()  # type: ignore[attr-defined,no-any-return]


def jobs(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute("select worker, crashes, retries from pgqueue.job").fetchall()


@pytest.mark.parametrize(("pool", "concurrency"), [*POOLS, ("threads", "1")])
def test_the_second_signal_interrupts_the_task_which_cleans_up_and_goes_back(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, pool: str, concurrency: str
) -> None:
    name = "yard.aclean_up" if pool == "asyncio" else "yard.clean_up"
    yard.tasks[name].delay(*(() if pool == "asyncio" else (1,)))
    worker = start("-P", pool, "-c", concurrency, "--grace", "60")
    said()
    worker.send_signal(signal.SIGTERM)
    _await(worker, "stopping: 1 running tasks have 60 s to end")
    worker.send_signal(signal.SIGTERM)
    if pool != "threads":  # there the task is inside a C function, and an exception waits for the next bytecode
        [word, *_] = said()
        assert word[0] == "cleaned"
    assert worker.wait(10) == 4, log_of(worker)
    assert jobs(conn) == WAITING
    assert conn.execute("select count(*) from pgqueue.worker").fetchone() == (0,)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_at_the_end_of_the_grace_period_a_task_is_interrupted_first(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, pool: str, concurrency: str
) -> None:
    name = "yard.aclean_up" if pool == "asyncio" else "yard.clean_up"
    yard.tasks[name].delay(*(() if pool == "asyncio" else (1,)))
    worker = start("-P", pool, "-c", concurrency, "--grace", "1")
    said()
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert said()[0][0] == "cleaned"
    assert worker.wait(10) == 4, log_of(worker)
    assert time.monotonic() - began < 5.0
    assert jobs(conn) == WAITING


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_a_hook_that_does_not_end_holds_up_no_stop_and_costs_no_result(
    yard: PgQueue, start: Start, said: Said, gate: Gate, pool: str, concurrency: str
) -> None:
    result = yard.tasks["yard.linger"].delay()
    worker = start("-P", pool, "-c", concurrency, "--grace", "1")
    assert said()[0][0] == "lingers"
    assert result.get(timeout=0) == 1
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 4, log_of(worker)
    assert time.monotonic() - began < 5.0
    assert "hooks of acknowledged tasks are cut off" in log_of(worker)


def test_a_stop_waits_for_hooks_as_it_does_for_tasks(yard: PgQueue, start: Start, said: Said, gate: Gate) -> None:
    yard.tasks["yard.linger"].delay()
    worker = start("-P", "solo")
    said()
    worker.send_signal(signal.SIGTERM)
    _await(worker, "stopping: 0 running tasks")
    gate()
    assert worker.wait(10) == 0, log_of(worker)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_sigquit_hands_everything_back_at_once(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection, pool: str, concurrency: str
) -> None:
    yard.tasks["yard.held"].delay(1)
    yard.tasks["yard.held"].delay(1)
    worker = start("-P", pool, "-c", concurrency, "--grace", "60")
    said()
    began = time.monotonic()
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(10) == 4, log_of(worker)
    assert time.monotonic() - began < 5.0
    assert jobs(conn) == WAITING * 2


def test_a_task_acknowledged_by_its_claim_is_not_run_again_after_a_cold_stop(
    yard: PgQueue, start: Start, said: Said, gate: Gate
) -> None:
    result = yard.tasks["yard.held_once"].delay(1)
    worker = start("-c", "1")
    said()
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(10) == 4, log_of(worker)
    assert "the worker stopped before the task had ended" in str(result.result)


def test_a_whole_process_group_may_be_told_and_counts_once(yard: PgQueue, start: Start, said: Said, gate: Gate) -> None:
    result = yard.tasks["yard.held"].delay(1)
    worker = start("-c", "2")
    said()
    os.killpg(worker.pid, signal.SIGINT)  # as a terminal does
    _await(worker, "stopping: 1 running tasks")
    gate()
    assert worker.wait(10) == 0, log_of(worker)
    assert result.get(timeout=0) == 1


def _await(worker: subprocess.Popen[str], words: str) -> None:
    deadline = time.monotonic() + 20.0
    while words not in log_of(worker):
        assert time.monotonic() < deadline, log_of(worker)
        time.sleep(0.02)  # a file announces nothing


def test_a_clean_up_that_fails_does_not_make_a_failure_of_an_interruption(
    yard: PgQueue, start: Start, said: Said, gate: Gate, conn: Connection
) -> None:
    yard.tasks["yard.shrug"].delay(1)
    worker = start("-P", "solo", "--grace", "1")
    said()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 4, log_of(worker)
    assert jobs(conn) == WAITING


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_under_nohup_goes_on_when_its_terminal_closes(yard: PgQueue, start: Start, pool: str) -> None:
    worker = start("-P", pool, "-c", "1", prefix=["nohup"])
    yard.tasks["yard.add"].delay(1, 1).get(timeout=20)
    os.killpg(worker.pid, signal.SIGHUP)
    assert yard.tasks["yard.add"].delay(1, 1).get(timeout=20) == 2
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0, log_of(worker)
