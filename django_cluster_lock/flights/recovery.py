"""Ending flights where nobody can wait for Redis: in the worker's parent process, and after a call that failed.

One attempt at once; what a shard does not answer is tried again later, one at a time, by the parent's event loop or a
timer's thread: no shard keeps the others waiting. What never succeeds is left to the end of the lease, and the sweep.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from celery import Task
from celery.signals import worker_ready
from kombu.asynchronous import Hub

from django_cluster_lock.errors import LockUnavailable
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


class Watch(NamedTuple):
    """What tells of a child's death, and who is to be told: its latest run."""

    descriptor: int
    died: Callable[[], None]


_due: dict[Hashable, deque[Due]] = {}  # by shard
_watched: dict[int, Watch] = {}  # by the child's process id
_loop: Hub | None = None


def work_in(loop: Hub | None) -> None:
    """Does the work in the event loop of a worker's parent process."""
    global _loop  # noqa: PLW0603 - there is one in a process; kombu's own is forgotten when the broker is lost
    _loop = loop
    if loop is not None:
        loop.on_close.add(_watch_again)  # type: ignore[union-attr]  # its stub has a list


@worker_ready.connect(weak=False)
def _on_worker_ready(sender: Any, **_: Any) -> None:
    work_in(sender.hub)


def watch(pid: int, died: Callable[[], None]) -> None:
    """Calls back when a child is dead; of each child, the latest to have asked."""
    if pid == os.getpid() or _loop is None or not hasattr(os, "pidfd_open"):
        return  # no child; or Celery's pool has to notice it
    known = _watched.get(pid)
    if known:
        _watched[pid] = known._replace(died=died)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        died()
        return
    except OSError:  # not allowed here, or too many files are open
        return
    _watched[pid] = Watch(descriptor, died)
    _loop.add_reader(descriptor, _dead, pid)


def _watch_again(loop: Hub) -> None:
    """After a loss of the broker, for which Celery takes every reader off its loop."""

    def go_on() -> None:
        for pid, known in _watched.items():
            loop.add_reader(known.descriptor, _dead, pid)

    loop.call_later(0, go_on)


def _dead(pid: int) -> None:
    known = _watched.pop(pid)
    if _loop is not None:
        _loop.remove(known.descriptor)
    os.close(known.descriptor)
    known.died()


def end(task: "Task[..., Any]", ground: Ground, landing: Landing) -> None:
    """Ends a flight, now or later. Never raises: an error here would cost the pool a slot."""
    due = Due(task, ground, landing, time.monotonic() + ground.queue_timeout)
    try:
        waiting = _due.setdefault(ground.shard, deque(maxlen=MOST_WAITING))
    except Exception as error:
        _log(due, error)
        return
    waiting.append(due)
    if len(waiting) == 1:
        _work(waiting, FIRST_PAUSE)


def _work(waiting: deque[Due], pause: float) -> None:
    while waiting:
        due = waiting.popleft()
        try:
            status = due.ground.land(due.landing, after=due.landing.entry.rpartition(":")[0], once=True)
        except LockUnavailable as error:
            _log(due, error)
            if time.monotonic() < due.until:
                waiting.append(due)
                _later(pause, lambda: _work(waiting, min(2 * pause, LONGEST_PAUSE)))
                return
        except Exception as error:
            _log(due, error)
        else:
            done_before = status == "kept" and not due.landing.kept
            if due.landing.token and status != "lost" and not done_before:
                name, task_id = due.ground.name, due.landing.entry.rpartition(":")[0]
                logger.info("flight.recovered", extra={"lock": name, "task_id": task_id, "status": status})
                flight_recovered.send_robust(due.task, name=name, task_id=task_id, status=status)


def _later(seconds: float, call: Callable[[], None]) -> None:
    if _loop is not None:
        _loop.call_later(seconds, call)
        return
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _start_anew() -> None:
    """Forgets what a fork copied."""
    _due.clear()
    _watched.clear()
    work_in(None)


os.register_at_fork(after_in_child=_start_anew)


def _log(due: Due, error: Exception) -> None:
    logger.warning("flight.not_freed", extra={"lock": due.ground.name, "reason": str(error)})
