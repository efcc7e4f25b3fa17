"""What went wrong, as one sentence with its cure, and the exit code: the only place that knows both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

import psycopg

from pgqueue.cli.context import Context
from pgqueue.errors import (
    SCHEMA_SQLSTATES,
    DatabaseUnavailable,
    InvalidOption,
    PgQueueError,
    SchemaMissing,
    SettingsError,
)

#: In a URI, and in a list of name=value.
_PASSWORD = re.compile(r"//[^:/?#@]*:(.*)@|password\s*=\s*('(?:[^'\\]|\\.)*'|[^\s&]+)")

NEGATIVE, USAGE, NO_DATABASE, TIMED_OUT = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Failure:
    """What is shown: the details, such as the traceback of the user's own module, then the sentence."""

    sentence: str
    code: int
    details: str = ""


def explain(error: Exception, context: Context) -> Failure | None:
    """Return the sentence and the exit code of an error; None for one that is nobody's but ours: show it whole."""
    if isinstance(error, psycopg.Error):
        return _database_error(error, context)
    if isinstance(error, PgQueueError):
        sentence = mask(str(error), context)
        if isinstance(error, SchemaMissing):
            sentence = f"the schema {context.schema!r} is missing or too old: run `pgqueue migrate`"
        return Failure(sentence, _code(error), getattr(error, "details", ""))
    return None


def _code(error: PgQueueError) -> int:
    if isinstance(error, DatabaseUnavailable | SchemaMissing):
        return NO_DATABASE
    if isinstance(error, TimeoutError):
        return TIMED_OUT
    # What was said on the command line or in the environment cannot be used.
    return USAGE if isinstance(error, SettingsError | InvalidOption) else NEGATIVE


def _database_error(error: psycopg.Error, context: Context) -> Failure:
    said = mask(error.diag.message_primary or str(error).strip(), context)
    state = error.sqlstate or ""
    if state in SCHEMA_SQLSTATES and (state == "3F000" or context.schema in str(error)):
        cure = "run `pgqueue migrate`"
        return Failure(f"the schema {context.schema!r} is not in {context.place()}, or too old: {cure}", NO_DATABASE)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return Failure(f"{said} in {context.place()}: use its owner, or let him grant it", NEGATIVE)
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        return Failure(f"{context.place()} gave up: {said}", TIMED_OUT)
    if isinstance(error, psycopg.OperationalError):
        return Failure(f"lost the connection to {context.place()}: {said}", NO_DATABASE)
    return Failure(f"{context.place()} says: {said} (-v shows where)", NEGATIVE)


def mask(text: str, context: Context) -> str:
    """Return a text without the passwords of the DSNs in use."""
    for dsn in context.known_dsns():
        for in_uri, in_words in _PASSWORD.findall(dsn):
            password = in_uri or in_words.strip("'")
            for secret in (password, unquote(password)):
                text = text.replace(secret, "***") if secret else text
    return text
