"""The functions of the schema as short Python calls: psycopg and SQL, nothing of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.rows import dict_row, tuple_row

Row = dict[str, Any]
#: One way to open a connection with the functions in reach; the fixture `open_queue`.
OpenQueue = Callable[..., "Queue"]

PATIENCE = 20.0
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LOST = {"type": "WorkerLostError", "module": "pgqueue.errors", "message": "signal 9"}


def new_id() -> str:
    return str(uuid4())


class Queue:
    """One connection and the functions of one schema; `worker` is who claims and finishes unless told otherwise."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str = "pgqueue") -> None:
        self.connection = connection
        self.schema = schema
        self.worker = new_id()

    def rows(self, query: str, *params: object) -> list[Row]:
        """Run SQL in which `pgqueue.` means this schema."""
        text = query.replace("pgqueue.", f"{self.schema}.")
        with self.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(text, params or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: object) -> Any:
        """The only column of the only row."""
        (row,) = self.rows(query, *params)
        (value,) = row.values()
        return value

    def set_clock(self, now: datetime | None) -> None:
        self.one("select set_config('pgqueue_clock.now', %s, false)", "" if now is None else now.isoformat())

    # -- enqueueing

    def enqueue(self, *jobs: Row) -> list[tuple[str, bool]]:
        found = self.rows("select id::text, created from pgqueue.enqueue_many(%s)", json.dumps(jobs, default=str))
        return [(row["id"], row["created"]) for row in found]

    def add(self, task: str = "t", **fields: object) -> str:
        """Enqueue one job and return its id."""
        ((job, _),) = self.enqueue({"task": task, **fields})
        return job

    # -- attempts

    def claim(
        self,
        limit: int = 100,
        queues: Sequence[str] = ("default",),
        exclude: Sequence[str] = (),
        *,
        worker: str | None = None,
        alone: bool = True,
    ) -> list[Row]:
        return self.rows(
            "select * , id::text as id from pgqueue.claim(%s, %s, %s, %s, p_alone => %s)",
            worker or self.worker,
            list(queues),
            limit,
            list(exclude),
            alone,
        )

    def finish(self, *outcomes: Row, worker: str | None = None) -> list[str]:
        """Acknowledge; returns the refused ids."""
        found = self.rows(
            "select f::text as id from pgqueue.finish(%s, %s) f",
            worker or self.worker,
            json.dumps(outcomes, default=str),
        )
        return [row["id"] for row in found]

    def end(self, claim: Row, state: str = "SUCCESS", *, worker: str | None = None, **fields: object) -> bool:
        """Acknowledge one attempt; returns whether it was accepted."""
        outcome = {"id": claim["id"], "attempt": claim["attempt"], "state": state, **fields}
        if state == "RETRY":
            outcome["retries"] = claim.get("retries", 0)
        if state == "REQUEUE":
            outcome["requeues"] = claim.get("requeues", 0)
        return not self.finish(outcome, worker=worker)

    def hold(self, claim: Row, *, worker: str | None = None) -> None:
        self.rows("select pgqueue.hold(%s, %s, %s)", claim["id"], worker or self.worker, claim["attempt"])

    def run(self, state: str = "SUCCESS", **fields: Any) -> Row:
        """Claim the next job, end it, and return the claim."""
        (claim,) = self.claim(1)
        assert self.end(claim, state, **fields)
        return claim

    # -- workers

    def register(self, worker: str | None = None, **fields: object) -> str:
        described = {
            "id": worker or self.worker,
            "name": "a@host",
            "host": "host",
            "boot": "boot",
            "pid": 1,
            "pool": "solo",
            "slots": 1,
            "queues": ["default"],
            **fields,
        }
        self.rows("select pgqueue.register(%s)", json.dumps(described))
        return str(described["id"])

    def bury(
        self,
        worker: str | None = None,
        *,
        started: Iterable[str] | None = None,
        max_crashes: int = 3,
        counts: bool = True,
    ) -> dict[str, str]:
        """What became of each job of a dead worker."""
        found = self.rows(
            "select id::text, state from pgqueue.bury(%s, %s, %s::uuid[], %s, %s)",
            worker or self.worker,
            json.dumps(LOST),
            None if started is None else list(started),
            max_crashes,
            counts,
        )
        return {row["id"]: row["state"] for row in found}

    # -- looking

    def status(self, job: str) -> Row:
        (row,) = self.rows("select * from pgqueue.status(%s)", job)
        return row

    def state(self, job: str) -> str:
        return str(self.status(job)["state"])

    def job(self, job: str) -> Row | None:
        return next(iter(self.rows("select * from pgqueue.job where id = %s", job)), None)

    def result(self, job: str) -> Row | None:
        return next(iter(self.rows("select * from pgqueue.result where id = %s", job)), None)

    def everything(self) -> list[Row]:
        """All of `job` and `result`, to be compared before and after what must change nothing."""
        return self.rows(
            "select 'job' as place, to_jsonb(j) as row from pgqueue.job j"
            " union all select 'result', to_jsonb(r) from pgqueue.result r order by 1, 2"
        )

    # -- listening

    def listen(self, channel: str) -> None:
        for name in (channel, "end_of_test"):
            self.connection.execute(sql.SQL("listen {}").format(sql.Identifier(name)))

    def heard(self, speaker: Queue) -> list[tuple[str, str]]:
        """All notifications committed until now: they come in the order of the commits, so a last one ends them."""
        speaker.connection.execute("notify end_of_test")
        found: list[tuple[str, str]] = []
        for notify in self.connection.notifies(timeout=PATIENCE):
            if notify.channel == "end_of_test":
                return found
            found.append((notify.channel, notify.payload))
        raise AssertionError(f"the last notification did not come within {PATIENCE:.0f} s")

    @property
    def pid(self) -> int:
        return self.connection.info.backend_pid


def wait_until_blocked(watcher: Queue, blocked: Queue) -> None:
    """Return when the server says that a connection waits for a lock of another."""
    deadline = monotonic() + PATIENCE
    with watcher.connection.cursor(row_factory=tuple_row) as cursor:
        while monotonic() < deadline:
            cursor.execute("select cardinality(pg_blocking_pids(%s))", (blocked.pid,))
            if cursor.fetchall() != [(0,)]:
                return
    raise AssertionError(f"connection {blocked.pid} did not wait for a lock within {PATIENCE:.0f} s")
