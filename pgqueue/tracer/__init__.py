"""The tracer: turns a claim into an outcome, in three steps, and knows no database.

    Claim ── prepare ──> Call ── invoke ──> value or exception ── conclude ──> Outcome

Acknowledging, storing and telling come after it, elsewhere.
"""

from pgqueue.tracer.build import Tracer, TransactionBlock, build_tracer
from pgqueue.tracer.conclude import report
from pgqueue.tracer.context import Context, Traced, Transactor, current_context, no_context

__all__ = [
    "Context",
    "Traced",
    "Tracer",
    "TransactionBlock",
    "Transactor",
    "build_tracer",
    "current_context",
    "no_context",
    "report",
]
