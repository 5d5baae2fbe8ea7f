"""The locks that are put to the test, behind one face, each as a user would have it. Run in the clients' processes."""

import time
from contextlib import nullcontext

import redis
from django.db import transaction

from django_cluster_lock import LockError, cache_lock
from tests.faults.layouts import LAYOUTS, PAIR, TWO

POLL = 0.05  # seconds in which redis-py's lock is asked for again
OPTIONS = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}


class Ours:
    """This project's lock; the alias says how many replicas must acknowledge a lease."""

    def __init__(self, client, name, timeout, fenced):
        self._lock = cache_lock(name, alias=client.alias, timeout=timeout)
        self._fenced = fenced

    def acquire(self, wait):
        """Waits that long at most; raises what the lock raises, all of it LockError where it is known."""
        return self._lock.acquire(blocking_timeout=wait)

    @property
    def fence(self):
        return self._lock.fence

    def left(self):
        """For how many seconds the holder may count on its lease."""
        return self._lock.valid_for

    def release(self):
        self._lock.release()

    def section(self):
        """What the holder's reads and writes in the database stand in."""
        return self._lock.atomic() if self._fenced else nullcontext()

    def writing(self):
        """What its writes stand in."""
        return nullcontext() if self._fenced else transaction.atomic()


class RedisPy:
    """The lock of redis-py, whose holder counts on it from before the request that got it."""

    fence = 0

    def __init__(self, client, name, timeout, fenced):
        assert not fenced
        self._lock = client.redis.lock(f"{client.prefix}:{{{name}}}", timeout=timeout, thread_local=False)
        self._until = 0.0

    def acquire(self, wait):
        deadline = time.monotonic() + wait
        while True:
            now = time.monotonic()
            try:
                if self._lock.acquire(blocking=False):
                    self._until = now + self._lock.timeout
                    return True
            except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
                raise LockError(self._lock.name, type(error).__name__) from error
            if now >= deadline:
                return False
            time.sleep(POLL)

    def left(self):
        return max(0.0, self._until - time.monotonic())

    def release(self):
        try:
            self._lock.release()
        except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
            raise LockError(self._lock.name, type(error).__name__) from error

    def section(self):
        return nullcontext()

    def writing(self):
        return transaction.atomic()


class Contestant:
    """One kind of lock.

    Args:
        name: what files and tables call it by; also the alias in CLUSTER_LOCKS.
        label: what the report calls it.
        replicas: of an alias of ours.
        fenced: whether it writes inside of ``lock.atomic()``.
        promises: which of the two it makes; "answers": all that single flight says of the answers to calls.
        layouts: where it is put to the test.
    """

    def __init__(self, name, label, kind, *, replicas=None, fenced=False, promises=(), layouts=()):
        self.name, self.label, self.kind = name, label, kind
        self.replicas, self.fenced, self.promises = replicas, fenced, promises
        self.layouts = layouts or tuple(LAYOUTS.values())


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant("auto", "REPLICAS auto, `atomic()`", Ours, replicas="auto", fenced=True, promises=(1, 2)),
        Contestant("all", "REPLICAS 1, `atomic()`", Ours, replicas=1, fenced=True, promises=(1, 2), layouts=(PAIR,)),
        Contestant("some", "REPLICAS 1, without `atomic()`", Ours, replicas=1, layouts=(TWO,)),
        Contestant("fenced", "REPLICAS 0, `atomic()`", Ours, replicas=0, fenced=True, promises=(2,)),
        Contestant("bare", "REPLICAS 0, without `atomic()`", Ours, replicas=0),
        Contestant("redis-py", "redis-py `lock()`", RedisPy),
    )
}
FLIGHTS = {
    each.name: each
    for each in (
        Contestant("flights", "`@single_flight`", None, replicas="auto", promises=(1, "answers")),
        Contestant("undecorated", "the same tasks without it", None),
    )
}


def contestants_on(layout):
    """Those that are put to the test there."""
    return {name: each for name, each in CONTESTANTS.items() if layout in each.layouts}
