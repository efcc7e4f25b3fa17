"""What the fixtures of the plugin do, apart from it: this imports the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pgqueue.app import SHARED, PgQueue


@contextmanager
def temporary_app(
    dsn: str, schema: str, parameters: Mapping[str, Any], *configs: Mapping[str, Any]
) -> Iterator[PgQueue]:
    """Make an app for a test, close it afterwards, and give the tasks of `shared_task` back to whom they belonged.

    - `parameters`: of PgQueue. `configs`: settings, and Celery's under "conf"; a later one wins.
    """
    settings: dict[str, Any] = {}
    conf: dict[str, Any] = {}
    for config in configs:
        settings |= {name: value for name, value in config.items() if name != "conf"}
        conf |= config.get("conf", {})
    before = SHARED.current
    app = PgQueue(**{"name": "tests", "dsn": dsn, "schema": schema, **parameters, **settings})
    try:
        app.conf.update(conf)
        yield app
    finally:
        app.close()
        if isinstance(before, PgQueue):
            before.set_current()


@contextmanager
def eager(app: PgQueue) -> Iterator[PgQueue]:
    """Have calls run where they are made and raise what they fail with."""
    settings = ("task_always_eager", "task_eager_propagates")
    before = {name: app.conf.get(name) if name in app.conf else None for name in settings}
    app.conf.update(dict.fromkeys(settings, True))
    try:
        yield app
    finally:
        app.conf.update(before)
