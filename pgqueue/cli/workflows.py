"""`pgqueue workflows`: what waits for what, how far it is, and how to go on with it."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from pgqueue.cli.context import Context, pass_context

if TYPE_CHECKING:
    from pgqueue.app import PgQueue
    from pgqueue.statements import WorkflowNode, WorkflowSummary

_SHOWN = 20


@click.group()
def workflows() -> None:
    """List, show, draw, retry and revoke workflows.

    ID is that of the root, as `list` shows it, or of any job of the workflow.
    """


@workflows.command("list")
@click.option("--failed", is_flag=True, help="Only those of which something has failed; the latest first.")
@click.option("--limit", type=click.IntRange(1, 1000), default=_SHOWN, show_default=True, metavar="N", help="How many.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_(context: Context, failed: bool, limit: int, as_json: bool) -> None:
    """List the newest workflows, and how far each is."""
    app = context.any_app()
    found = app.database.run(app.database.statements.workflows(limit, failed=failed))
    app.close()
    if as_json:
        context.as_json([{**one._asdict(), "state": _state(one)} for one in found])
        return
    shown = ("total", "done", "failed", "running", "waiting", "made_at", "last_at")
    context.table(
        ("id", "task", "state", *shown),
        [(one.id, one.task, _state(one), *(getattr(one, name) for name in shown)) for one in found],
    )


@workflows.command()
@click.argument("id_", metavar="ID")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print everything about its jobs as JSON.")
@pass_context
def show(context: Context, id_: str, as_json: bool) -> None:
    """Show the jobs and steps of a workflow: where each is, for how many it waits, and what it failed with."""
    # Imported here because `--help` does without the engine.
    from pgqueue.cli.graph import error_line

    app = context.any_app()
    root, nodes = _find(app, id_)
    app.close()
    if as_json:
        context.as_json({"id": root, "jobs": [_record(node) for node in nodes]})
        return
    context.say(f"workflow {root}: {_told(nodes)}")
    rows = [
        (
            node.name,
            node.task or "(gather)",
            node.state,
            f"{node.waits} of {node.members}" if node.waits else None,
            None if node.runtime is None else timedelta(seconds=node.runtime),
            node.id,
            error_line(node.error),
        )
        for node in nodes
    ]
    context.table(("step", "task", "state", "waits", "runtime", "id", "error"), rows)


@workflows.command("graph")
@click.argument("id_", metavar="ID")
@click.option("--format", "form", type=click.Choice(["text", "mermaid", "dot", "svg"]), default="text",
              show_default=True, help="How to draw it.")  # fmt: skip
@click.option("--all", "whole", is_flag=True, help="Draw every job: do not fold many that are alike.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write it there.")  # fmt: skip
@pass_context
def graph_(context: Context, id_: str, form: str, whole: bool, output: Path | None) -> None:
    """Draw a workflow: each job after those for which it waits.

    Of more than five that are alike two are drawn, those that failed first, and the others as one: "28 more".
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.cli.graph import graph
    from pgqueue.cli.graph_svg import svg
    from pgqueue.cli.graph_text import dot, mermaid, text

    app = context.any_app()
    root, rows = _find(app, id_)
    app.close()
    nodes = graph(rows, fold=not whole)
    encoding = "utf-8" if output is not None else (sys.stdout.encoding or "ascii")
    match form:
        case "mermaid":
            drawn = mermaid(nodes)
        case "dot":
            drawn = dot(nodes)
        case "svg":
            drawn = svg(nodes, f"workflow {root}").rstrip("\n")
        case _:
            drawn = text(nodes, ascii_only=not encoding.lower().startswith("utf"))
    if output is None:
        click.echo(drawn)
    else:
        try:
            output.write_text(drawn + "\n", encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{output} cannot be written: {error.strerror}") from None
        context.say(f"written to {output}")


@workflows.command()
@click.argument("id_", metavar="ID")
@pass_context
def retry(context: Context, id_: str) -> int:
    """Go on with a workflow where it has failed; what has succeeded is not run again.

    Exit code 1 if nothing of it has failed.
    """
    app = context.any_app()
    root, _ = _find(app, id_)
    count = app.database.run(app.database.statements.retry_workflow(root))[0]
    app.close()
    click.echo(f"{_jobs(count)} enqueued again." if count else "Nothing of it has failed, or its results are gone.")
    return 0 if count else 1


@workflows.command()
@click.argument("id_", metavar="ID")
@pass_context
def revoke(context: Context, id_: str) -> int:
    """End as REVOKED what has not begun of a workflow; what runs may finish, and is not started again.

    Exit code 1 if all of it has ended.
    """
    app = context.any_app()
    root, nodes = _find(app, id_)
    app.database.run(app.database.statements.revoke_workflow(root))
    app.close()
    waiting = sum(node.state in ("PENDING", "RETRY") for node in nodes)
    running = sum(node.state == "STARTED" for node in nodes)
    said = f"{_jobs(waiting)} revoked." + (f" {_jobs(running)} running: not started again." if running else "")
    click.echo(said if waiting or running else "All of it has ended.")
    return 0 if waiting or running else 1


def _find(app: PgQueue, id_: str) -> tuple[str, list[WorkflowNode]]:
    """Return the root of the workflow that has this id as its root or as one of its jobs, and its jobs and steps."""
    # Imported here because `--help` does without the engine.
    from pgqueue.cli.graph import in_order
    from pgqueue.errors import UnknownJob
    from pgqueue.ids import check_id

    id_ = check_id(id_, "ID")
    database = app.database
    root = database.run(database.statements.status(id_))[0].root_id or id_
    nodes = database.run(database.statements.workflow_nodes(root))
    if not nodes:
        raise UnknownJob(
            f"no workflow has the root or the job {id_}: it was never enqueued, its transaction is not committed, or "
            "its results have expired; `pgqueue workflows list` has the newest"
        )
    return root, in_order(nodes)


def _state(one: WorkflowSummary) -> str:
    if one.failed:
        return "failed"
    if one.done == one.total:
        return "done"
    return "running" if one.running or one.done else "waiting"


def _told(nodes: list[WorkflowNode]) -> str:
    # Imported here because `--help` does without the engine.
    from pgqueue.types import READY_STATES

    jobs = [node.state for node in nodes if node.task is not None]
    done = sum(state in ("SUCCESS", "IGNORED") for state in jobs)
    failed = sum(state in READY_STATES for state in jobs) - done
    running = jobs.count("STARTED")
    others = [(failed, "failed"), (running, "running"), (len(jobs) - done - failed - running, "waiting")]
    return ", ".join([f"{done} of {len(jobs)} done", *(f"{count} {what}" for count, what in others if count)])


def _record(node: WorkflowNode) -> dict[str, object]:
    return {**node._asdict(), "error": json.loads(node.error) if node.error else None}


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
