"""The handle on every server: both faces, waiting, several names, renewal and loss."""

import asyncio
import contextvars
import time

import pytest

from django_cluster_lock import LockError, LockLost, LockNotHeld, cache_lock, current_lock
from tests.records import Record, auntil, in_thread

PAUSE = 0.01  # seconds between two looks at a lock, which leave the core to others


@pytest.fixture(autouse=True)
def locks_on(settings, server, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": server.urls, "KEY_PREFIX": prefix, "TIMEOUT": 3, "BLOCKING_TIMEOUT": 10}
    }


def test_with_acquires_and_releases():
    with cache_lock("invoice:42") as lock:
        assert lock.owned()
        assert current_lock() is lock
        assert not cache_lock("invoice:42").acquire(blocking=False)
    assert not lock.locked()
    assert current_lock() is None


def test_fences_grow():
    fences = []
    for _ in range(5):
        with cache_lock("counter") as lock:
            fences.append(lock.fence)
    assert fences == sorted(set(fences))


def test_waiting_for_itself_is_refused():
    with cache_lock("a"), pytest.raises(LockError, match="held right here already"):
        cache_lock("a").acquire()


def test_waiting_for_itself_is_refused_in_whatever_context():
    """As where asgiref runs two tasks' blocking code in one thread."""
    lock = cache_lock("a")
    contextvars.copy_context().run(lock.acquire)
    with pytest.raises(LockError, match="held right here already"):
        cache_lock("a").acquire()
    lock.release()


def test_a_token_of_any_bytes_can_be_handed_on():
    lock, other = cache_lock("a"), cache_lock("a")
    assert lock.acquire(token=b"\xff\x00")
    other.attach(lock.detach())
    assert other.owned()
    other.release()


def test_released_once():
    lock = cache_lock("a")
    assert lock.acquire()
    lock.release()
    with pytest.raises(LockNotHeld):
        lock.release()


def test_a_lock_taken_by_force_is_lost(server, prefix):
    lock = cache_lock("a")
    lock.acquire()
    server.admin().delete(f"{prefix}:lock:{{a}}")
    with pytest.raises(LockLost):
        lock.release()


def test_renewal_keeps_it_beyond_its_timeout():
    with cache_lock("a", timeout=2) as lock:
        started = time.monotonic()
        while time.monotonic() < started + 4:
            assert lock.owned()
            lock.raise_if_lost()
            time.sleep(PAUSE)


def test_max_hold_ends_renewal():
    lock = cache_lock("a", timeout=0.6, max_hold=0.7)
    lock.acquire()
    deadline = time.monotonic() + 10
    while not lock.lost:
        assert time.monotonic() < deadline
        time.sleep(PAUSE)
    with pytest.raises(LockLost):
        lock.release()


def test_detached_here_attached_elsewhere():
    lock = cache_lock("a")
    lock.acquire()
    fence, token = lock.fence, lock.detach()
    with pytest.raises(LockNotHeld):
        lock.release()

    def elsewhere():
        other = cache_lock("a")
        other.attach(token)
        attached = other.fence
        other.release()
        return attached

    assert in_thread(elsewhere) > fence
    assert not lock.locked()


@pytest.mark.parametrize("name", ["a", ["a", "b", "c"]])
def test_a_token_is_attached_once(name):
    lock, other, late = cache_lock(name), cache_lock(name), cache_lock(name)
    lock.acquire()
    token = lock.detach()
    other.attach(token)
    with pytest.raises(LockLost, match="attached before"):
        late.attach(token)
    assert other.owned(), "a late one changes nothing"
    again = other.detach()
    assert again != token
    late.attach(again)
    late.release()
    assert not lock.locked()


def test_of_several_all_are_attached_or_none():
    lock, other = cache_lock(["a", "b"]), cache_lock(["a", "b"])
    lock.acquire()
    token = lock.detach()
    before, _ = token.split(".")
    one = cache_lock(lock._keys()[0].name)
    one.attach(before)
    with pytest.raises(LockLost):
        other.attach(token)
    assert one.owned()
    assert not cache_lock(lock._keys()[1].name).locked(), "the other one is free"
    one.release()


async def test_waiters_are_served_in_order(server, prefix):
    order, record = [], Record(server, prefix, "a")

    async def work(number):
        async with cache_lock("a", blocking_timeout=30):
            order.append(number)

    async with cache_lock("a"):
        waiting = []
        for number in range(20):
            waiting.append(asyncio.ensure_future(work(number)))
            await auntil(lambda: waiting[-1].done() or len(record.waiters()) > number)  # noqa: B023
    await asyncio.gather(*waiting)
    assert order == list(range(20))


def test_several_at_once():
    with cache_lock(["b", "a", "b"]) as locks:
        assert set(locks.fences) == {"a", "b"}
        assert not cache_lock("b").acquire(blocking=False)
    assert not locks.locked()


def test_several_or_none():
    with cache_lock("b"):
        assert in_thread(lambda: cache_lock(["a", "b", "c"]).acquire(blocking_timeout=0.2)) is False
        assert not cache_lock(["a", "c"]).locked()
