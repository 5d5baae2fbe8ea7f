"""Replicas of which not all know the same, replicas that come and go, and those that are no members of the shard."""

import signal
from contextlib import suppress

import redis

from tests.faults.kinds.base import Fault, NeedsLinks
from tests.faults.kinds.processes import ReplicaBehind
from tests.faults.layouts import CLUSTERS, PAIR, TWO
from tests.faults.nodes import until


class OneAfterTheOther(Fault):
    """What the first replica grants while it is the primary never reaches the second, which takes over from it."""

    name = "one replica paused, the other promoted and killed, the first promoted"
    quorum = True
    layouts = (TWO,)

    def inject(self):
        paused, other = self.random.sample(self.replicas, 2)
        self.stop(paused)
        self.kill(self.primary)
        self.promoted(other)
        self.world.sleep(self.random.uniform(0.3, 0.8))
        self.kill(other)
        self.nodes.signal(paused, signal.SIGCONT)
        self.promoted(paused)


class LastOneBehind(ReplicaBehind):
    """Of all that the primary granted while one replica was paused, nobody who knew it is left."""

    name = "one replica lags; primary and the other replica killed"
    layouts = (TWO,)

    def inject(self):
        behind, other = self.random.sample(self.replicas, 2)
        self.leave_behind(behind)
        self.nodes.kill(other, signal.SIGKILL)
        try:
            self.kill(self.primary)
            self.nodes.signal(behind, signal.SIGCONT)
            self.promoted(behind)
        finally:
            self.nodes.revive(other)


class BehindThenBack(ReplicaBehind):
    """The first to be promoted lags, the second does not, but has to follow it before it is promoted too."""

    name = "two failovers in a row, the first to a replica that lags"
    layouts = (TWO,)

    def inject(self):
        behind, other = self.random.sample(self.replicas, 2)
        self.leave_behind(behind)
        self.nodes.signal(other, signal.SIGSTOP)
        try:
            self.kill(self.primary)
            self.nodes.signal(behind, signal.SIGCONT)
            self.promoted(behind)
        finally:
            self.nodes.signal(other, signal.SIGCONT)
        self.nodes.revive(self.primary)
        self.nodes.roles(self.shard)
        self.nodes.fail_over(other)


class Strangers(NeedsLinks):
    """Backups and migrations replicate as well: what they acknowledge, no replica that could be promoted has."""

    name = "replicas cut off, others attached that are no members, then the primary killed"
    quorum = True
    layouts = CLUSTERS

    def inject(self):
        for _ in self.replicas:
            stranger = self.nodes.attach_stranger(self.primary)
            self._undo.append(lambda port=stranger: self.nodes.dismiss(port))
        connected = 2 * len(self.replicas)
        until(lambda: self.nodes.online(self.primary) == connected, f"{connected} to replicate {self.primary}")
        self.cut([self.nodes.party(self.primary)], [self.nodes.party(port) for port in self.replicas])
        self.world.sleep(self.random.uniform(2, 3))
        self.kill(self.primary)
        self.promoted()


class ReplicaAdded(Fault):
    """It becomes the primary for a while, and is removed again; leases are held all the time."""

    name = "a replica added, made the primary, and removed again"
    quorum = True
    lasts = (0.5, 1.5)
    layouts = CLUSTERS

    def inject(self):
        added = self.nodes.add(self.primary)
        self._undo.append(lambda: self._remove(added))
        self.world.sleep(self.random.uniform(0.2, 1))
        self.nodes.fail_over(added)

    def _remove(self, added):
        if self.nodes.is_primary(added):
            self.nodes.fail_over(self.primary)
        self.nodes.remove(added)


class ForgottenReplica(ReplicaBehind):
    """Clients connect anew, and see a primary without a replica, before the replica is promoted."""

    name = "replica lags and is no longer seen, then the primary killed"
    layouts = (PAIR,)

    def inject(self):
        self.stop(self.replica)
        for kind in ("replica", "normal"):
            with suppress(redis.ConnectionError):
                self.nodes.do(self.primary, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        self.world.sleep(self.random.uniform(2, 3))
        self.kill(self.primary)
        self.nodes.signal(self.replica, signal.SIGCONT)
        self.promoted()
