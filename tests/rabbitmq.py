"""A RabbitMQ of the tests' own, where the server is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.records import until

PATIENCE = 180  # seconds
# Debian's wrappers on PATH change to the user and the folders of its service; these do not.
FOLDERS = "/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/homebrew/sbin"


def program(name):
    """Where it is, or None."""
    return shutil.which(name, path=os.pathsep.join(FOLDERS))


def missing():
    """What has to be installed to test it."""
    return "" if program("rabbitmq-server") and shutil.which("epmd") else "apt install rabbitmq-server"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "rabbitmq" not in item.fixturenames)  # first, so that one process has them all


def pytest_terminal_summary(terminalreporter):
    if hint := missing():
        terminalreporter.write_line(f"brokers not tested: RabbitMQ ({hint})", yellow=True)


class RabbitMQ:
    """A running server."""

    def __init__(self, base, node, port, epmd_port, distribution_port):
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self.environment = os.environ | {
            "HOME": str(base),  # for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq"),
            "RABBITMQ_CONFIG_FILES": str(base / "conf.d"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "config"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_SCHEMA_DIR": str(base / "schema"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def control(self, *arguments):
        """What `rabbitmqctl` does."""
        command = [program("rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def free_ports(count):
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in bound]


@contextmanager
def running():
    """A server, as long as the block runs."""
    base = Path(tempfile.mkdtemp(prefix="locks-rabbitmq-"))
    ports = free_ports(3)
    server = RabbitMQ(base, f"locks-{ports[0]}@localhost", *ports)
    with (base / "out").open("w") as out:
        processes = [
            subprocess.Popen([command], cwd=base, env=server.environment, stdout=out, stderr=subprocess.STDOUT)
            for command in ("epmd", program("rabbitmq-server"))
        ]
    try:
        until(lambda: listens(ports[0]) or processes[-1].poll() is not None, PATIENCE)
        assert processes[-1].poll() is None, (base / "out").read_text()
        yield server
    finally:
        for process in reversed(processes):  # the server tells epmd that it leaves
            process.terminate()
            process.wait(PATIENCE)
        shutil.rmtree(base)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def rabbitmq():
    """A server for this test process alone."""
    if hint := missing():
        pytest.skip(hint)
    with running() as server:
        yield server
