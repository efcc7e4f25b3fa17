"""`pgqueue demo`: real work on a real database, with failures and a kill, and the proof that nothing got lost."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pgqueue.cli.context import Context, pass_context

_NEW = click.Path(path_type=Path, file_okay=False)
_KEPT = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, metavar="N", help="Worker processes.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Index only so many files, chosen by --seed.")
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="Chooses the files that fail once.")
@click.option("--keep", type=_NEW, metavar="DIR", help="Keep the database in this new folder.")
@click.option("--open", "kept", type=_KEPT, metavar="DIR", help="Look at a kept database with psql; run nothing.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object, and the progress on stderr.")
@pass_context
def demo(
    context: Context, workers: int, limit: int | None, seed: int, keep: Path | None, kept: Path | None, as_json: bool
) -> int:
    """Index Python's standard library: a job a file, failures on purpose, one worker killed with SIGKILL.

    It starts a database of its own, and removes it at the end. With --dsn it uses that one, in two schemas of its
    own, pgqueue_demo and demo. Exit code 1 if anything got lost or was done twice.
    """
    # `pgqueue demo --help` does without the engine and without Rich, so:
    from rich.console import Console  # imported here

    from pgqueue.cli.demo.place import look_at  # imported here
    from pgqueue.cli.demo.report import explain, show  # imported here
    from pgqueue.cli.demo.run import Plan, perform  # imported here

    if kept is not None:
        return look_at(kept)
    if keep is not None and context.given_dsn is not None:
        raise click.UsageError("--keep is for the database that the demo starts itself, not for that of --dsn")
    if keep is not None and keep.exists():
        raise click.UsageError(f"{keep} exists already: look at it with --open {keep}, or name another folder")
    plan = Plan(workers=workers, limit=limit, seed=seed, keep=keep, dsn=context.given_dsn, schema=context.given_schema)
    telling = Console(stderr=as_json, quiet=context.quiet, highlight=False)
    try:
        report = perform(plan, telling)
    except KeyboardInterrupt:
        context.say("interrupted: the workers and the database are stopped" + (" and removed" if not keep else ""))
        raise
    if as_json:
        context.as_json(report.as_json())
    else:
        show(Console(highlight=False), report)
        explain(telling, keep)
    return 0 if report.proven else 1
