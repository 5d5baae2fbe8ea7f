"""What the clients do with their locks: each workload is a loop of one thread on one shard's locks."""

import time
from contextlib import ExitStack, suppress

from django.db import connections, transaction

from django_cluster_lock import LockError

LOOK = 0.05  # seconds between two looks of a holder at its lease
LEASES = (2, 4, 8)
MANY = 12  # locks that one thread holds at once
REST = 0.02
JOURNAL = "INSERT INTO journal (contestant, lock, read, fence, at) VALUES (%s, %s, %s, %s, %s)"


def exclusive(client, locks):
    """Holds locks, mostly for moments, sometimes until after they had to be renewed."""
    while client.works():
        kind = client.random.random()
        seconds = 0.01 * client.random.random() if kind < 0.9 else client.random.uniform(0.1, 1 if kind < 0.98 else 5)
        timeout, wait = client.random.choice(LEASES), client.random.choice((0, 0.5, 2))
        with client.held(client.random.choice(locks), timeout, wait) as lease:
            if lease:
                lease.hold(seconds)


def queue(client, locks):
    """Waits in a long queue, and holds the lock for a moment."""
    while client.works():
        with client.held(client.random.choice(locks), timeout=4, wait=10) as lease:
            if lease:
                lease.hold(0.01 * client.random.random())


def keep(client, locks):
    """Holds many locks at once, while each is renewed a few times."""
    while client.works():
        with ExitStack() as stack:
            leases = [
                stack.enter_context(client.held(lock, client.random.choice(LEASES), wait=0))
                for lock in client.random.sample(locks, MANY)
            ]
            end = time.monotonic() + client.random.uniform(5, 12)
            while time.monotonic() < end and client.works():
                time.sleep(4 * LOOK)
                for lease in filter(None, leases):
                    lease.look()


def register(client, locks):
    """Reads a number, does something slow, and writes the next number."""
    while client.works():
        lock = client.random.choice(locks)
        slow = client.random.uniform(0.01, 0.3) if client.random.random() < 0.35 else client.random.uniform(3, 8)
        if client.contestant.fenced and connections["default"].vendor == "sqlite":
            slow = min(slow, 0.1)  # one writer at a time in the whole file
        with client.held(lock, client.random.choice(LEASES[1:]), wait=2) as lease:
            if not lease:
                continue
            try:
                with lease.section():
                    (read,) = database("SELECT version FROM register WHERE lock = %s", client.row(lock))
                    lease.hold(slow)
                    with lease.writing():
                        key = client.row(lock)
                        database("UPDATE register SET version = %s WHERE lock = %s", read + 1, key)
                        database(JOURNAL, client.contestant.name, lock, read, lease.fence, time.monotonic())
            except LockError as error:
                client.log.write("refused", lease.number, type(error).__name__)


def database(statement, *values):
    with connections["default"].cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone() if statement.startswith("SELECT") else None


def create_tables(rows):
    """The tables of `register`, with a row for each lock of each contestant."""
    with transaction.atomic(), connections["default"].cursor() as cursor:
        serial = "SERIAL" if connections["default"].vendor == "postgresql" else "INTEGER"
        cursor.execute("CREATE TABLE register (lock VARCHAR(200) PRIMARY KEY, version INTEGER NOT NULL)")
        cursor.execute(
            f"CREATE TABLE journal (id {serial} PRIMARY KEY, contestant VARCHAR(50), lock VARCHAR(100),"
            " read INTEGER, fence BIGINT, at DOUBLE PRECISION)"
        )
        cursor.executemany("INSERT INTO register VALUES (%s, 0)", [(row,) for row in rows])


WORKLOADS = {workload.__name__: workload for workload in (exclusive, queue, keep, register)}


def forget_connection():
    with suppress(Exception):
        connections["default"].close()
