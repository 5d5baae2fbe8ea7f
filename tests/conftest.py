"""Servers for the tests: started on first use, shared by the test processes, stopped at the end whatever happens."""

import itertools
import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest

from django_cluster_lock import embedded
from tests.servers import BASE, KINDS, PREFIX_STEM, SERVERS, WORKER, missing

pytest_plugins = ["tests.alone", "tests.postgres", "tests.mariadb", "tests.rabbitmq", "tests.workers"]


def let_children_be_interrupted():
    """Have what the tests start take SIGINT, though a shell had the tests ignore it, as it does with ``&``.

    A program inherits what is ignored, and not a handler. The tests themselves go on as before.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


def pytest_configure(config):
    let_children_be_interrupted()
    if WORKER not in os.environ:
        # The workers inherit it; the first server creates it.
        os.environ[BASE] = str(Path(tempfile.gettempdir(), f"cluster-lock-tests-{uuid.uuid4().hex}"))


def pytest_unconfigure(config):
    if WORKER in os.environ:
        return
    if (base := Path(os.environ.pop(BASE))).exists():
        for directory in base.iterdir():
            embedded.down(directory)
        base.rmdir()


def pytest_terminal_summary(terminalreporter):
    if absent := ", ".join(f"{name} ({install})" for name, install in missing().items()):
        terminalreporter.write_line(f"servers not tested: {absent}", yellow=True)


@pytest.fixture(scope="session")
def start_server():
    """Start a server of the table, or give the one that runs: ``start_server(kind)``."""
    started = {}

    def start(kind):
        if kind.name not in started:
            started[kind.name] = kind.start(Path(os.environ[BASE]))
            started[kind.name].forbear()
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


@pytest.fixture
def without_fences(settings):
    """A project without the app of fences, where locks have nothing to do with a database."""
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_cluster_lock.fences"]


numbers = itertools.count()


@pytest.fixture
def prefix():
    """A KEY_PREFIX that no other test of the session has."""
    return f"{PREFIX_STEM}-{os.environ.get(WORKER, 'main')}-{next(numbers)}"
