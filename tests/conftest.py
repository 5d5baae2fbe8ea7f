"""Servers for the tests: started on first use, shared by the test processes, stopped at the end whatever happens."""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from django_cluster_lock import embedded
from tests.servers import KINDS, PREFIX_STEM, SERVERS, missing

BASE = "CLUSTER_LOCK_TEST_SERVERS"
WORKER = "PYTEST_XDIST_WORKER"


def pytest_configure(config):
    if WORKER not in os.environ:
        os.environ[BASE] = tempfile.mkdtemp(prefix="cluster-lock-tests-")  # the workers inherit it


def pytest_unconfigure(config):
    if WORKER not in os.environ and (base := os.environ.pop(BASE, None)):
        for directory in Path(base).iterdir():
            embedded.down(directory)
        shutil.rmtree(base)


def pytest_terminal_summary(terminalreporter):
    for name, install in missing().items():
        terminalreporter.write_line(f"server not tested: {name} ({install})", yellow=True)


@pytest.fixture(scope="session")
def start_server():
    """Start a server of the table, or give the one that runs: ``start_server(kind)``."""
    started = {}

    def start(kind):
        if kind.name not in started:
            started[kind.name] = kind.start(Path(os.environ[BASE]))
        return started[kind.name]

    yield start
    for server in started.values():
        server.close()


@pytest.fixture(scope="session", params=SERVERS.values())
def server(request, start_server):
    """Every server of the table in turn."""
    return start_server(request.param)


@pytest.fixture(scope="session")
def cluster(start_server):
    """The Valkey cluster, for tests to which the kind of server is all one."""
    return start_server(KINDS["valkey-cluster"])


@pytest.fixture
def own_cluster(tmp_path):
    """A Valkey cluster of the test's own, which it may damage."""
    server = KINDS["valkey-cluster"].start(tmp_path)
    yield server
    server.close()
    embedded.down(server.embedded.directory)


numbers = itertools.count()


@pytest.fixture
def prefix():
    """A KEY_PREFIX that no other test of the session has."""
    return f"{PREFIX_STEM}-{os.environ.get(WORKER, 'main')}-{next(numbers)}"
