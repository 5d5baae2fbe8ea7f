"""A flight's key while no run has it: claimed for a call, parked behind, left to the next, freed."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from celery import Celery
from kombu.utils import json

from django_cluster_lock import names, protocol
from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.flights import outbox
from django_cluster_lock.flights.messages import Message, delay_of
from django_cluster_lock.flights.outbox import Landing, Outbox, Parked
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.flights.results import Packed
from django_cluster_lock.holding import new_token
from django_cluster_lock.protocol import Flow, Reply, Terms
from django_cluster_lock.snapshots import Owner

QUEUED = "queued"  # what the owner's field for the thread says of a claim


class Claim(NamedTuple):
    """What became of a claim.

    Args:
        status: "own"; "busy", "parked", "next" (parked, and published or about to be); "gone", "over".
        holder: who has the key, if it is busy.
        waiting: the parked entry whose message a call may replace.
        place: of the call among those of the key, if it has the key.
    """

    status: str
    holder: Owner = Owner()
    waiting: str = ""
    place: int = 0


class Ground(NamedTuple):
    """The key of a flight, by its lock's alias and name, and what duplicates of it get; times in seconds.

    Args:
        queue_timeout: how long a claim lasts.
    """

    app: Celery
    alias_name: str
    name: str
    mode: str
    queue_timeout: float

    @classmethod
    def of(cls, app: Celery, policy: Policy, name: str) -> "Ground":
        return cls(app, policy.alias, name, policy.on_duplicate, policy.queue_timeout)

    @property
    def alias(self) -> Alias:
        return aliases[self.alias_name]

    @property
    def shard(self) -> tuple[str, object]:
        """Who serves the key, as far as is known here: its alias and node."""
        slot = names.keys_of(self.alias.settings.key_prefix, self.name).slot
        return self.alias_name, self.alias.topology.primary(slot)

    @property
    def outbox(self) -> Outbox:
        prefix = self.alias.settings.key_prefix
        lock = names.keys_of(prefix, self.name)
        return Outbox(lock, names.outbox_keys(prefix, lock), self.mode.encode())

    def claim(
        self,
        entry: str,
        delay: float,
        message: Message | None = None,
        *,
        new: bool = False,
        replaces: bool = False,
        replaceable: bool = False,
    ) -> Claim:
        """Claims the key for a call; with a message, parks that if the key is taken.

        Args:
            delay: for how long the call's message will wait before it may be run.
            new: whether its task id was made for this call.
            replaces: whether the message is to take the place of the one that waits as this entry.
            replaceable: whether that of a later call may take its place.

        Raises:
            LockUnavailable, LockNotReplicated: whether it is taken is unknown.
        """
        token, raw = new_token(), message.dumps() if message else b""
        flags = {"new": new, "replaces": replaces, "replaceable": replaceable}
        return self._claim_of(self.alias.run(self._claiming(token, entry, delay, message=raw, **flags)), token)

    def claim_ahead(self, entry: str, delay: float, *, new: bool) -> Callable[[], Claim]:
        """Asks for the key; what is returned waits for the answer, and has to be called. It raises as `claim`."""
        token = new_token()
        answer = self.alias.run_ahead(self._claiming(token, entry, delay, new=new))
        return lambda: self._claim_of(answer(), token)

    def _claiming(self, token: bytes, entry: str, delay: float, **options: Any) -> Flow[Reply]:
        return outbox.claim(self.outbox, token, self.claim_terms(delay), entry, now=time.monotonic(), **options)

    def _claim_of(self, reply: Reply, token: bytes) -> Claim:
        if reply.status == b"own":
            return Claim("own", place=reply.details[0])
        if reply.status == b"next":
            self.publish_next(reply, token)
        if reply.status == b"busy":
            return Claim("busy", protocol.owner_of(reply), reply.details[6].decode())
        return Claim(reply.status.decode())

    def land(
        self,
        landing: Landing,
        outcome: Packed | None = None,
        *,
        after: str = "",
        delay: float = 0.0,
        once: bool = False,
    ) -> str:
        """Ends a flight: those it settles are published with its outcome, then the key goes to the next, or is free.

        Args:
            after: the task that ran.
            delay: how long the entry that it is kept for will wait before it may be run.
            once: one attempt for each question to Redis.

        Returns:
            "released", "handed" (to a waiter for the lock), "next" (to a parked message), "kept", or "lost": the key
            was not its any more.

        Raises:
            LockUnavailable: Redis could not be told.
        """
        # Its own token makes that of the claim which follows: so who repeats this for it can finish what it began.
        claim = landing.token or new_token(), self.claim_terms(delay)
        settles = b""
        if outcome is not None:  # only where runs that have passed a call settle that too, its content is asked for
            settles = json.dumps(outcome).encode() if self.mode == "rerun" else b"1"
        lease_ttl = self.alias.terms(self.alias.settings.timeout).ttl
        published: list[Parked] = []
        while True:
            deadline = 0.0 if once else time.monotonic() + self.alias.patience
            flow = outbox.land(
                self.outbox, landing, claim, lease_ttl, published, outcome=settles, deadline=deadline, once=once
            )
            reply = self.alias.run(flow)
            if reply.status != b"settle":
                break
            published = outbox.parked_of(reply)
            for parked in published:
                message = Message.loads(parked.message)
                message.publish(self.app, message.ticket._replace(again=True, outcome=outcome))
        if reply.status == b"next":
            self.publish_next(reply, claim[0], after, kept=landing.kept, once=once)
        if reply.status == b"lost" and reply.unanswered:
            return "released"  # by the attempt that stayed without an answer
        return reply.status.decode()

    def refuse(self, token: bytes) -> None:
        """Keeps a request of a run that has ended, which may still come, from taking the key for nobody, if it can."""
        with suppress(LockUnavailable):
            self.alias.run(outbox.refuse(self.outbox, token))

    def queued_entry(self, task_id: str) -> str:
        """The entry of a task that the key is queued for, by one attempt to ask; else that of its first attempt."""
        first = outbox.entry_of(task_id, 0)
        try:
            queued = self.alias.run(outbox.queued_for(self.outbox, deadline=0.0))
        except LockUnavailable:
            return first
        return queued if queued.rpartition(":")[0] == task_id else first

    def drain(self) -> str:
        """Hands the key to the first of the messages that nobody else will publish, and publishes it.

        Returns:
            "next"; "busy": somebody has the key, who will; "empty": none is parked.

        Raises:
            LockUnavailable: Redis could not be asked.
        """
        claim = new_token(), self.claim_terms()
        reply = self.alias.run(outbox.drain(self.outbox, claim, deadline=self._deadline()))
        if reply.status == b"next":
            self.publish_next(reply, claim[0])
        return reply.status.decode()

    def has_ended(self, entry: str) -> bool:
        """Whether the run of an entry has ended for good.

        Raises:
            LockUnavailable: Redis could not be asked.
        """
        return self.alias.run(outbox.course(self.outbox, entry, deadline=self._deadline())) == "ended"

    def has_started(self, entry: str) -> bool:
        """Whether a run of an entry is under way, or has ended for good, by one attempt to ask.

        Raises:
            LockUnavailable: Redis could not be asked.
        """
        return self.alias.run(outbox.course(self.outbox, entry, deadline=0.0)) != "open"

    def publish_next(self, reply: Reply, token: bytes, after: str = "", *, kept: str = "", once: bool = False) -> None:
        """Publishes the message that the key was handed to, by an answer "next", and drops it from the outbox.

        Args:
            token: the random part of that of its claim.
            after, kept, once: as for `land`.

        Raises:
            LockUnavailable: Redis could not be asked; the sweep publishes it again.
        """
        parked = outbox.parked_of(reply)
        entry = parked[0].entry.decode()
        message = Message.loads(parked[0].message)
        ticket = message.ticket._replace(again=True, place=int(parked[0].sequence))
        if entry != kept:
            # All else wants a run of its own.
            after = (after or ticket.flight_of or "") if self.mode == "join" else ""
            ticket = ticket._replace(flight_of=None, after=after)  # it flies itself now
        deadline = 0.0 if once else self._deadline()
        if delay := delay_of(self.app, message.headers):  # it will wait longer than the claim was made for
            self.alias.run(outbox.lengthen(self.outbox, entry, token, self.claim_terms(delay), deadline=deadline))
        message.publish(self.app, ticket)
        self.alias.run(outbox.confirm(self.outbox, parked, deadline=deadline, once=once))

    def claim_terms(self, delay: float = 0.0) -> Terms:
        """What a claim asks for."""
        return self.alias.terms(self.queue_timeout + delay, QUEUED)

    def _deadline(self) -> float:
        return time.monotonic() + self.alias.patience
