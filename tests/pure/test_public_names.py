"""The names that users may import, and that each says what it is for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqueue

_PACKAGE = Path(pgqueue.__file__).parent
_FILES = sorted(_PACKAGE.rglob("*.py"))
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: Changing this list is changing the public surface (DESIGN section 8): it belongs into the changelog.
_NAMES = [
    "AsyncResult",
    "ChordError",
    "DatabaseUnavailable",
    "EagerResult",
    "GroupResult",
    "GroupStampingVisitor",
    "Ignore",
    "IncompleteStream",
    "InvalidArguments",
    "InvalidOption",
    "LeaseLost",
    "MaxRetriesExceededError",
    "NotSerializable",
    "PayloadTooLarge",
    "PgQueue",
    "PgQueueError",
    "Reject",
    "ResultSet",
    "ResultTimeout",
    "Retry",
    "SchemaMissing",
    "SettingsError",
    "Signature",
    "SoftTimeLimitExceeded",
    "StampingVisitor",
    "State",
    "Task",
    "TaskFailed",
    "TaskRejectedError",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "UnknownJob",
    "UnknownTask",
    "WorkerLostError",
    "WorkerShutdown",
    "allow_join_result",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "result_from_tuple",
    "shared_task",
    "signature",
    "xmap",
    "xstarmap",
]


def test_the_public_names_are_these() -> None:
    assert pgqueue.__all__ == _NAMES


@pytest.mark.parametrize("name", _NAMES)
def test_a_public_name_says_in_its_docstring_what_it_is_for(name: str) -> None:
    found = getattr(pgqueue, name)
    assert "__doc__" in vars(found) or inspect.isfunction(found)
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}(")  # what a dataclass writes by itself


def undocumented(source: str) -> Iterator[str]:
    """Name every public class and function of a module, and every method that users may call, without a docstring."""
    todo: list[tuple[str, ast.AST]] = [("", ast.parse(source))]
    while todo:
        path, parent = todo.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.If | ast.Try):
                todo.append((path, node))
            elif isinstance(node, _Documented) and not node.name.startswith("_"):
                here = f"{path}{node.name}"
                if isinstance(node, ast.ClassDef) and node.name in _NAMES:
                    todo.append((f"{here}.", node))
                if ast.get_docstring(node) is None and not _is_overload(node):
                    yield here


def _is_overload(node: _Documented) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_every_public_class_and_function_has_a_docstring(path: Path) -> None:
    assert list(undocumented(path.read_text())) == []


def test_a_missing_docstring_is_found_wherever_it_is() -> None:
    source = '''
def f(): ...
def _g(): ...
class Task:
    def m(self): ...
    @property
    def p(self): "text"
    @overload
    def o(self): ...
    class B: ...
class Inside:
    """Text."""
    def m(self): ...
class Silent: ...
if True:
    async def h(): ...
'''
    assert sorted(undocumented(source)) == ["Silent", "Task", "Task.B", "Task.m", "f", "h"]
