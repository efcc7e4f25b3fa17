"""The yardstick of a drain: a loop over psycopg that runs the same SQL, and nothing else.

`python -m pgqueue.bench.bare` claims 500 jobs, calls their functions through a dictionary, JSON in and out, and
acknowledges them with their results; the claim of the next batch and the acknowledgement of the last one travel in
one round trip, in pipeline mode. It has no slots, time limits, signals, leases to watch or second thread, and is no
worker: a job whose function fails ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from pgqueue.bench.tasks import QUEUE, add, app, carry
from pgqueue.database import run, run_together
from pgqueue.errors import BenchFailed
from pgqueue.ids import new_id
from pgqueue.serialization import decode, encode
from pgqueue.statements import Ended, Statement
from pgqueue.types import Claim, Succeeded

BATCH = 500

_FUNCTIONS: dict[str, Callable[..., object]] = {task.name: task.run for task in (add, carry)}


def bare_drain(connection: psycopg.Connection[Any]) -> None:
    """Drain the queue; `connection` is in autocommit mode."""
    worker = new_id()
    claims: list[Claim] = run(connection, _claim(worker))
    while claims:
        ended = [_call(claim) for claim in claims]
        refused, claims = run_together(connection, app.database.statements.finish(worker, ended), _claim(worker))
        if refused:
            raise BenchFailed(f"{len(refused)} acknowledgements were refused")


def _claim(worker: str) -> Statement[Claim]:
    return app.database.statements.claim(worker, [QUEUE], BATCH, [], relaxed=False)


def _call(claim: Claim) -> Ended:
    """Run one claim with as little as it takes."""
    args: Any = decode(claim.args)
    kwargs: Any = decode(claim.kwargs)
    value = _FUNCTIONS[claim.task](*args, **kwargs)
    return Ended(claim, Succeeded(encode(value, path="result")))


def main() -> None:
    """Drain the queue of the bench that has started this process."""
    with psycopg.connect(app.database.dsn, autocommit=True, prepare_threshold=None) as connection:
        bare_drain(connection)


if __name__ == "__main__":
    main()
