"""Who is called when a signal is sent, and who is called no more."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pgqueue import signals
from pgqueue.errors import InvalidOption
from pgqueue.signals import Signal, _Link

Heard = list[dict[str, Any]]


@pytest.fixture
def rung() -> Signal:
    return Signal("rung", "pid", "how")


class Doorman:
    """Listens with a method."""

    def __init__(self) -> None:
        self.heard: Heard = []

    def hear(self, **named: Any) -> str:
        self.heard.append(named)
        return "heard"


def names(signal: Signal) -> list[str]:
    """Send, and return the answers that are texts."""
    return [answer for _, answer in signal.send(sender="door") if isinstance(answer, str)]


# -- connect and send --------------------------------------------------------------------------------------------


def test_a_receiver_gets_the_signal_the_sender_and_the_payload(rung: Signal) -> None:
    heard: Heard = []

    def receiver(**named: Any) -> str:
        heard.append(named)
        return "yes"

    assert rung.connect(receiver) is receiver
    assert rung.send(sender="door", pid=7, how="Warm") == [(receiver, "yes")]
    assert heard == [{"signal": rung, "sender": "door", "pid": 7, "how": "Warm"}]


def test_connect_is_a_decorator_with_and_without_arguments(rung: Signal) -> None:
    @rung.connect
    def plain(**kwargs: Any) -> str:
        return "plain"

    @rung.connect()
    def called(**kwargs: Any) -> str:
        return "called"

    @rung.connect(sender="door", weak=False)
    def told(sender: str, pid: int = 0, **kwargs: Any) -> str:
        return f"told by {sender}"

    assert names(rung) == ["plain", "called", "told by door"]
    assert callable(plain)
    assert callable(called)
    assert callable(told)


def test_without_receivers_there_is_nothing_to_walk(rung: Signal) -> None:
    assert not rung.receivers
    assert rung.send(sender=None) == []
    rung.connect(Doorman().hear, weak=False)
    assert rung.receivers


def test_a_sender_is_matched_by_identity_and_a_text_by_its_letters(rung: Signal) -> None:
    one, other = [1], [1]
    about_one, about_text = Doorman(), Doorman()
    rung.connect(about_one.hear, sender=one)
    rung.connect(about_text.hear, sender="shop.add")
    for sender in (one, other, None, ".".join(["shop", "add"]), "shop.pack"):
        rung.send(sender=sender)
    assert [named["sender"] for named in about_one.heard] == [one]
    assert about_one.heard[0]["sender"] is one
    assert [named["sender"] for named in about_text.heard] == ["shop.add"]


def test_a_receiver_is_connected_once_for_each_sender(rung: Signal) -> None:
    doorman = Doorman()
    rung.connect(doorman.hear)
    rung.connect(doorman.hear)
    rung.connect(doorman.hear, sender="door")
    rung.connect(doorman.hear, sender="window")
    rung.send(sender="door")
    assert len(doorman.heard) == 2


def test_the_uid_stands_for_the_receiver_and_the_first_one_stays(rung: Signal) -> None:
    first, second, third = Doorman(), Doorman(), Doorman()
    rung.connect(first.hear, dispatch_uid="doorman")
    rung.connect(second.hear, dispatch_uid="doorman")
    rung.connect(third.hear, dispatch_uid="other")
    rung.send()
    assert [len(each.heard) for each in (first, second, third)] == [1, 0, 1]


# -- weak and strong ---------------------------------------------------------------------------------------------


def test_a_local_function_out_of_scope_is_disconnected(rung: Signal) -> None:
    def connect() -> None:
        @rung.connect
        def local(**kwargs: Any) -> str:
            return "local"

        @rung.connect(weak=False)
        def kept(**kwargs: Any) -> str:
            return "kept"

        assert names(rung) == ["local", "kept"]

    connect()
    gc.collect()
    assert names(rung) == ["kept"]
    assert len(rung.receivers) == 1


def test_a_bound_method_lives_as_long_as_its_object(rung: Signal) -> None:
    doorman, other = Doorman(), Doorman()
    rung.connect(doorman.hear)
    rung.connect(other.hear)
    gc.collect()
    assert names(rung) == ["heard", "heard"]
    del doorman
    gc.collect()
    assert names(rung) == ["heard"]
    assert len(other.heard) == 2


def test_a_uid_is_free_again_when_its_receiver_is_gone(rung: Signal) -> None:
    rung.connect(Doorman().hear, dispatch_uid="doorman")
    gc.collect()
    doorman = Doorman()
    rung.connect(doorman.hear, dispatch_uid="doorman")
    rung.send()
    assert len(doorman.heard) == 1


def test_what_cannot_be_held_weakly_says_what_to_do(rung: Signal) -> None:
    class Sealed:
        __slots__ = ()

        def __call__(self, **kwargs: Any) -> str:
            return "sealed"

    with pytest.raises(InvalidOption, match=r"Sealed cannot be held weakly: connect it with weak=False"):
        rung.connect(Sealed())
    rung.connect(Sealed(), weak=False)
    assert names(rung) == ["sealed"]


# -- disconnect --------------------------------------------------------------------------------------------------


def test_disconnect_takes_what_connect_was_given(rung: Signal) -> None:
    doorman = Doorman()
    rung.connect(doorman.hear)
    rung.connect(doorman.hear, sender="door")
    rung.connect(doorman.hear, dispatch_uid=1)
    assert rung.disconnect(doorman.hear, sender="window") is False
    assert rung.disconnect(dispatch_uid=1) is True
    assert rung.disconnect(doorman.hear) is True
    assert rung.disconnect(doorman.hear) is False
    rung.send(sender="door")
    assert len(doorman.heard) == 1
    assert rung.disconnect(doorman.hear, sender="door") is True
    assert not rung.receivers


def test_a_receiver_may_disconnect_itself_and_connect_others(rung: Signal) -> None:
    doorman = Doorman()

    def once(**kwargs: Any) -> str:
        rung.disconnect(once)
        rung.connect(doorman.hear)
        return "once"

    rung.connect(once)
    assert names(rung) == ["once"]
    assert names(rung) == ["heard"]


# -- errors ------------------------------------------------------------------------------------------------------


def test_an_exception_is_logged_and_returned_and_stops_nobody(rung: Signal, caplog: pytest.LogCaptureFixture) -> None:
    doorman = Doorman()

    def broken(**kwargs: Any) -> None:
        raise KeyError("key")

    rung.connect(broken)
    rung.connect(doorman.hear)
    with caplog.at_level(logging.ERROR, "pgqueue.signals"):
        (receiver, error), (_, answer) = rung.send()
    assert receiver is broken
    assert isinstance(error, KeyError)
    assert answer == "heard"
    [record] = caplog.records
    assert record.name == "pgqueue.signals"
    assert "broken of the signal rung failed" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_who_wants_to_end_the_process_is_let(rung: Signal, kind: type[BaseException]) -> None:
    @rung.connect
    def leave(**kwargs: Any) -> None:
        raise kind(3)

    with pytest.raises(kind):
        rung.send()
    assert leave


async def _coroutine(**kwargs: Any) -> None: ...


def _positional_only(sender: object, /, **kwargs: Any) -> None: ...


def _stars(*args: Any, how: str, optional: int = 0, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("receiver", "complaint"),
    [
        (lambda: None, r"must accept \*\*kwargs"),
        (lambda sender, signal: None, r"must accept \*\*kwargs"),
        (
            lambda conf, **kwargs: None,
            "called by name with signal, sender, pid, how: missing a required argument: 'conf'",
        ),
        (
            _positional_only,
            "missing a required (positional-only )?argument: 'sender'|'sender' parameter is positional only",
        ),
        (_coroutine, "is a coroutine; use a plain function"),
        (5, "must be a function, not 5"),
    ],
)
def test_what_could_never_be_called_is_refused_when_it_is_connected(
    rung: Signal, receiver: Any, complaint: str
) -> None:
    with pytest.raises(InvalidOption, match=complaint):
        rung.connect(receiver)
    with pytest.raises(InvalidOption, match=complaint):
        rung.connect(sender="door")(receiver)
    assert not rung.receivers


@pytest.mark.parametrize("receiver", [_stars, functools.partial(_stars, how="Warm"), dict, Doorman().hear])
def test_whatever_takes_the_payload_by_name_is_a_receiver(rung: Signal, receiver: Callable[..., object]) -> None:
    rung.connect(receiver, weak=False)
    [(_, answer)] = rung.send(pid=1, how="Warm")
    assert not isinstance(answer, Exception)


# -- threads and forks -------------------------------------------------------------------------------------------


def test_no_connection_is_lost_when_threads_connect_at_once(rung: Signal) -> None:
    keep = [Doorman() for _ in range(200)]
    begin = threading.Barrier(4)

    def connect(some: list[Doorman]) -> None:
        begin.wait()
        for doorman in some:
            rung.connect(doorman.hear)

    threads = [threading.Thread(target=connect, args=(keep[place::4],)) for place in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(rung.send()) == len(keep)


def test_no_connection_is_lost_when_a_thread_connects_while_the_dead_are_swept(rung: Signal) -> None:
    doorman, looks = Doorman(), []
    other = threading.Thread(target=lambda: rung.connect(doorman.hear))

    def dead() -> None:  # stands for a weak reference; the second look at it is that of the sweep
        looks.append(1)
        if len(looks) == 2:
            other.start()
            other.join(0.05)  # it cannot end before the sweep has

    rung.receivers = (_Link(dead, None, None),)
    rung.send()
    other.join()
    assert names(rung) == ["heard"]


def test_no_lock_is_held_while_receivers_run(rung: Signal) -> None:
    doorman, free = Doorman(), threading.Event()

    def slow(**kwargs: Any) -> bool:
        thread = threading.Thread(target=lambda: (rung.connect(doorman.hear), free.set()))
        thread.start()
        return free.wait(10)

    rung.connect(slow)
    assert rung.send() == [(slow, True)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_child_may_connect_though_another_thread_was_connecting_when_it_was_forked(rung: Signal) -> None:
    held, never = threading.Event(), threading.Event()

    def hold() -> None:
        with signals._replacing:
            held.set()
            never.wait(0.2)  # the fork has to begin meanwhile

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(3)
        rung.connect(Doorman().hear, weak=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


def test_a_signal_knows_whether_anybody_hears_a_sender() -> None:
    bell = Signal("bell")
    assert not bell.heard_by("kitchen")

    def hear(**named: object) -> None: ...

    bell.connect(hear, sender="kitchen")
    assert bell.heard_by("kitchen")
    assert not bell.heard_by("hall")
    bell.connect(hear)
    assert bell.heard_by("hall")


# -- the signals of workers --------------------------------------------------------------------------------------


def test_the_signals_are_these() -> None:
    found = {name: value.payload for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert [value.name for value in vars(signals).values() if isinstance(value, Signal)] == list(found)
    assert found == {
        "worker_init": (),
        "worker_before_create_process": (),
        "worker_process_init": (),
        "worker_process_shutdown": ("pid", "exitcode"),
        "worker_ready": (),
        "worker_shutting_down": ("sig", "how", "exitcode"),
        "worker_shutdown": (),
        "before_task_publish": (
            "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"
        ),
        "after_task_publish": ("body", "exchange", "routing_key", "headers"),
        "task_received": ("request",),
        "task_prerun": ("task_id", "task", "args", "kwargs"),
        "task_postrun": ("task_id", "task", "args", "kwargs", "retval", "state"),
        "task_success": ("result",),
        "task_failure": ("task_id", "exception", "args", "kwargs", "traceback", "einfo"),
        "task_retry": ("request", "reason", "einfo"),
        "task_revoked": ("request", "terminated", "signum", "expired"),
        "task_internal_error": (
            "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"
        ),
        "task_rejected": ("message", "exc"),
        "task_unknown": ("message", "exc", "name", "id"),
        "setup_logging": ("loglevel", "logfile", "format", "colorize"),
    }  # fmt: skip
