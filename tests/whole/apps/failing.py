"""Tasks for the failpoints, one of each kind that an acknowledgement may meet; each notes in a file that it begins."""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import PgQueue, Task

app = PgQueue("failing")

ANY_TASK = Task[..., Any, Any]
_PAY = "insert into effect (job) values (%s)"


def begun(task: ANY_TASK) -> str:
    """Note that an attempt has begun, where no fault of the database can undo it; return the id of the job."""
    job = str(task.request.id)
    with (Path(os.environ["FAILING_FOLDER"]) / "begun").open("a") as file:
        file.write(f"{job}\n")
    return job


@app.task(bind=True)
def plain(self: ANY_TASK) -> int:
    begun(self)
    return 1


@app.task(bind=True)
async def aplain(self: ANY_TASK) -> int:
    begun(self)
    return 1


@app.task(bind=True)
def slow(self: ANY_TASK, seconds: float) -> int:
    begun(self)
    time.sleep(seconds)
    return 1


@app.task(bind=True, max_retries=2)
def third_time(self: ANY_TASK) -> int:
    begun(self)
    if self.request.retries < 2:
        self.retry(countdown=0)
    return 3


@app.task(bind=True)
def fails(self: ANY_TASK) -> None:
    begun(self)
    raise ValueError("no")


@app.task(bind=True, acks_late=False)
def once(self: ANY_TASK) -> int:
    begun(self)
    return 1


@app.task(bind=True, ignore_result=True)
def forgotten(self: ANY_TASK) -> int:
    begun(self)
    return 1


@app.task(bind=True)
def revoked(self: ANY_TASK) -> None:
    with psycopg.connect(app.database.dsn, autocommit=True) as connection:
        connection.execute("select pgqueue.revoke(%s)", [begun(self)])
    self.retry(countdown=0)


@app.task(bind=True, transactional=True)
def pays(self: ANY_TASK, connection: psycopg.Connection[Any]) -> int:
    connection.execute(_PAY, [begun(self)])
    return 1


@app.task(bind=True, transactional=True)
async def apays(self: ANY_TASK, connection: psycopg.AsyncConnection[Any]) -> int:
    await connection.execute(_PAY, [begun(self)])
    return 1


@app.task(bind=True)
def pays_late(self: ANY_TASK) -> int:
    with self.transaction() as connection:
        connection.execute(_PAY, [begun(self)])
    return 1


@app.task(bind=True)
async def apays_late(self: ANY_TASK) -> int:
    async with self.transaction() as connection:
        await connection.execute(_PAY, [begun(self)])
    return 1


@app.task(bind=True, transactional=True)
def pays_and_fails(self: ANY_TASK, connection: psycopg.Connection[Any]) -> None:
    connection.execute(_PAY, [begun(self)])
    raise ValueError("no")


@app.task(bind=True, transactional=True)
async def apays_and_fails(self: ANY_TASK, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(_PAY, [begun(self)])
    raise ValueError("no")


@app.task(bind=True, transactional=True, time_limit=0.5)
def overdue(self: ANY_TASK, connection: psycopg.Connection[Any]) -> None:
    connection.execute(_PAY, [begun(self)])
    time.sleep(60)


@app.task(bind=True, time_limit=0.2)
def stuck(self: ANY_TASK) -> None:
    begun(self)
    # A C function called in this way keeps the interpreter's lock: only the supervisor can end the process.
    ctypes.PyDLL(None).sleep(60)


@app.task(bind=True)
def linked(self: ANY_TASK) -> str:
    begun(self)
    return "value"


@app.task(bind=True)
def linked_and_fails(self: ANY_TASK) -> None:
    begun(self)
    raise ValueError("no")


@app.task(bind=True)
def followed(self: ANY_TASK, given: str) -> None:
    begun(self)


@app.task(bind=True)
def gathered(self: ANY_TASK, values: list[int | None]) -> None:
    begun(self)
    assert values == [1, 1, 3, 1]


@app.task(bind=True)
def never(self: ANY_TASK, values: list[int]) -> None:
    begun(self)


class BadHook(app.Task):  # type: ignore[name-defined, misc]
    """Its hook fails when the success is committed."""

    def on_success(self, *args: object) -> None:
        raise ValueError("the hook")


@app.task(bind=True, base=BadHook)
def bad_hook(self: ANY_TASK) -> int:
    begun(self)
    return 1
