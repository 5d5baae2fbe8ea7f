"""Ending flights where nobody can wait for Redis: in the worker's parent process, and after a call that failed.

One attempt at once; what a shard does not answer is tried again later, one at a time, by the parent's event loop or a
timer's thread: no shard keeps the others waiting. What never succeeds is left to the end of the lease, and the sweep.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Hashable
from typing import Any, NamedTuple

from celery import Task

from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.flights import watching
from django_cluster_lock.flights.connected import when_connected
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.outbox import Landing
from django_cluster_lock.signals import flight_recovered

logger = logging.getLogger("django_cluster_lock")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 5.0  # seconds between attempts
MOST_WAITING = 10_000  # flights to be ended on one shard; the oldest is left to its lease


class Due(NamedTuple):
    """A flight to be ended; ``until``, on the monotonic clock, no claim or lease of it can last longer."""

    task: "Task[..., Any]"
    ground: Ground
    landing: Landing
    until: float


class Shard:
    """The flights to be ended on one shard, and what times the next attempt after one that failed."""

    def __init__(self) -> None:
        self.due = deque[Due](maxlen=MOST_WAITING)
        self.timer: Any = None

    def work(self, pause: float = FIRST_PAUSE) -> None:
        """Ends them now, until one cannot be ended; it and the others after so many seconds."""
        if self.timer:
            self.timer.cancel()
            self.timer = None
        while self.due:
            due = self.due.popleft()
            try:
                _land(due)
            except LockUnavailable as error:
                _log(due, error)
                if time.monotonic() < due.until:
                    self.due.append(due)
                    self.timer = watching.later(pause, lambda: self.work(min(2 * pause, LONGEST_PAUSE)))
                    return
            except Exception as error:
                _log(due, error)


_shards: dict[Hashable, Shard] = {}


def end(task: "Task[..., Any]", ground: Ground, landing: Landing) -> None:
    """Ends a flight, now or later. Never raises: an error here would cost the pool a slot."""
    due = Due(task, ground, landing, time.monotonic() + ground.queue_timeout)
    try:
        shard = _shards.setdefault(ground.shard, Shard())
    except Exception as error:
        _log(due, error)
        return
    shard.due.append(due)
    if shard.timer is None:
        shard.work()


def _land(due: Due) -> None:
    name, task_id = due.ground.name, due.landing.entry.rpartition(":")[0]
    status = due.ground.land(due.landing, after=task_id, once=True)
    done_before = status == "kept" and not due.landing.kept
    if due.landing.token and status != "lost" and not done_before:
        logger.info("flight.recovered", extra={"lock": name, "task_id": task_id, "status": status})
        flight_recovered.send_robust(due.task, name=name, task_id=task_id, status=status)


@when_connected
def _try_again(_: Any) -> None:
    for shard in list(_shards.values()):
        shard.work()


def _log(due: Due, error: Exception) -> None:
    logger.warning("flight.not_freed", extra={"lock": due.ground.name, "reason": str(error)})


os.register_at_fork(after_in_child=_shards.clear)
