"""Opening connections: credentials, TLS, address_remap, and servers that cannot be reached. Blocking and asyncio."""

import asyncio
import itertools
import random
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_cluster_lock import drivers, layout, protocol
from django_cluster_lock.actions import Pause, Send, SendAll
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.aio import AsyncConnections
from django_cluster_lock.connections.options import connection_options
from django_cluster_lock.connections.sync import Connections
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.exchange import carry
from django_cluster_lock.names import SLOTS, keys_of
from tests.records import disconnect
from tests.servers import KINDS, redis7, valkey

tokens = itertools.count()


def terms(within):
    return protocol.Terms(5, 1, 0, (b"host", b"1", b"main", b""), within)


class Client:
    """Takes and gives back locks, without what an alias adds."""

    def __init__(self, prefix, location, options, *, asynchronous):
        self.options = connection_options(AliasSettings("default", tuple(location), prefix, options=options))
        self.topology = Topology(self.options.nodes, self.options.remap)
        self.prefix, self.asynchronous = prefix, asynchronous

    def cycle(self, *names, within=60):
        """Takes each lock and releases it; the fences."""
        now = time.monotonic()
        flows = [self.flow(keys_of(self.prefix, name), terms(within), now, now + within) for name in names]
        return self.run([carry(flow, self.topology) for flow in flows])

    def taken(self, *names, within=10):
        """The actions of taking and releasing one lock after another; gives the fences."""
        fences = []
        for name in names:
            now = time.monotonic()
            flow = self.flow(keys_of(self.prefix, name), terms(within), now, now + within)
            fences.append((yield from carry(flow, self.topology)))
        return fences

    def run(self, flows):
        if self.asynchronous:
            return asyncio.run(self.arun(flows))
        connections = Connections(self.options)
        try:
            return [drivers.run(flow, connections) for flow in flows]
        finally:
            connections.forget()

    async def arun(self, flows):
        connections = await AsyncConnections.open(self.options)
        return [await drivers.arun(flow, connections) for flow in flows]

    def flow(self, keys, terms, now, until):
        token = b"%016d" % next(tokens)
        grant = yield from protocol.acquire(keys, token, terms, now=now, until=until, blocking=False)
        assert (yield from protocol.release(grant, deadline=until, valid_until=grant.valid_until))
        return grant.fence


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request, prefix):
    def client(location, **options):
        return Client(prefix, location, options, asynchronous=request.param == "asyncio")

    return client


def refused(client, *, within=10):
    """The error of a lock that cannot be had, and the seconds it took."""
    started = time.monotonic()
    with pytest.raises(LockUnavailable) as raised:
        client.cycle("a", within=within)
    return raised.value, time.monotonic() - started


NAMES = "abcdefgh"  # on all three primaries


def test_every_server(connect, server):
    client = connect(server.urls)
    assert len(set(client.cycle(*NAMES))) == len(NAMES)
    assert len(client.topology.primaries()) == (3 if server.is_cluster else 1)


def test_credentials_in_options(connect, cluster):
    location = [f"redis://127.0.0.1:{port}" for port in cluster.embedded.ports]
    assert connect(location, username="default", password=cluster.password, client_name="shop").cycle("a")


@pytest.mark.parametrize("options", [{}, {"password": "wrong"}, {"username": "nobody", "password": "wrong"}])
def test_wrong_credentials_are_told_at_once(connect, cluster, options):
    location = [f"redis://127.0.0.1:{port}" for port in cluster.embedded.ports]
    error, took = refused(connect(location, **options), within=60)
    assert took < 10
    assert not error.unanswered
    told = str(error).lower()
    assert "authentication required" in told or "invalid username-password pair" in told
    assert "wrong" not in str(error)


def test_a_node_that_is_down_does_not_matter_at_the_start(connect, cluster):
    assert connect(["redis://127.0.0.1:1", *cluster.urls[:1]], password=cluster.password).cycle(*NAMES)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_nobody_listens(connect, scheme):
    error, took = refused(connect([f"{scheme}://127.0.0.1:1"]), within=0.5)
    assert took < 5
    assert "127.0.0.1:1" in str(error)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_nobody_answers(connect, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = [f"{scheme}://:s3cret@127.0.0.1:{silent.getsockname()[1]}"]
        error, took = refused(connect(location, socket_timeout=60, socket_connect_timeout=60), within=0.3)
    assert took < 10
    assert not error.unanswered


def test_one_that_broke_while_nobody_used_it_is_not_used(connect, cluster, record, prefix):
    client = connect(cluster.urls, client_name=prefix)

    def renewed_later():
        now = time.monotonic()
        taking = protocol.acquire(record.keys, b"token", terms(10), now=now, until=now + 10, blocking=False)
        grant = yield from carry(taking, client.topology)
        disconnect(record.client, prefix)
        yield Pause(0.01)
        return (yield from carry(protocol.ask(protocol.renewal(grant, terms(10))), client.topology))  # sent once

    (reply,) = client.run([renewed_later()])
    assert reply.status == b"ok"


def test_connections_do_not_announce_the_library(connect, cluster, record, prefix):
    """Two round trips less to open one, and no denial in the log of a server whose ACL does not allow it."""
    client = connect(cluster.urls, client_name=prefix)

    def looked_at():
        now = time.monotonic()
        grant = yield from carry(client.flow(record.keys, terms(10), now, now + 10), client.topology)
        listed = record.client.client_list(target_nodes=record.client.ALL_NODES)
        return [each["lib-name"] for node in listed.values() for each in node if grant and each["name"] == prefix]

    (names,) = client.run([looked_at()])
    assert set(names) == {""}


def test_several_servers_that_are_no_cluster_are_refused(connect, start_server):
    server = start_server(KINDS["valkey-standalone"])
    url = server.urls[0]
    error, took = refused(connect([url, url.replace("127.0.0.1", "localhost")]), within=60)
    assert took < 10
    assert "is in no cluster: of such servers, LOCATION may name one alone" in str(error)


remapped = []


def to_localhost(address):
    remapped.append(address)
    return "localhost", address[1]


def test_address_remap(connect, cluster):
    remapped.clear()
    client = connect(cluster.urls[:1], password=cluster.password, address_remap=f"{__name__}.to_localhost")
    assert client.cycle(*NAMES)
    assert {host for host, _ in remapped} == {"127.0.0.1"}
    assert {host for host, _ in client.topology.primaries()} == {"localhost"}


TLS = """
bind 127.0.0.1
port 0
tls-port {port}
tls-cluster yes
tls-auth-clients optional
tls-cert-file {folder}/cert.pem
tls-key-file {folder}/key.pem
tls-ca-cert-file {folder}/cert.pem
cluster-enabled yes
requirepass s3cret
save ""
"""


PATIENT = {"socket_timeout": 9, "socket_connect_timeout": 9}


@pytest.fixture
def unhurried(monkeypatch):
    """A busy machine has the time for a handshake: the package gives it half a second where it learns the layout."""
    monkeypatch.setattr(layout, "BRIEFLY", 9)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with a certificate for 127.0.0.1 that stands for itself, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    extensions = ["subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-keyout", "key.pem", "-out", "cert.pem"]
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def free_port():
    """A port below those that outgoing connections take, as is the cluster bus's 10000 above it."""
    for port in random.sample(range(10_000, 20_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError


@pytest.fixture(scope="module")
def tls_port(certificates):
    """The port of a cluster of one node that speaks TLS alone."""
    for binary in filter(None, (valkey(), redis7())):
        port = free_port()
        config = TLS.format(port=port, folder=certificates).encode()
        quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "cwd": certificates}
        with subprocess.Popen([binary, "-"], **quiet) as server:
            server.stdin.write(config)
            server.stdin.close()
            try:
                if serves_all_slots(server, port, certificates):
                    yield port
                    return
            finally:
                server.kill()
    pytest.skip("no server that was built with TLS")


def administrator(port, certificates):
    trust = {"ssl": True, "ssl_ca_certs": str(certificates / "cert.pem")}
    return redis.Redis("127.0.0.1", port, password="s3cret", **trust, retry=Retry(NoBackoff(), 0))


def serves_all_slots(server, port, certificates):
    """Whether it does now; False if it ended, as one without TLS does."""
    deadline = time.monotonic() + 30
    with administrator(port, certificates) as client:
        while server.poll() is None:
            assert time.monotonic() < deadline
            with suppress(redis.ConnectionError):
                if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] == "0":
                    client.execute_command("CLUSTER ADDSLOTS", *range(SLOTS))
                if client.execute_command("CLUSTER INFO")["cluster_state"] == "ok":
                    return True
    return False


@pytest.mark.usefixtures("unhurried")
def test_tls(connect, tls_port, certificates):
    trust = {"ssl_ca_certs": str(certificates / "cert.pem"), **PATIENT}
    client = connect([f"rediss://:s3cret@127.0.0.1:{tls_port}"], **trust)
    assert len(set(client.cycle(*NAMES))) == len(NAMES)
    assert client.topology.primaries() == [("127.0.0.1", tls_port)]


@pytest.mark.usefixtures("unhurried")
def test_tls_answers_of_many_records(connect, tls_port, certificates):
    trust = {"ssl_ca_certs": str(certificates / "cert.pem"), **PATIENT}
    client = connect([f"rediss://:s3cret@127.0.0.1:{tls_port}"], **trust)
    texts = [letter * 300_001 for letter in "abcdef"]
    requests = [[(b"ECHO", text.encode()) for text in texts[start::3]] for start in range(3)]

    def ask():
        node, deadline = ("127.0.0.1", tls_port), time.monotonic() + 10
        return (yield SendAll([Send(node, commands, 0.0, deadline) for commands in requests]))

    (answers,) = client.run([ask()])
    assert [[value.decode() for value in answer.values] for answer in answers] == [texts[at::3] for at in range(3)]


@pytest.mark.usefixtures("unhurried")
def test_tls_by_options_with_a_certificate_of_the_client(connect, tls_port, certificates):
    client = connect(
        [f"redis://127.0.0.1:{tls_port}"],
        password="s3cret",
        ssl_ca_certs=str(certificates / "cert.pem"),
        ssl_certfile=str(certificates / "cert.pem"),
        ssl_keyfile=str(certificates / "key.pem"),
        ssl_min_version=ssl.TLSVersion.TLSv1_2,
        **PATIENT,
    )
    with administrator(tls_port, certificates) as server:
        server.config_set("tls-auth-clients", "yes")
        try:
            assert client.cycle("a")
        finally:
            server.config_set("tls-auth-clients", "optional")


@pytest.mark.usefixtures("unhurried")
def test_tls_does_not_trust_a_strange_certificate(connect, tls_port):
    error, took = refused(connect([f"rediss://:s3cret@127.0.0.1:{tls_port}"], **PATIENT), within=0.5)
    assert took < 10
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


@pytest.mark.usefixtures("unhurried")
def test_tls_checks_the_name(connect, tls_port, certificates):
    trust = {"ssl_ca_certs": str(certificates / "cert.pem"), **PATIENT}
    client = connect([f"rediss://:s3cret@localhost:{tls_port}"], **trust)
    error, _ = refused(client, within=0.5)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


@pytest.mark.usefixtures("unhurried")
def test_tls_with_a_wrong_password_is_told_at_once(connect, tls_port, certificates):
    trust = {"ssl_ca_certs": str(certificates / "cert.pem"), **PATIENT}
    error, took = refused(connect([f"rediss://:wrong@127.0.0.1:{tls_port}"], **trust), within=60)
    assert took < 20
    assert "invalid username-password pair" in str(error)


def test_a_plain_connection_to_tls_is_refused_within_the_deadline(connect, tls_port):
    _, took = refused(connect([f"redis://:s3cret@127.0.0.1:{tls_port}"]), within=0.5)
    assert took < 10
