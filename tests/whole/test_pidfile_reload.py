"""The file with the pid of a worker, and the worker that starts again when its sources change: real processes."""

from __future__ import annotations

import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pgqueue import PgQueue
from pgqueue.cli.pidfile import PidfileError, PidfileTaken, _lock, pidfile
from pgqueue.cli.reload import _program, is_source

Gate = Callable[[], None]
Said = Callable[[], object]


class Program:
    """A Python program whose lines can be waited for."""

    def __init__(self, code: str, *arguments: str, **options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        self.lines: list[str] = []
        self._heard: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._heard.put(line)
        self._heard.put(None)

    def hear(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Return the match of the next line that has it; lines before it are kept in `lines`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {timeout} s after:\n{''.join(self.lines)}") from None
            assert line is not None, f"it ended before {pattern!r}, after:\n{''.join(self.lines)}"
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match

    def end(self, timeout: float = 30.0) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(timeout)
        self._thread.join(timeout)
        while (line := self._heard.get(timeout=timeout)) is not None:
            self.lines.append(line)
        return code

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def close(self) -> None:
        if self.process.poll() is None:  # after a failure: nobody else would end the worker
            self.process.kill()
            for pid in re.findall(r"the worker is process (\d+)", self.said)[-1:]:
                with suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self._thread.join()
        self.process.stdout.close()


Begin = Callable[..., Program]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts programs; they are killed at the end."""
    begun: list[Program] = []

    def begin(code: str, *arguments: str, **options: object) -> Program:
        begun.append(Program(code, *arguments, **options))
        return begun[-1]

    yield begin
    for program in begun:
        program.close()


# -- the pidfile -------------------------------------------------------------------------------------------------

OWNER = """
import sys
from pathlib import Path
from pgqueue.cli.pidfile import PidfileError, pidfile
print("there", flush=True)
sys.stdin.readline()
try:
    with pidfile(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.readline()
except PidfileError as error:
    print("refused:", error.message, flush=True)
    sys.exit(error.exit_code)
"""


def go(program: Program) -> None:
    program.process.stdin.write("\n")
    program.process.stdin.flush()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.pid"


def test_the_file_holds_the_pid_and_is_gone_at_the_end(path: Path) -> None:
    told: list[str] = []
    with pidfile(path, told.append):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(PidfileTaken, match=rf"process {os.getpid()} has the pidfile {path}: stop it first"):
            pidfile(path).__enter__()
        assert path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), pidfile(path, told.append):
        raise KeyError
    assert not path.exists()
    assert told == []


def test_a_living_process_keeps_it_and_a_dead_one_does_not(path: Path, begin: Begin) -> None:
    owner = begin(OWNER, str(path))
    go(owner)
    owner.hear("mine")
    with pytest.raises(PidfileTaken, match=f"process {owner.process.pid} has") as caught, pidfile(path):
        pass
    assert caught.value.exit_code == 1
    assert path.read_text() == f"{owner.process.pid}\n"

    owner.process.kill()
    owner.process.wait()
    told: list[str] = []
    with pidfile(path, told.append):
        assert path.read_text() == f"{os.getpid()}\n"
    assert told == [f"the pidfile {path} was left by process {owner.process.pid}, which has ended; it is replaced"]


@pytest.mark.parametrize("content", ["", "1\n", f"{os.getpid()}\n", "99999999\n"])
def test_a_pid_that_another_process_has_by_now_holds_nobody_up(path: Path, content: str) -> None:
    """In a container the first process has the same pid every time."""
    path.write_text(content)
    told: list[str] = []
    with pidfile(path, told.append):
        assert path.read_text() == f"{os.getpid()}\n"
    assert len(told) == bool(content)


def test_a_forked_child_neither_removes_it_nor_keeps_it_from_the_next(path: Path, begin: Begin) -> None:
    forker = begin(
        """
import os, sys
from pathlib import Path
from pgqueue.cli.pidfile import pidfile
with pidfile(Path(sys.argv[1])):
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        second = os.fork()
        if second:
            print("mine", second, flush=True)
        sys.stdin.readline()
"""
        "\n",
        str(path),
    )
    pid = int(forker.hear(r"mine (\d+)")[1])
    try:
        assert path.read_text() == f"{forker.process.pid}\n"  # though the first child has left the block
        with pytest.raises(PidfileTaken), pidfile(path):
            pass
        forker.process.kill()
        forker.process.wait()
        os.kill(pid, 0)  # the second child lives, and the file is free
        with pidfile(path, lambda _: None):
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_file_that_is_somebody_elses_by_now_stays(path: Path) -> None:
    with pidfile(path):
        path.unlink()
        path.write_text("7\n")
    assert path.read_text() == "7\n"
    path.unlink()
    with pidfile(path):
        path.write_text("8\n")
    assert path.read_text() == "8\n"
    path.unlink()
    with pidfile(path):
        path.unlink()
    assert not path.exists()


def test_a_file_that_its_owner_removes_while_we_take_it_is_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(path: Path, descriptor: int) -> str:
        monkeypatch.undo()
        path.unlink()  # what the owner does between our open and our lock
        return _lock(path, descriptor)

    monkeypatch.setattr("pgqueue.cli.pidfile._lock", lock)
    with pidfile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(PidfileTaken), pidfile(path):
            pass


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing/worker.pid", "cannot be written: No such file or directory"),
        ("file/worker.pid", "cannot be written: Not a directory"),
        ("folder", "cannot be written: Is a directory"),
        ("fifo", "is no plain file"),
        ("file", "is not a pidfile: it holds other text, and is left as it is"),
    ],
)
def test_what_cannot_be_a_pidfile_is_said(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious\n")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PidfileError, match=complaint) as caught, pidfile(tmp_path / name):
        pass
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "precious\n"
    assert not (tmp_path / "missing").exists()


def test_one_of_many_gets_it(path: Path, begin: Begin) -> None:
    path.write_text("99999999\n")
    owners = [begin(OWNER, str(path)) for _ in range(5)]
    for owner in owners:
        owner.hear("there")
    for owner in owners:
        go(owner)
    words = [owner.hear("mine|refused")[0] for owner in owners]
    assert sorted(words) == ["mine", *["refused"] * 4]
    assert path.read_text() == f"{owners[words.index('mine')].process.pid}\n"


# -- the reload --------------------------------------------------------------------------------------------------

#: Runs `pgqueue -A shop worker ...` with a reload. Where the grace period is short, what comes after it is too.
RELOADER = """
import signal, sys
from pathlib import Path
from pgqueue.cli import reload
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
if float(sys.argv[1]) < 1:
    reload._MARGIN, reload._LAST = 0.5, 0.5
sys.exit(reload.run_with_reload(["-A", "shop", "worker", *sys.argv[2:]], [], grace=float(sys.argv[1])))
"""

SHOP = """
import os, psycopg
from pgqueue import PgQueue
app = PgQueue("shop")

@app.task
def version() -> int:
    return 1

@app.task
def held() -> str:
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute("select pg_notify('yard', 'held')")
        connection.execute("select pg_advisory_lock_shared(1)")
    return "let go"
"""

SOLO = ("-P", "solo", "--grace", "20")


@pytest.fixture
def shop(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shop.py; the programs that are started find its database."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path / "shop.py"


@pytest.fixture
def caller(dsn: str) -> Iterator[PgQueue]:
    """Enqueues by name what the shop can do."""
    app = PgQueue("caller", dsn=dsn)
    yield app
    app.close()


Worker = Callable[[Program], int]


@pytest.fixture
def worker_of(until: Callable[..., object]) -> Worker:
    """Waits for a solo worker that claims, and returns its pid."""

    def worker_of(reloader: Program) -> int:
        pid = int(reloader.hear(r"the worker is process (\d+)")[1])
        until("select exists (select from pgqueue.worker where pid = %s)", (pid,))
        return pid

    return worker_of


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_changed_source_starts_the_worker_again_and_others_do_not(
    shop: Path, caller: PgQueue, begin: Begin, worker_of: Worker
) -> None:
    for folder in (".venv/lib", "venv", "__pycache__", "more"):
        (shop.parent / folder).mkdir(parents=True)
    reloader = begin(RELOADER, "20", *SOLO)
    first = worker_of(reloader)
    assert caller.send_task("shop.version").get(timeout=20) == 1
    for name in (".venv/lib/x.py", "venv/x.py", "__pycache__/x.py", ".hidden.py", "notes.txt"):
        (shop.parent / name).write_text("x")
    (shop.parent / "more" / "helper.py").write_text("")
    assert reloader.hear("changed")[0]
    assert reloader.lines[-1] == f"{Path('more/helper.py')} changed: starting the worker again\n"

    second = worker_of(reloader)
    assert not alive(first)
    shop.write_text(SHOP.replace("return 1", "return 20"))
    reloader.hear("^shop.py changed")
    worker_of(reloader)
    assert caller.send_task("shop.version").get(timeout=20) == 20
    assert not alive(second)
    reloader.process.terminate()
    assert reloader.end() == 0
    assert reloader.said.count(" changed: ") == 2


def test_a_worker_that_fails_is_started_again_at_the_next_change(shop: Path, begin: Begin, worker_of: Worker) -> None:
    shop.write_text(SHOP + "\n)\n")
    reloader = begin(RELOADER, "20", *SOLO)
    reloader.hear("the worker failed with exit code 1; it is started again when a source changes")
    shop.write_text(SHOP)
    reloader.hear("shop.py changed")
    pid = worker_of(reloader)
    shop.write_text(SHOP + "\n)\n")
    reloader.hear("the worker failed with exit code 1")
    assert not alive(pid)
    reloader.process.terminate()
    assert reloader.end() == 1
    assert "SyntaxError" in reloader.said


def test_a_worker_that_ends_well_by_itself_ends_the_reload(shop: Path, begin: Begin) -> None:
    reloader = begin(RELOADER, "20", *SOLO, "--burst")
    assert reloader.end() == 0


def test_wrong_usage_is_the_exit_code_at_the_end(shop: Path, begin: Begin) -> None:
    reloader = begin(RELOADER, "20", "-P", "nothing")
    reloader.hear("the worker failed with exit code 2")
    reloader.process.send_signal(signal.SIGHUP)
    assert reloader.end() == 2


def test_a_signal_that_killed_the_worker_is_in_the_exit_code(shop: Path, begin: Begin) -> None:
    reloader = begin(RELOADER, "20", *SOLO)
    os.kill(int(reloader.hear(r"the worker is process (\d+)")[1]), signal.SIGKILL)
    reloader.hear("the worker failed with exit code 137")
    reloader.process.terminate()
    assert reloader.end() == 137


def test_one_ctrl_c_of_the_terminal_stops_the_worker_once(
    shop: Path, caller: PgQueue, begin: Begin, worker_of: Worker, gate: Gate, said: Said
) -> None:
    result = caller.send_task("shop.held")
    terminal, line = pty.openpty()
    # The program takes the terminal as its own, so that Ctrl-C reaches its group.
    take = "import fcntl, termios; fcntl.ioctl(int(__import__('os').environ['LINE']), termios.TIOCSCTTY, 0)\n"
    environ = {**os.environ, "LINE": str(line)}
    reloader = begin(take + RELOADER, "20", *SOLO, start_new_session=True, pass_fds=[line], env=environ)
    worker_of(reloader)
    said()
    os.write(terminal, b"\x03")
    with pytest.raises(subprocess.TimeoutExpired):
        reloader.process.wait(1.0)  # the task may end: a second signal would have cut it off by now
    gate()
    assert result.get(timeout=10) == "let go"
    assert reloader.end() == 0
    os.close(terminal)
    os.close(line)


def test_sigterm_while_a_change_is_obeyed_stops_the_worker_once_and_for_good(
    shop: Path, caller: PgQueue, begin: Begin, worker_of: Worker, gate: Gate, said: Said
) -> None:
    result = caller.send_task("shop.held")
    reloader = begin(RELOADER, "20", *SOLO)
    pid = worker_of(reloader)
    said()
    shop.write_text(SHOP + "\n")
    reloader.hear("changed")
    reloader.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        reloader.process.wait(1.0)
    gate()
    assert result.get(timeout=10) == "let go"
    assert reloader.end() == 0
    assert not alive(pid)
    assert reloader.said.count("the worker is process") == 1


def test_a_second_signal_reaches_the_worker_as_a_second_one(
    shop: Path, caller: PgQueue, begin: Begin, worker_of: Worker, gate: Gate, said: Said
) -> None:
    result = caller.send_task("shop.held")
    reloader = begin(RELOADER, "60", *SOLO)
    worker_of(reloader)
    said()
    reloader.process.send_signal(signal.SIGINT)
    reloader.process.send_signal(signal.SIGTERM)
    assert reloader.end(15) in (3, 4)  # cut off, handed back
    assert str(result.state) == "PENDING"


def test_a_worker_that_does_not_end_is_killed_with_its_children(shop: Path, begin: Begin) -> None:
    started = r"worker process (\d+) started"
    reloader = begin(RELOADER, "0.2", "-c", "2", "-l", "debug")
    pid = int(reloader.hear(r"the worker is process (\d+)")[1])
    children = [int(reloader.hear(started)[1]) for _ in range(2)]
    for each in (pid, *children):
        os.kill(each, signal.SIGSTOP)
    shop.write_text(SHOP + "\n")
    reloader.hear("the worker does not end; it is killed")
    reloader.hear(started)
    reloader.process.terminate()
    assert reloader.end() == 0
    # Ours to reap only if there is no init; a zombie is dead as well.
    assert not alive(pid)
    assert not any(runs(child) for child in children)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_the_library_it_says_what_to_install(shop: Path, begin: Begin) -> None:
    program = "import sys; sys.modules['watchfiles'] = None\n" + RELOADER.replace("sys.exit(", "code = (").replace(
        "from pgqueue.cli import reload", "from pgqueue.cli import reload\nimport click"
    )
    program = program.replace("code = (", "try:\n    code = (") + (
        "except click.ClickException as error:\n    error.show()\n    code = error.exit_code\nsys.exit(code)\n"
    )
    reloader = begin(program, "20", *SOLO)
    assert reloader.end() == 2
    assert reloader.said == "Error: --reload needs watchfiles: pip install 'pgqueue-tasks[reload]'\n"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("shop.py", True),
        ("more/deep/helper.py", True),
        ("shop.pyc", False),
        ("notes.txt", False),
        (".venv/lib/python3.11/site-packages/click/core.py", False),
        ("env/lib/python3.11/site-packages/click/core.py", False),
        ("node_modules/gyp/x.py", False),
        (".#shop.py", False),
        ("../other/shop.py", False),
    ],
)
def test_what_counts_as_a_source(name: str, counts: bool) -> None:
    root = Path("/home/ada/.venv/project")  # what is above the root does not matter
    path = Path(os.path.normpath(root / name))
    assert is_source(path, [Path("/nowhere"), root]) is counts


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (
            ["/opt/bin/pgqueue", "-A", "shop"],
            ["python", "-X", "dev", "/opt/bin/pgqueue", "-A", "shop"],
            ["-X", "dev", "/opt/bin/pgqueue"],
        ),
        (["/opt/lib/pgqueue/__main__.py"], ["python3", "-O", "-m", "pgqueue"], ["-O", "-m", "pgqueue"]),
        (["manage.py", "work"], ["python", "manage.py", "work"], ["-m", "pgqueue"]),
        (["-c", "x"], ["python", "-c", "run()", "x"], ["-m", "pgqueue"]),
    ],
)
def test_the_worker_is_started_as_this_program_was(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], orig_argv: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert _program() == [sys.executable, *expected]
