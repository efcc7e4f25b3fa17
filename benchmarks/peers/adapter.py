"""What every system has to offer to be measured, and the processes that offer it.

    python -m benchmarks.peers.adapter MODULE MODE control            commands on standard input, answers as JSON
    python -m benchmarks.peers.adapter MODULE MODE produce FIRST SECONDS EVERY LIMIT
    python -m benchmarks.peers.adapter MODULE MODE work

These run in the environment of the system: only the standard library and the system itself are imported.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.peers.notes import Notebook

Loop = Callable[[], asyncio.AbstractEventLoop] | None


class Adapter(Protocol):
    """One system in one mode; made with its mode and the DSN of an empty database of its own.

    The job is always the same: a task named `add` gets a number and 3, calls `started(number)` and returns the sum.
    """

    #: Distributions whose versions the report shows, the system's own first.
    packages: tuple[str, ...]
    #: Makes the event loop of the processes below; None: that of the standard library.
    loop: Loop

    async def open(self) -> None:
        """Connect; called before everything but `prepare` and `work`."""

    async def prepare(self) -> None:
        """Make the tables in the empty database."""

    async def fill(self, first: int, count: int) -> bool:
        """Enqueue many jobs in the fastest documented way; return whether that is one call for many jobs."""

    async def enqueue(self, number: int) -> None:
        """Enqueue and commit one job."""

    async def left(self) -> int:
        """Return how many jobs have not ended."""

    async def results(self) -> int:
        """Return how many results are stored; 0 if the system stores none."""

    def work(self) -> None:
        """Be a worker until SIGTERM; call `gate` when all that comes before the first claim is done."""


def gate() -> None:
    """Say that this process is ready, and wait until all are."""
    folder = Path(os.environ["PEERS_FOLDER"])
    (folder / f"ready.{os.getpid()}").touch()
    while not (folder / "open").exists():
        time.sleep(0.001)


async def control(adapter: Adapter) -> None:
    """Answer commands until standard input ends."""
    prepared = False
    for line in sys.stdin:
        command, *numbers = line.split()
        if command != "prepare" and not prepared:
            await adapter.open()
            prepared = True
        if command == "versions":
            answer: object = {name: importlib.metadata.version(name) for name in adapter.packages}
        else:
            answer = await getattr(adapter, command)(*map(int, numbers))
        print("PEERS", json.dumps(answer), flush=True)


async def produce(adapter: Adapter, first: int, seconds: float, every: float, limit: int) -> None:
    """Enqueue one by one, for so many seconds or jobs; write the time before each call; print the rate.

    - `every`: seconds from one call to the next; 0: at once. A late call delays none that follows.
    """
    await adapter.open()
    calls = Notebook(Path(os.environ["PEERS_FOLDER"]) / f"calls.{os.getpid()}")
    gate()
    number, begin = 0, time.monotonic()
    while number < limit and (now := time.monotonic()) - begin < seconds:
        if every and begin + number * every > now:
            await asyncio.sleep(begin + number * every - now)
        calls.add(first + number)
        await adapter.enqueue(first + number)
        number += 1
    print("PEERS", json.dumps({"jobs": number, "seconds": time.monotonic() - begin}), flush=True)


def main() -> None:
    """Be one of the three processes."""
    module, mode, verb, *rest = sys.argv[1:]
    adapter: Adapter = importlib.import_module(f"benchmarks.peers.adapters.{module}").System(
        mode, os.environ["PEERS_DSN"]
    )
    if verb == "work":
        adapter.work()
        return
    with asyncio.Runner(loop_factory=adapter.loop) as runner:
        if verb == "control":
            runner.run(control(adapter))
        else:
            first, seconds, every, limit = rest
            runner.run(produce(adapter, int(first), float(seconds), float(every), int(limit)))
    # Clients that keep threads or pools must not hold up the end: everything of theirs is committed.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
