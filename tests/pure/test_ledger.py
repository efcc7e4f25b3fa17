"""The checker of the soak finds each fault in a doctored ledger, and its proxy cuts where it says."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest

from benchmarks.faults import KINDS, Struck, redeliveries, schedule
from benchmarks.ledger import FATAL, Call, Effect, Pen, Rows, Rules, Run, Stored, Verdict, check, read_calls, read_runs
from benchmarks.proxy import CUTS, Proxy
from benchmarks.soak_producer import orders
from benchmarks.soak_tasks import MIXTURE, ONCE

RULES = Rules(transactional={"pay"}, once={"once"}, failing={"fail"}, pids={"w1": 11, "w2": 12})

# A soak in which everything went well: a plain job, a payment, an early one, a commit, a rollback, a retried one.
CALLS = {
    "plain": Call("add", "plain", ["ok"]),
    "pay": Call("pay", "plain", ["ok"]),
    "once": Call("once", "plain", ["ok"]),
    "commit": Call("add", "commit", ["ok"]),
    "rollback": Call("add", "rollback", ["fail"]),
    "retry": Call("add", "plain", ["ok"]),
}
RUNS = [
    Run("plain", 1, 11, 1.0, 1.1),
    Run("pay", 1, 11, 2.0, 2.1),
    Run("once", 1, 12, 3.0, 3.1),
    Run("commit", 1, 12, 4.0, 4.1),
    Run("retry", 1, 11, 5.0, 5.1),
    Run("retry", 2, 12, 6.0, 6.1),
]
ROWS = Rows(
    results={
        "plain": Stored("SUCCESS", 1, 0, 101, "w1"),
        "pay": Stored("SUCCESS", 1, 0, 102, "w1"),
        "once": Stored("SUCCESS", 1, 0, 103, "w2"),
        "commit": Stored("SUCCESS", 1, 0, 104, "w2"),
        "retry": Stored("SUCCESS", 2, 1, 105, "w2"),
    },
    effects=[Effect("pay", 1, 102)],
    business=["commit"],
)


def without(job: str, rows: Rows = ROWS) -> Rows:
    return replace(rows, results={other: row for other, row in rows.results.items() if other != job})


def stored(job: str, row: Stored, rows: Rows = ROWS) -> Rows:
    return replace(rows, results={**rows.results, job: row})


def found(verdict: Verdict) -> dict[str, set[str]]:
    return {name: set(getattr(verdict, name)) for name in FATAL if getattr(verdict, name)}


def test_a_good_soak_is_good() -> None:
    verdict = check(CALLS, RUNS, ROWS, RULES)
    assert found(verdict) == {}
    assert verdict.good
    assert (verdict.attempted, verdict.acknowledged, verdict.undone) == (6, 5, 1)
    assert (verdict.starts, verdict.doubled_executions, verdict.refused) == (6, 0, 0)


LATE = Run("plain", 2, 12, 7.0, 7.1)  # the job was given to a second worker

DOCTORED = {
    # lost
    "told ok and never ended": (CALLS, RUNS, without("plain"), {"lost": {"plain"}}),
    "told ok and nobody has heard of it": (CALLS, RUNS[1:], without("plain"), {"lost": {"plain"}}),
    "begun, told nothing, and gone": (
        {**CALLS, "plain": Call("add", "plain", ["info"])},
        RUNS,
        without("plain"),
        {"lost": {"plain"}},
    ),
    "told ok, but the business row is there alone": (CALLS, RUNS, without("commit"), {"lost": {"commit"}}),
    "told ok, but the whole transaction is gone": (
        CALLS,
        [run for run in RUNS if run.job != "commit"],
        replace(without("commit"), business=[]),
        {"lost": {"commit"}},
    ),
    "the business row of an unknown commit is there alone": (
        {**CALLS, "commit": Call("add", "commit", ["info"])},
        [],
        replace(without("commit", Rows(results={})), business=["commit"]),
        {"lost": {"commit", "plain", "pay", "once", "retry"}},
    ),
    # unexpected
    "a result that nobody called for": (
        CALLS,
        RUNS,
        stored("stranger", Stored("FAILURE", 1)),
        {"unexpected": {"stranger"}},
    ),
    "a run that nobody called for": (
        CALLS,
        [*RUNS, Run("stranger", 1, 11, 1.0)],
        ROWS,
        {"unexpected": {"stranger"}},
    ),
    "rolled back, and it ran": (CALLS, [*RUNS, Run("rollback", 1, 11, 1.0)], ROWS, {"unexpected": {"rollback"}}),
    "rolled back, and it waits": (
        CALLS,
        RUNS,
        replace(ROWS, waiting=["rollback"]),
        {"unexpected": {"rollback"}, "stuck": {"rollback"}},
    ),
    "an unknown commit left the job and not the business row": (
        {**CALLS, "commit": Call("add", "commit", ["info"])},
        RUNS,
        replace(ROWS, business=[]),
        {"unexpected": {"commit"}},
    ),
    # doubled_effects
    "two effects of one transaction": (
        CALLS,
        RUNS,
        replace(ROWS, effects=[Effect("pay", 1, 102)] * 2),
        {"doubled_effects": {"pay"}},
    ),
    "a success without its effect": (CALLS, RUNS, replace(ROWS, effects=[]), {"doubled_effects": {"pay"}}),
    "an effect of a failure": (
        CALLS,
        RUNS,
        stored("pay", Stored("FAILURE", 1, 0, 102, "w1")),
        {"doubled_effects": {"pay"}},
    ),
    "an effect of a job that waits": (
        CALLS,
        RUNS,
        replace(without("pay"), waiting=["pay"]),
        {"doubled_effects": {"pay"}, "stuck": {"pay"}},
    ),
    # zombie_writes
    "a result of an attempt before the last": (CALLS, [*RUNS, LATE], ROWS, {"zombie_writes": {"plain"}}),
    "an effect of another attempt": (
        CALLS,
        RUNS,
        replace(ROWS, effects=[Effect("pay", 2, 102)]),
        {"zombie_writes": {"pay"}},
    ),
    "an effect of another transaction": (
        CALLS,
        RUNS,
        replace(ROWS, effects=[Effect("pay", 1, 99)]),
        {"zombie_writes": {"pay"}},
    ),
    "two attempts with an effect each": (
        CALLS,
        [*RUNS, Run("pay", 2, 12, 7.0, 7.1)],
        replace(ROWS, effects=[Effect("pay", 1, 102), Effect("pay", 2, 110)]),
        {"zombie_writes": {"pay"}, "doubled_effects": {"pay"}},
    ),
    "a success that never began": (CALLS, RUNS[1:], ROWS, {"zombie_writes": {"plain"}}),
    "a success stored for another worker": (
        CALLS,
        RUNS,
        stored("plain", Stored("SUCCESS", 1, 0, 101, "w2")),
        {"zombie_writes": {"plain"}},
    ),
    # the rest
    "still in the queue": (CALLS, RUNS, replace(without("plain"), waiting=["plain"]), {"stuck": {"plain"}}),
    "an early job begun twice": (
        CALLS,
        [*RUNS, Run("once", 2, 11, 7.0)],
        stored("once", Stored("FAILURE", 2, reason="WorkerLostError")),
        {"doubled_early": {"once"}},
    ),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_every_fault_is_found(name: str) -> None:
    calls, runs, rows, expected = DOCTORED[name]
    verdict = check(calls, runs, rows, RULES)
    assert found(verdict) == expected
    assert not verdict.good


def test_every_kind_of_fault_is_among_the_doctored() -> None:
    assert {kind for *_, expected in DOCTORED.values() for kind in expected} == set(FATAL)


def test_what_a_fault_may_do_is_counted_and_not_held_against_it() -> None:
    calls = {**CALLS, "unknown": Call("add", "plain", ["info"]), "never": Call("add", "plain", ["info"])}
    calls["plain"] = Call("add", "plain", ["info", "ok"])  # told in the end, so not recovered by us
    frozen = Run("plain", 1, 11, 1.0, 9.0)  # it ended after the second attempt had begun
    rows = stored("plain", Stored("SUCCESS", 2, 0, 101, "w2"), stored("unknown", Stored("SUCCESS", 1, worker="w3")))
    rows = stored("once", Stored("FAILURE", 1, reason="WorkerLostError"), rows)
    verdict = check(calls, [frozen, *RUNS[1:], LATE, Run("unknown", 1, 13, 8.0, 8.1)], rows, RULES)
    assert found(verdict) == {}
    assert (verdict.recovered, verdict.doubled_executions, verdict.refused) == (1, 1, 1)
    assert verdict.failures == {"WorkerLostError of once": 1}


def test_failures_on_purpose_are_told_apart() -> None:
    calls = {"a": Call("fail", "plain", ["ok"]), "b": Call("fail", "plain", ["ok"]), "c": Call("add", "plain", ["ok"])}
    rows = Rows(
        results={
            "a": Stored("FAILURE", 1, reason="ValueError"),
            "b": Stored("FAILURE", 1, reason="WorkerLostError"),
            "c": Stored("FAILURE", 1, reason="ValueError"),
        }
    )
    assert check(calls, [], rows, RULES).failures == {
        "on purpose": 1,
        "WorkerLostError of fail": 1,
        "ValueError of add": 1,
    }


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    calls, runs = Pen(tmp_path / "calls", durable=True), Pen(tmp_path / "runs")
    calls.write("invoke", "a", "add", "plain")
    calls.write("info", "a")
    calls.write("ok", "a")
    runs.write("start", "a", 1, 7)
    runs.write("start", "a", 2, 8)
    runs.write("end", "a", 2, 8)
    assert read_calls([tmp_path / "calls", tmp_path / "absent"]) == {"a": Call("add", "plain", ["info", "ok"])}
    first, second = read_runs([tmp_path / "runs"])
    assert (first.attempt, first.pid, first.ended) == (1, 7, None)
    assert second.ended is not None
    assert second.started <= second.ended


def test_a_redelivery_is_the_time_from_the_fault_to_the_next_start() -> None:
    runs = [
        Run("broken", 1, 8, 0.5, 0.6),
        Run("broken", 2, 7, 1.0),
        Run("broken", 3, 8, 3.5, 3.6),
        Run("ended", 1, 7, 1.0, 1.5),
        Run("frozen", 1, 9, 1.0, 30.0),
        Run("frozen", 2, 8, 8.0, 8.1),
        Run("another's", 1, 10, 1.0),
    ]
    struck = [Struck("kill_child", 2.0, frozenset({7})), Struck("freeze", 2.0, frozenset({9}))]
    # The server was away before the first fault, and after the broken job had begun again.
    assert redeliveries(struck, runs, [(0.5, 1.9), (4.0, 5.0)]) == {
        "freeze, server away": {"count": 1, "median": 6.0, "worst": 6.0},
        "kill_child": {"count": 1, "median": 1.5, "worst": 1.5},
    }


def test_a_seed_repeats_its_schedule_and_no_kind_is_left_out() -> None:
    assert schedule(7, 60) == schedule(7, 60) != schedule(8, 60)
    planned = schedule(7, 2000)
    assert {fault.kind for fault in planned} == set(KINDS)
    assert {fault.kind for fault in schedule(7, 60, ["freeze"])} == {"freeze"}
    assert all(0.3 <= later.at - fault.at <= 2.0 for fault, later in pairwise(planned))


def test_calls_are_of_every_kind_and_none_at_most_once_is_repeated() -> None:
    made = list(islice(orders(3), 3000))
    assert {order.task for order in made} == set(MIXTURE)
    assert {order.plan for order in made} == {"plain", "commit", "rollback"}
    assert len({order.id for order in made}) == len(made)
    assert any(order.repeat for order in made)
    assert not any(order.repeat for order in made if order.task in ONCE or order.plan != "plain")


# -- the proxy, in front of a server that answers READY to every line, and tells what it has got ---------------------

READY = b"Z\x00\x00\x00\x05I"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.got: list[bytes] = []
        self.heard = threading.Condition()
        self.gone = 0
        super().__init__(path, _Handler)

    def tell(self, line: bytes) -> None:
        with self.heard:
            self.got.append(line)
            self.heard.notify_all()

    def wait_for(self, line: bytes, timeout: float = 10.0) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: line in self.got, timeout), self.got

    def wait_for_end(self, timeout: float = 10.0) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: self.gone, timeout)


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        try:
            while line := self.request.recv(1000):
                self.server.tell(line)
                self.request.sendall(READY)
        except OSError:
            pass
        with self.server.heard:
            self.server.gone += 1
            self.server.heard.notify_all()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_Server]:
    with _Server(str(tmp_path / "socket")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: _Server) -> Iterator[Proxy]:
    with Proxy(Path(str(server.server_address))) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"begin")
        assert client.recv(100) == READY
        yield client


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_proxy_forwards_both_ways(client: socket.socket, server: _Server) -> None:
    client.sendall(b"COMMIT")
    assert client.recv(100) == READY
    assert server.got == [b"begin", b"COMMIT"]


@pytest.mark.parametrize(
    ("kind", "got"), [("before", []), ("half", [b"COM"]), ("after", [b"COMMIT"]), ("held", []), ("late", [b"COMMIT"])]
)
def test_a_cut_is_where_it_says(
    kind: str, got: list[bytes], client: socket.socket, proxy: Proxy, server: _Server
) -> None:
    assert kind in CUTS
    proxy.arm(kind, b"COMMIT", 0.3)
    client.sendall(b"select 1")  # not what it waits for
    assert client.recv(100) == READY
    begun = time.monotonic()
    client.sendall(b"COMMIT")
    assert ended(client)
    assert time.monotonic() - begun < 4.0  # the end of the answer is seen, not waited for until a time-out
    if kind in ("held", "late"):
        assert server.gone == 0
        assert server.got == [b"begin", b"select 1"]
    server.wait_for_end()
    assert server.got == [b"begin", b"select 1", *got]
    assert proxy.done == {(kind, "COMMIT"): 1}


def test_a_cut_happens_once(client: socket.socket, proxy: Proxy) -> None:
    proxy.arm("before", b"COMMIT", 0.0)
    client.sendall(b"COMMIT")
    assert ended(client)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as other:
        other.sendall(b"COMMIT")
        assert other.recv(100) == READY


def test_what_is_disarmed_does_not_happen(client: socket.socket, proxy: Proxy) -> None:
    proxy.arm("before", b"COMMIT", 0.0)
    proxy.heal()
    client.sendall(b"COMMIT")
    assert client.recv(100) == READY


def test_a_stall_delays_and_loses_nothing(client: socket.socket, proxy: Proxy, server: _Server) -> None:
    begun = time.monotonic()
    proxy.stall(0.3)
    client.sendall(b"COMMIT")
    assert client.recv(100) == READY
    assert time.monotonic() - begun >= 0.3
    assert server.got == [b"begin", b"COMMIT"]


def test_all_connections_can_be_cut(client: socket.socket, proxy: Proxy, server: _Server) -> None:
    assert proxy.connections == 1
    proxy.cut_all()
    assert ended(client)
    server.wait_for_end()


def test_a_client_is_turned_away_while_there_is_no_server(tmp_path: Path) -> None:
    with Proxy(tmp_path / "nobody") as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        assert ended(client)
