"""Workflows: steps that wait for others are enqueued, or end, in the commit that ends the last of these."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql as compose

from .helpers import LOST, OpenQueue, Queue, Row, new_id, wait_until_blocked

ERROR = {"type": "ValueError", "module": "builtins", "message": "bad"}


class Flow:
    """One workflow, whose jobs are known by the names of their tasks."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.root = new_id()
        self.ids: dict[str, str] = {}
        self.nodes: list[Row] = []

    def node(self, name: str, *then: str, waits: int = 0, takes: str = "value", **fields: Any) -> Flow:
        node = {"task": name, "id": self.id(name), "root_id": self.root, **fields}
        if then:
            node["steps"] = [self.id(step) for step in then]
        if waits:
            node |= {"waits": waits, "takes": takes}
        self.nodes.append(node)
        return self

    def start(self, *, resent: bool = False) -> Flow:
        steps = [node for node in self.nodes if "waits" in node]
        jobs = [node for node in self.nodes if "waits" not in node]
        self.queue.rows("select pgqueue.enqueue_workflow(%s, %s, %s)", json.dumps(steps), json.dumps(jobs), resent)
        return self

    def id(self, name: str) -> str:
        return self.ids.setdefault(name, new_id())

    def end(self, name: str, state: str = "SUCCESS", *, queue: Queue | None = None, **fields: Any) -> None:
        """Claim all that waits, end this one, and put back the rest."""
        queue = queue or self.queue
        claims = {claim["id"]: claim for claim in queue.claim()}
        claim = claims.pop(self.id(name))
        if state == "SUCCESS":
            fields.setdefault("value", name)
        elif state != "IGNORED":
            fields.setdefault("error", ERROR)
        assert queue.end(claim, state, **fields)
        for other in claims.values():
            assert queue.end(other, "RELEASED")

    def states(self) -> dict[str, str]:
        return {name: self.queue.state(id_) for name, id_ in self.ids.items()}

    def waiting(self) -> dict[str, Any]:
        """The jobs that can be claimed, and their arguments."""
        return {row["task"]: row["args"] for row in self.queue.rows("select task, args from pgqueue.job")}

    def error(self, name: str) -> Any:
        return self.queue.status(self.id(name))["error"]

    def left(self) -> tuple[int, int]:
        """How many steps and parts there are."""
        return self.queue.one("select count(*) from pgqueue.step"), self.queue.one("select count(*) from pgqueue.part")


@pytest.fixture
def flow(queue: Queue) -> Flow:
    return Flow(queue)


def chain(flow: Flow, **fields: Any) -> Flow:
    return (
        flow.node("a", "b", **fields).node("b", "c", waits=1, **fields).node("c", waits=1, args=[9], **fields).start()
    )


def chord(flow: Flow, size: int = 3, **body: Any) -> Flow:
    for place in range(size):
        flow.node(f"m{place}", "body", place=place, depth=1)
    return flow.node("body", waits=size, takes="values", **body).start()


def following(flow: Flow) -> list[Row]:
    """A chord as a link: its first members, and behind one of them what waits."""
    for place in range(2):
        flow.node(f"m{place}", "body", place=place, depth=1)
    flow.node("body", waits=2, takes="values", args=[9])
    return [{"plan": [{**node, "root_id": None} for node in flow.nodes]}, {"task": "beside"}]


# -- chains


def test_a_link_of_a_chain_is_enqueued_when_the_one_before_has_succeeded(flow: Flow) -> None:
    chain(flow)
    assert flow.states() == {"a": "PENDING", "b": "PENDING", "c": "PENDING"}
    assert flow.waiting() == {"a": []}
    flow.end("a", value={"n": 5})
    assert flow.waiting() == {"b": [{"n": 5}]}
    flow.end("b", value=None)
    assert flow.waiting() == {"c": [None, 9]}
    found = flow.queue.job(flow.id("c"))
    assert found is not None
    assert (str(found["parent_id"]), str(found["root_id"])) == (flow.id("b"), flow.root)
    flow.end("c")
    assert set(flow.states().values()) == {"SUCCESS"}
    assert flow.left() == (0, 0)


def test_a_link_that_takes_nothing_is_given_nothing(flow: Flow) -> None:
    flow.node("a", "b").node("b", waits=1, takes="nothing", args=[1], kwargs={"k": 2}).start()
    flow.end("a", value=5)
    assert flow.waiting() == {"b": [1]}


def test_numbers_keep_their_spelling_on_the_way(flow: Flow) -> None:
    flow.node("a", "b").node("b", "c", waits=1).node("c", waits=1, takes="values").start()
    (claim,) = flow.queue.claim()
    outcome = f'[{{"id":"{claim["id"]}","attempt":1,"state":"SUCCESS","value":[1.50, 1e3]}}]'
    flow.queue.rows("select pgqueue.finish(%s, %s::json)", flow.queue.worker, outcome)
    assert flow.queue.one("select args::text from pgqueue.job") == "[[1.50, 1e3]]"


@pytest.mark.parametrize("state", ["FAILURE", "REJECTED", "REVOKED", "IGNORED"])
def test_the_rest_of_a_chain_ends_as_the_link_that_has_not_succeeded(flow: Flow, state: str) -> None:
    chain(flow, errbacks=[{"task": "complain"}])
    flow.end("a", state)
    assert flow.states() == {"a": state, "b": state, "c": state}
    by = None if state == "IGNORED" else {**ERROR, "by": flow.id("a")}
    assert (flow.error("b"), flow.error("c")) == (by, by)
    assert flow.waiting() == ({"complain": [flow.id("a")]} if state in ("FAILURE", "REJECTED") else {})
    assert flow.left() == (0, 0)


def test_a_retried_link_keeps_the_rest_waiting(flow: Flow) -> None:
    chain(flow)
    flow.end("a", "RETRY")
    flow.end("a", "REQUEUE")
    assert flow.states() == {"a": "RETRY", "b": "PENDING", "c": "PENDING"}
    flow.end("a", value=1)
    assert flow.waiting() == {"b": [1]}


def test_a_link_may_be_followed_by_many(flow: Flow) -> None:
    flow.node("a", "b", "c").node("b", waits=1).node("c", waits=1).start()
    flow.end("a", value=1)
    assert flow.waiting() == {"b": [1], "c": [1]}


def test_options_of_a_step_hold_from_when_it_is_enqueued(flow: Flow) -> None:
    flow.node("a", "b").node("b", waits=1, queue="mail", priority=9, countdown=60, ignore_result=True).start()
    flow.end("a")
    found = flow.queue.job(flow.id("b"))
    assert found is not None
    assert (found["queue"], found["priority"], found["ignore_result"]) == ("mail", 9, True)
    assert (found["eta"] - found["enqueued_at"]).total_seconds() == 60


# -- chords


@pytest.mark.parametrize("order", [("m0", "m1", "m2"), ("m2", "m1", "m0"), ("m1", "m2", "m0")])
def test_a_body_gets_the_values_in_the_order_of_the_definition(flow: Flow, order: tuple[str, ...]) -> None:
    chord(flow, args=["last"])
    for name in order[:-1]:
        flow.end(name)
        assert "body" not in flow.waiting()
    flow.end(order[-1])
    assert flow.waiting() == {"body": [["m0", "m1", "m2"], "last"]}
    found = flow.queue.job(flow.id("body"))
    assert found is not None
    assert str(found["parent_id"]) == flow.id(order[-1])
    assert flow.left() == (0, 0)


def test_members_that_end_in_one_commit_count_each(flow: Flow) -> None:
    chord(flow, 50)
    claims = flow.queue.claim()
    assert not flow.queue.finish(
        *({"id": claim["id"], "attempt": 1, "state": "SUCCESS", "value": claim["task"]} for claim in claims)
    )
    assert flow.waiting() == {"body": [[f"m{n}" for n in range(50)]]}


def test_a_header_of_one_gives_a_list_of_one(flow: Flow) -> None:
    chord(flow, 1)
    flow.end("m0")
    assert flow.waiting() == {"body": [["m0"]]}


def test_an_ignored_result_and_an_ignored_member_count_too(flow: Flow) -> None:
    chord(flow)
    flow.end("m0", value=7, keep=False)
    flow.end("m1", "IGNORED")
    flow.end("m2")
    assert flow.waiting() == {"body": [[7, None, "m2"]]}


def test_a_member_counts_once_however_often_it_is_acknowledged(flow: Flow) -> None:
    chord(flow, 2)
    claims = {claim["task"]: claim for claim in flow.queue.claim()}
    for _ in range(3):
        assert flow.queue.end(claims["m0"], value=1)
    assert "body" not in flow.waiting()
    assert flow.queue.end(claims["m1"], value=2)
    for claim in claims.values():
        flow.queue.end(claim, value=3)
    assert flow.waiting() == {"body": [[1, 2]]}


def test_a_failed_member_fails_the_body_when_all_have_ended(flow: Flow) -> None:
    chord(flow, errbacks=[{"task": "complain"}])
    flow.end("m1", "FAILURE")
    assert flow.states()["body"] == "PENDING"
    flow.end("m2", "REVOKED")
    flow.end("m0")
    assert flow.states()["body"] == "FAILURE"
    error = flow.error("body")
    assert (error["type"], error["module"]) == ("ChordError", "pgqueue.errors")
    assert error["message"] == f"Dependency {flow.id('m1')} raised ValueError('bad')"
    assert error["cause"] == ERROR
    assert flow.waiting() == {"complain": [flow.id("body")]}
    assert flow.queue.one("select count(*) from pgqueue.step") == 0


def test_a_revoked_member_is_named(flow: Flow) -> None:
    chord(flow, 1)
    flow.queue.rows("select pgqueue.revoke(%s)", flow.id("m0"))
    assert flow.error("body")["message"] == f"Dependency {flow.id('m0')} is REVOKED"


def test_what_follows_a_body_that_failed_ends_with_it(flow: Flow) -> None:
    flow.node("m", "body", depth=1).node("body", "next", waits=1, takes="values").node("next", waits=1).start()
    flow.end("m", "FAILURE")
    assert flow.states() == {"m": "FAILURE", "body": "FAILURE", "next": "FAILURE"}
    assert flow.error("next") == {**flow.error("body"), "by": flow.id("body")}


def test_a_failure_before_a_chord_ends_all_of_it_without_a_chord_error(flow: Flow) -> None:
    errbacks = [{"task": "complain"}]
    flow.node("a", "m0", "m1", errbacks=errbacks)
    flow.node("m0", "body", waits=1, place=0, depth=1).node("m1", "body", waits=1, place=1, depth=1)
    flow.node("body", waits=2, takes="values", errbacks=errbacks).start()
    flow.end("a", "FAILURE")
    assert set(flow.states().values()) == {"FAILURE"}
    assert flow.error("body") == {**ERROR, "by": flow.id("a")}
    assert flow.waiting() == {"complain": [flow.id("a")]}


def test_a_failed_chord_within_a_header_counts_in_the_outer_one(flow: Flow) -> None:
    flow.node("inner", "inner body", depth=2).node("inner body", "body", waits=1, takes="values", place=0, depth=1)
    flow.node("other", "body", place=1, depth=1).node("body", waits=2, takes="values").start()
    flow.end("inner", "FAILURE")
    assert flow.states()["inner body"] == "FAILURE"
    flow.end("other")
    assert flow.error("body")["message"].startswith(f"Dependency {flow.id('inner body')} raised ChordError(")


def test_values_are_gathered_where_nobody_runs(flow: Flow) -> None:
    """A group at the end of a chain in a header: its values are one value of the outer body."""
    flow.node("a", "b", "c", depth=1)
    flow.node("b", "gather", waits=1, place=0, depth=1).node("c", "gather", waits=1, place=1, depth=1)
    flow.node("gather", "body", waits=2, takes="values", place=0, depth=1)
    flow.nodes[-1]["task"] = None
    flow.node("d", "body", place=1, depth=1).node("body", waits=2, takes="values").start()
    for name in "adcb":
        flow.end(name)
    assert flow.waiting() == {"body": [[["b", "c"], "d"]]}
    assert flow.queue.status(flow.id("gather"))["value"] == ["b", "c"]


# -- other ends


def test_a_waiting_step_can_be_revoked_with_what_waits_for_it(flow: Flow) -> None:
    chain(flow)
    assert flow.queue.one("select pgqueue.revoke(%s)", flow.id("b")) == "REVOKED"
    assert flow.states() == {"a": "PENDING", "b": "REVOKED", "c": "REVOKED"}
    flow.end("a")
    assert flow.waiting() == {}


def test_a_revoked_running_member_counts_when_it_is_not_run_again(flow: Flow) -> None:
    chord(flow, 1)
    (claim,) = flow.queue.claim()
    assert flow.queue.one("select pgqueue.revoke(%s)", claim["id"]) == "STARTED"
    assert flow.queue.end(claim, "RETRY", error=ERROR)
    assert flow.states() == {"m0": "REVOKED", "body": "FAILURE"}


def test_a_member_whose_worker_died_for_good_counts(flow: Flow) -> None:
    chord(flow, 2, errbacks=[{"task": "complain"}])
    flow.queue.register()
    flow.queue.claim()
    assert set(flow.queue.bury(max_crashes=0).values()) == {"FAILURE"}
    assert flow.states()["body"] == "FAILURE"
    assert flow.error("body")["cause"] == LOST
    assert flow.waiting() == {"complain": [flow.id("body")]}


def test_purged_members_end_what_waits_for_them(flow: Flow) -> None:
    chain(flow)
    assert flow.queue.one("select pgqueue.purge('{default}')") == 1
    assert flow.states() == {"a": "UNKNOWN", "b": "REVOKED", "c": "REVOKED"}


def test_whoever_waits_for_a_step_is_told_of_its_end(flow: Flow, open_queue: OpenQueue) -> None:
    listener = open_queue()
    listener.listen("pgqueue.done")
    chain(flow)
    flow.queue.rows("select pgqueue.wait_for(%s, %s, 60)", flow.id("c"), new_id())
    flow.end("a", "FAILURE")
    assert listener.heard(flow.queue) == [("pgqueue.done", flow.id("c"))]


# -- the beginning


def test_a_workflow_is_enqueued_whole_or_not_at_all(flow: Flow) -> None:
    flow.node("a", "b").node("b", waits=1, priority=11)
    with pytest.raises(psycopg.Error, match=r"steps\[0\] has a priority that is not 0 to 9") as caught:
        flow.start()
    assert caught.value.sqlstate == "PQ002"
    assert (flow.waiting(), flow.left()) == ({}, (0, 0))


def test_a_workflow_sent_twice_is_there_once(flow: Flow) -> None:
    chain(flow)
    flow.start(resent=True)
    flow.end("a")
    flow.start(resent=True)
    assert flow.waiting() == {"b": ["a"]}


def test_a_unique_key_that_is_taken_stops_a_workflow_at_its_beginning(flow: Flow) -> None:
    other = flow.queue.add("other", unique_key="k")
    flow.node("a", "b", unique_key="k").node("b", waits=1)
    with pytest.raises(psycopg.Error, match=other):
        flow.start()
    assert (list(flow.waiting()), flow.left()) == (["other"], (0, 0))


def test_a_step_whose_unique_key_is_taken_later_ends_as_rejected_with_what_waits_for_it(flow: Flow) -> None:
    flow.node("a", "b", "x").node("b", "c", waits=1, unique_key="k").node("c", waits=1).node("x", waits=1).start()
    other = flow.queue.add("other", unique_key="k")
    flow.end("a")
    assert flow.states() == {"a": "SUCCESS", "b": "REJECTED", "c": "REJECTED", "x": "PENDING"}
    assert other in flow.error("b")["message"]
    assert sorted(flow.waiting()) == ["other", "x"]


def test_an_id_that_has_succeeded_before_counts_at_once(flow: Flow) -> None:
    done = flow.queue.add("m0", id=flow.id("m0"))
    flow.queue.run(value="before")
    flow.node("m0", "body", place=0, depth=1, known=True).node("m1", "body", place=1, depth=1)
    flow.node("body", waits=2, takes="values").start()
    assert flow.queue.state(done) == "SUCCESS"
    flow.end("m1")
    assert flow.waiting() == {"body": [["before", "m1"]]}


def test_a_step_whose_id_has_succeeded_before_is_not_run_again(flow: Flow) -> None:
    flow.queue.add("b", id=flow.id("b"))
    flow.queue.run(value="before")
    flow.node("a", "b").node("b", "c", waits=1).node("c", waits=1).start()
    flow.end("a")
    assert flow.waiting() == {"c": ["before"]}


# -- replaced


def replacement(flow: Flow, *nodes: Row) -> Flow:
    """A workflow whose last node has the id of `a`."""
    inner = Flow(flow.queue)
    inner.root = flow.root
    inner.ids["z"] = flow.id("a")
    return inner


@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE"])
def test_a_workflow_in_the_place_of_a_job_goes_on_as_that_would_have(flow: Flow, end: str) -> None:
    chain(flow, errbacks=[{"task": "complain"}])
    inner = replacement(flow).node("x", "z").node("z", waits=1)
    (claim,) = flow.queue.claim()
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)  # the answer got lost
    assert flow.states() == {"a": "PENDING", "b": "PENDING", "c": "PENDING"}
    inner.end("x")
    assert flow.waiting() == {"z": ["x"]}
    (again,) = flow.queue.claim()
    assert again["attempt"] == 2  # no attempt of before can acknowledge it
    assert flow.queue.end(again, end, value=1, error=ERROR)
    assert flow.waiting() == ({"b": [1]} if end == "SUCCESS" else {"complain": [flow.id("a")]})
    assert flow.states()["c"] == ("PENDING" if end == "SUCCESS" else "FAILURE")


def test_a_chord_in_the_place_of_a_member_fails_within_the_outer_one(flow: Flow) -> None:
    flow.node("a", "body", depth=1).node("body", waits=1, takes="values").start()
    inner = replacement(flow).node("x", "z", depth=1).node("z", waits=1, takes="values")
    (claim,) = flow.queue.claim()
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)
    inner.end("x", "FAILURE")
    assert flow.error("a")["type"] == "ChordError"
    assert flow.error("body")["message"].startswith(f"Dependency {flow.id('a')} raised ChordError(")


# -- as a whole


def test_a_failed_workflow_goes_on_from_where_it_failed(flow: Flow) -> None:
    flow.node("a", "m0", "m1")
    flow.node("m0", "body", waits=1, place=0, depth=1).node("m1", "body", waits=1, place=1, depth=1, unique_key="k")
    flow.node("body", "end", waits=2, takes="values", args=[1.5]).node("end", waits=1)
    flow.start()
    flow.end("a")
    flow.end("m0", value="kept")
    flow.end("m1", "FAILURE")
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1
    assert flow.states() == {"a": "SUCCESS", "m0": "SUCCESS", "m1": "PENDING", "body": "PENDING", "end": "PENDING"}
    assert flow.waiting() == {"m1": ["a"]}
    flow.end("m1", value="now")
    assert flow.waiting() == {"body": [["kept", "now"], 1.5]}
    flow.end("body")
    flow.end("end")
    assert set(flow.states().values()) == {"SUCCESS"}
    assert flow.left() == (0, 0)
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 0


def test_a_step_that_was_revoked_can_be_brought_back_after_its_member_has_ended(flow: Flow) -> None:
    chain(flow)
    flow.queue.rows("select pgqueue.revoke(%s)", flow.id("b"))
    flow.end("a", value=5)
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 0
    assert flow.waiting() == {"b": [5]}
    assert flow.states()["c"] == "PENDING"


def test_a_whole_workflow_can_be_revoked(flow: Flow) -> None:
    chord(flow, 3)
    (running,) = flow.queue.claim(1)
    assert flow.queue.one("select pgqueue.revoke_workflow(%s)", flow.root) == 4
    states = flow.states()
    assert states.pop(running["task"]) == "STARTED"
    assert set(states.values()) == {"REVOKED"}
    assert flow.queue.end(running, value=1)
    assert flow.queue.one("select count(*) from pgqueue.job") == 0


def test_the_view_counts_what_is_where(flow: Flow) -> None:
    chord(flow, 3)
    flow.end("m0")
    flow.end("m1", "FAILURE")
    flow.queue.claim()
    (row,) = flow.queue.rows("select * from pgqueue.workflow where id = %s", flow.root)
    assert [row[name] for name in ("total", "done", "failed", "running", "waiting")] == [4, 1, 1, 1, 1]


def test_a_member_can_be_added_to_the_chord_of_a_running_one(flow: Flow) -> None:
    chord(flow, 2)
    claims = {claim["task"]: claim for claim in flow.queue.claim()}
    more = {"id": flow.id("more"), "task": "more", "root_id": flow.root}
    call = "select pgqueue.add_member(%s, %s, %s, %s)"
    assert flow.queue.one(call, claims["m0"]["id"], flow.queue.worker, 1, json.dumps(more)) is True
    assert flow.queue.one(call, claims["m0"]["id"], flow.queue.worker, 2, json.dumps(more)) is False
    for claim in claims.values():
        assert flow.queue.end(claim, value=claim["task"])
    assert list(flow.waiting()) == ["more"]
    flow.end("more")
    assert flow.waiting() == {"body": [["m0", "m1", "more"]]}


def test_a_saved_group_is_found_until_it_is_deleted(queue: Queue) -> None:
    group = new_id()
    queue.rows("select pgqueue.save_group(%s, '[1]')", group)
    queue.rows("select pgqueue.save_group(%s, '[2]')", group)
    assert queue.one("select pgqueue.saved_group(%s)", group) == [2]
    assert queue.one("select pgqueue.delete_group(%s)", group) is True
    assert queue.one("select pgqueue.delete_group(%s)", group) is False
    assert queue.one("select pgqueue.saved_group(%s)", group) is None


# -- races


def test_the_last_two_members_may_end_at_once(flow: Flow, open_queue: OpenQueue) -> None:
    """Whoever comes second waits for the first to commit, and so sees that it is the last."""
    chord(flow, 2)
    one, two = open_queue(), open_queue()
    (first,), (second,) = one.claim(1), two.claim(1)
    with ThreadPoolExecutor(1) as pool:
        one.connection.execute("begin")
        assert one.end(first, value=first["task"])
        ended = pool.submit(two.end, second, value=second["task"])
        wait_until_blocked(flow.queue, two)
        assert "body" not in flow.waiting()
        one.connection.execute("commit")
        assert ended.result()
    assert flow.waiting() == {"body": [["m0", "m1"]]}


def test_two_failures_that_meet_from_two_sides_do_not_deadlock(flow: Flow, open_queue: OpenQueue, dsn: str) -> None:
    """Z waits for a, and by way of W for b; Q waits for b, and by way of P for a. Their ids are in the order ZQPW."""
    flow.ids |= dict(zip("ZQPW", sorted(new_id() for _ in range(4)), strict=True))
    flow.node("a", "Z", "P").node("b", "Q", "W").node("P", "Q", waits=1, place=1).node("W", "Z", waits=1, place=1)
    flow.node("Z", waits=2, takes="values").node("Q", waits=2, takes="values").start()
    claims = {claim["task"]: claim for claim in flow.queue.claim()}
    holder, one, two = open_queue(dsn), open_queue(dsn), open_queue(dsn)
    holder.connection.execute("begin")
    holder.rows("select id from pgqueue.step where id = any(%s::uuid[]) for update", [flow.id("P"), flow.id("W")])
    with ThreadPoolExecutor(2) as pool:
        ends = []
        for queue, name in ((one, "a"), (two, "b")):
            ends.append(pool.submit(queue.end, claims[name], "FAILURE", worker=flow.queue.worker, error=ERROR))
            wait_until_blocked(flow.queue, queue)
        holder.connection.execute("commit")
        assert [end.result() for end in ends] == [True, True]
    assert set(flow.states().values()) == {"FAILURE"}


def test_a_member_that_is_rolled_back_has_not_counted(flow: Flow) -> None:
    chord(flow, 1)
    (claim,) = flow.queue.claim()
    flow.queue.connection.execute("begin")
    assert flow.queue.end(claim, value=1)
    flow.queue.connection.execute("rollback")
    assert flow.states()["body"] == "PENDING"
    assert flow.queue.end(claim, value=2)
    assert flow.waiting() == {"body": [[2]]}


# -- ids that were there before


def succeeded(queue: Queue, job: str) -> None:
    """Store the success of a job that returned 7."""
    queue.rows(
        "insert into pgqueue.result (id, enqueued_at, finished_at, attempt, retries, crashes, priority, state, task,"
        " queue, args, kwargs, value)"
        " values (%s, now(), now(), 1, 0, 0, 5, 'SUCCESS', 't', 'default', '[]', '{}', '7')",
        job,
    )


def test_a_step_whose_id_has_failed_before_runs_and_goes_on_counting(flow: Flow) -> None:
    flow.queue.add("b", id=flow.id("b"))
    flow.queue.run("FAILURE", error=ERROR)
    chain(flow)
    assert flow.states() == {"a": "PENDING", "b": "PENDING", "c": "PENDING"}
    flow.end("a")
    (claim,) = flow.queue.claim()
    assert (claim["task"], claim["attempt"]) == ("b", 2)  # no attempt of before can acknowledge it
    assert flow.queue.end(claim, value=1)
    assert flow.waiting() == {"c": [1, 9]}


def again(flow: Flow) -> None:
    """Enqueue what has ended once more, as a canvas whose ids are fixed."""
    for node in flow.nodes:
        node["known"] = True
    flow.start()


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_chord_that_has_failed_may_be_enqueued_again_with_its_ids(flow: Flow, state: str) -> None:
    chord(flow, 2)
    flow.end("m0")
    flow.end("m1", state)
    assert flow.states()["body"] == "FAILURE"
    again(flow)
    assert flow.waiting().keys() == {"m1"}
    flow.end("m1")
    assert flow.waiting() == {"body": [["m0", "m1"]]}
    flow.end("body")
    flow.queue.rows("select pgqueue.prune('1 hour')")
    assert flow.left() == (0, 0)


def test_a_chain_that_was_revoked_may_be_enqueued_again_with_its_ids(flow: Flow) -> None:
    chain(flow)
    (claim,) = flow.queue.claim()
    flow.queue.rows("select pgqueue.revoke(%s)", flow.id("b"))
    assert flow.queue.end(claim, value=1)  # counts where nothing waits any more
    again(flow)
    assert flow.waiting() == {"b": [1]}
    flow.end("b", value=2)
    assert flow.waiting() == {"c": [2, 9]}


def test_a_job_that_is_there_already_cannot_be_a_member(flow: Flow) -> None:
    flow.queue.add("m0", id=flow.id("m0"))
    flow.node("m0", "body", depth=1, known=True).node("body", waits=1, takes="values")
    with pytest.raises(psycopg.Error, match=f"job {flow.id('m0')} stands in the way") as caught:
        flow.start()
    assert caught.value.sqlstate == "PQ002"
    assert flow.left() == (0, 0)


def test_an_id_that_waits_as_a_step_already_is_refused_with_the_cure(flow: Flow) -> None:
    chain(flow)
    other = Flow(flow.queue)
    other.ids["b"] = flow.id("b")
    with pytest.raises(psycopg.Error, match="waits already") as caught:
        other.node("x", "b").node("b", waits=1).start()
    assert caught.value.sqlstate == "PQ002"


def test_many_known_ids_that_have_succeeded_are_passed_without_recursion(flow: Flow) -> None:
    names = [f"n{n}" for n in range(600)]
    for name in names[1:-1]:
        succeeded(flow.queue, flow.id(name))
    for before, name, after in zip([None, *names], names, [*names[1:], None], strict=False):
        flow.node(name, *([after] if after else []), **({"waits": 1} if before else {}))
    flow.start().end(names[0])
    assert flow.waiting() == {names[-1]: [7]}


def test_a_member_that_has_succeeded_before_counts_with_its_value_when_it_is_claimed_again(flow: Flow) -> None:
    """Its row came here by other ways than enqueue, so the worker does not run it."""
    chord(flow, 1)
    (claim,) = flow.queue.claim()
    succeeded(flow.queue, claim["id"])
    assert flow.queue.end(claim, "IGNORED", keep=False)
    assert flow.waiting() == {"body": [[7]]}


# -- what is replaced, once more


def test_links_of_a_job_in_whose_place_a_group_stands_are_enqueued_with_its_values(flow: Flow) -> None:
    flow.node("a", links=[{"task": "link"}]).start()
    inner = replacement(flow).node("x", "z", place=0).node("y", "z", place=1).node("z", waits=2, takes="values")
    inner.nodes[-1]["task"] = None
    (claim,) = flow.queue.claim()
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)
    inner.end("x")
    inner.end("y")
    assert flow.waiting() == {"link": [["x", "y"]]}
    assert flow.states() == {"a": "SUCCESS"}


def test_errbacks_of_a_replaced_job_run_wherever_its_replacement_fails(flow: Flow) -> None:
    flow.node("a", errbacks=[{"task": "complain"}]).start()
    inner = replacement(flow).node("x", "y").node("y", "z", waits=1).node("z", waits=1)
    (claim,) = flow.queue.claim()
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)
    inner.end("x", "FAILURE")
    assert flow.waiting() == {"complain": [flow.id("a")]}


def test_a_revoke_that_meets_a_replacement_ends_the_job(flow: Flow, open_queue: OpenQueue) -> None:
    chain(flow)
    (claim,) = flow.queue.claim()
    revoker = open_queue()
    revoker.connection.execute("begin")
    revoker.one("select pgqueue.revoke(%s)", claim["id"])
    inner = replacement(flow).node("x", "z").node("z", waits=1)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(flow.queue.end, claim, "REPLACED", plan=inner.nodes)
        wait_until_blocked(open_queue(), flow.queue)
        revoker.connection.execute("commit")
        assert ended.result()
    assert flow.states() == {"a": "REVOKED", "b": "REVOKED", "c": "REVOKED"}
    assert (flow.waiting(), flow.left()) == ({}, (0, 0))


def test_the_second_life_of_a_failed_job_is_seen_while_it_waits(flow: Flow) -> None:
    flow.node("a").start()
    flow.end("a", "FAILURE")
    flow.queue.add("a", id=flow.id("a"), known=True, root_id=flow.root)
    inner = replacement(flow).node("x", "z").node("z", waits=1)
    (claim,) = flow.queue.claim()
    assert flow.queue.end(claim, "REPLACED", plan=inner.nodes)
    assert flow.states()["a"] == "PENDING"
    assert flow.queue.one("select total from pgqueue.workflow where id = %s", flow.root) == 2


# -- retried, once more


def test_a_member_that_is_retried_while_others_run_counts_once_more(flow: Flow) -> None:
    chord(flow, 2)
    flow.end("m0", "FAILURE")
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1
    flow.end("m0", value="now")
    flow.end("m1")
    assert flow.waiting() == {"body": [["now", "m1"]]}


def test_a_member_whose_worker_died_for_good_can_be_retried(flow: Flow) -> None:
    chain(flow)
    flow.queue.register()
    flow.queue.claim()
    flow.queue.bury(max_crashes=0)
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1
    flow.end("a")
    assert flow.waiting() == {"b": ["a"]}


def test_a_rejected_step_is_retried_with_the_values_that_it_had(flow: Flow) -> None:
    chord(flow, 2, unique_key="k")
    flow.queue.add("other", unique_key="k")
    flow.end("m0")
    flow.end("m1")
    assert flow.states()["body"] == "REJECTED"
    flow.queue.rows("delete from pgqueue.job where task = 'other'")
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1
    assert flow.waiting() == {"body": [["m0", "m1"]]}


@pytest.mark.parametrize("how", ["not kept", "purged", "forgotten"])
def test_what_could_only_wait_for_ever_is_not_retried(flow: Flow, how: str) -> None:
    chain(flow)
    if how == "purged":
        flow.queue.rows("select pgqueue.purge('{default}')")
    else:
        flow.end("a", "FAILURE", keep=how != "not kept")
    if how == "forgotten":
        flow.queue.rows("select pgqueue.forget(%s)", flow.id("a"))
    before = flow.queue.everything()
    with pytest.raises(psycopg.Error, match="would wait for ever") as caught:
        flow.queue.rows("select pgqueue.retry_workflow(%s)", flow.root)
    assert caught.value.sqlstate == "PQ002"
    assert flow.queue.everything() == before


def test_nulls_inside_calls_survive_a_retry(flow: Flow) -> None:
    errback = {"task": "complain", "args": [{"y": None}], "kwargs": {"x": None}}
    flow.node("a", errbacks=[errback], headers={"h": None}, kwargs={"k": None}).start()
    flow.end("a", "FAILURE")
    flow.queue.rows("delete from pgqueue.job")
    assert flow.queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1
    found = flow.queue.job(flow.id("a"))
    assert found is not None
    assert (found["errbacks"], found["headers"], found["kwargs"]) == ([errback], {"h": None}, {"k": None})


# -- values that are odd


@pytest.mark.parametrize("error", [{}, "boom", None, {"type": "E", "message": "m\n"}])
def test_any_error_ends_what_waits(flow: Flow, error: Any) -> None:
    chain(flow)
    flow.end("a", "FAILURE", error=error)
    assert set(flow.states().values()) == {"FAILURE"}


def test_a_step_may_say_that_it_has_no_arguments(flow: Flow) -> None:
    flow.node("a", "b").node("b", "c", waits=1, args=None).node("c", waits=1, takes="nothing", args=None).start()
    flow.end("a")
    assert flow.waiting() == {"b": ["a"]}
    flow.end("b")
    assert flow.waiting() == {"c": []}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"unique_key": ""}, "unique_key"),
        ({"eta": "soon"}, "soon"),
        ({"time_limit": "x"}, "x"),
        ({"queue": ""}, "queue"),
    ],
)
def test_a_step_that_could_not_be_enqueued_later_is_refused_now(flow: Flow, wrong: Row, problem: str) -> None:
    with pytest.raises(psycopg.Error, match=problem):
        flow.node("a", "b").node("b", waits=1, **wrong).start()
    assert (flow.waiting(), flow.left()) == ({}, (0, 0))


# -- races, once more


@pytest.mark.parametrize("revoke", ["revoke", "revoke_workflow"])
def test_a_step_that_becomes_a_job_meanwhile_is_revoked_as_such(flow: Flow, open_queue: OpenQueue, revoke: str) -> None:
    chain(flow)
    other = open_queue()
    (claim,) = flow.queue.claim()
    flow.queue.connection.execute("begin")
    assert flow.queue.end(claim, value=1)
    whom = flow.id("b") if revoke == "revoke" else flow.root
    with ThreadPoolExecutor(1) as pool:
        revoked = pool.submit(other.one, f"select pgqueue.{revoke}(%s)", whom)
        wait_until_blocked(open_queue(), other)
        flow.queue.connection.execute("commit")
        revoked.result()
    assert flow.states() == {"a": "SUCCESS", "b": "REVOKED", "c": "REVOKED"}


def test_a_retry_sees_what_is_being_acknowledged(flow: Flow, open_queue: OpenQueue) -> None:
    chain(flow)
    flow.queue.rows("select pgqueue.revoke(%s)", flow.id("b"))
    other = open_queue()
    (claim,) = flow.queue.claim()
    flow.queue.connection.execute("begin")
    assert flow.queue.end(claim, value=1)
    with ThreadPoolExecutor(1) as pool:
        retried = pool.submit(other.one, "select pgqueue.retry_workflow(%s)", flow.root)
        wait_until_blocked(open_queue(), other)
        flow.queue.connection.execute("commit")
        assert retried.result() == 0
    assert flow.waiting() == {"b": [1]}


@pytest.mark.parametrize("times", [1, 2])
def test_adding_a_member_counts_it_once_or_not_at_all(flow: Flow, times: int) -> None:
    chord(flow, 1)
    (claim,) = flow.queue.claim()
    call = "select pgqueue.add_member(%s, %s, %s, %s)"
    more = {"id": flow.id("more"), "task": "more", "root_id": flow.root, "known": True}
    for _ in range(times):
        assert flow.queue.one(call, claim["id"], flow.queue.worker, 1, json.dumps(more)) is True
    flow.queue.add("other", unique_key="k")
    with pytest.raises(psycopg.Error, match="stands in the way"):
        flow.queue.one(call, claim["id"], flow.queue.worker, 1, json.dumps({**more, "id": new_id(), "unique_key": "k"}))
    assert flow.queue.end(claim, value=1)
    flow.end("more")
    assert flow.waiting() == {"other": [], "body": [[1, "more"]]}


def test_parts_of_failed_workflows_are_pruned_with_their_results(flow: Flow) -> None:
    chord(flow, 3)
    for name, state in (("m0", "SUCCESS"), ("m1", "FAILURE"), ("m2", "SUCCESS")):
        flow.end(name, state)
    flow.queue.rows("select pgqueue.prune('1 hour')")
    assert flow.left() == (0, 3)
    flow.queue.rows("delete from pgqueue.result")
    flow.queue.rows("select pgqueue.prune('1 hour')")
    assert flow.left() == (0, 0)


# -- workflows that follow a job


def test_a_link_may_begin_a_workflow(flow: Flow) -> None:
    queue, links = flow.queue, following(flow)
    first = queue.add("first", links=links)
    assert flow.left() == (0, 0)
    (claim,) = queue.claim()
    assert queue.end(claim, "SUCCESS", value=5)
    assert flow.waiting() == {"m0": [5], "m1": [5], "beside": [5]}
    assert flow.left() == (1, 0)
    flow.end("m1")
    flow.end("m0")
    assert flow.waiting() == {"beside": [5], "body": [["m0", "m1"], 9]}
    assert {str(row["root_id"]) for row in queue.rows("select root_id from pgqueue.job")} == {first}
    flow.end("body")
    assert flow.left() == (0, 0)


def test_an_errback_may_begin_a_workflow_that_fails(flow: Flow) -> None:
    queue = flow.queue
    first = queue.add("first", errbacks=following(flow))
    (claim,) = queue.claim()
    assert queue.end(claim, "FAILURE", error=ERROR)
    assert flow.waiting()["m0"] == [first]
    flow.end("m0", "FAILURE")
    assert flow.left() == (1, 1)
    flow.end("m1")
    assert flow.states()["body"] == "FAILURE"
    assert flow.left()[0] == 0


def test_a_workflow_that_has_followed_does_not_follow_again(flow: Flow) -> None:
    """The same links at two jobs, with ids that were chosen: the second finds them done."""
    queue, links = flow.queue, following(flow)[:1]
    for _ in range(2):
        queue.add("first", links=links)
    (claim, other) = queue.claim()
    assert queue.end(claim, "SUCCESS", value=1)
    assert queue.end(other, "RELEASED")
    for name in ("m0", "m1", "body"):
        flow.end(name)
    (other,) = queue.claim()
    assert queue.end(other, "SUCCESS", value=2)
    assert flow.waiting() == {}
    assert flow.left() == (0, 0)


def test_a_member_that_has_succeeded_before_counts_in_the_workflow_that_follows(flow: Flow) -> None:
    queue, links = flow.queue, following(flow)[:1]
    queue.add("m1", id=flow.id("m1"), known=True)
    (claim,) = queue.claim()
    assert queue.end(claim, "SUCCESS", value="before")
    queue.add("first", links=links)
    (claim,) = queue.claim()
    assert queue.end(claim, "SUCCESS", value=1)
    flow.end("m0")
    assert flow.waiting() == {"body": [["m0", "before"], 9]}


def test_a_canvas_with_ids_that_were_chosen_follows_two_jobs_of_one_commit_once(flow: Flow) -> None:
    queue, links = flow.queue, following(flow)[:1]
    for _ in range(3):
        queue.add("first", links=links)
    claims = queue.claim()
    assert queue.finish(*({**claim, "state": "SUCCESS", "value": 7} for claim in claims)) == []
    assert flow.waiting() == {"m0": [7], "m1": [7]}
    flow.end("m0")
    flow.end("m1")
    assert flow.waiting() == {"body": [["m0", "m1"], 9]}


def test_a_canvas_of_which_some_ids_were_chosen_follows_each_job_by_itself(flow: Flow) -> None:
    """The second run has ids of its own: no value of one comes to the other, and neither waits for ever."""
    queue = flow.queue
    for number in range(2):
        flow.nodes, flow.ids = [], {name: id_ for name, id_ in flow.ids.items() if name == "gather"}
        flow.node("m0", "gather", place=0, depth=1).node("m1", "gather", place=1, depth=1)
        flow.node("gather", "end", waits=2, takes="values").node("end", waits=1)
        queue.add("first", links=[{"plan": [{**node, "root_id": None} for node in flow.nodes]}], priority=number)
    for _ in range(8):
        claims = queue.claim()
        assert not queue.finish(
            *({**claim, "state": "SUCCESS", "value": [claim["task"], claim["args"]]} for claim in claims)
        )
    assert flow.left() == (0, 0)
    ends = [row["value"] for row in queue.rows("select value from pgqueue.result where task = 'end'")]
    assert len(ends) == 2
    for end in ends:
        ((one, (first,)), (other, (second,))) = end[1][0][1][0]
        assert (one, other) == ("m0", "m1")
        assert first == second == ["first", []]


def test_what_followed_a_failure_follows_the_next_one_after_a_retry_too(flow: Flow) -> None:
    queue = flow.queue
    plan = following(flow)[0]
    flow.nodes = []
    single = {"task": "complain", "id": new_id()}
    flow.node("a", "b", errbacks=[single, plan]).node("b", waits=1).start()
    for attempt in (1, 2):
        flow.end("a", "FAILURE")
        found = [row["task"] for row in queue.rows("select task from pgqueue.job order by task")]
        assert found == ["complain", "m0", "m1"]
        for _ in range(2):
            for claim in queue.claim():
                assert queue.end(claim, "SUCCESS", value=attempt)
        assert flow.left()[0] == 0
        if attempt == 1:
            assert queue.one("select pgqueue.retry_workflow(%s)", flow.root) == 1


def test_an_errback_that_cannot_be_enqueued_is_left_out_whole(flow: Flow) -> None:
    queue, (plan, beside) = flow.queue, following(flow)
    plan["plan"][1]["queue"] = "q" * 200
    job = queue.add("first")
    queue.rows("update pgqueue.job set errbacks = %s where id = %s returning id", json.dumps([plan, beside]), job)
    (claim,) = queue.claim()
    assert queue.end(claim, "FAILURE", error=ERROR)
    assert list(flow.waiting()) == ["beside"]
    assert flow.left() == (0, 0)


def test_a_workflow_that_follows_a_job_is_listed(flow: Flow) -> None:
    queue = flow.queue
    first = queue.add("first", links=following(flow)[:1])
    other = queue.add("other", links=[{"task": "beside"}])
    for claim in queue.claim():
        assert queue.end(claim, "SUCCESS", value=1)
    listed = [str(row["id"]) for row in queue.rows("select id from pgqueue.workflows(10)")]
    assert listed == [first]
    flow.end("m0", "FAILURE")
    flow.end("m1")
    assert [str(row["id"]) for row in queue.rows("select id from pgqueue.workflows(10, true)")] == [first]
    assert other not in listed


def test_who_may_enqueue_may_enqueue_workflows(flow: Flow) -> None:
    queue = flow.queue
    role = compose.Identifier(f"clerk_{new_id()[:8]}")
    with queue.connection.transaction(force_rollback=True):
        for statement in (
            "create role {}",
            "grant usage on schema pgqueue to {}",
            "grant select, insert on pgqueue.job, pgqueue.result, pgqueue.step, pgqueue.idle to {}",
            "grant select on pgqueue.part to {}",
            "grant update (unique_key) on pgqueue.job to {}",
            "grant execute on function pgqueue.enqueue_many, pgqueue.enqueue_workflow, pgqueue.store_steps, "
            "pgqueue.enqueue_members, pgqueue.check_calls, pgqueue.clock, pgqueue.new_id to {}",
            "set local role {}",
        ):
            queue.connection.execute(compose.SQL(statement).format(role))
        chain(flow)
        assert queue.one("select count(*) from pgqueue.step") == 2
