"""Children and whole workers that die: the key comes free, what is parked goes on, and nothing runs twice at once."""

import os
import signal

import celery
import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.utils import uuid

from tests.celery.workload import LATE, LOST, OVERDUE, PATIENCE, RETRIED, app, doom, join, late
from tests.records import until
from tests.workers import LEASE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefork")]


def kill(flights):
    os.kill(flights.until("start")["pid"], signal.SIGKILL)


def nothing(flights):
    """The body does it."""


DEATHS = {"killed": ("succeed", kill), "gone": ("vanish", nothing), "exited": ("leave", nothing)}


@pytest.fixture(params=DEATHS.values(), ids=list(DEATHS))
def death(request):
    """How a child comes to die: what the body does, and what the test does to it."""
    return request.param


def awaited(task, flights, *args, **kwargs):
    """A duplicate that is parked."""
    count = flights.parked(task)
    result = task.apply_async((flights.key, *args), kwargs, task_id=uuid())
    flights.until_parked(task, count + 1)
    return result


def assert_one_after_another(flights):
    """No run began before the one before it ended."""
    runs = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert runs == ["start", "end"] * (len(runs) // 2)


def test_a_run_whose_headers_are_within_a_header_is_known_to_its_parent(flights):
    join.apply_async((flights.key,), {"gated": True}, headers={"headers": {"trace": "x"}})
    kill(flights)
    flights.until("recovered")
    assert flights.free(join)


@pytest.mark.parametrize("task", [join, late], ids=["early", "late"])
def test_the_first_that_is_parked_takes_over_from_a_dead_child(flights, task, death):
    how, strike = death
    first = task.delay(flights.key, how, gated=True)
    flights.until("start")
    second, third = (awaited(task, flights) for _ in range(2))
    if strike is nothing:
        flights.open()
    strike(flights)
    flights.open()
    value = second.get(PATIENCE)
    assert value == third.get(PATIENCE)
    assert value.startswith(flights.key)
    assert [event["id"] for event in flights.events("start")] == [first.id, second.id]
    flights.until_free(task)


@pytest.mark.parametrize("on_duplicate", ["join", "rerun", "wait"])
def test_a_message_that_comes_again_goes_before_what_is_parked(flights, on_duplicate):
    task = LATE[on_duplicate]
    first = task.delay(flights.key, "last_value", gated=True, value=1)
    flights.until("start")
    second = awaited(task, flights, "last_value", value=2)
    kill(flights)
    flights.until("start", 2)
    flights.open()
    assert first.get(PATIENCE) == 1
    assert second.get(PATIENCE) == (1 if on_duplicate == "join" else 2)
    flights.until_free(task)
    starts = [event["id"] for event in flights.events("start")]
    assert starts == [first.id, first.id] + ([] if on_duplicate == "join" else [second.id])


@pytest.mark.parametrize(("task", "again"), LOST, ids=[task.name for task, _ in LOST])
def test_the_key_is_kept_for_a_message_that_comes_again_and_for_no_other(flights, task, again):
    result = task.delay(flights.key, gated=True)
    kill(flights)
    flights.until("recovered")
    if again:
        assert flights.events("recovered")[0]["status"] == "kept"
        flights.until("start", 2)
    flights.open()
    if again:
        assert result.get(PATIENCE).startswith(flights.key)
    else:
        with pytest.raises(WorkerLostError):
            result.get(PATIENCE)
    flights.until_released(task)
    assert len(flights.events("start")) == 1 + again


@pytest.mark.parametrize(("task", "again"), OVERDUE, ids=[task.name for task, _ in OVERDUE])
def test_a_message_comes_again_after_a_hard_time_limit_where_it_is_not_acknowledged(flights, task, again):
    result = task.apply_async((flights.key,), {"gated": True}, time_limit=1)
    if again:
        flights.until("start", 2)
        flights.open()
        until(lambda: app.AsyncResult(result.id).successful())  # Celery stores a failure meanwhile
    else:
        with pytest.raises(TimeLimitExceeded):
            result.get(PATIENCE)
    flights.until_released(task)
    assert len(flights.events("start")) == 1 + again


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="retry_on_worker_lost came with Celery 5.7")
def test_a_retry_that_the_parent_sends_for_a_lost_child(flights):
    first = RETRIED.delay(flights.key, gated=True)
    flights.until("start")
    second = awaited(RETRIED, flights)
    kill(flights)
    flights.open()
    assert second.get(PATIENCE).startswith(flights.key)
    assert first.get(PATIENCE).startswith(flights.key)
    flights.until_free(RETRIED)


def test_a_duplicate_that_calls_after_a_death_flies(flights):
    join.delay(flights.key, gated=True)
    kill(flights)
    flights.until("recovered")
    flights.open()
    assert join.delay(flights.key).get(PATIENCE)


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGKILL"])
def test_the_first_that_is_parked_takes_over_from_one_that_is_terminated(flights, sign):
    first = join.delay(flights.key, gated=True)
    flights.until("start")
    second = awaited(join, flights)
    app.control.revoke(first.id, terminate=True, signal=sign)
    flights.until("start", 2)
    flights.open()
    assert second.get(PATIENCE).startswith(flights.key)
    with pytest.raises((TaskRevokedError, WorkerLostError)):
        first.get(PATIENCE)
    flights.until_free(join)


def test_the_first_that_is_parked_takes_over_at_a_hard_time_limit(flights):
    first = join.apply_async((flights.key,), {"gated": True}, time_limit=LEASE)  # not before the other one is parked
    flights.until("start")
    second = awaited(join, flights)
    with pytest.raises(TimeLimitExceeded):
        first.get(PATIENCE)
    flights.until("start", 2)
    flights.open()
    assert second.get(PATIENCE).startswith(flights.key)
    flights.until_free(join)


@pytest.mark.parametrize("task", [join, LATE["join"]], ids=["early", "late"])
def test_a_child_that_dies_as_it_parks(flights, task):
    first = task.delay(flights.key, gated=True)
    flights.until("start")
    doom(flights.key, "parked")
    second = task.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("killed")
    if task is not join:
        flights.until("parked", 2)  # it came again
    flights.open()
    value = first.get(PATIENCE)
    if task is join:
        until(second.ready)
    else:
        assert second.get(PATIENCE) == value
    flights.until_free(task)
    assert len(flights.events("start")) == 1


@pytest.mark.parametrize("moment", ["ended", "publishing", "published"])
@pytest.mark.parametrize("on_duplicate", ["join", "rerun", "wait"])
def test_a_child_that_dies_as_its_flight_ends(flights, on_duplicate, moment):
    results = park(flights, on_duplicate, moment, "child", "celery")
    assert_followed(flights, on_duplicate, results)


def park(flights, on_duplicate, moment, victim, queue):
    """A run that will die as it ends, with two behind it."""
    task = LATE[on_duplicate]
    first = task.apply_async((flights.key, "last_value"), {"gated": True, "value": 1}, queue=queue)
    flights.until("start")
    behind = []
    for value in (2, 3):
        options = {"task_id": f"{value}-{flights.key}"} if on_duplicate == "join" else {}
        behind.append(task.apply_async((flights.key, "last_value"), {"value": value}, queue=queue, **options))
        if options:
            flights.until("parked", value - 1)
    doom(flights.key, moment, victim)
    flights.open()
    flights.until("killed")
    return [first, *behind]


def assert_followed(flights, on_duplicate, results):
    """Those behind it were answered, each by as many runs as it is to have, whatever became of the first."""
    task = LATE[on_duplicate]
    answers = [result.get(PATIENCE) for result in results[1:]]
    values = [event["value"] for event in flights.events("start")][1:]
    if on_duplicate == "join":
        assert answers == [1, 1]
        assert set(values) <= {1}
    elif on_duplicate == "rerun":
        assert results[1].id == results[2].id
        assert answers == [3, 3]
        assert [value for value in values if value != 1] == [3]
    else:
        assert answers == [2, 3]
        assert [value for value in values if value != 1] == [2, 3]
    flights.until_free(task)
    assert_one_after_another(flights)


@pytest.mark.parametrize("moment", ["ended", "publishing", "published"])
@pytest.mark.parametrize("on_duplicate", ["join", "rerun", "wait"])
def test_a_worker_that_dies_as_a_flight_ends(flights, hosts, on_duplicate, moment):
    results = park(flights, on_duplicate, moment, "worker", hosts.queue)
    assert_followed(flights, on_duplicate, results)


def test_what_is_parked_behind_a_dead_worker_is_found(flights, hosts):
    keys = {on_duplicate: f"{flights.key}-{on_duplicate}" for on_duplicate in LATE}
    starts, behind = [], {}
    for on_duplicate, key in keys.items():
        arguments = {"args": (key, "last_value"), "queue": hosts.queue}
        LATE[on_duplicate].apply_async(kwargs={"gated": True, "value": 1}, **arguments)
        starts.append(flights.until("start", key=key))
        behind[on_duplicate] = [
            LATE[on_duplicate].apply_async(kwargs={"value": value}, task_id=f"{value}-{key}", **arguments)
            for value in (2, 3)
        ]
        flights.until_parked(LATE[on_duplicate], 2, key)
    for worker in hosts.workers:
        worker.kill()
    for key in keys.values():
        flights.open(key)
    hosts.both()
    answers = {name: [result.get(PATIENCE) for result in results] for name, results in behind.items()}
    assert (answers["wait"], answers["rerun"]) == ([2, 3], [3, 3])
    assert answers["join"] in ([2, 2], [3, 3])
