"""What type checkers must refuse: exactly the lines with `# E:`, whose text is a part of mypy's message.

Never run; `test_typing.py` gives it to mypy.
"""
# ruff: noqa: F841

from typing import Any

import psycopg

from pgqueue import PgQueue, Task

Connection = psycopg.Connection[Any]
AnyTask = Task[..., Any, Any]

app = PgQueue("typing")


@app.task
def add(x: int, y: int = 1, *, note: str = "") -> int:
    return x + y


@app.task(queue="mail")
def send(address: str) -> None: ...


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(bind=True)
def bound(self: AnyTask, x: int) -> str:
    return str(x)


@app.task(bind=True)
async def bound_coroutine(self: AnyTask, x: int) -> str:
    return str(x)


@app.task(transactional=True)
def transactional(connection: Connection, x: int) -> str:
    return str(x)


@app.task(bind=True, transactional=True)
def both(self: AnyTask, connection: Connection, x: int) -> str:
    return str(x)


def arguments(connection: Connection) -> None:
    add.delay()  # E: Missing positional argument "x" in call to "delay" of "Task"
    add.delay("1")  # E: Argument 1 to "delay" of "Task" has incompatible type "str"; expected "int"
    add.delay(1, 2, 3)  # E: Too many positional arguments for "delay" of "Task"
    add.delay(1, z=2)  # E: Unexpected keyword argument "z" for "delay" of "Task"
    add.delay(1, note=5)  # E: Argument "note" to "delay" of "Task" has incompatible type "int"; expected "str"
    add.s("1")  # E: Argument 1 to "s" of "Task" has incompatible type "str"; expected "int"
    add.s()  # E: Missing positional argument "x" in call to "s" of "Task"
    add("1")  # E: Argument 1 to "__call__" of "Task" has incompatible type "str"; expected "int"
    add()  # E: Missing positional argument "x" in call to "__call__" of "Task"
    add.apply_async(5)  # E: Argument 1 to "apply_async" of "Task" has incompatible type "int"
    add.apply_async((1,), [2])  # E: Argument 2 to "apply_async" of "Task" has incompatible type "list[int]"
    send.delay(5)  # E: Argument 1 to "delay" of "Task" has incompatible type "int"; expected "str"
    fetch.delay(5)  # E: Argument 1 to "delay" of "Task" has incompatible type "int"; expected "str"
    bound.delay("1")  # E: Argument 1 to "delay" of "Task" has incompatible type "str"; expected "int"
    bound.delay(bound, 1)  # E: Too many arguments for "delay" of "Task"
    bound_coroutine.delay()  # E: Missing positional argument "x" in call to "delay" of "Task"
    bound(bound, 1)  # E: Too many arguments for "__call__" of "Task"
    transactional.delay(connection, 1)  # E: Too many arguments for "delay" of "Task"
    transactional.delay("1")  # E: Argument 1 to "delay" of "Task" has incompatible type "str"; expected "int"
    both.delay(both, connection, 1)  # E: Too many arguments for "delay" of "Task"
    both.delay()  # E: Missing positional argument "x" in call to "delay" of "Task"


def results() -> None:
    text: str = add.delay(1).get()  # E: (expression has type "int", variable has type "str")
    number: int = bound.delay(1).get()  # E: (expression has type "str", variable has type "int")
    body: bytes = fetch("x")  # E: (expression has type "Coroutine[Any, Any, bytes]", variable has type "bytes")
    late: str = fetch.delay("x").get()  # E: (expression has type "bytes", variable has type "str")
    plain: int = add.delay(1)  # E: (expression has type "AsyncResult[int]", variable has type "int")
    many: list[str] = app.enqueue_many([add.s(1)])  # E: (expression has type "list[AsyncResult[int]]"
    app.enqueue_many([add.s(1)])[0].get().upper()  # E: "int" has no attribute "upper"
    print(add.delay(1).result_of)  # E: "AsyncResult[int]" has no attribute "result_of"
    app.enqueue_many([add])  # E: Argument 1 to "enqueue_many" of "PgQueue" has incompatible type "list[Task[


async def twins() -> None:
    await add.adelay("1")  # E: Argument 1 to "adelay" of "Task" has incompatible type "str"; expected "int"
    number: int = await fetch.adelay("x")  # E: (expression has type "AsyncResult[bytes]", variable has type "int")
    text: str = await (await fetch.adelay("x")).aget()  # E: (expression has type "bytes", variable has type "str")
    await add.delay(1)  # E: Incompatible types in "await" (actual type "AsyncResult[int]"
    await add(1)  # E: Incompatible types in "await" (actual type "int"
    add.adelay(1)  # E: [unused-coroutine]
    fetch("x")  # E: [unused-coroutine]


@app.task(bind=True)  # E: Argument 1 to "__call__" of "BoundDecorator" has incompatible type
def forgot_itself() -> int:
    return 5


@app.task(transactional=True)  # E: Argument 1 to "__call__" of "TransactionalDecorator" has incompatible type
def forgot_the_connection(x: int) -> int:
    return x


@app.task(bind=True, transactional=True)  # E: Argument 1 to "__call__" of "BoundTransactionalDecorator" has
def wrong_order(connection: Connection, self: AnyTask) -> int:
    return 5


@app.task("name")  # E: No overload variant of "task" of "PgQueue" matches argument type "str"
def named_by_position() -> int:
    return 5
