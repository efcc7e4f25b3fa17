"""A name before and after every statement, COMMIT and connect of the engine, and what shall happen there, once.

Nothing in pgqueue knows of it: psycopg's methods are wrapped, in a process forked for one scenario. A point is named by
whose connection it is and by the statement: `worker.claim`, `supervisor.bury`; `function` and `coroutine` are attempts
with a transaction, `together` the statements of one round trip, whose answer comes with `together.sync`.

As a program it is the parent of such processes: it has imported everything, so one more costs a fork. It reads a line
of JSON and answers with a line: {"start": {...}} the pid, {"poll": pid} the exit code, or null while it runs.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg._connection_base import BaseConnection  # psycopg has no door for what is asked here
from psycopg.errors import TooManyConnections

from pgqueue.statements import _CALLS

#: A statement that fails and leaves the connection as it was; the state is one that passes by itself.
_REFUSED = b"do $$ begin raise sqlstate '57014' using message = 'failpoint'; end $$"
#: A row that only COMMIT finds fault with; see the table in the tests.
_TRAPPED = b"insert into trap values (1)"
_COMMANDS = {"begin", "commit", "rollback", "savepoint", "release"}
_NAMES = {text.encode(): name for name, text in _CALLS.items()}  # the schema has its usual name here


@dataclass(frozen=True, slots=True)
class Failpoint:
    """Where, and what.

    - `when`: `before`, nothing has been sent; `after`, the server has done it and nobody has heard.
    - `action`: `refuse`, the server answers with an error; `fail`, our own code does; `drop`, the connection breaks;
      `kill` and `stop`, the process does that to itself.
    - `nth`: passing of a process at which it happens; `saying`: only where the parameters have this text.
    """

    point: str
    when: str
    action: str
    nth: int = 1
    saying: str = ""


class Points:
    """Knows what is to happen in this process and its children: one failpoint after the other, each once in all.

    - `folder`: gets a file `tripped-N` with the pid for each that has happened, and `passed-NAME` for each point met.
    """

    def __init__(self, armed: list[Failpoint], folder: Path) -> None:
        self._armed = armed
        self._folder = folder
        self._met: set[str] = set()
        self._counts = [0] * len(armed)

    def passing(self, point: str, when: str, connection: Any = None, params: object = None) -> bool:
        """Do what is due here; return whether the statement is to be refused."""
        if point not in self._met:
            self._met.add(point)
            (self._folder / f"passed-{point}").touch()
        for number, failpoint in enumerate(self._armed):
            marker = self._folder / f"tripped-{number}"
            if marker.exists():
                continue
            if (failpoint.point, failpoint.when) == (point, when) and failpoint.saying in repr(params):
                self._counts[number] += 1
                if self._counts[number] >= failpoint.nth and _first(marker):
                    return self._act(failpoint, connection)
            return False
        return False

    def _act(self, failpoint: Failpoint, connection: Any) -> bool:
        match failpoint.action:
            case "refuse":
                return True
            case "fail":
                raise RuntimeError(f"failpoint {failpoint.when} {failpoint.point}")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "drop" if connection is None:
                raise psycopg.OperationalError("failpoint: connection refused")
            case "drop":
                _drop(connection, unheard=failpoint.when == "after")
        return False


def _first(marker: Path) -> bool:
    """Return whether this process is the first here, and leave its pid."""
    try:
        with marker.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _drop(connection: Any, unheard: bool) -> None:
    """Break a connection; `unheard`: an answer has come that nobody is to see, so let libpq find out here."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as other_end:
        other_end.shutdown(socket.SHUT_RDWR)
    if unheard:
        connection.pgconn.consume_input()
        raise AssertionError("the connection has survived")


def whose(connection: Any) -> str:
    """Return whose a connection is; "" if not the engine's."""
    name = connection.info.get_parameters().get("application_name", "")
    return _owner(name, isinstance(connection, psycopg.AsyncConnection))


def _owner(application_name: str, coroutine: bool) -> str:
    if not application_name.startswith("pgqueue "):
        return ""
    purpose = application_name.split()[1]
    if purpose != "enqueue":
        return purpose
    return "coroutine" if coroutine else "function"


def _point_of(connection: Any, query: object) -> str | None:
    name = _NAMES.get(query) if isinstance(query, bytes) else None
    owner = whose(connection) if name else ""
    if not owner:
        return None
    return f"{'together' if connection._pipeline else owner}.{name}"


def install(points: Points) -> None:
    """Wrap what the engine uses of psycopg, in this process and its future children."""
    psycopg.Cursor.execute = _execute(points, psycopg.Cursor.execute)  # type: ignore[method-assign]
    psycopg.AsyncCursor.execute = _aexecute(points, psycopg.AsyncCursor.execute)  # type: ignore[method-assign]
    psycopg.Pipeline.__exit__ = _sync(points, psycopg.Pipeline.__exit__)  # type: ignore[method-assign]
    BaseConnection._exec_command = _command(points, BaseConnection._exec_command)  # type: ignore[method-assign]
    BaseConnection._connect_gen = _connect(  # type: ignore[method-assign,assignment]
        points,
        BaseConnection._connect_gen.__func__,  # type: ignore[attr-defined]
    )


def _execute(points: Points, inner: Callable[..., Any]) -> Callable[..., Any]:
    def execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        connection = self.connection
        point = _point_of(connection, query)
        if point is None:
            return inner(self, query, params, **options)
        if points.passing(point, "before", connection, params):
            return inner(self, _REFUSED, None, **options)
        inner(self, query, params, **options)
        if not connection._pipeline:
            points.passing(point, "after", connection, params)
        return self

    return execute


def _aexecute(points: Points, inner: Callable[..., Any]) -> Callable[..., Any]:
    async def execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        connection = self.connection
        point = _point_of(connection, query)
        if point is None:
            return await inner(self, query, params, **options)
        if points.passing(point, "before", connection, params):
            return await inner(self, _REFUSED, None, **options)
        await inner(self, query, params, **options)
        points.passing(point, "after", connection, params)
        return self

    return execute


def _sync(points: Points, inner: Callable[..., Any]) -> Callable[..., Any]:
    def leave(self: Any, *error: Any) -> None:
        ours = error[0] is None and whose(self._conn)
        try:
            if ours:
                points.passing("together.sync", "before", self._conn)
        except BaseException as failure:
            inner(self, type(failure), failure, failure.__traceback__)
            raise
        inner(self, *error)
        if ours:
            points.passing("together.sync", "after", self._conn)

    return leave


def _command(points: Points, inner: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, command: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        text = command.as_bytes(self) if hasattr(command, "as_bytes") else command
        text = text.decode() if isinstance(text, bytes) else text
        word = text.split()[0].lower()
        owner = whose(self) if word in _COMMANDS else ""
        if not owner:
            return (yield from inner(self, command, *args, **options))
        if points.passing(f"{owner}.{word}", "before", self):
            if word == "commit":
                yield from inner(self, _TRAPPED)
            else:
                command = _REFUSED
        found = yield from inner(self, command, *args, **options)
        points.passing(f"{owner}.{word}", "after", self)
        return found

    return run


def _connect(points: Points, inner: Callable[..., Any]) -> Any:
    def connect(cls: type[Any], conninfo: str = "", **options: Any) -> Generator[Any, Any, Any]:
        known = psycopg.conninfo.conninfo_to_dict(conninfo)
        owner = _owner(str(known.get("application_name", "")), issubclass(cls, psycopg.AsyncConnection))
        if not owner:
            return (yield from inner(cls, conninfo, **options))
        if points.passing(f"{owner}.connect", "before"):
            raise TooManyConnections("failpoint: too many clients")
        connection = yield from inner(cls, conninfo, **options)
        try:
            points.passing(f"{owner}.connect", "after", connection)
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    return classmethod(connect)


# -- the parent ----------------------------------------------------------------------------------------------


def _be(order: dict[str, Any]) -> None:
    """Become `pgqueue ...` in a forked child; never returns."""
    from pgqueue.cli import main

    code: int | str | None = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["FAILING_FOLDER"] = order["folder"]
        install(Points([Failpoint(**failpoint) for failpoint in order["failpoints"]], Path(order["folder"])))
        main(order["arguments"])
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _serve() -> None:
    import failing  # noqa: F401
    import rich_click  # noqa: F401

    import pgqueue.cli.worker
    import pgqueue.worker  # noqa: F401

    ended: dict[int, int] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: int | None
        if "start" in order:
            answer = os.fork()
            if answer == 0:
                _be(order["start"])
        else:
            pid = order["poll"]
            if pid not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(pid)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
