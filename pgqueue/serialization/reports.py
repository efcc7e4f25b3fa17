"""Error reports to JSON text, and back: neither way can fail."""

from __future__ import annotations

import dataclasses
from math import isfinite

from pydantic_core import from_json, to_json

from pgqueue.serialization.limits import INT_LIMIT, MAX_CAUSES, MAX_DEPTH, shown, visible
from pgqueue.types import ErrorReport, Json


def encode_error(report: ErrorReport) -> str:
    """Return an error report as JSON text that PostgreSQL accepts; never raises.

    - `report`: what JSON or UTF-8 cannot say in it is replaced visibly; at most 10 causes are kept.

    >>> encode_error(ErrorReport("ValueError", "builtins", "bad"))[:31]
    '{"type":"ValueError","module":"'
    """
    return to_json(_as_json(_report_fields(report, MAX_CAUSES), 1)).decode()


def decode_error(text: str) -> ErrorReport:
    """Return the error report of a JSON text; never raises: a failure is shown however it was written.

    >>> decode_error('{"type": "ValueError", "message": "bad"}').message
    'bad'
    """
    try:
        return _error_of(from_json(text), MAX_CAUSES)
    except (ValueError, TypeError):
        return ErrorReport("Exception", "builtins", str(text))


def _report_fields(report: ErrorReport, causes: int) -> dict[str, object]:
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return fields | {"cause": _report_fields(report.cause, causes - 1) if report.cause and causes else None}


def _error_of(value: object, causes: int) -> ErrorReport:
    if not isinstance(value, dict):
        return ErrorReport("Exception", "builtins", str(value))
    args, notes, cause, traceback = (value.get(name) for name in ("args", "notes", "cause", "traceback"))
    return ErrorReport(
        type=str(value.get("type") or "Exception"),
        module=str(value.get("module") or "builtins"),
        message=str(value.get("message") or ""),
        args=tuple(args) if isinstance(args, list) else (),
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
        cause=None if cause is None or causes == 0 else _error_of(cause, causes - 1),
        traceback=None if traceback is None else str(traceback),
    )


def _as_json(value: object, depth: int) -> Json:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return visible(value)
    if type(value) is int and -INT_LIMIT < value < INT_LIMIT:
        return value
    if type(value) is float and isfinite(value):
        return value
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [_as_json(item, depth + 1) for item in value]
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {visible(key): _as_json(item, depth + 1) for key, item in value.items()}
    return shown(value)
