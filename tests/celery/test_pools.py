"""The other pools: threads, greenlets, and the worker's only process itself."""

import signal
import subprocess
import time

import pytest

from django_cluster_lock import LockLost
from tests.celery.workload import LATE, PATIENCE, TASKS, app, interrupted, join
from tests.records import until
from tests.workers import LEASE, Hosts, redeliver


@pytest.fixture(scope="module", params=["threads", "solo", "gevent"])
def workers(request, setup):
    """Two of them, as one of `solo` does nothing else while it runs a task."""
    hosts = Hosts(setup, request.param, request.param)
    yield hosts
    for worker in hosts.workers:
        worker.stop()


@pytest.fixture
def hosts(workers):
    workers.both()
    return workers


@pytest.fixture
def call(flights, hosts):
    """Calls a task for the test's key; one with a number under an id of its own."""

    def call(task, how="succeed", number=None, **kwargs):
        arguments = {"args": (flights.key, how), "kwargs": kwargs, "queue": hosts.queue}
        if number:  # without a look at its key
            return app.send_task(task.name, task_id=f"{number}-{flights.key}", **arguments)
        return task.apply_async(**arguments)

    return call


def awaited(flights, call, task, number, *args, **kwargs):
    """A duplicate that a worker has parked."""
    result = call(task, *args, number=number, **kwargs)
    flights.until("parked", number)
    return result


def test_one_run_and_its_retry(flights, call):
    first = call(join, "retry", gated=True)
    flights.until("start")
    settled = awaited(flights, call, join, 1)
    flights.open()
    assert first.get(PATIENCE) == settled.get(PATIENCE)
    assert [(event["id"], event["retries"]) for event in flights.events("start")] == [(first.id, 0), (first.id, 1)]
    flights.until_free(join)


def test_duplicates_join_or_are_parked_and_settled_though_the_lease_is_shorter(flights, call):
    first = call(join, gated=True)
    flights.until("start")
    token = until(flights.record(join).holder)
    started = time.monotonic()
    parked = [awaited(flights, call, join, number) for number in (1, 2)]
    until(lambda: time.monotonic() > started + LEASE + 0.5)
    assert call(join).id == first.id
    assert flights.record(join).holder() == token
    flights.open()
    assert {result.get(PATIENCE) for result in parked} == {first.get(PATIENCE)}
    assert {event["id"] for event in flights.events("settled")} == {result.id for result in parked}
    flights.until_free(join)
    assert len(flights.events("start")) == 1


@pytest.mark.parametrize("on_duplicate", ["rerun", "wait"])
def test_those_behind_it_run_in_order(flights, call, on_duplicate):
    task = TASKS["flight", on_duplicate]
    call(task, "last_value", gated=True, value=1)
    flights.until("start")
    at_its_call = [call(task, "last_value", value=value) for value in (2, 3)]
    in_a_worker = awaited(flights, call, task, 1, "last_value", value=4)
    flights.open()
    assert at_its_call[-1].get(PATIENCE) == (4 if on_duplicate == "rerun" else 3)
    if on_duplicate == "wait":
        assert in_a_worker.get(PATIENCE) == 4
    flights.until_free(task)
    values = [1, 4] if on_duplicate == "rerun" else [1, 2, 3, 4]
    assert [event["value"] for event in flights.events("start")] == values
    assert_alone(flights)


def assert_alone(flights):
    """No run began before the one before it ended."""
    runs = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert runs == ["start", "end"] * (len(runs) // 2)


def lose(flights, task, result):
    flights.until("start")
    record = flights.record(task)
    until(lambda: record.fields().get("k") == result.id)
    record.client.delete(record.key)


@pytest.mark.parametrize("how", ["lose", "lose_and_query"])
def test_a_lost_lease_aborts_the_run(flights, call, how):
    result = call(join, how)
    lose(flights, join, result)
    with pytest.raises(LockLost):
        result.get(PATIENCE)
    assert flights.events("lost")
    assert not flights.events("queried")


def test_a_lost_lease_interrupts_a_run_that_has_the_main_thread(flights, call, hosts):
    endless = {"gated": True} if hosts.pool == "solo" else {"how": "lose"}  # elsewhere it is aborted at its end
    result = call(interrupted, **endless)
    lose(flights, interrupted, result)
    with pytest.raises(LockLost):
        result.get(PATIENCE)


def test_warm_shutdown_is_a_success(flights, call, hosts):
    first = call(join, gated=True)
    worker = hosts.of(flights.until("start"))
    second = awaited(flights, call, join, 1)
    worker.process.send_signal(signal.SIGTERM)
    flights.open()
    assert first.get(PATIENCE) == second.get(PATIENCE)
    assert worker.process.wait(PATIENCE) == 0
    flights.until_free(join)
    assert len(flights.events("start")) == 1


def test_an_abrupt_end_leaves_the_key_to_what_is_parked(flights, call, hosts):
    task = LATE["join"]
    call(task, gated=True)
    worker = hosts.of(flights.until("start"))
    parked = awaited(flights, call, task, 1)
    # Cold, Celery tries to cancel what runs in solo as if that were a child, and may let greenlets run on.
    worker.process.send_signal(signal.SIGQUIT if hosts.pool == "threads" else signal.SIGKILL)
    if hosts.pool != "threads":  # a process ends no sooner than its threads
        flights.until("start", 2)
    flights.open()
    assert parked.get(PATIENCE).startswith(flights.key)
    until_ended(worker)
    redeliver()
    runs = 1 if hosts.pool == "threads" else 3  # at last that of the killed one's task, whose message comes again
    flights.until("start", runs)
    flights.until_free(task)
    assert len(flights.events("start")) == runs


def until_ended(worker):
    """Waits for a worker that was told to end, and tells it again if it goes on.

    No thread can be cancelled: Celery's handler of the signal raises NotImplementedError in the main thread, whatever
    that does. The event loop ends by it; but while the loop calls a timer or a reader, the call's own `except` or the
    loop's takes the exception, and the signal is lost. With no run left to cancel, the next one is not.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            worker.process.wait(5)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, worker.log.read_text()
            worker.process.send_signal(signal.SIGQUIT)
        else:
            break
