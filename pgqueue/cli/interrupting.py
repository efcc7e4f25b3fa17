"""How a command that has begun much is interrupted: once, and then it tidies up undisturbed."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def catch_signals(stack: ExitStack) -> None:
    """Let the first signal that asks for the end unwind the stack, and further ones not disturb that."""
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if before != signal.SIG_IGN:  # as under nohup
            stack.callback(signal.signal, number, before)
            signal.signal(number, _unwind)


def ignore_signals() -> None:
    """Let no signal disturb the tidying up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _unwind(number: int, frame: FrameType | None) -> None:
    ignore_signals()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
