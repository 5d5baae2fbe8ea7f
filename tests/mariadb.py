"""A MariaDB of the tests' own, where the server is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pymysql
import pytest

USER = "mysql"  # what the server runs as where the tests run as root, which it refuses
PATIENCE = 60  # seconds


# Django asks for mysqlclient, which has to be compiled. This one does what the tests ask of it, under its name.
pymysql.install_as_MySQLdb()


def missing():
    """What has to be installed to test it."""
    return "" if shutil.which("mariadbd") else "apt install mariadb-server"


def listens(address):
    """Whether a server takes connections there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


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
    data, address = f"--datadir={base / 'data'}", base / "socket"
    install = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", *as_user]
    subprocess.run(install, check=True, capture_output=True)
    options = ["--skip-networking", f"--socket={address}", f"--pid-file={base / 'pid'}", f"--log-error={base / 'log'}"]
    server = subprocess.Popen(["mariadbd", "--no-defaults", data, *options, *as_user])
    try:
        deadline = time.monotonic() + PATIENCE
        while not listens(address):
            assert server.poll() is None, (base / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        connection = pymysql.connect(unix_socket=str(address), user="root")
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE locks CHARACTER SET utf8mb4")
        yield {"ENGINE": "django.db.backends.mysql", "HOST": str(address), "USER": "root", "NAME": "locks"}
    finally:
        server.terminate()
        server.wait(PATIENCE)
        shutil.rmtree(base)
