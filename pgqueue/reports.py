"""Exceptions as data, and back: `report` describes one, `revive` makes one again, `clear_frames` frees what it held."""

from __future__ import annotations

import inspect
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from types import FrameType, TracebackType
from typing import Any, cast

from pgqueue.errors import (
    DatabaseUnavailable,
    LeaseLost,
    Reject,
    ResultTimeout,
    Retry,
    TaskFailed,
    TaskPredicate,
)
from pgqueue.serialization.limits import MAX_CAUSES
from pgqueue.serialization.reports import (
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_ERRORS,
    MOST_ITEMS,
    as_json,
    cut,
    cut_middle,
    name_of,
    shares,
)
from pgqueue.types import ErrorReport

#: Causes of causes and members of members that are followed.
_DEEPEST = 5
#: Frames that are shown of a traceback at each end; longest line of source, longest name.
_FRAMES, _LONGEST_LINE = 50, 500
#: Frames of these at the top of a traceback tell the user nothing.
_OURS = ("pgqueue.tracer", "pgqueue.task", "pgqueue.eager")

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"

# What would be taken for something else if `get()` raised it: the end of a loop that calls it, an order to the task
# that calls it, or that the result could not be read and may be asked for again.
_NEVER_REVIVED = (StopIteration, StopAsyncIteration, TaskPredicate, LeaseLost, ResultTimeout, DatabaseUnavailable)

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


# -- to data -----------------------------------------------------------------------------------------------------


def report(error: BaseException) -> ErrorReport:
    """Return an exception as data; never raises, whatever its `__str__`, `args` or notes do.

    All of it is bounded: texts are cut, causes and members of groups are followed five levels deep, at most 20
    members of a group and 50 exceptions in all. Nothing but `__str__` and `__repr__` of the user's code is called.

    >>> report(KeyError("k")).message
    "'k'"
    """
    try:
        found, text = _describe(error, MOST_ERRORS, ())
        return replace(found, traceback=text)
    except BaseException as broken:  # such as a stack or a memory that is used up
        name = name_of(type(error))
        return ErrorReport(name, _module(type(error)), f"<{name} cannot be shown: {name_of(type(broken))}>")


def text_of(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return `str(value)`, or a text that says that it has none; never raises.

    - `longest`: characters that are kept; default 10,000.
    """
    try:
        return cut(str(value), longest)
    except BaseException:
        return f"<{name_of(type(value))} without a readable text>"


def _describe(error: BaseException, room: int, above: tuple[int, ...]) -> tuple[ErrorReport, str]:
    """Return the report of an exception, and its traceback as Python would show it, but of what is reported only.

    - `room`: how many reports it may consist of.
    - `above`: ids of the exceptions that lead to it.
    """
    above = (*above, id(error))
    cause, because = _origin(error)
    members: tuple[BaseException, ...] = ()
    if issubclass(type(error), BaseExceptionGroup):
        members = vars(BaseExceptionGroup)["exceptions"].__get__(error)
    if len(above) > _DEEPEST:
        cause, members = None, ()
    if id(cause) in above:
        cause = None
    for_cause, kept, for_member = shares(room, cause is not None, len(members))
    caused = _describe(cause, for_cause, above) if cause is not None and for_cause else None
    described = [_describe(member, for_member, above) for member in members[:kept] if id(member) not in above]

    found = ErrorReport(
        type=name_of(type(error)),
        module=_module(type(error)),
        message=text_of(error),
        args=tuple(map(as_json, _args(error)[:MOST_ITEMS])),
        notes=_notes(error),
        cause=caused[0] if caused else None,
        exceptions=tuple(member for member, _ in described),
    )
    parts = [caused[1], because] if caused else []
    parts += (_frames(_own(error, "__traceback__")), _headline(found))
    for number, (_, text) in enumerate(described, 1):
        parts.append(f"  +---------------- {number} ----------------\n{textwrap.indent(text, '  | ', bool)}")
    if len(members) > len(described):
        parts.append(f"  +---------------- {len(members) - len(described)} more\n")
    return found, cut_middle("".join(parts))


def _own(error: BaseException, name: str) -> Any:
    """Return what an exception really has where its class has something else by this name, or refuses to tell."""
    return vars(BaseException)[name].__get__(error)


def _origin(error: BaseException) -> tuple[BaseException | None, str]:
    cause = _own(error, "__cause__")
    if cause is None and not _own(error, "__suppress_context__"):
        return _own(error, "__context__"), _DURING
    return cause, _CAUSED


def _module(kind: type) -> str:
    try:
        module = vars(type)["__module__"].__get__(kind)
    except AttributeError:
        module = None
    return (cut(module, LONGEST_NAME) if issubclass(type(module), str) else "") or "builtins"


def _args(error: BaseException) -> tuple[object, ...]:
    if issubclass(type(error), BaseExceptionGroup):
        return (vars(BaseExceptionGroup)["message"].__get__(error),)  # the members have reports of their own
    args: tuple[object, ...] = _own(error, "args")
    return args


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = _look(error, "__notes__")
    return tuple(map(text_of, notes[:MOST_ITEMS])) if type(notes) in (list, tuple) else ()


def _look(value: object, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except BaseException:  # a property of its class
        return None


# -- tracebacks --------------------------------------------------------------------------------------------------

# `traceback.format_exception` would write out all of a message, for each exception of a chain however long, and look
# at any attribute that has a meaning to it.


def _headline(found: ErrorReport) -> str:
    name = found.type if found.module in ("builtins", "__main__") else f"{found.module}.{found.type}"
    return "\n".join((f"{name}: {found.message}" if found.message else name, *found.notes, ""))


def _frames(trace: TracebackType | None) -> str:
    if trace is None:
        return ""
    try:
        return f"Traceback (most recent call last):\n{_formatted(_users(trace))}"
    except BaseException as broken:  # the source is read by way of its loader
        return f"The traceback cannot be shown: {name_of(type(broken))}\n"


def _formatted(trace: TracebackType) -> str:
    left_out = _length(trace) - 2 * _FRAMES
    if left_out <= 0:
        return _lines(trace, None)
    last = trace
    for _ in range(_FRAMES + left_out):
        assert last.tb_next is not None
        last = last.tb_next
    return f"{_lines(trace, _FRAMES)}  ... {left_out} frames left out ...\n{_lines(last, None)}"


def _length(trace: TracebackType | None) -> int:
    length = 0
    while trace is not None:
        length, trace = length + 1, trace.tb_next
    return length


def _lines(trace: TracebackType, limit: int | None) -> str:
    stack = traceback.extract_tb(trace, limit)
    for index, frame in enumerate(stack):
        line = frame.line or ""
        if max(len(line), len(frame.filename), len(frame.name)) > _LONGEST_LINE:
            names = frame.filename[:_LONGEST_LINE], frame.lineno, frame.name[:_LONGEST_LINE]
            stack[index] = traceback.FrameSummary(*names, line=line[:_LONGEST_LINE])
    return "".join(stack.format())


def _users(trace: TracebackType) -> TracebackType:
    """Return a traceback without our own frames at its top, unless it has no other."""
    start: TracebackType | None = trace
    while start is not None and _is_ours(start.tb_frame):
        start = start.tb_next
    return start or trace


def _is_ours(frame: FrameType) -> bool:
    name = dict.get(frame.f_globals, "__name__")
    return isinstance(name, str) and any(name == ours or name.startswith(f"{ours}.") for ours in _OURS)


# -- clearing ----------------------------------------------------------------------------------------------------


def clear_frames(error: BaseException, spared: BaseException | None = None) -> None:
    """Take the tracebacks from an exception and all that hangs on it, and drop what their frames still hold.

    - `spared`: one that is left as it is, with what hangs on it.

    So nothing large stays alive: neither through a cycle, nor through an exception that a module keeps and raises
    again and again (each time, Python lengthens its traceback). Never raises.
    """
    with suppress(Exception):
        for linked in _linked(error, spared):
            trace = _own(linked, "__traceback__")
            BaseException.with_traceback(linked, None)  # an exception may be a frozen dataclass
            while trace is not None:
                _clear(trace.tb_frame)
                trace = trace.tb_next


def _linked(error: BaseException, spared: BaseException | None = None) -> Iterator[BaseException]:
    """Yield an exception and all that hangs on it, each once, but for one that is spared."""
    seen: set[int] = set() if spared is None else {id(spared)}
    todo: list[Any] = [error]
    while todo:
        current = todo.pop()
        kind = type(current)
        if not issubclass(kind, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        todo += (_own(current, "__cause__"), _own(current, "__context__"))
        yield current
        if issubclass(kind, Retry):
            todo.append(_look(current, "exc"))
        elif issubclass(kind, Reject):
            todo.append(_look(current, "reason"))
        elif issubclass(kind, BaseExceptionGroup):
            todo += vars(BaseExceptionGroup)["exceptions"].__get__(current)


def _clear(frame: FrameType) -> None:
    # Before 3.13, clearing a suspended frame ends its coroutine: perhaps a reader of connections that many tasks
    # share, which has caught the exception, passed it on to its waiters, and lives.
    if sys.version_info < (3, 13) and frame.f_code.co_flags & _MAY_BE_SUSPENDED:
        return
    try:
        frame.clear()
    except RuntimeError:
        pass  # it still runs


# -- and back ----------------------------------------------------------------------------------------------------


def revive(report: ErrorReport) -> Exception:
    """Return an exception made of its report; never raises.

    - `report`: what `report` or `decode_error` returned.

    It is of the original class if this process has imported its module already, if it is a subclass of `Exception`,
    and if it can be built from the args. Else it is a stand-in: of a subclass of `TaskFailed` with the same name and
    module, the same class for the same name, whose `error` is the report. So is every exception that `get()` raises
    for reasons of its own (`ResultTimeout`, `DatabaseUnavailable`, `LeaseLost`), that is an order to pgqueue (`Retry`,
    `Reject`, `Ignore`) or the end of an iteration.

    A group comes back as an `ExceptionGroup` of its members, and a stand-in of a group is one as well. Notes are
    added, and one more with the original message if this one's differs. Nothing is imported, and no user's code is
    called but the constructor and `__str__` of an exception that the process knows.

    Its `__cause__` is a `TaskFailed` whose text is the remote traceback; the `__cause__` of that is the original
    cause, revived. Without a remote traceback, the original cause takes its place.

        revive(ErrorReport("KeyError", "builtins", "'k'", args=("k",)))     # KeyError('k')
    """
    error = _revived(report, MAX_CAUSES)
    if report.traceback:
        remote = TaskFailed(report, report.traceback)
        _set_own(remote, "__cause__", _own(error, "__cause__"))
        _set_own(error, "__cause__", remote)
    return error


def _revived(report: ErrorReport, depth: int) -> Exception:
    members = [_revived(member, depth - 1) for member in report.exceptions[:MOST_ITEMS]] if depth else []
    error = _original(report, members)
    if error is None:
        error = _stand_in(report, members)
    notes = report.notes[:MOST_ITEMS]
    if text_of(error) != report.message:
        notes += (f"The message was: {report.message}",)
    for note in notes:
        with suppress(BaseException):  # a frozen dataclass
            BaseException.add_note(error, note)
    if report.cause and depth:
        _set_own(error, "__cause__", _revived(report.cause, depth - 1))
    return error


def _set_own(error: BaseException, name: str, value: object) -> None:
    """Set what a class may refuse to have set, such as that of a frozen dataclass."""
    vars(BaseException)[name].__set__(error, value)


def _original(report: ErrorReport, members: list[Exception]) -> Exception | None:
    try:
        kind = _known(report)
        if kind is None or issubclass(kind, _NEVER_REVIVED):
            return None
        if members:
            return _instance(kind, kind(str(report.args[0]), members)) if issubclass(kind, ExceptionGroup) else None
        # The engine and its SQL write errors of pgqueue with a message alone.
        args = report.args or ((report.message,) if report.module == TaskFailed.__module__ else ())
        error = _instance(kind, kind(*args))
        if error is not None:
            _set_own(error, "args", args)  # a constructor may have made its message of them once more
        return error
    except BaseException:  # whatever a constructor does to what was not meant for it
        return None


def _instance(kind: type, made: object) -> Exception | None:
    # Not isinstance, which asks an object for its class.
    return cast(Exception, made) if issubclass(type(made), kind) and issubclass(type(made), Exception) else None


def _known(report: ErrorReport) -> type[Exception] | None:
    """Return the class that a report names if it is here; asks no module and no class, as some run code then."""
    found: Any = sys.modules.get(report.module)
    namespace = object.__getattribute__(found, "__dict__")
    for name in report.type.split("."):
        found = namespace[name]
        if not issubclass(type(found), type):
            return None
        namespace = type.__getattribute__(found, "__dict__")
    return found if issubclass(found, Exception) else None


def _stand_in(report: ErrorReport, members: list[Exception]) -> TaskFailed:
    kind = _stand_in_class(cut(report.type, LONGEST_NAME), cut(report.module, LONGEST_NAME), bool(members))
    message = report.args[0] if report.args and isinstance(report.args[0], str) else report.message
    error: TaskFailed = kind.__new__(kind, *((message, members) if members else ()))
    TaskFailed.__init__(error, report, report.message)
    return error


@lru_cache(maxsize=1000)
def _stand_in_class(qualname: str, module: str, group: bool) -> type[TaskFailed]:
    bases = (TaskFailed, ExceptionGroup) if group else (TaskFailed,)
    return type(
        qualname.rpartition(".")[2] or qualname or "Exception",
        bases,
        {"__qualname__": qualname, "__module__": module, "__reduce__": lambda self: (revive, (self.error,))},
    )
