"""One of the processes that call tasks: ``python -m demo.caller``.

Each line of its input is an order: which tasks to call, and where to note what became of the calls. It makes some
calls as fast as it can, waits for their results, and goes on with the next ones.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import django
from celery.result import AsyncResult

from demo.serving import end_with_parent, say_ready
from django_cluster_lock import LockUnavailable

AT_ONCE = 50
PATIENCE = 30


def batched(calls: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (calls[start : start + size] for start in range(0, len(calls), size))


def batch(calls: Sequence[tuple[str, int]], suffix: str) -> Iterator[dict[str, object]]:
    """Makes some calls, then waits for their results. Tells of each call what it gave, then what came of it."""
    from shop import tasks

    made = []
    for task, subject in calls:
        about = {"key": f"{task} {subject}", "asked": time.monotonic()}
        try:
            result = getattr(tasks, task + suffix).delay(subject)
        except LockUnavailable as error:
            yield about | {"refused": str(error)}
        else:
            made.append((about, result))
            yield about | {"id": result.id}
    until = time.monotonic() + PATIENCE
    for about, result in made:
        outcome = outcome_of(result, max(until - time.monotonic(), 0.1))
        yield about | {"id": result.id, "answered": time.monotonic()} | outcome


def outcome_of(result: "AsyncResult[Any]", timeout: float) -> dict[str, object]:
    try:
        return {"result": result.get(timeout=timeout)}
    except Exception as error:
        return {"error": repr(error)}


if __name__ == "__main__":
    django.setup()
    orders = end_with_parent()
    say_ready()
    while True:
        order = json.loads(orders.get())
        with Path(order["log"]).open("a", buffering=1) as log:
            for calls in batched(order["calls"], AT_ONCE):
                log.writelines(json.dumps(entry) + "\n" for entry in batch(calls, order["suffix"]))
        say_ready()
