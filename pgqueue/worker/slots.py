"""Where attempts run: the loop of one slot, as a thread or as a coroutine."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pgqueue.database import Database, conflicts
from pgqueue.reports import report
from pgqueue.statements import Ended
from pgqueue.task import Task
from pgqueue.tracer import Aftermath, Concluded, Tracer, Where, build_tracer
from pgqueue.types import Claim, ErrorReport, Failed, Outcome, Released, Succeeded
from pgqueue.worker.buffer import LoopBuffer, ThreadBuffer
from pgqueue.worker.slot import Slot
from pgqueue.worker.transactions import AttemptTransaction

logger = logging.getLogger("pgqueue.worker")

#: Takes an attempt that has ended; the flag says that its own transaction has acknowledged it already (True), or
#: was refused (False); None leaves the acknowledgement to the I/O thread.
Report = Callable[[Ended, bool | None], None]


class Tracers(dict[str, Tracer]):
    """The tracers of an app's tasks, each made when it is first needed: a task may be declared later."""

    def __init__(self, tasks: Mapping[str, Task[..., Any, Any]], where: Where) -> None:
        super().__init__()
        self._tasks = tasks
        self._where = where

    def __missing__(self, name: str) -> Tracer:
        self[name] = build_tracer(self._tasks[name], self._where)
        return self[name]


@dataclass(frozen=True, slots=True)
class Bench:
    """What the slots of one process share: tasks and tracers by name, and where outcomes and notes go.

    `attach` takes what went wrong after an attempt had ended, to be kept with the job.
    """

    tasks: Mapping[str, Task[..., Any, Any]]
    tracers: Tracers
    database: Database
    worker: str
    max_crashes: int
    report: Report
    attach: Callable[[Claim, Sequence[tuple[str, ErrorReport]]], None]


def work(bench: Bench, buffer: ThreadBuffer, slot: Slot) -> None:
    """Run claims in this thread until the buffer sends the slot home."""
    transaction = AttemptTransaction(bench.database, bench.worker, slot)
    tracers, report_ended, begin, end, get = bench.tracers, bench.report, slot.begin, slot.end, buffer.get
    make_ended = Ended._make  # from a tuple: half the price of the call
    with asyncio.Runner() as runner:
        while (claim := get()) is not None:
            begin(claim)
            transaction.renew()
            started = perf_counter()
            tracer = tracers[claim.task]
            trace = tracer.trace
            try:
                if trace is not None:
                    outcome, aftermath = trace(claim, transaction, slot)
                else:
                    assert tracer.atrace is not None
                    outcome, aftermath = runner.run(tracer.atrace(claim, transaction, slot))
            except BaseException as error:  # a coroutine that cancels itself; a slot must never die
                outcome, aftermath = Failed(report(error), hooks=True), None
            if not end():
                threading.Event().wait()  # until the process ends
            if transaction.error is not None:
                outcome = _lost(bench, claim, outcome)
            ended = make_ended((claim, outcome, perf_counter() - started, tracer.keeps(claim, outcome), None))
            committed = None
            if aftermath is not None:
                committed = _Committed()
                ended = ended._replace(told=committed)
                slot.telling = True
            if not transaction.is_open:
                report_ended(ended, None)
            elif trace is not None:
                report_ended(*_settle(bench, ended, transaction))
            else:
                report_ended(*runner.run(_asettle(bench, ended, transaction)))
            if aftermath is not None and committed is not None:
                _tell(bench, slot, claim, aftermath, *committed.wait())
                del aftermath  # nothing of this attempt may outlive it
        runner.run(bench.database.aclose())


def work_in_threads(bench: Bench, buffer: ThreadBuffer, slots: Sequence[Slot]) -> list[threading.Thread]:
    """Start one thread a slot; they end when the buffer sends them home."""
    threads = [
        threading.Thread(target=work, args=(bench, buffer, slot), name=f"pgqueue-slot-{slot.number}", daemon=True)
        for slot in slots
    ]
    for thread in threads:
        thread.start()
    return threads


async def work_in_loop(bench: Bench, buffer: LoopBuffer, slots: Sequence[Slot]) -> None:
    """Run one coroutine a slot; plain functions run in a thread each, so that they do not stop the loop."""
    with ThreadPoolExecutor(len(slots), thread_name_prefix="pgqueue-function") as executor:
        await asyncio.gather(*(_work_in_loop(bench, buffer, slot, executor) for slot in slots))
        await bench.database.aclose()


async def _work_in_loop(bench: Bench, buffer: LoopBuffer, slot: Slot, executor: ThreadPoolExecutor) -> None:
    transaction = AttemptTransaction(bench.database, bench.worker, slot)
    loop = asyncio.get_running_loop()
    while (claim := await buffer.get()) is not None:
        slot.begin(claim)
        transaction.renew()
        started = perf_counter()
        tracer = bench.tracers[claim.task]
        if tracer.atrace is not None:
            # A task of its own, so that one which cancels itself does not cancel the slot.
            attempt: asyncio.Future[Concluded] = asyncio.ensure_future(tracer.atrace(claim, transaction, slot))
        else:
            assert tracer.trace is not None
            attempt = loop.run_in_executor(executor, tracer.trace, claim, transaction, slot)
        await asyncio.wait([attempt])
        try:
            outcome, aftermath = attempt.result()
        except BaseException as error:
            outcome, aftermath = Failed(report(error), hooks=True), None
        del attempt
        if not slot.end():
            await asyncio.Event().wait()  # until the process ends
        if transaction.error is not None:
            outcome = _lost(bench, claim, outcome)
        ended = Ended(claim, outcome, perf_counter() - started, tracer.keeps(claim, outcome))
        committed = None
        if aftermath is not None:
            committed = _LoopCommitted(loop)
            ended = ended._replace(told=committed)
            slot.telling = True
        if not transaction.is_open:
            bench.report(ended, None)
        elif tracer.atrace is not None:
            bench.report(*await _asettle(bench, ended, transaction))
        else:
            bench.report(*await loop.run_in_executor(executor, _settle, bench, ended, transaction))
        if aftermath is not None and committed is not None:
            final, acked = await committed.future
            if tracer.atrace is not None:
                _tell(bench, slot, claim, aftermath, final, acked)
            else:
                await loop.run_in_executor(executor, _tell, bench, slot, claim, aftermath, final, acked)
            del aftermath


class _Committed:
    """Waits, in the thread of a slot, until its outcome is acknowledged."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self, outcome: Outcome, acked: bool) -> None:
        self._answer = outcome, acked
        self._event.set()

    def wait(self) -> tuple[Outcome, bool]:
        """Return what was stored, and whether it was accepted."""
        self._event.wait()
        return self._answer


class _LoopCommitted:
    """The same for a coroutine: `future` has the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[tuple[Outcome, bool]] = loop.create_future()

    def __call__(self, outcome: Outcome, acked: bool) -> None:
        self._loop.call_soon_threadsafe(self.future.set_result, (outcome, acked))


def _tell(bench: Bench, slot: Slot, claim: Claim, aftermath: Aftermath, outcome: Outcome, acked: bool) -> None:
    """Run hooks and receivers, now that the outcome is committed."""
    errors: Sequence[tuple[str, ErrorReport]] = ()
    try:
        errors = aftermath.tell(outcome, acked)
    except BaseException:  # a slot must never die
        logger.exception("job %s: its hooks could not be run", claim.id)
    finally:
        bench.attach(claim, errors)  # first: who sees that nothing is told any more must find these
        slot.telling = False
        bench.attach(claim, ())


def _lost(bench: Bench, claim: Claim, outcome: Outcome) -> Outcome:
    """Return what a failure comes to whose transaction has lost its connection: the task is repeated, as after a crash.

    Nothing of it was written; but its own statement may be what ends the server's side, so this has an end.
    """
    if isinstance(outcome, Failed) and claim.crashes < bench.max_crashes:
        return Released(crash=outcome.error)
    return outcome


def _settle(bench: Bench, ended: Ended, transaction: AttemptTransaction) -> tuple[Ended, bool | None]:
    """Commit the transaction of an attempt that succeeded, or undo it; whatever fails now is the task's failure."""
    try:
        if isinstance(ended.outcome, Succeeded):
            return _committed(bench, ended, transaction.commit(ended), transaction.error)
        transaction.rollback()
    except Exception as error:
        return _unsettled(bench, ended, error), None
    return ended, None


async def _asettle(bench: Bench, ended: Ended, transaction: AttemptTransaction) -> tuple[Ended, bool | None]:
    """Do the same for a coroutine."""
    try:
        if isinstance(ended.outcome, Succeeded):
            return _committed(bench, ended, await transaction.acommit(ended), transaction.error)
        await transaction.arollback()
    except Exception as error:
        return _unsettled(bench, ended, error), None
    return ended, None


def _committed(
    bench: Bench, ended: Ended, acked: bool | None, error: BaseException | None
) -> tuple[Ended, bool | None]:
    if acked is not None:
        return ended, acked
    # It may be the COMMIT that ends the server's side, each time.
    failed = Failed(report(error or ConnectionError("the connection broke during COMMIT")))
    return ended._replace(outcome=_lost(bench, ended.claim, failed)), None


def _unsettled(bench: Bench, ended: Ended, error: Exception) -> Ended:
    """Return what the attempt came to when its COMMIT was refused, by a deferred constraint for example."""
    if isinstance(ended.outcome, Succeeded):
        outcome = Failed(report(error))
        # A conflict with another transaction asks for the same once more.
        return ended._replace(outcome=_lost(bench, ended.claim, outcome) if conflicts(error) else outcome)
    logger.warning("job %s: its transaction could not be rolled back: %s", ended.claim.id, error)
    return ended


def untried(claim: Claim, delay: float = 0.0) -> Ended:
    """Return a claim as an attempt that never began."""
    return Ended(claim, Released(delay))
