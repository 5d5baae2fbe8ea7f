"""The lock of a run."""

import time
from typing import Any

from celery import Task

from django_cluster_lock import protocol
from django_cluster_lock.errors import LockLost
from django_cluster_lock.flights.claims import Claim
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.holding import new_token
from django_cluster_lock.lease import Place
from django_cluster_lock.lock import Lock
from django_cluster_lock.protocol import Flow, Grant, Terms

LONGEST_RUN = 24 * 3600.0  # of a task without a hard time limit: a hung one must not hold its key for ever


class Flight(Lock):
    """The lock of one run: taken over from the claim that its message carried, or acquired like any other.

    Args:
        task_id: the run's Celery task; empty for one that runs inline, whose result nobody else can ask for.
    """

    successor: Claim | None = None  # what the key is to become at the end: the claim of a retry

    def __init__(self, task: "Task[..., Any]", policy: Policy, name: str, task_id: str = "") -> None:
        super().__init__(
            name,
            alias=policy.alias,
            timeout=policy.timeout,
            max_hold=policy.max_hold or _time_limit(task) or LONGEST_RUN,
            raise_on_release_error=policy.on_lost == "abort",
        )
        self.task_id = task_id

    def start(self, token: str | None) -> None:
        """Takes the claim of that token over, or acquires the lock if it is free.

        Raises:
            LockBusy: another flight has it. LockUnavailable, LockNotReplicated: as for any lock.
        """
        self._run(self._starting(token))

    def end(self) -> None:
        """Frees the key, or leaves it to the retry that follows.

        Raises:
            LockLost: the lease had ended. LockUnavailable: Redis could not be told.
        """
        self._run(self._leaving_to(self.successor) if self.successor else self._releasing())

    def _starting(self, token: str | None) -> Flow[None]:
        if token:
            (keys,), terms, now = self._keys(), self._terms(), time.monotonic()
            claim = Grant(keys, token.encode(), fence=0, valid_until=now, unanswered=False)
            grant = yield from protocol.transfer(claim, new_token(), terms, deadline=now + terms.patience)
            if grant:
                self._hold(Place.here(), [grant], terms)
                return
        yield from self._acquiring(blocking=False)

    def _leaving_to(self, claim: Claim) -> Flow[None]:
        (lease,) = self._give_up()
        lease.closed = True
        terms = claim.terms(self.task_id)
        deadline = time.monotonic() + terms.patience
        if not (yield from protocol.transfer(lease.grant, claim.token.encode(), terms, deadline=deadline)):
            yield from protocol.release(lease.grant, deadline=deadline, valid_until=lease.valid_until)
            raise LockLost(lease.name, "its retry was dropped, or will have to acquire it")

    def _terms(self) -> Terms:
        return self._alias.terms_of_task(self.timeout, self.task_id)


def _time_limit(task: "Task[..., Any]") -> float | None:
    hard, _ = task.request.timelimit or (None, None)
    return hard or task.time_limit
