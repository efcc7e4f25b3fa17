"""Random canvases on the real database, with retries, crashes, doubled and undone acknowledgements, in any order.

Whatever happens on the way, each canvas comes to what it means in plain Python, every job has been acknowledged once,
and nothing is left waiting. The workers are this test: they claim, run and acknowledge through the functions of the
schema.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from trees import Came, Tree, canvas, is_empty, meaning, named, trees

from pgqueue import PgQueue
from pgqueue.canvas import lay_out
from pgqueue.enqueueing import enqueue_plan
from pgqueue.group_result import GroupResult
from pgqueue.ids import new_id
from pgqueue.types import NewJob

app = PgQueue("machine", set_as_current=False)
_LOST = json.dumps({"type": "WorkerLostError", "module": "pgqueue.errors", "message": "signal 9"})
#: Things that go wrong for one canvas at most, so that it ends.
_MISHAPS = 30


@app.task(name="node")
def node(*args: Any) -> list[Any]:
    return list(args)


class Play:
    """Two workers and what happens to them."""

    def __init__(self, connection: psycopg.Connection[Any], failing: set[str], order: random.Random) -> None:
        self.connection, self.failing, self.order = connection, failing, order
        self.workers = [self.hire(), self.hire()]
        self.acked: Counter[str] = Counter()
        self.mishaps = 0

    def hire(self) -> str:
        worker = new_id()
        self.ask(
            "select pgqueue.register(%s)",
            json.dumps(
                {
                    "id": worker,
                    "name": "w",
                    "host": "h",
                    "boot": "b",
                    "pid": 1,
                    "pool": "solo",
                    "slots": 1,
                    "queues": ["default"],
                }
            ),
        )
        return worker

    def ask(self, query: str, *params: object) -> list[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), params).fetchall()

    def run(self) -> None:
        """Work until nothing can be claimed."""
        while True:
            worker = self.order.randrange(2)
            claims = self.ask(
                "select id::text, attempt, retries, args from pgqueue.claim(%s, '{default}', %s, p_alone => true)",
                self.workers[worker],
                self.order.randint(1, 4),
            )
            if not claims:
                return
            self.work(worker, claims)

    def work(self, worker: int, claims: list[dict[str, Any]]) -> None:
        if self.mishap():  # it dies with them
            self.ask("select * from pgqueue.bury(%s, %s, null, 1000)", self.workers[worker], _LOST)
            self.workers[worker] = self.hire()
            return
        outcomes = [self.outcome(claim) for claim in claims]
        text = json.dumps(outcomes)
        if self.mishap():  # the commit fails
            with self.connection.transaction(force_rollback=True):
                self.ask("select * from pgqueue.finish(%s, %s)", self.workers[worker], text)
        for _ in range(1 + self.mishap()):  # the answer gets lost
            refused = self.ask("select * from pgqueue.finish(%s, %s)", self.workers[worker], text)
            assert refused == []
        self.acked.update(one["id"] for one in outcomes if one["state"] in ("SUCCESS", "FAILURE"))

    def mishap(self) -> bool:
        """Whether something goes wrong now."""
        found = self.mishaps < _MISHAPS and self.order.random() < 0.15
        self.mishaps += found
        return found

    def outcome(self, claim: dict[str, Any]) -> dict[str, Any]:
        head = {"id": claim["id"], "attempt": claim["attempt"]}
        if self.mishap():
            return {**head, "state": "RETRY", "retries": claim["retries"]}
        args = claim["args"]
        name = next(value for value in reversed(args) if isinstance(value, str))
        if name in self.failing:
            return {**head, "state": "FAILURE", "error": {"type": "ValueError", "module": "builtins", "message": name}}
        return {**head, "state": "SUCCESS", "value": [name, *args[:-1]]}


def came(result: dict[str, Any]) -> Came:
    """Return what a stored result says."""
    if result["state"] == "SUCCESS":
        return "ok", result["value"]
    assert result["state"] == "FAILURE"
    return failure(result["error"])


def failure(error: dict[str, Any]) -> Came:
    return ("chord", failure(error["cause"])) if error["type"] == "ChordError" else ("bad", error["message"])


def played(
    connection: psycopg.Connection[Any], plan: list[NewJob], failing: set[str], order: random.Random
) -> dict[str, Any]:
    """Enqueue a plan and run it; return the results by id."""
    enqueue_plan(app, plan, None)
    play = Play(connection, failing, order)
    play.run()
    results = {
        str(row["id"]): row for row in play.ask("select id, state, value, error, attempt, task from pgqueue.result")
    }
    left = play.ask("select (select count(*) from pgqueue.job) as jobs, (select count(*) from pgqueue.step) as steps")
    assert left == [{"jobs": 0, "steps": 0}]  # nothing hangs
    assert results.keys() == {job.id for job in plan}
    # What ran was acknowledged once; what did not run had no attempt.
    assert {id_ for id_, row in results.items() if row["attempt"]} == play.acked.keys()
    assert set(play.acked.values()) <= {1}
    return results


@settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trees(2), st.randoms(use_true_random=False), st.data())
def test_any_canvas_comes_to_what_it_means_whatever_happens(
    conn: psycopg.Connection[Any], dsn: str, tree: Tree, order: random.Random, data: st.DataObject
) -> None:
    count = iter(range(10_000))
    tree = named(tree, (f"n{number}" for number in count))
    failing = {f"n{number}" for number in data.draw(st.sets(st.integers(0, next(count)), max_size=2))}
    if data.draw(st.booleans()):
        failing = set()
    if is_empty(tree):
        return
    if tree[0] in ("t", "si"):
        tree = ("c", [tree])
    app.configure(dsn=dsn)
    conn.execute("truncate pgqueue.job, pgqueue.result, pgqueue.step, pgqueue.part, pgqueue.worker")
    laid = lay_out(canvas(tree, node))
    results = played(conn, laid.jobs(), failing, order)
    handle = laid.handle
    if isinstance(handle, GroupResult):
        assert [came(results[one.id]) for one in handle.results] == meaning(tree, failing)
    else:
        assert came(results[handle.id]) == meaning(tree, failing)
    app.close()
