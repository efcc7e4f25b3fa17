"""Enqueueing: every option arrives in its column, every wrong call is refused before anything is sent."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from pgqueue import (
    AsyncResult,
    InvalidArguments,
    InvalidOption,
    NotSerializable,
    PayloadTooLarge,
    PgQueue,
    PgQueueError,
    SchemaMissing,
    SettingsError,
    Signature,
)
from pgqueue.database.running import tell
from pgqueue.ids import new_id
from pgqueue.sql import schema
from pgqueue.statements import Ended, Statements
from pgqueue.tracer import Context
from pgqueue.tracer.context import _current
from pgqueue.types import Claim, Failed, Outcome, Succeeded
from pgqueue.types import ErrorReport as Report

Connection: TypeAlias = psycopg.Connection[Any]
STATEMENTS = Statements()


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueue]:
    app = PgQueue("shop", dsn=dsn, max_payload_bytes=1000, connect_timeout=3)
    app.task(name="add")(add)
    app.task(name="anything")(anything)
    yield app
    app.close()


def add(x: int, y: int = 0) -> int:
    return x + y


def anything(*args: Any, **kwargs: Any) -> None: ...


def jobs(conn: Connection) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("select *, eta - enqueued_at as wait from pgqueue.job order by id").fetchall()


def only(conn: Connection) -> dict[str, Any]:
    (found,) = jobs(conn)
    return found


def end(conn: Connection, outcome: Outcome) -> Claim:
    """Claim the one job that waits, and end it."""
    worker = new_id()
    statement = STATEMENTS.claim(worker, ["default"], 1, [], relaxed=False)
    (row,) = psycopg.RawCursor(conn).execute(statement.sql, statement.params).fetchall()
    claim = statement.row(row)
    finish = STATEMENTS.finish(worker, [Ended(claim, outcome)])
    assert psycopg.RawCursor(conn).execute(finish.sql, finish.params).fetchall() == []
    return claim


# -- what a job has ------------------------------------------------------------------------------------------------


def test_a_plain_call_has_the_defaults(app: PgQueue, conn: Connection) -> None:
    handle = app.task_named("add").delay(2, y=3)
    job = only(conn)
    assert (str(job["id"]), job["task"], job["args"], job["kwargs"]) == (handle.id, "add", [2], {"y": 3})
    assert (job["queue"], job["priority"], job["wait"]) == ("default", 5, timedelta(0))
    empty = (
        "expires",
        "claimed_at",
        "worker",
        "root_id",
        "parent_id",
        "ignore_result",
        "unique_key",
        "headers",
        "error",
    )
    assert [job[name] for name in empty] == [None] * len(empty)
    assert (job["attempt"], job["retries"], job["crashes"], job["revoked"]) == (0, 0, 0, False)
    assert UUID(handle.id).version == 7
    assert handle.created


def test_ids_made_one_after_the_other_sort_in_that_order(app: PgQueue, conn: Connection) -> None:
    handles = [app.task_named("add").delay(n) for n in range(20)]
    assert [job["args"] for job in jobs(conn)] == [[n] for n in range(20)]
    assert [str(job["id"]) for job in jobs(conn)] == [handle.id for handle in handles]


def test_every_option_arrives_in_its_column(app: PgQueue, conn: Connection) -> None:
    id_ = str(uuid4())
    handle = app.task_named("add").apply_async(
        (2,),
        {"y": 3},
        countdown=90.5,
        expires=timedelta(hours=1),
        queue="mail ü",
        priority=9,
        task_id=id_,
        unique_key="order-7",
        headers={"trace": "abc", "n": [1, None]},
        ignore_result=True,
    )
    job = only(conn)
    assert (str(job["id"]), handle.id, handle.created, handle.ignored) == (id_, id_, True, True)
    assert job["wait"] == timedelta(seconds=90.5)
    assert job["expires"] - job["enqueued_at"] == timedelta(hours=1)
    assert (job["queue"], job["priority"], job["unique_key"]) == ("mail ü", 9, "order-7")
    assert (job["headers"], job["ignore_result"]) == ({"trace": "abc", "n": [1, None]}, True)


def test_times_are_stored_as_the_instant_that_they_are(app: PgQueue, conn: Connection) -> None:
    eta = datetime(2090, 1, 31, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=-23, minutes=-59, microseconds=-7)))
    expires = datetime(2091, 1, 31, 12, tzinfo=UTC)
    app.task_named("add").apply_async((1,), eta=eta, expires=expires)
    job = only(conn)
    assert (job["eta"], job["expires"]) == (eta, expires)


def test_an_eta_in_the_past_is_now(app: PgQueue, conn: Connection) -> None:
    for eta in (datetime(2000, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=timezone(timedelta(hours=15)))):
        app.task_named("add").apply_async((1,), eta=eta)
    assert [job["wait"] for job in jobs(conn)] == [timedelta(0)] * 2


@pytest.mark.parametrize("seconds", [0, 60, 2.5, timedelta(minutes=1, microseconds=1)])
def test_countdown_and_expires_are_seconds_from_the_clock_of_the_database(
    seconds: Any, app: PgQueue, conn: Connection
) -> None:
    app.task_named("add").apply_async((1,), countdown=seconds, expires=seconds)
    expected = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
    job = only(conn)
    assert (job["wait"], job["expires"] - job["enqueued_at"]) == (expected, expected)


def test_the_options_of_the_task_count_where_the_call_says_nothing(app: PgQueue, conn: Connection) -> None:
    app.task(name="mail", queue="mail", priority=7, expires=60, ignore_result=True)(anything)
    quiet = app.task_named("mail").delay()
    app.task_named("mail").apply_async(queue="other", priority=0, expires=timedelta(0), ignore_result=False)
    first, second = jobs(conn)
    assert (first["queue"], first["priority"], first["expires"] - first["enqueued_at"]) == (
        "mail",
        7,
        timedelta(seconds=60),
    )
    assert quiet.get(timeout=5) is None
    assert (second["queue"], second["priority"], second["ignore_result"]) == ("other", 0, False)
    assert second["expires"] == second["enqueued_at"]


class Rank(int, Enum):
    HIGH = 8


class Level(IntEnum):
    LOW = 1


class Line(StrEnum):
    MAIL = "mail"


class Kind(str, Enum):  # noqa: UP042 - not the same: its str() is no value
    SMS = "sms"


@pytest.mark.parametrize(
    ("priority", "queue", "stored"), [(Rank.HIGH, Kind.SMS, (8, "sms")), (Level.LOW, Line.MAIL, (1, "mail"))]
)
def test_enums_are_their_values(
    priority: Any, queue: Any, stored: tuple[int, str], app: PgQueue, conn: Connection
) -> None:
    app.task_named("add").apply_async((1,), priority=priority, queue=queue)
    assert (only(conn)["priority"], only(conn)["queue"]) == stored


def test_values_beyond_json_travel_with_tags(app: PgQueue, conn: Connection) -> None:
    app.task_named("anything").delay(datetime(2026, 1, 31, tzinfo=UTC), b=b"\0")
    assert only(conn)["args"] == [{"$datetime": "2026-01-31T00:00:00+00:00"}]
    assert only(conn)["kwargs"] == {"b": {"$bytes": "AA=="}}


async def test_the_async_twins_enqueue_the_same(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    handles = [
        await add.adelay(1, y=2),
        await add.aapply_async((1,), {"y": 2}, priority=3, headers={"a": 1}),
        await app.asend_task("add", (1,), {"y": 2}, queue="q"),
        await app.asend_task("unregistered", (1,), {"y": 2}),
        await add.s(1, y=2).adelay(),
        *await app.aenqueue_many([add.s(1, y=2)]),
    ]
    await app.aclose()
    assert [str(job["id"]) for job in jobs(conn)] == [handle.id for handle in handles]
    assert {(str(job["args"]), str(job["kwargs"])) for job in jobs(conn)} == {("[1]", "{'y': 2}")}
    assert [job["priority"] for job in jobs(conn)] == [5, 3, 5, 5, 5, 5]
    assert all(isinstance(handle, AsyncResult) and handle.created for handle in handles)


async def test_many_coroutines_enqueue_at_once_on_a_fresh_loop(app: PgQueue, conn: Connection) -> None:
    handles = await asyncio.gather(*[app.task_named("add").adelay(n) for n in range(100)])
    await app.aclose()
    assert {str(job["id"]) for job in jobs(conn)} == {handle.id for handle in handles}
    assert len(jobs(conn)) == 100


def test_many_threads_enqueue_at_once(app: PgQueue, conn: Connection) -> None:
    gate = threading.Barrier(16)

    def enqueue() -> None:
        gate.wait()
        for n in range(10):
            app.task_named("add").delay(n)

    threads = [threading.Thread(target=enqueue) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs(conn)) == 160


def test_each_event_loop_has_connections_of_its_own(app: PgQueue, conn: Connection) -> None:
    async def main() -> None:
        await app.task_named("add").adelay(1)
        await app.aclose()

    for _ in range(3):
        asyncio.run(main())
    assert len(jobs(conn)) == 3


# -- typed errors --------------------------------------------------------------------------------------------------


class BrokenZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str:
        return "?"

    def dst(self, moment: datetime | None) -> None: ...


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


NAIVE = datetime(2030, 1, 1)
SOON = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "message", "args", "options"),
    [
        (InvalidArguments, "add(): missing argument 'x'", (), {}),
        (InvalidArguments, "add(): takes at most 2", (1, 2, 3), {}),
        (InvalidArguments, "x: Input should be a valid integer", ("one",), {}),
        (InvalidArguments, "needs a list of arguments", "12", {}),
        (InvalidOption, "unknown option 'count_down'; did you mean 'countdown'?", (1,), {"count_down": 1}),
        (InvalidOption, "option 'routing_key' has no meaning", (1,), {"routing_key": "x"}),
        (InvalidOption, "countdown and eta are both given", (1,), {"countdown": 1, "eta": SOON}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": -1}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": "60"}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": True}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": float("nan")}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": float("inf")}),
        (InvalidOption, "countdown must be seconds", (1,), {"countdown": 10**400}),
        (InvalidOption, "expires must be seconds", (1,), {"expires": timedelta(days=-1)}),
        (InvalidOption, "not <int>", (1,), {"countdown": 10**5000}),
        (InvalidOption, "not <Unprintable>", (1,), {"priority": Unprintable()}),
        (InvalidOption, "eta must be a datetime", (1,), {"eta": 60}),
        (InvalidOption, "has no time zone", (1,), {"eta": NAIVE}),
        (InvalidOption, "has no time zone", (1,), {"expires": NAIVE}),
        (InvalidOption, "has no time zone", (1,), {"eta": SOON.replace(tzinfo=BrokenZone())}),
        (InvalidOption, "more than a hundred years away", (1,), {"eta": datetime.max.replace(tzinfo=UTC)}),
        (
            InvalidOption,
            "more than a hundred years away",
            (1,),
            {"expires": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        ),
        (InvalidOption, "queue must be a text of 1 to 100", (1,), {"queue": "q" * 101}),
        (InvalidOption, "queue must be a text of 1 to 100", (1,), {"queue": ""}),
        (InvalidOption, "queue must be a text of 1 to 100", (1,), {"queue": b"mail"}),
        (InvalidOption, "has a character that PostgreSQL cannot store", (1,), {"queue": "a\0"}),
        (InvalidOption, "has a character that PostgreSQL cannot store", (1,), {"queue": "\ud800"}),
        (InvalidOption, "priority must be an integer from 0 to 9", (1,), {"priority": 10}),
        (InvalidOption, "priority must be an integer from 0 to 9", (1,), {"priority": 5.0}),
        (InvalidOption, "priority must be an integer from 0 to 9", (1,), {"priority": True}),
        (InvalidOption, "task_id='order-1' is not a UUID", (1,), {"task_id": "order-1"}),
        (InvalidOption, "unique_key must be a text of 1 to 500", (1,), {"unique_key": "k" * 501}),
        (InvalidOption, "has a character that PostgreSQL cannot store", (1,), {"unique_key": "\0"}),
        (InvalidOption, "headers must be a mapping", (1,), {"headers": [1]}),
        (InvalidOption, "ignore_result must be True or False", (1,), {"ignore_result": 1}),
        (NotSerializable, "headers.trace: values of type object", (1,), {"headers": {"trace": object()}}),
        (PayloadTooLarge, "headers: 2,010 bytes of JSON, more than the 1,000", (1,), {"headers": {"t": "h" * 2002}}),
    ],
)
def test_a_wrong_call_is_refused_and_nothing_is_sent(
    kind: type[PgQueueError], message: str, args: Any, options: dict[str, Any], app: PgQueue, conn: Connection
) -> None:
    app.configure(dsn="postgresql://nobody@127.0.0.1:1/nowhere")  # whoever sends anything is noticed
    calls: tuple[Callable[[], object], ...] = (
        lambda: app.task_named("add").apply_async(args, **options),
        lambda: app.send_task("add", args, **options),
        lambda: asyncio.run(app.task_named("add").aapply_async(args, **options)),
    )
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)
    if not isinstance(args, str):
        with pytest.raises(kind):
            app.enqueue_many([app.task_named("add").s(1), app.task_named("add").s(*args).set(**options)])


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"lines": [{"price": 1j}]}, "args[0].lines[0].price"),
        ("a\0b", "args[0]"),
        ({"a": ["\ud800"]}, "args[0].a[0]"),
        ([0, float("nan")], "args[0][1]"),
        ([float("-inf")], "args[0][0]"),
        ({"at": object()}, "args[0].at"),
        pytest.param(10**5000, "args[0]", id="5000 digits"),
    ],
)
def test_a_value_that_cannot_be_stored_is_named_by_its_path(
    value: object, path: str, app: PgQueue, conn: Connection
) -> None:
    with pytest.raises(NotSerializable) as caught:
        app.task_named("anything").delay(value)
    assert caught.value.path == path
    with pytest.raises(NotSerializable) as caught:
        app.task_named("anything").delay(given=value)
    assert caught.value.path == path.replace("args[0]", "kwargs.given")
    with pytest.raises(NotSerializable) as caught:
        app.send_task("unregistered", (value,))
    assert caught.value.path == path
    assert jobs(conn) == []


def test_the_payload_limit_is_exact(app: PgQueue, conn: Connection) -> None:
    task = app.task_named("anything")
    task.delay("x" * 996)
    for args, kwargs in ((["x" * 997], {}), ([], {"k": "x" * 997}), (["é" * 499], {})):
        with pytest.raises(PayloadTooLarge, match=r"more than the 1,000 that max_payload_bytes allows"):
            task.apply_async(args, kwargs)
    assert len(jobs(conn)) == 1


@pytest.mark.parametrize("name", ["", "n" * 256, "a\0", 5])
def test_send_task_refuses_a_name_that_cannot_be_stored(name: Any, app: PgQueue, conn: Connection) -> None:
    with pytest.raises(InvalidOption, match="name"):
        app.send_task(name)
    assert jobs(conn) == []


def test_the_first_wrong_call_of_many_stops_them_all(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    with pytest.raises(InvalidArguments):
        app.enqueue_many([add.s(1), add.s("one"), add.s(3)])
    with pytest.raises(InvalidOption):
        app.enqueue_many([add.s(1), add.s(2).set(priorty=3)])
    assert jobs(conn) == []


def test_missing_tables_are_a_typed_error_with_the_cure(app: PgQueue, fresh_dsn: str) -> None:
    for options in ({"dsn": fresh_dsn}, {"schema": "nowhere"}):
        app.configure(**options)
        with pytest.raises(SchemaMissing, match="pgqueue migrate"):
            app.task_named("add").delay(1)
    app.close()


# -- unique_key and task_id -----------------------------------------------------------------------------------------


def test_a_unique_key_has_one_unfinished_job(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    first = add.apply_async((1,), unique_key="k")
    second = add.apply_async((2,), unique_key="k")
    other = add.apply_async((3,), unique_key="l")
    assert (first.created, second.created, other.created) == (True, False, True)
    assert first.id == second.id != other.id
    assert [job["args"] for job in jobs(conn)] == [[1], [3]]


def test_a_unique_key_is_free_again_when_its_job_has_ended(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    for outcome in (Succeeded("1"), Failed(Report("E", "m", "no"))):
        first = add.apply_async((1,), unique_key="k")
        end(conn, outcome)
        second = add.apply_async((1,), unique_key="k")
        assert second.created
        assert second.id != first.id
        second.revoke()


def test_a_unique_key_counts_among_many_as_well(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    there = add.apply_async((0,), unique_key="a")
    calls = [add.s(n).set(unique_key=key) for n, key in enumerate("abab")]
    handles = app.enqueue_many(calls)
    assert [handle.created for handle in handles] == [False, True, False, False]
    assert handles[0].id == handles[2].id == there.id
    assert handles[1].id == handles[3].id
    assert len(jobs(conn)) == 2


def test_a_unique_key_holds_among_threads(app: PgQueue, conn: Connection) -> None:
    gate, created = threading.Barrier(8), []

    def enqueue() -> None:
        gate.wait()
        created.append(app.task_named("add").apply_async((1,), unique_key="k"))

    threads = [threading.Thread(target=enqueue) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(handle.created for handle in created) == 1
    assert {handle.id for handle in created} == {str(only(conn)["id"])}


def test_an_id_that_waits_is_not_enqueued_again(app: PgQueue, conn: Connection) -> None:
    id_ = str(uuid4())
    first = app.task_named("add").apply_async((1,), task_id=id_)
    second = app.task_named("add").apply_async((2,), task_id=UUID(id_))
    third = app.task_named("add").apply_async((3,), task_id=f"{{{id_.upper()}}}")
    assert (first.created, second.created, third.created) == (True, False, False)
    assert first == second == third == id_
    assert only(conn)["args"] == [1]


def test_an_id_that_has_succeeded_is_not_run_again(app: PgQueue, conn: Connection) -> None:
    id_ = str(uuid4())
    app.task_named("add").apply_async((1,), task_id=id_)
    end(conn, Succeeded("1"))
    again = app.task_named("add").apply_async((1,), task_id=id_)
    assert not again.created
    assert again.get(timeout=5) == 1
    assert jobs(conn) == []


def test_an_id_that_has_failed_may_run_again(app: PgQueue, conn: Connection) -> None:
    id_ = str(uuid4())
    app.task_named("add").apply_async((1,), task_id=id_)
    end(conn, Failed(Report("E", "m", "no")))
    again = app.task_named("add").apply_async((2,), task_id=id_)
    assert again.created
    assert (only(conn)["args"], only(conn)["attempt"]) == ([2], 1)
    assert again.state == "PENDING"


# -- many at once ---------------------------------------------------------------------------------------------------


def test_thousands_of_jobs_are_one_transaction(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    handles = app.enqueue_many(add.s(n).set(priority=n % 10) for n in range(5000))
    statement = "select count(*), count(distinct xmin::text), count(distinct cmin::text)"
    assert conn.execute(f"{statement} from pgqueue.job").fetchall() == [(5000, 1, 3)]
    found = {str(job["id"]): (job["args"], job["priority"]) for job in jobs(conn)}
    assert [found[handle.id] for handle in handles] == [([n], n % 10) for n in range(5000)]
    assert all(handle.created for handle in handles)


@pytest.mark.parametrize("wrong", [1999, 2000, 3999, 4000, 4999])
def test_one_wrong_call_among_thousands_stops_them_all(app: PgQueue, conn: Connection, wrong: int) -> None:
    """Those before it may have been sent by then."""
    add = app.task_named("add")
    with pytest.raises(InvalidArguments, match="x"):
        app.enqueue_many(add.s("no" if n == wrong else n) for n in range(5000))
    assert jobs(conn) == []
    add.delay(1)  # the connection is of use still
    assert only(conn)["args"] == [1]


@pytest.mark.parametrize("count", [100, 4500])
@pytest.mark.parametrize("kind", [LookupError, psycopg.OperationalError])
def test_an_error_of_the_iterable_stops_them_all(
    app: PgQueue, conn: Connection, kind: type[Exception], count: int
) -> None:
    """Also one that says that a connection was lost: it may be one of the caller's, who reads his rows from it."""
    add = app.task_named("add")

    def calls() -> Iterator[Signature[int]]:
        yield from (add.s(n) for n in range(count))
        raise kind("no more")

    with pytest.raises(kind, match="no more"):
        app.enqueue_many(calls())
    assert jobs(conn) == []


def test_a_large_call_with_unique_keys_knows_which_were_there(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    first = add.apply_async((0,), unique_key="key 3000")
    handles = app.enqueue_many(add.s(n).set(unique_key=f"key {n}") for n in range(5000))
    assert [n for n, handle in enumerate(handles) if not handle.created] == [3000]
    assert handles[3000].id == first.id
    assert len(jobs(conn)) == 5000


END = """
    select pg_terminate_backend(pid, 5000) from pg_stat_activity
     where datname = current_database() and application_name like 'pgqueue enqueue shop@%'"""


@pytest.mark.parametrize("at", [2500, 4999])
def test_a_connection_lost_in_a_large_call_costs_no_job_and_makes_none_twice(
    app: PgQueue, conn: Connection, at: int
) -> None:
    add = app.task_named("add")
    add.delay(-1)

    def calls() -> Iterator[Signature[int]]:
        for n in range(5000):
            if n == at:
                conn.execute(END)
            yield add.s(n)

    handles = app.enqueue_many(calls())
    assert len({handle.id for handle in handles}) == 5000
    found = {str(job["id"]): job["args"] for job in jobs(conn)}
    assert [found[handle.id] for handle in handles] == [[n] for n in range(5000)]
    assert len(found) == 5001


def test_no_call_at_all_needs_no_database() -> None:
    app = PgQueue("shop", dsn="postgresql://nobody@127.0.0.1:1/nowhere")
    assert app.enqueue_many([]) == []
    assert asyncio.run(app.aenqueue_many(iter(()))) == []


def test_tasks_and_options_may_be_mixed(app: PgQueue, conn: Connection) -> None:
    app.enqueue_many(
        [
            app.task_named("add").s(1).set(queue="a", countdown=10).set(priority=2),
            app.task_named("anything").s("x", k=None).set(headers={"h": 1}),
        ]
    )
    first, second = jobs(conn)
    assert (first["task"], first["queue"], first["priority"]) == ("add", "a", 2)
    assert first["wait"] == timedelta(seconds=10)
    assert (second["task"], second["args"], second["kwargs"], second["headers"]) == (
        "anything",
        ["x"],
        {"k": None},
        {"h": 1},
    )


# -- the family of a job --------------------------------------------------------------------------------------------


def claimed(root_id: str | None = None) -> Claim:
    now = datetime.now(UTC)
    return Claim(
        new_id(), "add", "default", 5, "[]", "{}", 1, 0, 0, now, now, None, False, False, None, root_id, None, None
    )


@pytest.mark.parametrize("root", [None, new_id()])
def test_a_job_enqueued_inside_a_task_knows_parent_and_root(root: str | None, app: PgQueue, conn: Connection) -> None:
    claim = claimed(root)
    token = _current.set(Context("add", claim))
    try:
        app.task_named("add").delay(1)
        app.send_task("unregistered")
        app.enqueue_many([app.task_named("add").s(2)])
    finally:
        _current.reset(token)
    assert {(str(job["parent_id"]), str(job["root_id"])) for job in jobs(conn)} == {(claim.id, root or claim.id)}


def test_a_task_that_is_called_directly_is_nobodys_parent(app: PgQueue, conn: Connection) -> None:
    app.task(name="outer")(lambda: app.task_named("add").delay(1))
    app.task_named("outer")()
    assert (only(conn)["parent_id"], only(conn)["root_id"]) == (None, None)


# -- transactions of the app ----------------------------------------------------------------------------------------


def test_the_apps_own_transaction_commits_or_rolls_back_as_a_whole(app: PgQueue, conn: Connection) -> None:
    conn.execute("create table if not exists business (id int); truncate business")
    add = app.task_named("add")
    with app.transaction() as connection:
        connection.execute("insert into business values (1)")
        kept = add.apply_async((1,), connection=connection)
        assert jobs(conn) == []
    with pytest.raises(ZeroDivisionError), app.transaction() as connection:
        connection.execute("insert into business values (2)")
        add.apply_async((2,), connection=connection)
        raise ZeroDivisionError
    assert str(only(conn)["id"]) == kept.id
    assert conn.execute("select id from business").fetchall() == [(1,)]


async def test_the_apps_own_async_transaction_does_too(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    async with app.atransaction() as connection:
        await connection.execute("select 1")
        kept = await add.aapply_async((1,), connection=connection)
        assert jobs(conn) == []
    with pytest.raises(ZeroDivisionError):
        async with app.atransaction() as connection:
            await add.aapply_async((2,), connection=connection)
            raise ZeroDivisionError
    await app.aclose()
    assert str(only(conn)["id"]) == kept.id


def test_a_transaction_survives_a_refused_call(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    with app.transaction() as connection:
        with pytest.raises(NotSerializable):
            app.task_named("anything").apply_async((object(),), connection=connection)
        add.apply_async((1,), connection=connection)
    assert only(conn)["args"] == [1]


# -- configure ------------------------------------------------------------------------------------------------------


def test_configure_points_the_app_elsewhere(app: PgQueue, conn: Connection, dsn: str, fresh_dsn: str) -> None:
    app.task_named("add").delay(1)
    with psycopg.connect(fresh_dsn, autocommit=True) as elsewhere:
        elsewhere.execute(schema("jobs_of_shop"))
        app.configure(dsn=fresh_dsn, schema="jobs_of_shop")
        handle = app.task_named("add").delay(2)
        assert elsewhere.execute("select id::text, args from jobs_of_shop.job").fetchall() == [(handle.id, [2])]
        assert handle.state == "PENDING"
        app.configure(dsn=dsn, schema="pgqueue")
        assert handle.state == "UNKNOWN"
    assert only(conn)["args"] == [1]


def test_configure_keeps_the_other_settings(app: PgQueue) -> None:
    app.configure(schema="other")
    assert (app.settings.schema_name, app.settings.max_payload_bytes) == ("other", 1000)
    with pytest.raises(SettingsError, match="cannot be used"):
        app.configure(schema="Robert'); drop table")


def test_a_schema_that_knows_no_links_is_told_of_and_nothing_is_sent(app: PgQueue, dsn: str) -> None:
    add = app.task(name="by.name")(lambda x, y: x + y)
    with psycopg.connect(dsn) as old:  # in a transaction that is rolled back, as before migration 0003:
        for function in ("enqueue_followers", "enqueue_one", "enqueue_alike"):
            old.execute(f"drop function pgqueue.{function}")
        # what it does not know, it leaves out
        old.execute(
            """create or replace function pgqueue.enqueue_many(p_jobs json, p_durable boolean default false)
               returns table (id uuid, created boolean) language sql as $$
                   insert into pgqueue.job (id, task, eta, enqueued_at)
                   select g.id, g.task, now(), now() from json_to_recordset(p_jobs) as g (id uuid, task text)
                   returning job.id, true $$"""
        )
        for options in ({}, {"link": add.s(1)}, {"link_error": add.s(1)}, {"shadow": "sum"}):
            with pytest.raises(SchemaMissing, match="pgqueue migrate"), old.transaction():
                add.apply_async((2, 3), connection=old, **options)
        assert old.execute("select count(*) from pgqueue.job").fetchone() == (0,)
        assert add.apply_async((2, 3), connection=old, unique_key="k").created
        old.rollback()


# -- the way there -------------------------------------------------------------------------------------------------


def messages(app: PgQueue, folder: Path, call: Callable[[], object]) -> list[str]:
    """Return the kinds of messages that the one pooled connection of an app sends meanwhile, as libpq names them."""
    with app.database.connection() as connection:
        pgconn = connection.pgconn
    assert app.database._sync_pool().get_stats()["pool_size"] == 1
    with (folder / "trace").open("w+") as file:
        pgconn.trace(file.fileno())
        try:
            call()
        finally:
            pgconn.untrace()
        file.seek(0)
        lines = [line.split("\t") for line in file]  # one a message, and what a statement has of its own
        return [line[3].strip() for line in lines if line[1:2] == ["F"]]


def test_a_call_is_one_round_trip_and_one_statement_that_commits_itself(dsn: str, tmp_path: Path) -> None:
    app = PgQueue("shop", dsn=dsn, pool_size=1)
    task = app.task(name="add")(add)
    once = ["Parse", "Bind", "Describe", "Execute", "Sync"]
    calls: list[Callable[[], object]] = [
        lambda: task.delay(1, y=2),
        lambda: task.apply_async((1,), countdown=1),
        lambda: task.apply_async((1,), unique_key="k"),
        lambda: app.enqueue_many(task.s(n) for n in range(1000)),
    ]
    try:
        for call in calls:
            assert messages(app, tmp_path, call) == once
    finally:
        app.close()


def test_what_a_session_sends_often_is_prepared(dsn: str, tmp_path: Path, conn: Connection) -> None:
    app = PgQueue("shop", dsn=dsn, pool_size=1)
    task = app.task(name="add")(add)
    try:
        for n in range(7):
            task.delay(n)
        assert messages(app, tmp_path, lambda: task.delay(7)) == ["Bind", "Describe", "Execute", "Sync"]
        with app.database.connection() as connection:
            connection.execute("discard all")
        task.delay(8)
        assert [job["args"] for job in jobs(conn)] == [[n] for n in range(9)]
    finally:
        app.close()


def test_what_is_prepared_does_what_the_function_does(dsn: str, conn: Connection, connect: Callable[..., Any]) -> None:
    """The same row, the call of an idle worker, the durable commit: of the first call and of the seventh.

    After a call of which nobody was told, the next do not ask for 20 ms whether anybody waits; then they do.
    """
    app = PgQueue("shop", dsn=dsn, pool_size=1)
    task = app.task(name="add", queue="mail", priority=7, ignore_result=True)(add)
    listener = connect()
    listener.execute('listen "pgqueue.work"')
    conn.execute("insert into pgqueue.idle values ('mail', gen_random_uuid(), now() + interval '1 minute')")
    try:
        for _ in range(7):
            task.delay(1, y=2)
        rows = jobs(conn)
        for row in rows:
            assert row.pop("eta") == row.pop("enqueued_at")
            row.pop("id")
        assert rows == [rows[0]] * 7
        assert [notice.payload for notice in listener.notifies(timeout=20, stop_after=7)] == ["mail"] * 7
        with app.database.connection() as connection:
            connection.execute("set synchronous_commit = off")
            statement = app.database.statements.enqueue([task.job((1,), {}, {})], durable=True)
            setting = "select current_setting('synchronous_commit')"
            with connection.transaction():
                tell(connection, statement)
                assert connection.execute(setting).fetchone() == ("on",)
            assert connection.execute(setting).fetchone() == ("off",)
        conn.execute("delete from pgqueue.idle")
        conn.execute("truncate pgqueue.job")
        with app.database.connection() as connection:
            connection.execute("set synchronous_commit = off")
            texts = []
            for _ in range(2):
                statement = app.database.statements.enqueue([task.job((1,), {"y": 2}, {})], durable=True)
                assert statement.prepared is not None
                texts.append(statement.prepared()[0])
                with connection.transaction():
                    tell(connection, statement)
                    assert connection.execute(setting).fetchone() == ("on",)
            assert [b"idle" in text for text in texts] == [True, False]
        for row in (after := jobs(conn)):
            assert row.pop("eta") == row.pop("enqueued_at")
            row.pop("id")
        assert after == [rows[0]] * 2
        conn.execute("insert into pgqueue.idle values ('mail', gen_random_uuid(), now() + interval '1 minute')")
        deadline = time.monotonic() + 20
        while not list(listener.notifies(timeout=0.005)):
            assert time.monotonic() < deadline
            task.delay(1, y=2)
    finally:
        app.close()


def test_behind_a_pooler_nothing_is_prepared(dsn: str, tmp_path: Path) -> None:
    app = PgQueue("shop", dsn=dsn, pool_size=1, pooler=True)
    task = app.task(name="add")(add)
    try:
        for n in range(7):
            task.delay(n)
        assert "Parse" in messages(app, tmp_path, lambda: task.delay(7))
    finally:
        app.close()


async def test_a_coroutine_enqueues_without_a_thread(app: PgQueue, conn: Connection) -> None:
    add = app.task_named("add")
    await add.adelay(0)  # opens the pool: a host name may be looked up in a thread
    loop = asyncio.get_running_loop()

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a thread was asked for")

    loop.run_in_executor = refuse  # type: ignore[method-assign]
    threads = set(threading.enumerate())
    await add.adelay(1)
    await add.aapply_async((2,), unique_key="k")
    await app.aenqueue_many(add.s(n) for n in (3, 4))
    assert set(threading.enumerate()) <= threads
    del loop.run_in_executor  # type: ignore[method-assign]
    await app.aclose()
    assert [job["args"] for job in jobs(conn)] == [[n] for n in range(5)]


def test_many_kinds_of_calls_at_once_are_stored_as_they_are_one_by_one(app: PgQueue, conn: Connection) -> None:
    add, anything = app.task_named("add"), app.task_named("anything")
    calls: list[Any] = [
        add.s(1, y=2),
        anything.s('\n"\\{},\u2028', None, key="it's"),
        add.s(3).set(queue=Kind.SMS, priority=Rank.HIGH, headers={"h": "\n"}, ignore_result=False),
        add.s(4).set(countdown=90, expires=60, time_limit=3.5, soft_time_limit=2),
        add.s(5).set(eta=SOON, shadow="sum", root_id=str(uuid4()), parent_id=str(uuid4())),
        app.signature("unregistered", ([],)),
    ]
    for call in calls:
        call.apply_async()
    single = jobs(conn)
    conn.execute("delete from pgqueue.job")
    handles = app.enqueue_many(calls)
    together = jobs(conn)
    assert [str(job["id"]) for job in together] == [handle.id for handle in handles]
    for job in (*single, *together):
        of_its_own = ["id", "enqueued_at", "eta"] if job["eta"] != SOON else ["id", "enqueued_at", "wait"]
        job["expires"] = job["expires"] and round((job["expires"] - job["enqueued_at"]).total_seconds(), 1)
        # Calls made together have moments of their own within the statement.
        job["wait"] = round(job["wait"].total_seconds(), 1)
        for name in of_its_own:
            del job[name]
    assert together == single


def test_what_many_calls_write_is_all_or_nothing(app: PgQueue, conn: Connection) -> None:
    conn.execute("alter table pgqueue.job add constraint staged check (args->>0 <> '9999')")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            app.enqueue_many(app.task_named("add").s(n) for n in range(10_000))
        assert jobs(conn) == []
    finally:
        conn.execute("alter table pgqueue.job drop constraint staged")


def test_another_client_encoding_changes_nothing(dsn: str, conn: Connection) -> None:
    app = PgQueue("shop", dsn=f"{dsn}{'&' if '?' in dsn else '?'}client_encoding=latin1")
    app.task(name="anything")(anything).delay("ü")
    app.enqueue_many(app.task_named("anything").s("ü") for _ in range(2))
    app.close()
    assert [job["args"] for job in jobs(conn)] == [["ü"]] * 3


def test_an_interrupted_call_leaves_a_pool_that_works(app: PgQueue, conn: Connection, dsn: str) -> None:
    add = app.task_named("add")
    add.delay(0)
    main = threading.get_ident()

    def interrupt() -> None:
        with psycopg.connect(dsn, autocommit=True) as watcher:
            blocked = "select from pg_stat_activity where wait_event_type = 'Lock' and application_name like 'pgqueue%'"
            while not watcher.execute(blocked).fetchall():
                pass
        signal.pthread_kill(main, signal.SIGINT)

    with psycopg.connect(dsn) as other:
        other.execute("lock table pgqueue.job in access exclusive mode")
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            add.delay(1)
        thread.join()
        other.rollback()
    add.delay(2)
    assert [job["args"] for job in jobs(conn) if job["args"] != [1]] == [[0], [2]]
