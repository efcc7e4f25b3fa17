"""EagerResult: what is ready from the beginning, without any database."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue import AsyncResult, State, TaskFailed, TaskRejectedError, TaskRevokedError
from pgqueue.eager_result import EagerResult
from pgqueue.ids import new_id
from pgqueue.result_set import ResultSet

BAD = ValueError("bad")
REVOKED = TaskRevokedError("expired")
REJECTED = TaskRejectedError("not mine")


async def test_a_success_is_its_value() -> None:
    id_ = new_id()
    result = EagerResult(id_, 5, State.SUCCESS, name="shop.add", args=(2, 3), kwargs={"z": 1})
    assert isinstance(result, AsyncResult)
    assert (result.id, result.task_id, str(result), repr(result)) == (id_, id_, id_, f"<EagerResult: {id_}>")
    assert result == id_ == EagerResult(id_, None, State.FAILURE)
    assert (result.name, result.args, result.kwargs) == ("shop.add", [2, 3], {"z": 1})
    assert (result.state, result.status, result.result, result.info) == ("SUCCESS", State.SUCCESS, 5, 5)
    assert (result.ready(), result.successful(), result.failed(), result.exists()) == (True, True, False, True)
    assert (result.traceback, result.children, result.parent, result.errors) == (None, [], None, [])
    assert (result.retries, result.worker, result.queue, result.headers, result.date_done) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert (result.ignored, result.supports_native_join, result.root) == (False, False, result)
    assert result.get() == result.wait(timeout=0) == result.get(1, True, 0.5) == await result.aget(timeout=5) == 5
    assert (result.maybe_throw(), result.forget(), result.get()) == (5, False, 5)


async def test_the_callback_hears_of_a_success() -> None:
    heard: list[object] = []
    result: EagerResult[Any] = EagerResult(new_id(), None, State.SUCCESS)
    assert result.get(callback=lambda *given: heard.append(given)) is None
    assert await result.aget(callback=lambda *given: heard.append(given)) is None
    assert heard == [(result.id, None)] * 2


@pytest.mark.parametrize(
    ("result", "kind", "message", "same"),
    [
        (EagerResult(new_id(), None, State.FAILURE, "Traceback: ...", error=BAD), ValueError, "bad", BAD),
        (EagerResult(new_id(), BAD, "FAILURE", "Traceback: ..."), ValueError, "bad", BAD),  # as Celery has it
        (EagerResult(new_id(), "bad", State.FAILURE, "Traceback: ..."), TaskFailed, "bad", None),
        (EagerResult(new_id(), None, State.REVOKED, "Traceback: ..."), TaskRevokedError, "revoked", None),
        (EagerResult(new_id(), None, State.REVOKED, "Traceback: ...", error=REVOKED), TaskRevokedError, "exp", REVOKED),
        (EagerResult(new_id(), None, State.REJECTED, "Traceback: ..."), TaskRejectedError, "rejected", None),
        (EagerResult(new_id(), REJECTED, "REJECTED", "Traceback: ..."), TaskRejectedError, "not mine", REJECTED),
    ],
)
async def test_what_it_ended_with_is_raised_itself(
    result: EagerResult[Any], kind: type[Exception], message: str, same: Exception | None
) -> None:
    with pytest.raises(kind, match=message) as caught:
        result.get(timeout=5)
    assert same is None or caught.value is same
    with pytest.raises(kind, match=message):
        await result.aget(timeout=5)
    with pytest.raises(kind, match=message):
        result.throw()
    assert isinstance(result.get(propagate=False), kind)
    assert isinstance(result.result, kind)
    assert (result.ready(), result.successful(), result.traceback) == (True, False, "Traceback: ...")
    assert result.failed() == (result.state == State.FAILURE)


@pytest.mark.parametrize("state", [State.PENDING, State.RETRY, State.IGNORED, "PROGRESS"])
async def test_other_states_have_no_value_and_are_not_waited_for(state: str) -> None:
    result = EagerResult(new_id(), 5, state, error=BAD)
    assert result.get(timeout=0) is await result.aget() is None
    assert (result.state, result.ready(), result.successful(), result.failed()) == (state, True, False, False)
    assert result.result is BAD
    assert EagerResult(new_id(), 5, state).result == 5


def test_revoke_only_changes_its_state() -> None:
    result = EagerResult(new_id(), 5, State.SUCCESS, name="shop.add")
    assert result.revoke(terminate=True, signal="SIGKILL") is State.REVOKED
    assert (result.state, result.name, result.ready()) == (State.REVOKED, "shop.add", True)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get()


def test_its_relatives_are_those_that_it_was_given() -> None:
    leaf = EagerResult(new_id(), 3, State.SUCCESS)
    middle = EagerResult(new_id(), 2, State.SUCCESS, children=[leaf])
    first = EagerResult(new_id(), 0, State.SUCCESS)
    root = EagerResult(new_id(), 1, State.SUCCESS, children=(middle,), parent=first)
    assert (root.children, root.parent, root.root) == ([middle], first, first)
    assert list(root.iterdeps()) == [(None, root), (root, middle), (middle, leaf)]
    assert list(root.collect()) == [(root, 1), (middle, 2), (leaf, 3)]
    assert (root.get_leaf(), root.graph) == (3, {root: [middle], middle: [leaf], leaf: []})
    assert root.as_tuple() == ((root.id, ((first.id, None), None)), None)


async def test_a_set_of_them_needs_no_app() -> None:
    results = ResultSet([EagerResult(new_id(), n, State.SUCCESS) for n in range(3)])
    assert results.get(timeout=5) == await results.aget(timeout=5) == list(results.iterate()) == [0, 1, 2]
    assert (results.app, results.successful(), results.completed_count()) == (None, True, 3)
    results.add(EagerResult(new_id(), None, State.FAILURE, error=BAD))
    with pytest.raises(ValueError, match="bad") as caught:
        results.get()
    assert caught.value is BAD
    assert results.get(propagate=False) == [0, 1, 2, BAD]
