"""`pgqueue worker --reload`: start the worker again when a source changes. For development."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Folders whose sources are not the user's; hidden ones, such as .venv and .git, are left out too.
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
#: Seconds beyond the grace period: the worker's own end comes first.
_MARGIN = 3.0
#: Seconds between a worker's second signal and its end by force.
_LAST = 5.0
#: Milliseconds between two looks of the watcher at whether it is to end.
_LOOK = 200

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_USAGE = 2


class ReloadError(click.ClickException):
    """The sources cannot be watched."""

    exit_code = _USAGE


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def run_with_reload(
    arguments: Sequence[str], paths: Sequence[Path], grace: float, say: Callable[[str], None] = _say
) -> int:
    """Run a worker, and run it again whenever a `*.py` changes; return its exit code when it was told to end.

    - `arguments`: of `pgqueue`, without `--reload`: `["-A", "shop", "worker", "-c", "2"]`.
    - `paths`: files and folders to watch; default the working directory.
    - `grace`: seconds that the worker's tasks have to end; it is then told a second time, and at last killed.

    A worker that fails by itself, such as for a syntax error, is started again at the next change. One that ends by
    itself with 0 ends this too. Of SIGTERM, Ctrl-C and SIGHUP the first reaches the worker as SIGTERM, the second as
    SIGINT, and the third kills it. SIGQUIT reaches it as such. Raises ReloadError if the sources cannot be watched.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    try:
        # Before anything is watched or started: what comes from now on is in the pipe until it is read.
        with _signals(writer), _changes(paths or [Path.cwd()], writer) as changed:
            return _Reloader([*_program(), *arguments], grace, reader, changed, say).run()
    finally:
        os.close(reader)
        os.close(writer)


class _Reloader:
    """Waits in one place for signals, for changes and for the end of the worker."""

    def __init__(
        self,
        command: Sequence[str],
        grace: float,
        reader: int,
        changed: Callable[[], list[str]],
        say: Callable[[str], None],
    ) -> None:
        self._command = command
        self._grace = grace
        self._reader = reader
        self._changed = changed
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None
        self._told = 0  # how often the worker was told to end
        self._deadline: float | None = None
        self._ending = False
        self._code = 0

    def run(self) -> int:
        """Run until told to end; return the exit code."""
        try:
            self._start()
            while not self._ending or self._child is not None:
                self._turn()
        finally:
            if self._child is not None:  # only after an error of ours
                _kill_group(self._child.pid)
                self._child.wait()
        return self._code

    def _turn(self) -> None:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        select.select([self._reader], [], [], left)
        for number in self._heard():
            self._obey(number)
        if self._child is not None and (code := self._child.poll()) is not None:
            self._ended(code)
        if changed := self._changed():
            self._reload(changed)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._tell()

    def _heard(self) -> list[int]:
        try:
            return [number for number in os.read(self._reader, 65536) if number in _ENDING]
        except BlockingIOError:
            return []

    def _obey(self, number: int) -> None:
        first, self._ending = not self._ending, True
        if number == signal.SIGQUIT:
            self._told = max(self._told, 1)
            self._tell(signal.SIGQUIT)
        elif self._told == 0 or not first:  # it may have been told already, for a change
            self._tell()

    def _tell(self, number: int | None = None) -> None:
        """Tell the worker to end: warmly, then softly, then by force."""
        if self._child is None or self._child.poll() is not None:
            return
        self._told += 1
        if self._told > 2:
            self._say("the worker does not end; it is killed, and others take its jobs back")
            _kill_group(self._child.pid)
            self._deadline = None
        else:
            # Two of the same number may arrive as one; to the worker both of these mean stop.
            self._child.send_signal(number or (signal.SIGTERM if self._told == 1 else signal.SIGINT))
            self._deadline = time.monotonic() + (self._grace + _MARGIN if self._told == 1 else _LAST)

    def _reload(self, changed: list[str]) -> None:
        if self._ending:
            return
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        self._say(f"{changed[0]}{more} changed: starting the worker again")
        if self._child is None:
            self._start()
        elif self._told == 0:
            self._tell()

    def _ended(self, code: int) -> None:
        self._child, self._deadline = None, None
        self._code = code if code >= 0 else 128 - code  # as shells report a signal
        if self._told and not self._ending:
            self._changed()  # the next worker will read what has changed meanwhile
            self._start()
        elif code == 0:
            self._ending = True
        elif not self._ending:
            self._say(f"the worker failed with exit code {self._code}; it is started again when a source changes")

    def _start(self) -> None:
        self._told = 0
        # A group of its own: Ctrl-C reaches the group of the terminal, and the worker must not count it twice. Such
        # a group is stopped when it reads from the terminal, so it has nothing to read from.
        self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603
        self._say(f"the worker is process {self._child.pid}")


def _kill_group(leader: int) -> None:
    """Kill a worker and its children; they may have ended meanwhile."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _program() -> list[str]:
    """Return the start of the command line that runs this program, with the interpreter's own options."""
    own = Path(sys.argv[0])
    if own.name == "pgqueue" or own.parts[-2:] == ("pgqueue", "__main__.py"):
        return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]
    return [sys.executable, "-m", "pgqueue"]


@contextmanager
def _signals(writer: int) -> Iterator[None]:
    """Have signals written to the pipe, so that none is lost between two waits."""
    numbers = [*_ENDING, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _changes(paths: Sequence[Path], writer: int) -> Iterator[Callable[[], list[str]]]:
    """Watch the paths in a thread that writes a zero to the pipe; yields what returns the changes since the last call.

    Raises ReloadError if that is not possible.
    """
    try:
        # Imported here because only --reload needs it, and it is an extra.
        import watchfiles
    except ImportError:
        raise ReloadError("--reload needs watchfiles: pip install 'pgqueue-tasks[reload]'") from None

    roots = [path.resolve() for path in paths]  # macOS tells the real paths
    stop = threading.Event()
    found: deque[str] = deque()
    noticed = watchfiles.watch(
        *roots,
        watch_filter=lambda _, path: is_source(Path(path), roots),
        stop_event=stop,
        rust_timeout=_LOOK,
        yield_on_timeout=True,
        raise_interrupt=False,
        ignore_permission_denied=True,
    )

    def watch() -> None:
        for changes in noticed:
            if changes:
                found.extend(sorted(_shown(path) for _, path in changes))
                with suppress(BlockingIOError):  # a full pipe wakes the reader as well
                    os.write(writer, b"\0")

    def changed() -> list[str]:
        return list(dict.fromkeys(found.popleft() for _ in range(len(found))))

    try:
        next(noticed)  # from here on no change is missed
    except OSError as error:
        cure = "; name fewer folders, or set WATCHFILES_FORCE_POLLING=1" if "limit" in str(error) else ""
        raise ReloadError(f"the sources cannot be watched: {error}{cure}") from None
    thread = threading.Thread(target=watch, name="pgqueue-reload", daemon=True)
    thread.start()
    try:
        yield changed
    finally:
        stop.set()
        thread.join()


def is_source(path: Path, roots: Iterable[Path]) -> bool:
    """Return whether a file is a source of the user's, below one of the roots."""
    if path.suffix != ".py":
        return False
    for root in roots:
        if path.is_relative_to(root):
            parts = path.relative_to(root).parts
            return not any(part.startswith(".") or part in _FOREIGN for part in parts)
    return False


def _shown(path: str) -> str:
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
