"""The transaction in which a task's writes and its acknowledgement commit together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import psycopg

from pgqueue.database import Database, arun, connection_lost, run, transient
from pgqueue.errors import DatabaseUnavailable, LeaseLost, TransactionUnavailable
from pgqueue.statements import Ended
from pgqueue.types import Claim, State
from pgqueue.worker.slot import Slot

logger = logging.getLogger("pgqueue.worker")

#: Seconds that an attempt waits for a connection of the pool: those who have them are attempts, and they end.
_PATIENCE = 300.0
#: Seconds to find out what became of a COMMIT whose answer got lost; afterwards the sweep decides.
_IN_DOUBT = 60.0


class AttemptTransaction:
    """The transaction of one slot, opened by the attempt that asks for it; one at a time.

    Its first statement locks the job under the fence, its last acknowledges it; the connection is pooled.
    """

    def __init__(self, database: Database, worker: str, slot: Slot) -> None:
        self._database = database
        self._worker = worker
        self._slot = slot
        self._stack: ExitStack | None = None
        self._astack: AsyncExitStack | None = None
        self._connection: Any = None
        #: What broke the connection while the attempt had it; whatever was written is rolled back.
        self.error: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether the attempt has opened one that is neither committed nor rolled back."""
        return self._connection is not None

    def renew(self) -> None:
        """Forget what the attempt before has met."""
        self.error = None

    # -- for functions ---------------------------------------------------------------------------------------

    def begin(self, claim: Claim) -> psycopg.Connection[Any]:
        """Open the transaction and lock the job; raises LeaseLost if the attempt does not hold it any more."""
        self._check_closed()
        with self._slot.shielded(), _requeued(), ExitStack() as stack:
            connection = stack.enter_context(self._database.connection(_PATIENCE))
            stack.enter_context(connection.transaction())
            self._slot.session = run(connection, self._database.statements.hold(claim, self._worker))[0]
            self._stack, self._connection = stack.pop_all(), connection
        return connection

    def rollback(self) -> None:
        """Undo everything that the attempt has written in it."""
        with self._slot.shielded():
            self._note_break()
            self._take().__exit__(psycopg.Rollback, psycopg.Rollback(), None)

    def commit(self, ended: Ended) -> bool | None:
        """Acknowledge and commit; return whether it counts.

        False: the lease is lost, and nothing was written. None: the connection broke, and either nothing was written
        or it cannot be known; whoever hands the job back learns it from the fence.
        """
        try:
            refused = run(self._connection, self._database.statements.finish(self._worker, [ended]))
            if refused:
                self.rollback()
                return False
            self._take().__exit__(None, None, None)
        except BaseException as error:  # whatever it is, the transaction must not stay open
            self.error = error
            self._discard(error)
            if connection_lost(error):
                return self._settled(ended)
            raise
        return True

    def _settled(self, ended: Ended) -> bool | None:
        """Find out what became of a COMMIT that nobody answered: the lock of `hold` waits for that transaction."""
        statements, deadline = self._database.statements, time.monotonic() + _IN_DOUBT
        while True:
            try:
                with self._database.connection() as connection, connection.transaction():
                    run(connection, statements.patience(2.0))
                    try:
                        with connection.transaction():
                            run(connection, statements.hold(ended.claim, self._worker))
                        return None  # the job is still ours: that transaction was rolled back
                    except LeaseLost:
                        pass
                return self._stored(ended)
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not transient(error):
                    raise
                if time.monotonic() > deadline:
                    logger.error("job %s: the outcome of its COMMIT is unknown: %s", ended.claim.id, error)
                    return None
                time.sleep(0.2)

    def _stored(self, ended: Ended) -> bool:
        status = self._database.run(self._database.statements.status(ended.claim.id))[0]
        mine = status.worker == self._worker and status.attempt == ended.claim.attempt
        return mine and status.state == State.SUCCESS

    # -- for coroutines --------------------------------------------------------------------------------------

    async def abegin(self, claim: Claim) -> psycopg.AsyncConnection[Any]:
        """Open the transaction as `begin` does, on an async connection."""
        self._check_closed()
        with _requeued():
            async with AsyncExitStack() as stack:
                connection = await stack.enter_async_context(self._database.aconnection(_PATIENCE))
                await stack.enter_async_context(connection.transaction())
                self._slot.session = (await arun(connection, self._database.statements.hold(claim, self._worker)))[0]
                self._astack, self._connection = stack.pop_all(), connection
        return connection

    async def arollback(self) -> None:
        """Undo everything that the attempt has written in it."""
        self._note_break()
        await self._atake().__aexit__(psycopg.Rollback, psycopg.Rollback(), None)

    async def acommit(self, ended: Ended) -> bool | None:
        """Acknowledge and commit as `commit` does."""
        try:
            refused = await arun(self._connection, self._database.statements.finish(self._worker, [ended]))
            if refused:
                await self.arollback()
                return False
            await self._atake().__aexit__(None, None, None)
        except BaseException as error:
            self.error = error
            await self._adiscard(error)
            if connection_lost(error):
                return await asyncio.to_thread(self._settled, ended)
            raise
        return True

    # -- inside ----------------------------------------------------------------------------------------------

    def _check_closed(self) -> None:
        if self._connection is not None:
            raise RuntimeError("this attempt has a transaction already; one can be open at a time")

    def _note_break(self) -> None:
        if self._connection.broken:
            self.error = ConnectionError("the connection of the attempt broke")

    def _take(self) -> ExitStack:
        stack, self._stack, self._connection, self._slot.session = self._stack, None, None, None
        assert stack is not None
        return stack

    def _atake(self) -> AsyncExitStack:
        stack, self._astack, self._connection, self._slot.session = self._astack, None, None, None
        assert stack is not None
        return stack

    def _discard(self, error: BaseException) -> None:
        """Leave a transaction whose connection failed; the pool throws the connection away."""
        if self._stack is not None:
            try:
                self._take().__exit__(type(error), error, error.__traceback__)
            except Exception:
                logger.debug("a transaction could not be left", exc_info=True)

    async def _adiscard(self, error: BaseException) -> None:
        if self._astack is not None:
            try:
                await self._atake().__aexit__(type(error), error, error.__traceback__)
            except Exception:
                logger.debug("a transaction could not be left", exc_info=True)


@contextmanager
def _requeued() -> Iterator[None]:
    """Hand the job back if its transaction cannot begin now: that is no failure of the task."""
    try:
        yield
    except (psycopg.Error, DatabaseUnavailable) as error:
        if not transient(error):
            raise
        raise TransactionUnavailable(f"the transaction of the attempt could not begin: {error}") from error
