"""Claim to context: what is to be run, or the outcome of an attempt that must not start."""

from __future__ import annotations

from pgqueue.errors import InvalidArguments
from pgqueue.serialization import decode
from pgqueue.tracer.conclude import failed
from pgqueue.tracer.context import Context, Traced, Transactor
from pgqueue.types import Claim, Outcome, Revoked


def prepare(task: Traced, claim: Claim, hostname: str, transactor: Transactor | None) -> Context | Outcome:
    """Return the context of a claimed job, with the arguments as the function's annotations want them.

    Or the outcome, if it was revoked, has expired, or does not fit.
    """
    if claim.revoked:
        return Revoked("revoked")
    if claim.expired:
        return Revoked("expired")
    try:
        args, kwargs = decode(claim.args), decode(claim.kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise InvalidArguments(f"{task.name}(): args must be a JSON array and kwargs a JSON object")
        given, named = task.arguments.load(args, kwargs)
    except BaseException as error:  # whatever is wrong with a row, or a validator raises, is never the worker's end
        return failed(error)
    return Context(task.name, claim, given, named, hostname, transactor)
