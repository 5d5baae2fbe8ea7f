"""Flights as an operator sees them."""

import pytest

from django_cluster_lock import cache_lock
from django_cluster_lock.flights.sweeping import TURN
from django_cluster_lock.inspection import locks
from tests.celery.workload import join
from tests.records import until

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 60


def shown(flights):
    return locks["default"].show(f"flight:join:{flights.key}")


def test_a_flight_is_queued_then_held_with_what_is_parked_behind_it(flights):
    first = join.apply_async((flights.key,), {"gated": True}, countdown=2)
    queued = shown(flights)
    assert (queued.state, queued.owner.task, queued.parked) == ("queued", first.id, 0)
    flights.until("start")
    seconds = [join.apply_async((flights.key,), task_id=f"{number}-{flights.key}") for number in range(2)]
    flights.until("parked", 2)
    held = shown(flights)
    assert (held.state, held.owner.task, held.parked) == ("held", first.id, 2)
    (listed,) = locks["default"].list(f"*{flights.key}")
    assert (listed.state, listed.token, listed.parked) == ("held", held.token, 2)
    flights.open()
    assert {second.get(PATIENCE) for second in seconds} == {first.get(PATIENCE)}
    until(lambda: (shown(flights).state, shown(flights).parked) == ("free", 0))


def test_messages_behind_a_flight_that_is_gone_are_found(flights, cluster, without_fences):
    first = join.delay(flights.key, gated=True)
    flights.until("start")
    second = join.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    no_sweeps = cache_lock(TURN, blocking_timeout=PATIENCE)
    assert no_sweeps.acquire()
    assert locks["default"].release(shown(flights).name, token=shown(flights).token)

    def orphans():
        return [found for found in locks["default"].verify().findings if found.kind == "orphans"]

    until(lambda: [found.name for found in orphans()] == [shown(flights).name])
    value = join.delay(flights.key).get(PATIENCE)
    assert second.get(PATIENCE) == value  # the next flight settles them
    flights.until("settled")
    assert [event["id"] for event in flights.events("settled")] == [second.id]
    flights.open()
    assert first.get(PATIENCE, propagate=False)
    until(lambda: not orphans())
    no_sweeps.release()
