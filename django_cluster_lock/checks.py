"""The system checks: what is wrong with CLUSTER_LOCKS, flights and fences, found without a connection."""

import sys
from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's word

from django_cluster_lock import conf, fences

TAG = "cluster_lock"


def register_all() -> None:
    """Makes the checks known to Django, under the tag ``cluster_lock``."""
    register(check_settings, TAG)
    register(check_flights, TAG)
    register(check_fences, TAG)
    register(check_deployment, TAG, deploy=True)


def check_settings(**_: Any) -> list[CheckMessage]:
    return [message(problem) for problem in conf.problems()]


def check_flights(**_: Any) -> list[CheckMessage]:
    if "django_cluster_lock.flights.adoption" not in sys.modules:
        return []  # the project has none, and perhaps no Celery
    from django_cluster_lock.flights import faults

    return [message(problem) for problem in faults.problems()]


def check_fences(**_: Any) -> list[CheckMessage]:
    if not fences.installed():
        return []
    from django_cluster_lock.fences.faults import faults

    return [message(conf.Problem("E026", fault)) for fault in faults()]


def check_deployment(**_: Any) -> list[CheckMessage]:
    return [message(problem) for problem in conf.deployment_problems()]


def message(problem: conf.Problem) -> CheckMessage:
    kind = Error if problem.is_error else Warning
    return kind(problem.message, hint=problem.hint, id=problem.id)
