"""A workflow as SVG: layers from above to below, an image that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from pgqueue.cli.graph import Node, layers
from pgqueue.cli.graph_text import COLORS, SYMBOLS

# In pixels. A character of 12 px in a font of one width is 7.2 wide.
_CHAR, _HIGH, _GAP_X, _GAP_Y, _PAD, _GATHER = 7.25, 38, 22, 34, 16, 9
_LONGEST = 40  # characters of a label

#: Frames and fills on a dark ground.
_DARK = {
    "failed": ("#4c1618", "#ff7b72"),
    "running": ("#0c2d6b", "#58a6ff"),
    "stopped": ("#3d1d00", "#ffa657"),
    "waiting": ("#21262d", "#8b949e"),
    "done": ("#0f3d1e", "#3fb950"),
}


@dataclass(slots=True)
class _Spot:
    """Where something stands: a node, or (None) the place where a long line passes a layer."""

    node: Node | None
    wide: float
    x: float = 0.0  # its middle
    y: float = 0.0


def svg(nodes: Sequence[Node], title: str) -> str:
    """Return the drawing; its colours follow those of the page or the viewer, light or dark."""
    rows, lines = _laid(nodes)
    _place(rows, lines)
    width = max((spot.x + spot.wide / 2 for row in rows for spot in row), default=0) + _PAD
    height = 2 * _PAD + len(rows) * (_HIGH + _GAP_Y) - _GAP_Y if rows else 2 * _PAD
    shapes = [_path(line) for line in lines]
    shapes += [_box(spot, spot.node) for row in rows for spot in row if spot.node is not None]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{_text(title)}</title>",
            f"<style>{_style()}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _laid(nodes: Sequence[Node]) -> tuple[list[list[_Spot]], list[list[_Spot]]]:
    """Return the layers, and the lines: from a node, through the layers between, to another."""
    depth = layers(nodes)
    rows: list[list[_Spot]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    spots: dict[str, _Spot] = {}
    lines: list[list[_Spot]] = []
    for node in sorted(nodes, key=lambda node: depth[node.id]):
        spot = spots[node.id] = _Spot(node, _wide(node))
        rows[depth[node.id]].append(spot)
        for before in node.after:
            line = [spots[before]]
            for between in range(depth[before] + 1, depth[node.id]):
                line.append(_Spot(None, 4))
                rows[between].append(line[-1])
            lines.append([*line, spot])
    return rows, lines


def _place(rows: Sequence[list[_Spot]], lines: Sequence[Sequence[_Spot]]) -> None:
    """Give every spot its place: near the middle of those above it, so that few lines cross, and centred in its row."""
    above: dict[int, list[_Spot]] = {}
    for line in lines:
        for upper, lower in pairwise(line):
            above.setdefault(id(lower), []).append(upper)
    widest = max((_width(row) for row in rows), default=0)
    for number, row in enumerate(rows):
        row.sort(key=lambda spot: _middle(above.get(id(spot), ())))
        x = _PAD + (widest - _width(row)) / 2
        for spot in row:
            spot.x = x + spot.wide / 2
            spot.y = _PAD + number * (_HIGH + _GAP_Y) + _HIGH / 2
            x += spot.wide + _GAP_X


def _middle(spots: Sequence[_Spot]) -> float:
    return sum(spot.x for spot in spots) / len(spots) if spots else 0.0


def _width(row: Sequence[_Spot]) -> float:
    return sum(spot.wide for spot in row) + _GAP_X * (len(row) - 1)


def _wide(node: Node) -> float:
    if node.gather:
        return 2.0 * _GATHER
    return max(len(_short(node.label)) + 2, len(_short(node.note))) * _CHAR + 20


def _path(line: Sequence[_Spot]) -> str:
    """Return one line: from the lower edge of the first, down to the upper edge of the last."""
    first, last = line[0], line[-1]
    x, y = first.x, first.y + _half(first)
    drawn = f"M{x:.1f} {y:.1f}"
    for spot in line[1:]:
        top = spot.y - (_half(spot) if spot is last else _HIGH / 2)
        bend = (y + top) / 2
        drawn += f"C{x:.1f} {bend:.1f} {spot.x:.1f} {bend:.1f} {spot.x:.1f} {top:.1f}"
        x, y = spot.x, top
        if spot is not last:
            y = spot.y + _HIGH / 2
            drawn += f"V{y:.1f}"
    return f'<path class="line" d="{drawn}" marker-end="url(#tip)"/>'


def _half(spot: _Spot) -> float:
    return _GATHER if spot.node is not None and spot.node.gather else _HIGH / 2


def _box(spot: _Spot, node: Node) -> str:
    said = f"<title>{_text(f'{node.label}: {node.note}')}</title>"
    if node.gather:
        return f'<g class="{node.kind}">{said}<circle cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="{_GATHER}"/></g>'
    left, top = spot.x - spot.wide / 2, spot.y - _HIGH / 2
    behind = (
        f'<rect x="{left + 4:.1f}" y="{top + 4:.1f}" width="{spot.wide:.1f}" height="{_HIGH}" rx="6"/>'
        if node.stands_for > 1
        else ""
    )
    return (
        f'<g class="{node.kind}">{said}{behind}'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{spot.wide:.1f}" height="{_HIGH}" rx="6"/>'
        f'<text x="{spot.x:.1f}" y="{spot.y - 3:.1f}">{SYMBOLS[node.kind]} {_text(_short(node.label))}</text>'
        f'<text class="note" x="{spot.x:.1f}" y="{spot.y + 12:.1f}">{_text(_short(node.note))}</text></g>'
    )


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def _text(value: str) -> str:
    # XML has no control characters, nor halves of surrogate pairs.
    return escape("".join(char if char.isprintable() else " " for char in value))


def _style() -> str:
    def colors(table: Mapping[str, tuple[str, str]], letters: str, line: str) -> str:
        kinds = "".join(
            f".{kind} rect,.{kind} circle{{fill:{fill};stroke:{frame}}}" for kind, (fill, frame) in table.items()
        )
        return f"text{{fill:{letters}}}.line{{stroke:{line}}}.tip{{fill:{line}}}{kinds}"

    return (
        "text{font:12px ui-monospace,monospace;text-anchor:middle}.note{font-size:10px;opacity:.8}"
        ".line{fill:none;stroke-width:1.2}"
        + colors(COLORS, "#1f2328", "#6e7781")
        + f"@media (prefers-color-scheme:dark){{{colors(_DARK, '#e6edf3', '#8b949e')}}}"
    )
