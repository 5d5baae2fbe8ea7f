"""A lease as its holder knows it."""

import os
import time
from collections.abc import Callable

from django_cluster_lock.protocol import Grant, Terms


class Lease:
    """The time-limited right to one lock. Times are seconds of this process's monotonic clock.

    It is trusted until `valid_until`, which renewals move on and which never lies later than the server's deadline.
    `lost` says why it ended early, if it did; `closed` that its holder gave it up.
    """

    __slots__ = ("__weakref__", "closed", "grant", "hold_until", "lost", "on_lost", "pid", "terms", "valid_until")

    def __init__(self, grant: Grant, terms: Terms, *, max_hold: float) -> None:
        self.grant = grant
        self.terms = terms
        self.valid_until = grant.valid_until
        self.hold_until = grant.valid_until - terms.timeout + max_hold
        self.lost = ""
        self.closed = False
        self.on_lost: list[Callable[[Lease], None]] = []
        self.pid = os.getpid()

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
        """Marks it as lost and tells those who asked to know."""
        self.lost = reason
        for callback in self.on_lost:
            callback(self)
