"""Every program in the README runs: this test reads the page from top to bottom and does what it says.

- `python`: a file, whose first line is a comment with its name; each is named by some command of the page.
- `sql`: statements; each that is a query answers at least one row.
- `console`: commands after `$ `, which all succeed; lines below one are what it prints, if there are any. One that
  ends in `&` is a worker: it runs until the next heading and then stops warmly.
- `text`: what is only shown.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from pgqueue.settings import Settings

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_KINDS = {"python", "sql", "console", "text"}
_PATIENCE = 30.0
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# `place_django.py` shows what stands in a Django project, whose settings are elsewhere.
_DJANGO_SETTINGS = """
import os
from psycopg.conninfo import conninfo_to_dict
known = conninfo_to_dict(os.environ["PGQUEUE_DSN"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": known["dbname"], "USER": known["user"],
                         "PASSWORD": known.get("password", ""), "HOST": known["host"], "PORT": known["port"]}}
"""


class Block(NamedTuple):
    """One fenced block; `line` is where it begins in the README, `section` the heading above it."""

    section: str
    line: int
    kind: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    section, start, kind, body = "", 0, "", list[str]()
    for number, line in enumerate(page.splitlines(), 1):
        if not start and line.startswith("## "):
            section = line[3:]
        elif not start and line.startswith("```"):
            start, kind, body = number, line[3:], []
        elif start and line == "```":
            yield Block(section, start, kind, "\n".join(body) + "\n")
            start = 0
        elif start:
            body.append(line)
    assert not start, f"README.md:{start}: the block is not closed"


def file_name(block: Block) -> str:
    found = re.match(r"# (\w+\.py)\n", block.text)
    assert found, f"README.md:{block.line}: the first line must be a comment with the name of the file"
    return found[1]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


@dataclass
class Reader:
    """Somebody who does what the page says, in an empty folder and an empty database."""

    folder: Path
    dsn: str
    environ: dict[str, str]
    workers: list[tuple[str, subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        try:
            match block.kind:
                case "python":
                    (self.folder / file_name(block)).write_text(block.text, encoding="utf-8")
                case "sql":
                    self.run_sql(block.text)
                case "console":
                    for command, output in commands(block):
                        self.run(command, output)
        except Exception as error:
            error.add_note(f"README.md:{block.line}, section {block.section!r}")
            raise

    def run_sql(self, text: str) -> None:
        # Statement by statement, as in psql: each sees what the one before it has committed.
        for statement in filter(str.strip, text.split(";")):
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                cursor = connection.execute(statement.encode())
                assert cursor.description is None or cursor.fetchall(), f"no row for: {statement.strip()}"

    def run(self, command: str, output: str) -> None:
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environ[name] = value
        elif command.endswith(" &"):
            self.start(command.removesuffix(" &"))
        else:
            done = subprocess.run(
                command, shell=True, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}{self.logs()}"
            if output:
                got = _UUID.sub("<id>", done.stdout)
                assert doctest.OutputChecker().check_output(_UUID.sub("<id>", output), got, 0), (
                    f"$ {command}\n{done.stdout}instead of\n{output}{done.stderr}{self.logs()}"
                )

    def start(self, command: str) -> None:
        log = self.folder / f"worker{len(self.workers)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environ, stdout=stream, stderr=stream
            )
        self.workers.append((command, process, log))
        deadline = time.monotonic() + _PATIENCE
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not connection.execute("select true from pgqueue.worker").fetchone():
                assert process.poll() is None, f"$ {command}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"$ {command}\nhas not begun\n{log.read_text()}"
                time.sleep(0.02)

    def stop_workers(self) -> None:
        for command, process, log in self.workers:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_PATIENCE) == 0, f"$ {command}\n{log.read_text()}"
        self.workers.clear()

    def logs(self) -> str:
        return "".join(f"\n{log.name}:\n{log.read_text()}" for _, _, log in self.workers)


@pytest.fixture
def reader(fresh_dsn: str, tmp_path: Path) -> Iterator[Reader]:
    (tmp_path / "django_settings.py").write_text(_DJANGO_SETTINGS)
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGQUEUE_DSN": fresh_dsn,
        "DATABASE_URL": fresh_dsn.replace("postgresql://", "postgresql+psycopg://", 1),
        "DJANGO_SETTINGS_MODULE": "django_settings",
        "PYTHONWARNINGS": "error",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    reader = Reader(tmp_path, fresh_dsn, environ)
    yield reader
    for _, process, _ in reader.workers:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_every_program_of_the_readme_runs(reader: Reader) -> None:
    section = ""
    for block in blocks(_README):
        if block.section != section:
            reader.stop_workers()
            section = block.section
        reader.follow(block)
    reader.stop_workers()


def test_no_program_is_only_shown() -> None:
    found = list(blocks(_README))
    assert {block.kind for block in found} <= _KINDS
    said = " ".join(command for block in found if block.kind == "console" for command, _ in commands(block))
    names = [file_name(block) for block in found if block.kind == "python"]
    assert names
    for name in names:
        assert re.search(rf"\b{re.escape(name)}\b|-A {name.removesuffix('.py')}\b", said), f"{name} is never run"
    assert len(set(names)) == len(names)


def test_files_targets_and_options_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^#)]+)\)", _README):
        assert (_ROOT / target).exists(), target
    makefile = (_ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+) ", _README):
        assert f"\n{target}: " in makefile, target
    table = _README.partition("| setting | default")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.partition(" | ")[0])}
    assert named == {"dsn", "schema", *Settings.model_fields} - {"schema_name"}


@pytest.mark.parametrize(
    "page", [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")], ids=lambda page: page.relative_to(_ROOT).as_posix()
)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, function in re.findall(r"\b(\w+/test_\w+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")):
        path = _ROOT / "tests" / file
        assert path.exists(), file
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not function or function in found, f"{file}::{function}"


def test_every_guarantee_names_its_tests() -> None:
    section = _README.partition("## Guarantees")[2].partition("</details>")[0]
    lines = re.findall(r"^\| (\d+) \|", section, re.MULTILINE)
    tests = re.findall(r"^(\d+)\. `\w+/test_\w+\.py::test_", section, re.MULTILINE)
    assert lines == tests == [str(number) for number in range(1, len(lines) + 1)]
    assert lines
