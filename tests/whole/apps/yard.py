"""Tasks for the tests of the worker; they talk to a test through the database: notifications and advisory locks."""

import asyncio
import multiprocessing
import os
import signal
import time
from typing import Any

import psycopg

from pgqueue import Ignore, PgQueue, Reject, Task

app = PgQueue("yard")

ANY_TASK = Task[..., Any, Any]


def tell(word: str) -> None:
    """Notify the test."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute("select pg_notify('yard', %s)", [f"{word} {os.getpid()}"])


def wait_at(gate: int) -> None:
    """Wait until the test opens the gate: an advisory lock that it holds."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute("select pg_advisory_lock_shared(%s)", [gate])


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def aadd(x: int, y: int) -> int:
    await asyncio.sleep(0)
    return x + y


@app.task
def fail(text: str) -> None:
    raise ValueError(text)


@app.task
def ignore() -> None:
    raise Ignore


@app.task
def reject() -> None:
    raise Reject("not for us")


@app.task(autoretry_for=(OSError,), max_retries=2, default_retry_delay=0)
def flaky() -> None:
    raise OSError("down")


@app.task(bind=True)
def third_time(self: ANY_TASK) -> int:
    if self.request.retries < 2:
        self.retry(countdown=0, exc=RuntimeError("again"))
    return self.request.attempt


@app.task(bind=True)
def held(self: ANY_TASK, gate: int) -> int:
    tell(f"started {self.request.attempt}")
    wait_at(gate)
    return self.request.attempt


@app.task(bind=True, acks_late=False)
def held_once(self: ANY_TASK, gate: int) -> int:
    tell(f"started {self.request.attempt}")
    wait_at(gate)
    return self.request.attempt


@app.task
def spin(seconds: float) -> None:
    tell("spinning")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@app.task
def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave() -> None:
    raise SystemExit(3)


@app.task(transactional=True)
def pay(connection: psycopg.Connection[Any], amount: int, gate: int = 0) -> int:
    connection.execute("insert into effect (amount, attempt) values (%s, %s)", [amount, os.getpid()])
    if gate:
        tell("started")
        wait_at(gate)
    return amount


@app.task(transactional=True)
def pay_and_fail(connection: psycopg.Connection[Any], amount: int) -> None:
    connection.execute("insert into effect (amount) values (%s)", [amount])
    raise ValueError("no")


@app.task(transactional=True)
async def apay(connection: psycopg.AsyncConnection[Any], amount: int) -> int:
    await connection.execute("insert into effect (amount) values (%s)", [amount])
    return amount


@app.task(bind=True)
def pay_late(self: ANY_TASK, amount: int) -> int:
    with self.transaction() as connection:
        connection.execute("insert into effect (amount) values (%s)", [amount])
    return amount


@app.task(bind=True)
async def apay_late(self: ANY_TASK, amount: int) -> int:
    async with self.transaction() as connection:
        await connection.execute("insert into effect (amount) values (%s)", [amount])
    return amount


@app.task(bind=True)
def pay_then_think_better(self: ANY_TASK, amount: int) -> int:
    try:
        with self.transaction() as connection:
            connection.execute("insert into effect (amount) values (%s)", [amount])
            raise ValueError("no")
    except ValueError:
        pass
    return amount


@app.task(bind=True)
def pay_then_fail(self: ANY_TASK, amount: int) -> None:
    with self.transaction() as connection:
        connection.execute("insert into effect (amount) values (%s)", [amount])
    raise ValueError("too late, it is undone")


@app.task(transactional=True)
def pay_unlawfully(connection: psycopg.Connection[Any], amount: int) -> None:
    # The constraint is deferred: only COMMIT finds out.
    connection.execute("insert into lawful (amount) values (%s), (%s)", [amount, amount])


@app.task(ignore_result=True)
def forgettable() -> int:
    return 1


@app.task(bind=True)
def parent(self: ANY_TASK) -> str:
    return add.delay(1, 1).id


@app.task
def declare_late() -> None:
    if "yard.late" not in app.tasks:

        @app.task(name="yard.late")
        def late() -> str:
            return "late"


@app.task
async def cancel_myself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(1)


@app.task
def end_a_child() -> int | None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    return child.exitcode
