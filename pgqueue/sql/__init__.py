"""The SQL of pgqueue: tables, functions and inspection queries, one file each, read by name.

In these files the word `pgqueue` always means the schema, so that one substitution gives it another name.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

from pgqueue.errors import SettingsError

DEFAULT_SCHEMA = "pgqueue"

#: The revision of the tables; the newest file in `alembic/versions` has the same.
REVISION = "0005"

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_WORD = re.compile(rf"\b{DEFAULT_SCHEMA}\b")

# Functions that others call in their declarations come first; the rest in alphabetical order.
_FIRST = ("clock", "new_id", "lock_key", "call_idle")


def check_schema_name(schema: str) -> str:
    """Return the name of a schema if it can be one: lower-case letters, digits and _, at most 40 characters."""
    if not _SCHEMA_NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise SettingsError(
            f"schema {schema!r} cannot be used: give lower-case letters, digits and _ (at most 40 characters, "
            "not beginning with a digit or pg_)"
        )
    return schema


@cache
def read(name: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL file `name` (such as "functions/claim" or "inspect/queues") for a schema.

    Raises FileNotFoundError for a name without a file and SettingsError for an impossible schema.

        >>> read("functions/claim").startswith("-- Lease")
        True
    """
    text = files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return rename(text, schema)


def rename(text: str, schema: str) -> str:
    """Return SQL written for the schema `pgqueue` as it reads for another schema."""
    return text if schema == DEFAULT_SCHEMA else _WORD.sub(check_schema_name(schema), text)


def names(folder: str) -> list[str]:
    """Return the names of the SQL files in a folder ("functions" or "inspect"), in the order of installation."""
    found = sorted(
        path.name[: -len(".sql")] for path in files(__name__).joinpath(folder).iterdir() if path.name.endswith(".sql")
    )
    return sorted(found, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


@cache
def functions(schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that installs or replaces every function, takes EXECUTE from PUBLIC, and sets the version."""
    parts = [read(f"functions/{name}", schema) for name in names("functions")]
    parts.append(read("version", schema).replace("{version}", version()))
    parts.append(read("grants", schema))
    return "\n".join(parts)


@cache
def version() -> str:
    """Return what `select pgqueue.version()` answers when tables and functions are those of this program."""
    text = "\n".join(read(f"functions/{name}") for name in names("functions"))
    return f"{REVISION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def schema(name: str = DEFAULT_SCHEMA) -> str:
    """Return one script that creates everything in an empty database; `pgqueue schema` prints it.

    It ends with the version table that `pgqueue migrate` keeps, so that either way may be used later.
    """
    parts = [
        "-- Everything that pgqueue needs in a database; `pgqueue migrate` gives the same.",
        "begin;",
        rename("create schema if not exists pgqueue;\n", check_schema_name(name)),
        read("tables", name),
        functions(name),
        read("alembic_version", name).replace("{revision}", REVISION),
        "commit;\n",
    ]
    return "\n".join(parts)
