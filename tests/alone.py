"""Tests that keep every core busy, marked ``alone``, run while no other test does: else what they time says nothing.

They wait for what other test processes are at, and nothing else begins meanwhile.
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    with place_to_run(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    if WORKER not in os.environ:
        for file in (TURN, RUNNING):
            path_of(file).unlink(missing_ok=True)
