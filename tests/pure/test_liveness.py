"""Who is dead: verdicts of values, with a clock that the test sets."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pgqueue.statements import Observed
from pgqueue.worker.liveness import (
    Identity,
    Neighbours,
    Verdict,
    Watch,
    boot_identity,
    identify,
    process_gone,
    process_started,
)

ME = Identity("me", "me@here", "here", "boot-1", 1, 1)
ELSEWHERE = Observed(
    "other", "other@there", "there", "boot-2", 4711, 5, 0, True, True, datetime(2030, 1, 1, tzinfo=UTC)
)


def looks(*steps: tuple[float, Observed]) -> list[str]:
    """The evidence after looks at these times, or nothing."""
    watch = Watch(ME)
    found: list[Verdict] = []
    for now, other in steps:
        found = watch.look([other], now)
    return [evidence for _, evidence, _ in found]


def watched(other: Observed, until: float, beats_every: float | None = None) -> list[str]:
    """The evidence after a look a second; with a beat now and then, or none."""
    times = [float(second) for second in range(int(until) + 1)]
    return looks(*((now, other._replace(beats=int(now / beats_every)) if beats_every else other) for now in times))


def test_a_worker_that_beats_lives() -> None:
    assert watched(ELSEWHERE, 300, beats_every=10) == []


def test_a_worker_without_a_beat_is_dead_after_thirty_seconds_although_its_lock_is_held() -> None:
    assert watched(ELSEWHERE, 29) == []
    assert watched(ELSEWHERE, 30) == ["no beat for 30 s"]


def test_a_free_lock_means_death_after_three_seconds_and_not_before() -> None:
    free = ELSEWHERE._replace(lock_held=False)
    assert watched(free, 2) == []
    assert watched(free, 3) == ["its session ended 3 s ago"]


def test_a_lock_that_is_taken_again_in_time_is_no_death() -> None:
    free = ELSEWHERE._replace(lock_held=False)
    assert looks((0, ELSEWHERE), (1, free), (3, free), (3.5, ELSEWHERE), (4, free), (6, free)) == []


def test_a_worker_without_a_lock_is_judged_by_its_beats_alone() -> None:
    pooled = ELSEWHERE._replace(locked=False, lock_held=False)
    assert watched(pooled, 20) == []
    assert watched(pooled, 30) == ["no beat for 30 s"]


def test_a_restart_of_the_server_drops_all_locks_and_is_no_death() -> None:
    free = ELSEWHERE._replace(lock_held=False)
    restarted = free._replace(server_started=datetime(2030, 1, 2, tzinfo=UTC))
    assert looks((0, free), (1, free), (2, free), (3.1, restarted), (5, restarted)) == []


def test_an_observer_that_was_stopped_begins_anew() -> None:
    assert looks((0, ELSEWHERE), (1, ELSEWHERE), (100, ELSEWHERE)) == []
    free = ELSEWHERE._replace(lock_held=False)
    assert looks((0, free), (50, free)) == []


def test_a_process_that_is_proven_gone_is_dead_after_a_moment() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = ELSEWHERE._replace(boot="boot-1", pid=gone.pid, pid_started=12345, lock_held=False)
    assert looks((0, here)) == []
    assert looks((0, here), (0.3, here)) == [f"process {gone.pid} on there has ended"]


def test_the_same_pid_after_another_boot_proves_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    there = ELSEWHERE._replace(pid=gone.pid, pid_started=12345, lock_held=False)
    assert looks((0, there), (1, there)) == []


def test_a_held_lock_outweighs_a_process_that_cannot_be_seen() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = ELSEWHERE._replace(boot="boot-1", pid=gone.pid, pid_started=12345)
    assert looks((0, here), (1, here)) == []


def test_a_pid_that_another_process_has_now_counts_as_gone() -> None:
    started = process_started(os.getpid())
    assert started
    assert not process_gone(os.getpid(), started)
    assert process_gone(os.getpid(), started - 1)


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    started = process_started(child.pid)
    assert child.stdout is not None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_gone(child.pid, started)
    child.stdout.close()
    child.wait()


def test_the_identity_of_a_process_is_its_own() -> None:
    identity = identify("w", "name@host")
    assert identity.pid == os.getpid()
    assert identity.boot == boot_identity()
    assert identity == replace(identity)


@pytest.mark.parametrize("beats", [1, 7])
def test_one_beat_starts_the_thirty_seconds_anew(beats: int) -> None:
    steps = [(float(now), ELSEWHERE._replace(beats=beats if now > 20 else 0)) for now in range(50)]
    assert looks(*steps) == []
    assert looks(*steps, *((now, ELSEWHERE._replace(beats=beats)) for now in (50.0, 51.0))) == ["no beat for 30 s"]


def test_the_next_look_is_when_a_suspicion_becomes_a_verdict() -> None:
    watch = Watch(ME)
    assert watch.due == float("inf")
    watch.look([ELSEWHERE], 10.0)
    assert watch.due == float("inf")
    watch.look([ELSEWHERE._replace(lock_held=False)], 11.0)
    assert watch.due == 14.0
    here = ELSEWHERE._replace(boot=ME.boot, pid=_ended_pid(), pid_started=5)
    watch.look([here], 12.0)
    assert watch.due == pytest.approx(12.05)  # its session has not ended yet
    watch.look([here._replace(lock_held=False)], 12.1)
    assert watch.due == pytest.approx(12.4)
    watch.look([], 12.5)
    assert watch.due == float("inf")


def test_a_pause_of_half_the_time_that_proves_death_makes_earlier_looks_void() -> None:
    watch = Watch(ME, dead_after=6.0)
    for now in (10.0, 13.5, 16.0, 18.5):  # after 10.0 it was the observer who slept
        assert watch.look([ELSEWHERE], now) == []
    assert [evidence for _, evidence, _ in watch.look([ELSEWHERE], 19.6)] == ["no beat for 6 s"]


def test_a_short_time_that_proves_death_is_not_void_at_every_look() -> None:
    watch = Watch(ME, dead_after=1.5)
    assert watch.look([ELSEWHERE], 10.0) == []
    assert watch.look([ELSEWHERE], 11.2) == []
    assert [evidence for _, evidence, _ in watch.look([ELSEWHERE], 12.4)] == ["no beat for 1.5 s"]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells")
def test_the_end_of_a_neighbour_is_told_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    neighbours = Neighbours(ME.boot)
    other = ELSEWHERE._replace(boot=ME.boot, pid=child.pid, pid_started=process_started(child.pid))
    strangers = [ELSEWHERE._replace(id="far", pid=child.pid), other._replace(id="reused", pid_started=1)]
    neighbours.keep([other, *strangers])
    assert (len(neighbours.descriptors), neighbours.ended()) == (1, False)
    child.communicate(b"\n", timeout=20)
    assert select.select(neighbours.descriptors, [], [], 10)[0] == neighbours.descriptors
    assert (neighbours.ended(), neighbours.ended(), neighbours.descriptors) == (True, False, [])
    neighbours.keep([other])
    assert neighbours.descriptors == []
    neighbours.close()


def _ended_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(20)
    return child.pid
