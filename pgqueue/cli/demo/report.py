"""What `pgqueue demo` has to prove, asked of the tables, and how it is shown."""

from __future__ import annotations

import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.text import Text

from pgqueue.sql import rename

_FACTS = """
select (select count(*) from pgqueue.job) + (select count(*) from pgqueue.result) as jobs,
       (select count(*) from demo.module) as rows,
       (select count(*) - count(distinct path) from demo.module) as doubled,
       (select count(*) from unnest(%(files)s::text[]) as file (path)
         where not exists (select from demo.module m where m.path = file.path)) as lost,
       (select count(*) from demo.module m
         where not exists (select from pgqueue.result r where r.id = m.job and r.state = 'SUCCESS')) as unacknowledged,
       coalesce(sum(r.retries), 0) as retries,
       count(*) filter (where r.crashes > 0 and r.state = 'SUCCESS') as crashes_survived,
       count(*) filter (where r.id = any(%(held)s::uuid[]) and r.worker <> %(killed)s::uuid) as redelivered,
       extract(epoch from max(r.finished_at) - min(r.claimed_at))::float8 as working_seconds
  from pgqueue.result r
"""

_SLOWEST = """
select m.path, m.lines, r.runtime as seconds
  from pgqueue.result r
  join demo.module m on m.job = r.id
 order by r.runtime desc
 limit 5
"""

#: Statements to look at it all with; each can be pasted into psql.
LOOK = """\
-- What the jobs have written:
select path, lines, functions, longest, longest_lines from demo.module order by lines desc limit 10;
-- How the jobs ended:
select state, count(*), sum(retries) as retries, sum(crashes) as crashes from pgqueue.result group by state;
-- Which did not succeed at once, and when they were claimed for the last time:
select args ->> 0 as path, attempt, retries, crashes, runtime, claimed_at from pgqueue.result
 where retries + crashes > 0 order by finished_at;
-- A path written twice (no rows):
select path, count(*) from demo.module group by path having count(*) > 1;
"""


class Killed(NamedTuple):
    """The worker that was killed, and the jobs that it held at that moment."""

    worker: str
    pid: int
    held: list[str]

    @property
    def load(self) -> str:
        """How many jobs it held, in words."""
        return _jobs(len(self.held))


class Check(NamedTuple):
    """One line of the proof; `note` says what the number alone does not."""

    what: str
    value: int
    holds: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `--json` prints. What is no part of the plan or of the kill is counted by SQL."""

    files: int
    workers: int
    retries_planned: int
    workers_killed: int
    killed_pid: int | None
    held_when_killed: int
    seconds: float
    jobs: int
    rows: int
    doubled: int
    lost: int
    unacknowledged: int
    retries: int
    crashes_survived: int
    redelivered: int
    working_seconds: float
    jobs_per_second: float
    slowest: list[dict[str, Any]] = field(default_factory=list)

    def checks(self) -> list[Check]:
        """Return the proof line by line."""
        killed = f"pid {self.killed_pid}, with {_jobs(self.held_when_killed)} in its hands" if self.killed_pid else ""
        return [
            Check("source files", self.files, self.files > 0),
            Check("jobs", self.jobs, self.jobs == self.files),
            Check("rows written", self.rows, self.rows == self.files),
            Check("rows written twice", self.doubled, self.doubled == 0),
            Check("files without a row", self.lost, self.lost == 0),
            Check("rows without a succeeded job", self.unacknowledged, self.unacknowledged == 0),
            Check("retries", self.retries, self.retries >= self.retries_planned, f"{self.retries_planned} planned"),
            Check("workers killed with SIGKILL", self.workers_killed, self.workers_killed == 1, killed),
            Check("crashes survived", self.crashes_survived, self.crashes_survived > 0, self._taken_over()),
        ]

    def _taken_over(self) -> str:
        return f"{self.redelivered} of its jobs done by other workers"

    @property
    def proven(self) -> bool:
        """Whether every line of the proof holds."""
        return all(check.holds for check in self.checks())

    def as_json(self) -> dict[str, object]:
        """Return the one object that `--json` prints."""
        return {"proven": self.proven, **asdict(self)}


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def make_report(
    connection: psycopg.Connection[Any],
    schema: str,
    files: list[str],
    killed: Killed | None,
    workers: int,
    retries_planned: int,
    seconds: float,
) -> Report:
    """Count everything in the tables; `seconds` is how long it took from the start of the command."""
    asked = {"files": files, "held": killed.held if killed else [], "killed": killed.worker if killed else None}
    with connection.cursor(row_factory=dict_row) as cursor:
        facts = cursor.execute(rename(_FACTS, schema).encode(), asked).fetchone() or {}
        slowest = cursor.execute(rename(_SLOWEST, schema).encode()).fetchall()
    working = facts.pop("working_seconds") or 0.0
    return Report(
        files=len(files),
        workers=workers,
        retries_planned=retries_planned,
        workers_killed=int(killed is not None),
        killed_pid=killed.pid if killed else None,
        held_when_killed=len(asked["held"] or ()),
        seconds=round(seconds, 3),
        working_seconds=round(working, 3),
        jobs_per_second=round(facts["jobs"] / working, 1) if working else 0.0,
        slowest=slowest,
        **facts,
    )


def show(console: Console, report: Report) -> None:
    """Print the proof, the rate, and the slowest jobs."""
    can_tick = console.encoding.lower().startswith("utf")
    tick, cross = (("✓", "green"), ("✗", "bold red")) if can_tick else (("+", ""), ("!", "bold"))
    lines = [(tick if line.holds else cross, line.what, str(line.value), line.note) for line in report.checks()]
    pace = f"{report.working_seconds:.1f} s of work by {report.workers} workers, {report.seconds:.1f} s in all"
    lines.append(((" ", ""), "jobs per second", f"{report.jobs_per_second:.0f}", pace))
    console.print()
    _print_columns(console, lines)
    console.print("\nThe slowest:")
    root = Path(sysconfig.get_path("stdlib"))
    slowest = ((str(Path(job["path"]).relative_to(root)), job["seconds"], job["lines"]) for job in report.slowest)
    _print_columns(console, [((" ", ""), path, f"{s * 1000:.0f} ms", f"{lines} lines") for path, s, lines in slowest])


def _print_columns(console: Console, lines: list[tuple[tuple[str, str], str, str, str]]) -> None:
    """Print lines of a mark with its style, what, number and note."""
    left = max((len(what) for _, what, _, _ in lines), default=0)
    right = max((len(number) for _, _, number, _ in lines), default=0)
    for mark, what, number, note in lines:
        text = Text.assemble(mark, f" {what:<{left}}  {number:>{right}}  ", (note, "dim"))
        text.rstrip()
        console.print(text, soft_wrap=True)


def explain(console: Console, keep: Path | None) -> None:
    """Print the statements to look at it all with, and where they work."""
    if keep is None:
        where = "To look at it yourself: pgqueue demo --keep demo.db, then pgqueue demo --open demo.db, and paste:"
    else:
        where = f"It is all kept in {keep}. Look at it with: pgqueue demo --open {keep}, and paste:"
    console.print(f"\n{where}\n\n{LOOK}", markup=False, soft_wrap=True)
