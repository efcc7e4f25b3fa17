"""A type checker sees the function's own types through `delay`, `get` and their kin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

_FOLDER = Path(__file__).parents[1] / "typing"
_ROOT = _FOLDER.parents[1]
_FOUND = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: (?P<message>.*)")

Errors = dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def found() -> Errors:
    """What mypy finds in both files: messages by file and line."""
    files = [str(_FOLDER / name) for name in ("good.py", "bad.py")]
    options = ["--strict", "--config-file", str(_ROOT / "pyproject.toml"), "--cache-dir", str(_ROOT / ".mypy_cache")]
    output, problems, _ = api.run([*options, "--no-error-summary", "--hide-error-context", "--no-pretty", *files])
    assert problems == ""
    errors: Errors = {}
    for line in output.splitlines():
        if match := _FOUND.fullmatch(line):
            where = Path(match["file"]).name, int(match["line"])
            errors[where] = f"{errors.get(where, '')}{match['message']}\n"
        else:
            assert ": note: " in line
    return errors


def expected() -> Errors:
    lines = (_FOLDER / "bad.py").read_text().splitlines()
    return {("bad.py", number): line.partition("# E: ")[2] for number, line in enumerate(lines, 1) if "# E: " in line}


def test_mypy_accepts_what_is_right_and_sees_its_types(found: Errors) -> None:
    assert {where: message for where, message in found.items() if where[0] != "bad.py"} == {}


def test_mypy_refuses_the_marked_lines_and_no_others(found: Errors) -> None:
    assert {line for name, line in found if name == "bad.py"} == {line for _, line in expected()}


@pytest.mark.parametrize(("line", "part"), [(line, part) for (_, line), part in expected().items()])
def test_mypy_says_what_is_wrong_in_a_marked_line(found: Errors, line: int, part: str) -> None:
    assert part in found["bad.py", line]
