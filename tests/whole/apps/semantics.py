"""Tasks that end in every way there is, and note in a file what is called of them: each line one call, as JSON.

`do` and its twin coroutine `ado` do what they are told by a word. Others of their kind have options of their own: those
of the matrix of acknowledgements are `semantics.ack.<acks_late>.<acks_on_*>.<reject_on_worker_lost>`.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel, model_serializer

from pgqueue import Ignore, PgQueue, Reject, Retry, SoftTimeLimitExceeded, Task, signals
from pgqueue.signals import Signal

app = PgQueue("semantics")

ANY_TASK = Task[..., Any, Any]


def note(job: str | None, name: str, **more: object) -> None:
    """Note a call where no fault of the database can undo it; one write, so lines of processes do not mix."""
    line = json.dumps({"job": job, "name": name, "pid": os.getpid(), **more}, default=repr) + "\n"
    file = os.open(os.environ["SEMANTICS_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def started(job: str | None) -> int:
    """Return how often a job has been started. Not its attempt: one that waits too long is handed back untried."""
    lines = Path(os.environ["SEMANTICS_NOTES"]).read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines if line.startswith(f'{{"job": "{job}"')]
    return max(names.count(name) for name in ("before_start", "body", "request"))


def broken(name: str, kwargs: object) -> None:
    """Raise where the caller wants it."""
    if isinstance(kwargs, Mapping) and kwargs.get("breaks") == name:
        raise ValueError(f"{name} is broken")


# -- hooks and receivers


class Told(app.Task):  # type: ignore[name-defined,misc]
    """Notes every hook, with the state that is stored by then."""

    def before_start(self, task_id: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        note(task_id, "before_start", attempt=self.request.attempt)
        broken("before_start", kwargs)
        if args and str(args[0]).startswith("before "):
            end(self, str(args[0]).removeprefix("before "))

    def on_success(self, retval: object, task_id: str, args: Any, kwargs: Any) -> None:
        self.heard("on_success", task_id, kwargs, retval)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard("on_failure", task_id, kwargs, exc)

    def on_retry(self, exc: object, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard("on_retry", task_id, kwargs, exc)

    def after_return(self, status: str, retval: object, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard("after_return", task_id, kwargs, retval)

    def heard(self, name: str, task_id: str, kwargs: Any, value: object) -> None:
        stored = app.AsyncResult(task_id)
        request = self.request.id == task_id
        # Of a retry the next attempt may have begun already, so its state is looked up where it cannot change.
        state = None if name == "on_retry" else str(stored.state)
        note(task_id, name, attempt=self.request.attempt, stored=state, value=value, request=request)
        if name == "on_success" and kwargs.get("breaks") == "slow":
            time.sleep(0.6)
            note(task_id, "slept", attempt=self.request.attempt)
        broken(name, kwargs)


def listen(signal: Signal) -> None:
    """Note every sending of a signal."""

    def receiver(sender: Any, signal: Signal = signal, **payload: Any) -> None:
        request = payload.get("request") or payload.get("message") or getattr(sender, "request", None)
        job = payload.get("task_id") or payload.get("id") or (request and request.id)
        state = str(payload["state"]) if payload.get("state") else None
        note(job, signal.name, attempt=request.attempt if request else None, state=state)
        broken(signal.name, payload.get("kwargs") or (request and request.kwargs))

    signal.connect(receiver, weak=False)


if os.environ.get("SEMANTICS_SIGNALS"):  # in workers: the process of the tests has other receivers
    for _signal in (
        signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure, signals.task_retry,
        signals.task_revoked, signals.task_rejected, signals.task_unknown, signals.task_internal_error,
    ):  # fmt: skip
        listen(_signal)


# -- what tasks do


class Slow(BaseModel):
    """A value that takes its time to be stored."""

    @model_serializer
    def write(self) -> str:
        time.sleep(0.5)
        return "slow"


def end(self: ANY_TASK, what: str) -> Any:
    """End an attempt in the way of this name."""
    repeats = ("raises Retry", "killed once", "requeue once")
    first = what in repeats and started(self.request.id) == 1
    match what:
        case "returns":
            return 7
        case "slow value":
            return Slow()
        case "exception":
            raise ValueError("no")
        case "retry" if self.request.retries == 0:
            self.retry(countdown=0, exc=KeyError("k"))
        case "retry" | "killed once":
            if what == "killed once" and first:
                os.kill(os.getpid(), signal.SIGKILL)
            return "again"
        case "retry for ever":
            self.retry(countdown=0, exc=KeyError("k"), max_retries=1)
        case "raises Retry":
            raise Retry("later", countdown=0) if first else ValueError("no")
        case "retry later":
            self.retry(countdown=70)
        case "too many retries":
            self.retry(countdown=0, max_retries=0)
        case "replace":
            self.replace(do.s("returns").set(queue=self.request.queue))
        case "ignore":
            raise Ignore
        case "reject":
            raise Reject("not for us")
        case "requeue":
            raise Reject("not now", requeue=True)
        case "requeue once" if first:
            raise Reject("not now", requeue=True)
        case "requeue once":
            return "again"
        case "object":
            return object()
        case "SystemExit":
            sys.exit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "MemoryError":
            raise MemoryError
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    raise NotImplementedError(what)


def _do(self: ANY_TASK, what: str, breaks: str | None = None) -> Any:
    note(self.request.id, "body", attempt=self.request.attempt)
    if not what.startswith("sleeps"):
        return end(self, what)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:  # short steps: a thread is interrupted between two
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        if what != "sleeps and catches":
            raise
    return "caught"


async def _ado(self: ANY_TASK, what: str, breaks: str | None = None) -> Any:
    note(self.request.id, "body", attempt=self.request.attempt)
    await asyncio.sleep(0)
    if not what.startswith("sleeps"):
        return end(self, what)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        if what != "sleeps and catches":
            raise
    return "caught"


def both(name: str, **options: Any) -> tuple[ANY_TASK, ANY_TASK]:
    """Declare a function and a coroutine function that do the same; the name of the second begins with an a."""
    declare: Any = app.task
    return (
        declare(name=f"semantics.{name}", bind=True, **options)(_do),
        declare(name=f"semantics.a{name}", bind=True, **options)(_ado),
    )


do, ado = both("do", base=Told)
both("do_throwing", base=Told, throws=(ValueError,))
both("do_again", base=Told, autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
both("do_fragile", base=Told, reject_on_worker_lost=False)
both("do_once", base=Told, acks_late=False)


@app.task(base=Told, transactional=True)
def unlawful(connection: psycopg.Connection[Any], what: str, breaks: str | None = None) -> None:
    # The constraint is deferred: only COMMIT finds out.
    connection.execute("insert into lawful (amount) values (1), (1)")


@app.task(bind=True)
def linked(self: ANY_TASK, value: object) -> None:
    note(self.request.parent_id, "link", value=value, root=self.request.root_id)


@app.task(bind=True)
def errback(self: ANY_TASK, failed: str) -> None:
    note(self.request.parent_id, "errback", value=failed, stored=str(app.AsyncResult(failed).state))


# -- the matrix of acknowledgements

#: What is said of acks_on_failure_or_timeout, acks_on_failure and acks_on_timeout.
ACKS: dict[str, dict[str, bool]] = {
    "default": {},
    "neither": {"acks_on_failure_or_timeout": False},
    "no failure": {"acks_on_failure": False},
    "no timeout": {"acks_on_timeout": False},
    "failure after all": {"acks_on_failure_or_timeout": False, "acks_on_failure": True},
    "timeout after all": {"acks_on_failure_or_timeout": False, "acks_on_timeout": True},
}


def ack_task(late: bool, acks: str, lost: bool) -> str:
    """Return the name of the task with these options."""
    return f"semantics.ack.{late}.{acks}.{lost}"


for _late in (True, False):
    for _acks, _options in ACKS.items():
        for _lost in (True, False):
            app.task(  # type: ignore[call-overload]
                name=ack_task(_late, _acks, _lost), bind=True, acks_late=_late, reject_on_worker_lost=_lost,
                max_retries=1, **_options,
            )(_do)  # fmt: skip


# -- what survives a repetition

_KEPT = (
    "args", "kwargs", "retries", "crashes", "attempt", "headers", "priority", "queue", "expires", "timelimit",
    "ignore_result", "callbacks", "errbacks", "root_id", "parent_id", "shadow",
)  # fmt: skip


@app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0, max_retries=3)
def remember(self: ANY_TASK, how: str, overrides: dict[str, Any] | None = None, *, named: int = 0) -> str:
    """Note the request, and once more after a repetition of this kind."""
    note(self.request.id, "request", seen={name: getattr(self.request, name) for name in _KEPT})
    if started(self.request.id) == 1:
        match how:
            case "retry":
                self.retry(countdown=0, **(overrides or {}))
            case "autoretry":
                raise OSError("down")
            case "requeue":
                raise Reject("not now", requeue=True)
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
    return "done"


# -- automatic retries

#: Options of tasks that do what they are told, by the name of the row.
AUTOMATIC: dict[str, dict[str, Any]] = {
    "covered": {"autoretry_for": (ValueError,), "default_retry_delay": 0},
    "not covered": {"autoretry_for": (OSError,), "default_retry_delay": 0},
    "excepted": {"autoretry_for": (Exception,), "dont_autoretry_for": (ValueError,), "default_retry_delay": 0},
    "all": {"autoretry_for": (Exception,), "default_retry_delay": 0},
    "all of them": {"autoretry_for": (BaseException,), "default_retry_delay": 0},
    "kwargs": {"autoretry_for": (ValueError,), "retry_kwargs": {"max_retries": 1, "countdown": 0}},
    "countdown": {"autoretry_for": (ValueError,), "retry_kwargs": {"countdown": 90}},
    "delay": {"autoretry_for": (ValueError,)},
    "backoff": {"autoretry_for": (ValueError,), "retry_backoff": 100, "retry_jitter": False},
    "capped": {
        "autoretry_for": (ValueError,), "retry_backoff": 100, "retry_backoff_max": 60, "retry_jitter": False,
        "retry_kwargs": {"countdown": 90},
    },
}  # fmt: skip

for _name, _automatic in AUTOMATIC.items():
    app.task(name=f"semantics.auto.{_name}", bind=True, **{"max_retries": 2, **_automatic})(_do)  # type: ignore[call-overload]


# -- for the tests: one run of workers for many rows


@dataclass(frozen=True)
class Played:
    """What has been noted in a run, in order, and the records of the workers' logs."""

    notes: list[dict[str, Any]]
    log: list[str]

    def attempts(self, job: str) -> list[list[dict[str, Any]]]:
        """Return what was noted in each attempt of a job that has begun, in order; first what was elsewhere, if any."""
        found: dict[int, list[dict[str, Any]]] = {}
        for noted in self.notes:
            if noted["job"] == job and noted.get("attempt") is not None:
                found.setdefault(noted["attempt"], []).append(noted)
        return [found[attempt] for attempt in sorted(found)]

    def of(self, job: str, name: str) -> list[dict[str, Any]]:
        """Return the notes of one kind about a job."""
        return [noted for noted in self.notes if (noted["job"], noted["name"]) == (job, name)]

    def logged(self, job: str) -> list[tuple[str, bool]]:
        """Return the levels of what was logged about attempts of a job, and whether with a traceback."""
        return [
            (record.split()[2], "Traceback" in record)
            for record in self.log
            if f"[{job[-12:]}] attempt" in record or f"[{job[-12:]}] is not run" in record
        ]


def play(dsn: str, folder: Path, workers: Sequence[Sequence[str]], env: Mapping[str, str], *, left: int = 0) -> Played:
    """Start workers with these arguments, and stop them when nothing is left that is due within half a minute.

    - `env`: variables of theirs.
    - `left`: jobs that nobody takes, and that stay.
    """
    notes = folder / "notes"
    notes.touch()
    environ = {**os.environ, "PGQUEUE_DSN": dsn, "SEMANTICS_NOTES": str(notes), **env}
    logs = [folder / f"worker{number}.log" for number in range(len(workers))]
    started = []
    for log, arguments in zip(logs, workers, strict=True):
        with log.open("w") as file:
            command = [sys.executable, "-m", "pgqueue", "-A", "semantics", "worker", "-l", "info", *arguments]
            started.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parent,
                    env=environ,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            deadline = time.monotonic() + 60
            while True:
                (due,) = connection.execute(
                    "select count(*) from pgqueue.job where worker is not null or eta < now() + interval '30 s'"
                ).fetchone() or (0,)
                if due <= left:
                    break
                said = "\n".join(log.read_text() for log in logs)
                assert time.monotonic() < deadline, f"{due} jobs are left\n{said}"
                assert all(worker.poll() is None for worker in started), f"a worker has ended\n{said}"
                time.sleep(0.05)
        for worker in started:
            worker.send_signal(signal.SIGTERM)
        codes = [worker.wait(20) for worker in started]
        said = "\n".join(log.read_text() for log in logs)
        assert not any(codes), said
    finally:
        for worker in started:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
    records = re.split(r"\n(?=\d{4}-\d\d-\d\d )", said)
    return Played([json.loads(line) for line in notes.read_text().splitlines()], records)
