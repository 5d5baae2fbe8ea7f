"""The calling side: a call claims its key before its message goes out."""

import datetime
import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.result import AsyncResult
from celery.utils import uuid
from celery.utils.time import maybe_make_aware

from django_cluster_lock.errors import DuplicateFlight, LockBusy, LockUnavailable
from django_cluster_lock.flights import duplicates
from django_cluster_lock.flights.claims import Claim
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.messages import HEADER, Ticket
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.flights.results import SkippedResult
from django_cluster_lock.flights.run import running
from django_cluster_lock.snapshots import Owner

logger = logging.getLogger("django_cluster_lock")
# With one of these somebody waits for the very task id of the call: its message has to go out, duplicate or not.
_AWAITED = ("task_id", "link", "link_error", "chain", "chord", "group_id")


def publish(
    task: "Task[..., Any]", policy: Policy, send: Callable[..., "AsyncResult[Any]"], options: dict[str, Any]
) -> "AsyncResult[Any]":
    """Does what `apply_async` does, once for each key.

    Args:
        send: the `apply_async` of the task's base.
        options: the arguments for it, all by name.

    Raises:
        DuplicateFlight: the key is in flight, and the policy is to raise.
        LockUnavailable: whether it is in flight is unknown.
    """
    args, kwargs = options.get("args"), options.get("kwargs")
    if task.app.conf.task_always_eager:
        return send(**options)
    if task.typing and hasattr(task, "__header__"):
        task.__header__(*(args or ()), **(kwargs or {}))
    name = name_of(task, policy, args, kwargs)
    claim = Claim.new(policy.alias, name, policy.queue_timeout + _delay(task.app, options))
    if flight := _retried(task, name, options):
        result = send(**_with(options, Ticket(name, claim.token)))
        flight.successor = claim
        return result
    awaited = any(options.get(option) for option in _AWAITED)
    options["task_id"] = options.get("task_id") or uuid()
    try:
        claim.take(options["task_id"])
    except LockBusy as busy:
        duplicates.tell(task, policy, name, busy.owner)
        if not awaited and (answer := _answer(task, policy, name, busy.owner)):
            return answer
        return send(**_with(options, Ticket(name, flight_of=busy.owner.task or None)))
    except LockUnavailable as error:
        if policy.on_unavailable == "raise":
            raise
        logger.warning("flight.unclaimed", extra={"lock": name, "reason": str(error)})
        return send(**_with(options, Ticket(name)))
    try:
        return send(**_with(options, Ticket(name, claim.token)))
    except BaseException:
        claim.give_back()
        raise


def _retried(task: "Task[..., Any]", name: str, options: dict[str, Any]) -> Any:
    """The flight that runs here, if this call is its own retry under the same key."""
    flight = running(task.request)
    is_retry = flight and options.get("task_id") == task.request.id and options.get("retries", 0) > task.request.retries
    return flight if flight and is_retry and flight.name == name else None


def _answer(task: "Task[..., Any]", policy: Policy, name: str, holder: Owner) -> "AsyncResult[Any] | None":
    """What the caller of a duplicate gets; None if its message must go out, for want of a result to join."""
    if policy.on_duplicate == "raise":
        raise DuplicateFlight(name, holder=str(holder), flight_id=holder.task)
    if policy.on_duplicate == "skip":
        return SkippedResult(holder.task)
    return task.AsyncResult(holder.task) if holder.task else None


def _with(options: dict[str, Any], ticket: Ticket) -> dict[str, Any]:
    """The options with this ticket; a retry's headers still hold that of the attempt before."""
    headers = {key: value for key, value in (options.get("headers") or {}).items() if key != HEADER}
    ticket = ticket._replace(serializer=options.get("serializer"))
    return options | {"headers": headers | ticket.headers()}


def _delay(app: Celery, options: dict[str, Any]) -> float:
    """For how many seconds the message will wait before anybody may run it."""
    eta = options.get("eta")
    if not eta:
        return max(0.0, options.get("countdown") or 0.0)
    due = maybe_make_aware(datetime.datetime.fromisoformat(eta) if isinstance(eta, str) else eta, app.timezone)
    return max(0.0, (due - app.now()).total_seconds())
