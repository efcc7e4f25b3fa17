"""Workflows for the measurement of plans: rows that have nothing to do with one another, and every call once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .helpers import Queue, Row, new_id

#: Does a thing under a name, and returns its answer.
Call = Callable[[str, Callable[[], Any]], Any]

TABLES = ("step", "part", "saved_group")
ERROR = {"type": "ValueError", "module": "builtins", "message": "bad"}

# Each step of a workflow of its own, with one part, as of chords whose other member still runs.
_FILL = (
    """insert into pgqueue.step (id, made_at, root_id, members, waits, takes, task, call)
       select gen_random_uuid(), now(), gen_random_uuid(), 2, 1, 'values', 't', '{"task": "t"}'
         from generate_series(1, %s) g""",
    """insert into pgqueue.part (step, place, job, state, depth, value)
       select s.id, 0, gen_random_uuid(), 'SUCCESS', 0, '5' from pgqueue.step s limit %s""",
    """insert into pgqueue.saved_group (id, saved_at, tree)
       select gen_random_uuid(), now() + interval '1 day', '[]' from generate_series(1, %s) g""",
)
# One workflow, and one step of it, has them all.
_FILL_ONE = (
    """insert into pgqueue.step (id, made_at, root_id, members, waits, takes, task, call)
       select gen_random_uuid(), now(), (select id from pgqueue.worker limit 1), 1, 1, 'value', 't', '{"task": "t"}'
         from generate_series(1, %s) g""",
    """insert into pgqueue.part (step, place, job, state, depth, value)
       select (select id from pgqueue.worker limit 1), g, gen_random_uuid(), 'SUCCESS', 0, '5'
         from generate_series(1, %s) g""",
)


def fill(queue: Queue, rows: int, *, of_one: bool = False) -> None:
    """Fill the tables of workflows: each row of another workflow, or all of one."""
    for statement in _FILL_ONE if of_one else _FILL:
        queue.rows(statement, rows)


class _Flow:
    """One workflow in a queue of its own; its jobs are known by the names of their tasks."""

    def __init__(self, queue: Queue, call: Call) -> None:
        self.queue, self.call = queue, call
        self.root = new_id()
        self.ids: dict[str, str] = {}
        self.nodes: list[Row] = []

    def id(self, name: str) -> str:
        return self.ids.setdefault(name, new_id())

    def node(self, name: str, *then: str, **fields: Any) -> _Flow:
        node = {"task": name, "id": self.id(name), "root_id": self.root, "queue": "workflows", **fields}
        if then:
            node["steps"] = [self.id(step) for step in then]
        if "waits" in node:
            node.setdefault("takes", "value")
        self.nodes.append(node)
        return self

    def start(self, what: str) -> _Flow:
        steps = json.dumps([node for node in self.nodes if "waits" in node])
        jobs = json.dumps([node for node in self.nodes if "waits" not in node])
        for resent in (False, True):
            self.call(
                f"enqueue {what}{' again' if resent else ''}",
                lambda resent=resent: self.queue.rows(  # type: ignore[misc]
                    "select pgqueue.enqueue_workflow(%s, %s, %s)", steps, jobs, resent
                ),
            )
        return self

    def claim(self) -> dict[str, Row]:
        return {claim["task"]: claim for claim in self.queue.claim(queues=["workflows"])}

    def end(self, what: str, *claims: Row, state: str = "SUCCESS", **fields: Any) -> None:
        fields.setdefault("value" if state == "SUCCESS" else "error", 5 if state == "SUCCESS" else ERROR)
        outcomes = [{"id": claim["id"], "attempt": claim["attempt"], "state": state, **fields} for claim in claims]
        assert self.call(f"finish: {what}", lambda: self.queue.finish(*outcomes)) == []

    def about(self, what: str, function: str, whom: str | None = None) -> Any:
        return self.call(what, lambda: self.queue.rows(f"select * from pgqueue.{function}", whom or self.root))


def _chain(queue: Queue, call: Call, **fields: Any) -> _Flow:
    flow = _Flow(queue, call).node("a", "b", **fields).node("b", "c", waits=1, **fields).node("c", waits=1, **fields)
    return flow.start("a chain")


def _chord(queue: Queue, call: Call) -> _Flow:
    flow = _Flow(queue, call).node("body", "then", waits=3, takes="values").node("then", waits=1)
    for place in range(3):
        flow.node(f"m{place}", "body", place=place, depth=1)
    return flow.start("a chord")


def _chains(queue: Queue, call: Call) -> None:
    flow = _chain(queue, call)
    call("status of a step", lambda: queue.status(flow.id("c")))
    assert len(flow.about("nodes of a workflow", "workflow_nodes(%s)")) == 3
    assert len(flow.about("view: how far a workflow is", "workflow where id = %s")) == 1
    flow.end("a link of a chain", *flow.claim().values())
    again = _Flow(queue, call)
    again.ids["b"] = flow.id("b")
    (claim,) = flow.claim().values()
    for what in ("replaced by a plan", "replaced by a plan again"):
        plan = again.nodes or again.node("x", "b").node("b", waits=1).nodes
        flow.end(what, claim, state="REPLACED", plan=plan)
    flow.end("the first of a plan", *flow.claim().values())
    flow.end("the last of a plan", *flow.claim().values())
    flow.end("the last link of a chain", *flow.claim().values())

    flow = _chain(queue, call, errbacks=[{"task": "complain", "queue": "workflows"}])
    flow.end("a link of a chain that fails", *flow.claim().values(), state="FAILURE")
    flow.end("an errback", *flow.claim().values())
    assert flow.about("view: how far a failed workflow is", "workflow where id = %s")[0]["failed"] == 3
    assert flow.about("retry a chain", "retry_workflow(%s)") == [{"retry_workflow": 1}]
    assert flow.about("retry a chain that has not failed", "retry_workflow(%s)") == [{"retry_workflow": 0}]
    flow.about("revoke a step", "revoke(%s)", flow.id("b"))
    flow.about("revoke a first link", "revoke(%s)", flow.id("a"))

    flow = _chain(queue, call, unique_key="k")
    other = queue.add("other", queue="workflows", unique_key="l", countdown=3600)
    queue.rows("update pgqueue.step set call = replace(call::text, '\"k\"', '\"l\"')::json where id = %s", flow.id("b"))
    flow.end("a link whose next one is rejected", *flow.claim().values())
    assert queue.state(flow.id("b")) == "REJECTED"
    queue.rows("select pgqueue.revoke(%s)", other)

    flow = _chain(queue, call)
    assert call("purge", lambda: queue.one("select pgqueue.purge('{workflows}')")) == 1
    assert queue.state(flow.id("c")) == "REVOKED"


def _chords(queue: Queue, call: Call) -> None:
    flow = _chord(queue, call)
    claims = flow.claim()
    flow.end("a member that is not the last", claims["m0"])
    more = {"id": new_id(), "task": "more", "root_id": flow.root, "queue": "workflows", "known": True}
    add = "select pgqueue.add_member(%s, %s, 1, %s)"
    for what in ("add a member", "add a member again"):
        assert call(what, lambda: queue.one(add, claims["m1"]["id"], queue.worker, json.dumps(more))) is True
    flow.end("two members", claims["m1"], claims["m2"])
    flow.end("the last member", *flow.claim().values())
    flow.end("a body", *flow.claim().values())
    assert flow.about("view: how far a workflow is that runs", "workflow where id = %s")[0]["done"] == 5
    done = flow.id("m0")

    flow = _chord(queue, call)
    claims = flow.claim()
    flow.end("a member that fails", claims["m0"], state="FAILURE")
    flow.end("the last members of a chord that fails", claims["m1"], claims["m2"])
    assert queue.state(flow.id("then")) == "FAILURE"
    assert flow.about("retry a chord", "retry_workflow(%s)") == [{"retry_workflow": 1}]
    assert flow.about("revoke a workflow", "revoke_workflow(%s)") == [{"revoke_workflow": 3}]
    assert len(flow.about("nodes of a revoked workflow", "workflow_nodes(%s)")) == 5

    flow = _Flow(queue, call)
    flow.ids["m0"] = done
    flow.node("m0", "body", known=True).node("body", waits=1, takes="values").start("a workflow of what has succeeded")
    assert list(flow.claim()) == ["body"]
    queue.end({"id": flow.id("body"), "attempt": 1})


def _followers(queue: Queue, call: Call) -> None:
    for state in ("SUCCESS", "FAILURE"):
        flow = _Flow(queue, call).node("m0", "body", place=0, depth=1).node("m1", "body", place=1, depth=1)
        flow.node("body", waits=2, takes="values")
        *members, body = flow.nodes
        calls = [{"plan": flow.nodes}, {**members[0], "id": new_id(), "steps": None}]
        queue.add("first", queue="workflows", links=calls, errbacks=calls)
        flow.end(f"{state}, and a workflow follows", *flow.claim().values(), state=state)
        claims = flow.claim()
        assert len(claims) == 2
        assert queue.state(body["id"]) == "PENDING"
        queue.finish(*({"id": claim["id"], "attempt": 1, "state": "SUCCESS"} for claim in claims.values()))
        queue.rows("select pgqueue.purge('{workflows}')")


def measure(queue: Queue, call: Call) -> None:
    """Every call of workflows, with few jobs each."""
    _chains(queue, call)
    _chords(queue, call)
    _followers(queue, call)
    group = new_id()
    call("save a group", lambda: queue.rows("select pgqueue.save_group(%s, '[]')", group))
    assert call("a saved group", lambda: queue.one("select pgqueue.saved_group(%s)", group)) == []
    assert call("delete a group", lambda: queue.one("select pgqueue.delete_group(%s)", group)) is True
