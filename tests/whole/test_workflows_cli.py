"""`pgqueue workflows` and runs of `app.workflow()` in a real database, and the programs of `docs/workflows.md`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from test_readme import Reader, blocks, file_name

from pgqueue import Ignore, InvalidOption, PgQueue, Reject, State, TaskRevokedError
from pgqueue.enqueueing import enqueue_plan
from pgqueue.ids import new_id
from pgqueue.statements import Progress
from pgqueue.types import GATHER, NewJob
from pgqueue.worker.drain import drain
from pgqueue.workflow import Workflow, WorkflowRun

PROGRAM = Path(sys.executable).with_name("pgqueue")
_PAGE = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")

Connection = psycopg.Connection[Any]


class Shop:
    """Whether the task `weigh` succeeds."""

    scales = True


@pytest.fixture
def app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgQueue]:
    app = PgQueue("flows", dsn=dsn, set_as_current=False)
    monkeypatch.setattr(Shop, "scales", True)

    @app.task(name="shop.order")
    def order(number: int) -> int:
        return number

    @app.task(name="shop.pack")
    def pack(number: int, box: str) -> str:
        return f"{number} in {box}"

    @app.task(name="shop.weigh")
    def weigh(number: int) -> int:
        if not Shop.scales:
            raise LookupError("no scales")
        return number * 100

    @app.task(name="shop.send")
    def send(parts: list[Any]) -> list[Any]:
        return parts

    yield app
    app.close()


@pytest.fixture
def flow(app: PgQueue) -> Workflow:
    """A diamond: order, then pack and weigh, then send."""
    flow = app.workflow()
    first = flow.step("order", app.tasks["shop.order"].s(7))
    flow.step("pack", app.tasks["shop.pack"].s("a box"), after=first)
    flow.step("weigh", app.tasks["shop.weigh"].s(), after=first)
    flow.step("send", app.tasks["shop.send"].s(), after=["weigh", "pack"])
    return flow


@pytest.fixture
def failed(app: PgQueue, flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> WorkflowRun:
    """A run whose step `weigh` has failed."""
    run = flow.delay()
    monkeypatch.setattr(Shop, "scales", False)
    drain(app)
    monkeypatch.setattr(Shop, "scales", True)
    return run


def run_cli(*words: str, code: int = 0, dsn: str = "") -> subprocess.CompletedProcess[str]:
    """Run `pgqueue workflows`, and see that it ends with this exit code."""
    done = subprocess.run(
        [PROGRAM, "workflows", *words, "--dsn", dsn], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def table(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    heading, *lines = (line.split("\t") for line in done.stdout.splitlines())
    return [dict(zip(heading, line, strict=True)) for line in lines]


# -- app.workflow() ----------------------------------------------------------------------------------------------


def test_a_run(app: PgQueue, flow: Workflow, conn: Connection) -> None:
    run = flow.apply_async()
    assert run.progress() == Progress(total=4, done=0, failed=0, running=0, waiting=4)
    assert [handle.state for handle in map(run.__getitem__, run)] == [State.PENDING] * 4
    assert not run.ready()
    assert [(one.task, one.value) for one in drain(app)] == [
        ("shop.order", 7), ("shop.pack", "7 in a box"), ("shop.weigh", 700), ("shop.send", [700, "7 in a box"]),
    ]  # fmt: skip
    assert run.get(timeout=0) == {"send": [700, "7 in a box"]}
    assert asyncio.run(run.aget(timeout=0)) == {"send": [700, "7 in a box"]}
    assert run["pack"].get(timeout=0) == "7 in a box"
    assert run.progress() == Progress(total=4, done=4, failed=0, running=0, waiting=0)
    assert run.ready()
    assert run.retry() == 0
    (left,) = conn.execute(
        "select (select count(*) from pgqueue.step) + (select count(*) from pgqueue.part)"
    ).fetchone() or (1,)
    assert left == 0


def test_it_is_enqueued_with_the_transaction_of_the_caller_or_not_at_all(
    app: PgQueue, flow: Workflow, conn: Connection
) -> None:
    with pytest.raises(ZeroDivisionError), conn.transaction():
        gone = flow.apply_async(connection=conn)
        raise ZeroDivisionError
    assert gone.progress() == Progress(0, 0, 0, 0, 0)
    with conn.transaction():
        run = flow.apply_async(connection=conn)
        assert run.progress().total == 0  # another connection sees nothing yet
    assert run.progress().total == 4
    with pytest.raises(InvalidOption, match="unique_key"):
        bad = app.workflow()
        bad.step("a", app.tasks["shop.order"].s(1).set(unique_key="once"))
        bad.apply_async()
        bad.apply_async()
    assert len(drain(app)) == 5


def test_it_is_enqueued_from_coroutines(app: PgQueue, flow: Workflow) -> None:
    async def enqueue() -> WorkflowRun:
        try:
            return await flow.adelay()
        finally:
            await app.aclose()

    run = asyncio.run(enqueue())
    drain(app)
    assert run.get(timeout=0) == {"send": [700, "7 in a box"]}


def test_a_failure_ends_what_comes_after_it_and_retry_goes_on_from_there(app: PgQueue, failed: WorkflowRun) -> None:
    assert [failed[name].state for name in failed] == ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]
    with pytest.raises(LookupError, match="no scales"):
        failed.get(timeout=0)
    assert failed.progress() == Progress(total=4, done=2, failed=2, running=0, waiting=0)
    assert failed.retry() == 1
    assert failed.progress() == Progress(total=4, done=2, failed=0, running=0, waiting=2)
    assert [one.task for one in drain(app)] == ["shop.weigh", "shop.send"]
    assert failed.get(timeout=0) == {"send": [700, "7 in a box"]}


def test_a_run_can_be_revoked(app: PgQueue, flow: Workflow) -> None:
    run = flow.delay()
    assert run.revoke() == 4
    assert drain(app) == []
    with pytest.raises(TaskRevokedError):
        run.get(timeout=0)
    assert run.retry() == 1
    drain(app)
    assert run.get(timeout=0) == {"send": [700, "7 in a box"]}


def test_a_workflow_that_a_task_enqueues_is_one_of_its_own(app: PgQueue, flow: Workflow) -> None:
    runs = []

    @app.task(name="shop.start")
    def start() -> None:
        runs.append(flow.delay())

    outer = start.delay()
    drain(app)
    (run,) = runs
    assert run.progress().total == 4
    assert run.id != outer.id
    assert run["order"].parent == outer


def test_a_wide_one(app: PgQueue) -> None:
    """More than are sent in one statement."""
    flow = app.workflow()
    names = [f"part {n}" for n in range(300)]
    for n, name in enumerate(names):
        flow.step(name, app.tasks["shop.order"].s(n))
    flow.step("all", app.tasks["shop.send"].s(), after=names[::-1])
    run = flow.delay()
    assert len(drain(app)) == 301
    assert run.get(timeout=0) == {"all": list(range(300))[::-1]}


@pytest.mark.parametrize("seed", range(12))
def test_any_graph_ends_as_in_an_eager_run_and_a_retry_mends_it(dsn: str, seed: int) -> None:
    """Steps that succeed, fail, are ignored or rejected, in graphs made at random."""
    chance, broken = random.Random(seed), [True]
    app = PgQueue("random", dsn=dsn, set_as_current=False)

    @app.task(name="act")
    def act(*args: Any) -> Any:
        *given, name, how = args
        if broken[0]:
            match how:
                case "fail":
                    raise LookupError(name)
                case "reject":
                    raise Reject(name)
                case "ignore":
                    raise Ignore
        return [name, *given]

    flow = app.workflow()
    names: list[str] = []
    for n in range(chance.randrange(2, 12)):
        how = chance.choice(["succeed"] * 6 + ["fail", "reject", "ignore"])
        make = chance.choice([act.s, act.s, act.si])
        after: Any = sorted(chance.sample(names, chance.randrange(min(len(names), 4) + 1)))
        after = after[0] if len(after) == 1 and chance.random() < 0.7 else after or chance.choice([None, []])
        names.append(f"s{n:02}")
        flow.step(names[-1], make(names[-1], how), after=after)

    def ends(run: WorkflowRun) -> list[tuple[str, str, str]]:
        return [(name, str(run[name].state), str(run[name].result)) for name in run]

    app.conf.update(task_always_eager=True)
    expected = flow.delay()
    app.conf.update(task_always_eager=False)
    run = flow.delay()
    drain(app)
    assert ends(run) == ends(expected)
    assert run.progress() == expected.progress()
    broken[0] = False
    again = run.retry()
    assert (again > 0) == (expected.progress().failed > 0)
    drain(app)
    assert run.progress() == Progress(len(names), len(names), 0, 0, 0)
    assert run.retry() == 0
    app.close()


def test_a_gather_is_drawn_and_not_counted(app: PgQueue, dsn: str) -> None:
    gather, body = new_id(), app.tasks["shop.send"].s().continuation()
    members = [app.tasks["shop.order"].s(n).job() for n in range(2)]
    root = members[0].id
    plan = [job._replace(steps=(gather,), place=place, root_id=root) for place, job in enumerate(members)]
    plan.append(NewJob(gather, GATHER, steps=(body.id,), root_id=root, waits=2, takes="values"))
    plan.append(body._replace(root_id=root, waits=1, takes="value"))
    enqueue_plan(app, plan, None)
    for drained in (False, True):
        if drained:
            drain(app)
        (row,) = table(run_cli("list", dsn=dsn))
        assert (row["id"], row["total"]) == (root, "3")
        assert [row["task"] for row in table(run_cli("show", gather, dsn=dsn))].count("(gather)") == 1
        assert "\n◦" in run_cli("graph", gather, dsn=dsn).stdout
    assert app.AsyncResult(body.id).get(timeout=0) == [0, 1]


# -- the command -------------------------------------------------------------------------------------------------


def test_list(app: PgQueue, flow: Workflow, failed: WorkflowRun, dsn: str) -> None:
    newer, done = flow.delay(), flow.delay()
    app.tasks["shop.order"].delay(1)  # a job alone is no workflow
    rows = table(run_cli("list", dsn=dsn))
    assert [row["id"] for row in rows] == [done.id, newer.id, failed.id]
    assert [row["state"] for row in rows] == ["waiting", "waiting", "failed"]
    assert {name: rows[2][name] for name in ("task", "total", "done", "failed", "running", "waiting")} == {
        "task": "shop.order", "total": "4", "done": "2", "failed": "2", "running": "0", "waiting": "0",
    }  # fmt: skip
    assert [row["id"] for row in table(run_cli("list", "--limit", "1", dsn=dsn))] == [done.id]
    (only,) = json.loads(run_cli("list", "--failed", "--json", dsn=dsn).stdout)
    assert (only["id"], only["state"], only["failed"]) == (failed.id, "failed", 2)
    drain(app)
    assert [row["state"] for row in table(run_cli("list", dsn=dsn))] == ["done", "done", "failed"]


def test_jobs_that_a_task_enqueued_are_no_workflow(app: PgQueue, dsn: str) -> None:
    @app.task(name="shop.many")
    def many() -> None:
        for n in range(3):
            app.tasks["shop.order"].delay(n)

    many.delay()
    drain(app)
    assert table(run_cli("list", dsn=dsn)) == []


def test_show(failed: WorkflowRun, dsn: str) -> None:
    done = run_cli("show", failed.id, dsn=dsn)
    assert done.stderr == f"workflow {failed.id}: 2 of 4 done, 2 failed\n"
    rows = {row["step"]: row for row in table(done)}
    assert {name: (row["task"], row["state"], row["error"]) for name, row in rows.items()} == {
        "order": ("shop.order", "SUCCESS", ""),
        "pack": ("shop.pack", "SUCCESS", ""),
        "weigh": ("shop.weigh", "FAILURE", "LookupError: no scales"),
        "send": ("shop.send", "FAILURE", f"LookupError: no scales (by {failed['weigh'].id})"),
    }
    assert {row["id"] for row in rows.values()} == {failed[name].id for name in failed}
    assert rows["order"]["runtime"].endswith("ms")


def test_show_of_one_that_waits_and_as_json(app: PgQueue, flow: Workflow, dsn: str) -> None:
    run = flow.delay()
    assert [row["waits"] for row in table(run_cli("show", run["send"].id, dsn=dsn))] == [
        "",
        "1 of 1",
        "1 of 1",
        "2 of 2",
    ]
    found = json.loads(run_cli("show", run.id, "-j", dsn=dsn).stdout)
    assert found["id"] == run.id
    assert [job["name"] for job in found["jobs"]] == list(run)
    assert found["jobs"][0]["steps"] == [run["pack"].id, run["weigh"].id]


@pytest.mark.parametrize("form", ["text", "mermaid", "dot", "svg"])
def test_graph(failed: WorkflowRun, dsn: str, form: str, tmp_path: Path) -> None:
    drawn = run_cli("graph", failed["pack"].id, "--format", form, dsn=dsn).stdout
    for name in failed:
        assert name in drawn
    file = tmp_path / "graph"
    assert run_cli("graph", failed.id, "--format", form, "-o", str(file), dsn=dsn).stdout == ""
    if form == "svg":
        ElementTree.parse(file)
    if form == "text":
        assert file.read_text(encoding="utf-8") == (
            "✓    order  SUCCESS\n├─╮\n✓ │  pack   SUCCESS\n│ ✗  weigh  FAILURE\n├─╯\n⊘    send   FAILURE\n"
        )


def test_a_graph_that_cannot_be_written(failed: WorkflowRun, dsn: str, tmp_path: Path) -> None:
    done = run_cli("graph", failed.id, "-o", str(tmp_path / "gone" / "graph"), code=1, dsn=dsn)
    assert "cannot be written: No such file or directory" in done.stderr


def test_retry(app: PgQueue, failed: WorkflowRun, dsn: str) -> None:
    assert run_cli("retry", failed["order"].id, dsn=dsn).stdout == "1 job enqueued again.\n"
    drain(app)
    assert failed["send"].app is app
    assert run_cli("retry", failed.id, code=1, dsn=dsn).stdout.startswith("Nothing of it has failed")


def test_revoke(flow: Workflow, dsn: str) -> None:
    run = flow.delay()
    assert run_cli("revoke", run["weigh"].id, dsn=dsn).stdout == "4 jobs revoked.\n"
    assert {run[name].state for name in run} == {"REVOKED"}
    assert run_cli("revoke", run.id, code=1, dsn=dsn).stdout == "All of it has ended.\n"


@pytest.mark.parametrize("command", ["show", "graph", "retry", "revoke"])
def test_an_unknown_id(dsn: str, command: str) -> None:
    id_ = new_id()
    assert f"no workflow has the root or the job {id_}" in run_cli(command, id_, code=1, dsn=dsn).stderr
    assert "is not a UUID" in run_cli(command, "5", code=2, dsn=dsn).stderr


def test_help_imports_nothing_that_is_slow() -> None:
    program = """
import sys
from pgqueue.cli import main
try:
    main(["workflows", "graph", "--help"])
finally:
    slow = {"psycopg", "psycopg_pool", "pydantic", "pydantic_settings", "asyncio", "xml", "pgqueue.app"}
    print("imported:", *sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "imported:"


# -- the page ----------------------------------------------------------------------------------------------------


def test_every_program_of_the_page_runs(fresh_dsn: str, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGQUEUE_DSN": fresh_dsn,
        "PYTHONWARNINGS": "error",
    }
    reader = Reader(tmp_path, fresh_dsn, environ)
    subprocess.run([PROGRAM, "migrate", "--dsn", fresh_dsn], check=True, capture_output=True)
    try:
        for block in blocks(_PAGE):
            reader.follow(block)
        reader.stop_workers()
    finally:
        for _, process, _ in reader.workers:
            process.kill()
            process.wait()


def test_no_program_of_the_page_is_only_shown() -> None:
    shown = [block for block in blocks(_PAGE) if block.kind == "python"]
    said = " ".join(block.text for block in blocks(_PAGE) if block.kind == "console")
    assert [file_name(block) for block in shown if file_name(block) not in said] == ["photos.py"]
    assert "-A photos" in said
