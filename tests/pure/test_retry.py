"""When a failed attempt is repeated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.retry import RetryPolicy

fuzz = settings(deadline=None, max_examples=200, database=None)

SECONDS = st.floats(0, 1e9)
RETRIES = st.integers(0, 10**9)


@fuzz
@given(SECONDS, RETRIES)
def test_without_backoff_every_wait_is_the_delay(delay: float, retries: int) -> None:
    assert RetryPolicy(delay=delay, jitter=True).wait(retries) == delay


@fuzz
@given(st.floats(0.001, 1e9), SECONDS, RETRIES)
def test_the_wait_doubles_until_the_longest(backoff: float, longest: float, retries: int) -> None:
    policy = RetryPolicy(backoff=backoff, backoff_max=longest, jitter=False)
    wait = policy.wait(retries)
    assert 0 <= wait <= longest
    assert wait <= policy.wait(retries + 1) <= max(2 * wait, longest)
    if wait < longest and retries < 60:
        assert wait == max(1.0, backoff) * 2.0**retries


@fuzz
@given(st.floats(0.001, 1e9), SECONDS, RETRIES)
def test_jitter_stays_between_nothing_and_the_computed_wait(backoff: float, longest: float, retries: int) -> None:
    exact = RetryPolicy(backoff=backoff, backoff_max=longest, jitter=False).wait(retries)
    assert 0 <= RetryPolicy(backoff=backoff, backoff_max=longest, jitter=True).wait(retries) <= exact


def test_jitter_spreads_over_the_whole_wait() -> None:
    waits = [RetryPolicy(backoff=64).wait(0) for _ in range(1000)]
    assert min(waits) < 8
    assert max(waits) > 56
    assert len(set(waits)) > 900


@pytest.mark.parametrize(("retries", "wait"), [(0, 2), (1, 4), (3, 16), (8, 512), (9, 600), (5000, 600)])
def test_the_waits_are_those_of_celery(retries: int, wait: float) -> None:
    assert RetryPolicy(backoff=2, jitter=False).wait(retries) == wait


@fuzz
@given(st.none() | st.integers(0, 100), st.integers(0, 200))
def test_max_retries_is_the_number_of_repeats(limit: int | None, retries: int) -> None:
    assert RetryPolicy(max_retries=limit).allows(retries) == (limit is None or retries < limit)


def test_only_the_named_exceptions_and_their_kin_are_covered() -> None:
    policy = RetryPolicy(autoretry_for=(OSError, ValueError), dont_autoretry_for=(FileNotFoundError,))
    assert policy.covers(ConnectionResetError())
    assert policy.covers(UnicodeDecodeError("utf-8", b"", 0, 1, ""))
    assert not policy.covers(FileNotFoundError())
    assert not policy.covers(KeyError())
    assert not policy.covers(KeyboardInterrupt())
    assert not RetryPolicy().covers(OSError())
