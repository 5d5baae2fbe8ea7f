"""Slots that move to another shard while their locks are held and waited for."""

from contextlib import suppress

import redis

from tests.faults.kinds.base import Fault
from tests.faults.layouts import CLUSTERS
from tests.faults.nodes import slot_of, until


class SlotMoved(Fault):
    """As redis-cli does it: the slot is opened, its keys move one by one, it is closed."""

    name = "slot migration (SETSLOT, MIGRATE)"
    lasts = (0.0, 0.0)
    layouts = CLUSTERS

    def shards(self):
        """The slot's shard, and the one it is to move to: home, if it is not there."""
        self.lock = self.random.choice(self.world.locks_of_home(self.shard))
        self.slot = slot_of(self.lock)
        self.source_shard = self.world.owners()[self.lock]
        self.target_shard = self.other_shard() if self.source_shard == self.shard else self.shard
        return {shard for shard in (self.source_shard, self.target_shard) if shard is not None}

    def prepare(self):
        if self.source_shard is None or self.world.owners()[self.lock] != self.source_shard:
            return False  # it was not to be seen, or has moved meanwhile
        self.source, *_ = self.nodes.roles(self.source_shard)
        self.target, *_ = self.nodes.roles(self.target_shard)
        return True

    def inject(self):
        source_id, target_id = (self.nodes.do(port, "CLUSTER", "MYID") for port in (self.source, self.target))
        self.nodes.do(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", source_id)
        self.nodes.do(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", target_id)
        self.world.sleep(self.random.uniform(0.1, 1))
        while keys := self.nodes.do(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, 3):
            auth = ("AUTH", self.nodes.cluster.password)
            self.nodes.do(self.source, "MIGRATE", "127.0.0.1", self.target, "", 0, 900, *auth, "KEYS", *keys)
            self.world.sleep(self.random.uniform(0, 0.2))
        self.world.sleep(self.random.uniform(0, 0.5))
        for port in (self.target, self.source):
            self.nodes.do(port, "CLUSTER", "SETSLOT", self.slot, "NODE", target_id)

    def heal(self):
        until(lambda: self.world.owners()[self.lock] == self.target_shard, f"slot {self.slot} to have moved")


class SlotMigrated(SlotMoved):
    """As Valkey 9 does it by itself."""

    name = "slot migration (MIGRATESLOTS)"

    @classmethod
    def why_not(cls, world):
        with suppress(redis.ResponseError):
            world.nodes.do(world.nodes.cluster.ports[0], "CLUSTER", "GETSLOTMIGRATIONS")
            return ""
        return "the server does not know it (Valkey 9)"

    def inject(self):
        target_id = self.nodes.do(self.target, "CLUSTER", "MYID")
        range_ = ("SLOTSRANGE", self.slot, self.slot)
        self.nodes.do(self.source, "CLUSTER", "MIGRATESLOTS", *range_, "NODE", target_id)
