"""Members that clients reach by hostnames, TLS or IPv6: their acknowledgements count as any others do."""

import os
import random
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_cluster_lock import LockNotReplicated, LockUnavailable, cache_lock, layout
from django_cluster_lock.aliases import aliases
from django_cluster_lock.names import SLOTS
from tests.records import until
from tests.servers import redis7, valkey

pytestmark = pytest.mark.slow

CONFIG = """
bind {host}
cluster-enabled yes
cluster-node-timeout 5000
requirepass s3cret
masterauth s3cret
save ""
"""
PLAIN = "port {port}\n"
TLS = """
port 0
tls-port {port}
tls-cluster yes
tls-replication yes
tls-auth-clients optional
tls-cert-file {folder}/cert.pem
tls-key-file {folder}/key.pem
tls-ca-cert-file {folder}/cert.pem
"""
NAMED = "cluster-announce-hostname localhost\ncluster-preferred-endpoint-type hostname\n"


def make_certificate(folder):
    """Make a certificate for localhost by name alone, which stands for itself."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on PATH to make a certificate with")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def free_port(family, host):
    """A port below those that outgoing connections take, as is the cluster bus's 10000 above it."""
    for port in random.sample(range(10_000, 20_000), 100):
        with suppress(OSError), socket.create_server((host, port), family=family):
            return port
    raise AssertionError


class Shard:
    """A cluster of one primary and one replica."""

    def __init__(self, folder, binary, host, *, tls, named):
        self.host, self.tls, self.folder = host, tls, folder
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.ports = [free_port(family, host), free_port(family, host)]
        config = CONFIG + (TLS if tls else PLAIN) + (NAMED if named else "")
        self.processes = []
        for place, port in enumerate(self.ports):
            home = folder / str(place)
            home.mkdir()
            (home / "conf").write_text(config.format(host=host, port=port, folder=folder))
            self.processes.append(subprocess.Popen([binary, "conf"], cwd=home, stdout=subprocess.DEVNULL))

    def node(self, place):
        trust = {"ssl": True, "ssl_ca_certs": str(self.folder / "cert.pem"), "ssl_check_hostname": False}
        how = {"password": "s3cret", "decode_responses": True, "retry": Retry(NoBackoff(), 0)}
        return redis.Redis(self.host, self.ports[place], **how, **(trust if self.tls else {}))

    def form(self):
        with self.node(0) as primary, self.node(1) as replica:
            for node in (primary, replica):
                until(lambda node=node: answers(node.ping))
            primary.execute_command("CLUSTER ADDSLOTS", *range(SLOTS))
            replica.execute_command("CLUSTER MEET", self.host, self.ports[0])
            own = primary.execute_command("CLUSTER MYID")
            until(lambda: answers(lambda: replica.execute_command("CLUSTER REPLICATE", own)))
            until(lambda: primary.execute_command("ROLE")[2])
            until(lambda: primary.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
            until(lambda: "slave" in str(primary.execute_command("CLUSTER NODES")))

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


def answers(ask):
    with suppress(redis.RedisError):
        return ask()


LAYOUTS = [
    pytest.param((valkey, "::1", {"tls": False, "named": False}), id="valkey-ipv6"),
    pytest.param((valkey, "127.0.0.1", {"tls": False, "named": True}), id="valkey-hostnames"),
    pytest.param(
        (redis7, "127.0.0.1", {"tls": True, "named": True}), id="redis7-tls-hostnames", marks=pytest.mark.redis7
    ),
]


@pytest.fixture
def unhurried(monkeypatch):
    """A busy machine has the time for a handshake."""
    monkeypatch.setattr(layout, "BRIEFLY", 9)


@pytest.mark.parametrize("nodes", LAYOUTS)
@pytest.mark.usefixtures("unhurried")
def test_a_member_acknowledges_and_can_be_asked(tmp_path, settings, prefix, nodes):
    """Its certificate may be for its name alone, while its primary knows it by an address, or by another one."""
    server, host, how = nodes
    binary = server() or pytest.skip("no such server")
    if how["tls"]:
        make_certificate(tmp_path)
    with ExitStack() as stack:
        shard = Shard(tmp_path, binary, host, **how)
        stack.callback(shard.close)
        shard.form()
        at = "localhost" if how["named"] else f"[{host}]"
        options = {"ssl_ca_certs": str(tmp_path / "cert.pem")} if how["tls"] else {}
        aliases.close()
        stack.callback(aliases.close)
        settings.CLUSTER_LOCKS = {
            "default": {
                "LOCATION": f"redis{'s' if how['tls'] else ''}://:s3cret@{at}:{shard.ports[0]}",
                "KEY_PREFIX": prefix,
                "TIMEOUT": 60,
                "OPTIONS": options,
            }
        }
        until(is_to_be_had)
        primary = ("localhost" if how["named"] else host, shard.ports[0])
        assert aliases["default"].topology.required(primary) == 1
        assert_the_replica_counts(shard)
        with shard.node(0) as node, shard.node(1) as replica:
            replica.config_set("replica-announce-ip", "192.0.2.7")  # so that it has to be asked itself
            node.execute_command("CLIENT KILL TYPE REPLICA")
            until(lambda: [told for told, _, _ in node.execute_command("ROLE")[2]] == ["192.0.2.7"])
        assert is_to_be_had()
        assert_the_replica_counts(shard)


def assert_the_replica_counts(shard):
    replica = shard.processes[1].pid
    os.kill(replica, signal.SIGSTOP)
    try:
        with pytest.raises(LockNotReplicated, match="0 of 1 replicas"):
            cache_lock("a").acquire(blocking_timeout=1.5)
    finally:
        os.kill(replica, signal.SIGCONT)
    until(is_to_be_had)


def is_to_be_had():
    try:
        with cache_lock("a", blocking_timeout=5):
            return True
    except LockUnavailable:
        return False
