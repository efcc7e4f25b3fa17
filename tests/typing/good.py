"""What type checkers must accept, with the types that they must see. Never run; `test_typing.py` gives it to mypy."""

from collections.abc import Coroutine
from typing import Any, assert_type

import psycopg

from pgqueue import AsyncResult, PgQueue, Signature, Task, chain, chord, group, signature

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]
AnyTask = Task[..., Any, Any]

app = PgQueue("typing")


# -- functions ---------------------------------------------------------------------------------------------------


@app.task
def add(x: int, y: int = 1, *, note: str = "") -> int:
    return x + y


@app.task()
def empty_parentheses(x: int) -> str:
    return str(x)


@app.task(queue="mail", autoretry_for=(OSError,), retry_backoff=True)
def with_options(address: str) -> None: ...


def function() -> None:
    assert_type(add(1, 2), int)
    assert_type(add(1, y=2, note="x"), int)
    assert_type(add.delay(1), AsyncResult[int])
    assert_type(add.delay(1, y=2, note="x").get(timeout=5), int)
    assert_type(add.apply_async((1, 2), countdown=5, connection=None), AsyncResult[int])
    assert_type(add.apply_async((1,), {"y": 2}).get(), int)
    assert_type(add.delay(1).state, str)
    assert_type(add.s(1, y=2), Signature[int])
    assert_type(add.s(1).set(priority=9), Signature[int])
    assert_type(add.s(1).set(priority=9).delay().get(), int)
    assert_type(add.name, str)
    assert_type(empty_parentheses(1), str)
    assert_type(empty_parentheses.delay(1).get(), str)
    assert_type(with_options.delay("a@b.example"), AsyncResult[None])


def canvases() -> None:
    assert_type(~add.s(1, 2), int)
    assert_type(add.s(1) | add.s(2), Signature[Any])
    assert_type(signature("shop.add", (1,)), Signature[Any])
    group(add.s(n) for n in range(3)).apply_async(connection=None).get()
    chord([add.s(1), add.s(2)])(add.s(3)).get()
    chain(add.s(1), add.s(2)).delay().get()
    add.starmap([(1, 2)]).delay().get()
    add.chunks([(1, 2)], 10).delay().get()


async def twins() -> None:
    await group(add.s(1), add.s(2)).adelay()
    assert_type(await add.adelay(1, y=2), AsyncResult[int])
    assert_type(await (await add.adelay(1)).aget(), int)
    assert_type(await add.aapply_async((1,)), AsyncResult[int])
    assert_type(await add.s(1).adelay(), AsyncResult[int])


# -- coroutine functions -----------------------------------------------------------------------------------------


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(queue="slow")
async def fetch_slowly(url: str) -> bytes:
    return await fetch(url)


async def coroutine_functions() -> None:
    assert_type(await assert_type(fetch("x"), Coroutine[Any, Any, bytes]), bytes)
    assert_type(await fetch_slowly("x"), bytes)
    assert_type(fetch.delay("x").get(), bytes)
    assert_type(await (await fetch.adelay("x")).aget(), bytes)
    assert_type(fetch.s("x"), Signature[bytes])
    assert_type(fetch_slowly.s("x").delay().get(), bytes)


# -- bind and transactional: callers do not see what the worker passes -------------------------------------------


@app.task(bind=True)
def bound(self: AnyTask, x: int) -> str:
    assert_type(self.request.retries, int)
    if x < 0:
        raise self.retry(countdown=5)
    return str(x)


@app.task(bind=True, max_retries=5)
async def bound_coroutine(self: AnyTask, x: int) -> str:
    return str(x)


@app.task(transactional=True)
def transactional(connection: Connection, x: int) -> str:
    connection.execute("select 1")
    return str(x)


@app.task(transactional=True)
async def transactional_coroutine(connection: AsyncConnection, x: int) -> str:
    await connection.execute("select 1")
    return str(x)


@app.task(bind=True, transactional=True)
def both(self: AnyTask, connection: Connection, x: int) -> str:
    return str(x)


@app.task(bind=True, transactional=True, queue="slow")
async def both_coroutine(self: AnyTask, connection: AsyncConnection, x: int) -> str:
    return str(x)


@app.task(bind=False, transactional=False)
def neither(x: int) -> str:
    return str(x)


async def calls() -> None:
    assert_type(bound(1), str)
    assert_type(await bound_coroutine(1), str)
    assert_type(neither(1), str)
    for task in (bound, transactional, both, neither):
        assert_type(task.delay(1).get(), str)
        assert_type(task.s(x=1), Signature[str])
    assert_type(bound_coroutine.delay(1), AsyncResult[str])
    assert_type(transactional_coroutine.delay(1), AsyncResult[str])
    assert_type(both_coroutine.delay(x=1).get(), str)
    assert_type(await both_coroutine.adelay(1), AsyncResult[str])


# -- many --------------------------------------------------------------------------------------------------------


async def many() -> None:
    assert_type(app.enqueue_many([add.s(1), add.s(2)]), list[AsyncResult[int]])
    assert_type(app.enqueue_many(fetch.s(str(n)) for n in range(3)), list[AsyncResult[bytes]])
    assert_type(await app.aenqueue_many([add.s(1)]), list[AsyncResult[int]])
    assert_type(app.enqueue_many([add.s(1)])[0].get(), int)
    assert_type(app.send_task("elsewhere.add", (1, 2)), AsyncResult[Any])
    with app.transaction() as connection:
        assert_type(connection, Connection)
        add.apply_async((1,), connection=connection)
    async with app.atransaction() as aconnection:
        assert_type(aconnection, AsyncConnection)


# -- a task can be handed around ---------------------------------------------------------------------------------


def run_later(task: AnyTask) -> None:
    task.delay(1, 2, three=3)


def run_later_typed(task: Task[[int], str, str]) -> str:
    return task.delay(1).get()


run_later(add)
run_later(fetch)
run_later(both)
run_later_typed(bound)
run_later_typed(empty_parentheses)
