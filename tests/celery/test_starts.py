"""What a run does at its start and to its key is told from what its body does."""

import pytest

from django_cluster_lock import LockUnavailable
from django_cluster_lock.inspection import locks
from tests.celery.workload import TASKS, app, hooked, join, requeued
from tests.records import until

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 60


@pytest.mark.parametrize("scope", ["flight", "queued", "running"])
def test_a_body_that_cannot_ask_redis_has_failed(flights, scope):
    result = TASKS[scope, "join"].delay(flights.key, "unreachable")
    with pytest.raises(LockUnavailable):
        result.get(PATIENCE)
    assert len(flights.events("start")) == 1


def test_that_failure_is_the_outcome_of_those_parked_behind_it(flights):
    first = join.delay(flights.key, "unreachable", gated=True)
    flights.until("start")
    second = join.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    flights.open()
    for result in (first, second):
        with pytest.raises(LockUnavailable):
            result.get(PATIENCE)
    assert len(flights.events("start")) == 1


def test_a_message_that_its_hook_sends_back_runs(flights):
    assert hooked.delay(flights.key, "requeue").get(PATIENCE)
    assert len(flights.events("hook")) == 2
    flights.until_free(hooked)


def test_a_terminated_run_whose_message_does_not_come_again_frees_its_key(flights):
    result = requeued.delay(flights.key, gated=True)
    flights.until("start")
    app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    flights.until_free(requeued)
    flights.open()
    assert requeued.delay(flights.key).get(PATIENCE)


def test_the_claim_of_a_parked_call_lasts_from_its_eta(flights):
    task = TASKS["flight", "wait"]
    first = task.delay(flights.key, gated=True)
    flights.until("start")
    second = task.apply_async((flights.key,), countdown=7200)
    flights.open()
    first.get(PATIENCE)
    name = f"flight:{task.name}:{flights.key}"
    until(lambda: locks["default"].show(name).owner.task == second.id)
    until(lambda: locks["default"].show(name).lease_left > 7200 + 3000)
    second.revoke()
    flights.until_free(task)


def test_a_run_cannot_let_go_of_its_key(flights):
    assert join.delay(flights.key, "let_go").get(PATIENCE) == ["LockError", "LockError"]
    flights.until_released(join)
