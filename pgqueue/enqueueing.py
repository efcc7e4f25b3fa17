"""The way of jobs into the database: in one statement, or piece by piece in one transaction."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from pgqueue.calling import leaves_trail
from pgqueue.canvas import Signature
from pgqueue.database import aenqueue_on, enqueue_on
from pgqueue.publishing import announce, told
from pgqueue.result import AsyncResult
from pgqueue.statements import Statement, Statements
from pgqueue.tracer import current_context
from pgqueue.types import Enqueued, NewJob
from pgqueue.waiting import Waiting

Handle = AsyncResult[Any]
#: What a handle has to know besides its id: how to read the value, whether one is kept.
Knows = Mapping[str, Any]

#: Calls of one piece: while the server stores these, the next are checked. Either takes 20 to 30 ms.
_PIECE = 2000


def enqueue(app: Waiting, jobs: Sequence[NewJob], knows: Sequence[Knows], connection: object) -> list[Handle]:
    """Enqueue jobs in one statement, all of them or none; `connection` is the caller's, None for one of ours."""
    if not jobs:
        return []
    jobs = announce(jobs)
    if connection is not None:
        return _enqueued(jobs, enqueue_on(connection, _statement(app, jobs, knows, durable=False)))
    again = partial(_once_more, app, jobs, knows)
    return _enqueued(jobs, app.database.run(_statement(app, jobs, knows), again))


async def aenqueue(app: Waiting, jobs: Sequence[NewJob], knows: Sequence[Knows], connection: object) -> list[Handle]:
    """Enqueue jobs as `enqueue` does, without blocking the event loop."""
    if not jobs:
        return []
    jobs = announce(jobs)
    if connection is not None:
        return _enqueued(jobs, await aenqueue_on(connection, _statement(app, jobs, knows, durable=False)))
    again = partial(_once_more, app, jobs, knows)
    return _enqueued(jobs, await app.database.arun(_statement(app, jobs, knows), again))


def enqueue_calls(app: Waiting, calls: Iterable[Signature[Any]]) -> list[Handle]:
    """Enqueue calls in one transaction, each piece of them checked while the server stores the one before."""
    jobs: list[NewJob] = []
    knows: list[Knows] = []
    rest = iter(calls)
    refused: list[BaseException] = []

    def pieces(some: Sequence[NewJob], known: Sequence[Knows]) -> Iterator[Statement[Handle]]:
        while some:
            some = announce(some)
            jobs.extend(some)
            knows.extend(known)
            yield _statement(app, some, known)
            try:
                some, known = jobs_of(islice(rest, _PIECE))
            except BaseException as error:
                refused.append(error)
                raise

    def again() -> Statement[Handle]:
        if refused:  # it looked like a lost connection, but is one of the caller's: there would be calls missing
            raise refused[0]
        return _once_more(app, jobs, knows)

    with _nothing_collected():
        first = jobs_of(islice(rest, _PIECE))  # before a database is looked for
        if not first[0]:
            return []
        return _enqueued(jobs, app.database.run_all(pieces(*first), again))


def enqueue_plan(app: Waiting, plan: Sequence[NewJob], connection: object) -> None:
    """Enqueue the jobs of a workflow and store its steps in one transaction; `connection` as for `enqueue`."""
    statements = app.database.statements
    if connection is not None:
        enqueue_on(connection, statements.enqueue_workflow(plan, durable=False))
        return
    again = partial(statements.enqueue_workflow, plan, durable=True, resent=True)
    app.database.run_all(_pieces(statements, plan), again)


async def aenqueue_plan(app: Waiting, plan: Sequence[NewJob], connection: object) -> None:
    """Enqueue a workflow as `enqueue_plan` does, without blocking the event loop."""
    statements = app.database.statements
    if connection is not None:
        await aenqueue_on(connection, statements.enqueue_workflow(plan, durable=False))
    else:
        again = partial(statements.enqueue_workflow, plan, durable=True, resent=True)
        await app.database.arun(statements.enqueue_workflow(plan, durable=True), again)


def _pieces(statements: Statements, plan: Sequence[NewJob]) -> Iterator[Statement[Enqueued]]:
    """Yield the statements that enqueue a workflow: one, but for wide ones, whose first members are much alike."""
    first = [job for job in plan if not job.waits]
    if len(first) <= _PIECE // 10 or any(job.known or job.unique_key for job in first):
        yield statements.enqueue_workflow(plan, durable=True)
        return
    yield statements.enqueue_workflow([job for job in plan if job.waits], durable=True)
    for start in range(0, len(first), _PIECE):
        yield statements.enqueue(first[start : start + _PIECE], durable=True)


def jobs_of(calls: Iterable[Signature[Any]]) -> tuple[Sequence[NewJob], list[Knows]]:
    """Return calls as jobs, and what the handle of each has to know.

    No call is kept: the garbage collector looks at whatever is, over and over while there become more.
    """
    kinds: dict[tuple[int, object], Knows] = {}
    tasks: list[object] = []
    jobs: list[NewJob] = []
    knows: list[Knows] = []
    with _nothing_collected():
        for call in calls:
            jobs.append(call.job())
            kind = (id(call.task), call.options.get("ignore_result"))
            handle = kinds.get(kind)
            if handle is None:
                tasks.append(call.task)  # as long as it is here no other has its id
                handle = kinds[kind] = call.task.handle(call.options)
            knows.append(handle)
    return jobs, knows


def _statement(
    app: Waiting, jobs: Sequence[NewJob], knows: Sequence[Knows], *, durable: bool = True
) -> Statement[Handle]:
    """Return the statement that enqueues jobs and answers their handles.

    Where the ids are known beforehand they are made while the server works: a fifth of our part of a large call.
    """
    plain = app.database.statements.enqueue(jobs, durable=durable)
    known, following = plain.answer, iter(knows)

    def made(row: tuple[Any, ...]) -> Handle:
        return AsyncResult(str(row[0]), app, created=row[1], **next(following))

    answer: Callable[[], list[Handle]] | None
    if known is None:
        answer = None
    elif len(jobs) == 1:
        answer = lambda: [AsyncResult(jobs[0].id, app, **knows[0])]  # noqa: E731
    else:
        answer = lambda: _handles(app, knows, known())  # noqa: E731
    return Statement(plain.sql, plain.params, made, answer, plain.bare, False, plain.prepared)


def _once_more(app: Waiting, jobs: Sequence[NewJob], knows: Sequence[Knows]) -> Statement[Handle]:
    """Return what to send after a lost connection: the first may have been committed, so the ids may be known."""
    return _statement(app, [job._replace(known=True, resent=True) for job in jobs], knows)


def _handles(app: Waiting, knows: Sequence[Knows], rows: Sequence[Enqueued]) -> list[Handle]:
    return [AsyncResult(id_, app, created=created, **known) for known, (id_, created) in zip(knows, rows, strict=True)]


def _enqueued(jobs: Sequence[NewJob], made: list[Handle]) -> list[Handle]:
    """Tell whom it concerns that jobs are enqueued; return their handles."""
    told(jobs, made)
    around = current_context()
    if around is not None:
        around.children.extend(found for job, found in zip(jobs, made, strict=True) if leaves_trail(job))
    return made


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Pause the cyclic garbage collector, if it is on.

    All that becomes of a large call is kept until it is sent, so the collector would walk over it again and again and
    find nothing: a third of the time of 100,000 calls.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
