"""Tests that keep every core busy, marked ``alone``, run while no other test does: else what they time says nothing.

They come first, one after another: they wait for what has begun, and nothing else begins before the last has ended.
"""

import fcntl
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers import BASE, WORKER

TURN, RUNNING = "turn", "running"


def path_of(file):
    return Path(f"{os.environ[BASE]}.{file}")


@contextmanager
def locked(file, how):
    with path_of(file).open("w") as opened:
        fcntl.flock(opened, how)
        yield


@contextmanager
def place_to_run(*, alone):
    """Whoever waits keeps those from starting who come later, so that it need not wait for all of them."""
    with ExitStack() as stack:
        with locked(TURN, fcntl.LOCK_EX):
            stack.enter_context(locked(RUNNING, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


def is_alone(item):
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=is_alone, reverse=True)  # so that nobody waits for others again and again


kept = []  # the place of a test that ran alone, for the next one of its kind


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    with ExitStack() as place:
        if kept:
            place.push(kept.pop())
        else:
            place.enter_context(place_to_run(alone=is_alone(item)))
        result = yield
        if is_alone(item) and is_alone(nextitem):
            kept.append(place.pop_all())
        return result


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    if WORKER not in os.environ:
        for file in (TURN, RUNNING):
            path_of(file).unlink(missing_ok=True)
