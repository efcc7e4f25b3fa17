"""The table of Celery's words against the code: what it says is here is here, and everything that is here is in it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import pgqueue
from pgqueue import (
    GroupResult,
    PgQueue,
    Signature,
    State,
    Task,
    chain,
    chord,
    errors,
    group,
    options,
    signals,
    types,
)
from pgqueue.cli.celery_words import (
    CHANGED,
    LATER,
    NEW,
    SAME,
    SECTIONS,
    STRONGER,
    UNSUPPORTED,
    Word,
    find,
    markdown,
    setting,
    setting_named,
)
from pgqueue.conf import WORDS as SETTINGS
from pgqueue.eager_result import EagerResult
from pgqueue.tracer import Context

_PAGE = Path(__file__).parents[2] / "docs" / "coming-from-celery.md"
_PRESENT = {SAME, STRONGER, CHANGED}
_QUOTED = re.compile(r"`([^`]+)`")


def _public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def _parameters(*functions: object) -> set[str]:
    """The named parameters of functions, but for `self` and those that only collect others."""
    found = [inspect.signature(function).parameters.values() for function in functions]  # type: ignore[arg-type]
    return {one.name for group in found for one in group if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


@pytest.fixture(scope="module")
def ours() -> dict[str, set[str]]:
    """What our code has in the place of each section."""
    app = PgQueue("words", dsn="postgresql://nowhere/at_all", set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    result = app.AsyncResult("00000000-0000-0000-0000-000000000001")
    flags = {"revoke": _parameters(result.revoke), "get": _parameters(result.get)}
    return {
        "options": {*options.TASK_OPTIONS, *options.WARNED_TASK_OPTIONS, "base", "run"},
        "calls": {*options.CALL_OPTIONS, *options.WARNED_CALL_OPTIONS, *_parameters(add.apply_async, add.s().set)},
        "retry": {*_parameters(add.retry), "queue", "priority", "expires", "headers", "ignore_result", "time_limit"}
        | {"soft_time_limit"},
        "app": _public(app),
        "arguments": _parameters(PgQueue),
        "task": _public(add),
        "hooks": set(dir(Task)),
        "request": _public(Context()),
        "result": _public(result) | {f"{call}({name}=)" for call, names in flags.items() for name in names},
        "results": _public(app.ResultSet([])) | _public(GroupResult(result.id)),
        "signals": {name for name, value in vars(signals).items() if isinstance(value, signals.Signal)},
        "signal": _public(signals.worker_init),
        "exceptions": {
            name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BaseException)
        },
        "states": set(State.__members__),
        "signature": set.union(*map(_public, (Signature, chain, group, chord)), {"|", "~"}),
        "settings": set(SETTINGS),
    }


#: Attributes that parts of pgqueue need of each other; nobody else should build on them.
_INSIDE = {
    "app": {
        "adopt", "aenqueue", "aenqueue_plan", "always_eager", "annotations", "callee", "check_queue", "close_loop",
        "database", "defaults", "eager_propagates", "enqueue", "enqueue_plan", "errbacks_of_headers", "has_routes",
        "inherits_priority", "listener",
        "max_payload_bytes", "max_requeues", "route", "run_job", "run_plan", "settings",
    },
    "task": {
        "MaxRetriesExceededError", "apply_options", "arguments", "declare", "declared", "function", "handle",
        "has_own_call", "is_coroutine", "job", "max_payload_bytes", "max_requeues", "options", "resolve",
        "retry_policy", "transactional",
    },
    "request": {
        "around", "asked", "begun", "claim", "entering", "keeps_trail", "max_retries", "transactor", "transacts",
        "unheard",
    },
    "result": {"meta"},
    "results": set[str](),
    "exceptions": {"BenchFailed"},
    "signature": {
        "around", "continuation", "followers", "is_empty", "job", "kind", "of", "parts", "single", "unchained",
        "unfold", "with_body",
    },
    "signal": {"heard_by", "name", "payload"},
}  # fmt: skip


def missing(ours: dict[str, set[str]]) -> list[str]:
    """Words that the table says are here, and that are not, nor anything that their sentence names instead."""
    everywhere = set.union(*ours.values(), set(pgqueue.__all__), set(vars(types)))
    found = []
    for section in ours:
        for word in SECTIONS[section].words():
            named = {name for quoted in _QUOTED.findall(word.note) for name in re.findall(r"\w+", quoted)}
            instead = word.verdict == CHANGED and everywhere & named
            here = word.name.partition("=")[0] if section in ("calls", "options") else word.name
            if word.verdict in _PRESENT and here not in ours[section] and not instead:
                found.append(f"{section}: {word.name}")
    return found


def unnamed(ours: dict[str, set[str]]) -> list[str]:
    """What is here, and has no line in the table."""
    new = {word.name for word in SECTIONS["new"].words()}
    lines = {section: {word.name for word in SECTIONS[section].words()} for section in SECTIONS}
    lines["task"] |= lines["options"] | lines["hooks"]
    lines["results"] |= lines["result"]
    return [
        f"{section}: {name}"
        for section, names in ours.items()
        if section not in ("hooks", "arguments")
        for name in sorted(names)
        if name not in lines[section] | _INSIDE.get(section, set()) and SECTIONS[section].shown.format(name) not in new
    ]


def test_every_word_that_is_said_to_be_here_is_here(ours: dict[str, set[str]]) -> None:
    assert missing(ours) == []


def test_everything_that_is_here_has_a_line(ours: dict[str, set[str]]) -> None:
    assert unnamed(ours) == []


def test_these_tests_find_what_they_look_for(ours: dict[str, set[str]]) -> None:
    broken = {**ours, "request": ours["request"] - {"retries"} | {"brand_new"}}
    assert "request: retries" in missing(broken)
    assert "request: brand_new" in unnamed(broken)


def test_what_eager_results_have_is_what_others_have(ours: dict[str, set[str]]) -> None:
    assert _public(EagerResult) <= ours["result"]


@pytest.mark.parametrize(
    ("section", "refused", "warned"),
    [
        ("options", options.REFUSED_TASK_OPTIONS, options.WARNED_TASK_OPTIONS),
        ("calls", options.REFUSED_CALL_OPTIONS, options.WARNED_CALL_OPTIONS),
    ],
)
def test_what_is_refused_and_what_is_warned_of_is_told_so(
    section: str, refused: dict[str, str], warned: dict[str, str]
) -> None:
    verdicts = {word.name: word.verdict for word in SECTIONS[section].words()}
    assert {name for name in refused if verdicts[name] not in (UNSUPPORTED, LATER)} == set()
    assert {name for name in warned if verdicts[name] != CHANGED} == set()


@pytest.mark.parametrize("word", [word for word in SECTIONS["imports"].words() if word.verdict == SAME])
def test_an_import_that_stays_the_same_can_be_made(word: Word) -> None:
    found = re.search(r"from (pgqueue[\w.]*) import (\w+)", word.note)
    assert found is not None
    module, name = found.groups()
    assert hasattr(importlib.import_module(module), name)


def test_no_word_stands_twice_in_a_section() -> None:
    for section in SECTIONS.values():
        names = [word.name for word in section.words()]
        assert sorted(names) == sorted(set(names))


def test_only_the_last_section_is_of_what_celery_does_not_know() -> None:
    for key, section in SECTIONS.items():
        assert {word.verdict == NEW for word in section.words()} == {key == "new"}
    assert list(SECTIONS)[-1] == "new"


def test_a_word_that_cannot_stay_says_why() -> None:
    silent = [
        word.name for section in SECTIONS.values() for word in section.words() if word.verdict != SAME and not word.note
    ]
    assert silent == []


def test_a_sentence_is_one_line_that_a_table_can_hold() -> None:
    for section in SECTIONS.values():
        for word in section.words():
            assert "\n" not in word.note
            assert "|" not in word.note
            assert word.note == "" or word.note.endswith("."), word


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("task_serializer", "json", SAME),
        ("task_serializer", "pickle", UNSUPPORTED),
        ("accept_content", ["json", "pickle"], SAME),
        ("accept_content", ["pickle"], UNSUPPORTED),
        ("broker_url", "redis://localhost", CHANGED),
        ("broker_url", None, CHANGED),
        ("worker_pool", "gevent", CHANGED),
        ("task_always_eager", True, SAME),
        ("task_track_started", True, STRONGER),
        ("beat_schedule", {}, LATER),
        ("worker_direct", True, UNSUPPORTED),
    ],
)
def test_settings_are_judged_with_their_values(name: str, value: object, verdict: str) -> None:
    word = setting(name, value)
    assert word is not None
    assert word.verdict == verdict


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERY_TASK_ALWAYS_EAGER", "task_always_eager"),
        ("CELERY_ALWAYS_EAGER", "task_always_eager"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERYBEAT_SCHEDULE", "beat_schedule"),
        ("CELERY_OF_OUR_OWN", None),
    ],
)
def test_settings_in_capitals_have_present_names(variable: str, name: str | None) -> None:
    assert setting_named(variable) == name


def test_a_namespace_of_ones_own_is_known() -> None:
    assert setting_named("QUEUE_TASK_ACKS_LATE", "QUEUE_") == "task_acks_late"


def test_unknown_words_are_none() -> None:
    assert find("app", "tsak") is None
    assert setting("tsak") is None


def test_the_page_has_the_tables_as_they_are() -> None:
    """Mended by `pgqueue celery-check --words`, between the two marks."""
    page = _PAGE.read_text(encoding="utf-8")
    _, start, rest = page.partition("<!-- words: `pgqueue celery-check --words` -->\n\n")
    tables, end, _ = rest.partition("\n<!-- end of words -->")
    assert start
    assert end
    assert tables == markdown()


def test_every_section_has_its_heading_in_the_page() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    assert [section.title for section in SECTIONS.values() if f"### {section.title}\n" not in page] == []
