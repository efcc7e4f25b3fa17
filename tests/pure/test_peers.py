"""The comparison with other systems: what is computed from records, and the page that is made from raw figures."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import notes, report, workloads
from benchmarks.peers.systems import BARE, PEERS


def drained(rate: float) -> dict[str, Any]:
    """The figures of one drain."""
    return {"per_second": rate, "bulk_per_second": 12_345.6, "worker_cpu": 0.0214, "server_cpu": 0.03}


def figures() -> dict[str, Any]:
    """What a run of three systems has left: one complete, one without live figures, one that failed."""
    points = [{"at": at + 0.5, "p50": 2.0, "p99": 4.0 + at, "backlog": at} for at in range(6)]
    ours = {
        "name": "pgqueue", "title": "pgqueue", "configuration": "default", "stores": True,
        "versions": {"pgqueue-tasks": "0.1.0", "psycopg": "3.3.9"},
        "drain": {"rounds": [
            {"bare": drained(40_000), "one": drained(30_000), "two": drained(45_000)},
            {"bare": drained(20_000), "one": drained(18_000), "two": drained(25_000)},
        ]},
        "enqueue": {"single": 1_234.5, "eight": 4_321.0},
        "latency": {"p50": 2.04, "p95": 3.0, "p99": 5.26},
        "held": {"jobs": 100_000, "per_second": 20_000.0, "sixths": [20_000.0] * 5 + [19_000.0]},
        "live": {"asked": 500, "rate": 499.7, "held_from": 2.0, "held_to": 5.0, "jobs": 6, "started": 6,
                 "points": points},
    }  # fmt: skip
    other = {key: value for key, value in ours.items() if key != "live"} | {"name": "other", "title": "Other"}
    other["drain"] = {"rounds": [{"bare": drained(40_000), "one": drained(4_000), "two": drained(6_000)}]}
    failed = {"name": "broken", "title": "Broken", "configuration": "default", "stores": False,
              "versions": {"error": "RuntimeError: pip cannot | install it"}}  # fmt: skip
    machine = {"cpu": "A CPU", "cores": 2, "memory_gib": 23.6, "system": "Linux", "python": "3.11.7",
               "postgresql": "18.4", "settings": {"fsync": "on"}, "load": 0.1}  # fmt: skip
    return {"command": "python -m benchmarks.peers", "date": "2026-11-21", "rounds": 2, "minutes": 21.4,
            "machine": machine, "systems": [other, ours, failed]}  # fmt: skip


def test_the_page_says_everything_that_was_measured_and_where() -> None:
    page = report.page(json.loads(json.dumps(figures())))
    for line in (
        "A CPU, 2 cores, 24 GiB, Linux,",
        "| pgqueue | 0.1.0 | yes | 24,000 | 0.82 (0.75 to 0.90) | 35,000 |",
        "| Other | 0.1.0 | yes | 4,000 | 0.10 | 6,000 |",
        "| pgqueue | 0.021 | 0.030 |",
        "| pgqueue | 1,230 | 4,320 | 12,300 |",
        "| pgqueue | 2.0 | 3.0 | 5.3 |",
        "| pgqueue | 100,000 | 20,000 | 20,000 | 20,000 | 20,000 | 20,000 | 19,000 | 0.95 |",
        "| pgqueue | 500 | 500 | 3 s | 2.0 / 4.5 | 2.0 / 8.0 | 4 |",
        "| Broken | ? | default |",
        "| Broken | versions | RuntimeError: pip cannot / install it |",
    ):
        assert line in page.splitlines(), f"{line}\n\n{page}"


def test_the_fastest_comes_first() -> None:
    page = report.page(figures())
    assert page.index("| pgqueue | 0.1.0") < page.index("| Other | 0.1.0")


def test_what_nobody_measured_has_no_section() -> None:
    found = figures()
    for system in found["systems"]:
        system.pop("live", None)
        system.pop("held", None)
    assert [line for line in report.page(found).splitlines() if line.startswith("## ")] == [
        "## Drain", "## Cost", "## Enqueue", "## Latency of an idle worker", "## Versions and configurations",
        "## What could not be measured",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (7.0, "7"), (123.4, "123"), (1234.5, "1,230"), (98_765.0, "98,800")],
)
def test_a_count_has_three_digits(value: float | None, shown: str) -> None:
    assert report.count(value) == shown


def test_numbers_stand_at_the_right() -> None:
    assert report.table(("system", "jobs"), [("a", "1,000"), ("b", "-")]).splitlines()[1] == "| --- | ---: |"


def test_sixths_are_the_rates_of_six_equal_parts() -> None:
    fast, slow = [n * 0.001 for n in range(301)], [0.3 + n * 0.002 for n in range(1, 301)]
    assert workloads.sixths(fast + slow) == pytest.approx([1000, 1000, 1000, 500, 500, 500])


def test_percentiles_are_values_that_occurred() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [workloads.percentile(ordered, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]


def test_points_count_what_was_called_and_has_not_started() -> None:
    jobs = [(0.1, 0.2), (0.5, 1.5), (1.1, None), (1.2, 1.4)]
    assert workloads.points(jobs, width=1.0) == [
        {"at": 0.5, "p50": pytest.approx(1000.0), "p99": pytest.approx(1000.0), "backlog": 1},
        {"at": 1.5, "p50": pytest.approx(200.0), "p99": pytest.approx(200.0), "backlog": 1},
    ]
    assert workloads.points([], width=1.0) == []


def test_notes_of_all_threads_are_read_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_FOLDER", str(tmp_path))
    reader = notes.Reader(tmp_path, "starts")
    assert reader.count() == 0
    together = threading.Barrier(4)

    def write(first: int) -> None:
        together.wait()
        for number in range(first, first + 100):
            notes.started(number)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.count() == 400
    notes.started(400)
    assert reader.count() == 401
    assert sorted(number for number, _ in reader.records()) == list(range(401))


def test_names_choose_systems_and_a_wrong_one_is_told() -> None:
    assert command.chosen("a,b", ["a", "b", "c"], "--only") == ["a", "b"]
    assert command.chosen(None, ["a", "b"], "--only") == ["a", "b"]
    with pytest.raises(SystemExit, match="--only does not know x; there are a, b"):
        command.chosen("a,x", ["a", "b"], "--only")


def test_every_system_is_pinned_has_an_adapter_and_a_name_of_its_own() -> None:
    folder = Path(command.__file__).parent / "adapters"
    assert len({peer.name for peer in (BARE, *PEERS)}) == len(PEERS) + 1
    for peer in (BARE, *PEERS):
        assert (folder / f"{peer.module}.py").exists(), peer.name
        assert all("==" in requirement for requirement in peer.requirements), peer.name
        assert 0 < peer.share <= 1, peer.name
        assert 0 <= peer.held <= 1, peer.name


def test_figures_can_be_printed_again_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(place: Path, requirements: tuple[str, ...]) -> Path:
        raise RuntimeError("no network")

    monkeypatch.setattr(command, "installed", no_network)
    source = tmp_path / "old.json"
    source.write_text(json.dumps(figures()))
    monkeypatch.setattr("sys.argv", ["peers", "--from", str(source), "--out", str(tmp_path / "docs")])
    command.main()
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == report.page(figures())
    assert json.loads((tmp_path / "docs" / "benchmarks.json").read_text()) == figures()
