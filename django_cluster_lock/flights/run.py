"""The running side: a message's run takes over its claim, or is parked; at its end the key goes to the next."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import Ignore, Reject
from celery.signals import task_postrun

from django_cluster_lock.errors import DuplicateFlight, LockUnavailable
from django_cluster_lock.flights import duplicates
from django_cluster_lock.flights.aborting import aborting
from django_cluster_lock.flights.flight import Flight
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.messages import RUN_TOKEN, Message, Ticket, send_back
from django_cluster_lock.flights.outbox import Landing, entry_of
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.flights.results import Outcome, Packed, looked_up_at, outcome_of
from django_cluster_lock.flights.started import store_started
from django_cluster_lock.signals import flight_ended, flight_parked, flight_settled, flight_started
from django_cluster_lock.snapshots import Owner

logger = logging.getLogger("django_cluster_lock")
_ENTERED, _FLIGHT = "_single_flight_entered", "_single_flight"  # on the request
_MOVED_ON = "_single_flight_moved_on"  # on the request: the message is parked, sent back, or a copy


def running(request: Context) -> Flight | None:
    """The flight of a request that is being run."""
    flight: Flight | None = request.get(_FLIGHT)
    return flight


def run(task: "Task[..., Any]", policy: Policy, base: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Does what calling the task does, alone for its key.

    Args:
        base: the ``__call__`` of the task's base.
    """
    request = task.request
    by_tracer = not request.called_directly and not request.get(_ENTERED)
    request.update({_ENTERED: True})
    if by_tracer and getattr(base, "__func__", None) is Task.__call__:
        base = task.run  # which Celery's tracer calls too: its `__call__` would hide the request from the body
    call = partial(base, *args, **kwargs)
    if request.is_eager or not by_tracer:
        return _inline(task, policy, call, args, kwargs)
    ticket = Ticket.of(request)
    if not ticket.name:
        ticket = ticket._replace(name=name_of(task, policy, args, kwargs))
    return _Arrival(task, policy, ticket, call).run()


class _Arrival:
    """A message that a worker has taken."""

    def __init__(self, task: "Task[..., Any]", policy: Policy, ticket: Ticket, call: Callable[[], Any]) -> None:
        self.task, self.policy, self.ticket, self.call = task, policy, ticket, call
        self.request = request = task.request
        self.id = request.id or ""
        token = request.get(RUN_TOKEN)
        self.flight = Flight(
            task,
            policy,
            ticket.name,
            self.id,
            retries=request.retries or 0,
            replaced=request.replaced_task_nesting,
            token=token.encode() if token else None,
        )

    def run(self) -> Any:
        """Runs it, ends it with the outcome of another flight, or raises Ignore: it comes again."""
        try:
            answer = self._decide()
        except LockUnavailable as error:
            logger.warning("flight.not_started", extra={"lock": self.ticket.name, "reason": str(error)})
            if self.policy.on_unavailable == "raise" or self.ticket.outcome:
                self._send_back()
                raise self._moved_on() from error
            answer = self.call
        return answer()

    def _send_back(self) -> None:
        try:
            send_back(self.task, self.ticket)
        except Exception as error:  # no broker either: what is not acknowledged yet comes again by itself
            if self.task.acks_late:
                raise Reject(error, requeue=True) from error
            raise

    def _decide(self) -> Callable[[], Any]:
        """What is to be done, once the key is ours or cannot be.

        Raises:
            LockUnavailable: that is unknown.
        """
        if self.ticket.outcome and (outcome := self._unpacked(self.ticket.outcome)):
            return self._settled(outcome)
        if self.policy.scope == "queued":
            self.flight.ground.land(Landing(self.flight.entry, ended=False, by_claim=True))
            return self.call
        return self._take_off()

    def _take_off(self) -> Callable[[], Any]:
        ticket, flight_of = self.ticket, self.ticket.flight_of or ""
        refused = self.policy.on_duplicate in ("skip", "raise")
        if refused and flight_of not in ("", self.id):
            self._drop_if_ended()
            return partial(self._refuse, Owner(task=flight_of))
        place, copy = ticket.place, self._may_be_copy
        before = self._outcome_of(ticket.after) if ticket.after else None
        message: Message | None = None
        while True:
            status, holder, packed = self.flight.start(message, flight_of=flight_of, copy=copy, place=place)
            if status == "passed":
                if outcome := self._unpacked(packed or {}):
                    return self._settled(outcome)
                place, copy = 0, True  # for want of that outcome it runs itself, though it is an earlier call
            elif status == "apart":
                if outcome := self._outcome_of(flight_of):
                    return self._settled(outcome)
                flight_of = ""
            elif status == "busy":
                if holder.task == self.id:  # an early retry; or a copy runs, which only a place could tell later
                    copy = copy or not (place or self.request.retries)
                else:
                    self._tell(holder)
                    if refused and not self.request.retries:  # a retry has lost the key that it had
                        return partial(self._refuse, holder)
                    if self.policy.on_duplicate == "join":
                        flight_of = flight_of or holder.task
                message = Message.of_request(self.task, ticket)
            else:
                break
        if status == "own":
            self.request.update({_FLIGHT: self.flight})
            # What was lost after it had stored its result needs no second run.
            return before.give if before and not before.error else self._fly
        if status == "over":
            raise LockUnavailable(ticket.name, "its request was given up")
        if status == "ended":  # the key may be kept for it
            self.flight.ground.land(Landing(self.flight.entry, ended=False, by_claim=True))
        if status == "parked":
            flight_parked.send_robust(self.task, name=ticket.name, task_id=self.id, holder=holder)
        raise self._moved_on()

    def _fly(self) -> Any:
        store_started(self.task)
        flight_started.send_robust(self.task, name=self.ticket.name, task_id=self.id)
        with aborting(self.flight, self.policy):
            return self.call()

    def _settled(self, outcome: Outcome) -> Callable[[], Any]:
        """Ends the message with the outcome of the flight it waited for, unless a copy of it has done so."""
        self._drop_if_ended()
        flight_settled.send_robust(self.task, name=self.ticket.name, task_id=self.id)
        return outcome.give

    @property
    def _may_be_copy(self) -> bool:
        delivery = self.request.delivery_info or {}
        return bool(self.ticket.again or self.ticket.turns or delivery.get("redelivered"))

    def _drop_if_ended(self) -> None:
        if self._may_be_copy and self.flight.ground.has_ended(self.flight.entry):
            raise self._moved_on()

    def _unpacked(self, packed: Packed) -> Outcome | None:
        elsewhere = looked_up_at(packed)
        return self._outcome_of(elsewhere) if elsewhere else Outcome.unpacked(self.task, packed)

    def _outcome_of(self, task_id: str) -> Outcome | None:
        """What the result backend has. That it cannot be asked must not cost the message its run."""
        try:
            return outcome_of(self.task, task_id)
        except Exception as error:
            raise LockUnavailable(self.ticket.name, f"the result backend cannot be asked: {error}") from error

    def _refuse(self, holder: Owner) -> None:
        if self.policy.on_duplicate == "raise":
            raise DuplicateFlight(self.ticket.name, holder=str(holder), flight_id=holder.task)

    def _tell(self, holder: Owner) -> None:
        if not (self.ticket.flight_of or self.ticket.turns or self.ticket.again):  # else the caller was told
            duplicates.tell(self.task, self.policy, self.ticket.name, holder)

    def _moved_on(self) -> Ignore:
        self.request.update({_MOVED_ON: True})
        return Ignore()


def _inline(task: "Task[..., Any]", policy: Policy, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
    """A call without a message: it waits for the lock, and nobody can join it, for want of a result to ask for."""
    if policy.scope == "queued":
        return call()
    flight = Flight(task, policy, name_of(task, policy, args, kwargs))
    with ExitStack() as stack:
        try:
            stack.enter_context(flight)
        except LockUnavailable as error:
            if policy.on_unavailable == "raise":
                raise
            logger.warning("flight.not_started", extra={"lock": flight.name, "reason": str(error)})
            return call()
        stack.enter_context(aborting(flight, policy))
        return call()


@task_postrun.connect(weak=False)
def _end(task: "Task[..., Any]", retval: Any = None, state: str | None = None, **_: Any) -> None:
    """Ends the flight after the outcome was stored, so that whoever finds the key free can have that."""
    request, policy = task.request, getattr(task, POLICY, None)
    if policy is None or request.is_eager or request.get(_MOVED_ON):
        return
    flight = running(request)
    request.update({_FLIGHT: None})
    try:
        if flight:
            status = _landed(task, flight, retval, state)
            if status == "lost":
                logger.warning("flight.not_freed", extra={"lock": flight.name, "reason": "its lease had ended"})
        else:
            _end_unflown(task, policy, retval, state)
    except Exception as error:  # whatever it is, Celery has to go on
        name = Ticket.of(request).name
        logger.warning("flight.not_freed", extra={"lock": name, "reason": str(error)})


def _landed(task: "Task[..., Any]", flight: Flight, retval: Any, state: str | None) -> str:
    flight_ended.send_robust(task, name=flight.name, task_id=flight.task_id, state=state)
    if _is_rejected(task, state):  # and may be replayed from where the broker keeps dead letters
        flight.copied = False
    if flight.retry_delay is not None:
        return flight.land(kept=flight.next_entry)
    if state == states.SUCCESS:
        return flight.land(Outcome(retval).packed(task))
    if state == states.FAILURE:
        return flight.land(Outcome(None, retval).packed(task))
    if _comes_again(retval):
        return flight.land(ended=False, kept=flight.entry)
    return flight.land(ended=state is not None)  # None: the process is being stopped, and the message may come again


def _end_unflown(task: "Task[..., Any]", policy: Policy, retval: Any, state: str | None) -> None:
    """A message that ends without a flight: it was settled or refused, its hook raised, or it ran without the lock."""
    request = task.request
    ticket = Ticket.of(request)
    name = ticket.name or name_of(task, policy, request.args, request.kwargs)
    entry = entry_of(request.id or "", request.retries, request.replaced_task_nesting)
    again = _comes_again(retval)
    ended, kept = state is not None and not again, entry if again else ""
    Ground.of(task.app, policy, name).land(Landing(entry, ended=ended, kept=kept, by_claim=True))


def _is_rejected(task: "Task[..., Any]", state: str | None) -> bool:
    """Whether the message is not acknowledged, now that it has ended."""
    acks_failure = getattr(task, "acks_on_failure", None)  # from Celery 5.7 on
    if acks_failure is None:
        acks_failure = task.acks_on_failure_or_timeout
    return bool(task.acks_late) and (state == states.REJECTED or (state == states.FAILURE and not acks_failure))


def _comes_again(retval: Any) -> bool:
    return isinstance(retval, Reject) and bool(retval.requeue)  # type: ignore[attr-defined]
