"""Tasks for the tests of the rules. What they do they write into the table `told`, so that a test can count it.

Receivers of signals listen only if the test has asked for it: they would take part in everything else.
"""

import asyncio
import gc
import json
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import Ignore, InvalidOption, PgQueue, Reject, Retry, Task, allow_join_result, signals

#: Few rounds, so that what is bounded ends soon.
app = PgQueue("rules", max_crashes=2, max_requeues=2)

ANY_TASK = Task[..., Any, Any]
TELL = (
    "with told as (insert into told (word, job, pid, state) values (%(word)s, %(job)s, %(pid)s,"
    " (select state from pgqueue.status(%(job)s))) returning word)"
    " select pg_notify('yard', split_part(word, ' ', 1)) from told"
)


def tell(word: str, job: str | None = None) -> None:
    """Write down what happens, and the state in which the job is for everybody else at that moment."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute(TELL, {"word": word, "job": job, "pid": os.getpid()})


def wait_at(gate: int) -> None:
    """Wait until the test opens the gate: an advisory lock that it holds."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute("select pg_advisory_lock_shared(%s)", [gate])


class Watched(Task):  # type: ignore[type-arg]
    """Tells of each hook that is called, and whether it was given an einfo."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        tell("before_start", task_id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        tell("on_success", task_id)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell(f"on_failure {type(exc).__name__} {einfo.type.__name__}", task_id)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell("on_retry", task_id)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell(f"after_return {status} {'with' if einfo else 'without'}", task_id)


class Clumsy(Task):  # type: ignore[type-arg]
    """All its hooks fail."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        tell("on_success", task_id)
        raise RuntimeError("in on_success")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell("on_failure", task_id)
        raise SystemExit("in on_failure")

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell("on_retry", task_id)
        raise RuntimeError("in on_retry")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell("after_return", task_id)
        raise RuntimeError("in after_return")


if os.environ.get("FAILING_FOLDER") and (Path(os.environ["FAILING_FOLDER"]) / "receivers").exists():

    @signals.task_failure.connect
    def hear_failure(sender: ANY_TASK, task_id: str, **_: Any) -> None:
        tell("task_failure", task_id)
        if isinstance(sender, Clumsy):
            raise RuntimeError("in task_failure")

    @signals.task_success.connect
    def hear_success(sender: ANY_TASK, **_: Any) -> None:
        if isinstance(sender, Clumsy):
            raise RuntimeError("in task_success")


# -- links and errbacks


@app.task(bind=True)
def follow(self: ANY_TASK, value: Any, *more: Any) -> list[Any]:
    """A link: tells of the job that it follows."""
    tell("follow", self.request.parent_id)
    return [value, *more]


@app.task(bind=True)
def mourn(self: ANY_TASK, failed: str, *more: Any) -> list[Any]:
    """An errback: tells of the job that failed."""
    tell("mourn", failed)
    return [type(app.AsyncResult(failed).result).__name__, *more]


@app.task
def mourn_shortly(failed: str) -> str:
    tell("mourn", failed)
    return failed


@app.task
def mourn_in_vain(failed: str, first: Any = None, second: Any = None) -> None:
    tell("mourn", failed)
    raise ValueError(f"an errback fails as well: {first} {second}")


# -- plain ones


@app.task(bind=True, base=Watched)
def add(self: ANY_TASK, x: int, y: int = 0) -> int:
    tell("body", self.request.id)
    return x + y


@app.task(bind=True, base=Watched)
def twice(self: ANY_TASK) -> int:
    tell(f"body {self.request.attempt}", self.request.id)
    if not self.request.retries:
        self.retry(countdown=0, exc=RuntimeError("again"))
    return self.request.attempt


@app.task(bind=True, base=Watched)
def fail(self: ANY_TASK, text: str = "no") -> None:
    tell("body", self.request.id)
    raise ValueError(text)


@app.task(bind=True, base=Clumsy, max_retries=1)
def clumsy(self: ANY_TASK, how: str) -> str:
    tell("body", self.request.id)
    if how == "fail":
        raise ValueError(how)
    if how == "retry" and not self.request.retries:
        self.retry(countdown=0)
    return how


@app.task(bind=True)
def held(self: ANY_TASK, gate: int = 1) -> int:
    tell(f"held {self.request.attempt}", self.request.id)
    wait_at(gate)
    return self.request.attempt


@app.task(bind=True, acks_late=False)
def held_once(self: ANY_TASK, gate: int = 1) -> int:
    tell(f"held {self.request.attempt}", self.request.id)
    wait_at(gate)
    return self.request.attempt


@app.task(bind=True, base=Watched, reject_on_worker_lost=False)
def held_or_lost(self: ANY_TASK, gate: int = 1) -> int:
    tell(f"held {self.request.attempt}", self.request.id)
    wait_at(gate)
    return self.request.attempt


@app.task
def pid() -> int:
    return os.getpid()


# -- limits and deaths


@app.task(bind=True, base=Watched, time_limit=0.3)
def overrun(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    time.sleep(60)


@app.task(bind=True, base=Watched, time_limit=0.3, acks_on_timeout=False)
def overrun_unacknowledged(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    time.sleep(60)


@app.task(bind=True, base=Watched)
def poison(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=Watched, reject_on_worker_lost=False)
def lose() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, base=Watched)
def run_out_of_memory(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    raise MemoryError("a body asked for too much")


class Unheard(BaseException):
    """Not an Exception."""


LEAVING: dict[str, type[BaseException]] = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "Unheard": Unheard,
}


@app.task
def leave(kind: str) -> None:
    raise LEAVING[kind]("leaving")


@app.task
async def aleave(kind: str) -> None:
    raise LEAVING[kind]("leaving")


# -- results that are not kept


@app.task(ignore_result=True, acks_on_failure=False)
def dead_letter(x: int, *, y: str) -> None:
    raise ValueError("kept")


@app.task(ignore_result=True)
def dropped(x: int, *, y: str) -> None:
    raise ValueError("dropped")


# -- what a task says about its attempt


@app.task(bind=True)
def hand_back(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    raise Reject("not now", requeue=True)


@app.task(bind=True, acks_late=False)
def hand_back_early(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    raise Reject("not now", requeue=True)


@app.task
def ignore() -> None:
    raise Ignore


@app.task(bind=True)
def claim_state(self: ANY_TASK, state: str, meta: Any) -> str:
    """Say that this job has a state that it cannot have; return what it really comes to."""
    for task_id in (None, self.request.id):
        try:
            self.update_state(task_id, state, meta)
        except InvalidOption:
            continue
        return "accepted"
    self.update_state(state="PROGRESS", meta=meta)
    tell("said", self.request.id)
    return "real"


@app.task(bind=True, default_retry_delay=0, max_retries=3)
def limited(self: ANY_TASK, limit: int | None = None) -> None:
    tell("body", self.request.id)
    self.retry(max_retries=limit, exc=RuntimeError("again"))


RETRY_KWARGS = {"max_retries": 2, "countdown": 5}


@app.task(
    bind=True,
    autoretry_for=(OSError,),
    retry_kwargs=RETRY_KWARGS,
    retry_backoff=True,
    retry_backoff_max=0.02,
    retry_jitter=False,
)
def backed_off(self: ANY_TASK) -> None:
    tell("body", self.request.id)
    raise OSError("down")


@app.task
def retry_kwargs() -> str:
    return repr((RETRY_KWARGS, backed_off.retry_kwargs))


@app.task(bind=True, autoretry_for=(Exception,), default_retry_delay=3600, max_retries=1)
def predicate(self: ANY_TASK, kind: str) -> str:
    tell("body", self.request.id)
    if kind == "ignore":
        raise Ignore
    if kind == "reject":
        raise Reject("not for us")
    if kind == "requeue":
        raise Reject("not now", requeue=True)
    if not self.request.retries:
        if kind == "retry":
            self.retry(countdown=0)
        raise Retry(countdown=0)
    return "done"


@app.task(bind=True)
def once_more(self: ANY_TASK, countdown: float, x: int = 1) -> int:
    tell("body", self.request.id)
    if not self.request.retries:
        self.retry(countdown=countdown)
    return x


@app.task(bind=True)
def call_myself(self: ANY_TASK, depth: int) -> Any:
    """Call this task directly, and there ask for a retry: that is nothing to the job around it."""
    request = self.request
    if depth:
        try:
            self(depth - 1)
        except Retry:
            return "the inner call was retried"
        except LookupError as error:
            return [request.called_directly, request.retries, self.request.id == request.id, *error.args]
    tell(f"inner {request.called_directly} {request.id}")
    raise self.retry(args=(depth,), countdown=0, exc=LookupError(request.called_directly, request.id))


# -- exceptions


class Picky(Exception):
    """Can only be made with keywords."""

    def __init__(self, *, code: int) -> None:
        self.code = code
        super().__init__(f"code {code}")


class Coded(Exception):
    """Has args that are no text."""


@app.task
def raise_one(kind: str) -> None:
    class Local(Exception):
        pass

    nowhere = type("Remote", (ValueError,), {"__module__": "only.the.worker.has.it"})
    match kind:
        case "coded":
            raise Coded("a", 1, {"b": [2]})
        case "picky":
            raise Picky(code=7)
        case "local":
            raise Local("x")
        case "remote":
            raise nowhere("far", 1)
        case "odd":
            raise Coded(object(), {1, 2})
        case "caused":
            error = Coded("on top")
            error.add_note("a note")
            raise error from KeyError("below")
        case "group":
            raise ExceptionGroup("both", [Coded("one"), KeyError("two")])


class Hoard:
    """Something large."""


_hoarded: list[weakref.ref[Hoard]] = []
_kept: list[BaseException] = []


def _hoard(how: str) -> None:
    big = Hoard()
    _hoarded.append(weakref.ref(big))
    below = KeyError("below")
    error = {"retry": Retry(exc=below, countdown=3600), "reject": Reject(below)}.get(how, ValueError(how))
    _kept.extend((error, below))  # as a module does that keeps the last error, for example
    try:
        raise below
    except KeyError as caught:
        raise error from caught


@app.task
def hoard(how: str) -> None:
    gc.disable()  # what only the collector of cycles would free counts as leaked
    _hoard(how)


@app.task
async def ahoard(how: str) -> None:
    gc.disable()
    _hoard(how)


class Witness(Task):  # type: ignore[type-arg]
    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        frames = any(ref() is not None for ref in _hoarded) and einfo.tb is not None
        tell(
            f"on_failure {'frames' if frames else 'none'} {'text' if '_hoard(how)' in str(einfo) else 'none'}", task_id
        )


@app.task(base=Witness)
def watched_hoard(how: str) -> None:
    gc.disable()
    _hoard(how)


@app.task
def left_over() -> list[int]:
    """How many there were, how many live, and how many exceptions still have their traceback."""
    living = [ref for ref in _hoarded if ref() is not None]
    return [len(_hoarded), len(living), len([error for error in _kept if error.__traceback__ is not None])]


# -- arguments


@app.task(bind=True, base=Watched)
def strict(self: ANY_TASK, x: int, *, y: int = 0) -> int:
    tell("body", self.request.id)
    return x + y


# -- transactions


@app.task(transactional=True)
def order(connection: psycopg.Connection[Any], number: int, settled: bool) -> int:
    connection.execute("insert into orders (number) values (%s)", [number])
    add.apply_async((number,), connection=connection, link=follow.s(), link_error=mourn.s())  # type: ignore[call-arg]
    if not settled:
        raise ValueError("not settled")
    return number


@app.task(transactional=True, time_limit=0.9, soft_time_limit=0.6)
def commit_slowly(connection: psycopg.Connection[Any], number: int) -> int:
    # A deferred trigger of the test makes the COMMIT take longer than both limits.
    connection.execute("insert into orders (number) values (%s)", [number])
    return number


@app.task(transactional=True, time_limit=0.9, soft_time_limit=0.6)
async def acommit_slowly(connection: psycopg.AsyncConnection[Any], number: int) -> int:
    await connection.execute("insert into orders (number) values (%s)", [number])
    return number


class Slow(Task):  # type: ignore[type-arg]
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            time.sleep(0.01)
        tell("on_success", task_id)


@app.task(base=Slow, time_limit=0.9, soft_time_limit=0.6)
def report_slowly() -> str:
    return "done"


# -- waiting


@app.task
def wait_beside(awaited: str) -> list[Any]:
    """Wait for a job in a thread of one's own, while the task itself must not."""
    found: list[Any] = []

    def wait() -> None:
        with allow_join_result():
            ready.set()
            found.append(app.AsyncResult(awaited).get(timeout=20))
        found.append(app.AsyncResult(awaited).get(timeout=20))

    ready = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait(10)
    try:
        found.append(app.AsyncResult(awaited).get(timeout=20))
    except RuntimeError as error:
        found.append(str(error).partition(" inside a task")[0])
    tell("refused")
    thread.join(20)
    return found


@app.task(bind=True)
def describe(self: ANY_TASK) -> str:
    request = self.request
    return json.dumps([request.attempt, request.eta, request.retries])
