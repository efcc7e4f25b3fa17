"""Drawings of workflows: in characters, Mermaid, dot and SVG; what is much alike is folded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from textwrap import dedent
from xml.etree import ElementTree

import pytest

from pgqueue.cli.graph import Node, error_line, graph, kind, layers
from pgqueue.cli.graph_svg import svg
from pgqueue.cli.graph_text import dot, mermaid, text
from pgqueue.statements import WorkflowNode

_SVG = "{http://www.w3.org/2000/svg}"
NASTY = """<script>alert("x")</script> & `]]> \\" \x1b[31m \ud800 # -->"""


def row(id_: str, *steps: str, task: str | None = "", state: str = "PENDING", **fields: object) -> WorkflowNode:
    """A node whose task is called as it is, unless another name is given."""
    known = WorkflowNode(
        id_, None, id_ if task == "" else task, state, list(steps), None, 0, 0, None, datetime(2030, 1, 1, tzinfo=UTC),
        None, None, None,
    )  # fmt: skip
    return known._replace(**fields)  # type: ignore[arg-type]


def chain(length: int) -> list[WorkflowNode]:
    names = [f"t{number}" for number in range(length)]
    return [row(name, *names[place + 1 : place + 2]) for place, name in enumerate(names)]


def chord(size: int) -> list[WorkflowNode]:
    members = [row(f"m{n}", "body", task="member", state="SUCCESS" if n < 20 else "PENDING") for n in range(size)]
    return [*members, row("body", waits=10, members=size)]


def diamond() -> list[WorkflowNode]:
    return [
        row("fetch", "resize", "tag", state="SUCCESS"),
        row("resize", "publish", state="STARTED"),
        row("tag", "publish", state="FAILURE", error='{"type": "ValueError", "message": "bad"}'),
        row("publish", waits=1, members=2),
    ]


def drawn(rows: Sequence[WorkflowNode]) -> str:
    return text(graph(rows))


def test_a_chain_of_20_is_20_lines() -> None:
    lines = drawn(chain(20)).splitlines()
    assert len(lines) == 20
    assert [line.split()[:2] for line in lines] == [["○", f"t{number}"] for number in range(20)]


def test_a_diamond() -> None:
    assert drawn(diamond()) == dedent("""\
        ✓    fetch    SUCCESS
        ├─╮
        ▶ │  resize   STARTED
        │ ✗  tag      FAILURE
        ├─╯
        ○    publish  waits for 1 of 2""")


def test_a_chord_of_30_is_folded() -> None:
    assert drawn(chord(30)) == dedent("""\
        ○      member   PENDING
        │ ○    member   PENDING
        │ │ ○  28 more  8 waiting, 20 done
        ├─┴─╯
        ○      body     waits for 10 of 30""")


def test_five_are_drawn_one_by_one() -> None:
    assert len(graph(chord(5))) == 6
    assert len(graph(chord(6))) == 4
    assert len(graph(chord(30), fold=False)) == 31


def test_of_many_those_that_failed_are_drawn() -> None:
    rows = chord(30)
    rows[17] = rows[17]._replace(state="FAILURE")
    rows[25] = rows[25]._replace(state="STARTED")
    assert [node.kind for node in graph(rows)] == ["failed", "running", "waiting", "waiting"]


def test_chains_in_a_header_are_folded_as_a_whole() -> None:
    rows = [row("first", *(f"a{n}" for n in range(8)))]
    for n in range(8):
        rows += [row(f"a{n}", f"b{n}", task="a"), row(f"b{n}", "body", task="b")]
    rows.append(row("body", waits=8, members=8))
    assert drawn(rows) == dedent("""\
        ○      first                PENDING
        ├─┬─╮
        ○ │ │  a                    PENDING
        ○ │ │  b                    PENDING
        │ ○ │  a                    PENDING
        │ ○ │  b                    PENDING
        │ │ ○  6 more, 2 jobs each  12 waiting
        ├─┴─╯
        ○      body                 waits for 8 of 8""")


def test_lines_that_pass_others() -> None:
    rows = [row("a", "b", "c", "d"), row("b", "e"), row("c", "f"), row("d", "e"), row("e", "f"), row("f")]
    assert drawn(rows) == dedent("""\
        ○      a  PENDING
        ├─┬─╮
        ○ │ │  b  PENDING
        │ ○ │  c  PENDING
        │ │ ○  d  PENDING
        ├─│─╯
        ○ │    e  PENDING
        ├─╯
        ○      f  PENDING""")


def test_a_gather_is_a_small_node_and_a_task_that_enqueues_another_leads_to_it() -> None:
    rows = [row("a", "g"), row("b", "g"), row("g", task=None, waits=2, members=2), row("called", parent_id="a")]
    nodes = {node.id: node for node in graph(rows)}
    assert nodes["g"].gather
    assert nodes["g"].label == "gather 2"
    assert nodes["called"].after == ["a"]
    assert "◦" in drawn(rows)
    assert len(list(ElementTree.fromstring(svg(list(nodes.values()), "")).iter(f"{_SVG}circle"))) == 1


def test_what_waits_for_nothing_that_is_left_is_drawn() -> None:
    """Results of members may have expired, or were not kept."""
    assert drawn([row("b", "gone", parent_id="gone too")]) == "○  b  PENDING"
    assert drawn([]) == ""


def test_a_parent_that_comes_later_makes_no_circle() -> None:
    rows = [row("a", "b", parent_id="b"), row("b")]
    assert [node.id for node in graph(rows)] == ["a", "b"]


def test_text_for_a_terminal_that_knows_only_ascii() -> None:
    assert text(graph(diamond()), ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("state", "error", "shown"),
    [
        ("PENDING", None, "waiting"), ("RETRY", {"type": "OSError"}, "waiting"), ("STARTED", None, "running"),
        ("SUCCESS", None, "done"), ("IGNORED", None, "done"), ("FAILURE", {"type": "OSError"}, "failed"),
        ("REVOKED", None, "failed"), ("FAILURE", {"type": "OSError", "by": "x"}, "stopped"),
    ],
)  # fmt: skip
def test_kinds_of_states(state: str, error: dict[str, object] | None, shown: str) -> None:
    assert kind(state, error) == shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, ""),
        ('{"type": "ValueError", "message": "bad\\nvery"}', "ValueError: bad"),
        ('{"type": "ValueError", "message": "", "by": "x"}', "ValueError (by x)"),
        ("{}", "error"),
    ],
)
def test_an_error_is_one_line(error: str | None, said: str) -> None:
    assert error_line(error) == said


def test_layers() -> None:
    assert layers(graph([*diamond(), row("alone")])) == {"fetch": 0, "resize": 1, "tag": 1, "publish": 2, "alone": 0}


SHAPES: dict[str, Callable[[], Iterable[WorkflowNode]]] = {
    "chain": lambda: chain(20),
    "chord": lambda: chord(30),
    "diamond": diamond,
    "long lines": lambda: [row("a", "b", "d"), row("b", "c"), row("c", "d"), row("d")],
    "nasty": lambda: [row("a", "b", task=NASTY), row("b", task=NASTY, state=NASTY, error='{"by": "a"}')],
    "empty": list,
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> list[Node]:
    return graph(list(SHAPES[request.param]()))


def edges(nodes: Sequence[Node]) -> set[tuple[int, int]]:
    number = {node.id: place for place, node in enumerate(nodes, 1)}
    return {(number[node.id], number[step]) for node in nodes for step in node.before}


def test_svg_is_well_formed_and_nothing_overlaps(shape: list[Node]) -> None:
    root = ElementTree.fromstring(svg(shape, NASTY))
    assert root.tag == f"{_SVG}svg"
    assert "prefers-color-scheme:dark" in "".join(root.itertext())
    assert len([path for path in root.iter(f"{_SVG}path") if path.get("class") == "line"]) == len(edges(shape))
    boxes = []
    for group in root.iter(f"{_SVG}g"):
        box = group.findall(f"{_SVG}rect")[-1]
        boxes.append([float(box.get(name, "")) for name in ("x", "y", "width", "height")])
    assert len(boxes) == len(shape)
    for place, (x, y, wide, high) in enumerate(boxes):
        assert 0 <= x < x + wide <= float(root.get("width", ""))
        assert 0 <= y < y + high <= float(root.get("height", ""))
        for left, top, w, h in boxes[:place]:
            assert left + w < x or x + wide < left or top + h < y or y + high < top
    assert {child.tag.removeprefix(_SVG) for child in root.iter()} <= {
        "svg", "title", "style", "defs", "marker", "path", "g", "rect", "circle", "text",
    }  # fmt: skip


def test_mermaid_names_every_node_and_edge(shape: list[Node]) -> None:
    lines = mermaid(shape).splitlines()
    assert lines[0] == "flowchart TD"
    nodes = [line for line in lines if re.fullmatch(r'    n\d+\["[\w .:,()/#;<>-]*<br/>[\w .:,()/#;-]*"\]:::\w+', line)]
    assert len(nodes) == len(shape)
    found = {(int(a), int(b)) for a, b in re.findall(r"^    n(\d+) --> n(\d+)$", "\n".join(lines), re.MULTILINE)}
    assert found == edges(shape)
    assert "<script" not in "\n".join(lines)
    assert len(lines) == 1 + len(shape) + len(found) + 5


def test_dot_names_every_node_and_edge(shape: list[Node]) -> None:
    lines = dot(shape).splitlines()
    assert (lines[0], lines[-1]) == ("digraph workflow {", "}")
    nodes = [
        line
        for line in lines
        if re.fullmatch(r'    n\d+ \[label="(?:[^"\\]|\\.)*", fillcolor="#\w+", color="#\w+"\];', line)
    ]
    assert len(nodes) == len(shape)
    assert {(int(a), int(b)) for a, b in re.findall(r"n(\d+) -> n(\d+);", "\n".join(lines))} == edges(shape)
