"""The lock of a run."""

import logging
import time
from functools import partial
from typing import Any, NamedTuple

from celery import Task
from kombu.utils import json

from django_cluster_lock.errors import LockError
from django_cluster_lock.flights import outbox
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.messages import Message
from django_cluster_lock.flights.outbox import Landing
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.flights.results import Packed
from django_cluster_lock.holding import new_token
from django_cluster_lock.lease import Place
from django_cluster_lock.lock import Lock
from django_cluster_lock.protocol import Flow, Grant, Reply, Terms, owner_of
from django_cluster_lock.snapshots import Owner

logger = logging.getLogger("django_cluster_lock")
HELD_BY_THE_RUN = "a flight's key is let go when its run ends, and not before"
LONGEST_RUN = 24 * 3600.0  # of a task without a hard time limit: a hung one must not hold its key for ever


class Standing(NamedTuple):
    """How a message stands that wants to start.

    Args:
        status: "own"; "busy" or "parked"; "apart": the flight it waits for has ended; "passed": a run for a later call
            has ended, whose outcome is this one's too; "ended": it is a copy; "over".
        holder: who has the key, if it is busy.
        packed: that outcome.
    """

    status: str
    holder: Owner = Owner()
    packed: Packed | None = None


class Flight(Lock):
    """The lock of one run: taken over from the claim of its message, or acquired like any other.

    Args:
        task_id: the run's Celery task; empty for one that runs inline, whose result nobody else can ask for.
        retries: how often it was tried before. replaced: how often it has replaced itself.
        token: what its lease is to have, if somebody else has to know it.
    """

    retry_delay: float | None = None  # set once the run has published a retry under its key, to the seconds until then
    copied = False  # whether its message was a copy, so that the message itself may still come, and is to be dropped
    place = 0  # of the run's call among those of the key; 0 if that is not known
    _unanswered = False  # whether a request for the key stayed without an answer, so that it may still come

    def __init__(
        self,
        task: "Task[..., Any]",
        policy: Policy,
        name: str,
        task_id: str = "",
        *,
        retries: int = 0,
        replaced: int = 0,
        token: bytes | None = None,
    ) -> None:
        super().__init__(
            name,
            alias=policy.alias,
            timeout=policy.timeout,
            max_hold=policy.max_hold or _time_limit(task) or LONGEST_RUN,
            raise_on_release_error=policy.on_lost == "abort",
        )
        self.task_id = task_id
        self.entry = outbox.entry_of(task_id, retries, replaced)
        self.next_entry = outbox.entry_of(task_id, retries + 1, replaced)
        self.ground = Ground.of(task.app, policy, name)
        self._run_token = token or new_token()

    def start(
        self, message: Message | None = None, *, flight_of: str = "", copy: bool = False, place: int = 0
    ) -> Standing:
        """Takes the claim of its message over, or acquires the lock if it is free; with a message, parks that if not.

        Args:
            flight_of: the task of whose flight it is a duplicate, which it waits for.
            copy: whether the message may be a copy of one that has run.
            place: of its call among those of the key; 0 if that is not known.

        Raises:
            LockUnavailable, LockNotReplicated: as for any lock.
        """
        token = self._run_token
        reply = self._run(self._starting(token, message.dumps() if message else b"", flight_of, copy, place))
        self._unanswered = self._unanswered or reply.unanswered
        if isinstance(reply, Grant):
            self.copied, self.place = copy, place or (0 if copy else reply.fence)
            return Standing("own")
        if reply.status == b"passed":
            return Standing("passed", packed=json.loads(reply.details[0]))
        if reply.status == b"next":
            self.ground.publish_next(reply, token)
            return Standing("parked")
        return Standing(reply.status.decode(), owner_of(reply))

    def release(self) -> None:
        """Raises a LockError: the key belongs to the run until that ends."""
        raise LockError(self.name, HELD_BY_THE_RUN)

    async def arelease(self) -> None:
        """Raises as `release`."""
        self.release()

    def _detaching(self) -> Flow[str]:
        raise LockError(self.name, HELD_BY_THE_RUN)

    def land(self, outcome: Packed | None = None, *, ended: bool = True, kept: str = "") -> str:
        """Ends the flight; see `Ground.land`."""
        (lease,) = self._give_up()
        lease.close()
        run = Landing(self.entry, lease.grant.token, ended=ended, kept=kept, copied=self.copied, place=self.place)
        status = self.ground.land(run, outcome, after=self.task_id, delay=self.retry_delay or 0.0)
        if self._unanswered:
            self.ground.refuse(lease.grant.token)
        return status

    def _starting(self, token: bytes, message: bytes, flight_of: str, copy: bool, place: int) -> Flow[Reply | Grant]:
        terms = self._terms()
        reply = yield from outbox.start(
            self.ground.outbox,
            token,
            terms,
            self.entry,
            now=time.monotonic(),
            claim_terms=self.ground.claim_terms(),
            message=message,
            flight_of=flight_of,
            copy=copy,
            place=place,
        )
        if isinstance(reply, Grant):
            self._hold(Place.here(), [reply], terms, {})
        return reply

    def _hold(self, place: Place, grants: Any, terms: Terms, kept: Any, *, scoped: bool = False) -> None:
        super()._hold(place, grants, terms, kept, scoped=scoped)
        if not self.task_id:  # it will be released like any lock: only then what it kept waiting is looked for
            for lease in self._held():
                lease.on_freed = partial(_publish_parked, self.ground)

    def _terms(self) -> Terms:
        return self._alias.terms_of_task(self.timeout, self.task_id)


def _publish_parked(ground: Ground) -> None:
    try:
        ground.drain()
    except Exception as error:  # what it was called from has done its work
        logger.warning("flight.parked_left", extra={"lock": ground.name, "reason": str(error)})


def _time_limit(task: "Task[..., Any]") -> float | None:
    hard, _ = task.request.timelimit or (None, None)
    return hard or task.time_limit
