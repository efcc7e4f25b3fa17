"""What the benchmarks make of what they have measured."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pgqueue.bench.cpu import Cpu
from pgqueue.bench.drain import per_1000
from pgqueue.bench.figures import Pace, percentile
from pgqueue.bench.mixed import Held
from pgqueue.bench.stream import steadily
from pgqueue.bench.tasks import begin


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == value
    assert percentile([7.0], percent) == 7.0


def test_the_pace_of_a_drain_is_straight_between_acknowledgements() -> None:
    pace = Pace(10.0, [(11.0, 400), (13.0, 400), (13.5, 400)])
    assert pace.per_second(10.0, 13.5) == pytest.approx(1200 / 3.5)
    assert pace.per_second(10.5, 12.0) == pytest.approx((200 + 200) / 1.5)
    assert pace.parts(3) == pytest.approx([400, 200, 800])
    assert pace.parts(6) == pytest.approx([400, 400, 200, 200, 800, 800])


def test_one_acknowledgement_of_everything_has_one_pace() -> None:
    assert Pace(0.0, [(2.0, 600)]).parts(6) == pytest.approx([300] * 6)


def test_the_time_behind_a_long_task_is_that_of_all_attempts_of_a_job() -> None:
    held = Held()
    assert held.longest == 0.0
    held.look([("a", 1, 0.1), ("b", 1, 0.25)])
    held.look([("a", 1, 0.2)])
    held.look([("a", 2, 0.1)])
    assert held.longest == pytest.approx(0.3)


def test_cpu_for_a_thousand_jobs_is_without_starting_and_stopping() -> None:
    spent = [Cpu(3.0, 2.0), Cpu(2.0, 1.5), Cpu(9.0, 9.0)]
    assert per_1000(spent, Cpu(1.0, 0.5), 2000) == Cpu(1.0, 0.75)
    assert per_1000([Cpu(3.0, None)], Cpu(1.0, None), 1000) == Cpu(2.0, None)


def test_a_steady_stream_leaves_nothing_out_and_doubles_nothing() -> None:
    due = steadily(begin.s(), 333.0)
    times = [0.0, 0.0211, 0.04, 0.5, 0.5001, 1.0]
    assert sum(len(due(last, now)) for last, now in pairwise(times)) == 333
