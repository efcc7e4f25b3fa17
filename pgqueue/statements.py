"""Every call to the database as a value: SQL, parameters, and what a row becomes. Nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from pgqueue import sql
from pgqueue.serialization import encode_error
from pgqueue.types import (
    Claim,
    Enqueued,
    ErrorReport,
    Failed,
    Ignored,
    NewJob,
    Outcome,
    Rejected,
    Released,
    Replaced,
    Retried,
    Revoked,
    Succeeded,
)

T = TypeVar("T")
Row = tuple[Any, ...]


#: A text to be prepared, and who hears the first value of its answer.
Choice: TypeAlias = "tuple[bytes, Callable[[bytes | None], None] | None]"


class Statement(NamedTuple, Generic[T]):
    """One statement: SQL with $1, $2 ..., its parameters, and the function that makes a value of a row.

    - `answer`: makes the values, where they are known before it is sent, if it does not fail: its rows are not looked
      at. It is called while the server works, once at least.
    - `bare`: the same SQL for libpq itself, which needs no casts; all parameters are texts then.
    - `prepared`: chooses, when it is about to be sent, what does the same at less cost if it is prepared, with the same
      parameters; and who is given the first value of the answer then, as libpq has it.
    - `binary`: the answer comes in PostgreSQL's binary form, which costs both sides less where there are many rows.
    """

    sql: str
    params: Sequence[object]
    row: Callable[[Row], T]
    answer: Callable[[], list[T]] | None = None
    bare: bytes = b""
    binary: bool = False
    prepared: Callable[[], Choice] | None = None

    def values(self, rows: Iterable[Sequence[Any]]) -> list[T]:
        """Return what the database has answered."""
        return [self.row(tuple(row)) for row in rows] if self.answer is None else self.answer()


class Status(NamedTuple):
    """One row of the function `status`: texts of JSON where JSON is stored.

    `state` and `value` are what a running attempt has said of itself, if it has.
    """

    state: str
    value: str | None
    error: str | None
    task: str | None
    queue: str | None
    args: str | None
    kwargs: str | None
    retries: int | None
    attempt: int | None
    worker: str | None
    finished_at: datetime | None
    parent_id: str | None = None
    root_id: str | None = None
    history: str | None = None
    options: str | None = None
    headers: str | None = None
    enqueued_at: datetime | None = None
    crashes: int | None = None


class Progress(NamedTuple):
    """How far a workflow is: its jobs and steps in all, and how many of them are where."""

    total: int
    done: int
    failed: int
    running: int
    waiting: int


class WorkflowSummary(NamedTuple):
    """One workflow: a row of the function `workflows`. `id` is its root, `task` that of the root, or of some job."""

    id: str
    task: str | None
    total: int
    done: int
    failed: int
    running: int
    waiting: int
    made_at: datetime
    last_at: datetime | None


class WorkflowNode(NamedTuple):
    """A job or a step of a workflow: a row of the function `workflow_nodes`; `error` is a JSON text.

    `name` is what `app.workflow()` calls it. One without a task gathers the values of `members` others.
    """

    id: str
    name: str | None
    task: str | None
    state: str
    steps: list[str]
    parent_id: str | None
    waits: int
    members: int
    runtime: float | None
    made_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None


class Observed(NamedTuple):
    """What one worker sees of another: a row of the function `observe`."""

    id: str
    name: str
    host: str
    boot: str
    pid: int
    pid_started: int | None
    beats: int
    locked: bool
    lock_held: bool
    server_started: datetime


class Buried(NamedTuple):
    """What became of a job whose worker died: a row of the function `bury`."""

    id: str
    task: str
    state: str


class PassedOver(NamedTuple):
    """Where something waited when somebody looked from the very start: a row of the function `look_back`."""

    now: datetime
    queue: str | None
    priority: int | None
    eta: datetime | None


class Backlog(NamedTuple):
    """Whether jobs wait, and whether suspects do: the row of the function `backlog`."""

    waiting: bool
    suspects: bool


class Ended(NamedTuple):
    """An attempt and its outcome, ready to be acknowledged (a tuple: one is made for each); `runtime` in seconds.

    `told` is called when that is done: with what was stored, and whether it was accepted.
    """

    claim: Claim
    outcome: Outcome
    runtime: float = 0.0
    keep: bool = True
    told: Callable[[Outcome, bool], None] | None = None


#: Statements that libpq is told without casts.
_BARE = ("enqueue_one", "enqueue_alike", "enqueue_workflow")
#: Kinds of calls that one `enqueue_alike` takes; it compares each call with all of them.
_KINDS = 16
#: The fields of a `NewJob` that `enqueue_one` does not take, before and after root_id, parent_id and ignore_result.
_EARLY = slice(NewJob._fields.index("eta"), NewJob._fields.index("root_id"))
_LATE = slice(NewJob._fields.index("time_limit"), None)
_PLAIN = NewJob("", "")
#: Seconds for which it holds that nobody waited on a queue. A worker that becomes idle meanwhile misses the
#: notification of a call; it looks by itself after `pace.FIRST_PAUSE`, 50 ms, and finds it if it is committed by then.
_UNAWAITED = 0.02
#: Queues of which this is remembered.
_QUEUES = 1000

_CALLS = {
    "enqueue_one": """
        select pgqueue.enqueue_one($1::text::uuid, $2::text, $3::text::json, $4::text::json, $5::text,
               $6::text::smallint, $7::text::boolean, $8::text::uuid, $9::text::uuid, $10::text::boolean) as created""",
    "enqueue_alike": """
        select pgqueue.enqueue_alike($1::text::json, $2::text::int[], $3::text::uuid[],
               string_to_array($4::text, e'\\n')::json[], string_to_array($5::text, e'\\n')::json[],
               $6::text::boolean, $7::text::int[]) as created""",
    "enqueue_workflow": """
        select pgqueue.enqueue_workflow(
               $1::text::json, $2::text::json, $3::text::boolean, $4::text::boolean) as created""",
    "enqueue_workflow bare": "select pgqueue.enqueue_workflow($1, $2, $3, $4) as created",
    # Casts are for drivers that ask what a parameter is. They are a tenth of what the server does for one job.
    "enqueue_one bare": "select pgqueue.enqueue_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as created",
    # What the function does, without its call: a tenth of what the server does for one job, once it is prepared. It is
    # a transaction of its own, whose beginning is now().
    "enqueue_one prepared": """
        insert into pgqueue.job as j (
               id, task, args, kwargs, queue, priority, ignore_result, root_id, parent_id, eta, enqueued_at)
        values ($1::uuid, $2::text, $3::json, $4::json, $5::text, $6::smallint, $7::boolean, $8::uuid, $9::uuid, now(),
               now())
        returning (select pg_notify('pgqueue.work', i.queue)
                     from pgqueue.idle i where i.queue = j.queue and i.until > j.enqueued_at limit 1),
                  case when $10::boolean and current_setting('synchronous_commit') in ('off', 'local')
                       then set_config('synchronous_commit', 'on', true) end""",
    # The same for a queue on which nobody waited a moment ago: the look at who is idle is another tenth.
    "enqueue_one unawaited": """
        insert into pgqueue.job (
               id, task, args, kwargs, queue, priority, ignore_result, root_id, parent_id, eta, enqueued_at)
        values ($1::uuid, $2::text, $3::json, $4::json, $5::text, $6::smallint, $7::boolean, $8::uuid, $9::uuid, now(),
               now())
        returning case when $10::boolean and current_setting('synchronous_commit') in ('off', 'local')
                       then set_config('synchronous_commit', 'on', true) end""",
    "enqueue_alike bare": """
        select pgqueue.enqueue_alike($1, $2, $3, string_to_array($4, e'\\n')::json[],
               string_to_array($5, e'\\n')::json[], $6, $7) as created""",
    "enqueue": "select id::text, created from pgqueue.enqueue_many($1::text::json, $2)",
    "enqueue_linked": """
        select e.id::text, e.created
          from (select 'pgqueue.enqueue_followers(json)'::regprocedure) as f
         cross join pgqueue.enqueue_many($1::text::json, $2) as e""",
    "claim": """
        select id::text, task, queue, priority, args::text, kwargs::text, attempt, retries, crashes, eta, enqueued_at,
               expires, expired, revoked, headers::text, root_id::text, parent_id::text, ignore_result,
               succeeded, time_limit::text::float8, soft_time_limit::text::float8, links::text, errbacks::text,
               options::text, requeues
          from pgqueue.claim($1::text::uuid, $2::text[], $3, $4::text[], $5, $6, $7::text::timestamptz[])""",
    "look_back": "select now, queue, priority, eta from pgqueue.look_back($1::text[], $2)",
    "finish": "select refused::text from pgqueue.finish($1::text::uuid, $2::text::json) as refused",
    "hold": "select pg_backend_pid() from pgqueue.hold($1::text::uuid, $2::text::uuid, $3)",
    "end_sessions": "select pgqueue.end_sessions($1::text::uuid, $2, $3)",
    "backlog": "select waiting, suspects from pgqueue.backlog($1::text[], $2::text[])",
    "patience": "select set_config('lock_timeout', $1::text, true)",
    "status": """
        select state, value::text, error::text, task, queue, args::text, kwargs::text, retries, attempt,
               worker::text, finished_at, parent_id::text, root_id::text, history::text, options::text, headers::text,
               enqueued_at, crashes
          from pgqueue.status($1::text::uuid)""",
    "set_state": "select pgqueue.set_state($1::text::uuid, $2::text::uuid, $3::int, $4, $5::text::json)",
    "attach": "select pgqueue.attach($1::text::uuid, $2::text::jsonb)",
    "save_group": "select pgqueue.save_group($1::text::uuid, $2::text::json)",
    "saved_group": "select pgqueue.saved_group($1::text::uuid)::text",
    "delete_group": "select pgqueue.delete_group($1::text::uuid)",
    "add_member": "select pgqueue.add_member($1::text::uuid, $2::text::uuid, $3::int, $4::text::json)",
    "children": "select id::text from pgqueue.children($1::text::uuid) as id",
    "forget": "select pgqueue.forget($1::text::uuid)",
    "revoke": "select pgqueue.revoke($1::text::uuid)",
    "progress": """
        select w.total, w.done, w.failed, w.running, w.waiting
          from pgqueue.workflow w where w.id = $1::text::uuid""",
    "workflows": """
        select id::text, task, total, done, failed, running, waiting, made_at, last_at
          from pgqueue.workflows($1, $2)""",
    "workflow_nodes": """
        select id::text, name, task, state, steps::text[], parent_id::text, waits, members, runtime, made_at,
               started_at, finished_at, error::text
          from pgqueue.workflow_nodes($1::text::uuid)""",
    "retry_workflow": "select pgqueue.retry_workflow($1::text::uuid)",
    "revoke_workflow": "select pgqueue.revoke_workflow($1::text::uuid)",
    "prune": "select pgqueue.prune($1::float8 * interval '1 second', $2)",
    "purge": "select pgqueue.purge($1::text[], $2)",
    "wait_for": "select pgqueue.wait_for($1::text::uuid, $2::text::uuid, $3)",
    "stop_waiting": "select pgqueue.stop_waiting($1::text::uuid, $2::text::uuid)",
    "register": "select pgqueue.register($1::text::json)",
    "beat": "select pgqueue.beat($1::text::uuid, $2::text[])",
    "observe": """
        select id::text, name, host, boot, pid, pid_started, beats, locked, lock_held, server_started
          from pgqueue.observe($1::text::uuid, $2)""",
    "bury": """
        select id::text, task, state
          from pgqueue.bury($1::text::uuid, $2::text::json, $3::text[]::uuid[], $4, $5, $6::int[])""",
    "listed": "select exists (select from pgqueue.worker w where w.id = $1::text::uuid)",
    "disown": "select id::text from pgqueue.disown($1::text::uuid, $2::text[]::uuid[]) as id",
    "surroundings": """
        select exists (select from pg_extension where extname = 'citus') or version() not like 'PostgreSQL%'
        """,
    "session": """
        select pg_backend_pid() = coalesce($1::bigint, pg_backend_pid()),
               (select count(set_config(key, value, false))
                  from json_each_text($2::text::json)
                 where pg_backend_pid() = coalesce($1::bigint, pg_backend_pid())
                   and current_setting(key, true) is not null
                   and (key <> 'client_connection_check_interval' or version() !~* 'windows|mingw|visual'))""",
    "listen": 'listen "pgqueue.work"',
    "orphans": "select worker::text from pgqueue.orphans($1) as worker",
    "take_duty": "select pgqueue.take_duty($1, $2::text::uuid, $3)",
    "say_idle": "select pgqueue.say_idle($1::text::uuid, $2::text[])",
    "say_busy": "select pgqueue.say_busy($1::text::uuid)",
    "take_lock": "select pg_try_advisory_lock(pgqueue.lock_key($1::text::uuid))",
    "version": "select pgqueue.version()",
}


def _first(row: Row) -> Any:
    return row[0]


def _enqueued(row: Row) -> Enqueued:
    return Enqueued(str(row[0]), row[1])


class Statements:
    """The statements of one schema."""

    def __init__(self, schema: str = sql.DEFAULT_SCHEMA) -> None:
        self.schema = schema
        self._sql = {name: sql.rename(text, schema) for name, text in _CALLS.items()}
        self._bare = {name: self._sql[f"{name} bare"].encode() for name in _BARE}
        self._prepared, self._unawaited = (
            self._sql[f"enqueue_one {kind}"].encode() for kind in ("prepared", "unawaited")
        )
        self._unawaited_until: dict[str, float] = {}

    def _make(self, name: str, params: Sequence[object], row: Callable[[Row], T]) -> Statement[T]:
        return Statement(self._sql[name], params, row)

    def enqueue(self, jobs: Sequence[NewJob], *, durable: bool) -> Statement[Enqueued]:
        """Answers for each job its id, or that of the job in its place; those of plain calls are known beforehand.

        - `durable`: that of a connection of ours, whose commit is to be synchronous whatever the role says.
        """
        if len(jobs) == 1 and jobs[0][_EARLY] == _PLAIN[_EARLY] and jobs[0][_LATE] == _PLAIN[_LATE]:
            return self._single(jobs[0], durable)
        if jobs and (columns := _columns(jobs)) is not None:
            *common, places = columns
            return self._sure("enqueue_alike", (*common, str(durable), places), jobs)
        # An older schema would leave out in silence what it does not know; a function that it has not stops it.
        newer = any(job.links or job.errbacks or job.options for job in jobs)
        name = "enqueue_linked" if newer else "enqueue"
        return self._make(name, (_array(jobs), durable), _enqueued)

    def enqueue_workflow(self, plan: Sequence[NewJob], *, durable: bool, resent: bool = False) -> Statement[Enqueued]:
        """Enqueues the jobs of a workflow and stores its steps, all or none; answers the id of each."""

        def answer() -> list[Enqueued]:
            return [Enqueued(job.id, True) for job in plan]

        steps, jobs = [job for job in plan if job.waits], [job for job in plan if not job.waits]
        params = (_array(steps), _array(jobs), str(resent), str(durable))
        return Statement(self._sql["enqueue_workflow"], params, _enqueued, answer, self._bare["enqueue_workflow"])

    def _single(self, job: NewJob, durable: bool) -> Statement[Enqueued]:
        return Statement(
            self._sql["enqueue_one"],
            (*_one(job), str(durable)),
            _enqueued,
            lambda: [Enqueued(job.id, True)],
            self._bare["enqueue_one"],
            False,
            partial(self._prepared_one, job.queue),
        )

    def _prepared_one(self, queue: str) -> Choice:
        if monotonic() < self._unawaited_until.get(queue, 0.0):
            return self._unawaited, None
        return self._prepared, partial(self._heard, queue)

    def _sure(self, name: str, params: Sequence[object], jobs: Sequence[NewJob]) -> Statement[Enqueued]:
        def answer() -> list[Enqueued]:
            return list(map(Enqueued._make, zip([job.id for job in jobs], repeat(True))))

        return Statement(self._sql[name], params, _enqueued, answer, self._bare[name])

    def _heard(self, queue: str, notified: bytes | None) -> None:
        """Note whether anybody has been notified of a job."""
        if notified is None:
            if len(self._unawaited_until) > _QUEUES:  # one for each customer, perhaps
                self._unawaited_until.clear()
            self._unawaited_until[queue] = monotonic() + _UNAWAITED

    def claim(
        self,
        worker: str,
        queues: Sequence[str],
        limit: int,
        exclude: Sequence[str],
        *,
        relaxed: bool = False,
        alone: bool = False,
        after: str | None = None,
    ) -> Statement[Claim]:
        params = (worker, list(queues), limit, list(exclude), relaxed, alone, after)
        return Statement(self._sql["claim"], params, Claim._make, binary=True)

    def look_back(self, queues: Sequence[str], *, search: bool) -> Statement[PassedOver]:
        return self._make("look_back", (list(queues), search), PassedOver._make)

    def finish(self, worker: str, ended: Sequence[Ended]) -> Statement[str]:
        return self._make("finish", (worker, f"[{','.join(map(outcome_json, ended))}]"), _first)

    def hold(self, claim: Claim, worker: str) -> Statement[int]:
        """Answers the process id of the server's side, which is not that of the protocol behind a pooler."""
        return self._make("hold", (claim.id, worker, claim.attempt), _first)

    def end_sessions(self, worker: str, seconds: float, pid: int | None = None) -> Statement[int]:
        return self._make("end_sessions", (worker, seconds, pid), _first)

    def backlog(self, queues: Sequence[str], exclude: Sequence[str]) -> Statement[Backlog]:
        return self._make("backlog", (list(queues), list(exclude)), Backlog._make)

    def patience(self, seconds: float) -> Statement[str]:
        return self._make("patience", (f"{seconds * 1000:.0f}ms",), _first)

    def status(self, job: str) -> Statement[Status]:
        return self._make("status", (job,), Status._make)

    def set_state(self, job: str, worker: str | None, attempt: int | None, state: str, meta: str) -> Statement[bool]:
        """Answers whether it was said: False for a job that has ended, and with `worker` for a lease that is lost."""
        return self._make("set_state", (job, worker, attempt, state, meta), _first)

    def attach(self, job: str, entry: str) -> Statement[bool]:
        """Answers whether there was a job or a result to whose history the entry (JSON) could be added."""
        return self._make("attach", (job, entry), _first)

    def save_group(self, group: str, tree: str) -> Statement[None]:
        """Keeps the ids of a group and its members, as JSON, in the place of what was kept before."""
        return self._make("save_group", (group, tree), _first)

    def saved_group(self, group: str) -> Statement[str | None]:
        """Answers what `save_group` has kept, as JSON; null if nothing."""
        return self._make("saved_group", (group,), _first)

    def delete_group(self, group: str) -> Statement[bool]:
        """Answers whether anything was kept."""
        return self._make("delete_group", (group,), _first)

    def add_member(self, job: str, worker: str | None, attempt: int, call: str) -> Statement[bool]:
        """Enqueues a call as one more member of the chord in whose header a running job is; False if it is in none."""
        return self._make("add_member", (job, worker, attempt, call), _first)

    def children(self, job: str) -> Statement[str]:
        return self._make("children", (job,), _first)

    def forget(self, job: str) -> Statement[bool]:
        return self._make("forget", (job,), _first)

    def revoke(self, job: str) -> Statement[str]:
        return self._make("revoke", (job,), _first)

    def progress(self, root: str) -> Statement[Progress]:
        """Answers nothing where no workflow has this root."""
        return self._make("progress", (root,), Progress._make)

    def workflows(self, limit: int, *, failed: bool = False) -> Statement[WorkflowSummary]:
        return self._make("workflows", (limit, failed), WorkflowSummary._make)

    def workflow_nodes(self, root: str) -> Statement[WorkflowNode]:
        return self._make("workflow_nodes", (root,), WorkflowNode._make)

    def retry_workflow(self, root: str) -> Statement[int]:
        return self._make("retry_workflow", (root,), _first)

    def revoke_workflow(self, root: str) -> Statement[int]:
        return self._make("revoke_workflow", (root,), _first)

    def prune(self, keep_seconds: float, limit: int) -> Statement[int]:
        return self._make("prune", (keep_seconds, limit), _first)

    def purge(self, queues: Sequence[str], limit: int) -> Statement[int]:
        return self._make("purge", (list(queues), limit), _first)

    def wait_for(self, job: str, call: str, seconds: float) -> Statement[None]:
        return self._make("wait_for", (job, call, seconds), _first)

    def stop_waiting(self, job: str, call: str) -> Statement[None]:
        return self._make("stop_waiting", (job, call), _first)

    def register(self, worker: dict[str, object]) -> Statement[bool]:
        return self._make("register", (json.dumps(worker),), _first)

    def beat(self, worker: str, unknown: Sequence[str]) -> Statement[bool]:
        return self._make("beat", (worker, list(unknown)), _first)

    def observe(self, worker: str, boot: str | None = None) -> Statement[Observed]:
        return self._make("observe", (worker, boot), Observed._make)

    def bury(
        self,
        worker: str,
        error: ErrorReport,
        started: Sequence[tuple[str, int]] | None,
        max_crashes: int,
        *,
        counts: bool = True,
    ) -> Statement[Buried]:
        jobs = None if started is None else [job for job, _ in started]
        attempts = None if started is None else [attempt for _, attempt in started]
        return self._make("bury", (worker, encode_error(error), jobs, max_crashes, counts, attempts), Buried._make)

    def listed(self, worker: str) -> Statement[bool]:
        """Whether a worker is on the list; after `bury` only if a transaction still locks one of its jobs."""
        return self._make("listed", (worker,), _first)

    def orphans(self, seconds: float) -> Statement[str]:
        return self._make("orphans", (seconds,), _first)

    def take_duty(self, name: str, worker: str, seconds: float) -> Statement[bool]:
        return self._make("take_duty", (name, worker, seconds), _first)

    def say_idle(self, worker: str, queues: Sequence[str]) -> Statement[None]:
        return self._make("say_idle", (worker, list(queues)), _first)

    def say_busy(self, worker: str) -> Statement[None]:
        return self._make("say_busy", (worker,), _first)

    def take_lock(self, worker: str) -> Statement[bool]:
        return self._make("take_lock", (worker,), _first)

    def surroundings(self) -> Statement[bool]:
        """Whether this is something else than plain PostgreSQL."""
        return self._make("surroundings", (), _first)

    def session(self, pid: int | None, settings: Mapping[str, str]) -> Statement[bool]:
        """Set this on the session, and answer whether it is the one of that process id; if not, nothing is set."""
        return self._make("session", (pid, json.dumps(settings)), _first)

    def listen(self) -> Statement[None]:
        return self._make("listen", (), _first)

    def disown(self, worker: str, held: Sequence[str]) -> Statement[str]:
        return self._make("disown", (worker, list(held)), _first)

    def version(self) -> Statement[str]:
        return self._make("version", (), _first)

    def inspect(self, name: str) -> Statement[Row]:
        """Return the inspection query `name`, a plain SELECT that ends in a semicolon."""
        return Statement(sql.read(f"inspect/{name}", self.schema), (), tuple)


def _array(jobs: Iterable[NewJob]) -> str:
    return f"[{','.join(map(job_json, jobs))}]"


def _one(job: NewJob) -> tuple[str | None, ...]:
    """Return the parameters of `enqueue_one`, all of them texts."""
    ignore = None if job.ignore_result is None else str(job.ignore_result)
    task, queue = str.__str__(job.task), str.__str__(job.queue)  # either may be a member of an enum
    return (job.id, task, job.args, job.kwargs, queue, str(int(job.priority)), ignore, job.root_id, job.parent_id)


def _columns(jobs: Sequence[NewJob]) -> tuple[str | None, ...] | None:
    """Return the parameters of `enqueue_alike`, all of them texts; None for jobs that it is not meant for."""
    kinds: dict[tuple[object, ...], int] = {}
    firsts: list[NewJob] = []
    numbers: list[int] = []
    kind: tuple[object, ...] | None = None
    number: int | None = None
    for job in jobs:
        if kind != (kind := (job[1], job[4:-1])):  # a tuple like the last one is told from it sooner than it is found
            number = kinds.get(kind)
        if number is None:
            if len(kinds) == _KINDS or job.known or job.resent or job.unique_key or job.links or job.errbacks:
                return None
            number = kinds[kind] = len(kinds) + 1
            firsts.append(job)
        numbers.append(number)
    kwargs = [job.kwargs for job in jobs]
    places = [job.place for job in jobs]
    return (
        _array(firsts),
        None if len(kinds) == 1 else f"{{{','.join(map(str, numbers))}}}",
        f"{{{','.join([job.id for job in jobs])}}}",
        "\n".join([job.args for job in jobs]),
        None if set(kwargs) == {"{}"} else "\n".join(kwargs),
        f"{{{','.join(map(str, places))}}}" if any(places) else None,
    )


def _time(value: datetime) -> str:
    # In UTC: Python has offsets of a day less a microsecond, PostgreSQL of 16 hours and whole seconds.
    return f'"{value.astimezone(UTC).isoformat()}"'


def job_json(job: NewJob) -> str:
    """Return one job as `enqueue_many` takes it; texts that are JSON already are put in as they are."""
    text = json.dumps
    parts = [f'"id":"{job.id}","task":{text(job.task or None)},"args":{job.args},"kwargs":{job.kwargs}']
    parts.append(f'"queue":{text(job.queue)},"priority":{int(job.priority)}')
    if job.eta is not None:
        parts.append(f'"eta":{_time(job.eta)}')
    if job.countdown is not None:
        parts.append(f'"countdown":{job.countdown!r}')
    if job.expires is not None:
        parts.append(f'"expires":{_time(job.expires)}')
    if job.expires_in is not None:
        parts.append(f'"expires_in":{job.expires_in!r}')
    if job.unique_key is not None:
        parts.append(f'"unique_key":{text(job.unique_key)}')
    if job.headers is not None:
        parts.append(f'"headers":{job.headers}')
    if job.parent_id is not None:
        parts.append(f'"parent_id":"{job.parent_id}"')
    if job.root_id is not None:
        parts.append(f'"root_id":"{job.root_id}"')
    if job.ignore_result is not None:
        parts.append(f'"ignore_result":{text(job.ignore_result)}')
    if job.time_limit is not None:
        parts.append(f'"time_limit":{job.time_limit!r}')
    if job.soft_time_limit is not None:
        parts.append(f'"soft_time_limit":{job.soft_time_limit!r}')
    if job.links is not None:
        parts.append(f'"links":{job.links}')
    if job.errbacks is not None:
        parts.append(f'"errbacks":{job.errbacks}')
    if job.options is not None:
        parts.append(f'"options":{job.options}')
    if job.immutable:
        parts.append('"immutable":true')
    if job.steps:
        parts.append(f'"steps":{text(job.steps)},"place":{job.place}')
    if job.depth:
        parts.append(f'"depth":{job.depth}')
    if job.waits:
        parts.append(f'"waits":{job.waits},"takes":{text(job.takes)}')
    if job.known:
        parts.append('"known":true')
    if job.resent:
        parts.append('"resent":true')
    return "{" + ",".join(parts) + "}"


def outcome_json(ended: Ended) -> str:
    """Return one outcome as `finish` takes it: one line per kind, and nothing else may be sent."""
    claim, outcome, runtime, keep, _ = ended
    head = f'{{"id":"{claim.id}","attempt":{claim.attempt},"runtime":{runtime:.6f}'
    if not keep:
        head += ',"keep":false'
    match outcome:
        case Succeeded(value):
            return f'{head},"state":"SUCCESS","value":{value}}}'
        case Failed(error, hooks):
            unheard = ',"hooks":true' if hooks else ""
            return f'{head},"state":"FAILURE"{unheard},"error":{encode_error(error)}}}'
        case Retried():
            return f'{head},"state":"RETRY","retries":{claim.retries},{_retried_json(outcome)}}}'
        case Replaced():
            return f'{head},"state":"REPLACED",{_replaced_json(outcome)}}}'
        case Released(delay, crash):
            crashed = "" if crash is None else f',"crashed":true,"error":{encode_error(crash)}'
            return f'{head},"state":"RELEASED","countdown":{delay!r}{crashed}}}'
        case Rejected(reason, requeue, most):
            again = f'"REQUEUE","requeues":{claim.requeues},"most":{int(most)}' if requeue else '"REJECTED"'
            return f'{head},"state":{again},"error":{_refusal("TaskRejectedError", reason)}}}'
        case Revoked(reason):
            return f'{head},"state":"REVOKED","error":{_refusal("TaskRevokedError", reason)}}}'
        case Ignored():
            return f'{head},"state":"IGNORED"}}'


def _retried_json(outcome: Retried) -> str:
    parts = [_changes_json(outcome)]
    if outcome.error is not None:
        parts.append(f'"error":{encode_error(outcome.error)}')
    if outcome.args is not None:
        parts.append(f'"args":{outcome.args}')
    if outcome.kwargs is not None:
        parts.append(f'"kwargs":{outcome.kwargs}')
    return ",".join(parts)


def _replaced_json(outcome: Replaced) -> str:
    if outcome.plan is not None:
        return f'"plan":{outcome.plan}'
    parts = [_changes_json(outcome), f'"task":{json.dumps(outcome.task)}']
    parts.append(f'"args":{outcome.args},"kwargs":{outcome.kwargs}')
    if outcome.links is not None:
        parts.append(f'"links":{outcome.links}')
    if outcome.errbacks is not None:
        parts.append(f'"errbacks":{outcome.errbacks}')
    return ",".join(parts)


def _changes_json(outcome: Retried | Replaced) -> str:
    parts = [f'"countdown":{outcome.countdown!r}']
    if outcome.eta is not None:
        parts.append(f'"eta":{_time(outcome.eta)}')
    if outcome.queue is not None:
        parts.append(f'"queue":{json.dumps(outcome.queue)}')
    if outcome.priority is not None:
        parts.append(f'"priority":{int(outcome.priority)}')
    if outcome.expires is not None:
        parts.append(f'"expires":{_time(outcome.expires)}')
    if outcome.ignore_result is not None:
        parts.append(f'"ignore_result":{json.dumps(outcome.ignore_result)}')
    if outcome.time_limit is not None:
        parts.append(f'"time_limit":{outcome.time_limit!r}')
    if outcome.soft_time_limit is not None:
        parts.append(f'"soft_time_limit":{outcome.soft_time_limit!r}')
    if outcome.headers is not None:
        parts.append(f'"headers":{outcome.headers}')
    if outcome.options is not None:
        parts.append(f'"options":{outcome.options}')
    return ",".join(parts)


def _refusal(type_: str, reason: str) -> str:
    return encode_error(ErrorReport(type_, "pgqueue.errors", reason))
