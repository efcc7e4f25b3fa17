"""Tasks that do what a program says, and strategies that make programs: for the fuzz of the tracer and of workers.

A program is data that JSON can hold, so that it may be the argument of a job: {"steps": [...], "hooks": {...}}. A step
is [what, ...]: it returns, raises, retries, or goes on to the next; after the last one the task returns None.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import BaseModel, model_serializer

from pgqueue import Ignore, PgQueue, Reject, Retry, Task
from pgqueue.calling import NamedTask
from pgqueue.errors import PgQueueError
from pgqueue.types import NewJob

app = PgQueue("fuzzed", set_as_current=False)

AnyTask = Task[..., Any, Any]
AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
ID = "0197c2b0-0000-7000-8000-000000000001"
Program = dict[str, Any]

#: How many examples all the fuzz tests try together: the same ones each time, and if so many are asked for, others.
EXAMPLES = int(os.environ.get("PGQUEUE_FUZZ", "1500"))
_ALWAYS_THE_SAME = "PGQUEUE_FUZZ" not in os.environ


def fuzz(share: float) -> settings:
    """Return the settings of a test that tries this share of the examples."""
    return settings(
        max_examples=max(20, int(EXAMPLES * share)),
        deadline=None,
        database=None,
        derandomize=_ALWAYS_THE_SAME,  # a change must not be refused for a fault that it has not made
        suppress_health_check=list(HealthCheck),
    )


# -- values that are not what they seem ------------------------------------------------------------------------------


class Text(str):
    """A text that shows itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\0 another"


class Number(int):
    def __str__(self) -> str:
        raise ValueError("no digits")


class Choice(str, Enum):  # noqa: UP042 - shows itself as Choice.MAIL
    MAIL = "mail"


class Model(BaseModel):
    @model_serializer
    def dump(self) -> object:
        raise LookupError("a model that cannot be dumped")


class Mute:
    """Answers no question."""

    def _raise(self, *args: object) -> Any:
        raise RuntimeError("I do not answer")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _raise
    __hash__ = object.__hash__


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


class Moody(Mapping[str, object]):
    """A mapping that gives way when it is read."""

    def __getitem__(self, key: str) -> object:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])

    def __len__(self) -> int:
        return 1


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def circle() -> object:
    value: list[object] = []
    value.append({"again": value})
    return value


#: Values that JSON cannot hold, or that nobody expects, by the name that a program gives them.
ODD: dict[str, Callable[[], object]] = {
    "object": object,
    "class": lambda: ValueError,
    "function": lambda: nested,
    "nested": lambda: nested(64),
    "too deep": lambda: nested(65),
    "far too deep": lambda: nested(100_000),
    "circle": circle,
    "huge": lambda: 10**4299,
    "too huge": lambda: -(10**5000),
    "nan": lambda: float("nan"),
    "inf": lambda: -float("inf"),
    "surrogate": lambda: "\ud800",
    "surrogate key": lambda: {"\udfff": 1},
    "nul": lambda: "a\0b",
    "text": lambda: Text("text"),
    "number": lambda: Number(5),
    "choice": lambda: Choice.MAIL,
    "generator": lambda: (n for n in range(3)),
    "set": lambda: {(1, 2), "a"},
    "keys": lambda: {1: 2, None: 3, (1, 2): 4},
    "model": Model,
    "mute": Mute,
    "moody": Moody,
    "unhashable": Unhashable,
    "bytes": lambda: b"\0\xff",
    "tag": lambda: {"$datetime": "never"},
    "large": lambda: "x" * 2_000_000,
    "exception": lambda: ValueError("a value"),
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab$_", max_size=5), inner, max_size=3),
    max_leaves=5,
)
#: ["is", JSON] or ["odd", name].
VALUES = st.tuples(st.just("is"), JSON) | st.tuples(st.just("odd"), st.sampled_from(sorted(ODD)))


def value_of(said: Any) -> Any:
    what, value = said
    return value if what == "is" else ODD[value]()


# -- exceptions ------------------------------------------------------------------------------------------------------

MODULE = ModuleType("fuzzed_errors")
sys.modules[MODULE.__name__] = MODULE

BASES: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        Exception, ValueError, KeyError, OSError, UnicodeDecodeError, AssertionError, RecursionError, StopIteration,
        StopAsyncIteration, ExceptionGroup, BaseExceptionGroup, BaseException, SystemExit, GeneratorExit,
        KeyboardInterrupt, asyncio.CancelledError, Retry, Reject, Ignore,
    )
}  # fmt: skip
#: Those that say how the attempt is to end: it does not fail with them.
ORDERS = ("Retry", "Reject", "Ignore")
#: What a class may say of itself in the wrong way.
NAMES = (
    "__str__", "__repr__", "__notes__", "__reduce__", "__reduce_ex__", "__class__", "__cause__", "__context__",
    "__suppress_context__", "args", "__traceback__", "__dict__", "__hash__", "__eq__", "__bool__", "__len__",
    "__iter__", "__getattribute__", "__getattr__", "__setattr__", "__doc__", "__module__", "__qualname__",
    "with_traceback", "add_note", "exceptions", "message", "exc", "reason", "requeue", "countdown", "eta", "call_args",
    "queue",
)  # fmt: skip
META = (
    "__name__", "__qualname__", "__module__", "__call__", "__getattribute__", "__subclasscheck__", "__instancecheck__",
    "__eq__", "__hash__",
)  # fmt: skip
RAISING: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (RuntimeError, RecursionError, MemoryError, AttributeError, StopIteration, SystemExit, GeneratorExit)
}

BEHAVIOURS = st.tuples(st.sampled_from(["raises", "property raises"]), st.sampled_from(sorted(RAISING))) | st.tuples(
    st.sampled_from(["is", "answers", "property answers"]), VALUES
)
#: No class but its own name and what it says of itself: base, names, meta, args, notes, members, cause, context.
ERRORS = st.recursive(
    st.fixed_dictionaries(
        {"base": st.sampled_from(sorted(BASES))},
        optional={
            "name": st.sampled_from(["Hostile", "Schädlich", "a.b", "x" * 2000, "surrogate", "nul", ""]),
            "names": st.dictionaries(st.sampled_from(NAMES), BEHAVIOURS, max_size=4),
            "meta": st.dictionaries(st.sampled_from(META), BEHAVIOURS, max_size=1),
            "args": st.lists(VALUES, max_size=3),
            "notes": VALUES,
            "bytes": st.just(100_000),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {"base": st.sampled_from(sorted(BASES))},
        optional={
            "names": st.dictionaries(st.sampled_from(NAMES), BEHAVIOURS, max_size=2),
            "members": st.lists(inner, min_size=1, max_size=3),
            "cause": inner,
            "context": inner,
        },
    ),
    max_leaves=4,
)


def behaviour(how: str, answer: Any) -> Any:
    def behave(*args: object, **kwargs: object) -> Any:
        if how.endswith("raises"):
            raise RAISING[answer]
        return value_of(answer)

    return value_of(answer) if how == "is" else property(behave) if how.startswith("property") else behave


def error_of(said: Mapping[str, Any]) -> BaseException:
    """Return the exception that a program describes; its class misbehaves as far as Python lets it."""
    base = BASES[said["base"]]
    kind: Any = base
    if "names" in said or "meta" in said or "name" in said:
        name = said.get("name", "Hostile")
        name = ODD[name]() if name in ODD else name
        names = {key: behaviour(*how) for key, how in said.get("names", {}).items()}
        meta = {key: behaviour(*how) for key, how in said.get("meta", {}).items()}
        for inside, above in ((names, meta), (names, {}), ({}, {})):
            with contextlib.suppress(Exception):  # a `__hash__` that is no function, a `__dict__` that is no dict
                own = {"__module__": MODULE.__name__, "__qualname__": name, **inside}
                kind = type.__new__(type("Meta", (type(base),), above), "Hostile", (base,), own)
                break
        vars(MODULE)[str(name)] = kind
    members = [error_of(member) for member in said.get("members", ())]
    if issubclass(base, BaseExceptionGroup):
        members = members or [ValueError("member")]
        if base is ExceptionGroup:
            members = [member if issubclass(type(member), Exception) else ValueError("member") for member in members]
        args: list[Any] = ["group", members]
    elif base is UnicodeDecodeError:
        args = ["utf-8", b"\xff" * said.get("bytes", 1), 0, 1, "invalid"]
    elif "bytes" in said:
        args = ["x" * said["bytes"]]
    else:
        args = [value_of(arg) for arg in said.get("args", ())]
    error: BaseException = base.__new__(kind, *args)
    with contextlib.suppress(BaseException):
        base.__init__(error, *args)
    for link in ("cause", "context"):
        if link in said:
            vars(BaseException)[f"__{link}__"].__set__(error, error_of(said[link]))
    if "notes" in said:
        with contextlib.suppress(BaseException):
            error.__notes__ = value_of(said["notes"])
    return error


# -- programs --------------------------------------------------------------------------------------------------------

HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")
TIMES = st.sampled_from([0, 0.0, 1e-320, 0.01, -1, 10**400, float(2**62)])
OF_RETRY = {
    "queue": st.sampled_from(["fuzz", "", "x" * 101]),
    "priority": st.integers(-1, 10),
    "expires": st.sampled_from([0, 1000, -1, "soon"]),
    "headers": VALUES,
    "ignore_result": VALUES,
    "time_limit": st.sampled_from([0, 1e-50, 30, "long"]),
    "soft_time_limit": st.sampled_from([0, 1e-50, 20, 40]),
}
#: What is in the class Retry, and may be given to it by hand.
BY_HAND = {
    "countdown": VALUES, "eta": VALUES, "args": VALUES, "kwargs": VALUES, "queue": VALUES, "priority": VALUES,
    "expires": VALUES, "headers": VALUES, "ignore_result": VALUES, "time_limit": VALUES, "soft_time_limit": VALUES,
}  # fmt: skip

STEPS = st.recursive(
    st.tuples(st.just("return"), VALUES)
    | st.tuples(st.just("raise"), ERRORS)
    | st.tuples(
        st.just("retry"),
        st.none() | ERRORS,
        st.fixed_dictionaries(
            {"countdown": TIMES},
            optional={"max_retries": st.integers(-1, 2), "throw": st.booleans(), "kwargs": VALUES, **OF_RETRY},
        ),
    )
    | st.tuples(st.just("retry by hand"), st.none() | ERRORS, st.fixed_dictionaries({}, optional=BY_HAND))
    | st.tuples(st.just("reject"), VALUES | ERRORS.map(lambda error: ("error", error)), st.booleans() | VALUES)
    | st.tuples(st.just("ignore"))
    | st.tuples(st.just("recurse"))
    | st.tuples(st.just("exit"), VALUES)
    | st.tuples(st.just("state"), st.sampled_from(["PROGRESS", "SUCCESS", ""]) | VALUES, VALUES)
    | st.tuples(st.just("call"), VALUES)
    | st.tuples(st.just("handle"), ERRORS, ERRORS)
    | st.tuples(st.just("request"), st.sampled_from(["headers", "id", "callbacks", "delivery_info", "absent"])),
    lambda inner: st.tuples(
        st.sampled_from(["replace", "run"]), st.fixed_dictionaries({"steps": st.lists(inner, max_size=2)})
    ),
    max_leaves=3,
)
PROGRAMS = st.fixed_dictionaries(
    {"steps": st.lists(STEPS, min_size=1, max_size=3)},
    optional={"hooks": st.dictionaries(st.sampled_from(HOOKS), ERRORS, max_size=3)},
)


#: Attempts after which a program ends: a Retry that a task makes by itself knows no limit.
ENOUGH = 4


def down(n: int = 0) -> int:
    return down(n + 1) + 1


def follow(task: AnyTask, program: Program) -> object:
    """Do what a program says; return what it returns."""
    if task.request.attempt > ENOUGH:
        return None
    for what, *told in program["steps"]:
        if what == "return":
            return value_of(told[0])
        STEPPING[what](task, *told)
    return None


def _raise(task: AnyTask, error: Mapping[str, Any]) -> None:
    raise error_of(error)


def _retry(task: AnyTask, error: Mapping[str, Any] | None, options: Mapping[str, Any]) -> None:
    exc = None if error is None else error_of(error)
    said = {**options}
    for name in ("headers", "ignore_result", "kwargs"):
        if name in said:
            said[name] = value_of(said[name])
    task.retry(exc=exc, **said)


def _retry_by_hand(task: AnyTask, error: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> None:
    exc: Any = None if error is None else error_of(error)
    raise Retry("by hand", exc, **{name: value_of(value) for name, value in fields.items()})


def _reject(task: AnyTask, reason: Any, requeue: Any) -> None:
    again = requeue if isinstance(requeue, bool) else value_of(requeue)
    if task.request.attempt > 2:
        again = False
    raise Reject(error_of(reason[1]) if reason[0] == "error" else value_of(reason), again)


def _ignore(task: AnyTask) -> None:
    raise Ignore


def _exit(task: AnyTask, code: Any) -> None:
    sys.exit(value_of(code))


def _state(task: AnyTask, state: Any, meta: Any) -> None:
    task.update_state(state=state if isinstance(state, str) else value_of(state), meta=value_of(meta))


def _call(task: AnyTask, value: Any) -> None:
    told.apply_async((value_of(value),))


def _handle(task: AnyTask, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    try:
        raise error_of(first)
    except BaseException:
        raise error_of(second)  # noqa: B904 - the context is the point


def _request(task: AnyTask, name: str) -> None:
    getattr(task.request, name)


def _replace(task: AnyTask, program: Program) -> None:
    if not task.request.replaced_task_nesting:
        task.replace(run.si(program))


def _run(task: AnyTask, program: Program) -> None:
    follow(task, program)


STEPPING: dict[str, Callable[..., None]] = {
    "raise": _raise,
    "retry": _retry,
    "retry by hand": _retry_by_hand,
    "reject": _reject,
    "ignore": _ignore,
    "recurse": lambda task: down() and None,
    "exit": _exit,
    "state": _state,
    "call": _call,
    "handle": _handle,
    "request": _request,
    "replace": _replace,
    "run": _run,
}


class Hooked(Task[..., Any, Any]):
    """Its hooks raise what the program says."""

    def _follow(self, hook: str) -> None:
        args = self.request.args
        program = args[0] if args and isinstance(args[0], dict) else {}
        if hook in program.get("hooks", {}) and self.request.attempt <= ENOUGH:
            raise error_of(program["hooks"][hook])

    def before_start(self, *args: object) -> None:
        self._follow("before_start")

    def on_success(self, *args: object) -> None:
        self._follow("on_success")

    def on_failure(self, *args: object) -> None:
        self._follow("on_failure")

    def on_retry(self, *args: object) -> None:
        self._follow("on_retry")

    def after_return(self, *args: object) -> None:
        self._follow("after_return")


OPTIONS: dict[str, Any] = {"bind": True, "max_retries": 2, "default_retry_delay": 0, "queue": "fuzz"}


@app.task(name="fuzzed.run", **OPTIONS)
def run(self: AnyTask, program: Program) -> object:
    return follow(self, program)


@app.task(name="fuzzed.hooked", base=Hooked, **OPTIONS)
def hooked(self: AnyTask, program: Program) -> object:
    return follow(self, program)


@app.task(name="fuzzed.arun", base=Hooked, **OPTIONS)
async def arun(self: AnyTask, program: Program) -> object:
    await asyncio.sleep(0)
    return follow(self, program)


@app.task(name="fuzzed.stubborn", base=Hooked, autoretry_for=(BaseException,), **OPTIONS)
def stubborn(self: AnyTask, program: Program) -> object:
    return follow(self, program)


@app.task(name="fuzzed.told", queue="told", ignore_result=True)
def told(*args: object, **kwargs: object) -> None:
    """What links and calls lead to."""


RUNNERS: tuple[AnyTask, ...] = (run, hooked, arun, stubborn)


# -- calls that may be wrong --------------------------------------------------------------------------------------


def odd(*usual: object) -> st.SearchStrategy[Any]:
    """Values as they are usual, and others."""
    return st.one_of(st.sampled_from(usual), *(() if len(usual) < 2 else (st.sampled_from(usual),)), ODD_VALUES)


class Nowhere(tzinfo):
    """A time zone that knows nothing: what the class of Python's library does by itself."""


ODD_VALUES = (
    st.sampled_from(sorted(ODD)).map(lambda name: ODD[name]())
    | st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([b"x", [], {}, (), ["a"], {"a": 1}, 1e-50, 5e-324, 10**400, -(10**5000), "x" * 600])
)
MOMENTS = odd(
    AT, datetime.max, datetime.min, datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
) | st.builds(lambda: AT.replace(tzinfo=Nowhere()))  # fmt: skip
SECONDS = odd(0, 1, 0.5, 1e9, 1e10, -1, timedelta(seconds=5), timedelta.max, 1e-50, 5e-324)


def add(x: int, y: int = 1) -> int:
    return x + y


def tasks_of(app: PgQueue) -> tuple[AnyTask, AnyTask]:
    """Declare two tasks, one that checks its arguments and one that does not."""
    return app.task(name="add")(add), app.task(name="loose", typing=False)(add)


ADD, LOOSE = tasks_of(app)

LINKS: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([ADD.s(2), ADD.si(1, 2), LOOSE.s("a"), app.signature("absent", (1,))]),
    lambda inner: st.lists(inner, max_size=2) | st.builds(lambda link: ADD.s(3).set(link=link, queue="q"), inner),
    max_leaves=5,
)
CALL_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "countdown": SECONDS,
    "eta": MOMENTS,
    "expires": MOMENTS | SECONDS,
    "queue": odd("q"),
    "priority": odd(0, 9),
    "task_id": odd(ID),
    "unique_key": odd("key", "k" * 500),
    "headers": odd({"a": 1}),
    "ignore_result": odd(True),
    "time_limit": SECONDS,
    "soft_time_limit": SECONDS,
    "link": LINKS | ODD_VALUES,
    "link_error": LINKS | ODD_VALUES,
    "shadow": odd("other"),
    "add_to_parent": odd(False),
    "root_id": odd(ID),
    "parent_id": odd(ID),
    "retry": odd(True),
    "retry_policy": odd({}),
    "serializer": odd("json"),
    "argsrepr": odd("..."),
    "chain": odd(None),
    "compression": odd("zlib"),
    "absent": odd(1),
}
#: Few at a time: each that is wrong hides the others.
CALLS = st.lists(st.sampled_from(sorted(CALL_OPTIONS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CALL_OPTIONS[name] for name in names})
)
ARGS = st.sampled_from([(2,), (2, 3), [], ("a",), {"x": 1}, "ab"]) | ODD_VALUES | st.lists(ODD_VALUES, max_size=3)
KWARGS = (
    st.sampled_from([{}, None, {"y": 2}, {5: 1}, [("y", 2)]]) | ODD_VALUES | st.fixed_dictionaries({"y": ODD_VALUES})
)


CALLEES = st.sampled_from(["add", "loose", "absent", "signature"])


def job_of(name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> NewJob:
    """Return a call as a job: of a task, by a name that nobody has, or as a link."""
    if name == "signature":
        return ADD.signature(args, kwargs, **options).continuation()
    callee = app.tasks[name] if name in app.tasks else NamedTask(app, name)
    return callee.job(() if args is None else args, {} if kwargs is None else kwargs, options)


def typed(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or None if it is refused by an exception of ours; any other is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except PgQueueError:
        return None
