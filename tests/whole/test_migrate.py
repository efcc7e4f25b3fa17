"""`pgqueue migrate` and `pgqueue schema`: two ways to one schema, by real processes on an empty database."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import sql

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("pgqueue")

# Everything that a schema has, in words that do not depend on object ids.
CATALOG = {
    "schema": "select nspacl::text, obj_description(oid, 'pg_namespace') from pg_namespace where nspname = %s",
    "relations": """
        select c.relname, c.relkind, c.relpersistence, c.reloptions, c.relacl::text, c.relrowsecurity,
               obj_description(c.oid, 'pg_class')
          from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = %s order by 1""",
    "columns": """
        select c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage,
               a.attcompression, a.attidentity, a.attgenerated, a.attacl::text, pg_get_expr(d.adbin, d.adrelid),
               col_description(c.oid, a.attnum)
          from pg_attribute a
          join pg_class c on c.oid = a.attrelid
          join pg_namespace n on n.oid = c.relnamespace
          left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where n.nspname = %s and a.attnum > 0 and not a.attisdropped and c.relkind = 'r' order by 1, 2""",
    "constraints": """
        select c.conrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid), c.convalidated
          from pg_constraint c join pg_namespace n on n.oid = c.connamespace
         where n.nspname = %s order by 1, 2""",
    "indexes": "select indexdef from pg_indexes where schemaname = %s order by 1",
    "triggers": """
        select t.tgname, pg_get_triggerdef(t.oid) from pg_trigger t
          join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = %s and not t.tgisinternal order by 1""",
    "functions": """
        select p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text, obj_description(p.oid, 'pg_proc')
          from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname = %s order by 1""",
    "types": """
        select t.typname, t.typtype from pg_type t join pg_namespace n on n.oid = t.typnamespace
         where n.nspname = %s order by 1""",
}


def catalog(dsn: str, schema: str = sql.DEFAULT_SCHEMA) -> dict[str, list[tuple[Any, ...]]]:
    with psycopg.connect(dsn) as connection:
        connection.execute("set search_path = pg_catalog")
        found = {name: connection.execute(query, (schema,)).fetchall() for name, query in CATALOG.items()}
        query = sql.rename("select version_num from pgqueue.alembic_version", schema)
        found["revision"] = connection.execute(query.encode()).fetchall()
    return found


def renamed(rows: object, schema: str) -> str:
    return re.sub(rf"\b{schema}\b", sql.DEFAULT_SCHEMA, repr(rows))


def run(*words: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `pgqueue`, and see that it ends with this exit code."""
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == code, done.stderr
    return done


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_migrate_gives_the_catalog_of_the_schema_script(dsn: str, fresh_dsn: str) -> None:
    done = run("migrate", "--dsn", fresh_dsn)
    assert f"created at {sql.version()}" in done.stderr
    assert done.stderr.count("\n") == 1
    expected = catalog(dsn)
    assert len(expected["columns"]) > 50
    assert len(expected["functions"]) == len(sql.names("functions")) + 1  # and version()
    assert catalog(fresh_dsn) == expected


def test_the_offline_script_gives_it_too(dsn: str, fresh_dsn: str) -> None:
    script = run("migrate", "--sql").stdout
    if psql := shutil.which("psql"):
        command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", fresh_dsn, "-f", "-"]
        subprocess.run(command, input=script, text=True, check=True, capture_output=True)
    else:
        with psycopg.connect(fresh_dsn, autocommit=True) as connection:
            connection.execute(script.encode())
    assert catalog(fresh_dsn) == catalog(dsn)
    assert "up to date" in run("migrate", "--dsn", fresh_dsn).stderr


def test_another_schema_is_the_same_under_its_name(dsn: str, fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn, "--schema", "jobs_2")
    assert renamed(catalog(fresh_dsn, "jobs_2"), "jobs_2") == repr(catalog(dsn))
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("select to_regnamespace('pgqueue')").fetchone() == (None,)
    # And by the variable, offline.
    assert (
        run("migrate", "--sql", env=os.environ | {"PGQUEUE_SCHEMA": "jobs_2"}).stdout
        == run("--schema", "jobs_2", "migrate", "--sql").stdout
    )


def test_four_at_once_on_an_empty_database(fresh_dsn: str) -> None:
    processes = [start("migrate", "--dsn", fresh_dsn) for _ in range(4)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert sorted("created" in line for line in said) == [False, False, False, True]


def test_check_before_and_after(fresh_dsn: str) -> None:
    before = run("migrate", "--check", "--dsn", fresh_dsn, code=1)
    assert "is not there: run `pgqueue migrate`" in before.stderr
    assert before.stderr.count("\n") == 1
    run("migrate", "--dsn", fresh_dsn)
    assert "is up to date" in run("migrate", "--check", "--dsn", fresh_dsn).stderr


def test_a_database_made_by_the_script_can_be_migrated(fresh_dsn: str) -> None:
    script = run("schema").stdout
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(script.encode())
        connection.execute("select pgqueue.enqueue('shop.add')")
        assert "up to date" in run("migrate", "--dsn", fresh_dsn).stderr
        assert connection.execute("select count(*) from pgqueue.job").fetchone() == (1,)


def test_functions_are_replaced_though_the_tables_are_new(dsn: str, fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("""create or replace function pgqueue.version() returns text language sql
                              as $$ select '0001-of an older program' $$""")
    assert "run `pgqueue migrate`" in run("migrate", "--check", "--dsn", fresh_dsn, code=1).stderr
    done = run("migrate", "--dsn", fresh_dsn)
    assert f"upgraded from 0001-of an older program to {sql.version()}" in done.stderr
    assert catalog(fresh_dsn) == catalog(dsn)


def test_a_schema_made_for_the_role_needs_no_right_to_make_one(fresh_dsn: str, role: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(f"create schema pgqueue authorization {role}".encode())
    run("migrate", "--dsn", make_conninfo(fresh_dsn, user=role, password="s3cret"))


@pytest.fixture
def role(fresh_dsn: str) -> Iterator[str]:
    """An ordinary role, that may connect and nothing else."""
    name = f"pgqueue_test_{secrets.token_hex(6)}"
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(f"create role {name} login password 's3cret'".encode())
        yield name
        connection.execute(f"drop owned by {name}".encode())
        connection.execute(f"drop role {name}".encode())


def test_a_role_that_may_not_create_reads_one_sentence(fresh_dsn: str, role: str) -> None:
    done = run("migrate", "--dsn", make_conninfo(fresh_dsn, user=role, password="s3cret"), code=1)
    assert f"role {role} may not install the schema 'pgqueue'" in done.stderr
    assert "grant create on database" in done.stderr
    assert "s3cret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_gives_way_to_a_lock_and_comes_again(fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn)
    with psycopg.connect(fresh_dsn, application_name="the reporter") as reporter:
        reporter.execute("lock table pgqueue.alembic_version")
        process = start("migrate", "--dsn", fresh_dsn)
        assert process.stderr is not None
        assert "waiting: the tables are in use by the reporter (pid" in process.stderr.readline()
        reporter.rollback()
        assert "up to date" in process.communicate(timeout=30)[1]
        assert process.returncode == 0


def test_it_gives_up_after_a_while(fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn)
    with psycopg.connect(fresh_dsn) as other:
        other.execute("lock table pgqueue.alembic_version")
        done = run("migrate", "--dsn", fresh_dsn, "--patience", "0", code=4)
    assert "nothing is changed" in done.stderr


def test_tables_of_a_newer_program_are_left_alone(fresh_dsn: str) -> None:
    run("migrate", "--dsn", fresh_dsn)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("update pgqueue.alembic_version set version_num = '9999'")
    done = run("migrate", "--dsn", fresh_dsn, code=1)
    assert "made by a newer one" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_newest_migration_is_the_revision_of_the_tables() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("alembic"), "heads"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [sql.REVISION, "(head)"]


def test_the_folder_of_the_migrations_hides_nothing() -> None:
    assert not list((ROOT / "alembic").rglob("__init__.py"))
    done = subprocess.run(
        [sys.executable, "-c", "import alembic; print(alembic.__file__)"], cwd=ROOT, capture_output=True
    )
    assert b"site-packages" in done.stdout or b"dist-packages" in done.stdout


@pytest.mark.slow
def test_from_an_installed_wheel(tmp_path: Path, dsn: str, fresh_dsn: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", ROOT, "--no-deps", "--wheel-dir", tmp_path], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = "import pgqueue.cli; print(pgqueue.cli.__file__, flush=True); pgqueue.cli.main()"
    # The libraries come from this environment; our own package must not.
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "migrate", "--dsn", fresh_dsn],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert catalog(fresh_dsn) == catalog(dsn)
