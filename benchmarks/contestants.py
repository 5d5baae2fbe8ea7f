"""The locks that are measured, behind one small interface."""

import secrets
import socket

import redis
import redis_lock

from django_cluster_lock import protocol, scripts
from django_cluster_lock.acknowledgement import wait
from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.wire import Inbox, pack
from django_cluster_lock.exchange import command
from django_cluster_lock.layout import learn
from django_cluster_lock.lock import Lock
from django_cluster_lock.names import keys_of

TIMEOUT = 10
SLICE = 4.0


class Contestant:
    """A lock called ``name`` on the cluster; ``acquire`` waits."""

    label = ""

    def __init__(self, urls, name):
        self.name = name

    def acquire(self):
        raise NotImplementedError

    def release(self):
        raise NotImplementedError


class Ours(Contestant):
    label = "django-cluster-lock, REPLICAS 0"
    replicas = 0

    def __init__(self, urls, name):
        super().__init__(urls, name)
        alias = f"benchmark-{self.replicas}"
        aliases.setdefault(alias, Alias(AliasSettings(alias, tuple(urls), "bench", replicas=self.replicas)))
        self.lock = Lock(name, alias=alias, timeout=TIMEOUT)
        self.acquire, self.release = self.lock.acquire, self.lock.release


class OursAcknowledged(Ours):
    label = "django-cluster-lock, 1 replica acknowledged"
    replicas = 1


class RedisPy(Contestant):
    label = "redis-py RedisCluster.lock()"

    def __init__(self, urls, name):
        super().__init__(urls, name)
        self.lock = redis.RedisCluster.from_url(urls[0]).lock(name, timeout=TIMEOUT)
        self.acquire, self.release = self.lock.acquire, self.lock.release


class PythonRedisLock(Contestant):
    label = "python-redis-lock"

    def __init__(self, urls, name):
        super().__init__(urls, name)
        self.client = redis.RedisCluster.from_url(urls[0])

    def acquire(self):
        # A hash tag in the name and strict=False are what it takes on a cluster; a handle serves once.
        self.lock = redis_lock.Lock(self.client, f"{{{self.name}}}", expire=TIMEOUT, strict=False)
        self.lock.acquire()

    def release(self):
        self.lock.release()


class Bare(Contestant):
    """The same requests on a bare socket: what Python and the network cost at least."""

    label = "the same two EVALSHA on a bare socket"
    replicas = 0

    def __init__(self, urls, name):
        super().__init__(urls, name)
        alias = Alias(AliasSettings("bare", tuple(urls), f"bare-{self.replicas}"))
        alias.perform(learn(alias.topology))
        self.keys = keys_of(alias.settings.key_prefix, name)
        node = alias.topology.primary(self.keys.slot)
        self.socket = socket.create_connection(node)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox = Inbox()
        self.ask(pack([(b"AUTH", alias.options.kwargs["password"].encode())]), 1)
        for script in (scripts.ACQUIRE, scripts.RELEASE):
            self.ask(pack([(b"SCRIPT", b"LOAD", script.text)]), 1)
        terms = protocol.Terms(TIMEOUT, 1, self.replicas, (b"host", b"1", b"MainThread", b""), 4)
        self.token = secrets.token_urlsafe(12).encode()
        call = protocol.attempt(self.keys, self.token, terms, now=0, deadline=60, queues=True)
        take = [command(call)]
        if self.replicas:
            take.append(wait(self.replicas, 1))
        self.count = len(take)
        self.take = pack(take)
        self.slice = pack([(b"BLPOP", self.keys.wake + self.token, b"%.3f" % SLICE), *take])
        args = protocol.released(self.keys, self.token, mark=False)
        self.give = pack([command(protocol.Call(self.keys, scripts.RELEASE, args, 0))])

    def ask(self, request, count):
        self.socket.sendall(request)
        values = []
        while not self.inbox.take(values, count):
            self.inbox.feed(self.socket.recv(65536))
        return values

    def acquire(self):
        status = self.ask(self.take, self.count)[0][0]
        while status != b"own":
            status = self.ask(self.slice, self.count + 1)[1][0]

    def release(self):
        self.ask(self.give, 1)


class BareAcknowledged(Bare):
    label = "EVALSHA + WAIT and EVALSHA on a bare socket"
    replicas = 1


class Push(Bare):
    """LPUSH to a BLPOP: a wake-up and nothing else."""

    label = "LPUSH to BLPOP on bare sockets"

    def __init__(self, urls, name):
        super().__init__(urls, name)
        self.held = False
        key = f"bare-push:{{{name}}}".encode()
        self.push, self.pop = pack([(b"LPUSH", key, b"1")]), pack([(b"BLPOP", key, b"%.3f" % SLICE)])

    def acquire(self):
        pass

    def acquire_second(self):
        self.ask(self.pop, 1)

    def release(self):
        self.ask(self.push, 1)

    def release_second(self):
        pass
