"""The servers that are harmed, by shard. Their links and clocks can be told apart."""

import os
import random
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_cluster_lock import embedded, names
from tests.faults.name import Name
from tests.faults.namespace import HOST, Party

PATIENCE = 60.0  # seconds for what has to happen in the end
WRAPPER = """\
#!/bin/sh
# The server, called as: server CONFIG --port PORT
{clock}
exec {server} "$@" --cluster-announce-ip {host} --replica-announce-ip {host} --busy-reply-threshold 100 \\
    --bind-source-addr 127.1.$(($3 / 256)).$(($3 % 256)) --cluster-allow-replica-migration no
"""
CLOCK = """\
export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={folder}/clock-$3 FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1
"""
LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


def libfaketime():
    """The library that steps a server's clock, or None."""
    return next((found for pattern in LIBRARIES for found in Path("/").glob(pattern[1:])), None)


class Nodes:
    """A cluster's nodes by shard. They change their roles, but never their shard."""

    def __init__(self, folder, layout):
        self.folder, self.layout, self.shards = Path(folder), layout, layout.shards
        self.has_clocks = bool(libfaketime())
        clock = CLOCK.format(library=libfaketime(), folder=folder) if self.has_clocks else ""
        wrapper = self.folder / "server"
        wrapper.write_text(WRAPPER.format(clock=clock, server=embedded._binary(None), host=HOST))
        wrapper.chmod(0o700)
        self._strangers = set()
        self.cluster = self._up(wrapper)
        self.urls = list(self.cluster.urls)

    def _up(self, server):
        place = self.folder / "cluster"
        return embedded.up(place, server=server, primaries=self.shards, replicas=self.layout.replicas, owner=True)

    def close(self):
        for port in [*self._strangers]:
            self.dismiss(port)
        embedded.down(self.cluster.directory)

    def version(self):
        """What server it is."""
        with self.client(self.cluster.ports[0]) as client:
            told = client.info("server")
        return f"{told.get('server_name', 'redis').capitalize()} {told.get('valkey_version', told['redis_version'])}"

    def ports(self, shard):
        return self.cluster.ports[shard :: self.shards]

    def party(self, port):
        """The node as an end of links: its data and its bus."""
        return Party(f"127.1.{port // 256}.{port % 256}", (port, port + embedded.BUS_OFFSET))

    def parties(self, without=()):
        return [self.party(port) for port in self.cluster.ports if port not in without]

    def url(self, port):
        return f"redis://:{self.cluster.password}@{HOST}:{port}"

    def entrances(self):
        """What clients connect to, as ends of links."""
        return self.parties()

    def entrance(self, port):
        """The port by which clients reach the node at this port."""
        return port

    @contextmanager
    def client(self, port, timeout=1.0):
        """A client of one node, which tries once."""
        options = {"password": self.cluster.password, "decode_responses": True, "protocol": 2}
        with redis.Redis(HOST, port, retry=Retry(NoBackoff(), 0), socket_timeout=timeout, **options) as client:
            yield client

    def do(self, port, *command):
        with self.client(port) as client:
            return client.execute_command(*command)

    def do_in_the_end(self, port, *command):
        """The same, once the node is ready for it."""
        return until(lambda: self._try(port, *command), f"{port} to do {' '.join(map(str, command[:2]))}")

    def _try(self, port, *command):
        with suppress(redis.RedisError):
            return self.do(port, *command)
        return None

    def replication(self, port):
        """What a node says of its role; nothing while it does not answer."""
        with suppress(redis.RedisError), self.client(port) as client:
            return client.info("replication")
        return {}

    def is_primary(self, port):
        return self.replication(port).get("role") == "master"

    def roles(self, shard):
        """The ports of the shard's primary and its replicas, once it is whole."""
        return until(lambda: self._whole(shard), f"shard {shard} to be whole")

    def _whole(self, shard):
        for primary in self.ports(shard):
            replicas = [port for port in self.ports(shard) if port != primary]
            if self._serves(primary) and all(self._follows(replica, primary) for replica in replicas):
                online = self.online(primary)
                if online == len(replicas):
                    return primary, *replicas
        return None

    def online(self, primary):
        """How many replicas are in sync with it, or on their way there; 0 while one is not."""
        told = self.replication(primary)
        connected = [told[f"slave{number}"] for number in range(told.get("connected_slaves", 0))]
        return len(connected) if all(each["state"] == "online" for each in connected) else 0

    def _follows(self, replica, primary):
        told = self.replication(replica)
        return told.get("master_link_status") == "up" and told.get("master_port") == primary

    def promoted(self, replicas):
        """Waits until one of the replicas is a primary."""
        until(lambda: any(map(self.is_primary, replicas)), f"the promotion of one of {replicas}")

    def fail_over(self, replica, *how):
        """Makes a replica the primary, as an operator does; asks again if nothing comes of it."""
        until(lambda: self._fails_over(replica, how), f"the failover to {replica}")

    def _fails_over(self, replica, how):
        with suppress(redis.ResponseError):
            self.do(replica, "CLUSTER", "FAILOVER", *how)
        with suppress(TimeoutError):
            return until(lambda: self.is_primary(replica), "the failover", within=6)

    def _serves(self, port):
        with suppress(redis.RedisError), self.client(port) as client:
            (own,) = [node for node in client.execute_command("CLUSTER NODES").values() if "myself" in node["flags"]]
            return "master" in own["flags"] and client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
        return False

    def _node(self, port):
        folder = self.folder / "strangers" if port in self._strangers else self.cluster.directory
        return embedded._Node(folder, port)

    def signal(self, port, signum):
        self._node(port).kill(signum)

    def kill(self, port, signum):
        """Kills a node; returns once it is dead."""
        node = self._node(port)
        pid = node.pid()
        node.kill(signum)
        until(lambda: not node.running(), f"the node at {port} to die")
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)  # where the suite is the first process of its namespace, the dead are left to it

    def revive(self, port):
        """Starts a node again if it is dead: it knows the cluster, but no keys."""
        node = self._node(port)
        if not node.running():
            node.launch(self.cluster.server)

    def attach_stranger(self, primary):
        """Has a server that is in no cluster replicate a primary; gives its port."""
        folder = self.folder / "strangers"
        folder.mkdir(exist_ok=True)
        (folder / "server.conf").write_text(embedded.CONFIG.format(password=self.cluster.password, cluster="no"))
        port = self._free_port()
        self._strangers.add(port)
        self.revive(port)
        self.do_in_the_end(port, "REPLICAOF", HOST, primary)
        return port

    def dismiss(self, port):
        """Ends a server for good."""
        self.kill(port, signal.SIGKILL)
        shutil.rmtree(self._node(port).home)
        self._strangers.discard(port)

    def add(self, primary):
        """Gives a primary one more replica; returns its port once it is in sync."""
        port = self._free_port()
        self.revive(port)
        node_id, primary_id = self.do_in_the_end(port, "CLUSTER", "MYID"), self.do(primary, "CLUSTER", "MYID")
        until(lambda: self._have_met(port, node_id, primary, primary_id), f"{port} to join the cluster")
        self.do_in_the_end(port, "CLUSTER", "REPLICATE", primary_id)
        until(lambda: self._follows(port, primary), f"{port} to follow {primary}")
        return port

    def _have_met(self, port, node_id, primary, primary_id):
        """Has them meet, once more if nothing came of it in time."""
        self._try(port, "CLUSTER", "MEET", HOST, primary)
        with suppress(TimeoutError):
            until(lambda: self._knows(port, primary_id), "its primary to be known", within=2)
            return until(lambda: all(self._knows(other, node_id) for other in self.cluster.ports), "all", within=2)

    def remove(self, port):
        """Ends a replica that was added, and has all others forget it."""
        node_id = self.do(port, "CLUSTER", "MYID")
        self.dismiss(port)
        waiting = list(self.cluster.ports)
        # One that was down meanwhile must forget it before the others listen to such news again, after a minute.
        until(lambda: not waiting or self._forgets(waiting, node_id), f"all to forget {port}")

    def _forgets(self, waiting, node_id):
        for port in [*waiting]:
            with suppress(redis.ConnectionError, redis.TimeoutError):
                with suppress(redis.ResponseError):
                    self.do(port, "CLUSTER", "FORGET", node_id)
                if not self._knows(port, node_id):
                    waiting.remove(port)
        return not waiting

    def _knows(self, port, node_id):
        try:
            return any(each["node_id"] == node_id for each in self.do(port, "CLUSTER NODES").values())
        except redis.RedisError:
            return False

    def _free_port(self):
        taken = {*self.cluster.ports, *self._strangers}
        candidates = random.sample(embedded.DATA_PORTS, len(embedded.DATA_PORTS))
        free = (port for port in candidates if embedded._free(port) and embedded._free(port + embedded.BUS_OFFSET))
        return next(port for port in free if port not in taken)

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
        served = {shard: self._slots_of(shard) for shard in range(self.shards)}
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


class Pair(Nodes):
    """A primary and its replica without a cluster; clients know the name alone that leads to the primary."""

    def _up(self, server):
        alone = embedded.up(self.folder / "cluster", server=server, cluster=False, owner=True)
        self.cluster = alone
        ports = (*alone.ports, self._free_port())
        self.revive(ports[1])
        self.cluster = replace(alone, ports=ports)
        self._name = Name(ports[0])
        self.roles(0)
        return self.cluster

    def __init__(self, folder, layout):
        super().__init__(folder, layout)
        self.urls = [self.url(self._name.port)]

    def close(self):
        self._name.close()
        super().close()

    def entrances(self):
        return [Party(HOST, (self._name.port,))]

    def entrance(self, port):
        return self._name.port

    def _whole(self, shard):
        """Whether it is; a primary to which the name does not lead becomes the replica."""
        for port in self.cluster.ports:
            if port != self._name.leads_to and self.is_primary(port):
                self._try(port, "REPLICAOF", HOST, self._name.leads_to)
        return super()._whole(shard)

    def _serves(self, port):
        return port == self._name.leads_to and self.is_primary(port)

    def promoted(self, replicas):
        """Promotes the replica, and has the name lead to it."""
        (replica,) = replicas
        self.do_in_the_end(replica, "REPLICAOF", "NO", "ONE")
        self._name.leads_to = replica

    def fail_over(self, replica, *how):
        """Swaps the roles, then has the name lead to the new primary: open connections stay with the old one."""
        self.do(self._name.leads_to, "FAILOVER", "TO", HOST, replica, "TIMEOUT", 5000)
        until(lambda: self.is_primary(replica), f"the failover to {replica}")
        self._name.leads_to = replica

    def owners(self, locks):
        return dict.fromkeys(locks, 0 if self.is_primary(self._name.leads_to) else None)


@cache
def slot_of(lock):
    return names.keys_of("any", lock).slot


def home_of(slot, shards):
    """The shard that has a slot at first."""
    return max(shard for shard in range(shards) if embedded.SLOTS * shard // shards <= slot)


def until(condition, what, within=PATIENCE):
    """Waits for a condition, and gives its value."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within:g} s in vain for {what}")
        time.sleep(0.02)
    return value
