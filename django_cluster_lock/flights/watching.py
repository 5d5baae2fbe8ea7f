"""The event loop of a worker's parent process: it tells of children that die, and does later what failed."""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from kombu.asynchronous import Hub

from django_cluster_lock.flights.connected import when_connected


class Watch(NamedTuple):
    """What tells of a child's death, and who is to be told: its latest run."""

    descriptor: int
    died: Callable[[], None]


_watched: dict[int, Watch] = {}  # by the child's process id
_loop: Hub | None = None


@when_connected
def work_in(consumer: Any) -> None:
    """Works in the event loop of Celery's consumer, if it has one; what was watched in it before still is."""
    _take(consumer.hub)


def _take(loop: Hub | None) -> None:
    global _loop  # noqa: PLW0603 - there is one in a process; kombu's own is forgotten when the broker is lost
    if loop is not _loop:
        while _watched:
            os.close(_watched.popitem()[1].descriptor)
    _loop = loop
    for pid, known in _watched.items():
        if loop is not None and known.descriptor not in loop.readers:
            loop.add_reader(known.descriptor, _dead, loop, pid)


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
    _loop.add_reader(descriptor, _dead, _loop, pid)


def later(seconds: float, call: Callable[[], None]) -> Any:
    """Calls it after so many seconds, in the loop or else in a thread; what is returned can be cancelled."""
    if _loop is not None:
        return _loop.call_later(seconds, call)
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer


def _dead(loop: Hub, pid: int) -> None:
    known = _watched.pop(pid)
    loop.remove(known.descriptor)
    os.close(known.descriptor)
    known.died()


os.register_at_fork(after_in_child=lambda: _take(None))
