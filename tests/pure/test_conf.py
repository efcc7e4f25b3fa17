"""The configuration in Celery's words: each has its verdict, an update is all or nothing, and typos are found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import LazySettings
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.conf import WORDS, Conf, Word, import_object, read_envvar, read_object
from pgqueue.errors import SettingsError

DSN = "postgresql://u:geheim@db/shop"


def new_conf(on_change: Callable[[], None] = lambda: None) -> Conf:
    return Conf(on_change)


@pytest.fixture
def conf() -> Conf:
    return new_conf()


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A folder on the Python path, and a way to write a module into it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, source: str) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def route(name: str, args: object, kwargs: object, options: object, task: object = None, **kw: object) -> str:
    return "feeds"


# -- every word of the table ----------------------------------------------------------------------------------------

#: For each word that is used: values that are good, each with what is kept; and values that are not.
USED: dict[str, tuple[list[tuple[object, object]], list[object]]] = {
    "timezone": (
        [("Europe/Vienna", ZoneInfo("Europe/Vienna")), ("UTC", ZoneInfo("UTC")), (UTC, UTC)],
        ["Europe/Wien", "", "Europe", "../etc", 1, True],
    ),
    "imports": ([(["shop.tasks"], ("shop.tasks",)), ("shop", ("shop",)), ([], ())], [[1], ["shop tasks"], [""], 1]),
    "include": ([(("a", "b.c"), ("a", "b.c"))], [["a."], {"a": 1}]),
    "task_annotations": (
        [({"*": {"priority": 1}},) * 2, ([{"a.b": {"queue": "x"}}],) * 2],
        [{"a.b": 1}, {1: {}}, 1, "a.b", [int]],
    ),
    "task_time_limit": ([(60, 60.0), (timedelta(minutes=1), 60.0)], [0, -1, "60", True, float("nan")]),
    "task_soft_time_limit": ([(0.5, 0.5)], [0, "1", False]),
    "task_default_queue": ([("mail", "mail")], ["", "x" * 101, "a\0", 1]),
    "task_default_priority": ([(0, 0), (9, 9)], [-1, 10, "5", True, 1.0]),
    "task_queues": ([(["a", "b", "a"], ("a", "b")), ({"a": {}}, ("a",)), ([], None)], ["a", [1], 5]),
    "task_routes": (
        [({"feed.*": "feeds"},) * 2, (route, route), ("shop.routes.route",) * 2, ([route, {"a.b": "c"}],) * 2],
        [{"a.b": 1}, {"a.b": {"exchange": "x"}}, {1: "x"}, "feeds", 1],
    ),
    "result_backend": (
        [(DSN, DSN), (f"db+{DSN}", DSN), ("db+postgresql+psycopg2://db/shop", "postgresql://db/shop")],
        ["redis://:geheim@r/0", "rpc://", "django-db", "db+sqlite:///x", "disabled", "", 1],
    ),
    "result_expires": (
        [(60, timedelta(minutes=1)), (timedelta(hours=1), timedelta(hours=1)), (None, None), (0, None)],
        [-1, "60", True],
    ),
    "broker_url": (
        [(DSN, DSN), ("sqla+postgresql+psycopg://db/x", "postgresql://db/x"), ("postgres://db/x", "postgres://db/x")],
        ["amqp://u:geheim@h//", "redis://", "memory://", "", "geheim", f"{DSN};{DSN}", [DSN], "postgresql://[x"],
    ),
    "worker_concurrency": ([(1, 1)], [0, -1, "4", True, 1.5]),
    "worker_pool": ([("solo", "solo"), ("asyncio", "asyncio")], ["gevent", "processes", 1, []]),
    "worker_prefetch_multiplier": ([(0, 0), (4, 4)], [-1, "1"]),
    "worker_max_tasks_per_child": ([(1, 1)], [0, "1"]),
    "worker_max_memory_per_child": ([(12288, 12288)], [0, 0.5]),
}
FLAGS = [
    "task_always_eager", "task_eager_propagates", "task_ignore_result",
    "task_store_errors_even_if_ignored", "task_acks_late", "task_acks_on_failure_or_timeout", "task_acks_on_failure",
    "task_acks_on_timeout", "task_reject_on_worker_lost", "task_inherit_parent_priority", "task_create_missing_queues",
    "task_allow_error_cb_on_chord_header",
]  # fmt: skip
USED |= {name: ([(True, True), (False, False)], ["true", 1, 0, []]) for name in FLAGS}

#: Another value than ours, where any one will not do: for words that are checked.
OTHER: dict[str, object] = {
    "task_default_rate_limit": "100/m",
    "task_publish_retry_policy": {"max_retries": 3, "interval_max": 0.2},
    "beat_schedule": {"x": {}},
}
#: Values that say in other words what is so anyway.
AS_OURS: dict[str, list[object]] = {
    "accept_content": [["json"], {"json", "pickle"}, ["application/json"], ("json",)],
    "result_accept_content": [["json"]],
    "task_serializer": ["json", "application/json"],
    "result_serializer": ["json"],
    "task_default_delivery_mode": [2, "persistent"],
    "beat_schedule": [{}],
    "task_protocol": [2],
}
REFUSED: dict[str, list[object]] = {
    "accept_content": [["pickle"], "json5", [], 1],
    "result_accept_content": [["yaml"]],
    "task_serializer": ["pickle", "yaml", "msgpack", 1],
    "broker_use_ssl": [True, {"ca_certs": "x"}],
}


def other(word: Word) -> object:
    return OTHER.get(word.name, not word.default if isinstance(word.default, bool) else "geheim")


def words(*verdicts: str) -> list[Any]:
    return [pytest.param(word, id=name) for name, word in WORDS.items() if word.verdict in verdicts]


def silently(conf: Conf, name: str, value: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conf[name] = value


def test_the_table_has_every_setting_of_celery() -> None:
    assert len(WORDS) >= 200
    assert all(name == word.name and name.islower() for name, word in WORDS.items())
    assert {name for name, word in WORDS.items() if word.verdict == "used"} == USED.keys()
    assert not [name for name, word in WORDS.items() if len(word.why) < 8 or word.why.endswith(" ")]


def test_where_nothing_is_set_a_word_has_our_default(conf: Conf) -> None:
    for name, word in WORDS.items():
        assert getattr(conf, name) == conf[name] == conf.get(name, "x") == word.default
        assert name not in conf


def test_nothing_is_said_about_a_value_that_is_ours(conf: Conf) -> None:
    for name, word in WORDS.items():
        for value in (word.default, *AS_OURS.get(name, []), None):
            silently(conf, name, value)
        assert conf[name] == (None if name == "result_expires" else word.default)
    assert list(conf) == ["result_expires"]


@pytest.mark.parametrize("word", words("used"))
def test_a_word_that_is_used_keeps_good_values_and_refuses_others_by_name(word: Word) -> None:
    good, bad = USED[word.name]
    for value, kept in good:
        conf = new_conf()
        silently(conf, word.name, value)
        assert conf[word.name] == kept
        assert type(conf[word.name]) is type(kept)
        assert list(conf) == [word.name]
    for value in bad:
        conf = new_conf()
        with pytest.raises(SettingsError, match=word.name) as caught:
            conf[word.name] = value
        assert "geheim" not in str(caught.value) or word.name not in ("broker_url", "result_backend")
        assert not conf


@pytest.mark.parametrize("word", words("same"))
def test_a_word_that_is_so_anyway_warns_of_the_contrary(conf: Conf, word: Word) -> None:
    if word.check is None:
        silently(conf, word.name, other(word))
    else:
        with pytest.warns(UserWarning, match=f"^{word.name} is always .* here: "):
            conf[word.name] = other(word)
    assert conf[word.name] == other(word)


@pytest.mark.parametrize("word", words("warned"))
def test_a_word_without_a_meaning_warns_once(conf: Conf, word: Word) -> None:
    with pytest.warns(UserWarning, match=f"^{word.name} has no effect: ") as seen:
        conf[word.name] = other(word)
    assert len(seen) == 1
    assert str(seen[0].message).endswith(word.why)
    silently(conf, word.name, other(word))
    assert conf[word.name] == other(word)
    with pytest.warns(UserWarning, match=word.name):
        new_conf()[word.name] = other(word)


@pytest.mark.parametrize("word", words("refused"))
def test_a_word_that_cannot_be_ignored_is_refused(conf: Conf, word: Word) -> None:
    for value in REFUSED.get(word.name, [other(word)]):
        with pytest.raises(SettingsError, match=f"^{word.name}.* is refused: ") as caught:
            conf[word.name] = value
        assert str(caught.value).endswith(word.why)
        assert word.default is not None or "geheim" not in str(caught.value)
    assert not conf


@pytest.mark.parametrize("word", [word for word in words("same", "warned") if isinstance(word.values[0].default, bool)])
def test_a_flag_is_a_flag_even_where_it_means_nothing(conf: Conf, word: Word) -> None:
    with pytest.raises(SettingsError, match=f"{word.name} must be True or False"):
        conf[word.name] = "yes"


@pytest.mark.parametrize("rate", ["10", "10/s", "1.5/m", "100/h", 0, 2.5])
def test_a_rate_is_checked_although_it_waits(conf: Conf, rate: object) -> None:
    with pytest.warns(UserWarning, match="not enforced yet"):
        conf.task_default_rate_limit = rate


@pytest.mark.parametrize("rate", ["", "x", "10/d", "-1", -1, True, "10 / s", []])
def test_what_is_no_rate_is_refused(conf: Conf, rate: object) -> None:
    with pytest.raises(SettingsError, match="task_default_rate_limit: rate_limit must be"):
        conf.task_default_rate_limit = rate


@pytest.mark.parametrize("policy", [{"max_retry": 3}, {"interval_max": "1"}, 3])
def test_what_is_no_policy_is_refused(conf: Conf, policy: object) -> None:
    with pytest.raises(SettingsError, match="task_publish_retry_policy"):
        conf.task_publish_retry_policy = policy


# -- reading and changing -------------------------------------------------------------------------------------------


def test_attributes_items_and_update_are_the_same() -> None:
    conf = new_conf()
    conf.task_acks_late = False
    conf["task_ignore_result"] = True
    conf.update({"worker_concurrency": 4}, worker_pool="threads")
    conf.update([("task_default_queue", "mail")])
    assert dict(conf) == {
        "task_acks_late": False,
        "task_ignore_result": True,
        "worker_concurrency": 4,
        "worker_pool": "threads",
        "task_default_queue": "mail",
    }
    assert "worker_pool" in conf
    assert "worker_max_tasks_per_child" not in conf
    assert 1 not in conf
    assert len(conf) == 5
    assert conf.get("worker_pool") == "threads"
    assert conf.get("no_such_thing", 7) == 7
    assert "task_acks_late" in dir(conf)
    assert "update" in dir(conf)


def test_none_goes_back_to_the_default(conf: Conf) -> None:
    conf.update(task_acks_late=False, worker_concurrency=3)
    conf.update(task_acks_late=None, worker_concurrency=None)
    assert not conf
    assert conf.task_acks_late is True


def test_results_may_be_kept_for_ever(conf: Conf) -> None:
    assert conf.result_expires == timedelta(days=1)
    conf.result_expires = None
    assert "result_expires" in conf
    assert conf.result_expires is None


def test_repr_shows_values_and_no_secrets(conf: Conf) -> None:
    conf.update(task_acks_late=False, broker_url=DSN, result_backend=DSN)
    with pytest.warns(UserWarning, match="redis_password"):
        conf.redis_password = "geheim"
    assert repr(conf) == "<Conf: task_acks_late=False, broker_url, result_backend, redis_password>"


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("task_ack_late", "did you mean 'task_acks_late'"),
        ("worker_concurency", "did you mean 'worker_concurrency'"),
        ("colour_of_the_house", "values of your own have no place"),
        ("CELERY_ACKS_LATE", "write 'task_acks_late'"),
        ("CELERYD_CONCURRENCY", "write 'worker_concurrency'"),
        ("CELERYBEAT_SCHEDULE", "write 'beat_schedule'"),
        ("CELERY_TASK_ACKS_LATE", "write 'task_acks_late', or read names in capitals with namespace='CELERY'"),
        ("CELERY_RESULT_BACKEND", "write 'result_backend'"),
        ("CELERY_TASK_RESULT_EXPIRES", "write 'result_expires'"),
        ("CELERYD_TASK_SOFT_TIME_LIMIT", "write 'task_soft_time_limit'"),
        ("CELERYD_MAX_TASKS_PER_CHILD", "write 'worker_max_tasks_per_child'"),
        ("CELERYD_WORKER_LOST_WAIT", "write 'worker_lost_wait'"),
        ("CELERY_DISABLE_RATE_LIMITS", "write 'worker_disable_rate_limits'"),
        ("CELERY_SEND_EVENTS", "write 'worker_send_task_events'"),
        ("CELERY_RESULT_DBURI", "write 'result_backend'"),
        ("CELERY_ROUTES", "write 'task_routes'"),
        ("CELERY_TIMEZONE", "write 'timezone'"),
        ("BROKER_URL", "write 'broker_url'"),
        ("acks_late", "write 'task_acks_late'"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_was_meant(conf: Conf, name: str, cure: str) -> None:
    for attempt in (lambda: conf.update({name: 1}), lambda: conf.__setitem__(name, 1), lambda: setattr(conf, name, 1)):
        with pytest.raises(SettingsError) as caught:
            attempt()
        assert name in str(caught.value)
        assert cure in str(caught.value)
    with pytest.raises(AttributeError, match=cure):
        getattr(conf, name)
    with pytest.raises(KeyError, match=name):
        conf[name]
    assert not hasattr(conf, "_" + name)


def test_a_name_that_is_no_text_is_an_error(conf: Conf) -> None:
    for name in (1, None, []):
        with pytest.raises(SettingsError if name != [] else TypeError):
            conf.update([(name, 1)])  # type: ignore[list-item]


def test_an_update_is_all_or_nothing() -> None:
    changes: list[int] = []
    conf = new_conf(lambda: changes.append(1))
    conf.update(worker_concurrency=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not even a warning where an error follows
        for wrong in ({"worker_pool": "x"}, {"nonsense": 1}, {"task_serializer": "pickle"}):
            with pytest.raises(SettingsError):
                conf.update({"worker_concurrency": 8, "redis_host": "r", **wrong})
    assert dict(conf) == {"worker_concurrency": 2}
    assert changes == [1]


def test_on_change_sees_the_new_values_once_for_each_change() -> None:
    seen: list[dict[str, object]] = []
    conf = new_conf(lambda: seen.append(dict(conf)))
    conf.update({})
    conf.update(worker_concurrency=2, worker_pool="solo")
    conf.worker_pool = None
    assert seen == [{"worker_concurrency": 2, "worker_pool": "solo"}, {"worker_concurrency": 2}]


def test_a_change_that_the_app_cannot_take_is_taken_back() -> None:
    def refuse() -> None:
        raise RuntimeError("the app says no")

    conf = new_conf(refuse)
    with pytest.raises(RuntimeError, match="says no"):
        conf.task_acks_late = False
    assert not conf
    assert conf.task_acks_late is True


def test_time_limits_must_go_together(conf: Conf) -> None:
    conf.task_soft_time_limit = 30
    with pytest.raises(SettingsError, match=r"task_time_limit and task_soft_time_limit: .* must be less than"):
        conf.task_time_limit = 20
    conf.update(task_time_limit=20, task_soft_time_limit=10)
    assert (conf.task_time_limit, conf.task_soft_time_limit) == (20.0, 10.0)


def test_results_are_in_the_database_of_the_jobs(conf: Conf) -> None:
    conf.update(broker_url="postgresql://a@db:5432/shop", result_backend="db+postgresql+psycopg2://b:c@db/shop")
    with pytest.raises(SettingsError, match="result_backend is another database than broker_url"):
        conf.result_backend = "db+postgresql://db/archive"
    assert conf.result_backend == "postgresql://b:c@db/shop"


def test_the_routes_of_a_module_that_is_not_there_yet_are_accepted(conf: Conf) -> None:
    conf.task_routes = ("shop.not_there.route", {"feed.*": "feeds"})
    assert "task_routes" in conf


# -- reading modules and objects ------------------------------------------------------------------------------------


def test_a_module_is_read_by_its_name(modules: Callable[[str, str], None]) -> None:
    modules(
        "celeryconfig",
        "import os\nfrom datetime import timedelta, timezone\n"
        "task_acks_late = False\nimports = ('shop.tasks',)\n_own = 1\nhost = 'x'\nQUEUES = ['a']\n"
        "def task_routes(name, args, kwargs, options, task=None, **kw): return None\n"
        "def task_route(): pass\n"
        "class Helper: pass\n"
        "TASK_TIME_LIMIT = 60\ntask_time_limit = TASK_TIME_LIMIT\n",
    )
    found = read_object("celeryconfig")
    assert {name: value for name, value in found.items() if name != "task_routes"} == {
        "task_acks_late": False,
        "imports": ("shop.tasks",),
        "task_time_limit": 60,
    }
    assert callable(found["task_routes"])
    conf = new_conf()
    conf.update(found)
    assert conf.imports == ("shop.tasks",)


def test_a_class_an_instance_and_a_mapping_are_read_like_a_module(modules: Callable[[str, str], None]) -> None:
    modules("pkg.conf", "class Base:\n    task_acks_late = False\nclass Mine(Base):\n    worker_pool = 'solo'\n")
    modules("pkg.__init__", "")
    expected = {"task_acks_late": False, "worker_pool": "solo"}
    for name in ("pkg.conf:Mine", "pkg.conf.Mine"):
        assert read_object(name) == expected
    kind = import_object("pkg.conf:Mine")
    assert isinstance(kind, type)
    assert read_object(kind) == read_object(kind()) == read_object(SimpleNamespace(**expected)) == expected
    assert read_object(expected) == expected
    conf = new_conf()
    conf.update(expected)
    assert read_object(conf) == expected


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("task_ack_late", "did you mean task_acks_late"),
        ("task_route", "did you mean task_routes"),
        ("worker_concurency", "did you mean worker_concurrency"),
        ("BROKER_URL", "write broker_url"),
        ("CELERY_ACKS_LATE", "write task_acks_late"),
        ("CELERYD_CONCURRENCY", "write worker_concurrency"),
        ("CELERY_TASK_ACKS_LATE", "namespace='CELERY'"),
    ],
)
def test_a_slip_of_the_pen_in_a_module_is_found(name: str, cure: str) -> None:
    module = ModuleType("celeryconfig")
    setattr(module, name, 1)
    with pytest.raises(SettingsError, match=f"{name}.*{cure}"):
        read_object(module)


def test_what_is_not_read_is_not_touched() -> None:
    class Strange:
        worker_pool = "solo"

        @property
        def other(self) -> object:
            raise AssertionError("read")

    assert read_object(Strange()) == {"worker_pool": "solo"}


def test_a_namespace_takes_names_in_capitals_that_begin_with_it() -> None:
    source = {
        "CELERY_TASK_ACKS_LATE": False,
        "CELERY_BROKER_URL": DSN,
        "CELERY_TIMEZONE": "UTC",
        "celery_worker_pool": "solo",
        "worker_pool": "solo",
        "BROKER_URL": "redis://",
        "SHOP_TASK_ACKS_LATE": True,
        1: 2,
    }
    expected = {"task_acks_late": False, "broker_url": DSN, "timezone": "UTC"}
    for namespace in ("CELERY", "CELERY_", "celery"):
        assert read_object(source, namespace) == expected
    named = {name: value for name, value in source.items() if isinstance(name, str)}
    assert read_object(SimpleNamespace(**named), "CELERY") == expected
    assert read_object(source, "SHOP") == {"task_acks_late": True}


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("CELERY_ACKS_LATE", "CELERY_TASK_ACKS_LATE"),
        ("CELERY_ROUTES", "CELERY_TASK_ROUTES"),
        ("CELERY_TASK_ACK_LATE", "CELERY_TASK_ACKS_LATE"),
        ("CELERYD_CONCURRENCY", "CELERY_WORKER_CONCURRENCY"),
        ("CELERYBEAT_SCHEDULE", "CELERY_BEAT_SCHEDULE"),
    ],
)
def test_an_old_or_a_mistyped_name_in_a_namespace_is_an_error(name: str, cure: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} .*{cure}"):
        read_object({name: 1}, "CELERY")
    # Who has both serves two masters: an old Celery elsewhere, and this.
    value = {name: 1, cure: False}
    assert list(read_object(value, "CELERY").values()) == [False]


def test_a_stranger_in_a_namespace_is_named_and_let_be() -> None:
    with pytest.warns(UserWarning, match="not settings, and not read: CELERY_EMAIL_CHUNK_SIZE"):
        assert read_object({"CELERY_EMAIL_CHUNK_SIZE": 1, "CELERY_WORKER_POOL": "solo"}, "CELERY") == {
            "worker_pool": "solo"
        }


def test_the_settings_of_django_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    django = LazySettings()
    django.configure(CELERY_TASK_ACKS_LATE=False, CELERY_TASK_TIME_LIMIT=60, TIME_ZONE="UTC", DEBUG=True)
    monkeypatch.setattr("django.conf.settings", django)
    expected = {"task_acks_late": False, "task_time_limit": 60}
    for source in (django, "django.conf:settings", "django.conf.settings"):
        assert read_object(source, namespace="CELERY") == expected
    conf = new_conf()
    conf.update(read_object("django.conf:settings", namespace="CELERY"))
    assert conf.task_time_limit == 60.0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("celeryconfig_that_is_not", "no module 'celeryconfig_that_is_not'; is its folder on the Python path"),
        ("no_such_package.conf", "there is no module 'no_such_package'"),
        ("json:Nothing", "'json:Nothing' cannot be found: .* has no 'Nothing'"),
        ("json.nothing", "'json.nothing' cannot be found"),
        ("json.decoder.JSONDecoder.nothing", "'json.decoder.JSONDecoder.nothing' cannot be found: .* has no 'nothing'"),
        ("celery config", "not a dotted name"),
        ("", "not a dotted name"),
        (".conf", "not a dotted name"),
        ("conf.py.", "not a dotted name"),
    ],
)
def test_a_source_that_is_not_there_is_an_error(name: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        read_object(name)
    assert isinstance(caught.value.__cause__, ImportError) is ("no module" in problem)


def test_what_a_module_raises_is_for_its_author_to_see(modules: Callable[[str, str], None]) -> None:
    modules("broken_conf", "int('x')")
    modules("lacking_conf", "import no_such_module_either")
    with pytest.raises(ValueError, match="invalid literal"):
        read_object("broken_conf")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        read_object("lacking_conf")


def test_a_variable_may_name_the_module(modules: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    modules("envconfig", "worker_pool = 'solo'\n")
    assert read_envvar("SHOP_CONFIG", {"SHOP_CONFIG": "envconfig"}) == {"worker_pool": "solo"}
    monkeypatch.setenv("SHOP_CONFIG", "envconfig")
    assert read_envvar("SHOP_CONFIG") == {"worker_pool": "solo"}


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({}, "the variable SHOP_CONFIG is not set"),
        ({"SHOP_CONFIG": ""}, "the variable SHOP_CONFIG is empty"),
        ({"SHOP_CONFIG": "no_such"}, "SHOP_CONFIG=no_such: there is no module 'no_such'"),
    ],
)
def test_a_variable_that_names_nothing_is_an_error(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        read_envvar("SHOP_CONFIG", environ)
    assert isinstance(caught.value.__cause__, ImportError) is ("no module" in problem)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(WORDS)) | st.text(), value=ANYTHING)
@settings(deadline=None, max_examples=150, database=None)
def test_any_value_is_kept_or_is_a_settings_error(name: str, value: object) -> None:
    conf = new_conf()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            conf.update({name: value})
        except SettingsError:
            assert not conf
        else:
            assert name in WORDS
            repr(conf)
