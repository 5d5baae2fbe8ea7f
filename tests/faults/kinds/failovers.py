"""Failovers that an operator asks for."""

from contextlib import suppress

import redis

from tests.faults.kinds.base import Fault, NeedsLinks
from tests.faults.nodes import until


class Failover(Fault):
    name = "CLUSTER FAILOVER"
    lasts = (0.0, 0.5)
    how = ()

    def inject(self):
        until(self._fails_over, f"the failover to {self.replica}")

    def _fails_over(self):
        """Asks for it, again if nothing comes of it."""
        with suppress(redis.ResponseError):
            self.nodes.do(self.replica, "CLUSTER", "FAILOVER", *self.how)
        with suppress(TimeoutError):
            return until(lambda: self.nodes.is_primary(self.replica), "the failover", within=6)


class Forced(Failover):
    name = "CLUSTER FAILOVER FORCE, replica in sync"
    how = ("FORCE",)


class Takeover(Failover):
    name = "CLUSTER FAILOVER TAKEOVER, replica in sync"
    how = ("TAKEOVER",)


class TwoFailovers(Failover):
    """There and back again: long leases live through both."""

    name = "two failovers within one lease"

    def inject(self):
        super().inject()
        self.prepare()
        super().inject()


class LaggingTakeover(NeedsLinks):
    name = "CLUSTER FAILOVER TAKEOVER by a replica that lags"
    holds = False

    def inject(self):
        self.cut([self.nodes.party(self.primary)], [self.nodes.party(self.replica)])
        self.world.sleep(self.random.uniform(0.3, 1.2))
        self.nodes.do(self.replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        self.promoted()
