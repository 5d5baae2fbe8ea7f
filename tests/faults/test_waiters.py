"""What a network may do to a waiter, to the answer that gives it the lock, and to its leaving the queue."""

import math
import time

import pytest

from django_cluster_lock import LockUnavailable, cache_lock
from tests.actors import Actor
from tests.faults.proxy import Rule
from tests.faults.test_one_client import SLICE, each_fault, warm_up
from tests.records import until

CLAIM = 2 * SLICE  # what a grant lasts that its waiter does not take up


@pytest.fixture
def holder(proxy):
    """Somebody who holds the lock; whoever waits for it has opened connections."""
    holder = Actor()
    warm_up(holder)
    lock = cache_lock("a")
    assert holder.do(lock, "acquire")
    holder.free = lambda: holder.do(lock, "release")
    yield holder
    holder.close()


def wait(actor, record, **terms):
    """Begins to wait; returns once it is in the queue."""
    lock = cache_lock("a", **terms)
    got = actor.start(lock, "acquire")
    until(lambda: got.done() or record.waiters())
    return lock, got


@each_fault
def test_a_slice_that_ends_in_nothing(proxy, holder, actor, record, fault):
    rule = proxy.harm(Rule("acquire", beside="BLPOP", **fault))
    lock, got = wait(actor, record)
    until(lambda: rule.done)
    assert record.alive_waiters()  # it has not lost its place
    holder.free()
    assert got.result(10)
    assert actor.do(lock, "owned")
    actor.do(lock, "release")
    assert record.holder() is None


@each_fault
def test_the_hand_over(proxy, holder, actor, record, fault):
    """The lock comes while the harmed request is under way, so that what gets lost is the grant."""
    rule = proxy.harm(Rule("acquire", beside="BLPOP", **fault))
    lock, got = wait(actor, record)
    until(lambda: rule.begun)
    token = record.waiters()[0]
    holder.free()
    assert record.holder() == token
    assert got.result(10)
    assert actor.do(lock, "owned")
    actor.do(lock, "release")
    assert record.holder() is None


@pytest.mark.parametrize("close", [False, True], ids=["silent", "closed"])
def test_the_hand_over_and_all_after_it(proxy, holder, actor, record, close):
    """The waiter never hears of its grant: it raises, and takes the grant back."""
    rule = proxy.harm(Rule("acquire", reply="drop", beside="BLPOP", close=close, times=math.inf))
    _, got = wait(actor, record, blocking_timeout=1)
    until(lambda: rule.begun)
    proxy.harm(Rule("acquire", reply="drop", close=close, times=math.inf))
    holder.free()
    with pytest.raises(LockUnavailable):
        got.result(10)
    until(record.cancelled)  # at once, or by the renewer where the caller's time did not suffice
    assert record.holder() is None
    assert not record.waiters()


@each_fault
def test_leaving_the_queue(proxy, holder, actor, record, fault):
    """The one request that leaves the queue is harmed: the place is dead after two slices, a grant to it costs that."""
    rule = proxy.harm(Rule("release", **fault))
    _, got = wait(actor, record, blocking_timeout=0.3)
    assert got.result(10) is False
    assert rule.begun
    holder.free()
    freed = time.monotonic()
    assert holder.do(cache_lock("a"), "acquire", blocking_timeout=5)
    assert time.monotonic() - freed < CLAIM + 2
    assert record.holder()


def test_a_full_queue_is_served_through_a_bad_network(proxy, holder, actors, record):
    """Every third answer is lost: each still gets the lock, in the order of the queue."""
    waiting, served = [], []
    rule = proxy.harm(Rule("acquire", reply="drop", close=True, every=3, times=math.inf))
    for number in range(6):
        actor, lock = actors(), cache_lock("a", blocking_timeout=60)
        got = actor.start(lock, "acquire")
        got.add_done_callback(lambda _, number=number: served.append(number))
        waiting.append((actor, lock, got))
        until(lambda: got.done() or len(record.waiters()) > number)  # noqa: B023
    until(lambda: len(rule.done) > 6)
    holder.free()
    for actor, lock, got in waiting:
        assert got.result(60)
        assert actor.do(lock, "owned")
        actor.do(lock, "release")
    assert served == list(range(6))
    assert record.holder() is None
