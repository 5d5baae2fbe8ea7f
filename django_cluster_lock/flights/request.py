"""The worker's parent process: it gives back the claim of a message that it drops."""

from typing import Any

from celery.worker.request import Request

from django_cluster_lock.flights.claims import Claim
from django_cluster_lock.flights.messages import Ticket
from django_cluster_lock.flights.policy import POLICY


class GivesBack:
    """A mixin for Celery's `Request`, or for one that a task brings itself."""

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        ticket = Ticket.of(self.request_dict)  # type: ignore[attr-defined]
        if ticket.token and not terminated:
            policy = getattr(self.task, POLICY)  # type: ignore[attr-defined]
            # The attempt before a retry may yet be leaving it the key: it must not, once this is dropped.
            is_retry = bool(self.request_dict.get("retries"))  # type: ignore[attr-defined]
            Claim(policy.alias, ticket.name, ticket.token, policy.queue_timeout).give_back(mark=is_retry)


class FlightRequest(GivesBack, Request):
    """Celery's request."""


def over(base: type[Request]) -> type[Request]:
    """The class of requests for a task that brings its own."""
    return FlightRequest if base is Request else type(base.__name__, (GivesBack, base), {})
