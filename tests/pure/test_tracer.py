"""The tracer turns every claim into an outcome, whatever the task does, and leaves nothing of the attempt behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator, model_serializer

from pgqueue import Ignore, LeaseLost, PgQueue, Reject, Retry, Task
from pgqueue.errors import InvalidOption
from pgqueue.reports import report
from pgqueue.serialization import encode, encode_error
from pgqueue.tracer import Context, TransactionBlock, Where, build_tracer, current_context
from pgqueue.types import (
    Claim,
    ErrorReport,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Released,
    Retried,
    Revoked,
    Succeeded,
)

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = AT + timedelta(hours=1)
ID, PARENT, ROOT = (f"0197c2b0-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))

AnyTask = Task[..., Any, Any]
Declare = Callable[..., AnyTask]


@pytest.fixture
def app() -> PgQueue:
    return PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere")


@pytest.fixture(params=["function", "coroutine function"])
def declare(request: pytest.FixtureRequest, app: PgQueue) -> Declare:
    """Make a task of a function, as it is and as a coroutine function that does the same."""

    def make(function: Callable[..., Any], **options: Any) -> AnyTask:
        app.tasks.clear()
        decorate: Callable[..., AnyTask] = app.task(name="t", **options)
        if request.param == "function":
            return decorate(function)

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return decorate(coroutine)

    return make


def claimed(args: Sequence[object] = (), kwargs: dict[str, object] | None = None, **fields: Any) -> Claim:
    """Return a claim as a worker gets it."""
    plain = Claim(
        ID, "t", "default", 5, encode(list(args), path="args"), encode(kwargs or {}, path="kwargs"), 1, 0, 0,
        AT, AT, None, False, False, None, None, None, None,
    )  # fmt: skip
    return plain._replace(**fields)


def trace(task: AnyTask, claim: Claim | None = None, transactor: Any = None) -> Outcome:
    tracer = build_tracer(task, Where("host.1"))
    claim = claim or claimed()
    if tracer.trace is not None:
        outcome, aftermath = tracer.trace(claim, transactor)
        assert aftermath is None
        return outcome

    async def attempt() -> Outcome:
        assert tracer.atrace is not None
        outcome, aftermath = await tracer.atrace(claim, transactor)
        assert aftermath is None
        return outcome

    return asyncio.run(attempt())


def failure(outcome: Outcome) -> ErrorReport:
    """Return the report of a failure, which can always be stored."""
    assert isinstance(outcome, Failed)
    encode_error(outcome.error)
    return outcome.error


def raises(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


# -- values ------------------------------------------------------------------------------------------------------


def test_a_value_is_a_success_and_is_stored_as_json(declare: Declare) -> None:
    def add(x: int, y: int = 1) -> int:
        return x + y

    assert trace(declare(add), claimed([2], {"y": 3})) == Succeeded("5")


def test_no_value_is_a_success_too(declare: Declare) -> None:
    assert trace(declare(lambda: None)) == Succeeded("null")


def test_arguments_arrive_as_their_annotations_say(declare: Declare) -> None:
    seen: list[object] = []

    def remember(at: datetime, sizes: tuple[int, ...]) -> None:
        seen.extend((at, sizes))

    trace(declare(remember), claimed([AT.isoformat()], {"sizes": [1, 2]}))
    assert seen == [AT, (1, 2)]


def test_a_value_that_cannot_be_stored_is_a_failure_that_says_where(declare: Declare) -> None:
    error = failure(trace(declare(lambda: {"lines": [1, object()]})))
    assert (error.type, error.module) == ("NotSerializable", "pgqueue.errors")
    assert error.message.startswith("result.lines[1]: ")


def test_a_value_larger_than_the_setting_is_a_failure() -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", max_payload_bytes=100)

    @app.task
    def big() -> str:
        return "x" * 101

    assert failure(trace(big)).type == "PayloadTooLarge"


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_a_value_whose_own_code_raises_is_a_failure(declare: Declare, error: type[BaseException]) -> None:
    class Lazy(UserDict[str, int]):
        def __iter__(self) -> Iterator[str]:
            raise error

    assert isinstance(trace(declare(lambda: Lazy())), Failed)


# -- refused before the body runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "outcome"),
    [
        (claimed(expired=True), Revoked("expired")),
        (claimed(revoked=True), Revoked("revoked")),
        (claimed(revoked=True, expired=True), Revoked("revoked")),
        (claimed(expired=True, args="no json"), Revoked("expired")),
    ],
)
def test_what_expired_or_was_revoked_does_not_run(declare: Declare, claim: Claim, outcome: Outcome) -> None:
    ran: list[int] = []
    assert trace(declare(lambda: ran.append(1)), claim) == outcome
    assert not ran


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"args": '["x"]'}, "n: "),
        ({"args": "[1,2]"}, "takes at most 1 positional arguments"),
        ({"args": "[]"}, "missing argument 'n'"),
        ({"kwargs": '{"m":1}'}, "unexpected argument 'm'"),
        ({"args": '{"n":1}'}, "args must be a JSON array"),
        ({"args": '"1"'}, "args must be a JSON array"),
        ({"args": '{"$set":[1]}'}, "args must be a JSON array"),
        ({"kwargs": "[1]"}, "kwargs a JSON object"),
        ({"kwargs": '{"$map":[[1,2]]}'}, "names of keyword arguments must be texts"),
        ({"args": "no json"}, "not JSON that can be read"),
        ({"args": '[{"$uuid":"no uuid"}]'}, "$uuid cannot hold"),
    ],
)
def test_arguments_that_do_not_fit_are_a_failure_without_a_run(
    declare: Declare, fields: dict[str, Any], problem: str
) -> None:
    ran: list[int] = []

    def count(n: int) -> None:
        ran.append(n)

    error = failure(trace(declare(count, autoretry_for=(Exception,)), claimed([1])._replace(**fields)))
    assert error.type == "InvalidArguments"
    assert problem in error.message
    assert not ran


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_validator_that_raises_is_a_failure(declare: Declare, raised: type[BaseException]) -> None:
    class Order(BaseModel):
        id: int

        @field_validator("id")
        @classmethod
        def check(cls, value: int) -> int:
            raise raised

    def settle(order: Any) -> None: ...

    settle.__annotations__["order"] = Order
    assert failure(trace(declare(settle), claimed([{"id": 1}]))).type == raised.__name__


# -- exceptions --------------------------------------------------------------------------------------------------


def test_an_exception_is_a_failure_with_its_names_text_and_arguments(declare: Declare) -> None:
    class TooDear(ValueError):
        pass

    error = failure(trace(declare(raises(TooDear("too dear", 3, 1.5, True, None, {"a": 1})))))
    assert error.type.endswith("TooDear")
    assert error.module == __name__
    assert error.message.startswith("('too dear', 3, ")
    assert error.args == ("too dear", 3, 1.5, True, None, {"a": 1})
    assert error.traceback is not None
    assert "TooDear: ('too dear', 3, " in error.traceback


@pytest.mark.parametrize(
    "raised",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        RecursionError(),
        StopAsyncIteration(),
        BaseException("odd"),
        asyncio.CancelledError("by the task itself"),
        BaseExceptionGroup("several", [SystemExit(), ValueError()]),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_a_task_raises_is_its_own_failure(declare: Declare, raised: BaseException) -> None:
    assert failure(trace(declare(raises(raised)))).type == type(raised).__name__


def test_a_stop_iteration_is_a_failure(app: PgQueue) -> None:
    assert failure(trace(app.task(raises(StopIteration())))).type == "StopIteration"


def test_an_endless_recursion_is_a_failure(declare: Declare) -> None:
    def down(n: int = 0) -> int:
        return down(n + 1) + 1

    error = failure(trace(declare(down)))
    assert error.type == "RecursionError"
    assert len(error.traceback or "") < 10_000


async def test_a_cancellation_from_outside_passes_through_and_is_no_outcome(app: PgQueue) -> None:
    entered = asyncio.Event()

    @app.task
    async def wait() -> None:
        entered.set()
        await asyncio.sleep(60)

    atrace = build_tracer(wait).atrace
    assert atrace is not None
    attempt = asyncio.ensure_future(atrace(claimed(), None))
    await entered.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert current_context() is None


async def test_a_cancelled_task_of_ones_own_is_a_failure(app: PgQueue) -> None:
    @app.task
    async def wait() -> None:
        child = asyncio.ensure_future(asyncio.sleep(60))
        child.cancel()
        await child

    atrace = build_tracer(wait).atrace
    assert atrace is not None
    assert failure((await atrace(claimed(), None))[0]).type == "CancelledError"


async def test_a_timeout_inside_a_task_is_a_failure_and_no_cancellation(app: PgQueue) -> None:
    @app.task
    async def wait() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    atrace = build_tracer(wait).atrace
    assert atrace is not None
    assert failure((await atrace(claimed(), None))[0]).type == "TimeoutError"


async def test_a_cancellation_that_one_attempt_swallowed_does_not_count_for_the_next(app: PgQueue) -> None:
    @app.task
    async def cancels_itself_and_goes_on() -> int:
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return 1

    @app.task
    async def cancelled() -> None:
        raise asyncio.CancelledError

    first, second = build_tracer(cancels_itself_and_goes_on).atrace, build_tracer(cancelled).atrace
    assert first is not None
    assert second is not None
    assert await first(claimed(), None) == (Succeeded("1"), None)
    assert failure((await second(claimed(), None))[0]).type == "CancelledError"


class BadText(Exception):
    def __str__(self) -> str:
        raise SystemExit


class BadRepr(Exception):
    def __repr__(self) -> str:
        raise KeyboardInterrupt


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class BadArgs(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError

    @args.setter
    def args(self, value: object) -> None: ...


class BadNotes(Exception):
    __notes__ = 5  # type: ignore[assignment]


class WorseNotes(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class BadCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError

    @property
    def __context__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class BadModule(Exception):
    __module__ = None  # type: ignore[assignment]


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class BadBool(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError


class BadAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@dataclass(frozen=True)
class Frozen(Exception):
    code: int = 1


class BadName(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class Unnamed(Exception, metaclass=BadName): ...


@pytest.mark.parametrize(
    "kind",
    [BadText, BadRepr, NoText, BadArgs, BadNotes, WorseNotes, BadCause, BadModule, Empty, BadBool, Frozen],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("as_what", ["itself", "argument", "cause", "context", "exc of a retry", "member of a group"])
def test_an_exception_that_misbehaves_is_a_failure_like_any_other(
    app: PgQueue, kind: type[Exception], as_what: str
) -> None:
    def function() -> None:
        match as_what:
            case "itself":
                raise kind
            case "argument":
                raise ValueError(kind())
            case "cause":
                raise ValueError from kind()
            case "context":
                try:
                    raise kind
                except kind:
                    raise ValueError  # noqa: B904
            case "exc of a retry":
                raise Retry(exc=kind())
            case _:
                raise ExceptionGroup("several", [kind(), kind()])

    outcome = trace(app.task(function))
    if as_what == "exc of a retry":
        assert isinstance(outcome, Retried)
        assert outcome.error is not None
        assert outcome.error.type == kind.__name__
    else:
        error = failure(outcome)
        assert error.type == {"itself": kind.__name__, "member of a group": "ExceptionGroup"}.get(as_what, "ValueError")
        if as_what in ("cause", "context"):
            assert error.cause is not None
            assert error.cause.type == kind.__name__


def test_an_exception_that_answers_nothing_is_a_failure_all_the_same(app: PgQueue) -> None:
    outcomes: list[Outcome | None] = []
    for kind in (Unnamed, BadAttributes):
        try:
            outcomes.append(trace(app.task(raises(kind))))
        except BaseException:  # pytest itself could not show it
            outcomes.append(None)
    first, second = outcomes
    assert isinstance(first, Failed)
    assert first.error.type == "Unnamed"
    assert isinstance(second, Failed)


def test_notes_are_kept(app: PgQueue) -> None:
    error = ValueError("bad")
    error.add_note("row 7")
    error.__notes__.append(5)  # type: ignore[arg-type]
    assert failure(trace(app.task(raises(error)))).notes == ("row 7", "5")


def test_what_is_very_long_is_cut(app: PgQueue) -> None:
    error = ValueError("x" * 10_000_000, *range(10_000))
    for note in range(1000):
        error.add_note(f"{note}" * 10_000)
    found = failure(trace(app.task(raises(error))))
    assert len(encode_error(found)) < 500_000
    assert len(found.message) == 10_000
    assert (len(found.args), len(found.notes)) == (20, 20)
    assert found.traceback is not None
    assert 60_000 < len(found.traceback) < 60_100
    assert "characters left out" in found.traceback
    assert found.traceback.startswith("Traceback (most recent call last)")


def test_a_very_long_reason_of_a_rejection_is_cut(app: PgQueue) -> None:
    outcome = trace(app.task(raises(Reject("x" * 10_000_000))))
    assert isinstance(outcome, Rejected)
    assert len(outcome.reason) == 10_000


def test_causes_are_followed_five_levels_deep(app: PgQueue) -> None:
    def function() -> None:
        error = ValueError("0")
        for n in range(1, 3000):
            outer = ValueError(str(n))
            outer.__cause__ = error
            error = outer
        raise error

    found, messages = failure(trace(app.task(function))), []
    link: ErrorReport | None = found
    while link is not None:
        messages.append(link.message)
        link = link.cause
    assert messages == [str(n) for n in range(2999, 2993, -1)]
    assert found.cause is not None
    assert found.cause.traceback is None


def test_a_circle_of_causes_ends(app: PgQueue) -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert failure(trace(app.task(raises(first)))).message == "first"


def test_a_context_that_is_suppressed_is_not_told(app: PgQueue) -> None:
    def function() -> None:
        try:
            raise KeyError("password")
        except KeyError:
            raise ValueError("bad") from None

    error = failure(trace(app.task(function)))
    assert error.cause is None
    assert "password" not in (error.traceback or "")


def test_a_group_shows_its_members_in_the_traceback(declare: Declare) -> None:
    error = failure(trace(declare(raises(ExceptionGroup("several", [ValueError("one"), KeyError("two")])))))
    assert error.message == "several (2 sub-exceptions)"
    assert "ValueError: one" in (error.traceback or "")
    assert "KeyError: 'two'" in (error.traceback or "")


@pytest.mark.parametrize("options", [{}, {"bind": True}, {"transactional": True}])
def test_a_traceback_begins_where_the_users_code_begins(app: PgQueue, options: dict[str, Any]) -> None:
    def function(*args: object) -> None:
        raise ValueError("bad")

    async def coroutine(*args: object) -> None:
        raise ValueError("bad")

    for body in (function, coroutine):
        text = failure(trace(app.task(name=body.__name__, **options)(body), None, FakeTransactor())).traceback
        assert text is not None
        assert "pgqueue" not in text.replace(__file__, "")
        first = text.splitlines()[1]
        assert __file__ in first
        assert first.endswith(f"in {body.__name__}")


# -- asking: Ignore, Reject, Retry -------------------------------------------------------------------------------

EVERYTHING = {"autoretry_for": (BaseException,), "retry_backoff": True}


def test_ignore_ends_as_ignored(declare: Declare) -> None:
    assert trace(declare(raises(Ignore()), **EVERYTHING)) == Ignored()


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (Reject(), Rejected("rejected")),
        (Reject("no such order"), Rejected("no such order")),
        (Reject("", requeue=True), Rejected("", True)),
        (Reject(ValueError("no such order")), Rejected("ValueError: no such order")),
        (Reject(BadText()), Rejected("BadText: <BadText without a readable text>")),
        (Reject(BadRepr(), 1), Rejected("BadRepr: ", True)),  # type: ignore[arg-type]
    ],
)
def test_reject_ends_as_rejected_with_its_reason(declare: Declare, asked: Reject, outcome: Outcome) -> None:
    assert trace(declare(raises(asked), **EVERYTHING)) == outcome


def test_a_lost_lease_hands_the_job_back_uncounted(declare: Declare) -> None:
    assert trace(declare(raises(LeaseLost()), **EVERYTHING)) == Released()


def test_retry_runs_the_job_again_after_the_default_delay(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        self.retry()

    assert trace(declare(function, bind=True, **EVERYTHING)) == Retried(None, 180.0)


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        ({"countdown": 5}, Retried(None, 5.0)),
        ({"countdown": 0}, Retried(None, 0.0)),
        ({"countdown": timedelta(minutes=1)}, Retried(None, 60.0)),
        ({"eta": LATER}, Retried(None, 180.0, eta=LATER)),
        ({"args": [2], "countdown": 1}, Retried(None, 1.0, args="[2]")),
        ({"args": (), "kwargs": {"at": AT.date()}, "countdown": 1},
         Retried(None, 1.0, args="[]", kwargs='{"at":{"$date":"2026-01-31"}}')),
        ({"queue": "slow", "priority": 0, "expires": LATER, "countdown": 1},
         Retried(None, 1.0, queue="slow", priority=0, expires=LATER)),
    ],
)  # fmt: skip
def test_retry_replaces_what_it_is_told_to(declare: Declare, asked: dict[str, Any], outcome: Outcome) -> None:
    def function(self: AnyTask, *args: object, **kwargs: object) -> None:
        self.retry(**asked)

    assert trace(declare(function, bind=True), claimed([1], {"a": 1})) == outcome


def test_retry_keeps_the_exception_that_led_to_it(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        try:
            raise OSError("no route")
        except OSError as error:
            raise self.retry(exc=error, countdown=1) from error

    outcome = trace(declare(function, bind=True))
    assert isinstance(outcome, Retried)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("OSError", "no route")
    assert "no route" in (outcome.error.traceback or "")


def test_retry_that_does_not_throw_is_honoured_whatever_the_task_returns(declare: Declare) -> None:
    def function(self: AnyTask, throw: bool) -> str:
        asked = self.retry(throw=False, countdown=7)
        if throw:
            raise asked
        return "done"

    task = declare(function, bind=True)
    assert trace(task, claimed([True])) == Retried(None, 7.0)
    assert trace(task, claimed([False])) == Retried(None, 7.0)


def test_a_retry_raised_by_hand_waits_for_nothing(declare: Declare) -> None:
    assert trace(declare(raises(Retry)), claimed(retries=99)) == Retried(None, 0.0)


@pytest.mark.parametrize(
    "asked",
    [
        Retry(countdown=-1),
        Retry(countdown=float("nan")),
        Retry(None, None, AT),  # type: ignore[arg-type]
        Retry(eta=datetime(2026, 1, 1)),
        Retry(expires="tomorrow"),  # type: ignore[arg-type]
        Retry(queue=""),
        Retry(queue="nul\0"),
        Retry(priority=10),
        Retry(args="ab"),  # type: ignore[arg-type]
        Retry(args=(object(),)),
        Retry(kwargs=[1]),  # type: ignore[arg-type]
        Retry(kwargs={"x": {1: object()}}),
    ],
)
def test_a_retry_that_cannot_be_stored_is_a_failure(declare: Declare, asked: Retry) -> None:
    failure(trace(declare(raises(asked), **EVERYTHING)))


def test_a_retry_or_reject_that_never_called_its_base_is_a_failure(declare: Declare) -> None:
    class Half(Retry):
        def __init__(self) -> None: ...

    class HalfReject(Reject):
        def __init__(self) -> None: ...

    assert failure(trace(declare(raises(Half)))).type == "AttributeError"
    assert failure(trace(declare(raises(HalfReject)))).type == "AttributeError"


@pytest.mark.parametrize(
    "asked",
    [{"countdown": -1}, {"queue": ""}, {"priority": 11}, {"eta": datetime(2026, 1, 1)}, {"max_retries": "3"}],
)
def test_a_retry_with_a_bad_option_fails_in_the_users_frame(declare: Declare, asked: dict[str, Any]) -> None:
    def function(self: AnyTask) -> None:
        self.retry(**asked)

    error = failure(trace(declare(function, bind=True)))
    assert error.type == "InvalidOption"
    assert "self.retry(**asked)" in (error.traceback or "")


def test_a_retry_with_a_text_for_args_fails(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        self.retry(args="ab")

    assert failure(trace(declare(function, bind=True))).type == "InvalidArguments"


def test_retry_beyond_its_limit_raises_the_exception_it_was_given(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        self.retry(exc=OSError("no route"))

    task = declare(function, bind=True, max_retries=2)
    assert isinstance(trace(task, claimed(retries=1)), Retried)
    assert failure(trace(task, claimed(retries=2))).message == "no route"


def test_retry_beyond_its_limit_without_an_exception_says_so(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        self.retry()

    error = failure(trace(declare(function, bind=True), claimed(retries=3)))
    assert error.type == "MaxRetriesExceededError"
    assert error.message == f"t[{ID}] has been retried 3 times, its limit"


@pytest.mark.parametrize(("limit", "retries", "again"), [(0, 0, False), (None, 1_000_000, True), (5, 4, True)])
def test_max_retries_counts_repeats(declare: Declare, limit: int | None, retries: int, again: bool) -> None:
    def function(self: AnyTask) -> None:
        self.retry()

    outcome = trace(declare(function, bind=True, max_retries=limit), claimed(retries=retries))
    assert isinstance(outcome, Retried if again else Failed)


def test_a_limit_given_to_one_retry_does_not_leak_into_later_runs(declare: Declare) -> None:
    def function(self: AnyTask, limit: int | None) -> None:
        self.retry(max_retries=limit)

    task = declare(function, bind=True)
    assert isinstance(trace(task, claimed([1], retries=1)), Failed)
    assert isinstance(trace(task, claimed([None], retries=2)), Retried)
    assert isinstance(trace(task, claimed([9], retries=8)), Retried)
    assert isinstance(trace(task, claimed([None], retries=3)), Failed)


def test_automatic_retries_keep_to_the_limit_that_the_task_has_set_for_this_attempt(declare: Declare) -> None:
    def function(self: AnyTask, given: bool) -> None:
        self.retry(exc=OSError() if given else None, max_retries=1)

    task = declare(function, bind=True, autoretry_for=(Exception,))
    assert isinstance(trace(task, claimed([True], retries=0)), Retried)
    assert failure(trace(task, claimed([True], retries=1))).type == "OSError"
    assert failure(trace(task, claimed([False], retries=1))).type == "MaxRetriesExceededError"


def test_an_exhausted_retry_is_not_retried_automatically(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        self.retry()

    options = {"max_retries": 1, "autoretry_for": (Exception,), "retry_kwargs": {"max_retries": 5}}
    error = failure(trace(declare(function, bind=True, **options), claimed(retries=1)))
    assert error.type == "MaxRetriesExceededError"


# -- automatic retries -------------------------------------------------------------------------------------------


def test_an_exception_of_autoretry_for_is_retried_until_the_limit(declare: Declare) -> None:
    task = declare(raises(ConnectionResetError("gone")), autoretry_for=(OSError,), max_retries=2)
    outcome = trace(task, claimed(retries=1))
    assert isinstance(outcome, Retried)
    assert outcome.countdown == 180.0
    assert outcome.error is not None
    assert outcome.error.type == "ConnectionResetError"
    assert failure(trace(task, claimed(retries=2))).message == "gone"


def test_an_exception_of_dont_autoretry_for_or_of_neither_is_not_retried(declare: Declare) -> None:
    options = {"autoretry_for": (OSError,), "dont_autoretry_for": (FileNotFoundError,)}
    assert isinstance(trace(declare(raises(OSError()), **options)), Retried)
    assert isinstance(trace(declare(raises(FileNotFoundError()), **options)), Failed)
    assert isinstance(trace(declare(raises(ValueError()), **options)), Failed)


def test_exceptions_outside_exception_are_retried_only_when_named(declare: Declare) -> None:
    assert isinstance(trace(declare(raises(SystemExit()), autoretry_for=(Exception,))), Failed)
    assert isinstance(trace(declare(raises(SystemExit()), autoretry_for=(SystemExit,))), Retried)


def test_a_retry_asked_for_by_the_task_wins_over_the_automatic_one(declare: Declare) -> None:
    def function(self: AnyTask) -> None:
        try:
            raise OSError
        except OSError as error:
            raise self.retry(exc=error, countdown=1) from error

    outcome = trace(declare(function, bind=True, **EVERYTHING))
    assert isinstance(outcome, Retried)
    assert outcome.countdown == 1.0


def test_backoff_doubles_up_to_its_longest_wait(declare: Declare) -> None:
    task = declare(
        raises(OSError()),
        autoretry_for=(OSError,),
        max_retries=None,
        retry_backoff=3,
        retry_backoff_max=40,
        retry_jitter=False,
    )
    waits = [getattr(trace(task, claimed(retries=n)), "countdown", None) for n in (0, 1, 2, 3, 4, 5000)]
    assert waits == [3, 6, 12, 24, 40, 40]


def test_jitter_waits_a_random_part_of_the_backoff(declare: Declare) -> None:
    task = declare(raises(OSError()), autoretry_for=(OSError,), retry_backoff=8)
    waits = {getattr(trace(task, claimed(retries=1)), "countdown", -1.0) for _ in range(20)}
    assert len(waits) > 1
    assert all(0 <= wait <= 16 for wait in waits)


def test_retry_kwargs_say_how_often_and_when_and_stay_as_they_are(declare: Declare) -> None:
    given = {"max_retries": 1, "countdown": 9}
    plain = declare(raises(OSError()), autoretry_for=(OSError,), retry_kwargs=given)
    backoff = declare(raises(OSError()), autoretry_for=(OSError,), retry_kwargs=given, retry_backoff=True)
    assert getattr(trace(plain), "countdown", None) == 9.0
    assert getattr(trace(backoff), "countdown", 99) <= 1.0
    assert isinstance(trace(plain, claimed(retries=1)), Failed)
    assert given == {"max_retries": 1, "countdown": 9}


# -- nothing is left behind --------------------------------------------------------------------------------------


class Large:
    """Something large, in a local variable or an argument."""


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def a_local(alive: list[weakref.ref[Large]]) -> None:
    large = Large()
    alive.append(weakref.ref(large))
    raise ValueError


def a_cycle(alive: list[weakref.ref[Large]]) -> None:
    large = Large()
    alive.append(weakref.ref(large))
    try:
        raise ValueError
    except ValueError as error:
        itself = error
        raise itself  # noqa: B904


def a_cycle_that_is_not_in_the_chain(alive: list[weakref.ref[Large]]) -> None:
    large = Large()
    alive.append(weakref.ref(large))
    try:
        raise ValueError
    except ValueError as error:
        kept = error
    assert kept
    raise KeyError


def an_exception_that_holds_itself(alive: list[weakref.ref[Large]]) -> None:
    large = Large()
    alive.append(weakref.ref(large))
    error = ValueError()
    error.itself = error  # type: ignore[attr-defined]
    raise error


def a_cause(alive: list[weakref.ref[Large]]) -> None:
    try:
        a_cycle(alive)
    except ValueError as error:
        kept = error
        raise KeyError from kept


def a_context(alive: list[weakref.ref[Large]]) -> None:
    try:
        a_cycle(alive)
    except ValueError:
        large = Large()
        alive.append(weakref.ref(large))
        raise KeyError  # noqa: B904


def a_suppressed_context(alive: list[weakref.ref[Large]]) -> None:
    try:
        a_cycle(alive)
    except ValueError:
        raise KeyError from None


def a_group(alive: list[weakref.ref[Large]]) -> None:
    errors = []
    for function in (a_local, a_cycle, a_cause):
        try:
            function(alive)
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("several", errors)


def a_retry(alive: list[weakref.ref[Large]]) -> None:
    try:
        a_cycle(alive)
    except ValueError as error:
        kept = error
    raise Retry(exc=kept)


def a_rejection(alive: list[weakref.ref[Large]]) -> None:
    try:
        a_cycle(alive)
    except ValueError as error:
        kept = error
    raise Reject(kept)


def a_generator(alive: list[weakref.ref[Large]]) -> None:
    def numbers() -> Iterator[int]:
        large = Large()
        alive.append(weakref.ref(large))
        yield 1
        raise ValueError

    list(numbers())


def a_system_exit_in_a_cycle(alive: list[weakref.ref[Large]]) -> None:
    large = Large()
    alive.append(weakref.ref(large))
    error = SystemExit(1)
    raise error


def a_value_that_cannot_be_stored(alive: list[weakref.ref[Large]]) -> Large:
    large = Large()
    alive.append(weakref.ref(large))
    return large


def a_value_whose_code_raises(alive: list[weakref.ref[Large]]) -> BaseModel:
    class Order(BaseModel):
        @model_serializer
        def write(self) -> str:
            a_cycle(alive)
            return ""

    return Order()


def a_success(alive: list[weakref.ref[Large]]) -> int:
    large = Large()
    alive.append(weakref.ref(large))
    try:
        raise ValueError
    except ValueError:
        return 1


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    "body",
    [
        a_local,
        a_cycle,
        a_cycle_that_is_not_in_the_chain,
        an_exception_that_holds_itself,
        a_cause,
        a_context,
        a_suppressed_context,
        a_group,
        a_retry,
        a_rejection,
        a_generator,
        a_system_exit_in_a_cycle,
        a_value_that_cannot_be_stored,
        a_value_whose_code_raises,
        a_success,
    ],
    ids=lambda body: body.__name__,
)
def test_what_an_attempt_held_is_freed_without_the_garbage_collector(declare: Declare, body: Any) -> None:
    alive: list[weakref.ref[Large]] = []
    trace(declare(lambda: body(alive)))
    assert alive
    assert not [ref for ref in alive if ref() is not None]


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("how", ["returns", "raises", "raises what holds itself", "asks", "does not fit"])
def test_arguments_are_freed_without_the_garbage_collector(declare: Declare, how: str) -> None:
    alive: list[weakref.ref[Order]] = []

    class Order(BaseModel):
        id: int

        def model_post_init(self, context: object) -> None:
            alive.append(weakref.ref(self))

    def function(self: AnyTask, order: Any, second: int = 0) -> None:
        assert self.request.args[0] is order
        if how == "raises":
            raise ValueError(order)
        if how == "raises what holds itself":
            error = ValueError(order)
            error.itself = error  # type: ignore[attr-defined]
            raise error
        if how == "asks":
            self.retry(args=[order])

    function.__annotations__["order"] = Order
    task = declare(function, bind=True)
    trace(task, claimed([{"id": 1}, "no number" if how == "does not fit" else 2]))
    assert alive
    if how != "raises what holds itself":  # the cycle is the user's own, and the order in it
        assert not [ref for ref in alive if ref() is not None]


@pytest.mark.usefixtures("no_gc")
def test_what_a_validator_held_is_freed_without_the_garbage_collector(declare: Declare) -> None:
    alive: list[weakref.ref[Large]] = []

    class Order(BaseModel):
        id: int

        @field_validator("id")
        @classmethod
        def check(cls, value: int) -> int:
            a_system_exit_in_a_cycle(alive)
            return value

    def settle(order: Any) -> None: ...

    settle.__annotations__["order"] = Order
    assert failure(trace(declare(settle), claimed([{"id": 1}]))).type == "SystemExit"
    assert [ref() for ref in alive] == [None]


@pytest.mark.usefixtures("no_gc")
def test_an_exception_that_a_module_keeps_holds_nothing_and_does_not_grow(declare: Declare) -> None:
    kept = ValueError("again")
    alive: list[weakref.ref[Large]] = []

    def function() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        raise kept

    task = declare(function)
    first, second = (failure(trace(task)).traceback for _ in range(2))
    assert first == second
    assert kept.__traceback__ is None
    assert [ref() for ref in alive] == [None, None]


async def test_clearing_frames_ends_no_coroutine_that_has_passed_the_exception_on_and_lives(app: PgQueue) -> None:
    waiting: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()

    async def reader() -> None:
        while True:
            future = await waiting.get()
            try:
                raise ConnectionError("reset")
            except ConnectionError as error:
                future.set_exception(error)

    @app.task
    async def fetch() -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.put_nowait(future)
        return await future

    atrace = build_tracer(fetch).atrace
    assert atrace is not None
    shared = asyncio.ensure_future(reader())
    for _ in range(3):
        assert failure((await atrace(claimed(), None))[0]).message == "reset"
    assert not shared.done()
    shared.cancel()


def test_the_report_of_an_exception_outside_a_tracer_leaves_its_traceback_alone() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        a_local([])
    assert "in a_local" in (report(caught.value).traceback or "")
    assert caught.value.__traceback__ is not None


# -- the request -------------------------------------------------------------------------------------------------


def test_the_request_tells_a_bound_task_about_its_job(declare: Declare) -> None:
    seen: dict[str, Any] = {}
    names = [
        "id",
        "root_id",
        "parent_id",
        "task",
        "args",
        "kwargs",
        "retries",
        "crashes",
        "attempt",
        "queue",
        "priority",
    ]
    names += ["eta", "expires", "headers", "hostname", "delivery_info", "called_directly"]

    def function(self: AnyTask, x: float, *, at: datetime) -> None:
        seen.update({name: getattr(self.request, name) for name in names})
        seen["here"] = current_context() is self.request

    trace(
        declare(function, bind=True),
        claimed([1], {"at": AT.isoformat()}, attempt=7, retries=2, crashes=1, queue="mail", priority=9,
                root_id=ROOT, parent_id=PARENT, headers='{"tenant":"a"}', expires=LATER),
    )  # fmt: skip
    assert seen == {
        "id": ID,
        "root_id": ROOT,
        "parent_id": PARENT,
        "task": "t",
        "args": (1.0,),
        "kwargs": {"at": AT},
        "retries": 2,
        "crashes": 1,
        "attempt": 7,
        "queue": "mail",
        "priority": 9,
        "eta": AT.isoformat(),
        "expires": LATER.isoformat(),
        "headers": {"tenant": "a"},
        "hostname": "host.1",
        "delivery_info": {"exchange": "", "routing_key": "mail", "priority": 9, "redelivered": True, "is_eager": False},
        "called_directly": False,
        "here": True,
    }


def test_a_job_that_nobody_enqueued_is_its_own_root_and_has_no_headers() -> None:
    context = Context("t", claimed())
    assert (context.root_id, context.parent_id, context.headers, context.expires) == (ID, None, None, None)
    assert context.delivery_info["redelivered"] is False


def test_get_returns_an_attribute_or_a_header_or_the_default() -> None:
    context = Context("t", claimed(headers='{"tenant":"a","id":"shadow"}', retries=1))
    assert [context.get(name) for name in ("retries", "tenant", "id", "nothing")] == [1, "a", ID, None]
    assert context.get("nothing", 5) == 5
    assert context.get("__class__") is None
    assert Context("t", claimed()).get("tenant", "none") == "none"


def test_a_context_outside_a_worker_is_empty() -> None:
    context = Context("t")
    assert context.called_directly
    assert (context.id, context.root_id, context.parent_id, context.queue, context.priority) == (None,) * 5
    assert (context.eta, context.expires, context.headers) == (None,) * 3
    assert (context.retries, context.crashes, context.attempt) == (0, 0, 0)
    assert context.get("tenant", 5) == 5


@pytest.mark.parametrize(
    "body",
    [int, raises(ValueError), raises(Retry), raises(Reject), raises(Ignore), raises(SystemExit), object],
    ids=["value", "exception", "retry", "reject", "ignore", "exit", "not serialisable"],
)
def test_no_context_is_left_after_any_outcome(app: PgQueue, body: Callable[[], Any]) -> None:
    def function(self: AnyTask) -> Any:
        assert current_context() is self.request
        return body()

    task = app.task(bind=True)(function)
    trace(task)
    assert current_context() is None
    assert task.request.called_directly


def test_a_task_called_directly_inside_another_is_not_the_job(declare: Declare, app: PgQueue) -> None:
    @app.task(bind=True)
    def inner(self: AnyTask) -> tuple[str | None, bool, str | None]:
        return self.request.id, self.request.called_directly, self.request.task

    def outer(self: AnyTask) -> list[Any]:
        before, within, after = self.request, inner(), self.request
        assert before is after
        return [*within, self.request.id]

    assert trace(declare(outer, bind=True)) == Succeeded(f'[null,true,"{inner.name}","{ID}"]')


def test_the_request_of_a_task_that_does_not_run_is_empty_inside_another(app: PgQueue) -> None:
    @app.task
    def other() -> None: ...

    @app.task
    def function() -> list[object]:
        return [other.request.id, other.request.called_directly]

    assert trace(function) == Succeeded("[null,true]")


def test_a_task_that_calls_itself_is_not_the_job_in_the_inner_call(app: PgQueue) -> None:
    @app.task(bind=True)
    def function(self: AnyTask, depth: int = 0) -> list[bool]:
        inner = [] if depth else self(1)
        return [self.request.called_directly, *inner]

    assert trace(function) == Succeeded("[false,true]")


def test_a_retry_in_an_inner_call_does_not_repeat_the_job_with_the_inner_arguments(app: PgQueue) -> None:
    @app.task(bind=True)
    def function(self: AnyTask, depth: int = 0) -> str:
        if depth == 1:
            self.retry(exc=OSError("inner"), args=(1,))
        try:
            self(1)
        except OSError:
            return "caught"
        return "not reached"

    assert trace(function) == Succeeded('"caught"')


def test_a_coroutine_that_awaits_itself_is_not_the_job_in_the_inner_call(app: PgQueue) -> None:
    @app.task(bind=True)
    async def function(self: AnyTask, depth: int = 0) -> list[bool]:
        inner = [] if depth else await self(1)
        return [self.request.called_directly, *inner]

    assert trace(function) == Succeeded("[false,true]")


def test_what_an_inner_call_enqueues_belongs_to_the_job_around_it(app: PgQueue) -> None:
    made = []

    @app.task
    def child() -> None: ...

    @app.task
    def inner() -> None:
        made.append(child.job((), {}, {}))

    @app.task
    def outer() -> None:
        made.append(child.job((), {}, {}))
        inner()

    trace(outer, claimed(root_id=ROOT))
    inner()
    assert [(job.root_id, job.parent_id) for job in made] == [(ROOT, ID), (ROOT, ID), (None, None)]


async def test_coroutines_that_run_side_by_side_have_requests_of_their_own(app: PgQueue) -> None:
    @app.task(bind=True)
    async def function(self: AnyTask) -> int:
        await asyncio.sleep(0.001 * (3 - self.request.attempt))
        return self.request.attempt

    atrace = build_tracer(function).atrace
    assert atrace is not None
    outcomes = await asyncio.gather(*(atrace(claimed(attempt=n), None) for n in (1, 2, 3)))
    assert [outcome for outcome, _ in outcomes] == [Succeeded("1"), Succeeded("2"), Succeeded("3")]


# -- transactions ------------------------------------------------------------------------------------------------


class FakeTransactor:
    """Writes down what it is asked for."""

    def __init__(self, *, begin: BaseException | None = None, rollback: BaseException | None = None) -> None:
        self.asked: list[str] = []
        self._begin = begin
        self._rollback = rollback

    def begin(self, claim: Claim) -> str:
        self.asked.append(f"begin {claim.id}")
        if self._begin:
            raise self._begin
        return "connection"

    def rollback(self) -> None:
        self.asked.append("rollback")
        if self._rollback:
            raise self._rollback

    async def abegin(self, claim: Claim) -> str:
        return self.begin(claim)

    async def arollback(self) -> None:
        self.rollback()


@pytest.mark.parametrize("bind", [False, True])
def test_a_transactional_task_gets_the_connection_first_and_stays_open(declare: Declare, bind: bool) -> None:
    def function(*args: object, y: int) -> list[object]:
        return [getattr(arg, "name", arg) for arg in args] + [y]

    transactor = FakeTransactor()
    outcome = trace(declare(function, transactional=True, bind=bind), claimed([1], {"y": 2}), transactor)
    assert outcome == Succeeded('["t","connection",1,2]' if bind else '["connection",1,2]')
    assert transactor.asked == [f"begin {ID}"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, Retry, Reject, Ignore, asyncio.CancelledError])
def test_a_transactional_task_that_raises_is_rolled_back_once(declare: Declare, error: type[BaseException]) -> None:
    def function(connection: object) -> None:
        raise error

    transactor = FakeTransactor()
    assert not isinstance(trace(declare(function, transactional=True), None, transactor), Succeeded)
    assert transactor.asked == [f"begin {ID}", "rollback"]


def test_a_rollback_that_fails_is_logged_and_does_not_change_the_outcome(
    declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    def function(connection: object) -> None:
        raise Retry(countdown=5)

    transactor = FakeTransactor(rollback=ConnectionError("gone"))
    assert trace(declare(function, transactional=True), None, transactor) == Retried(None, 5.0)
    assert f"job {ID}: its transaction could not be rolled back: gone" in caplog.text


def test_a_transaction_that_cannot_begin_runs_nothing(declare: Declare) -> None:
    ran: list[object] = []
    task = declare(lambda connection: ran.append(connection), transactional=True)
    for error, kind in ((LeaseLost(), Released), (ConnectionError("no database"), Failed)):
        transactor = FakeTransactor(begin=error)
        assert isinstance(trace(task, None, transactor), kind)
        assert transactor.asked == [f"begin {ID}"]
    assert not ran


def test_a_job_that_must_not_start_begins_no_transaction(declare: Declare) -> None:
    transactor = FakeTransactor()
    task = declare(lambda connection: None, transactional=True)
    trace(task, claimed(expired=True), transactor)
    trace(task, claimed([1, 2, 3]), transactor)
    assert transactor.asked == []


def test_a_plain_task_never_touches_a_transactor(declare: Declare) -> None:
    transactor = FakeTransactor()
    for body in (int, raises(ValueError), raises(Retry), object):
        trace(declare(body), None, transactor)
    assert transactor.asked == []


def test_a_transaction_block_left_in_peace_stays_open_and_left_by_an_exception_is_rolled_back(app: PgQueue) -> None:
    @app.task(bind=True)
    def function(self: AnyTask, fails: bool) -> str:
        try:
            with self.transaction() as connection:
                if fails:
                    raise ValueError
        except ValueError:
            return "caught"
        return str(connection)

    @app.task(bind=True)
    async def coroutine(self: AnyTask, fails: bool) -> str:
        try:
            async with self.transaction() as connection:
                if fails:
                    raise ValueError
        except ValueError:
            return "caught"
        return str(connection)

    for task in (function, coroutine):
        peace, exception = FakeTransactor(), FakeTransactor()
        assert trace(task, claimed([False]), peace) == Succeeded('"connection"')
        assert trace(task, claimed([True]), exception) == Succeeded('"caught"')
        assert peace.asked == [f"begin {ID}"]
        assert exception.asked == [f"begin {ID}", "rollback"]


def test_a_transaction_block_needs_a_worker_around_it(app: PgQueue) -> None:
    @app.task(bind=True)
    def function(self: AnyTask) -> None:
        with self.transaction():
            pass

    with pytest.raises(RuntimeError, match="needs a worker"):
        function()
    with pytest.raises(RuntimeError, match="needs a worker"):
        TransactionBlock(Context("t", claimed()))
    assert failure(trace(function)).type == "RuntimeError"


# -- the shape ---------------------------------------------------------------------------------------------------


def test_a_function_has_a_plain_tracer_and_a_coroutine_function_an_awaitable_one(app: PgQueue) -> None:
    async def coroutine() -> None: ...

    plain, awaitable = build_tracer(app.task(lambda: 1)), build_tracer(app.task(coroutine))
    assert plain.trace is not None
    assert plain.atrace is None
    assert awaitable.trace is None
    assert awaitable.atrace is not None


def test_a_tracer_is_used_again_and_again(app: PgQueue) -> None:
    @app.task
    def flaky(n: int) -> int:
        if n % 2:
            raise InvalidOption
        return n

    run = build_tracer(flaky).trace
    assert run is not None
    assert [type(run(claimed([n]), None)[0]) for n in range(4)] == [Succeeded, Failed, Succeeded, Failed]
