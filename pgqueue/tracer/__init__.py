"""The tracer: turns a claim into an outcome, in three steps, and knows no database.

    Claim ── prepare ──> Context ── invoke ──> value or exception ── conclude ──> Outcome

Acknowledging and storing come after it, elsewhere; then `Aftermath` tells hooks and receivers.
"""

from pgqueue.tracer.aftermath import Aftermath, Listeners
from pgqueue.tracer.build import Concluded, Tracer, TransactionBlock, build_tracer
from pgqueue.tracer.context import (
    Context,
    Guard,
    Traced,
    Transactor,
    current_context,
    current_name,
    entered,
    enters,
    no_context,
    request_of,
)
from pgqueue.tracer.hooks import HOOKS, ExceptionInfo, Hooks
from pgqueue.tracer.prepare import Where

__all__ = [
    "HOOKS",
    "Aftermath",
    "Concluded",
    "Context",
    "ExceptionInfo",
    "Guard",
    "Hooks",
    "Listeners",
    "Traced",
    "Tracer",
    "TransactionBlock",
    "Transactor",
    "Where",
    "build_tracer",
    "current_context",
    "current_name",
    "entered",
    "enters",
    "no_context",
    "request_of",
]
