"""What all kinds of faults have in common."""

from contextlib import contextmanager
from typing import ClassVar

from tests.faults.nodes import SHARDS, until


class Fault:
    """One fault on one shard; a subclass is a kind.

    Attributes:
        name: of the kind.
        holds: whether promise 1 (mutual exclusion) is to hold under it. Promise 2 (no stale write) always is.
        in_order: whether fences are to stay in order under it.
        lasts: how many seconds it stays, at least and at most.
        quorum: whether a vote of the primaries must mend it, so that no two such may happen at once.
        touches: what it may touch: the "shard", "all" shards, or "clients" alone.
    """

    name: ClassVar[str]
    holds: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    lasts: ClassVar[tuple[float, float]] = (0.5, 1.5)
    quorum: ClassVar[bool] = False
    touches: ClassVar[str] = "shard"

    def __init__(self, world, shard, random):
        self.world, self.nodes, self.shard, self.random = world, world.nodes, shard, random
        self.primary, self.replica = self.nodes.ports(shard)
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
        self.primary, self.replica = self.nodes.roles(self.shard)
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

    def promoted(self):
        """Waits until the replica is a primary."""
        until(lambda: self.nodes.is_primary(self.replica), f"the promotion of {self.replica}")

    @contextmanager
    def primary_client(self):
        with self.nodes.client(self.primary) as client:
            yield client

    def other_shard(self):
        return (self.shard + self.random.randrange(1, SHARDS)) % SHARDS


class NeedsLinks(Fault):
    """A kind that cuts links."""

    @classmethod
    def why_not(cls, world):
        return world.whole_links
