"""Waiting for a lock: who gets it and when, what a death costs, and what interrupted waiters leave behind."""

import asyncio
import random
import signal
import time
from collections import Counter

import pytest

from django_cluster_lock import cache_lock, scripts
from tests.faults.proxy import Proxy
from tests.integration.conftest import SKEW, TIMEOUT
from tests.programs import Program
from tests.records import auntil, in_thread, keys_of, until

SLICE = TIMEOUT / 3
CLAIM = 2 * SLICE  # what a grant lasts that its waiter does not take up
LATE = SLICE + 2  # after which a waiter has noticed at the latest, on a busy machine too
HOLD = """
lock = cache_lock("a")
lock.acquire()
say("holding")
sys.stdin.read()
time.sleep(60)
"""
WAIT = """
lock = cache_lock("a", blocking_timeout=60)
say("waiting")
try:
    lock.acquire()
except KeyboardInterrupt:
    say("interrupted")
else:
    say("holding")
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = locks


def test_a_killed_holder_costs_its_lease(locks, record, actors):
    """The first waiter has it at the deadline, by the server's clock: not before, at most one slice later."""
    with Program(HOLD, locks) as holder:
        assert holder.hear() == "holding"
        first, second = actors(), actors()
        lock = cache_lock("a")
        got = first.start(lock, "acquire")
        until(lambda: len(record.waiters()) == 1)
        other = second.start(cache_lock("a"), "acquire")
        until(lambda: len(record.waiters()) == 2)
        holder.signal(signal.SIGKILL)
        holder.wait()
    deadline = int(record.fields()["d"])
    assert got.result(60)
    granted = int(record.fields()["s"])
    assert deadline <= granted <= deadline + LATE * 1000
    assert not other.done()
    first.do(lock, "release")
    assert other.result(60)


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
def test_a_dead_waiter_costs_its_claim(locks, record, actors, stopped):
    """Dead before the grant, it costs what is left of two slices. One that is stopped, or whose host is, a lease.

    For its question waits at the server already, behind the sleep, and is answered there.
    """
    holder, third, lock = actors(), actors(), cache_lock("a")
    assert holder.do(lock, "acquire")
    with Program(WAIT, locks) as waiter:
        assert waiter.hear() == "waiting"
        token = until(record.waiters)[0]
        got = third.start(cache_lock("a"), "acquire")
        until(lambda: len(record.waiters()) == 2)
        waiter.signal(signal.SIGSTOP if stopped else signal.SIGKILL)
        if not stopped:
            waiter.wait()
        holder.do(lock, "release")
        assert record.holder() == token
        waiter.signal(signal.SIGKILL)
        waiter.wait()
        fields = record.fields()
        handed, claimed = int(fields["s"]), int(fields["d"])
    assert claimed - handed <= (TIMEOUT + SKEW + 0.1 if stopped else CLAIM) * 1000
    assert got.result(60)
    assert claimed <= int(record.fields()["s"]) <= claimed + LATE * 1000


def test_an_interrupted_waiter_gives_its_place_back(locks, record):
    with cache_lock("a"):
        with Program(WAIT, locks) as waiter:
            assert waiter.hear() == "waiting"
            until(record.waiters)
            waiter.signal(signal.SIGINT)
            assert waiter.hear() == "interrupted"
            assert not record.waiters()
            waiter.wait()
        with Program(WAIT, locks) as waiter:  # the control: a killed one cannot
            until(record.waiters)
            waiter.signal(signal.SIGKILL)
            waiter.wait()
            assert record.waiters()
    assert in_thread(lambda: cache_lock("a").acquire(blocking_timeout=CLAIM + LATE))


async def test_cancelled_waiters_leave_nothing(record, cluster, prefix):
    """A thousand, at random moments: before they queue, in the queue, as they get the lock, while they have it."""
    chance = random.Random(7)
    outcomes = Counter()

    async def work():
        async with cache_lock("a", blocking_timeout=60):
            await asyncio.sleep(chance.random() * 0.02)

    while outcomes["CancelledError"] < 1000:
        crowd = [asyncio.ensure_future(work()) for _ in range(100)]
        for task in chance.sample(crowd, len(crowd)):
            await asyncio.sleep(chance.random() * 0.004)
            task.cancel()
        outcomes.update(type(outcome).__name__ for outcome in await asyncio.gather(*crowd, return_exceptions=True))
    assert outcomes.keys() == {"CancelledError", "NoneType"}
    assert record.holder() is None
    assert not record.waiters()
    assert await cache_lock("a").aacquire(blocking=False)
    client = cluster.admin()
    for key in keys_of(cluster, prefix):
        assert client.pttl(key) > 0 or client.zcard(key) == 1, key  # all but the index ends by itself


async def test_cancelled_twice(record):
    """What is left to do goes on without the task."""
    async with cache_lock("a"):
        waiter = asyncio.ensure_future(cache_lock("a").aacquire())
        await auntil(record.waiters)
        waiter.cancel()
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await auntil(lambda: not record.waiters())
    assert record.holder() is None


async def test_timeouts_of_asyncio_give_the_place_back(record, actors):
    assert actors().do(cache_lock("a", timeout=60), "acquire")
    for wait in (0.01, 0.2, SLICE + 0.1):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(wait):
                await cache_lock("a").aacquire()
        assert not record.waiters()


def test_a_hundred_are_served_in_order(record, actors):
    """Threads and tasks in turn, one queue."""
    served, waiting = [], []

    def serve(actor, lock, number):
        def next_one(got):
            assert got.result()
            served.append(number)
            waiting.append(actor.start(lock, "release"))

        return next_one

    with cache_lock("a"):
        for number in range(100):
            actor, lock = actors(in_loop=number % 2 == 1), cache_lock("a", timeout=10, blocking_timeout=60)
            got = actor.start(lock, "acquire")
            got.add_done_callback(serve(actor, lock, number))
            until(lambda: got.done() or len(record.waiters()) > number)  # noqa: B023
    until(lambda: len(waiting) == 100)
    for released in waiting:
        released.result(60)
    assert served == list(range(100))
    assert record.holder() is None


@pytest.fixture(params=["auto", 0])
def proxy(request, settings, locks, cluster):
    proxy = Proxy(cluster.embedded.ports)
    settings.CLUSTER_LOCKS = {
        "default": locks["default"]
        | {"OPTIONS": {"address_remap": proxy.remap}, "REPLICAS": request.param, "TIMEOUT": 30}
    }
    yield proxy
    proxy.close()


def test_what_a_hand_over_costs(proxy, record, actors):
    """Three commands: the sleep, the question, the release; where replicas count, the wait and who they are, too."""
    with cache_lock("a"):  # opens connections, brings the scripts to the server
        pass
    count, waiters = 20, []
    with cache_lock("a"):
        for number in range(count):
            actor, lock = actors(in_loop=number % 2 == 1), cache_lock("a")
            got = actor.start(lock, "acquire")
            waiters.append((actor, lock, got))
            until(lambda: got.done() or len(record.waiters()) > number)  # noqa: B023
        until(lambda: len(proxy.requests("BLPOP")) == count)
        queued = [request for request in proxy.requests("acquire") if "BLPOP" not in request.commands]
    for actor, lock, got in waiters:
        assert got.result(60)
        actor.do(lock, "release")
    asked, released = proxy.requests("acquire")[len(queued) :], proxy.requests("release")[-count:]
    replicated = "WAIT" in queued[-1].commands
    assert sum(len(request.commands) for request in asked + released) <= (5 if replicated else 3) * count


def test_no_more_time_than_asked_for():
    with cache_lock("a"):
        started = time.monotonic()
        assert not in_thread(lambda: cache_lock("a").acquire(blocking_timeout=0.7))
        assert 0.7 <= time.monotonic() - started < 0.7 + LATE


def test_the_living_are_found_behind_many_dead(record, actors):
    """More dead waiters than one call steps over: the next ones go on."""
    keys, client = record.keys, record.client
    holder, lock = actors(), cache_lock("a", timeout=60)
    assert holder.do(lock, "acquire")
    for number in range(300):
        client.eval(scripts.ACQUIRE.text, 2, keys.record, keys.index, f"dead{number}", 1500, 600, "a", "", "", "", "")
    got = actors().start(cache_lock("a"), "acquire")
    until(lambda: len(record.alive_waiters()) == 1 and len(record.waiters()) > 100)
    holder.do(lock, "release")
    assert got.result(60)
    assert not record.waiters()


def test_several_names_in_any_order_never_deadlock(actors):
    """Every actor takes overlapping sets in an order of its own."""
    chance, every = random.Random(3), ["a", "b", "c", "d"]
    counts = dict.fromkeys(every, 0)

    def work():
        for _ in range(15):
            names = chance.sample(every, chance.randint(2, 4))
            with cache_lock(names, blocking_timeout=60):
                before = [counts[name] for name in names]
                time.sleep(0.001)
                for name, count in zip(names, before, strict=True):
                    counts[name] = count + 1  # an update is lost unless each is alone

    done = []
    everybody = [actors() for _ in range(6)]
    done = [actor._executor.submit(work) for actor in everybody]
    for future in done:
        future.result(60)
    assert sum(counts.values()) > 6 * 15 * 2
    for name in every:
        assert not cache_lock(name).locked()
