"""`app.workflow()`: the plan that a graph of named steps becomes, the mistakes that are refused, and eager runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from pgqueue import Ignore, InvalidArguments, InvalidOption, PgQueue, State
from pgqueue.statements import Progress
from pgqueue.types import NewJob
from pgqueue.workflow import Workflow


@pytest.fixture
def app() -> PgQueue:
    """An app whose database is never looked for."""
    app = PgQueue("flows", dsn="postgresql://nowhere/at_all", set_as_current=False)

    @app.task(name="one")
    def one() -> int:
        return 1

    @app.task(name="add")
    def add(x: int, y: int = 10) -> int:
        return x + y

    @app.task(name="total")
    def total(values: list[Any]) -> Any:
        return values

    @app.task(name="fail")
    def fail(*args: Any) -> None:
        raise LookupError("no such cart")

    @app.task(name="skip")
    def skip() -> None:
        raise Ignore

    return app


@pytest.fixture
def call(app: PgQueue) -> Callable[..., Any]:
    return lambda name, *args: app.tasks[name].s(*args)


def planned(flow: Workflow) -> dict[str, NewJob]:
    """The plan by the names of the steps."""
    return dict(zip([step.name for step in flow], flow.plan(), strict=True))


def test_a_diamond(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    first = flow.step("a", call("one"))
    flow.step("b", call("add", 2).set(queue="mail", priority=9), after="a")
    flow.step("c", call("add"), after=first)
    flow.step("d", call("total"), after=["b", "c"])
    plan = planned(flow)
    ids = {name: job.id for name, job in plan.items()}
    assert len(set(ids.values())) == 4
    assert {job.root_id for job in plan.values()} == {ids["a"]}
    assert {name: job.steps for name, job in plan.items()} == {
        "a": (ids["b"], ids["c"]), "b": (ids["d"],), "c": (ids["d"],), "d": (),
    }  # fmt: skip
    assert {name: (job.waits, job.takes) for name, job in plan.items()} == {
        "a": (0, None), "b": (1, "value"), "c": (1, "value"), "d": (2, "values"),
    }  # fmt: skip
    assert {job.depth for job in plan.values()} == {0}
    assert plan["b"].place < plan["c"].place
    assert (plan["b"].args, plan["b"].queue, plan["b"].priority) == ("[2]", "mail", 9)
    assert json.loads(plan["b"].options or "") == {"step": "b"}


def test_other_options_stand_beside_the_name(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    flow.step("a", call("one").set(shadow="first"))
    assert json.loads(planned(flow)["a"].options or "") == {"shadow": "first", "step": "a"}


def test_what_a_step_takes(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    flow.step("a", call("one"))
    flow.step("value", call("add"), after="a")
    flow.step("list of one", call("total"), after=["a"])
    flow.step("nothing", app.tasks["one"].si(), after=["a", "value"])
    flow.step("empty list", call("total"), after=[])
    flow.step("no list", app.tasks["one"].si(), after=[])
    plan = planned(flow)
    assert {name: job.takes for name, job in plan.items()} == {
        "a": None, "value": "value", "list of one": "values", "nothing": "nothing", "empty list": None, "no list": None,
    }  # fmt: skip
    assert (plan["empty list"].args, plan["no list"].args) == ("[[]]", "[]")


def test_values_come_in_the_order_of_after(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    for name in "abc":
        flow.step(name, call("one"))
    flow.step("sum", call("total"), after=["c", "a"])
    flow.step("other", call("total"), after=["a", "b"])
    place = {name: job.place for name, job in planned(flow).items()}
    assert place["c"] < place["a"] < place["b"]
    assert len(set(place.values())) == 5


def test_steps_in_two_orders_are_refused(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    for name in "abc":
        flow.step(name, call("one"))
    flow.step("sum", call("total"), after=["a", "b", "c"])
    flow.step("back", call("total"), after=["c", "a"])
    with pytest.raises(InvalidOption, match=r"'a', 'b', 'c' stand in one order .* in the same order everywhere"):
        flow.apply_async()


def test_each_run_is_another(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    step = flow.step("a", call("one"))
    step.call.set(queue="mail")
    flow.step("b", call("add"), after="a")
    assert {job.id for job in flow.plan()} & {job.id for job in flow.plan()} == set()


def test_a_call_that_is_changed_later_is_another_one(app: PgQueue, call: Any) -> None:
    flow, given = app.workflow(), call("one")
    flow.step("a", given)
    given.set(queue="mail")
    assert planned(flow)["a"].queue == "default"


MISTAKES: dict[str, tuple[Callable[[Workflow, Any], object], str]] = {
    "empty": (lambda flow, call: flow.apply_async(), "has no step; flow.step"),
    "unknown": (
        lambda flow, call: flow.step("b", call("one"), after="x"),
        "'b' is after 'x', and there is no such step",
    ),
    "itself": (lambda flow, call: flow.step("b", call("one"), after="b"), "no such step"),
    "name": (lambda flow, call: flow.step("", call("one")), "name must be a text of 1 to 100 characters"),
    "no signature": (lambda flow, call: flow.step("b", 5), "step 'b' needs a signature such as add.s"),
    "canvas": (lambda flow, call: flow.step("b", call("one") | call("add")), "step 'b' is one call, and .* is more"),
    "no name": (lambda flow, call: flow.step("b", call("one"), after=[5]), "after= of step 'b' takes names of steps"),
    "number": (lambda flow, call: flow.step("b", call("one"), after=5), "after= of step 'b' takes names of steps"),
}


@pytest.mark.parametrize(("make", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_where_it_is_made(app: PgQueue, call: Any, make: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        make(app.workflow(), call)


def test_names_are_taken_once_and_named_once(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    step = flow.step("a", call("one"))
    with pytest.raises(InvalidOption, match="a step 'a' already"):
        flow.step("a", call("one"))
    with pytest.raises(InvalidOption, match="stands there twice"):
        flow.step("b", call("total"), after=["a", step])
    other = app.workflow()
    other.step("a", call("one"))
    with pytest.raises(InvalidOption, match="a step of another workflow"):
        other.step("b", call("add"), after=step)
    assert "b" not in flow
    assert len(flow) == len(other) == 1


def test_one_id_is_that_of_one_step_alone(app: PgQueue, call: Any) -> None:
    flow, one = app.workflow(), call("one")
    one.freeze()
    flow.step("a", one)
    flow.step("b", one)
    with pytest.raises(InvalidOption, match=f"two calls of the workflow have the id {one.id}"):
        flow.apply_async()


def test_arguments_are_checked_before_anything_is_enqueued(app: PgQueue, call: Any) -> None:
    flow = app.workflow()
    flow.step("a", call("one"))
    flow.step("b", call("one"), after="a")  # takes no argument
    with pytest.raises(InvalidArguments, match="one"):
        flow.apply_async()


# -- eager -------------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(app: PgQueue) -> PgQueue:
    app.conf.update(task_always_eager=True)
    return app


def test_an_eager_run(eager: PgQueue, call: Any) -> None:
    flow = eager.workflow()
    flow.step("a", call("one"))
    flow.step("b", call("add"), after="a")
    flow.step("c", call("skip"))
    flow.step("d", call("total"), after=["c", "a", "b"])
    run = flow.delay()
    assert run.get() == {"d": [None, 1, 11]}
    assert run["b"].get() == 11
    assert list(run) == ["a", "b", "c", "d"]
    assert run.id == run["a"].id
    assert run.ready()
    assert run.progress() == Progress(total=4, done=4, failed=0, running=0, waiting=0)
    assert (run.revoke(), run.retry()) == (0, 0)
    assert asyncio.run(flow.adelay()).get() == {"d": [None, 1, 11]}


def test_an_eager_failure_ends_what_comes_after_it(eager: PgQueue, call: Any) -> None:
    flow = eager.workflow()
    flow.step("a", call("one"))
    flow.step("b", call("fail"), after="a")
    flow.step("c", call("add"), after="b")
    flow.step("d", call("total"), after=["a", "c"])
    flow.step("e", call("add"), after="a")
    run = flow.delay()
    assert [run[name].state for name in run] == [State.SUCCESS, *[State.FAILURE] * 3, State.SUCCESS]
    with pytest.raises(LookupError, match="no such cart"):
        run["d"].get()
    with pytest.raises(LookupError):
        run.get()
    found = run.get(propagate=False)
    assert (type(found["d"]), found["e"]) == (LookupError, 11)
    assert run.progress() == Progress(total=5, done=2, failed=3, running=0, waiting=0)


def test_an_ignored_step_ends_the_one_that_takes_its_value(eager: PgQueue, call: Any) -> None:
    flow = eager.workflow()
    flow.step("a", call("skip"))
    flow.step("b", call("add"), after="a")
    run = flow.delay()
    assert run["b"].state == State.IGNORED
    assert run.get() == {"b": None}
