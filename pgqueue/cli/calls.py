"""`pgqueue call`, `result` and `purge`: one job, or all that wait."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from pgqueue.cli.context import Context, pass_context
from pgqueue.errors import InvalidArguments, InvalidOption

if TYPE_CHECKING:
    from pgqueue.result import AsyncResult

_TIMED_OUT = 4


@click.command()
@click.argument("task")
@click.option("-a", "--args", "args_json", default="[]", metavar="JSON", help="Positional arguments, a JSON array.")
@click.option("-k", "--kwargs", "kwargs_json", default="{}", metavar="JSON", help="Named arguments, a JSON object.")
@click.option("--countdown", type=float, metavar="SECONDS", help="Start at the earliest after this.")
@click.option("--eta", metavar="TIME", help="Start at the earliest at this time, ISO 8601 with its zone.")
@click.option("--expires", metavar="WHEN", help="Start at the latest: seconds from now, or a time.")
@click.option("--queue", metavar="NAME", help="The queue.")
@click.option("--priority", type=int, metavar="0-9", help="9 runs first.")
@click.option("--unique", "unique_key", metavar="KEY", help="At most one unfinished job has this key.")
@click.option("--task-id", metavar="UUID", help="Id of the job.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the result, and print it.")
@pass_context
def call(
    context: Context, /, task: str, args_json: str, kwargs_json: str, wait: float | None, eta: str | None,
    expires: str | None, **options: Any,
) -> int:  # fmt: skip
    """Enqueue a call of TASK and print its id.

    With -A the task is looked up and its arguments are checked; without, any name is taken.
    """
    app = context.any_app()
    if context.app_name is not None:
        app.task_named(task)
    given = {name: value for name, value in options.items() if value is not None}
    if eta is not None:
        given["eta"] = _time("--eta", eta)
    if expires is not None:
        given["expires"] = _seconds_or_time("--expires", expires)
    result = app.send_task(task, _json("--args", args_json, list), _json("--kwargs", kwargs_json, dict), **given)
    if not result.created:
        context.say("There was such a job already; this is its id.")
    click.echo(result.id)
    value = None if wait is None else result.get(timeout=wait)
    if value is not None:
        click.echo(_shown(value))
    app.close()
    return 0


@click.command()
@click.argument("job")
@click.option("--traceback", "show_traceback", is_flag=True, help="Print the traceback of a failure.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for it to end.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print everything about it as JSON.")
@pass_context
def result(context: Context, job: str, show_traceback: bool, wait: float | None, as_json: bool) -> int:
    """Show what became of JOB: its state, and its result once it has one.

    Exit code 0 for SUCCESS or a job on its way, 1 for any other end or an unknown id, 4 if it did not end in time.
    """
    # Imported here because `--help` does without the engine.
    from pgqueue.errors import ResultTimeout, UnknownJob
    from pgqueue.types import READY_STATES, State

    app = context.any_app()
    handle = app.AsyncResult(job)
    code = 0
    try:
        if wait is not None:
            handle.get(timeout=wait, propagate=False)
    except ResultTimeout:
        code = _TIMED_OUT
    except UnknownJob:
        pass
    state = handle.state
    if as_json:
        context.as_json(_meta(handle, state))
    else:
        click.echo(state if state not in READY_STATES else f"{state} {_shown(handle.result)}".rstrip())
        if show_traceback and handle.traceback:
            click.echo(handle.traceback, nl=False)
    if state is State.UNKNOWN:
        context.say(str(handle.result))
    app.close()
    return code or int(state is State.UNKNOWN or (state in READY_STATES and state is not State.SUCCESS))


@click.command()
@click.option("-Q", "--queues", required=True, metavar="A,B", help="Queues whose waiting jobs are deleted.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_context
def purge(context: Context, queues: str, force: bool) -> int:
    """Delete the waiting jobs of queues, for good; running ones stay."""
    app = context.any_app()
    if not force:
        if not sys.stdin.isatty():
            raise InvalidOption("purge deletes jobs for good: say --force where nobody can be asked")
        click.confirm(f"Delete all waiting jobs of {queues} in {context.place()}?", abort=True)
    total, database, names = 0, app.database, queues.split(",")
    while count := database.run(database.statements.purge(names, 10_000))[0]:
        total += count
    click.echo(f"{total} jobs deleted.")
    app.close()
    return 0


def _json(option: str, text: str, wanted: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArguments(f"{option} is not JSON ({error}); quote it for the shell, such as '[2, 3]'") from None
    if not isinstance(value, wanted):
        raise InvalidArguments(f"{option} must be a JSON {'array' if wanted is list else 'object'}, such as "
                               + ("'[2, 3]'" if wanted is list else """'{"x": 2}'"""))  # fmt: skip
    return value


def _time(option: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidOption(f"{option} {text!r} is no time; write it as 2030-01-31T12:00:00+00:00") from None


def _seconds_or_time(option: str, text: str) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        return _time(option, text)


def _shown(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def _meta(handle: AsyncResult[Any], state: str) -> dict[str, object]:
    value = handle.result
    return {
        "id": handle.id,
        "state": state,
        "task": handle.name,
        "queue": handle.queue,
        "retries": handle.retries,
        "result": None if isinstance(value, Exception) else value,
        "error": str(value) if isinstance(value, Exception) else None,
        "traceback": handle.traceback,
        "finished_at": handle.date_done,
    }
