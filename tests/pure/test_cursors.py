"""Where the next claim begins."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pgqueue.statements import PassedOver
from pgqueue.types import Claim
from pgqueue.worker.cursors import SLACK, SLACK_JOBS, Cursors, rest

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def claim(seconds: float, queue: str = "default", priority: int = 5, crashes: int = 0) -> Claim:
    eta = NOON + timedelta(seconds=seconds)
    return Claim(
        "id", "task", queue, priority, "[]", "{}", 1, 0, crashes, eta, eta, None, False, False, None, None, None, None
    )


def starts(cursors: Cursors) -> list[str]:
    """What is sent, with the times as seconds after noon."""
    if cursors.after is None:
        return []
    sent = [text.strip('"') for text in cursors.after[1:-1].split(",")]
    return [text if text == "NULL" else f"{(datetime.fromisoformat(text) - NOON).total_seconds():g}" for text in sent]


def claimed(cursors: Cursors, claims: Sequence[Claim], wanted: int | None = None, at: float = 0.0) -> None:
    cursors.claimed(claims, wanted=len(claims) if wanted is None else wanted, began=at, ended=at)


def test_the_first_claim_begins_at_the_very_start() -> None:
    assert Cursors(["default"]).after is None


def test_a_cursor_for_each_queue_and_priority_in_the_order_in_which_claims_look() -> None:
    cursors = Cursors(["mail", "default"])
    claimed(cursors, [claim(10, "mail", 9), claim(20, "mail", 0), claim(30, "default", 8)])
    assert starts(cursors) == ["5", *["NULL"] * 8, "15", "NULL", "25", *["NULL"] * 8]


def test_a_claim_begins_five_seconds_before_the_last_claimed_job() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(1), claim(2), claim(10)])
    assert starts(cursors)[4] == "5"


def test_or_two_thousand_jobs_before_it_if_that_is_nearer() -> None:
    cursors = Cursors(["default"])
    for number in range(6):
        claimed(cursors, [claim(number)] * 500)
    assert SLACK_JOBS == 2000
    assert starts(cursors)[4] == "1"  # the jobs of the claims 2 to 5 come after it


def test_a_cursor_never_goes_back_by_itself() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(100)])
    claimed(cursors, [claim(97)])  # was committed late
    assert starts(cursors)[4] == "95"


def test_a_suspect_moves_no_cursor() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(100, crashes=1)])
    assert cursors.after is None


def test_where_nothing_was_left_the_cursors_follow_the_clock_of_the_database() -> None:
    cursors = Cursors(["default"])
    cursors.look_back([PassedOver(NOON, None, None, None)], 1000.0)
    claimed(cursors, [], wanted=1, at=1060.0)
    assert starts(cursors) == ["55"] * 10
    claimed(cursors, [claim(58)], wanted=1, at=1090.0)  # as many as were wanted: more may be there
    assert starts(cursors)[4] == "55"


def passed_over(seconds: float) -> list[PassedOver]:
    return [PassedOver(NOON, "default", 5, NOON + timedelta(seconds=seconds))]


def test_a_cursor_goes_back_to_what_was_passed_over_and_on_from_there() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(100)])
    cursors.look_back(passed_over(40), 0.0)
    assert cursors.went_back
    assert starts(cursors)[4] == "40"
    claimed(cursors, [claim(60)], at=1.0)
    assert not cursors.went_back
    assert starts(cursors)[4] == "55"


@pytest.mark.parametrize("seconds", [95, 99, 200])
def test_what_stands_at_the_cursor_or_after_it_was_not_passed_over(seconds: float) -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(100)])
    cursors.look_back(passed_over(seconds), 0.0)
    assert not cursors.went_back
    assert starts(cursors)[4] == "95"


def test_a_cursor_that_never_moved_has_passed_over_nothing() -> None:
    cursors = Cursors(["default"])
    cursors.look_back(passed_over(0), 0.0)
    assert not cursors.went_back


def test_after_a_slow_claim_from_far_back_the_next_one_waits() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(100)])
    cursors.look_back(passed_over(40), 0.0)
    cursors.claimed([claim(100)], wanted=1, began=0.0, ended=0.1)
    cursors.look_back(passed_over(40), 5.0)
    assert not cursors.went_back
    cursors.look_back(passed_over(40), 5.2)
    assert cursors.went_back


def test_a_rest_is_a_fiftyfold_but_never_long() -> None:
    assert [rest(0.0), rest(0.1), rest(60.0)] == [0.0, 5.0, 10.0]


def test_a_queue_that_is_named_twice_is_looked_at_twice_from_one_cursor() -> None:
    cursors = Cursors(["a", "a", "b"])
    claimed(cursors, [claim(10, "b", 9)])
    assert starts(cursors) == [*["NULL"] * 20, "5", *["NULL"] * 9]


def test_an_hour_that_the_clocks_leave_out_moves_no_cursor() -> None:
    cursors = Cursors(["default"])
    eta = datetime(2026, 3, 29, 1, 0, 2, tzinfo=UTC).astimezone(ZoneInfo("Europe/Berlin"))
    claimed(cursors, [claim(0)._replace(eta=eta)])
    assert cursors.after is not None
    assert "2026-03-29T00:59:57+00:00" in cursors.after
    assert not cursors._lanes["default", 5].go_back(eta)
    assert cursors._lanes["default", 5].go_back(eta.astimezone(UTC) - timedelta(seconds=6))


def test_forgotten_cursors_begin_at_the_very_start() -> None:
    cursors = Cursors(["default"])
    claimed(cursors, [claim(10)])
    cursors.forget()
    assert cursors.after is None


def test_the_slack_is_that_of_the_database_clock() -> None:
    assert timedelta(seconds=5) == SLACK
