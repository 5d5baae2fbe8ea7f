"""Shards that die, stall, fail over, move their slots or lose their data, under locks that are held and waited for."""

import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from django_cluster_lock import LockError, LockLost, LockUnavailable, cache_lock, embedded
from tests.records import Record, in_thread, until

SOCKET_TIMEOUT = 0.5
pytestmark = pytest.mark.slow


@pytest.fixture
def locks(own_cluster, prefix):
    return {
        "default": {
            "LOCATION": own_cluster.urls,
            "KEY_PREFIX": prefix,
            "TIMEOUT": 3,
            "BLOCKING_TIMEOUT": 20,
            "CLOCK_SKEW": 0.2,
            "OPTIONS": {"socket_timeout": SOCKET_TIMEOUT},
        }
    }


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = locks


@pytest.fixture
def record(own_cluster, prefix):
    return Record(own_cluster, prefix, "a")


@pytest.fixture
def shard(own_cluster, record):
    """The ports of the nodes that serve the lock "a": the primary's, then its replica's."""
    primary = record.client.get_node_from_key(record.key).port
    (replica,) = {node["port"] for node in own_cluster.node(primary).info("replication").values() if type(node) is dict}
    return primary, int(replica)


@pytest.fixture
def elsewhere(own_cluster, prefix, shard):
    """Names of locks on the other shards."""
    names = [f"elsewhere:{number}" for number in range(60)]
    records = {name: Record(own_cluster, prefix, name) for name in names}
    return [name for name, each in records.items() if each.client.get_node_from_key(each.key).port != shard[0]]


@contextmanager
def without(server, ports, how):
    """The nodes are dead or stalled."""
    for port in ports:
        os.kill(server.embedded.pid(port), how)
    yield
    if how == signal.SIGSTOP:
        for port in ports:
            os.kill(server.embedded.pid(port), signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stalled"])
def test_a_shard_without_nodes(own_cluster, shard, elsewhere, how):
    """Its locks say so in the caller's time; the others neither fail nor wait, nor do renewals of theirs."""
    held = [cache_lock(name) for name in elsewhere[:5]]
    for lock in held:
        lock.acquire()
    victim = cache_lock("a")
    victim.acquire()
    with without(own_cluster, shard, how):
        for wait in (0.5, 2, 5):
            started = time.monotonic()
            with pytest.raises(LockUnavailable):
                in_thread(lambda: cache_lock("a").acquire(blocking_timeout=wait))  # noqa: B023
            assert time.monotonic() - started < wait + 3 * SOCKET_TIMEOUT + 0.5
        started = time.monotonic()
        with pytest.raises(LockUnavailable):
            in_thread(lambda: cache_lock("a").acquire(blocking=False))
        assert time.monotonic() - started < 5
        durations = []
        for name in elsewhere[5:]:
            started = time.monotonic()
            with cache_lock(name):
                pass
            durations.append(time.monotonic() - started)
        durations.sort()
        assert durations[len(durations) // 2] < 0.05
        assert durations[-1] < 1
        until(lambda: victim.lost)
        assert not any(lock.lost for lock in held)
        for lock in held:
            lock.release()
        with pytest.raises(LockError):
            victim.release()


@pytest.fixture
def long_leases(settings, locks):
    """They last longer than a failover and the return of the old primary take."""
    settings.CLUSTER_LOCKS = {"default": locks["default"] | {"TIMEOUT": 20}}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stalled"])
@pytest.mark.usefixtures("long_leases")
def test_a_primary_that_is_replaced(own_cluster, record, shard, held_and_waited_for, how):
    """The lease goes on over the failover once the old primary follows; who waits for it gets it after its release."""
    state, (primary, replica) = held_and_waited_for, shard
    fields = until(lambda: replicated(own_cluster, record, replica))
    with without(own_cluster, [primary], how):
        promoted = own_cluster.node(replica)
        until(lambda: promoted.info("replication")["role"] == "master")
        assert not state.got.done()
    if how == signal.SIGKILL:
        own_cluster.embedded = embedded.up(own_cluster.embedded.directory)
    until(lambda: promoted.info("replication")["connected_slaves"] == 1)
    before = promoted.hget(record.key, "d")
    until(lambda: promoted.hget(record.key, "d") > before, within=20)
    assert not state.lost()
    assert not state.got.done()
    state.free()
    assert state.got.result(60)
    assert int(promoted.hget(record.key, "f")) > int(fields["f"])
    state.finish()


def replicated(server, record, port):
    """The record at a replica, once its waiter has come there too."""
    with server.node(port).pipeline(transaction=False) as pipe:
        fields = pipe.execute_command("READONLY").hgetall(record.key).execute()[1]
    return fields if any(key[0] == "w" for key in fields) else None


def test_no_lease_counts_that_its_replica_has_not(own_cluster, shard, record):
    """While the replica stalls, no lease is given that a failover would forget."""
    with without(own_cluster, shard[1:], signal.SIGSTOP):
        started = time.monotonic()
        with pytest.raises(LockUnavailable, match="0 of 1 replicas"):
            cache_lock("a").acquire(blocking_timeout=1)
        assert time.monotonic() - started < 4
        until(lambda: record.holder() is None)
    until(lambda: _acquired("a"))


def _acquired(name):
    return in_thread(_got, cache_lock(name))


def _got(lock):
    try:
        return lock.acquire(blocking=False)
    except LockUnavailable:
        return False


def test_flushed_data_is_a_loss(own_cluster, record, shard):
    lock = cache_lock("a")
    lock.acquire()
    own_cluster.node(shard[0]).flushall()
    until(lambda: lock.lost)
    with pytest.raises(LockLost):
        lock.release()
    assert not record.client.exists(record.key)
    with cache_lock("a") as again:
        assert again.fence > 0


def test_flushed_scripts_and_killed_connections_go_unnoticed(own_cluster, record, shard, actors):
    holder, waiter, lock, next_lock = actors(), actors(in_loop=True), cache_lock("a"), cache_lock("a")
    assert holder.do(lock, "acquire")
    got = waiter.start(next_lock, "acquire")
    until(record.waiters)
    node = own_cluster.node(shard[0])
    for _ in range(5):
        node.script_flush()
        node.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert holder.do(lock, "owned")
        deadline = record.fields()["d"]
        until(lambda: record.fields()["d"] > deadline)  # noqa: B023
        assert record.waiters()
    node.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    node.script_flush()
    holder.do(lock, "release")
    assert got.result(60)
    waiter.do(next_lock, "release")
    assert record.holder() is None


@contextmanager
def migrating(server, slot, source, target):
    """The slot is open for a migration: CLUSTER SETSLOT MIGRATING and IMPORTING; then it belongs to the target."""
    from_, to = server.node(source), server.node(target)
    source_id, target_id = from_.execute_command("CLUSTER MYID"), to.execute_command("CLUSTER MYID")
    to.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
    from_.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
    yield
    for node in (to, from_):
        node.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)


def moved(server, slot, source, target, only=None):
    """Moves the keys of the slot that there are now, or only one; gives those it moved."""
    from_ = server.node(source)
    keys = [only] if only else from_.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
    password = server.embedded.password
    if keys:
        from_.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 1000, "AUTH", password, "KEYS", *keys)
    return keys


@pytest.fixture
def target(own_cluster, record, elsewhere, prefix):
    """The port of another primary."""
    return record.client.get_node_from_key(Record(own_cluster, prefix, elsewhere[0]).key).port


@pytest.fixture
def held_and_waited_for(record, actors):
    """Lets the lock be held and waited for; gives what releases it, and the waiter's side."""
    holder, waiter = actors(), actors(in_loop=True)
    lock, next_lock = cache_lock("a"), cache_lock("a", blocking_timeout=60)
    assert holder.do(lock, "acquire")
    got = waiter.start(next_lock, "acquire")
    until(record.waiters)
    return SimpleNamespace(
        free=lambda: holder.do(lock, "release"),
        lost=lambda: holder.see(lock, "lost"),
        got=got,
        finish=lambda: waiter.do(next_lock, "release"),
    )


def renewed(server, record, port):
    """Waits for a renewal at a node, where the slot may still be on the move."""
    node = server.node(port)

    def deadline():
        with node.pipeline(transaction=False) as pipe:
            return int(pipe.execute_command("ASKING").hget(record.key, "d").execute()[1] or 0)

    before = deadline()
    until(lambda: deadline() > before)


def test_a_slot_that_moves(own_cluster, record, shard, target, held_and_waited_for):
    """Before, while and after its keys move the lease is renewed, and the waiter waits; then the lock is handed on."""
    state, slot = held_and_waited_for, record.keys.slot
    with migrating(own_cluster, slot, shard[0], target):
        renewed(own_cluster, record, shard[0])
        calls, started = _calls(own_cluster, (shard[0], target)), time.monotonic()
        until(lambda: time.monotonic() > started + 2)
        assert _calls(own_cluster, (shard[0], target)) - calls < 25  # the waiter does not spin
        assert moved(own_cluster, slot, shard[0], target)
        renewed(own_cluster, record, target)
        moved(own_cluster, slot, shard[0], target)
    renewed(own_cluster, record, target)
    assert not state.lost()
    assert not state.got.done()
    state.free()
    assert state.got.result(60)
    state.finish()


def test_a_release_into_an_open_slot(own_cluster, record, shard, target, held_and_waited_for):
    """The record has moved, the index has not: the lock is handed on all the same."""
    state, slot = held_and_waited_for, record.keys.slot
    with migrating(own_cluster, slot, shard[0], target):
        assert moved(own_cluster, slot, shard[0], target, only=record.key)
        state.free()
        moved(own_cluster, slot, shard[0], target)
        assert state.got.result(60)
    state.finish()


def test_a_guarded_write_into_an_open_slot(own_cluster, record, shard, target, actors):
    """The note of its fence has moved, its own key has not: it is done once that is over, and once only."""
    writer, lock, slot, key = actors(), cache_lock("a"), record.keys.slot, "{a}:total"
    writer.do(lock, "acquire")
    writer.do(lock, "guarded_set", key, 5)
    with migrating(own_cluster, slot, shard[0], target):
        assert moved(own_cluster, slot, shard[0], target, only=record.keys.guard)
        written = writer.start(lock, "guarded", "return redis.call('INCR', KEYS[1])", [key])
        until(lambda: "errorstat_TRYAGAIN" in own_cluster.node(shard[0]).info("errorstats"))
        assert not written.done()
        assert moved(own_cluster, slot, shard[0], target)
        assert written.result(60) == 6
    writer.do(lock, "release")
    assert record.client.get(key) == "6"


def _calls(server, ports):
    """How many scripts and sleeps were begun on the nodes so far."""
    stats = [server.node(port).info("commandstats") for port in ports]
    return sum(stat.get(f"cmdstat_{name}", {"calls": 0})["calls"] for stat in stats for name in ("evalsha", "blpop"))
