"""Whatever a task does, its tracer comes to an outcome that PostgreSQL stores; what is wrong with a call is said.

`PGQUEUE_FUZZ=100000` tries so many examples in all, with those of tests/whole/test_fuzz.py, other ones each time; ten
such runs, a million, are a night's worth (Hypothesis remembers what it has tried, so one run of a million grows).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from whole.apps.fuzzed import (
    ADD,
    ARGS,
    AT,
    CALLEES,
    CALLS,
    ERRORS,
    EXAMPLES,
    ID,
    KWARGS,
    ORDERS,
    PROGRAMS,
    RUNNERS,
    SECONDS,
    AnyTask,
    Program,
    add,
    arun,
    error_of,
    fuzz,
    hooked,
    job_of,
    odd,
    run,
    tasks_of,
    typed,
)  # fmt: skip

from pgqueue import PgQueue, Signature
from pgqueue.options import TASK_OPTIONS
from pgqueue.reports import report, revive
from pgqueue.serialization import decode_error, encode, encode_error
from pgqueue.serialization.reports import name_of
from pgqueue.statements import Ended, job_json, outcome_json
from pgqueue.tracer import Concluded, build_tracer
from pgqueue.types import Claim, Failed, Outcome, Retried

pytestmark = pytest.mark.timeout(max(120, EXAMPLES))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Hooks that fail are logged; the text is made, and shown to nobody."""
    handler, logger = logging.StreamHandler(_Nowhere()), logging.getLogger("pgqueue")
    logger.addHandler(handler)
    logger.propagate = False
    yield
    logger.removeHandler(handler)
    logger.propagate = True


class _Nowhere:
    def write(self, text: str) -> None:
        text.encode("utf-8", "backslashreplace")

    def flush(self) -> None: ...


def for_postgresql(text: str) -> Any:
    """Return what a JSON text says; fail if PostgreSQL would refuse it as json or as jsonb."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text.encode()
    found = json.loads(text, parse_constant=refuse)
    shown = json.dumps(found, ensure_ascii=False)
    shown.encode()
    assert r"\u0000" not in shown
    return found


def claimed(program: Program, retries: int = 0) -> Claim:
    return Claim(
        ID, "t", "default", 5, encode([program], path="args"), "{}", 1 + retries, retries, 0, AT, AT, None, False,
        False, None, None, None, None,
    )  # fmt: skip


def concluded(task: AnyTask, claim: Claim, always: bool) -> Concluded:
    tracer = build_tracer(task, always=always)
    if tracer.trace is not None:
        return tracer.trace(claim, None)
    assert tracer.atrace is not None
    return asyncio.run(tracer.atrace(claim, None))


def never_raises(function: Callable[[], Any]) -> Any:
    """Return what a function returns; what it raises fails the test, by a text: pytest cannot show hostile ones."""
    try:
        return function()
    except BaseException as error:
        raised = report(error)
    raise AssertionError(f"{raised.type}: {raised.traceback}")


def stored(claim: Claim, outcome: Outcome) -> Any:
    return for_postgresql(outcome_json(Ended(claim, outcome)))


# -- the tracer ------------------------------------------------------------------------------------------------------


def raising(where: str, names: dict[str, Any]) -> Program:
    """A program that fails in its body or in a hook, with an exception whose class misbehaves."""
    error = {"base": "ValueError", "names": names}
    return {"steps": [["raise", error]]} if where == "body" else {"steps": [["recurse"]], "hooks": {where: error}}


@fuzz(0.3)
@example(raising("on_failure", {"__cause__": ["raises", "AttributeError"]}), hooked, 0, False)
@example(raising("body", {"__class__": ["property raises", "RuntimeError"]}), hooked, 0, False)
@example(raising("body", {"__class__": ["property raises", "RuntimeError"]}), arun, 0, False)
@example(raising("body", {"__traceback__": ["property raises", "RuntimeError"]}), hooked, 0, False)
@example({"steps": [["retry by hand", None, {"ignore_result": ["odd", "object"]}]]}, run, 0, False)
@example({"steps": [["retry by hand", None, {"time_limit": ["is", "5 s"]}]]}, run, 0, False)
@example({"steps": [["raise", {"base": "ValueError", "bytes": 10_000_000}]]}, hooked, 0, False)
@given(PROGRAMS, st.sampled_from(RUNNERS), st.integers(0, 2), st.booleans())
def test_every_program_comes_to_an_outcome_that_can_be_stored(
    program: Program, task: AnyTask, retries: int, always: bool
) -> None:
    claim = claimed(program, retries)
    outcome, aftermath = never_raises(lambda: concluded(task, claim, always))
    stored(claim, outcome)
    if aftermath is not None:
        for hook, problem in never_raises(lambda: aftermath.tell(outcome, True)):
            assert hook
            for_postgresql(encode_error(problem))


@fuzz(0.2)
@example({"base": "ValueError", "names": {"__class__": ["property raises", "RuntimeError"]}}, run)
@example({"base": "ValueError", "names": {"__class__": ["property raises", "SystemExit"]}}, arun)
@given(ERRORS, st.sampled_from(RUNNERS))
def test_the_name_of_an_exception_is_never_lost(said: dict[str, Any], task: AnyTask) -> None:
    # Python asks a metaclass with __subclasscheck__ itself while the exception passes, and what that raises takes over.
    if said["base"] in ORDERS or "__subclasscheck__" in said.get("meta", {}):
        return
    claim = claimed({"steps": [["raise", said]]})
    outcome, aftermath = never_raises(lambda: concluded(task, claim, False))
    assert isinstance(outcome, Failed | Retried)
    assert outcome.error is not None
    name = name_of(type(error_of(said)))
    if task.is_coroutine and said["base"] == "StopIteration":
        name = "RuntimeError"  # of Python's making
        assert outcome.error.cause is not None
    assert outcome.error.type == name
    back = decode_error(encode_error(outcome.error))
    assert back.type == name
    assert issubclass(type(never_raises(lambda: revive(back))), Exception)
    if aftermath is not None:
        never_raises(lambda: aftermath.tell(outcome, True))


@fuzz(0.1)
@example(raising("body", {"__traceback__": ["property raises", "RuntimeError"]}), run)
@example(raising("body", {"__getattribute__": ["raises", "GeneratorExit"]}), run)
@given(PROGRAMS, st.sampled_from(RUNNERS))
def test_every_program_can_be_run_eagerly(program: Program, task: AnyTask) -> None:
    try:
        result = task.apply((program,))
    except Exception as error:
        raise AssertionError(report(error).traceback) from None
    except BaseException:
        return  # Ctrl-C and the like are the caller's, once their end is noted
    never_raises(lambda: result.get(propagate=False))


# -- calls that are wrong --------------------------------------------------------------------------------------------


@fuzz(0.15)
@given(CALLEES, ARGS, KWARGS, CALLS)
def test_a_call_is_a_job_that_can_be_stored_or_refused_by_an_error_of_ours(
    name: str, args: Any, kwargs: Any, options: dict[str, Any]
) -> None:
    job = typed(lambda: job_of(name, args, kwargs, options))
    if job is None:
        return
    text = job_json(job)
    found = for_postgresql(text)
    assert isinstance(found["args"], list)
    assert isinstance(found["kwargs"], dict)
    for limit in ("time_limit", "soft_time_limit"):
        assert found.get(limit, 1) > 1e-37, "PostgreSQL's type real has nothing smaller"


TASK_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": odd("other"),
    "queue": odd("q"),
    "priority": odd(0, 9),
    "expires": SECONDS,
    "time_limit": SECONDS,
    "soft_time_limit": SECONDS,
    "max_retries": odd(0, 3),
    "default_retry_delay": SECONDS,
    "autoretry_for": odd((OSError,), [ValueError], (5,), ("OSError",), OSError),
    "dont_autoretry_for": odd((OSError,)),
    "throws": odd((OSError,)),
    "retry_kwargs": odd({"max_retries": 1}, {"countdown": None}, {"max_retry": 1}, {5: 1}, {"countdown": "x"}),
    "retry_backoff": SECONDS | st.booleans(),
    "retry_backoff_max": SECONDS,
    "rate_limit": odd("10/m", 5, "5/d"),
    "serializer": odd("json", "pickle"),
    "base": odd(type(ADD), int),
    "exchange": odd("x"),
    "compression": odd("zlib"),
    "absent": odd(1),
}
DECLARATIONS = st.lists(
    st.sampled_from(sorted({*TASK_VALUES, *TASK_OPTIONS})), min_size=1, max_size=3, unique=True
).flatmap(lambda names: st.fixed_dictionaries({name: TASK_VALUES.get(name, odd(True, False)) for name in names}))


@fuzz(0.1)
@given(DECLARATIONS, odd(add))
def test_a_declaration_is_a_task_or_refused_by_an_error_of_ours(options: dict[str, Any], function: Any) -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
    shared = {*app.tasks}
    task = typed(lambda: app.task(**options)(function))
    if task is None:
        assert {*app.tasks} == shared
    else:
        assert [app.tasks[name] for name in app.tasks if name not in shared] == [task]
        assert task.retry_policy.wait(1) >= 0
        for limit in (task.time_limit, task.soft_time_limit):
            assert limit is None or limit == timedelta(seconds=5) or limit > 1e-37


ROUTES = odd(
    {"add": "q"}, {"a*": {"queue": "q", "priority": 3}}, {"add": {"priority": 99}}, {"add": 5}, {5: "q"},
    [("add", "q")], "not.there", "not a path", lambda *args, **kwargs: None, lambda name: None,
    lambda name, args, kwargs, options, task=None, **more: {"queue": ""}, {"add": {5: 1}}, {"add": {"priorit": 1}},
)  # fmt: skip
CONF: dict[str, st.SearchStrategy[Any]] = {
    "task_routes": ROUTES,
    "task_annotations": odd(
        {"*": {"queue": "q"}}, {"*": {"priority": 3}, "loose": {"priority": 99}}, {"add": {"absent": 1}}, {"add": 5},
        [{"add": {"max_retries": "x"}}], {"loose": {"time_limit": 0}},
    ),
    "task_default_queue": odd("q"),
    "task_default_priority": odd(3),
    "task_time_limit": SECONDS,
    "task_soft_time_limit": SECONDS,
    "task_acks_late": odd(True),
    "task_ignore_result": odd(True),
    "task_queues": odd(["q"], {"q": {}}, [5], "q"),
    "task_create_missing_queues": odd(False),
    "task_publish_retry_policy": odd({"max_retries": 3}, {5: 1}),
    "task_serializer": odd("json", "pickle"),
    "accept_content": odd(["json"], [["json"]]),
    "result_expires": SECONDS,
    "timezone": odd("UTC", "Nowhere", "../etc", UTC),
    "imports": odd(["shop"], "a b"),
    "broker_url": odd("postgresql://h/d", "amqp://", "postgresql://[::1/d", "postgresql://h:x/d"),
    "result_backend": odd("db+postgresql://h/d", "rpc://", "postgresql://h:x/d"),
    "worker_pool": odd("threads", "gevent"),
    "worker_concurrency": odd(1),
    "beat_schedule": odd({}),
    "absent": odd(1),
    "CELERY_TASK_SERIALIZER": odd("json"),
}  # fmt: skip
CONFIGURATIONS = st.lists(st.sampled_from(sorted(CONF)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CONF[name] for name in names})
)


@fuzz(0.1)
@given(CONFIGURATIONS)
@example({"task_annotations": {"add": {"priority": 3}, "loose": {"priority": 99}}})
def test_a_configuration_holds_or_is_refused_by_an_error_of_ours_and_changes_nothing(values: dict[str, Any]) -> None:
    app = PgQueue("tests", dsn="postgresql://127.0.0.1:1/nowhere", set_as_current=False)
    tasks = tasks_of(app)
    before = [task.options for task in tasks], dict(app.conf), app.settings
    if typed(lambda: app.conf.update(values) or app) is None:
        assert ([task.options for task in tasks], dict(app.conf), app.settings) == before
    job = typed(lambda: tasks[0].job((2,), {}, {}))
    if job is not None:
        for_postgresql(job_json(job))


@fuzz(0.05)
@given(st.integers(1, 120), st.booleans())
def test_a_chain_of_links_is_stored_or_refused(length: int, errors: bool) -> None:
    call: Signature[Any] = ADD.s(1)
    for _ in range(length):
        call = ADD.s(1).set(**{"link_error" if errors else "link": call})
    job = typed(call.job)
    if job is not None:
        for_postgresql(job_json(job))
