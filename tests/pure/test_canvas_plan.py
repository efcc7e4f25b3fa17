"""The plan of a canvas, run by the rules of the database in any order, comes to what the canvas means."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import Came, Tree, canvas, is_empty, meaning, named, trees

from pgqueue import InvalidOption, PgQueue, chain, chord, group
from pgqueue.canvas import lay_out
from pgqueue.group_result import GroupResult
from pgqueue.types import GATHER, NewJob

app = PgQueue("plans", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)


@app.task(name="node")
def node(*args: Any) -> list[Any]:
    return list(args)


@app.task(name="errback")
def errback(*args: Any) -> None: ...


# -- the rules of the database -----------------------------------------------------------------------------------


class Database:
    """Runs a plan as rows: what is ready in any order; each end is counted in the steps that wait for it."""

    def __init__(self, plan: Sequence[NewJob], failing: set[str], order: random.Random) -> None:
        self.rows = {job.id: job for job in plan}
        assert len(self.rows) == len(plan)
        self.failing, self.order = failing, order
        self.parts: dict[str, dict[int, str]] = {job.id: {} for job in plan if job.waits}
        self.came: dict[str, Came] = {}
        self.culprit: dict[str, tuple[int, Came]] = {}
        self.told: list[str] = []
        ready = [(job, json.loads(job.args)) for job in plan if not job.waits]
        while ready:
            job, args = ready.pop(order.randrange(len(ready)))
            ready += self.run(job, args)

    def run(self, job: NewJob, args: list[Any]) -> list[tuple[NewJob, list[Any]]]:
        name = next(value for value in reversed(args) if isinstance(value, str))
        assert job.id not in self.came
        if name in self.failing:
            self.culprit[job.id] = (job.depth, ("bad", name))
            self.told += [job.id] if job.errbacks else []
            return self.end(job, ("bad", name))
        return self.end(job, ("ok", [name, *args[:-1]]))

    def end(self, job: NewJob, came: Came) -> list[tuple[NewJob, list[Any]]]:
        self.came[job.id] = came
        ready = []
        for id_ in job.steps:
            step, parts = self.rows[id_], self.parts[id_]
            assert job.place not in parts
            parts[job.place] = job.id
            if len(parts) == step.waits:
                ready += self.complete(step, [parts[place] for place in sorted(parts)])
        return ready

    def complete(self, step: NewJob, ids: list[str]) -> list[tuple[NewJob, list[Any]]]:
        wrong = next((id_ for id_ in ids if self.came[id_][0] != "ok"), None)
        if wrong is not None:
            depth, came = self.culprit[wrong]
            if depth > step.depth:
                depth, came = step.depth, ("chord", came)
                self.told += [step.id] if step.errbacks else []
            self.culprit[step.id] = (depth, came)
            return self.end(step, came)
        values = [self.came[id_][1] for id_ in ids]
        given = {"nothing": [], "value": values[:1], "values": [values]}[str(step.takes)]
        if step.task == GATHER:
            assert step.takes == "values"
            return self.end(step, ("ok", given[0]))
        return [(step, [*given, *json.loads(step.args)])]


# -- both, side by side ------------------------------------------------------------------------------------------


def outcome(tree: Tree, raw: bool, failing: set[str], seed: int) -> Came | list[Came]:
    """Run the plan of a tree and return what came of it, in the places where its handle looks."""
    made = canvas(tree, node, raw)
    laid = lay_out(made, options={"link_error": errback.s()} if not isinstance(made, group) else None)
    plan = laid.jobs()
    database = Database(plan, failing, random.Random(seed))
    assert database.came.keys() == database.rows.keys()  # nothing hangs
    assert {job.root_id for job in plan} == {laid.root}
    assert all((job.waits > 0) == (job.takes is not None) for job in plan)
    # Whoever fails by itself tells its errbacks, once; whoever inherits a failure does not.
    assert len(set(database.told)) == len(database.told)
    handle = laid.handle
    if isinstance(handle, GroupResult):
        return [database.came[one.id] for one in handle.results]
    return database.came[handle.id]


T = [("t", name) for name in "abcdefgh"]
A, B, C, D, E, F, G, H = T


@pytest.mark.parametrize(
    ("tree", "wanted"),
    [
        (("c", [A, B]), ("ok", ["b", ["a"]])),
        (("g", [A, B]), [("ok", ["a"]), ("ok", ["b"])]),
        (("ch", [A, B], C), ("ok", ["c", [["a"], ["b"]]])),
        (("ch", [A], C), ("ok", ["c", [["a"]]])),
        (("ch", [], C), ("ok", ["c", []])),
        (("c", [A, ("ch", [], C)]), ("ok", ["c", []])),
        (("c", [A, ("si", "b"), C]), ("ok", ["c", ["b"]])),
        (("ch", [A, B], ("si", "c")), ("ok", ["c"])),
        (("c", [A, ("g", [B, C]), D]), ("ok", ["d", [["b", ["a"]], ["c", ["a"]]]])),
        (("c", [A, ("g", []), B]), ("ok", ["b", ["a"]])),
        (("c", [A, ("g", [B]), C]), ("ok", ["c", ["b", ["a"]]])),
        (("ch", [A, ("g", [B, ("g", [C]), D]), E], F), ("ok", ["f", [["a"], ["b"], ["c"], ["d"], ["e"]]])),
        (("ch", [("c", [A, ("g", [B, C])]), D], E), ("ok", ["e", [[["b", ["a"]], ["c", ["a"]]], ["d"]]])),
        (("ch", [A, B], ("g", [C, D])), [("ok", ["c", [["a"], ["b"]]]), ("ok", ["d", [["a"], ["b"]]])]),
        (("ch", [A, ("ch", [B, C], D)], E), ("ok", ["e", [["a"], ["d", [["b"], ["c"]]]]])),
        (("g", [("c", [A, ("g", [B, C])]), D]), [("ok", [["b", ["a"]], ["c", ["a"]]]), ("ok", ["d"])]),
        (("c", [("g", [A, B]), ("g", [C, D]), E]), ("ok", ["e", [["c", [["a"], ["b"]]], ["d", [["a"], ["b"]]]]])),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_plans_of_known_shapes(tree: Tree, wanted: Any, raw: bool) -> None:
    assert outcome(tree, raw, set(), 1) == meaning(tree, set()) == wanted


@pytest.mark.parametrize(
    ("tree", "failing", "wanted"),
    [
        (("c", [A, B, C]), "a", ("bad", "a")),
        (("c", [A, B, C]), "c", ("bad", "c")),
        (("ch", [A, B], C), "b", ("chord", ("bad", "b"))),
        (("ch", [A, B], C), "ab", ("chord", ("bad", "a"))),
        (("ch", [A, B], ("c", [C, D])), "b", ("chord", ("bad", "b"))),
        (("ch", [A, ("ch", [B], C)], D), "b", ("chord", ("chord", ("bad", "b")))),
        (("ch", [A, ("ch", [B], C)], D), "c", ("chord", ("bad", "c"))),
        (("ch", [A, B], ("g", [C, D])), "a", [("chord", ("bad", "a"))] * 2),
        (("c", [A, ("g", [B, C])]), "a", [("bad", "a")] * 2),
        (("c", [("g", [A, B]), ("g", [C, D]), E]), "a", ("chord", ("bad", "a"))),
        (("c", [("g", [A, B]), ("g", [C, D]), E]), "d", ("chord", ("bad", "d"))),
        (("g", [("c", [A, ("g", [B, C])]), D]), "c", [("bad", "c"), ("ok", ["d"])]),
        (("ch", [("c", [A, ("g", [B, C])]), D], E), "c", ("chord", ("bad", "c"))),
    ],
)
def test_failures_of_known_shapes(tree: Tree, failing: str, wanted: Any) -> None:
    assert outcome(tree, False, set(failing), 1) == meaning(tree, set(failing)) == wanted


@settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.booleans().flatmap(lambda raw: st.tuples(st.just(raw), trees(0 if raw else 2))), st.randoms(), st.data())
def test_any_nested_canvas_comes_to_what_it_means(
    made: tuple[bool, Tree], order: random.Random, data: st.DataObject
) -> None:
    raw, tree = made
    count = iter(range(10_000))
    tree = named(tree, (f"n{number}" for number in count))
    tasks = next(count)
    failing = {f"n{number}" for number in data.draw(st.sets(st.integers(0, tasks), max_size=3))}
    if is_empty(tree):
        assert canvas(tree, node, raw).plan() == []
        return
    if tree[0] in ("t", "si"):
        tree = ("c", [tree])
    assert outcome(tree, raw, failing, order.randrange(1000)) == meaning(tree, failing)


# -- large ones --------------------------------------------------------------------------------------------------


def test_a_chain_of_thousands_is_laid_without_recursion() -> None:
    plan = chain(node.s("x") for _ in range(5000)).plan()
    assert len(plan) == 5000
    assert [job.steps for job in plan[1:]] == [(job.id,) for job in plan[:-1]]
    line = node.s("x")
    for _ in range(1000):
        line = line | node.s("x")
    assert len(line.freeze()._line()) == 1001


def test_groups_and_calls_in_turn_are_laid_without_recursion() -> None:
    parts = [part for _ in range(400) for part in (group(node.s("a"), node.s("b")), node.s("c"))]
    assert len(chain.of(parts).plan()) == 1200
    line: Any = node.s("x")
    for _ in range(100):
        line = line | group(node.s("a"), node.s("b")) | node.s("c")
    assert len(line.plan()) == 301


def test_a_wide_chord_is_one_step_and_its_members() -> None:
    plan = chord((node.s("x") for _ in range(10_000)), node.s("y")).plan()
    step = plan[0]
    assert (step.waits, step.takes, len(plan)) == (10_000, "values", 10_001)
    assert [(job.steps, job.place) for job in plan[1:]] == [((step.id,), place) for place in range(10_000)]


def test_what_is_nested_too_deeply_is_refused() -> None:
    def nested(levels: int) -> Any:
        found: Any = node.s("a")
        for _ in range(levels):
            found = group(node.s("b"), chain.of([node.s("c"), found]))
        return found

    assert len(nested(100).plan()) == 300
    with pytest.raises(InvalidOption, match="nested too deeply"):
        nested(2000).plan()
