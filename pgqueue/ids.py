"""Ids of jobs and workers: UUIDv7, made by the client, so that an id is known before its row exists."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from pgqueue.errors import InvalidOption

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

_USUAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def new_id() -> str:
    """Return a fresh UUIDv7 as text; ids made one after the other sort one after the other."""
    return str(uuid7())


def check_id(value: object, option: str = "task_id") -> str:
    """Return an id that a caller chose in its usual spelling; raises InvalidOption if it is no UUID."""
    if type(value) is str and _USUAL(value):
        return value
    try:
        return str(value if isinstance(value, UUID) else UUID(str(value)))
    except Exception:
        cure = "; leave it out to have one made" if option == "task_id" else ""
        raise InvalidOption(f"{option}={value!r:.80} is not a UUID{cure}") from None


def check_apart(ids: Sequence[str]) -> None:
    """Raise InvalidOption if two calls of one workflow have the same id: what waits for both would wait for ever."""
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_, count in Counter(ids).items() if count > 1)
        raise InvalidOption(
            f"two calls of the workflow have the id {twice}; leave out task_id, or make a call anew instead of using a "
            "frozen one twice"
        )
