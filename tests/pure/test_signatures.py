"""Signatures and what `|` makes of them: values that say what is to be done, before anything is sent."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import timedelta
from typing import Any

import pytest

from pgqueue import (
    AsyncResult,
    ChordError,
    EagerResult,
    GroupResult,
    InvalidArguments,
    InvalidOption,
    PgQueue,
    Signature,
    State,
    chain,
    chord,
    chunks,
    group,
    maybe_signature,
    result_from_tuple,
    signature,
    xmap,
    xstarmap,
)
from pgqueue.ids import new_id
from pgqueue.serialization import decode, encode

app = PgQueue("canvas", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)


@pytest.fixture(autouse=True)
def _current() -> None:
    app.set_current()


@app.task(name="add")
def add(*numbers: int) -> int:
    return sum(numbers)


@app.task(name="total")
def total(numbers: list[int], more: int = 0) -> int:
    return sum(numbers) + more


@app.task(name="show")
def show(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


@app.task(name="fail")
def fail(*args: Any) -> None:
    raise ValueError("bad")


def shape(call: Any) -> str:
    """Write a canvas as the table of Celery's behaviour does."""
    match call:
        case group():
            return f"g({','.join(map(shape, call.tasks))})"
        case chord():
            return f"ch({shape(call.header)},{shape(call.body)})"
        case chain():
            return f"c({','.join(map(shape, call.tasks))})"
    return str(call.kwargs.get("n", call.args[0] if call.args else "?"))


def t(name: str) -> Signature[Any]:
    return show.s(name)


def left(name: str) -> Signature[Any]:
    """A left side of the table."""
    return {
        "t": lambda: t("t"),
        "g2": lambda: group(t("a"), t("b")),
        "g1": lambda: group(t("a")),
        "c": lambda: chain(t("p"), t("q")),
        "ch": lambda: chord([t("a"), t("b")], t("x")),
        "c…g": lambda: chain(t("p"), group(t("a"), t("b"))),
        "c…ch": lambda: chain(t("p"), chord([t("a"), t("b")], t("x"))),
    }[name]()


def right(name: str) -> Signature[Any]:
    """A right side of the table."""
    return {
        "t": lambda: t("z"),
        "g2": lambda: group(t("m"), t("n")),
        "g1": lambda: group(t("m")),
        "c": lambda: chain(t("y"), t("z")),
        "ch": lambda: chord([t("m"), t("n")], t("w")),
    }[name]()


@pytest.mark.parametrize(
    ("one", "other", "made"),
    [
        ("t", "t", "c(t,z)"),
        ("t", "g2", "c(t,g(m,n))"),
        ("t", "g1", "c(t,m)"),
        ("t", "c", "c(t,y,z)"),
        ("t", "ch", "c(t,ch(g(m,n),w))"),
        ("g2", "t", "ch(g(a,b),z)"),
        ("g2", "g2", "ch(g(a,b),g(m,n))"),
        ("g2", "g1", "ch(g(a,b),g(m))"),
        ("g2", "c", "ch(g(a,b),c(y,z))"),
        ("g2", "ch", "ch(g(a,b),ch(g(m,n),w))"),
        ("g1", "t", "ch(g(a),z)"),
        ("g1", "g2", "ch(g(a),g(m,n))"),
        ("g1", "g1", "ch(g(a),g(m))"),
        ("g1", "c", "ch(g(a),c(y,z))"),
        ("g1", "ch", "ch(g(a),ch(g(m,n),w))"),
        ("c", "t", "c(p,q,z)"),
        ("c", "g2", "c(p,q,g(m,n))"),
        ("c", "g1", "c(p,q,m)"),
        ("c", "c", "c(p,q,y,z)"),
        ("c", "ch", "c(p,q,ch(g(m,n),w))"),
        ("ch", "t", "ch(g(a,b),c(x,z))"),
        ("ch", "g2", "c(ch(g(a,b),x),g(m,n))"),
        ("ch", "g1", "ch(g(a,b),c(x,m))"),
        ("ch", "c", "c(ch(g(a,b),x),y,z)"),
        ("ch", "ch", "ch(g(a,b),c(x,ch(g(m,n),w)))"),
        ("c…g", "t", "c(p,ch(g(a,b),z))"),
        ("c…g", "g2", "c(p,g(a,b),g(m,n))"),
        ("c…g", "g1", "c(p,ch(g(a,b),m))"),
        ("c…g", "c", "c(p,ch(g(a,b),c(y,z)))"),
        ("c…g", "ch", "c(p,ch(g(a,b),ch(g(m,n),w)))"),
        ("c…ch", "t", "c(p,ch(g(a,b),c(x,z)))"),
        ("c…ch", "g2", "c(p,ch(g(a,b),c(x,g(m,n))))"),
        ("c…ch", "g1", "c(p,ch(g(a,b),c(x,m)))"),
        ("c…ch", "c", "c(p,ch(g(a,b),c(x,y,z)))"),
        ("c…ch", "ch", "c(p,ch(g(a,b),x),ch(g(m,n),w))"),
    ],
)
def test_what_a_bar_makes_of_two(one: str, other: str, made: str) -> None:
    first, second = left(one), right(other)
    before = copy.deepcopy((first, second))
    assert shape(first | second) == made
    assert (first, second) == before


@pytest.mark.parametrize("name", ["t", "g2", "c", "ch", "c…g", "c…ch"])
def test_an_empty_group_behind_leaves_it_as_it_is(name: str) -> None:
    assert shape(left(name) | group()) == shape(left(name))


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda: chain(t("a"), t("b"), t("c")), "c(a,b,c)"),
        (lambda: chain([t("a"), t("b")]), "c(a,b)"),
        (lambda: chain(t(name) for name in "ab"), "c(a,b)"),
        (lambda: chain(t("a")), "c(a)"),
        (lambda: chain(), "c()"),
        (lambda: chain(chain(t("a"), t("b")), t("c")), "c(a,b,c)"),
        (lambda: chain(group(t("a"), t("b")), t("c")), "ch(g(a,b),c)"),
        (lambda: chain(group(t("a"), t("b"))), "c(g(a,b))"),
        (lambda: chain([group(t("a"))]), "c(g(a))"),
        (lambda: group(t(name) for name in "ab"), "g(a,b)"),
        (lambda: group([t("a"), t("b")]), "g(a,b)"),
        (lambda: group(), "g()"),
        (lambda: chord((t(name) for name in "ab"), t("c")), "ch(g(a,b),c)"),
        (lambda: chord(t("a"), t("b")), "ch(g(a),b)"),
        (lambda: group(dict(t("a")), t("b").to_dict()), "g(a,b)"),
    ],
)
def test_canvases_take_signatures_lists_generators_and_mappings(made: Any, wanted: str) -> None:
    assert shape(made()) == wanted


@pytest.mark.parametrize(
    "made", [lambda: group(5), lambda: chain("a"), lambda: chord([1], add.s()), lambda: add.s() | 5]
)
def test_what_is_no_signature_is_refused(made: Any) -> None:
    with pytest.raises((InvalidOption, TypeError)):
        made()


# -- one call ----------------------------------------------------------------------------------------------------


def test_arguments_given_later_come_first() -> None:
    call = show.s(2, x=1)
    later = call.clone((1,), {"x": 2, "y": 3})
    assert (later.args, later.kwargs) == ((1, 2), {"x": 2, "y": 3})
    assert (call.args, call.kwargs) == ((2,), {"x": 1})
    fixed = show.si(2).clone((1,), {"y": 3})
    assert (fixed.args, fixed.kwargs, fixed.immutable) == ((2,), {}, True)


def test_replace_gives_exactly_what_is_said() -> None:
    call = show.s(1, x=1).set(queue="mail")
    made = call.replace(args=(5,), options={"priority": 1})
    assert (made.args, made.kwargs, made.options) == ((5,), {"x": 1}, {"priority": 1})
    assert call.replace(kwargs={}).kwargs == {}


def test_an_equal_link_is_kept_once_and_links_can_be_listed() -> None:
    call = add.s(1)
    assert call.link(show.s("x")) == show.s("x")
    call.link(show.s("x"))
    assert call.on_error(show.s("no")) is call
    assert (len(call.options["link"]), len(call.options["link_error"])) == (1, 1)
    assert call.flatten_links() == [call, show.s("x")]


def test_a_canvas_may_be_a_link_and_brings_its_steps_along() -> None:
    call = add.s(1, 2).set(link=chain(add.s(3), add.s(4)), link_error=group(add.s(5), add.s(6)))
    job = call.job()
    (canvas,) = json.loads(job.links or "")
    second, first = canvas["plan"]
    assert (first["args"], first["steps"], second["args"]) == ([3], [second["id"]], [4])
    assert (second["waits"], second["takes"]) == (1, "value")
    assert [other["args"] for other in json.loads(job.errbacks or "")] == [[5], [6]]
    assert add.s(1).set(link=[group(), chain()]).job().links is None
    assert Signature.from_dict(json.loads(json.dumps(dict(call)))).to_dict() == call.to_dict()


def test_a_canvas_that_follows_is_checked_when_the_call_is_made() -> None:
    with pytest.raises(InvalidArguments, match="valid integer"):
        add.s(1, 2).set(link=chain(add.s(3), add.si("four"))).job()
    with pytest.raises(InvalidOption, match="link must be a signature"):
        add.s(1, 2).link(5)  # type: ignore[arg-type]
    circle: Any = chain(add.si(1, 2), add.si(3, 4))
    circle.tasks[-1].link(circle)
    with pytest.raises(InvalidOption, match="leads back to itself"):
        add.s(1, 2).set(link=circle).job()


def test_errbacks_of_a_chord_are_for_its_header_too_where_a_setting_says_so() -> None:
    def errbacks(**conf: Any) -> list[bool]:
        app = PgQueue("chords", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
        app.conf.update(conf)
        add = app.task(name="add")(lambda *numbers: sum(numbers))
        canvas = chord([add.s(1), add.s(2)], add.s()).on_error(add.s(9))
        plan = [*canvas.plan(), *chord([add.s(1), add.s(2)], add.s()).plan(link_error=add.s(9))]
        return [job.errbacks is not None for job in plan if not job.waits]

    assert errbacks() == [False] * 4
    assert errbacks(task_allow_error_cb_on_chord_header=True) == [True] * 4


def test_freeze_gives_an_id_once() -> None:
    call = add.s(1, 2)
    handle = call.freeze()
    assert (call.id, call.freeze().id, call.clone().id) == (handle.id, handle.id, handle.id)
    assert call.job().id == handle.id
    root, parent = new_id(), new_id()
    call.freeze(root_id=root, parent_id=parent)
    assert (call.root_id, call.parent_id) == (root, parent)


CANVASES = [
    lambda: add.s(1, 2).set(priority=9),
    lambda: show.si(1, x=[1]).set(link=add.s(1), link_error=[show.s("no")]),
    lambda: chain(add.s(1), add.s(2), group(add.s(3), add.s(4))),
    lambda: chord([add.s(1), chain(add.s(2), add.s(3))], total.s(more=1)).set(countdown=5),
    lambda: group(add.s(1), chord([add.s(1)], total.s()), group(add.s(2))).clone((1,), {}),
    lambda: add.s(1) | group(add.s(2), add.s(3)) | total.s() | add.si(4),
    lambda: add.starmap([(1, 2), (3, 4)]),
    lambda: show.map([1, 2]),
]


@pytest.mark.parametrize("make", CANVASES)
def test_a_signature_survives_json_pickle_and_copies(make: Any) -> None:
    call = make()
    text = json.dumps(call.to_dict())
    assert json.loads(text) == json.loads(json.dumps(dict(call)))
    for again in (
        signature(json.loads(text)),
        signature(json.loads(text), app=app),
        pickle.loads(pickle.dumps(call)),
        copy.deepcopy(call),
        copy.copy(call),
        call.clone(),
        signature(decode(encode(call, path="x"))),
    ):
        assert (type(again), again) == (type(call), call)
        assert again is not call


def test_a_copy_shares_no_part_that_changes() -> None:
    call = chain(add.s(1), group(add.s(2), add.s(3)))
    for again in (call.clone(), copy.deepcopy(call)):
        again.tasks[0].set(priority=9)
        again.tasks[1].tasks[0].set(priority=9)
    assert call == chain(add.s(1), group(add.s(2), add.s(3)))


def test_a_signature_is_a_mapping_and_equal_to_one() -> None:
    call = add.s(1, 2)
    assert call == dict(call)
    assert (call["task"], call["args"], call.get("subtask_type"), len(call)) == ("add", (1, 2), None, 6)
    assert call != add.s(1, 3)
    assert call != 5
    with pytest.raises(TypeError):
        hash(call)


def test_a_signature_given_to_a_task_arrives_as_a_mapping() -> None:
    @app.task(name="call_back")
    def call_back(callback: Any, n: int) -> int:
        assert type(callback) is dict
        found: int = maybe_signature(callback, app).apply((n,)).get(disable_sync_subtasks=False)
        return found

    assert call_back.apply((add.s(1) | add.s(10), 5)).get() == 16


def test_a_call_by_name_is_of_the_current_app_or_of_the_one_that_is_named() -> None:
    other = PgQueue("other", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
    assert signature("add", (1, 2)).apply().get() == 3
    assert signature("add", (1,), app=other).app is other
    assert signature(add, (1, 2), priority=3).options == {"priority": 3}
    assert maybe_signature(None) is None
    assert maybe_signature(5) == 5
    with pytest.raises(InvalidOption, match="no signature"):
        signature({"args": []})


def test_a_signature_called_is_the_function() -> None:
    assert add.s(2)(1) == 3


# -- what is for which part --------------------------------------------------------------------------------------


def jobs(call: Any, *args: Any, **options: Any) -> dict[str, Any]:
    """Return the rows of a canvas by the first text among their arguments."""
    return {
        next(part for part in json.loads(job.args) if isinstance(part, str)): job for job in call.plan(*args, **options)
    }


def test_options_of_a_chain_are_for_its_first_and_links_for_its_last() -> None:
    id_ = new_id()
    found = jobs(
        chain(t("a"), t("b"), t("c")), countdown=5, queue="mail", task_id=id_, link=add.s(), link_error=show.s("no")
    )
    assert [(job.countdown, job.queue) for job in found.values()] == [(None, "default")] * 2 + [(5.0, "mail")]
    assert [name for name, job in found.items() if job.links] == ["c"]
    assert [name for name, job in found.items() if job.errbacks] == ["c", "b", "a"]
    assert (found["c"].id, found["c"].known, found["a"].known) == (id_, True, False)


def test_options_of_a_group_are_for_all_and_it_refuses_links() -> None:
    call = group(t("a"), chain(t("b"), t("c")), group(t("d")))
    found = jobs(call, priority=9)
    assert {name: job.priority for name, job in found.items()} == {"a": 9, "b": 9, "c": 5, "d": 9}
    for option in ("link", "link_error"):
        with pytest.raises(TypeError, match=option):
            call.apply_async(**{option: add.s()})


def test_options_of_a_chord_are_for_both_but_its_times_and_links() -> None:
    found = jobs(chord([t("a"), t("b")], t("x")), queue="mail", countdown=timedelta(seconds=5), link=add.s())
    assert {job.queue for job in found.values()} == {"mail"}
    assert {name: job.countdown for name, job in found.items()} == {"a": 5.0, "b": 5.0, "x": None}
    assert {name for name, job in found.items() if job.links} == {"x"}


def test_links_of_canvases_are_where_celery_has_them() -> None:
    pair = group(t("a"), t("b"))
    pair.link(add.s())
    pair.link_error(show.s("no"))
    found = jobs(pair)
    assert [bool(job.links) for job in found.values()] == [True, False]
    assert json.loads(found["a"].links)[0]["immutable"] is True
    assert [bool(job.errbacks) for job in found.values()] == [True, True]
    body = chord([t("a")], t("x"))
    body.link(add.s())
    body.link_error(show.s("no"))
    assert {name: (bool(job.links), bool(job.errbacks)) for name, job in jobs(body).items()} == {
        "a": (False, False),
        "x": (True, True),
    }
    line = chain(t("a"), t("b"))
    line.link(add.s())
    line.link_error(show.s("no"))
    for one in (line, line | group(), chain(line)):
        assert {name: (bool(job.links), bool(job.errbacks)) for name, job in jobs(one).items()} == {
            "a": (False, True),
            "b": (True, True),
        }


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (lambda: chain(t("a"), t("b")), {"a"}),
        (lambda: group(t("a"), chain(t("b"), t("c"))), {"a", "b"}),
        (lambda: chord([t("a"), t("b")], t("x")), {"a", "b"}),
        (lambda: chain(chord([t("a")], t("x")), t("b")), {"a"}),
        (lambda: chain(show.si("a"), t("b")), set()),
        (lambda: group(t("a"), t("b")).set(immutable=True), set()),
        (lambda: chain(t("a"), t("b")).set(immutable=True), set()),
    ],
)
def test_arguments_of_a_call_are_for_what_comes_first(call: Any, given: set[str]) -> None:
    found = jobs(call(), (7,), {"k": 8})
    assert {name for name, job in found.items() if json.loads(job.args)[0] == 7} == given
    assert {name for name, job in found.items() if json.loads(job.kwargs) == {"k": 8}} == given


def test_parts_in_the_middle_take_the_arguments_that_they_were_given() -> None:
    call = chain(show.s("a"), chain(t("b"), t("c")).clone((5,)), chord([t("d")], t("e")).clone((6,)))
    assert {name: json.loads(job.args) for name, job in jobs(call).items()} == {
        "a": ["a"], "b": [5, "b"], "c": ["c"], "d": [6, "d"], "e": ["e"],
    }  # fmt: skip


def test_a_unique_key_has_no_meaning_inside() -> None:
    with pytest.raises(InvalidOption, match="unique_key"):
        chain(t("a"), t("b").set(unique_key="k")).plan()
    assert chain(t("a").set(unique_key="k")).plan()[0].unique_key == "k"


def test_arguments_are_checked_before_anything_is_sent() -> None:
    @app.task(name="two")
    def two(x: int, y: int) -> int:
        return x + y

    with pytest.raises(InvalidArguments):
        chain(two.s(1, 2), two.s(1, 2)).delay()
    with pytest.raises(InvalidOption, match="countdwn"):
        group(two.s(1, 2)).apply_async(countdwn=1)


# -- ids and handles ---------------------------------------------------------------------------------------------


def test_handles_lead_back_to_the_first() -> None:
    call = chain(t("a"), chord([t("b"), t("c")], t("d")), t("e"), group(t("f"), t("g")))
    last = call.freeze()
    found = {name: job.id for name, job in jobs(call).items()}
    assert isinstance(last, GroupResult)
    assert [str(one) for one in last.results] == [found["f"], found["g"]]
    line = last.parent
    assert isinstance(line, AsyncResult)
    assert [handle.id for handle in line._line()][:2] == [found["e"], found["d"]]
    header = line._line()[2]
    assert isinstance(header, GroupResult)
    assert header.as_list() == [found["b"], found["c"]]
    assert header.parent == found["a"]
    again = result_from_tuple(json.loads(json.dumps(last.as_tuple())), app)
    assert (again, again.as_tuple()) == (last, last.as_tuple())


@pytest.mark.parametrize("make", CANVASES[2:6])
def test_a_frozen_canvas_has_the_same_ids_each_time(make: Any) -> None:
    call = make()
    free = call.plan()
    assert {job.id for job in free}.isdisjoint(job.id for job in call.plan())
    handle = call.freeze()
    named = [job.id for job in call.plan() if job.task]
    assert named == [job.id for job in call.plan() if job.task]
    assert (call.freeze(), call.id) == (handle, handle.id)
    assert named == [job.id for job in signature(call.to_dict()).plan() if job.task]


def test_the_same_signature_many_times_is_many_jobs() -> None:
    one = add.s(1)
    call = group(one, one, chain(one, one))
    call.freeze()
    assert one.id is None
    ids = [job.id for job in call.plan()]
    assert len(set(ids)) == len(ids) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda one: group(one, one),
        lambda one: chain(one, one),
        lambda one: chord([one, t("b")], one),
        lambda one: chord([one, chain(t("b"), one)], t("z")),
    ],
)
def test_an_id_is_that_of_one_call_alone(make: Any) -> None:
    one = t("a")
    id_ = one.freeze().id
    for use in (
        lambda call: call.plan(),
        lambda call: call.freeze(),
        lambda call: call.apply(),
        lambda call: t("x").set(link=call).job(),
    ):
        with pytest.raises(InvalidOption, match=f"two calls of the workflow have the id {id_}"):
            use(make(one))


def test_the_root_is_the_first_job_or_the_group() -> None:
    first = jobs(chain(t("a"), group(t("b"), t("c"))))
    assert {job.root_id for job in first.values()} == {first["a"].id}
    pair = group(t("a"), t("b"))
    id_ = pair.freeze().id
    assert {job.root_id for job in pair.plan()} == {id_}
    root, parent = new_id(), new_id()
    found = jobs(chain(t("a"), t("b")), root_id=root, parent_id=parent)
    assert {name: (job.root_id, job.parent_id) for name, job in found.items()} == {
        "a": (root, parent),
        "b": (root, None),
    }


def test_empty_ones_are_as_in_celery() -> None:
    assert chain().apply_async() is chain().apply() is None
    empty = group().apply_async()
    assert isinstance(empty, GroupResult)
    assert (empty.results, empty.ready(), empty.successful(), empty.get()) == ([], True, True, [])
    assert chord([], total.s()).apply().get() == 0
    with pytest.raises(InvalidOption, match="no body"):
        chord([add.s(1)]).apply_async()


def test_a_tuple_of_a_group_with_what_is_no_result_is_refused() -> None:
    with pytest.raises(InvalidOption):
        result_from_tuple(((new_id(), None), [5]), app)


# -- here and now ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda: chain(add.s(1, 2), add.s(3), add.s(4)), 10),
        (lambda: group(add.s(n, n) for n in range(4)), [0, 2, 4, 6]),
        (lambda: chord([add.s(0), group(add.s(1), add.s(2), add.s(3)), add.s(4)], show.s()), [[[0, 1, 2, 3, 4]], {}]),
        (lambda: group(add.s(1), group(add.s(2), group(add.s(3)), add.s(4)), add.s(5)), [1, 2, 3, 4, 5]),
        (lambda: add.s(1) | group(add.s(1), add.s(2)) | total.s(more=100), 105),
        (lambda: group(add.s(1), add.s(2)) | group(total.s(), total.s(10)), [3, 13]),
        (lambda: chord([add.s(1), chord([add.s(2), add.s(3)], total.s())], total.s()), 6),
        (lambda: chord([chain(add.s(1), group(add.s(1), add.s(2)))], show.s()), [[[[2, 3]]], {}]),
        (lambda: chain(add.s(1), group(), add.s(2)), 3),
        (lambda: chain.of([add.s(1), group(add.s(2)), add.s(3)]), 6),
        (lambda: chain.of([add.s(1), group(add.s(1), add.s(2)), total.s()]), 5),
        (lambda: chord([add.s(1)], show.s()), [[[1]], {}]),
        (lambda: add.s(1) | chord([], total.s(5)), 5),
        (lambda: add.chunks(((n, n) for n in range(5)), 2), [[0, 2], [4, 6], [8]]),
        (lambda: chunks(add, [(1, 2)], 5).group(), [[3]]),
        (lambda: add.chunks([(1, 1), (2, 2)], 1) | show.s(), [[[[2], [4]]], {}]),
        (lambda: add.starmap([(1, 2), (3, 4)]) | total.s(), 10),
        (lambda: xmap(add, iter([1, 2])), [1, 2]),
        (lambda: xstarmap("add", [(1, 1)]), [2]),
        (lambda: show.si(1) | show.si(2), [[2], {}]),
    ],
)
def test_a_canvas_runs_here_and_now(call: Any, value: Any) -> None:
    assert call().apply().get() == value


def test_apply_async_runs_here_and_now_where_all_is_eager() -> None:
    eager = PgQueue("eager", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
    eager.conf.task_always_eager = True
    one = eager.task(name="one")(lambda *args: len(args))
    result = (one.s() | group(one.s(), one.s(1)) | one.s()).delay()
    assert (result.get(), type(result), [part.get() for part in result.parent.results]) == (1, EagerResult, [1, 2])
    assert ~(one.si(1, 2) | one.s(5)) == 2


def test_a_failed_member_fails_the_body_and_is_named() -> None:
    seen: list[Any] = []
    note = app.task(name="note")(lambda *args: seen.append(args))
    call = chord([add.s(1), fail.s(2), add.s(3)], total.s().on_error(note.s("body"))) | add.s(1).on_error(
        note.s("rest")
    )
    result = call.apply()
    header = result.parent.parent
    assert [part.state for part in header.results] == [State.SUCCESS, State.FAILURE, State.SUCCESS]
    error = result.result
    assert isinstance(error, ChordError)
    assert str(error) == f"Dependency {header.results[1].id} raised ValueError(bad)"
    assert isinstance(error.__cause__, ValueError)
    assert seen == [(result.parent.id, "body")]


def test_a_failed_chord_in_a_header_fails_the_one_around_it() -> None:
    inner = chord([fail.s()], total.s())
    result = chord([add.s(1), inner], total.s()).apply()
    assert isinstance(result.result, ChordError)
    assert str(result.parent.results[1].id) in str(result.result)
    assert "ChordError" in str(result.result)


def test_a_failure_ends_the_rest_of_a_chain() -> None:
    result = chain(add.s(1), fail.s(), add.s(2), group(add.s(1), add.s(2))).apply()
    assert [part.state for part in result.results] == [State.FAILURE, State.FAILURE]
    assert (result.parent.state, result.parent.parent.state, result.parent.parent.parent.state) == (
        State.FAILURE, State.FAILURE, State.SUCCESS,
    )  # fmt: skip
    with pytest.raises(ValueError, match="bad"):
        result.get()
    with pytest.raises(ValueError, match="bad"):
        chain(fail.s(), add.s(2)).apply(throw=True)


def test_a_task_is_replaced_by_a_workflow_here_and_now() -> None:
    @app.task(name="begin", bind=True)
    def begin(self: Any, n: int) -> Any:
        return self.replace(group(add.s(n, k) for k in range(3)) | total.s())

    @app.task(name="spread", bind=True)
    def spread(self: Any, n: int) -> Any:
        return self.replace(group(add.s(n, k) for k in range(3)))

    assert begin.apply((1,)).get() == 6
    result = spread.apply((1,))
    assert result.get() == [1, 2, 3]
    assert chord([begin.s(0), spread.s(1)], show.s()).apply().get() == [[[3, [1, 2, 3]]], {}]
    assert (begin.s(1) | add.s(1)).apply().get() == 7


def test_a_workflow_in_the_place_of_a_job_has_its_id_where_the_value_is() -> None:
    @app.task(name="places", bind=True)
    def places(self: Any, which: int) -> Any:
        self.replace([add.s(1) | group(add.s(2), add.s(3)), chord([add.s(1)], total.s()), add.s(1) | add.s(2)][which])

    id_, root, parent = new_id(), new_id(), new_id()
    for which in range(3):
        outcome: Any = places.trace((which,), task_id=id_, root_id=root, parent_id=parent, headers={"tenant": "x"})
        rows = json.loads(outcome.plan)
        (last,) = [row for row in rows if "steps" not in row]
        assert (last["id"], last["waits"]) == (id_, [2, 1, 1][which])
        assert (last["task"] is None) == (which == 0)
        assert {row["root_id"] for row in rows} == {root}
        assert {row.get("parent_id") for row in rows if "waits" not in row} == {parent}
        called = [row for row in rows if row["task"]]
        assert {(row["options"]["replaced"], row["headers"]["tenant"]) for row in called} == {(1, "x")}


def test_nothing_or_what_has_an_id_replaces_no_task() -> None:
    @app.task(name="replaced", bind=True)
    def replaced(self: Any, which: int) -> Any:
        frozen = chain(add.s(1), add.s(2))
        frozen.freeze()
        return self.replace([group(), frozen][which])

    for which in (0, 1):
        assert isinstance(replaced.apply((which,)).result, InvalidOption)


def test_a_member_is_added_in_a_header_alone() -> None:
    @app.task(name="adds", bind=True)
    def adds(self: Any, lazy: bool) -> Any:
        return self.add_to_chord(add.s(1), lazy=lazy)

    assert isinstance(adds.apply((False,)).result, ValueError)
    assert isinstance(adds.apply((True,)).result, InvalidOption)
