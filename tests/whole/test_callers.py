"""`connection=`: the job belongs to the transaction of the caller, whatever driver opened it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from pgqueue import (
    InvalidArguments,
    InvalidOption,
    NotSerializable,
    PayloadTooLarge,
    PgQueue,
    PgQueueError,
    SchemaMissing,
)

Connection: TypeAlias = psycopg.Connection[Any]


@dataclass(frozen=True)
class Caller:
    """One caller's connection, and how he uses it himself."""

    connection: object
    execute: Callable[[str], Awaitable[object]]
    commit: Callable[[], Awaitable[object]]
    rollback: Callable[[], Awaitable[object]]
    is_async: bool = True


Open = Callable[[str], AbstractAsyncContextManager[Caller]]


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("shop", dsn=dsn, max_payload_bytes=1000)

    @app.task(name="settle")
    def settle(order: Any) -> None: ...

    yield app
    app.close()


@pytest.fixture
def conn(conn: Connection) -> Connection:
    """An autocommit connection that looks on from outside; the business table is there and empty."""
    conn.execute("set lock_timeout = '5s'")  # what an earlier test has left open is to be seen at once
    conn.execute("create table if not exists business (id int)")
    conn.execute("truncate business")
    return conn


async def enqueue(app: PgQueue, caller: Caller, *args: object, **options: Any) -> Any:
    task = app.task_named("settle")
    if caller.is_async:
        return await task.aapply_async(args, connection=caller.connection, **options)
    return task.apply_async(args, connection=caller.connection, **options)


def jobs(conn: Connection) -> list[str]:
    return [row[0] for row in conn.execute("select id::text from pgqueue.job order by id")]


def orders(conn: Connection) -> list[int]:
    return [row[0] for row in conn.execute("select id from business order by id")]


# -- the callers ---------------------------------------------------------------------------------------------------


def at_once(function: Callable[..., object]) -> Callable[..., Awaitable[object]]:
    """A blocking function in the colour of the others."""

    async def call(*args: object) -> object:
        return function(*args)

    return call


def of_psycopg(connection: Connection, given: object = None) -> Caller:
    return Caller(
        connection if given is None else given,
        at_once(connection.execute),
        at_once(connection.commit),
        at_once(connection.rollback),
        is_async=False,
    )


@asynccontextmanager
async def psycopg_connection(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn)) as connection:
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_autocommit_connection_after_begin(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        connection.execute("begin")
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_connection_with_dict_rows(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn, row_factory=dict_row)) as connection:
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_connection_of_raw_cursors(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn, cursor_factory=psycopg.RawCursor)) as connection:
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_connection_of_client_cursors(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor)) as connection:
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_connection_in_pipeline_mode(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn)) as connection, connection.pipeline():
        yield of_psycopg(connection)


@asynccontextmanager
async def psycopg_cursor(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn)) as connection:
        yield of_psycopg(connection, connection.cursor())


@asynccontextmanager
async def psycopg_named_cursor(dsn: str) -> AsyncIterator[Caller]:
    with closing(psycopg.connect(dsn)) as connection, connection.cursor("named") as cursor:
        yield of_psycopg(connection, cursor)


@asynccontextmanager
async def psycopg_pooled_connection(dsn: str) -> AsyncIterator[Caller]:
    with ConnectionPool(dsn, min_size=1, open=True) as pool, pool.connection() as connection:
        yield of_psycopg(connection)
        connection.rollback()


@asynccontextmanager
async def async_psycopg_connection(dsn: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield Caller(connection, connection.execute, connection.commit, connection.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def async_psycopg_cursor(dsn: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield Caller(connection.cursor(), connection.execute, connection.commit, connection.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def async_psycopg_connection_in_pipeline_mode(dsn: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(dsn)
    try:
        async with connection.pipeline():
            yield Caller(connection, connection.execute, connection.commit, connection.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_connection(dsn: str) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(dsn)
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield Caller(connection, connection.execute, transaction.commit, transaction.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_connection_with_a_codec_for_json(dsn: str) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(dsn)
    for kind in ("json", "text"):
        await connection.set_type_codec(kind, encoder=str, decoder=lambda read: read.upper(), schema="pg_catalog")
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield Caller(connection, connection.execute, transaction.commit, transaction.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pooled_connection(dsn: str) -> AsyncIterator[Caller]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Caller(connection, connection.execute, transaction.commit, transaction.rollback)
        if connection.is_in_transaction():
            await transaction.rollback()


def for_driver(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def engine_on(dsn: str) -> Iterator[Engine]:
    engine = create_engine(for_driver(dsn, "psycopg"))
    try:
        yield engine
    finally:
        engine.dispose()


@asynccontextmanager
async def async_engine_on(dsn: str, driver: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(for_driver(dsn, driver))
    try:
        yield engine
    finally:
        await engine.dispose()


def of_sqlalchemy(connection: Any) -> Caller:
    def execute(statement: str) -> object:
        return connection.execute(text(statement))

    return Caller(connection, at_once(execute), at_once(connection.commit), at_once(connection.rollback), False)


def of_async_sqlalchemy(connection: Any) -> Caller:
    async def execute(statement: str) -> object:
        return await connection.execute(text(statement))

    return Caller(connection, execute, connection.commit, connection.rollback)


@asynccontextmanager
async def sqlalchemy_connection(dsn: str) -> AsyncIterator[Caller]:
    with engine_on(dsn) as engine, engine.connect() as connection:
        yield of_sqlalchemy(connection)


@asynccontextmanager
async def sqlalchemy_session(dsn: str) -> AsyncIterator[Caller]:
    with engine_on(dsn) as engine, Session(engine) as session:
        yield of_sqlalchemy(session)


@asynccontextmanager
async def sqlalchemy_scoped_session(dsn: str) -> AsyncIterator[Caller]:
    with engine_on(dsn) as engine:
        session = scoped_session(sessionmaker(engine))
        try:
            yield of_sqlalchemy(session)
        finally:
            session.remove()


def async_sqlalchemy_connection(driver: str) -> Open:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Caller]:
        async with async_engine_on(dsn, driver) as engine, engine.connect() as connection:
            yield of_async_sqlalchemy(connection)

    return opened


def async_sqlalchemy_session(driver: str) -> Open:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Caller]:
        async with async_engine_on(dsn, driver) as engine, AsyncSession(engine) as session:
            yield of_async_sqlalchemy(session)

    return opened


@asynccontextmanager
async def async_sqlalchemy_scoped_session(dsn: str) -> AsyncIterator[Caller]:
    async with async_engine_on(dsn, "asyncpg") as engine:
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
        try:
            yield of_async_sqlalchemy(session)
        finally:
            await session.remove()


SYNC: dict[str, Open] = {
    "psycopg connection": psycopg_connection,
    "psycopg autocommit connection after begin": psycopg_autocommit_connection_after_begin,
    "psycopg connection with dict_row": psycopg_connection_with_dict_rows,
    "psycopg connection of RawCursors": psycopg_connection_of_raw_cursors,
    "psycopg connection of ClientCursors": psycopg_connection_of_client_cursors,
    "psycopg connection in pipeline mode": psycopg_connection_in_pipeline_mode,
    "psycopg cursor": psycopg_cursor,
    "psycopg named cursor": psycopg_named_cursor,
    "psycopg pooled connection": psycopg_pooled_connection,
    "sqlalchemy Connection": sqlalchemy_connection,
    "sqlalchemy Session": sqlalchemy_session,
    "sqlalchemy scoped_session": sqlalchemy_scoped_session,
}
ASYNC: dict[str, Open] = {
    "async psycopg connection": async_psycopg_connection,
    "async psycopg cursor": async_psycopg_cursor,
    "async psycopg connection in pipeline mode": async_psycopg_connection_in_pipeline_mode,
    "asyncpg connection": asyncpg_connection,
    "asyncpg connection with codecs": asyncpg_connection_with_a_codec_for_json,
    "asyncpg pooled connection": asyncpg_pooled_connection,
    "sqlalchemy AsyncConnection on psycopg": async_sqlalchemy_connection("psycopg"),
    "sqlalchemy AsyncConnection on asyncpg": async_sqlalchemy_connection("asyncpg"),
    "sqlalchemy AsyncSession on psycopg": async_sqlalchemy_session("psycopg"),
    "sqlalchemy AsyncSession on asyncpg": async_sqlalchemy_session("asyncpg"),
    "sqlalchemy async_scoped_session on asyncpg": async_sqlalchemy_scoped_session,
}


def each(callers: dict[str, Open]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", [pytest.param(open_, id=name) for name, open_ in callers.items()])


every_caller = each(SYNC | ASYNC)


# -- one transaction -----------------------------------------------------------------------------------------------


@every_caller
async def test_a_commit_leaves_one_job_and_the_business_row(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        handle = await enqueue(app, caller, "é%s $1 :p1 {}")
        await caller.execute("insert into business values (1)")
        assert (jobs(conn), orders(conn)) == ([], [])
        await caller.commit()
        assert (jobs(conn), orders(conn)) == ([handle.id], [1])
    assert handle.created
    assert conn.execute("select args, task from pgqueue.job").fetchone() == (["é%s $1 :p1 {}"], "settle")


@every_caller
async def test_a_rollback_leaves_no_job_though_it_was_the_first_statement(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        await enqueue(app, caller, 1)
        await caller.rollback()
    assert jobs(conn) == []


@every_caller
async def test_a_rollback_takes_the_job_and_the_business_row(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        await caller.execute("insert into business values (1)")
        await enqueue(app, caller, 1)
        await caller.rollback()
    assert (jobs(conn), orders(conn)) == ([], [])


@every_caller
async def test_a_connection_that_is_closed_without_a_commit_leaves_no_job(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        await enqueue(app, caller, 1)
    assert jobs(conn) == []


@every_caller
async def test_many_jobs_are_enqueued_in_the_transaction_as_well(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async def many(caller: Caller) -> list[Any]:
        calls = [app.task_named("settle").s(n) for n in range(10)]
        if caller.is_async:
            return await app.aenqueue_many(calls, connection=caller.connection)
        return app.enqueue_many(calls, connection=caller.connection)

    async with opened(dsn) as caller:
        await many(caller)
        await caller.rollback()
    assert jobs(conn) == []
    async with opened(dsn) as caller:
        handles = await many(caller)
        await caller.commit()
    assert jobs(conn) == sorted(handle.id for handle in handles)


@every_caller
async def test_a_known_unique_key_is_answered_in_the_transaction(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        first = await enqueue(app, caller, 1, unique_key="order-1")
        second = await enqueue(app, caller, 1, unique_key="order-1")
        await caller.commit()
    assert (first.created, second.created) == (True, False)
    assert jobs(conn) == [first.id] == [second.id]


@every_caller
async def test_send_task_takes_a_connection_too(opened: Open, app: PgQueue, conn: Connection, dsn: str) -> None:
    async with opened(dsn) as caller:
        if caller.is_async:
            handle = await app.asend_task("elsewhere.task", connection=caller.connection)
        else:
            handle = app.send_task("elsewhere.task", connection=caller.connection)
        assert jobs(conn) == []
        await caller.commit()
    assert jobs(conn) == [handle.id]


REFUSED: list[tuple[type[PgQueueError], str, tuple[object, ...], dict[str, object]]] = [
    (InvalidArguments, "missing argument 'order'", (), {}),
    (InvalidArguments, "at most 1 positional", (1, 2), {}),
    (NotSerializable, "args[0].lines[1]: values of type object", ({"lines": [1, object()]},), {}),
    (NotSerializable, "args[0]: a text with a NUL", ("a\0",), {}),
    (NotSerializable, "args[0].price: nan is not a number", ({"price": float("nan")},), {}),
    (NotSerializable, "headers.trace: a text with a NUL", (1,), {"headers": {"trace": "\0"}}),
    (PayloadTooLarge, "more than the 1,000", ("x" * 1000,), {}),
    (InvalidOption, "did you mean 'countdown'?", (1,), {"count_down": 1}),
    (InvalidOption, "priority must be", (1,), {"priority": 10}),
    (InvalidOption, "queue must be a text", (1,), {"queue": ""}),
    (InvalidOption, "PostgreSQL cannot store", (1,), {"queue": "a\0"}),
    (InvalidOption, "has no time zone", (1,), {"eta": datetime(2030, 1, 1)}),
    (InvalidOption, "is not a UUID", (1,), {"task_id": "order-1"}),
]


@every_caller
async def test_a_refused_call_leaves_the_transaction_usable(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        await caller.execute("insert into business values (1)")
        for kind, message, args, options in REFUSED:
            with pytest.raises(kind) as caught:
                await enqueue(app, caller, *args, **options)
            assert message in str(caught.value)
            await caller.execute("select 1")
        await caller.execute("insert into business values (2)")
        await caller.commit()
    assert (jobs(conn), orders(conn)) == ([], [1, 2])


@every_caller
async def test_missing_tables_are_a_typed_error_from_every_driver(opened: Open, conn: Connection, dsn: str) -> None:
    nowhere = PgQueue("shop", dsn=dsn, schema="nowhere")
    nowhere.task(name="settle")(lambda order: None)
    async with opened(dsn) as caller:
        with pytest.raises(SchemaMissing, match="pgqueue migrate"):
            await enqueue(nowhere, caller, 1)
        await caller.rollback()


@each(ASYNC)
async def test_an_async_connection_is_refused_by_the_sync_methods(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        for call in (
            lambda: app.task_named("settle").apply_async((1,), connection=caller.connection),
            lambda: app.send_task("other", connection=caller.connection),
            lambda: app.enqueue_many([app.task_named("settle").s(1)], connection=caller.connection),
        ):
            with pytest.raises(InvalidOption, match=r"is asynchronous: await aapply_async\(\) or aenqueue_many"):
                call()
        await caller.execute("select 1")
        await caller.commit()
    assert jobs(conn) == []


@each(SYNC)
async def test_a_sync_connection_is_taken_by_the_async_methods(
    opened: Open, app: PgQueue, conn: Connection, dsn: str
) -> None:
    async with opened(dsn) as caller:
        await app.task_named("settle").aapply_async((1,), connection=caller.connection)
        await caller.rollback()
        await app.task_named("settle").aapply_async((2,), connection=caller.connection)
        await caller.commit()
    assert [row[0] for row in conn.execute("select args from pgqueue.job")] == [[2]]


# -- without, and inside, a transaction block -----------------------------------------------------------------------


def test_an_autocommit_connection_of_psycopg_commits_at_once(app: PgQueue, conn: Connection, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        handle = app.task_named("settle").apply_async((1,), connection=connection)
        assert jobs(conn) == [handle.id]


async def test_asyncpg_without_a_transaction_commits_at_once(app: PgQueue, conn: Connection, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    handle = await app.task_named("settle").aapply_async((1,), connection=connection)
    assert jobs(conn) == [handle.id]
    await connection.close()


def test_a_transaction_block_of_psycopg_decides(app: PgQueue, conn: Connection, dsn: str) -> None:
    task = app.task_named("settle")
    with psycopg.connect(dsn, autocommit=True) as connection, connection.transaction():
        with connection.transaction(force_rollback=True):
            task.apply_async((1,), connection=connection)
        kept = task.apply_async((2,), connection=connection)
        with pytest.raises(ZeroDivisionError), connection.transaction():
            task.apply_async((3,), connection=connection)
            raise ZeroDivisionError
    assert jobs(conn) == [kept.id]


def test_an_open_named_cursor_goes_on_after_an_enqueue(app: PgQueue, conn: Connection, dsn: str) -> None:
    with psycopg.connect(dsn) as connection, connection.cursor("walk") as cursor:
        cursor.itersize = 2
        cursor.execute("select generate_series(1, 5)")
        for (n,) in cursor:
            app.task_named("settle").apply_async((n,), connection=cursor)
    assert [row[0] for row in conn.execute("select args from pgqueue.job order by id")] == [[n] for n in range(1, 6)]


def test_the_rows_of_an_open_cursor_stay_readable(app: PgQueue, conn: Connection, dsn: str) -> None:
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("select generate_series(1, 3)")
        app.task_named("settle").apply_async((1,), connection=cursor)
        assert cursor.fetchall() == [(1,), (2,), (3,)]
    assert len(jobs(conn)) == 1


def test_what_was_sent_before_in_a_pipeline_comes_first(app: PgQueue, conn: Connection, dsn: str) -> None:
    with psycopg.connect(dsn) as connection, connection.pipeline():
        cursor = connection.cursor()
        cursor.execute("insert into business values (1) returning id")
        app.task_named("settle").apply_async((1,), connection=connection)
        assert cursor.fetchall() == [(1,)]
        connection.commit()
        assert (len(jobs(conn)), orders(conn)) == (1, [1])


async def test_a_savepoint_of_asyncpg_that_is_rolled_back_leaves_no_job(
    app: PgQueue, conn: Connection, dsn: str
) -> None:
    connection = await asyncpg.connect(dsn)
    task = app.task_named("settle")
    async with connection.transaction():
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await task.aapply_async((1,), connection=connection)
                raise ZeroDivisionError
        kept = await task.aapply_async((2,), connection=connection)
    await connection.close()
    assert jobs(conn) == [kept.id]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_savepoint_of_sqlalchemy_that_is_rolled_back_leaves_no_job(
    driver: str, app: PgQueue, conn: Connection, dsn: str
) -> None:
    task = app.task_named("settle")
    async with async_sqlalchemy_session(driver)(dsn) as caller:
        session: Any = caller.connection
        nested = await session.begin_nested()
        await task.aapply_async((1,), connection=session)
        await nested.rollback()
        kept = await task.aapply_async((2,), connection=session)
        await session.commit()
    assert jobs(conn) == [kept.id]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_begin_block_of_sqlalchemy_decides(driver: str, app: PgQueue, conn: Connection, dsn: str) -> None:
    task = app.task_named("settle")
    engine = create_async_engine(for_driver(dsn, driver))
    with pytest.raises(ZeroDivisionError):
        async with engine.begin() as connection:
            await task.aapply_async((1,), connection=connection)
            raise ZeroDivisionError
    assert jobs(conn) == []
    async with async_sessionmaker(engine).begin() as session:
        kept = await task.aapply_async((2,), connection=session)
    await engine.dispose()
    assert jobs(conn) == [kept.id]


async def test_the_sync_session_inside_run_sync_enqueues(app: PgQueue, conn: Connection, dsn: str) -> None:
    async with async_sqlalchemy_session("asyncpg")(dsn) as caller:
        session: Any = caller.connection
        await session.run_sync(lambda inner: app.task_named("settle").apply_async((1,), connection=inner))
        await session.rollback()
        kept = await session.run_sync(
            lambda inner: app.task_named("settle").apply_async((1,), connection=inner.connection())
        )
        await session.commit()
    assert jobs(conn) == [kept.id]


def test_a_table_that_the_callers_own_rows_miss_is_his_affair(app: PgQueue, conn: Connection, dsn: str) -> None:
    """`enqueue_many` runs inside his flush: what fails is his statement, and ours is never reached."""

    class Base(DeclarativeBase): ...

    class Order(Base):
        __tablename__ = "table_that_is_not_there"
        id: Mapped[int] = mapped_column(primary_key=True)

    with engine_on(dsn) as engine, Session(engine) as session:
        session.add(Order(id=1))
        event.listen(session, "do_orm_execute", lambda _: session.flush())
        with pytest.raises(ProgrammingError, match="table_that_is_not_there"):
            app.task_named("settle").apply_async((1,), connection=session)
    assert jobs(conn) == []


# -- what is no connection -----------------------------------------------------------------------------------------


async def test_what_is_no_connection_is_refused_and_nothing_is_sent(app: PgQueue, conn: Connection, dsn: str) -> None:
    engine = create_engine(for_driver(dsn, "psycopg"))
    async_engine = create_async_engine(for_driver(dsn, "asyncpg"))
    raw = engine.raw_connection()
    native = await asyncpg.connect(dsn)
    with psycopg.connect(dsn) as connection, ConnectionPool(dsn, min_size=1, open=True) as pool:
        async with asyncpg.create_pool(dsn, min_size=1) as asyncpg_pool:
            for wrong in (
                0,
                object(),
                [connection],
                engine,
                sessionmaker(engine),
                async_engine,
                async_sessionmaker(async_engine),
                raw,
                pool,
                asyncpg_pool,  # it has a fetch(): on a connection and in a transaction of its own
                connection.transaction(),
                native.transaction(),
                text("select 1"),
            ):
                with pytest.raises(InvalidOption, match="cannot be used; give a psycopg connection or cursor, "):
                    app.task_named("settle").apply_async((1,), connection=wrong)
                with pytest.raises(InvalidOption, match="cannot be used; give a psycopg connection or cursor, "):
                    await app.task_named("settle").aapply_async((1,), connection=wrong)
    await native.close()
    raw.close()
    engine.dispose()
    await async_engine.dispose()
    assert jobs(conn) == []


def test_a_session_on_another_database_is_refused_and_stays_usable(app: PgQueue, conn: Connection) -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session, engine.connect() as connection:
        for given in (session, connection):
            given.execute(text("create table t (x int)"))
            with pytest.raises(InvalidOption, match="leads to a sqlite database; pgqueue needs PostgreSQL"):
                app.task_named("settle").apply_async((1,), connection=given)
            given.execute(text("select * from t"))
            given.rollback()
            given.execute(text("drop table if exists t"))
            given.commit()
    engine.dispose()
    assert jobs(conn) == []


def test_a_session_that_has_no_database_of_its_own_is_refused(app: PgQueue, conn: Connection, dsn: str) -> None:
    with Session() as session, pytest.raises(InvalidOption, match=r"give session\.connection\("):
        app.task_named("settle").apply_async((1,), connection=session)


def test_a_dsn_is_no_connection_and_is_not_shown(app: PgQueue, conn: Connection, dsn: str) -> None:
    for given in ("postgresql://me:secret@db/shop", "host=db password=secret"):
        with pytest.raises(InvalidOption, match="is a DSN, which has no transaction to join") as caught:
            app.task_named("settle").apply_async((1,), connection=given)
        assert "secret" not in str(caught.value)
    assert jobs(conn) == []


def test_an_alias_without_django_is_a_typed_error(
    app: PgQueue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "django.db", None)
    with pytest.raises(InvalidOption, match="Django is not installed"):
        app.task_named("settle").apply_async((1,), connection="default")
    assert jobs(conn) == []


# -- Django, in processes of its own: its settings can be configured once -------------------------------------------

_DJANGO = """
import asyncio, sys
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
from pgqueue import InvalidOption, NotSerializable, PgQueue, SchemaMissing

known = conninfo_to_dict(sys.argv[1])
settings.configure(USE_TZ=True, DATABASES={
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    "shop": {
        "ENGINE": "django.db.backends.postgresql", "NAME": known["dbname"], "USER": known["user"],
        "PASSWORD": known.get("password") or "", "HOST": known["host"], "PORT": known["port"],
    },
})
django.setup()
from django.db import connections, transaction

app = PgQueue("shop", dsn=sys.argv[1])

@app.task(name="settle")
def settle(order): ...

def refused(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise SystemExit(f"{kind.__name__} was not raised")

def insert(n):
    with connections["shop"].cursor() as cursor:
        cursor.execute("insert into business values (%s)", [n])

class Undo(Exception): ...
"""


def with_django(dsn: str, script: str) -> list[str]:
    """Run a script after the preamble above, every warning an error; return the lines that it printed."""
    program = _DJANGO + textwrap.dedent(script) + "\nconnections.close_all()\napp.close()\n"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, dsn], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_job_enqueued_inside_atomic_commits_with_it(conn: Connection, dsn: str) -> None:
    printed = with_django(
        dsn,
        """
        with transaction.atomic("shop"):
            handle = settle.apply_async(("é%s",), connection="shop")
            insert(1)
        print(handle.id, handle.created)
        """,
    )
    assert printed == [f"{jobs(conn)[0]} True"]
    assert orders(conn) == [1]
    assert conn.execute("select args from pgqueue.job").fetchall() == [(["é%s"],)]


def test_a_job_enqueued_inside_atomic_is_rolled_back_with_it(conn: Connection, dsn: str) -> None:
    with_django(
        dsn,
        """
        for first in (settle, insert):
            try:
                with transaction.atomic("shop"):
                    if first is insert:
                        insert(1)
                    settle.apply_async((1,), connection="shop")
                    raise Undo
            except Undo:
                pass
        """,
    )
    assert (jobs(conn), orders(conn)) == ([], [])


def test_a_nested_atomic_takes_its_jobs_with_it_alone(conn: Connection, dsn: str) -> None:
    with_django(
        dsn,
        """
        with transaction.atomic("shop"):
            settle.apply_async((1,), connection="shop")
            try:
                with transaction.atomic("shop"):
                    app.enqueue_many([settle.s(2), settle.s(3)], connection="shop")
                    raise Undo
            except Undo:
                pass
        """,
    )
    assert conn.execute("select args from pgqueue.job").fetchall() == [([1],)]


def test_outside_atomic_the_job_is_committed_at_once(conn: Connection, dsn: str) -> None:
    with_django(dsn, "settle.apply_async((1,), connection='shop')")
    assert len(jobs(conn)) == 1


def test_a_refused_call_leaves_atomic_usable(conn: Connection, dsn: str) -> None:
    with_django(
        dsn,
        """
        with transaction.atomic("shop"):
            refused(NotSerializable, lambda: settle.apply_async(("a\\0",), connection="shop"))
            refused(InvalidOption, lambda: settle.apply_async((1,), connection="shop", quee="x"))
            insert(1)
        """,
    )
    assert (jobs(conn), orders(conn)) == ([], [1])


def test_an_alias_that_cannot_be_used_is_refused_by_name(conn: Connection, dsn: str) -> None:
    printed = with_django(
        dsn,
        """
        print(refused(InvalidOption, lambda: settle.apply_async((1,), connection="nowhere")))
        print(refused(InvalidOption, lambda: settle.apply_async((1,), connection="default")))
        print(refused(InvalidOption, lambda: settle.apply_async((1,), connection=connections["shop"])))
        app.configure(schema="nowhere")
        print(refused(SchemaMissing, lambda: settle.apply_async((1,), connection="shop")))
        """,
    )
    assert printed[0] == "connection='nowhere' is not an alias in Django's DATABASES"
    assert printed[1] == "connection='default' is a sqlite database; pgqueue needs PostgreSQL"
    assert printed[2].endswith("or the alias of a Django database")
    assert "pgqueue migrate" in printed[3]
    assert jobs(conn) == []


def test_in_a_coroutine_the_alias_wants_sync_to_async(conn: Connection, dsn: str) -> None:
    printed = with_django(
        dsn,
        """
        from asgiref.sync import sync_to_async

        async def main():
            try:
                await settle.aapply_async((1,), connection="shop")
            except InvalidOption as error:
                print(error)
            await sync_to_async(settle.apply_async)((2,), connection="shop")
            await sync_to_async(connections.close_all)()

        asyncio.run(main())
        """,
    )
    assert printed == [
        "connection='shop': Django's connections do not work in a coroutine; "
        "await sync_to_async(task.apply_async)(...) instead"
    ]
    assert conn.execute("select args from pgqueue.job").fetchall() == [([2],)]


def test_an_alias_before_django_is_configured_is_a_typed_error(app: PgQueue, conn: Connection, dsn: str) -> None:
    program = """
    import sys
    from pgqueue import InvalidOption, PgQueue
    try:
        PgQueue("shop", dsn=sys.argv[1]).send_task("settle", connection="default")
    except InvalidOption as error:
        print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), dsn], capture_output=True, text=True, timeout=60, check=True
    )
    assert "not an alias in Django's DATABASES" in done.stdout
    assert jobs(conn) == []
