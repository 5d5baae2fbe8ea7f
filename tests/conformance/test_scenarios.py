"""What other libraries' users rely on: the scenarios of python-redis-lock's tests, told anew."""

import time
from contextlib import ExitStack

import pytest

from django_cluster_lock import LockError, LockLost, LockNotHeld, LockTimeout, cache_lock, locks
from tests.programs import Program
from tests.records import Record, in_thread, keys_of, until

TIMEOUT = 1.0


@pytest.fixture(autouse=True)
def setting(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {
            "LOCATION": cluster.urls,
            "KEY_PREFIX": prefix,
            "TIMEOUT": TIMEOUT,
            "BLOCKING_TIMEOUT": 10,
            "CLOCK_SKEW": 0,
        }
    }
    return settings.CLUSTER_LOCKS


def test_no_two_processes_at_once(setting, tmp_path):
    """Each reads a number, waits and writes it back one higher: only under a lock does none get lost."""
    number = tmp_path / "number"
    code = f"""
from pathlib import Path
number = Path({str(number)!r})
for _ in range(20):
    with cache_lock("a", blocking_timeout=60):
        value = int(number.read_text())
        time.sleep(0.002)
        number.write_text(str(value + 1))
"""
    number.write_text("0")
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(code, setting)) for _ in range(6)]
        for program in programs:
            assert program.wait(60) == 0
    assert number.read_text() == "120"


def test_no_waiting():
    with cache_lock("a"):
        assert in_thread(lambda: cache_lock("a", blocking=False).acquire()) is False
        with pytest.raises(LockError):
            in_thread(cache_lock("a", blocking=False).__enter__)


def test_waiting_that_ends_before_the_lease():
    with cache_lock("a"), pytest.raises(LockTimeout):
        in_thread(cache_lock("a", blocking_timeout=0.2).__enter__)


def test_a_lease_that_is_not_renewed_ends():
    assert in_thread(lambda: cache_lock("a", renew=False).acquire())
    started = time.monotonic()
    assert cache_lock("a").acquire(blocking_timeout=2 * TIMEOUT)
    assert time.monotonic() - started > TIMEOUT / 2


def test_a_renewed_lease_does_not_end():
    with cache_lock("a"):
        assert in_thread(lambda: cache_lock("a").acquire(blocking_timeout=2 * TIMEOUT)) is False


@pytest.mark.parametrize("wait", [-1, -123, "foobar", True])
def test_times_that_cannot_be_waited(wait):
    with pytest.raises(ValueError, match="blocking_timeout"):
        cache_lock("a", blocking_timeout=wait)
    with pytest.raises(ValueError, match="blocking_timeout"):
        cache_lock("a").acquire(blocking_timeout=wait)


@pytest.mark.parametrize("timeout", [0, -1, "1", None, True, float("inf"), float("nan")])
def test_times_that_no_lease_can_last(timeout):
    with pytest.raises(ValueError, match="timeout"):
        cache_lock("a", timeout=timeout)
    with cache_lock("a") as lock, pytest.raises(ValueError, match="additional_time"):
        lock.extend(timeout)


def test_extended_by_the_one_who_has_the_token():
    lock, other = cache_lock("a"), cache_lock("a")
    lock.acquire()
    other.attach(lock.detach())
    assert other.extend(100)
    assert other.valid_for > 100 - TIMEOUT
    with pytest.raises(LockNotHeld):
        lock.extend(100)
    other.release()


def test_a_stranger_can_do_nothing():
    with cache_lock("a") as lock:
        stranger = cache_lock("a")
        for action in (stranger.release, stranger.reacquire, lambda: stranger.extend(5)):
            with pytest.raises(LockNotHeld):
                action()
        with pytest.raises(LockLost):
            stranger.attach("made up")
        assert lock.owned()


def test_acquired_twice():
    with cache_lock("a") as lock:
        with pytest.raises(LockError, match="held right here already"):
            lock.acquire()
        assert not lock.acquire(blocking=False)
        assert lock.owned()


def test_a_token_of_ones_own(cluster, prefix):
    lock = cache_lock("a")
    assert lock.acquire(token="mine")
    assert lock.token == Record(cluster, prefix, "a").holder() == "mine"
    lock.release()
    assert lock.acquire(token=b"mine")  # a byte string will do
    lock.release()


def test_freed_from_outside_wakes_the_waiter(setting, cluster, prefix, without_fences):
    """As reset() does there; here it takes the token, so that it hits the lease that was looked at."""
    record, lock = Record(cluster, prefix, "a"), cache_lock("a", timeout=60)
    lock.acquire()
    code = 'say("waiting"); say(cache_lock("a", timeout=60).acquire()); time.sleep(60)'
    with Program(code, setting) as waiter:
        assert waiter.hear() == "waiting"
        until(record.waiters)
        locks["default"].release("a", token="another")
        assert lock.owned()
        locks["default"].release("a", token=locks["default"].show("a").token)
        started = time.monotonic()
        assert waiter.hear() == "True"
        assert time.monotonic() - started < 2  # far from a slice, which is four seconds
    with pytest.raises(LockLost):
        lock.release()


def test_no_litter(cluster, prefix):
    """Neither wake-ups that nobody waits for nor records outlive their use."""
    for number in range(10):
        with cache_lock(f"litter:{number}"):
            in_thread(lambda n=number: cache_lock(f"litter:{n}").acquire(blocking_timeout=0.01))
    assert not [key for key in keys_of(cluster, prefix) if ":wake:" in key]
    until(lambda: not keys_of(cluster, prefix))
