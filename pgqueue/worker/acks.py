"""Outcomes on their way into the database: in batches, one by one where a batch fails, later where a row is locked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg

from pgqueue.database import connection_lost, passes, run, run_together
from pgqueue.reports import report
from pgqueue.statements import Ended, Statement, Statements
from pgqueue.types import Claim, Failed
from pgqueue.worker import journal
from pgqueue.worker.pace import LARGEST_ACK, LATER

logger = logging.getLogger("pgqueue.worker")

Connection = psycopg.Connection[Any]


class Acks:
    """Acknowledges outcomes for one worker.

    - `forget`: told of each claim whose attempt is acknowledged, or refused for good.

    `waiting` are the outcomes to be acknowledged next; whoever has one appends it.
    """

    def __init__(self, statements: Statements, worker: str, forget: Callable[[Claim], None]) -> None:
        self._statements = statements
        self._worker = worker
        self._forget = forget
        self.waiting: list[Ended] = []
        self._later: list[tuple[float, float, Ended]] = []  # when, after which pause

    def __len__(self) -> int:
        return len(self.waiting) + len(self._later)

    @property
    def batch(self) -> list[Ended]:
        """What is acknowledged next."""
        return self.waiting[:LARGEST_ACK]

    def finish(self, connection: Connection, claim: Statement[Claim] | None) -> list[Claim] | None:
        """Acknowledge a batch, and claim in the same round trip and commit; return what was claimed.

        None: it did not come to a claim.
        """
        batch = self.batch
        if not batch:
            return None if claim is None else run(connection, claim)
        statements: list[Statement[Any]] = [self._statements.finish(self._worker, batch)]
        if claim is not None:
            statements.append(claim)
        try:
            refused, *claimed = run_together(connection, *statements)
        except psycopg.Error as error:
            if connection_lost(error):
                raise
            for ended in batch:  # so that a bad one does not hold up the others
                self.waiting.remove(ended)
                self._finish_one(connection, ended, LATER)
            return None
        self.waiting = self.waiting[len(batch) :]
        self._tell(batch, refused)
        return claimed[0] if claimed else None

    def finish_later(self, connection: Connection, now: float, *, hurry: bool) -> None:
        """Try one again that could not be stored: it may take seconds, so ever more rarely, unless in a hurry."""
        due = next((entry for entry in self._later if hurry or entry[0] <= now), None)
        if due is not None:
            self._later.remove(due)
            self._finish_one(connection, due[2], 2 * due[1])

    def _finish_one(self, connection: Connection, ended: Ended, pause: float) -> None:
        try:
            refused = run(connection, self._statements.finish(self._worker, [ended]))
        except psycopg.Error as error:
            if connection_lost(error):
                self.waiting.insert(0, ended)
                raise
            if passes(error):  # somebody holds the row, the disk is full
                logger.warning("job %s: its outcome cannot be stored yet: %s", ended.claim.id, error)
                self._later.append((time.monotonic() + pause, pause, ended))
                return
            logger.error("job %s: its outcome cannot be stored: %s", ended.claim.id, error)
            ended = ended._replace(outcome=Failed(report(error), hooks=ended.told is None))
            self.waiting.insert(0, ended)
            refused = run(connection, self._statements.finish(self._worker, [ended]))
            self.waiting.remove(ended)
        self._tell([ended], refused)

    def _tell(self, batch: list[Ended], refused: list[str]) -> None:
        for ended in batch:
            self._forget(ended.claim)
            acked = not refused or ended.claim.id not in refused
            journal.tell(ended, acked)
            if ended.told is not None:
                ended.told(ended.outcome, acked)
