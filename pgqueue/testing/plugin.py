"""The pytest plugin: fixtures for programs that use pgqueue, and the marker `pgqueue`.

Every run of pytest imports it where pgqueue is installed, so the engine is imported by the first fixture that is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pgqueue.app import PgQueue
    from pgqueue.worker import WorkerProcess


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "pgqueue(**settings): settings of pgqueue_app in this test, over pgqueue_config; Celery's in conf={...}",
    )


# -- the database ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pgqueue_dsn() -> Iterator[str]:
    """DSN of the database for the tests: PGQUEUE_TEST_DSN, else a server that is started for this run."""
    with import_module("pgqueue.testing.database").server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def _pgqueue_schema(pgqueue_dsn: str) -> Iterator[str]:
    with import_module("pgqueue.testing.database").temporary_schema(pgqueue_dsn) as schema:
        yield schema


@pytest.fixture
def pgqueue_schema(pgqueue_dsn: str, _pgqueue_schema: str) -> str:
    """Name of a schema with empty tables, made for this run and dropped after it."""
    import_module("pgqueue.testing.database").empty(pgqueue_dsn, _pgqueue_schema)
    return _pgqueue_schema


@pytest.fixture(scope="session")
def pgqueue_session_schema(pgqueue_dsn: str) -> Iterator[str]:
    """Name of another schema, whose tables nobody empties between tests."""
    with import_module("pgqueue.testing.database").temporary_schema(pgqueue_dsn) as schema:
        yield schema


# -- the app -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pgqueue_config() -> dict[str, Any]:
    """Settings of the apps below; override it. Under "conf" those with Celery's names."""
    return {}


@pytest.fixture(scope="session")
def pgqueue_parameters() -> dict[str, Any]:
    """Further arguments for PgQueue(...), such as name, include, task_cls; override it."""
    return {}


@pytest.fixture
def pgqueue_app(
    request: pytest.FixtureRequest,
    pgqueue_dsn: str,
    pgqueue_schema: str,
    pgqueue_config: dict[str, Any],
    pgqueue_parameters: dict[str, Any],
) -> Iterator[PgQueue]:
    """A fresh app on empty tables; override it to return your own, pointed at pgqueue_dsn and pgqueue_schema."""
    marks = [mark.kwargs for mark in reversed(list(request.node.iter_markers("pgqueue")))]
    make = import_module("pgqueue.testing.fixtures").temporary_app
    with make(pgqueue_dsn, pgqueue_schema, pgqueue_parameters, pgqueue_config, *marks) as app:
        yield app


@pytest.fixture(scope="session")
def pgqueue_session_app(
    pgqueue_dsn: str,
    pgqueue_session_schema: str,
    pgqueue_config: dict[str, Any],
    pgqueue_parameters: dict[str, Any],
) -> Iterator[PgQueue]:
    """An app for the whole run, in a schema of its own; not the one that tasks of shared_task belong to."""
    parameters = {"set_as_current": False, **pgqueue_parameters}
    make = import_module("pgqueue.testing.fixtures").temporary_app
    with make(pgqueue_dsn, pgqueue_session_schema, parameters, pgqueue_config) as app:
        yield app


@pytest.fixture
def pgqueue_eager(pgqueue_app: PgQueue) -> Iterator[PgQueue]:
    """The app, with calls that run where they are made and raise what they fail with."""
    with import_module("pgqueue.testing.fixtures").eager(pgqueue_app) as app:
        yield app


# -- running -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pgqueue_drain(pgqueue_app: PgQueue) -> Callable[..., list[Any]]:
    """Runs everything that is due, in this thread: `drain` of pgqueue_app."""
    return partial(import_module("pgqueue.testing").drain, pgqueue_app)


@pytest.fixture(scope="session")
def pgqueue_worker_parameters() -> dict[str, Any]:
    """Options of the workers below: see WorkerOptions; override it."""
    return {}


@pytest.fixture
def pgqueue_worker(pgqueue_app: PgQueue, pgqueue_worker_parameters: dict[str, Any]) -> Iterator[WorkerProcess]:
    """A worker of pgqueue_app in a thread, which ends with the test."""
    with import_module("pgqueue.testing").worker(pgqueue_app, **pgqueue_worker_parameters) as worker:
        yield worker


@pytest.fixture(scope="session")
def pgqueue_session_worker(
    pgqueue_session_app: PgQueue, pgqueue_worker_parameters: dict[str, Any]
) -> Iterator[WorkerProcess]:
    """A worker of pgqueue_session_app in a thread, which ends with the run."""
    with import_module("pgqueue.testing").worker(pgqueue_session_app, **pgqueue_worker_parameters) as worker:
        yield worker


# -- asserting ---------------------------------------------------------------------------------------------------


@pytest.fixture
def assert_enqueued(pgqueue_app: PgQueue) -> Callable[..., list[Any]]:
    """Asserts that an unfinished job of pgqueue_app is of such a call."""
    return partial(import_module("pgqueue.testing").assert_enqueued, pgqueue_app)


@pytest.fixture
def refute_enqueued(pgqueue_app: PgQueue) -> Callable[..., None]:
    """Asserts that no unfinished job of pgqueue_app is of such a call."""
    return partial(import_module("pgqueue.testing").refute_enqueued, pgqueue_app)
