"""Every shape of a canvas with real workers: all are enqueued at once, and each ends as it should, or the test fails.

Values are texts that say what was called with what (`apps/flows.py`), so one value shows the order of all results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flowing import PATIENCE, c, ch, flowing, flows, g, t
from flows import (
    add,
    complain,
    double,
    fail,
    ignored,
    mark,
    more,
    quiet,
    rejected,
    retried,
    stamped,
    total,
    turned,
)

from pgqueue import GroupResult, PgQueue, TaskRejectedError, TaskRevokedError, chain, chord, chunks, group, signature
from pgqueue.errors import ChordError


@dataclass(frozen=True)
class Case:
    """A canvas, and what `get()` returns or raises."""

    make: Callable[[], Any]
    value: Any = None
    error: type[Exception] | None = None
    says: str = ""


CASES: dict[str, Case] = {
    # -- what | makes
    "t|t": Case(lambda: t("a") | t("b"), "b(a())"),
    "t|g": Case(lambda: t("a") | g("b", "c"), ["b(a())", "c(a())"]),
    "t|g1": Case(lambda: t("a") | g("b"), "b(a())"),
    "t|c": Case(lambda: t("a") | c("b", "c"), "c(b(a()))"),
    "t|ch": Case(lambda: t("a") | ch("bc", "d"), "d([b(a()),c(a())])"),
    "g|t": Case(lambda: g("a", "b") | t("c"), "c([a(),b()])"),
    "g|g": Case(lambda: g("a", "b") | g("c", "d"), ["c([a(),b()])", "d([a(),b()])"]),
    "g|g1": Case(lambda: g("a", "b") | g("c"), ["c([a(),b()])"]),
    "g|c": Case(lambda: g("a", "b") | c("c", "d"), "d(c([a(),b()]))"),
    "g|ch": Case(lambda: g("a", "b") | ch("cd", "e"), "e([c([a(),b()]),d([a(),b()])])"),
    "g1|t": Case(lambda: g("a") | t("b"), "b([a()])"),
    "c|t": Case(lambda: c("a", "b") | t("c"), "c(b(a()))"),
    "c|g": Case(lambda: c("a", "b") | g("c", "d"), ["c(b(a()))", "d(b(a()))"]),
    "c|c": Case(lambda: c("a", "b") | c("c", "d"), "d(c(b(a())))"),
    "c|ch": Case(lambda: c("a", "b") | ch("cd", "e"), "e([c(b(a())),d(b(a()))])"),
    "ch|t": Case(lambda: ch("ab", "c") | t("d"), "d(c([a(),b()]))"),
    "ch|g": Case(lambda: ch("ab", "c") | g("d", "e"), ["d(c([a(),b()]))", "e(c([a(),b()]))"]),
    "ch|c": Case(lambda: ch("ab", "c") | c("d", "e"), "e(d(c([a(),b()])))"),
    "ch|ch": Case(lambda: ch("ab", "c") | ch("de", "f"), "f([d(c([a(),b()])),e(c([a(),b()]))])"),
    "cg|t": Case(lambda: (t("a") | g("b", "c")) | t("d"), "d([b(a()),c(a())])"),
    "cg|g": Case(lambda: (t("a") | g("b", "c")) | g("d", "e"), ["d([b(a()),c(a())])", "e([b(a()),c(a())])"]),
    "cch|t": Case(lambda: (t("a") | ch("bc", "d")) | t("e"), "e(d([b(a()),c(a())]))"),
    # -- order and nesting (rules 27, 28, 30)
    "nested groups": Case(lambda: group(t("a"), g("b", "c"), t("d")), ["a()", "b()", "c()", "d()"]),
    "nested groups in a header": Case(
        lambda: chord([t("a"), g("b", "c", "d"), t("e")], t("z")), "z([a(),b(),c(),d(),e()])"
    ),
    "a group ends a chain": Case(lambda: t("a") | group(t("b"), g("c", "d")), ["b(a())", "c(a())", "d(a())"]),
    "a chain with a group in a header": Case(
        lambda: chord([t("a") | g("b", "c"), t("d")], t("z")), "z([[b(a()),c(a())],d()])"
    ),
    "a chord in a header": Case(lambda: chord([ch("ab", "c"), t("d")], t("z")), "z([c([a(),b()]),d()])"),
    "three chords deep": Case(
        lambda: chord([chord([ch("ab", "c"), t("d")], t("e")), t("f")], t("z")), "z([e([c([a(),b()]),d()]),f()])"
    ),
    "a chain in a group": Case(lambda: group(c("a", "b"), t("c")), ["b(a())", "c()"]),
    "a chord whose body is a chain": Case(lambda: chord(g("a", "b"), c("c", "d")), "d(c([a(),b()]))"),
    "a chord whose body is a group": Case(lambda: chord(g("a", "b"), g("c", "d")), ["c([a(),b()])", "d([a(),b()])"]),
    "a chord whose body is a chord": Case(lambda: chord(g("a", "b"), ch("cd", "e")), "e([c([a(),b()]),d([a(),b()])])"),
    "a chord with a chain as body in a group": Case(
        lambda: group(chord(g("a", "b"), c("c", "d")), t("e")), ["d(c([a(),b()]))", "e()"]
    ),
    "groups after groups": Case(lambda: g("a", "b") | g("c", "d") | t("e"), "e([c([a(),b()]),d([a(),b()])])"),
    "a generator": Case(lambda: group(t(tag) for tag in "abc"), ["a()", "b()", "c()"]),
    "a generator as header": Case(lambda: chord((t(tag) for tag in "abc"), t("z")), "z([a(),b(),c()])"),
    "a header of one": Case(lambda: chord([t("a")], t("z")), "z([a()])"),
    "an empty header": Case(lambda: chord([], t("z")), "z([])"),
    "an empty group in the middle": Case(lambda: chain(t("a"), group(), t("b")), "b(a())"),
    "a chain of one": Case(lambda: chain(t("a")), "a()"),
    "immutable": Case(lambda: t("a") | mark.si(tag="b") | t("c"), "c(b())"),
    "an immutable body": Case(lambda: chord(g("a", "b"), mark.si(tag="c")), "c()"),
    "json": Case(lambda: signature(dict(chord([t("a"), c("b", "c")], t("z")))), "z([a(),c(b())])"),
    # -- maps
    "map": Case(lambda: double.map([1, 2, 3]), [2, 4, 6]),
    "starmap": Case(lambda: add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": Case(lambda: add.chunks([(n, n) for n in range(5)], 2), [[0, 2], [4, 6], [8]]),
    "a map in a chain": Case(lambda: double.map([1, 2, 3]) | total.s(), 12),
    # -- failures (rules 24, 27b, 29)
    "a chain fails at its first": Case(lambda: fail.s(tag="a") | t("b") | t("c"), error=ValueError, says="a fails"),
    "a chain fails in the middle": Case(lambda: t("a") | fail.s(tag="b") | t("c"), error=ValueError, says="b fails"),
    "a header fails": Case(lambda: chord([t("a"), fail.s(tag="b")], t("z")), error=ChordError, says="b fails"),
    "two of a header fail": Case(
        lambda: chord([t("a"), fail.s(tag="b"), fail.s(tag="c")], t("z")), error=ChordError, says="b fails"
    ),
    "a header's chain fails": Case(
        lambda: chord([fail.s(tag="a") | t("b"), t("c")], t("z")), error=ChordError, says="a fails"
    ),
    "a nested chord fails": Case(
        lambda: chord([chord([fail.s(tag="a")], t("b")), t("c")], t("z")), error=ChordError, says="ChordError"
    ),
    "what comes before a chord fails": Case(lambda: fail.s(tag="a") | ch("bc", "z"), error=ValueError, says="a fails"),
    "a group before a group fails": Case(
        lambda: group(fail.s(tag="a"), t("b")) | g("c", "d"), error=ChordError, says="a fails"
    ),
    "a body fails": Case(lambda: chord(g("a", "b"), fail.s(tag="z")), error=ValueError, says="z fails"),
    "a member is rejected": Case(lambda: chord([rejected.s(), t("a")], t("z")), error=ChordError, says="REJECTED"),
    "a link is rejected": Case(lambda: rejected.s() | t("a"), error=TaskRejectedError),
    "a member has expired": Case(lambda: chord([t("a", expires=0), t("b")], t("z")), error=ChordError, says="REVOKED"),
    "a link has expired": Case(lambda: t("a") | t("b", expires=0) | t("c"), error=TaskRevokedError),
    "a member is ignored": Case(lambda: chord([ignored.s(), t("a")], t("z")), "z([None,a()])"),
    # -- inside
    "results that are not kept": Case(lambda: chord([quiet.s(tag="a"), t("b")], t("z")), "z([a(),b()])"),
    "retries": Case(lambda: retried.s(tag="a") | t("b"), "b(a())"),
    "retries in a header": Case(lambda: chord([retried.s(tag="a"), t("b")], retried.s(tag="z")), "z([a(),b()])"),
    "replaced by a task": Case(lambda: turned.s("i", into="task") | t("b"), "b(x(i))"),
    "replaced by a chain": Case(lambda: turned.s("i", into="chain") | t("b"), "b(y(x(i)))"),
    "replaced by a group": Case(lambda: turned.s("i", into="group") | t("b"), "b([x(i),y(i)])"),
    "replaced by a chord": Case(lambda: turned.s("i", into="chord") | t("b"), "b(z([x(i),y(i)]))"),
    "replaced in a header": Case(
        lambda: chord([turned.s("i", into="chord"), t("b")], t("w")), "w([z([x(i),y(i)]),b()])"
    ),
    "replaced by a group in a header": Case(
        lambda: chord([turned.s("i", into="chain of groups"), t("b")], t("w")), "w([[y(x(i)),z(x(i))],b()])"
    ),
    "replaced by what fails": Case(
        lambda: turned.s("i", into="failing chord") | t("b"), error=ChordError, says="y fails"
    ),
    "replaced by what fails in a header": Case(
        lambda: chord([turned.s("i", into="failing chord"), t("b")], t("w")), error=ChordError, says="ChordError"
    ),
    "added to a chord": Case(lambda: chord([more.s(), t("a")], t("z")), "z([adds,a(),more()])"),
    "priorities": Case(lambda: t("a", priority=0) | t("b", priority=9), "b(a())"),
    "a countdown in the middle": Case(lambda: t("a") | t("b", countdown=0.2) | t("c"), "c(b(a()))"),
}


@dataclass
class Played:
    """What has become of all the cases."""

    app: PgQueue
    handles: dict[str, Any]


@pytest.fixture(scope="module")
def played(pg_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Enqueue everything, and start two workers."""
    with flowing(pg_server, tmp_path_factory.mktemp("canvas")) as flow:
        handles = {name: case.make().apply_async() for name, case in CASES.items()}
        flow.work("-P", "prefork", "-c", "2")
        yield Played(flow.app, handles)


@pytest.mark.parametrize("name", CASES)
def test_it_ends_as_it_should(played: Played, name: str) -> None:
    case, handle = CASES[name], played.handles[name]
    if case.error is None:
        assert handle.get(timeout=PATIENCE) == case.value
    else:
        with pytest.raises(case.error, match=case.says or None):
            options = {} if isinstance(handle, GroupResult) else {"follow_parents": False}
            handle.get(timeout=PATIENCE, **options)


def test_nothing_is_left(played: Played) -> None:
    """After all have ended there is neither a job nor a step."""
    for handle in played.handles.values():
        handle.get(timeout=PATIENCE, propagate=False)
    with played.app.database.connection() as connection:
        left = connection.execute("select (select count(*) from pgqueue.job), (select count(*) from pgqueue.step)")
        assert left.fetchone() == (0, 0)


def test_errbacks_run_once_for_what_has_failed(played: Played) -> None:
    errback = complain.s(tag="once")
    failing = chain(fail.s(tag="a"), t("b"), t("c")).on_error(errback).apply_async()
    body = chord([t("a"), fail.s(tag="b"), fail.s(tag="c")], t("z").on_error(errback)).apply_async()
    for handle in (failing, body):
        handle.get(timeout=PATIENCE, propagate=False)
    query = "select args ->> 0 from pgqueue.result where task = 'flows.complain'"
    with played.app.database.connection() as connection:
        for _ in range(200):
            found = [row[0] for row in connection.execute(query)]
            if len(found) == 2:
                break
            list(connection.notifies(timeout=0.05))
        assert sorted(found) == sorted([failing.parent.parent.id, body.id])


FOLLOWERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "a chain": (lambda: c("b", "c"), "c(b({}))"),
    "a group": (lambda: g("b", "c"), ["b({})", "c({})"]),
    "a chord": (lambda: ch("bc", "d"), "d([b({}),c({})])"),
    "a chain with a chord": (lambda: t("b") | g("c", "d") | t("e"), "e([c(b({})),d(b({}))])"),
    "a chord in a header": (lambda: chord([ch("bc", "d"), t("e")], t("f")), "f([d([b({}),c({})]),e({})])"),
    "a chord whose body is a group": (
        lambda: chord(g("b", "c"), g("d", "e")),
        ["d([b({}),c({})])", "e([b({}),c({})])"],
    ),
    "a chain that takes nothing": (lambda: mark.si(tag="b") | t("c"), "c(b())"),
    "a chain that is replaced": (lambda: turned.s(into="chord") | t("b"), "b(z([x({}),y({})]))"),
    "an empty header": (lambda: chord([], t("z")), "z([])"),
}


def waited(handle: Any) -> Any:
    """The value of what the commit of another job makes: until then nobody has its id."""
    members = list(handle) if isinstance(handle, GroupResult) else [handle]
    with flows.app.database.connection() as connection:
        for _ in range(600):
            if all(member.exists() for member in members):
                break
            list(connection.notifies(timeout=0.05))
    return handle.get(timeout=PATIENCE)


def _said(value: Any, first: str) -> Any:
    return [_said(part, first) for part in value] if isinstance(value, list) else value.replace("{}", first)


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_canvas_follows_a_success(played: Played, name: str) -> None:
    make, value = FOLLOWERS[name]
    canvas = make()
    handle = canvas.freeze()
    t("a").apply_async(link=[canvas, t("beside")])
    assert waited(handle) == _said(value, "a()")


@pytest.mark.parametrize("name", ["a chain", "a group", "a chord", "a chord in a header"])
def test_a_canvas_follows_a_failure(played: Played, name: str) -> None:
    make, value = FOLLOWERS[name]
    canvas = make()
    handle = canvas.freeze()
    first = fail.s(tag="a").on_error(canvas).delay()
    assert waited(handle) == _said(value, first.id)


def test_a_canvas_follows_a_body_that_cannot_run(played: Played) -> None:
    canvas = complain.s() | t("b")
    handle = canvas.freeze()
    body = chord([fail.s(tag="a"), t("a")], t("z").on_error(canvas)).delay()
    assert waited(handle) == f"b({body.id})"


def test_a_link_that_fails_ends_what_is_behind_it(played: Played) -> None:
    canvas = chain(fail.s(tag="b"), t("c"), t("d"))
    handle = canvas.freeze()
    t("a").apply_async(link=canvas)
    with pytest.raises(ValueError, match="b fails"):
        waited(handle)


def test_two_that_are_followed_by_one_canvas_have_a_run_each(played: Played) -> None:
    """It has no ids before it is enqueued, so each call gives it others."""
    canvas = chain(complain.s(), t("c"))
    handle = group(fail.s(tag="a"), fail.s(tag="b")).on_error(canvas).apply_async()
    query = """
        select last.value #>> '{}' from pgqueue.result first join pgqueue.result last on last.parent_id = first.id
         where first.parent_id = %s and last.task = 'flows.mark'"""
    with played.app.database.connection() as connection:
        for member in handle:
            for _ in range(400):
                found = connection.execute(query, (member.id,)).fetchall()
                if found:
                    break
                list(connection.notifies(timeout=0.05))
            assert found == [(f"c({member.id})",)]


def test_stamps_are_in_request_and_result(played: Played) -> None:
    handle = chain(t("a"), stamped.s(), stamped.s()).stamp(customer=7).apply_async()
    assert handle.get(timeout=PATIENCE) == {"customer": 7}
    assert handle.stamps == handle.parent.stamps == {"customer": 7}
    assert handle.headers == {"tenant": 1, "stamped_headers": ["customer"], "stamps": {"customer": 7}}
    assert t("a").delay().stamps == {}


def test_chunks_is_importable_and_a_group(played: Played) -> None:
    assert isinstance(chunks(add.s(), [(1, 2)], 1).group(), group)
