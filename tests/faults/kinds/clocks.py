"""Clocks of servers that step."""

from tests.faults.kinds.failovers import Failover
from tests.faults.layouts import CLUSTERS, PAIR

BEYOND = 3.0  # seconds, and longer than a record outlives its last lease


class ClockStepped(Failover):
    """One node's clock steps, then its replica, whose clock did not, takes over; then it steps back."""

    name = "clock of a primary steps by less than CLOCK_SKEW, then it fails over"
    layouts = (*CLUSTERS, PAIR)

    @classmethod
    def why_not(cls, world):
        return "" if world.nodes.has_clocks else "no libfaketime (Debian: faketime)"

    def inject(self):
        self._undo.append(lambda: self.nodes.step(self.primary, 0))
        self.nodes.step(self.primary, self.random.choice((-1, 1)) * self.distance())
        super().inject()

    def distance(self):
        return 0.8 * self.world.skew


class ClockStrayed(ClockStepped):
    name = "clock of a primary steps by more than CLOCK_SKEW, then it fails over"
    holds = False
    in_order = False

    def distance(self):
        return BEYOND
