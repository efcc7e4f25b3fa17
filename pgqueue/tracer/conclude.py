"""Value or exception to outcome. The traceback becomes text, then its frames are cleared."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FrameType, TracebackType

from pgqueue.errors import Ignore, InvalidArguments, LeaseLost, MaxRetriesExceededError, Reject, Retry, WorkerShutdown
from pgqueue.options import check_priority, check_text, check_time, seconds
from pgqueue.serialization import encode
from pgqueue.tracer.context import Context, Traced
from pgqueue.types import (
    ErrorReport,
    Failed,
    Ignored,
    Json,
    Outcome,
    Rejected,
    Released,
    Retried,
    Succeeded,
)

#: Characters kept of a message and of a traceback; the middle of a longer traceback is left out.
LONGEST_MESSAGE = 10_000
LONGEST_TRACEBACK = 60_000

#: Causes of causes that are followed; args and notes of an exception that are kept.
_DEEPEST = 5
_MOST = 20

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def conclude_value(task: Traced, value: object) -> Outcome:
    """Return the outcome of an attempt that returned: a success, or a failure if the value cannot be stored."""
    try:
        return Succeeded("null" if value is None else encode(value, path="result", limit=task.max_payload_bytes))
    except BaseException as error:  # a value's own code runs here, such as a model's; it may raise anything
        return failed(error)


def conclude_error(task: Traced, context: Context, error: BaseException) -> Outcome:
    """Return the outcome of an attempt that raised; afterwards the frames of the traceback hold nothing."""
    try:
        return _decide(task, context, error)
    except Exception as broken:  # a Retry or Reject with something in it that cannot be stored
        return failed(broken)
    finally:
        clear_frames(error)


def failed(error: BaseException) -> Failed:
    """Return the failure that an exception is; afterwards the frames of its traceback hold nothing."""
    try:
        return Failed(report(error))
    finally:
        clear_frames(error)


def _decide(task: Traced, context: Context, error: BaseException) -> Outcome:
    match error:
        case Ignore():
            return Ignored()
        case Reject():
            return Rejected(_reason(error.reason), bool(error.requeue))
        case Retry():
            return _retried(task, error)
        case LeaseLost():
            return Released()  # it is refused as well, and counts nothing if it is not
        case WorkerShutdown():
            return Released()
        case MaxRetriesExceededError():
            return Failed(report(error))  # autoretry_for=(Exception,) means other exceptions
    policy = task.retry_policy
    allowed = policy.allows(context.retries) if context.max_retries is None else context.retries < context.max_retries
    if allowed and policy.covers(error):
        return Retried(report(error), policy.wait(context.retries))
    return Failed(report(error))


def _retried(task: Traced, asked: Retry) -> Retried:
    return Retried(
        None if asked.exc is None else report(asked.exc),
        0.0 if asked.countdown is None else seconds("countdown", asked.countdown),
        eta=None if asked.eta is None else check_time("eta", asked.eta),
        args=_encoded(task, "args", asked.call_args, (list, tuple)),
        kwargs=_encoded(task, "kwargs", asked.call_kwargs, Mapping),
        queue=None if asked.queue is None else check_text("queue", asked.queue, 100),
        priority=None if asked.priority is None else check_priority(asked.priority),
        expires=None if asked.expires is None else check_time("expires", asked.expires),
    )


def _encoded(task: Traced, path: str, value: object, kind: type | tuple[type, ...]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, kind):
        raise InvalidArguments(f"{task.name}: {path} of a retry cannot be of type {type(value).__name__}")
    return encode(value, path=path, limit=task.max_payload_bytes)


def _reason(given: object) -> str:
    if given is None:
        return "rejected"
    return _text(f"{type(given).__qualname__}: {_text(given)}" if isinstance(given, BaseException) else given)


def report(error: BaseException, depth: int = 0) -> ErrorReport:
    """Return an exception as data; never raises, whatever its `__str__`, `args` or notes do."""
    try:
        return _report(error, depth)
    except BaseException:  # a metaclass or a property of the class
        return ErrorReport("Exception", "builtins", f"{type.__repr__(type(error))} cannot be shown")


def _report(error: BaseException, depth: int) -> ErrorReport:
    cause = _look(error, "__cause__")
    if cause is None and not _look(error, "__suppress_context__"):
        cause = _look(error, "__context__")
    module = type(error).__module__
    return ErrorReport(
        type=type(error).__qualname__,
        module=module if isinstance(module, str) else "builtins",
        message=_text(error),
        args=_args(error),
        notes=_notes(error),
        cause=report(cause, depth + 1) if isinstance(cause, BaseException) and depth < _DEEPEST else None,
        traceback=_traceback(error) if depth == 0 else None,
    )


def clear_frames(error: BaseException) -> None:
    """Take the tracebacks from an exception and all that hangs on it, and drop what their frames still hold.

    So nothing large stays alive: neither through a cycle, nor through an exception that a module keeps and raises
    again and again (each time, Python lengthens its traceback). Never raises.
    """
    with suppress(Exception):  # a class may raise whatever it is asked, even for its `__class__`
        for linked in _linked(error):
            trace = _look(linked, "__traceback__")
            BaseException.with_traceback(linked, None)  # an exception may be a frozen dataclass
            while isinstance(trace, TracebackType):
                _clear(trace.tb_frame)
                trace = trace.tb_next


def _linked(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that hangs on it, each once."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        current = todo.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        todo += (_look(current, "__cause__"), _look(current, "__context__"))
        yield current
        match current:
            case Retry():
                todo.append(_look(current, "exc"))
            case Reject():
                todo.append(_look(current, "reason"))
            case BaseExceptionGroup():
                todo += current.exceptions


def _clear(frame: FrameType) -> None:
    # Before 3.13, clearing a suspended frame ends its coroutine: perhaps a reader of connections that many tasks
    # share, which has caught the exception, passed it on to its waiters, and lives.
    if sys.version_info < (3, 13) and frame.f_code.co_flags & _MAY_BE_SUSPENDED:
        return
    try:
        frame.clear()
    except RuntimeError:
        pass  # it still runs


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, _users(error.__traceback__))
        text = "".join(lines)
    except Exception as broken:  # a __str__ or __repr__ that raises something unusual
        return f"{type(error).__qualname__}: the traceback cannot be shown ({type(broken).__qualname__})"
    if len(text) > LONGEST_TRACEBACK:
        half = LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n... {len(text) - LONGEST_TRACEBACK} characters left out ...\n{text[-half:]}"
    return text


def _users(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the tracer at its top: they tell the user nothing."""
    start = trace
    while start is not None and start.tb_frame.f_globals.get("__name__", "").startswith("pgqueue.tracer"):
        start = start.tb_next
    return start or trace


def _look(value: object, name: str, default: object = None) -> object:
    try:
        return getattr(value, name, default)
    except BaseException:  # a property of the exception's class
        return default


def _text(value: object, longest: int = LONGEST_MESSAGE) -> str:
    try:
        return str(value)[:longest]
    except BaseException:
        return f"<{type(value).__qualname__} without a readable text>"


def _args(error: BaseException) -> tuple[Json, ...]:
    args = _look(error, "args")
    return tuple(map(_json_safe, args[:_MOST])) if isinstance(args, tuple) else ()


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = _look(error, "__notes__")
    return tuple(map(_text, notes[:_MOST])) if isinstance(notes, list | tuple) else ()


def _json_safe(value: object) -> Json:
    """Return a scalar as it is and anything else as a short repr: the args are for reading."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _text(value)
    try:
        return repr(value)[:1000]
    except BaseException:
        return f"<{type(value).__qualname__} without a readable text>"
