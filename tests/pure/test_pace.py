"""How much to claim and how long to wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgqueue.worker.pace import FIRST_PAUSE, LARGEST_CLAIM, Demand, average, backoff, claim_size

runtimes = st.none() | st.floats(0, 1000, allow_nan=False)


def test_the_first_claim_is_a_job_for_each_free_slot() -> None:
    assert claim_size(slots=4, free=4, unstarted=0, runtime=None, last=0) == 4
    assert claim_size(slots=4, free=1, unstarted=0, runtime=None, last=0) == 1


def test_short_tasks_are_claimed_fifty_milliseconds_ahead_in_two_batches() -> None:
    assert claim_size(slots=1, free=0, unstarted=0, runtime=0.001, last=100) == 25
    assert claim_size(slots=1, free=0, unstarted=25, runtime=0.001, last=100) == 25


def test_a_claim_grows_fourfold_at_a_time() -> None:
    assert claim_size(slots=1, free=1, unstarted=0, runtime=0.00001, last=1) == 4
    assert claim_size(slots=1, free=1, unstarted=0, runtime=0.00001, last=4) == 16


def test_nothing_is_claimed_ahead_of_long_tasks() -> None:
    assert claim_size(slots=4, free=0, unstarted=0, runtime=1.0, last=4) == 0
    assert claim_size(slots=4, free=1, unstarted=0, runtime=1.0, last=4) == 1


def test_a_buffer_with_more_than_a_batch_is_left_alone() -> None:
    assert claim_size(slots=1, free=0, unstarted=26, runtime=0.001, last=100) == 0


def test_no_more_is_claimed_ahead_than_was_asked_for() -> None:
    assert claim_size(slots=1, free=0, unstarted=0, runtime=0.0001, last=100, most=4) == 4
    assert claim_size(slots=1, free=0, unstarted=3, runtime=0.0001, last=100, most=4) == 1
    assert claim_size(slots=1, free=0, unstarted=4, runtime=0.0001, last=100, most=4) == 0
    assert claim_size(slots=2, free=2, unstarted=0, runtime=0.0001, last=100, most=1) == 2


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 500), runtimes, st.integers(0, 500))
def test_a_claim_is_never_negative_and_never_too_large(
    slots: int, free: int, unstarted: int, runtime: float | None, last: int
) -> None:
    size = claim_size(slots, min(free, slots), unstarted, runtime, last)
    assert 0 <= size <= LARGEST_CLAIM


@given(st.integers(1, 200), st.integers(1, 200), runtimes, st.integers(0, 500))
def test_a_free_slot_with_an_empty_buffer_always_gets_something(
    slots: int, free: int, runtime: float | None, last: int
) -> None:
    assert claim_size(slots, min(free, slots), 0, runtime, last) >= min(free, slots)


def test_a_long_task_weighs_at_once_and_short_ones_slowly() -> None:
    assert average(0.001, [5.0]) == 5.0
    slow = average(5.0, [0.001])
    assert slow is not None
    assert 3.0 < slow < 4.0
    assert claim_size(1, 1, 0, average(1.0, [0.001] * 24), last=100) > 10
    assert average(None, []) is None


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_pause_between_attempts_to_connect_grows_to_two_seconds(failures: int, chance: float) -> None:
    assert 0.025 <= backoff(failures, chance) <= 2.0


def test_who_says_that_it_is_idle_looks_at_once_and_after_the_first_pause() -> None:
    """A client that has asked just before does not notify it."""
    demand = Demand(slots=1, longest_pause=5.0)
    for now in (1.0, 2.0, 3.0):
        demand.claimed(0, now)
    assert demand.idle
    demand.said_idle()
    assert demand.size_now(running=0, unstarted=0, now=3.0) == 1
    demand.claimed(0, 3.0)
    assert demand.next_look == 3.0 + FIRST_PAUSE
    assert demand.size_now(running=0, unstarted=0, now=3.01) == 0
