"""Every scope with every `on_duplicate`: what a duplicate gets if it is met at the call, and if a worker meets it."""

from functools import partial

import pytest

from django_cluster_lock import DuplicateFlight
from tests.celery.workload import PATIENCE, TASKS, app
from tests.records import until

pytestmark = pytest.mark.usefixtures("prefork")
VALUE = {"how": "last_value"}


def gated(value):
    return {**VALUE, "gated": True, "value": value}


def awaited(task, key, value):
    return task.apply_async((key,), gated(value), task_id=f"awaited-{value}-{key}")


def by_name(task, key, value):
    return app.send_task(task.name, (key,), gated(value))


def linked(task, key, value):
    return task.apply_async((key,), gated(value), link=app.tasks["follow"].s())


def replayed(task, key, value):
    """What an operator does with a message that was kept: it goes to the broker as it is."""
    task_id = f"replayed-{value}-{key}"
    headers = {"lang": "py", "task": task.name, "id": task_id, "root_id": task_id}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    with app.producer_pool.acquire() as producer:
        body = ((key,), gated(value), embed)
        producer.publish(body, routing_key="celery", headers=headers, serializer="json", correlation_id=task_id)
    return app.AsyncResult(task_id)


MESSAGES = [awaited, by_name, linked, replayed]


@pytest.fixture(params=MESSAGES, ids=lambda way: way.__name__)
def send(request):
    """The ways of a duplicate to a worker."""
    return request.param


def fly(flights, task):
    """A run that waits for its gate."""
    first = task.delay(flights.key, **gated(1))
    flights.until("start")
    return first


def end(flights, task):
    flights.open()
    until(lambda: not any(flights.record(task).fields().get(field) for field in "t"))


def values(flights):
    return [event["value"] for event in flights.events("start")]


@pytest.mark.parametrize("by", ["call", "name"])
def test_a_parked_message_keeps_its_serializer(flights, by):
    task = TASKS["flight", "join"]
    task.delay(flights.key, "ignore", gated=True)  # has no outcome: what is parked runs itself
    flights.until("start")
    send = task.apply_async if by == "call" else partial(app.send_task, task.name)
    options = {"task_id": f"awaited-{flights.key}"}
    second = send((flights.key,), {"how": "kind_of_value", "value": (1, 2)}, serializer="literal", **options)
    flights.until("parked")
    flights.open()
    assert second.get(PATIENCE) == "tuple"


# scope="flight": from the call on


def test_flight_rerun_is_one_more_run_with_the_latest_arguments_under_one_id(flights):
    task = TASKS["flight", "rerun"]
    first = fly(flights, task)
    following = [task.delay(flights.key, **gated(value)) for value in (2, 3, 4)]
    assert len({result.id for result in following} | {first.id}) == 2
    flights.open()
    assert [result.get(PATIENCE) for result in (first, *following)] == [1, 4, 4, 4]
    end(flights, task)
    assert values(flights) == [1, 4]


def test_flight_rerun_of_a_call_that_still_waits_has_the_latest_arguments(flights):
    task = TASKS["flight", "rerun"]
    task.apply_async((flights.key,), gated(1), countdown=0.5)
    latest = [task.delay(flights.key, **gated(value)) for value in (2, 3)]
    flights.open()
    assert [result.get(PATIENCE) for result in latest] == [3, 3]
    end(flights, task)
    assert values(flights)[-1] == 3
    assert len(values(flights)) <= 2


def test_flight_rerun_called_while_the_rerun_runs_is_another_one(flights):
    task = TASKS["flight", "rerun"]
    flights.open(f"{flights.key}-1")
    fly(flights, task)
    second = task.delay(flights.key, **gated(2))
    flights.open()
    assert second.get(PATIENCE) == 2
    third = task.delay(flights.key, **gated(3))
    assert third.get(PATIENCE) == 3
    assert third.id != second.id
    end(flights, task)


def test_flight_rerun_by_messages_is_one_more_run(flights, send):
    task = TASKS["flight", "rerun"]
    fly(flights, task)
    results = []
    for value in (2, 3, 4):  # one by one: messages to several children have no order
        results.append(send(task, flights.key, value))
        flights.until_parked(task, value - 1)
    flights.open()
    assert [result.get(PATIENCE) for result in results] == [4, 4, 4]
    end(flights, task)
    assert values(flights) == [1, 4]


def test_flight_wait_is_first_in_first_out(flights):
    task = TASKS["flight", "wait"]
    first = fly(flights, task)
    following = [task.delay(flights.key, **gated(value)) for value in range(2, 32)]
    flights.open()
    assert [result.get(PATIENCE) for result in (first, *following)] == [*range(1, 32)]
    assert len({result.id for result in (first, *following)}) == 31
    end(flights, task)
    assert values(flights) == [*range(1, 32)]
    whats = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert whats == ["start", "end"] * 31


def test_flight_wait_by_messages_is_first_in_first_out(flights, send):
    task = TASKS["flight", "wait"]
    fly(flights, task)
    results = []
    for value in (2, 3, 4):
        results.append(send(task, flights.key, value))
        flights.until_parked(task, value - 1)
    flights.open()
    assert [result.get(PATIENCE) for result in results] == [2, 3, 4]
    end(flights, task)
    assert values(flights) == [1, 2, 3, 4]


@pytest.mark.parametrize("scope", ["flight", "running"])
def test_a_message_that_is_a_duplicate_joins(flights, scope, send):
    task = TASKS[scope, "join"]
    first = fly(flights, task)
    second = send(task, flights.key, 2)
    flights.until("parked")
    flights.open()
    assert [first.get(PATIENCE), second.get(PATIENCE)] == [1, 1]
    end(flights, task)
    assert values(flights) == [1]


@pytest.mark.parametrize("scope", ["flight", "running"])
def test_a_message_that_is_a_duplicate_is_skipped(flights, scope, send):
    task = TASKS[scope, "skip"]
    first = fly(flights, task)
    assert send(task, flights.key, 2).get(PATIENCE) is None
    flights.open()
    assert first.get(PATIENCE) == 1
    end(flights, task)
    assert values(flights) == [1]


@pytest.mark.parametrize("scope", ["flight", "running"])
def test_a_message_that_is_a_duplicate_fails(flights, scope, send):
    task = TASKS[scope, "raise"]
    first = fly(flights, task)
    with pytest.raises(DuplicateFlight) as raised:
        send(task, flights.key, 2).get(PATIENCE)
    assert raised.value.flight_id == first.id
    flights.open()
    assert first.get(PATIENCE) == 1
    end(flights, task)
    assert values(flights) == [1]


# scope="queued": until the run starts


def queue(flights, task):
    """A call that waits for its time."""
    return task.apply_async((flights.key,), gated(1), countdown=2)


def test_queued_join_is_for_those_that_wait(flights):
    task = TASKS["queued", "join"]
    first = queue(flights, task)
    assert task.delay(flights.key, **gated(2)).id == first.id
    flights.until("start")
    assert flights.free(task)
    beside = task.delay(flights.key, **gated(3))
    flights.until("start", 2)
    flights.open()
    assert [first.get(PATIENCE), beside.get(PATIENCE)] == [1, 3]


def test_queued_skip_is_for_those_that_wait(flights):
    task = TASKS["queued", "skip"]
    first = queue(flights, task)
    skipped = task.delay(flights.key, **gated(2))
    assert (skipped.state, skipped.flight_id) == ("SKIPPED", first.id)
    flights.until("start")
    beside = task.delay(flights.key, **gated(3))
    flights.until("start", 2)
    flights.open()
    assert [first.get(PATIENCE), beside.get(PATIENCE)] == [1, 3]


def test_queued_raise_is_for_those_that_wait(flights):
    task = TASKS["queued", "raise"]
    first = queue(flights, task)
    with pytest.raises(DuplicateFlight) as raised:
        task.delay(flights.key, **gated(2))
    assert raised.value.flight_id == first.id
    flights.until("start")
    beside = task.delay(flights.key, **gated(3))
    flights.until("start", 2)
    flights.open()
    assert [first.get(PATIENCE), beside.get(PATIENCE)] == [1, 3]


@pytest.mark.parametrize("on_duplicate", ["join", "skip", "raise"])
def test_queued_lets_runs_overlap(flights, on_duplicate, send):
    task = TASKS["queued", on_duplicate]
    first = fly(flights, task)
    second = send(task, flights.key, 2)
    flights.until("start", 2)
    flights.open()
    assert [first.get(PATIENCE), second.get(PATIENCE)] == [1, 2]
    assert flights.free(task)


# scope="running": during the run


@pytest.mark.parametrize("on_duplicate", ["join", "skip", "raise", "rerun", "wait"])
def test_running_takes_no_key_for_a_call_that_waits(flights, on_duplicate):
    task = TASKS["running", on_duplicate]
    first, second = (task.apply_async((flights.key,), queue="nobody") for _ in range(2))
    assert first.id != second.id
    assert flights.free(task)


@pytest.mark.parametrize(("on_duplicate", "given"), [("join", [1, 1, 1]), ("rerun", [3, 3, 3]), ("wait", [2, 3])])
def test_running_parks_what_meets_a_run(flights, on_duplicate, given):
    task = TASKS["running", on_duplicate]
    first = fly(flights, task)
    results = []
    for value in (2, 3):
        results.append(task.delay(flights.key, **gated(value)))
        flights.until("parked", value - 1)
    assert len({result.id for result in (first, *results)}) == 3
    flights.open()
    assert [result.get(PATIENCE) for result in results] == given[:2]
    assert first.get(PATIENCE) == 1
    end(flights, task)


def test_running_skip_and_raise_end_what_meets_a_run(flights):
    skip, refuse = TASKS["running", "skip"], TASKS["running", "raise"]
    skipped_first = fly(flights, skip)
    assert skip.delay(flights.key, **gated(2)).get(PATIENCE) is None
    flights.open()
    skipped_first.get(PATIENCE)
    flights.key += "-other"
    refused_first = fly(flights, refuse)
    with pytest.raises(DuplicateFlight):
        refuse.delay(flights.key, **gated(2)).get(PATIENCE)
    flights.open()
    refused_first.get(PATIENCE)
