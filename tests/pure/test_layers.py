"""A module of pgqueue imports only from rows below its own. This test has no list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[2] / "pgqueue"

# The table of DESIGN section 7, lowest row first; a row whose modules need one another is split in two.
_ROWS = (
    {"types"},
    {"errors"},
    {"sql", "ids", "serialization", "retry", "current"},
    {"arguments", "options", "statements", "reports", "stamps"},
    {"settings", "signals", "routes"},
    {"conf"},
    {"tracer", "database", "embedded"},
    {"waiting"},
    {"result", "schedule"},
    {"result_set", "eager_result", "publishing"},
    {"group_result", "eager_plan"},
    {"eager"},
    {"canvas"},
    {"calling"},
    {"enqueueing"},
    {"task", "workflow"},
    {"decorators", "shared"},
    {"app"},
    {"worker"},
    {"bench"},
    {"cli", "web", "contrib", "testing"},
    {"__main__"},
)
_ROW_OF = {name: row for row, names in enumerate(_ROWS) for name in names}
_FACADE = "pgqueue"  # pgqueue/__init__.py: may import everything, and only cli may import from it


def breaches(path: Path, source: str) -> Iterator[str]:
    """What is wrong with the imports of one file; `path` counts from the folder that holds `pgqueue`."""
    tree = ast.parse(source)
    here = _part(".".join(path.with_suffix("").parts))
    if here not in _ROW_OF and here != _FACADE:
        yield f"{path}: `{here}` has no row in the table; give it one here and in DESIGN section 7"
        return
    inside = set(_inside_functions(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        where = f"{path}:{node.lineno}"
        if node in inside and here != "cli":
            yield f"{where}: an import inside a function"
        elif node in inside and not _explained(source, node):
            yield f"{where}: an import inside a function without a comment that says why"
        yield from (f"{where}: {problem}" for name in _imported(path, node) if (problem := _wrong(here, name)))


def _part(module: str) -> str:
    """The name in the table that a dotted name belongs to."""
    names = [name for name in module.split(".") if name != "__init__"]
    return names[1] if len(names) > 1 else _FACADE


def _inside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom))


def _explained(source: str, node: ast.stmt) -> bool:
    """Whether a comment stands on the line of the import, or above it or above the imports that it follows."""
    lines = [line.strip() for line in source.splitlines()]
    above = node.lineno - 2
    while above >= 0 and lines[above].startswith(("import ", "from ")):
        above -= 1
    return "#" in lines[(node.end_lineno or node.lineno) - 1] or lines[max(above, 0)].startswith("#")


def _imported(path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The parts of pgqueue that a statement names."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    else:
        # `from ..x import y` counts its dots from the folder of the file.
        folder = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
        module = ".".join((*folder, *filter(None, [node.module])))
        # `from pgqueue import app` may mean a module or a name of the façade.
        modules = [module]
        if module == _FACADE:
            modules = [f"{module}.{alias.name}" if _is_part(alias.name) else module for alias in node.names]
    yield from (_part(module) for module in modules if module.split(".")[0] == _FACADE)


def _is_part(name: str) -> bool:
    return name in _ROW_OF or (_PACKAGE / name).is_dir() or (_PACKAGE / f"{name}.py").exists()


def _wrong(here: str, there: str) -> str | None:
    if here in (there, _FACADE):
        return None
    if there == _FACADE:
        return None if here == "cli" else "only cli may import from the façade `pgqueue`"
    if there not in _ROW_OF:
        return f"`{there}` has no row in the table"
    if _ROW_OF[there] < _ROW_OF[here]:
        return None
    direction = "sideways" if _ROW_OF[there] == _ROW_OF[here] else "upward"
    return f"an import {direction}, from `{there}` (row {_ROW_OF[there]}) into `{here}` (row {_ROW_OF[here]})"


def test_modules_import_only_from_rows_below() -> None:
    files = sorted(_PACKAGE.rglob("*.py"))
    assert files
    for file in files:
        assert next(breaches(file.relative_to(_PACKAGE.parent), file.read_text()), None) is None


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("pgqueue/task.py", "from pgqueue.app import App", "upward"),
        ("pgqueue/task.py", "import pgqueue.worker.loop", "upward"),
        ("pgqueue/tracer/build.py", "from pgqueue.database import run", "sideways"),
        ("pgqueue/tracer/build.py", "from ..database import run", "sideways"),
        ("pgqueue/tracer/build.py", "from .. import database", "sideways"),
        ("pgqueue/types.py", "from pgqueue import errors", "upward"),
        ("pgqueue/types.py", "if TYPE_CHECKING:\n    from pgqueue.errors import LeaseLost", "upward"),
        ("pgqueue/app.py", "def f():\n    import json", "inside a function"),
        ("pgqueue/app.py", "def f():\n    import json  # slow", "inside a function"),
        ("pgqueue/cli/demo.py", "def f():\n    import json", "without a comment"),
        ("pgqueue/worker/loop.py", "from pgqueue import task_prerun, PgQueue", "façade"),
        ("pgqueue/worker/loop.py", "import pgqueue", "façade"),
        ("pgqueue/app.py", "from pgqueue.newcomer import x", "no row"),
        ("pgqueue/newcomer.py", "", "no row"),
        ("pgqueue/task.py", "from pgqueue.types import Job", None),
        ("pgqueue/tracer/build.py", "from .parts import x\nfrom pgqueue.tracer.parts import y", None),
        ("pgqueue/tracer/build.py", "from ..types import x", None),
        ("pgqueue/tracer/__init__.py", "from .build import x", None),
        ("pgqueue/cli/demo.py", "from pgqueue import App\nfrom pgqueue.worker import run", None),
        ("pgqueue/cli/demo.py", "def f():\n    # keeps `--help` fast\n    import json", None),
        ("pgqueue/__init__.py", "from pgqueue.cli import main", None),
    ],
)
def test_the_reader_itself(path: str, source: str, problem: str | None) -> None:
    found = " ".join(breaches(Path(path), source))
    assert problem in found if problem else not found
