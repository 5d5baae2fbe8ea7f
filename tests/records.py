"""What Redis says of a lock, for tests that check both sides; and waiting for a condition."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from django_cluster_lock import names

PATIENCE = 60.0  # seconds until a condition that should come true counts as a failure


class Record:
    """The record of one lock, as its shard's primary has it."""

    def __init__(self, server, prefix, name):
        self.server, self.client = server, server.admin()
        self.keys = names.keys_of(prefix, name, None)

    @property
    def key(self):
        return self.keys.record

    def fields(self):
        return self.client.hgetall(self.key)

    def now(self):
        """The server's clock in ms."""
        node = {"target_nodes": self.client.get_node_from_key(self.key)} if self.server.is_cluster else {}
        seconds, micros = self.client.execute_command("TIME", **node)
        return int(seconds) * 1000 + int(micros) // 1000

    def holder(self):
        """The token that holds the lock now; None if it is free."""
        fields, now = self.fields(), self.now()
        return fields.get("t") if int(fields.get("d", 0)) > now else None

    def waiters(self):
        """The tokens in the queue, the first one first; those too whose life ran out."""
        fields = self.fields()
        places = {int(key[1:]): token for key, token in fields.items() if key[0] == "q" and key[1:].isdigit()}
        return [token for _, token in sorted(places.items()) if f"w{token}" in fields]

    def alive_waiters(self):
        """Those of them whose life has not run out."""
        fields, now = self.fields(), self.now()
        return [token for token in self.waiters() if int(fields.get(f"w{token}", "0:0").split(":")[1]) > now]

    def cancelled(self):
        """The tokens that are marked: whatever of theirs still arrives is answered 'over'."""
        return {value.rpartition(":")[0] for key, value in self.fields().items() if key[0] == "x"}


def until(condition, within=PATIENCE):
    """Waits for a condition, and gives its value."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.002)
    return value


async def auntil(condition, within=PATIENCE):
    """`until` for asyncio."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.002)
    return value


def disconnect(client, name):
    """Has the nodes of a cluster close all connections that have that name."""
    for node in client.get_primaries():
        for each in client.client_list(target_nodes=node):
            if each["name"] == name:
                client.client_kill_filter(_id=each["id"], target_nodes=node)


def keys_of(server, prefix):
    """All keys in Redis that begin with a prefix."""
    found = set()
    for port in server.embedded.ports:
        with server.node(port) as node:
            found.update(node.scan_iter(f"{prefix}:*", count=1000))
    return found


def in_thread(function, *args):
    """Calls the function in a thread of its own, and gives its result or raises what it raised."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result()
