"""A client: a process whose threads each run a workload on the locks of one shard, and which writes down what it sees.

Run as ``python -m tests.faults.client``, with its task as JSON on the command line. It ends when its input does: when
the suite closes it, or is no more. What needs Django or opens sockets is imported once `configure` has prepared both.
"""

import itertools
import json
import os
import random
import socket
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

TICK = 0.05
LAST_WAIT = 20.0  # seconds after which an end is forced


class FromHere(socket.socket):
    """A socket whose connections come from this client's own address, by which they can be cut."""

    source = ""

    def connect(self, address):
        if self.family == socket.AF_INET:
            self.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            self.bind((self.source, 0))
        super().connect(address)


def come_from(source):
    """Has all connections of this process come from there."""
    FromHere.source = source
    socket.socket = FromHere


def configure(task):
    """Sets Django up."""
    if task["source"]:
        come_from(task["source"])
    import django
    from django.conf import settings

    from tests.faults import contestants

    proxied = {int(port): other for port, other in task["proxied"].items()}
    options = dict(contestants.OPTIONS)
    if proxied and task["cluster"]:
        options["address_remap"] = lambda node: ("127.0.0.1", proxied.get(node[1], node[1]))
    aliases = {
        each.name: {
            "LOCATION": task["urls"],
            "KEY_PREFIX": each.name,
            "REPLICAS": each.replicas,
            "TIMEOUT": 4,
            "BLOCKING_TIMEOUT": 2,
            "CLOCK_SKEW": task["skew"],
            "OPTIONS": options,
        }
        for each in contestants.CONTESTANTS.values()
        if each.replicas is not None
    }
    settings.configure(
        CLUSTER_LOCKS={**aliases, "default": aliases["auto"]},
        DATABASES={"default": task["database"]},
        INSTALLED_APPS=["django_cluster_lock", "django_cluster_lock.fences"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


class Client:
    """What the workloads of this process share."""

    def __init__(self, task, number):
        from tests.faults import contestants
        from tests.faults.history import Log

        self.contestant = contestants.CONTESTANTS[task["contestant"]]
        self.alias = self.prefix = self.contestant.name
        self.random = random.Random(f"{task['seed']} {number}")
        self.log = Log(task["log"])
        self.urls, self._cluster = task["urls"], task["cluster"]
        self.stopping = threading.Event()
        self._numbers = itertools.count(number, 1000)

    def stalled(self, at, seconds):
        self.log.write("stall", 0, f"{seconds:.6f}", at=at)

    def works(self):
        return not self.stopping.is_set()

    def row(self, lock):
        """The row of the register that belongs to the contestant's lock."""
        return f"{self.contestant.name} {lock}"

    @cached_property
    def redis(self):
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.cluster import ClusterNode, RedisCluster
        from redis.retry import Retry

        from tests.faults.contestants import OPTIONS

        if not self._cluster:
            return Redis.from_url(self.urls[0], retry=Retry(NoBackoff(), 1), protocol=2, **OPTIONS)
        addresses = [urlsplit(url) for url in self.urls]
        nodes = [ClusterNode(address.hostname, address.port) for address in addresses]
        password = addresses[0].password
        return RedisCluster(startup_nodes=nodes, password=password, protocol=2, require_full_coverage=False, **OPTIONS)

    @contextmanager
    def held(self, name, timeout, wait):
        """A lease, or None if it is not to be had."""
        from django_cluster_lock import LockError
        from tests.faults.workloads import REST

        number = next(self._numbers)
        lock = None
        self.log.write("call", number, name, wait, timeout)
        try:
            lock = self.contestant.kind(self, name, timeout, self.contestant.fenced)
            got = lock.acquire(wait)
            now = time.monotonic()
        except LockError as error:
            self.log.write("fail", number, type(error).__name__)
            got = False
        except Exception:
            self._unforeseen("fail", number)
            got = False
        else:
            left = lock.left() if got else 0
            word = ("grant", number, time.monotonic() + left, lock.fence) if left else ("fail", number, "busy")
            self.log.write(*word, at=now)
        if not got:
            time.sleep(REST)
            yield None
            return
        lease = Lease(self, lock, number)
        try:
            yield lease
        except Exception:
            self._unforeseen("error", number)
        lease.end()

    def _unforeseen(self, kind, number):
        """An error that is none of the lock's own."""
        from tests.faults.workloads import forget_connection

        line = " | ".join(traceback.format_exc().splitlines()[-6:])
        self.log.write(kind, number, f"error: {line}" if kind == "fail" else line)
        forget_connection()


class Lease:
    """A lock that is held, and what its holder sees of it."""

    def __init__(self, client, lock, number):
        self._client, self._lock, self.number, self._lost = client, lock, number, False
        self._seen = time.monotonic() + lock.left()
        self.fence = lock.fence
        self.section, self.writing = lock.section, lock.writing

    def hold(self, seconds):
        """Does something slow, with an eye on the lease."""
        from tests.faults.workloads import LOOK

        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
            self.look()

    def look(self):
        """Writes down what the handle says by now, unless it is lost and known to be."""
        if self._lost:
            return
        now = time.monotonic()
        left = self._lock.left()
        if not left:
            self._lost = True
            self._client.log.write("lost", self.number, at=now)
        elif now + left > self._seen + 0.001:
            self._seen = now + left
            self._client.log.write("seen", self.number, f"{self._seen:.6f}", at=now)

    def end(self):
        from django_cluster_lock import LockError, LockLost

        now = time.monotonic()
        left = self._lock.left()
        word = ("end", self.number, f"{now + left:.6f}") if left else ("lost", self.number)
        self._client.log.write(*word, at=now)
        try:
            self._lock.release()
        except LockLost:
            self._client.log.write("lost", self.number)
        except LockError:
            pass
        except Exception:
            self._client._unforeseen("error", self.number)


def watch(stalled):
    """Tells when this process did not run, though it could have: at what time, and for how long."""
    while True:
        before = time.monotonic()
        time.sleep(TICK)
        if (late := time.monotonic() - before - TICK) > TICK:
            stalled(before + TICK + late, late)


def main():
    task = json.loads(sys.argv[1])
    configure(task)
    from tests.faults.workloads import WORKLOADS

    clients, threads = [], []
    for number, locks in enumerate(task["locks"]):
        client = Client(task, number)
        clients.append(client)
        threads.append(threading.Thread(target=WORKLOADS[task["workload"]], args=(client, locks), daemon=True))
    for thread in threads:
        thread.start()
    threading.Thread(target=watch, args=(client.stalled,), daemon=True).start()
    sys.stdin.read()
    for client in clients:
        client.stopping.set()
    deadline = time.monotonic() + LAST_WAIT
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    Path(task["log"]).with_suffix(".done").touch()
    os._exit(0)


if __name__ == "__main__":
    main()
