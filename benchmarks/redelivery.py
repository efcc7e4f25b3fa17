"""Seconds from a fault to the second start of the job that it hit, and what a database outage repeats wrongly.

    python -m benchmarks.redelivery [--rounds 20] [--only child,worker,...] [--json]

Every round has a victim of its own with one running job, and its fault comes at a random moment. The second start
happens on one rescuer that has nothing else to do, but for `child`: there the child's own successor starts the job.

    child          SIGKILL of a prefork child
    worker         SIGKILL of a supervisor and its child; another worker runs on this host
    worker_far     the same while the sweep is done by a worker on another host, which cannot look for a pid
    elsewhere      SIGKILL of a whole worker in a pid namespace of its own: its end cannot be proven
    halfopen       the link of the victim's host is cut (a network namespace); the server hears nothing more
    halfopen_row   the same in a transactional task, whose open transaction holds the job's row
    frozen         SIGSTOP of a supervisor and its child; SIGCONT after all second starts, and no result is accepted
    frozen_row     the same in a transactional task with its transaction open
    frozen_sweep   the same as frozen, all at once, the worker that sweeps among them (else another one sweeps)
    outage         the server is away for 60 s with 100 tasks running, half of which end meanwhile; false redeliveries

The server is the embedded one, in a temporary directory on a disk. `halfopen` needs root and the command ip, the pid
namespaces of `elsewhere` and `worker_far` need root; where they are missing the line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.ground import Ground, Process, await_true
from benchmarks.hosts import APART, dsn_from, hosts, no_hosts, not_apart, server
from benchmarks.redelivery_tasks import ANY_TASK, ahold, app, hold, hold_row
from pgqueue.sql import schema

#: Goals in seconds, and false redeliveries of `outage`; the worst round is held against them.
GOALS = {
    "child": 0.5, "worker": 1.0, "worker_far": 1.0, "elsewhere": 5.0, "halfopen": 15.0, "halfopen_row": 15.0,
    "frozen": 35.0, "frozen_row": 35.0, "frozen_sweep": 35.0, "outage": 0.0,
}  # fmt: skip
#: Seconds to wait for a second start before a round counts as lost.
PATIENCE = 75.0
#: Seconds that a victim has lived before its fault: a process that dies young is replaced with a pause.
AGE = 5.5
OUTAGE_SECONDS = 60.0
OUTAGE_TASKS = 100


@dataclass(frozen=True)
class Victim:
    """A worker, its job, and where the pid of the slot stands."""

    process: Process
    job: str
    slot: int


def victims(
    ground: Ground, task: ANY_TASK, prefixes: Sequence[Sequence[str]], dsns: Sequence[str] = ()
) -> list[Victim]:
    """Start a worker for each prefix, each on a queue of its own, and wait until each runs its job."""
    jobs = [task.apply_async(queue=f"victim{n}").id for n in range(len(prefixes))]
    processes = [
        ground.start(f"victim{n}", "-P", "prefork", "-c", "1", prefix=prefix, dsn=dsns[n] if dsns else "")
        for n, prefix in enumerate(prefixes)
    ]
    found = []
    for process, job in zip(processes, jobs, strict=True):
        begun = ground.began(job, 1)
        if begun is None:
            raise TimeoutError(f"a victim does not start its job: {ground.log(process)}")
        found.append(Victim(process, job, begun[1]))
    time.sleep(AGE)
    return found


def strike(ground: Ground, hit: Sequence[Victim], fault: Callable[[int, Victim], None], pause: float) -> list[float]:
    """Bring the fault on each victim, `pause` to twice that many seconds apart; return the seconds to the second
    starts, infinite for those that did not come.
    """
    struck = []
    for n, victim in enumerate(hit):
        time.sleep(random.uniform(pause, 2 * pause))
        struck.append(time.monotonic())
        fault(n, victim)
    again = [ground.began(victim.job, 2, max(0.0, struck[-1] + PATIENCE - time.monotonic())) for victim in hit]
    return [begun[0] - at if begun else float("inf") for begun, at in zip(again, struck, strict=True)]


def queues_of(count: int) -> str:
    return ",".join(f"victim{n}" for n in range(count))


def kill_group(_: int, victim: Victim) -> None:
    os.killpg(victim.process.pid, signal.SIGKILL)


# -- the measurements ------------------------------------------------------------------------------------------------


def child(ground: Ground, rounds: int) -> list[float]:
    hit = victims(ground, hold, [()] * rounds)
    return strike(ground, hit, lambda _, victim: os.kill(victim.slot, signal.SIGKILL), 0.5)


def worker(ground: Ground, rounds: int) -> list[float]:
    hit = victims(ground, hold, [()] * rounds)
    ground.rescuer(queues_of(rounds))
    return strike(ground, hit, kill_group, 1.0)


def worker_far(ground: Ground, rounds: int) -> list[float]:
    ground.rescuer("far", "sweeper", prefix=APART)
    return worker(ground, rounds)


def elsewhere(ground: Ground, rounds: int) -> list[float]:
    hit = victims(ground, hold, [APART] * rounds)
    ground.rescuer(queues_of(rounds))
    # Far apart: when the one who sweeps is hit, his successor begins anew with whoever was hit just before.
    return strike(ground, hit, kill_group, 4.0)


def halfopen(ground: Ground, rounds: int, task: ANY_TASK = hold) -> list[float]:
    ground.rescuer("far", "sweeper")
    at = ground.hosts[:rounds]
    hit = victims(ground, task, [host.command() for host in at], [dsn_from(host, ground.dsn) for host in at])
    ground.rescuer(queues_of(rounds))
    return strike(ground, hit, lambda n, _: at[n].cut(), 1.0)


def halfopen_row(ground: Ground, rounds: int) -> list[float]:
    return halfopen(ground, rounds, hold_row)


def frozen(ground: Ground, rounds: int, task: ANY_TASK = hold, *, sweeper: bool = True) -> list[float]:
    if sweeper:
        ground.rescuer("far", "sweeper")
    hit = victims(ground, task, [()] * rounds)
    ground.rescuer(queues_of(rounds))
    # Over one beat: what matters is how long ago the last one was. But all at once where the sweeper is to be hit: one
    # after the other, each of his successors would be hit too.
    pause = app.settings.beat_interval / len(hit) / 1.5 if sweeper else 0.0
    seconds = strike(ground, hit, lambda _, victim: os.killpg(victim.process.pid, signal.SIGSTOP), pause)
    ground.release([victim.job for victim in hit])
    for victim in hit:
        os.killpg(victim.process.pid, signal.SIGCONT)
    redelivered = [victim for victim, taken in zip(hit, seconds, strict=True) if taken < float("inf")]
    await_true(
        lambda: all("the lease is lost" in ground.log(victim.process) for victim in redelivered),
        "every thawed worker says that its outcome counts for nothing",
    )
    won = ground.query("select count(*) from pgqueue.result where attempt = 1 and crashes > 0")
    if won != (0,):
        raise AssertionError(f"results of thawed workers were accepted: {won}")
    return seconds


def frozen_row(ground: Ground, rounds: int) -> list[float]:
    return frozen(ground, rounds, hold_row)


def frozen_sweep(ground: Ground, rounds: int) -> list[float]:
    return frozen(ground, rounds, sweeper=False)


def outage(ground: Ground, rounds: int) -> list[float]:
    """Return how many attempts there were too many; `rounds` does not matter, one outage hits all tasks."""
    assert ground.running is not None
    half = OUTAGE_TASKS // 2
    jobs = [task.apply_async(queue=queue).id for task, queue in ((ahold, "a"), (hold, "b")) for _ in range(half)]
    ground.start("a", "-P", "asyncio", "-c", str(half))
    ground.start("b", "-P", "threads", "-c", str(half))
    if not all(ground.began(job, 1) for job in jobs):
        raise TimeoutError("not all tasks have started")
    app.close()
    ground.running.stop()
    time.sleep(OUTAGE_SECONDS / 2)
    ground.release(jobs[::2])
    time.sleep(OUTAGE_SECONDS / 2)
    ground.running.start()
    if ground.running.dsn != ground.dsn:
        raise RuntimeError("the server is not where it was: its directory has too long a name for a socket")
    time.sleep(5.0)  # those who are to declare somebody dead wrongly have time for it
    ground.release(jobs)
    done = "select count(*) from pgqueue.result where state = 'SUCCESS'"
    await_true(lambda: ground.query(done) == (OUTAGE_TASKS,), "all tasks have succeeded", PATIENCE)
    (starts,) = ground.query("select sum(attempt)::int from pgqueue.result")
    notes = len([path for path in ground.folder.iterdir() if path.stem in jobs and path.suffix[1:].isdigit()])
    return [float(max(int(str(starts)), notes) - OUTAGE_TASKS)]


MEASUREMENTS: dict[str, Callable[[Ground, int], list[float]]] = {
    "child": child, "worker": worker, "worker_far": worker_far, "elsewhere": elsewhere, "halfopen": halfopen,
    "halfopen_row": halfopen_row, "frozen": frozen, "frozen_row": frozen_row, "frozen_sweep": frozen_sweep,
    "outage": outage,
}  # fmt: skip


def obstacle(name: str) -> str | None:
    """Return why a measurement cannot be made here."""
    if name.startswith("halfopen"):
        return no_hosts()
    return not_apart() if name in ("elsewhere", "worker_far") else None


def measure(ground: Ground, name: str, rounds: int) -> dict[str, object]:
    """Make one measurement and return its figures, or why it cannot be made."""
    if why := obstacle(name):
        return {"cannot": why}
    try:
        values = MEASUREMENTS[name](ground, rounds)
    finally:
        ground.clear()
    came = [value for value in values if value < float("inf")]
    return {
        "rounds": len(values),
        "never": len(values) - len(came),
        "median": round(statistics.median(came), 3) if came else None,
        "worst": round(max(came), 3) if came else None,
        "goal": GOALS[name],
        "met": len(came) == len(values) and max(values) <= GOALS[name],
    }


@contextmanager
def prepared(names: Sequence[str], rounds: int) -> Iterator[Ground]:
    """Set everything up, and take everything away again."""
    with ExitStack() as stack:
        wanted = rounds if any(name.startswith("halfopen") for name in names) and no_hosts() is None else 0
        made = stack.enter_context(hosts(wanted))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgq-", dir="/tmp")))
        running = stack.enter_context(server(folder / "server", made))
        with psycopg.connect(running.dsn, autocommit=True) as connection:
            connection.execute(schema().encode())
            connection.execute("create table effect (amount int, attempt int)")
        (folder / "notes").mkdir()
        app.configure(dsn=running.dsn)
        ground = Ground(running.dsn, folder / "notes", made, running)
        try:
            yield ground
        finally:
            if running.pid is not None:
                ground.clear()
            app.close()


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(MEASUREMENTS)
    if unknown := set(names) - set(MEASUREMENTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(MEASUREMENTS)}")
    figures: dict[str, dict[str, object]] = {}
    with prepared(names, given.rounds) as ground:
        if not given.json:
            print(f"{os.cpu_count()} cores, {given.rounds} rounds; seconds from the fault to the second start")
            print(f"  {'':14}{'median':>9}{'worst':>9}{'goal':>7}")
        for name in names:
            figures[name] = found = measure(ground, name, given.rounds)
            if not given.json:
                print(line(name, found), flush=True)
    if given.json:
        print(json.dumps(figures))


def line(name: str, found: dict[str, object]) -> str:
    """Return one line of the table."""
    if "cannot" in found:
        return f"  {name:14}cannot be measured: {found['cannot']}"
    median, worst = (f"{found[key]:.2f}" if found[key] is not None else "-" for key in ("median", "worst"))
    missed = "" if found["met"] else "  missed" + (f", {found['never']} never" if found["never"] else "")
    return f"  {name:14}{median:>9}{worst:>9}{found['goal']:>7g}{missed}"


if __name__ == "__main__":
    main()
