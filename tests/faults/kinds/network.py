"""Links that are cut: packets vanish, connections stay open."""

from tests.faults.crew import HERE, THERE
from tests.faults.kinds.base import NeedsLinks
from tests.faults.layouts import CLUSTERS
from tests.faults.namespace import HOST, Party

CLIENTS_HERE = [Party(HERE), Party(HOST)]  # the proxied ones come from their proxies
CLIENTS_THERE = [Party(THERE)]


class ReplicaCut(NeedsLinks):
    name = "primary cut off from its replica"
    lasts = (0.5, 3.5)

    def inject(self):
        self.cut([self.nodes.party(self.primary)], [self.nodes.party(self.replica)])


class PrimaryCut(NeedsLinks):
    name = "primary cut off from all nodes"
    lasts = (0.2, 1.0)
    quorum = True
    layouts = CLUSTERS

    def inject(self):
        self.cut([self.nodes.party(self.primary)], self.nodes.parties(without=[self.primary]))
        self.promoted()


class Partition(NeedsLinks):
    """The primary goes on serving the clients on its side until it notices, the promoted replica those on the other."""

    name = "partition: primary and some clients, majority and other clients"
    lasts = (0.5, 2.0)
    quorum = True
    touches = "all"
    layouts = CLUSTERS

    def shards(self):
        return {self.shard}

    def inject(self):
        minority = [self.nodes.party(self.primary), *CLIENTS_THERE]
        self.cut(minority, [*self.nodes.parties(without=[self.primary]), Party(HERE)])
        self.promoted()


class ClientsCut(NeedsLinks):
    name = "clients cut off from all nodes"
    lasts = (0.5, 3.0)
    touches = "all"

    def shards(self):
        return set()

    def prepare(self):
        return True

    def inject(self):
        self.cut(CLIENTS_THERE, self.nodes.entrances())


class CutThenKilled(NeedsLinks):
    name = "primary cut off from its replica, then killed"
    quorum = True

    def inject(self):
        self.cut([self.nodes.party(self.primary)], [self.nodes.party(self.replica)])
        self.world.sleep(self.random.uniform(1, 2))
        self.kill(self.primary)
        self.promoted()
