"""Many handles as one: their states together, and waiting for all of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Generic, TypeVar, cast

from pgqueue.errors import InvalidOption
from pgqueue.result import AsyncResult, answer, outcome, refuse_inside_task
from pgqueue.types import State
from pgqueue.waiting import LONGEST_LOOK, Found, Terms, Waiting, awatch, watch

R = TypeVar("R")


class ResultSet(Generic[R]):
    """Several handles, in an order, to be asked and awaited together.

    - `results`: the handles; all of one app.
    - `app`: that app; default: that of the handles.

        results = ResultSet([add.delay(n, n) for n in range(3)])
        results.get(timeout=10)     # [0, 2, 4]

    Raises InvalidOption for what is no handle, or one of another app.
    """

    #: Celery's question whether many are fetched in one go; here each is looked at by itself.
    supports_native_join = False

    def __init__(self, results: Iterable[AsyncResult[R]], app: Waiting | None = None) -> None:
        self.app = app
        self.results: list[AsyncResult[R]] = []
        for result in results:
            self.results.append(self._check(result))

    # -- its members -----------------------------------------------------------------------------------------

    def add(self, result: AsyncResult[R]) -> None:
        """Add a handle, unless it is there already."""
        self.update([result])

    def update(self, results: Iterable[AsyncResult[R]]) -> None:
        """Add those handles that are not there yet."""
        known = set(self.results)
        for result in results:
            if self._check(result) not in known:
                known.add(result)
                self.results.append(result)

    def remove(self, result: AsyncResult[R] | str) -> None:
        """Take out a handle, given as such or by its id; raises KeyError if it is not there."""
        try:
            self.results.remove(cast("AsyncResult[R]", result))
        except ValueError:
            raise KeyError(str(result)) from None

    def discard(self, result: AsyncResult[R] | str) -> None:
        """Take out a handle if it is there."""
        if result in self.results:
            self.remove(result)

    def clear(self) -> None:
        """Take out all handles."""
        self.results.clear()

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        return self.results == other.results if isinstance(other, ResultSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(str, self.results))}]>"

    # -- looking ---------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Return whether all have ended, however."""
        return all(result.ready() for result in self.results)

    def waiting(self) -> bool:
        """Return whether one of them has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Return whether all have ended as SUCCESS."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Return whether one of them has ended as FAILURE."""
        return any(result.failed() for result in self.results)

    def completed_count(self) -> int:
        """Return how many have ended as SUCCESS."""
        return sum(result.successful() for result in self.results)

    def maybe_throw(self, callback: Callable[[str, Any], object] | None = None, propagate: bool = True) -> None:
        """Raise what the first of them ended with that did not succeed, without waiting (`AsyncResult.maybe_throw`)."""
        for result in self.results:
            result.maybe_throw(propagate, callback)

    # -- waiting ---------------------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = LONGEST_LOOK,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Mapping[str, object]], object] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> list[R]:
        """Wait for all and return their values, in the order of the handles.

        - `timeout`: seconds to wait at most for all together; None (default) for as long as it takes.
        - `propagate`: raise what the first in the order ended with that did not succeed, as soon as those before it
          have ended (default), or return the exceptions among the values.
        - `callback`: called with id and value of each, in the order. (Celery returns no values then; here they are.)
        - the others: as for `AsyncResult.get`; `on_message` and `on_interval` for each look at any of them.

        Raises what `AsyncResult.get` raises.
        """
        refuse_inside_task(disable_sync_subtasks)
        order = _Order(self.results, propagate, callback)
        with closing(self._watch(Terms(timeout, interval, True, on_interval, on_message))) as watched:
            for found in watched:
                order.take(found)
        return order.values

    join = join_native = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = LONGEST_LOOK,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Mapping[str, object]], object] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> list[R]:
        """Wait for all as `get` does, without blocking the event loop; the callbacks are plain functions."""
        refuse_inside_task(disable_sync_subtasks)
        order = _Order(self.results, propagate, callback)
        terms = Terms(timeout, interval, True, on_interval, on_message)
        async with aclosing(awatch(cast(Waiting, self.app), self.results, terms)) as watched:
            async for found in watched:
                order.take(found)
        return order.values

    def iterate(
        self, timeout: float | None = None, propagate: bool = True, interval: float = LONGEST_LOOK
    ) -> Iterator[R]:
        """Yield the values in the order in which the jobs end; see `get`."""
        refuse_inside_task(True)
        with closing(self._watch(Terms(timeout, interval))) as watched:
            for found in watched:
                yield answer(found, propagate)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = LONGEST_LOOK,
        no_ack: bool = True,
        on_message: Callable[[Mapping[str, object]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and {"status", "result"} of each in the order in which the jobs end, whatever they ended with."""
        refuse_inside_task(True)
        with closing(self._watch(Terms(timeout, interval, True, on_interval, on_message))) as watched:
            for found in watched:
                value, error = outcome(found)
                yield found.handle.id, {"status": found.status.state, "result": value if error is None else error}

    # -- changing --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Delete the stored results."""
        for result in self.results:
            result.forget()

    def revoke(
        self, terminate: bool = False, signal: object = None, wait: bool = False, timeout: float | None = None
    ) -> list[State | str]:
        """Revoke all, as `AsyncResult.revoke` does; return their states."""
        return [result.revoke(terminate, signal, wait, timeout) for result in self.results]

    # -- inside ----------------------------------------------------------------------------------------------

    def _check(self, result: AsyncResult[R]) -> AsyncResult[R]:
        if not isinstance(result, AsyncResult):
            raise InvalidOption(f"{result!r:.80} is no result; app.AsyncResult(id) makes one of an id")
        if result.app is not None:  # what ran eagerly has none
            if self.app is None:
                self.app = result.app
            elif self.app is not result.app:
                raise InvalidOption(f"{result!r} is of another app than the others; wait for it by itself")
        return result

    def _watch(self, terms: Terms) -> Generator[Found[AsyncResult[R]], None, None]:
        return watch(cast(Waiting, self.app), self.results, terms)


class _Order:
    """Brings what ends in any order into the order of the handles."""

    def __init__(
        self, results: Sequence[AsyncResult[Any]], propagate: bool, callback: Callable[[str, Any], object] | None
    ) -> None:
        self.values: list[Any] = []
        self._ids = [result.id for result in results]
        self._propagate = propagate
        self._callback = callback
        self._early: dict[str, Found[AsyncResult[Any]]] = {}

    def take(self, found: Found[AsyncResult[Any]]) -> None:
        """Take note of an end, and of those that were only waiting for it."""
        self._early[found.handle.id] = found
        while len(self.values) < len(self._ids):
            id_ = self._ids[len(self.values)]
            if id_ not in self._early:
                return
            value = answer(self._early[id_], self._propagate)
            if self._callback is not None:
                self._callback(id_, value)
            self.values.append(value)
