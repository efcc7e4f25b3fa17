"""Tasks whose values say what was called with what: `mark.s(tag="b")` after `mark.s(tag="a")` gives "b(a())"."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psycopg

from pgqueue import Ignore, PgQueue, Reject, chain, chord, group
from pgqueue.result import allow_join_result

app = PgQueue("flows")


def shown(value: object) -> str:
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else str(value)


@app.task
def mark(*args: Any, tag: str) -> str:
    """Return the tag and what came before."""
    return f"{tag}({','.join(map(shown, args))})"


@app.task(ignore_result=True)
def quiet(*args: Any, tag: str) -> str:
    return f"{tag}({','.join(map(shown, args))})"


@app.task
def fail(*args: Any, tag: str) -> None:
    raise ValueError(f"{tag} fails")


@app.task
def ignored(*args: Any) -> None:
    raise Ignore


@app.task
def rejected(*args: Any) -> None:
    raise Reject("no")


@app.task(bind=True, default_retry_delay=0)
def retried(self: Any, *args: Any, tag: str) -> str:
    """Succeed the third time."""
    if self.request.retries < 2:
        raise self.retry()
    return f"{tag}({','.join(map(shown, args))})"


@app.task(bind=True)
def turned(self: Any, *args: Any, into: str) -> None:
    """Put a canvas in the place of this job."""
    before = mark.s(*args, tag="x")
    raise self.replace(
        {
            "task": before,
            "chain": chain(before, mark.s(tag="y")),
            "group": group(before, mark.s(*args, tag="y")),
            "chord": chord([before, mark.s(*args, tag="y")], mark.s(tag="z")),
            "failing chord": chord([before, fail.s(tag="y")], mark.s(tag="z")),
            "chain of groups": chain(before, group(mark.s(tag="y"), mark.s(tag="z"))),
        }[into]
    )


@app.task(bind=True)
def more(self: Any, *args: Any, fails: bool = False) -> str:
    """Add a member to the chord."""
    self.add_to_chord(fail.s(tag="more") if fails else mark.s(tag="more"))
    return "adds"


@app.task
def total(values: list[int]) -> int:
    return sum(values)


@app.task
def double(value: int) -> int:
    return 2 * value


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def complain(id: str, tag: str = "") -> str:
    return id


@app.task(bind=True)
def stamped(self: Any, *args: Any) -> dict[str, Any]:
    """Return the stamps after a retry that has headers of its own."""
    if not self.request.retries:
        raise self.retry(countdown=0, headers={"tenant": 1})
    found: dict[str, Any] = self.request.stamps
    return found


def _told(query: str) -> None:
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        connection.execute(query.encode())


@app.task
def counted(*args: Any, tag: str) -> str:
    """Write down, past all that pgqueue commits, that the function was called."""
    _told(f"insert into ran (tag) values ('{tag}')")
    return f"{tag}({','.join(map(shown, args))})"


@app.task
def gated(*args: Any, tag: str) -> str:
    """Wait until the test opens the gate: an advisory lock that it holds."""
    _told("select pg_advisory_lock_shared(1)")
    return f"{tag}({','.join(map(shown, args))})"


@app.task(bind=True)
def dying(self: Any, *args: Any, tag: str) -> str:
    """Kill the own process, the first time."""
    if not self.request.crashes:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{tag}({','.join(map(shown, args))})"


@app.task(bind=True, default_retry_delay=0, max_retries=1)
def exhausted(self: Any, *args: Any, tag: str) -> None:
    """Fail as often as it may."""
    raise self.retry(exc=ValueError(f"{tag} fails"))


@app.task
def slow(tag: str) -> None:
    time.sleep(60)


@app.task(bind=True)
def kept(self: Any, *args: Any) -> dict[str, Any]:
    """Return what the request carries, having been replaced once."""
    if not self.request.replaced_task_nesting:
        raise self.replace(kept.si())
    return {"stamps": self.request.stamps, "properties": sorted(self.request.properties)}


@app.task(bind=True)
def inner(self: Any, *args: Any) -> list[str]:
    """Enqueue a chain; return the ids of this job, of its root, and of the two of the chain."""
    last = chain(mark.s(tag="b"), mark.s(tag="c")).delay()
    return [self.request.id, self.request.root_id, last.parent.id, last.id]


@app.task
def joins(how: str) -> Any:
    """Wait for a canvas inside a task."""
    both = group(mark.s(tag="a"), mark.s(tag="b")).delay()
    if how == "refused":
        return both.get(timeout=20)
    with allow_join_result():
        return both.get(timeout=20)


@app.task
def direct(item: int) -> int:
    """Fail for what is not even."""
    if item % 2:
        raise ValueError(f"{item} is odd")
    return item // 2
