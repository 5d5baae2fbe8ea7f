"""Distributed locks for Django and Celery on Redis Cluster.

The public names are loaded when they are first used, since importing redis takes a while.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_cluster_lock.errors import DuplicateFlight as DuplicateFlight
    from django_cluster_lock.errors import LockBusy as LockBusy
    from django_cluster_lock.errors import LockError as LockError
    from django_cluster_lock.errors import LockLost as LockLost
    from django_cluster_lock.errors import LockNotHeld as LockNotHeld
    from django_cluster_lock.errors import LockNotReplicated as LockNotReplicated
    from django_cluster_lock.errors import LockTimeout as LockTimeout
    from django_cluster_lock.errors import LockUnavailable as LockUnavailable
    from django_cluster_lock.errors import NotFencedOff as NotFencedOff
    from django_cluster_lock.errors import StaleFence as StaleFence
    from django_cluster_lock.flights.decorator import single_flight as single_flight
    from django_cluster_lock.guards import cache_lock as cache_lock
    from django_cluster_lock.inspection import locks as locks
    from django_cluster_lock.lock import Lock as Lock
    from django_cluster_lock.lock import current_lock as current_lock

_HOMES = {
    "Lock": "lock",
    "cache_lock": "guards",
    "current_lock": "lock",
    "locks": "inspection",
    "single_flight": "flights.decorator",
    **dict.fromkeys(
        (
            "DuplicateFlight",
            "LockBusy",
            "LockError",
            "LockLost",
            "LockNotHeld",
            "LockNotReplicated",
            "LockTimeout",
            "LockUnavailable",
            "NotFencedOff",
            "StaleFence",
        ),
        "errors",
    ),
}
__all__ = tuple(sorted(_HOMES))


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
