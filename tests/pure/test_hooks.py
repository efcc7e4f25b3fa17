"""Hooks and signals of a task: which are called for each outcome, in which order, with what, and when they fail."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from pgqueue import (
    Ignore,
    LeaseLost,
    MaxRetriesExceededError,
    PgQueue,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Task,
    WorkerShutdown,
    signals,
)
from pgqueue.errors import TransactionUnavailable
from pgqueue.reports import report
from pgqueue.serialization import encode
from pgqueue.signals import Signal
from pgqueue.tracer import Aftermath, ExceptionInfo, Tracer, Where, build_tracer, current_context
from pgqueue.tracer.context import UNGUARDED, Guard
from pgqueue.tracer.hooks import HOOKS
from pgqueue.types import (
    Claim,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)
from pgqueue.worker.failures import hooked

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
ID = "0197c2b0-0000-7000-8000-000000000001"

AnyTask = Task[..., Any, Any]
Declare = Callable[..., AnyTask]
Body = Callable[[AnyTask], object]

#: Signals that an attempt may send.
SENT = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
    signals.task_failure,
    signals.task_retry,
    signals.task_revoked,
    signals.task_rejected,
    signals.task_internal_error,
)
BEGUN = ["task_prerun", "before_start", "body"]
SUCCESS = ["on_success", "task_success", "after_return", "task_postrun"]
FAILURE = ["on_failure", "task_failure", "after_return", "task_postrun"]
RETRY = ["on_retry", "task_retry", "task_postrun"]


@dataclass
class Heard:
    """What was called, in order: name, arguments by name, and the id of `self.request` there."""

    calls: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    #: What is raised where: name of a hook, a signal, or the body.
    raises: dict[str, BaseException] = field(default_factory=dict)

    def call(self, name: str, **given: Any) -> None:
        around = current_context()
        self.calls.append((name, given, around.id if around else None))
        if name in self.raises:
            raise self.raises[name]

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def of(self, name: str) -> dict[str, Any]:
        (given,) = (given for found, given, _ in self.calls if found == name)
        return given


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def listening(heard: Heard) -> Iterator[Heard]:
    """All signals are listened to."""
    receivers = [(signal, listen(heard, signal)) for signal in SENT]
    yield heard
    for signal, receiver in receivers:
        signal.disconnect(receiver)


def listen(heard: Heard, signal: Signal) -> Callable[..., None]:
    def receiver(signal: Signal, **payload: Any) -> None:
        heard.call(signal.name, **payload)

    return signal.connect(receiver, weak=False)


@pytest.fixture(params=["function", "coroutine function"])
def declare(request: pytest.FixtureRequest, app: PgQueue, heard: Heard) -> Declare:
    """Make a bound task with all hooks, of a function as it is and as a coroutine function that does the same."""

    class Watched(app.Task):  # type: ignore[name-defined,misc]
        def before_start(self, task_id: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
            heard.call("before_start", task_id=task_id, args=args, kwargs=kwargs)

        def on_success(self, retval: object, task_id: str, args: Any, kwargs: Any) -> None:
            heard.call("on_success", retval=retval, task_id=task_id, args=args, kwargs=kwargs)

        def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            heard.call("on_failure", exc=exc, task_id=task_id, args=args, kwargs=kwargs, einfo=einfo)

        def on_retry(self, exc: BaseException | None, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            heard.call("on_retry", exc=exc, task_id=task_id, args=args, kwargs=kwargs, einfo=einfo)

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            heard.call(
                "after_return", status=status, retval=retval, task_id=task_id, args=args, kwargs=kwargs, einfo=einfo
            )

    def make(function: Callable[..., Any], **options: Any) -> AnyTask:
        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            heard.call("body")
            return function(*args, **kwargs)

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            heard.call("body")
            await asyncio.sleep(0)
            found = function(*args, **kwargs)
            return await found if asyncio.iscoroutine(found) else found

        options = {"base": Watched, "bind": True, **options}
        task: AnyTask = app.task(name="t", **options)(body if request.param == "function" else coroutine)
        return task

    return make


def claimed(args: Sequence[object] = (), kwargs: dict[str, object] | None = None, **fields: Any) -> Claim:
    """Return a claim as a worker gets it."""
    plain = Claim(
        ID, "t", "default", 5, encode(list(args), path="args"), encode(kwargs or {}, path="kwargs"), 1, 0, 0,
        AT, AT, None, False, False, None, None, None, None,
    )  # fmt: skip
    return plain._replace(**fields)


UNREADABLE = claimed()._replace(args="no json")


def attempt(
    task: AnyTask, claim: Claim | None = None, transactor: Any = None, guard: Guard = UNGUARDED
) -> tuple[Outcome, Aftermath | None]:
    tracer: Tracer = build_tracer(task, Where("host.1"))
    claim = claim or claimed()
    if tracer.trace is not None:
        return tracer.trace(claim, transactor, guard)

    async def run() -> tuple[Outcome, Aftermath | None]:
        assert tracer.atrace is not None
        return await tracer.atrace(claim, transactor, guard)

    return asyncio.run(run())


def told(task: AnyTask, claim: Claim | None = None, **more: Any) -> tuple[Outcome, list[str]]:
    """Run an attempt, commit it, and tell; return what it came to, and which hooks and receivers have failed."""
    outcome, aftermath = attempt(task, claim, **more)
    assert aftermath is not None
    errors = aftermath.tell(outcome, acked=True)
    return outcome, [name for name, _ in errors]


class SoftLimit:
    """A guard whose body calls `strike` when its soft limit is over: a slot does it by a signal or a cancellation."""

    def __init__(self) -> None:
        self.interruption: BaseException | None = None
        self.calls: list[str] = []

    def enter(self) -> None:
        self.calls.append("enter")

    aenter = enter

    def leave(self) -> None:
        self.calls.append("leave")

    def strike(self) -> None:
        self.interruption = SoftTimeLimitExceeded("over")
        try:
            current = asyncio.current_task()
        except RuntimeError:
            raise self.interruption from None
        assert current is not None
        current.cancel()


class Transactions:
    """A transactor of which nobody commits anything."""

    def begin(self, claim: Claim) -> Any:
        return object()

    def rollback(self) -> None: ...

    async def abegin(self, claim: Claim) -> Any:
        return object()

    async def arollback(self) -> None: ...


# -- which, and in which order -----------------------------------------------------------------------------------


def returns(task: AnyTask) -> int:
    return 7


def fails(task: AnyTask) -> None:
    raise ValueError("no")


def asks(task: AnyTask) -> None:
    task.retry(exc=KeyError("k"), countdown=3)


def replaces(task: AnyTask) -> None:
    task.replace(task.s())


def raising(error: BaseException) -> Body:
    def body(task: AnyTask) -> None:
        raise error

    return body


@dataclass(frozen=True)
class Row:
    """One outcome.

    - `said`: what is called after the commit; `begun`: and before it.
    - `state`: that `task_postrun` has; None: it is not sent, or tells of nothing that counts.
    - `before`: what `before_start` raises.
    """

    body: Body
    outcome: type
    said: list[str]
    state: str | None
    begun: list[str] = field(default_factory=lambda: BEGUN)
    before: BaseException | None = None
    options: dict[str, Any] = field(default_factory=dict)
    claim: Claim = field(default_factory=claimed)


UNSTARTED = ["task_prerun", "before_start"]
ROWS = {
    "returns": Row(returns, Succeeded, SUCCESS, "SUCCESS"),
    "exception": Row(fails, Failed, FAILURE, "FAILURE"),
    "exception that it throws": Row(fails, Failed, FAILURE, "FAILURE", options={"throws": (ValueError,)}),
    "retry": Row(asks, Retried, RETRY, "RETRY"),
    "retry by hand": Row(raising(Retry("later")), Retried, RETRY, "RETRY"),
    "autoretry": Row(fails, Retried, RETRY, "RETRY", options={"autoretry_for": (ValueError,)}),
    "autoretry is used up": Row(
        fails, Failed, FAILURE, "FAILURE", options={"autoretry_for": (ValueError,)}, claim=claimed(retries=3)
    ),
    "retry is used up": Row(asks, Failed, FAILURE, "FAILURE", claim=claimed(retries=3)),
    "ignore": Row(raising(Ignore()), Ignored, ["task_postrun"], "IGNORED"),
    "replace": Row(replaces, Replaced, ["task_postrun"], "IGNORED"),
    "reject": Row(raising(Reject("no")), Rejected, ["task_failure", "task_postrun"], "REJECTED"),
    "reject, requeue": Row(raising(Reject("no", requeue=True)), Rejected, ["task_postrun"], "REJECTED"),
    "reject, requeue, too often": Row(
        raising(Reject("no", requeue=True)),
        Rejected,
        ["task_failure", "task_postrun"],
        "REJECTED",
        claim=claimed(requeues=100),
    ),
    "value that cannot be stored": Row(lambda task: object(), Failed, FAILURE, "FAILURE"),
    "retry that cannot be stored": Row(raising(Retry(args=(object(),))), Failed, FAILURE, "FAILURE"),
    "SystemExit": Row(raising(SystemExit(3)), Failed, FAILURE, "FAILURE"),
    "KeyboardInterrupt": Row(raising(KeyboardInterrupt()), Failed, FAILURE, "FAILURE"),
    "BaseException": Row(raising(BaseException("odd")), Failed, FAILURE, "FAILURE"),
    "MemoryError": Row(raising(MemoryError()), Failed, FAILURE, "FAILURE"),
    "lease lost": Row(raising(LeaseLost()), Released, ["task_postrun"], None),
    "worker stops": Row(raising(WorkerShutdown()), Released, ["task_postrun"], None),
    "no transaction": Row(raising(TransactionUnavailable()), Released, ["task_postrun"], None),
    "expired": Row(returns, Revoked, ["task_revoked"], None, begun=[], claim=claimed(expired=True)),
    "revoked": Row(returns, Revoked, ["task_revoked"], None, begun=[], claim=claimed(revoked=True)),
    "arguments that do not fit": Row(returns, Failed, FAILURE[:-1], None, begun=[], claim=claimed([1, 2])),
    "arguments that cannot be read": Row(
        returns, Failed, FAILURE[:-1], None, begun=["task_rejected"], claim=UNREADABLE
    ),
    "kwargs that are none": Row(
        returns, Failed, FAILURE[:-1], None, begun=["task_rejected"], claim=claimed()._replace(kwargs="[1]")
    ),
    **{
        f"before_start raises {type(error).__name__}": Row(returns, outcome, said, state, begun=UNSTARTED, before=error)
        for error, outcome, said, state in (
            (ValueError("no"), Failed, FAILURE, "FAILURE"),
            (SystemExit(1), Failed, FAILURE, "FAILURE"),
            (Retry("later"), Retried, RETRY, "RETRY"),
            (Ignore(), Ignored, ["task_postrun"], "IGNORED"),
            (Reject("no"), Rejected, ["task_failure", "task_postrun"], "REJECTED"),
        )
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_each_outcome_is_told_once_in_order(declare: Declare, listening: Heard, name: str) -> None:
    row = ROWS[name]
    if row.before is not None:
        listening.raises["before_start"] = row.before
    task = declare(row.body, **row.options)
    outcome, aftermath = attempt(task, row.claim)
    assert type(outcome) is row.outcome
    assert listening.names == row.begun  # nothing more before the commit
    assert aftermath is not None
    assert aftermath.tell(outcome, acked=True) == []
    assert listening.names == row.begun + row.said
    if "task_postrun" in row.said:
        assert listening.of("task_postrun")["state"] == row.state
    if "after_return" in row.said:
        assert listening.of("after_return")["status"] == (row.state or "FAILURE")


@pytest.mark.parametrize("name", ROWS)
def test_what_lost_its_lease_tells_only_that_it_has_ended(declare: Declare, listening: Heard, name: str) -> None:
    row = ROWS[name]
    if row.before is not None:
        listening.raises["before_start"] = row.before
    outcome, aftermath = attempt(declare(row.body, **row.options), row.claim)
    assert aftermath is not None
    del listening.calls[:]
    aftermath.tell(outcome, acked=False)
    assert listening.names == (["task_postrun"] if "task_prerun" in row.begun else [])
    if listening.calls:
        assert (listening.of("task_postrun")["state"], listening.of("task_postrun")["retval"]) == (None, None)


@pytest.mark.parametrize("catches", [True, False])
def test_the_soft_limit_is_a_failure_unless_the_body_catches_it(
    declare: Declare, listening: Heard, catches: bool
) -> None:
    guard = SoftLimit()

    async def sleeps() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            if not catches:
                raise
        return "caught"

    def body(task: AnyTask) -> Any:
        try:
            guard.strike()
        except SoftTimeLimitExceeded:
            if not catches:
                raise
            return "caught"
        return sleeps()

    told(declare(body), guard=guard)
    assert listening.names == BEGUN + (SUCCESS if catches else FAILURE)
    assert guard.calls == ["enter", "leave"]
    if not catches:
        assert isinstance(listening.of("on_failure")["exc"], SoftTimeLimitExceeded)
        where = str(listening.of("on_failure")["einfo"])
        assert "in strike" in where or "in sleeps" in where


@pytest.mark.parametrize("stop", [WorkerShutdown("the worker ends"), LeaseLost()])
def test_an_attempt_that_the_worker_interrupts_goes_back_whatever_the_task_makes_of_it(
    declare: Declare, listening: Heard, stop: BaseException
) -> None:
    class Interrupting(SoftLimit):
        def leave(self) -> None:
            self.interruption = stop

    def body(task: AnyTask) -> None:
        raise ValueError("because of that")

    outcome, _ = told(declare(body), guard=Interrupting())
    assert outcome == Released()
    assert listening.names == [*BEGUN, "task_postrun"]
    assert listening.of("task_postrun")["state"] is None


async def test_a_coroutine_that_is_cancelled_from_outside_says_at_once_that_it_counts_for_nothing(
    app: PgQueue, listening: Heard
) -> None:
    @app.task(name="t")
    async def waits() -> None:
        await asyncio.sleep(10)

    tracer = build_tracer(waits)
    assert tracer.atrace is not None
    running = asyncio.ensure_future(tracer.atrace(claimed(), None))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert listening.names == ["task_prerun", "task_postrun"]
    assert listening.of("task_postrun")["state"] is None


# -- what was committed is told, not what the tracer had come to ----------------------------------------------------


@pytest.mark.parametrize("only", ["on_failure", "task_failure", "everything"])
def test_a_commit_that_is_refused_is_told_as_the_failure_that_it_is(
    declare: Declare, app: PgQueue, heard: Heard, request: pytest.FixtureRequest, only: str
) -> None:
    class OnlyFailures(app.Task):  # type: ignore[name-defined,misc]
        def on_failure(self, exc: BaseException, *job: Any) -> None:
            heard.call("on_failure", exc=exc)

    base = {"on_failure": OnlyFailures, "task_failure": Task}.get(only)
    if only == "everything":
        request.getfixturevalue("listening")
    elif only == "task_failure":
        listen(heard, signals.task_failure)
    try:
        task = declare(lambda self, connection: 1, transactional=True, **({"base": base} if base else {}))
        outcome, aftermath = attempt(task, transactor=Transactions())
        assert outcome == Succeeded("1")
        assert aftermath is not None
        aftermath.tell(Failed(report(ValueError("deferred"))), acked=True)
    finally:
        if only == "task_failure":
            signals.task_failure.receivers = ()
    assert heard.names == {"everything": BEGUN + FAILURE}.get(only, ["body", only])
    raised = heard.of("task_failure")["exception"] if only == "task_failure" else heard.of("on_failure")["exc"]
    assert (type(raised), str(raised)) == (ValueError, "deferred")


@pytest.mark.parametrize("error", [WorkerShutdown(), LeaseLost()])
def test_what_may_start_once_and_is_interrupted_is_told_as_the_failure_that_it_becomes(
    declare: Declare, app: PgQueue, heard: Heard, error: BaseException
) -> None:
    task = declare(raising(error), acks_late=False)
    outcome, aftermath = attempt(task)
    assert outcome == Released()
    assert aftermath is not None
    aftermath.tell(Failed(report(RuntimeError("the worker stopped"))), acked=True)
    assert heard.names == ["before_start", "body", "on_failure", "after_return"]
    assert str(heard.of("on_failure")["exc"]) in ("the worker stopped", str(error))


# -- with what ---------------------------------------------------------------------------------------------------

#: Bodies, and the signals that then tell of them.
PAYLOADS: dict[str, tuple[Body, Claim]] = {
    "task_prerun": (returns, claimed()),
    "task_postrun": (returns, claimed()),
    "task_success": (returns, claimed()),
    "task_failure": (fails, claimed()),
    "task_retry": (asks, claimed()),
    "task_revoked": (returns, claimed(revoked=True)),
    "task_rejected": (returns, UNREADABLE),
    "task_internal_error": (returns, claimed()),
}


@pytest.mark.parametrize("signal", SENT, ids=lambda signal: signal.name)
def test_a_signal_has_celerys_names_and_the_task_as_sender(declare: Declare, listening: Heard, signal: Signal) -> None:
    body, claim = PAYLOADS[signal.name]
    if signal.name == "task_internal_error":
        listening.raises["on_success"] = ValueError("hook")
    task = declare(body)
    told(task, claim)
    payload = listening.of(signal.name)
    assert set(payload) == {"sender", *signal.payload}
    assert payload["sender"] is task
    if "task_id" in signal.payload:
        assert payload["task_id"] == ID
    if "task" in signal.payload:
        assert payload["task"] is task


def test_only_receivers_for_this_task_are_called(declare: Declare, app: PgQueue) -> None:
    task = declare(returns)
    other = app.task(name="other")(lambda: 1)
    mine: list[object] = []

    def receiver(sender: object, **_: Any) -> None:
        mine.append(sender)

    for sender in (task, other):
        signals.task_success.connect(receiver, sender=sender)
    try:
        told(task)
    finally:
        for sender in (task, other):
            signals.task_success.disconnect(receiver, sender=sender)
    assert mine == [task]


def test_hooks_and_signals_of_a_success_have_its_value_and_arguments(app: PgQueue, heard: Heard) -> None:
    class Watched(app.Task):  # type: ignore[name-defined,misc]
        def on_success(self, *given: object) -> None:
            heard.call("on_success", given=given)

        def after_return(self, *given: object) -> None:
            heard.call("after_return", given=given)

    @app.task(name="t", base=Watched)
    def add(x: int, y: int = 0) -> int:
        return x + y

    told(add, claimed([2], {"y": 3}))
    assert heard.of("on_success")["given"] == (5, ID, (2,), {"y": 3})
    assert heard.of("after_return")["given"] == ("SUCCESS", 5, ID, (2,), {"y": 3}, None)


def test_a_failure_is_told_with_the_exception_itself_and_its_traceback(declare: Declare, listening: Heard) -> None:
    error = ValueError("no")
    seen: list[Any] = []

    def look(einfo: ExceptionInfo, **_: Any) -> None:  # while it is told: afterwards the traceback is gone
        seen.append((einfo.tb, einfo.exception.__traceback__))

    task = declare(raising(error))
    signals.task_failure.connect(look)
    try:
        outcome, _ = told(task)
    finally:
        signals.task_failure.disconnect(look)
    assert isinstance(outcome, Failed)
    hook, signal, after = (listening.of(name) for name in ("on_failure", "task_failure", "after_return"))
    assert hook["exc"] is signal["exception"] is after["retval"] is listening.of("task_postrun")["retval"] is error
    einfo = hook["einfo"]
    assert einfo is signal["einfo"] is after["einfo"]
    assert (einfo.exception, einfo.type, einfo.internal) == (error, ValueError, False)
    assert einfo.traceback == str(einfo) == outcome.error.traceback
    assert "raise error\nValueError: no" in str(einfo)
    assert "pgqueue/tracer" not in str(einfo)
    assert seen[0][0] is seen[0][1] is not None


def test_a_retry_is_told_with_what_led_to_it(declare: Declare, listening: Heard) -> None:
    task = declare(asks)
    told(task)
    hook, signal = listening.of("on_retry"), listening.of("task_retry")
    assert repr(hook["exc"]) == "KeyError('k')"
    assert isinstance(signal["reason"], Retry)
    assert signal["reason"] is listening.of("task_postrun")["retval"]
    assert (signal["reason"].exc, signal["reason"].when) == (hook["exc"], 3.0)
    assert signal["request"].id == ID
    assert signal["einfo"] is hook["einfo"]
    assert isinstance(hook["einfo"].exception, KeyError)


def test_an_automatic_retry_is_told_as_if_it_had_been_asked_for(declare: Declare, listening: Heard) -> None:
    told(declare(fails, autoretry_for=(ValueError,), default_retry_delay=4))
    assert isinstance(listening.of("on_retry")["exc"], ValueError)
    assert isinstance(listening.of("task_retry")["reason"], Retry)
    assert listening.of("task_retry")["reason"].when == 4.0
    assert "ValueError: no" in str(listening.of("on_retry")["einfo"])


def test_a_retry_without_a_reason_says_none(declare: Declare, listening: Heard) -> None:
    told(declare(raising(Retry("later"))))
    assert listening.of("on_retry")["exc"] is None


@pytest.mark.parametrize(
    ("body", "kind"), [(asks, KeyError), (lambda task: task.retry(countdown=0), MaxRetriesExceededError)]
)
def test_a_retry_too_many_is_told_as_the_failure_that_it_is(
    declare: Declare, listening: Heard, body: Body, kind: type[BaseException]
) -> None:
    told(declare(body), claimed(retries=3))
    assert type(listening.of("on_failure")["exc"]) is kind


def test_a_rejection_is_told_with_the_reject_and_without_a_hook(declare: Declare, listening: Heard) -> None:
    error = Reject("no such order")
    told(declare(raising(error)))
    signal = listening.of("task_failure")
    assert signal["exception"] is listening.of("task_postrun")["retval"] is error


@pytest.mark.parametrize(("fields", "expired"), [({"expired": True}, True), ({"revoked": True}, False)])
def test_a_refused_start_says_why(declare: Declare, listening: Heard, fields: dict[str, Any], expired: bool) -> None:
    told(declare(returns), claimed(**fields))
    payload = listening.of("task_revoked")
    assert (payload["expired"], payload["terminated"], payload["signum"]) == (expired, False, None)
    assert payload["request"].id == ID


def test_arguments_that_cannot_be_read_are_told_with_the_request(declare: Declare, listening: Heard) -> None:
    told(declare(returns), UNREADABLE)
    payload = listening.of("task_rejected")
    assert payload["message"].id == ID
    assert "not JSON" in str(payload["exc"])
    assert listening.of("on_failure")["args"] == []


def test_arguments_that_do_not_fit_are_told_as_they_came(declare: Declare, listening: Heard) -> None:
    told(declare(returns), claimed([1, 2], {"a": 3}))
    given = listening.of("on_failure")
    assert (given["args"], given["kwargs"]) == ([1, 2], {"a": 3})


# -- where -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_the_request_is_that_of_the_job_in_every_call_and_gone_afterwards(
    declare: Declare, app: PgQueue, listening: Heard, name: str
) -> None:
    row = ROWS[name]
    current: list[AnyTask | None] = []

    def look(**_: Any) -> None:
        current.append(app.current_task)

    task = declare(row.body, **row.options)
    if row.before is not None:
        listening.raises["before_start"] = row.before
    for signal in SENT:
        signal.connect(look)
    try:
        told(task, row.claim)
    finally:
        for signal in SENT:
            signal.disconnect(look)
    inside = [id_ for called, _, id_ in listening.calls if called != "task_rejected"]
    assert set(inside) == {ID}
    assert set(current) - {None} <= {task}
    assert current_context() is None
    assert app.current_task is None
    assert task.request.id is None


def test_self_request_works_in_a_hook(app: PgQueue) -> None:
    seen: list[object] = []

    class Watched(app.Task):  # type: ignore[name-defined,misc]
        def on_success(self, *_: object) -> None:
            seen.append((self.request.id, self.request.retries, self.request.hostname, app.current_task is self))

    @app.task(name="t", base=Watched)
    def one() -> int:
        return 1

    told(one, claimed(retries=2))
    assert seen == [(ID, 2, "host.1", True)]


# -- when they fail ----------------------------------------------------------------------------------------------

ERRORS = [ValueError("hook"), SystemExit(1), Retry("later")]
AFTER = {"returns": (returns, SUCCESS), "fails": (fails, FAILURE), "asks": (asks, RETRY)}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("how", "name"), [(how, name) for how, (_, said) in AFTER.items() for name in said])
def test_what_fails_after_the_commit_changes_nothing_and_keeps_nobody_from_being_called(
    declare: Declare,
    listening: Heard,
    caplog: pytest.LogCaptureFixture,
    how: str,
    name: str,
    error: BaseException,
) -> None:
    body, said = AFTER[how]
    listening.raises[name] = error
    outcome, aftermath = attempt(declare(body))
    before = outcome
    assert aftermath is not None
    with caplog.at_level(logging.ERROR):
        ((failed, found),) = aftermath.tell(outcome, acked=True)
    assert (failed, found.type) == (name, type(error).__name__)
    assert outcome is before
    # The error itself is told as soon as it has happened.
    at = said.index(name) + 1
    assert listening.names == [*BEGUN, *said[:at], "task_internal_error", *said[at:]]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "Traceback" in caplog.text


def test_all_of_them_may_fail(declare: Declare, listening: Heard) -> None:
    listening.raises = {name: ValueError(name) for name in (*SUCCESS, "task_prerun", "task_internal_error")}
    outcome, failed = told(declare(returns))
    assert outcome == Succeeded("7")
    # A receiver that is told of the failures of others is told of its own no more: that would not end.
    assert [name for name in failed if name != "task_internal_error"] == ["task_prerun", *SUCCESS]
    assert [name for name in listening.names if name != "task_internal_error"] == BEGUN + SUCCESS


@pytest.mark.parametrize("wanted", [True, False])
def test_a_receiver_that_fails_before_the_body_does_not_keep_it_from_running(
    app: PgQueue, declare: Declare, heard: Heard, wanted: bool
) -> None:
    heard.raises["task_prerun"] = ValueError("receiver")
    receiver = listen(heard, signals.task_prerun)
    try:
        outcome, failed = told(declare(returns, **({} if wanted else {"base": Task})))
    finally:
        signals.task_prerun.disconnect(receiver)
    assert (outcome, failed) == (Succeeded("7"), ["task_prerun"])


def test_a_receiver_before_the_body_that_wants_the_process_to_end_ends_the_attempt(
    declare: Declare, listening: Heard
) -> None:
    listening.raises["task_prerun"] = SystemExit(1)
    outcome, _ = told(declare(returns))
    assert isinstance(outcome, Failed)
    assert listening.names == ["task_prerun", *FAILURE]


def test_a_receiver_that_fails_does_not_keep_the_next_one_from_being_called(declare: Declare, heard: Heard) -> None:
    second: list[object] = []

    def breaks(**_: Any) -> None:
        raise ValueError("first")

    def hears(result: object, **_: Any) -> None:
        second.append(result)

    signals.task_success.connect(breaks)
    signals.task_success.connect(hears)
    try:
        _, failed = told(declare(returns))
    finally:
        signals.task_success.disconnect(breaks)
        signals.task_success.disconnect(hears)
    assert (second, failed) == ([7], ["task_success"])


def test_the_failure_of_a_hook_is_told_with_its_own_exception(declare: Declare, listening: Heard) -> None:
    listening.raises["on_success"] = KeyError("hook")
    told(declare(returns))
    payload = listening.of("task_internal_error")
    assert (payload["task_id"], payload["request"].id) == (ID, ID)
    assert isinstance(payload["exception"], KeyError)
    assert payload["einfo"].exception is payload["exception"]
    assert "KeyError: 'hook'" in str(payload["einfo"])


# -- for nobody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.before is None])
def test_an_attempt_that_nobody_asks_about_leaves_nothing_to_tell(declare: Declare, name: str) -> None:
    row = ROWS[name]
    task = declare(row.body, base=Task, **row.options)
    outcome, aftermath = attempt(task, row.claim)
    assert type(outcome) is row.outcome
    assert aftermath is None


def test_a_receiver_for_one_task_makes_no_other_wait(app: PgQueue, declare: Declare) -> None:
    heard = app.task(name="heard")(lambda: 1)
    plain = declare(fails, base=Task)
    # Not app.tasks: shared tasks that other tests have declared, some with hooks, are in every app.
    mine = {task.name: task for task in (heard, plain)}

    def hear(**named: Any) -> None: ...

    sent = (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure, signals.task_retry)
    for signal in sent:
        signal.connect(hear, sender=heard)
    try:
        assert attempt(plain)[1] is None
        assert attempt(app.task(name="asks", bind=True)(asks))[1] is None
        assert attempt(heard, claimed())[1] is not None
        assert hooked(mine) == ["heard"]
        signals.task_failure.connect(hear)
        assert hooked(mine) == ["*"]
    finally:
        for signal in sent:
            signal.disconnect(hear, sender=heard)
        signals.task_failure.disconnect(hear)


@pytest.mark.parametrize(
    ("hook", "body", "wanted"),
    [
        *((hook, returns, hook in ("on_success", "after_return")) for hook in HOOKS),
        *((hook, fails, hook in ("on_failure", "after_return")) for hook in HOOKS),
        *((hook, asks, hook == "on_retry") for hook in HOOKS),
    ],
)
def test_a_slot_waits_only_for_the_hooks_of_this_outcome(
    app: PgQueue, declare: Declare, hook: str, body: Body, wanted: bool
) -> None:
    one = type("One", (app.Task,), {hook: lambda self, *_: None})
    _, aftermath = attempt(declare(body, base=one))
    assert (aftermath is not None) == wanted


def test_a_hook_that_an_annotation_sets_is_called(app: PgQueue, heard: Heard) -> None:
    def on_success(self: AnyTask, *_: object) -> None:
        heard.call("on_success", task=self)

    app.conf.task_annotations = {"t": {"on_success": on_success}}
    task = app.task(name="t")(lambda: 1)
    told(task)
    assert heard.of("on_success")["task"] is task


def test_a_receiver_that_nobody_holds_is_called_no_more(app: PgQueue, heard: Heard) -> None:
    task = app.task(name="t")(lambda: 1)

    def connect() -> None:
        @signals.task_success.connect
        def receiver(**_: Any) -> None:
            heard.call("receiver")

    connect()
    gc.collect()
    outcome, aftermath = attempt(task)
    if aftermath is not None:
        aftermath.tell(outcome, acked=True)
    assert heard.names == []
    assert signals.task_success.receivers == ()


# -- nothing is left behind --------------------------------------------------------------------------------------


class Large:
    """Something large, in a local variable."""


class Held(ValueError):
    """Unlike those of Python it can be referred to weakly."""


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def holding(alive: list[weakref.ref[Any]], how: str) -> Body:
    def body(task: AnyTask) -> Any:
        large = Large()
        alive.append(weakref.ref(large))
        error: BaseException = Held("no")
        if how == "returns":
            return 1
        if how == "asks":
            error = Retry(exc=error)
        if how == "rejects":
            error = Reject(error)
        raise error  # through a local variable: a cycle with its own traceback

    return body


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("acked", [True, False])
@pytest.mark.parametrize("how", ["returns", "fails", "asks", "rejects"])
def test_what_an_attempt_held_is_kept_until_it_is_told_and_then_freed(
    app: PgQueue, declare: Declare, how: str, acked: bool
) -> None:
    alive: list[weakref.ref[Any]] = []

    def watch(**_: Any) -> None:
        assert all(ref() is not None for ref in alive) == (how != "returns")  # the traceback can be looked at

    task = declare(holding(alive, how), base=Task)
    signals.task_postrun.connect(watch)
    try:
        outcome, aftermath = attempt(task)
        assert aftermath is not None
        errors = [weakref.ref(aftermath.error)] if aftermath.error is not None else []
        assert aftermath.tell(outcome, acked=acked) == []
        del aftermath
    finally:
        signals.task_postrun.disconnect(watch)
    assert alive
    assert [ref() for ref in (*alive, *errors)] == [None] * (len(alive) + len(errors))


@pytest.mark.usefixtures("no_gc")
def test_what_a_hook_held_that_failed_is_freed(app: PgQueue) -> None:
    alive: list[weakref.ref[Any]] = []

    class Watched(app.Task):  # type: ignore[name-defined,misc]
        def on_success(self, *_: object) -> None:
            large = Large()
            alive.append(weakref.ref(large))
            error = ValueError("hook")
            raise error

    @app.task(name="t", base=Watched)
    def one() -> int:
        return 1

    _, failed = told(one)
    assert failed == ["on_success"]
    assert [ref() for ref in alive] == [None]
