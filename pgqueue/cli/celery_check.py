"""`pgqueue celery-check`: what becomes of a Celery program here, word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from pgqueue.cli.celery_uses import Findings, Use, check
from pgqueue.cli.celery_words import NEW, Verdict, markdown
from pgqueue.cli.context import Context, pass_context

_VERDICTS = [verdict.value for verdict in Verdict if verdict != NEW]
#: With what a program cannot run here today.
_MISSING = {Verdict.LATER, Verdict.UNSUPPORTED}
_COLOURS = {Verdict.CHANGED: "yellow", Verdict.LATER: "magenta", Verdict.UNSUPPORTED: "red"}
_LEVELS = {Verdict.CHANGED: "warning", Verdict.LATER: "error", Verdict.UNSUPPORTED: "error"}


@click.command("celery-check")
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="Lines, JSON, or annotations of a workflow on GitHub.",
)
@click.option("--only", type=click.Choice(_VERDICTS), multiple=True, help="Only words of this verdict; repeatable.")
@click.option("--summary", is_flag=True, help="Only count how often each word is used.")
@click.option("--strict", is_flag=True, help="Exit code 1 for changed words, too.")
@click.option("--words", is_flag=True, help="Print all words that are known, as Markdown, and read nothing.")
@pass_context
def celery_check(
    context: Context, paths: Sequence[Path], form: str, only: Sequence[str], summary: bool, strict: bool, words: bool
) -> int:  # fmt: skip
    """Tell what becomes of a Celery program, word by word, by reading its Python files; nothing is run.

    Each use is a line: where it is, the word, what becomes of it (same, stronger, changed, later: not here
    yet, unsupported), and what to write instead. Exit code 1 if something is unsupported or comes later, or
    if a file cannot be parsed.
    """
    if words:
        click.echo(markdown(), nl=False)
        return 0
    if not paths:
        raise click.UsageError("name the files or folders to read, such as `pgqueue celery-check .`")
    findings = check(paths)
    wanted = [use for use in findings.uses if not only or use.verdict in only]
    if form == "json":
        context.as_json(_record(findings, wanted))
    elif summary:
        context.table(("uses", "word", "verdict", "what it means"), _counted(wanted))
    elif form == "github":
        _annotate(findings, wanted, bool(only))
    else:
        _list(findings, wanted)
    context.say(_sentence(findings))
    bad = _MISSING | {Verdict.CHANGED} if strict else _MISSING
    return 1 if findings.unreadable or any(use.verdict in bad for use in findings.uses) else 0


def _list(findings: Findings, uses: Sequence[Use]) -> None:
    for found in findings.unreadable:
        click.echo(f"{found.path}:{found.line}:1: {click.style(found.sentence, fg='red')}")
    for use in uses:
        verdict = click.style(use.verdict, fg=_COLOURS.get(Verdict(use.verdict), "green"))
        click.echo(f"{use.path}:{use.line}:{use.column}: {use.word}: {verdict}" + (f": {use.note}" if use.note else ""))


def _counted(uses: Sequence[Use]) -> list[tuple[object, ...]]:
    counts = Counter((use.word, use.verdict, use.note) for use in uses)
    worst_first = sorted(counts.items(), key=lambda item: (-_VERDICTS.index(item[0][1]), -item[1], item[0][0]))
    return [(number, *what) for what, number in worst_first]


def _record(findings: Findings, uses: Sequence[Use]) -> dict[str, object]:
    return {
        "files": findings.files,
        "counts": _counts(findings),
        "unreadable": [found._asdict() for found in findings.unreadable],
        "uses": [use._asdict() for use in uses],
    }


def _annotate(findings: Findings, uses: Sequence[Use], everything: bool) -> None:
    """Print commands that a workflow on GitHub shows beside the lines; what stays the same only if it is asked for."""
    for found in findings.unreadable:
        click.echo(f"::error file={_property(found.path)},line={found.line},col=1::{_data(found.sentence)}")
    for use in uses:
        level = _LEVELS.get(Verdict(use.verdict))
        if level is not None or everything:
            where = f"file={_property(use.path)},line={use.line},col={use.column},title={_property(use.word)}"
            click.echo(f"::{level or 'notice'} {where}::{_data(f'{use.verdict}: {use.note}')}")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _counts(findings: Findings) -> dict[str, int]:
    counts = Counter(use.verdict for use in findings.uses)
    return {verdict: counts[verdict] for verdict in _VERDICTS}


def _sentence(findings: Findings) -> str:
    counted = ", ".join(f"{number} {verdict}" for verdict, number in _counts(findings).items())
    broken = f"; {len(findings.unreadable)} cannot be read" if findings.unreadable else ""
    numbers = (len(findings.uses), "use"), (findings.files, "file")
    uses, files = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in numbers)
    return f"{uses} in {files}: {counted}{broken}"
