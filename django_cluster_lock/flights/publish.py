"""The calling side: a call claims its key before its message goes out."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.result import AsyncResult
from celery.utils import uuid

from django_cluster_lock.errors import DuplicateFlight, LockUnavailable
from django_cluster_lock.flights import duplicates, recovery
from django_cluster_lock.flights.flight import Flight
from django_cluster_lock.flights.ground import Claim, Ground
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.messages import Message, Ticket, delay_of
from django_cluster_lock.flights.outbox import Landing, entry_of
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.flights.producers import Duplicate, Gate, Recorder
from django_cluster_lock.flights.results import FlightResult, SkippedResult
from django_cluster_lock.flights.run import running

logger = logging.getLogger("django_cluster_lock")
_CHANNELS = {"producer", "publisher", "connection"}  # the caller's own, if it gives one
# With one of these, or an id of the caller's, somebody waits for the very task id of the call: its message has to go
# out, duplicate or not.
_AWAITED = ("link", "link_error", "chain", "chord", "group_id")
Send = Callable[..., "AsyncResult[Any]"]


def publish(task: "Task[..., Any]", policy: Policy, send: Send, options: dict[str, Any]) -> "AsyncResult[Any]":
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
    if callable(policy.key) and task.typing and hasattr(task, "__header__"):
        task.__header__(*(args or ()), **(kwargs or {}))
    name = name_of(task, policy, args, kwargs)
    if policy.on_duplicate == "join" and options.get("ignore_result") and not task.ignore_result:
        options["ignore_result"] = False  # others may join
    if policy.scope == "running":
        return send(**_with(options, Ticket(name)))
    if options.get("retries") and (flight := _retried(task, name, options)):
        # Of a copy that was sent without a call nothing tells the place; neither does its retry's own start.
        result = send(**_with(options, Ticket(name, place=flight.place, again=flight.copied)))
        flight.retry_delay = delay_of(task.app, options)
        return result
    return _Call(task, policy, send, options, name).make()


class _Call:
    """A call that is to take off, or to become a duplicate."""

    def __init__(self, task: "Task[..., Any]", policy: Policy, send: Send, options: dict[str, Any], name: str) -> None:
        self.task, self.policy, self.send = task, policy, send
        self.ground = Ground.of(task.app, policy, name)
        self.delay = delay_of(task.app, options)
        self.parks = policy.on_duplicate in ("rerun", "wait")
        self.options = options
        self.new = not options.get("task_id")
        if self.new:
            options["task_id"] = uuid()

    @property
    def awaited(self) -> bool:
        return not self.new or any(map(self.options.get, _AWAITED))

    @property
    def entry(self) -> str:
        return entry_of(self.options["task_id"], self.options.get("retries"), self.options.get("replaced_task_nesting"))

    @property
    def _may_fly_ahead(self) -> bool:
        """Whether only Celery's code is on the way to its producer: to others, `Duplicate` would look like an error."""
        return (
            _is_celerys(self.send, Task.apply_async)
            and _is_celerys(self.task.app.send_task, Celery.send_task)
            and _CHANNELS.isdisjoint(self.options)
        )

    def make(self) -> "AsyncResult[Any]":
        try:
            if self._may_fly_ahead:
                return self._fly_ahead()
            return self._answered(self.ground.claim(self.entry, self.delay, new=self.new))
        except LockUnavailable as error:
            if error.unanswered:  # a claim may have been made, which no message would ever take over
                _free_key(self.task, self.ground, self.entry)
            if self.policy.on_unavailable == "raise":
                raise
            logger.warning("flight.unclaimed", extra={"lock": self.ground.name, "reason": str(error)})
            return self._publish()

    def _fly_ahead(self) -> "AsyncResult[Any]":
        """Has Celery make the message while the claim is on its way."""
        made = None
        answer = self.ground.claim_ahead(self.entry, self.delay, new=self.new)
        gate = Gate(self.task.app, answer, keeps=self.parks)
        try:
            with gate:
                made = self._publish(producer=gate)
        except Duplicate:
            pass
        except BaseException:
            if gate.unanswered or gate.flies():
                _free_key(self.task, self.ground, self.entry)
            raise
        assert gate.claim is not None
        if made is not None and gate.flies():
            return made
        return self._answered(gate.claim, made, gate.message)

    def _answered(
        self, claim: Claim, made: "AsyncResult[Any] | None" = None, message: Message | None = None
    ) -> "AsyncResult[Any]":
        """What becomes of the call by the answer to its claim.

        Args:
            made, message: what Celery has made of it already, to be parked.
        """
        if claim.status == "own":
            return self._fly(claim)
        if claim.status == "over":
            raise LockUnavailable(self.ground.name, "its request was given up")
        duplicates.tell(self.task, self.policy, self.ground.name, claim.holder)
        if self.parks:
            return self._park(claim, made, message)
        if self.awaited:
            others = claim.holder.task not in ("", self.options["task_id"])
            return self._publish(claim.holder.task if others else None)
        return self._duplicate(claim)

    def _fly(self, claim: Claim) -> "AsyncResult[Any]":
        try:
            return self._publish(place=claim.place)
        except BaseException:
            _free_key(self.task, self.ground, self.entry)
            raise

    def _duplicate(self, claim: Claim) -> "AsyncResult[Any]":
        """What the caller of a duplicate gets."""
        holder = claim.holder
        if self.policy.on_duplicate == "raise":
            raise DuplicateFlight(self.ground.name, holder=str(holder), flight_id=holder.task)
        if self.policy.on_duplicate == "skip":
            return SkippedResult(holder.task)
        if holder.task:
            joined = self._result(self.task.AsyncResult(holder.task))
            joined.ignored = self.options.get("ignore_result", self.task.ignore_result)
            return joined
        return self._publish()  # for want of a result to join

    def _park(self, claim: Claim, made: "AsyncResult[Any] | None", message: Message | None) -> "AsyncResult[Any]":
        """Leaves the message to the flight under way; of those that run again, the latest replaces the one before."""
        # With what its caller wants to follow it, a message is one of its own.
        replaceable = self.policy.on_duplicate == "rerun" and not self.awaited
        while True:
            replaces = replaceable and claim.waiting != ""
            if replaces:
                self.options["task_id"], made = claim.waiting.rpartition(":")[0], None
            if made is None or message is None:
                with Recorder(self.task.app, self.options.get("producer")) as recorder:
                    made = self._publish(producer=recorder)
                message = recorder.message
                if message is None:  # an `apply_async` of the task's own has sent it elsewhere; a worker will park it
                    return made
            flags = {"replaces": replaces, "replaceable": replaceable}
            claim = self.ground.claim(self.entry, self.delay, message, **flags)
            if claim.status in ("parked", "next"):
                return made
            if claim.status == "own":  # the flight has ended meanwhile
                return self._fly(claim)
            self.options["task_id"], made = uuid(), None  # the one to replace is on its way

    def _publish(
        self, flight_of: str | None = None, *, place: int = 0, producer: Recorder | Gate | None = None
    ) -> "AsyncResult[Any]":
        options = _with(self.options, Ticket(self.ground.name, flight_of=flight_of, place=place))
        if producer:
            for channel in _CHANNELS:
                options.pop(channel, None)
            options["producer"] = producer
        return self._result(self.send(**options))

    def _result(self, result: "AsyncResult[Any]") -> "AsyncResult[Any]":
        task, ground, task_id = self.task, self.ground, result.id  # the result itself would keep itself alive
        return FlightResult.of(result, lambda: _free_key(task, ground, ground.queued_entry(task_id), ended=True))


def _is_celerys(method: Any, own: Any) -> bool:
    """Whether it is Celery's own, and no tool has wrapped that."""
    return getattr(method, "__func__", None) is own and not hasattr(own, "__wrapped__")


def _free_key(task: "Task[..., Any]", ground: Ground, entry: str, *, ended: bool = False) -> None:
    """Frees the key if it is still queued for the entry: now, or once Redis can be told."""
    recovery.end(task, ground, Landing(entry, ended=ended, by_claim=True))


def _retried(task: "Task[..., Any]", name: str, options: dict[str, Any]) -> Flight | None:
    """The flight that runs here, if this call is its own retry under the same key."""
    request = task.request
    flight = running(request)
    is_retry = options.get("task_id") == request.id and options["retries"] > request.retries
    return flight if flight and is_retry and flight.name == name else None


def _with(options: dict[str, Any], ticket: Ticket) -> dict[str, Any]:
    """The options with this ticket, in place of that of the attempt before, which a retry's headers still hold."""
    return options | {"headers": (options.get("headers") or {}) | ticket.headers()}
