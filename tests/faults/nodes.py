"""The cluster that is harmed: three shards of a primary and a replica, whose links and clocks can be told apart."""

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_cluster_lock import embedded, names
from tests.faults.namespace import HOST, Party

SHARDS = 3
PATIENCE = 60.0  # seconds for what has to happen in the end
WRAPPER = """\
#!/bin/sh
# The server, called as: server CONFIG --port PORT
{clock}
exec {server} "$@" --cluster-announce-ip {host} --replica-announce-ip {host} --busy-reply-threshold 100 \\
    --bind-source-addr 127.1.$(($3 / 256)).$(($3 % 256))
"""
CLOCK = """\
export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={folder}/clock-$3 FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1
"""
LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


def libfaketime():
    """The library that steps a server's clock, or None."""
    return next((found for pattern in LIBRARIES for found in Path("/").glob(pattern[1:])), None)


class Nodes:
    """The nodes by shard. The two of a shard change their roles, but never their shard."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.has_clocks = bool(libfaketime())
        clock = CLOCK.format(library=libfaketime(), folder=folder) if self.has_clocks else ""
        wrapper = self.folder / "server"
        wrapper.write_text(WRAPPER.format(clock=clock, server=embedded._binary(None), host=HOST))
        wrapper.chmod(0o700)
        self.cluster = embedded.up(self.folder / "cluster", server=wrapper, owner=True)
        self.urls = self.cluster.urls

    def close(self):
        embedded.down(self.cluster.directory)

    def version(self):
        """What server it is."""
        with self.client(self.cluster.ports[0]) as client:
            told = client.info("server")
        return f"{told.get('server_name', 'redis').capitalize()} {told.get('valkey_version', told['redis_version'])}"

    def ports(self, shard):
        return self.cluster.ports[shard], self.cluster.ports[shard + SHARDS]

    def party(self, port):
        """The node as an end of links: its data and its bus."""
        return Party(f"127.1.{port // 256}.{port % 256}", (port, port + embedded.BUS_OFFSET))

    def parties(self, without=()):
        return [self.party(port) for port in self.cluster.ports if port not in without]

    @contextmanager
    def client(self, port, timeout=1.0):
        """A client of one node, which tries once."""
        options = {"password": self.cluster.password, "decode_responses": True, "protocol": 2}
        with redis.Redis(HOST, port, retry=Retry(NoBackoff(), 0), socket_timeout=timeout, **options) as client:
            yield client

    def do(self, port, *command):
        with self.client(port) as client:
            return client.execute_command(*command)

    def replication(self, port):
        """What a node says of its role; nothing while it does not answer."""
        with suppress(redis.RedisError), self.client(port) as client:
            return client.info("replication")
        return {}

    def is_primary(self, port):
        return self.replication(port).get("role") == "master"

    def roles(self, shard):
        """The ports of the shard's primary and replica, once it is whole."""
        return until(lambda: self._whole(shard), f"shard {shard} to be whole")

    def _whole(self, shard):
        one, other = self.ports(shard)
        for primary, replica in ((one, other), (other, one)):
            if self._serves(primary) and self.replication(replica).get("master_link_status") == "up":
                told = self.replication(primary)
                if told.get("connected_slaves") == 1 and told["slave0"]["state"] == "online":
                    return primary, replica
        return None

    def _serves(self, port):
        with suppress(redis.RedisError), self.client(port) as client:
            (own,) = [node for node in client.execute_command("CLUSTER NODES").values() if "myself" in node["flags"]]
            return "master" in own["flags"] and client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
        return False

    def signal(self, port, signum):
        embedded._Node(self.cluster.directory, port).kill(signum)

    def kill(self, port, signum):
        """Kills a node; returns once it is dead."""
        node = embedded._Node(self.cluster.directory, port)
        pid = node.pid()
        node.kill(signum)
        until(lambda: not node.running(), f"the node at {port} to die")
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)  # where the suite is the first process of its namespace, the dead are left to it

    def revive(self, port):
        """Starts a dead node again: it knows the cluster, but no keys."""
        embedded._Node(self.cluster.directory, port).launch(self.cluster.server)

    def step(self, port, seconds):
        """Sets the clock of a node off against the machine's; returns once it is so."""
        draft, file = self.folder / f"draft-{port}", self.folder / f"clock-{port}"
        draft.write_text(f"{seconds:+.3f}")
        draft.replace(file)

        def stepped():
            second, micros = self.do(port, "TIME")
            return abs(int(second) + int(micros) / 1e6 - time.time() - seconds) < 0.1

        until(stepped, f"the clock at {port} to step")

    def owners(self, locks):
        """The shard of each lock, as the cluster serves it now."""
        served = {shard: self._slots_of(shard) for shard in range(SHARDS)}
        return {
            lock: next(
                (shard for shard, spans in served.items() if any(a <= slot_of(lock) <= b for a, b in spans)), None
            )
            for lock in locks
        }

    def _slots_of(self, shard):
        for port in self.ports(shard):
            with suppress(redis.RedisError), self.client(port) as client:
                (own,) = [
                    node for node in client.execute_command("CLUSTER NODES").values() if "myself" in node["flags"]
                ]
                if "master" in own["flags"] and own["slots"]:
                    return [(int(span[0]), int(span[-1])) for span in own["slots"]]
        return []


def slot_of(lock):
    return names.keys_of("any", lock).slot


def home_of(slot):
    """The shard that has a slot at first."""
    return max(shard for shard in range(SHARDS) if embedded.SLOTS * shard // SHARDS <= slot)


def until(condition, what, within=PATIENCE):
    """Waits for a condition, and gives its value."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within:g} s in vain for {what}")
        time.sleep(0.02)
    return value
