"""Declaring a task checks everything about it; calling it directly is calling the function."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pgqueue import (
    AsyncResult,
    InvalidArguments,
    InvalidOption,
    NotSerializable,
    PayloadTooLarge,
    PgQueue,
    Retry,
    Signature,
    Task,
)
from pgqueue.database import Database
from pgqueue.retry import RetryPolicy
from pgqueue.statements import Statement

ID = "0197c2b0-0000-7000-8000-000000000001"


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere")


def add(x: int, y: int = 1) -> int:
    """Return the sum."""
    return x + y


# -- names -------------------------------------------------------------------------------------------------------


def test_a_task_is_called_after_its_module_and_function(app: PgQueue) -> None:
    assert app.task(add).name == f"{__name__}.add"


def test_a_task_of_the_main_module_is_called_after_the_app(app: PgQueue) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def add(): ...", namespace)
    assert app.task(namespace["add"]).name == "tests.add"


def test_a_nested_function_is_called_after_the_one_around_it(app: PgQueue) -> None:
    @app.task
    def inner() -> None: ...

    assert inner.name == f"{__name__}.test_a_nested_function_is_called_after_the_one_around_it.inner"


def test_a_method_like_function_is_called_after_its_class(app: PgQueue) -> None:
    class Mail:
        @staticmethod
        @app.task
        def send() -> None: ...

    assert Mail.send.name.endswith(".Mail.send")


def test_a_task_may_have_a_name_of_its_own(app: PgQueue) -> None:
    assert app.task(name="sum")(add).name == "sum"


@pytest.mark.parametrize("name", ["", "x" * 256, "nul\0", "\ud800", 5])
def test_a_name_that_postgresql_cannot_store_is_refused(app: PgQueue, name: Any) -> None:
    with pytest.raises(InvalidOption, match="name"):
        app.task(name=name)(add)


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "meant"),
    [("bnd", "bind"), ("retry_backof", "retry_backoff"), ("autoretry", "autoretry_for"), ("max_retrys", "max_retries")],
)
def test_an_unknown_option_names_what_was_probably_meant(app: PgQueue, option: str, meant: str) -> None:
    with pytest.raises(InvalidOption, match=f"unknown task option '{option}'; did you mean '{meant}'"):
        app.task(**{option: True})


def test_an_option_like_no_other_is_answered_with_all_of_them(app: PgQueue) -> None:
    with pytest.raises(InvalidOption, match=r"known are acks_late, .*bind.*, typing"):
        app.task(zzz=1)


@pytest.mark.parametrize(
    "options",
    [
        {"queue": ""},
        {"queue": "q" * 101},
        {"queue": 5},
        {"priority": 10},
        {"priority": -1},
        {"priority": True},
        {"priority": "5"},
        {"expires": -1},
        {"expires": datetime(2030, 1, 1, tzinfo=UTC)},
        {"max_retries": "3"},
        {"max_retries": True},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"default_retry_delay": -1},
        {"default_retry_delay": None},
        {"retry_backoff": "2"},
        {"retry_backoff": -1},
        {"retry_backoff": float("nan")},
        {"retry_backoff_max": float("inf")},
        {"retry_jitter": 1},
        {"bind": "yes"},
        {"transactional": None},
        {"ignore_result": "no"},
        {"acks_late": 0},
        {"typing": None},
        {"autoretry_for": OSError},
        {"autoretry_for": ("OSError",)},
        {"autoretry_for": (OSError("an instance"),)},
        {"autoretry_for": (int,)},
        {"dont_autoretry_for": OSError},
        {"retry_kwargs": {"max_retry": 1}},
        {"retry_kwargs": {"max_retries": "1"}},
        {"retry_kwargs": {"countdown": -1}},
        {"retry_kwargs": 5},
    ],
    ids=str,
)
def test_a_bad_value_of_an_option_is_refused_where_the_task_is_declared(app: PgQueue, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        app.task(**options)


def test_the_retry_options_make_the_policy(app: PgQueue) -> None:
    task = app.task(
        autoretry_for=[OSError],
        dont_autoretry_for=(FileNotFoundError,),
        retry_kwargs={"max_retries": 7, "countdown": timedelta(minutes=1)},
        retry_backoff=0.5,
        retry_backoff_max=10,
        retry_jitter=False,
    )(add)
    assert task.retry_policy == RetryPolicy((OSError,), (FileNotFoundError,), 7, 60.0, 1.0, 10, False)
    assert app.task(name="plain")(add).retry_policy == RetryPolicy()
    assert app.task(name="true", retry_backoff=True)(add).retry_policy.backoff == 1.0


def test_the_mapping_given_as_retry_kwargs_is_not_changed(app: PgQueue) -> None:
    given = {"countdown": 5}
    app.task(retry_kwargs=given, autoretry_for=(OSError,), retry_backoff=True)(add)
    assert given == {"countdown": 5}


# -- what kind of thing a task is --------------------------------------------------------------------------------


def test_a_task_keeps_the_name_text_and_signature_of_its_function(app: PgQueue) -> None:
    task = app.task(add)
    assert (task.__name__, task.__qualname__, task.__doc__) == ("add", "add", "Return the sum.")  # type: ignore[attr-defined]
    assert task.__module__ == __name__
    assert task.__wrapped__ is add  # type: ignore[attr-defined]
    assert str(inspect.signature(task)) == str(inspect.signature(add))
    assert repr(task) == f"<Task: {__name__}.add>"


def test_an_attribute_of_the_function_does_not_hide_one_of_the_task(app: PgQueue) -> None:
    def function() -> int:
        return 5

    for name in ("name", "run", "options", "bind", "app", "arguments"):
        setattr(function, name, "the function's own")
    function.note = "kept"  # type: ignore[attr-defined]
    task = app.task(function)
    assert task.name.endswith(".function")
    assert task.run is function
    assert task() == 5
    assert task.note == "kept"  # type: ignore[attr-defined]


def test_other_callables_need_a_name(app: PgQueue) -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    for callable_ in (functools.partial(add, 1), Adder()):
        with pytest.raises(InvalidOption, match="say name="):
            app.task(callable_)
        task: Task[..., Any, Any] = app.task(name=type(callable_).__name__)(callable_)
        assert task(1) == 2
        assert repr(task) == f"<Task: {type(callable_).__name__}>"


@pytest.mark.parametrize("thing", ["name", 5, {"queue": "mail"}])
def test_what_cannot_be_called_is_no_task(app: PgQueue, thing: Any) -> None:
    with pytest.raises(InvalidOption, match="name="):
        app.task(thing)


# -- direct calls ------------------------------------------------------------------------------------------------


def test_a_direct_call_runs_the_function_here(app: PgQueue) -> None:
    assert app.task(add)(2, y=3) == 5
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        app.task(add)()  # type: ignore[call-arg]


async def test_a_direct_call_of_a_coroutine_function_is_a_coroutine(app: PgQueue) -> None:
    @app.task
    async def wait(n: int) -> int:
        await asyncio.sleep(0)
        return n

    coroutine = wait(5)
    assert asyncio.iscoroutine(coroutine)
    assert await coroutine == 5


def test_a_bound_task_called_directly_gets_itself_and_an_empty_request(app: PgQueue) -> None:
    @app.task(bind=True)
    def function(self: Task[..., Any, Any], n: int) -> tuple[Any, ...]:
        return self is function, n, self.request.called_directly, self.request.id

    @app.task(bind=True)
    async def coroutine(self: Task[..., Any, Any], n: int) -> tuple[Any, ...]:
        return self is coroutine, n, self.request.called_directly, self.request.id

    assert function(5) == (True, 5, True, None)
    assert asyncio.run(coroutine(5)) == (True, 5, True, None)


@pytest.mark.parametrize(("bind", "call"), [(False, r"pay.run\(connection,"), (True, r"pay.run\(connection,")])
def test_a_direct_call_of_a_transactional_task_says_how_to_give_it_a_connection(
    app: PgQueue, bind: bool, call: str
) -> None:
    def pay(*args: object) -> tuple[object, ...]:
        return args

    task = app.task(transactional=True, bind=bind)(pay)
    with pytest.raises(TypeError, match=call):
        task(5)
    assert task.run("connection", 5)[-2:] == ("connection", 5)


def test_the_request_outside_a_worker_is_empty(app: PgQueue) -> None:
    request = app.task(add).request
    assert (request.id, request.retries, request.called_directly) == (None, 0, True)
    assert request.get("tenant", "none") == "none"


def test_retry_in_a_direct_call_raises_the_exception_given_or_says_that_there_is_no_job(app: PgQueue) -> None:
    task = app.task(add)
    with pytest.raises(OSError, match="no route"):
        task.retry(exc=OSError("no route"))
    with pytest.raises(Retry, match="called directly"):
        task.retry()


# -- calls as jobs -----------------------------------------------------------------------------------------------


def test_a_call_becomes_a_job_with_an_id_of_its_own(app: PgQueue) -> None:
    task = app.task(add)
    first, second = task.job((2,), {"y": 3}, {}), task.job((2,), {"y": 3}, {})
    assert (first.task, first.args, first.kwargs) == (task.name, "[2]", '{"y":3}')
    assert (first.queue, first.priority, first.known) == ("default", 5, False)
    assert (first.eta, first.countdown, first.expires, first.expires_in) == (None,) * 4
    assert UUID(first.id).version == 7
    assert first.id < second.id


def test_options_of_the_task_hold_where_the_call_says_nothing(app: PgQueue) -> None:
    task = app.task(queue="mail", priority=9, expires=60)(add)
    job = task.job((1,), {}, {})
    assert (job.queue, job.priority, job.expires_in) == ("mail", 9, 60.0)
    job = task.job((1,), {}, {"queue": "slow", "priority": 0, "expires": timedelta(hours=1)})
    assert (job.queue, job.priority, job.expires_in) == ("slow", 0, 3600.0)


def test_options_of_the_call_reach_the_job(app: PgQueue) -> None:
    at = datetime.now(UTC) + timedelta(days=1)
    options = {
        "eta": at,
        "expires": at,
        "task_id": UUID(ID),
        "unique_key": "k",
        "headers": {"a": 1},
        "ignore_result": True,
    }
    job = app.task(add).job((1,), {}, options)
    assert (job.eta, job.expires, job.expires_in, job.id, job.known) == (at, at, None, ID, True)
    assert (job.unique_key, job.headers, job.ignore_result) == ("k", '{"a":1}', True)
    assert app.task(add).job((1,), {}, {"countdown": timedelta(minutes=1)}).countdown == 60.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda task: task.delay(), InvalidArguments),
        (lambda task: task.delay("x"), InvalidArguments),
        (lambda task: task.delay(1, 2, 3), InvalidArguments),
        (lambda task: task.delay(1, z=1), InvalidArguments),
        (lambda task: task.apply_async("1"), InvalidArguments),
        (lambda task: task.apply_async((1,), [1]), InvalidArguments),
        (lambda task: task.apply_async((1,), conection=None), InvalidOption),
        (lambda task: task.apply_async((1,), countdown=-1), InvalidOption),
        (lambda task: task.apply_async((1,), countdown=1, eta=datetime.now(UTC)), InvalidOption),
        (lambda task: task.apply_async((1,), eta=datetime(2030, 1, 1)), InvalidOption),
        (lambda task: task.apply_async((1,), task_id="7"), InvalidOption),
        (lambda task: task.apply_async((1,), headers={"x": object()}), NotSerializable),
        (lambda task: task.apply_async((1,), headers={"x": "y" * 2_000_000}), PayloadTooLarge),
    ],
)
def test_a_call_is_checked_before_anything_is_sent(
    app: PgQueue, call: Callable[[Any], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(app.task(add))


def test_typing_false_leaves_the_check_to_the_worker(app: PgQueue) -> None:
    assert app.task(typing=False)(add).job(("x",), {"z": 1}, {}).args == '["x"]'


def test_a_value_that_cannot_be_stored_is_named_by_its_path(app: PgQueue) -> None:
    @app.task
    def anything(value: Any) -> None: ...

    with pytest.raises(NotSerializable, match=r"args\[0\]\.lines\[1\]"):
        anything.delay({"lines": [1, object()]})


# -- signatures --------------------------------------------------------------------------------------------------


def test_a_signature_is_a_call_that_is_not_made_yet(app: PgQueue) -> None:
    task = app.task(add)
    signature = task.s(2, y=3)
    assert isinstance(signature, Signature)
    assert (signature.task, signature.args, signature.kwargs, signature.options) == (task, (2,), {"y": 3}, {})
    assert (signature.job().args, signature.job().kwargs) == ("[2]", '{"y":3}')


def test_set_gives_a_signature_more_options_and_returns_it(app: PgQueue) -> None:
    plain = app.task(add).s(2)
    first = plain.set(priority=9, queue="mail")
    second = first.set(queue="slow", countdown=5)
    assert plain is first is second
    assert second.options == {"priority": 9, "queue": "slow", "countdown": 5}
    job = second.job()
    assert (job.priority, job.queue, job.countdown) == (9, "slow", 5.0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"countdwn": 5}, "did you mean 'countdown'"),
        ({"priority": 10}, "priority"),
        ({"countdown": 1, "eta": datetime(2030, 1, 1, tzinfo=UTC)}, "countdown and eta"),
        ({"connection": object()}, "connection"),
    ],
)
def test_set_checks_its_options_at_once(app: PgQueue, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidOption, match=problem):
        app.task(add).s(2).set(**options)


def test_a_connection_is_handed_on_to_the_app(app: PgQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, int | None]] = []

    def enqueue(_: PgQueue, jobs: Any, knows: Any, connection: object) -> list[AsyncResult[Any]]:
        given.append((connection, jobs[0].priority))
        return [app.AsyncResult(job.id) for job in jobs]

    async def aenqueue(_: PgQueue, jobs: Any, knows: Any, connection: object) -> list[AsyncResult[Any]]:
        return enqueue(_, jobs, knows, connection)

    monkeypatch.setattr("pgqueue.app.enqueue", enqueue)
    monkeypatch.setattr("pgqueue.app.aenqueue", aenqueue)
    task = app.task(add)
    task.delay(1)
    task.apply_async((1,), connection="ours", priority=9)
    asyncio.run(task.aapply_async((1,), connection="ours", priority=8))
    app.send_task(task.name, (1,), connection="ours", priority=7)
    app.send_task("elsewhere.add", (1,), connection="ours", priority=6)
    asyncio.run(app.asend_task("elsewhere.add", (1,), connection="ours"))
    app.enqueue_many([task.s(1)], connection="ours")
    assert given == [(None, 5), ("ours", 9), ("ours", 8), ("ours", 7), ("ours", 6), ("ours", 5), ("ours", 5)]


@pytest.mark.parametrize("ignored", [False, True])
def test_handles_know_whether_the_result_is_ignored(
    app: PgQueue, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    def run(_: Database, statement: Statement[AsyncResult[Any]], again: object) -> list[AsyncResult[Any]]:
        assert statement.answer is not None
        return statement.answer()

    monkeypatch.setattr(Database, "run", run)
    task = app.task(ignore_result=ignored)(add)
    handles = [task.delay(1), *app.enqueue_many([task.s(1), task.s(1).set(ignore_result=not ignored)])]
    assert [handle.ignored for handle in handles] == [ignored, ignored, not ignored]
