"""A short soak under random faults: nothing lost, nothing unexpected, no doubled effect, no zombie, nothing stuck.

For longer ones: `python -m benchmarks.soak --seconds 3600`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ledger import FATAL

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc"),
]


@contextmanager
def soak(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    bindir = os.environ.get("PGQUEUE_TEST_BINDIR")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--json", *arguments, *(["--bindir", bindir] if bindir else [])],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:  # the test was interrupted
                process.terminate()


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    with soak(folder, *arguments) as process:
        out, _ = process.communicate()
    return process.returncode, json.loads(out)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the ledgers and logs of a failed soak stay.

    Not pytest's own: every user must be able to enter, as the server may have to run as nobody.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgqueue-test-soak-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    with suppress(OSError):
        folder.rmdir()


@pytest.mark.timeout(500)
def test_a_soak_loses_nothing_and_doubles_nothing(folder: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"python -m benchmarks.soak --seconds 90 --seed {seed}")
    code, found = run(folder, "--seconds", "90", "--seed", str(seed))
    wrong = {name: found[name] for name in (*FATAL, "hung", "orphans") if found[name]}
    assert not wrong, f"seed {seed}: {wrong}; {found['evidence']}; see {folder}"
    assert code == 0
    # What the zeros stand on.
    assert found["acknowledged"] > 300
    assert found["effects"] > 50
    assert sum(found["faults"].values()) > 40
    # 3: the database was away. 4: a task was cut off and handed back. -15: told to stop before it was up.
    assert set(found["exit_codes"]) <= {"0", "3", "4", "-15"}
    assert list(folder.iterdir()) == []


@pytest.mark.timeout(300)
def test_an_engine_without_a_fence_is_found_out(folder: Path) -> None:
    code, found = run(folder, "--seconds", "60", "--seed", "4", "--broken", "fence", "--faults", "freeze")
    assert code == 1
    assert found["zombie_writes"] > 0
    shutil.rmtree(folder)  # not worth keeping


@pytest.mark.timeout(120)
def test_an_interrupted_soak_leaves_nothing_behind(folder: Path) -> None:
    with soak(folder, "--seconds", "60") as process:
        while not list(folder.glob("*/runs.ledger")):
            assert process.poll() is None
            time.sleep(0.1)
        ours = those_of(folder)
        assert len(ours) > 10  # the server, four workers with their children, three producers
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # impatience does not disturb it
        assert process.wait() == 128 + signal.SIGINT
        # What had lost its parent is not reaped by us.
        deadline = time.monotonic() + 10
        while (left := those_of(folder)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert list(folder.iterdir()) == []


def those_of(folder: Path) -> list[int]:
    """Processes whose environment or working directory is in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(folder).encode() + b"/"
            if ours in (process / "environ").read_bytes() or ours in bytes((process / "cwd").readlink()) + b"/":
                found.append(int(process.name))
    return found
