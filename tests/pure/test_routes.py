"""Routes, queues and annotations of the configuration: each shape, what wins, and what is refused when it is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pgqueue.errors import InvalidOption
from pgqueue.routes import Router, annotate, check_annotations, queue_names


def nothing_to_import(path: str) -> object:
    raise AssertionError(f"{path} is imported")


def routed(routes: object, name: str, options: Mapping[str, object] | None = None) -> dict[str, Any]:
    return Router(routes, nothing_to_import).route(name, (), {}, options or {})


def to_feeds(name: str, args: object, kwargs: object, options: object, task: object = None, **kw: object) -> object:
    return "feeds" if name.startswith("feed.") else None


# -- what a route may look like -------------------------------------------------------------------------------------

FEEDS = {"queue": "feeds"}


@pytest.mark.parametrize(
    "routes",
    [
        {"feed.fetch": "feeds"},
        {"feed.fetch": {"queue": "feeds"}},
        {"feed.*": "feeds"},
        {"*.fetc?": "feeds"},
        {"feed.[a-f]*": "feeds"},
        {re.compile(r"feed\.(fetch|parse)"): "feeds"},
        [{"other": "x"}, {"feed.*": "feeds"}],
        ({"other": "x"}, {"feed.*": "feeds"}),
        [("other", "x"), ("feed.*", {"queue": "feeds"})],
        [["feed.*", "feeds"]],
        ([("feed.*", "feeds"), (re.compile("video"), "x")],),
        [to_feeds, ("feed.*", "never")],
        [lambda name, args, kwargs, options, task=None, **kw: None, {"feed.*": "feeds"}],
        to_feeds,
        [to_feeds],
        (to_feeds,),
        {"feed.*": {"queue": "feeds", "priority": None, "exchange": None}},
    ],
)
def test_every_shape_of_a_route_finds_the_queue(routes: object) -> None:
    assert routed(routes, "feed.fetch") == FEEDS
    assert routed(routes, "shop.add") == {}


@pytest.mark.parametrize("routes", [None, {}, [], (), [{}]])
def test_no_routes_leave_a_call_as_it_is(routes: object) -> None:
    assert routed(routes, "feed.fetch") == {}
    assert routed(routes, "feed.fetch", {"queue": "x"}) == {"queue": "x"}
    assert bool(Router(routes, nothing_to_import)) is (routes == [{}] or routes == {})


def test_a_path_is_imported_at_the_first_call_and_once() -> None:
    imported: list[str] = []

    def import_(path: str) -> object:
        imported.append(path)
        return to_feeds

    router = Router(["shop.routes.route", "shop.routes:other"], import_)
    assert imported == []
    for _ in range(3):
        assert router.route("feed.fetch", (), {}, {}) == FEEDS
    assert imported == ["shop.routes.route"]
    assert router.route("shop.add", (), {}, {}) == {}
    assert imported == ["shop.routes.route", "shop.routes:other"]


def test_a_router_that_cannot_be_imported_is_asked_for_again() -> None:
    def import_(path: str) -> object:
        raise LookupError(path)

    router = Router("shop.routes.route", import_)
    for _ in range(2):
        with pytest.raises(LookupError, match=r"shop\.routes\.route"):
            router.route("a", (), {}, {})


@pytest.mark.parametrize("wrong", [7, None, type("Router", (), {}), "text"])
def test_a_path_that_leads_to_no_function_is_an_error_that_names_it(wrong: object) -> None:
    with pytest.raises(InvalidOption, match=r"router shop\.routes\.route must be a plain function"):
        Router("shop.routes.route", lambda path: wrong).route("a", (), {}, {})


# -- what wins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "queue"),
    [
        ({"*": "all", "feed.*": "feeds", "feed.fetch": "exact"}, "exact"),  # an exact name, wherever it stands
        ({"feed.*": "feeds", "*": "all"}, "feeds"),  # patterns in their order
        ({"*": "all", "feed.*": "feeds"}, "all"),
        ({re.compile("feed"): "compiled", "feed.*": "glob"}, "compiled"),
        ([("*", "all"), ("feed.fetch", "exact")], "exact"),  # pairs are one mapping
        ([{"*": "all"}, {"feed.fetch": "exact"}], "all"),  # mappings are asked one by one
        ([to_feeds, {"feed.fetch": "exact"}], "feeds"),
        ([{"feed.fetch": "exact"}, to_feeds], "exact"),
        ({re.compile("fetch"): "inside", "feed.*": "feeds"}, "feeds"),  # a pattern matches from the beginning
        ({"FEED.*": "capitals", "feed.*": "feeds"}, "feeds"),
        ({"feed.fetc": "part", "feed.fetch*": "feeds"}, "feeds"),
    ],
)
def test_the_first_route_that_fits_wins_and_an_exact_name_before_patterns(routes: object, queue: str) -> None:
    for _ in range(2):
        assert routed(routes, "feed.fetch") == {"queue": queue}


@pytest.mark.parametrize(
    ("route", "options", "expected"),
    [
        ({"queue": "a", "priority": 3}, {}, {"queue": "a", "priority": 3}),
        ({"queue": "a", "priority": 3}, {"queue": "b"}, {"queue": "b", "priority": 3}),
        ({"queue": "a"}, {"queue": None, "priority": None}, {"queue": "a"}),
        ({"queue": "a"}, {"priority": 0}, {"queue": "a", "priority": 0}),
        ({"ignore_result": True}, {"ignore_result": False}, {"ignore_result": False}),
        ({"countdown": 5}, {"eta": "later"}, {"eta": "later"}),
        ({"countdown": 5}, {"countdown": 1}, {"countdown": 1}),
        ({"expires": 60, "time_limit": 5}, {"task_id": "x"}, {"expires": 60, "time_limit": 5, "task_id": "x"}),
    ],
)
def test_what_a_call_says_wins_over_its_route(route: object, options: Any, expected: object) -> None:
    before = dict(options)
    assert routed({"feed.*": route}, "feed.fetch", options) == expected
    assert options == before


def test_an_answer_may_be_changed_without_harm() -> None:
    given = {"queue": "feeds"}
    router = Router({"feed.*": given}, nothing_to_import)
    router.route("feed.fetch", (), {}, {})["queue"] = "x"
    given["queue"] = "y"
    assert router.route("feed.fetch", (), {}, {}) == FEEDS


def test_a_router_is_told_everything_and_cannot_change_the_call() -> None:
    seen: list[object] = []

    def route(name: str, args: object, kwargs: object, options: Any, task: object = None, **kw: object) -> object:
        seen.append((name, args, kwargs, dict(options), task))
        options["queue"] = "x"
        return {"queue": "feeds", "priority": 2}

    router = Router(route, nothing_to_import)
    task, options = object(), {"priority": 1}
    assert router.route("a.b", (1,), {"c": 2}, options, task) == {"queue": "feeds", "priority": 1}
    assert seen == [("a.b", (1,), {"c": 2}, {"priority": 1}, task)]
    assert options == {"priority": 1}


def test_any_number_of_names_is_found() -> None:
    router = Router({"feed.*": "feeds", "feed.7": "seven"}, nothing_to_import)
    for turn in range(2):
        for number in range(3000):
            expected = "seven" if number == 7 else "feeds"
            assert router.route(f"feed.{number}", (), {}, {})["queue"] == expected, turn


# -- what is refused ------------------------------------------------------------------------------------------------


async def a_coroutine(name: str, args: object, kwargs: object, options: object, task: object = None) -> None: ...


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        (7, "7 is no router"),
        ([7], "7 is no router"),
        ([None], "None is no router"),
        ("feeds", "'feeds' is not the path of a router"),
        ("feed.*", "'feed.*' is not the path of a router"),
        (["a b.c"], "'a b.c' is not the path of a router"),
        ({"feed.*": 7}, "route 'feed.*': 7 is neither the name of a queue nor a dict"),
        ({"feed.*": None}, "route 'feed.*': None is neither"),
        ({"feed.*": ""}, "route 'feed.*': queue must be a text"),
        ({"feed.*": {"queue": 7}}, "route 'feed.*': queue must be a text"),
        ({"a.b": {"priority": 10}}, "route 'a.b': priority must be an integer from 0 to 9"),
        ({"a.b": {"time_limit": 5, "soft_time_limit": 6}}, "route 'a.b': soft_time_limit=6 must be less"),
        ({"a.b": {"countdown": -1}}, "route 'a.b': countdown must be seconds"),
        ({"a.b": {"que": "x"}}, "route 'a.b': unknown option 'que'; did you mean 'queue'?"),
        ({"a.b": {7: "x"}}, "route 'a.b': unknown option '7'"),
        ({"a.b": {"task_id": "x"}}, "route 'a.b': unknown option 'task_id'"),
        ({"a.b": {"exchange": "x"}}, "route 'a.b': exchange has no meaning here: there are only queues here"),
        ({"a.b": {"queue": "q", "routing_key": "x"}}, "route 'a.b': routing_key has no meaning here"),
        ({"a.b": {"exchange_type": "topic"}}, "exchange_type has no meaning here"),
        ({"a.b": {"delivery_mode": 1}}, "delivery_mode has no meaning here"),
        ({"a.b": {"compression": "gzip"}}, "compression has no meaning here"),
        ({7: "x"}, "7 is neither the name of a task, nor a glob"),
        ({re.compile(b"x"): "x"}, "nor a compiled pattern of text"),
        ({"": "x"}, "the name of a task must be a text of 1 to 255"),
        ([("a.b", {"exchange": "x"})], "route 'a.b': exchange has no meaning"),
        (a_coroutine, "must be a plain function"),
        (type("Router", (), {}), "must be a plain function"),
        (lambda name: None, "must take (name, args, kwargs, options, task=None, **kw)"),
        (lambda name, args, kwargs, options: None, "must take (name, args, kwargs, options, task=None, **kw)"),
        (SimpleNamespace(route_for_task=to_feeds), "is no router"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_router_is_built(routes: object, problem: str) -> None:
    with pytest.raises(InvalidOption, match="task_routes: .*" + re.escape(problem)):
        Router(routes, nothing_to_import)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (7, "7 is neither the name of a queue nor a dict"),
        ([], "[] is neither"),
        ("", "queue must be a text"),
        ({"que": "x"}, "unknown option 'que'; did you mean 'queue'?"),
        ({"exchange": "x"}, "exchange has no meaning here"),
        ({"priority": "high"}, "priority must be an integer"),
    ],
)
def test_a_wrong_answer_of_a_router_names_the_router(answer: object, problem: str) -> None:
    def strange(name: str, args: object, kwargs: object, options: object, task: object = None) -> object:
        return answer

    router = Router([strange], nothing_to_import)
    with pytest.raises(InvalidOption, match=rf"router .*test_routes.*strange for 'a\.b': .*{re.escape(problem)}"):
        router.route("a.b", (), {}, {})


def test_what_a_router_raises_is_for_its_author_to_see() -> None:
    def broken(name: str, args: object, kwargs: object, options: object, task: object = None) -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Router(broken, nothing_to_import).route("a", (), {}, {})


# -- queues ---------------------------------------------------------------------------------------------------------


def queue(name: object, **words: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, **words)


def exchange(name: str, type: str = "direct") -> SimpleNamespace:
    return SimpleNamespace(name=name, type=type)


@pytest.mark.parametrize(
    ("queues", "names"),
    [
        (None, ()),
        ([], ()),
        ({}, ()),
        (["a", "b", "a"], ("a", "b")),
        (("a",), ("a",)),
        ({"a": None, "b": {}}, ("a", "b")),
        ({"a": {"exchange": "a", "routing_key": "a", "exchange_type": "direct"}}, ("a",)),
        ([queue("a")], ("a",)),
        ([queue("a", exchange=exchange(""), routing_key="", bindings=set(), queue_arguments=None), "b"], ("a", "b")),
        ([queue("a", exchange=exchange("a"), routing_key="a")], ("a",)),
        ([queue("a", queue_arguments={"x-max-priority": 10, "x-queue-type": "quorum"})], ("a",)),
    ],
)
def test_queues_are_their_names(queues: object, names: tuple[str, ...]) -> None:
    assert queue_names(queues) == names
    assert queue_names(list(names)) == names


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ([queue("mail", exchange=exchange("media"))], "exchange"),
        ([queue("mail", exchange=exchange("mail", "topic"))], "exchange"),
        ([queue("mail", routing_key="a.#")], "routing_key"),
        ([queue("mail", bindings=[1], max_length=5)], "bindings, max_length"),
        ([queue("mail", queue_arguments={"x-message-ttl": 1})], "queue_arguments"),
        ({"mail": {"exchange": "media", "routing_key": "x"}}, "exchange, routing_key"),
        ({"mail": {"exchange_type": "fanout"}}, "exchange_type"),
    ],
)
def test_what_a_queue_says_in_vain_is_warned_of_by_its_name(queues: object, words: str) -> None:
    with pytest.warns(UserWarning, match=rf"^task_queues: {words} of queue 'mail' without effect"):
        assert queue_names(queues) == ("mail",)


@pytest.mark.parametrize("queues", ["mail", 7, [7], [""], ["x" * 101], [queue(7)], {7: {}}, [None], [queue("a\0")]])
def test_what_is_no_queue_is_refused(queues: object) -> None:
    with pytest.raises(InvalidOption, match="task_queues"):
        queue_names(queues)


# -- annotations ----------------------------------------------------------------------------------------------------


class ForMail:
    """Annotates the tasks of one module."""

    def annotate(self, task: Any) -> dict[str, object] | None:
        return {"priority": 9} if task.name.startswith("mail.") else None


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        (None, []),
        ({}, []),
        ([], []),
        ({"mail.send": {"priority": 1}}, [{"priority": 1}]),
        ({"mail.send": {"priority": 1}, "*": {"queue": "x"}}, [{"queue": "x"}, {"priority": 1}]),
        ({"mail.*": {"priority": 1}, "mail": {}}, []),  # names are exact, but for the one that means all
        ([{"mail.send": {"priority": 1}}, {"*": {"priority": 2}}], [{"priority": 1}, {"priority": 2}]),
        (({"*": {"a": 1}}, ForMail()), [{"a": 1}, {"priority": 9}]),
        (ForMail(), [{"priority": 9}]),
    ],
)
def test_annotations_come_in_their_order_all_before_one(annotations: object, found: list[object]) -> None:
    assert list(annotate(annotations, "mail.send", SimpleNamespace(name="mail.send"))) == found


def test_an_object_may_have_nothing_to_say() -> None:
    assert list(annotate([ForMail()], "shop.add", SimpleNamespace(name="shop.add"))) == []


def test_an_annotation_may_be_changed_without_harm() -> None:
    given = {"*": {"priority": 1}}
    next(annotate(given, "a"))["priority"] = 2
    assert given == {"*": {"priority": 1}}


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        (7, "7 must be a dict"),
        ("mail.send", "'mail.send' must be a dict"),
        ([7], "7 must be a dict"),
        (ForMail, "must be a dict .* or an object with annotate"),
        ({"mail.send": 7}, "that of 'mail.send' must be a dict of attributes, not 7"),
        ({"mail.send": {7: 1}}, "that of 'mail.send' must be a dict of attributes"),
        ({7: {}}, "the name of a task must be a text"),
    ],
)
def test_what_is_no_annotation_is_refused(annotations: object, problem: str) -> None:
    use: Callable[[], object]
    for use in (lambda: check_annotations(annotations), lambda: list(annotate(annotations, "a"))):
        with pytest.raises(InvalidOption, match=f"task_annotations: .*{problem}"):
            use()


def test_a_wrong_answer_of_an_annotation_names_it() -> None:
    class Strange:
        def annotate(self, task: object) -> object:
            return 7

    with pytest.raises(InvalidOption, match=r"Strange\.annotate returned for 'a' must be a dict"):
        list(annotate(Strange(), "a"))
