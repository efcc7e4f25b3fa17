"""Waiting for one job or many: woken by a notification, guaranteed by looking.

What to do next is decided once, in `_course`, which knows neither database nor thread; `watch` and `awatch` do it.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from pgqueue.database import Database, Listener
from pgqueue.errors import InvalidOption, ResultTimeout
from pgqueue.ids import check_id, new_id
from pgqueue.statements import Status
from pgqueue.types import READY_STATES, State

#: Seconds between two looks at a result that nobody announces: the first, and the factor.
_FIRST_LOOK, _SLOWER = 0.02, 1.5
#: The longest, unless the caller says another.
LONGEST_LOOK = 1.0
#: Seconds after which the database forgets a waiting one; whoever waits longer goes on by looking.
_DAY = 86_400.0

#: A status of which nothing is known.
BLANK = Status._make((None,) * len(Status._fields))


class Waiting(Protocol):
    """What a handle needs of its app."""

    @property
    def database(self) -> Database: ...
    @property
    def listener(self) -> Listener: ...


class Awaited:
    """A job that can be looked at and waited for.

    - `id`: id of the job.
    - `app`: the app whose database has it.
    - `parent`: the handle after whose success the job is enqueued, if it is not enqueued yet.
    - `ignored`: whether there will be no result.
    """

    def __init__(self, id: str, app: Waiting, parent: Awaited | None = None, ignored: bool = False) -> None:
        self.id = check_id(id, "id")
        self.ignored = ignored
        self.app = app
        self._before = parent

    _final: Status | None = None  # once it is ready

    def meta(self, status: Status) -> dict[str, object]:
        """Return what a look found, as callbacks get it."""
        return {"task_id": self.id, "status": status.state}

    def _look(self) -> Status:
        if self._final is None:
            database = self.app.database
            return self._remember(database.run(database.statements.status(self.id))[0])
        return self._final

    def _remember(self, status: Status) -> Status:
        if status.state in READY_STATES:
            self._final = status
        return status


H = TypeVar("H", bound=Awaited)


@dataclass(frozen=True, slots=True)
class Terms:
    """How to wait.

    - `timeout`: seconds to wait at most, for all together; None (default) for as long as it takes.
    - `interval`: longest time in seconds between two looks; default 1.
    - `follow_parents`: a job that is not enqueued yet ends as the one does that it continues.
    - `on_interval`: called at every look.
    - `on_message`: called with what a look found, if it is not what the look before found.

    Raises InvalidOption for a value that cannot be used.
    """

    timeout: float | None = None
    interval: float = LONGEST_LOOK
    follow_parents: bool = True
    on_interval: Callable[[], object] | None = None
    on_message: Callable[[Mapping[str, object]], object] | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.interval) or not 0 < self.interval <= _DAY:
            raise InvalidOption(f"interval={self.interval!r:.80} must be seconds, more than 0 and at most a day")
        if self.timeout is not None and not _is_number(self.timeout):
            raise InvalidOption(f"timeout={self.timeout!r:.80} must be seconds, or None to wait as long as it takes")
        for option in ("on_interval", "on_message"):
            if not callable(called := getattr(self, option)) and called is not None:
                raise InvalidOption(f"{option}={called!r:.80} must be a function")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


class Found(NamedTuple, Generic[H]):
    """What became of an awaited job. `by`: the job of which `status` is; another one if `handle` never comes."""

    handle: H
    by: Awaited
    status: Status


class _Look(NamedTuple):
    id: str


class _Listen(NamedTuple):
    ids: Sequence[str]


class _Pause(NamedTuple):
    seconds: float


#: What `_course` asks for; the answers: a Status, None, the ids that a notification named, None.
_Step: TypeAlias = "_Look | _Listen | _Pause | Found[H]"


def watch(app: Waiting, handles: Sequence[H], terms: Terms) -> Generator[Found[H], None, None]:
    """Wait for jobs and yield what became of each, in the order in which they end; raises ResultTimeout."""
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    course = _course(handles, terms)
    answer: object = None
    with ExitStack() as stack:
        while True:
            try:
                step = course.send(answer)
            except StopIteration:
                return
            match step:
                case _Look(id_):
                    answer = app.database.run(app.database.statements.status(id_))[0]
                case _Listen(ids):
                    for id_ in ids:
                        stack.enter_context(app.listener.subscribe(id_, partial(told.put, id_)))
                        _announce(stack, app.database, id_, terms)
                case _Pause(seconds):
                    answer = _hear(told, seconds)
                case found:
                    answer = None
                    yield found


async def awatch(app: Waiting, handles: Sequence[H], terms: Terms) -> AsyncGenerator[Found[H], None]:
    """Wait for jobs as `watch` does, without blocking the event loop."""
    told: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    course = _course(handles, terms)
    answer: object = None
    async with AsyncExitStack() as stack:
        while True:
            try:
                step = course.send(answer)
            except StopIteration:
                return
            match step:
                case _Look(id_):
                    answer = (await app.database.arun(app.database.statements.status(id_)))[0]
                case _Listen(ids):
                    for id_ in ids:
                        stack.enter_context(app.listener.subscribe(id_, partial(_tell, loop, told, id_)))
                        await _aannounce(stack, app.database, id_, terms)
                case _Pause(seconds):
                    answer = await _ahear(told, seconds)
                case found:
                    answer = None
                    yield found


def _course(handles: Sequence[H], terms: Terms) -> Generator[_Step[H], Any, None]:
    deadline = inf if terms.timeout is None else time.monotonic() + terms.timeout
    waiting = {handle: _Line(handle, terms) for handle in handles}
    count = len(waiting)
    pauses = _pauses(_FIRST_LOOK * count, terms.interval)
    announced: set[str] = set()
    looking, due = list(waiting.values()), 0.0
    while True:
        if terms.on_interval is not None:
            terms.on_interval()
        for line in looking:
            found = yield from line.look()
            if found is not None:
                del waiting[found.handle]
                yield found
        if not waiting:
            return
        now = time.monotonic()
        if now >= deadline:
            raise ResultTimeout(_late(list(waiting.values()), count, terms.timeout))
        fresh = {line.at for line in waiting.values()} - announced
        if fresh:
            yield _Listen(sorted(fresh))
            announced |= fresh
            # Once more: it may have ended before its end would have been notified.
            looking = [line for line in waiting.values() if line.at in fresh]
            continue
        if now >= due:
            due = now + next(pauses)
        told = yield _Pause(max(0.0, min(due, deadline) - now))
        looking = list(waiting.values())
        if told and time.monotonic() < due:
            looking = [line for line in looking if line.at in told]


class _Line(Generic[H]):
    """A handle, and as long as its job is not enqueued the handles before it, up to one that is."""

    def __init__(self, handle: H, terms: Terms) -> None:
        self._handle = handle
        self._terms = terms
        self._line: list[Awaited] = [handle]
        self._seen: tuple[str, str | None] | None = None
        self._state = ""

    @property
    def at(self) -> str:
        """Id of the job whose end is to be waited for now."""
        return self._line[-1].id

    def look(self) -> Generator[_Look, Status, Found[H] | None]:
        """Look at the job, or at the one that it waits for; return what became of it, or None."""
        line, handle = self._line, self._handle
        if handle.ignored:
            return Found(handle, handle, BLANK._replace(state=State.IGNORED))
        status = yield from self._see()
        while status.state == State.UNKNOWN and self._terms.follow_parents and line[-1]._before is not None:
            line.append(line[-1]._before)
            status = yield from self._see()
        # A success commits together with what it enqueues, so the next look finds that: no gap to fall into.
        while len(line) > 1 and status.state in (State.SUCCESS, State.UNKNOWN):
            line.pop()
            status = yield from self._see()
        comes = handle._before is not None and not self._terms.follow_parents
        # What ran eagerly is final in any state. By identity: meanwhile another thread may have seen the end.
        final = status.state in READY_STATES or status is line[-1]._final
        if final or (status.state == State.UNKNOWN and not comes):
            return Found(handle, line[-1], status)
        return None

    def _see(self) -> Generator[_Look, Status, Status]:
        handle = self._line[-1]
        status = handle._final or handle._remember((yield _Look(handle.id)))
        self._state = status.state
        if handle is self._handle and self._terms.on_message is not None:
            seen = (status.state, status.value)
            if seen != self._seen:
                self._seen = seen
                self._terms.on_message(handle.meta(status))
        return status

    def __str__(self) -> str:
        return f"{self._state}" if self.at == self._handle.id else f"not enqueued, {self.at} before it is {self._state}"


def _late(waiting: Sequence[_Line[Any]], count: int, timeout: float | None) -> str:
    first = waiting[0]
    if count == 1:
        return f"job {first._handle.id} is {first} after {timeout} s; it goes on, get() may be called again"
    return (
        f"{len(waiting)} of {count} jobs have not ended after {timeout} s, such as {first._handle.id}, "
        f"which is {first}; they go on, get() may be called again"
    )


def _pauses(first: float, longest: float) -> Iterator[float]:
    pause = first
    while True:
        yield min(pause, longest)
        pause = min(pause * _SLOWER, longest)


def _announce(stack: ExitStack, database: Database, job: str, terms: Terms) -> None:
    call, statements = new_id(), database.statements
    stack.callback(database.run, statements.stop_waiting(job, call))
    database.run(statements.wait_for(job, call, min(terms.timeout or _DAY, _DAY)))


async def _aannounce(stack: AsyncExitStack, database: Database, job: str, terms: Terms) -> None:
    call, statements = new_id(), database.statements
    # First: a cancellation may come when the row is there and the answer is not.
    stack.push_async_callback(database.arun, statements.stop_waiting(job, call))
    await database.arun(statements.wait_for(job, call, min(terms.timeout or _DAY, _DAY)))


def _hear(told: queue.SimpleQueue[str], seconds: float) -> set[str]:
    heard = set()
    try:
        heard.add(told.get(timeout=seconds))
        while True:
            heard.add(told.get_nowait())
    except queue.Empty:
        return heard


async def _ahear(told: asyncio.Queue[str], seconds: float) -> set[str]:
    heard = set()
    try:
        # Not wait_for, which in Python 3.11 swallows a cancellation that meets the notification.
        async with asyncio.timeout(seconds):
            heard.add(await told.get())
    except TimeoutError:
        pass
    while not told.empty():
        heard.add(told.get_nowait())
    return heard


def _tell(loop: asyncio.AbstractEventLoop, told: asyncio.Queue[str], job: str) -> None:
    try:
        loop.call_soon_threadsafe(told.put_nowait, job)
    except RuntimeError:
        pass  # the loop closed between the last look and this notification
