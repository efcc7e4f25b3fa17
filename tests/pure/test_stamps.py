"""Stamps reach every call of a canvas and what follows it, and stay whatever becomes of a job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgqueue import GroupStampingVisitor, InvalidOption, PgQueue, StampingVisitor, chain, chord, group, signature


@pytest.fixture
def app() -> PgQueue:
    made = PgQueue("stamps")
    made.task(name="add")(lambda x=0, y=0: x + y)
    return made


@pytest.fixture
def add(app: PgQueue) -> Any:
    return app.tasks["add"]


def stamps(job: Any) -> dict[str, Any]:
    """The stamps of a job as it is enqueued."""
    headers = {} if job.headers is None else json.loads(job.headers)
    assert headers.get("stamped_headers", []) == list(headers.get("stamps", {}))
    found: dict[str, Any] = headers.get("stamps", {})
    return found


class Names(StampingVisitor):
    """Says what it was asked for, and writes it down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def on_signature(self, sig: Any, **stamps: Any) -> dict[str, Any]:
        self.asked.append(f"call {sig.args}")
        return {"args": list(sig.args)}

    def on_group_start(self, group: Any, **stamps: Any) -> dict[str, Any]:
        self.asked.append("group")
        return {"in_group": True}

    def on_group_end(self, group: Any, **stamps: Any) -> None:
        self.asked.append("/group")

    def on_chain_start(self, chain: Any, **stamps: Any) -> dict[str, Any]:
        self.asked.append("chain")
        return {"in_chain": True}

    def on_chain_end(self, chain: Any, **stamps: Any) -> None:
        self.asked.append("/chain")

    def on_chord_body(self, chord: Any, **stamps: Any) -> dict[str, Any]:
        self.asked.append("body")
        return {"is_body": True}

    def on_callback(self, callback: Any, **stamps: Any) -> dict[str, Any]:
        return {"is_link": True}

    def on_errback(self, errback: Any, **stamps: Any) -> dict[str, Any]:
        return {"is_errback": True, "priority": 9, "stamped_headers": ["is_errback"]}


def test_a_call_carries_its_stamps_beside_its_headers(add: Any) -> None:
    call = add.s(1).set(headers={"tenant": 3}).stamp(customer=7)
    assert call.stamp(trace="x") is call
    assert stamps(call.job()) == {"customer": 7, "trace": "x"}
    assert json.loads(call.job().headers)["tenant"] == 3
    assert stamps(signature(json.loads(json.dumps(dict(call))), app=add.app).job()) == {"customer": 7, "trace": "x"}
    assert stamps(add.s(1).job()) == {}


def test_the_last_value_counts_or_all_of_them(add: Any) -> None:
    call = add.s(1).stamp(customer=7)
    assert stamps(call.clone().stamp(customer=8).job()) == {"customer": 8}
    assert stamps(call.clone().stamp(append_stamps=True, customer=8, trace=1).job()) == {"customer": [7, 8], "trace": 1}
    assert stamps(call.clone().stamp(append_stamps=True, customer=[8, 9]).job()) == {"customer": [7, 8, 9]}
    assert stamps(call.job()) == {"customer": 7}


def test_a_visitor_is_asked_for_every_part(add: Any) -> None:
    visitor = Names()
    canvas = chain(add.s(1), group(add.s(2), add.s(3)), add.s(4)).stamp(visitor, customer=7)
    assert visitor.asked == [
        "chain", "call (1,)", "group", "call (2,)", "call (3,)", "/group", "body", "call (4,)", "/chain",
    ]  # fmt: skip
    found = {job.args: stamps(job) for job in canvas.plan()}
    whole = {"customer": 7, "in_chain": True}
    assert found == {
        "[1]": {**whole, "args": [1]},
        "[2]": {**whole, "in_group": True, "args": [2]},
        "[3]": {**whole, "in_group": True, "args": [3]},
        "[4]": {**whole, "is_body": True, "args": [4]},
    }


def test_what_follows_is_stamped_too_and_may_be_given_options(add: Any) -> None:
    link, errback = add.s(5), add.s(6)
    job = add.s(1).set(link=link, link_error=errback).stamp(Names(), customer=7).job()
    (followed,), (failed,) = json.loads(job.links), json.loads(job.errbacks)
    assert followed["headers"]["stamps"] == {"customer": 7, "is_link": True, "args": [5]}
    assert failed["headers"]["stamps"] == {"customer": 7, "is_errback": True, "args": [6]}
    assert failed["priority"] == 9
    assert (link.options, errback.options) == ({}, {})  # they are the caller's


def test_the_parts_of_a_canvas_are_not_changed(add: Any) -> None:
    parts = [add.s(1), add.s(2)]
    group(parts).stamp(customer=7)
    assert [part.options for part in parts] == [{}, {}]


def test_stamps_of_a_call_are_added_to_those_of_the_signature(add: Any) -> None:
    canvas = group(add.s(1).stamp(customer=7), add.s(2))
    found = [stamps(job) for job in canvas.plan(stamps={"trace": 1})]
    assert found == [{"customer": 7, "trace": 1}, {"trace": 1}]
    found = [stamps(job) for job in chain(add.s(1), add.s(2), canvas, add.s(3)).plan(stamps={"trace": 2})]
    assert [stamp["trace"] for stamp in found] == [2] * 5
    found = [stamps(job) for job in (chain(add.s(1), add.s(2)).set(stamps={"trace": 3}) | add.s(3)).plan()]
    assert found == [{}, {"trace": 3}, {"trace": 3}]
    assert stamps(add.s(1).stamp(customer=7).set(stamps={"trace": 1}).job()) == {"customer": 7, "trace": 1}


def test_groups_are_told_by_their_ids(add: Any) -> None:
    inner = group(add.s(2), add.s(3))
    outer = group(add.s(1), chord(inner, add.s(4))).stamp(GroupStampingVisitor())
    found = {job.args: stamps(job)["groups"] for job in outer.plan()}
    (first,) = found["[1]"]
    assert outer.id is None  # it can be enqueued more than once
    assert found["[2]"] == found["[3]"] == [first, found["[2]"][-1]]
    assert found["[4]"] == [first]


def test_the_task_finds_them_whatever_becomes_of_the_job(app: PgQueue) -> None:
    seen: list[Any] = []

    @app.task(name="look", bind=True)
    def look(self: Any, how: str = "", more: str = "") -> Any:
        seen.append((self.request.stamps, self.request.stamped_headers, (self.request.headers or {}).get("tenant")))
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0, headers={"tenant": 4})
        if how == "replace":
            raise self.replace(look.s().set(headers={"tenant": 5}).stamp(trace=1))
        if how == "chain":
            raise self.replace(chain(look.s(), look.si()))
        return None

    look.s("retry").stamp(customer=7).apply()
    assert seen == [({"customer": 7}, ["customer"], None), ({"customer": 7}, ["customer"], 4)]
    seen.clear()
    look.s("replace").stamp(customer=7).apply()
    assert seen[1] == ({"customer": 7, "trace": 1}, ["customer", "trace"], 5)
    seen.clear()
    look.s("chain").stamp(customer=7).apply()
    assert [found for found, _, _ in seen] == [{"customer": 7}] * 3
    seen.clear()
    look.apply()
    assert seen == [({}, [], None)]


def test_stamps_that_are_none_are_refused(add: Any) -> None:
    with pytest.raises(InvalidOption, match="stamps must be a mapping, not list"):
        add.s(1).set(stamps=["customer"])
    with pytest.raises(InvalidOption, match="visitor must be a StampingVisitor, not 7"):
        chain(add.s(1), add.s(2)).stamp(visitor=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"stamp the signature, add.s\(2, 3\).stamp\(customer=7\)"):
        add.apply_async((1,), stamped_headers=["customer"])
