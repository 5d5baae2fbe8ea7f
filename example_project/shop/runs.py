"""A log of the tasks' runs, by which the demo proves that no two of a key overlapped."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

from celery import current_task
from django.conf import settings

from django_cluster_lock import current_lock


def noted(work: Callable[[int], Any], subject: int) -> Any:
    """Does the work, and notes when it begins and ends."""
    key = f"{work.__name__} {subject}"
    result = None
    note("start", key)
    try:
        result = work(subject)
    finally:
        note("end", key, result=result)
    return result


def note(what: str, key: str, **details: object) -> None:
    """Appends a line with one write, so that the lines of several processes do not mix."""
    if settings.RUN_LOG:
        lock = current_lock()
        entry = {
            "what": what,
            "key": key,
            "id": current_task.request.id,
            "pid": os.getpid(),
            "at": time.monotonic(),
            "fence": lock.fence if lock else None,
        }
        log = os.open(settings.RUN_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(log, json.dumps(entry | details).encode() + b"\n")
        finally:
            os.close(log)
