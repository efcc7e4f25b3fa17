"""Continuations: what follows a job is enqueued by the statement that ends it, once, or not at all."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from .helpers import LOST, NOON, Queue, Row, new_id, wait_until_blocked

ERROR = {"type": "ValueError", "module": "builtins", "message": "bad"}
BOTH = {"links": [{"task": "next"}], "errbacks": [{"task": "complain"}]}


def waiting(queue: Queue) -> list[Row]:
    """What waits, the oldest first; arguments as they are written."""
    return queue.rows(
        "select id::text, task, args::text, parent_id::text, root_id::text from pgqueue.job where worker is null"
        " order by enqueued_at, id"
    )


def tasks(queue: Queue) -> list[str]:
    return sorted(row["task"] for row in waiting(queue))


# -- what follows which end


@pytest.mark.parametrize(
    ("state", "follows"),
    [
        ("SUCCESS", ["next"]),
        ("FAILURE", ["complain"]),
        ("REJECTED", ["complain"]),
        ("REVOKED", []),
        ("IGNORED", []),
    ],
)
def test_what_follows_depends_on_the_end(queue: Queue, state: str, follows: list[str]) -> None:
    queue.add(**BOTH)
    queue.run(state, error=ERROR)
    assert tasks(queue) == follows


@pytest.mark.parametrize("state", ["RETRY", "RELEASED", "REQUEUE"])
def test_nothing_follows_what_goes_back_until_it_ends(queue: Queue, state: str) -> None:
    queue.add(**BOTH)
    queue.run(state, error=ERROR)
    assert tasks(queue) == ["t"]
    queue.run()
    assert tasks(queue) == ["next"]


@pytest.mark.parametrize("state", ["RETRY", "RELEASED", "REQUEUE", "REPLACED"])
def test_nothing_follows_what_was_revoked(queue: Queue, state: str) -> None:
    job = queue.add(**BOTH)
    (claim,) = queue.claim()
    queue.one("select pgqueue.revoke(%s)", job)
    assert queue.end(claim, state, task="t")
    assert queue.state(job) == "REVOKED"
    assert tasks(queue) == []


def test_a_link_is_given_the_value_and_its_place_in_the_workflow(queue: Queue) -> None:
    root, link = new_id(), new_id()
    job = queue.add(root_id=root, links=[{"task": "next", "id": link, "args": [2], "queue": "mail", "priority": 9}])
    queue.run(value={"sum": 5})
    (row,) = waiting(queue)
    assert row == {"id": link, "task": "next", "args": '[{"sum": 5},2]', "parent_id": job, "root_id": root}
    found = queue.job(link)
    assert found is not None
    assert (found["queue"], found["priority"], found["eta"], found["links"]) == ("mail", 9, found["enqueued_at"], None)


def test_an_errback_is_given_the_id_of_the_failed_job_which_is_the_root_if_it_has_none(queue: Queue) -> None:
    job = queue.add(errbacks=[{"task": "complain", "args": ["ada"]}])
    queue.run("FAILURE", error=ERROR)
    (row,) = waiting(queue)
    assert (json.loads(row["args"]), row["parent_id"], row["root_id"]) == ([job, "ada"], job, job)


@pytest.mark.parametrize(
    ("args", "value", "given"),
    [
        (None, "5", "[5]"),
        ("[]", "5", "[5]"),
        (" [ \n ] ", "5", "[5]"),
        ("[1]", "null", "[null,1]"),
        (" [ 1.50, 1e3, 12345678901234567890.0 ] ", "1.0", "[1.0,1.50, 1e3, 12345678901234567890.0]"),
        ('["]", "["]', '"[]"', '["[]","]", "["]'),
        ("[[]]", "[]", "[[],[]]"),
    ],
)
def test_the_value_is_put_before_the_arguments_and_no_text_changes(
    queue: Queue, args: str | None, value: str, given: str
) -> None:
    link = f'{{"task": "next", "args": {args}}}' if args else '{"task": "next"}'
    queue.rows("select * from pgqueue.enqueue_many(%s)", f'[{{"task": "t", "links": [{link}]}}]')
    (claim,) = queue.claim()
    outcome = f'[{{"id": "{claim["id"]}", "attempt": 1, "state": "SUCCESS", "value": {value}}}]'
    assert queue.rows("select pgqueue.finish(%s, %s)", queue.worker, outcome) == []
    assert [row["args"] for row in waiting(queue)] == [given]


def test_a_success_without_a_value_passes_null(queue: Queue) -> None:
    queue.add(links=[{"task": "next"}])
    queue.run()
    assert [row["args"] for row in waiting(queue)] == ["[null]"]


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
@pytest.mark.parametrize("args", [{}, {"args": [1, 2]}], ids=str)
def test_an_immutable_one_is_given_nothing_more(queue: Queue, state: str, args: dict[str, Any]) -> None:
    call = {"task": "next", "immutable": True, **args}
    queue.add(links=[call], errbacks=[call])
    queue.run(state, value=5, error=ERROR)
    assert [json.loads(row["args"]) for row in waiting(queue)] == [args.get("args", [])]


def test_a_chain_runs_to_its_end_and_each_link_knows_its_parent(queue: Queue) -> None:
    last = {"task": "c", "errbacks": [{"task": "complain"}]}
    job = queue.add("a", links=[{"task": "b", "links": [last]}, {"task": "beside"}])
    a = queue.run(value=1)
    assert a["id"] == job
    assert tasks(queue) == ["b", "beside"]
    claims = {claim["task"]: claim for claim in queue.claim()}
    assert claims["b"]["links"] == [last]
    assert queue.end(claims["b"], value=2)
    assert queue.end(claims["beside"])
    (c,) = queue.claim()
    assert (c["task"], c["args"], c["links"]) == ("c", [2], None)
    assert (str(c["parent_id"]), str(c["root_id"])) == (claims["b"]["id"], job)
    assert queue.end(c, "FAILURE", error=ERROR)
    (complaint,) = waiting(queue)
    assert (json.loads(complaint["args"]), complaint["root_id"]) == ([c["id"]], job)


def test_a_chain_may_be_long(queue: Queue) -> None:
    chain: dict[str, Any] = {"task": "last"}
    for _ in range(300):
        chain = {"task": "t", "links": [chain]}
    queue.enqueue(chain)
    for n in range(300):
        queue.run(value=n)
    assert [(row["task"], row["args"]) for row in waiting(queue)] == [("last", "[299]")]


def test_a_batch_enqueues_what_follows_each_of_it(queue: Queue) -> None:
    queue.enqueue(*({"task": "t", **BOTH} for _ in range(50)), *({"task": "t"} for _ in range(50)))
    claims = queue.claim()
    states = ("SUCCESS", "FAILURE")
    outcomes = [
        {"id": claim["id"], "attempt": 1, "state": states[at % 2], "value": at, "error": ERROR}
        for at, claim in enumerate(claims)
    ]
    assert queue.finish(*outcomes) == []
    expected = [
        ("next", [at]) if at % 2 == 0 else ("complain", [claim["id"]])
        for at, claim in enumerate(claims)
        if claim["links"]
    ]
    found = [(row["task"], json.loads(row["args"])) for row in waiting(queue)]
    assert sorted(found, key=str) == sorted(expected, key=str)
    parents = {row["parent_id"] for row in waiting(queue)}
    assert parents == {claim["id"] for claim in claims if claim["links"]}


def test_idle_workers_hear_of_what_follows(queue: Queue, other: Queue) -> None:
    other.listen("pgqueue.work")
    for name in ("links", "errbacks"):
        queue.add(**{name: [{"task": "next", "queue": name}]})
    claims = queue.claim()
    other.rows("select pgqueue.say_idle(%s, '{links,errbacks}')", other.worker)
    assert queue.finish(
        {"id": claims[0]["id"], "attempt": 1, "state": "SUCCESS"},
        {"id": claims[1]["id"], "attempt": 1, "state": "FAILURE", "error": ERROR},
    ) == []  # fmt: skip
    assert sorted(other.heard(queue)) == [("pgqueue.work", "errbacks"), ("pgqueue.work", "links")]


# -- once


def test_asked_again_nothing_follows_a_second_time(queue: Queue) -> None:
    queue.enqueue({"task": "t", **BOTH}, {"task": "t", **BOTH})
    one, two = queue.claim()
    outcomes = [
        {"id": one["id"], "attempt": 1, "state": "SUCCESS", "value": 1},
        {"id": two["id"], "attempt": 1, "state": "FAILURE", "error": ERROR},
    ]
    for _ in range(3):
        assert queue.finish(*outcomes) == []
        assert tasks(queue) == ["complain", "next"]


def test_an_outcome_given_twice_in_one_batch_is_followed_once(queue: Queue) -> None:
    queue.add(**BOTH)
    (claim,) = queue.claim()
    outcome = {"id": claim["id"], "attempt": 1, "state": "SUCCESS", "keep": False}
    assert queue.finish(outcome, outcome) == []
    assert tasks(queue) == ["next"]


def test_a_rollback_leaves_neither_the_end_nor_what_follows(queue: Queue, other: Queue) -> None:
    job = queue.add(**BOTH)
    (claim,) = queue.claim()
    with queue.connection.transaction(force_rollback=True):
        assert queue.end(claim, value=1)
        assert (tasks(queue), tasks(other)) == (["next"], [])
    assert (tasks(queue), queue.state(job)) == ([], "STARTED")


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_two_who_acknowledge_at_once_are_followed_once(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor, state: str
) -> None:
    queue.add(**BOTH)
    (claim,) = queue.claim()
    with queue.connection.transaction():
        assert queue.end(claim, state, error=ERROR)
        answer = aside.submit(other.end, claim, state, worker=queue.worker, error=ERROR)
        wait_until_blocked(watcher, other)
    assert answer.result() is True, "it is stored, whoever did it"
    assert len(waiting(queue)) == 1


@pytest.mark.parametrize("first", ["finish", "bury"])
@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_an_acknowledgement_and_a_burial_at_once_are_followed_once(
    queue: Queue, other: Queue, watcher: Queue, aside: ThreadPoolExecutor, first: str, state: str
) -> None:
    queue.register(hooked=["*"], at_most_once=["t"])
    job = queue.add(**BOTH)
    (claim,) = queue.claim()
    if first == "finish":
        with queue.connection.transaction():
            assert queue.end(claim, state, error=ERROR)
            assert other.bury(queue.worker) == {}
        assert tasks(queue) == (["next"] if state == "SUCCESS" else ["complain"])
    else:
        with other.connection.transaction():
            assert other.bury(queue.worker) == {job: "FAILURE"}
            answer = aside.submit(queue.end, claim, state, error=ERROR)
            wait_until_blocked(watcher, queue)
        assert answer.result() is False
        assert tasks(queue) == ["complain", "pgqueue.report_failure"]


@pytest.mark.parametrize("there", ["as a job", "as a success", "as a failure"])
@pytest.mark.parametrize("kind", ["links", "errbacks"])
def test_an_id_that_is_there_is_not_created_again(queue: Queue, there: str, kind: str) -> None:
    follower = queue.add("there", priority=9)
    if there != "as a job":
        queue.run("SUCCESS" if there == "as a success" else "FAILURE", error=ERROR)
    before = (queue.job(follower), queue.result(follower))
    queue.add(**{kind: [{"task": "next", "id": follower}]})
    (claim,) = [claim for claim in queue.claim() if claim["task"] == "t"]
    assert queue.end(claim, "SUCCESS" if kind == "links" else "FAILURE", error=ERROR)
    if there == "as a job":
        assert queue.end({"id": follower, "attempt": 1}, "RELEASED")
        assert tasks(queue) == ["there"]
    else:
        assert tasks(queue) == []
        assert (queue.job(follower), queue.result(follower)) == before


def test_each_without_an_id_gets_one_of_its_own(queue: Queue) -> None:
    job = queue.add(links=[{"task": "next"}, {"task": "next"}])
    queue.run()
    assert len({row["id"] for row in waiting(queue)} - {job}) == 2


@pytest.mark.parametrize("state", ["FAILURE", "REJECTED"])
def test_what_an_errback_reads_is_stored_though_it_was_not_to_be_kept(queue: Queue, state: str) -> None:
    job, plain = queue.add(priority=9, errbacks=[{"task": "complain"}]), queue.add()
    queue.run(state, error=ERROR, keep=False)
    assert queue.status(job) | {"state": state, "error": ERROR} == queue.status(job)
    queue.claim()
    assert queue.end({"id": plain, "attempt": 1}, state, error=ERROR, keep=False)
    assert queue.state(plain) == "UNKNOWN"


def test_a_success_that_is_not_kept_is_followed_all_the_same(queue: Queue) -> None:
    job = queue.add(**BOTH)
    queue.run(value=5, keep=False)
    assert queue.state(job) == "UNKNOWN"
    assert [(row["task"], row["args"], row["parent_id"]) for row in waiting(queue)] == [("next", "[5]", job)]


# -- what cannot be enqueued


@pytest.mark.parametrize(
    ("calls", "place", "wrong"),
    [
        ({"task": "a"}, "", "must be a JSON array, not object"),
        ("a", "", "must be a JSON array, not string"),
        (["a"], "[0]", "must be a JSON object, not string"),
        ([{"task": "a"}, None], "[1]", "must be a JSON object, not null"),
        ([{}], "[0]", "has no task"),
        ([{"task": ""}], "[0]", "has no task"),
        ([{"task": None}], "[0]", "has no task"),
        ([{"task": "a" * 256}], "[0]", "has no task"),
        ([{"task": "a", "args": {}}], "[0]", "args"),
        ([{"task": "a", "kwargs": []}], "[0]", "kwargs"),
        ([{"task": "a", "queue": ""}], "[0]", "queue"),
        ([{"task": "a", "queue": "q" * 101}], "[0]", "queue"),
        ([{"task": "a", "priority": 10}], "[0]", "priority"),
        ([{"task": "a", "priority": 1.5}], "[0]", "priority"),
        ([{"task": "a", "id": "1"}], "[0]", "id"),
        ([{"task": "a", "links": [{"task": "b", "errbacks": [{"task": ""}]}]}], "[0].links[0].errbacks[0]", "no task"),
        ([{"task": "a", "links": {}}], "[0].links", "must be a JSON array"),
        ([{"plan": {}}], "[0].plan", "must be a JSON array"),
        ([{"plan": [{"task": "b"}]}], "[0].plan[0]", "has no id"),
        ([{"plan": [{"id": new_id()}]}], "[0].plan[0]", "neither has a task nor waits"),
        ([{"plan": [{"id": new_id(), "waits": 0}]}], "[0].plan[0]", "no number of others"),
        ([{"plan": [{"id": new_id(), "waits": 1, "takes": "all"}]}], "[0].plan[0]", "nothing, value or values"),
        ([{"plan": [{"id": new_id(), "task": "a", "steps": "b"}]}], "[0].plan[0]", "no array of UUIDs"),
        ([{"plan": [{"id": new_id(), "task": "a", "steps": ["b"]}]}], "[0].plan[0]", "no array of UUIDs"),
        ([{"plan": [{"id": new_id(), "task": "a", "place": "x"}]}], "[0].plan[0]", "a place or a depth"),
        ([{"plan": [{"task": "", "id": new_id(), "waits": 1, "takes": "value"}]}], "[0].plan[0]", "has no task"),
        ([{"task": "a", "eta": "tomorrowish"}], "", "cannot be read"),
        ([{"task": "a", "links": [{"task": "b", "time_limit": "x"}]}], "", "cannot be read"),
        ([{"plan": [{"task": "a", "id": new_id(), "expires": []}]}], "", "cannot be read"),
        ([{"task": "a", "countdown": 1e13}], "", "more than a hundred years"),
    ],
)
@pytest.mark.parametrize("kind", ["links", "errbacks"])
def test_what_can_never_be_enqueued_is_refused_before_anything_is_written(
    queue: Queue, kind: str, calls: object, place: str, wrong: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        queue.enqueue({"task": "t", "id": new_id()}, {"task": "t", kind: calls})
    assert caught.value.sqlstate == "PQ002"
    assert str(caught.value.diag.message_primary).startswith(f"{kind}{place} ")
    assert wrong in str(caught.value.diag.message_primary)
    assert "enqueue_many" in str(caught.value.diag.message_hint)
    assert queue.everything() == []


def test_null_and_an_empty_array_are_no_continuations(queue: Queue) -> None:
    queue.enqueue({"task": "t", "links": None, "errbacks": []}, {"task": "t", "links": [], "errbacks": None})
    for state in ("SUCCESS", "FAILURE"):
        queue.run(state, error=ERROR)
    assert waiting(queue) == []


BROKEN = [
    '["a"]',
    "[null]",
    '[{"args": []}]',
    '[{"task": ""}]',
    '[{"task": "a", "queue": ""}]',
    '[{"task": "a", "args": {"a": 1}}]',
    '[{"task": "a", "args": "abc"}]',
    '[{"task": "a", "id": "1"}]',
    '[{"task": "a", "priority": 99999999}]',
    "{}",
    '"a"',
]


@pytest.mark.parametrize("calls", [*BROKEN, r'[{"task": "a\u0000"}]'])
@pytest.mark.parametrize("end", ["finish", "bury"])
def test_a_broken_errback_does_not_keep_a_failure_from_being_stored(queue: Queue, calls: str, end: str) -> None:
    """Whoever changes the table by hand may break one; the job must end, and the others must be run."""
    said: list[str] = []
    queue.connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    queue.register(hooked=["t"])
    sound, broken = queue.add(**BOTH), queue.add(**BOTH)
    added = f"[{calls[1:-1]}, {{\"task\": \"complain\"}}]" if calls.startswith("[") else calls  # fmt: skip
    queue.rows("update pgqueue.job set errbacks = %s::json where id = %s", added, broken)
    claims = queue.claim()
    if end == "finish":
        failure = {"attempt": 1, "state": "FAILURE", "hooks": True, "error": ERROR}
        outcomes = [{"id": claim["id"], **failure} for claim in claims]
        assert queue.finish(*outcomes) == []
    else:
        assert set(queue.bury(max_crashes=0).values()) == {"FAILURE"}
    assert [queue.state(job) for job in (sound, broken)] == ["FAILURE", "FAILURE"]
    complaints = ["complain"] * (2 if calls.startswith("[") else 1)
    assert tasks(queue) == [*complaints, "pgqueue.report_failure", "pgqueue.report_failure"]
    assert len(said) == 1
    assert broken in said[0]


@pytest.mark.parametrize("calls", BROKEN)
def test_a_broken_link_is_an_error_and_the_job_can_then_fail(queue: Queue, calls: str) -> None:
    job = queue.add(**BOTH)
    queue.rows("update pgqueue.job set links = %s::json", calls)
    (claim,) = queue.claim()
    before = queue.everything()
    with pytest.raises(psycopg.Error):
        queue.end(claim, value=1)
    assert queue.everything() == before
    assert queue.end(claim, "FAILURE", error=ERROR)
    assert queue.state(job) == "FAILURE"
    assert tasks(queue) == ["complain"]


def test_an_errback_that_cannot_be_enqueued_at_this_moment_is_not_left_out(queue: Queue, other: Queue) -> None:
    follower = new_id()
    job = queue.add(errbacks=[{"task": "complain", "id": follower}])
    (claim,) = queue.claim()
    with other.connection.transaction(force_rollback=True):
        other.add("there", id=follower)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            queue.end(claim, "FAILURE", error=ERROR)
    assert queue.state(job) == "STARTED"
    assert queue.end(claim, "FAILURE", error=ERROR)
    assert tasks(queue) == ["complain"]


# -- failures that others find


def test_a_burial_enqueues_the_errbacks_of_what_fails_and_of_nothing_else(queue: Queue) -> None:
    queue.register(at_most_once=["once"])
    root = new_id()
    failed = queue.add("once", root_id=root, **BOTH)
    back, revoked = queue.add("often", **BOTH), queue.add("once", **BOTH)
    queue.claim()
    queue.one("select pgqueue.revoke(%s)", revoked)
    assert queue.bury() == {failed: "FAILURE", back: "PENDING", revoked: "REVOKED"}
    (complaint,) = [row for row in waiting(queue) if row["id"] != back]
    expected = {"task": "complain", "args": f'["{failed}"]', "parent_id": failed, "root_id": root}
    assert {name: complaint[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("hooked", "reported"), [(["once"], True), (["*"], True), (["other"], False), ([], False)], ids=str
)
@pytest.mark.parametrize("listed", [True, False])
def test_the_hooks_of_a_failure_that_a_burial_found_are_run_by_a_job(
    queue: Queue, other: Queue, hooked: list[str], reported: bool, listed: bool
) -> None:
    """A worker that is not on the list is judged by what the others say of their tasks."""
    (queue if listed else other).register(at_most_once=["once"], hooked=hooked)
    job = queue.add("once", args=[1.0], kwargs={"k": "v"}, queue="mail", priority=7)
    queue.claim(queues=["mail"])
    assert queue.bury() == {job: "FAILURE"}
    found = queue.claim(queues=["mail"])
    assert len(found) == reported
    for report in found:
        assert report["args"] == [job, "once", [1.0], {"k": "v"}, LOST]
        expected = {"task": "pgqueue.report_failure", "priority": 7, "ignore_result": True, "options": {"trail": False}}
        assert report | expected == report
        assert (str(report["parent_id"]), str(report["root_id"])) == (job, job)


def test_the_failure_of_a_report_is_not_reported(queue: Queue) -> None:
    queue.register(hooked=["*"])
    queue.add("t")
    for failed in ("t", "pgqueue.report_failure"):
        (claim,) = queue.claim(alone=True)
        assert claim["task"] == failed
        queue.bury(max_crashes=0)
        queue.register(hooked=["*"])
    assert waiting(queue) == []


@pytest.mark.parametrize(
    ("hooked", "reported"), [(["f", "s"], True), (["*"], True), (["s"], False), ([], False)], ids=str
)
def test_an_outcome_with_hooks_is_reported_if_it_is_a_failure_and_the_worker_has_hooks(
    queue: Queue, hooked: list[str], reported: bool
) -> None:
    queue.register(hooked=hooked)
    failed, succeeded = queue.add("f", priority=9, args=[1]), queue.add("s")
    f, s = queue.claim()
    assert queue.finish(
        {**f, "state": "FAILURE", "hooks": True, "error": ERROR, "keep": False},
        {**s, "state": "SUCCESS", "hooks": True},
    ) == []  # fmt: skip
    assert [claim["args"] for claim in queue.claim()] == [[failed, "f", [1], {}, ERROR]] * reported
    assert (queue.state(failed), queue.state(succeeded)) == ("UNKNOWN", "SUCCESS")


def test_a_failure_with_hooks_and_errbacks_has_both(queue: Queue) -> None:
    queue.register(hooked=["*"])
    queue.add(**BOTH)
    queue.run("FAILURE", hooks=True, error=ERROR)
    assert tasks(queue) == ["complain", "pgqueue.report_failure"]


# -- the children of a job


def test_children_are_listed_in_the_order_in_which_they_were_enqueued(queue: Queue, other: Queue) -> None:
    queue.set_clock(NOON)
    parent = queue.add("parent", priority=9, links=[{"task": "next"}])
    (claim,) = queue.claim()
    first = [queue.add("child", parent_id=parent, priority=8), queue.add("child", parent_id=parent)]
    queue.add("silent", parent_id=parent, options={"trail": False})
    seen = queue.add("seen", parent_id=parent, options={"trail": True, "shadow": "s"})
    queue.add("stranger", parent_id=new_id())
    queue.set_clock(NOON + timedelta(seconds=1))
    assert queue.end(claim)
    (link,) = [row["id"] for row in waiting(queue) if row["task"] == "next"]
    queue.run()  # the first child has ended

    def children() -> list[str]:
        return [row["id"] for row in queue.rows("select c::text as id from pgqueue.children(%s) c", parent)]

    expected = [*sorted([*first, seen]), link]
    assert children() == expected
    queue.add("again", id=expected[0], known=True, parent_id=parent)
    assert sorted(children()) == sorted(expected), "none is listed twice"
    assert queue.rows("select pgqueue.children(%s)", new_id()) == []
