"""Servers and clients that die or stall."""

import signal

from tests.faults.kinds.base import Fault
from tests.faults.nodes import until


class PrimaryKilled(Fault):
    name = "primary killed, replica promoted"
    quorum = True

    def inject(self):
        self.kill(self.primary)
        self.promoted()  # started again any earlier it would serve its slots, and know nothing


class PrimaryStopped(Fault):
    name = "primary paused (SIGSTOP) for longer than a failover takes"
    lasts = (0.2, 1.0)
    quorum = True

    def inject(self):
        self.stop(self.primary)
        self.promoted()


class PrimaryStalled(PrimaryStopped):
    name = "primary paused (SIGSTOP) for a moment"
    lasts = (0.2, 1.2)
    quorum = False

    def promoted(self, *replicas):
        pass


class PrimaryHangs(PrimaryStopped):
    name = "primary paused (SIGSTOP) for longer than leases last"
    lasts = (8.5, 10.0)


class ShardHangs(Fault):
    """Nobody is promoted; what other shards do must not depend on it."""

    name = "all nodes of a shard paused (SIGSTOP) for longer than leases last"
    lasts = (8.5, 10.0)
    quorum = True

    def inject(self):
        for port in (self.primary, *self.replicas):
            self.stop(port)


class ReplicaKilled(Fault):
    name = "replica killed"
    lasts = (0.1, 2.5)

    def inject(self):
        self.kill(self.replica)


class ReplicaStopped(Fault):
    name = "replica paused (SIGSTOP)"
    lasts = (0.5, 3.0)

    def inject(self):
        self.stop(self.replica)


class ReplicaBehind(Fault):
    """The replica is paused and its link closed: it misses the primary's last seconds, before that dies."""

    name = "primary killed while its replica lags"
    quorum = True

    def inject(self):
        self.leave_behind(self.replica)
        self.kill(self.primary)
        self.nodes.signal(self.replica, signal.SIGCONT)
        self.promoted()

    def leave_behind(self, replica):
        """Pauses a replica, and lets the primary serve on for a while; what that does never reaches it."""
        self.stop(replica)
        self.nodes.do(self.primary, "CLIENT", "KILL", "TYPE", "replica")
        self.world.sleep(self.random.uniform(2, 3))


class PrimaryEmptied(Fault):
    """It is back before anybody missed it, without its keys."""

    name = "primary killed and at once restarted empty"
    holds = False
    lasts = (0.0, 0.0)

    def inject(self):
        self.nodes.kill(self.primary, signal.SIGKILL)
        self.nodes.revive(self.primary)


class ClientFault(Fault):
    touches = "clients"
    lasts = (0.0, 0.0)
    state = "holding"

    def prepare(self):
        """Waits for a client that is at it, of each contestant in turn."""
        contestant = self.random.choice(self.world.contestants)
        try:
            self.victim = until(lambda: self.world.crew.doing(self.state, contestant), f"a client {self.state}", 3)
        except TimeoutError:
            return False
        return True

    def clients(self):
        return [self.victim.name]


class HolderKilled(ClientFault):
    name = "holder killed"

    def inject(self):
        successor = self.world.crew.kill(self.victim)
        if not self.nodes.layout.cluster:  # a client that never saw the replica could not know that it counts
            until(successor.has_begun, "the successor to have held a lock")


class HolderStopped(ClientFault):
    """Its renewer stops with it, being a thread of the process: a lease runs out unseen."""

    name = "holder paused (SIGSTOP), and its renewer with it"
    lasts = (1.0, 7.0)

    def inject(self):
        self._undo.append(lambda: self.world.crew.resume(self.victim))
        self.world.crew.stop(self.victim)


class WaiterKilled(HolderKilled):
    name = "waiter killed"
    state = "waiting"


class WaiterStopped(HolderStopped):
    name = "waiter paused (SIGSTOP)"
    state = "waiting"
