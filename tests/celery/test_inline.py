"""Runs without a message: direct calls, `apply` and eager mode wait for the lock, and free nobody else's."""

import threading

import pytest
from django.db import transaction

from django_cluster_lock import LockError, current_lock, single_flight
from tests.celery.workload import app, join, work
from tests.records import until

PATIENCE = 60


def in_background(function, *args, **kwargs):
    thread = threading.Thread(target=function, args=args, kwargs=kwargs, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("call", [join, join.apply], ids=["direct", "apply"])
def test_it_waits_for_the_flight_under_way(flights, prefork, call):
    flight = join.delay(flights.key, gated=True)
    flights.until("start")
    token = flights.record(join).holder()
    thread = in_background(call, *([flights.key] if call is join else [(flights.key,)]))
    until(flights.record(join).alive_waiters)
    assert flights.record(join).holder() == token
    assert len(flights.events("start")) == 1
    flights.open()
    flight.get(PATIENCE)
    thread.join(PATIENCE)
    assert len(flights.events("start")) == 2
    flights.until_free(join)


def test_a_call_during_an_inline_run_is_published_and_runs_afterwards(flights, prefork):
    thread = in_background(join, flights.key, gated=True)
    flights.until("start")
    result = join.delay(flights.key)
    flights.until("arrived")
    assert len(flights.events("start")) == 1
    flights.open()
    thread.join(PATIENCE)
    assert result.get(PATIENCE)
    assert len(flights.events("start")) == 2


def test_eager_mode_runs_alone_and_has_its_request(flights, settings):
    app.conf.task_always_eager = True
    try:
        result = join.delay(flights.key)
    finally:
        app.conf.task_always_eager = False
    assert result.get(disable_sync_subtasks=False).startswith(flights.key)
    assert flights.events("start")[0]["id"] == result.id
    assert flights.free(join)


def test_an_eager_retry_takes_the_lock_again(flights):
    result = join.apply((flights.key, "retry"))
    assert result.get().startswith(flights.key)
    assert [event["retries"] for event in flights.events("start")] == [0, 1]
    assert flights.free(join)


def test_recursion_into_the_same_key_raises_at_once(flights):
    @app.task(bind=True, name=f"recursive-{flights.key}")
    @single_flight(key="{key}")
    def recursive(self, key, depth=1):
        assert current_lock().name == f"flight:{self.name}:{key}"
        return recursive(key, depth - 1) if depth else work(self, key)

    with pytest.raises(LockError, match="held right here already"):
        recursive(flights.key)
    assert recursive(flights.key, depth=0).startswith(flights.key)
    assert flights.free(recursive)


@pytest.mark.django_db(transaction=True)
def test_a_direct_call_in_a_transaction_keeps_the_key_until_it_ends(flights):
    with transaction.atomic():
        join(flights.key)
        assert not flights.free(join)
    assert flights.free(join)
