"""Tasks for the tests of the worker; they talk to a test through the database: notifications and advisory locks."""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import Ignore, PgQueue, Reject, SoftTimeLimitExceeded, Task, signals

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


# -- time limits, stops and crashes


@app.task(soft_time_limit=0.2)
def nap(catch: bool) -> str:
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:  # short steps: a thread is interrupted between two
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        if not catch:
            raise
    return "woken"


@app.task(soft_time_limit=0.2)
async def anap(catch: bool) -> str:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        if not catch:
            raise
    return "woken"


@app.task
def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.task
async def asleep(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@app.task(transactional=True, time_limit=0.3)
def pay_slowly(connection: psycopg.Connection[Any], amount: int, in_sql: bool) -> None:
    connection.execute("insert into effect (amount) values (%s)", [amount])
    if in_sql:
        connection.execute("select pg_sleep(30)")
    else:
        time.sleep(30)


@app.task(transactional=True, time_limit=0.6, soft_time_limit=0.3)
def commit_slowly(connection: psycopg.Connection[Any], amount: int) -> int:
    # A deferred trigger of the test makes the COMMIT take longer than both limits.
    connection.execute("insert into slow_effect (amount) values (%s)", [amount])
    return amount


@app.task(time_limit=0.2, acks_on_failure_or_timeout=False)
def overrun() -> None:
    tell("overrun")
    time.sleep(30)


@app.task(time_limit=0.2)
def hold_the_lock() -> None:
    # A C function called in this way keeps the interpreter's lock: no other thread of the process runs.
    ctypes.PyDLL(None).sleep(60)


@app.task(bind=True)
def clean_up(self: ANY_TASK, gate: int) -> None:
    tell(f"started {self.request.attempt}")
    try:
        wait_at(gate)
    except BaseException as error:
        tell(f"cleaned {type(error).__name__}")
        raise


@app.task
async def aclean_up() -> None:
    tell("started")
    try:
        await asyncio.sleep(60)
    finally:
        tell("cleaned")


@app.task(bind=True)
def poison(self: ANY_TASK) -> None:
    tell(f"poison {self.request.attempt}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def leave_at_once(self: ANY_TASK, code: int) -> None:
    tell(f"leaving {self.request.attempt}")
    os._exit(code)


@app.task(reject_on_worker_lost=False)
def fragile() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def grow(mebibytes: int) -> int:
    keep.append(b"x" * mebibytes * 2**20)
    return os.getpid()


keep: list[bytes] = []


@app.task
def use_signals() -> list[str]:
    """What a task does with signals and logging is its own affair."""
    heard: list[str] = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(0.3)
    signal.signal(signal.SIGALRM, before)
    return [*heard, str(logging.getLogger().handlers), str(logging.getLogger().level)]


if os.environ.get("YARD_SIGNALS"):

    @signals.worker_init.connect
    @signals.worker_before_create_process.connect
    @signals.worker_process_init.connect
    @signals.worker_ready.connect
    @signals.worker_process_shutdown.connect
    @signals.worker_shutting_down.connect
    @signals.worker_shutdown.connect
    def write_down(signal: Any, sender: object, **payload: object) -> None:
        with Path(os.environ["YARD_SIGNALS"]).open("a") as file:
            file.write(f"{os.getpid()} {signal.name} {sender is app} {sorted(payload.items())}\n")


@app.task
def exhaust(cgroup: str) -> None:
    """Take more memory than a control group of the system allows, alone in it."""
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    keep.append(b"x" * 2**29)


@app.task
def shrug(gate: int) -> None:
    """What a clean-up makes of an interruption is not what the attempt comes to."""
    tell("started")
    try:
        wait_at(gate)
    except BaseException as error:
        raise RuntimeError("the clean-up failed") from error


@app.task(transactional=True)
def pay_and_break(connection: psycopg.Connection[Any], amount: int) -> None:
    # A deferred trigger of the test ends the session in its COMMIT.
    connection.execute("insert into breaking_effect (amount) values (%s)", [amount])


@app.task
def say(word: str) -> None:
    print(word)


class Lingers(Task[..., Any, Any]):
    """Its hook waits where a test may open the gate."""

    def on_success(self, *told: Any) -> None:
        tell("lingers")
        wait_at(1)
        tell("lingered")


@app.task(base=Lingers)
def linger() -> int:
    return 1
