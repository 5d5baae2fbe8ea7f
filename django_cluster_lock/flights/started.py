"""The state STARTED, which Celery's tracer would also store for a duplicate, over the outcome of what it copies."""

import os
from typing import Any

from celery import Task, states

from django_cluster_lock.flights.policy import POLICY

WANTED = "_single_flight_started_wanted"


def deferred(cls: Any, _: Any) -> property:
    """The class's ``track_started``: no for the tracer, where a task is of single flight."""
    setattr(cls, WANTED, cls.track_started)
    return property(lambda task: not getattr(task, POLICY) and is_wanted(task))


def is_wanted(task: "Task[..., Any]") -> bool:
    """Whether the task or the app asks for it."""
    wanted: bool | None = getattr(task, WANTED)
    return bool(task.app.conf.task_track_started if wanted is None else wanted)


def store_started(task: "Task[..., Any]") -> None:
    """Stores it, where that is wanted, once the run really starts."""
    if is_wanted(task):
        request = task.request
        ignored = vars(request).get("ignore_result")
        if not (task.ignore_result if ignored is None else ignored):
            info = {"pid": os.getpid(), "hostname": request.hostname}
            task.backend.store_result(request.id or "", info, states.STARTED, request=request)
