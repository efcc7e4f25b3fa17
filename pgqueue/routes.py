"""Which queue and which options a call gets from the configuration: task_routes, task_queues, task_annotations."""

from __future__ import annotations

import fnmatch
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pgqueue.errors import InvalidOption
from pgqueue.options import (
    REFUSED_CALL_OPTIONS,
    WARNED_CALL_OPTIONS,
    call_options,
    check_names,
    check_text,
    shown,
)

#: What a route may say about a call; the rest belongs to one call, such as its id.
ROUTED = (
    "queue", "priority", "countdown", "eta", "expires", "time_limit", "soft_time_limit", "ignore_result", "headers",
    "shadow", "retry", "retry_policy", "serializer",
)  # fmt: skip

_MEANINGLESS = {**REFUSED_CALL_OPTIONS, **WARNED_CALL_OPTIONS}
#: How many names keep their route in memory; calls by name may bring any number of them.
_REMEMBERED = 1024
_PATH = re.compile(r"[^\W\d]\w*(\.\w+)*[.:]\w+(\.\w+)*")

#: One of the routers: returns the options of the route, or None where it has nothing to say.
_Step = Callable[[str, Sequence[object], Mapping[str, object], Mapping[str, object], object], Mapping[str, Any] | None]


class Router:
    """Celery's `task_routes`, checked: finds the options that a call gets from the name of its task.

    - `routes`: None, a mapping, a router function, the dotted path of one, or a list of these, asked in order.
      A mapping has exact names, globs ("feed.*") and compiled regular expressions as keys, and names of queues or
      dicts of options as values; an exact name wins over the patterns, and these are tried in order. A list of pairs
      is such a mapping. A function is called as `f(name, args, kwargs, options, task=task)` and returns None, the
      name of a queue, or a dict of options.
    - `import_`: returns the object of a dotted path. Asked at the first call only: the module of a router
      often imports the app.

    Raises InvalidOption, naming the route, for a pattern or a value that makes no sense.

        >>> Router({"feed.*": "feeds"}, import_object).route("feed.fetch", (), {}, {})
        {'queue': 'feeds'}
    """

    def __init__(self, routes: object, import_: Callable[[str], object]) -> None:
        self._steps = tuple(_steps(routes, import_))

    def route(
        self,
        name: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        options: Mapping[str, object],
        task: object = None,
    ) -> dict[str, Any]:
        """Return the options of a call: its own where they are not None, and those of the first route that fits.

        Raises InvalidOption, naming the router, if a router function returns what is not a route.
        """
        found: Mapping[str, Any] | None = None
        for step in self._steps:
            found = step(name, args, kwargs, options, task)
            if found is not None:
                break
        merged = dict(found) if found else {}
        if options:
            said = {option: value for option, value in options.items() if value is not None}
            if "countdown" in said or "eta" in said:  # one of them says when, whoever said the other
                merged.pop("countdown", None)
                merged.pop("eta", None)
            merged.update(said)
        return merged

    def __bool__(self) -> bool:
        return bool(self._steps)


def _steps(routes: object, import_: Callable[[str], object]) -> Iterator[_Step]:
    if routes is None:
        return
    if isinstance(routes, list | tuple) and not (routes and all(map(_is_pair, routes))):
        for route in routes:
            yield _step(route, import_)
    else:
        yield _step(routes, import_)


def _step(route: object, import_: Callable[[str], object]) -> _Step:
    if isinstance(route, Mapping):
        return _mapped(route.items())
    if _is_pair(route):
        return _mapped((route,))  # type: ignore[arg-type]
    if isinstance(route, list | tuple) and all(map(_is_pair, route)):
        return _mapped(route)
    if isinstance(route, str):
        if not _PATH.fullmatch(route):
            raise InvalidOption(f"task_routes: {shown(route)} is not the path of a router, such as 'shop.routes.route'")
        return _imported(route, import_)
    if callable(route):
        return _asked(route, _name_of(route))
    raise InvalidOption(
        f"task_routes: {shown(route)} is no router; give a dict such as {{'feed.*': 'feeds'}}, a function, or its path"
    )


def _is_pair(value: object) -> bool:
    # Two paths of functions look almost the same, but they stand in the outer list.
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], str | re.Pattern)
        and isinstance(value[1], str | Mapping)
    )


def _mapped(pairs: Iterable[tuple[object, object]]) -> _Step:
    exact: dict[str, Mapping[str, Any]] = {}
    patterns: list[tuple[re.Pattern[str], Mapping[str, Any]]] = []
    for key, value in pairs:
        options = _checked(value, f"task_routes: route {shown(key)}")
        if isinstance(key, re.Pattern) and isinstance(key.pattern, str):
            patterns.append((key, options))
        elif not isinstance(key, str):
            raise InvalidOption(
                f"task_routes: {shown(key)} is neither the name of a task, nor a glob, nor a compiled pattern of text"
            )
        elif any(sign in key for sign in "*?["):
            patterns.append((re.compile(fnmatch.translate(key)), options))
        else:
            exact[check_text("task_routes: the name of a task", key, 255)] = options

    @lru_cache(_REMEMBERED)
    def find(name: str) -> Mapping[str, Any] | None:
        found = exact.get(name)
        if found is not None:
            return found
        return next((options for pattern, options in patterns if pattern.match(name)), None)

    return lambda name, args, kwargs, options, task: find(name)


def _imported(path: str, import_: Callable[[str], object]) -> _Step:
    known: list[_Step] = []

    def step(
        name: str, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, object], task: object
    ) -> Mapping[str, Any] | None:
        if not known:
            known.append(_asked(import_(path), path))
        return known[0](name, args, kwargs, options, task)

    return step


def _asked(router: object, label: str) -> _Step:
    if not callable(router) or isinstance(router, type) or inspect.iscoroutinefunction(router):
        raise InvalidOption(f"task_routes: router {label} must be a plain function, not {shown(router)}")
    try:
        inspect.signature(router).bind("name", (), {}, {}, task=None)
    except TypeError as error:
        raise InvalidOption(
            f"task_routes: router {label} must take (name, args, kwargs, options, task=None, **kw): {error}"
        ) from None
    except ValueError:  # written in C, without a signature
        pass

    def step(
        name: str, args: Sequence[object], kwargs: Mapping[str, object], options: Mapping[str, object], task: object
    ) -> Mapping[str, Any] | None:
        answer = router(name, args, kwargs, dict(options), task=task)
        return None if answer is None else _checked(answer, f"task_routes: router {label} for {name!r}")

    return step


def _checked(value: object, where: str) -> Mapping[str, Any]:
    """Return a route as options; raises InvalidOption that says where it stands."""
    if isinstance(value, str):
        value = {"queue": value}
    if not isinstance(value, Mapping):
        raise InvalidOption(f"{where}: {shown(value)} is neither the name of a queue nor a dict of options")
    for option, said in value.items():
        if option in _MEANINGLESS and said is not None:
            raise InvalidOption(f"{where}: {option} has no meaning here: {_MEANINGLESS[option]}")
    options = {str(option): said for option, said in value.items() if said is not None}
    try:
        check_names("option", options, ROUTED)
        call_options(options)
    except InvalidOption as error:
        raise InvalidOption(f"{where}: {error}") from None
    return options


def _name_of(function: object) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


# -- queues --------------------------------------------------------------------------------------------------------


def queue_names(task_queues: object) -> tuple[str, ...]:
    """Return the names in Celery's `task_queues`: a list of names or of objects with a name, or a mapping of names.

    Exchanges, bindings and limits of a queue that are not the usual ones have no effect: a UserWarning names them.
    Raises InvalidOption for what is neither.

        >>> queue_names(["default", "mail"])
        ('default', 'mail')
    """
    if task_queues is None:
        return ()
    if isinstance(task_queues, Mapping):
        pairs = list(task_queues.items())
    elif isinstance(task_queues, list | tuple | set | frozenset):
        pairs = [(queue if isinstance(queue, str) else getattr(queue, "name", queue), queue) for queue in task_queues]
    else:
        raise InvalidOption(f"task_queues must be a list of queues or of their names, not {shown(task_queues)}")
    names = dict.fromkeys(check_text("task_queues: the name of a queue", name, 100) for name, _ in pairs)
    for name, queue in pairs:
        if without_effect := [word for word in _QUEUE_WORDS if _unusual(word, _word_of(queue, word), name)]:
            warnings.warn(
                f"task_queues: {', '.join(without_effect)} of queue {name!r} "
                "without effect: a queue is a name, and each job in it runs once",
                UserWarning,
                stacklevel=2,
            )
    return tuple(names)


_QUEUE_WORDS = (
    "exchange", "exchange_type", "routing_key", "bindings", "binding_arguments", "queue_arguments", "expires",
    "message_ttl", "max_length", "max_length_bytes",
)  # fmt: skip


def _word_of(queue: object, word: str) -> object:
    return queue.get(word) if isinstance(queue, Mapping) else getattr(queue, word, None)


def _unusual(word: str, value: object, name: str) -> bool:
    """Return whether a queue says something else than that jobs for it go into it."""
    if word == "exchange" and not isinstance(value, str | None):
        return _unusual(word, getattr(value, "name", None), name) or getattr(value, "type", None) not in (
            "direct", "", None,
        )  # fmt: skip
    if word == "exchange_type":
        return value not in ("direct", "", None)
    if word in ("exchange", "routing_key"):
        return value not in (name, "", None)
    if word == "queue_arguments" and isinstance(value, Mapping):
        return bool(value.keys() - {"x-max-priority", "x-queue-type"})  # every queue has priorities and is durable
    return bool(value)


# -- annotations ---------------------------------------------------------------------------------------------------


def annotate(annotations: object, name: str, task: object = None) -> Iterator[dict[str, Any]]:
    """Yield the attributes that Celery's `task_annotations` give to a task; of two that differ the later one wins.

    - `annotations`: None, a mapping of names of tasks (or "*" for all, which comes first) to dicts of attributes, an
      object whose `annotate(task)` returns such a dict or None, or a list of these.
    - `name`: of the task; `task`: what `annotate(task)` is given.

    Raises InvalidOption, naming the entry, for what is not of this form.
    """
    for annotation in check_annotations(annotations):
        if isinstance(annotation, Mapping):
            yield from (dict(annotation[key]) for key in ("*", name) if key in annotation)
            continue
        given = annotation.annotate(task)
        if given is not None:
            yield _attributes(given, f"what {_name_of(type(annotation))}.annotate returned for {name!r}")


def check_annotations(annotations: object) -> Sequence[Any]:
    """Return annotations as a list; raises InvalidOption, naming the entry, for what is not of their form."""
    if annotations is None:
        return ()
    found = annotations if isinstance(annotations, list | tuple) else (annotations,)
    for annotation in found:
        if isinstance(annotation, Mapping):
            for key, value in annotation.items():
                check_text("task_annotations: the name of a task", key, 255)
                _attributes(value, f"that of {key!r}")
        elif isinstance(annotation, type) or not callable(getattr(annotation, "annotate", None)):
            raise InvalidOption(
                f"task_annotations: {shown(annotation)} must be a dict such as {{'shop.add': {{'priority': 9}}}}, "
                "or an object with annotate(task)"
            )
    return found


def _attributes(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidOption(f"task_annotations: {what} must be a dict of attributes, not {shown(value)}")
    return dict(value)
