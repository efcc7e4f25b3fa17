"""What is in the schema: described, movable, nobody's but the owner's, and under any name."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql as compose

from pgqueue import sql

from .helpers import OpenQueue, Queue, new_id

_FUNCTIONS = """
    select p.oid::regprocedure::text as name, p.prosrc as source, p.proconfig as settings, p.prosecdef as definer,
           has_function_privilege('public', p.oid, 'execute') as public
      from pg_proc p where p.pronamespace = 'pgqueue'::regnamespace
"""


@pytest.fixture
def stranger(dsn: str, open_queue: OpenQueue) -> Iterator[Queue]:
    """A user of the database to whom nothing has been granted."""
    owner, visitor = open_queue(dsn), open_queue(dsn)
    role = compose.Identifier(f"stranger_{new_id()[:8]}")
    owner.connection.execute(compose.SQL("create role {}").format(role))
    visitor.connection.execute(compose.SQL("set role {}").format(role))
    try:
        yield visitor
    finally:
        visitor.connection.close()
        owner.connection.execute(compose.SQL("drop role {}").format(role))


def test_every_table_and_column_is_described(queue: Queue) -> None:
    bare = queue.rows(
        "select c.relname, a.attname from pg_class c left join pg_attribute a on a.attrelid = c.oid"
        " and a.attnum > 0 and not a.attisdropped where c.relnamespace = 'pgqueue'::regnamespace"
        " and c.relkind in ('r', 'p', 'v', 'm') and c.relname <> 'alembic_version'"
        " and (col_description(c.oid, a.attnum) is null or obj_description(c.oid, 'pg_class') is null)"
    )
    assert bare == []


def test_every_table_has_a_primary_key_and_none_is_unlogged(queue: Queue) -> None:
    wrong = queue.rows(
        "select relname from pg_class c where relnamespace = 'pgqueue'::regnamespace and relkind in ('r', 'p')"
        " and (relpersistence <> 'p' or not exists (select from pg_index where indrelid = c.oid and indisprimary))"
    )
    assert wrong == []


def test_there_is_no_trigger_no_sequence_and_no_rule(queue: Queue) -> None:
    found = queue.rows(
        "select tgname as name from pg_trigger join pg_class c on c.oid = tgrelid"
        " where c.relnamespace = 'pgqueue'::regnamespace"
        " union all select relname from pg_class where relnamespace = 'pgqueue'::regnamespace and relkind = 'S'"
        " union all select rulename from pg_rewrite join pg_class c on c.oid = ev_class"
        " where c.relnamespace = 'pgqueue'::regnamespace and c.relkind <> 'v'"
    )
    assert found == []


def test_every_file_of_functions_opens_with_a_comment_and_defines_the_function_of_its_name() -> None:
    names = sql.names("functions")
    assert len(names) >= 20
    for name in names:
        text = sql.read(f"functions/{name}")
        assert text.startswith("-- ")
        assert f"create or replace function pgqueue.{name}(" in text


def test_every_function_pins_its_search_path_and_runs_as_its_caller(queue: Queue) -> None:
    functions = queue.rows(_FUNCTIONS)
    assert {row["name"].partition("(")[0] for row in functions} >= {
        f"pgqueue.{name}" for name in [*sql.names("functions"), "version"]
    }
    assert [row["name"] for row in functions if "search_path=pg_catalog, pg_temp" not in (row["settings"] or [])] == []
    assert [row["name"] for row in functions if row["definer"]] == []


def test_what_lies_in_the_way_of_the_caller_is_not_called(queue: Queue, own_dsn: str, open_queue: OpenQueue) -> None:
    hostile = open_queue(own_dsn)
    hostile.rows("create schema hostile")
    hostile.rows(
        "create function hostile.clock_timestamp() returns timestamptz language plpgsql as"
        " $$ begin raise exception 'called'; end $$"
    )
    hostile.rows("create function hostile.now() returns timestamptz language sql as 'select null::timestamptz'")
    hostile.rows("set search_path = hostile, pg_catalog, public")
    hostile.add()
    hostile.run()


def test_nothing_is_for_everybody(queue: Queue) -> None:
    assert [row["name"] for row in queue.rows(_FUNCTIONS) if row["public"]] == []
    granted = queue.rows(
        "select c.relname from pg_class c, aclexplode(c.relacl) a"
        " where c.relnamespace = 'pgqueue'::regnamespace and a.grantee = 0"
        " union all select 'schema' from pg_namespace n, aclexplode(n.nspacl) a"
        " where n.nspname = 'pgqueue' and a.grantee = 0"
    )
    assert granted == []


def test_a_user_without_grants_can_call_nothing(queue: Queue, stranger: Queue) -> None:
    calls = [row["name"] for row in queue.rows(_FUNCTIONS)]
    assert len(calls) >= 20
    for usage in (False, True):
        if usage:  # to see the schema is not to be allowed anything in it
            role = stranger.one("select current_user::text")
            queue.connection.execute(
                compose.SQL("grant usage on schema pgqueue to {}").format(compose.Identifier(role))
            )
        try:
            for call in calls:
                name, _, types = call.rstrip(")").partition("(")
                arguments = ", ".join(f"null::{kind}" for kind in types.split(",") if kind)
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    stranger.rows(f"select {name}({arguments})")
            for table in ("job", "result", "worker"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    stranger.rows(f"select * from pgqueue.{table}")
        finally:
            if usage:
                queue.connection.execute(
                    compose.SQL("revoke usage on schema pgqueue from {}").format(compose.Identifier(role))
                )


def test_functions_are_replaced_in_place_and_stay_the_owners_alone(own_dsn: str, open_queue: OpenQueue) -> None:
    queue = open_queue(own_dsn)
    job = queue.add()
    queue.connection.execute(sql.functions())
    queue.connection.execute(sql.functions())
    assert queue.state(job) == "PENDING"
    assert not any(row["public"] for row in queue.rows(_FUNCTIONS))


def test_the_version_in_the_database_is_that_of_the_program(queue: Queue) -> None:
    assert queue.one("select pgqueue.version()") == sql.version()
    assert queue.one("select version_num from pgqueue.alembic_version") == sql.REVISION


# -- another name


@pytest.fixture
def elsewhere(fresh_dsn: str, open_queue: OpenQueue) -> Queue:
    queue = open_queue(fresh_dsn, "other_queue")
    queue.connection.execute(sql.schema("other_queue"))
    return queue


def test_under_another_name_everything_works_and_its_channels_have_that_name(
    elsewhere: Queue, fresh_dsn: str, open_queue: OpenQueue
) -> None:
    listener = open_queue(fresh_dsn, "other_queue")
    listener.listen("other_queue.work")
    listener.listen("other_queue.done")
    elsewhere.register()
    listener.rows("select pgqueue.say_idle(%s, '{default}')", listener.worker)
    job = elsewhere.add("shop.add", args=[2, 3])
    listener.rows("select pgqueue.wait_for(%s, %s, 60)", job, new_id())
    (claim,) = elsewhere.claim()
    elsewhere.hold(claim)
    assert elsewhere.end(claim, value=5)
    assert elsewhere.status(job)["value"] == 5
    assert listener.heard(elsewhere) == [("other_queue.work", "default"), ("other_queue.done", job)]

    revoked = elsewhere.add()
    assert elsewhere.one("select pgqueue.revoke(%s)", revoked) == "REVOKED"
    assert elsewhere.status(revoked)["error"]["module"] == "pgqueue.errors"
    lost = elsewhere.add()
    elsewhere.claim()
    assert elsewhere.bury() == {lost: "PENDING"}
    assert elsewhere.one("select pgqueue.purge('{default}')") == 1
    assert elsewhere.one("select pgqueue.prune('0 s')") == 2
    assert elsewhere.one("select pgqueue.take_duty('sweep', %s, 1)", elsewhere.worker) is True
    assert elsewhere.one("select pgqueue.version()") == sql.version()


def test_under_another_name_nothing_speaks_of_the_first(elsewhere: Queue) -> None:
    sources = elsewhere.rows(_FUNCTIONS.replace("'pgqueue'", "'other_queue'"))
    assert len(sources) >= 20
    assert [row["name"] for row in sources if "pgqueue." in row["source"]] == []
    assert elsewhere.rows("select from pg_namespace where nspname = 'pgqueue'") == []


def test_two_schemas_in_one_database_do_not_see_each_other(
    elsewhere: Queue, fresh_dsn: str, open_queue: OpenQueue
) -> None:
    plain = open_queue(fresh_dsn)
    plain.connection.execute(sql.schema())
    job = elsewhere.add(unique_key="k")
    assert plain.claim() == []
    assert plain.state(job) == "UNKNOWN"
    assert plain.add(unique_key="k") != job
    assert [claim["id"] for claim in elsewhere.claim()] == [job]
