"""What canvases and their results do beside Celery's, row by row, with real workers.

f.3 to f.9 and the numbers of g are rows of the description of Celery's behaviour; where pgqueue does otherwise on
purpose, the test says so. f.1 and f.2, which are about values, are in `tests/pure/test_signatures.py`; that each shape
ends as it should is in `test_canvas.py`. Every `get` has a timeout: what would hang fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from flowing import PATIENCE, Flow, c, ch, flowing, g, t
from flows import (
    add,
    complain,
    counted,
    direct,
    double,
    dying,
    exhausted,
    fail,
    gated,
    ignored,
    inner,
    joins,
    kept,
    mark,
    more,
    quiet,
    rejected,
    slow,
    total,
    turned,
)

from pgqueue import (
    ChordError,
    GroupResult,
    IncompleteStream,
    ResultTimeout,
    StampingVisitor,
    State,
    TaskRejectedError,
    TaskRevokedError,
    TimeLimitExceeded,
    UnknownJob,
    chain,
    chord,
    group,
    result_from_tuple,
    signature,
)

#: A worker of these tests notices soon that another has died.
SOON = {"PGQUEUE_POLL_INTERVAL": "0.1", "PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "2"}
#: A queue that nobody serves.
NOBODY = "nobody"


@pytest.fixture(scope="module")
def flow(pg_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """A database, and a worker of four processes on it."""
    with flowing(pg_server, tmp_path_factory.mktemp("rows")) as flow:
        with flow.app.database.connection() as connection:
            connection.execute("create table ran (tag text not null)")
        flow.work("-P", "prefork", "-c", "4", **SOON)
        yield flow


@pytest.fixture
def gate(flow: Flow) -> Iterator[Callable[[], None]]:
    """Close the gate at which `gated` waits; what it gives opens it."""
    with flow.app.database.connection() as connection:
        connection.execute("select pg_advisory_lock(1)")

        def open_() -> None:
            connection.execute("select pg_advisory_unlock_all()")

        yield open_
        open_()


def get(handle: Any, **options: Any) -> Any:
    return handle.get(timeout=PATIENCE, **options)


def ended(*handles: Any) -> list[str]:
    """Wait for all, and return their states."""
    for handle in handles:
        get(handle, propagate=False)
    return [str(handle.state) for handle in handles]


def mine(flow: Flow, handle: Any) -> tuple[str | None, str | None]:
    """Return parent and root as the database has them."""
    (row,) = flow.ask("select parent_id::text, root_id::text from pgqueue.result where id = %s", handle.id)
    return row


def waited(flow: Flow, handle: Any) -> float:
    """Return for how many seconds a job waited, by the clock of the database."""
    query = "select extract(epoch from claimed_at - enqueued_at)::float8 from pgqueue.result where id = %s"
    return float(flow.ask(query, handle.id)[0][0])


def times(flow: Flow, tag: str) -> int:
    """Return how often `counted` ran with this tag."""
    return int(flow.ask("select count(*) from ran where tag = %s", tag)[0][0])


# -- f.1 -----------------------------------------------------------------------------------------------------------


def test_a_tilde_sends_and_gets(flow: Flow) -> None:
    assert ~t("a") == "a()"
    assert ~(t("a") | t("b")) == "b(a())"
    assert ~g("a", "b") == ["a()", "b()"]


# -- f.3 Chain execution -------------------------------------------------------------------------------------------


def test_all_of_a_chain_is_there_at_once_and_its_first_alone_can_run(flow: Flow) -> None:
    """Celery sends the rest along in the message of the first; here they are rows that wait."""
    last = chain(*(t(tag, queue=NOBODY) for tag in "abc")).apply_async()
    line = [last.parent.parent, last.parent, last]
    assert [(one.exists(), one.state) for one in line] == [(True, State.PENDING)] * 3
    assert line[0].parent is None
    jobs = [str(id_) for (id_,) in flow.ask("select id from pgqueue.job where queue = %s", NOBODY)]
    assert jobs == [line[0].id]
    assert line[0].revoke() == State.REVOKED


def test_ids_are_those_that_were_fixed_beforehand(flow: Flow) -> None:
    canvas = c("a", "b", "c")
    frozen = canvas.freeze()
    last = canvas.apply_async()
    assert get(last) == "c(b(a()))"
    assert last.as_list() == frozen.as_list()
    assert [get(one) for one in (last.parent, last.parent.parent)] == ["b(a())", "a()"]


def test_a_chain_of_one_has_the_result_of_that_one(flow: Flow) -> None:
    handle = chain(t("a")).apply_async()
    assert (get(handle), handle.parent, handle.name) == ("a()", None, "flows.mark")


def test_a_failure_ends_the_rest_in_the_same_commit(flow: Flow) -> None:
    last = chain(t("a"), fail.s(tag="b"), t("c"), t("d")).apply_async()
    failed, third = last.parent.parent, last.parent
    with pytest.raises(ValueError, match="b fails"):
        get(failed)
    for handle in (third, last):
        assert (handle.state, handle.attempt) == (State.FAILURE, 0)
        for follow_parents in (True, False):
            with pytest.raises(ValueError, match="b fails"):
                get(handle, follow_parents=follow_parents)
    assert failed.parent.state == State.SUCCESS


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_errbacks_of_a_chain_run_for_the_link_that_failed(flow: Flow, failing: int) -> None:
    tags = [f"link{failing}{number}" for number in range(3)]
    links = [
        (fail.s(tag="x") if number == failing else t("x")).on_error(complain.s(tag=tag))
        for number, tag in enumerate(tags)
    ]
    last = chain(*links).on_error(complain.s(tag=f"all{failing}")).apply_async()
    assert ended(last) == ["FAILURE"]
    culprit = [last.parent.parent, last.parent, last][failing].id
    assert [len(flow.calls(tag)) for tag in tags] == [number == failing for number in range(3)]
    assert flow.calls(tags[failing]) == flow.calls(f"all{failing}") == [(culprit, culprit)]


def test_a_link_of_a_chain_follows_its_last(flow: Flow) -> None:
    canvas = c("a", "b")
    canvas.link(complain.s(tag="set"))
    last = canvas.apply_async(link=complain.s(tag="given"))
    assert ended(last) == ["SUCCESS"]
    assert flow.calls("set") == flow.calls("given") == [("b(a())", last.id)]


PARTIAL: dict[str, tuple[Callable[[], Any], Any]] = {
    "a chain: its first": (lambda: c("a", "b"), "b(a(p))"),
    "a group: every member": (lambda: group(t("a"), c("b", "c"), g("d", "e")), ["a(p)", "c(b(p))", "d(p)", "e(p)"]),
    "a chord: its header": (lambda: ch("ab", "c"), "c([a(p),b(p)])"),
    "a chord in a chain": (lambda: ch("ab", "c") | t("d"), "d(c([a(p),b(p)]))"),
    "a chain in a chain": (lambda: chain(c("a", "b"), t("c")), "c(b(a(p)))"),
    "a chord in a header": (lambda: chord([ch("ab", "c"), t("d")], t("e")), "e([c([a(p),b(p)]),d(p)])"),
    "nobody that is immutable": (lambda: group(mark.si(tag="a"), t("b")), ["a()", "b(p)"]),
}


# f.3 and g 30
@pytest.mark.parametrize("name", PARTIAL)
def test_arguments_of_the_call_are_for(flow: Flow, name: str) -> None:
    make, value = PARTIAL[name]
    assert get(make().delay("p")) == value
    assert get(make().apply_async(("p",))) == value
    assert get(make().clone(("p",)).apply_async()) == value


def test_keyword_arguments_of_the_call_are_for_its_first(flow: Flow) -> None:
    assert get(chain(mark.s(), t("b")).apply_async(kwargs={"tag": "k"})) == "b(k())"
    assert get(chord([mark.s(), mark.s("x")], t("z")).apply_async(kwargs={"tag": "k"})) == "z([k(),k(x)])"


def test_a_chain_goes_on_over_a_result_that_is_not_kept(flow: Flow) -> None:
    last = chain(t("a"), quiet.s(tag="b"), t("c")).apply_async()
    assert get(last) == "c(b(a()))"
    assert not last.parent.exists()


def test_what_follows_an_ignored_link_ends_as_it_did(flow: Flow) -> None:
    """Celery leaves it PENDING for ever."""
    last = chain(t("a"), ignored.s(), counted.s(tag="behind an ignored one"), t("c")).apply_async()
    assert get(last) is None
    assert [last.state, last.parent.state] == [State.IGNORED] * 2
    assert times(flow, "behind an ignored one") == 0


def test_a_canvas_comes_with_the_transaction_of_its_caller_or_not_at_all(flow: Flow) -> None:
    for make in (lambda: c("a", "b"), lambda: g("a", "b"), lambda: ch("ab", "c")):
        with psycopg.connect(flow.dsn) as connection:
            lost = make().apply_async(connection=connection)
            connection.rollback()
            handle = make().apply_async(connection=connection)
        with pytest.raises(UnknownJob):
            get(lost)
        get(handle)


# -- f.4 Group -----------------------------------------------------------------------------------------------------


def test_a_group_has_its_members_in_order_and_an_id(flow: Flow) -> None:
    canvas = group(t("a"), g("b", "c"), t("d"))
    ids = canvas.freeze().as_list()
    handle = canvas.apply_async()
    assert (type(handle), handle.id, handle.as_list()) == (GroupResult, canvas.id, ids)
    assert get(handle) == [get(flow.handle(id_)) for id_ in ids] == ["a()", "b()", "c()", "d()"]


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_a_group_takes_no_links_where_it_is_called(flow: Flow, option: str) -> None:
    before = flow.ask("select count(*) from pgqueue.job")
    with pytest.raises(TypeError, match=option):
        g("a", "b").apply_async(**{option: complain.s()})
    assert flow.ask("select count(*) from pgqueue.job") == before


def test_members_may_start_one_after_the_other(flow: Flow) -> None:
    handle = g("a", "b", "c").skew(start=0.1, step=0.2).apply_async()
    get(handle)
    assert all(waited(flow, one) >= 0.1 + number * 0.2 for number, one in enumerate(handle))


# f.4 and g 39
def test_a_link_of_a_group_follows_its_first_without_the_value(flow: Flow) -> None:
    canvas = g("a", "b", "c")
    canvas.link(complain.s("nothing", tag="of a group"))
    handle = canvas.apply_async()
    assert get(handle) == ["a()", "b()", "c()"]
    assert flow.calls("of a group") == [("nothing", handle[0].id)]


def test_an_errback_of_a_group_runs_for_every_member_that_fails(flow: Flow) -> None:
    canvas = group(fail.s(tag="a"), t("b"), fail.s(tag="c"))
    canvas.link_error(complain.s(tag="of members"))
    handle = canvas.apply_async()
    assert ended(*handle) == ["FAILURE", "SUCCESS", "FAILURE"]
    assert flow.calls("of members") == sorted((one.id, one.id) for one in (handle[0], handle[2]))


def test_an_empty_group_is_ready(flow: Flow) -> None:
    for empty in (group().apply_async(), group([]).delay(), group(group(), group()).apply_async()):
        assert isinstance(empty, GroupResult)
        assert (empty.ready(), empty.successful(), empty.failed(), empty.waiting()) == (True, True, False, False)
        assert (len(empty), bool(empty), empty.completed_count(), get(empty)) == (0, True, 0, [])


def test_a_generator_is_read_once_and_may_be_enqueued_twice(flow: Flow) -> None:
    read: list[str] = []

    def calls() -> Iterator[Any]:
        for tag in "ab":
            read.append(tag)
            yield t(tag)

    for canvas, value in ((group(calls()), ["a()", "b()"]), (chord(calls(), t("z")), "z([a(),b()])")):
        assert [get(canvas.apply_async()) for _ in range(2)] == [value] * 2
    assert read == ["a", "b"] * 2


def test_options_of_a_canvas_are_for(flow: Flow) -> None:
    """The first of a chain, all of a group, header and body of a chord: its times for the header alone."""
    handle = c("a", "b").apply_async(priority=9)
    pair = group(t("a"), c("b", "c")).set(priority=8).apply_async()
    body = ch("ab", "c").apply_async(priority=7)
    assert ended(handle, *pair, body) == ["SUCCESS"] * 4
    jobs = [handle.parent, handle, pair[0], flow.handle(pair[1].id).parent, pair[1], *body.parent, body]
    found = dict(flow.ask("select id::text, priority from pgqueue.result where id = any(%s)", [one.id for one in jobs]))
    assert [found[one.id] for one in jobs] == [9, 5, 8, 8, 5, 7, 7, 7]


def test_a_queue_of_a_canvas(flow: Flow) -> None:
    handle = g("a", "b").apply_async(queue=NOBODY)
    assert [one.queue for one in handle] == [NOBODY] * 2
    with pytest.raises(ResultTimeout):
        handle.get(timeout=0)
    assert handle.revoke() == [State.REVOKED] * 2


@pytest.mark.parametrize("make", [lambda: c("a", "b"), lambda: g("a", "b"), lambda: ch("ab", "c")])
def test_a_canvas_that_has_expired_does_not_run(flow: Flow, make: Callable[[], Any]) -> None:
    handle = make().apply_async(expires=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises((TaskRevokedError, ChordError), match=r"expired|REVOKED"):
        get(handle)


@pytest.mark.parametrize("make", [lambda: c("a", "b"), lambda: g("a", "b"), lambda: ch("ab", "c")])
def test_a_canvas_that_waits_for_its_time(flow: Flow, make: Callable[[], Any]) -> None:
    handle = make().apply_async(countdown=0.5)
    first = handle if isinstance(handle, GroupResult) else handle.parent
    firsts = list(first) if isinstance(first, GroupResult) else [first]
    get(handle)
    assert all(waited(flow, one) >= 0.5 for one in firsts)


def test_a_time_of_a_chord_is_for_its_header_alone(flow: Flow) -> None:
    body = ch("ab", "c").apply_async(countdown=3600)
    assert flow.ask("select call ->> 'countdown' from pgqueue.step where id = %s", body.id) == [(None,)]
    assert [one.revoke() for one in body.parent] == [State.REVOKED] * 2
    with pytest.raises(ChordError):
        get(body)


def test_an_id_of_a_canvas_is_that_of_what_comes_last(flow: Flow) -> None:
    ids = [canvas.freeze().id for canvas in (t("x"), t("x"), t("x"))]
    made = [c("a", "b"), ch("ab", "c"), g("a", "b")]
    handles = [canvas.apply_async(task_id=id_) for canvas, id_ in zip(made, ids, strict=True)]
    assert [handle.id for handle in handles] == ids
    assert [get(flow.handle(id_)) for id_ in ids[:2]] == ["b(a())", "c([a(),b()])"]
    assert get(handles[2]) == ["a()", "b()"]


# -- f.5 Chord -----------------------------------------------------------------------------------------------------


def test_a_failing_member_ends_the_body_when_all_have_ended(flow: Flow, gate: Callable[[], None]) -> None:
    body = chord([fail.s(tag="a"), gated.s(tag="b"), t("c")], counted.s(tag="never")).apply_async()
    assert ended(body.parent[0], body.parent[2]) == ["FAILURE", "SUCCESS"]
    assert body.state == State.PENDING
    with pytest.raises(ResultTimeout):
        body.get(timeout=0.1)
    gate()
    with pytest.raises(ChordError, match="a fails"):
        get(body)
    assert (body.parent[1].state, body.attempt, times(flow, "never")) == (State.SUCCESS, 0, 0)


@pytest.mark.parametrize("follow_parents", [True, False])
def test_the_error_of_a_body_names_who_failed_and_has_its_error_as_cause(flow: Flow, follow_parents: bool) -> None:
    """Celery mostly raises the error of the member; here it is always a ChordError, and the other one its cause."""
    body = chord([t("a"), fail.s(tag="b")], t("z")).apply_async()
    error = get(body, propagate=False, follow_parents=follow_parents)
    assert isinstance(error, ChordError)
    assert str(error) == f"Dependency {body.parent[1].id} raised ValueError('b fails')"
    assert isinstance(error.__cause__, ValueError)
    assert str(error.__cause__) == "b fails"
    with pytest.raises(ChordError, match="b fails"):
        get(body, follow_parents=follow_parents)
    assert isinstance(body.result, ChordError)


def test_an_errback_of_a_chord_is_called_once_with_the_id_of_the_body(flow: Flow) -> None:
    canvas = chord([fail.s(tag="a"), fail.s(tag="b")], t("z").on_error(complain.s(tag="of the body")))
    canvas.link_error(complain.s(tag="of the chord"))
    body = canvas.apply_async(link_error=complain.s(tag="of the call"))
    assert ended(body, *body.parent) == ["FAILURE"] * 3
    for tag in ("of the body", "of the chord", "of the call"):
        assert [id_ for id_, _ in flow.calls(tag)] == [body.id]


def test_errbacks_of_a_chain_are_those_of_the_bodies_in_it(flow: Flow) -> None:
    body = chain(t("a"), ch("bc", "d")).on_error(complain.s(tag="in a chain")).apply_async()
    failing = chain(t("a"), chord([fail.s(tag="b")], t("d"))).on_error(complain.s(tag="in a chain")).apply_async()
    assert ended(body, failing) == ["SUCCESS", "FAILURE"]
    assert [id_ for id_, _ in flow.calls("in a chain")] == [failing.id]


def test_a_link_of_a_chord_follows_its_body_alone(flow: Flow) -> None:
    canvas = ch("ab", "c")
    canvas.link(complain.s(tag="after the body"))
    body = canvas.apply_async(link=complain.s(tag="given to the chord"))
    assert ended(body) == ["SUCCESS"]
    said = [("c([a(),b()])", body.id)]
    assert flow.calls("after the body") == flow.calls("given to the chord") == said


def test_a_body_that_is_a_group_ends_in_every_member(flow: Flow) -> None:
    """Celery calls the errbacks for every member; here one call each, with an id that has the error and no task."""
    pair = group(t("x"), c("y", "z")).on_error(complain.s(tag="each"))
    handle = chord([fail.s(tag="a"), t("b")], pair).apply_async()
    for one in handle:
        with pytest.raises(ChordError, match="a fails"):
            get(one)
    with pytest.raises(ChordError, match="a fails"):
        get(handle)
    (errback,) = flow.calls("each")
    assert (flow.handle(errback[0]).name, type(flow.handle(errback[0]).result)) == ("pgqueue.gather", ChordError)


# f.5 and g 27b
def test_a_chord_that_fails_in_a_header_fails_the_outer_one(flow: Flow) -> None:
    inside = chord([fail.s(tag="a"), t("b")], t("c"))
    canvas = chord([inside, t("d")], t("e")) | t("f")
    last = canvas.on_error(complain.s(tag="outermost")).apply_async()
    error = get(last, propagate=False, follow_parents=False)
    assert isinstance(error, ChordError)
    assert isinstance(error.__cause__, ChordError)
    assert "a fails" in str(error.__cause__.__cause__)


def test_a_body_has_its_id_from_the_beginning_and_is_called_with_nothing(flow: Flow) -> None:
    canvas = chord([], t("z"))
    id_ = canvas.freeze().id
    body = canvas.apply_async()
    assert (body.id, get(body)) == (id_, "z([])")
    assert get(chord([t("a")])(t("z"))) == "z([a()])"


def test_a_chord_needs_no_results_of_its_members(flow: Flow) -> None:
    body = chord([quiet.s(tag="a"), quiet.s(tag="b"), t("c", ignore_result=True)], t("z")).apply_async()
    assert get(body) == "z([a(),b(),c()])"
    assert get(body.parent) == [None] * 3  # at once: an ignored result is not waited for
    assert [flow.handle(one.id).exists() for one in body.parent] == [False] * 3


def test_nested_structures_keep_their_nesting(flow: Flow) -> None:
    header = [t("a"), t("b") | g("c", "d"), ch("ef", "g"), c("h", "i")]
    assert get(chord(header, t("z")).apply_async()) == "z([a(),[c(b()),d(b())],g([e(),f()]),i(h())])"


def test_a_wide_header_keeps_its_order(flow: Flow) -> None:
    tags = [str(number) for number in range(150)]
    assert get((g(*tags) | t("z")).apply_async()) == f"z([{','.join(f'{tag}()' for tag in tags)}])"


LIMITS: dict[str, tuple[dict[str, float], str]] = {
    "soft": ({"soft_time_limit": 0.3}, "SoftTimeLimitExceeded"),
    "hard": ({"time_limit": 0.5}, "TimeLimitExceeded"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_member_over_its_time_limit_fails_the_body(flow: Flow, name: str) -> None:
    options, kind = LIMITS[name]
    body = chord([slow.s(tag="a").set(**options), t("b")], t("z")).apply_async()
    with pytest.raises(ChordError, match=f"raised {kind}"):
        get(body)
    assert type(get(body.parent[0], propagate=False)).__name__ == kind


def test_a_link_over_its_time_limit_ends_the_chain(flow: Flow) -> None:
    last = chain(slow.si(tag="a").set(time_limit=0.5), t("b"), t("c")).apply_async()
    with pytest.raises(TimeLimitExceeded):
        get(last)


# c.5
def test_a_member_whose_retries_are_exhausted_fails_the_body_once(flow: Flow) -> None:
    retried = exhausted.s(tag="a").on_error(complain.s(tag="exhausted"))
    body = chord([retried, t("b")], t("z").on_error(complain.s(tag="its body"))).apply_async()
    with pytest.raises(ChordError, match=r"ValueError\('a fails'\)"):
        get(body)
    member = body.parent[0]
    assert (member.retries, member.attempt) == (1, 2)
    assert flow.calls("exhausted") == [(member.id, member.id)]
    assert [id_ for id_, _ in flow.calls("its body")] == [body.id]


def test_a_rejected_member_and_a_rejected_link(flow: Flow) -> None:
    body = chord([t("a"), rejected.s()], t("z")).apply_async()
    assert ended(body, *body.parent) == ["FAILURE", "SUCCESS", "REJECTED"]
    last = chain(t("a"), rejected.s(), t("b")).apply_async()
    with pytest.raises(TaskRejectedError):
        get(last)


# -- e.4 what a task may do in a canvas ----------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["task", "chain", "group", "chord"])
def test_a_replaced_job_keeps_its_id_its_links_and_its_place(flow: Flow, into: str) -> None:
    said = {"task": "x(i)", "chain": "y(x(i))", "group": "[x(i),y(i)]", "chord": "z([x(i),y(i)])"}[into]
    one = turned.s("i", into=into)
    member = one.clone()
    member.link(complain.s(tag=f"into a {into}") if into != "group" else mark.s(tag="behind"))
    body = chord([t("a"), member, t("b")], t("w")).apply_async()
    assert get(body) == f"w([a(),{said},b()])"
    assert flow.handle(body.parent[1].id).state == State.SUCCESS
    if into != "group":
        assert flow.calls(f"into a {into}") == [(said, body.parent[1].id)]
    assert get(group(one, t("b")).apply_async())[1] == "b()"
    assert get(chain(one, t("c"), t("d")).apply_async()) == f"d(c({said}))"


def test_an_errback_of_a_replaced_job_runs_once_where_its_replacement_fails(flow: Flow) -> None:
    one = turned.s("i", into="failing chord").on_error(complain.s(tag="replaced"))
    last = chain(one, t("b")).apply_async()
    with pytest.raises(ChordError, match="y fails"):
        get(last)
    assert [id_ for id_, _ in flow.calls("replaced")] == [last.parent.id]


def test_a_member_that_is_added_is_one_of_its_header_alone(flow: Flow) -> None:
    inside = chord([more.s(), t("a")], t("b"))
    assert get(chord([inside, t("c"), more.s()], t("z")).apply_async()) == "z([b([adds,a(),more()]),c(),adds,more()])"
    body = chord([more.s(fails=True), t("a")], t("z")).apply_async()
    with pytest.raises(ChordError, match="more fails"):
        get(body)
    assert ended(*body.parent) == ["SUCCESS"] * 2
    (added,) = body.parent[0].children
    assert (added.name, added.state) == ("flows.fail", State.FAILURE)


def test_who_is_in_no_header_adds_nothing_to_a_chord(flow: Flow) -> None:
    for handle in (more.delay(), chain(more.s(), t("b")).apply_async(), group(more.s(), t("a")).apply_async()):
        with pytest.raises(ValueError, match="not in the header of a chord"):
            get(handle)


def test_a_canvas_is_not_waited_for_inside_a_task(flow: Flow) -> None:
    with pytest.raises(RuntimeError, match="inside a task"):
        get(joins.delay("refused"))
    assert get(joins.delay("allowed")) == ["a()", "b()"]


# -- f.6 map, starmap, chunks --------------------------------------------------------------------------------------


def test_map_and_starmap_are_one_job_each(flow: Flow) -> None:
    for handle, value, name in (
        (double.map(iter([1, 2, 3])).delay(), [2, 4, 6], "pgqueue.map"),
        (add.starmap((n, n) for n in range(3)).delay(), [0, 2, 4], "pgqueue.starmap"),
    ):
        assert (get(handle), handle.name, handle.children) == (value, name, [])


def test_map_takes_nothing_from_what_comes_before_it(flow: Flow) -> None:
    assert get((t("a") | double.map([1, 2]) | total.s()).apply_async()) == 6
    assert get(double.map([1]).apply_async((5,))) == [2]


def test_map_fails_with_what_one_of_its_calls_raises(flow: Flow) -> None:
    with pytest.raises(ValueError, match="5 is odd"):
        get((direct.map([2, 5, 7]) | total.s()).apply_async())


def test_chunks_are_a_group_of_starmaps(flow: Flow) -> None:
    handle = add.chunks(((n, n) for n in range(5)), 2).apply_async()
    assert (type(handle), len(handle), handle[0].name) == (GroupResult, 3, "pgqueue.starmap")
    assert get(handle) == [[0, 2], [4, 6], [8]]
    assert get((add.chunks([(1, 1), (2, 2), (3, 3)], 2) | t("z")).apply_async()) == "z([[2,4],[6]])"


# -- f.7 Stamping --------------------------------------------------------------------------------------------------


class Numbered(StampingVisitor):
    """Gives each call the number of calls before it."""

    def __init__(self) -> None:
        self.number = 0

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        self.number += 1
        return {"number": self.number}


def test_a_visitor_stamps_every_call_its_links_and_its_errbacks(flow: Flow) -> None:
    failing = fail.s(tag="b").on_error(complain.s(tag="stamped"))
    canvas = chord([t("a").set(link=complain.s(tag="stamped")), failing], t("z"))
    body = canvas.stamp(Numbered(), shop="x").apply_async()
    assert ended(body) == ["FAILURE"]
    numbers = [one.stamps["number"] for one in (*body.parent, body)]
    assert len(set(numbers)) == 3
    assert len(flow.calls("stamped")) == 2
    query = "select headers #>> '{stamps,shop}' from pgqueue.result where kwargs ->> 'tag' = 'stamped'"
    assert flow.ask(query) == [("x",)] * 2


def test_stamps_stay_through_replacements_and_are_no_properties(flow: Flow) -> None:
    handle = chain(t("a"), kept.s()).stamp(customer=7).apply_async()
    assert get(handle) == {"stamps": {"customer": 7}, "properties": ["correlation_id", "priority"]}


def test_jobs_are_revoked_by_a_stamp(flow: Flow) -> None:
    """Celery broadcasts it; here SQL finds them."""
    handle = g("a", "b").stamp(order=11).apply_async(queue=NOBODY)
    kept_ = g("a").stamp(order=12).apply_async(queue=NOBODY)
    flow.ask("select pgqueue.revoke(id) from pgqueue.job where headers #>> '{stamps,order}' = '11'")
    assert [one.state for one in (*handle, *kept_)] == [State.REVOKED, State.REVOKED, State.PENDING]
    kept_.revoke()


# -- f.8 Results API -----------------------------------------------------------------------------------------------


def test_the_states_of_a_group_on_its_way(flow: Flow, gate: Callable[[], None]) -> None:
    handle = group(t("a"), gated.s(tag="b"), fail.s(tag="c")).apply_async()
    assert ended(handle[0], handle[2]) == ["SUCCESS", "FAILURE"]
    assert (handle.ready(), handle.waiting(), handle.failed(), handle.successful()) == (False, True, True, False)
    assert handle.completed_count() == 1
    with pytest.raises(ResultTimeout, match="1 of 3"):
        handle.get(timeout=0.1, propagate=False)
    gate()
    # The first in the order of the definition, which is not the first that failed.
    with pytest.raises(ValueError, match="c fails"):
        get(handle)
    values = get(handle, propagate=False)
    assert (values[:2], type(values[2])) == (["a()", "b()"], ValueError)
    assert (handle.ready(), handle.waiting(), handle.completed_count()) == (True, False, 2)


@pytest.mark.parametrize("method", ["get", "join", "join_native"])
def test_joining_a_group_calls_back_and_returns_the_values(flow: Flow, method: str) -> None:
    """Celery returns an empty list or None then; here the values are there as well."""
    handle = g("a", "b", "c").apply_async()
    heard: list[tuple[str, str]] = []
    values = getattr(handle, method)(timeout=PATIENCE, callback=lambda id_, value: heard.append((id_, value)))
    assert values == ["a()", "b()", "c()"]
    assert heard == list(zip(handle.as_list(), values, strict=True))
    assert sorted(handle.iterate(timeout=PATIENCE)) == values
    assert {id_: told["result"] for id_, told in handle.iter_native(timeout=PATIENCE)} == dict(heard)


def test_ends_of_several_canvases_are_awaited_together(flow: Flow) -> None:
    both = flow.app.ResultSet([c("a", "b").apply_async(), ch("cd", "e").apply_async(), t("f").delay()])
    assert get(both) == ["b(a())", "e([c(),d()])", "f()"]
    assert (both.completed_count(), both.successful()) == (3, True)


async def test_canvases_are_enqueued_and_awaited_from_coroutines(flow: Flow) -> None:
    pair = await g("a", "b").aapply_async()
    assert await pair.aget(timeout=PATIENCE) == ["a()", "b()"]
    assert await (await ch("ab", "c").adelay()).aget(timeout=PATIENCE) == "c([a(),b()])"
    await pair.asave()
    assert await flow.app.GroupResult.arestore(pair.id) == pair
    assert await pair.adelete()


# f.8 and g 29
def test_a_saved_group_is_restored_beside_the_handle_that_is_alive(flow: Flow, gate: Callable[[], None]) -> None:
    handle = (t("p") | group(t("a"), gated.s(tag="b"))).apply_async()
    assert isinstance(handle, GroupResult)
    assert flow.app.GroupResult.restore(handle.id) is None
    handle.save()
    again = flow.app.GroupResult.restore(handle.id)
    assert again is not None
    assert (again, again.parent, bool(again)) == (handle, handle.parent, True)
    assert again is not handle
    with pytest.raises(ResultTimeout):
        again.get(timeout=0.1)
    gate()
    assert get(again) == get(handle) == get(again) == ["a(p())", "b(p())"]
    assert again.delete()
    assert not handle.delete()
    assert flow.app.GroupResult.restore(handle.id) is None


@pytest.mark.parametrize(
    "make", [lambda: c("a", "b", "c"), lambda: ch("ab", "c") | t("d"), lambda: t("a") | group(t("b"), c("c", "d"))]
)
def test_a_handle_goes_through_json_with_all_before_it(flow: Flow, make: Callable[[], Any]) -> None:
    handle = make().apply_async()
    again = result_from_tuple(json.loads(json.dumps(handle.as_tuple())), flow.app)
    assert get(again) == get(handle)
    assert (again, again.parent, again.as_tuple()) == (handle, handle.parent, handle.as_tuple())


def test_what_came_of_a_canvas_is_walked(flow: Flow) -> None:
    pair = (t("a") | t("b") | group(t("c"), t("d"))).apply_async()
    assert get(pair) == ["c(b(a()))", "d(b(a()))"]
    second = pair.parent
    first = second.parent
    assert first.children == [second]
    assert sorted(second.children, key=str) == sorted(pair, key=str)
    assert [(node.id, value) for node, value in first.collect(timeout=PATIENCE)][:2] == [
        (first.id, "a()"),
        (second.id, "b(a())"),
    ]
    assert dict(first.collect(timeout=PATIENCE)) == {
        first: "a()",
        second: "b(a())",
        **dict(zip(pair, get(pair), strict=True)),
    }
    assert first.get_leaf() in get(pair)
    assert first.graph[first] == [second]
    assert first.graph.keys() == {first, second, *pair}
    assert next(iter(first.iterdeps())) == (None, first)
    assert (second == second.id, hash(second) == hash(flow.handle(second.id))) == (True, True)


def test_what_is_not_known_yet_of_a_canvas_is_said(flow: Flow, gate: Callable[[], None]) -> None:
    last = chain(t("a"), gated.s(tag="b"), t("c")).apply_async()
    first = last.parent.parent
    assert ended(first) == ["SUCCESS"]
    with pytest.raises(IncompleteStream):
        list(first.iterdeps())
    assert [node for _, node in first.iterdeps(intermediate=True)] == [first, last.parent]
    gate()
    assert [value for _, value in first.collect(timeout=PATIENCE, intermediate=True)][:1] == ["a()"]
    assert get(last) == "c(b(a()))"
    assert first.get_leaf() == "c(b(a()))"


def test_a_chord_is_walked_to_its_body(flow: Flow) -> None:
    body = ch("ab", "c").apply_async()
    get(body)
    last = flow.handle(body.id).parent
    assert last in list(body.parent)
    assert last.children == [body]
    assert last.get_leaf() == "c([a(),b()])"
    assert [one.children for one in body.parent if one != last] == [[]]


def test_errors_of_a_canvas_are_returned_if_they_are_not_to_be_raised(flow: Flow) -> None:
    body = chord([fail.s(tag="a")], t("z")).apply_async()
    for handle, kind in ((body, ChordError), (body.parent[0], ValueError)):
        assert type(get(handle, propagate=False)) is kind
        with pytest.raises(kind):
            handle.maybe_throw()
        assert type(handle.maybe_throw(propagate=False)) is kind
    with pytest.raises(ValueError, match="a fails"):
        body.parent.maybe_throw()


def test_a_last_whose_result_is_ignored_is_not_waited_for(flow: Flow, gate: Callable[[], None]) -> None:
    handle = chain(gated.s(tag="a"), quiet.s(tag="b")).apply_async()
    assert handle.get(timeout=0) is None
    gate()
    assert get(handle.parent) == "a()"


def test_forgetting_takes_all_that_comes_before(flow: Flow) -> None:
    body = (t("a") | ch("bc", "d") | t("e")).apply_async()
    get(body)
    line = [body, body.parent, *body.parent.parent, body.parent.parent.parent]
    assert [flow.handle(one.id).exists() for one in line] == [True] * 5
    assert body.forget() is True
    assert [flow.handle(one.id).exists() for one in line] == [False] * 5
    pair = g("a", "b").apply_async()
    get(pair)
    pair.forget()
    assert [one.state for one in pair] == [State.UNKNOWN] * 2


# -- f.9 Ids -------------------------------------------------------------------------------------------------------


def test_parents_and_roots_of_a_chain(flow: Flow) -> None:
    last = c("a", "b", "c").apply_async()
    get(last)
    first, second = last.parent.parent, last.parent
    assert [mine(flow, one) for one in (first, second, last)] == [
        (None, first.id),
        (first.id, first.id),
        (second.id, first.id),
    ]
    again = flow.handle(last.id)
    assert (again.parent, again.root, again.parent.parent, again.root.parent) == (second, first, first, None)


def test_parents_and_roots_of_groups_and_chords(flow: Flow) -> None:
    last = (t("a") | g("b", "c") | t("d") | g("e", "f")).apply_async()
    get(last)
    body = last.parent
    header, first = body.parent, body.parent.parent
    assert {mine(flow, one) for one in header} == {(first.id, first.id)}
    parent, root = mine(flow, body)
    assert (parent in header.as_list(), root) == (True, first.id)
    assert {mine(flow, one) for one in last} == {(body.id, first.id)}
    alone = g("a", "b").apply_async()
    get(alone)
    assert {mine(flow, one) for one in alone} == {(None, alone.id)}
    chord_ = ch("ab", "c").apply_async()
    get(chord_)
    assert {mine(flow, one) for one in chord_.parent} == {(None, chord_.parent.id)}
    assert mine(flow, chord_)[1] == chord_.parent.id


def test_the_parent_of_a_body_is_the_member_that_ended_last(flow: Flow, gate: Callable[[], None]) -> None:
    body = chord([gated.s(tag="a"), t("b"), t("c")], t("z")).apply_async()
    ended(*body.parent[1:])
    gate()
    get(body)
    assert flow.handle(body.id).parent == body.parent[0]


def test_parents_and_roots_of_links_and_errbacks(flow: Flow) -> None:
    last = chain(t("a"), t("b").set(link=complain.s(tag="link id")), fail.s(tag="c"))
    last = last.on_error(complain.s(tag="errback id")).apply_async()
    ended(last)
    first = last.parent.parent
    query = "select parent_id::text, root_id::text from pgqueue.result where kwargs ->> 'tag' = %s"
    flow.calls("link id"), flow.calls("errback id")
    assert flow.ask(query, "link id") == [(last.parent.id, first.id)]
    assert flow.ask(query, "errback id") == [(last.id, first.id)]


def test_a_canvas_of_a_task_has_the_root_of_the_task_and_it_as_parent(flow: Flow) -> None:
    handle = chain(t("a"), inner.s()).apply_async()
    own, root, first, last = get(handle)
    assert (own, root) == (handle.id, handle.parent.id)
    get(flow.handle(last))
    assert mine(flow, flow.handle(first)) == (own, root)
    assert mine(flow, flow.handle(last)) == (first, root)
    assert flow.handle(own).children == [first]


def test_root_and_parent_may_be_said(flow: Flow) -> None:
    outer = t("a").delay()
    get(outer)
    last = c("b", "c").apply_async(root_id=outer.id, parent_id=outer.id)
    get(last)
    assert mine(flow, last.parent) == (outer.id, outer.id)
    assert mine(flow, last) == (last.parent.id, outer.id)
    assert outer.children == [last.parent]


# -- g 18: eager runs stay eager -----------------------------------------------------------------------------------


def test_a_canvas_that_runs_here_sends_nothing(flow: Flow) -> None:
    canvas = chord([c("a", "b"), t("c")], t("d").set(link=t("e")))
    handle = canvas.apply(link=t("f"))
    assert handle.get() == "d([b(a()),c()])"
    ids = [handle.id, *handle.parent.as_list(), *(child.id for child in handle.children)]
    assert len(ids) == 5
    assert [flow.handle(id_).exists() for id_ in ids] == [False] * 5


# -- g 24: what is revoked ends what waits for it ------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_link_that_is_revoked_ends_the_rest(flow: Flow, number: int) -> None:
    """Celery leaves the rest PENDING. An errback is for a failure, which this is not, there and here."""
    canvas = chain(*(t(tag, queue=NOBODY) for tag in "abc"))
    last = canvas.on_error(complain.s(tag=f"revoked {number}")).apply_async()
    line = [last.parent.parent, last.parent, last]
    assert line[number].revoke() == State.REVOKED
    assert [one.state for one in line[number:]] == [State.REVOKED] * (3 - number)
    for one in line[number:]:
        with pytest.raises(TaskRevokedError):
            get(one)
    assert flow.calls(f"revoked {number}") == []
    assert [one.state for one in line[:number]] == [State.PENDING] * number
    line[0].revoke()


def test_a_member_that_is_revoked_fails_the_body_when_the_others_have_ended(
    flow: Flow, gate: Callable[[], None]
) -> None:
    canvas = chord([t("a", queue=NOBODY), gated.s(tag="b")], t("z").on_error(complain.s(tag="revoked member")))
    last = (canvas | t("y")).apply_async()
    body = last.parent
    assert body.parent[0].revoke() == State.REVOKED
    assert body.state == State.PENDING
    gate()
    for handle in (body, last):
        with pytest.raises(ChordError, match=f"{body.parent[0].id} is REVOKED"):
            get(handle)
    with pytest.raises(TaskRevokedError):
        get(body.parent)
    assert [id_ for id_, _ in flow.calls("revoked member")] == [body.id]


def test_a_body_that_is_revoked_does_not_run(flow: Flow, gate: Callable[[], None]) -> None:
    last = (chord([gated.s(tag="a"), t("b")], counted.s(tag="revoked body")) | t("y")).apply_async()
    assert last.parent.revoke() == State.REVOKED
    for handle in (last.parent, last):
        with pytest.raises(TaskRevokedError):
            get(handle, follow_parents=False)
    gate()
    assert ended(*last.parent.parent) == ["SUCCESS"] * 2
    assert times(flow, "revoked body") == 0


def test_a_revoked_group_ends_in_every_member(flow: Flow) -> None:
    handle = (t("a") | t("b", queue=NOBODY) | g("c", "d")).apply_async()
    assert handle.revoke() == [State.REVOKED] * 2
    with pytest.raises(TaskRevokedError):
        get(handle)
    handle.parent.revoke()


# -- g 26: members are counted once, whatever dies -----------------------------------------------------------------


def test_a_body_comes_once_if_the_process_of_a_member_is_killed(flow: Flow) -> None:
    body = chord([dying.s(tag="a"), t("b"), dying.s(tag="c")], counted.s(tag="after a process")).apply_async()
    assert get(body) == "after a process([a(),b(),c()])"
    assert [one.crashes for one in body.parent] == [1, 0, 1]
    assert (times(flow, "after a process"), body.attempt) == (1, 1)


def test_a_value_counts_after_its_result_is_gone(flow: Flow, gate: Callable[[], None]) -> None:
    """Celery loses the chord where results expire before it ends."""
    body = chord([t("a"), gated.s(tag="b")], t("z")).apply_async()
    assert get(body.parent[0]) == "a()"
    assert body.parent[0].forget()
    gate()
    assert get(body) == "z([a(),b()])"
    with pytest.raises(UnknownJob):
        get(body.parent)


def test_a_body_comes_once_if_the_worker_is_killed_in_the_middle(flow: Flow, gate: Callable[[], None]) -> None:
    """One member has counted, one runs, one waits; another worker goes on."""
    frail = {"queue": "frail"}
    header = [counted.s(tag="first").set(**frail), gated.s(tag="b").set(**frail), counted.s(tag="last").set(**frail)]
    last = (chord(header, counted.s(tag="body").set(**frail)) | t("z")).apply_async()
    body = last.parent
    worker = flow.work("-P", "prefork", "-c", "1", "-Q", "frail", **SOON)
    flow.until(lambda: body.parent[1].state == State.STARTED)
    assert (get(body.parent[0]), body.state) == ("first()", State.PENDING)
    flow.kill(worker)
    gate()
    other = flow.work("-P", "prefork", "-c", "2", "-Q", "frail", **SOON)
    assert get(last) == "z(body([first(),b(),last()]))"
    assert body.parent[1].crashes == 1
    assert [times(flow, tag) for tag in ("first", "last", "body")] == [1, 1, 1]
    assert [one.attempt for one in (body.parent[0], body)] == [1, 1]
    flow.kill(other)


def test_a_link_whose_worker_is_killed_runs_again_and_the_rest_once(flow: Flow) -> None:
    last = chain(counted.s(tag="before"), dying.s(tag="b"), counted.s(tag="behind")).apply_async()
    assert get(last) == "behind(b(before()))"
    assert [times(flow, tag) for tag in ("before", "behind")] == [1, 1]


AGAIN: dict[str, tuple[Callable[[], Any], str]] = {
    "a header that failed": (lambda: chord([t("a"), fail.s(tag="b")], t("z")), "b fails"),
    "a body that failed": (lambda: chord([t("a"), t("b")], fail.s(tag="z")), "z fails"),
    "in a chain": (lambda: chord([t("a"), fail.s(tag="b")], t("y")) | t("z"), "b fails"),
    "a chain that failed": (lambda: chain(fail.s(tag="a"), t("b")), "a fails"),
    "what was replaced": (lambda: turned.s(into="failing chord") | t("z"), "y fails"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_has_failed_ends_again_when_it_is_enqueued_again_with_its_ids(flow: Flow, name: str) -> None:
    make, says = AGAIN[name]
    canvas = make()
    ids = canvas.freeze().as_list()
    for _ in range(2):
        handle = canvas.apply_async()
        assert handle.as_list() == ids
        with pytest.raises((ChordError, ValueError), match=says):
            get(handle, follow_parents=False)


def test_what_has_succeeded_counts_at_once_when_it_is_enqueued_again_with_its_ids(flow: Flow) -> None:
    canvas = chord([counted.s(tag="frozen"), t("b")], counted.s(tag="frozen body"))
    canvas.freeze()
    assert [get(canvas.apply_async()) for _ in range(2)] == ["frozen body([frozen(),b()])"] * 2
    assert (times(flow, "frozen"), times(flow, "frozen body")) == (1, 1)


# -- g 28: a body is there once ------------------------------------------------------------------------------------


def test_no_member_carries_the_body(flow: Flow) -> None:
    text = "x" * 1000
    inside = chord([t("a", queue=NOBODY), t("b", queue=NOBODY)], mark.s(text, tag="inside"))
    body = chord([inside, t("c", queue=NOBODY)], mark.s(text, tag="outside")).apply_async()
    query = """
        select 'job', count(*), sum((job::text like %(text)s)::int) from pgqueue.job where queue = 'nobody'
        union all
        select 'step', count(*), sum((call::text like %(text)s)::int) from pgqueue.step"""
    with flow.app.database.connection() as connection:
        assert connection.execute(query, {"text": f"%{text}%"}).fetchall() == [("job", 3, 0), ("step", 2, 2)]
    connected = [str(id_) for (id_,) in flow.ask("select id from pgqueue.job where queue = %s", NOBODY)]
    for id_ in connected:
        flow.handle(id_).revoke()
    with pytest.raises(ChordError):
        get(body)


# -- g 29 and 30: what Celery's own tests expect to fail -----------------------------------------------------------

KNOWN: dict[str, tuple[Callable[[], Any], Any]] = {
    "a lone group in a chain": (lambda: chain(g("a", "b")), ["a()", "b()"]),
    "a lone group of one in a chain": (lambda: chain(g("a")), "a()"),
    "a chord whose body is a chain in a group": (
        lambda: group(chord([t("a"), t("b")], c("c", "d"))),
        ["d(c([a(),b()]))"],
    ),
    "a group of groups of one": (lambda: group(g("a"), group(g("b"))), ["a()", "b()"]),
    "groups in a chain of chains": (lambda: chain(chain(g("a", "b")), chain(g("c", "d"))), "cd"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_it_ends_and_so_does_its_copy_of_json(flow: Flow, name: str) -> None:
    make, value = KNOWN[name]
    if value == "cd":
        value = ["c([a(),b()])", "d([a(),b()])"]
    for canvas in (make(), signature(json.loads(json.dumps(dict(make()))))):
        assert get(canvas.apply_async()) == value


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(fail.s(tag="a"), g("b", "c")),
        lambda: chain(t("a"), fail.s(tag="b"), g("c", "d")),
        lambda: chain(fail.s(tag="a"), g("b", "c"), g("d", "e")),
        lambda: chain(fail.s(tag="a"), group(c("b", "c"), ch("de", "f"))),
    ],
)
def test_a_group_after_a_failure_ends_with_it(flow: Flow, make: Callable[[], Any]) -> None:
    handle = make().apply_async()
    with pytest.raises(ValueError, match="fails"):
        get(handle)
    for one in handle:
        with pytest.raises(ValueError, match="fails"):
            get(one, follow_parents=False)


# -- and at the end ------------------------------------------------------------------------------------------------


def test_nothing_is_left_over(flow: Flow) -> None:
    left = "select (select count(*) from pgqueue.job), (select count(*) from pgqueue.step)"
    flow.until(lambda: flow.ask(left) == [(0, 0)])
    # What `pgqueue workflows retry` needs is kept as long as the results of what has not succeeded.
    # Parts of wide headers are left to prune.
    flow.ask("select pgqueue.prune('1 hour')")
    parts = """
        select p.state from pgqueue.part p left join pgqueue.result r on r.id = p.step
         where coalesce(r.state, 'SUCCESS') = 'SUCCESS'"""
    assert flow.ask(parts) == []
