"""The task that the benchmarks drain: two small integers in, their sum out."""

from pgqueue import PgQueue

app = PgQueue("bench")


@app.task
def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y
