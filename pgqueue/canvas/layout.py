"""Lay a canvas out as a flat list of jobs and steps whose ids are known: each says what waits for it.

It is laid from its end backwards: what comes behind is there already, as the steps that the part in front counts in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from pgqueue.canvas.calls import Signature, continuations, signatures
from pgqueue.canvas.parts import NOTHING, Given, Segment, Step
from pgqueue.errors import InvalidOption
from pgqueue.group_result import GroupResult
from pgqueue.ids import check_apart, check_id, new_id
from pgqueue.result import AsyncResult
from pgqueue.stamps import merged
from pgqueue.statements import job_json
from pgqueue.tracer import current_context
from pgqueue.types import GATHER, NewJob

Handle: TypeAlias = "AsyncResult[Any] | GroupResult[Any]"
#: What is said of the whole: it is not that of a single call.
_OF_ALL = ("root_id", "parent_id")
_OF_ONE = ("link", "link_error", "task_id", *_OF_ALL)


class Then(NamedTuple):
    """What a part counts in when it has ended: the steps that wait for it, and its place among their members."""

    steps: tuple[str, ...] = ()
    place: int = 0


@dataclass(slots=True)
class Node:
    """One job or step to be; `call` is None for a step that only gathers the values of its members.

    - `waits`, `values`: for how many members it waits, and whether it takes the list of their values.
    """

    call: Signature[Any] | None
    given: Given
    id: str
    then: Then
    depth: int
    waits: int = 0
    values: bool = False
    known: bool = False

    def wait(self, members: int, *, values: bool) -> None:
        """Have it wait for so many."""
        self.waits, self.values = members, values

    def calls(self, option: str) -> list[Signature[Any]]:
        """Return the links or errbacks that it has itself and that it is given."""
        found = [] if self.call is None else signatures(option, self.call.options.get(option))
        return found + [call for call in self._given(option) if call not in found]

    def _given(self, option: str) -> Sequence[Signature[Any]]:
        return self.given.links if option == "link" else self.given.errbacks

    def job(self, parent_id: str | None, root_id: str | None, *, alone: bool, follows: bool = False) -> NewJob:
        """Return it as a row, checked and encoded.

        - `alone`: there is nothing else in the plan.
        - `follows`: what comes first in the plan is given a value, as a link is.
        """
        if self.call is None:
            found = NewJob(self.id, GATHER, errbacks=continuations("link_error", self.calls("link_error")))
            takes: str | None = "values"
        else:
            takes = None if not self.waits else "values" if self.values else "value"
            if takes is not None and not self.is_given:
                takes = "nothing"
            awaits = self.is_given and (takes is not None or follows)
            found = self._called(awaits, alone)
            if follows and takes is None:
                found = found._replace(immutable=not awaits)
        return found._replace(
            id=self.id,
            known=self.known,
            root_id=root_id,
            parent_id=None if self.waits else parent_id,
            steps=self.then.steps,
            place=self.then.place,
            depth=self.depth,
            waits=self.waits,
            takes=takes,
        )

    @property
    def is_given(self) -> bool:
        """Whether it takes what comes before it as its first argument."""
        return self.call is not None and not self.call.immutable and not self.given.ignores

    def _called(self, awaits: bool, alone: bool) -> NewJob:
        call, given = self.call, self.given
        assert call is not None
        args, kwargs = call.args, call.kwargs
        if not call.immutable and (given.args or given.kwargs):
            args, kwargs = (*given.args, *args), {**kwargs, **given.kwargs}
        options: Mapping[str, Any] = call.options
        if options or given.options or given.links or given.errbacks:
            options = {name: value for name, value in merged(options, given.options).items() if name not in _OF_ONE}
            options |= {option: calls for option in ("link", "link_error") if (calls := self.calls(option))}
            if options.get("unique_key") is not None and not alone:
                raise InvalidOption(
                    f"unique_key of {call!r} has no meaning here: no part of a workflow can be left out"
                )
        return call.task.job(args, kwargs, options, awaits=awaits)


@dataclass(slots=True)
class Plan:
    """A canvas laid out: its nodes, the handle that `apply_async` returns, and the id that is the root of all.

    - `asked`: the root and the parent that the caller has named.
    """

    nodes: list[Node]
    handle: Handle
    root: str
    asked: Mapping[str, str] = field(default_factory=dict)

    def jobs(self) -> list[NewJob]:
        """Return the rows; the job that runs now, if one does, is where they come from."""
        around = current_context()
        root = self.asked.get("root_id") or (around.root_id if around is not None else None) or self.root
        parent = self.asked.get("parent_id") or (around.id if around is not None else None)
        return self.jobs_of(root, parent)

    def jobs_of(self, root_id: str, parent_id: str | None) -> list[NewJob]:
        """Return the rows of this workflow, made by this job; None: by nobody."""
        alone = len(self.nodes) == 1
        return [node.job(parent_id, root_id, alone=alone) for node in self.nodes]

    def followers(self) -> list[str]:
        """Return the rows as another job's commit enqueues them, in JSON: single jobs, or all of it as a plan."""
        alone = len(self.nodes) == 1
        jobs = [node.job(None, None, alone=alone, follows=True) for node in self.nodes]
        texts = list(map(job_json, jobs))
        return [f'{{"plan":[{",".join(texts)}]}}'] if any(job.waits for job in jobs) else texts


def lay_out(
    canvas: Signature[Any],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    one: bool = False,
) -> Plan:
    """Lay out a canvas that is not empty.

    - `args`, `kwargs`, `options`: of the call, as for `apply_async`.
    - `one`: the value of the whole must be that of one node, as where it takes the place of a job.

    Raises InvalidOption, and what a call of each task in it raises.
    """
    given = given_of(args, kwargs or {}, options or {})
    asked = {**canvas.options, **(options or {})}
    try:
        return _lay(canvas, given, {name: check_id(asked[name], name) for name in _OF_ALL if asked.get(name)}, one)
    except RecursionError:
        raise InvalidOption(f"{type(canvas).__name__} is nested too deeply, or contains itself") from None


def given_of(args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, Any]) -> Given:
    """Return what a call says of the parts of a canvas."""
    id_ = options.get("task_id")
    return Given(
        tuple(args),
        kwargs,
        {name: value for name, value in options.items() if name not in _OF_ONE},
        tuple(signatures("link", options.get("link"))),
        tuple(signatures("link_error", options.get("link_error"))),
        None if id_ is None else check_id(id_),
    )


def segments(canvas: Signature[Any], given: Given) -> list[Segment]:
    """Return a canvas as a chain of calls and groups, however many chains and bodies of chords it is nested in."""
    found: list[Segment] = []
    stack: list[Segment | Step] = [(canvas, given, False)]
    while stack:
        item = stack.pop()
        if isinstance(item, Segment):
            if item.members or not item.header:
                found.append(item)
            elif stack:  # the body of an empty header is called with an empty list
                body, said, unroll = _step(stack.pop())
                stack.append((body, replace(said, args=([], *said.args), ignores=True), unroll))
        else:
            stack.extend(reversed(item[0].unfold(item[1], item[2])))
    return found


def _step(item: Segment | Step) -> Step:
    assert not isinstance(item, Segment)
    return item


def _lay(canvas: Signature[Any], given: Given, asked: Mapping[str, str], one: bool) -> Plan:
    layout = _Layout(canvas.app)
    entries, handle = layout.lay(canvas, given, Then(), 0, one=one)
    check_apart([node.id for node in layout.nodes])
    first: Any = handle
    while first._parent is not None:
        first = first._parent
    root = first.id if isinstance(first, GroupResult) else entries[0].id
    return Plan(layout.nodes, handle, root, asked)


class _Layout:
    """The nodes laid so far, those at the end first."""

    def __init__(self, app: Any) -> None:
        self.nodes: list[Node] = []
        self._app = app

    def lay(
        self, canvas: Signature[Any], given: Given, then: Then, depth: int, *, one: bool
    ) -> tuple[list[Node], Handle]:
        """Lay a canvas in front of what it counts in; return the nodes that come first in it, and its handle."""
        entries: list[Node] = []
        handle: Handle | None = None
        behind: Handle | None = None
        line = [Segment(canvas, given)] if canvas.single else segments(canvas, given)
        for segment in reversed(line):
            last = behind is None
            if segment.call is not None:
                node, found = self._call(segment, then if last else _before(entries), depth)
                entries = [node]
            elif last and not one:
                entries, found = self._members(segment, None, depth)
            elif last:
                gather = self._gather(segment, then, depth, ())
                entries, found = self._members(segment, gather, depth)
                found = AsyncResult(gather.id, self._app)
            else:
                barrier = entries[0] if len(entries) == 1 else self._gather(segment, _before(entries), depth, entries)
                barrier.wait(len(segment.members), values=True)
                entries, found = self._members(segment, barrier, depth + 1)
            if behind is None:
                handle = found
            else:
                behind._parent = found
            behind = found
        assert handle is not None
        return entries, handle

    def _call(self, segment: Segment, then: Then, depth: int) -> tuple[Node, Handle]:
        call: Signature[Any] = segment.call
        chosen = segment.given.id or call.id
        node = Node(call, segment.given, chosen or new_id(), then, depth, known=chosen is not None)
        self.nodes.append(node)
        return node, AsyncResult(node.id, self._app, **call.task.handle({**call.options, **segment.given.options}))

    def _members(self, segment: Segment, barrier: Node | None, depth: int) -> tuple[list[Node], Handle]:
        """Lay what runs side by side; each counts in the barrier at its own place."""
        entries: list[Node] = []
        handles: list[AsyncResult[Any]] = []
        for place, (member, given) in enumerate(segment.members):
            then = Then() if barrier is None else Then((barrier.id,), place)
            first, handle = self.lay(member, given, then, depth, one=True)
            entries += first
            assert isinstance(handle, AsyncResult)
            handles.append(handle)
        return entries, GroupResult(segment.id, handles, app=self._app)

    def _gather(self, segment: Segment, then: Then, depth: int, behind: Sequence[Node]) -> Node:
        """Lay a step without a task. What is behind it cannot tell its errbacks, so this does, each once."""
        errbacks: list[Signature[Any]] = []
        for node in behind:
            errbacks += [call for call in node.calls("link_error") if call not in errbacks]
        # Its own id is that of a group at the end; one in front of others is known to nobody.
        id_ = new_id() if behind else segment.id
        node = Node(None, replace(NOTHING, errbacks=tuple(errbacks)), id_, then, depth)
        node.wait(len(segment.members), values=True)
        self.nodes.append(node)
        return node


def _before(entries: Sequence[Node]) -> Then:
    """Return what a single node in front of others counts in; they wait for it alone."""
    for node in entries:
        node.wait(1, values=False)
    return Then(tuple(node.id for node in entries))
