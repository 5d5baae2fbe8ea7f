"""A lease as its holder knows it."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django_cluster_lock import protocol
from django_cluster_lock.errors import LockError, LockLost
from django_cluster_lock.protocol import Flow, Grant, Terms


class Place(NamedTuple):
    """Where code runs: a thread or greenlet and, in an event loop, the asyncio task."""

    thread: int
    task: asyncio.Task[Any] | None

    @classmethod
    def here(cls) -> "Place":
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        return cls(threading.get_ident(), task)


class Lease:
    """The time-limited right to one lock. Times are seconds of this process's monotonic clock.

    It is trusted until `valid_until`, which renewals move on and which never lies later than the server's deadline.
    `lost` says why it ended early, if it did; `closed` that its holder gave it up; `place` where it is held;
    `keeper` what it goes back to, if it was taken over from there; `on_freed` is called once its lock was freed.
    `session` and `turn` order its guarded writes.
    """

    __slots__ = (
        "__weakref__",
        "closed",
        "grant",
        "hold_until",
        "keeper",
        "lost",
        "on_freed",
        "on_lost",
        "pid",
        "place",
        "session",
        "terms",
        "turn",
        "valid_until",
    )

    def __init__(self, grant: Grant, terms: Terms, *, max_hold: float, place: Place) -> None:
        self.grant = grant
        self.terms = terms
        self.valid_until = grant.valid_until
        self.hold_until = grant.valid_until - terms.timeout + max_hold
        self.lost = ""
        self.closed = False
        self.place = place
        self.keeper: object = None
        self.on_lost: list[Callable[[Lease], None]] = []
        self.on_freed: Callable[[], None] | None = None
        self.pid = os.getpid()
        self.session = os.urandom(8).hex().encode()
        self.turn = 0

    @property
    def name(self) -> str:
        return self.grant.keys.name

    def renewed(self, grant: Grant) -> None:
        """Takes over a renewal; never shortens."""
        self.grant = grant
        self.valid_until = max(self.valid_until, grant.valid_until)

    def trouble(self, now: float | None = None) -> str:
        """Why the lease cannot be trusted any more; empty while it can."""
        if not self.lost and (time.monotonic() if now is None else now) >= self.valid_until:
            self.lost = "its time ended before it was renewed"
        return self.lost

    def lose(self, reason: str) -> None:
        """Marks it as lost and tells those who asked to know: once, though both holder and renewer may notice it."""
        self.lost = reason
        while self.on_lost:
            self.on_lost.pop(0)(self)


def letting_go(leases: Sequence[Lease], *, patience: float) -> Flow[None]:
    """Frees what was held. Each lease is closed first, so that no renewal counts any more.

    Raises:
        LockLost: one had ended before. LockUnavailable: Redis could not be told.
    """
    now = time.monotonic()
    for lease in leases:
        lease.closed = True
    reasons = {lease.name: lease.trouble(now) for lease in leases}
    grants = [lease.grant for lease in leases]
    deadline, valid_until = now + patience, min(lease.valid_until for lease in leases)
    if len(grants) == 1:
        released = yield from protocol.release(grants[0], deadline=deadline, valid_until=valid_until)
        failed: list[Grant | LockError] = [] if released else list(grants)
    else:
        failed = yield from protocol.release_all(grants, deadline=deadline, valid_until=valid_until)
    for lease in leases:
        if lease.on_freed:
            lease.on_freed()
    for failure in failed:
        if isinstance(failure, LockError):
            raise failure
        reasons[failure.keys.name] = reasons[failure.keys.name] or "Redis no longer knew its lease"
    for name, reason in reasons.items():
        if reason:
            raise LockLost(name, reason)
