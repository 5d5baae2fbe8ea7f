"""What the faults are done to: the cluster, its links, the proxies, the clients; and the threads that do them."""

import threading
import time
import traceback
from contextlib import ExitStack
from random import Random

from tests.faults.history import Happening

GAP = (0.5, 2.0)  # seconds between two faults of a shard, in which its locks are in use


class World:
    """All that a fault may lay its hands on.

    Args:
        locks: the names of all locks, by their home shard.
        whole_links: why links cannot be cut; empty if they can.
    """

    def __init__(self, nodes, links, proxy, crew, *, locks, contestants, skew, whole_links):
        self.nodes, self.links, self.proxy, self.crew = nodes, links, proxy, crew
        self.contestants, self.skew, self.whole_links = contestants, skew, whole_links
        self._locks = locks
        self.happenings, self.failures, self.stalls = [], [], []
        self.vote, self.broken_off = threading.Lock(), threading.Event()
        self.shards = [threading.Lock() for _ in range(nodes.shards)]

    def stalled(self, at, seconds):
        self.stalls.append((at - seconds, at))

    def sleep(self, seconds):
        """Sleeps, unless the run is broken off."""
        if self.broken_off.wait(seconds):
            raise SystemExit

    def locks_of_home(self, shard):
        return self._locks[shard]

    def all_locks(self):
        return [lock for locks in self._locks for lock in locks]

    def owners(self):
        """The shard of each lock as things are, None for one that nobody serves."""
        return self.nodes.owners(self.all_locks())

    def touched(self, fault):
        if fault.touches == "all":
            return self.all_locks()
        shards = fault.shards_taken if fault.touches == "shard" else ()
        owners = self.owners()
        return [lock for lock, owner in owners.items() if owner in shards or owner is None]

    def harm(self, kind, shard, random):
        """Does one fault, from its preparation until all is whole again."""
        fault = kind(self, shard, random)
        with ExitStack() as stack:
            if kind.quorum:
                stack.enter_context(self.vote)
            fault.shards_taken = sorted(fault.shards())
            for taken in fault.shards_taken:
                stack.enter_context(self.shards[taken])
            if not fault.prepare():
                return
            locks, clients = self.touched(fault), fault.clients()
            promises = {"holds": kind.holds, "in_order": kind.in_order}
            happening = Happening(kind.name, shard, locks, time.monotonic(), clients, **promises)
            self.happenings.append(happening)
            try:
                try:
                    fault.inject()
                    if kind.usable:
                        happening.usable = time.monotonic()
                    self.sleep(random.uniform(*kind.lasts))
                finally:
                    fault.heal()
                    happening.healed = time.monotonic()
                for taken in fault.shards_taken:
                    self.nodes.roles(taken)
            except Exception:  # whatever happened instead, it was not what was meant
                happening.holds = False
                happening.kind = f"failed: {happening.kind}"
                self.failures.append(traceback.format_exc())
            happening.over = time.monotonic()


class Harm:
    """The threads that do faults, one on each shard, until the time is over or all are done."""

    def __init__(self, world, kinds, seed, seconds, rounds=None):
        self._world, self._kinds, self._seed = world, kinds, seed
        self._end = time.monotonic() + seconds
        self._random, self._guard = Random(seed), threading.Lock()
        self._next, self._rounds = [], rounds
        self._threads = [
            threading.Thread(target=self._work, args=(shard,), daemon=True) for shard in range(world.nodes.shards)
        ]

    def run(self):
        for thread in self._threads:
            thread.start()
        try:
            for thread in self._threads:
                thread.join()
        finally:  # interrupted or not
            self._world.broken_off.set()
            for thread in self._threads:
                thread.join(5)

    def _work(self, shard):
        random = Random(f"{self._seed} {shard}")
        while time.monotonic() < self._end and (kind := self._take()):
            self._world.harm(kind, shard, random)
            self._world.sleep(random.uniform(*GAP))

    def _take(self):
        """The next kind: all kinds in some order, then again in another."""
        with self._guard:
            if not self._next:
                if self._rounds == 0:
                    return None
                self._rounds = self._rounds and self._rounds - 1
                self._next = self._random.sample(self._kinds, len(self._kinds))
            return self._next.pop()
