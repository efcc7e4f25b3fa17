"""The configuration of an app in Celery's words: what each of them means here, and how they are read."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pgqueue.errors import InvalidOption, SettingsError
from pgqueue.options import check_names, check_rate, check_text, check_time_limits, seconds, shown
from pgqueue.routes import Router, check_annotations, queue_names
from pgqueue.settings import find_dsn

Verdict = Literal["used", "same", "warned", "refused"]


@dataclass(frozen=True, slots=True)
class Word:
    """One setting of Celery and what becomes of it.

    - `verdict`: "used": has a meaning here. "same": already so here; where it has a check, another value is warned of.
      "warned": has no meaning here, which a warning says. "refused": ignoring it would change what the program does.
      Nothing is said about a value that is the default, or None.
    - `default`: ours, where it is not set. `check(name, value)`: returns the value to be kept, or raises InvalidOption.
    - `why`: what it means, or why it means nothing, and what to do instead.
    - `none`: None is a value; else it stands for the default.
    """

    name: str
    verdict: Verdict
    default: object
    check: Callable[[str, object], object] | None
    why: str
    none: bool = False


class Conf(Mapping[str, Any]):
    """The settings of an app under Celery's lower-case names, as attributes and as items.

    Reading gives what was set, else our default. Iterating, `in` and `len` are about what was set. An update is
    checked as a whole: if one value is wrong nothing changes.

    - `on_change`: called after each change; if it raises, the change is taken back.

    Raises SettingsError, naming the setting, its reason and the cure.

        conf.task_acks_late = False
        conf.update(task_time_limit=60, task_routes={"feed.*": "feeds"})
    """

    __slots__ = ("_on_change", "_values", "_warned")

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._values: Mapping[str, Any] = {}
        self._warned: frozenset[str] = frozenset()

    def update(self, given: Mapping[str, object] | Iterable[tuple[str, object]] = (), /, **more: object) -> None:
        """Set several settings at once, all or none; raises SettingsError naming the one that is wrong."""
        values = dict(self._values)
        without_effect = {}
        asked = {**dict(given), **more}
        for name, value in asked.items():
            word = _word(name)
            if value is None and not word.none:
                values.pop(name, None)
                continue
            values[name] = _checked(word, value)
            if _asks_in_vain(word, values[name]):
                without_effect[name] = word
        _check_together(values)
        for name, word in without_effect.items():
            if name not in self._warned:
                self._warned |= {name}
                said = "has no effect" if word.verdict == "warned" else f"is always {word.default!r} here"
                warnings.warn(f"{name} {said}: {word.why}", UserWarning, stacklevel=2)
        before, self._values = self._values, values
        try:
            if asked:
                self._on_change()
        except BaseException:
            self._values = before
            raise

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if name in WORDS:
            return WORDS[name].default
        raise KeyError(name)

    def __setitem__(self, name: str, value: object) -> None:
        self.update({name: value})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(_unknown(name)) from None

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self.update({name: value})

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *WORDS})

    def __repr__(self) -> str:
        # A URL has a password, and so may what is only meant for other systems.
        return f"<Conf: {', '.join(name if _secret(name) else f'{name}={shown(self[name])}' for name in self)}>"


def read_object(source: object, namespace: str = "") -> dict[str, object]:
    """Return the settings of a module, a class, an object or a mapping, unchecked, under their lower-case names.

    - `source`: one of these, or its dotted name, such as "celeryconfig", "django.conf:settings", "pkg.mod:Class".
    - `namespace`: only names in capitals that begin with it count: with "CELERY" CELERY_TASK_ACKS_LATE is
      task_acks_late. Without it names are as they are, and what is not a setting is let be.

    Raises SettingsError for a name that is almost one of ours, or one of before Celery 4, and if there is no `source`
    (its cause is an ImportError if a module is missing).

        app.conf.update(read_object("django.conf:settings", namespace="CELERY"))
    """
    if isinstance(source, str):
        source = import_object(source)
    if namespace:
        return _namespaced(source, namespace.rstrip("_").upper() + "_")
    return dict(source) if isinstance(source, Mapping) else _plain(source)


def read_envvar(variable: str, environ: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Return the settings of the module that a variable names; raises SettingsError if it names none."""
    name = environ.get(variable)
    if not name:
        raise SettingsError(f"the variable {variable} is {'empty' if name == '' else 'not set'}; it names the "
                            "module with the settings, such as celeryconfig")  # fmt: skip
    try:
        return read_object(name)
    except SettingsError as error:
        raise SettingsError(f"{variable}={name}: {error}") from error.__cause__


def import_object(path: str) -> object:
    """Return the object of a dotted name, "pkg.mod", "pkg.mod:name" or "pkg.mod.name"; raises SettingsError."""
    if not _DOTTED.fullmatch(path):
        raise SettingsError(f"{shown(path)} is not a dotted name, such as 'celeryconfig' or 'django.conf:settings'")
    module, colon, name = path.partition(":")
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and misses another: for its author to see
        parent, dot, last = module.rpartition(".")
        if dot and not colon:
            return _attribute(import_object(parent), last, path)
        raise SettingsError(f"there is no module {module!r}; is its folder on the Python path?") from error
    return _attribute(found, name, path) if colon else found


_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")


def _attribute(found: object, name: str, path: str) -> object:
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SettingsError(f"{path!r} cannot be found: {shown(found)} has no {part!r}") from None
    return found


def _namespaced(source: object, prefix: str) -> dict[str, object]:
    found: dict[str, object] = {}
    strangers = []
    names = _names(source)
    for name in names:
        if not name.isupper() or not name.startswith((prefix, "CELERYD_", "CELERYBEAT_")):
            continue
        if not name.startswith(prefix):
            # What those programs were once told; another namespace has nothing to do with it.
            if prefix == "CELERY_" and (new := renamed(name)) and prefix + new.upper() not in names:
                raise SettingsError(f"{name} is from before Celery 4: write {prefix}{new.upper()}")
            continue
        setting = name.removeprefix(prefix).lower()
        if setting in WORDS:
            found[setting] = _value(source, name)
        elif new := renamed(setting) or _near(setting):
            if prefix + new.upper() not in names:
                raise SettingsError(f"{name} is not a setting; did you mean {prefix}{new.upper()}?")
        else:
            strangers.append(name)
    if strangers:
        warnings.warn(f"not settings, and not read: {', '.join(strangers)}", UserWarning, stacklevel=3)
    return found


def _plain(source: object) -> dict[str, object]:
    found: dict[str, object] = {}
    names = _names(source)
    for name in names:
        # Values are read of names that count: a property of a stranger may do anything.
        old = renamed(name) if name.isupper() and (name.lower() in WORDS or name.startswith("CELERY")) else None
        near = _near(name) if name.islower() and not name.startswith("_") and name not in WORDS else None
        if name not in WORDS and not old and not near:
            continue
        value = _value(source, name)
        if isinstance(value, ModuleType | type):  # `from datetime import timezone` sets nothing
            continue
        if name in WORDS:
            found[name] = value
        elif old and old not in names:
            raise SettingsError(f"{name}: write {old}, or read names in capitals with namespace='CELERY'")
        elif near and not callable(value):
            raise SettingsError(f"{name} is not a setting; did you mean {near}? (if it is your own, call it _{name})")
    return found


def _names(source: object) -> list[str]:
    return [name for name in (source if isinstance(source, Mapping) else dir(source)) if isinstance(name, str)]


def _value(source: object, name: str) -> object:
    return source[name] if isinstance(source, Mapping) else getattr(source, name)


# -- names ---------------------------------------------------------------------------------------------------------


def _word(name: str) -> Word:
    try:
        return WORDS[name]
    except (KeyError, TypeError):
        raise SettingsError(_unknown(name)) from None


def _unknown(name: object) -> str:
    if not isinstance(name, str):
        return f"the name of a setting is a text, not {shown(name)}"
    if new := renamed(name):
        return f"unknown setting {name!r}: write {new!r}" + (
            ", or read names in capitals with namespace='CELERY'" if name.isupper() else ""
        )
    near = difflib.get_close_matches(name.lower(), WORDS, 1)
    return f"unknown setting {name!r}; " + (
        f"did you mean {near[0]!r}?" if near else "values of your own have no place in the configuration"
    )


def _near(name: str) -> str | None:
    """Return the setting that a name is a slip of the pen away from."""
    return next(iter(difflib.get_close_matches(name, WORDS, 1, 0.9)), None)


def renamed(name: str) -> str | None:
    """Return the setting that a name in capitals, or one of before Celery 4, stands for now."""
    old = name.lower()
    for prefix, groups in _OLD_PREFIXES:
        if old.startswith(prefix):
            rest = old.removeprefix(prefix)
            found = next((group + rest for group in groups if group + rest in WORDS), _IRREGULAR.get(rest))
            if found is not None and found != name:
                return found
    return None


_OLD_PREFIXES = (
    ("celeryd_", ("", "worker_", "task_")),
    ("celerybeat_", ("", "beat_")),
    ("celery_", ("", "task_", "worker_", "beat_")),
    ("", ("", "task_", "worker_", "beat_")),
)
_IRREGULAR = {
    "eager_propagates_exceptions": "task_eager_propagates",
    "max_cached_results": "result_cache_max",
    "message_compression": "task_compression",
    "result_db_short_lived_sessions": "database_short_lived_sessions",
    "result_db_tablenames": "database_table_names",
    "result_dburi": "result_backend",
    "result_engine_options": "database_engine_options",
    "send_events": "worker_send_task_events",
    "send_task_sent_event": "task_send_sent_event",
    "task_result_expires": "result_expires",
    "cassandra_column_family": "cassandra_table",
}


def _secret(name: str) -> bool:
    return WORDS[name].verdict != "used" or name in ("broker_url", "result_backend")


# -- values --------------------------------------------------------------------------------------------------------


def _checked(word: Word, value: object) -> object:
    """Return a value as it is kept; raises SettingsError."""
    try:
        kept = value if word.check is None else word.check(word.name, value)
    except InvalidOption as error:
        raise SettingsError(str(error)) from None
    if word.verdict == "refused" and _differs(word, kept):
        said = word.name if word.default is None else f"{word.name}={shown(value)}"
        raise SettingsError(f"{said} is refused: {word.why}")
    return kept


def _asks_in_vain(word: Word, value: object) -> bool:
    """Return whether a value asks for something that does not happen."""
    return _differs(word, value) and (word.verdict == "warned" or (word.verdict == "same" and word.check is not None))


def _differs(word: Word, value: object) -> bool:
    return type(value) is not type(word.default) or value != word.default


def _check_together(values: Mapping[str, Any]) -> None:
    """Raise SettingsError for settings that contradict each other."""
    try:
        check_time_limits(values.get("task_time_limit"), values.get("task_soft_time_limit"))
    except InvalidOption as error:
        raise SettingsError(f"task_time_limit and task_soft_time_limit: {error}") from None
    broker, backend = values.get("broker_url"), values.get("result_backend")
    if broker and backend and _database(broker) != _database(backend):
        raise SettingsError(
            "result_backend is another database than broker_url: results are where the jobs are; leave it out"
        )


def _database(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2].removesuffix(":5432"), parts.path.strip("/")


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f"{name} must be True or False, not {shown(value)}")
    return value


def _count(name: str, value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{name} must be an integer from {least}, or None for the default, not {shown(value)}")
    return value


def _count_from_0(name: str, value: object) -> int:
    return _count(name, value, 0)


def _priority(name: str, value: object) -> int:
    if _count(name, value, 0) > 9:
        raise InvalidOption(f"{name} must be an integer from 0 to 9 (9 runs first), not {shown(value)}")
    return value  # type: ignore[return-value]


def _limit(name: str, value: object) -> float:
    limit = seconds(name, value)
    if limit == 0:
        raise InvalidOption(f"{name} must be more than 0 seconds; None is no limit")
    return limit


def _result_expires(name: str, value: object) -> timedelta | None:
    return None if value is None else timedelta(seconds=seconds(name, value)) or None


def _queue(name: str, value: object) -> str:
    return check_text(name, value, 100)


def _rate(name: str, value: object) -> object:
    try:
        check_rate(value)
    except InvalidOption as error:
        raise InvalidOption(f"{name}: {error}") from None
    return value


def _timezone(name: str, value: object) -> tzinfo:
    if isinstance(value, tzinfo):
        return value
    if not isinstance(value, str):
        raise InvalidOption(f"{name} must be the name of a time zone, such as 'UTC', or a tzinfo, not {shown(value)}")
    try:
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(value, available_timezones(), 1)
        raise InvalidOption(
            f"{name}={shown(value)} is not a time zone; "
            + (f"did you mean {near[0]!r}?" if near else "such as 'UTC' or 'Europe/Vienna'")
        ) from None


def _modules(name: str, value: object) -> tuple[str, ...]:
    modules = (value,) if isinstance(value, str) else value
    if not isinstance(modules, list | tuple | set | frozenset):
        raise InvalidOption(f"{name} must be a list of modules, such as ['shop.tasks'], not {shown(value)}")
    for module in modules:
        if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
            raise InvalidOption(f"{name}: {shown(module)} is not the name of a module, such as 'shop.tasks'")
    return tuple(modules)


def _retry_policy(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"{name} must be a dict, such as {{'max_retries': 3}}, not {shown(value)}")
    known = ("max_retries", "interval_start", "interval_step", "interval_max", "retry_errors")
    check_names(f"key of {name}", value, known)
    for key in known[:4]:
        if value.get(key) is not None:
            seconds(f"{key} of {name}", value[key])
    return dict(value)


def _routes(name: str, value: object) -> object:
    Router(value, import_object)
    return value


def _annotations(name: str, value: object) -> object:
    check_annotations(value)
    return value


def _queues(name: str, value: object) -> tuple[str, ...] | None:
    return queue_names(value) or None


def _pool(name: str, value: object) -> object:
    if value in ("gevent", "eventlet"):
        raise InvalidOption(
            f"{name}={value!r} is not here: take 'threads' for functions that wait, 'asyncio' for coroutines"
        )
    pools = ("prefork", "solo", "threads", "asyncio")
    if value not in pools:
        raise InvalidOption(f"{name}={shown(value)} does not exist; choose {', '.join(pools)}")
    return value


def _broker_url(name: str, value: object) -> str:
    return _postgresql(name, value, "sqla+", "jobs are in PostgreSQL; give a URL such as postgresql://host/database")


def _result_backend(name: str, value: object) -> str:
    return _postgresql(
        name, value, "db+", "results are in PostgreSQL, where the jobs are; leave it out (or task_ignore_result = True)"
    )


def _postgresql(name: str, value: object, prefix: str, why: str) -> str:
    """Return libpq's form of a URL; an error shows no more of it than the scheme: the rest may be a password."""
    if not isinstance(value, str):
        raise InvalidOption(f"{name} must be one URL as a text, not {type(value).__name__}: {why}")
    dsn = find_dsn(value.removeprefix(prefix), {}) if value else ""
    scheme, found, _ = dsn.partition("://")
    if found and re.fullmatch(r"[\w+.-]+", scheme) and scheme not in ("postgresql", "postgres"):
        raise InvalidOption(f"{name} is {scheme}://: {why}")
    try:
        urlsplit(dsn)
    except ValueError:
        found = ""
    if not found or ";" in dsn:
        raise InvalidOption(f"{name} is not one URL of PostgreSQL: {why}")
    return dsn


def _json(name: str, value: object) -> object:
    return "json" if value in ("json", "application/json") else value


def _accept_content(name: str, value: object) -> object:
    """Return ("json",) for whatever has it in it: what else would be accepted is never met."""
    accepted = isinstance(value, list | tuple | set | frozenset) and any(_json(name, kind) == "json" for kind in value)
    return ("json",) if accepted else value


def _delivery_mode(name: str, value: object) -> object:
    return {1: "transient", 2: "persistent"}.get(value, value) if isinstance(value, int) else value


def _schedule(name: str, value: object) -> object:
    return value or None  # nobody misses an empty one


# -- the table -----------------------------------------------------------------------------------------------------


def _alike(verdict: Verdict, why: str, names: str, default: object = None) -> Iterator[Word]:
    """Words that share their fate; a flag is checked as one."""
    check = _flag if isinstance(default, bool) else None
    return (Word(name, verdict, default, check, why) for name in names.split())


_LATER_EVENTS = "events are not here yet"
_LATER_BEAT = "periodic tasks are not here yet"
_NO_EXCHANGES = "there are no exchanges: a job names its queue, and a queue is there once it is named"
_IN_DSN = "say it in broker_url (or dsn=), such as postgresql://user:password@host:5432/database"
_IN_POSTGRESQL = "results are in PostgreSQL, where the jobs are"
_ONLY_JSON = "everything is stored as JSON; convert other values in the task, or let pydantic models do it"
_NOT_SIGNED = "messages are not signed; the roles of the database say who may enqueue. Leave it out"
_LOGGING = "logging belongs to your program: give the loggers 'pgqueue' and your own what handlers they need"
_DAEMON = "the process belongs to who starts it: systemd, a container, or --pidfile and redirection in a shell"
_BY_DATABASE = "workers know of each other and of what is asked of them through the database"

_TABLE = (
    # Time and modules
    Word("timezone", "used", None, _timezone, "Zone in which times without one are meant, a name or a tzinfo; kept as "
         "a tzinfo. Default none, in Celery UTC: a time without a zone is refused."),
    Word("enable_utc", "same", True, _flag, "times are stored with their zone; timezone says which one is meant"),
    Word("imports", "used", (), _modules, "Modules that a worker imports, first these."),
    Word("include", "used", (), _modules, "Modules that a worker imports, then these."),
    # Messages
    Word("accept_content", "refused", ("json",), _accept_content, _ONLY_JSON),
    Word("result_accept_content", "refused", ("json",), _accept_content, _ONLY_JSON),
    Word("task_serializer", "refused", "json", _json, _ONLY_JSON),
    Word("result_serializer", "refused", "json", _json, _ONLY_JSON),
    *_alike("warned", "PostgreSQL compresses large values by itself", "task_compression result_compression"),
    Word("task_protocol", "warned", 2, None, "a job is a row, not a message"),
    Word("task_args_repr_function", "warned", None, None, "arguments are shown as they are stored; "
         "argsrepr= and kwargsrepr= of a call show something else"),
    Word("task_publish_retry", "same", True, _flag, "an enqueue whose connection broke is sent once more, and is once"),
    Word("task_publish_retry_policy", "warned", None, _retry_policy, "an enqueue whose connection broke is sent once "
         "more, at once"),
    # How tasks run
    Word("task_annotations", "used", None, _annotations, "Options of tasks that win over those in the code."),
    Word("task_always_eager", "used", False, _flag, "Calls run here and now; for tests."),
    Word("task_eager_propagates", "used", False, _flag, "A call that runs here and now raises what its task raises."),
    Word("task_store_eager_result", "warned", False, _flag, "what runs here and now leaves nothing in the database"),
    Word("task_ignore_result", "used", False, _flag, "Keep no results, unless the task or the call says so."),
    Word("task_store_errors_even_if_ignored", "used", False, _flag, "Keep errors where results are not kept."),
    Word("task_time_limit", "used", None, _limit, "Seconds after which an attempt ends as FAILURE; default no limit."),
    Word("task_soft_time_limit", "used", None, _limit, "Seconds after which SoftTimeLimitExceeded is raised."),
    Word("task_acks_late", "used", True, _flag, "True, the default here and not in Celery: a job is acknowledged when "
         "it has ended, and repeated if its worker dies. False: acknowledged before it starts, at most once."),
    Word("task_acks_on_failure_or_timeout", "used", True, _flag, "False: a job that met its time limit is repeated."),
    Word("task_acks_on_failure", "used", None, _flag, "For failures alone; default as the one for both."),
    Word("task_acks_on_timeout", "used", None, _flag, "For time limits alone; default as the one for both."),
    Word("task_reject_on_worker_lost", "used", True, _flag, "True, the default here and not in Celery: a job whose "
         "worker died waits again, up to max_crashes times. False: it ends as FAILURE."),
    Word("task_default_rate_limit", "warned", None, _rate, "rate limits are checked, and not enforced yet"),
    Word("worker_disable_rate_limits", "warned", True, _flag, "rate limits are not enforced yet"),
    Word("task_track_started", "same", True, _flag, "a job that runs is always seen as STARTED"),
    Word("task_remote_tracebacks", "same", True, _flag, "an error always has the traceback of the worker"),
    Word("task_allow_error_cb_on_chord_header", "used", False, _flag, "True: link_error of a chord is for the members "
         "of its header too, as well as for its body."),
    # Queues
    Word("task_default_queue", "used", "default", _queue, "Queue of what names none; Celery's default is 'celery'."),
    Word("task_default_priority", "used", 5, _priority, "0 to 9; 9 runs first, as with RabbitMQ."),
    Word("task_inherit_parent_priority", "used", False, _flag, "Calls in a task have the priority of its job."),
    Word("task_queues", "used", None, _queues, "Queues of a worker that is not told others by -Q; kept as names."),
    Word("task_create_missing_queues", "used", True, _flag, "False: a queue that task_queues lacks is an error."),
    Word("task_routes", "used", None, _routes, "Queues and options of calls, by the names of tasks."),
    Word("task_queue_max_priority", "warned", None, None, "every queue has the priorities 0 to 9"),
    *_alike("warned", _NO_EXCHANGES, """task_create_missing_queue_type task_create_missing_queue_exchange_type
        task_default_queue_type task_default_exchange task_default_exchange_type task_default_routing_key
        result_exchange result_exchange_type"""),
    Word("task_default_delivery_mode", "same", "persistent", _delivery_mode, "a job is on disk when the call returns"),
    Word("worker_direct", "refused", False, _flag, "no worker has a queue of its own by itself; "
         "give it one with -Q and send to that"),
    # Results
    Word("result_backend", "used", None, _result_backend, "The database of the jobs; need not be set."),
    Word("result_expires", "used", timedelta(days=1), _result_expires, "Seconds or timedelta that results are kept; "
         "None and 0: for ever.", none=True),
    Word("result_extended", "same", True, _flag, "a result always has the name, arguments, worker and queue"),
    Word("result_persistent", "same", True, _flag, "results are rows of a table"),
    Word("result_backend_always_retry", "same", True, _flag, "a lost connection is always made again"),
    Word("result_backend_thread_safe", "same", True, _flag, "threads share a pool of connections"),
    *_alike("warned", "lost connections are made again at a pace of their own", """
        result_backend_max_sleep_between_retries_ms result_backend_base_sleep_between_retries_ms
        result_backend_max_retries"""),
    Word("result_backend_transport_options", "warned", None, None, _IN_POSTGRESQL),
    Word("result_cache_max", "warned", -1, None, "a result is read from the database each time it is asked for"),
    *_alike("warned", "a chord is counted in the commits of its members, and nothing polls for it", """
        result_chord_join_timeout result_chord_retry_interval"""),
    Word("override_backends", "refused", None, None, f"{_IN_POSTGRESQL}; what else is to be known of a job can be "
         "stored by the task or by a signal"),
    Word("database_url", "refused", None, None, f"{_IN_POSTGRESQL}; {_IN_DSN}"),
    *_alike("warned", "connections have the settings pool_size, connect_timeout and statement_timeout", """
        database_engine_options database_short_lived_sessions database_engine_callback"""),
    *_alike("warned", "the setting schema names the schema, and its tables have fixed names",
            "database_table_schemas database_table_names"),
    Word("database_create_tables_at_setup", "warned", None, None, "`pgqueue migrate` makes the tables"),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in Redis", """
        redis_backend_credential_provider redis_backend_health_check_interval redis_backend_use_ssl redis_client_name
        redis_db redis_host redis_max_connections redis_password redis_port redis_retry_on_timeout
        redis_socket_connect_timeout redis_socket_keepalive redis_socket_timeout redis_username"""),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in a cache", "cache_backend cache_backend_options"),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in Cassandra", """
        cassandra_auth_kwargs cassandra_auth_provider cassandra_bundle_path cassandra_entry_ttl cassandra_keyspace
        cassandra_options cassandra_port cassandra_read_consistency cassandra_secure_bundle_path cassandra_servers
        cassandra_table cassandra_write_consistency"""),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in Elasticsearch", """
        elasticsearch_max_retries elasticsearch_retry_on_timeout elasticsearch_save_meta_as_text
        elasticsearch_timeout"""),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in a store of objects", """
        s3_access_key_id s3_base_path s3_bucket s3_endpoint_url s3_region s3_secret_access_key
        azureblockblob_base_path azureblockblob_connection_timeout azureblockblob_container_name
        azureblockblob_read_timeout azureblockblob_retry_increment_base azureblockblob_retry_initial_backoff_sec
        azureblockblob_retry_max_attempts gcs_base_path gcs_bucket gcs_project gcs_threadpool_maxsize gcs_ttl"""),
    *_alike("warned", f"{_IN_POSTGRESQL}, not in another database", """
        arangodb_backend_settings cosmosdbsql_collection_name cosmosdbsql_consistency_level cosmosdbsql_database_name
        cosmosdbsql_max_retry_attempts cosmosdbsql_max_retry_wait_time couchbase_backend_settings
        dynamodb_endpoint_url firestore_project mongodb_backend_settings"""),
    # The database instead of a broker
    Word("broker_url", "used", None, _broker_url, "DSN of the database; that of the command line and dsn= win."),
    *_alike("refused", f"there is one database for all; {_IN_DSN}", "broker_read_url broker_write_url"),
    *_alike("refused", _IN_DSN, "broker_host broker_port broker_user broker_password broker_vhost broker_transport"),
    Word("broker_use_ssl", "refused", False, None, "say it in broker_url (or dsn=): "
         "postgresql://host/database?sslmode=verify-full&sslrootcert=..."),
    Word("broker_connection_retry", "same", True, _flag, "a worker always connects again"),
    Word("broker_connection_retry_on_startup", "same", True, _flag, "a worker waits for the database when it starts"),
    Word("broker_connection_max_retries", "warned", None, None, "a worker goes on until it is stopped"),
    Word("broker_channel_error_retry", "warned", None, None, "a connection that answers nonsense is given up"),
    Word("broker_connection_timeout", "warned", None, None, "the setting connect_timeout says it, in seconds"),
    Word("broker_pool_limit", "warned", None, None, "the setting pool_size says it"),
    Word("broker_failover_strategy", "warned", None, None, "libpq tries the hosts of one DSN: postgresql://a,b/shop"),
    Word("broker_transport_options", "warned", None, None, "there is no visibility timeout: a job waits again when its "
         "worker has died, not before"),
    *_alike("warned", "the settings beat_interval and dead_after say it, in seconds",
            "broker_heartbeat broker_heartbeat_checkrate"),
    Word("broker_login_method", "warned", None, None, _IN_DSN),
    Word("broker_native_delayed_delivery_queue_type", "warned", None, None, "a job with an eta waits in the table"),
    # Workers
    Word("worker_concurrency", "used", None, _count, "Processes, threads or coroutines; default one for each CPU."),
    Word("worker_pool", "used", "prefork", _pool, "prefork, solo, threads, or asyncio, which Celery has not."),
    Word("worker_prefetch_multiplier", "used", 0, _count_from_0, "Jobs claimed ahead at most, for each slot; "
         "0, the default here: as many as pay. Celery's default is 4."),
    Word("worker_max_tasks_per_child", "used", None, _count, "Jobs after which a process is replaced."),
    Word("worker_max_memory_per_child", "used", None, _count, "KiB of memory after which a process is replaced."),
    Word("worker_deduplicate_successful_tasks", "same", True, _flag, "a job that succeeded is never run again"),
    Word("worker_eta_task_limit", "same", None, None, "a job with an eta waits in the table, not in a worker"),
    Word("worker_enable_prefetch_count_reduction", "same", None, None, "a worker claims for the slots that are free"),
    Word("worker_detect_quorum_queues", "same", None, None, "every queue is a set of rows"),
    Word("worker_disable_prefetch", "warned", False, _flag, "worker_prefetch_multiplier = 1 claims one job a slot"),
    Word("worker_cancel_long_running_tasks_on_connection_loss", "warned", None, None, "an attempt goes on, and what "
         "it writes is refused if another worker has its job"),
    *_alike("warned", "the setting grace, or --grace, says how long running tasks have to end",
            "worker_soft_shutdown_timeout worker_enable_soft_shutdown_on_idle"),
    *_alike("refused", "workers have no parts to be exchanged; take signals, or a command of your own",
            "worker_agent worker_consumer"),
    Word("worker_autoscaler", "warned", None, None, "processes come and go by one rule; --autoscale gives its limits"),
    *_alike("warned", "the setting poll_interval says how soon a job is found that is due",
            "worker_timer worker_timer_precision"),
    *_alike("warned", "the supervisor starts and replaces processes by itself",
            "worker_lost_wait worker_pool_putlocks worker_pool_restarts worker_proc_alive_timeout"),
    Word("worker_state_db", "warned", None, None, "what is revoked is known in the database"),
    *_alike("warned", _BY_DATABASE, """worker_enable_remote_control control_exchange control_queue_durable
        control_queue_exclusive control_queue_expires control_queue_ttl"""),
    *_alike("warned", _LOGGING, "worker_hijack_root_logger worker_redirect_stdouts", False),
    *_alike("warned", _LOGGING, "worker_redirect_stdouts_level worker_log_color worker_log_format "
            "worker_task_log_format"),
    *_alike("warned", _DAEMON, """worker_logfile worker_pidfile worker_uid worker_gid worker_umask worker_executable
        beat_logfile beat_pidfile beat_uid beat_gid beat_umask beat_executable
        events_logfile events_pidfile events_uid events_gid events_umask events_executable"""),
    # Events, schedules, security
    *_alike("warned", _LATER_EVENTS, "worker_send_task_events task_send_sent_event", False),
    *_alike("warned", _LATER_EVENTS, """event_exchange event_queue_durable event_queue_exclusive event_queue_expires
        event_queue_prefix event_queue_ttl event_serializer"""),
    Word("beat_schedule", "warned", None, _schedule, _LATER_BEAT),
    *_alike("warned", _LATER_BEAT, """beat_scheduler beat_schedule_filename beat_sync_every beat_max_loop_interval
        beat_cron_starting_deadline"""),
    *_alike("refused", _NOT_SIGNED, "security_key security_key_password security_certificate security_cert_store"),
    Word("security_digest", "refused", "sha256", None, _NOT_SIGNED),
)  # fmt: skip

#: Every setting of Celery 5.6 by its name.
WORDS: Mapping[str, Word] = {word.name: word for word in _TABLE}
