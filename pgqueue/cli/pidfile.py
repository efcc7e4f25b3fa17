"""`--pidfile`: the file with the pid of the worker, for those who supervise by it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

#: Descriptors of the pidfiles that this process has. Their locks are the proof that it lives: unlike a pid they
#: survive neither a reboot nor a restart of the container, and they cannot become those of somebody else.
_held: set[int] = set()


def _forget() -> None:
    # A lock lives until the last copy of its descriptor is closed; a child of ours must not outlive us with one.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


class PidfileError(click.ClickException):
    """The pidfile cannot be used: what was said on the command line is wrong."""

    exit_code = 2


class PidfileTaken(PidfileError):
    """Another process has the pidfile; when that has ended, the same command works."""

    exit_code = 1


@contextmanager
def pidfile(path: Path, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Keep the pid of this process in a file, and remove the file at the end if it is still ours.

    - `path`: its folder has to be there.
    - `say`: is told when a file that a dead process has left is replaced.

    Raises PidfileError, or PidfileTaken if a living process has it. Forked children neither hold nor remove it.

        with pidfile(Path("/run/pgqueue/worker.pid")):
            supervisor.run()
    """
    try:
        descriptor = _take(path, say)
    except OSError as error:
        raise PidfileError(f"the pidfile {path} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        if descriptor in _held:  # else this is a child
            _held.remove(descriptor)
            _remove(path, descriptor)
            os.close(descriptor)


def _take(path: Path, say: Callable[[str], None]) -> int:
    """Return the descriptor of the locked file, with our pid in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            left = _lock(path, descriptor)
            if _is_at(path, descriptor):  # else its owner has removed it between our open and our lock
                if left:
                    say(f"the pidfile {path} was left by process {left}, which has ended; it is replaced")
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                _held.add(descriptor)
                return descriptor
        finally:
            if descriptor not in _held:
                os.close(descriptor)


def _lock(path: Path, descriptor: int) -> str:
    """Lock the file, and return the pid that it holds, "" if none."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise PidfileError(f"the pidfile {path} is no plain file")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = f"process {found}" if (found := _pid(descriptor)).isdigit() else "another process"
        cure = "stop it first, or give this worker another --pidfile"
        raise PidfileTaken(f"{owner} has the pidfile {path}: {cure}") from None
    found = _pid(descriptor)
    if found and not found.isdigit():
        raise PidfileError(f"{path} is not a pidfile: it holds other text, and is left as it is")
    return found


def _pid(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()


def _remove(path: Path, descriptor: int) -> None:
    try:
        if _is_at(path, descriptor) and _pid(descriptor) == str(os.getpid()):
            path.unlink()
    except OSError as error:
        _say(f"the pidfile {path} stays: {error.strerror}")


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the open file is the one that has the name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
