"""Pruning old results and purging waiting jobs."""

from __future__ import annotations

from datetime import timedelta

from .helpers import NOON, Queue, new_id


def prune(queue: Queue, keep: str = "1 day", limit: int = 1000) -> int:
    return int(queue.one("select pgqueue.prune(%s, %s)", keep, limit))


def purge(queue: Queue, *queues: str, limit: int = 10_000) -> int:
    return int(queue.one("select pgqueue.purge(%s, %s)", list(queues), limit))


def run_at(queue: Queue, minutes: int) -> str:
    queue.set_clock(NOON + timedelta(minutes=minutes))
    job = queue.add()
    queue.run("FAILURE" if minutes % 2 else "SUCCESS")
    return job


def test_results_are_pruned_when_they_are_older_than_told(queue: Queue) -> None:
    jobs = [run_at(queue, minutes) for minutes in range(4)]
    waiting = queue.add()
    queue.set_clock(NOON + timedelta(days=1, minutes=2))
    assert prune(queue) == 2
    assert [queue.state(job) for job in jobs] == ["UNKNOWN", "UNKNOWN", "SUCCESS", "FAILURE"]
    assert queue.state(waiting) == "PENDING"
    assert prune(queue) == 0


def test_the_oldest_results_go_first_and_no_more_than_the_limit(queue: Queue) -> None:
    newer, oldest, newest = (run_at(queue, minutes) for minutes in (5, 1, 9))
    queue.set_clock(NOON + timedelta(days=2))
    assert prune(queue, limit=1) == 1
    assert [queue.state(job) == "UNKNOWN" for job in (oldest, newer, newest)] == [True, False, False]
    assert prune(queue, limit=10) == 2


def test_a_result_that_somebody_locks_is_passed_over(queue: Queue, other: Queue) -> None:
    locked, free = run_at(queue, 0), run_at(queue, 1)
    other.set_clock(NOON + timedelta(days=2))
    with queue.connection.transaction():
        queue.rows("select from pgqueue.result where id = %s for update", locked)
        assert prune(other) == 1
    assert (other.state(locked), other.state(free)) == ("SUCCESS", "UNKNOWN")
    assert prune(other) == 1


def test_who_waited_and_was_killed_is_removed_after_his_time(queue: Queue) -> None:
    queue.set_clock(NOON)
    for seconds in (10, 11):
        queue.rows("select pgqueue.wait_for(%s, %s, %s)", new_id(), new_id(), seconds)
    queue.set_clock(NOON + timedelta(seconds=10.5))
    prune(queue)
    assert queue.rows("select until from pgqueue.waiter") == [{"until": NOON + timedelta(seconds=11)}]


def test_purge_deletes_what_waits_in_these_queues_and_leaves_no_result(queue: Queue) -> None:
    running = queue.add(queue="a", priority=9)
    queue.claim(1, ["a"])
    queue.enqueue({"task": "t", "queue": "a"}, {"task": "t", "queue": "b", "countdown": 60})
    kept = queue.add(queue="c")
    assert purge(queue, "a", "b") == 2
    assert {str(row["id"]) for row in queue.rows("select id from pgqueue.job")} == {running, kept}
    assert queue.rows("select * from pgqueue.result") == []
    assert purge(queue, "a", "b") == 0


def test_purge_keeps_its_limit(queue: Queue) -> None:
    queue.enqueue(*({"task": "t"} for _ in range(5)))
    assert [purge(queue, "default", limit=3) for _ in range(3)] == [3, 2, 0]


def test_purge_passes_over_what_is_just_being_claimed(queue: Queue, other: Queue) -> None:
    queue.add()
    queue.add()
    with queue.connection.transaction():
        (claim,) = queue.claim(1)
        assert purge(other, "default") == 1
    assert queue.end(claim)


def test_purge_frees_the_unique_key(queue: Queue) -> None:
    queue.add(unique_key="k")
    purge(queue, "default")
    assert queue.enqueue({"task": "t", "unique_key": "k"})[0][1]


def test_parts_of_steps_that_are_gone_are_found_among_those_of_steps_that_wait(queue: Queue) -> None:
    """It looks at a hundred steps from somewhere on, so it is called again until it has met them all."""
    queue.rows(
        "insert into pgqueue.step (id, made_at, root_id, members, waits, takes, call)"
        " select gen_random_uuid(), now(), gen_random_uuid(), 2, 1, 'values', '{}' from generate_series(1, 2000)"
    )
    queue.rows(
        "insert into pgqueue.part (step, place, job, state, depth)"
        " select id, 0, id, 'SUCCESS', 0 from (select id from pgqueue.step union all"
        " select gen_random_uuid() from generate_series(1, 2000)) s order by random()"
    )
    for _ in range(500):
        queue.rows("select pgqueue.prune('1 day')")
        if queue.one("select count(*) from pgqueue.part") == 2000:
            break
    assert queue.one("select count(*) from pgqueue.part p join pgqueue.step s on s.id = p.step") == 2000
    assert queue.one("select count(*) from pgqueue.part") == 2000


def test_saved_groups_are_kept_as_long_as_results(queue: Queue) -> None:
    for age in ("2 days", "1 hour"):
        queue.rows(
            "insert into pgqueue.saved_group values (gen_random_uuid(), pgqueue.clock() - %s::interval, '[]')", age
        )
    queue.rows("select pgqueue.prune('1 day')")
    assert queue.one("select count(*) from pgqueue.saved_group") == 1
