"""Canvases as plain trees: what they mean in plain Python, how they are made, and random ones of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from pgqueue import chain, chord, group

# A canvas as plain tuples: ("t", name), ("si", name), ("c", parts), ("g", parts), ("ch", header, body).
Tree = tuple[Any, ...]
#: What came of something: ("ok", value), ("bad", name of the task), ("chord", the same of who failed).
Came = tuple[str, Any]


# -- the meaning, in plain Python --------------------------------------------------------------------------------


def is_empty(tree: Tree) -> bool:
    match tree:
        case ("c" | "g", parts):
            return all(map(is_empty, parts))
    return False


def members(parts: Sequence[Tree]) -> list[Tree]:
    """Members in order, with groups among them taken apart and what is empty left out."""
    found: list[Tree] = []
    for part in parts:
        found += members(part[1]) if part[0] == "g" else [] if is_empty(part) else [part]
    return found


def links(tree: Tree, *, inside: bool = False) -> Iterator[Tree]:
    """The links of a tree one after the other: tasks, groups ("g") and headers ("h")."""
    match tree:
        case ("c", parts):
            for part in parts:
                if not is_empty(part):
                    yield from links(part, inside=True)
        case ("g", parts):
            found = members(parts)
            if inside and len(found) == 1:
                yield from links(found[0], inside=True)
            else:
                yield ("g", found)
        case ("ch", header, body):
            yield ("h", members(header))
            yield from links(body)
        case _:
            yield tree


def meaning(tree: Tree, failing: set[str]) -> Came | list[Came]:
    """What comes of a tree; for a group at its end that of each member."""
    line = list(links(tree))
    came = follow(line[:-1], (), failing, more=True)
    if came[0] != "ok":
        return [came] * len(line[-1][1]) if line[-1][0] == "g" else came
    if line[-1][0] == "g":
        return [follow(list(links(part)), came[1], failing) for part in line[-1][1]]
    return follow(line[-1:], came[1], failing)


def follow(line: Sequence[Tree], args: tuple[Any, ...], failing: set[str], *, more: bool = False) -> Came:
    """Go along links; `more`: something follows, which is given the arguments that are returned as the value."""
    for at, link in enumerate(line):
        last = at == len(line) - 1 and not more
        match link:
            case ("t" | "si", name):
                if name in failing:
                    return "bad", name
                args = ([name, *(args if link[0] == "t" else ())],)
            case ("h", []):
                args = ([],)
            case (_, parts):
                came = [follow(list(links(part)), args, failing) for part in parts]
                wrong = next((one for one in came if one[0] != "ok"), None)
                if wrong is not None:
                    return wrong if last else ("chord", wrong)
                args = ([value for _, value in came],)
    return "ok", args if more else args[0]


# -- made ----------------------------------------------------------------------------------------------------


def canvas(tree: Tree, node: Any, raw: bool = False) -> Any:
    """Make the canvas, of calls of `node`; `raw`: links of chains as they are, instead of what `|` makes of them."""
    match tree:
        case ("t", name):
            return node.s(name)
        case ("si", name):
            return node.si(name)
        case ("c", parts):
            made = [canvas(part, node, raw) for part in parts]
            return chain.of(made) if raw else chain(*made)
        case ("g", parts):
            return group(canvas(part, node, raw) for part in parts)
        case ("ch", header, body):
            return chord([canvas(part, node, raw) for part in header], canvas(body, node, raw))
    raise AssertionError(tree)


def trees(least: int) -> st.SearchStrategy[Tree]:
    """Trees with tasks without names; groups have at least so many members."""
    leaf: st.SearchStrategy[Tree] = st.sampled_from([("t",), ("t",), ("t",), ("si",)])

    def more(part: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        parts = st.lists(part, min_size=least, max_size=4)
        return st.one_of(
            st.tuples(st.just("c"), st.lists(part, min_size=min(1, least), max_size=4)),
            st.tuples(st.just("g"), parts),
            st.tuples(st.just("ch"), st.lists(part, max_size=3), part.filter(lambda body: not is_empty(body))),
        )

    return st.recursive(leaf, more, max_leaves=12)


def named(tree: Tree, names: Iterator[str]) -> Tree:
    """Give each task a name of its own."""
    match tree:
        case ("t" | "si",):
            return (tree[0], next(names))
        case (kind, parts):
            return (kind, [named(part, names) for part in parts])
        case (kind, header, body):
            return (kind, [named(part, names) for part in header], named(body, names))
    raise AssertionError(tree)
