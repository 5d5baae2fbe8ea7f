"""RabbitMQ, with classic and with quorum queues: it keeps delays itself for the latter, and redelivers at once."""

import os
import signal
import time

import pytest
from kombu import pools
from kombu.exceptions import OperationalError

from tests.celery.workload import LATE, PATIENCE, TASKS, app, brief, join, late
from tests.records import until
from tests.workers import Flights, Hosts

pytestmark = pytest.mark.slow

QUEUES = {
    "classic": {"task_queue_max_priority": 10},
    "quorum": {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"},
}
AGAIN = TASKS["flight", "rerun"], TASKS["flight", "wait"]


def forget_connections():
    """Has the app read its settings of the broker again."""
    pools.reset()
    app._pool = None
    vars(app).pop("amqp", None)


def apart(setup):
    """With locks of their own, since a sweep publishes what it finds by its own broker."""
    return setup | {"locks": setup["locks"] | {"default": setup["locks"]["default"] | {"KEY_PREFIX": prefix_of(setup)}}}


def prefix_of(setup):
    return f"{setup['prefix']}-rabbitmq"


@pytest.fixture
def flights(settings, setup, cluster):
    settings.CLUSTER_LOCKS = apart(setup)["locks"]
    return Flights(setup | {"prefix": prefix_of(setup)}, cluster)


@pytest.fixture(scope="module", params=list(QUEUES))
def workers(request, rabbitmq, setup):
    """Two of them on a queue of that kind, where this process sends its calls as well."""
    conf = {"task_default_queue": request.param, "broker_transport_options": {"confirm_publish": True}}
    conf |= QUEUES[request.param]
    before = {name: app.conf[name] for name in ("broker_url", *conf)}
    app.conf.update(broker_url=rabbitmq.url, **conf)
    forget_connections()
    hosts = Hosts(apart(setup) | {"broker": rabbitmq.url, "backend": setup["broker"], "conf": conf}, request.param)
    yield hosts
    for worker in hosts.workers:
        worker.stop()
    app.conf.update(before)
    forget_connections()


@pytest.fixture(autouse=True)
def hosts(workers):
    workers.both()
    return workers


def fly(flights, task, *, count=1, **kwargs):
    """A run that waits for its gate."""
    first = task.apply_async((flights.key,), {"gated": True, **kwargs})
    flights.until("start", count)
    return first


def awaited(flights, task, *args, **options):
    """A duplicate that a worker has parked: it was sent without a look at its key."""
    count = len(flights.events("parked"))
    options |= {"task_id": f"{count}-{flights.key}"}
    result = app.send_task(task.name, (flights.key, *args), **options)
    flights.until("parked", count + 1)
    return result


def kill(flights):
    os.kill(flights.until("start")["pid"], signal.SIGKILL)


def assert_alone(flights, ids):
    """These ran, one after another."""
    runs = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert runs == ["start", "end"] * len(ids)
    assert [event["id"] for event in flights.events()] == ids


def test_one_call_joins_and_another_is_settled(flights):
    first = fly(flights, join)
    joined, settled = join.delay(flights.key), awaited(flights, join)
    flights.open()
    assert joined.id == first.id
    assert settled.get(PATIENCE) == first.get(PATIENCE)
    assert [event["id"] for event in flights.events("settled")] == [settled.id]
    flights.until_free(join)
    assert_alone(flights, [first.id])


@pytest.mark.parametrize("task", AGAIN, ids=["rerun", "wait"])
def test_what_was_parked_at_its_call_runs_afterwards(flights, task):
    first = fly(flights, task, how="last_value", value=1)
    behind = [task.delay(flights.key, "last_value", value=value) for value in (2, 3)]
    flights.open()
    values = [3] if task is AGAIN[0] else [2, 3]
    assert behind[-1].get(PATIENCE) == 3
    flights.until_free(task)
    assert [event["value"] for event in flights.events()] == [1, *values]
    assert_alone(flights, [first.id, *dict.fromkeys(result.id for result in behind)])


@pytest.mark.parametrize("how", ["retry", "retry_in_a_while"])
def test_a_retry_keeps_its_key(flights, how):
    first = fly(flights, join, how=how)
    settled = awaited(flights, join)
    flights.open()
    assert settled.get(PATIENCE) == first.get(PATIENCE)
    flights.until_free(join)
    assert_alone(flights, [first.id] * 2)


@pytest.mark.parametrize("task", [join, late], ids=["early", "late"])
def test_the_first_that_is_parked_takes_over_from_a_dead_child(flights, task):
    first = fly(flights, task)
    second, third = awaited(flights, task), awaited(flights, task)
    kill(flights)
    assert flights.until("recovered")["id"] == first.id  # by its worker, not by a sweep
    flights.open()
    assert second.get(PATIENCE) == third.get(PATIENCE)
    flights.until_free(task)
    assert len(flights.events()) == 2


@pytest.mark.parametrize("on_duplicate", LATE)
def test_a_message_that_comes_again_takes_over_its_own_key(flights, on_duplicate):
    task = LATE[on_duplicate]
    first = fly(flights, task, how="last_value", value=1)
    second = awaited(flights, task, "last_value", kwargs={"value": 2})
    kill(flights)
    flights.until("start", 2)
    flights.open()
    assert first.get(PATIENCE) == 1
    assert second.get(PATIENCE) == (1 if on_duplicate == "join" else 2)
    flights.until_free(task)
    assert [event["id"] for event in flights.events()][:2] == [first.id] * 2


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_a_copy_of_what_runs_is_parked_and_dropped(flights, rabbitmq, how):
    first = fly(flights, late, how=how)
    rabbitmq.control("close_all_connections", "test")
    flights.until("parked")
    flights.open()
    first.get(PATIENCE, propagate=False)
    flights.until_free(late)
    until(lambda: not flights.record(late).client.exists(*flights.outbox(late)))
    later = late.delay(flights.key)  # which comes after whatever was published
    later.get(PATIENCE)
    flights.until_free(late)
    assert_alone(flights, [first.id, later.id])
    assert not flights.events("settled")


def test_a_copy_takes_over_from_a_child_that_dies_after_its_connection_was_lost(flights, rabbitmq):
    first = fly(flights, late)
    rabbitmq.control("close_all_connections", "test")
    flights.until("parked")
    kill(flights)
    assert flights.until("start", 2)["id"] == first.id
    flights.open()
    flights.until("end")
    flights.until_free(late)


def test_a_copy_takes_over_from_a_dead_worker(flights, hosts):
    task = LATE["join"]
    first = fly(flights, task)
    hosts.of(flights.until("start")).kill()
    flights.until("parked")  # delivered again at once, while the lease lasts
    flights.until("start", 2)
    flights.open()
    assert first.get(PATIENCE).startswith(flights.key)
    flights.until_free(task)
    assert {event["id"] for event in flights.events()} == {first.id}


def test_a_call_for_later_keeps_its_key_until_then(flights):
    called = time.monotonic()
    first = brief.apply_async((flights.key,), countdown=2)  # its claim lasts 0.3 s longer
    assert brief.delay(flights.key).id == first.id
    until(lambda: time.monotonic() > called + 1)
    assert brief.delay(flights.key).id == first.id
    flights.until("start")
    assert time.monotonic() > called + 1.9
    assert first.get(PATIENCE)
    flights.until_free(brief)
    assert_alone(flights, [first.id])


@pytest.mark.parametrize("task", AGAIN, ids=["rerun", "wait"])
def test_what_was_parked_for_later_is_in_time(flights, task):
    """Its delay counts from the call, not from when it is published."""
    fly(flights, task)
    due = time.monotonic() + 6
    behind = task.apply_async((flights.key,), countdown=6)
    until(lambda: time.monotonic() > due - 0.5)
    flights.open()
    flights.until("start", 2)
    assert due - 0.1 < time.monotonic() < due + 4
    assert behind.get(PATIENCE)
    flights.until_free(task)


@pytest.mark.parametrize("task", [join, AGAIN[1]], ids=["join", "wait"])
def test_what_was_delayed_and_parked_comes_without_delay(flights, task):
    fly(flights, task)
    second = awaited(flights, task, "retry_in_a_while", countdown=3)
    opened = time.monotonic()
    flights.open()
    if task is join:
        assert second.get(PATIENCE)
    else:
        flights.until("start", 2)
    assert time.monotonic() < opened + 2
    assert second.get(PATIENCE)
    flights.until_free(task)


def test_a_message_that_cannot_be_started_comes_again(flights):
    sent = app.send_task("cut_off", (flights.key,))
    flights.until("arrived", 4)
    assert join.delay(flights.key).get(PATIENCE)  # meanwhile the workers go on
    app.control.revoke(sent.id)


def test_a_parked_message_keeps_what_it_says(flights):
    task = AGAIN[1]
    fly(flights, task)
    second = awaited(flights, task, "message", countdown=1, priority=5, headers={"mine": 1})
    flights.open()
    told = second.get(PATIENCE)
    assert told["priority"] == 5
    assert {"mine"} <= set(told["headers"])
    assert not [name for name in told["headers"] if "death" in name]


def test_the_key_is_free_before_the_caller_hears_that_nothing_was_published(flights, rabbitmq, hosts):
    assert join.delay(flights.key).get(PATIENCE)
    flights.until_free(join)
    rabbitmq.control("stop_app")
    try:
        with pytest.raises(OperationalError):
            join.delay(flights.key)
        assert flights.free(join)
    finally:
        rabbitmq.control("start_app")
    assert join.delay(flights.key).get(2 * PATIENCE)  # its workers ask for it seldomer and seldomer


def test_what_is_parked_goes_to_a_queue_that_nobody_has_made_yet(flights):
    """RabbitMQ drops what is for a queue that it does not know."""
    task, queue = AGAIN[1], f"made-later-{flights.key}"
    fly(flights, task)
    parked = task.apply_async((flights.key,), queue=queue)
    flights.open()
    until(lambda: flights.record(task).fields().get("k") == parked.id and not flights.parked(task))
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get(queue, no_ack=True)
    assert message.headers["id"] == parked.id


@pytest.mark.parametrize("task", [join, AGAIN[1]], ids=["join", "wait"])
def test_a_run_that_ends_without_a_broker_leaves_what_is_parked_to_the_sweep(flights, rabbitmq, task):
    first = task.delay(flights.key, "call_another")
    flights.until("called")
    parked = awaited(flights, task)
    rabbitmq.control("stop_app")
    try:
        flights.open()
        until(lambda: first.id in [event["id"] for event in flights.events("left")])  # its child is not kept
    finally:
        rabbitmq.control("start_app")
    assert parked.get(2 * PATIENCE).startswith(flights.key)
    flights.until_free(task)
