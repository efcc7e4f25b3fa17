"""Exceptions become data that can be stored, whatever they do, and exceptions again; nothing of their frames stays."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import pickle
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgqueue import errors
from pgqueue.errors import Reject, Retry, TaskFailed
from pgqueue.reports import clear_frames, report, revive
from pgqueue.serialization import decode_error, encode_error
from pgqueue.serialization.reports import MAX_ERROR_BYTES, name_of
from pgqueue.types import ErrorReport

OUTSIDE = BaseException, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError


def stored(error: BaseException) -> ErrorReport:
    """Return the report of an exception after it has been in the database."""
    return decode_error(encode_error(report(error)))


def back(error: BaseException) -> Any:
    return revive(stored(error))


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def for_postgresql(text: str) -> object:
    """Return what a JSON text says; fail if PostgreSQL would refuse it as json or as jsonb."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    shown = json.dumps(found, ensure_ascii=False)
    shown.encode()
    assert r"\u0000" not in shown
    assert len(text.encode()) <= MAX_ERROR_BYTES
    return found


# -- as data -----------------------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"


class Status(IntEnum):
    NOT_FOUND = 404


class Kind(Enum):
    ODD = 1


class Lying(str):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: object) -> str:
        return "x" * 10**6

    def __str__(self) -> str:
        return self


class Mute:
    def __repr__(self) -> str:
        raise SystemExit


class Posing:
    @property
    def __class__(self) -> Any:
        return bool

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


@pytest.mark.parametrize(
    ("arg", "kept"),
    [
        (None, None),
        (True, True),
        (-5, -5),
        (1.5, 1.5),
        ("a text", "a text"),
        ({"code": 5, "of": [1, None, {"x": []}]}, {"code": 5, "of": [1, None, {"x": []}]}),
        ((1, (2, 3)), [1, [2, 3]]),
        (Colour.RED, "red"),
        (Status.NOT_FOUND, 404),
        ([Colour.RED, Status.NOT_FOUND], ["red", 404]),
        ({1: 2}, {"1": 2}),
        (Kind.ODD, "<Kind.ODD: 1>"),
        (UUID(int=5), "UUID('00000000-0000-0000-0000-000000000005')"),
        (float("nan"), "nan"),
        ([float("inf")], "[inf]"),
        (b"bytes", "b'bytes'"),
        ([object], "[<class 'object'>]"),
        ("a\0b\ud800", r"a\x00b\ud800"),
        (["\0"], [r"\x00"]),
        (Mute(), "<Mute without a readable text>"),
        ([Mute()], "<list without a readable text>"),
        (Lying("abc"), "abc"),
        ([Lying("abc")], ["abc"]),
        (10**10_000, "<int without a readable text>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_argument_is_data_where_it_can_be_and_else_a_text(arg: object, kept: object) -> None:
    if sys.version_info >= (3, 14) and arg == 10**10_000:
        kept = "<int instance with roughly 10001 digits>"
    found = stored(ValueError(arg))
    assert found.args == (kept,)
    assert type(found.args[0]) is type(kept)


def test_an_argument_that_poses_as_something_else_is_shown() -> None:
    assert "Posing object at" in str(stored(ValueError(Posing())).args[0])


@pytest.mark.parametrize("arg", [["x" * 2000], list(range(1000)), {"x" * 1001: 1}, [[[[[[[1]]]]]]]])
def test_an_argument_that_is_not_small_is_a_text(arg: object) -> None:
    kept = stored(ValueError(arg)).args[0]
    assert isinstance(kept, str)
    assert len(kept) <= 1000


def test_a_circle_is_shown() -> None:
    circle: list[object] = []
    circle.append(circle)
    assert "[...]" in str(stored(ValueError(circle)).args[0])


def test_a_report_is_as_it_was_after_it_has_been_stored() -> None:
    error = ExceptionGroup("several\0", [ValueError("\ud800", {"a": [1]}), KeyError("k")])
    error.__cause__ = OSError(2, "no", "such\0")
    error.add_note("note\0")
    assert stored(error) == report(error)


def test_rows_without_members_are_read() -> None:
    old = '{"type":"E","module":"m","message":"x","args":[1],"notes":[],"cause":null,"traceback":null}'
    assert decode_error(old) == ErrorReport("E", "m", "x", args=(1,))


@pytest.mark.parametrize(
    "members", ["5", "{}", '"x"', "[1,null,[]]", "[" * 150 + "]" * 150, "[" + "1," * 10**5 + "1]"], ids=range(6)
)
def test_members_that_are_none_are_read_somehow(members: str) -> None:
    found = decode_error(f'{{"type":"E","module":"m","message":"x","exceptions":{members}}}')
    assert (found.type, found.message) == ("E", "x")
    assert len(found.exceptions) <= 20
    revive(found)


def test_what_is_written_by_others_is_read_ten_levels_deep() -> None:
    text = '{"type":"E"}'
    for level in range(45):
        key = "cause" if level % 2 else "exceptions"
        text = f'{{"type":"E","{key}":{f"[{text}]" if key == "exceptions" else text}}}'
    link: ErrorReport | None = decode_error(text)
    levels = 0
    while link is not None:
        levels += 1
        link = link.cause or next(iter(link.exceptions), None)
    assert levels == 11


# -- bounds ------------------------------------------------------------------------------------------------------


def a_long_chain(length: int, text: str = "") -> Exception:
    error = ValueError(f"{text}0")
    for number in range(1, length):
        outer = ValueError(f"{text}{number}")
        outer.__cause__ = error
        error = outer
    return error


def a_wide_group(text: str = "", notes: int = 0) -> Exception:
    error = ExceptionGroup("g", [ExceptionGroup("h", [ValueError(text) for _ in range(20)]) for _ in range(500)])
    for _ in range(notes):
        error.add_note(text)
        for inner in error.exceptions:
            inner.add_note(text)
    return error


def a_deep_group(depth: int) -> Exception:
    error: Exception = ValueError("the innermost")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


def an_endless_recursion() -> Exception:
    def down(n: int = 0) -> int:
        return up(n + 1) + 1

    def up(n: int) -> int:
        return down(n + 1) + 1

    error = raised(down)
    assert isinstance(error, RecursionError)
    return error


def long_lines_and_names() -> Exception:
    source = f"def {'f' * 10**6}(n):\n    if n: {'f' * 10**6}(n - 1)\n    else: 1/0  # {'x' * 10**6}\n{'f' * 10**6}(40)"
    error = raised(lambda: exec(compile(source, "y" * 10**6, "exec"), {"__name__": 5}))
    assert isinstance(error, ZeroDivisionError)
    return error


LARGE: dict[str, Callable[[], BaseException]] = {
    "message": lambda: ValueError("x" * 10**7),
    "message that is no text": lambda: ValueError("\0\ud800" * 10**6),
    "args": lambda: ValueError(*["x" * 10**6] * 100),
    "list": lambda: ValueError([1] * 10**6),
    "bytes": lambda: ValueError(b"x" * 10**6),
    "key": lambda: KeyError("k" * 10**7),
    "chain": lambda: a_long_chain(5000),
    "chain of long messages": lambda: a_long_chain(100, "x" * 10**5),
    "wide group": lambda: a_wide_group("x" * 1000),
    "wide group with notes": lambda: a_wide_group("\x01" * 10_000, 30),
    "deep group": lambda: a_deep_group(500),
    "recursion": an_endless_recursion,
    "lines and names": long_lines_and_names,
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_what_is_very_large_is_cut_and_costs_little(make: Callable[[], BaseException]) -> None:
    error = make()
    start = time.process_time()
    text = encode_error(report(error))
    for_postgresql(text)
    again = revive(decode_error(text))
    assert time.process_time() - start < 2
    assert type(again) is type(error)
    assert again.__cause__ is not None
    assert len(str(again)) <= MAX_ERROR_BYTES


def test_a_report_made_by_hand_is_cut_too() -> None:
    leaf = ErrorReport("E" * 10**6, "m" * 10**6, "\0" * 10**6, ("x" * 10**6,) * 99, ("n" * 10**6,) * 99)
    group = ErrorReport("G", "m", "", traceback="t" * 10**7, exceptions=(leaf,) * 99)
    found = decode_error(encode_error(ErrorReport("F", "m", "", cause=group, exceptions=(group,) * 99)))
    for_postgresql(encode_error(found))
    assert found.cause is not None
    assert found.cause.exceptions
    assert len(found.exceptions) == 20


def test_every_member_has_its_share() -> None:
    members = [a_long_chain(100, "x" * 10**5) for _ in range(15)]
    found = stored(ExceptionGroup("g", [*members, KeyError("last"), a_wide_group()]))
    assert len(found.exceptions) == 17
    assert [member.type for member in found.exceptions[-2:]] == ["KeyError", "ExceptionGroup"]
    assert all(member.cause for member in found.exceptions[:15])


def test_all_levels_together_have_fifty_reports() -> None:
    def count(found: ErrorReport) -> int:
        return 1 + sum(map(count, found.exceptions)) + (count(found.cause) if found.cause else 0)

    assert 20 < count(report(a_wide_group())) <= 50
    leaf = ErrorReport("E", "m", "")
    group = ErrorReport("G", "m", "", exceptions=(leaf,) * 20)
    assert (
        20 < count(decode_error(encode_error(ErrorReport("G", "m", "", cause=group, exceptions=(group,) * 20)))) <= 50
    )


def test_a_class_that_hides_its_name_keeps_it() -> None:
    class Hiding(type):
        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit

    found = stored(Hiding("Hidden", (Exception,), {"__module__": "shop"})("x"))
    assert (found.type, found.module, found.message) == ("Hidden", "shop", "x")


def test_causes_and_members_are_followed_five_levels_deep() -> None:
    error = ExceptionGroup("0", [a_long_chain(9)])
    error.__cause__ = a_deep_group(9)
    found = report(error)
    levels = [0, 0]
    for index, first in enumerate((found.cause, found.exceptions[0])):
        link: ErrorReport | None = first
        while link is not None:
            levels[index] += 1
            link = link.cause or next(iter(link.exceptions), None)
    assert levels == [5, 5]


def test_circles_end() -> None:
    inner: list[Exception] = [ValueError("inner")]
    error = ExceptionGroup("outer", inner)
    inner[0].__cause__ = error
    found = stored(error)
    assert found.exceptions[0].cause is None
    assert found.exceptions[0].message == "inner"


# -- traceback ---------------------------------------------------------------------------------------------------


def test_a_traceback_is_what_python_shows() -> None:
    def function() -> None:
        try:
            dict[str, int]()["k"]
        except KeyError as error:
            error.add_note("a note\nof two lines")
            try:
                raise OSError(2, "none") from error
            except OSError:
                int("x")

    error = raised(function)
    assert report(error).traceback == "".join(traceback.format_exception(error))


def test_a_group_shows_its_members_with_their_causes() -> None:
    caused = ValueError("one")
    caused.__cause__ = KeyError("why")
    text = report(ExceptionGroup("several", [caused, OSError("two")] + [ValueError("more")] * 30)).traceback or ""
    for line in (
        "ExceptionGroup: several (32 sub-exceptions)",
        "  | KeyError: 'why'",
        "  | ValueError: one",
        "  +---------------- 2 ----------------",
        "  | OSError: two",
        "  +---------------- 12 more",
    ):
        assert line in text.splitlines()


def test_a_suppressed_context_is_not_told() -> None:
    def function() -> None:
        try:
            raise KeyError("password")
        except KeyError:
            raise ValueError("bad") from None

    found = report(raised(function))
    assert found.cause is None
    assert "password" not in (found.traceback or "")


@pytest.mark.parametrize("ours", ["pgqueue.tracer.build", "pgqueue.task", "pgqueue.eager"])
def test_our_own_frames_at_the_top_are_hidden(ours: str) -> None:
    def users() -> None:
        exec(compile("def inner(): 1/0", "below.py", "exec"), below)
        below["inner"]()

    above: dict[str, Any] = {"__name__": ours, "users": users}
    below: dict[str, Any] = {"__name__": ours}
    exec(compile("def outer(): users()", "above.py", "exec"), above)
    error = raised(above["outer"])
    assert error.__traceback__ is not None
    found = report(error.with_traceback(error.__traceback__.tb_next)).traceback or ""
    assert "above.py" not in found
    assert "below.py" in found
    assert "in users" in found


def test_a_traceback_of_our_own_frames_alone_is_shown() -> None:
    ours: dict[str, Any] = {"__name__": "pgqueue.task"}
    exec(compile("def function(): 1/0", "ours.py", "exec"), ours)
    error = raised(ours["function"])
    assert error.__traceback__ is not None
    assert "ours.py" in (report(error.with_traceback(error.__traceback__.tb_next)).traceback or "")


# -- and back ----------------------------------------------------------------------------------------------------


class OutOfStock(Exception):
    def __init__(self, item: str, missing: int = 1) -> None:
        self.item = item
        super().__init__(item, missing)

    def __str__(self) -> str:
        return f"no {self.item}"

    class Forever(ValueError): ...


class Sentence(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Attributed(Exception):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)

    def __str__(self) -> str:
        return "good" if isinstance(self.status, int) else "strange"


class Empty(Exception):
    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class Frozen(Exception):
    code: int = 1


class Everything(ExceptionGroup[Exception]):
    def __new__(cls, message: str, errors: list[Exception]) -> Everything:
        return super().__new__(cls, message, errors)


class Odd(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception]) -> Odd:
        return super().__new__(cls, "odd", errors)

    def __init__(self, errors: list[Exception]) -> None: ...


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        ValueError(),
        ValueError({"code": 5}, [1, None]),
        KeyError("k"),
        OSError(2, "none"),
        ConnectionRefusedError(111, "refused"),
        SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)),
        TimeoutError("late"),
        Warning("careful"),
        OutOfStock("apples", 3),
        OutOfStock.Forever("x"),
        Sentence("apples"),
        Frozen(5),
        Empty("x"),
        errors.WorkerLostError("signal 9"),
        errors.TimeLimitExceeded("60 s"),
        errors.SoftTimeLimitExceeded("30 s"),
        errors.TaskRevokedError("revoked"),
        errors.TaskRejectedError("no"),
        errors.UnknownTask("t"),
        errors.InvalidArguments("n: missing"),
        errors.MaxRetriesExceededError("3"),
        errors.PayloadTooLarge("2 MB"),
    ],
    ids=repr,
)
def test_an_exception_comes_back_as_itself(error: Exception) -> None:
    again = back(error)
    assert type(again) is type(error)
    assert report(again).args == report(error).args
    assert str(again) == str(error)
    assert not hasattr(again, "__notes__")


def test_what_a_constructor_set_is_set_again() -> None:
    assert back(OutOfStock("apples")).item == "apples"
    assert back(OSError(2, "none")).errno == 2


@pytest.mark.parametrize(
    "error",
    [
        KeywordOnly(code=5),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        json.JSONDecodeError("bad", "doc", 0),
        TaskFailed(ErrorReport("E", "m", "x")),
        errors.NotSerializable("args[0]", "cannot"),
        *(kind("out") for kind in OUTSIDE),
        StopIteration(5),
        StopAsyncIteration(),
        Retry("again"),
        Reject("no"),
        errors.Ignore(),
        errors.LeaseLost("gone"),
        errors.ResultTimeout("late"),
        errors.DatabaseUnavailable("down"),
        errors.WorkerShutdown(),
    ],
    ids=repr,
)
def test_what_cannot_or_must_not_come_back_has_a_stand_in(error: BaseException) -> None:
    again = back(error)
    assert isinstance(again, TaskFailed)
    assert type(again) is not type(error)
    assert (type(again).__name__, type(again).__qualname__) == (type(error).__name__, type(error).__qualname__)
    assert type(again).__module__ == type(error).__module__
    assert str(again) == str(error)
    assert again.error == stored(error)
    assert type(back(error)) is type(again)


def named(type_: str, module: str, *args: Any, **fields: Any) -> Exception:
    return revive(ErrorReport(type_, module, "text", args, **fields))


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert isinstance(named("Error", "this"), TaskFailed)
    assert "this" not in sys.modules


class Trap:
    """Neither a call nor a look at it may happen."""

    sprung = False

    def __call__(self, *args: object) -> Exception:
        type(self).sprung = True
        return ValueError(*args)

    def __getattr__(self, name: str) -> Any:
        type(self).sprung = True
        raise AttributeError(name)

    @property
    def __class__(self) -> Any:
        type(self).sprung = True
        return type

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


def test_only_exception_classes_are_looked_at_and_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            Trap.sprung = True
            return ValueError

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:
            Trap.sprung = True
            return ValueError

    class Plain(metaclass=Meta):
        Inner = Trap()

        def __init__(self, *args: object) -> None:
            Trap.sprung = True

    module = ModuleType("traps")
    vars(module).update(trap=Trap(), Plain=Plain, function=lambda: Trap()(), __getattr__=lambda name: Trap()())
    monkeypatch.setitem(sys.modules, "traps", module)
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    monkeypatch.setitem(sys.modules, "object", Trap())
    monkeypatch.setitem(sys.modules, "nothing", None)
    for where, names in {
        "traps": "trap trap.x Plain Plain.Inner Plain.Inner.x Plain.y function function.<locals>.E absent __class__",
        "lazy": "Error Error.x",
        "object": "Error x.y",
        "nothing": "Error",
        "os": "system path.join",
        "builtins": "eval exec type object SystemExit BaseException",
        "subprocess": "Popen",
    }.items():
        for name in names.split():
            found = named(name, where, "true")
            assert isinstance(found, TaskFailed)
            assert (type(found).__qualname__, type(found).__module__, str(found)) == (name, where, "text")
    assert not Trap.sprung


@pytest.mark.parametrize(
    ("type_", "module"),
    [
        ("", ""),
        (".", "."),
        ("a\0b", "c\0d"),
        ("\ud800", "\ud800"),
        ("x" * 10**6, "y" * 10**6),
        ("a b", "1 2"),
        ("E..F", ""),
    ],
)
def test_any_name_gives_a_stand_in(type_: str, module: str) -> None:
    for members in ((), (ErrorReport("E", "m", "x"),)):
        found = named(type_, module, exceptions=members)
        assert isinstance(found, TaskFailed)
        assert isinstance(found, ExceptionGroup) is bool(members)
        repr(found)


@pytest.mark.parametrize("kind", [ValueError, *OUTSIDE, StopIteration, MemoryError])
def test_a_constructor_may_raise_anything(monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]) -> None:
    class Bad(Exception):
        def __init__(self, *args: object) -> None:
            raise kind

    class Other(Exception):
        def __new__(cls, *args: object) -> Any:
            return kind()

    module = ModuleType("bad")
    vars(module).update(Bad=Bad, Other=Other)
    monkeypatch.setitem(sys.modules, "bad", module)
    assert isinstance(named("Bad", "bad"), TaskFailed)
    assert isinstance(named("Other", "bad"), TaskFailed)


def test_stand_ins_are_told_apart_and_their_number_is_bounded() -> None:
    first = type(named("E", "absent.one"))
    assert type(named("E", "absent.one", 5)) is first
    assert type(named("E", "absent.two")) is not first
    with pytest.raises(first):
        raise named("E", "absent.one")
    for number in range(1500):
        named(f"E{number}", "absent.one")
    assert type(named("E", "absent.one")) is not first


def test_a_message_that_was_another_is_a_note() -> None:
    error = Attributed(5)
    error.status = "?"  # type: ignore[assignment]
    error.add_note("first")
    again = back(error)
    assert type(again) is Attributed
    assert again.__notes__ == ["first", "The message was: strange"]


def test_notes_come_back() -> None:
    for error in (ValueError("bad"), KeywordOnly(code=5)):
        error.add_note("row 7")
        error.add_note("column 8")
        assert back(error).__notes__ == ["row 7", "column 8"]


def test_the_remote_traceback_is_the_cause_and_the_original_cause_is_the_cause_of_that() -> None:
    def function() -> None:
        try:
            try:
                dict[str, int]()["k"]
            except KeyError as error:
                raise KeywordOnly(code=1) from error
        except KeywordOnly:
            raise OutOfStock("apples")  # noqa: B904

    found = stored(raised(function))
    again = revive(found)
    remote = again.__cause__
    assert type(again) is OutOfStock
    assert type(remote) is TaskFailed
    assert (str(remote), remote.error, remote.traceback) == (found.traceback, found, found.traceback)
    assert type(remote.__cause__).__name__ == "KeywordOnly"
    assert repr(remote.__cause__.__cause__) == "KeyError('k')"  # type: ignore[union-attr]
    shown = "".join(traceback.format_exception(again))
    assert 'raise OutOfStock("apples")' in shown


def test_without_a_remote_traceback_the_cause_is_the_original_one() -> None:
    again = named(
        "WorkerLostError", "pgqueue.errors", "signal 9", cause=ErrorReport("KeyError", "builtins", "'k'", ("k",))
    )
    assert repr(again.__cause__) == "KeyError('k')"
    assert named("WorkerLostError", "pgqueue.errors", "signal 9").__cause__ is None


def test_a_frozen_dataclass_has_its_cause_too() -> None:
    error = Frozen(5)
    BaseException.__setattr__(error, "__cause__", None)
    again = back(raised(lambda: (_ for _ in ()).throw(error)))
    assert type(again) is Frozen
    assert type(again.__cause__) is TaskFailed


def test_a_group_comes_back_with_its_members() -> None:
    inner = ValueError("one")
    inner.__cause__ = KeyError("why")
    for kind in (ExceptionGroup, Everything):
        again = back(kind("several", [inner, ExceptionGroup("more", [OutOfStock("apples")])]))
        assert type(again) is kind
        assert again.message == "several"
        assert [type(error) for error in again.exceptions] == [ValueError, ExceptionGroup]
        assert repr(again.exceptions[0].__cause__) == "KeyError('why')"
        assert type(again.exceptions[1].exceptions[0]) is OutOfStock  # type: ignore[union-attr]
        assert not hasattr(again, "__notes__")


@pytest.mark.parametrize(
    "error",
    [
        Odd([ValueError("one")]),
        BaseExceptionGroup("several", [SystemExit(3), ValueError("one")]),
        BaseExceptionGroup("several", [SystemExit(3)]),
    ],
    ids=repr,
)
def test_a_group_that_cannot_come_back_has_a_stand_in_that_is_a_group(error: BaseExceptionGroup[Any]) -> None:
    again = back(error)
    assert isinstance(again, TaskFailed)
    assert isinstance(again, ExceptionGroup)
    assert type(again).__name__ == type(error).__name__
    assert str(again) == str(error)
    assert [type(member).__name__ for member in again.exceptions] == [type(each).__name__ for each in error.exceptions]
    caught: list[Exception] = []
    try:
        raise again
    except* (ValueError, TaskFailed) as several:
        caught.extend(several.exceptions)
    assert caught


def test_a_group_of_many_says_how_many() -> None:
    again = back(ExceptionGroup("g", [ValueError(str(number)) for number in range(10_000)]))
    assert len(again.exceptions) == 20
    assert again.__notes__ == ["The message was: g (10000 sub-exceptions)"]


def test_a_stand_in_that_is_raised_in_a_task_keeps_its_name() -> None:
    first = named("OutOfStock", "absent.errors", "apples", 3)
    second = back(raised(lambda: (_ for _ in ()).throw(first)))
    assert type(second) is type(first)


def test_a_failure_can_be_copied_and_passed_to_another_process() -> None:
    for error in (named("E", "absent.m", 1), TaskFailed(ErrorReport("E", "m", "x"), "text")):
        assert isinstance(error, TaskFailed)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), str(again), again.error) == (type(error), str(error), error.error)


# -- memory ------------------------------------------------------------------------------------------------------


class Large: ...


@pytest.fixture
def _without_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def failing(alive: list[weakref.ref[Large]], error: BaseException | None = None) -> BaseException:
    """Return an exception that was raised where a local holds something large, and which holds itself."""

    def inner() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        held = error or ValueError("bad")
        raise held

    return raised(inner)


class Refusing(Exception):
    __cause__ = property(lambda self: exec("raise SystemExit"))
    __traceback__ = property(lambda self: exec("raise SystemExit"))
    __class__ = property(lambda self: exec("raise SystemExit"))


def linked_by_cause(first: BaseException, second: BaseException) -> BaseException:
    vars(BaseException)["__cause__"].__set__(first, second)
    return first


HOLDING: dict[str, Callable[[list[weakref.ref[Large]]], BaseException]] = {
    "itself": failing,
    "cause": lambda alive: linked_by_cause(ValueError(), failing(alive)),
    "cause of a cause": lambda alive: linked_by_cause(ValueError(), linked_by_cause(KeyError(), failing(alive))),
    "member": lambda alive: BaseExceptionGroup("g", [BaseExceptionGroup("h", [failing(alive)])]),
    "cause of a member": lambda alive: BaseExceptionGroup("g", [linked_by_cause(ValueError(), failing(alive))]),
    "member of a cause": lambda alive: linked_by_cause(ValueError(), BaseExceptionGroup("g", [failing(alive)])),
    "exc of a retry": lambda alive: Retry(exc=failing(alive)),
    "cause of exc of a retry": lambda alive: Retry(exc=linked_by_cause(ValueError(), failing(alive))),
    "reason of a rejection": lambda alive: Reject(failing(alive)),
    "what refuses everything": lambda alive: failing(alive, Refusing()),
    "the cause of what refuses everything": lambda alive: linked_by_cause(Refusing(), failing(alive)),
    "the end of a long chain": lambda alive: linked_by_cause(a_long_chain(1), a_chain_to(failing(alive))),
}


def a_chain_to(error: BaseException) -> BaseException:
    for _ in range(3000):
        error = linked_by_cause(ValueError(), error)
    return error


@pytest.mark.usefixtures("_without_garbage_collector")
@pytest.mark.parametrize("make", HOLDING.values(), ids=HOLDING)
def test_nothing_that_frames_held_is_alive_although_the_exception_is(
    make: Callable[[list[weakref.ref[Large]]], BaseException],
) -> None:
    alive: list[weakref.ref[Large]] = []
    error = make(alive)
    assert alive[0]() is not None
    found = report(error)
    assert alive[0]() is not None
    clear_frames(error)
    assert alive[0]() is None
    assert type(error) is not None
    assert report(error).message == found.message


# -- whatever an exception does ----------------------------------------------------------------------------------

ODD_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20) | st.builds(
    str.__mul__, st.sampled_from(["\0", "\ud800x", "x"]), st.sampled_from([1, 20_000])
)
ODD_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ODD_TEXT
    | ODD_TEXT.map(Lying)
    | st.binary(max_size=5)
    | st.builds(Mute)
    | st.builds(Posing)
    | st.builds(object)
    | st.builds(pow, st.just(10), st.sampled_from([600, 5000, 10_000]))
    | st.builds(Refusing)
    | st.builds(ValueError)
    | st.sampled_from([Colour.RED, Status.NOT_FOUND]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(ODD_TEXT | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=4,
)
HOSTILE = [
    "__str__", "__repr__", "__notes__", "__reduce__", "__reduce_ex__", "__class__", "__cause__", "__context__",
    "__suppress_context__", "args", "__traceback__", "__dict__", "__hash__", "__eq__", "__bool__", "__len__",
    "__iter__", "__getattribute__", "__getattr__", "__setattr__", "__doc__", "__module__",
    "with_traceback", "add_note", "exceptions", "message", "derive", "__subclasshook__",
]  # fmt: skip
META = [
    "__name__",
    "__qualname__",
    "__module__",
    "__call__",
    "__getattribute__",
    "__subclasscheck__",
    "__instancecheck__",
]
FUZZED = "reports_fuzzed"
MODULE = ModuleType(FUZZED)


# No KeyboardInterrupt: it would end the tests where pytest shows what has failed.
RAISING = [RuntimeError, RecursionError, MemoryError, AttributeError, StopIteration, SystemExit, GeneratorExit]
HOW = ["it is", "property", "method"]


def behaviour(how: str, answer: Any) -> Any:
    """What a class may have under a name: a value, or a property or a method that answers it or raises it."""

    def behave(*args: object, **kwargs: object) -> Any:
        if answer in RAISING:
            raise answer
        return answer

    return {"it is": answer, "property": property(behave), "method": behave}[how]


BEHAVIOURS = st.builds(behaviour, st.sampled_from(HOW), st.sampled_from(RAISING) | ODD_VALUES)
CLASSES = st.tuples(
    st.sampled_from(
        [Exception, ValueError, KeyError, OSError, BaseException, SystemExit, TaskFailed, BaseExceptionGroup]
    ),
    st.dictionaries(st.sampled_from(HOSTILE), BEHAVIOURS, max_size=5),
    st.dictionaries(st.sampled_from(META), BEHAVIOURS, max_size=1),
    st.sampled_from([FUZZED, "absent", "builtins", 5]),
    ODD_TEXT | ODD_TEXT.map(Lying),
)


def made(
    form: tuple[Any, dict[str, Any], dict[str, Any], object, str],
    args: list[object],
    notes: object,
    members: list[BaseException],
    links: list[BaseException],
) -> BaseException:
    """Return an exception that has been raised, of a class that misbehaves as far as Python lets it."""
    base, namespace, meta, module, name = form
    kind: Any = base
    for names, metas in ((namespace, meta), (namespace, {}), ({}, {})):
        try:
            metaclass = type("Meta", (type,), metas)
            kind = type.__new__(metaclass, "Hostile", (base,), {"__module__": module, "__qualname__": name, **names})
            break
        except Exception:  # a `__hash__` or `__eq__` that is no function, a `__dict__` that is no dict
            continue
    vars(MODULE)[name_of(kind)] = kind
    given = ("group", members or [ValueError("member")]) if base is BaseExceptionGroup else args
    error: BaseException = base.__new__(kind, *given)
    for link, linked in zip(("__context__", "__cause__"), links, strict=False):
        vars(BaseException)[link].__set__(error, linked)
    with contextlib.suppress(BaseException):
        error.__notes__ = notes  # type: ignore[assignment]
    try:
        raise error
    except BaseException as caught:
        return caught


Recipe = Callable[[], BaseException]


def recipe(form: Any, args: list[object], notes: object, members: list[Recipe], links: list[Recipe]) -> Recipe:
    """Return what makes the exception: Hypothesis would ask itself for its repr and its hash."""
    return lambda: made(form, args, notes, [make() for make in members], [make() for make in links])


RECIPES = st.recursive(
    st.builds(recipe, CLASSES, st.lists(ODD_VALUES, max_size=3), ODD_VALUES, st.just([]), st.just([])),
    lambda inner: st.builds(
        recipe,
        CLASSES,
        st.lists(ODD_VALUES, max_size=3),
        ODD_VALUES,
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module", autouse=True)
def _module() -> Iterator[None]:
    sys.modules[FUZZED] = MODULE
    yield
    del sys.modules[FUZZED]


def names(found: ErrorReport) -> list[Any]:
    inner = [*found.exceptions, *([found.cause] if found.cause else [])]
    return [(found.type, found.module), *map(names, inner)]


# Not shrunk: that takes minutes.
@settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(RECIPES)
def test_whatever_an_exception_does_it_is_stored_and_comes_back_with_its_name(make: Recipe) -> None:
    error = make()
    kind = type(error)
    found = report(error)
    text = encode_error(found)
    for_postgresql(text)
    read = decode_error(text)
    assert read == found or len(text) > MAX_ERROR_BYTES / 4
    assert names(read) == names(found)
    assert read.type == name_of(kind)
    again = revive(read)
    assert issubclass(type(again), Exception)
    assert name_of(type(again)) == read.type
    clear_frames(error)
    assert vars(BaseException)["__traceback__"].__get__(error) is None
