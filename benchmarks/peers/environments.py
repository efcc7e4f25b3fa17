"""A virtual environment for each system, so that none of their dependencies becomes one of ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.systems import Peer


def interpreter(folder: Path, peer: Peer) -> Path:
    """Return the Python that has what the system needs, and install that first if it is not there yet."""
    return installed(folder / peer.module, peer.requirements) if peer.requirements else Path(sys.executable)


def installed(place: Path, requirements: tuple[str, ...]) -> Path:
    """Make the environment again unless these requirements were its last complete installation."""
    python, done = place / "bin" / "python", place / "requirements.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join(requirements)}", flush=True)
        venv.create(place, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(
                f"pip cannot install {wanted.replace(chr(10), ', ')}: {ended.stderr.strip().splitlines()[-1]}"
            )
        done.write_text(wanted)
    return python.absolute()
