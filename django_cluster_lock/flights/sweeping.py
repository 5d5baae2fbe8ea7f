"""Finding what flights left behind: messages parked behind a key that nobody holds any more.

The timer of every worker that has flights publishes a sweep each SWEEP_INTERVAL; one of them runs in that time.
"""

import logging
from typing import Any

from celery import Celery, Task, shared_task
from django.core.exceptions import ImproperlyConfigured

from django_cluster_lock import conf
from django_cluster_lock.aliases import aliases
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.flights.connected import when_connected
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.inspection.reading import parked
from django_cluster_lock.lock import Lock
from django_cluster_lock.signals import flight_recovered

logger = logging.getLogger("django_cluster_lock")
TASK = "django_cluster_lock.sweep_flights"
_scheduled: list[Any] = []  # timers of the worker that this process is
TURN = "django_cluster_lock:sweep of flights"  # the lock that is left to run out: whoever has it, sweeps


def sweep(app: Celery, alias: str) -> int:
    """Publishes the messages that nobody else will, unless that was just done.

    Returns:
        How many.

    Raises:
        LockUnavailable: no node could be asked.
    """
    at_work = aliases[alias]
    settings = at_work.settings
    pause = 0.8 * (settings.sweep_interval or conf.SWEEP_INTERVAL)
    if not Lock(TURN, alias=alias, timeout=pause, renew=False).acquire(blocking=False):
        return 0
    published = 0
    for keys in at_work.perform(parked(alias, settings.key_prefix, at_work.topology)):
        ground = Ground.of(app, Policy(alias=alias), keys.name)
        try:
            status = ground.drain()
        except LockUnavailable as error:
            logger.warning("flight.parked_left", extra={"lock": keys.name, "reason": str(error)})
            continue
        if status == "next":
            published += 1
            logger.info("flight.recovered", extra={"lock": keys.name, "status": status})
            flight_recovered.send_robust(None, name=keys.name, task_id="", status=status)
    return published


@shared_task(bind=True, name=TASK, ignore_result=True)
def sweep_flights(self: "Task[..., Any]", alias: str) -> None:
    """Publishes the messages of an alias that are parked behind keys which nobody holds any more.

    Raises:
        LockUnavailable: no node could be asked.
    """
    sweep(self.app, alias)


@when_connected
def _schedule(consumer: Any) -> None:
    while _scheduled:
        _scheduled.pop().cancel()
    app = consumer.app
    policies = (getattr(task, POLICY, None) for task in app.tasks.values())
    for alias in sorted({policy.alias for policy in policies if policy}):
        try:
            interval = conf.load(alias).sweep_interval
        except ImproperlyConfigured as error:
            logger.warning("flight.no_sweeps", extra={"alias": alias, "reason": str(error)})
            continue
        if interval is not None:
            queue = next(iter(app.amqp.queues.consume_from))
            _scheduled.append(consumer.timer.call_repeatedly(interval, _publish, (app, alias, queue, interval)))


def _publish(app: Celery, alias: str, queue: str, interval: float) -> None:
    try:
        app.send_task(TASK, (alias,), queue=queue, expires=interval, ignore_result=True)
    except Exception as error:
        logger.warning("flight.sweep_not_sent", extra={"alias": alias, "reason": str(error)})
