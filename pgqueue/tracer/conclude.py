"""Value or exception to outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from pgqueue.errors import (
    Ignore,
    InvalidArguments,
    InvalidOption,
    LeaseLost,
    MaxRetriesExceededError,
    Reject,
    Replace,
    Retry,
    TaskPredicate,
    TransactionUnavailable,
    WorkerShutdown,
)
from pgqueue.options import check_priority, check_text, check_time, check_time_limits, seconds, shown
from pgqueue.reports import report, text_of
from pgqueue.serialization import decode, encode
from pgqueue.serialization.reports import name_of
from pgqueue.stamps import keeping_stamps
from pgqueue.statements import job_json
from pgqueue.tracer.context import Context, Traced
from pgqueue.types import (
    GATHER,
    Claim,
    Failed,
    Ignored,
    NewJob,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Succeeded,
)

_NOTHING = Succeeded("null")
_SMALL = 10**15


def conclude_value(task: Traced, value: object) -> Succeeded:
    """Return the outcome of an attempt that returned; raises whatever the value's own code does when it is stored."""
    if value is None:
        return _NOTHING
    if type(value) is int and -_SMALL < value < _SMALL:  # as the encoder writes it, at a tenth of its price
        return Succeeded(str(value))
    return Succeeded(encode(value, path="result", limit=task.max_payload_bytes))


def conclude_error(task: Traced, context: Context, error: BaseException) -> Outcome:
    """Return the outcome of an attempt that raised; never raises."""
    try:
        return _decide(task, context, error)
    except BaseException as broken:  # a Retry or Reject with something in it that cannot be stored
        if issubclass(type(error), TaskPredicate):
            return Failed(report(broken))
        return Failed(report(error))  # its class refuses to be asked what it is


def _decide(task: Traced, context: Context, error: BaseException) -> Outcome:
    match error:
        case Replace():
            return _replaced(context, error)
        case Ignore():
            return Ignored()
        case Reject():
            # One that was handed back too often ends now, and whoever listens is told so.
            again = bool(error.requeue) and context.claim is not None and context.claim.requeues < task.max_requeues
            return Rejected(_reason(error.reason), again, task.max_requeues)
        case Retry():
            return _retried(task, error, context.claim)
        # What has lost its lease is refused as well, and counts nothing if it is not.
        case LeaseLost() | WorkerShutdown() | TransactionUnavailable():
            return Released()
        case MaxRetriesExceededError():
            return Failed(report(error))  # autoretry_for=(Exception,) means other exceptions
    policy = task.retry_policy
    allowed = policy.allows(context.retries) if context.max_retries is None else context.retries < context.max_retries
    if allowed and policy.covers(error):
        return Retried(report(error), policy.wait(context.retries))
    return Failed(report(error), expected=isinstance(error, tuple(task.options.throws)))


def _replaced(context: Context, asked: Replace) -> Replaced:
    job, claim = asked.job, context.claim
    if job is None:
        return _replaced_by_plan(context, asked.plan)
    expires = job.expires if claim is None else job.expires or claim.expires
    if job.expires_in is not None:
        expires = datetime.now(UTC) + timedelta(seconds=job.expires_in)
    return Replaced(
        job.task, job.args, job.kwargs,
        queue=job.queue, priority=job.priority, countdown=job.countdown or 0.0, eta=job.eta, expires=expires,
        headers=keeping_stamps(job.headers, None if claim is None else claim.headers),
        options=_nested(None if claim is None else claim.options, job.options, context.replaced_task_nesting + 1),
        links=job.links,
        errbacks=job.errbacks, ignore_result=job.ignore_result, time_limit=job.time_limit,
        soft_time_limit=job.soft_time_limit,
    )  # fmt: skip


def _replaced_by_plan(context: Context, plan: Sequence[NewJob]) -> Replaced:
    """Return the workflow that takes the place of a job; all of it counts one more replacement, and has its headers."""
    claim = context.claim
    count = context.replaced_task_nesting + 1
    jobs = [
        job
        if job.task == GATHER
        else job._replace(
            headers=keeping_stamps(job.headers, None if claim is None else claim.headers),
            options=_nested(claim.options if claim is not None and claim.id == job.id else None, job.options, count),
        )
        for job in plan
    ]
    return Replaced(GATHER, "[]", "{}", plan=f"[{','.join(map(job_json, jobs))}]")


def _nested(before: str | None, options: str | None, count: int) -> str:
    """Return the options of a call that takes the place of another, with the count of such changes.

    Whose child it is stays: that of the first.
    """
    first, second = ({} if text is None else decode(text) for text in (before, options))
    known = {**second, "replaced": count} if isinstance(second, dict) else {"replaced": count}
    known.pop("trail", None)
    if isinstance(first, dict) and "trail" in first:
        known["trail"] = first["trail"]
    return encode(known, path="options")


def _retried(task: Traced, asked: Retry, claim: Claim | None) -> Retried:
    hard, soft = check_time_limits(asked.time_limit, asked.soft_time_limit)
    headers = _encoded(task, "headers", asked.headers, Mapping)
    if headers is not None and claim is not None:
        headers = keeping_stamps(headers, claim.headers)
    return Retried(
        None if asked.exc is None else report(asked.exc),
        0.0 if asked.countdown is None else seconds("countdown", asked.countdown),
        eta=None if asked.eta is None else check_time("eta", asked.eta),
        args=_encoded(task, "args", asked.call_args, (list, tuple)),
        kwargs=_encoded(task, "kwargs", asked.call_kwargs, Mapping),
        queue=None if asked.queue is None else check_text("queue", asked.queue, 100),
        priority=None if asked.priority is None else check_priority(asked.priority),
        expires=None if asked.expires is None else check_time("expires", asked.expires),
        headers=headers,
        ignore_result=_flag("ignore_result", asked.ignore_result),
        time_limit=hard,
        soft_time_limit=soft,
    )


def _flag(option: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidOption(f"{option} of a retry must be True or False, not {shown(value)}")


def _encoded(task: Traced, path: str, value: object, kind: type | tuple[type, ...]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, kind):
        raise InvalidArguments(f"{task.name}: {path} of a retry cannot be of type {type(value).__name__}")
    return encode(value, path=path, limit=task.max_payload_bytes)


def _reason(given: object) -> str:
    if given is None:
        return "rejected"
    is_error = issubclass(type(given), BaseException)
    return f"{name_of(type(given))}: {text_of(given)}" if is_error else text_of(given)
