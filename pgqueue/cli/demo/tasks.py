"""The work of `pgqueue demo`: measure the source files of Python's standard library, one job a file."""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import PgQueue, Task

# What the demo relies on is said here, where PGQUEUE_* variables do not change it.
app = PgQueue("demo", default_queue="demo", result_expires=86_400, max_crashes=3)

#: An ordinary table of an ordinary program. No unique constraint: a row written twice must show.
CREATE_TABLE = """
create schema demo;
create table demo.module (
    path text not null, lines integer not null, comments integer not null, classes integer not null,
    functions integer not null, imports integer not null, branches integer not null,
    longest text, longest_lines integer not null,
    job uuid not null, written_at timestamptz not null default clock_timestamp()
)
"""

_INSERT = """
insert into demo.module (path, lines, comments, classes, functions, imports, branches, longest, longest_lines, job)
values (%(path)s, %(lines)s, %(comments)s, %(classes)s, %(functions)s, %(imports)s, %(branches)s, %(longest)s,
        %(longest_lines)s, %(job)s)
"""

_NOT_OURS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.comprehension)


class FailsOnPurpose(OSError):
    """What the files that were chosen for it raise in their first attempt."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What is counted in a source file; `longest` is its longest function."""

    lines: int
    comments: int
    classes: int
    functions: int
    imports: int
    branches: int
    longest: str | None
    longest_lines: int


def source_files() -> list[str]:
    """Return the source files of the running interpreter's standard library, without its tests, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in root.rglob("*.py") if _NOT_OURS.isdisjoint(path.relative_to(root).parts))
    return sorted(str(path) for path in found if path.is_file())


def measure(source: bytes) -> Measures:
    """Parse a source file and count what is in it.

    >>> measure(b"import os  # why?").imports
    1
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes, which are not ours to mend
        nodes = list(ast.walk(ast.parse(source)))
    spans = [(_span(node), node.name) for node in nodes if isinstance(node, _FUNCTIONS)]
    longest_lines, longest = max(spans, default=(0, None), key=lambda span: span[0])
    return Measures(
        lines=len(source.splitlines()),
        comments=sum(token.type == tokenize.COMMENT for token in _tokens(source)),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        functions=len(spans),
        imports=sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
        branches=sum(isinstance(node, _BRANCHES) for node in nodes),
        longest=longest,
        longest_lines=longest_lines,
    )


def _span(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _tokens(source: bytes) -> Iterator[tokenize.TokenInfo]:
    return tokenize.tokenize(io.BytesIO(source).readline)


@app.task(name="demo.index", bind=True, transactional=True, autoretry_for=(OSError,), retry_backoff=True)
def index(self: Task[..., Any, Any], connection: psycopg.Connection[Any], path: str, fails: bool = False) -> int:
    """Write the row of a file; the row and the acknowledgement of the job commit together, or neither does.

    - `fails`: raise in the first attempt, when the row is written already: a rollback has to take it back.
    """
    measures = measure(Path(path).read_bytes())
    connection.execute(_INSERT, {**asdict(measures), "path": path, "job": self.request.id})
    if fails and self.request.retries == 0:
        raise FailsOnPurpose(f"{path} was chosen to fail once")
    return measures.lines
