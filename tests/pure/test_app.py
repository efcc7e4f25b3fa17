"""An app declares tasks and checks settings without a database."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, NoReturn

import psycopg
import psycopg_pool
import pytest

import pgqueue.app
from pgqueue import InvalidOption, PgQueue, SettingsError, UnknownTask


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("shop", dsn="postgresql://127.0.0.1:1/nowhere")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection, pool and socket an error."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("nobody has asked for a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        monkeypatch.setattr(kind, "connect", refuse)
    for pool in (psycopg_pool.ConnectionPool, psycopg_pool.AsyncConnectionPool):
        monkeypatch.setattr(pool, "__init__", refuse)
    monkeypatch.setattr(pgqueue.app, "find_dsn", refuse)


# -- no database -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_an_app_its_tasks_and_their_calls_need_no_database() -> None:
    app = PgQueue("shop")

    @app.task(bind=True, queue="mail")
    def greet(self: Any, name: str) -> str:
        return f"Hello {name}"

    assert greet("Ada") == "Hello Ada"
    greet.s("Ada").set(priority=9).job()
    assert app.task_named(greet.name) is greet
    assert app.enqueue_many([]) == []
    assert asyncio.run(app.aenqueue_many([])) == []
    app.AsyncResult("0197c2b0-0000-7000-8000-000000000001")
    app.close()
    asyncio.run(app.aclose())


@pytest.mark.usefixtures("no_network")
def test_a_call_is_checked_whole_before_a_database_is_looked_for() -> None:
    app = PgQueue("shop")

    @app.task
    def add(x: int) -> int:
        return x

    with pytest.raises(AssertionError, match="nobody has asked"):
        add.delay(1)
    with pytest.raises(TypeError, match=r"add\(\): x: "):
        app.enqueue_many([add.s(1), add.s("x")])  # type: ignore[arg-type]


def test_an_app_without_any_database_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER", "PGQUEUE_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="pass dsn= or --dsn"):
        _ = PgQueue("shop").database


# -- settings ----------------------------------------------------------------------------------------------------


def test_an_unknown_setting_names_what_was_probably_meant() -> None:
    with pytest.raises(SettingsError, match="'default_que'; did you mean 'default_queue'"):
        PgQueue("shop", default_que="mail")


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_size": 0},
        {"pool_size": "many"},
        {"max_payload_bytes": 0},
        {"poll_interval": 60},
        {"schema": "no-good; drop"},
        {"default_queue": ""},
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_by_its_name(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingsError, match=name):
        PgQueue("shop", **settings)


def test_settings_reach_the_tasks() -> None:
    app = PgQueue("shop", dsn="postgresql://127.0.0.1:1/nowhere", default_queue="mail", max_payload_bytes=100)
    task = app.task(lambda: None)
    assert task.job((), {}, {}).queue == "mail"
    assert task.max_payload_bytes == 100


def test_configure_changes_the_schema_and_keeps_the_other_settings(app: PgQueue) -> None:
    app = PgQueue("shop", dsn="postgresql://127.0.0.1:1/nowhere", pool_size=3)
    app.configure(schema="other")
    assert (app.settings.schema_name, app.settings.pool_size) == ("other", 3)
    with pytest.raises(SettingsError, match="schema"):
        app.configure(schema="no-good; drop")


@pytest.mark.parametrize("name", ["", "x" * 101, 5, None])
def test_an_app_needs_a_name(name: Any) -> None:
    with pytest.raises(InvalidOption, match="name"):
        PgQueue(name)


def test_the_repr_of_an_app_tells_its_name_and_how_many_tasks_it_has(app: PgQueue) -> None:
    app.task(lambda: None)
    assert repr(app) == "<PgQueue 'shop': 1 tasks>"


# -- the registry ------------------------------------------------------------------------------------------------


def test_task_works_with_and_without_parentheses(app: PgQueue) -> None:
    @app.task
    def first() -> int:
        return 1

    @app.task()
    def second() -> int:
        return 2

    @app.task(queue="mail")
    def third() -> int:
        return 3

    assert [first(), second(), third()] == [1, 2, 3]
    assert list(app.tasks.values()) == [first, second, third]


def test_two_functions_cannot_have_one_name(app: PgQueue) -> None:
    @app.task(name="pay")
    def pay_invoice() -> None: ...

    with pytest.raises(InvalidOption, match=r"'pay' is declared twice, by .*pay_invoice and .*pay_order"):

        @app.task(name="pay")
        def pay_order() -> None: ...

    assert app.tasks["pay"] is pay_invoice


def test_the_same_name_in_two_modules_is_refused(app: PgQueue) -> None:
    def pay() -> None: ...

    def other() -> None: ...

    other.__qualname__, other.__module__ = pay.__qualname__, "elsewhere"
    app.task(name="pay")(pay)
    with pytest.raises(InvalidOption, match="declared twice"):
        app.task(name="pay")(other)


def test_a_function_that_is_declared_again_replaces_itself(app: PgQueue) -> None:
    def declare(value: int) -> Any:
        @app.task
        def answer() -> int:
            return value

        return answer

    first, second = declare(1), declare(2)
    assert first is not second
    assert app.task_named(second.name)() == 2


def test_two_apps_may_have_tasks_of_one_name(app: PgQueue) -> None:
    def pay() -> None: ...

    other = PgQueue("other", dsn="postgresql://127.0.0.1:1/nowhere")
    assert app.task(pay).app is app
    assert other.task(pay).app is other


def test_an_unknown_task_is_answered_with_the_nearest_names(app: PgQueue) -> None:
    app.task(name="mail.send")(lambda: None)
    with pytest.raises(UnknownTask) as caught:
        app.task_named("mail.sent")
    assert str(caught.value) == "no task 'mail.sent' is registered in shop; did you mean 'mail.send'?"
    with pytest.raises(UnknownTask, match="is its module imported"):
        app.task_named("zzz")


def test_a_call_by_name_of_a_registered_task_is_checked_like_any_other(app: PgQueue) -> None:
    def pay(amount: int) -> None: ...

    app.task(name="pay")(pay)
    with pytest.raises(TypeError, match="missing argument 'amount'"):
        app.send_task("pay")
    with pytest.raises(InvalidOption, match="countdown"):
        app.send_task("unknown.task", countdwn=5)
    with pytest.raises(InvalidOption, match="name"):
        app.send_task("")


def test_a_handle_needs_a_uuid(app: PgQueue) -> None:
    with pytest.raises(InvalidOption, match="not a UUID"):
        app.AsyncResult("7")
