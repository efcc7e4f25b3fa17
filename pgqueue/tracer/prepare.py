"""Claim to call: what is to be run, or the outcome of an attempt that must not start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgqueue.errors import InvalidArguments
from pgqueue.serialization import decode
from pgqueue.tracer.conclude import report
from pgqueue.tracer.context import Context, Traced, Transactor
from pgqueue.types import Claim, Failed, Outcome, Revoked


@dataclass(frozen=True, slots=True)
class Call:
    """A function's arguments, as its annotations want them, and the context in which it runs."""

    args: Sequence[object]
    kwargs: Mapping[str, object]
    context: Context


def prepare(task: Traced, claim: Claim, hostname: str, transactor: Transactor | None) -> Call | Outcome:
    """Return the call of a claimed job, or the outcome if it was revoked, has expired, or does not fit."""
    if claim.revoked:
        return Revoked("revoked")
    if claim.expired:
        return Revoked("expired")
    try:
        args, kwargs = decode(claim.args), decode(claim.kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise InvalidArguments(f"{task.name}(): args must be a JSON array and kwargs a JSON object")
        given, named = task.arguments.load(args, kwargs)
    except Exception as error:  # whatever is wrong with a stored row, it is an outcome and never the worker's end
        return Failed(report(error))
    return Call(given, named, Context(task.name, claim, given, named, hostname, transactor))
