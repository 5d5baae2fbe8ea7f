"""What becomes of a duplicate is told: a skipped call must not look like one that ran."""

import logging
from typing import Any

from celery import Task

from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.signals import flight_joined, flight_queued, flight_refused, flight_skipped
from django_cluster_lock.snapshots import Owner

logger = logging.getLogger("django_cluster_lock")
_SIGNALS = {
    "join": flight_joined,
    "skip": flight_skipped,
    "raise": flight_refused,
    "rerun": flight_queued,
    "wait": flight_queued,
}


def tell(task: "Task[..., Any]", policy: Policy, name: str, holder: Owner) -> None:
    """Logs a duplicate and sends its signal, once for each: where it is known first."""
    logger.info(
        "flight.duplicate",
        extra={"lock": name, "holder": str(holder), "on_duplicate": policy.on_duplicate},
    )
    _SIGNALS[policy.on_duplicate].send_robust(task, name=name, flight_id=holder.task, holder=holder)
