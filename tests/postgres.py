"""Databases that two requests can use at once: a PostgreSQL of the tests' own or, without one, SQLite files."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.apps import apps
from django.db import connections

from tests.servers import WORKER

BASE = "CLUSTER_LOCK_TEST_POSTGRES"
USER = "postgres"  # what the server runs as where the tests run as root, which it refuses


def binaries():
    """The folder with the newest server's programs, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    path = found[-1] if found else shutil.which("pg_ctl")
    return Path(path).parent if path else None


def pytest_configure():
    if WORKER not in os.environ:
        # The workers inherit it; the first to need the server creates it.
        os.environ[BASE] = str(Path(tempfile.gettempdir(), f"locks-pg-{uuid.uuid4().hex[:8]}"))


def pytest_unconfigure():
    if WORKER not in os.environ and (base := Path(os.environ.pop(BASE))).exists():
        run("pg_ctl", "stop", "--pgdata", base / "data", "--mode", "immediate")
        shutil.rmtree(base)


def pytest_terminal_summary(terminalreporter):
    if not binaries():
        terminalreporter.write_line("databases not tested: PostgreSQL (apt install postgresql)", yellow=True)


def run(program, *arguments):
    as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
    subprocess.run([*as_user, binaries() / program, *arguments], check=True, capture_output=True, cwd="/")


def start(base):
    """Start the server, unless another test process has."""
    base.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(base, USER)
    with Path(base, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Path(base, "data", "postmaster.pid").exists():
            return
        run("initdb", "--pgdata", base / "data", "--username", USER, "--auth", "trust", "--no-sync")
        # On a Unix socket alone, and with no care for a crash of the machine.
        options = f"-c listen_addresses= -c unix_socket_directories={base} -c fsync=off"
        run("pg_ctl", "start", "--wait", "--pgdata", base / "data", "--log", base / "log", "--options", options)


def postgres(name):
    """The settings of a new database on it."""
    import psycopg

    base = os.environ[BASE]
    start(Path(base))
    with psycopg.connect(host=base, user=USER, dbname=USER, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return {"ENGINE": "django.db.backends.postgresql", "HOST": base, "USER": USER, "NAME": name}


def sqlite(directory, name):
    """The settings of a new file in which one can read what was committed while another writes."""
    options = {"init_command": "PRAGMA journal_mode=WAL", "timeout": 30}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(directory, name), "OPTIONS": options}


@pytest.fixture(scope="session")
def database_settings(tmp_path_factory):
    """The settings of two databases for this test process, by alias."""
    names = {alias: f"{alias}_{os.environ.get(WORKER, 'main')}" for alias in ("default", "other")}
    if binaries():
        return {alias: postgres(name) for alias, name in names.items()}
    return {alias: sqlite(tmp_path_factory.mktemp("databases"), name) for alias, name in names.items()}


@contextmanager
def in_place(settings, blocker):
    """Puts databases, by alias, in the place of those of the settings, each with an empty table of fences."""
    before, wrappers = dict(connections.settings), {alias: connections[alias] for alias in connections}
    for alias in before:
        del connections[alias]
    connections.settings.update(connections.configure_settings(settings))
    with blocker.unblock():
        for alias in settings:
            with connections[alias].cursor() as cursor:
                cursor.execute("DROP TABLE IF EXISTS cluster_lock_fence")
            with connections[alias].schema_editor() as editor:
                editor.create_model(apps.get_model("cluster_lock_fences", "Fence"))
        yield connections
        connections.close_all()
    for alias in settings:
        del connections[alias]
    connections.settings.clear()
    connections.settings.update(before)
    for alias, wrapper in wrappers.items():  # the test database of other tests may live in them
        connections[alias] = wrapper


@pytest.fixture
def databases(database_settings, django_db_blocker):
    """Two databases, `default` and `other`, with ATOMIC_REQUESTS and a table ``stock`` of ten units each."""
    settings = {alias: {**each, "ATOMIC_REQUESTS": True} for alias, each in database_settings.items()}
    with in_place(settings, django_db_blocker):
        for alias in settings:
            with connections[alias].cursor() as cursor:
                cursor.execute("DROP TABLE IF EXISTS stock")
                cursor.execute("CREATE TABLE stock (units integer)")
                cursor.execute("INSERT INTO stock VALUES (10)")
        yield connections
