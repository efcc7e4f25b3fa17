"""Other hosts on this machine, for faults of the network and of whole hosts: Linux namespaces.

A `Host` is a network namespace with one link to us, which can be cut; `APART` puts a process into a pid namespace
of its own, so that nobody outside can prove from its pid that it has ended.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import psycopg

from pgqueue.embedded import Embedded

#: Before a command: it runs in a pid namespace of its own and is killed with the process that is started here.
APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

_NETWORK = IPv4Address("198.18.0.0")  # to 198.19.255.255: set aside for measurements (RFC 2544), routed nowhere
_BLOCKS = 2**15  # of four addresses: its own, ours, the host's, broadcast


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace and the link to it.

    - `name`: of the namespace, and the beginning of the names of the link's ends.
    - `gateway`: our end's address, where a server can listen; `address`: the other end's.
    """

    name: str
    gateway: str
    address: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Cut the link, without a word to either side: what is sent from now on is lost."""
        _ip("-n", self.name, "link", "set", f"{self.name}b", "down")

    def mend(self) -> None:
        """Mend the link."""
        _ip("-n", self.name, "link", "set", f"{self.name}b", "up")


@functools.cache
def no_hosts() -> str | None:
    """Return why there can be no network namespaces here, or None if there can; tried, not guessed."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: apt-get install iproute2)"
    try:
        with hosts(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces do not work here: {' '.join(error.stderr.split())}"


@functools.cache
def not_apart() -> str | None:
    """Return why there can be no pid namespaces here, or None if there can."""
    try:
        tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "pid namespaces need the command unshare (Debian: apt-get install util-linux)"
    return f"pid namespaces do not work here: {' '.join(tried.stderr.split())}" if tried.returncode else None


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make so many hosts, and remove them at the end; what was started on them is to have ended by then."""
    with ExitStack() as stack:
        yield [stack.enter_context(_host()) for _ in range(count)]


@contextmanager
def _host() -> Iterator[Host]:
    used = _ip("-o", "-4", "address")
    gateway = _NETWORK + 4 * random.randrange(_BLOCKS) + 1
    while f" {gateway}/" in used:
        gateway = _NETWORK + 4 * random.randrange(_BLOCKS) + 1
    # An interface's name has 15 characters at most; two runs at once must not meet.
    host = Host(f"pq{random.randrange(16**8):08x}", str(gateway), str(gateway + 1))
    ours, theirs = f"{host.name}a", f"{host.name}b"
    _ip("netns", "add", host.name)
    try:
        # Its other end is born in the namespace and dies with it, and with it ours.
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", host.name)
        _ip("address", "add", f"{host.gateway}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/30", "dev", theirs)
        _ip("-n", host.name, "link", "set", theirs, "up")
        yield host
    finally:
        # A namespace whose processes still run outlives its name; the link is not to outlive us.
        subprocess.run(["ip", "link", "delete", ours], capture_output=True, check=False)
        _ip("netns", "delete", host.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def server(folder: Path, reached_by: Sequence[Host] = (), *, bindir: Path | None = None) -> Iterator[Embedded]:
    """Run a server of our own: on its socket, and by TCP on our ends of the links, for these hosts alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"max_connections": "300", "port": str(port)}
    settings["listen_addresses"] = ",".join(host.gateway for host in reached_by)
    with Embedded(folder, settings=settings, bindir=bindir) as running:
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {host.address}/32 trust\n" for host in reached_by)
        with psycopg.connect(running.dsn) as connection:
            connection.execute("select pg_reload_conf()")
        yield running


def dsn_from(host: Host, dsn: str) -> str:
    """Return where a host finds the server that has this DSN here."""
    port = psycopg.conninfo.conninfo_to_dict(dsn)["port"]
    return f"postgresql://postgres@{host.gateway}:{port}/postgres"
