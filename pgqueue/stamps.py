"""Stamps: values that a call carries along with its headers, whatever retries and replacements there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgqueue.serialization import decode, encode

#: Where they stand among the headers: Celery's names.
STAMPS, NAMES = "stamps", "stamped_headers"


def stamped(headers: Mapping[str, Any] | None, stamps: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return headers with stamps.

    >>> stamped({"tenant": 1}, {"customer": 7})
    {'tenant': 1, 'stamped_headers': ['customer'], 'stamps': {'customer': 7}}
    """
    return {**(headers or {}), NAMES: list(stamps), STAMPS: dict(stamps)} if stamps else headers


def stamps_of(headers: object) -> dict[str, Any]:
    """Return the stamps among headers.

    >>> stamps_of({"stamped_headers": ["customer"], "stamps": {"customer": 7}})
    {'customer': 7}
    """
    found = headers.get(STAMPS) if isinstance(headers, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def keeping_stamps(headers: str | None, before: str | None) -> str | None:
    """Return JSON headers that take the place of others: with the stamps of both, the new ones first.

    >>> keeping_stamps('{"tenant": 2}', '{"stamped_headers": ["customer"], "stamps": {"customer": 7}}')
    '{"tenant":2,"stamped_headers":["customer"],"stamps":{"customer":7}}'
    """
    if headers is None or before is None or f'"{STAMPS}"' not in before:
        return headers or before
    new = decode(headers)
    kept = {**stamps_of(decode(before)), **stamps_of(new)}
    return encode(stamped(new, kept), path="headers") if isinstance(new, Mapping) else headers


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with others that win over them; of stamps each one does, not all at once.

    >>> merged({"queue": "a", "stamps": {"x": 1, "y": 1}}, {"queue": "b", "stamps": {"x": 2}})
    {'queue': 'b', 'stamps': {'x': 2, 'y': 1}}
    """
    found = {**own, **given}
    if own.get(STAMPS) and given.get(STAMPS):
        found[STAMPS] = {**own[STAMPS], **given[STAMPS]}
    return found
