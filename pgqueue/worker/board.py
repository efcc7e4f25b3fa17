"""What a worker process and its supervisor tell each other, in memory that both share and that survives the process."""

from __future__ import annotations

import itertools
import mmap
import struct
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
_LIMITED = struct.Struct("=ii?dd")
_CELL = _ID + _LIMITED.size
#: Jobs that are never repeated, of which a board remembers the last: those that have ended and are not acknowledged
#: are fewer, since no more than 500 are claimed ahead.
_ONCE = 2048


class Board:
    """One process and its slots. A byte is written at once, and nobody reads what the other has half written.

    - `stop`: how the supervisor wants it to end; read when a signal says so.
    - after a crash only the jobs that had `begun` count it; what was claimed and not begun goes back uncounted. Those
      that are not to be repeated are remembered longer (`begun_once`): one may have ended without being acknowledged.
    - `parting`: the exit code that the process has announced. Another one, or none, is a crash: tasks may call _exit.
    - `waiting`, `suspects`: whether jobs wait, and whether suspects do, as it saw them in the database.
    - `idle_since`: monotonic; 0 while it has something to do.
    """

    def __init__(self, slots: int) -> None:
        self._end = _CELLS + slots * _CELL
        self._memory = mmap.mmap(-1, self._end + _ONCE * _ID)
        self._next_once = itertools.count()  # its next() is one step for threads

    def clear(self) -> None:
        """Forget everything, for the next process."""
        self._memory[:] = bytes(len(self._memory))

    # -- attempts --------------------------------------------------------------------------------------------

    def begin(self, slot: int, job: str) -> None:
        """Note that a slot begins a job."""
        at = _CELLS + slot * _CELL
        self._memory[at : at + _ID] = job.encode()

    def begin_limited(self, slot: int, begun: Begun) -> None:
        """Note that a slot begins a job with a hard time limit."""
        self.begin(slot, begun.job)
        _LIMITED.pack_into(self._memory, _CELLS + slot * _CELL + _ID, *begun[1:])

    def disarm(self, slot: int) -> None:
        """Note that the time limit of a slot's attempt counts no more: from now on it commits."""
        at = _CELLS + slot * _CELL + _ID
        self._memory[at : at + _LIMITED.size] = bytes(_LIMITED.size)

    def begun(self) -> list[Begun]:
        """Return the attempt that each slot has begun last."""
        found = []
        for at in range(_CELLS, self._end, _CELL):
            job = self._memory[at : at + _ID]
            if job.strip(b"\0"):
                found.append(Begun(job.decode(), *_LIMITED.unpack_from(self._memory, at + _ID)))
        return found

    def begin_once(self, job: str) -> None:
        """Note that a job begins that is not to be repeated."""
        at = self._end + next(self._next_once) % _ONCE * _ID
        self._memory[at : at + _ID] = job.encode()

    def begun_once(self) -> list[str]:
        """Return the last jobs that have begun and are not to be repeated; acknowledged ones among them do no harm."""
        cells = (self._memory[at : at + _ID] for at in range(self._end, len(self._memory), _ID))
        return [cell.decode() for cell in cells if cell.strip(b"\0")]

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
