"""How fast the locks of whole shards are while another shard is dead or stalled, beside a healthy cluster."""

import signal
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from django_cluster_lock import LockError, cache_lock

ROUNDS, PAIRS = 4, 2000
VICTIM = 0


@dataclass
class Latency:
    """Seconds an uncontended acquire took, on the other shards."""

    healthy: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)
    stalled: list[float] = field(default_factory=list)

    def rows(self):
        """For each state: its name, median and 99th percentile, and their ratios to the healthy ones."""
        base = percentiles(self.healthy)
        for name, times in (("healthy", self.healthy), ("dead", self.dead), ("stalled (SIGSTOP)", self.stalled)):
            median, worst = percentiles(times)
            yield name, median, worst, median / base[0], worst / base[1]


def percentiles(times):
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def measure(world):
    """Measures from the moment on in which both nodes of the shard die or stall; somebody goes on asking for its locks.

    The states take turns, so that what else the machine does meets all of them alike.
    """
    latency = Latency()
    for _ in range(ROUNDS):
        pairs(world, latency.healthy)
        for port in world.nodes.ports(VICTIM):
            world.nodes.signal(port, signal.SIGSTOP)
        pairs(world, latency.stalled)
        for port in world.nodes.ports(VICTIM):
            world.nodes.signal(port, signal.SIGCONT)
        world.nodes.roles(VICTIM)
        pairs(world, latency.healthy)
        for port in world.nodes.ports(VICTIM):
            world.nodes.kill(port, signal.SIGKILL)
        pairs(world, latency.dead)
        for port in world.nodes.ports(VICTIM):
            world.nodes.revive(port)
        world.nodes.roles(VICTIM)
    return latency


def pairs(world, times):
    owners = world.owners()
    others = [lock for lock, owner in owners.items() if owner not in (VICTIM, None)]
    theirs = [lock for lock in owners if lock not in others]
    ending = threading.Event()
    asking = threading.Thread(target=ask, args=(theirs, ending))
    asking.start()
    try:
        for number in range(PAIRS):
            lock = cache_lock(others[number % len(others)], alias="auto")
            started = time.perf_counter()
            lock.acquire()
            times.append(time.perf_counter() - started)
            lock.release()
            time.sleep(0.001)
    finally:
        ending.set()
        asking.join()


def ask(locks, ending):
    """Goes on asking for the locks of the shard in trouble."""
    number = 0
    while not ending.wait(0.05):
        with suppress(LockError), cache_lock(locks[number % len(locks)], alias="auto", blocking_timeout=1):
            number += 1
