"""The pytest plugin for users, in runs of pytest of their own, and the programs of `docs/testing.md`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from test_readme import _DJANGO_SETTINGS, Reader, blocks, commands, file_name

from pgqueue import PgQueue
from pgqueue.errors import InvalidOption
from pgqueue.testing import assert_enqueued, enqueued, refute_enqueued, temporary_schema, worker
from pgqueue.testing.database import empty, server
from pgqueue.worker.joined import joined

pytest_plugins = ["pytester"]

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
_PLUGIN = "pgqueue.testing.plugin"

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, fresh_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest on a test module, with no plugin but ours, and every warning an error."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PGQUEUE_TEST_DSN", fresh_dsn)
    for name in ("PGQUEUE_DSN", "PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(textwrap.dedent(source))
        return pytester.runpytest_subprocess(
            "-p", _PLUGIN, "-W", "error", "--strict-markers", "-p", "no:cacheprovider", *arguments, timeout=60
        )

    return run


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("tested", dsn=dsn, set_as_current=False)

    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    yield app
    app.close()


# -- the fixtures --------------------------------------------------------------------------------------------------


def test_every_fixture_in_a_run_of_its_own(run: Run, fresh_dsn: str) -> None:
    result = run(
        """
        import threading

        import pytest
        from pgqueue import PgQueue
        from pgqueue.app import shared_task

        @shared_task(name="double")
        def double(x):
            return 2 * x

        @pytest.fixture(scope="session")
        def pgqueue_config():
            return {"max_requeues": 7, "conf": {"task_default_queue": "tests", "task_time_limit": 60}}

        @pytest.fixture(scope="session")
        def pgqueue_parameters():
            return {"name": "mine"}

        @pytest.fixture(scope="session")
        def pgqueue_worker_parameters():
            return {"concurrency": 2, "queues": ("tests", "other")}

        def test_config(pgqueue_app):
            assert (pgqueue_app.name, pgqueue_app.default_queue, pgqueue_app.max_requeues) == ("mine", "tests", 7)
            assert pgqueue_app.conf.task_time_limit == 60
            assert double.delay(1).id
            assert double.app is pgqueue_app

        @pytest.mark.pgqueue(max_requeues=8, conf={"task_acks_late": False})
        class TestMarker:
            def test_of_the_class(self, pgqueue_app):
                assert (pgqueue_app.max_requeues, pgqueue_app.default_queue) == (8, "tests")
                assert pgqueue_app.conf.task_time_limit == 60

            @pytest.mark.pgqueue(max_requeues=9)
            def test_of_the_function(self, pgqueue_app):
                assert pgqueue_app.max_requeues == 9
                assert pgqueue_app.conf.task_acks_late is False

        def test_drain_on_empty_tables(pgqueue_app, pgqueue_drain):
            assert pgqueue_drain() == []  # test_config has left a job
            double.delay(2)
            assert [done.value for done in pgqueue_drain("tests")] == [4]

        def test_asserting(pgqueue_app, assert_enqueued, refute_enqueued):
            refute_enqueued(double)
            double.apply_async((3,), countdown=60)
            (job,) = assert_enqueued(double, (3,), eta=60)
            assert job.args == [3]

        def test_a_failing_assertion(pgqueue_app, assert_enqueued):
            double.delay(4)
            assert_enqueued(double, (5,))

        def test_eager(pgqueue_eager, pgqueue_drain):
            @pgqueue_eager.task
            def fail():
                raise LookupError

            assert double.delay(2).get() == 4
            with pytest.raises(LookupError):
                fail.delay()
            assert pgqueue_drain() == []

        def test_not_eager_any_more(pgqueue_app):
            assert not pgqueue_app.always_eager

        workers = []

        def test_worker(pgqueue_app, pgqueue_worker):
            workers.append({thread.name for thread in threading.enumerate()})
            assert double.apply_async((3,), queue="other").get(timeout=10) == 6

        def test_the_worker_has_ended():
            assert "pgqueue-slot-1" in workers[0]
            assert not [name for name in map(lambda t: t.name, threading.enumerate()) if "slot" in name or "io" in name]

        def test_session_worker(pgqueue_session_app, pgqueue_session_worker):
            @pgqueue_session_app.task(name="session")
            def session():
                return "session"

            assert session.delay().get(timeout=10) == "session"
            assert double.app is not pgqueue_session_app

        def test_session_worker_beside_empty_tables(pgqueue_app, pgqueue_session_app, pgqueue_session_worker):
            assert pgqueue_session_app.send_task("session").get(timeout=10) == "session"
        """
    )
    result.assert_outcomes(passed=11, failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_enqueued(double, (5,))",
            "*AssertionError: double with args=(5,): not enqueued, not once. Unfinished jobs:",
            "* double(4): queue tests, priority 5",
        ]
    )
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("select nspname from pg_namespace where nspname like 'pgqueue%'").fetchall() == []


def test_an_app_of_ones_own(run: Run) -> None:
    run(
        """
        import pytest
        from pgqueue import PgQueue

        app = PgQueue("shop", dsn="postgresql://nowhere.invalid/shop", schema="shop_jobs")

        @app.task
        def add(x, y):
            return x + y

        @pytest.fixture
        def pgqueue_app(pgqueue_dsn, pgqueue_schema):
            app.configure(dsn=pgqueue_dsn, schema=pgqueue_schema)
            yield app
            app.close()

        def test_drain(pgqueue_drain, assert_enqueued):
            add.delay(2, 3)
            assert_enqueued(add, [2, 3])
            assert pgqueue_drain()[0].value == 5

        def test_worker(pgqueue_worker):
            assert add.delay(2, 3).get(timeout=10) == 5

        def test_eager(pgqueue_eager):
            assert add.delay(2, 3).get() == 5

        def test_not_eager(pgqueue_app):
            assert not app.always_eager
        """
    ).assert_outcomes(passed=4)


def test_a_task_that_does_not_end_fails_the_test_within_seconds(run: Run) -> None:
    result = run(
        """
        import threading

        import pytest

        begun, gate = threading.Event(), threading.Event()

        @pytest.fixture(scope="session")
        def pgqueue_worker_parameters():
            return {"grace": 0.2}

        @pytest.fixture
        def stubborn(pgqueue_app):
            @pgqueue_app.task(name="stubborn")
            def stubborn():
                begun.set()
                gate.wait()

            return stubborn

        def test_stubborn(stubborn, pgqueue_worker):
            stubborn.delay()
            assert begun.wait(10)

        def test_others_go_on(pgqueue_app, pgqueue_drain):
            gate.set()
            assert pgqueue_drain() == []
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*RuntimeError: the worker could not end within 0.2 s: a task goes on:", "*gate.wait()"]
    )


def test_a_server_of_the_run_or_a_clear_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester
) -> None:
    monkeypatch.delenv("PGQUEUE_TEST_DSN")
    source = """
        def test_drain(pgqueue_app, pgqueue_drain):
            @pgqueue_app.task
            def add(x, y):
                return x + y

            add.delay(2, 3)
            assert pgqueue_drain()[0].value == 5
        """
    run(source).assert_outcomes(passed=1)
    pytester.makeconftest(
        """
        import pgqueue.testing.database
        from pgqueue.errors import DatabaseUnavailable

        def binaries():
            raise DatabaseUnavailable("There is no PostgreSQL server to start: pip install it")

        pgqueue.testing.database.binaries = binaries
        """
    )
    result = run(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*DatabaseUnavailable: There is no PostgreSQL server*PGQUEUE_TEST_DSN=postgresql://*"])


def test_the_plugin_imports_nothing_of_the_engine() -> None:
    code = f"import sys, pytest; before = set(sys.modules); import {_PLUGIN}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT)
    assert set(done.stdout.split()) == {"pgqueue", "pgqueue.testing", _PLUGIN}


def test_the_plugin_is_an_entry_point_that_registers_its_marker(run: Run) -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"pgqueue": _PLUGIN}
    result = run("def test_nothing(): ...", "--markers", "--fixtures")
    result.stdout.fnmatch_lines(["@pytest.mark.pgqueue(*settings*"])


# -- the functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"args": (2, 3)},
        {"args": [2, 3], "kwargs": {}},
        {"queue": "mail"},
        {"priority": 9},
        {"eta": 90},
        {"args": (2, 3), "queue": "mail", "priority": 9, "eta": 90.0},
    ],
)
def test_a_job_that_was_enqueued_is_found(app: PgQueue, wanted: dict[str, Any]) -> None:
    result = app.tasks["add"].apply_async((2, 3), queue="mail", priority=9, countdown=90)
    (job,) = assert_enqueued(app, "add", **wanted)
    assert (job.id, job.running) == (result.id, False)
    assert assert_enqueued(app, app.tasks["add"], eta=job.eta) == [job]
    with pytest.raises(
        AssertionError, match=r"^add.*once enqueued, which it should not be\. Unfinished jobs:\n->  ?add"
    ):
        refute_enqueued(app, "add", **wanted)


@pytest.mark.parametrize(
    "other",
    [{"args": ()}, {"args": (2,)}, {"kwargs": {"y": 3}}, {"queue": "x"}, {"priority": 0}, {"eta": None}, {"eta": 91}],
)
def test_another_job_is_not(app: PgQueue, other: dict[str, Any]) -> None:
    app.tasks["add"].apply_async((2, 3), queue="mail", priority=9, countdown=90)
    refute_enqueued(app, "add", **other)
    refute_enqueued(app, "sub")
    (name,) = other
    with pytest.raises(
        AssertionError, match=rf"^add with {name}=.*: not enqueued, not once\..*\n   add\(2, 3\): queue mail"
    ):
        assert_enqueued(app, "add", **other)


def test_assertions_count_and_say_what_there_is(app: PgQueue) -> None:
    add = app.tasks["add"]
    with pytest.raises(AssertionError, match=r"^add: not enqueued, not once\. There are no unfinished jobs\.$"):
        assert_enqueued(app, add)
    app.enqueue_many([add.s(1), add.s(2, y=3)])
    app.send_task("other", queue="elsewhere")
    assert len(assert_enqueued(app, add, count=2, eta=None)) == 2
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(app, add)
    assert str(caught.value) == (
        "add: twice enqueued, not once. Unfinished jobs:\n"
        "-> add(1): queue default, priority 5\n"
        "-> add(2, y=3): queue default, priority 5\n"
        "   other(): queue elsewhere, priority 5"
    )
    assert [str(job) for job in enqueued(app, queue="elsewhere")] == ["other(): queue elsewhere, priority 5"]
    app.enqueue_many(add.s(n) for n in range(30))
    with pytest.raises(AssertionError, match="and 13 more"):
        refute_enqueued(app, add)
    with pytest.raises(InvalidOption, match="args must be a list"):
        assert_enqueued(app, add, args="ab")


def test_what_only_a_transaction_knows_is_seen_on_its_connection(
    app: PgQueue, connect: Callable[..., psycopg.Connection[Any]]
) -> None:
    connection = connect()
    with connection.transaction(force_rollback=True):
        app.tasks["add"].apply_async((1,), connection=connection)
        refute_enqueued(app, "add")
        assert_enqueued(app, "add", connection=connection)
        with joined(app, connection):
            assert_enqueued(app, "add")
            with pytest.raises(InvalidOption, match=r"use drain\(\)"), worker(app):
                pass


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_a_worker_in_a_thread_runs_jobs_and_ends(app: PgQueue, conn: psycopg.Connection[Any], pool: str) -> None:
    with worker(app, pool=pool):
        assert app.tasks["add"].delay(2, 3).get(timeout=10) == 5
        assert conn.execute("select count(*) from pgqueue.worker").fetchone() == (1,)
    assert conn.execute("select count(*) from pgqueue.worker").fetchone() == (0,)


def test_a_worker_that_cannot_be_a_thread_is_refused(app: PgQueue, fresh_dsn: str) -> None:
    with pytest.raises(InvalidOption, match="its pool is threads"), worker(app, pool="prefork"):
        pass
    with pytest.raises(InvalidOption, match="did you mean 'concurrency'"), worker(app, concurency=2):
        pass
    app.configure(dsn=fresh_dsn)
    with pytest.raises(Exception, match="pgqueue migrate"), worker(app):
        pass


def test_a_hard_time_limit_ends_the_worker_and_not_the_process(app: PgQueue, gate: Callable[[], None]) -> None:
    @app.task(name="long", time_limit=0.2)
    def long() -> None:
        with psycopg.connect(app.database.dsn) as connection:
            connection.execute("select pg_advisory_lock(1)")

    with pytest.raises(RuntimeError, match="hard time limit"), worker(app):
        result = long.delay()
        with pytest.raises(Exception, match="time limit"):
            result.get(timeout=10)
    gate()


def test_a_schema_for_a_while(fresh_dsn: str) -> None:
    with temporary_schema(fresh_dsn.replace("postgresql://", "postgresql+psycopg://", 1)) as schema:
        app = PgQueue("there", dsn=fresh_dsn, schema=schema, set_as_current=False)
        app.send_task("something")
        empty(fresh_dsn, schema)
        assert enqueued(app) == []
        app.close()
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("select to_regnamespace(%s)", [schema]).fetchone() == (None,)


def test_a_named_database_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_TEST_DSN", "postgresql+asyncpg://db/shop")
    with server() as dsn:
        assert dsn == "postgresql://db/shop"


# -- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_program_of_the_page_runs(fresh_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "django_settings.py").write_text(_DJANGO_SETTINGS)
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGQUEUE_TEST_DSN": fresh_dsn,
        "PGQUEUE_DSN": fresh_dsn,  # for the settings of Django
        "DJANGO_SETTINGS_MODULE": "django_settings",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": _PLUGIN,
        "PYTHONWARNINGS": "error",
    }
    reader = Reader(tmp_path, fresh_dsn, environ)
    for block in blocks(_PAGE):
        reader.follow(block)


def test_every_program_of_the_page_is_run() -> None:
    found = list(blocks(_PAGE))
    assert {block.kind for block in found} == {"python", "console"}
    said = " ".join(command for block in found if block.kind == "console" for command, _ in commands(block))
    for name in (file_name(block) for block in found if block.kind == "python"):
        if name not in ("shop.py", "conftest.py"):  # the others import them
            assert re.search(rf"\b{name.removesuffix('.py')}\b", said), name


def test_the_page_names_every_fixture() -> None:
    source = (_ROOT / "pgqueue" / "testing" / "plugin.py").read_text(encoding="utf-8")
    fixtures = set(re.findall(r"@pytest\.fixture.*\ndef ([a-z]\w*)", source))
    table = _PAGE.partition("## Fixtures")[2].partition("\n\nSettings")[0]
    assert len(fixtures) > 10
    assert {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1:2][0] if "|" in line else "")
    } == fixtures
