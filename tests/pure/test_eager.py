"""Eager runs: the whole of a call here and now, with the tracer and without a queue."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import Any

import pytest

from pgqueue import (
    EagerResult,
    Ignore,
    InvalidArguments,
    MaxRetriesExceededError,
    NotSerializable,
    PgQueue,
    Reject,
    State,
    Task,
    TaskRejectedError,
    TaskRevokedError,
)
from pgqueue.types import Failed, Replaced, Retried, Succeeded

AnyTask = Task[..., Any, Any]


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere")


def test_a_call_is_run_with_what_a_worker_would_give_and_take(app: PgQueue) -> None:
    @app.task(bind=True)
    def pair(self: AnyTask, x: int) -> tuple[int, int]:
        assert self.request.is_eager
        assert not self.request.called_directly
        return (x, 2 * x)

    result = pair.apply(("2",))  # type: ignore[arg-type]
    assert isinstance(result, EagerResult)
    assert (result.state, result.get(), result.args, result.name) == (State.SUCCESS, (2, 4), [2], pair.name)
    with pytest.raises(InvalidArguments):
        pair.apply(("no number",))
    with pytest.raises(NotSerializable):
        app.task(name="loose", typing=False)(lambda x: x).apply((object(),))


def test_retries_run_at_once_and_the_last_error_is_raised(app: PgQueue) -> None:
    seen: list[tuple[int, object]] = []

    @app.task(bind=True, max_retries=2)
    def flaky(self: AnyTask, n: int) -> None:
        seen.append((self.request.retries, n))
        raise self.retry(args=(n + 1,), exc=KeyError(f"attempt {n}"))

    result = flaky.apply((1,))
    assert seen == [(0, 1), (1, 2), (2, 3)]
    assert result.state is State.FAILURE
    with pytest.raises(KeyError, match="attempt 3"):
        result.get()
    with pytest.raises(KeyError, match="attempt 3"):
        flaky.apply((1,), throw=True)
    seen.clear()
    flaky.apply((1,), retries=2)
    assert seen == [(2, 1)]


def test_a_retry_too_many_without_an_exception_is_an_error_of_ours_with_the_arguments(app: PgQueue) -> None:
    @app.task(bind=True, max_retries=0)
    def gives_up(self: AnyTask, n: int) -> str:
        try:
            raise OSError("down")
        except OSError:
            try:
                self.retry()
            except self.MaxRetriesExceededError as error:
                return f"gave up {error.task_args} {error.task_kwargs}"
        return "unreachable"

    assert gives_up.apply((5,)).get() == "gave up (5,) {}"
    assert gives_up.MaxRetriesExceededError is MaxRetriesExceededError


def test_the_exception_of_a_retry_may_be_a_class_but_nothing_else(app: PgQueue) -> None:
    @app.task(bind=True)
    def again(self: AnyTask, exc: Any) -> None:
        self.retry(exc=ValueError if exc == "class" else exc, countdown=0)

    asked = again.trace(("class",))
    assert isinstance(asked, Retried)
    assert asked.error is not None
    assert asked.error.type == "ValueError"
    refused = again.trace(("a text",))
    assert isinstance(refused, Failed)
    assert refused.error.message.startswith("exc of a retry must be an exception")


def test_links_run_eagerly_and_are_the_children(app: PgQueue, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []
    app.task(name="note")(lambda *args: seen.append(args))
    good, bad = app.task(name="good")(lambda: 5), app.task(name="bad")(lambda: 1 / 0)
    note = app.tasks["note"]
    result = good.apply(link=[note.s("linked"), note.si("alone"), app.signature("elsewhere")], link_error=note.s("no"))
    failed = bad.apply(link=note.s("no"), link_error=note.s("errback"))
    assert seen == [(5, "linked"), ("alone",), (failed.id, "errback")]
    assert [child.name for child in result.children] == ["note", "note"]
    assert "no task 'elsewhere' is registered" in caplog.text


@pytest.mark.parametrize(
    ("raised", "state", "error"),
    [
        (Ignore(), State.IGNORED, None),
        (Reject("no"), State.REJECTED, TaskRejectedError),
        (Reject("no", requeue=True), State.REJECTED, TaskRejectedError),
    ],
)
def test_other_ends_are_those_of_a_worker(app: PgQueue, raised: Exception, state: State, error: Any) -> None:
    @app.task
    def task() -> None:
        raise raised

    result = task.apply()
    assert result.state is state
    if error is None:
        assert result.get() is None
    else:
        with pytest.raises(error):
            result.get()


def test_a_call_that_has_expired_does_not_run(app: PgQueue) -> None:
    ran: list[int] = []
    result = app.task(name="t")(lambda: ran.append(1)).apply(expires=0)
    assert result.state is State.REVOKED
    with pytest.raises(TaskRevokedError):
        result.get()
    assert not ran


def test_a_replacement_runs_under_the_same_id_with_the_links_of_both(app: PgQueue) -> None:
    seen: list[object] = []
    app.task(name="note")(lambda *args: seen.append(args))
    add = app.task(name="add")(lambda x, y: x + y)
    note = app.tasks["note"]

    @app.task(bind=True)
    def first(self: AnyTask) -> Any:
        return self.replace(add.s(20, 3).set(link=note.s("own")))

    result = first.apply(link=note.s("first's"), headers={"trace": "abc"})
    assert (result.get(), result.name) == (23, "add")
    assert sorted(seen, key=str) == [(23, "first's"), (23, "own")]
    asked = first.trace(headers={"trace": "abc"}, expires=60)
    assert isinstance(asked, Replaced)
    assert asked.headers == '{"trace":"abc"}'
    assert asked.expires is not None


def test_always_eager_turns_every_enqueue_into_a_run(app: PgQueue) -> None:
    app.conf.task_always_eager = True
    inner = app.task(name="inner")(lambda x: x)

    @app.task(bind=True)
    def outer(self: AnyTask) -> list[str]:
        inner.delay(1)
        inner.apply_async((2,), add_to_parent=False)
        return [child.id for child in self.request.children]

    assert inner.delay(3).get() == 3
    assert [result.get() for result in app.enqueue_many(inner.s(n) for n in range(3))] == [0, 1, 2]
    assert asyncio.run(inner.adelay(4)).get() == 4  # type: ignore[arg-type]
    result = outer.delay()
    assert result.get() == [result.children[0].id]
    app.conf.task_eager_propagates = True
    with pytest.raises(ZeroDivisionError):
        app.task(name="bad")(lambda: 1 / 0).delay()


async def test_a_coroutine_runs_inside_a_loop_too_and_keeps_its_context(app: PgQueue) -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    who.set("Ada")

    @app.task
    async def greet() -> str:
        await asyncio.sleep(0)
        return who.get()

    assert greet.apply().get() == "Ada"


@pytest.mark.parametrize("error", [KeyboardInterrupt, type("Failure", (BaseException,), {})])
def test_what_is_meant_for_the_caller_reaches_him(app: PgQueue, error: type[BaseException]) -> None:
    @app.task
    def task() -> None:
        raise error

    with pytest.raises(error):
        task.apply()


def test_a_task_that_leaves_the_process_has_failed(app: PgQueue) -> None:
    @app.task
    def leave() -> None:
        raise SystemExit(3)

    assert leave.apply().state is State.FAILURE


def test_the_exception_that_the_caller_handles_stays_whole(app: PgQueue) -> None:
    bad = app.task(name="bad")(lambda: 1 / 0)

    def caller() -> None:
        try:
            raise KeyError("mine")
        except KeyError:
            bad.apply()
            raise

    with pytest.raises(KeyError, match="mine") as caught:
        caller()
    assert caught.traceback[-1].name == "caller"


def test_one_attempt_can_be_had_without_a_database(app: PgQueue, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=7)
    def fetch(self: AnyTask, fails: bool) -> int:
        if fails:
            raise OSError("down")
        return self.request.retries

    with caplog.at_level(logging.ERROR):
        assert fetch.trace((False,)) == Succeeded("0")
        asked = fetch.trace((True,))
        assert isinstance(asked, Retried)
        assert asked.countdown == 7
        assert isinstance(fetch.trace((True,), retries=1), Failed)
    assert not caplog.records
