"""The state STARTED, which Celery's tracer would also store for a duplicate, over the outcome of what it copies."""

import os
from typing import Any

from celery import Task, states

WANTED = "_single_flight_track_started"


def defer(cls: type) -> None:
    """Keeps the tracer from storing it for this class of tasks."""
    setattr(cls, WANTED, getattr(cls, "track_started", None))
    cls.track_started = False  # type: ignore[attr-defined]


def store_started(task: "Task[..., Any]") -> None:
    """Stores it, where the task or the app asks for that, once the run really starts."""
    wanted = getattr(task, WANTED, None)
    if task.app.conf.task_track_started if wanted is None else wanted:
        request = task.request
        ignored = vars(request).get("ignore_result")
        if not (task.ignore_result if ignored is None else ignored):
            info = {"pid": os.getpid(), "hostname": request.hostname}
            task.backend.store_result(request.id or "", info, states.STARTED, request=request)
