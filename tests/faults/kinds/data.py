"""Servers that lose what they know, or are too full or too busy to take anything."""

import threading
from contextlib import suppress

import redis

from tests.faults.kinds.base import Fault

ENDLESS = "while true do end"
TINY = "1mb"  # less than an empty server uses


class ScriptsFlushed(Fault):
    name = "SCRIPT FLUSH"

    def inject(self):
        self.nodes.do(self.primary, "SCRIPT", "FLUSH")


class ConnectionsKilled(Fault):
    name = "CLIENT KILL of all clients"

    def inject(self):
        for _ in range(3):
            self.nodes.do(self.primary, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            self.world.sleep(0.2)


class Busy(Fault):
    """An endless script: until it is killed the server answers BUSY."""

    name = "BUSY: a script that does not end"
    lasts = (0.3, 1.2)

    def inject(self):
        self._runs = threading.Thread(target=self._run)
        self._runs.start()
        self._undo.append(self._end)

    def _run(self):
        with suppress(redis.RedisError), self.nodes.client(self.primary, timeout=10) as client:
            client.eval(ENDLESS, 0)

    def _end(self):
        while self._runs.is_alive():
            with suppress(redis.RedisError):
                self.nodes.do(self.primary, "SCRIPT", "KILL")
            self._runs.join(0.1)


class Exhausted(Fault):
    """All clients have to connect again, and the server takes some of them."""

    name = "connections exhausted (maxclients)"
    lasts = (1.0, 4.0)

    def inject(self):
        own = redis.Redis.from_url(self.nodes.url(self.primary), socket_timeout=5, single_connection_client=True)
        self._undo.append(own.close)
        before = own.config_get("maxclients")["maxclients"]
        self._undo.append(lambda: own.config_set("maxclients", before))  # by the connection that is there already
        own.config_set("maxclients", max(4, own.info("clients")["connected_clients"] // 3))
        own.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class Full(Fault):
    name = "memory full (noeviction)"
    lasts = (0.5, 2.0)
    policy = "noeviction"

    def inject(self):
        self._undo.append(lambda: self._set("0", "noeviction"))
        self._set(TINY, self.policy)

    def _set(self, size, policy):
        self.nodes.do(self.primary, "CONFIG", "SET", "maxmemory-policy", policy, "maxmemory", size)


class Evicted(Full):
    name = "memory full (allkeys-lru): eviction"
    holds = False
    lasts = (0.2, 0.6)
    policy = "allkeys-lru"


class Flushed(Fault):
    name = "FLUSHALL"
    holds = False
    lasts = (0.0, 0.0)

    def inject(self):
        self.nodes.do(self.primary, "FLUSHALL")
