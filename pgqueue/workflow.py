"""A graph of named calls that is enqueued as one: each runs when all have succeeded that it stands after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, Protocol, cast

from pgqueue.canvas import Signature
from pgqueue.eager_result import EagerResult
from pgqueue.enqueueing import aenqueue_plan, enqueue_plan
from pgqueue.errors import InvalidOption
from pgqueue.ids import check_apart, new_id
from pgqueue.options import check_text, shown
from pgqueue.result import AsyncResult
from pgqueue.result_set import ResultSet
from pgqueue.serialization import decode, encode
from pgqueue.statements import Progress
from pgqueue.types import READY_STATES, NewJob, State
from pgqueue.waiting import Waiting

Handle = AsyncResult[Any]


class WorkflowApp(Waiting, Protocol):
    """What a workflow needs of its app."""

    @property
    def always_eager(self) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A named call of a workflow; `after` names those whose values it takes, as a list if `several`."""

    name: str
    call: Signature[Any]
    after: tuple[str, ...] = ()
    several: bool = False

    def __repr__(self) -> str:
        return f"<Step {self.name!r}: {self.call!r}>"


class Workflow:
    """Calls with names, each after others; `app.workflow()` makes one, without a step.

        flow = app.workflow()
        fetch = flow.step("fetch", download.s(url))
        flow.step("resize", resize.s(100), after=fetch)             # resize(value of fetch, 100)
        flow.step("tag", guess_tags.s(), after="fetch")
        flow.step("publish", publish.s(), after=["resize", "tag"])  # publish([value, value])
        run = flow.apply_async()
        run.get(timeout=10)                                         # {"publish": ...}

    It may be enqueued as often as one likes; each time is a workflow of its own.
    """

    def __init__(self, app: WorkflowApp) -> None:
        self.app = app
        self._steps: dict[str, Step] = {}

    def step(self, name: str, call: Signature[Any], after: str | Step | Sequence[str | Step] | None = None) -> Step:
        """Add a call, and return it as a step for others to stand after.

        - `name`: what it is called in this workflow.
        - `call`: a signature, such as `resize.s(100)`; options with `.set(queue=...)`.
        - `after`: what it waits for: a step (or its name), whose value comes before the arguments of the call; or a
          list of them, and then the list of their values does, in the same order. One made with `si` takes nothing.

        Steps that are named together must stand in the same order wherever they are. Raises InvalidOption for a name
        that is taken, one that no step has yet, or what is no signature.
        """
        check_text("name", name, 100)
        if name in self._steps:
            raise InvalidOption(f"the workflow has a step {name!r} already; give this one another name")
        if not isinstance(call, Signature):
            raise InvalidOption(f"step {name!r} needs a signature such as add.s(2, 3), not {shown(call)}")
        if not call.single:
            raise InvalidOption(
                f"step {name!r} is one call, and {call!r:.80} is more: make a step of each of its parts"
            )
        several = isinstance(after, Sequence) and not isinstance(after, str)
        given: list[object] = list(cast("Sequence[object]", after)) if several else [] if after is None else [after]
        names = tuple(self._name_of(name, one) for one in given)
        if len(set(names)) < len(names):
            raise InvalidOption(f"step {name!r} is after {shown(list(names))}: one of them stands there twice")
        found = self._steps[name] = Step(name, call.clone(), names, several)
        return found

    def delay(self) -> WorkflowRun:
        """Enqueue the workflow."""
        return self.apply_async()

    def apply_async(self, *, connection: object = None) -> WorkflowRun:
        """Enqueue all of it in one transaction, and return the handle on this run.

        - `connection`: enqueue in the transaction of this connection, as for `Task.apply_async`.

        In eager mode the steps run here, in the order in which they were added. Raises what `Task.apply_async` raises,
        and InvalidOption if there is no step; nothing is enqueued then.
        """
        plan = self.plan()
        if self.app.always_eager:
            return self._run_here()
        enqueue_plan(self.app, plan, connection)
        return self._handle(plan)

    async def adelay(self) -> WorkflowRun:
        """Enqueue the workflow without blocking the event loop."""
        return await self.aapply_async()

    async def aapply_async(self, *, connection: object = None) -> WorkflowRun:
        """Enqueue all of it as `apply_async` does, without blocking the event loop."""
        plan = self.plan()
        if self.app.always_eager:
            return self._run_here()
        await aenqueue_plan(self.app, plan, connection)
        return self._handle(plan)

    def plan(self) -> list[NewJob]:
        """Return the calls as jobs and steps that wait, checked and encoded, in the order in which they were added."""
        if not self._steps:
            raise InvalidOption("the workflow has no step; flow.step(name, call) adds one")
        places = self._places()
        jobs = {step.name: _job(step) for step in self._steps.values()}
        check_apart([job.id for job in jobs.values()])
        followers: dict[str, list[str]] = {name: [] for name in jobs}
        for step in self._steps.values():
            for before in step.after:
                followers[before].append(jobs[step.name].id)
        root = next(iter(jobs.values())).id  # the first stands after no other
        return [
            jobs[name]._replace(
                root_id=root,
                steps=tuple(followers[name]),
                place=places[name],
                waits=len(step.after),
                takes=_takes(step) if step.after else None,
            )
            for name, step in self._steps.items()
        ]

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps.values())

    def __contains__(self, name: object) -> bool:
        return name in self._steps

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self._steps) or 'no step'}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _name_of(self, name: str, before: object) -> str:
        if isinstance(before, Step):
            if self._steps.get(before.name) is not before:
                raise InvalidOption(f"step {name!r} is after {before.name!r}, which is a step of another workflow")
            return before.name
        if not isinstance(before, str):
            raise InvalidOption(f"after= of step {name!r} takes names of steps, or steps, not {shown(before)}")
        if before not in self._steps:
            there = ", ".join(map(repr, self._steps)) or "none yet"
            raise InvalidOption(f"step {name!r} is after {before!r:.80}, and there is no such step; there is {there}")
        return before

    def _places(self) -> dict[str, int]:
        """Return where the value of each step stands among others: one number, whoever takes it."""
        order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(self._steps, ()))
        for step in self._steps.values():
            for earlier, later in pairwise(step.after):
                order.add(later, earlier)
        try:
            return {name: place for place, name in enumerate(order.static_order())}
        except CycleError as error:
            names = sorted(set(error.args[1]))
            raise InvalidOption(
                f"the steps {', '.join(map(repr, names))} stand in one order in one after=[...] and in another order "
                "elsewhere; name them in the same order everywhere"
            ) from None

    def _handle(self, plan: Sequence[NewJob]) -> WorkflowRun:
        ids = {step: job.id for step, job in zip(self._steps.values(), plan, strict=True)}

        def fresh() -> dict[str, Handle]:
            return {
                step.name: AsyncResult[Any](id_, self.app, **step.call.task.handle(step.call.options))
                for step, id_ in ids.items()
            }

        return WorkflowRun(cast(str, plan[0].root_id), self.app, fresh, self._last())

    def _run_here(self) -> WorkflowRun:
        handles: dict[str, Handle] = {}
        for step in self._steps.values():
            handles[step.name] = _applied(step, [handles[name] for name in step.after])
        first = next(iter(handles.values()))
        return WorkflowRun(first.id, self.app, lambda: handles, self._last(), eager=True)

    def _last(self) -> list[str]:
        awaited = {name for step in self._steps.values() for name in step.after}
        return [name for name in self._steps if name not in awaited]


class WorkflowRun:
    """The handle on one run of a workflow: handles by the names of its steps, and all of them together.

    - `id`: the root of all its jobs, as `pgqueue workflows` has it.
    - `app`: the app whose database has them.
    - `fresh`: makes the handles by name.
    - `last`: names of the steps for which no other waits.
    - `eager`: it has run here, and is in no database.

        run["resize"].get(timeout=10)
        run.progress()      # Progress(total=4, done=2, failed=0, running=1, waiting=1)
    """

    def __init__(
        self, id: str, app: Waiting, fresh: Callable[[], dict[str, Handle]], last: Sequence[str], *, eager: bool = False
    ) -> None:
        self.id = id
        self.app = app
        self._fresh = fresh
        self._handles = fresh()
        self._last = list(last)
        self._eager = eager

    def __getitem__(self, name: str) -> Handle:
        return self._handles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> dict[str, Any]:
        """Wait for the steps for which no other waits, and return their values by name.

        Parameters: those of `ResultSet.get`. Raises what the first of them ended with that did not succeed: a step
        that could not run ends with the error of the one that failed.
        """
        found = self._ends().get(timeout, propagate, **options)
        return dict(zip(self._last, found, strict=True))

    async def aget(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> dict[str, Any]:
        """Wait as `get` does, without blocking the event loop."""
        found = await self._ends().aget(timeout, propagate, **options)
        return dict(zip(self._last, found, strict=True))

    def ready(self) -> bool:
        """Return whether all steps have ended, however."""
        return all(handle.ready() for handle in self._handles.values())

    def progress(self) -> Progress:
        """Return how many jobs there are, and how many of them are where; those that its tasks enqueued count too."""
        if self._eager:
            return _count([handle.state for handle in self._handles.values()])
        database = self.app.database
        found = database.run(database.statements.progress(self.id))
        return found[0] if found else Progress(0, 0, 0, 0, 0)

    def revoke(self) -> int:
        """End all as REVOKED that has not begun, while what runs may finish; return how many jobs and steps it were."""
        if self._eager:
            return 0
        database = self.app.database
        return database.run(database.statements.revoke_workflow(self.id))[0]

    def retry(self) -> int:
        """Go on where it has failed: what failed is enqueued again, and what ended with it waits again.

        Returns how many jobs are enqueued; 0: nothing has failed, or the results are gone. Handles are made anew: one
        that was taken before still knows how its job had ended.
        """
        if self._eager:
            return 0
        database = self.app.database
        count = database.run(database.statements.retry_workflow(self.id))[0]
        self._handles = self._fresh()
        return count

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def _ends(self) -> ResultSet[Any]:
        return ResultSet([self._handles[name] for name in self._last], self.app)


def _takes(step: Step) -> str:
    return "nothing" if step.call.immutable else "values" if step.several else "value"


def _job(step: Step) -> NewJob:
    """Return the call of a step as a job that knows its name."""
    call = step.call
    if step.after:
        job = call.continuation()._replace(immutable=False)
    else:
        job = (call.clone(([],)) if step.several else call).job()
    rare = decode(job.options) if job.options else {}
    return job._replace(options=encode({**cast("dict[str, Any]", rare), "step": step.name}, path="options"))


def _applied(step: Step, before: Sequence[Handle]) -> Handle:
    """Run a step here and now; one after a failure ends as that."""
    for handle in before:
        if not (handle.state == State.SUCCESS or (handle.state == State.IGNORED and _takes(step) == "values")):
            error = handle.result
            return EagerResult(
                new_id(), None, handle.state, handle.traceback, step.call.task.name,
                error=error if isinstance(error, BaseException) else None,
            )  # fmt: skip
    if step.several:
        return step.call.apply(([handle.result for handle in before],))
    return step.call.apply([handle.result for handle in before])


def _count(states: Sequence[str]) -> Progress:
    done = sum(state in (State.SUCCESS, State.IGNORED) for state in states)
    failed = sum(state in READY_STATES for state in states) - done
    return Progress(len(states), done, failed, 0, len(states) - done - failed)
