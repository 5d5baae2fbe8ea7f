"""The ends of a run, and of a message that never runs: each frees the key, by whoever owns it and nobody else."""

import os
import signal

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError
from kombu.exceptions import EncodeError

from django_cluster_lock import LockLost, LockUnavailable
from tests.celery.workload import app, autoretry, brief, carefree, cut_off, hooked, join, late, requeued, tell
from tests.records import until

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 20


def test_success(flights):
    assert join.delay(flights.key).get(PATIENCE)
    flights.until_free(join, within=1)


def test_failure(flights):
    with pytest.raises(LookupError):
        join.delay(flights.key, "fail").get(PATIENCE)
    flights.until_free(join, within=1)


def test_failure_before_the_body(flights):
    with pytest.raises(LookupError):
        hooked.delay(flights.key, "fail").get(PATIENCE)
    flights.until_free(hooked, within=2)


def test_retry_before_the_body(flights):
    assert hooked.delay(flights.key, "retry").get(PATIENCE)
    flights.until_free(hooked, within=2)


@pytest.mark.parametrize("how", ["ignore", "reject"])
def test_ignore_and_reject(flights, how):
    first = join.delay(flights.key, how)
    flights.until("end")
    flights.until_free(join, within=1)
    assert join.delay(flights.key).id != first.id


def test_reject_with_requeue_runs_again(flights):
    result = late.delay(flights.key, "requeue")
    assert result.get(PATIENCE) == flights.key
    assert [event["id"] for event in flights.events("start")] == [result.id] * 2
    flights.until_free(late, within=1)


@pytest.mark.parametrize("how", ["retry", "retry_later"])
def test_a_retry_runs_under_the_same_id_and_frees_the_key(flights, how):
    result = join.delay(flights.key, how)
    assert result.get(PATIENCE)
    assert [(event["id"], event["retries"]) for event in flights.events("start")] == [(result.id, 0), (result.id, 1)]
    flights.until_free(join, within=1)


def test_a_waiting_retry_is_joined(flights):
    result = join.delay(flights.key, "retry_later")
    flights.until("end")
    until(lambda: flights.record(join).fields().get("r") == "queued")
    assert join.delay(flights.key).id == result.id
    assert result.get(PATIENCE)
    assert len(flights.events("start")) == 2


def test_autoretry_keeps_the_key(flights):
    result = autoretry.delay(flights.key)
    assert result.get(PATIENCE)
    assert [event["retries"] for event in flights.events("start")] == [0, 1]
    flights.until_free(autoretry)


def test_a_retry_with_another_key_frees_the_old_one(flights):
    result = join.delay(flights.key, "retry_with_another_key")
    assert result.get(PATIENCE).startswith(f"{flights.key}-other")
    for key in (flights.key, f"{flights.key}-other"):
        flights.until_free(join, key, within=1)


def test_a_call_that_cannot_be_published_frees_the_key(flights):
    with pytest.raises(EncodeError):
        join.delay(flights.key, object())
    assert flights.free(join)


def test_revoked_before_its_start(flights):
    result = join.apply_async((flights.key,), countdown=0.5)
    assert not flights.free(join)
    app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_free(join, within=1)


def test_expired_before_its_start(flights):
    result = join.apply_async((flights.key,), countdown=0.3, expires=0.1)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_free(join, within=1)


def test_a_killed_child_holds_the_key_for_no_longer_than_its_lease(flights):
    result = join.delay(flights.key, gated=True)
    os.kill(flights.until("start")["pid"], signal.SIGKILL)
    flights.until_free(join, within=4)
    with pytest.raises(WorkerLostError):
        result.get(PATIENCE)


def test_a_message_that_a_killed_child_left_takes_its_own_key_over(flights):
    result = requeued.delay(flights.key, gated=True)
    os.kill(flights.until("start")["pid"], signal.SIGKILL)
    flights.open()
    assert result.get(PATIENCE).startswith(flights.key)
    assert [event["id"] for event in flights.events("start")] == [result.id] * 2
    flights.until_free(requeued, within=1)


def test_started_is_stored_once_a_run_starts_and_not_for_what_comes_again(flights):
    result = late.delay(flights.key, gated=True)
    until(lambda: result.state == "STARTED")
    other = late.apply_async((flights.key,), task_id=f"other-{flights.key}")
    flights.until("parked")
    assert other.state == "PENDING"
    flights.open()
    assert other.get(PATIENCE) == result.get(PATIENCE)


def test_terminated(flights):
    result = join.delay(flights.key, gated=True)
    flights.until("start")
    app.control.revoke(result.id, terminate=True)
    flights.until_free(join, within=4)


def test_hard_time_limit(flights):
    result = join.apply_async((flights.key,), {"gated": True}, time_limit=0.5)
    with pytest.raises(TimeLimitExceeded):
        result.get(PATIENCE)
    flights.until_free(join, within=4)


def test_without_the_locks_a_call_raises_and_a_message_comes_again(flights):
    with pytest.raises(LockUnavailable):
        cut_off.delay(flights.key)
    result = app.send_task("cut_off", (flights.key,))
    flights.until("arrived", 2)
    assert not flights.events("start")
    app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)


def test_without_the_locks_it_runs_where_that_is_wanted(flights):
    assert carefree.delay(flights.key).get(PATIENCE).startswith(flights.key)
    assert carefree(flights.key).startswith(flights.key)


def test_a_flight_that_runs_for_longer_than_its_lease_is_renewed(flights):
    result = join.delay(flights.key, gated=True)
    flights.until("start")
    record = flights.record(join)
    deadline = int(record.fields()["d"])
    until(lambda: record.now() > deadline)
    assert join.delay(flights.key).id == result.id
    flights.open()
    result.get(PATIENCE)


def test_an_unclaimed_key_is_claimed_at_the_start(flights):
    first = app.send_task("join", (flights.key,), {"gated": True})
    flights.until("start")
    assert join.delay(flights.key).id == first.id
    flights.open()
    first.get(PATIENCE)
    flights.until_free(join, within=1)


def test_a_claim_whose_queue_timeout_is_over_costs_no_exclusion(flights):
    first = brief.apply_async((flights.key,), {"gated": True}, countdown=0.1)
    flights.until("start")
    second = brief.apply_async((f"{flights.key}",), {"gated": True}, task_id=f"second-{flights.key}")
    flights.until("arrived", 2)
    assert len(flights.events("start")) == 1
    flights.open()
    assert first.get(PATIENCE) == second.get(PATIENCE)


@pytest.mark.parametrize("how", ["lose", "lose_and_query"])
def test_a_lost_lease_aborts_the_run(flights, how):
    result = join.delay(flights.key, how)
    flights.until("start")
    record = flights.record(join)
    until(lambda: record.fields().get("k") == result.id)
    record.client.delete(record.key)
    with pytest.raises(LockLost):
        result.get(PATIENCE)
    assert flights.events("lost")
    assert not flights.events("queried")


def test_a_lost_lease_is_only_told(flights):
    result = tell.delay(flights.key, "lose_and_query")
    flights.until("start")
    record = flights.record(tell)
    record.client.delete(record.key)
    assert result.get(PATIENCE) is None
    assert flights.events("queried")


def test_the_run_has_its_lock_at_hand(flights):
    first = join.delay(flights.key, "fence").get(PATIENCE)
    flights.until_free(join)
    assert join.delay(flights.key, "fence").get(PATIENCE) > first


def test_nobody_elses_lease_is_freed(flights):
    result = join.delay(flights.key, gated=True)
    flights.until("start")
    record = flights.record(join)
    record.client.hset(record.key, "t", "somebody-else")
    flights.open()
    assert result.get(PATIENCE)
    join.delay(f"{flights.key}-next").get(PATIENCE)
    assert record.fields()["t"] == "somebody-else"
