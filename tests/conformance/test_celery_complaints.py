"""The ways in which locks of Celery tasks get stuck elsewhere, or worse, as told in other libraries' issues.

| complaint                                               | test                                                     |
|---------------------------------------------------------|----------------------------------------------------------|
| the child is killed, and its lock stays                 | celery/test_ends: a_killed_child_holds_the_key...        |
| the worker is killed; locks have to be cleared at start | a_worker_that_is_killed_leaves_no_key_behind             |
| a worker that starts clears the locks of those that run | a_worker_that_starts_leaves_others_keys_alone            |
| a task that is revoked blocks for ever                  | celery/test_ends: revoked_before_its_start, terminated   |
| one that is revoked in the queue, without an eta        | revoked_while_it_waits_in_the_queue                      |
| a task that expires blocks for ever                     | celery/test_ends: expired_before_its_start               |
| Ignore and Reject leave the lock                        | celery/test_ends: ignore_and_reject                      |
| so does a call that cannot be published                 | test_celery_peers: a_broker_that_cannot_be_reached...   |
| so does a hard time limit                               | celery/test_ends: hard_time_limit                        |
| so does a soft one                                      | a_soft_time_limit_is_a_failure_like_any_other            |
| `.apply()` frees the lock of the run under way          | celery/test_inline: it_waits_for_the_flight_under_way    |
| a run frees a lock that is not its own                  | celery/test_ends: nobody_elses_lease_is_freed            |
| a skipped duplicate, as it ends, frees the owner's lock | a_duplicate_that_ends_leaves_the_flight_its_key          |
| an optional argument in the key is a KeyError           | test_celery_peers: an_optional_argument...               |
| a chain that begins with a duplicate is not run         | celery/test_canvas: a_chain_keeps_its_tail               |
| a duplicate's exception cannot be pickled               | the_exception_of_a_duplicate_survives_pickling           |
| a duplicate at a retry ends the worker                  | a_retry_that_is_a_duplicate_fails_and_nothing_more       |
| a retry is refused as a duplicate of itself             | celery/test_ends: a_retry_runs_under_the_same_id...      |
| the lock's time runs from the call on, and runs out     | celery/test_ends: a_flight_that_runs_for_longer_than... |
| nothing tells that a call was swallowed                 | celery/test_duplicates: a_duplicate_is_skipped...        |
| the visibility timeout makes two runs of one message    | celery/test_canvas: a_copy_of_a_message_that_is_running  |
| tasks sent by name have no lock                         | celery/test_ends: an_unclaimed_key_is_claimed...         |
| nor do those that beat sends                            | beat_joins_the_flight_under_way                          |
| a task that replaces itself is its own duplicate        | a_task_that_replaces_itself_runs_again                   |
| UUIDs as arguments fail                                 | test_celery_peers: arguments_of_every_kind...            |
"""

import os
import pickle
import signal

import pytest
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError

from django_cluster_lock import DuplicateFlight
from tests.celery.workload import app, join, raising, skip
from tests.records import until
from tests.workers import LEASE, Worker

PATIENCE = 60


@pytest.fixture(params=["prefork"])
def another(request, setup, flights):
    """A worker of the test's own, for one task at a time, on a queue named as the test's key."""
    worker = Worker(setup, request.param, flights.key, concurrency=1).ready()
    yield worker
    worker.stop()


@pytest.mark.parametrize("another", ["solo"], indirect=True)
def test_a_worker_that_is_killed_leaves_no_key_behind(flights, another):
    first = join.apply_async((flights.key,), {"gated": True}, queue=flights.key)
    os.kill(flights.until("start")["pid"], signal.SIGKILL)
    assert another.process.wait(PATIENCE) == -signal.SIGKILL
    flights.until_free(join, within=LEASE + 4)
    assert join.apply_async((flights.key,), queue=f"nobody-{flights.key}").id != first.id


def test_a_worker_that_starts_leaves_others_keys_alone(flights, prefork, setup):
    running = join.delay(flights.key, gated=True)
    flights.until("start")
    Worker(setup, "solo", flights.key, concurrency=1).ready().stop()
    assert join.delay(flights.key).id == running.id
    flights.open()
    running.get(PATIENCE)


def test_revoked_while_it_waits_in_the_queue(flights, another):
    blocker = join.apply_async((f"{flights.key}-blocker",), {"gated": True}, queue=flights.key)
    flights.until("start", key=f"{flights.key}-blocker")
    result = join.apply_async((flights.key,), queue=flights.key)
    until(lambda: f"[{result.id}] received" in another.log.read_text())
    result.revoke()
    until(lambda: f"Tasks flagged as revoked: {result.id}" in another.log.read_text())
    flights.open(f"{flights.key}-blocker")
    blocker.get(PATIENCE)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_released(join)
    assert not flights.events("start")


def test_a_soft_time_limit_is_a_failure_like_any_other(flights, prefork):
    result = join.apply_async((flights.key,), {"gated": True}, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(PATIENCE)
    flights.until_released(join)


@pytest.mark.parametrize(("task", "error"), [(skip, None), (raising, DuplicateFlight)], ids=["skip", "raise"])
def test_a_duplicate_that_ends_leaves_the_flight_its_key(flights, prefork, task, error):
    first = task.delay(flights.key, gated=True)
    flights.until("start")
    name = f"key={flights.key}" if task is skip else flights.key
    token = flights.record(task, name).holder()
    second = task.apply_async((flights.key,), task_id=f"second-{flights.key}")
    assert isinstance(second.get(PATIENCE, propagate=False), error or type(None))
    assert flights.record(task, name).holder() == token is not None
    flights.open()
    assert first.get(PATIENCE).startswith(flights.key)
    flights.until_released(task, name)


def test_a_retry_that_is_a_duplicate_fails_and_nothing_more(flights, prefork):
    other = f"{flights.key}-other"
    outside = raising.delay(other, gated=True)
    pid = flights.until("start", key=other)["pid"]
    result = raising.delay(flights.key, "retry_with_another_key")
    with pytest.raises(DuplicateFlight) as raised:
        result.get(PATIENCE)
    assert raised.value.flight_id == outside.id
    flights.until_released(raising)
    flights.open(other)
    assert outside.get(PATIENCE).startswith(other)
    os.kill(pid, 0)  # its child lives on
    assert prefork.process.poll() is None


def test_beat_joins_the_flight_under_way(flights):
    first = join.apply_async((flights.key,), queue="nobody")
    entry = ScheduleEntry(name="x", task="join", args=[flights.key], schedule=60, options={"queue": "nobody"}, app=app)
    assert Scheduler(app, lazy=True).apply_async(entry, advance=False).id == first.id


def test_a_task_that_replaces_itself_runs_again(flights, prefork):
    result = join.delay(flights.key, "replace")
    assert result.get(PATIENCE).startswith(flights.key)
    assert [event["id"] for event in flights.events("start")] == [result.id] * 2
    flights.until_released(join)


def test_the_exception_of_a_duplicate_survives_pickling():
    error = DuplicateFlight("a", holder="web-1", flight_id="7")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.name, copy.flight_id) == (DuplicateFlight, str(error), "a", "7")
    assert app.backend.exception_to_python(app.backend.prepare_exception(error)).flight_id == "7"
