"""The PostgreSQL server of a soak, which faults may crash, and the ways to break its functions on purpose."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Self

import psycopg

from pgqueue.embedded import Embedded
from pgqueue.sql import schema

_TABLES = """
create schema soak;
create table soak.effect (n bigint generated always as identity primary key, job uuid, attempt integer, xid bigint);
create table soak.business (job uuid primary key);
"""


class Server:
    """A PostgreSQL server with our schema and the tables of the soak; restarted by faults, from the main thread.

    - `broken`: what to break on purpose, so that the checker has something to find; see `BROKEN`.
    """

    def __init__(self, folder: Path, bindir: Path | None = None, broken: str | None = None) -> None:
        self._embedded = Embedded(folder, settings={"max_connections": "200"}, bindir=bindir)
        self._broken = broken

    def __enter__(self) -> Self:
        self._embedded.start()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute((schema() + _TABLES).encode())
            if self._broken:
                connection.execute(BROKEN[self._broken].encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._embedded.stop()

    @property
    def dsn(self) -> str:
        """Where it is, without the proxy."""
        return self._embedded.dsn

    @property
    def socket(self) -> Path:
        """Its Unix socket."""
        with psycopg.connect(self.dsn) as connection:
            return Path(connection.info.host) / f".s.PGSQL.{connection.info.port}"

    def crash(self) -> None:
        """Stop as `pg_ctl stop -m immediate` does, and start again."""
        pid = self._embedded.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        while self._embedded.pid is not None:
            time.sleep(0.01)
        self._embedded.start()

    def rows(self, query: str, *params: object, patience: float = 30.0) -> list[tuple[Any, ...]]:
        """Return the rows of a query, trying again while the server recovers."""
        deadline = time.monotonic() + patience
        while True:
            try:
                with psycopg.connect(self.dsn, autocommit=True, application_name="soak") as connection:
                    return connection.execute(query.encode(), params or None).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


#: Engines that must be caught. fence: an acknowledgement takes the lease it does not have. bury: what a dead worker
#: had begun is thrown away.
BROKEN = {
    "fence": """
alter function pgqueue.finish rename to finish_fenced;
create function pgqueue.finish(p_worker uuid, p_outcomes json) returns setof uuid language plpgsql as $$
begin
    update pgqueue.job j set worker = p_worker, attempt = o.attempt, claimed_at = coalesce(j.claimed_at, j.enqueued_at)
      from json_to_recordset(p_outcomes) as o (id uuid, attempt integer) where j.id = o.id;
    return query select pgqueue.finish_fenced(p_worker, p_outcomes);
end $$;
create or replace function pgqueue.hold(p_job uuid, p_worker uuid, p_attempt integer) returns void
language sql as 'select';
""",
    "bury": """
create function soak.throw_away() returns trigger language plpgsql as $$
begin
    delete from pgqueue.job where id = new.id;
    return null;
end $$;
create trigger crashed after update on pgqueue.job
   for each row when (new.crashes > old.crashes) execute function soak.throw_away();
""",
}
