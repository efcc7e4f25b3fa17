"""Value or exception to outcome. The traceback becomes text, then its frames are cleared."""

from __future__ import annotations

import traceback
from types import TracebackType

from pgqueue.errors import Ignore, LeaseLost, PgQueueError, Reject, Retry
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

#: Causes of causes that are followed.
_DEEPEST = 5


def conclude_value(task: Traced, value: object) -> Outcome:
    """Return the outcome of an attempt that returned: a success, or a failure if the value cannot be stored."""
    try:
        return Succeeded("null" if value is None else encode(value, path="result", limit=task.max_payload_bytes))
    except Exception as error:  # a value's own code runs here, such as a model's; it may raise anything
        return Failed(report(error))


def conclude_error(task: Traced, context: Context, error: BaseException) -> Outcome:
    """Return the outcome of an attempt that raised; afterwards the frames of the traceback hold nothing."""
    try:
        return _decide(task, context, error)
    finally:
        clear_frames(error)


def _decide(task: Traced, context: Context, error: BaseException) -> Outcome:
    match error:
        case Ignore():
            return Ignored()
        case Reject():
            return Rejected(_text(error.reason) if error.reason is not None else "rejected", error.requeue)
        case Retry():
            return _retried(task, error)
        case LeaseLost():
            return Released()  # it is refused as well, and counts nothing if it is not
    policy = task.retry_policy
    if policy.covers(error) and policy.allows(context.retries):
        return Retried(report(error), policy.wait(context.retries))
    return Failed(report(error))


def _retried(task: Traced, asked: Retry) -> Outcome:
    try:
        return Retried(
            report(asked.exc) if asked.exc is not None else None,
            asked.countdown or 0.0,
            eta=asked.eta,
            args=None
            if asked.call_args is None
            else encode(list(asked.call_args), path="args", limit=task.max_payload_bytes),
            kwargs=None
            if asked.call_kwargs is None
            else encode(asked.call_kwargs, path="kwargs", limit=task.max_payload_bytes),
            queue=asked.queue,
            priority=asked.priority,
            expires=asked.expires,
        )
    except PgQueueError as error:
        return Failed(report(error))


def report(error: BaseException, depth: int = 0) -> ErrorReport:
    """Return an exception as data; never raises, whatever its `__str__`, `args` or notes do."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ErrorReport(
        type=type(error).__qualname__,
        module=type(error).__module__,
        message=_text(error)[:LONGEST_MESSAGE],
        args=tuple(_json_safe(value) for value in _args(error)),
        notes=tuple(str(note)[:LONGEST_MESSAGE] for note in getattr(error, "__notes__", ()) if isinstance(note, str)),
        cause=report(cause, depth + 1) if cause is not None and depth < _DEEPEST else None,
        traceback=_traceback(error) if depth == 0 else None,
    )


def clear_frames(error: BaseException) -> None:
    """Drop the local variables of every frame that an exception, its cause and its context passed through."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if current.__traceback__ is not None:
            traceback.clear_frames(current.__traceback__)
        todo += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            todo += current.exceptions


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


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__} without a readable text>"


def _args(error: BaseException) -> tuple[object, ...]:
    try:
        args = error.args
    except Exception:
        return ()
    return args if isinstance(args, tuple) else ()


def _json_safe(value: object) -> Json:
    """Return a scalar as it is and anything else as a short repr: the args are for reading."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value[:LONGEST_MESSAGE]
    try:
        return repr(value)[:1000]
    except Exception:
        return f"<{type(value).__qualname__} without a readable text>"
