"""Eager runs of tasks with a transaction: it commits when the task has succeeded, and no connection is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, State

Connection = psycopg.Connection[Any]


@pytest.fixture
def app(dsn: str, conn: Connection) -> Iterator[PgQueue]:
    conn.execute("drop table if exists eager_effect")
    conn.execute("create table eager_effect (amount int)")
    app = PgQueue("eager", dsn=dsn)
    yield app
    app.close()
    conn.execute("drop table eager_effect")


def effects(conn: Connection) -> list[int]:
    return [amount for (amount,) in conn.execute("select amount from eager_effect order by amount").fetchall()]


def test_a_transaction_commits_with_the_success_of_a_function_and_not_otherwise(app: PgQueue, conn: Connection) -> None:
    @app.task(transactional=True)
    def pay(connection: Connection, amount: int) -> int:
        connection.execute("insert into eager_effect values (%s)", [amount])
        return 1 // amount

    assert pay.apply((1,)).get() == 1
    assert pay.apply((0,)).state is State.FAILURE
    assert effects(conn) == [1]


def test_a_coroutine_leaves_no_connection_behind(app: PgQueue, conn: Connection) -> None:
    @app.task(transactional=True)
    async def pay(connection: psycopg.AsyncConnection[Any], amount: int) -> int:
        await connection.execute("insert into eager_effect values (%s)", [amount])
        return 1 // amount

    for amount in (1, 0, 2):
        pay.apply((amount,))
    assert effects(conn) == [1, 2]
    left = conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and application_name like 'pgqueue%%'"
    )
    assert left.fetchone() == (0,)


def test_a_constraint_that_only_commit_checks_fails_the_call(app: PgQueue, conn: Connection) -> None:
    conn.execute("alter table eager_effect add unique (amount) deferrable initially deferred")

    @app.task(transactional=True)
    def pay(connection: Connection, amount: int) -> None:
        connection.execute("insert into eager_effect values (%s), (%s)", [amount, amount])

    result = pay.apply((5,))
    assert result.state is State.FAILURE
    with pytest.raises(psycopg.errors.UniqueViolation):
        result.get()
    assert effects(conn) == []
