"""The running side: a message's run takes over its claim, and frees the key when it ends."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from celery import Task
from celery.app.task import Context
from celery.exceptions import Ignore
from celery.signals import task_postrun
from django.db import connections

from django_cluster_lock.errors import DuplicateFlight, LockBusy, LockError, LockUnavailable
from django_cluster_lock.flights import duplicates
from django_cluster_lock.flights.claims import Claim
from django_cluster_lock.flights.flight import Flight
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.messages import SENT_BACK, Ticket, send_back
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.flights.results import outcome_of
from django_cluster_lock.flights.started import store_started
from django_cluster_lock.lock import Lock
from django_cluster_lock.snapshots import Owner

logger = logging.getLogger("django_cluster_lock")
RETRY_PATIENCE, RETRY_POLL = 3.0, 0.05  # seconds for which a retry waits until the attempt before it has ended
_ENTERED, _FLIGHT = "_single_flight_entered", "_single_flight"  # on the request


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
    ticket, task_id = Ticket.of(request.headers or {}), request.id or ""
    if not ticket.name:
        ticket = ticket._replace(name=name_of(task, policy, args, kwargs))
    if settled := _settled(task, policy, ticket):
        return settled()
    flight = Flight(task, policy, ticket.name, task_id)
    try:
        _start(flight, ticket, request)
    except LockBusy as busy:
        return _run_later(task, policy, ticket, busy.owner)
    except LockUnavailable as error:
        logger.warning("flight.not_started", extra={"lock": ticket.name, "reason": str(error)})
        if policy.on_unavailable == "run":
            return call()
        send_back(task, ticket)
        raise Ignore from error
    request.update({_FLIGHT: flight})
    if settled := _settled(task, policy, ticket):  # the flight it is a duplicate of ended between question and start
        return settled()
    store_started(task)
    with _aborting(flight, policy):
        return call()


def _start(flight: Flight, ticket: Ticket, request: Context) -> None:
    """Starts a flight; a retry may come before the attempt it follows has left it the key."""
    until = time.monotonic() + RETRY_PATIENCE
    while True:
        try:
            return flight.start(ticket.token)
        except LockBusy as busy:
            early = ticket.token and request.retries and busy.owner.task == request.id
            if not early or time.monotonic() >= until:
                raise
        time.sleep(RETRY_POLL)


def _settled(task: "Task[..., Any]", policy: Policy, ticket: Ticket) -> Callable[[], Any] | None:
    """What ends a message that is a duplicate, without a run of its own; None if it may need one."""
    flight_id = ticket.flight_of
    if flight_id is None:
        return None
    if flight_id == task.request.id:
        return _ignored if outcome_of(task, flight_id) else None
    if policy.on_duplicate != "join":
        return partial(_refuse, policy, ticket.name, Owner(task=flight_id))
    outcome = outcome_of(task, flight_id)
    return outcome.give if outcome else None


def _run_later(task: "Task[..., Any]", policy: Policy, ticket: Ticket, holder: Owner) -> None:
    """Ends a message whose key is in flight, or lets it come again once that may have ended."""
    if holder.task != task.request.id:  # which would be a copy of it
        if not (ticket.flight_of or ticket.turns):
            duplicates.tell(task, policy, ticket.name, holder)
        if policy.on_duplicate != "join":
            return _refuse(policy, ticket.name, holder)
    send_back(task, ticket._replace(flight_of=holder.task or None))
    raise Ignore


def _refuse(policy: Policy, name: str, holder: Owner) -> None:
    if policy.on_duplicate == "raise":
        raise DuplicateFlight(name, holder=str(holder), flight_id=holder.task)


def _ignored() -> None:
    """A copy of a message that has run: its outcome, links and chord are done with."""
    raise Ignore


def _inline(task: "Task[..., Any]", policy: Policy, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
    """A call without a message: it waits for the lock, and nobody can join it, for want of a result to ask for."""
    flight = Flight(task, policy, name_of(task, policy, args, kwargs))
    with ExitStack() as stack:
        try:
            stack.enter_context(flight)
        except LockUnavailable as error:
            if policy.on_unavailable == "raise":
                raise
            logger.warning("flight.not_started", extra={"lock": flight.name, "reason": str(error)})
            return call()
        stack.enter_context(_aborting(flight, policy))
        return call()


@contextmanager
def _aborting(lock: Lock, policy: Policy) -> Iterator[None]:
    """Raises LockLost in the block, once the lease is lost: at its next database statement, else at its end."""
    if policy.on_lost == "tell":
        yield
        return

    def guard(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not str(sql).startswith(("ROLLBACK", "RELEASE")):  # which undo what was done
            lock.raise_if_lost()
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for connection in connections.all():
            stack.enter_context(connection.execute_wrapper(guard))
        yield
    lock.raise_if_lost()


@task_postrun.connect(weak=False)
def _end(task: "Task[..., Any]", **_: Any) -> None:
    """Frees the key after the outcome was stored, so that whoever finds it free can have that."""
    flight = running(task.request)
    if flight is None:
        _give_back_unused(task)
        return
    task.request.update({_FLIGHT: None})
    try:
        flight.end()
    except LockError as error:
        logger.warning("flight.not_freed", extra={"lock": flight.name, "reason": str(error)})


def _give_back_unused(task: "Task[..., Any]") -> None:
    """Frees the claim of a message that ends here without a flight: its hook raised, or it ran without the lock."""
    request, policy = task.request, getattr(task, POLICY, None)
    if policy is None or request.is_eager or request.get(SENT_BACK):
        return
    ticket = Ticket.of(request.headers or {})
    if ticket.token:
        Claim(policy.alias, ticket.name, ticket.token, policy.queue_timeout).give_back(mark=bool(request.retries))
