"""Duties: what one process at a time does, as long as it renews."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

from .helpers import NOON, OpenQueue, Queue, wait_until_blocked


def take(queue: Queue, name: str = "sweep", seconds: float = 10) -> bool:
    return bool(queue.one("select pgqueue.take_duty(%s, %s, %s)", name, queue.worker, seconds))


def test_a_duty_belongs_to_one_until_its_time_is_over(queue: Queue, other: Queue) -> None:
    queue.set_clock(NOON)
    other.set_clock(NOON + timedelta(seconds=9.999))
    assert take(queue)
    assert not take(other)
    other.set_clock(NOON + timedelta(seconds=10))
    assert take(other)
    queue.set_clock(NOON + timedelta(seconds=10))
    assert not take(queue)


def test_duties_are_separate(queue: Queue, other: Queue) -> None:
    assert take(queue, "sweep")
    assert take(other, "prune")
    assert not take(other, "sweep")


def test_a_holder_keeps_it_by_asking_again_and_writes_in_the_second_half_only(queue: Queue, other: Queue) -> None:
    look = "select until from pgqueue.duty"
    queue.set_clock(NOON)
    assert take(queue)
    queue.set_clock(NOON + timedelta(seconds=4))
    assert take(queue)
    assert queue.one(look) == NOON + timedelta(seconds=10)
    queue.set_clock(NOON + timedelta(seconds=6))
    assert take(queue)
    assert queue.one(look) == NOON + timedelta(seconds=16)
    other.set_clock(NOON + timedelta(seconds=15))
    assert not take(other)


def test_a_duty_is_free_at_once_when_its_holder_has_lost_the_session_lock(queue: Queue, other: Queue) -> None:
    queue.register(locked=True)
    assert queue.one("select pg_try_advisory_lock(pgqueue.lock_key(%s))", queue.worker)
    assert take(queue, seconds=3600)
    assert not take(other, seconds=3600)
    queue.rows("select pg_advisory_unlock_all()")
    assert take(other, seconds=3600)
    assert not take(queue, seconds=3600)


def test_a_holder_without_a_session_lock_keeps_its_duty_until_its_time_is_over(queue: Queue, other: Queue) -> None:
    queue.register(locked=False)
    assert take(queue)
    assert not take(other)


def test_of_many_who_ask_at_once_one_gets_it(open_queue: OpenQueue) -> None:
    queues = [open_queue() for _ in range(6)]
    for seconds in (0, 100, 200):
        start = Barrier(len(queues))

        def ask(queue: Queue, seconds: int = seconds, start: Barrier = start) -> bool:
            queue.set_clock(NOON + timedelta(seconds=seconds))
            start.wait()
            return take(queue)

        with ThreadPoolExecutor() as pool:
            assert sum(pool.map(ask, queues)) == 1


def test_who_waited_for_the_one_who_took_an_expired_duty_does_not_have_it(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor
) -> None:
    watcher.set_clock(NOON)
    assert take(watcher)
    for late in (queue, other):
        late.set_clock(NOON + timedelta(seconds=20))
    with queue.connection.transaction():
        assert take(queue)
        answer = aside.submit(take, other)
        wait_until_blocked(watcher, other)
    assert answer.result() is False
