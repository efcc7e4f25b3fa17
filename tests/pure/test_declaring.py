"""The ways in which a program that knows Celery declares its tasks: classes, shared tasks, modules, configuration."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest

from pgqueue import InvalidOption, PgQueue, SettingsError, Task, UnknownTask, shared_task
from pgqueue.types import Failed, Succeeded

AnyTask = Task[..., Any, Any]


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere")


class Base(Task[..., Any, Any]):
    max_retries = 7
    queue = "base"
    started: ClassVar[list[str]] = []

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.started.append(self.name)


# -- classes -----------------------------------------------------------------------------------------------------


def test_a_class_is_registered_under_its_name_with_the_options_of_its_attributes(app: PgQueue) -> None:
    class Greet(Base):
        name = "shop.greet"
        queue = "mail"
        throws = (KeyError,)

        def run(self, name: str, times: int = 1) -> str:
            return f"Hello {name}" * times

    greet = app.register_task(Greet())
    assert app.tasks["shop.greet"] is greet
    assert (greet.options.queue, greet.options.max_retries, greet.options.throws) == ("mail", 7, (KeyError,))
    assert (greet.queue, greet.max_retries, greet.priority) == ("mail", 7, None)
    assert greet("Ada", times=2) == "Hello AdaHello Ada"
    job = greet.job(("Ada",), {}, {})
    assert (job.task, job.queue, job.priority) == ("shop.greet", "mail", 5)
    with pytest.raises(TypeError, match="missing argument 'name'"):
        greet.delay()


def test_a_class_without_a_name_is_called_after_its_place_and_may_be_given_itself(app: PgQueue) -> None:
    class Sum(Task[..., Any, Any]):
        def run(self, x: int) -> int:
            return x

    assert app.register_task(Sum).name == f"{__name__}.{Sum.__qualname__.replace('<locals>.', '')}"


def test_a_class_without_run_says_so_when_it_runs(app: PgQueue) -> None:
    class Nothing(Task[..., Any, Any]):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing has no run\(\)"):
        app.register_task(Nothing())()


@pytest.mark.parametrize("wrong", [object(), "shop.greet", int, lambda: None])
def test_what_is_no_task_cannot_be_registered(app: PgQueue, wrong: Any) -> None:
    with pytest.raises(InvalidOption):
        app.register_task(wrong)


def test_options_of_the_decorator_come_before_those_of_the_base(app: PgQueue) -> None:
    @app.task(base=Base, queue="own", bind=True)
    def task(self: AnyTask) -> str:
        return type(self).__name__

    assert (task.options.queue, task.options.max_retries, task()) == ("own", 7, "Base")
    assert task.trace() == Succeeded('"Base"')
    assert Base.started[-1] == task.name


def test_an_app_may_have_a_class_for_all_its_tasks() -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", task_cls=Base)
    assert isinstance(app.task(name="one")(lambda: 1), Base)
    assert app.Task is Base


def test_a_base_that_is_no_class_of_tasks_is_refused(app: PgQueue) -> None:
    with pytest.raises(InvalidOption, match="base must be a subclass of Task"):
        app.task(base=int)  # type: ignore[call-overload]


def test_a_class_that_wants_arguments_is_refused(app: PgQueue) -> None:
    class Greedy(Task[..., Any, Any]):
        def __init__(self, wanted: int) -> None: ...

    with pytest.raises(InvalidOption, match="Greedy cannot be made without arguments"):
        app.task(base=Greedy)(lambda: None)


def test_a_call_of_a_subclass_is_made_by_the_tracer_once_and_sees_the_request(app: PgQueue) -> None:
    seen: list[object] = []

    class Around(Task[..., Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.request.id)
            return super().__call__(*args, **kwargs)

    @app.task(base=Around, bind=True)
    def inner(self: AnyTask) -> bool:
        return self.request.called_directly

    @app.task(bind=True)
    def outer(self: AnyTask) -> bool:
        return bool(inner())

    assert inner.trace() == Succeeded("false")
    assert len(seen) == 1
    assert isinstance(seen[0], str)
    assert inner() is True  # a direct call
    assert outer.trace() == Succeeded("true")
    assert seen[1:] == [None, None]


async def test_a_call_of_a_subclass_wraps_coroutines_too(app: PgQueue) -> None:
    class Around(Task[..., Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    @app.task(base=Around)
    async def inner(x: int) -> int:
        return x

    assert await inner(2) == 2
    assert inner.trace((2,)) == Succeeded("2")


def test_setting_an_option_of_a_task_is_checked_and_holds(app: PgQueue) -> None:
    @app.task(autoretry_for=(OSError,), retry_backoff=False, default_retry_delay=9)
    def task() -> None:
        raise OSError

    task.max_retries = 0
    assert isinstance(task.trace(), Failed)
    with pytest.raises(InvalidOption, match="max_retries"):
        task.max_retries = -1
    task.anything = 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"serializer": "pickle"}, "serializer='pickle' is not offered: it runs whatever code"),
        ({"serializer": "yaml"}, "only 'json' is"),
        ({"exchange": "x"}, "'exchange' has no meaning on PostgreSQL: there are only queues"),
        ({"routing_key": "x"}, "'routing_key' has no meaning"),
        ({"backend": "redis"}, "'backend' has no meaning"),
        ({"pydantic_context": {}}, "'pydantic_context' has no meaning"),
        ({"throws": "KeyError"}, "throws must be a tuple of exception classes"),
        ({"rate_limit": "ten"}, "rate_limit must be a number"),
        ({"acks_on_timeout": "no"}, "acks_on_timeout must be True or False"),
        ({"trail": 1}, "trail must be True or False"),
    ],
)
def test_an_option_that_means_nothing_or_is_wrong_is_refused_by_name(
    app: PgQueue, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidOption, match=problem):
        app.task(**options)


@pytest.mark.parametrize("option", ["compression", "resultrepr_maxsize", "delivery_mode", "rate_limit"])
def test_an_option_that_can_be_left_out_is_taken_with_a_warning(app: PgQueue, option: str) -> None:
    with pytest.warns(UserWarning, match=option):
        app.task(name=option, **{option: 1})(lambda: None)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"exchange": "x"}, "'exchange' has no meaning"),
        ({"routing_key": "x"}, "name one with queue="),
        ({"serializer": "pickle"}, "only 'json' is"),
        ({"reply_to": "x"}, "'reply_to' has no meaning"),
        ({"link": "add"}, "link must be a signature"),
        ({"link_error": [1]}, "link_error must be a signature"),
        ({"parent_id": "0197c2b0-0000-7000-8000-000000000001"}, "belong together"),
        ({"retry": "yes"}, "retry must be True or False"),
        ({"soft_time_limit": 5, "time_limit": 5}, "soft_time_limit=5 must be less than time_limit=5"),
    ],
)
def test_an_option_of_a_call_that_means_nothing_or_is_wrong_is_refused_by_name(
    app: PgQueue, options: dict[str, Any], problem: str
) -> None:
    task = app.task(name="t")(lambda: None)
    with pytest.raises(InvalidOption, match=problem):
        task.apply_async(**options)


def test_a_link_is_checked_for_the_argument_that_it_will_be_given(app: PgQueue) -> None:
    @app.task
    def takes_one(x: int) -> None: ...

    @app.task
    def takes_none() -> None: ...

    @app.task
    def three(request: Any, exc: Any, traceback: Any) -> None: ...

    assert takes_none.job((), {}, {"link": [takes_one.s(), takes_none.si()]}).links is not None
    for link in (takes_none.s(), takes_one.s(2)):
        with pytest.raises(TypeError, match="positional arguments"):
            takes_none.job((), {}, {"link": link})
    with pytest.raises(TypeError, match="three"):
        takes_none.job((), {}, {"link_error": three.s()})


def test_links_that_lead_in_a_circle_are_refused(app: PgQueue) -> None:
    task = app.task(name="t")(lambda *args: None)
    call = task.s()
    call.link(call)
    with pytest.raises(InvalidOption, match="leads back to itself"):
        call.job()


# -- shared tasks ------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[AnyTask]:
    @shared_task(name="shared.double", max_retries=1)
    def double(x: int) -> int:
        return 2 * x

    yield double
    del double
    gc.collect()


def test_a_shared_task_belongs_to_every_app_and_to_the_last_one_when_it_is_called(shared: AnyTask) -> None:
    first = PgQueue("first", dsn="postgresql://127.0.0.1:1/nowhere")
    second = PgQueue("second", dsn="postgresql://127.0.0.1:1/nowhere")
    assert shared(4) == 8
    assert first.tasks["shared.double"].app is first
    assert second.tasks["shared.double"] is shared
    assert shared.app is second
    assert shared.options.max_retries == 1
    first.set_current()
    assert shared.app is first
    aside = PgQueue("aside", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
    assert shared.app is first
    assert aside.tasks["shared.double"].app is aside


def test_a_shared_task_that_is_gone_joins_no_app() -> None:
    @shared_task(name="shared.gone")
    def gone() -> None: ...

    del gone
    gc.collect()
    assert "shared.gone" not in PgQueue("late", dsn="postgresql://127.0.0.1:1/nowhere").tasks


# -- modules -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "declared"
    (folder / "orders").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "orders" / "__init__.py").write_text("")
    (folder / "orders" / "tasks.py").write_text(
        "from pgqueue import shared_task\n@shared_task\ndef settle(n: int) -> int:\n    return n\n"
    )
    (folder / "extra.py").write_text(
        "from pgqueue import shared_task\n@shared_task(name='extra')\ndef more() -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "declared"]:
        del sys.modules[name]
    gc.collect()


@pytest.mark.usefixtures("package")
def test_tasks_are_discovered_when_they_are_needed() -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", include=["declared.extra"])
    app.autodiscover_tasks(lambda: ["declared.orders", "declared"])
    assert "declared.orders.tasks.settle" not in app.tasks
    assert app.task_named("declared.orders.tasks.settle").trace((3,)) == Succeeded("3")
    assert "extra" in app.tasks
    with pytest.raises(UnknownTask, match="settl"):
        app.task_named("declared.orders.tasks.settl")


@pytest.mark.usefixtures("package")
def test_modules_may_come_from_the_configuration_and_be_imported_at_once(app: PgQueue) -> None:
    app.conf.include = ["declared.extra"]
    app.autodiscover_tasks(["declared.orders"], force=True)
    assert {"extra", "declared.orders.tasks.settle"} <= {*app.tasks}


def test_packages_are_a_list_and_must_exist(app: PgQueue) -> None:
    with pytest.raises(InvalidOption, match=r"takes a list of packages: \['shop'\]"):
        app.autodiscover_tasks("shop")
    with pytest.raises(ModuleNotFoundError):
        app.autodiscover_tasks(["nowhere_at_all"], force=True)


# -- configuration -----------------------------------------------------------------------------------------------


def test_settings_reach_tasks_that_are_declared_before_and_after(app: PgQueue) -> None:
    before = app.task(name="before")(lambda: None)
    own = app.task(name="own", acks_late=True)(lambda: None)
    app.conf.update(task_acks_late=False, task_time_limit=60, task_default_queue="low", task_default_priority=2)
    after = app.task(name="after")(lambda: None)
    assert [task.options.acks_late for task in (before, after, own)] == [False, False, True]
    assert [task.options.time_limit for task in (before, after)] == [60, 60]
    job = before.job((), {}, {})
    assert (job.queue, job.priority) == ("low", 2)


def test_a_wrong_setting_changes_nothing(app: PgQueue) -> None:
    task = app.task(name="t")(lambda: None)
    with pytest.raises(SettingsError, match="task_serializer"):
        app.conf.update(task_acks_late=False, task_serializer="pickle")
    with pytest.raises(InvalidOption, match="soft_time_limit"):
        app.conf.update(task_acks_late=False, task_annotations={"t": {"time_limit": 5, "soft_time_limit": 9}})
    assert task.options.acks_late
    assert not app.conf


def test_the_default_queue_of_the_settings_stays_where_the_configuration_names_none() -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", default_queue="own")
    app.conf.task_acks_late = False
    assert app.task(name="t")(lambda: None).job((), {}, {}).queue == "own"
    app.conf.task_default_queue = "low"
    assert app.tasks["t"].job((), {}, {}).queue == "low"


def test_results_that_never_expire_and_those_that_do(app: PgQueue) -> None:
    app.conf.result_expires = 60
    assert app.settings.result_expires == timedelta(seconds=60)
    app.conf.result_expires = None
    assert app.settings.result_expires > timedelta(days=30_000)


def test_settings_are_read_from_an_object_with_a_namespace_and_from_a_variable(
    app: PgQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Django:
        CELERY_TASK_ACKS_LATE = False
        CELERY_TASK_ROUTES: ClassVar = {"feed.*": "feeds"}
        SECRET_KEY = "x"

    app.config_from_object(Django, namespace="CELERY")
    assert app.conf.task_acks_late is False
    (tmp_path / "celeryconfig_of_tests.py").write_text("task_time_limit = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CONFIG_OF_TESTS", "celeryconfig_of_tests")
    app.config_from_envvar("CONFIG_OF_TESTS")
    assert app.conf.task_time_limit == 5
    app.config_from_object("no_such_module_at_all", silent=True)
    with pytest.raises(SettingsError, match="no_such_module_at_all"):
        app.config_from_object("no_such_module_at_all")


def test_routes_stand_between_the_call_and_the_default(app: PgQueue) -> None:
    def by_argument(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
        return {"queue": "big"} if args and args[0] > 100 else None

    app.conf.task_routes = [by_argument, {"feed.*": {"queue": "feeds", "priority": 7}, "feed.own": "own"}]
    free = app.task(name="feed.free")(lambda n=0: None)
    fixed = app.task(name="feed.fixed", queue="fixed")(lambda n=0: None)
    assert [free.job((n,), {}, {}).queue for n in (1, 101)] == ["feeds", "big"]
    assert free.job((), {}, {}).priority == 7
    assert free.job((), {}, {"queue": "mine", "priority": 1}).queue == "mine"
    assert (fixed.job((), {}, {}).queue, fixed.job((), {}, {}).priority) == ("fixed", 7)
    assert app.signature("feed.own").job().queue == "own"


def test_a_queue_that_is_not_on_the_list_is_refused_where_the_list_is_closed(app: PgQueue) -> None:
    app.conf.update(task_queues=["mail", "low"], task_create_missing_queues=False, task_default_queue="low")
    task = app.task(name="t")(lambda: None)
    assert app.queues == ("mail", "low")
    assert task.job((), {}, {"queue": "mail"}).queue == "mail"
    with pytest.raises(InvalidOption, match="queue 'male' is not in task_queues: mail, low"):
        task.job((), {}, {"queue": "male"})


def test_annotations_change_options_and_hooks(app: PgQueue) -> None:
    told: list[object] = []

    def on_failure(self: AnyTask, exc: BaseException, *more: Any) -> None:
        told.append((self.name, str(exc)))

    app.conf.task_annotations = {"*": {"on_failure": on_failure}, "t": {"max_retries": 0, "anything": 5}}

    @app.task(name="t", max_retries=9)
    def task() -> None:
        raise ValueError("no")

    assert (task.options.max_retries, task.anything) == (0, 5)  # type: ignore[attr-defined]
    assert isinstance(task.trace(), Failed)
    assert told == [("t", "no")]


def test_times_without_a_zone_are_in_that_of_the_app_if_it_has_one(app: PgQueue) -> None:
    task = app.task(name="t")(lambda: None)
    naive = datetime(2040, 7, 1, 12)
    with pytest.raises(InvalidOption, match="has no time zone"):
        task.job((), {}, {"eta": naive})
    app.conf.timezone = "Europe/Paris"
    job = task.job((), {}, {"eta": naive, "expires": naive + timedelta(hours=1)})
    assert job.eta == datetime(2040, 7, 1, 10, tzinfo=UTC)
    assert job.expires == datetime(2040, 7, 1, 13, tzinfo=ZoneInfo("Europe/Paris"))
    assert app.signature("by.name").set(eta=job.eta).job().eta == job.eta


def test_the_priority_of_the_task_around_is_inherited_if_the_configuration_says_so(app: PgQueue) -> None:
    inner = app.task(name="inner")(lambda: None)
    found: list[int] = []

    @app.task
    def outer() -> None:
        found.append(inner.job((), {}, {}).priority)

    outer.trace(priority=8)
    app.conf.task_inherit_parent_priority = True
    outer.trace(priority=8)
    assert found == [5, 8]


def test_the_current_task_is_the_one_whose_function_runs(app: PgQueue) -> None:
    seen: list[object] = []

    @app.task
    def inner() -> None:
        seen.append((app.current_task, app.current_worker_task))

    @app.task
    def outer() -> None:
        inner()
        seen.append((app.current_task, app.current_worker_task))

    outer.trace()
    assert seen == [(inner, outer), (outer, outer)]
    assert (app.current_task, app.current_worker_task) == (None, None)


# -- what must not get lost ----------------------------------------------------------------------------------------


def test_options_of_a_mixin_count_as_those_of_the_class(app: PgQueue) -> None:
    class Patient:
        max_retries = 9

    class Both(Patient, Task[..., Any, Any]):
        def run(self) -> None: ...

    assert app.register_task(Both()).options.max_retries == 9


def test_attributes_of_the_function_are_kept_unless_they_would_hide_a_method(app: PgQueue) -> None:
    def function() -> None: ...

    function.retry = "not the method"  # type: ignore[attr-defined]
    function.author = "Ada"  # type: ignore[attr-defined]
    task = app.task(function)
    assert callable(task.retry)
    assert task.author == "Ada"  # type: ignore[attr-defined]


def test_an_option_set_by_hand_survives_a_change_of_the_configuration(app: PgQueue) -> None:
    task = app.task(name="t")(lambda: None)
    task.max_retries = 9
    app.conf.task_time_limit = 60
    assert (task.options.max_retries, task.options.time_limit) == (9, 60)
    with pytest.raises(InvalidOption):
        task.max_retries = -1
    assert task.max_retries == 9


def test_what_an_annotation_has_set_goes_with_it(app: PgQueue) -> None:
    app.conf.task_annotations = {"t": {"author": "Ada"}}
    task = app.task(name="t")(lambda: None)
    assert task.author == "Ada"  # type: ignore[attr-defined]
    app.conf.task_annotations = {"t": {"queue": "q"}}
    assert not hasattr(task, "author")


@pytest.mark.parametrize("hook", ["before_start", "on_success", "on_failure", "on_retry", "after_return"])
def test_a_hook_that_is_a_coroutine_function_is_refused(app: PgQueue, hook: str) -> None:
    async def late(*args: object) -> None: ...

    with pytest.raises(InvalidOption, match=f"{hook} of .* is a coroutine function"):
        app.task(base=type("Late", (Task,), {hook: late}))(lambda: None)


def test_a_task_is_one_thing_wherever_it_is_copied(app: PgQueue) -> None:
    call = app.task(name="t")(lambda n=0: None).s(1).set(queue="q")
    assert copy.deepcopy(call) == call
    assert copy.deepcopy(call).task is call.task
