"""A call's place among those of its key stays its own, however late its message arrives."""

import pytest

from tests.celery.workload import LATE, PATIENCE, TASKS, app, brief_rerun, follow
from tests.records import until
from tests.workers import redeliver

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefork")]


def given(value, **options):
    return {"how": "last_value", "value": value, **options}


def values(flights):
    return [event["value"] for event in flights.events("start")]


@pytest.fixture
def aside(flights):
    """A queue that the worker takes messages from once a test says so."""
    queue = f"aside-{flights.key}"
    yield queue
    app.control.cancel_consumer(queue)


def outlive_its_claim(flights, queue):
    """A call whose message waits for longer than its claim lasts."""
    result = brief_rerun.apply_async((flights.key,), given(1), queue=queue)
    flights.until_free(brief_rerun)
    return result


@pytest.mark.parametrize("meets", ["the run of a later call", "nobody, after it"])
def test_a_message_that_outlived_its_claim_is_no_later_call(flights, aside, meets):
    early = outlive_its_claim(flights, aside)
    later = brief_rerun.delay(flights.key, **given(2, gated=True))
    flights.until("start")
    if meets == "nobody, after it":
        flights.open()
        later.get(PATIENCE)
        flights.until_free(brief_rerun)
    app.control.add_consumer(aside)
    flights.until("arrived", 2)
    if meets == "the run of a later call":
        flights.until("parked")
        flights.open()
    assert [later.get(PATIENCE), early.get(PATIENCE)] == [2, 2]
    assert values(flights) == [2]
    flights.until_free(brief_rerun)


def test_a_message_whose_host_died_is_no_later_call(flights, hosts):
    task = LATE["rerun"]
    early = task.apply_async((flights.key,), given(1, gated=True), queue=hosts.queue)
    hosts.of(flights.until("start")).kill()
    flights.until_free(task)
    later = task.delay(flights.key, **given(2, gated=True))
    flights.until("start", 2)
    redeliver()
    flights.until("parked")
    flights.open()
    assert [later.get(PATIENCE), early.get(PATIENCE)] == [2, 2]
    assert values(flights) == [1, 2]
    flights.until_free(task)


def test_an_arrival_does_not_pass_those_that_were_left_behind(flights):
    task = TASKS["flight", "wait"]
    task.delay(flights.key, **given(1, gated=True))
    flights.until("start")
    behind = task.delay(flights.key, **given(2))
    record = flights.record(task)
    record.client.delete(record.keys.record)  # as an eviction does
    arrival = app.send_task(task.name, (flights.key,), given(3))
    assert [behind.get(PATIENCE), arrival.get(PATIENCE)] == [2, 3]
    assert values(flights) == [1, 2, 3]
    flights.open()
    flights.until_free(task)
    until(lambda: not record.client.exists(*flights.outbox(task)))


def test_a_call_with_something_to_follow_it_is_not_replaced(flights):
    task = TASKS["flight", "rerun"]
    task.delay(flights.key, **given(1, gated=True))
    flights.until("start")
    followed = task.apply_async((flights.key,), given(2), link=follow.s().set(task_id=f"follow-{flights.key}"))
    latest = task.delay(flights.key, **given(3))
    assert latest.id != followed.id
    flights.open()
    assert [followed.get(PATIENCE), latest.get(PATIENCE)] == [3, 3]
    assert app.AsyncResult(f"follow-{flights.key}").get(PATIENCE) == [3]
    assert values(flights) == [1, 3]
    flights.until_free(task)
