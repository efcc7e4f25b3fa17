"""Claim to context: what is to be run, or why the attempt must not start."""

from __future__ import annotations

from typing import NamedTuple

from pgqueue.errors import InvalidArguments
from pgqueue.reports import report
from pgqueue.serialization import decode
from pgqueue.tracer.context import Context, Traced, Transactor
from pgqueue.types import Claim, Failed, Outcome, Revoked


class Refusal(NamedTuple):
    """An attempt that must not start: what it comes to, and the error that says why; `readable`: its arguments are."""

    outcome: Outcome
    context: Context
    error: BaseException | None = None
    readable: bool = True


class Where(NamedTuple):
    """Who runs attempts: name and id of the worker, and whether it is an eager run."""

    hostname: str = ""
    worker: str | None = None
    is_eager: bool = False


def prepare(task: Traced, claim: Claim, where: Where, transactor: Transactor | None) -> Context | Refusal:
    """Return the context of a claimed job, with the arguments as the function's annotations want them.

    Or a refusal, if it was revoked, has expired, or its arguments do not fit.
    """
    if claim.revoked or claim.expired:
        return Refusal(Revoked("revoked" if claim.revoked else "expired"), _context(task, claim, where, [], {}))
    args: object = []
    kwargs: object = {}
    readable = False
    try:
        args = decode(claim.args)
        kwargs = {} if claim.kwargs == "{}" else decode(claim.kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise InvalidArguments(f"{task.name}(): args must be a JSON array and kwargs a JSON object")
        readable = True
        given, named = task.arguments.load(args, kwargs)
    except BaseException as error:  # whatever is wrong with a row, or a validator raises, is never the worker's end
        context = _context(task, claim, where, args, kwargs) if readable else _context(task, claim, where, [], {})
        return Refusal(Failed(report(error)), context, error, readable)
    return Context(
        task.name, claim, given, named, where.hostname, transactor, None, where.worker, task.options, where.is_eager
    )


def _context(task: Traced, claim: Claim, where: Where, args: object, kwargs: object) -> Context:
    return Context(
        task.name, claim, args, kwargs, where.hostname,  # type: ignore[arg-type]
        worker=where.worker, options=task.options, is_eager=where.is_eager,
    )  # fmt: skip
