"""The tracer: turns a claim into an outcome, in three steps, and knows no database.

    Claim ── prepare ──> Context ── invoke ──> value or exception ── conclude ──> Outcome

Acknowledging, storing and telling come after it, elsewhere.
"""

from pgqueue.tracer.build import Tracer, TransactionBlock, build_tracer
from pgqueue.tracer.conclude import report
from pgqueue.tracer.context import Context, Guard, Traced, Transactor, current_context, no_context, request_of

__all__ = [
    "Context",
    "Guard",
    "Traced",
    "Tracer",
    "TransactionBlock",
    "Transactor",
    "build_tracer",
    "current_context",
    "no_context",
    "report",
    "request_of",
]
