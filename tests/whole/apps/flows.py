"""Tasks whose values say what was called with what: `mark.s(tag="b")` after `mark.s(tag="a")` gives "b(a())"."""

from __future__ import annotations

from typing import Any

from pgqueue import Ignore, PgQueue, Reject, chain, chord, group

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
def more(self: Any, *args: Any) -> str:
    """Add a member to the chord."""
    self.add_to_chord(mark.s(tag="more"))
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
