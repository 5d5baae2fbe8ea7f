"""What becomes of connections between their uses: those that are stale, left over, or have something unread."""

import socket
import subprocess
import threading
import time
from contextlib import closing, suppress

import pytest
import redis

from django_cluster_lock import protocol
from django_cluster_lock.actions import Pause, Retain
from django_cluster_lock.connections import aio, sync
from django_cluster_lock.errors import LockBusy
from django_cluster_lock.exchange import carry
from django_cluster_lock.names import keys_of
from tests.integration.test_connections import NAMES, Client, free_port, terms
from tests.records import until
from tests.servers import KINDS, redis62, valkey


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request, prefix):
    def client(location, **options):
        return Client(prefix, location, options, asynchronous=request.param == "asyncio")

    return client


class Name:
    """A name in front of servers, as a port on loopback: new connections lead to the one it stands for now."""

    def __init__(self, target):
        self.target = target
        self.opened = 0
        self.extra = b""  # what it adds to the next answer, and
        self.delay = 0.0  # so many seconds after it
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self.opened += 1
                self._sockets += [client, server]
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source, sink, answers):
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.extra:
                    extra, self.extra = self.extra, b""
                    if not self.delay:
                        data += extra
                    sink.sendall(data)
                    if self.delay:
                        time.sleep(self.delay)
                        sink.sendall(extra)
                else:
                    sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture(params=["valkey", pytest.param("redis62", marks=pytest.mark.redis62)])
def pair(request, tmp_path):
    """Two servers, the second a replica of the first."""
    binary = {"valkey": valkey, "redis62": redis62}[request.param]()
    if not binary:
        pytest.skip(f"no {request.param} here")
    ports = [free_port() for _ in range(2)]
    command = [binary, "--save", "", "--bind", "127.0.0.1", "--dir", str(tmp_path), "--port"]
    servers = [subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL) for port in ports]
    clients = [redis.Redis("127.0.0.1", port, decode_responses=True) for port in ports]
    try:
        for client in clients:
            until(lambda client=client: answers(client))
        clients[1].replicaof("127.0.0.1", ports[0])
        until(lambda: clients[1].info("replication").get("master_link_status") == "up")
        yield ports, clients
    finally:
        for client in clients:
            client.close()
        for server in servers:
            server.kill()
            server.wait()


def answers(client):
    with suppress(redis.ConnectionError):
        return client.ping()
    return False


def test_a_name_that_leads_to_another_primary(connect, pair):
    """Its old one goes on as a replica, as in a planned failover: what is connected to it is of no use any more."""
    (old, new), (first, second) = pair
    with closing(Name(old)) as name:
        client = connect([f"redis://127.0.0.1:{name.port}"])

        def switched():
            yield from client.taken("a", "b")
            second.replicaof("NO", "ONE")
            first.replicaof("127.0.0.1", new)
            name.target = new
            now = time.monotonic()
            fences = yield from client.taken("a")
            return fences, time.monotonic() - now

        ((fences, took),) = client.run([switched()])
    assert fences
    assert took < 4


@pytest.fixture
def name(start_server):
    """A name for a standalone server, whose URL it has."""
    server = start_server(KINDS["valkey-standalone"])
    name = Name(server.embedded.ports[0])
    name.url = server.urls[0].replace(f":{name.target}", f":{name.port}")
    with closing(name):
        yield name


def holding(client, name):
    now = time.monotonic()
    taking = protocol.acquire(
        keys_of(client.prefix, name), b"T" * 16, terms(10), now=now, until=now + 10, blocking=False
    )
    return (yield from carry(taking, client.topology))


@pytest.mark.parametrize("delay", [0.0, 0.05], ids=["with it", "after it"])
def test_an_answer_too_many_answers_no_other_request(connect, name, delay):
    client = connect([name.url])

    def deceived():
        yield from holding(client, "busy")
        name.extra, name.delay = b"*2\r\n$3\r\nown\r\n:7\r\n", delay
        yield from holding(client, "free")
        until(lambda: not name.extra)
        yield Pause(2 * delay)
        yield from client.taken("busy")

    with pytest.raises(LockBusy):
        client.run([deceived()])


def test_a_connection_that_was_idle_for_long_is_not_taken(connect, name, monkeypatch):
    """Something on the way may have forgotten it in silence."""
    client = connect([name.url])

    def late():
        yield from client.taken("a")
        before = name.opened
        yield from client.taken("a")
        assert name.opened == before
        monkeypatch.setattr(sync, "LIFE", 0.0)
        monkeypatch.setattr(aio, "LIFE", 0.0)
        yield from client.taken("a")
        return name.opened - before

    (more,) = client.run([late()])
    assert more == 2  # for the acquire and for the release


def connections_of(cluster, client_name):
    """The nodes that have a connection of that name."""
    admin = cluster.admin()
    listed = admin.client_list(target_nodes=admin.ALL_NODES)
    return {node for node, clients in listed.items() if any(each["name"] == client_name for each in clients)}


def test_idle_connections_close_by_time(connect, cluster, prefix, monkeypatch):
    """Although nothing is done meanwhile; then nothing looks after them any more."""
    monkeypatch.setattr(sync, "LIFE", 0.3)
    monkeypatch.setattr(aio, "LIFE", 0.3)
    client = connect(cluster.urls, client_name=prefix)

    def left():
        yield from client.taken(*NAMES)
        deadline = time.monotonic() + 10
        while connections_of(cluster, prefix):
            assert (yield Pause(0.02)) < deadline

    client.run([left()])
    until(lambda: not any(thread.name == "cluster-lock-idle" for thread in threading.enumerate()))


def test_connections_to_nodes_that_are_gone_close_at_once(connect, cluster, prefix):
    client = connect(cluster.urls, client_name=prefix)

    def smaller():
        yield from client.taken(*NAMES)
        remaining = client.topology.primaries()[0]
        assert len(connections_of(cluster, prefix)) >= 3
        yield Retain(frozenset([remaining]))
        deadline = time.monotonic() + 10
        while len(connections_of(cluster, prefix)) > 1:
            assert (yield Pause(0.02)) < deadline
        yield from client.taken(*NAMES)

    client.run([smaller()])
