"""Calls as values, and workflows of them: Celery's canvas as rows.

    signature, chain, group, chord ── lay_out ──> jobs and steps with ids ── one statement ──> the database

From then on SQL alone decides: the commit that ends a job counts it in the steps that wait for it.
"""

from pgqueue.canvas.calls import (
    KINDS,
    Callee,
    Signature,
    continuations,
    maybe_signature,
    signature,
    signatures,
)
from pgqueue.canvas.chains import chain
from pgqueue.canvas.groups import chord, group
from pgqueue.canvas.layout import Plan, lay_out
from pgqueue.canvas.maps import MAPS, chunks, xmap, xstarmap
from pgqueue.canvas.stamping import GroupStampingVisitor, StampingVisitor
from pgqueue.canvas.workflow import Canvas

__all__ = [
    "KINDS",
    "MAPS",
    "Callee",
    "Canvas",
    "GroupStampingVisitor",
    "Plan",
    "Signature",
    "StampingVisitor",
    "chain",
    "chord",
    "chunks",
    "continuations",
    "group",
    "lay_out",
    "maybe_signature",
    "signature",
    "signatures",
    "xmap",
    "xstarmap",
]
