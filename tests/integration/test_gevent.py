"""The blocking face under gevent, whose greenlets take the place of threads."""

import pytest

from tests.programs import Program

pytest.importorskip("gevent")
PATCH = "from gevent import monkey; monkey.patch_all()"


def test_greenlets_contend(locks):
    code = """
import gevent
inside = done = 0
def work():
    global inside, done
    with cache_lock("a", blocking_timeout=60):
        inside += 1
        assert inside == 1
        gevent.sleep(0.001)
        inside -= 1
        done += 1
gevent.joinall([gevent.spawn(work) for _ in range(50)], raise_error=True)
say(done, cache_lock("a").locked())
"""
    with Program(code, locks, first=PATCH) as program:
        assert program.hear(60) == "50 False"
        assert program.wait() == 0


def test_renewal(locks):
    """It goes on beside greenlets that work and wait, many to a node at once; a lease outlives its timeout."""
    code = """
import gevent
held = [cache_lock(f"many:{number}") for number in range(20)]
for lock in held:
    lock.acquire()
waiter = gevent.spawn(lambda: cache_lock("many:0", timeout=5).acquire(blocking_timeout=30))
gevent.sleep(3.5)
say(sum(lock.owned() for lock in held), sum(lock.lost for lock in held), waiter.ready())
held[0].release()
say(waiter.get(timeout=5))
"""
    with Program(code, locks, first=PATCH) as program:
        assert program.hear(60) == "20 0 False"
        assert program.hear(60) == "True"
        assert program.wait() == 0


def test_a_killed_greenlet_gives_its_place_back(locks, record):
    code = """
import gevent
lock = cache_lock("a")
lock.acquire()
crowd = [gevent.spawn(lambda: cache_lock("a").acquire()) for _ in range(10)]
gevent.sleep(0.7)
gevent.killall(crowd)
say("killed")
time.sleep(60)
"""
    with Program(code, locks, first=PATCH) as program:
        assert program.hear(60) == "killed"
        assert record.holder()
        assert not record.waiters()
