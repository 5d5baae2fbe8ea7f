"""What goes wrong during a flood of calls: a worker's process is killed in the middle of a run, then a primary."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from demo.faults import hold, ports_of, replace_primary
from demo.processes import Shop
from django_cluster_lock import embedded, locks


@dataclass(frozen=True)
class RunKilled:
    """A task's run that ended with its process.

    Args:
        victim: the process.
        key: what it did.
        at: when, on the monotonic clock.
        freed: how many seconds after that its lock came free, if it had one.
    """

    victim: int
    key: str
    at: float
    freed: float | None


@dataclass(frozen=True)
class PrimaryKilled:
    """A primary of the cluster, which had the locks of flights.

    Args:
        port: of the primary.
        keys: all keys whose locks it had.
        flights: how many of them were queued or running.
        at: when it was killed, on the monotonic clock.
        replaced: how many seconds after that a replica had taken over.
    """

    port: int
    keys: frozenset[str]
    flights: int
    at: float
    replaced: float


def kill_a_run(shop: Shop, *, guarded: bool) -> RunKilled | None:
    """Kills the worker's process that has just had an invoice made, and has not yet noted it."""
    invoice = hold(shop)
    if invoice is None:
        return None
    victim, key = int(invoice["till"]), f"bill {invoice['ticket']}"
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    return RunKilled(victim, key, killed, seconds_locked(lock_of(key), victim) if guarded else None)


def seconds_locked(name: str, pid: int) -> float:
    """How long a process still has a lock."""
    began = time.monotonic()
    while True:
        lock = locks["default"].show(name)
        if lock.state != "held" or lock.owner.pid != str(pid):
            return time.monotonic() - began
        time.sleep(0.02)


def kill_a_primary_of_flights(
    cluster: embedded.Cluster, keys: Iterable[str], stopped: Callable[[], bool]
) -> PrimaryKilled | None:
    """Kills the primary that has the most flights; None if the flood ends before."""
    port_of = ports_of(cluster, {key: lock_of(key) for key in keys})
    names = {lock_of(key): port for key, port in port_of.items()}
    flights = Counter[int]()
    while not flights:
        if stopped():
            return None
        time.sleep(0.02)
        flights = Counter(names[lock.name] for lock in locks["default"].list() if lock.name in names)
    ((port, number),) = flights.most_common(1)
    at, replaced = replace_primary(cluster, port)
    return PrimaryKilled(port, frozenset(key for key in port_of if port_of[key] == port), number, at, replaced)


def lock_of(key: str) -> str:
    """The name of the lock of a task's flights."""
    task, _, subject = key.partition(" ")
    return f"flight:shop.tasks.{task}:{subject}"
