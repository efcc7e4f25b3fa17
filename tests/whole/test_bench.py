"""`pgqueue bench` as a user runs it, with few jobs: what it prints, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.bench.ground import _LOCK, _MARK, SCHEMA, given_ground
from pgqueue.errors import BenchFailed

_COMMAND = (sys.executable, "-m", "pgqueue", "bench")
_LATENCY = ("latency", "--jobs", "5")  # the shortest

_KEYS = {
    ("drain", "--jobs", "2000", "--rounds", "1", "--processes", "2", "--payload", "100"): """
        jobs_per_second bare_jobs_per_second ratio worker_cpu_seconds_per_1000 server_cpu_seconds_per_1000 processes
        one_process_per_second scaling payload""",
    ("enqueue", "--jobs", "500", "--rounds", "1", "--seconds", "0.1", "--clients", "10"): """
        single_per_second bare_single_per_second single_ratio clients clients_per_second bare_clients_per_second
        clients_ratio many_per_second bare_copy_per_second many_ratio""",
    ("latency", "--jobs", "10", "--interval", "0.01"): "p50_ms p95_ms p99_ms max_ms",
    ("latency", "--jobs", "2", "--without-notifications"): "p50_ms max_ms poll_interval_ms bounded",
    ("held-snapshot", "--jobs", "1500", "--recovery", "0.1"): "clean_sixths held_sixths ratio recovery",
    ("held-snapshot", "--live", "--seconds", "1"): "intervals ratio backlog produced",
    ("mixed", "--seconds", "1", "--long", "0.3"): "p50_ms p99_ms max_ms waited_for_long_ms long short",
}


def environ(dsn: str, **more: str) -> dict[str, str]:
    return {**os.environ, "PGQUEUE_DSN": dsn, "PGQUEUE_POLL_INTERVAL": "0.1", **more}


def bench(dsn: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *words], env=environ(dsn, **more), capture_output=True, text=True, timeout=100)


def schemas(dsn: str) -> set[str]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute("select nspname from pg_namespace where nspname ~ 'bench|pgqueue'").fetchall()
    return {name for (name,) in rows}


@pytest.mark.parametrize("words", _KEYS, ids=" ".join)
def test_json_is_one_object_with_the_figures(fresh_dsn: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    picture = tmp_path / "plot.svg"
    done = bench(fresh_dsn, *words, "--json", "--svg", str(picture))
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert {"bench", "server", "cores", *_KEYS[words].split()} <= figures.keys()
    assert figures["bench"] == words[0]
    rates = [value for key, value in figures.items() if key.endswith(("per_second", "ratio", "p50_ms"))]
    assert rates
    assert all(rate > 0 for rate in rates)
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert words[0] in drawn
    assert schemas(fresh_dsn) == set()


def test_the_schema_of_the_user_is_not_touched(conn: psycopg.Connection[Any], dsn: str) -> None:
    conn.execute("select pgqueue.enqueue('theirs')")
    others = {"PGQUEUE_SCHEMA": "pgqueue", "PGQUEUE_DEFAULT_QUEUE": "theirs"}
    done = bench(dsn, *_LATENCY, "--schema", "my_bench", **others)
    assert done.returncode == 0, done.stderr
    assert "schema my_bench (dropped at the end)" in done.stderr
    assert "jobs by latency" in done.stdout
    assert "p50, p95, p99, max" in done.stdout
    assert conn.execute("select task, attempt from pgqueue.job").fetchall() == [("theirs", 0)]
    assert not {"my_bench", SCHEMA} & schemas(dsn)


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder for temporary files; everybody may enter, should PostgreSQL have to run as nobody."""
    made = Path(tempfile.mkdtemp(prefix="pgq-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_without_a_database_it_starts_its_own(folder: Path) -> None:
    done = bench("", *_LATENCY, "--json", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == 5
    assert f"of our own in {folder}" in done.stderr
    assert not list(folder.iterdir())


def test_ctrl_c_drops_the_schema_and_ends_the_workers(fresh_dsn: str) -> None:
    words = (*_COMMAND, "held-snapshot", "--live", "--seconds", "60")
    with subprocess.Popen(
        words, env=environ(fresh_dsn), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "dropped at the end" in process.stderr.readline()
            with psycopg.connect(fresh_dsn, autocommit=True) as connection:
                await_worker(connection)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130, process.stderr.read()
                still = "select application_name from pg_stat_activity where application_name ~ '^(bench|pgqueue)'"
                assert connection.execute(still).fetchall() == []
        finally:
            process.kill()
    assert schemas(fresh_dsn) == set()


def await_worker(connection: psycopg.Connection[Any]) -> None:
    """Wait until jobs are produced; nobody announces it."""
    there = "select to_regclass('pgqueue_bench.result') is not null"
    begun = "select exists (select from pgqueue_bench.result)"
    for question in (there, begun):
        while connection.execute(question).fetchone() != (True,):
            time.sleep(0.02)


def test_a_schema_that_no_bench_has_made_is_refused(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(f"create schema {SCHEMA}; create table {SCHEMA}.theirs ()".encode())
    done = bench(fresh_dsn, *_LATENCY)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the schema {SCHEMA} is there already, and no bench has made it" in done.stderr
    assert "--schema NAME" in done.stderr
    assert schemas(fresh_dsn) == {SCHEMA}


def test_what_a_killed_bench_has_left_is_dropped_by_the_next(fresh_dsn: str) -> None:
    said: list[str] = []
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(f"create schema {SCHEMA}; comment on schema {SCHEMA} is '{_MARK}'".encode())
        connection.execute(f"create table {SCHEMA}.job ()".encode())
        with given_ground(connection, fresh_dsn, None, "here", said.append) as ground:
            assert schemas(fresh_dsn) == {SCHEMA}
            assert ground.fetch(connection, "select count(*) from pgqueue.job where task = %(t)s", t="x") == [(0,)]
    assert [SCHEMA in sentence for sentence in said] == [True]
    assert schemas(fresh_dsn) == set()


def test_two_benches_do_not_share_a_schema(fresh_dsn: str) -> None:
    with (
        psycopg.connect(fresh_dsn, autocommit=True) as other,
        psycopg.connect(fresh_dsn, autocommit=True) as connection,
    ):
        assert other.execute(_LOCK, [SCHEMA]).fetchone() == (True,)
        with (
            pytest.raises(BenchFailed, match="another bench runs"),
            given_ground(connection, fresh_dsn, None, "", print),
        ):
            pass
    assert schemas(fresh_dsn) == set()


def test_an_error_drops_the_schema_even_if_the_connection_is_gone(fresh_dsn: str) -> None:
    with (
        psycopg.connect(fresh_dsn, autocommit=True) as connection,
        pytest.raises(ZeroDivisionError),
        given_ground(connection, fresh_dsn, None, "here", print),
    ):
        assert schemas(fresh_dsn) == {SCHEMA}
        connection.close()
        raise ZeroDivisionError
    assert schemas(fresh_dsn) == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--svg", "/nowhere/plot.svg"), "there is no folder /nowhere"),
        (("--svg", "/tmp"), "is a folder"),
        (("--jobs", "0"), "0 is not in the range"),
        (("--schema", "My-Schema"), "cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_measured(
    fresh_dsn: str, words: tuple[str, ...], said: str
) -> None:
    done = bench(fresh_dsn, "drain", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "jobs/s" not in done.stderr
    assert schemas(fresh_dsn) == set()
