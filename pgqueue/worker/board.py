"""What a worker process and its supervisor tell each other, in memory that both share and that survives the process."""

from __future__ import annotations

import itertools
import mmap
import struct
import sys
from enum import IntEnum
from typing import NamedTuple


class Stop(IntEnum):
    """How a worker is to end: let tasks end, interrupt them, or hand their jobs back at once."""

    WARM = 1
    SOFT = 2
    COLD = 3


#: Everything ended in time; the worker failed; the database could not be told what was cut off; tasks were cut off and
#: their jobs handed back; it has run or taken enough and wants to be replaced; a hard time limit was over.
EXIT_OK, EXIT_FAILED, EXIT_UNTOLD, EXIT_CUT_OFF, EXIT_REPLACE, EXIT_LIMIT = 0, 1, 3, 4, 5, 6


class Begun(NamedTuple):
    """An attempt that has begun, or the last one of its slot; an ended one among them does no harm.

    `deadline` (monotonic, the same clock in every process of a host) is 0 where no hard time limit is running out;
    `limit` is that limit in seconds; `repeats` says that an attempt which meets it is repeated.
    """

    job: str
    attempt: int
    crashes: int
    repeats: bool
    deadline: float
    limit: float


# stop, parting, waiting, suspects, and since when the process has had nothing to do (0: it has)
_STOP, _PARTING, _WAITING, _SUSPECTS, _IDLE, _CELLS = 0, 1, 2, 3, 8, 16
_ID = 36  # characters of a UUID
_ATTEMPT = 4
_LIMITED = struct.Struct("=i?dd")
_ONE = _ID + _ATTEMPT
_CELL = _ONE + _LIMITED.size
#: Jobs that are never repeated, of which a board remembers the last: those that have ended and are not acknowledged
#: are fewer, since no more than 1,000 are claimed ahead.
_ONCE = 2048


class Board:
    """One process and its slots. A byte is written at once, and nobody reads what the other has half written.

    - `stop`: how the supervisor wants it to end; read when a signal says so.
    - after a crash only the jobs that had `begun` count it; what was claimed and not begun goes back uncounted. Those
      that are not to be repeated are remembered longer (`begun_once`): one may have ended without being acknowledged.
    - `parting`: the exit code that the process has announced. Another one, or none, is a crash: tasks may call _exit.
    - `waiting`, `suspects`: whether jobs wait, and whether suspects do, as it saw them in the database.
    - `idle_since`: monotonic; 0 while it has something to do.
    - `shared`: whether there is a supervisor.
    """

    def __init__(self, slots: int, *, shared: bool = True) -> None:
        self.shared = shared
        self._end = _CELLS + slots * _CELL
        self._memory = mmap.mmap(-1, self._end + _ONCE * _ONE)
        self._next_once = itertools.count()  # its next() is one step for threads

    def clear(self) -> None:
        """Forget everything, for the next process."""
        self._memory[:] = bytes(len(self._memory))

    # -- attempts --------------------------------------------------------------------------------------------

    def begin(self, slot: int, job: str, attempt: int) -> None:
        """Note that a slot begins an attempt."""
        at = _CELLS + slot * _CELL
        self._memory[at : at + _ONE] = job.encode() + attempt.to_bytes(_ATTEMPT, sys.byteorder)

    def begin_limited(self, slot: int, begun: Begun) -> None:
        """Note that a slot begins a job with a hard time limit."""
        self.begin(slot, begun.job, begun.attempt)
        _LIMITED.pack_into(self._memory, _CELLS + slot * _CELL + _ONE, *begun[2:])

    def disarm(self, slot: int) -> None:
        """Note that the time limit of a slot's attempt counts no more: from now on it commits."""
        at = _CELLS + slot * _CELL + _ONE
        self._memory[at : at + _LIMITED.size] = bytes(_LIMITED.size)

    def begun(self) -> list[Begun]:
        """Return the attempt that each slot has begun last."""
        cells = ((self._one(at), at + _ONE) for at in range(_CELLS, self._end, _CELL))
        return [Begun(*one, *_LIMITED.unpack_from(self._memory, at)) for one, at in cells if one is not None]

    def begin_once(self, job: str, attempt: int) -> None:
        """Note that an attempt begins that is not to be repeated."""
        at = self._end + next(self._next_once) % _ONCE * _ONE
        self._memory[at : at + _ONE] = job.encode() + attempt.to_bytes(_ATTEMPT, sys.byteorder)

    def begun_once(self) -> list[tuple[str, int]]:
        """Return the last attempts that have begun and are not to be repeated; acknowledged ones do no harm."""
        found = map(self._one, range(self._end, len(self._memory), _ONE))
        return [one for one in found if one is not None]

    def _one(self, at: int) -> tuple[str, int] | None:
        job, attempt = self._memory[at : at + _ID], self._memory[at + _ID : at + _ONE]
        return (job.decode(), int.from_bytes(attempt, sys.byteorder)) if job.strip(b"\0") else None

    # -- the process -----------------------------------------------------------------------------------------

    @property
    def stop(self) -> Stop | None:
        """How the supervisor wants the process to end; None: it has said nothing."""
        level = self._memory[_STOP]
        return Stop(level) if level else None

    @stop.setter
    def stop(self, level: Stop) -> None:
        self._memory[_STOP] = level

    @property
    def parting(self) -> int | None:
        """The exit code that the process has announced."""
        code = self._memory[_PARTING]
        return code - 1 if code else None

    @parting.setter
    def parting(self, code: int) -> None:
        self._memory[_PARTING] = code + 1

    @property
    def waiting(self) -> bool:
        """Whether jobs wait that the process cannot take now."""
        return bool(self._memory[_WAITING])

    @waiting.setter
    def waiting(self, value: bool) -> None:
        self._memory[_WAITING] = value

    @property
    def suspects(self) -> bool:
        """Whether suspects wait for somebody who runs them alone."""
        return bool(self._memory[_SUSPECTS])

    @suspects.setter
    def suspects(self, value: bool) -> None:
        self._memory[_SUSPECTS] = value

    @property
    def idle_since(self) -> float:
        """Since when the process has had nothing to do, by the monotonic clock; 0 while it has."""
        return float(struct.unpack_from("=d", self._memory, _IDLE)[0])

    @idle_since.setter
    def idle_since(self, since: float) -> None:
        struct.pack_into("=d", self._memory, _IDLE, since)
