"""The settings of an app: arguments first, then PGQUEUE_* variables, then the defaults here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pgqueue.errors import InvalidOption, SettingsError
from pgqueue.options import check_names, check_text
from pgqueue.sql import DEFAULT_SCHEMA, check_schema_name

#: A libpq variable that says where a server is; any of them is enough to let libpq decide.
_LIBPQ = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")


class Settings(BaseSettings):
    """Everything that can be set for an app; an unknown name is an error.

    Each may come from a variable: `PGQUEUE_` and the name in capitals (`PGQUEUE_SCHEMA` for the schema).
    """

    model_config = SettingsConfigDict(env_prefix="PGQUEUE_", frozen=True, extra="forbid", populate_by_name=True)

    schema_name: str = Field(DEFAULT_SCHEMA, alias="PGQUEUE_SCHEMA", description="Schema of the tables and functions.")
    default_queue: str = Field("default", min_length=1, max_length=100, description="Queue of tasks that name none.")
    max_payload_bytes: int = Field(1_048_576, gt=0, description="Largest args, kwargs, headers or result of a job.")
    result_expires: timedelta = Field(
        timedelta(days=1), ge=timedelta(0), description="How long results are kept; seconds as a number."
    )
    pool_size: int = Field(10, gt=0, description="Most connections that enqueueing and waiting hold at once.")
    connect_timeout: float = Field(10.0, gt=0, description="Seconds to wait for a connection.")
    statement_timeout: float = Field(
        15.0, gt=0, description="Seconds that a statement of pgqueue may take before its connection is given up."
    )
    pooler: bool | None = Field(
        None, description="Whether a transaction pooler such as PgBouncer stands between; found out if not set."
    )
    poll_interval: float = Field(1.0, ge=0.05, le=5.0, description="Longest time between two looks of an idle worker.")
    beat_interval: float = Field(10.0, gt=0, description="Seconds between two beats of a worker.")
    dead_after: float = Field(30.0, gt=0, description="Seconds without a beat after which a worker counts as dead.")
    max_crashes: int = Field(3, ge=1, description="How often a job is repeated whose worker died.")
    max_requeues: int = Field(100, ge=0, description="How often `Reject(requeue=True)` hands a job back.")
    grace: float = Field(30.0, ge=0, description="Seconds that running tasks have to end when a worker stops.")

    @field_validator("schema_name")
    @classmethod
    def _schema_name(cls, value: str) -> str:
        return check_schema_name(value)

    @field_validator("default_queue")
    @classmethod
    def _default_queue(cls, value: str) -> str:
        return check_text("default_queue", value, 100)

    @field_validator("result_expires", mode="before")
    @classmethod
    def _result_expires(cls, value: object) -> object:
        # A variable is always a text, and pydantic reads "3600" as a mistyped duration.
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value


def load_settings(given: Mapping[str, object]) -> Settings:
    """Return the settings from arguments and the environment; raises SettingsError naming the one that is wrong."""
    try:
        check_names("setting", given, Settings.model_fields)
    except InvalidOption as error:
        raise SettingsError(str(error)) from None
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"setting {name}={first['input']!r:.80}: {first['msg']}") from None


def find_dsn(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the DSN of the database: the one given, PGQUEUE_DSN, DATABASE_URL, or "" for libpq's PG* variables.

    Raises SettingsError, naming the cure, where none of them is set: nothing is guessed.

        >>> find_dsn(None, {"DATABASE_URL": "postgresql+psycopg://db/shop"})
        'postgresql://db/shop'
    """
    found = given or environ.get("PGQUEUE_DSN") or environ.get("DATABASE_URL")
    if found:
        # SQLAlchemy and Django spell the driver into the scheme; libpq does not know it.
        return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", found)
    if any(environ.get(name) for name in _LIBPQ):
        return ""
    raise SettingsError(
        "no database is named: pass dsn= or --dsn, or set PGQUEUE_DSN, such as "
        "postgresql://postgres:postgres@127.0.0.1:5432/postgres after `docker compose up -d --wait`"
    )
