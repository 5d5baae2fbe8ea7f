"""A MariaDB of the tests' own, where the server and its client for Python are installed."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

WORKER = "PYTEST_XDIST_WORKER"
USER = "mysql"  # what the server runs as where the tests run as root, which it refuses
PATIENCE = 60  # seconds


def missing():
    """What has to be installed to test it."""
    if not shutil.which("mariadbd"):
        return "apt install mariadb-server"
    return "" if importlib.util.find_spec("MySQLdb") else "pip install mysqlclient"


def pytest_terminal_summary(terminalreporter):
    if hint := missing():
        terminalreporter.write_line(f"databases not tested: MariaDB ({hint})", yellow=True)


@pytest.fixture(scope="session")
def mariadb():
    """The settings of a database on it, on a server for this test process alone."""
    if hint := missing():
        pytest.skip(hint)
    base = Path(tempfile.mkdtemp(prefix="locks-mariadb-"))
    as_user = [f"--user={USER}"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(base, USER)
    data, socket = f"--datadir={base / 'data'}", base / "socket"
    install = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", *as_user]
    subprocess.run(install, check=True, capture_output=True)
    options = ["--skip-networking", f"--socket={socket}", f"--pid-file={base / 'pid'}", f"--log-error={base / 'log'}"]
    server = subprocess.Popen(["mariadbd", "--no-defaults", data, *options, *as_user])
    try:
        import MySQLdb

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                connection = MySQLdb.connect(unix_socket=str(socket), user="root")
                break
            except MySQLdb.OperationalError:
                assert server.poll() is None, (base / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        connection.query("CREATE DATABASE locks CHARACTER SET utf8mb4")
        connection.close()
        yield {"ENGINE": "django.db.backends.mysql", "HOST": str(socket), "USER": "root", "NAME": "locks"}
    finally:
        server.terminate()
        server.wait(PATIENCE)
        shutil.rmtree(base)
