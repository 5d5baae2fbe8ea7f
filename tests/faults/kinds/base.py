"""What all kinds of faults have in common."""

import signal
from contextlib import contextmanager
from typing import ClassVar

from tests.faults.layouts import LAYOUTS, Layout


class Fault:
    """One fault on one shard; a subclass is a kind.

    Attributes:
        name: of the kind.
        holds: whether promise 1 (mutual exclusion) is to hold under it. Promise 2 (no stale write) always is.
        in_order: whether fences are to stay in order under it.
        lasts: how many seconds it stays, at least and at most.
        quorum: whether a vote of the primaries must mend it, so that no two such may happen at once.
        touches: what it may touch: the "shard", "all" shards, or "clients" alone.
        layouts: where it can be done.
        usable: whether the locks it touches are to be had again once it is done, before it is taken back.
    """

    name: ClassVar[str]
    holds: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    lasts: ClassVar[tuple[float, float]] = (0.5, 1.5)
    quorum: ClassVar[bool] = False
    touches: ClassVar[str] = "shard"
    layouts: ClassVar[tuple[Layout, ...]] = tuple(LAYOUTS.values())
    usable: ClassVar[bool] = False

    def __init__(self, world, shard, random):
        self.world, self.nodes, self.shard, self.random = world, world.nodes, shard, random
        self._undo = []

    @classmethod
    def why_not(cls, world):
        """Why it cannot be run here; empty if it can."""
        return ""

    def shards(self):
        """The shards that are its own while it lasts."""
        return {self.shard} if self.touches == "shard" else set()

    def clients(self):
        """The names of the clients it is done to, after it was prepared."""
        return []

    def prepare(self):
        """Waits for the moment; gives whether it came."""
        self.primary, *self.replicas = self.nodes.roles(self.shard)
        self.replica = self.random.choice(self.replicas)
        return True

    def inject(self):
        raise NotImplementedError

    def heal(self):
        """Takes it back, whatever became of `inject`."""
        while self._undo:
            self._undo.pop()()

    def cut(self, some, others):
        """Cuts links until it is healed."""
        rules = self.world.links.cut(some, others)
        self._undo.append(lambda: self.world.links.heal(rules))

    def promoted(self, *replicas):
        """Waits until one of these replicas is a primary, by default any."""
        self.nodes.promoted(replicas or self.replicas)

    def kill(self, port):
        """Kills a node; it is started again when this is healed."""
        self._undo.append(lambda: self.nodes.revive(port))
        self.nodes.kill(port, signal.SIGKILL)

    def stop(self, port):
        """Has a node stand still until this is healed."""
        self._undo.append(lambda: self.nodes.signal(port, signal.SIGCONT))
        self.nodes.signal(port, signal.SIGSTOP)

    @contextmanager
    def primary_client(self):
        with self.nodes.client(self.primary) as client:
            yield client

    def other_shard(self):
        return (self.shard + self.random.randrange(1, self.nodes.shards)) % self.nodes.shards


class NeedsLinks(Fault):
    """A kind that cuts links."""

    @classmethod
    def why_not(cls, world):
        return world.whole_links
