"""What is done in a worker each time it has connected to its broker.

When it loses that, Celery drops the readers of its event loop and, depending on the version, some of its timers or all.
"""

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.signals import celeryd_init

_calls: list[Callable[[Any], None]] = []


def when_connected(call: Callable[[Any], None]) -> Callable[[Any], None]:
    """Has it called with Celery's consumer, in the parent process, before any message is taken."""
    _calls.append(call)
    return call


class Connected(bootsteps.StartStopStep):
    """The step of a worker's consumer that follows those of Celery's up to its tasks."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        for call in _calls:
            call(consumer)


@celeryd_init.connect(weak=False)
def _take_part(instance: Any, **_: Any) -> None:
    instance.app.steps["consumer"].add(Connected)
