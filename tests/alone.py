"""Tests that keep every core busy wait for each other, also in other processes: else what they time says nothing."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

BASE = "CLUSTER_LOCK_TEST_SERVERS"


def lock_file():
    return Path(f"{os.environ[BASE]}.busy")


@contextmanager
def alone():
    with lock_file().open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
