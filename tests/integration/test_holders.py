"""Who holds a lease: a thread, greenlet or task, told by itself and not by a number that the next one may have."""

import asyncio
import gc
import threading
import weakref

import pytest

from django_cluster_lock import LockNotHeld, cache_lock
from tests.programs import Program
from tests.records import until


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = locks


def in_new_thread(function):
    """The result of a function and the ident of the thread that it ran in, which has ended."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0], thread.ident


def test_a_thread_inherits_nothing_from_one_before_it():
    lock = cache_lock("a")
    _, ident = in_new_thread(lock.acquire)

    def look():
        with pytest.raises(LockNotHeld):
            _ = lock.fence
        with pytest.raises(LockNotHeld):
            lock.release()
        return lock.owned()

    for _ in range(1000):
        owned, its = in_new_thread(look)
        assert not owned
        if its == ident:
            break
    else:
        pytest.skip("this system gives no ident twice")
    assert lock.locked()


def test_the_lease_of_an_ended_thread_runs_out():
    lock = cache_lock("a", timeout=1)
    in_new_thread(lock.acquire)
    until(lambda: not lock.locked())


def test_a_handle_for_all_threads_keeps_none_that_ended():
    lock = cache_lock("a", timeout=1)
    for _ in range(3):
        in_new_thread(lambda: lock.acquire() and lock.extend(0.1))
    assert len(lock._leases) == 1


def test_the_lease_of_an_ended_greenlet_runs_out(locks):
    pytest.importorskip("gevent")
    code = """
import gevent
lock = cache_lock("a", timeout=1)
gevent.spawn(lock.acquire).get()
say(any(gevent.spawn(lock.owned).get() for _ in range(100)), lock.locked())
while lock.locked():
    gevent.sleep(0.01)
say("free")
"""
    with Program(code, locks, first="from gevent import monkey; monkey.patch_all()") as program:
        assert program.hear(60) == "False True"
        assert program.hear(60) == "free"
        assert program.wait() == 0


def test_greenlets_are_told_apart_though_the_patch_came_after_the_import(locks):
    """As under gunicorn with --preload."""
    pytest.importorskip("gevent")
    code = """
from django_cluster_lock.lease import Place
Place.here()
from gevent import monkey; monkey.patch_all()
import gevent
lock = cache_lock("a")
gevent.spawn(lock.acquire).get()
say(gevent.spawn(lock.owned).get())
"""
    with Program(code, locks) as program:
        assert program.hear(60) == "False"
        program.wait()


async def test_a_handle_keeps_no_task_alive():
    lock = cache_lock("a")

    async def work():
        await lock.aacquire()
        return weakref.ref(asyncio.current_task())

    task = await asyncio.ensure_future(work())
    await asyncio.sleep(0)
    gc.collect()
    assert task() is None
    await lock.arelease()  # of the only task that has ended: as `asyncio.wait_for` may have run it
