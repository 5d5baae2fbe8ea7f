"""Celery tasks for a schedule; workers find them by `autodiscover_tasks`, since the app is installed."""

import logging
from collections import Counter
from itertools import groupby, islice
from typing import TypedDict

from celery import shared_task

from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.flights.decorator import single_flight
from django_cluster_lock.inspection import locks
from django_cluster_lock.snapshots import Finding, Unread

logger = logging.getLogger("django_cluster_lock")
MOST_LOGGED = 100  # findings of one kind; the rest is counted


class Verified(TypedDict):
    """What `verify_locks` found: so many keys examined, findings by kind, how many were repaired, nodes not read."""

    alias: str
    keys: int
    findings: dict[str, int]
    repaired: int
    unread: int


@shared_task
@single_flight(key="{alias}", on_duplicate="skip")
def verify_locks(alias: str = DEFAULT_ALIAS, repair: bool = False) -> Verified:
    """Does what ``manage.py locks verify`` does, one run at a time for each alias, and logs what it finds.

    Args:
        alias: the entry of CLUSTER_LOCKS to look at.
        repair: whether to put right what is safe to.

    Raises:
        LockUnavailable: no node could be asked.
    """
    found = locks[alias].verify(repair=repair)
    for _, findings in groupby(sorted(found.findings, key=_kind), _kind):
        for finding in islice(findings, MOST_LOGGED):
            _log(alias, finding)
    for unread in found.unread:
        _log_unread(alias, unread)
    return {
        "alias": alias,
        "keys": found.keys,
        "findings": dict(Counter(map(_kind, found.findings))),
        "repaired": sum(finding.repaired for finding in found.findings),
        "unread": len(found.unread),
    }


def _kind(finding: Finding) -> str:
    return finding.kind


def _log(alias: str, finding: Finding) -> None:
    details = {
        "alias": alias,
        "lock": finding.name,
        "tag": finding.tag,
        "node": finding.node,
        "key": finding.key,
        "kind": finding.kind,
        "detail": finding.detail,
        "repaired": finding.repaired,
    }
    logger.log(logging.INFO if finding.repaired else logging.WARNING, "locks.finding", extra=details)


def _log_unread(alias: str, unread: Unread) -> None:
    details = {"alias": alias, "node": unread.node, "slots": unread.slots, "reason": unread.reason}
    logger.warning("locks.unread", extra=details)
