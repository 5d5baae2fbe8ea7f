"""Who has to acknowledge a lease: every node that could be promoted for its slot, and nobody in its place."""

import os
import signal
from contextlib import contextmanager

import pytest

from django_cluster_lock import LockNotReplicated, LockUnavailable, cache_lock, embedded
from django_cluster_lock.aliases import aliases
from tests.records import Record, in_thread, until
from tests.servers import KINDS, Server

pytestmark = pytest.mark.slow
BRIEFLY = 1.5  # seconds to try for where a lock is not to be had


@pytest.fixture
def start(tmp_path, request):
    """Start servers of the test's own: ``start(kind, **how)``, as `embedded.up` takes it."""
    started = []

    def start(kind, name="servers", **how):
        kind = KINDS[kind]
        binary = kind.binary() or pytest.skip(f"no server for {kind.name}: {kind.install}")
        running = embedded.up(tmp_path / name, server=binary, owner=True, **how)
        started.append(Server(kind.name, running, None, running.password, how.get("cluster", True)))
        return started[-1]

    yield start
    for server in started:
        server.close()
        embedded.down(server.embedded.directory)


@pytest.fixture
def use(settings, prefix):
    """Have locks use a server: ``use(server)``."""

    def use(server, **further):
        aliases.close()
        settings.CLUSTER_LOCKS = {
            "default": {
                "LOCATION": server.urls if server.is_cluster else server.urls[0],
                "KEY_PREFIX": prefix,
                "TIMEOUT": 20,
                "CLOCK_SKEW": 0.2,
                "OPTIONS": {"socket_timeout": 0.5},
                **further,
            }
        }

    return use


def nodes_of_shard(server, prefix, name):
    """The ports of the nodes of a lock's shard, its primary's first."""
    record = Record(server, prefix, name)
    primary = record.client.get_node_from_key(record.key).port
    return [primary, *replicas_of(server, primary)]


def replicas_of(server, port):
    told = role_of(server, port)
    return [int(port) for _, port, _ in told[2]] if told[0] == "master" else []


def is_primary(server, port):
    return role_of(server, port)[0] == "master"


def role_of(server, port):
    node = server.node(port)
    told = node.execute_command("ROLE")
    server.clients.remove(node)  # these questions are many
    node.close()
    return told


@contextmanager
def cut_off(server, port, primary):
    """Let a replica run, and copy nothing."""
    node = server.node(port)
    node.config_set("masterauth", "wrong")
    server.node(primary).execute_command("CLIENT KILL TYPE REPLICA")
    until(lambda: port not in replicas_of(server, primary))
    try:
        yield
    finally:
        node.config_set("masterauth", server.password)


@contextmanager
def stopped(server, port):
    os.kill(server.embedded.pid(port), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.embedded.pid(port), signal.SIGCONT)


def kill(server, port):
    os.kill(server.embedded.pid(port), signal.SIGKILL)


def refusal(name="a"):
    """Why the lock is not to be had, once its shard is found at all, which takes a moment after a failover."""

    def told():
        with pytest.raises(LockUnavailable) as caught:
            in_thread(lambda: cache_lock(name).acquire(blocking_timeout=BRIEFLY))
        return str(caught.value) if isinstance(caught.value, LockNotReplicated) else None

    return until(told)


def is_to_be_had(name="a"):
    def acquired():
        try:
            with cache_lock(name, blocking_timeout=BRIEFLY):
                return True
        except LockUnavailable:
            return False

    return in_thread(acquired)


@pytest.mark.parametrize("kind", ["valkey-cluster", "redis7-cluster", "redis62-cluster"])
def test_a_replica_that_follows_a_dead_primary_has_to_acknowledge(start, use, prefix, kind):
    """It stands still while another is promoted, and can be promoted itself later: it must not miss a lease."""
    server = start(kind, replicas=2)
    use(server)
    primary, *replicas = nodes_of_shard(server, prefix, "a")
    with stopped(server, replicas[1]):
        kill(server, primary)
        until(lambda: is_primary(server, replicas[0]))
        assert "0 of 2 replicas" in refusal()
        aliases.close()  # a process that has seen nothing of what came before
        told = refusal()
        assert all(f"127.0.0.1:{port}" in told for port in (primary, replicas[1]))
    until(lambda: replicas_of(server, replicas[0]) == [replicas[1]])
    assert "1 of 2 replicas" in refusal()
    server.embedded = embedded.up(server.embedded.directory)
    until(is_to_be_had)


def test_a_primary_that_was_replaced_has_to_acknowledge_until_it_is_forgotten(start, use, prefix):
    server = start("valkey-cluster")
    use(server)
    primary, replica = nodes_of_shard(server, prefix, "a")
    dead = server.node(primary).execute_command("CLUSTER MYID")
    kill(server, primary)
    until(lambda: is_primary(server, replica))
    assert f"not connected: 127.0.0.1:{primary}" in refusal()
    for port in set(server.embedded.ports) - {primary}:
        server.node(port).execute_command("CLUSTER FORGET", dead)
    until(is_to_be_had)


def test_a_foreign_replica_does_not_stand_for_a_member(start, use, prefix):
    """A backup acknowledges while the replica that can be promoted does not."""
    server, backup = start("valkey-cluster"), start("valkey-standalone", "backup", cluster=False)
    use(server)
    primary, replica = nodes_of_shard(server, prefix, "a")
    copy = backup.node(backup.embedded.ports[0])
    copy.config_set("masterauth", server.password)
    copy.replicaof("127.0.0.1", primary)
    until(lambda: len(replicas_of(server, primary)) == 2)
    assert is_to_be_had()
    with stopped(server, replica):
        assert "0 of 1 replicas" in refusal()
    until(is_to_be_had)
    kill(server, replica)
    until(lambda: replicas_of(server, primary) == [backup.embedded.ports[0]])
    assert f"not connected: 127.0.0.1:{replica}" in refusal()
    aliases.close()  # a process that has never seen the member connected
    assert f"not connected: 127.0.0.1:{replica}" in refusal()
    server.embedded = embedded.up(server.embedded.directory)
    until(is_to_be_had)
    with stopped(backup, backup.embedded.ports[0]):
        assert is_to_be_had(), "a backup that lags keeps nobody from a lock"


def test_a_replica_that_its_primary_knows_by_another_address(start, use, prefix):
    """Behind a translation of addresses the member tells itself that it is connected."""
    server = start("valkey-cluster")
    use(server)
    primary, replica = nodes_of_shard(server, prefix, "a")
    node = server.node(replica)
    node.config_set("replica-announce-ip", "192.0.2.7")
    server.node(primary).execute_command("CLIENT KILL TYPE REPLICA")
    until(lambda: [host for host, _, _ in server.node(primary).execute_command("ROLE")[2]] == ["192.0.2.7"])
    assert is_to_be_had()
    with stopped(server, replica):
        assert "0 of 1 replicas" in refusal()


def test_a_pair_that_is_no_cluster_counts_the_replica_that_it_once_had(start, use):
    """The server forgets a replica whose link is cut. Whoever promotes it later does not ask the server."""
    server, replica = (start("valkey-standalone", name, cluster=False) for name in ("one", "other"))
    use(server)
    other = replica.node(replica.embedded.ports[0])
    other.config_set("masterauth", server.password)
    other.replicaof("127.0.0.1", server.embedded.ports[0])
    until(lambda: replicas_of(server, server.embedded.ports[0]))
    assert is_to_be_had()
    other.replicaof("NO", "ONE")
    until(lambda: not replicas_of(server, server.embedded.ports[0]))
    aliases["default"].topology.learned_at = float("-inf")
    assert "0 of 1 replicas" in refusal()
    assert "0 of 1 replicas" in refusal()


def test_a_replica_that_is_away_for_a_while_costs_no_lock(start, use, prefix, actors):
    """It is waited for as long as the caller waits."""
    server = start("valkey-cluster")
    use(server)
    primary, replica = nodes_of_shard(server, prefix, "a")
    kill(server, replica)
    until(lambda: not replicas_of(server, primary))
    got = actors().start(cache_lock("a", blocking_timeout=20), "acquire")
    until(lambda: Record(server, prefix, "a").holder())
    server.embedded = embedded.up(server.embedded.directory)
    assert got.result(20)


def test_a_user_without_the_right_to_role(start, use, prefix):
    """INFO tells who the replicas are, too."""
    server = start("valkey-cluster")
    for port in server.embedded.ports:
        server.node(port).execute_command(
            "ACL SETUSER", "limited", "on", f">{server.password}", "~*", "+@all", "-role", "-cluster|shards"
        )
    server.username = "limited"
    use(server)
    _, replica = nodes_of_shard(server, prefix, "a")
    assert is_to_be_had()
    with stopped(server, replica):
        assert "0 of 1 replicas" in refusal()


def test_a_server_that_keeps_cluster_from_its_users(start, use):
    """INFO tells that it is none."""
    server = start("valkey-standalone", cluster=False)
    (port,) = server.embedded.ports
    server.node(port).execute_command("ACL SETUSER", "limited", "on", f">{server.password}", "~*", "+@all", "-cluster")
    server.username = "limited"
    use(server)
    assert is_to_be_had()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("kind", ["valkey-cluster", "redis7-cluster", "redis62-cluster"])
def test_a_planned_failover_leaves_nobody_out(start, use, prefix, kind, replicas):
    """The old primary is connected as a replica before the new one calls it that."""
    server = start(kind, replicas=replicas)
    use(server)
    old, new, *others = nodes_of_shard(server, prefix, "a")
    assert is_to_be_had()
    server.node(new).execute_command("CLUSTER FAILOVER")
    until(lambda: is_primary(server, new))
    until(is_to_be_had)
    assert aliases["default"].topology.required(("127.0.0.1", new)) == replicas
    for port in (old, *others):
        with stopped(server, port):
            assert f"{replicas - 1} of {replicas} replicas" in refusal()
        until(is_to_be_had)


@pytest.mark.parametrize("kind", ["valkey-cluster", "redis7-cluster", "redis62-cluster"])
def test_a_stranger_in_a_shard_of_three_stands_for_nobody(start, use, prefix, kind):
    """As many acknowledge as there are members, and one of them is a backup."""
    server, backup = start(kind, replicas=2), start(kind, "backup", cluster=False)
    use(server)
    primary, *replicas = nodes_of_shard(server, prefix, "a")
    (stranger,) = backup.embedded.ports
    copy = backup.node(stranger)
    copy.config_set("masterauth", server.password)
    copy.replicaof("127.0.0.1", primary)
    until(lambda: set(replicas_of(server, primary)) == {*replicas, stranger})
    assert is_to_be_had()
    for port in replicas:
        with cut_off(server, port, primary):
            until(lambda: len(replicas_of(server, primary)) == 2)
            assert server.node(primary).wait(2, 5000) == 2
            told = refusal()
            assert "1 of 2 replicas" in told
            assert f"not connected: 127.0.0.1:{port}" in told
        until(is_to_be_had)
    copy.replicaof("127.0.0.1", replicas[0])  # whose replica it stays when that is promoted
    until(lambda: replicas_of(server, primary) and set(replicas_of(server, primary)) == set(replicas))
    server.node(replicas[0]).execute_command("CLUSTER FAILOVER")
    until(lambda: is_primary(server, replicas[0]))
    until(lambda: set(replicas_of(server, replicas[0])) == {primary, replicas[1], stranger})
    until(is_to_be_had)
    with cut_off(server, replicas[1], replicas[0]):
        until(lambda: set(replicas_of(server, replicas[0])) == {primary, stranger})
        assert "1 of 2 replicas" in refusal()
    until(is_to_be_had)


def test_a_guarded_write_is_never_sent_twice(start, use, prefix):
    """Not even where a backup has acknowledged it and the member has not."""
    server, backup = start("valkey-cluster"), start("valkey-standalone", "backup", cluster=False)
    use(server)
    primary, replica = nodes_of_shard(server, prefix, "a")
    lock = cache_lock("a", tag="a")
    lock.acquire()
    copy = backup.node(backup.embedded.ports[0])
    copy.config_set("masterauth", server.password)
    copy.replicaof("127.0.0.1", primary)
    until(lambda: len(replicas_of(server, primary)) == 2)
    with stopped(server, replica), pytest.raises(LockNotReplicated):
        lock.guarded("return redis.call('INCR', KEYS[1])", ["{a}:total"])
    assert server.node(primary).get("{a}:total") == "1"
    lock.release()
