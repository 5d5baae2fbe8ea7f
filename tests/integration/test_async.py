"""The asyncio face: tasks, cancellation, event loops that come and go."""

import asyncio
import os
import time

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_cluster_lock import LockNotHeld, cache_lock, current_lock
from tests.integration.conftest import TIMEOUT
from tests.records import auntil, until


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = locks


async def test_each_task_has_its_own_lease_of_a_shared_handle():
    lock, inside = cache_lock("a"), []

    async def work():
        async with lock:
            assert not inside
            inside.append(lock.token)
            await asyncio.sleep(0.001)
            assert await lock.aowned()
            return inside.pop()

    assert len(set(await asyncio.gather(*(work() for _ in range(20))))) == 20
    assert not await lock.alocked()


async def test_acquired_under_wait_for():
    """Which runs what it waits for in a task of its own, on some Pythons."""
    lock = cache_lock("a")
    assert await asyncio.wait_for(lock.aacquire(), 5)
    assert await lock.aowned()
    await lock.arelease()
    with pytest.raises(LockNotHeld):
        await lock.arelease()


async def test_no_task_ends_the_lease_of_another():
    """As one would that did not get the lock, but releases it in a ``finally``."""
    lock, held, done = cache_lock("a"), asyncio.Event(), asyncio.Event()

    async def hold():
        async with lock:
            held.set()
            await done.wait()
            lock.raise_if_lost()

    holder = asyncio.ensure_future(hold())
    await held.wait()
    assert not await lock.aacquire(blocking=False)
    assert not await lock.aowned()
    with pytest.raises(LockNotHeld):
        await lock.arelease()
    done.set()
    await holder


async def test_what_the_holder_starts_has_the_lock_too_but_not_after_its_end():
    ended = asyncio.Event()

    def ask():
        return current_lock().fence

    async def outlive():
        assert current_lock().fence == fence
        await ended.wait()
        assert current_lock() is None

    async with cache_lock("a") as lock:
        fence = lock.fence
        assert await sync_to_async(ask)() == fence
        assert await asyncio.to_thread(ask) == fence
        task = asyncio.ensure_future(outlive())
        await asyncio.sleep(0)
    async with lock:  # by another lease
        ended.set()
        await task


async def test_a_cancelled_holder_releases(record):
    async def work():
        async with cache_lock("a"):
            held.set()
            await asyncio.sleep(60)

    held = asyncio.Event()
    task = asyncio.ensure_future(work())
    await held.wait()
    assert record.holder()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert record.holder() is None


async def test_a_release_that_is_cancelled_still_releases(record):
    lock = cache_lock("a")
    for steps in range(6):  # so many turns of the event loop into the release
        await lock.aacquire()
        release = asyncio.ensure_future(lock.arelease())
        for _ in range(steps):
            await asyncio.sleep(0)
        release.cancel()
        await asyncio.gather(release, return_exceptions=True)
        if steps:  # before its first step it has not begun
            await auntil(lambda: record.holder() is None, within=TIMEOUT / 2)
        else:
            await lock.arelease()


async def test_a_busy_event_loop_does_not_cost_the_lease():
    async with cache_lock("a") as lock:
        time.sleep(2 * TIMEOUT)  # noqa: ASYNC251 - on purpose
        assert not lock.lost
        assert await lock.aowned()


async def test_both_faces_exclude_each_other():
    async with cache_lock("a") as lock:
        assert current_lock() is lock
        assert not await sync_to_async(lambda: cache_lock("a").acquire(blocking=False), thread_sensitive=False)()
    assert await sync_to_async(lambda: cache_lock("a").acquire(blocking=False), thread_sensitive=False)()


def test_an_event_loop_for_each_call_leaks_nothing(cluster):
    """As a synchronous view does that calls something asynchronous."""

    async def work():
        async with cache_lock("a"):
            assert not await cache_lock("a").aacquire(blocking=False)

    def count():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    call = async_to_sync(work)
    call()
    before = count()
    for _ in range(50):
        call()
    assert count() <= before


def test_a_loop_that_ends_with_waiters_leaves_no_place_in_the_queue(record, actors):
    holder, lock = actors(), cache_lock("a")
    assert holder.do(lock, "acquire")

    async def main():
        for _ in range(5):
            asyncio.ensure_future(cache_lock("a").aacquire()).set_name("waiter")
        await auntil(lambda: len(record.waiters()) == 5)

    asyncio.run(main())
    until(lambda: not record.waiters())  # a cancel that got no answer in time is repeated by the renewer
    holder.do(lock, "release")
    until(lambda: record.holder() is None)
