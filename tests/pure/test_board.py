"""What worker processes share with their supervisor, and what is decided from it."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import UTC, datetime

import pytest

from pgqueue import InvalidOption, PgQueue
from pgqueue.statements import outcome_json
from pgqueue.types import Claim, Failed, Released
from pgqueue.worker import Stop, WorkerOptions
from pgqueue.worker.board import Begun, Board
from pgqueue.worker.deaths import _ended, cause, overdue
from pgqueue.worker.limits import LimitThread, Rules, within
from pgqueue.worker.memory import memory_in_use, oom_kills
from pgqueue.worker.quota import Quota

FIRST, SECOND = "0192f5e2-0000-7000-8000-000000000001", "0192f5e2-0000-7000-8000-000000000002"


def claim_of(task: str, **fields: float) -> Claim:
    now = datetime.now(UTC)
    return Claim(
        FIRST, task, "default", 5, "[]", "{}", 1, 0, 0, now, now, None, False, False, None, None, None, None, **fields
    )  # type: ignore[arg-type]


def test_a_board_tells_what_each_slot_has_begun_and_forgets_it() -> None:
    board = Board(3)
    assert board.begun() == []
    board.begin(0, FIRST, 3)
    limited = Begun(SECOND, 7, 2, True, 123.25, 0.5)
    board.begin_limited(2, limited)
    assert board.begun() == [Begun(FIRST, 3, 0, False, 0.0, 0.0), limited]
    board.disarm(2)
    board.begin(0, SECOND, 1)
    assert [begun.deadline for begun in board.begun()] == [0.0, 0.0]
    assert [begun.job for begun in board.begun()] == [SECOND, SECOND]
    board.clear()
    assert board.begun() == []


def test_a_board_remembers_what_is_not_to_be_repeated_beyond_its_slot() -> None:
    board = Board(1)
    jobs = [f"0192f5e2-0000-7000-8000-{number:012}" for number in range(3000)]
    for job in jobs:
        board.begin(0, job, 1)
        board.begin_once(job, 1)
    assert set(board.begun_once()) == {(job, 1) for job in jobs[-2048:]}
    assert [begun.job for begun in board.begun()] == jobs[-1:]
    board.clear()
    assert board.begun_once() == []


def test_a_board_is_read_by_the_other_process() -> None:
    board = Board(1)
    board.stop = Stop.SOFT
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        heard = board.stop
        board.begin(0, FIRST, 1)
        board.waiting = board.suspects = True
        board.idle_since = 12.5
        board.parting = 0
        os._exit(int(heard or 0))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Stop.SOFT
    assert (board.begun()[0].job, board.waiting, board.suspects, board.idle_since) == (FIRST, True, True, 12.5)
    assert board.parting == 0
    board.clear()
    assert (board.stop, board.parting, board.waiting, board.suspects, board.idle_since) == (None, None, False, False, 0)


def test_processes_take_from_one_quota_and_a_dead_one_leaves_no_lock() -> None:
    quota = Quota(10)
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        taken = quota.take(4)
        os._exit(taken)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    assert (quota.take(100), quota.take(1), quota.left) == (6, 0, 0)
    assert (quota.take(-2), quota.left) == (-2, 2)


def test_the_limit_of_the_call_wins_then_that_of_the_task_then_that_of_the_worker() -> None:
    app = PgQueue("limits", dsn="postgresql://nowhere/none")
    app.task(name="none")(lambda: None)
    app.task(name="both", time_limit=9, soft_time_limit=8)(lambda: None)
    rules = Rules(app.tasks, WorkerOptions(time_limit=60, soft_time_limit=50))

    def limits(claim: Claim) -> tuple[float | None, float | None]:
        return rules[claim.task].limits(claim)

    assert limits(claim_of("none")) == (60, 50)
    assert limits(claim_of("both")) == (9, 8)
    assert limits(claim_of("both", time_limit=5.0)) == (5.0, None)
    assert limits(claim_of("none", soft_time_limit=1.5)) == (60, 1.5)
    assert Rules(app.tasks, WorkerOptions())["none"].limits(claim_of("none")) == (None, None)


def test_a_soft_limit_that_would_come_after_the_hard_one_is_none() -> None:
    assert [within(5, 4), within(5, 5), within(None, 5), within(5, None)] == [(5, 4), (5, None), (None, 5), (5, None)]


def test_the_thread_of_the_limits_looks_when_the_earliest_is_due() -> None:
    looked: list[float] = []
    due = threading.Event()

    def look(now: float) -> float:
        looked.append(now)
        due.set()
        return float("inf")

    thread = LimitThread(look)
    start = time.monotonic()
    thread.expect(start + 3600)
    thread.expect(start + 0.05)
    assert due.wait(10)
    assert looked[0] >= start + 0.05


@pytest.mark.parametrize(
    ("code", "out_of_memory", "words"),
    [
        (0, False, "exit code 0"),
        (7, True, "exit code 7"),
        (-signal.SIGSEGV, True, "SIGSEGV"),
        (-signal.SIGKILL, False, "SIGKILL"),
        (-signal.SIGKILL, True, "SIGKILL: the system was out of memory"),
        (-63, False, "signal 63"),
    ],
)
def test_the_cause_of_a_death_is_named(code: int, out_of_memory: bool, words: str) -> None:
    assert cause(code, out_of_memory=out_of_memory) == words


def test_an_attempt_over_its_limit_fails_or_counts_a_crash_as_the_task_says() -> None:
    assert isinstance(overdue(1.5, 0, 3, repeats=False), Failed)
    again = overdue(1.5, 2, 3, repeats=True)
    assert isinstance(again, Released)
    assert again.crash is not None
    assert "time limit of 1.5 s" in again.crash.message
    assert isinstance(overdue(1.5, 3, 3, repeats=True), Failed)
    sent = outcome_json(_ended(Begun(FIRST, 4, 1, True, 1.0, 1.5), 3))
    assert f'"id":"{FIRST}","attempt":4,' in sent
    assert '"state":"RELEASED","countdown":0.0,"crashed":true,"error":{' in sent


def test_memory_is_told_in_kib() -> None:
    before = memory_in_use()
    ballast = bytearray(64 * 2**20)
    ballast[:: 2**10] = b"x" * len(ballast[:: 2**10])
    assert 50_000 < memory_in_use() - before < 100_000
    assert oom_kills() >= 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "gevent"}, "pool 'gevent' does not exist"),
        ({"concurrency": 0}, "concurrency must be a positive integer"),
        ({"max_jobs": 0}, "max_jobs must be a positive integer"),
        ({"max_tasks_per_child": True}, "max_tasks_per_child must be a positive integer"),
        ({"prefetch_multiplier": -1}, "prefetch_multiplier must be a positive integer"),
        ({"autoscale": (1, 2)}, "the first is the most, the second the fewest"),
        ({"autoscale": (2, 1), "pool": "solo"}, "solo is one"),
        ({"processes": 2, "pool": "solo"}, "solo is one process"),
        ({"time_limit": 1, "soft_time_limit": 1}, "soft_time_limit=1 must be less than time_limit=1"),
        ({"queues": ()}, "at least one queue"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        WorkerOptions(**options)  # type: ignore[arg-type]


def test_processes_and_slots_of_each_pool() -> None:
    def counts(**options: object) -> tuple[int, int, int]:
        made = WorkerOptions(**options)  # type: ignore[arg-type]
        return made.most_processes, made.fewest_processes, made.slots

    assert counts(concurrency=4) == (4, 4, 1)
    assert counts(concurrency=4, processes=2) == (8, 8, 1)
    assert counts(pool="threads", concurrency=4, processes=2) == (2, 2, 4)
    assert counts(autoscale=(6, 2)) == (6, 2, 1)
    assert counts(pool="asyncio", concurrency=50, autoscale=(3, 1)) == (3, 1, 50)
