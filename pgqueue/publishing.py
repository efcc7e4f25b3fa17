"""The signals around an enqueue; without receivers they cost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pgqueue.result import AsyncResult
from pgqueue.serialization import decode, encode
from pgqueue.signals import after_task_publish, before_task_publish
from pgqueue.types import GATHER, NewJob


def announce(jobs: Sequence[NewJob]) -> Sequence[NewJob]:
    """Send `before_task_publish` for each job; return them with the headers that receivers have added."""
    if not before_task_publish.receivers:
        return jobs
    return [_announced(job) if job.task != GATHER else job for job in jobs]


def told(jobs: Sequence[NewJob], handles: Iterable[AsyncResult[Any]]) -> None:
    """Send `after_task_publish` for each job that was created."""
    if after_task_publish.receivers:
        for job, handle in zip(jobs, handles, strict=True):
            if handle.created and job.task != GATHER:
                after_task_publish.send(
                    job.task, body=_body(job), exchange="", routing_key=job.queue, headers=_headers(job)
                )


def _announced(job: NewJob) -> NewJob:
    headers = _headers(job)
    own = set(headers) - _own(job).keys()
    properties = {"correlation_id": job.id, "priority": job.priority}
    before_task_publish.send(
        job.task, body=_body(job), exchange="", routing_key=job.queue, headers=headers, properties=properties,
        declare=[], retry_policy={},
    )  # fmt: skip
    sent = {name: value for name, value in headers.items() if name not in own}
    return job._replace(headers=encode(sent, path="headers") if sent else None)


def _own(job: NewJob) -> dict[str, Any]:
    """Return the headers that the caller sends along."""
    found = {} if job.headers is None else decode(job.headers)
    return found if isinstance(found, dict) else {}


def _headers(job: NewJob) -> dict[str, Any]:
    """Return what describes a call in Celery's messages, and the headers that the caller sends along."""
    ids = {"id": job.id, "task": job.task, "root_id": job.root_id or job.id, "parent_id": job.parent_id}
    eta = job.eta.isoformat() if job.eta else None
    return {**ids, "lang": "py", "retries": 0, "eta": eta, "ignore_result": job.ignore_result, **_own(job)}


def _body(job: NewJob) -> tuple[object, object, dict[str, object]]:
    return decode(job.args), decode(job.kwargs), {}
