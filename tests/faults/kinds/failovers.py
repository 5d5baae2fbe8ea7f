"""Failovers that an operator asks for."""

from tests.faults.kinds.base import Fault, NeedsLinks
from tests.faults.layouts import CLUSTERS, PAIR


class Failover(Fault):
    name = "CLUSTER FAILOVER"
    lasts = (0.0, 0.5)
    layouts = CLUSTERS
    how = ()

    def inject(self):
        self.nodes.fail_over(self.replica, *self.how)


class Forced(Failover):
    name = "CLUSTER FAILOVER FORCE, replica in sync"
    how = ("FORCE",)


class Takeover(Failover):
    name = "CLUSTER FAILOVER TAKEOVER, replica in sync"
    how = ("TAKEOVER",)


class TwoFailovers(Failover):
    """There and back again, or on to the next: long leases live through both."""

    name = "two failovers within one lease"
    layouts = (*CLUSTERS, PAIR)

    def inject(self):
        super().inject()
        self.prepare()
        super().inject()


class LaggingTakeover(NeedsLinks):
    name = "CLUSTER FAILOVER TAKEOVER by a replica that lags"
    holds = False
    layouts = CLUSTERS

    def inject(self):
        self.cut([self.nodes.party(self.primary)], [self.nodes.party(self.replica)])
        self.world.sleep(self.random.uniform(0.3, 1.2))
        self.nodes.do(self.replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        self.promoted(self.replica)


class RolesSwapped(Failover):
    """Open connections stay with the old primary, which answers READONLY."""

    name = "roles swapped under one name (FAILOVER)"
    lasts = (4.0, 6.0)
    layouts = (PAIR,)
    usable = True


class SplitBrain(Fault):
    """As a provider does that takes the primary for dead; who is connected to that goes on with it."""

    name = "replica promoted while the primary serves on"
    lasts = (0.5, 4.0)
    layouts = (PAIR,)

    def inject(self):
        self.promoted()
