"""Settings and the DSN: arguments before variables before defaults, and a typed error for everything wrong."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from pgqueue import PgQueue
from pgqueue.errors import SettingsError
from pgqueue.settings import Settings, find_dsn, load_settings

VARIABLES = ("PGQUEUE_DSN", "DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# -- where the database is ------------------------------------------------------------------------------------------


def test_the_dsn_is_looked_for_in_this_order() -> None:
    places = {"PGQUEUE_DSN": "postgresql:///two", "DATABASE_URL": "postgresql:///three", "PGHOST": "four"}
    assert find_dsn("postgresql:///one", places) == "postgresql:///one"
    assert find_dsn(None, places) == "postgresql:///two"
    del places["PGQUEUE_DSN"]
    assert find_dsn(None, places) == "postgresql:///three"
    del places["DATABASE_URL"]
    assert find_dsn(None, places) == ""
    del places["PGHOST"]
    with pytest.raises(SettingsError, match="pass dsn= or --dsn, or set PGQUEUE_DSN"):
        find_dsn(None, places)


@pytest.mark.parametrize("name", VARIABLES[2:])
def test_any_variable_of_libpq_is_enough(name: str) -> None:
    assert find_dsn(None, {name: "x"}) == ""


def test_an_empty_variable_says_nothing() -> None:
    assert find_dsn("", {"PGQUEUE_DSN": "", "DATABASE_URL": "postgresql:///x", "PGHOST": ""}) == "postgresql:///x"
    with pytest.raises(SettingsError):
        find_dsn("", {"PGQUEUE_DSN": "", "PGHOST": ""})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("postgresql+psycopg://u:p@db/shop?x=1", "postgresql://u:p@db/shop?x=1"),
        ("postgresql+asyncpg://db/shop", "postgresql://db/shop"),
        ("postgres+psycopg2://db/shop", "postgres://db/shop"),
        ("postgres://db/shop", "postgres://db/shop"),
        ("host=db dbname=a+b://c", "host=db dbname=a+b://c"),
    ],
)
def test_a_driver_in_the_scheme_is_left_out(given: str, found: str) -> None:
    assert find_dsn(given, {}) == found
    assert find_dsn(None, {"PGQUEUE_DSN": given}) == found
    assert find_dsn(None, {"DATABASE_URL": given}) == found


def test_an_app_looks_for_its_database_when_it_first_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    app = PgQueue("shop")
    with pytest.raises(SettingsError, match="no database is named"):
        app.send_task("add")
    monkeypatch.setenv("PGQUEUE_DSN", "postgresql:///later")
    assert app.database.dsn == "postgresql:///later"
    monkeypatch.setenv("PGQUEUE_DSN", "postgresql:///too_late")
    assert app.database.dsn == "postgresql:///later"
    assert PgQueue("shop", dsn="postgresql:///given").database.dsn == "postgresql:///given"


# -- settings -------------------------------------------------------------------------------------------------------


def test_arguments_win_over_variables_and_variables_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).pool_size == 10
    monkeypatch.setenv("PGQUEUE_POOL_SIZE", "20")
    monkeypatch.setenv("PGQUEUE_SCHEMA", "from_env")
    monkeypatch.setenv("PGQUEUE_RESULT_EXPIRES", "3600")
    found = load_settings({})
    assert (found.pool_size, found.schema_name, found.result_expires) == (20, "from_env", timedelta(hours=1))
    given = load_settings({"pool_size": 30, "schema_name": "given", "result_expires": 60})
    assert (given.pool_size, given.schema_name, given.result_expires) == (30, "given", timedelta(minutes=1))


def test_none_leaves_a_setting_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_SCHEMA", "from_env")
    assert load_settings({"schema_name": None}).schema_name == "from_env"
    assert PgQueue("shop").settings.schema_name == "from_env"
    assert PgQueue("shop", schema="given").settings.schema_name == "given"


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", "postgresql:///x")
    monkeypatch.setenv("PGQUEUE_SOMETHING", "x")
    load_settings({})


@pytest.mark.parametrize(("text", "pooler"), [("true", True), ("0", False), (None, None)])
def test_whether_there_is_a_pooler_is_found_out_unless_it_is_said(
    text: str | None, pooler: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        monkeypatch.setenv("PGQUEUE_POOLER", text)
    app = PgQueue("shop", dsn="postgresql:///shop")
    assert app.settings.pooler is pooler
    assert app.database.pooled is pooler


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pool_size", 0),
        ("pool_size", "many"),
        ("max_payload_bytes", -1),
        ("connect_timeout", 0),
        ("statement_timeout", 0),
        ("pooler", "perhaps"),
        ("connect_timeout", float("nan")),
        ("poll_interval", 60),
        ("max_crashes", 0),
        ("grace", -1),
        ("default_queue", ""),
        ("default_queue", "q" * 101),
        ("default_queue", "a\0"),
        ("result_expires", "soon"),
        ("result_expires", timedelta(-1)),
        ("schema_name", "Robert'); drop table"),
        ("schema_name", "pg_temp"),
        ("schema_name", ""),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=rf"^setting \w+={re.escape(f'{value!r:.80}')}: "):
        load_settings({name: value})
    if "\0" not in str(value):
        variable = "PGQUEUE_SCHEMA" if name == "schema_name" else f"PGQUEUE_{name.upper()}"
        monkeypatch.setenv(variable, str(value))
        with pytest.raises(SettingsError, match=r"^setting "):
            load_settings({})


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'pool_sise'; did you mean 'pool_size'"):
        PgQueue("shop", pool_sise=3)


def test_settings_cannot_be_changed_behind_the_app() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings({}).pool_size = 3


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
