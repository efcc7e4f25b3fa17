"""A workflow as a graph to be drawn: who waits for whom, with the many that are alike folded into one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pgqueue.statements import WorkflowNode

#: What may stand beside one another of one kind; of more, the first few and one that stands for the rest.
_FEW, _SHOWN = 5, 2
#: Kinds of states, the most interesting first; a node that stands for several has the first that one of them has.
KINDS = ("failed", "running", "stopped", "waiting", "done")
_KIND = {"SUCCESS": "done", "IGNORED": "done", "STARTED": "running", "PENDING": "waiting", "RETRY": "waiting"}


@dataclass(slots=True)
class Node:
    """One job or step, or several that are alike (`stands_for`); edges are ids of other nodes.

    - `kind`: waiting, running, done, failed, or stopped: it has ended because another one failed.
    - `gather`: it only gathers values.
    - `after`, `before`: those for which it waits, and those that wait for it.
    """

    id: str
    label: str
    kind: str
    note: str = ""
    gather: bool = False
    stands_for: int = 1
    after: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)


def kind(state: str, error: dict[str, Any] | None) -> str:
    """Return how a state is shown; what the task calls its state itself is a running one."""
    return _KIND.get(state) or ("stopped" if error and error.get("by") else "failed")


def error_line(text: str | None) -> str:
    """Return the first line of an error, and whose it is if another's."""
    error = json.loads(text) if text else None
    if not isinstance(error, dict):
        return ""
    message = str(error.get("message") or "").strip().partition("\n")[0]
    said = f"{error.get('type') or 'error'}: {message}" if message else str(error.get("type") or "error")
    said = said if len(said) <= 100 else f"{said[:99]}…"
    return f"{said} (by {error['by']})" if error.get("by") else said


def in_order(rows: Sequence[WorkflowNode]) -> list[WorkflowNode]:
    """Return the rows of a workflow, each after those for which it waits; otherwise in the order of their ids."""
    known = {row.id: row for row in sorted(rows, key=lambda row: row.id)}  # ids tell the time
    return [known[node.id] for node in graph(list(known.values()), fold=False)]


def graph(rows: Sequence[WorkflowNode], *, fold: bool = True) -> list[Node]:
    """Return the nodes of a workflow, each after those for which it waits; in the order of the rows otherwise."""
    nodes = {row.id: _node(row) for row in rows}
    for row in rows:
        for step in dict.fromkeys(row.steps):
            if step in nodes:
                nodes[row.id].before.append(step)
                nodes[step].after.append(row.id)
    # What a task has enqueued, or a link: it waits for nobody, but it has come of somebody.
    for row in rows:
        alone = not nodes[row.id].after and not row.waits
        if alone and row.parent_id in nodes and not _leads_to(nodes, row.id, row.parent_id):
            nodes[row.parent_id].before.append(row.id)
            nodes[row.id].after.append(row.parent_id)
    return _sorted(_folded(nodes) if fold else nodes)


def layers(nodes: Sequence[Node]) -> dict[str, int]:
    """Return in which layer each node stands: one below the lowest for which it waits."""
    found: dict[str, int] = {}
    for node in nodes:
        found[node.id] = 1 + max((found[id_] for id_ in node.after), default=-1)
    return found


def _node(row: WorkflowNode) -> Node:
    error = json.loads(row.error) if row.error else None
    label = row.name or row.task or (f"gather {row.members}" if row.members else "gather")
    note = row.state
    if row.waits:
        note = f"waits for {row.waits} of {row.members}"
    return Node(row.id, label, kind(row.state, error), note, gather=row.task is None)


def _leads_to(nodes: dict[str, Node], start: str, end: str | None) -> bool:
    """Return whether somebody waits, at any distance, for `start` and is `end`."""
    line, seen = [start], {start}
    while line:
        id_ = line.pop()
        if id_ == end:
            return True
        fresh = [step for step in nodes[id_].before if step not in seen]
        seen.update(fresh)
        line += fresh
    return False


def _sorted(nodes: dict[str, Node]) -> list[Node]:
    """Return nodes so that each comes after those for which it waits, and soon after them."""
    order = {id_: place for place, id_ in enumerate(nodes)}
    left = {id_: len(node.after) for id_, node in nodes.items()}
    ready = [id_ for id_ in reversed(nodes) if not left[id_]]
    found: list[Node] = []
    while ready:
        node = nodes[ready.pop()]
        found.append(node)
        free = []
        for step in node.before:
            left[step] -= 1
            if not left[step]:
                free.append(step)
        ready += sorted(free, key=order.__getitem__, reverse=True)
    for node in found:
        node.before.sort(key=order.__getitem__)
    return found


def _lanes(nodes: dict[str, Node]) -> list[list[Node]]:
    """Return the lines of nodes of which each waits only for the one before, and is awaited only by the one after."""

    def goes_on(node: Node) -> Node | None:
        if len(node.before) != 1:
            return None
        following = nodes[node.before[0]]
        return following if len(following.after) == 1 else None

    continued = {follower.id for node in nodes.values() if (follower := goes_on(node)) is not None}
    lanes = []
    for node in nodes.values():
        if node.id not in continued:
            lane, following = [node], goes_on(node)
            while following is not None:
                lane.append(following)
                following = goes_on(following)
            lanes.append(lane)
    return lanes


def _folded(nodes: dict[str, Node]) -> dict[str, Node]:
    """Return the nodes with lanes that differ only in how far they are, if they are many, folded into one node."""
    alike: dict[tuple[object, ...], list[list[Node]]] = {}
    for lane in _lanes(nodes):
        labels = tuple(node.label for node in lane)
        alike.setdefault((labels, tuple(lane[0].after), tuple(lane[-1].before)), []).append(lane)
    gone: dict[str, str] = {}
    behind: dict[str, Node] = {}  # behind which node of the last lane stands what is folded
    for lanes in alike.values():
        # Without an edge they are no siblings: only some jobs that have the same root.
        if len(lanes) <= _FEW or not (lanes[0][0].after or lanes[0][-1].before):
            continue
        ranked = sorted(lanes, key=lambda lane: min(KINDS.index(node.kind) for node in lane))
        node = behind[lanes[-1][0].id] = _rest(ranked[_SHOWN:])
        gone |= {member.id: node.id for lane in ranked[_SHOWN:] for member in lane}
    found: dict[str, Node] = {}
    for id_, node in nodes.items():
        for shown in ([] if id_ in gone else [node]) + ([behind[id_]] if id_ in behind else []):
            found[shown.id] = replace(
                shown,
                after=list(dict.fromkeys(gone.get(other, other) for other in shown.after)),
                before=list(dict.fromkeys(gone.get(other, other) for other in shown.before)),
            )
    return found


def _rest(lanes: Sequence[Sequence[Node]]) -> Node:
    """Return the node that stands for lanes; it has the id of the first of them."""
    members = [node for lane in lanes for node in lane]
    counts = Counter(node.kind for node in members)
    length = len(lanes[0])
    return Node(
        lanes[0][0].id,
        f"{len(lanes)} more" + (f", {length} jobs each" if length > 1 else ""),
        next(kind for kind in KINDS if counts[kind]),
        ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]),
        stands_for=len(members),
        after=list(lanes[0][0].after),
        before=list(lanes[0][-1].before),
    )
