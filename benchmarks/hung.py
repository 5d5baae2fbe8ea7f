"""Calls on healthy shards while one node hangs: ``REPLICAS`` auto, many leases held, one process."""

import asyncio
import os
import signal
import statistics
import threading
import time
from contextlib import contextmanager, suppress
from typing import NamedTuple

import redis

from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.errors import LockError
from django_cluster_lock.lock import Lock

ALIAS = "hung"
LEASES = 300
TIMEOUT = 3.0  # seconds of a lease


class Outcome(NamedTuple):
    """Seconds of a pair on healthy shards before and while a node hung, and how many of their leases were lost."""

    before: float
    meanwhile: float
    lost: int
    leases: int


def measure(cluster, seconds, *, face):
    """Stop a primary for so many seconds, fewer than a failover takes, and measure pairs elsewhere."""
    aliases[ALIAS] = Alias(AliasSettings(ALIAS, tuple(cluster.urls), "hung"))
    held = [Lock(f"held:{number}", alias=ALIAS, timeout=TIMEOUT) for number in range(LEASES)]
    for lock in held:
        lock.acquire()
    topology = aliases[ALIAS].topology
    hangs = topology.primary(held[0]._keys()[0].slot)  # noqa: SLF001
    elsewhere = [lock for lock in held if topology.primary(lock._keys()[0].slot) != hangs]  # noqa: SLF001
    names = [lock.name.replace("held", "pair") for lock in elsewhere]
    names = [name for name in names if topology.primary(Lock(name, alias=ALIAS)._keys()[0].slot) != hangs]  # noqa: SLF001
    pairs = {"threads": _pairs, "asyncio": _async_pairs}[face]
    before = pairs(names, seconds)
    with _stopped(cluster.urls, hangs), _callers_of(held[0].name):
        meanwhile = pairs(names, seconds)
        lost = sum(lock.lost for lock in elsewhere)
    for lock in held:
        with suppress(LockError):  # what was held on the node that hung may have been lost
            lock.release()
    return Outcome(statistics.median(before), statistics.median(meanwhile), lost, len(elsewhere))


def _pairs(names, seconds):
    times, until = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        with Lock(names[len(times) % len(names)], alias=ALIAS):
            pass
        times.append(time.perf_counter() - started)
    return times


def _async_pairs(names, seconds):
    async def run():
        times, until = [], time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            async with Lock(names[len(times) % len(names)], alias=ALIAS):
                pass
            times.append(time.perf_counter() - started)
        return times

    return asyncio.run(run())


@contextmanager
def _stopped(urls, node):
    url = next(url for url in urls if url.endswith(f":{node[1]}"))
    with redis.Redis.from_url(url) as client:
        process = client.info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def _callers_of(name, count=5):
    """Have so many threads ask the node that hangs, as a web process would."""
    ended = threading.Event()

    def call():
        while not ended.is_set():
            with suppress(LockError):
                Lock(name, alias=ALIAS).acquire(blocking_timeout=0.5)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
