"""A workflow drawn with characters, and in the languages of Mermaid and Graphviz."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pgqueue.cli.graph import Node

SYMBOLS = {"failed": "✗", "running": "▶", "stopped": "⊘", "waiting": "○", "done": "✓"}
_GATHER = "◦"
_ASCII = str.maketrans("✗▶⊘○✓◦│├─┴╯┬╮…", "x>-o*.|+-+/+\\.")

#: Fill and frame of each kind, for a light ground; both go with dark letters.
COLORS = {
    "failed": ("#ffd7d5", "#cf222e"),
    "running": ("#ddf4ff", "#0969da"),
    "stopped": ("#fff1e5", "#bc4c00"),
    "waiting": ("#f6f8fa", "#6e7781"),
    "done": ("#dafbe1", "#1a7f37"),
}


def text(nodes: Sequence[Node], *, ascii_only: bool = False) -> str:
    """Return a line for each node, with lines to those that wait for it; `nodes` in the order of `graph`.

    >>> print(text([Node("1", "a", "done", "SUCCESS", before=["2"]), Node("2", "b", "waiting", "PENDING")]))
    ✓  a  SUCCESS
    ○  b  PENDING
    """
    rows: list[tuple[str, Node | None]] = []
    columns: list[str | None] = []  # of each, the node to which its line leads
    for node in nodes:
        mine = [place for place, target in enumerate(columns) if target == node.id]
        if len(mine) > 1:
            rows.append((_joint(columns, mine, "┴", "╯"), None))
        for place in mine[1:]:
            columns[place] = None
        at = mine[0] if mine else _free(columns)
        columns[at] = node.id
        symbol = _GATHER if node.gather else SYMBOLS[node.kind]
        rows.append((_line(columns, at, symbol), node))
        columns[at] = node.before[0] if node.before else None
        starts = [at]
        for target in node.before[1:]:
            place = _free(columns, at + 1)
            columns[place] = target
            starts.append(place)
        if len(starts) > 1:
            rows.append((_joint(columns, starts, "┬", "╮"), None))
        while columns and columns[-1] is None:
            columns.pop()
    width = max((len(drawn) for drawn, node in rows if node is not None), default=0)
    labels = max((len(node.label) for node in nodes), default=0)
    lines = [
        drawn if node is None else f"{drawn:<{width}}  {_one_line(node.label):<{labels}}  {_one_line(node.note)}"
        for drawn, node in rows
    ]
    drawing = "\n".join(line.rstrip() for line in lines)
    return drawing.translate(_ASCII) if ascii_only else drawing


def mermaid(nodes: Sequence[Node]) -> str:
    """Return the graph as Mermaid draws it, on a page of GitHub for example."""
    names = {node.id: f"n{number}" for number, node in enumerate(nodes, 1)}
    lines = ["flowchart TD"]
    for node in nodes:
        said = f"{_entities(node.label)}<br/>{_entities(node.note)}"
        shape = f'(("{_entities(node.label)}"))' if node.gather else f'["{said}"]'
        lines.append(f"    {names[node.id]}{shape}:::{node.kind}")
    lines += [f"    {names[node.id]} --> {names[step]}" for node in nodes for step in node.before]
    lines += [f"    classDef {kind} fill:{fill},stroke:{frame},color:#1f2328" for kind, (fill, frame) in COLORS.items()]
    return "\n".join(lines)


def dot(nodes: Sequence[Node]) -> str:
    """Return the graph in Graphviz' language: `dot -Tpng` draws it."""
    names = {node.id: f"n{number}" for number, node in enumerate(nodes, 1)}
    lines = [
        "digraph workflow {",
        '    node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=11];',
    ]
    for node in nodes:
        fill, frame = COLORS[node.kind]
        small = ", shape=circle, fontsize=9" if node.gather else ""
        said = _quoted(node.label) if node.gather else f"{_quoted(node.label)}\\n{_quoted(node.note)}"
        lines.append(f'    {names[node.id]} [label="{said}", fillcolor="{fill}", color="{frame}"{small}];')
    lines += [f"    {names[node.id]} -> {names[step]};" for node in nodes for step in node.before]
    return "\n".join([*lines, "}"])


def _free(columns: list[str | None], start: int = 0) -> int:
    for place in range(start, len(columns)):
        if columns[place] is None:
            return place
    while len(columns) <= start:
        columns.append(None)
    if columns[-1] is not None:
        columns.append(None)
    return len(columns) - 1


def _line(columns: Sequence[str | None], at: int, symbol: str) -> str:
    marks = [" " if target is None else "│" for target in columns]
    marks[at] = symbol
    return " ".join(marks).rstrip()


def _joint(columns: Sequence[str | None], places: Sequence[int], middle: str, end: str) -> str:
    """Return a line that goes from the first of these columns to the others; it passes behind those between."""
    marks = [" " if target is None else "│" for target in columns]
    first, last = places[0], places[-1]
    drawn = ""
    for place, mark in enumerate(marks):
        inside = first <= place < last
        if place == first:
            mark = "├"
        elif place == last:
            mark = end
        elif place in places:
            mark = middle
        elif inside and mark == " ":
            mark = "─"
        drawn += mark + ("─" if inside else " ")
    return drawn.rstrip()


def _one_line(value: str) -> str:
    # Nothing that a terminal obeys.
    return "".join(char if char.isprintable() else " " for char in value)


def _entities(value: str) -> str:
    """Return a text with everything but plain characters as Mermaid wants it: `#34;` for a quotation mark."""
    return re.sub(r"[^\w .:,()/-]", lambda found: f"#{ord(found[0])};", _one_line(value))


def _quoted(value: str) -> str:
    return _one_line(value).replace("\\", "\\\\").replace('"', '\\"')
