"""An exception of a signal at any line of the lock leaves nothing taken and nothing renewed."""

import gc
import os
import random
import signal
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

import django_cluster_lock
from django_cluster_lock import cache_lock
from django_cluster_lock.lock import Lock
from tests.records import Record, until

PACKAGE = str(Path(django_cluster_lock.__file__).parent)
ROUNDS = int(os.environ.get("CLUSTER_LOCK_FUZZ", "0"))  # at random moments; 0 for a few seconds, and not at every line
STEP = 1 if ROUNDS else 11
ENTRIES = {Lock.release.__code__, Lock.__exit__.__code__}  # where no code sees what is raised before their first line


class Interrupted(BaseException):
    """What a signal's handler raises."""


@pytest.fixture(autouse=True)
def locks_on(settings, locks):
    settings.CLUSTER_LOCKS = {"default": locks["default"] | {"TIMEOUT": 300, "REPLICAS": 0}}


@pytest.fixture
def are_free(cluster, prefix):
    """Tells whether all locks come free, and makes them so."""
    records = [Record(cluster, prefix, name) for name in "abc"]

    def are_free():
        try:
            until(lambda: not any(record.holder() for record in records))
        except AssertionError:
            for record in records:
                record.client.delete(record.key)
            return False
        return True

    return are_free


@pytest.fixture(autouse=True)
def counted_references():
    """Turns the collector of garbage off: what is left goes with the exception, not some time later."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Injection:
    """Raises at the n-th line of the package that is run, and notes of which function's lines that is which."""

    def __init__(self, number):
        self.left, self.where = number, None

    def __enter__(self):
        sys.settrace(self.call)

    def __exit__(self, *_):
        sys.settrace(None)

    def call(self, frame, event, arg):
        lines = count(1)

        def line(frame, event, arg):
            if event == "line":
                self.left -= 1
                number = next(lines)
                if not self.left:
                    self.where = frame.f_code, number
                    raise Interrupted
            return line

        return line if frame.f_code.co_filename.startswith(PACKAGE) else None


def interrupted_at(number, work):
    """Where the work was interrupted; None if it has fewer lines."""
    injection = Injection(number)
    with suppress(Interrupted), injection:
        work()
    return injection.where


def use_in_a_block():
    with cache_lock("a"):
        pass


def use_several():
    with cache_lock(["a", "b", "c"]):
        pass


def use_longer():
    with cache_lock("a") as lock:
        lock.extend(60)


def use_decorated():
    cache_lock("a")(lambda: None)()


handle = cache_lock("a")  # which lives on


def use_a_handle():
    with handle:
        pass


def acquire_and_release():
    handle.acquire()
    handle.release()


USES = [use_in_a_block, use_several, use_longer, use_decorated, use_a_handle, acquire_and_release]


@pytest.mark.parametrize("use", USES)
def test_at_every_line(use, are_free):
    use()
    for number in count(1 + USES.index(use) % STEP, STEP):
        where = interrupted_at(number, use)
        if not where:
            break
        if handle._find():
            assert where[0] in ENTRIES
            assert where[1] == 1, "where its first line was reached, it saw to it"
            handle.release()
        assert are_free(), where
    assert number > 100


def test_at_every_line_of_attaching(are_free, cluster, prefix):
    record = Record(cluster, prefix, "a")
    for number in count(1, STEP):
        lock, other = cache_lock("a"), cache_lock("a")
        lock.acquire()
        token = lock.detach()
        where = interrupted_at(number, lambda: other.attach(token))  # noqa: B023
        if not where:
            break
        assert not other._find(), where
        if until(lambda: record.holder() in (None, token)) and record.holder():  # noqa: B023
            other.attach(token)  # it was not asked for yet
            other.release()
        assert are_free(), where
    assert number > 100


def hit_by(step):
    """Where a traceback's last frame but one is: that of the handler comes last."""
    while step.tb_next.tb_next:
        step = step.tb_next
    return step.tb_frame.f_code, step.tb_lineno


def at_a_random_moment(use, within):
    """The frame that a signal's exception hit; None if it came too late."""

    def interrupt(*_):
        if in_use:  # and not while this function cleans up
            raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    in_use = True
    try:
        signal.setitimer(signal.ITIMER_REAL, max(random.random() * within, 1e-6))
        use()
        in_use = False
    except Interrupted as error:
        return hit_by(error.__traceback__)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


# What hits a callback of the standard library's weak sets is reported there, and lost: then nothing is interrupted.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("use", [use_in_a_block, use_a_handle, acquire_and_release])
def test_at_random_moments(use, are_free):
    use()
    started = time.monotonic()
    for _ in range(20):
        use()
    within = (time.monotonic() - started) / 20 * 1.1
    hits, until_ = 0, time.monotonic() + 1.5
    while hits < ROUNDS if ROUNDS else time.monotonic() < until_:
        where = at_a_random_moment(use, within)
        hits += where is not None
        if handle._find():
            code, line = where
            assert code in ENTRIES
            assert line == code.co_firstlineno
            handle.release()
        assert are_free(), where
    assert hits
