"""Workers that are told to stop, with a run under way and messages parked behind it."""

import signal

import pytest

from tests.celery.workload import LATE, PATIENCE, join
from tests.workers import Worker

pytestmark = pytest.mark.slow


def fly(flights, hosts, task):
    """A run, the worker that has it, and a duplicate that is parked."""
    first = task.apply_async((flights.key,), {"gated": True}, queue=hosts.queue)
    worker = hosts.of(flights.until("start"))
    second = task.apply_async((flights.key,), task_id=f"second-{flights.key}", queue=hosts.queue)
    flights.until("parked")
    return first, second, worker


def test_warm_is_a_success(flights, hosts):
    first, second, worker = fly(flights, hosts, join)
    worker.process.send_signal(signal.SIGTERM)
    flights.open()
    assert first.get(PATIENCE) == second.get(PATIENCE)
    assert worker.process.wait(PATIENCE) == 0
    flights.until_free(join)
    assert len(flights.events("start")) == 1


def test_cold_leaves_the_key_to_what_is_parked(flights, hosts):
    first, second, worker = fly(flights, hosts, join)
    worker.process.send_signal(signal.SIGQUIT)
    flights.until("start", 2)
    flights.open()
    assert second.get(PATIENCE).startswith(flights.key)
    worker.process.wait(PATIENCE)
    flights.until_free(join)
    assert [event["id"] for event in flights.events("start")] == [first.id, second.id]


def test_cold_runs_what_comes_again(flights, hosts):
    first, second, worker = fly(flights, hosts, LATE["join"])
    worker.process.send_signal(signal.SIGQUIT)
    flights.until("start", 2)
    flights.open()
    assert {first.get(PATIENCE)[:12], second.get(PATIENCE)[:12]} == {flights.key}
    worker.process.wait(PATIENCE)
    flights.until_free(LATE["join"])
    whats = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert whats == ["start", "end"] * (len(whats) // 2)


def test_soft_waits_and_then_is_cold(flights, hosts, setup):
    conf = {"worker_soft_shutdown_timeout": 1.0}
    worker = Worker(setup, "prefork", flights.key, concurrency=2, conf=conf, locks=hosts.locks).ready()
    task = LATE["join"]
    try:
        quick = task.apply_async((f"{flights.key}-quick",), {"gated": True}, queue=flights.key)
        slow = task.apply_async((f"{flights.key}-slow",), {"gated": True}, queue=flights.key)
        for name in ("quick", "slow"):
            flights.until("start", key=f"{flights.key}-{name}")
        worker.process.send_signal(signal.SIGQUIT)
        flights.open(f"{flights.key}-quick")
        assert quick.get(PATIENCE)
        worker.process.wait(PATIENCE)
        flights.open(f"{flights.key}-slow")
    finally:
        worker.stop()
    worker = Worker(setup, "prefork", flights.key, concurrency=2, locks=hosts.locks).ready()
    try:
        assert slow.get(PATIENCE)
    finally:
        worker.stop()
    for name, runs in (("quick", 1), ("slow", 2)):
        flights.until_free(task, f"{flights.key}-{name}")
        assert len(flights.events("start", f"{flights.key}-{name}")) == runs


def test_a_child_for_each_task(flights, setup):
    conf = {"worker_max_tasks_per_child": 1}
    worker = Worker(setup, "prefork", flights.key, concurrency=2, conf=conf).ready()
    try:
        first = join.apply_async((flights.key,), {"gated": True}, queue=flights.key)
        flights.until("start")
        second = join.apply_async((flights.key,), task_id=f"second-{flights.key}", queue=flights.key)
        flights.until("parked")
        flights.open()
        assert first.get(PATIENCE) == second.get(PATIENCE)
        flights.until_free(join)
    finally:
        worker.stop()
    assert not flights.events("recovered")
