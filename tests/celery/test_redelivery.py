"""A broker that delivers a message again while it runs, or waits: Redis does so after the visibility timeout."""

import json
import os
import signal

import celery
import pytest
import redis

from django_cluster_lock import names
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.messages import Ticket
from django_cluster_lock.flights.policy import POLICY
from tests.celery.workload import LATE, NEVER_ACKED, NO_FAILURE_ACKED, NO_TIMEOUT_ACKED, PATIENCE, app, join, late
from tests.records import until
from tests.workers import redeliver

SINCE_5_7 = pytest.mark.skipif(celery.VERSION < (5, 7), reason="without `acks_on_failure`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefork")]


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_a_copy_of_what_runs_is_parked_and_dropped(flights, how):
    result = late.delay(flights.key, how, gated=True)
    flights.until("start")
    redeliver()
    flights.until("parked")
    flights.open()
    value = str(result.get(PATIENCE, propagate=False))
    flights.until_free(late)
    until(lambda: not flights.record(late).client.exists(*flights.outbox(late)))
    later = late.delay(flights.key)  # which comes after whatever was published
    later.get(PATIENCE)
    assert [event["id"] for event in flights.events("start")] == [result.id, later.id]
    assert not flights.events("settled")
    assert str(app.AsyncResult(result.id).get(propagate=False)) == value


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_a_copy_that_arrives_after_the_end_is_dropped(flights, setup, how):
    result = late.delay(flights.key, how, gated=True)
    flights.until("start")
    with redis.Redis.from_url(setup["broker"]) as broker:  # which did not get its worker's acknowledgement
        unacked, index = (f"{setup['prefix']}:celery:{name}" for name in ("unacked", "unacked_index"))
        (tag,) = unacknowledged(result)
        message, at = broker.hget(unacked, tag), broker.zscore(index, tag)
        flights.open()
        value = str(result.get(PATIENCE, propagate=False))
        flights.until_free(late)
        until(lambda: not unacknowledged(result))
        broker.hset(unacked, tag, message)
        broker.zadd(index, {tag: at})
    redeliver()
    flights.until("arrived", 2)
    flights.until("dropped")
    assert len(flights.events("start")) == 1
    assert str(app.AsyncResult(result.id).get(propagate=False)) == value


@pytest.fixture
def deliver(setup):
    """Delivers the message of a call as often as a test wants, as a copy or as itself: ``deliver(call, copy=...)``."""
    with redis.Redis.from_url(setup["broker"]) as broker:
        queues = {queue: f"{setup['prefix']}:celery:{queue}" for queue in ("celery", "nowhere")}
        messages = {}

        def deliver(call, *, copy):
            if call.id not in messages:
                messages[call.id] = broker.lpop(queues["nowhere"])
            message = json.loads(messages[call.id])
            message["properties"]["delivery_info"]["routing_key"] = "celery"
            if copy:  # as kombu marks it
                message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
            broker.lpush(queues["celery"], json.dumps(message))

        yield deliver


@pytest.mark.parametrize(
    ("task", "how"),
    [*((task, "succeed") for task in LATE.values()), (NO_TIMEOUT_ACKED, "fail")],
    ids=[*LATE, "failure-acked"],
)
def test_a_message_that_comes_after_its_copy_is_dropped(flights, deliver, task, how):
    """As of several with an `eta`, which wait in as many workers."""
    result = task.apply_async((flights.key, how), queue="nowhere")
    deliver(result, copy=True)
    result.get(PATIENCE, propagate=False)
    flights.until_free(task)
    for _ in range(2):
        deliver(result, copy=True)
        deliver(result, copy=False)
    until(lambda: len(flights.events("dropped")) == 4)
    assert [event["id"] for event in flights.events("start")] == [result.id]


@pytest.mark.parametrize(
    ("task", "how", "copy"),
    [
        (late, "succeed", False),
        (late, "fail", False),
        (late, "reject", False),
        (late, "reject", True),
        (NEVER_ACKED, "fail", True),
        pytest.param(NO_FAILURE_ACKED, "fail", True, marks=SINCE_5_7),
    ],
    ids=["success", "failure", "rejected", "copy-rejected", "copy-never-acked", "copy-failure-not-acked"],
)
def test_a_message_that_is_replayed_runs_again(flights, deliver, task, how, copy):
    """By hand, or from where the broker keeps dead letters; a copy that is dropped meanwhile makes no difference."""
    result = task.apply_async((flights.key, how), queue="nowhere")
    deliver(result, copy=copy)
    flights.until("left")
    flights.until_free(task)
    deliver(result, copy=True)
    flights.until("dropped")
    deliver(result, copy=False)
    flights.until("start", 2)


def test_a_replayed_message_that_has_to_wait_counts_as_a_copy(flights, deliver):
    task = LATE["wait"]
    result = task.apply_async((flights.key,), queue="nowhere")
    deliver(result, copy=False)
    flights.until("left")
    flights.until_free(task)
    other = task.delay(flights.key, gated=True)
    flights.until("start", 2)
    deliver(result, copy=False)
    flights.until("parked")
    flights.open()
    flights.until("dropped")
    flights.until_free(task)
    assert [event["id"] for event in flights.events("start")] == [result.id, other.id]


def test_a_copy_that_is_dropped_leaves_the_key_that_was_kept_for_it(flights):
    """Of a run whose lease had ended, so that the key was handed to its message again before it was through."""
    record = flights.record(join)
    ground = Ground.of(app, getattr(join, POLICY), record.keys.name)
    copy = f"copy-{flights.key}"
    ground.claim(f"{copy}:0", 0.0)
    record.client.set(names.outbox_keys(flights.setup["prefix"], record.keys).ended + f"{copy}:0".encode(), "1")
    headers = Ticket(record.keys.name, again=True).headers()
    app.send_task("join", (flights.key,), task_id=copy, headers=headers)
    flights.until("dropped")
    flights.until_free(join)
    assert not flights.events("start")


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_a_revoked_copy_of_what_runs_leaves_it_its_outcome(flights, how):
    result = late.delay(flights.key, how, gated=True)
    until(lambda: result.state == "STARTED")
    app.control.revoke(result.id)
    redeliver()
    flights.until("parked")
    flights.open()
    flights.until_free(late)
    until(lambda: not flights.record(late).client.exists(*flights.outbox(late)))
    assert result.get(PATIENCE, propagate=False) is not None
    assert result.state == {"succeed": "SUCCESS", "fail": "FAILURE"}[how]
    assert len(flights.events("start")) == 1


def test_a_copy_of_what_waits_for_its_time_has_one_run(flights):
    result = join.apply_async((flights.key,), {"gated": True}, countdown=1)
    until(lambda: unacknowledged(result))
    redeliver()
    redeliver()
    flights.until("start")
    flights.until("arrived", 2)
    flights.open()
    assert result.get(PATIENCE).startswith(flights.key)
    flights.until_free(join)
    assert len(flights.events("start")) == 1


@pytest.mark.parametrize("on_duplicate", ["join", "rerun", "wait"])
def test_a_copy_takes_over_from_a_dead_run(flights, on_duplicate):
    task = LATE[on_duplicate]
    result = task.delay(flights.key, gated=True)
    pid = flights.until("start")["pid"]
    redeliver()
    flights.until("parked")
    os.kill(pid, signal.SIGKILL)
    flights.until("start", 2)
    flights.open()
    assert result.get(PATIENCE).startswith(flights.key)
    flights.until_free(task)
    assert {event["id"] for event in flights.events("start")} == {result.id}
    runs = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert runs == ["start", "start", "end"]


def unacknowledged(call):
    """What the broker knows the messages of a call by that a worker has, and has not acknowledged."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with redis.Redis(connection_pool=channel.pool) as client:
            messages = client.hgetall(channel.global_keyprefix + channel.unacked_key)
        return [tag for tag, message in messages.items() if call.id.encode() in message]
