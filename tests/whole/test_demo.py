"""`pgqueue demo` as a user runs it: what it proves, what it shows, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import pty
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.cli.demo.place import _create
from pgqueue.cli.demo.report import Killed, Report, make_report
from pgqueue.cli.demo.tasks import measure, source_files

Demo = Callable[..., AbstractContextManager[subprocess.Popen[str]]]

_COMMAND = (sys.executable, "-m", "pgqueue", "demo")
_FEW = ("--limit", "150")
#: A shell shows both as 130; the second is Python's own, in the moments before and after ours.
_INTERRUPTED = (130, -signal.SIGINT)
_SOME = ("--limit", "300")  # enough of them to be interrupted half-way
_PATIENCE = 20.0  # seconds for processes to end

_PROOF = Report(
    files=9, workers=2, retries_planned=3, workers_killed=1, killed_pid=7, held_when_killed=1, seconds=2.0, jobs=9,
    rows=9, doubled=0, lost=0, unacknowledged=0, retries=3, crashes_survived=1, redelivered=1, working_seconds=1.0,
    jobs_per_second=9.0,
)  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder for temporary files of a demo; everybody may enter, should PostgreSQL have to run as nobody."""
    made = Path(tempfile.mkdtemp(prefix="pgq-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def mark() -> str:
    """A variable in the environment of every process of a demo."""
    return f"DEMO_MARK={secrets.token_hex(8)}"


@pytest.fixture
def demo(folder: Path, mark: str) -> Demo:
    """Starts a demo in a process group of its own, as a shell does; it is killed if the test fails."""
    name, _, value = mark.partition("=")
    environ = {name_: text for name_, text in os.environ.items() if name_ not in ("FORCE_COLOR", "TTY_COMPATIBLE")}

    @contextmanager
    def start(*options: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [*_COMMAND, *options],
            env={**environ, name: value, "TMPDIR": str(folder)},
            text=True,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def left(mark: str) -> list[str]:
    """The processes that have the mark in their environment; a zombie has none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(f"{process.name}: {(process / 'cmdline').read_text()}")
        except OSError:
            continue
    return found


def await_none_left(mark: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while left(mark):  # they are not our children, so nothing tells us
        assert time.monotonic() < deadline, left(mark)
        time.sleep(0.05)


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if part in line:
            return line
    raise AssertionError(f"{part!r} was not printed")


def schemas(dsn: str) -> set[str]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute("select nspname from pg_namespace where nspname ~ 'demo|pgqueue'").fetchall()
    return {name for (name,) in rows}


def check_proof(proof: dict[str, Any], files: int) -> None:
    assert proof["files"] == proof["jobs"] == proof["rows"] == files
    assert proof["doubled"] == proof["lost"] == proof["unacknowledged"] == 0
    assert proof["retries"] == proof["retries_planned"] == 12
    assert proof["workers_killed"] == 1
    assert proof["held_when_killed"] >= proof["redelivered"] >= 1
    assert proof["crashes_survived"] >= 1
    assert proof["jobs_per_second"] > 0
    assert len(proof["slowest"]) == 5
    assert proof["proven"] is True


def test_json_is_one_object_with_the_proof(demo: Demo, mark: str, folder: Path) -> None:
    with demo(*_FEW, "--json") as process:
        code, out, err = finish(process)
    assert code == 0, err
    check_proof(json.loads(out), 150)
    assert not left(mark)
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_all_files_in_less_than_a_minute(demo: Demo, mark: str, folder: Path) -> None:
    with demo("--json") as process:
        code, out, err = finish(process)
    assert code == 0, err
    proof = json.loads(out)
    check_proof(proof, len(source_files()))
    assert proof["seconds"] < 60
    assert not left(mark)
    assert not list(folder.iterdir())


def test_plain_lines_where_there_is_no_terminal(demo: Demo) -> None:
    with demo(*_FEW) as process:
        code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\r" not in out
    assert "100 %  150 of 150 files" in out
    assert "✗" not in out
    assert out.count("✓") == len(_PROOF.checks())


def test_a_bar_on_a_terminal(demo: Demo, mark: str) -> None:
    terminal, end = pty.openpty()
    environ_like_a_terminal = {"stdout": end, "stderr": end, "stdin": end}
    shown = b""
    with demo(*_FEW, **environ_like_a_terminal) as process, os.fdopen(terminal, "rb", buffering=0) as screen:
        os.close(end)
        while chunk := _read(screen.fileno()):
            shown += chunk
        assert process.wait(_PATIENCE) == 0
    assert "━".encode() in shown
    assert b"150/150" in shown
    assert not left(mark)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how a terminal says that nobody has it open any more
        return b""


def test_the_psql_command_works_while_it_runs(demo: Demo) -> None:
    with demo(*_FEW) as process:
        command = shlex.split(wait_for_line(process, "look in").partition("look in")[2])
        done = subprocess.run(
            [*command, "-Atc", "select count(*) >= 0 from demo.module"], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("t\n", "")
        assert finish(process)[0] == 0


@pytest.mark.parametrize("moment", ["database", "10 %", "is killed"])
def test_ctrl_c_leaves_nothing(demo: Demo, mark: str, folder: Path, moment: str) -> None:
    with demo(*_SOME) as process:
        wait_for_line(process, moment)
        assert len(left(mark)) > 1
        os.killpg(process.pid, signal.SIGINT)
        code, _, err = finish(process)
    assert code in _INTERRUPTED, err
    assert "Traceback" not in err
    assert not left(mark)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_ctrl_c_while_the_server_starts_leaves_nothing(demo: Demo, mark: str, folder: Path, seconds: float) -> None:
    with demo(*_SOME) as process:
        while not list(folder.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        code, _, err = finish(process)
    assert code in _INTERRUPTED, err
    assert not left(mark)
    assert not list(folder.iterdir())


def test_a_second_ctrl_c_does_not_disturb_the_cleaning(demo: Demo, mark: str, folder: Path) -> None:
    with demo(*_SOME) as process:
        wait_for_line(process, "10 %")
        for _ in range(5):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        assert finish(process)[0] in _INTERRUPTED
    assert not left(mark)
    assert not list(folder.iterdir())


def test_sigterm_leaves_nothing(demo: Demo, mark: str, folder: Path) -> None:
    with demo(*_SOME) as process:
        wait_for_line(process, "10 %")
        process.terminate()
        assert finish(process)[0] == 128 + signal.SIGTERM
    assert not left(mark)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("moment", ["database", "20 %"])
def test_sigkill_leaves_nothing_running(demo: Demo, mark: str, moment: str) -> None:
    with demo(*_SOME) as process:
        wait_for_line(process, moment)
        assert len(left(mark)) > 1
        process.kill()
        process.communicate()
    await_none_left(mark)


def test_a_given_database_is_left_as_it_was(demo: Demo, mark: str, fresh_dsn: str) -> None:
    with demo(*_FEW, "--json", "--dsn", fresh_dsn) as process:
        code, out, err = finish(process)
    assert code == 0, err
    check_proof(json.loads(out), 150)
    assert schemas(fresh_dsn) == set()
    assert not left(mark)


@pytest.mark.parametrize("taken", ["demo", "pgqueue_demo"])
def test_schemas_of_others_are_not_touched(demo: Demo, fresh_dsn: str, taken: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(f"create schema {taken}; create table {taken}.theirs ()".encode())
    with demo("--dsn", fresh_dsn) as process:
        code, _, err = finish(process)
    assert code == 1
    assert f'schema "{taken}" already exists' in err
    assert schemas(fresh_dsn) == {taken}


def test_a_kept_database_can_be_looked_at(demo: Demo, mark: str, folder: Path) -> None:
    kept = folder / "kept"
    with demo(*_FEW, "--keep", str(kept)) as process:
        code, out, err = finish(process)
    assert code == 0, err
    assert not left(mark)
    assert list(folder.iterdir()) == [kept]
    statements = out[out.index("-- What the jobs have written") :]
    with demo("--open", str(kept), stdin=subprocess.PIPE) as process:
        out, err = process.communicate(
            f"\\set ON_ERROR_STOP on\n{statements}\nselect 'rows', count(*) from demo.module;"
        )
    assert (process.returncode, err) == (0, "")
    assert "SUCCESS" in out
    assert "rows     |   150" in out
    with demo("--keep", str(kept)) as process:
        code, _, err = finish(process)
    assert code == 2
    assert "exists already" in err
    assert not left(mark)


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobs": 8}, {"rows": 8}, {"rows": 10}, {"doubled": 1}, {"lost": 1}, {"unacknowledged": 1}, {"retries": 2},
        {"workers_killed": 0}, {"crashes_survived": 0}, {"files": 0},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_proven_if_one_number_is_wrong(wrong: dict[str, Any]) -> None:
    assert _PROOF.proven
    assert not replace(_PROOF, **wrong).proven


def test_the_numbers_come_from_the_tables(fresh_dsn: str) -> None:
    _create(fresh_dsn, "pgqueue_demo")
    columns = "(path, lines, comments, classes, functions, imports, branches, longest_lines, job)"
    row = "0, 0, 0, 0, 0, 0, 0, gen_random_uuid()"
    worker = "00000000-0000-7000-8000-000000000000"
    with closing(psycopg.connect(fresh_dsn, autocommit=True)) as connection:
        connection.execute(
            f"insert into demo.module {columns} values ('a', {row}), ('a', {row}), ('b', {row})".encode()
        )
        connection.execute(
            "insert into pgqueue_demo.job (id, eta, enqueued_at, task) values (gen_random_uuid(), now(), now(), 't')"
        )
        report = make_report(connection, "pgqueue_demo", ["a", "b", "c"], Killed(worker, 1, [worker]), 2, 0, 1.0)
    assert (report.files, report.jobs, report.rows, report.doubled, report.lost) == (3, 1, 3, 1, 1)
    assert (report.unacknowledged, report.redelivered, report.jobs_per_second) == (3, 0, 0.0)
    assert not report.proven


def test_a_source_file_is_measured() -> None:
    found = measure(
        b"import os  # why\n\nclass A:\n    def f(self):\n        if os:\n            pass\n\nasync def g(): ...\n"
    )
    assert (found.lines, found.comments, found.classes, found.functions, found.imports) == (8, 1, 1, 2, 1)
    assert (found.branches, found.longest, found.longest_lines) == (1, "f", 3)
    assert measure(b"").longest is None
    assert measure("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1")).comments == 1


def test_the_standard_library_without_its_tests() -> None:
    files = source_files()
    assert len(files) > 500
    assert any(path.endswith("/ast.py") for path in files)
    assert not any("/test/" in path or "/site-packages/" in path for path in files)
