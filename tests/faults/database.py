"""The database of the register: a PostgreSQL server of the run's own where there can be one, else an SQLite file."""

import subprocess
from contextlib import contextmanager

from django.db import connections

from tests import postgres
from tests.faults.history import Commit

NAME = "faults"


@contextmanager
def database(folder):
    """Its settings, for as long as it runs."""
    base = folder / "postgres"
    try:
        settings = _postgres(base) if postgres.binaries() else None
    except (OSError, subprocess.CalledProcessError):
        settings = None  # root without the right to become another user, in a namespace of a user's own
    try:
        yield settings or _sqlite(folder)
    finally:
        if settings:
            postgres.run("pg_ctl", "stop", "--pgdata", base / "data", "--mode", "immediate")


def _postgres(base):
    import psycopg

    base.parent.chmod(0o711)  # the server's user has to come through
    postgres.start(base)
    address = {"HOST": str(base), "USER": postgres.USER}
    with psycopg.connect(host=str(base), user=postgres.USER, dbname=postgres.USER, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {NAME}")
    return {"ENGINE": "django.db.backends.postgresql", "NAME": NAME, **address}


def _sqlite(folder):
    settings = postgres.sqlite(folder, "register.sqlite3")
    options = {**settings["OPTIONS"], "transaction_mode": "IMMEDIATE"}
    return {**settings, "NAME": str(settings["NAME"]), "OPTIONS": options}


def commits():
    """The journal. Its order is that of the commits on each lock, since a transaction has its row before its number."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT contestant, lock, read, fence, at FROM journal ORDER BY id")
        return [Commit(*row) for row in cursor.fetchall()]
