"""What the caller of a duplicate gets, by a real worker."""

from contextlib import contextmanager
from weakref import ref

import pytest
from celery.signals import before_task_publish

from django_cluster_lock import DuplicateFlight
from django_cluster_lock.signals import flight_skipped
from tests.celery.workload import app, join, raising, skip

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 60


@contextmanager
def captured(signal, headers):
    """Collects the headers of what a signal of Celery's tells of."""

    def receive(**told):
        headers.append(told["headers"])

    signal.connect(receive, weak=False)  # else Celery before 5.7 is deaf once one was collected
    try:
        yield
    finally:
        signal.disconnect(receive)


def test_a_duplicate_joins_the_flight_that_waits_and_the_one_that_runs(flights):
    first = join.apply_async((flights.key,), {"gated": True}, countdown=0.3)
    waiting = join.delay(flights.key)
    flights.until("start")
    running = join.delay(key=flights.key)
    flights.open()
    assert first.id == waiting.id == running.id
    assert first.get(PATIENCE) == running.get(PATIENCE)
    assert len(flights.events("start")) == 1
    flights.until_free(join)
    assert join.delay(flights.key).id != first.id


def test_a_duplicate_gets_the_exception_of_the_flight_it_joined(flights):
    results = [join.delay(flights.key, "fail", gated=True) for _ in range(3)]
    flights.open()
    caught = []
    for result in results:
        with pytest.raises(LookupError) as raised:
            result.get(PATIENCE)
        caught.append(raised.value.args)
    assert caught[0] == caught[1] == caught[2]
    assert len(flights.events("start")) == 1


def test_a_duplicate_is_skipped_and_says_so(flights):
    told = []
    flight_skipped.connect(lambda **details: told.append(details), weak=False, dispatch_uid="test")
    try:
        first = skip.delay(flights.key, gated=True)
        flights.until("start")
        second = skip.delay(flights.key)
    finally:
        flight_skipped.disconnect(dispatch_uid="test")
    assert (second.ready(), second.state, second.get(), second.flight_id) == (True, "SKIPPED", None, first.id)
    assert not second.successful()
    assert [(event["sender"].name, event["flight_id"]) for event in told] == [("skip", first.id)]
    flights.open()
    assert first.get(PATIENCE).startswith(flights.key)
    assert len(flights.events("arrived")) == 1


def test_a_duplicate_raises_with_the_id_of_the_flight(flights):
    first = raising.delay(flights.key, gated=True)
    flights.until("start")
    with pytest.raises(DuplicateFlight) as raised:
        raising.delay(flights.key)
    assert raised.value.flight_id == first.id
    assert f"task {first.id}" in str(raised.value)
    flights.open()
    first.get(PATIENCE)
    assert len(flights.events("arrived")) == 1


def test_a_duplicate_leaves_nothing_in_celery(flights):
    published = []
    first = join.delay(flights.key, gated=True)
    subscribed = set(app.backend.result_consumer.subscribed_to)
    with captured(before_task_publish, published):
        assert join.delay(flights.key).id == first.id
        assert not published
        assert app.backend.result_consumer.subscribed_to <= subscribed
        assert not app.producer_pool._dirty
        other = join.delay(f"{flights.key}-other")
    assert [headers["id"] for headers in published] == [other.id]
    flights.open()
    first.get(PATIENCE)


def test_a_result_goes_when_nobody_wants_it(flights):
    result = ref(join.delay(flights.key))
    assert result() is None
    assert join.delay(flights.key).get(PATIENCE)


def test_different_keys_fly_side_by_side(flights):
    first, second = (join.delay(f"{flights.key}-{number}", gated=True) for number in range(2))
    for number in range(2):
        flights.until("start", key=f"{flights.key}-{number}")
    for number in range(2):
        flights.open(f"{flights.key}-{number}")
    assert first.get(PATIENCE) != second.get(PATIENCE)
