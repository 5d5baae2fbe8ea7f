"""The worker's parent process: it ends the flights of messages that it drops and of children that die."""

import logging
from datetime import datetime
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from django_cluster_lock.flights import recovery, watching
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.messages import CONTENT_TYPE, RUN_TOKEN, Ticket
from django_cluster_lock.flights.outbox import Landing, entry_of
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.holding import new_token

logger = logging.getLogger("django_cluster_lock")


class Recovers:
    """A mixin for Celery's `Request`, or for one that a task brings itself.

    It makes the token of the run's lease, so that the parent knows it too, and ends the run when the child is dead:
    the process itself says so first, by a pidfd, before Celery's pool notices.
    """

    id: str
    task: Any
    args: Any
    kwargs: Any
    request_dict: dict[str, Any]
    content_type: str | None
    delivery_info: dict[str, Any]
    stamped_headers: list[str]
    expires: datetime | None
    acknowledged: bool
    _already_revoked: bool
    _requeued = _recovered = _kept = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._run_token = new_token()
        self.request_dict.update({RUN_TOKEN: self._run_token.decode(), CONTENT_TYPE: self.content_type})

    def revoked(self) -> bool:
        """Whether it was revoked or has expired. A copy of what runs or has run is not asked that.

        Celery would store REVOKED in place of that run's outcome; as any copy it is parked, or dropped.
        """
        return not self._is_spare() and super().revoked()  # type: ignore[misc]

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]
        watching.watch(pid, self.child_died)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, WorkerLostError):
            self.child_died()
        answer = super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
        if self._kept and not self._requeued:  # it does not come again after all
            self._end(kept="", token=b"")
        return answer

    def reject(self, requeue: bool = False) -> None:
        self._requeued = self._requeued or (requeue and not self.acknowledged)
        super().reject(requeue)  # type: ignore[misc]

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        try:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        finally:
            if not terminated:  # else its child is about to die
                self._end(kept="", token=b"", ended=True)

    def child_died(self) -> None:
        """Ends the run if the child has not done so; a message that will come again keeps the key."""
        if not self._recovered:
            self._recovered = True
            self._kept = self._may_come_again()
            self._end(kept=self._entry if self._kept else "", token=self._run_token)

    def _may_come_again(self) -> bool:
        dropped = self.acknowledged or self._already_revoked
        return self._requeued or bool(self.task.acks_late and self.task.reject_on_worker_lost and not dropped)

    def _is_spare(self) -> bool:
        """Whether it would be dropped, but is a copy of what runs or has run, as far as Redis tells at once."""
        may_be_dropped = self.id in state.revoked or self.expires or self.stamped_headers
        if not (may_be_dropped and self.delivery_info.get("redelivered")):
            return False
        try:
            ground = self._ground()
            return ground is not None and ground.has_started(self._entry)
        except Exception as error:
            logger.warning("flight.copy_unknown", extra={"lock": "", "task_id": self.id, "reason": str(error)})
            return False

    @property
    def _entry(self) -> str:
        told = self.request_dict
        return entry_of(told["id"], told.get("retries"), told.get("replaced_task_nesting"))

    def _end(self, *, kept: str, token: bytes, ended: bool = False) -> None:
        try:
            ground = self._ground()
        except Exception as error:  # arguments that nobody can read: no run of it can have had a key
            logger.warning("flight.not_freed", extra={"lock": "", "reason": str(error)})
            return
        if ground:
            recovery.end(self.task, ground, Landing(self._entry, token, ended=ended, kept=kept, by_claim=True))

    def _ground(self) -> Ground | None:
        """The key; None if the task is not of single flight."""
        policy: Policy | None = getattr(self.task, POLICY)
        if policy is None:
            return None
        name = Ticket.of(self.request_dict).name or name_of(self.task, policy, self.args, self.kwargs)
        return Ground.of(self.task.app, policy, name)


class FlightRequest(Recovers, Request):  # type: ignore[misc]
    """Celery's request."""


def over(base: type[Request]) -> type[Request]:
    """The class of requests for a task that brings its own."""
    return FlightRequest if base is Request else type(base.__name__, (Recovers, base), {})
