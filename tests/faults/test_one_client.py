"""What a network may do to the requests of one holder: the answer is right, and nothing stays behind."""

import math

import pytest
import redis
from redis.lock import Lock as RedisLock

from django_cluster_lock import LockLost, LockUnavailable, cache_lock
from django_cluster_lock.aliases import Alias
from django_cluster_lock.signals import lock_lost
from tests.faults.conftest import SOCKET_TIMEOUT
from tests.faults.proxy import Rule
from tests.records import until

TIMEOUT, SKEW = 1.5, 0.2
SLICE = TIMEOUT / 3
FAULTS = {
    "request lost": {"request": "drop"},
    "request lost, connection closed": {"request": "drop", "close": True},
    "reply lost": {"reply": "drop"},
    "reply lost, connection closed": {"reply": "drop", "close": True},
    "request doubled": {"request": "double"},
    "request late": {"late": SOCKET_TIMEOUT + 1.2},  # than the client waits for it, replicas included
}
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())


def warm_up(actor):
    """Opens the connections and brings the scripts to the servers, so that a fault meets what it is meant for."""
    lock = cache_lock("a")
    assert actor.do(lock, "acquire")
    actor.do(lock, "release")


@each_fault
def test_acquire(proxy, actor, record, fault):
    warm_up(actor)
    lock = cache_lock("a", renew=False)
    rule = proxy.harm(Rule("acquire", **fault))
    assert actor.do(lock, "acquire")
    assert len(rule.begun) == 1
    assert actor.do(lock, "owned")
    assert record.holder() == actor.do(lock, "detach")


@pytest.fixture
def patience(monkeypatch):
    """Time for a second attempt, however long a busy machine takes for the first."""
    monkeypatch.setattr(Alias, "patience", 4.0)


@each_fault
@pytest.mark.usefixtures("patience")
def test_acquire_without_waiting(proxy, actor, record, fault):
    warm_up(actor)
    lock = cache_lock("a", renew=False)
    proxy.harm(Rule("acquire", **fault))
    assert actor.do(lock, "acquire", blocking=False)
    assert actor.do(lock, "owned")


@each_fault
def test_release(proxy, actor, record, fault):
    warm_up(actor)
    lock = cache_lock("a")
    assert actor.do(lock, "acquire")
    rule = proxy.harm(Rule("release", **fault))
    actor.do(lock, "release")
    assert len(rule.begun) == 1
    assert record.holder() is None
    assert actor.do(cache_lock("a"), "acquire", blocking=False)


@pytest.mark.parametrize("fault", [FAULTS["request lost"], FAULTS["reply lost"], FAULTS["request late"]])
@pytest.mark.usefixtures("patience")
def test_an_acquire_that_raises_leaves_nothing(proxy, actor, record, fault):
    """All its attempts are harmed: it raises, takes back what may have arrived, and ends what may yet arrive."""
    warm_up(actor)
    rule = proxy.harm(Rule("acquire", times=math.inf, **fault))
    with pytest.raises(LockUnavailable):
        actor.do(cache_lock("a"), "acquire", blocking=False)
    assert len(rule.begun) > 1
    until(lambda: len(rule.done) == len(rule.begun))
    until(record.cancelled)  # at once, or by the renewer where the caller's time did not suffice
    assert len(record.cancelled()) == 1
    assert record.holder() is None
    assert not record.waiters()
    proxy.heal()
    assert actor.do(cache_lock("a"), "acquire", blocking=False)


def test_without_a_cancel_it_would_be_stranded(proxy, actor, record):
    """The control: what the test above proves is due to the cancel."""
    warm_up(actor)
    lock = cache_lock("a", timeout=4)  # so that it is still stranded when that is looked at
    proxy.harm(Rule("acquire", reply="drop", times=math.inf))
    proxy.harm(Rule("release", request="drop", times=math.inf))
    with pytest.raises(LockUnavailable):
        actor.do(lock, "acquire", blocking=False)
    stranded = record.holder()
    assert stranded
    until(lambda: record.holder() is None, within=lock.timeout + SKEW)  # but no longer than its lease


def test_redis_py_denies_what_it_acquired(proxy, cluster, prefix):
    """The control for lost replies: the lock this one replaces gives the wrong answer, and strands the key."""
    with redis.RedisCluster.from_url(
        cluster.urls[0], address_remap=proxy.remap, protocol=2, socket_timeout=SOCKET_TIMEOUT
    ) as client:
        rule = proxy.harm(Rule("SET", reply="drop"))
        lock = RedisLock(client, f"{prefix}:theirs", timeout=TIMEOUT, blocking=False)
        assert not lock.acquire()
        assert rule.done
        assert cluster.admin().exists(f"{prefix}:theirs")


@each_fault
def test_extend(proxy, actor, record, fault):
    warm_up(actor)
    lock = cache_lock("a", timeout=5, renew=False)
    assert actor.do(lock, "acquire")
    rule = proxy.harm(Rule("renew", **fault))
    actor.do(lock, "extend", 10)
    assert len(rule.begun) == 1
    assert int(record.fields()["d"]) - record.now() > 10_000
    actor.do(lock, "release")


@each_fault
def test_renewal(proxy, actor, record, fault):
    """One harmed renewal costs nothing: the lease outlives its timeout."""
    warm_up(actor)
    lock = cache_lock("a", timeout=3)  # time for a second renewal, however late the first was
    rule = proxy.harm(Rule("renew", **fault))
    assert actor.do(lock, "acquire")
    first_deadline = int(record.fields()["d"])
    until(lambda: record.now() > first_deadline and rule.done)
    assert actor.do(lock, "owned")
    actor.do(lock, "release")  # LockLost, had it been lost
    assert record.holder() is None


def test_no_renewal_arrives(proxy, actor, actors, record):
    """The holder can know that it lost the lease before anybody else gets it, and is told a moment later."""
    told = []

    def note(lease, **_):
        told.append(lease.name)

    lock_lost.connect(note)
    warm_up(actor)
    lock, successor = cache_lock("a"), actors()
    assert actor.do(lock, "acquire")
    proxy.harm(Rule("renew", request="drop", times=math.inf))
    assert not actor.see(lock, "lost")
    assert successor.do(cache_lock("a"), "acquire", blocking_timeout=10)
    assert actor.see(lock, "lost")
    until(lambda: told == ["a"], within=2)  # a last renewal may be under way
    with pytest.raises(LockLost):
        actor.do(lock, "release")
    assert record.holder()  # a stranger's release changed nothing


def test_no_release_arrives(proxy, actor, record):
    """It says so, and the lock is free when the lease is over."""
    warm_up(actor)
    lock = cache_lock("a", timeout=4 * TIMEOUT)  # longer than the release is tried for
    assert actor.do(lock, "acquire")
    proxy.harm(Rule("release", request="drop", times=math.inf))
    with pytest.raises(LockUnavailable):
        actor.do(lock, "release")
    assert record.holder()
    until(lambda: record.holder() is None, within=4 * TIMEOUT + SKEW)
