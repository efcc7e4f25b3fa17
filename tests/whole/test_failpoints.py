"""At every statement, COMMIT and connect of the engine: an error, a kill, a broken connection; then drain, and count.

Each scenario gives one worker the same mixture of jobs and lets one thing happen to it, once. A healthy worker comes to
its help, the queue drains, both stop, and the ledger must be right: every job has ended once and as it should, effects
are there exactly where a transactional task succeeded, and nobody and nothing is left over.

Scenarios take seconds, most of them waiting, so several are played at once, ahead of the tests that look at them.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue import PgQueue
from pgqueue.enqueueing import enqueue_plan
from pgqueue.ids import new_id
from pgqueue.statements import _CALLS
from pgqueue.types import NewJob
from pgqueue.worker.liveness import boot_identity

APPS = Path(__file__).parent / "apps"
sys.path.insert(0, str(APPS))
from failpoints import Failpoint  # noqa: E402

sys.path.remove(str(APPS))

#: Scenarios at a time.
LANES = 4
SETTINGS = {"PGQUEUE_BEAT_INTERVAL": "0.5", "PGQUEUE_DEAD_AFTER": "2"}
EVERY = (
    ("before", "refuse"),
    ("before", "kill"),
    ("before", "drop"),
    ("after", "fail"),
    ("after", "kill"),
    ("after", "drop"),
)
#: A statement within a round trip has no answer of its own, and the end of the round trip nothing to refuse.
SENT = (("before", "refuse"), ("before", "fail"), ("before", "kill"), ("before", "drop"))
SYNCED = tuple(case for case in EVERY if case[1] != "refuse")
#: A ROLLBACK cannot be refused.
ROLLED_BACK = SYNCED
FROZEN = (("before", "stop"), ("after", "stop"))

POOLS = {"prefork": ("-c", "2"), "single": ("-c", "1"), "solo": ("-P", "solo"), "asyncio": ("-P", "asyncio", "-c", "3")}


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the engine, and what it takes to come there.

    - `name`: as in `failpoints`; `of`: which of several uses of the same statement.
    - `first`: failpoints that lead here; `nth` and `saying`: as there.
    - `stopping`: it is passed when the worker stops; `streaming`: when it has been idle and then has work for a while.
    - `extra`: tasks sent beside the mixture.
    - `behind`: when a job that may start once has ended in the middle of a batch, and the next one runs.
    """

    name: str
    pool: str = "prefork"
    cases: tuple[tuple[str, str], ...] = EVERY
    of: str = ""
    first: tuple[Failpoint, ...] = ()
    nth: int = 1
    saying: str = ""
    stopping: bool = False
    streaming: bool = False
    extra: tuple[str, ...] = ()
    behind: bool = False


_DIES = (Failpoint("worker.claim", "after", "kill"),)
_UNHEARD = (Failpoint("function.commit", "after", "drop"),)
_BATCH_REFUSED = (Failpoint("together.finish", "before", "refuse"),)

POINTS = [
    Point("worker.version", "solo"),
    Point("worker.session", "solo", of="first"),
    Point("worker.connect", nth=2),  # the command line was first
    Point("worker.session", nth=2),
    Point("alive.connect", "solo"),
    Point("alive.session", "solo"),
    Point("alive.surroundings", "solo"),
    Point("alive.take_lock", "solo"),
    Point("worker.register"),
    Point("worker.listen", "solo"),
    Point("worker.disown"),
    Point("worker.claim"),
    Point("worker.claim", "solo", of="solo"),
    Point("together.finish", cases=SENT),
    Point("together.claim", cases=SENT),
    Point("together.sync", cases=SYNCED + FROZEN),
    Point("together.sync", "asyncio", cases=SYNCED, of="asyncio"),
    Point("together.finish", "single", cases=(("before", "kill"),), of="behind", behind=True),
    Point("worker.finish", first=_BATCH_REFUSED),
    Point("worker.backlog", "asyncio"),
    Point("worker.end_sessions", "asyncio", extra=("overdue",), of="limit"),
    Point("worker.beat", cases=EVERY + FROZEN[:1]),
    Point("worker.disown", nth=2, of="beat"),
    Point("worker.attach", extra=("bad_hook",)),
    Point("worker.take_duty", "solo"),
    Point("worker.observe", "solo"),
    Point("worker.bury", of="sweep", saying="has ended"),
    Point("worker.end_sessions", of="sweep"),
    Point("worker.prune", "solo"),
    Point("worker.orphans"),
    Point("worker.bury", of="orphan", saying="is not on the list"),
    Point("worker.look_back", "solo"),
    Point("worker.say_idle"),
    Point("worker.say_busy", "solo", streaming=True),
    Point("worker.bury", of="leave", saying="the worker stopped", stopping=True),
    Point("supervisor.connect", first=_DIES),
    Point("supervisor.session", first=_DIES),
    Point("supervisor.bury", first=_DIES),
    Point("supervisor.listed", first=_DIES),
    Point("supervisor.end_sessions", first=_DIES),
    Point("supervisor.finish", extra=("stuck",)),
    Point("function.connect"),
    Point("function.session"),
    Point("function.begin"),
    Point("function.hold"),
    Point("function.finish"),
    Point("function.commit", cases=EVERY + FROZEN),
    Point("function.rollback", cases=ROLLED_BACK),
    Point("function.patience", first=_UNHEARD),
    Point("function.savepoint", first=_UNHEARD),
    Point("function.hold", first=_UNHEARD, of="in doubt"),
    Point("function.release", first=_UNHEARD),
    Point("function.status", first=_UNHEARD),
    Point("coroutine.connect", "asyncio"),
    Point("coroutine.session", "asyncio"),
    Point("coroutine.begin", "asyncio"),
    Point("coroutine.hold", "asyncio"),
    Point("coroutine.finish", "asyncio"),
    Point("coroutine.commit", "asyncio"),
    Point("coroutine.rollback", "asyncio", cases=ROLLED_BACK),
    Point("coroutine.commit", of="prefork"),
]

#: Statements that no worker issues of its own accord.
OF_CALLERS = {
    "enqueue_one": "delay and apply_async",
    "enqueue_one bare": "the same, on a connection of ours",
    "enqueue_one prepared": "the same, on one that sends it often",
    "enqueue_one unawaited": "the same, while nobody waits",
    "enqueue_alike": "enqueue_many",
    "enqueue_alike bare": "the same, on a connection of ours",
    "enqueue": "both, with a unique key or an id of the caller's",
    "add_member": "Task.add_to_chord",
    "save_group": "GroupResult.save",
    "saved_group": "GroupResult.restore",
    "delete_group": "GroupResult.delete",
    "enqueue_workflow": "chain, group, chord and app.workflow()",
    "enqueue_workflow bare": "the same, on a connection of ours",
    "enqueue_linked": "both, with links",
    "children": "AsyncResult.children",
    "set_state": "Task.update_state",
    "forget": "AsyncResult.forget",
    "revoke": "AsyncResult.revoke",
    "progress": "WorkflowRun.progress",
    "retry_workflow": "WorkflowRun.retry, pgqueue workflows retry",
    "revoke_workflow": "WorkflowRun.revoke, pgqueue workflows revoke",
    "workflows": "pgqueue workflows list",
    "workflow_nodes": "pgqueue workflows",
    "purge": "pgqueue purge",
    "wait_for": "AsyncResult.get",
    "stop_waiting": "AsyncResult.get",
}

FAST = {
    "worker.claim-after-kill",
    "together.finish-behind-before-kill",
    "together.sync-after-kill",
    "together.sync-after-drop",
    "function.commit-before-drop",
    "function.commit-after-drop",
    "coroutine.commit-after-kill",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that happens at one point."""

    point: Point
    when: str
    action: str

    def __str__(self) -> str:
        return "-".join(filter(None, (self.point.name, self.point.of, self.when, self.action)))

    def failpoints(self, saying: str = "") -> list[Failpoint]:
        """Return what leads here, and what happens here."""
        point = self.point
        return [*point.first, Failpoint(point.name, self.when, self.action, point.nth, saying or point.saying)]

    @property
    def in_attempt(self) -> bool:
        """Whether it happens within a transaction of a task, whose failure may be the task's."""
        return self.point.name.startswith(("function.", "coroutine."))


SCENARIOS = [Scenario(point, *case) for point in POINTS for case in point.cases]


# -- the stage -----------------------------------------------------------------------------------------------


class Nursery:
    """Forks workers from a process that has imported everything: `failpoints.py` as a program."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._parent = subprocess.Popen(
            [sys.executable, "failpoints.py"],
            cwd=APPS,
            env={**os.environ, **SETTINGS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pids: list[int] = []
        assert self._answer() == "ready\n"

    def start(self, name: str, *arguments: str, folder: Path, failpoints: list[Failpoint] | None = None) -> int:
        """Start `pgqueue worker` in a session of its own; return its pid, which is that of its group too."""
        command = ["-A", "failing", "--dsn", self._dsn, "worker", "-n", name, "--grace", "5", *arguments]
        order = {
            "arguments": command,
            "log": str(folder / f"{name}.log"),
            "folder": str(folder),
            "failpoints": [asdict(failpoint) for failpoint in failpoints or []],
        }
        self.pids.append(int(self._ask({"start": order})))
        return self.pids[-1]

    def ended(self, pid: int) -> int | None:
        """Return the exit code of a worker, None while it runs."""
        return self._ask({"poll": pid})  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Kill what still runs of those that were started."""
        for pid in self.pids:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            _wait(lambda pid=pid: self.ended(pid) is not None, f"process {pid} to end")  # type: ignore[misc]
        self.pids.clear()

    def close(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(10)
        self._parent.stdout.close()

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._parent.stdout is not None
        ready, _, _ = select.select([self._parent.stdout], [], [], 20)
        assert ready, "the nursery does not answer"
        return self._parent.stdout.readline()


class Lane:
    """A database and a nursery, for one scenario after the other."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute("set lock_timeout = '5s'")
        self.connection.execute("create table effect (job uuid not null)")  # nothing unique: two are to be seen as two
        self.connection.execute(
            """
            create table trap (id int);
            create function spring() returns trigger language plpgsql
                as $$ begin raise sqlstate '40001' using message = 'failpoint at COMMIT'; end $$;
            create constraint trigger spring after insert on trap deferrable initially deferred
                for each row execute function spring()
            """
        )
        self.nursery = Nursery(dsn)
        self.sender = PgQueue("sender", dsn=dsn)

    def clear(self) -> None:
        """Make it as it was."""
        self.nursery.clear()
        self.connection.execute(
            "truncate pgqueue.job, pgqueue.result, pgqueue.worker, pgqueue.duty, pgqueue.idle, pgqueue.waiter, "
            "pgqueue.step, pgqueue.part, effect"
        )

    def value(self, query: str, *params: object) -> Any:
        row = self.connection.execute(query.encode(), params).fetchone()
        return row[0] if row else None

    def until(self, query: str, *params: object, timeout: float = 30.0) -> None:
        _wait(lambda: bool(self.value(query, *params)), query, timeout)

    def close(self) -> None:
        self.nursery.clear()
        self.nursery.close()
        self.sender.close()
        self.connection.close()


class Overdue(AssertionError):
    """Something that had to happen did not."""


def _wait(found: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not found():
        if time.monotonic() > deadline:
            raise Overdue(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


# -- the play ------------------------------------------------------------------------------------------------

DONE, FAILED, REVOKED = frozenset({"SUCCESS"}), frozenset({"FAILURE"}), frozenset({"REVOKED"})
#: Bodies of chords, and the members of their headers.
CHORDS = {"gathered": ("plain", "aplain", "third_time", "forgotten"), "never": ("plain", "fails", "revoked")}
#: How the jobs of each task end.
ENDS: dict[str, frozenset[str]] = {
    "plain": DONE,
    "aplain": DONE,
    "slow": DONE,
    "third_time": DONE,
    "fails": FAILED,
    "once": DONE | FAILED,
    "forgotten": frozenset(),
    "revoked": REVOKED,
    "pays": DONE,
    "apays": DONE,
    "pays_late": DONE,
    "apays_late": DONE,
    "pays_and_fails": FAILED,
    "apays_and_fails": FAILED,
    "linked": DONE,
    "linked_and_fails": FAILED,
    "followed": DONE,
    "gathered": DONE,
    "never": FAILED,
    "overdue": FAILED,
    "stuck": FAILED,
    "bad_hook": DONE,
}
_ASIDE = ("slow", "followed", "gathered", "never", "overdue", "stuck", "bad_hook")
MIXTURE = ("plain", "aplain", *(task for task in ENDS if task not in _ASIDE), "plain", "aplain")


class Play:
    """One scenario on one lane: `run` returns what is wrong in the end, one line each."""

    def __init__(self, scenario: Scenario, lane: Lane, folder: Path) -> None:
        self.scenario, self.lane, self.folder = scenario, lane, folder
        self.ends: dict[str, frozenset[str]] = {}
        self.tasks: dict[str, str] = {}

    def run(self) -> list[str]:
        try:
            self.lane.clear()
            codes = self._perform()
            return self._ledger() + self._remains() + self._exits(*codes)
        except Overdue as overdue:
            left = self.lane.connection.execute(
                "select task, attempt, crashes, worker, eta > clock_timestamp() from pgqueue.job"
            ).fetchall()
            return [str(overdue), f"job: {left}", *self._logs()]
        finally:
            self.lane.nursery.clear()

    def _perform(self) -> tuple[int, int | None, int | None]:
        """Play; return the pid of the worker that is hit, its exit code, and that of the healthy one."""
        lane, nursery, scenario = self.lane, self.lane.nursery, self.scenario
        said = ""
        if scenario.point.behind:
            for _ in range(300):  # short ones, so that the next ones are claimed together
                self._send("plain")
            said = self._send("once")
            self._send("slow", 0.2)
        else:
            for task in (*MIXTURE, *scenario.point.extra):
                self._send(task)
            for body, members in CHORDS.items():
                self._send_chord(body, members)
            self._leave_behind()
        failpoints = scenario.failpoints(said)
        hit = nursery.start("hit", *POOLS[scenario.point.pool], folder=self.folder, failpoints=failpoints)
        if scenario.point.streaming:
            lane.until("select exists (select from pgqueue.idle)")
            for _ in range(60):
                self._send("slow", 0.03)
        if not scenario.point.stopping:
            _wait(lambda: self._tripped() is not None, f"{scenario} has not happened", 15.0)
        # Not before: it would take the work away that leads there.
        pool = "single" if scenario.point.extra else "solo"  # a time limit ends a process, and solo has one
        healthy = nursery.start("healthy", *POOLS[pool], folder=self.folder)
        if scenario.action == "stop":
            pid = self._tripped()
            assert pid is not None
            _wait(lambda: f"(pid {pid}) is dead: no beat" in "".join(self._logs()), f"process {pid} to be given up")
            os.kill(pid, signal.SIGCONT)
        lane.until("select not exists (select from pgqueue.job)")
        lane.until("select exists (select from pgqueue.worker where name like 'healthy@%%')")
        codes = hit, self._stop(hit), None
        lane.until("select not exists (select from pgqueue.worker where name not like 'healthy@%%')")
        return codes[0], codes[1], self._stop(healthy)

    def _send(self, task: str, *args: object) -> str:
        links: dict[str, object] = {}
        if task.startswith("linked"):  # what follows has to exist once, like everything that is sent
            for option in ("link", "link_error"):
                followed = new_id()
                links[option] = self.lane.sender.signature("failing.followed", task_id=followed)
                if (option == "link_error") == task.endswith("fails"):
                    self.tasks[followed], self.ends[followed] = "followed", DONE
        job = self.lane.sender.send_task(f"failing.{task}", args, **links).id
        self.tasks[job], self.ends[job] = task, ENDS[task]
        return job

    def _send_chord(self, body: str, members: Sequence[str]) -> None:
        """Enqueue a chord; its body has to run once, or never if a member does not succeed."""
        last = new_id()
        plan = [NewJob(last, f"failing.{body}", root_id=last, waits=len(members), takes="values")]
        for place, task in enumerate(members):
            plan.append(NewJob(new_id(), f"failing.{task}", root_id=last, steps=(last,), depth=1, place=place))
        enqueue_plan(self.lane.sender, plan, None)
        for job, task in zip(plan, (body, *members), strict=True):
            self.tasks[job.id], self.ends[job.id] = task, ENDS[task]

    def _leave_behind(self) -> None:
        """Have a dead worker hold four jobs, and one that nobody ever knew a fifth."""
        dead, unknown = new_id(), new_id()
        boot = {"host": "here", "boot": boot_identity(), "pid": os.getpid(), "pid_started": 1}
        entry = {"id": dead, "name": "dead@here", **boot, "pool": "solo", "slots": 4, "queues": ["past"]}
        self.lane.value(
            "select pgqueue.register(%s::json)::text", json.dumps({**entry, "at_most_once": ["failing.once"]})
        )
        for worker, tasks in ((dead, ("plain", "pays", "once", "revoked")), (unknown, ("plain",))):
            jobs = [self._send(task) for task in tasks]
            # As a claim would have left them, an hour ago.
            self.lane.connection.execute(
                "update pgqueue.job set worker = %s, attempt = 1, claimed_at = now() - interval '1 hour',"
                " revoked = task = 'failing.revoked' where id = any(%s::uuid[])",
                [worker, jobs],
            )
            for job, task in zip(jobs, tasks, strict=True):
                if task == "once":
                    self.ends[job] = FAILED

    def _stop(self, pid: int) -> int | None:
        if self.lane.nursery.ended(pid) is None:
            os.kill(pid, signal.SIGTERM)
        _wait(lambda: self.lane.nursery.ended(pid) is not None, "a warm stop", 15.0)
        return self.lane.nursery.ended(pid)

    def _tripped(self) -> int | None:
        try:
            text = (self.folder / f"tripped-{len(self.scenario.point.first)}").read_text()
        except FileNotFoundError:
            return None
        return int(text) if text else None

    def _logs(self) -> Iterator[str]:
        for log in sorted(self.folder.glob("*.log")):
            yield f"--- {log.name}\n{log.read_text()}"

    # -- the ledger ------------------------------------------------------------------------------------------

    def _ledger(self) -> list[str]:
        """Return every job that has not ended once and as it should."""
        found = {
            str(row[0]): row[1:]
            for row in self.lane.connection.execute("select id, state, crashes, error ->> 'type' from pgqueue.result")
        }
        effects = Counter(str(job) for (job,) in self.lane.connection.execute("select job from effect"))
        begun = Counter((self.folder / "begun").read_text().split())
        wrong = [f"job {job} was never sent" for job in {*found, *effects, *begun} - {*self.tasks}]
        # What goes wrong within its transaction may be the failure of that one attempt, and of no other.
        spared = int(self.scenario.in_attempt and self.scenario.action in ("refuse", "fail"))
        for job, task in self.tasks.items():
            state, crashes, error = found.get(job, (None, 0, None))
            said = f"{task} {job[-12:]} ended as {state} ({error}), {crashes} crashes, {begun[job]} starts"
            pays = task.startswith(("pays", "apays"))
            if state not in self.ends[job] and (state is not None or self.ends[job]):
                if spared and pays and state == "FAILURE":
                    spared -= 1
                elif task == "stuck" and state == "SUCCESS" and self.scenario.action in ("fail", "kill"):
                    pass  # its supervisor died before it could end it, and the signal of that death ended its sleep
                else:
                    wrong.append(f"{said}: it had to be {' or '.join(self.ends[job]) or 'nothing'}")
            if effects[job] != (pays and state == "SUCCESS"):
                wrong.append(f"{said}: {effects[job]} effects")
            if task == "never" and begun[job]:
                wrong.append(f"{said}: a member had failed")
            if task == "once":
                if begun[job] > 1 or (state == "FAILURE" and error != "WorkerLostError"):
                    wrong.append(f"{said}: it may start once, and fail for the loss of its worker alone")
            elif task in (
                "plain",
                "aplain",
                "slow",
                "fails",
                "forgotten",
                "linked",
                "linked_and_fails",
                "followed",
                "gathered",
            ):
                # A process that dies also takes along what had ended and was not acknowledged yet: that is no crash.
                point = self.scenario.point
                dies = self.scenario.action in ("kill", "fail", "stop") or "stuck" in point.extra or bool(point.first)
                again = crashes + dies
                if not 1 <= begun[job] <= 1 + again:
                    wrong.append(f"{said}: too many starts, or none")
        return wrong

    def _remains(self) -> list[str]:
        """Return what is left over in the database and of the processes."""
        counts = {
            table: self.lane.value(f"select count(*) from pgqueue.{table}")
            for table in ("job", "worker", "idle", "step")
        }
        wrong = [f"{rows} rows are left in {table}" for table, rows in counts.items() if rows]
        try:
            self.lane.until(
                "select not exists (select from pg_stat_activity where datname = current_database()"
                " and application_name like 'pgqueue %%' and application_name not like '%%sender%%')",
                timeout=5.0,
            )
        except Overdue:
            wrong.append("sessions are left")
        if "Task was destroyed" in "".join(self._logs()):
            wrong.append("a pool was dropped and not closed")
        for pid in self.lane.nursery.pids:
            try:
                _wait(lambda pid=pid: not _group_lives(pid), "the group", 10.0)  # type: ignore[misc]
            except Overdue:
                wrong.append(f"processes of the group {pid} are left")
        return wrong

    def _exits(self, hit: int, code: int | None, healthy: int | None) -> list[str]:
        """Return exit codes that surprise."""
        tripped = self._tripped()
        wrong = [] if tripped else ["it has not happened"]
        expected = 0
        if tripped == hit and self.scenario.action == "kill":
            expected = -signal.SIGKILL
        elif tripped == hit and self.scenario.point.name == "worker.version":
            expected = {"refuse": 4, "drop": 3}.get(self.scenario.action, 1)  # as the command line says
        elif tripped == hit and self.scenario.action == "fail" and not self.scenario.in_attempt:
            expected = 1
        if code != expected:
            wrong.append(f"exit code {code}, not {expected}")
        if healthy != 0:
            wrong.append(f"exit code {healthy} of the healthy worker")
        return wrong + ([*self._logs()] if wrong else [])


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- the tests -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def play(
    request: pytest.FixtureRequest, pg_server: Any, pg_template: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Scenario], tuple[list[str], Path]]]:
    """Plays the scenarios of the tests that were selected; ask for the outcome of one."""
    scenarios = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    folders = tmp_path_factory.mktemp("failpoints")
    free: queue.SimpleQueue[Lane] = queue.SimpleQueue()

    def one(scenario: Scenario) -> tuple[list[str], Path]:
        lane = free.get()
        folder = folders / str(scenario).replace(" ", "_")
        folder.mkdir()
        try:
            return Play(scenario, lane, folder).run(), folder
        finally:
            free.put(lane)

    names = [f"pgqueue_failpoints_{os.getpid()}_{number}" for number in range(min(LANES, len(scenarios)))]
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as connection:
        for name in names:
            template = sql.Identifier(pg_template.template_dbname)
            connection.execute(sql.SQL("create database {} template {}").format(sql.Identifier(name), template))
        lanes = [Lane(pg_server.dsn(name)) for name in names]
        for lane in lanes:
            free.put(lane)
        with ThreadPoolExecutor(LANES) as pool:
            played = {scenario: pool.submit(one, scenario) for scenario in scenarios}
            yield lambda scenario: played[scenario].result()
            pool.shutdown(cancel_futures=True)
        for lane in lanes:
            lane.close()
        for name in names:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=str(one), marks=() if str(one) in FAST else pytest.mark.slow) for one in SCENARIOS],
)
def test_nothing_is_lost_or_done_twice(play: Callable[[Scenario], tuple[list[str], Path]], scenario: Scenario) -> None:
    wrong, folder = play(scenario)
    assert not wrong, "\n".join(wrong)
    passed = {path.name.removeprefix("passed-") for path in folder.glob("passed-*")}
    assert passed <= {point.name for point in POINTS}, "the engine passes points that have no scenario"


def test_every_statement_of_the_engine_has_its_scenarios() -> None:
    covered = {point.name.partition(".")[2] for point in POINTS}
    assert {*_CALLS} - covered == {*OF_CALLERS}
    assert {*map(str, SCENARIOS)} >= FAST
    assert len({*map(str, SCENARIOS)}) == len(SCENARIOS)
