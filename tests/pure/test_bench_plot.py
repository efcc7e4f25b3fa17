"""The plots and pages of `pgqueue bench`."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pgqueue.bench.latency import LatencyReport
from pgqueue.bench.pages import Page, Plot, page, show
from pgqueue.bench.plot import Bar, bar, bars, histogram, shown
from pgqueue.bench.snapshot import Recovery, SnapshotReport


@pytest.mark.parametrize(
    ("value", "most", "drawn"),
    [
        (8, 8, "████"), (4, 8, "██"), (5, 8, "██▌"), (1, 8, "▌"), (0.001, 8, "▏"), (0, 8, ""),
        (None, 8, ""), (0, 0, ""),
    ],
)  # fmt: skip
def test_a_bar_has_its_share_of_the_width(value: float | None, most: float, drawn: str) -> None:
    assert bar(value, most, 4) == drawn


@pytest.mark.parametrize(("value", "drawn"), [(8, "####"), (4, "##"), (0.001, "#"), (0, "")])
def test_a_bar_without_blocks(value: float, drawn: str) -> None:
    assert bar(value, 8, 4, blocks=False) == drawn


def test_labels_and_values_stand_below_one_another() -> None:
    assert bars([Bar("worker", 1000, "note"), Bar("bare", 500), Bar("none", None)], 4) == [
        "worker  ████  1,000  note",
        "bare    ██      500",
        "none              -",
    ]
    assert bars([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (99.95, "100.0"), (12.34, "12.3"), (0.01234, "0.0123"), (0, "0"), (7, "7"), (None, "-")],
)
def test_numbers_have_three_digits_that_matter(value: float | None, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("values", "labels", "counts"),
    [
        ([1.1, 1.2, 2.2], ["1 to 1.25 ms", "1.25 to 1.5 ms", "1.5 to 2 ms", "2 to 2.5 ms"], [2, 0, 0, 1]),
        ([9.0, 11.0], ["8 to 10 ms", "10 to 12.5 ms"], [1, 1]),
        ([1.0], ["1 to 1.25 ms"], [1]),
        ([0.0, 0.0], ["0 ms"], [2]),
        ([0.3, 0.3], ["0.3 to 0.4 ms"], [2]),
        ([], [], []),
    ],
)
def test_a_histogram_counts_each_value_once(values: list[float], labels: list[str], counts: list[int]) -> None:
    found = histogram(values, "ms")
    assert [row.label for row in found] == labels
    assert [row.value for row in found] == counts


def test_a_zero_among_large_values_does_not_make_endless_buckets() -> None:
    found = histogram([0.0, 0.5, 300.0], "ms")
    assert sum(row.value or 0 for row in found) == 3
    assert found[0].label == "below 0.04 ms"
    assert len(found) < 50


def printed(shown_page: Page, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, write_through=True) as file:
        show(Console(file=file, width=120, highlight=False), shown_page)
        return raw.getvalue().decode(encoding)


@pytest.mark.parametrize(("encoding", "block"), [("utf-8", "█"), ("ascii", "#")])
def test_a_page_is_printed_where_there_are_no_blocks(encoding: str, block: str) -> None:
    text = printed(Page("Head [x]", [("ratio", "0.9")], [Plot("per second", [Bar("one", 3)])]), encoding)
    assert text.splitlines() == [
        "Head [x]", "", "per second", f"  one  {block * 40}  3", "", "ratio  0.9",
    ]  # fmt: skip


@pytest.mark.parametrize(("bounded", "word"), [(True, "yes"), (False, "NO")])
def test_the_page_of_a_polling_worker_says_whether_it_is_bounded(bounded: bool, word: str) -> None:
    report = LatencyReport(
        jobs=1, notifications=False, p50_ms=9.0, p95_ms=9.0, p99_ms=9.0, max_ms=9.0, call_p50_ms=1.0,
        poll_interval_ms=1000.0, allowance_ms=250.0, bounded=bounded, latencies_ms=(9.0,),
    )  # fmt: skip
    assert dict(page(report).facts)["bounded by poll_interval"].startswith(word)


@pytest.mark.parametrize(
    ("recovery", "words"), [(Recovery(1.5, 0.95), "1.5 s after"), (Recovery(None, 0.5), "not in time")]
)
def test_the_page_of_a_held_snapshot_has_its_sixths_beside_one_another(recovery: Recovery, words: str) -> None:
    found = page(SnapshotReport(12, 1, (6, 5, 4, 3, 2, 1), (1, 2, 3, 4, 5, 6), 6.0, recovery, {}))
    assert [row.value for row in found.plots[0].bars] == [6, 1, 5, 2, 4, 3, 3, 4, 2, 5, 1, 6]
    assert words in dict(found.facts)["normal again"]
