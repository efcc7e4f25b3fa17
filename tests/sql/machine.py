"""Sessions of which one may wait for another, all driven by one thread; and what the database did, row by row.

A statement is sent and then watched until it has ended or the server says whom it waits for. So a race is a list of
steps: the same list gives the same interleaving, and Hypothesis can shorten it.
"""

from __future__ import annotations

import json
import select
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pgqueue import sql

from .helpers import NOON, PATIENCE

#: Writes of one transaction to `job` and `result`, in the order in which they were made.
HISTORY = """
create schema machine;
create table machine.history (
    seq bigint generated always as identity primary key,
    xid xid8 not null default pg_current_xact_id(), pid integer not null default pg_backend_pid(),
    call text not null, place text not null, id uuid not null, clock timestamptz not null, old jsonb, new jsonb
);
create function machine.write() returns trigger language plpgsql as $$
begin
    insert into machine.history (call, place, id, clock, old, new)
    values (substring(current_query() from 'pgqueue[.](\\w+)[(]'), tg_table_name,
            case tg_op when 'DELETE' then old.id else new.id end, pgqueue.clock(),
            case when tg_op <> 'INSERT' then to_jsonb(old) end, case when tg_op <> 'DELETE' then to_jsonb(new) end);
    return null;
end $$;
create trigger history after insert or update or delete on pgqueue.job for each row execute function machine.write();
create trigger history after insert or update or delete on pgqueue.result for each row execute function machine.write();
-- Without a unique constraint: a second effect is to be seen, not prevented.
create table machine.effect (
    n bigint generated always as identity primary key, job uuid not null, attempt integer not null,
    xid xid8 not null default pg_current_xact_id()
);
"""

#: A step that waits is left waiting for as long as the machine likes, however slow the computer is.
PATIENT = """
do $$
declare f record;
begin
    for f in select p.oid::regprocedure as name from pg_proc p
              where p.pronamespace = 'pgqueue'::regnamespace and p.proconfig::text like '%lock_timeout%' loop
        execute format('alter function %s reset lock_timeout', f.name);
    end loop;
end $$;
"""

#: Nothing moves rows behind our back: of two jobs with the same eta the same one comes first each time.
STILL = """
alter table pgqueue.job set (autovacuum_enabled = off);
alter table pgqueue.result set (autovacuum_enabled = off);
"""

LOOK = """
with gone as (delete from machine.history returning *)
select json_build_object(
    'history', (select coalesce(json_agg(to_jsonb(g) order by g.seq), '[]') from gone g),
    'jobs', (select coalesce(json_agg(to_jsonb(j)), '[]') from pgqueue.job j),
    'results', (select coalesce(json_agg(to_jsonb(r)), '[]') from pgqueue.result r),
    'workers', (select coalesce(json_agg(w.id), '[]') from pgqueue.worker w),
    'effects', (select coalesce(json_agg(to_jsonb(e) order by e.n), '[]') from machine.effect e))
"""


class Breach(AssertionError):
    """The database did, or said, what it must not; `rule` is the invariant, S1 to S16."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class Refused(Exception):
    """A statement ended with an error of the server."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


@dataclass(slots=True, eq=False)
class Call:
    """A statement under way; `then` is told its answer (or a Refused) and whether it had to wait."""

    session: Session
    text: str
    then: Callable[[Any, Call], None]
    at: int
    held: bool  # its transaction stays open
    waited: bool = False
    wrote: bool = False
    answer: Any = None


@dataclass(slots=True, eq=False)
class Session:
    """One connection: idle, in a transaction, or waiting in a call."""

    dsn: str
    name: str
    raw: pq.PGconn = field(init=False)
    call: Call | None = None
    open: bool = False
    stage: str = ""
    attempt: Any = None
    #: What its transaction will have written when it commits, and what to do then.
    delta: dict[tuple[str, str], Any] = field(default_factory=dict)
    at_commit: list[Callable[[], None]] = field(default_factory=list)
    _results: list[pq.abc.PGresult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        options = "-c timezone=UTC -c statement_timeout=60s -c deadlock_timeout=50ms"
        conninfo = make_conninfo(self.dsn, application_name=self.name, options=options)
        self.raw = pq.PGconn.connect(conninfo.encode())
        assert self.raw.status == pq.ConnStatus.OK, self.raw.error_message
        self._results = []

    @property
    def idle(self) -> bool:
        return not self.open and self.call is None

    @property
    def pid(self) -> int:
        return self.raw.backend_pid

    def send(self, text: str) -> None:
        self.raw.send_query(text.encode())

    def ended(self, seconds: float) -> bool:
        """Whether the statement has ended, after waiting for it so long."""
        select.select([self.raw.socket], [], [], seconds)
        self.raw.consume_input()
        while not self.raw.is_busy():
            if (result := self.raw.get_result()) is None:
                return True
            self._results.append(result)
        return False

    def answer(self) -> Any:
        """The only value of the last statement, from JSON."""
        results, self._results = self._results, []
        last = results[-1]
        if last.status == pq.ExecStatus.FATAL_ERROR:
            code = last.error_field(pq.DiagnosticField.SQLSTATE) or b""
            raise Refused(code.decode(), last.get_error_message())
        value = last.get_value(0, 0) if last.ntuples else None
        return None if value is None else json.loads(value)

    def run(self, text: str) -> Any:
        """Run what cannot wait."""
        self.send(text)
        while not self.ended(PATIENCE):
            pass
        return self.answer()

    def has_written(self) -> bool:
        """Whether its open transaction has."""
        return bool(
            self.run("select to_json(count(*)) from machine.history where xid = pg_current_xact_id_if_assigned()")
        )

    def over(self) -> list[Callable[[], None]]:
        """Its transaction is over; returns what was to be done after a commit."""
        todo = self.at_commit
        self.call, self.open, self.stage, self.attempt = None, False, "", None
        self.delta, self.at_commit = {}, []
        return todo


def replaced(text: str, changes: Iterable[tuple[str, str, str]]) -> str:
    """Return SQL with each of these passages replaced; each must be there."""
    for _, old, new in changes:
        assert old in text, f"the SQL has changed, so this variant of it breaks nothing: {old!r}"
        text = text.replace(old, new)
    return text


class Arena:
    """A database with the schema, a log of its rows, a clock of ours, and some sessions."""

    def __init__(self, dsn: str, changes: Iterable[tuple[str, str, str]] = (), sessions: int = 5) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.schema().encode())
            for name, group in groupby(changes, key=itemgetter(0)):
                connection.execute(replaced(sql.read(f"functions/{name}"), group).encode())
            connection.execute((HISTORY + PATIENT + STILL).encode())
        self.now = 0
        #: What came about, over all examples: a machine in which nothing happens finds nothing.
        self.seen: Counter[str] = Counter()
        self.sessions = [Session(dsn, f"s{n}") for n in range(sessions)]
        self._watcher = Session(dsn, "watcher")

    def close(self) -> None:
        for session in (*self.sessions, self._watcher):
            session.raw.finish()

    def reset(self) -> None:
        """As new. TRUNCATE, because where the next rows land in the file must not depend on the last example."""
        for session in self.sessions:
            if not session.idle:
                self.drop(session)
            session.over()
        self._watcher.run(
            "delete from pgqueue.worker; truncate pgqueue.job, pgqueue.result, machine.history, machine.effect"
        )
        self.now = 0
        self.seen["examples"] += 1

    # -- statements

    def start(
        self, session: Session, text: str, then: Callable[[Any, Call], None], *, held: bool = False
    ) -> list[Call]:
        """Send a statement, and return the calls that have ended when nothing moves any more."""
        self.now += 1
        if held and not session.open:
            session.run("begin")
            session.open = True
        moment = (NOON + timedelta(milliseconds=self.now)).isoformat()
        session.call = Call(session, text, then, self.now, held)
        session.send(f"set pgqueue_clock.now = '{moment}'; {text}")
        return self.settle(session)

    def end(self, session: Session, how: str) -> list[Call]:
        """Commit or roll back, then wait until nothing moves any more."""
        session.run(how)
        return self.settle()

    def drop(self, session: Session) -> None:
        """End a connection as a crash does; it comes back as a new one."""
        self._watcher.run(f"select to_json(pg_terminate_backend({session.pid}))")
        deadline = monotonic() + PATIENCE
        while self._watcher.run(f"select to_json(count(*)) from pg_stat_activity where pid = {session.pid}"):
            assert monotonic() < deadline, f"session {session.name} does not end"
        session.raw.finish()
        session.connect()

    def settle(self, started: Session | None = None) -> list[Call]:
        """Return the calls that have ended once every other one waits for a session in which nothing runs."""
        ended: list[Call] = []
        deadline = monotonic() + PATIENCE
        last: dict[int, list[int]] | None = None
        while busy := [session for session in self.sessions if session.call]:
            assert monotonic() < deadline, f"neither ended nor waiting: {[session.call for session in busy]}"
            for session in busy:
                if session.ended(0.005 if session is started or last is None else 0.0005):
                    assert session.call
                    try:
                        session.call.answer = session.answer()
                    except Refused as error:
                        session.call.answer = error
                    ended.append(session.call)
                    session.call = None
            busy = [session for session in busy if session.call]
            if not busy:
                break
            # Twice the same answer: who was seen waiting for another may have been let go while we asked for the rest.
            seen = self._waits(busy)
            if seen == last and _stands(seen):
                break
            last = seen
        for session in self.sessions:
            if session.call:
                session.call.waited = True
        return ended

    def _waits(self, busy: list[Session]) -> dict[int, list[int]]:
        pairs = ", ".join(f"'{session.pid}', pg_blocking_pids({session.pid})" for session in busy)
        found = self._watcher.run(f"select json_build_object({pairs})")
        return {int(pid): sorted(others) for pid, others in found.items()}

    # -- looking

    def look(self) -> dict[str, Any]:
        """What is committed; as its history what has been since the last look, in the order of writing."""
        found: dict[str, Any] = self._watcher.run(LOOK)
        return found


def _stands(waits: dict[int, list[int]]) -> bool:
    """Whether each waits, in the end, for a session in which nothing runs; else one moves soon: to a deadlock error."""
    stuck = {pid for pid, others in waits.items() if others}
    if stuck != set(waits):
        return False
    free: set[int] = set()
    while True:
        more = {pid for pid in stuck - free if any(other not in stuck or other in free for other in waits[pid])}
        if not more:
            return free == stuck
        free |= more
