"""A shard that does not answer: the worker's parent process goes on, and the keys come free once it does."""

import os
import signal
import socket
import time
from contextlib import contextmanager

import pytest

from tests.celery.workload import PATIENCE, app, join, late
from tests.records import until
from tests.workers import LEASE, Flights, Worker

pytestmark = pytest.mark.slow


@pytest.fixture
def flights(setup, own_cluster, settings):
    """Locks on a cluster of the test's own. Asking the other one more than once at a time would take seconds."""
    locks = setup["locks"]["default"] | {"LOCATION": own_cluster.urls, "OPTIONS": {"socket_timeout": 0.3}}
    nowhere = setup["locks"]["nowhere"] | {"OPTIONS": {"socket_timeout": 5}}
    settings.CLUSTER_LOCKS = {"default": locks}
    return Flights(setup | {"locks": setup["locks"] | {"default": locks, "nowhere": nowhere}}, own_cluster)


@pytest.fixture
def worker(flights):
    worker = Worker(flights.setup, "prefork", flights.key, concurrency=2).ready()
    yield worker
    worker.stop()


@contextmanager
def without_shard(flights, port):
    """Its nodes stall."""
    nodes = flights.cluster.node(port).info("replication")
    ports = [port, *(value["port"] for value in nodes.values() if isinstance(value, dict))]
    for each in ports:
        os.kill(flights.cluster.embedded.pid(int(each)), signal.SIGSTOP)
    try:
        yield
    finally:
        for each in ports:
            os.kill(flights.cluster.embedded.pid(int(each)), signal.SIGCONT)


def port_of(flights, key):
    record = flights.record(join, key)
    return record.client.get_node_from_key(record.key).port


@pytest.mark.parametrize("outlast", [False, True], ids=["briefly", "longer than the lease"])
def test_deaths_and_revocations_while_their_shard_stalls(flights, worker, outlast):
    def call(key, **options):
        return join.apply_async((key,), {"gated": True}, queue=flights.key, **options)

    port = port_of(flights, flights.key)
    others = (f"{flights.key}-{number}" for number in range(100))
    dropped = next(key for key in others if port_of(flights, key) == port)
    call(flights.key)
    pid = flights.until("start")["pid"]
    behind = call(flights.key, task_id=f"behind-{flights.key}")
    flights.until("parked")
    queued = call(dropped, countdown=2)
    until(lambda: queued.id in worker.log.read_text())
    name = f"{flights.key}@{socket.gethostname()}"
    stopped = time.monotonic()
    with without_shard(flights, port):
        os.kill(pid, signal.SIGKILL)
        app.control.revoke(queued.id)
        until(lambda: f"Discarding revoked task: join[{queued.id}]" in worker.log.read_text())
        until(lambda: f"pid:{pid} exited" in worker.log.read_text())
        for _ in range(3):
            assert app.control.ping([name], timeout=10) == [{name: {"ok": "pong"}}]
        assert not flights.events("recovered")
        if outlast:  # the lease, and what Redis remembers of it
            until(lambda: time.monotonic() > stopped + LEASE + 3)
    flights.until("start", 2)
    flights.open()
    assert behind.get(PATIENCE).startswith(flights.key)
    flights.until_free(join)
    flights.until_free(join, dropped)


def test_a_cluster_that_is_gone_keeps_nothing_else_waiting(flights, worker):
    gone = app.send_task("cut_off", (flights.key,), queue=flights.key, countdown=1)
    until(lambda: gone.id in worker.log.read_text())
    app.control.revoke(gone.id)
    until(lambda: f"Discarding revoked task: cut_off[{gone.id}]" in worker.log.read_text())
    failed = until(lambda: (count := attempts(worker)) > 2 and count)
    for number in (1, 2):
        join.apply_async((flights.key,), {"gated": True}, queue=flights.key)
        os.kill(flights.until("start", number)["pid"], signal.SIGKILL)
        flights.until("recovered", number)
        assert flights.free(join)
    assert attempts(worker) < failed + 2  # it came before the next attempt at the other cluster, each time


def attempts(worker):
    return worker.log.read_text().count("flight.not_freed")


def test_a_message_that_can_neither_start_nor_be_sent_back_comes_again(flights, setup):
    """Its worker reads from the broker, but can write neither to that nor to the locks' cluster."""
    cut_off = {"broker_write_url": "redis://127.0.0.1:1", "task_publish_retry_policy": {"max_retries": 0}}
    locks = {"default": setup["locks"]["nowhere"]}
    first = Worker(
        flights.setup, "prefork", f"{flights.key}-cut-off", queue=flights.key, conf=cut_off, locks=locks
    ).ready()
    try:
        result = late.apply_async((flights.key,), queue=flights.key)
        until(lambda: first.log.read_text().count("flight.not_started") > 1)
    finally:
        first.stop()
    assert result.state in ("PENDING", "STARTED")
    second = Worker(flights.setup, "prefork", f"{flights.key}-again", queue=flights.key).ready()
    try:
        assert result.get(timeout=PATIENCE).startswith(flights.key)
    finally:
        second.stop()
