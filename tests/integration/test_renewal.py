"""Renewal: leases live as long as their holders, no longer; a holder that lost its lease is told."""

import gc
import threading
import time

import pytest

from django_cluster_lock import LockLost, LockNotHeld, cache_lock
from django_cluster_lock.aliases import aliases
from django_cluster_lock.lease import Lease
from django_cluster_lock.signals import lock_lost
from tests.faults.proxy import Proxy
from tests.integration.conftest import SKEW, TIMEOUT
from tests.records import Record, until


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = locks


@pytest.fixture
def losses():
    """The leases that the signal told to be lost, each with the reason."""
    told = []

    def note(sender, lease, reason, **_):
        assert sender is Lease
        told.append((lease.name, reason))

    lock_lost.connect(note)
    yield told
    lock_lost.disconnect(note)


def renewers():
    return {thread for thread in threading.enumerate() if thread.name == "cluster-lock-renewer"}


def test_many_leases_take_one_thread_and_one_request_for_each_node(settings, locks, cluster):
    proxy, before = Proxy(cluster.embedded.ports), renewers()
    settings.CLUSTER_LOCKS = {
        "default": locks["default"] | {"OPTIONS": {"address_remap": proxy.remap}},
    }
    held = [cache_lock(f"many:{number}") for number in range(200)]
    for lock in held[:20]:  # brings the script to every node
        lock.acquire()
        lock.extend(0.1)
        lock.release()
    proxy.forget()
    for lock in held:
        assert lock.acquire()
    assert len(renewers() - before) == len(aliases["default"].topology.primaries())
    ends = max(lease.valid_until for lock in held for lease in lock._find())
    until(lambda: time.monotonic() > ends)
    requests = proxy.requests("renew")
    renewed = sum(request.commands.count("renew") for request in requests)
    assert renewed >= 2 * len(held)  # a third of a lease after the last time, so twice in one
    assert len(requests) <= renewed / 10  # what is due in the same quarter of a second goes to a node together
    assert all(request.commands.count("WAIT") == 1 for request in requests)
    for lock in held:
        lock.release()
    proxy.close()


def test_the_thread_ends_when_nothing_is_held():
    with cache_lock("a"):
        (thread,) = aliases["default"].renewer.threads
        assert thread.is_alive()
    until(lambda: not thread.is_alive())
    with cache_lock("a", timeout=2) as lock:  # and a new one starts
        ends = lock._find()[0].valid_until
        until(lambda: time.monotonic() > ends)
        lock.raise_if_lost()


def test_a_lost_lease_is_told_in_every_way(record, losses):
    lock = cache_lock("a")
    lock.acquire()
    assert not lock.lost
    assert lock.valid_for > 0
    record.client.delete(record.key)
    until(lambda: lock.lost)
    assert losses == [("a", "Redis no longer knows its lease")]
    assert lock.valid_for == 0
    with pytest.raises(LockLost, match="no longer knows"):
        lock.raise_if_lost()
    with pytest.raises(LockLost):
        lock.extend(5)
    assert not lock.owned()
    with pytest.raises(LockLost):
        lock.release()
    with pytest.raises(LockNotHeld):
        lock.release()
    assert not record.fields().get("t")  # renewal has not brought it back


def test_leaving_with_raises_when_the_lease_was_lost(record):
    with pytest.raises(LockLost), cache_lock("a"):
        record.client.delete(record.key)
    with pytest.raises(ZeroDivisionError), cache_lock("a"):  # but what the block raises tells more
        raise ZeroDivisionError(record.client.delete(record.key))
    with cache_lock("a", raise_on_release_error=False):
        record.client.delete(record.key)


def test_a_successor_is_not_renewed_for_its_predecessor(record, actors, losses):
    """The lease was taken from its holder and given to another: the first is lost, the second undisturbed."""
    first, second, mine, theirs = actors(), actors(), cache_lock("a"), cache_lock("a")
    assert first.do(mine, "acquire")
    record.client.delete(record.key)
    assert second.do(theirs, "acquire")
    until(lambda: losses)
    assert first.see(mine, "lost")
    with pytest.raises(LockLost):
        first.do(mine, "release")
    ends = theirs._leases[next(iter(theirs._leases))][0].valid_until
    until(lambda: time.monotonic() > ends)
    assert second.do(theirs, "owned")
    second.do(theirs, "release")


def test_a_handle_that_nobody_has_is_not_renewed(record):
    lock = cache_lock("a")
    lock.acquire()
    first = int(record.fields()["d"])
    until(lambda: int(record.fields()["d"]) > first)  # renewed while there is a handle
    del lock
    gc.collect()
    until(lambda: record.holder() is None, within=TIMEOUT + SKEW + 2)


def test_without_renewal_the_lease_ends(record):
    lock = cache_lock("a", renew=False)
    lock.acquire()
    deadline = int(record.fields()["d"])
    until(lambda: record.holder() is None)
    assert int(record.fields().get("d", deadline)) == deadline
    assert lock.lost
    with pytest.raises(LockLost):
        lock.release()


def test_max_hold_is_the_longest_a_lease_can_last(record, losses):
    lock = cache_lock("a", timeout=1, max_hold=2)
    started = record.now()
    lock.acquire()
    until(lambda: record.holder() is None)
    assert 1900 <= record.now() - started <= 2000 + 1000 + SKEW * 1000 + 2000
    until(lambda: losses)
    assert "max_hold" in losses[0][1]
    with pytest.raises(LockLost):
        lock.release()


def test_the_holder_gives_up_before_redis_does(record):
    """By CLOCK_SKEW, whoever's clock is measured."""
    lock = cache_lock("a", renew=False)
    lock.acquire()
    until(lambda: lock.lost)
    assert record.holder() == lock._find()[0].grant.token.decode()


def test_an_extended_lease_is_renewed_by_what_it_was_extended_to(record):
    """A renewal under way never takes away what extend() gave."""
    with cache_lock("a") as lock:
        lock.extend(20)
        extended = int(record.fields()["d"])
        time.sleep(TIMEOUT / 3 * 2)  # a renewal of the plain length falls into it
        assert int(record.fields()["d"]) >= extended
        assert lock.valid_for > 15


def test_several_are_renewed_and_lost_together(cluster, prefix, losses):
    lock = cache_lock(["x", "y", "z"])
    lock.acquire()
    ends = max(lease.valid_until for lease in lock._find())
    until(lambda: time.monotonic() > ends)
    lock.raise_if_lost()
    assert not lock.lost
    record = Record(cluster, prefix, "y")
    record.client.delete(record.key)
    until(lambda: lock.lost)
    assert [name for name, _ in losses] == ["y"]
    with pytest.raises(LockLost, match="'y'"):
        lock.release()
    for name in "xz":
        assert Record(cluster, prefix, name).holder() is None


def test_where_no_thread_can_be_started_the_lease_lasts_as_it_is_and_the_next_one_tries_again(monkeypatch):
    """As at the end of the interpreter, or with too many threads."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    first, second = cache_lock("a"), cache_lock("b")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert first.acquire()
    assert second.acquire()
    ends = first._held()[0].valid_until
    until(lambda: time.monotonic() > ends)
    assert not first.lost
    first.release()
    second.release()


@pytest.mark.parametrize("line", ["_others_current", "_drop"])
def test_a_signal_at_just_any_line_leaves_no_handle_that_holds_for_ever(monkeypatch, record, line):
    """As Celery's soft time limit raises an exception, and the process goes on."""
    lock = cache_lock("a")

    def interrupted(self, *_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(lock), line, interrupted)
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    assert record.holder() is None
    with lock:
        pass


def test_a_loss_that_its_holder_notices_before_the_renewer_is_told_once(record, losses):
    lock, told = cache_lock("a"), []
    lock.acquire()
    lock._held()[0].on_lost.append(told.append)
    record.client.delete(record.key)
    with pytest.raises(LockLost):
        lock.extend(1)
    until(lambda: losses)
    assert len(told) == len(losses) == 1
