"""One of the processes that call tasks: ``python -m demo.caller``.

Each line of its input is an order: which tasks to call, and where to note what became of the calls. It makes all
calls at once, then waits for their results, each as any caller does.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import django
from celery.result import AsyncResult

from demo.serving import end_with_parent, say_ready
from django_cluster_lock import LockUnavailable

PATIENCE = 30


def calls(order: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Makes the calls of an order, and tells of each what it gave, then what came of it."""
    from shop import tasks

    made = []
    for number, (task, subject) in enumerate(order["calls"]):
        asked = time.monotonic()
        about = {"call": number, "key": f"{task} {subject}", "asked": asked}
        try:
            result = getattr(tasks, task + order["suffix"]).delay(subject)
        except LockUnavailable as error:
            yield about | {"refused": str(error)}
        else:
            made.append((about, result))
            yield about | {"id": result.id}
    yield from results(made)


def results(made: Sequence[tuple[dict[str, object], "AsyncResult[Any]"]]) -> Iterator[dict[str, object]]:
    until = time.monotonic() + PATIENCE
    for about, result in made:
        try:
            outcome = {"result": result.get(timeout=max(until - time.monotonic(), 0.1))}
        except Exception as error:
            outcome = {"error": repr(error)}
        yield about | {"id": result.id, "answered": time.monotonic()} | outcome


if __name__ == "__main__":
    django.setup()
    orders = end_with_parent()
    say_ready()
    while True:
        order = json.loads(orders.get())
        with Path(order["log"]).open("a", buffering=1) as log:
            log.writelines(json.dumps(entry) + "\n" for entry in calls(order))
        say_ready()
