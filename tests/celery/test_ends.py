"""The ends of a run, and of a message that never runs: each frees the key, by whoever owns it and nobody else."""

import os
import signal

import celery
import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError
from kombu.exceptions import EncodeError

from django_cluster_lock import LockLost, LockUnavailable
from django_cluster_lock.flights.results import LONGEST_CARRIED
from tests.celery.workload import (
    TASKS,
    Refused,
    app,
    autoretry,
    brief,
    carefree,
    cut_off,
    follow,
    hooked,
    interrupted,
    join,
    late,
    requeued,
    silent,
    tell,
)
from tests.records import until

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 60


def test_success(flights):
    assert join.delay(flights.key).get(PATIENCE)
    flights.until_released(join)


def test_failure(flights):
    with pytest.raises(LookupError):
        join.delay(flights.key, "fail").get(PATIENCE)
    flights.until_released(join)


def test_failure_before_the_body(flights):
    with pytest.raises(LookupError):
        hooked.delay(flights.key, "fail").get(PATIENCE)
    flights.until_released(hooked)


def test_retry_before_the_body(flights):
    assert hooked.delay(flights.key, "retry").get(PATIENCE)
    flights.until_released(hooked)


@pytest.mark.parametrize("how", ["ignore", "reject"])
def test_ignore_and_reject(flights, how):
    first = join.delay(flights.key, how)
    flights.until("end")
    flights.until_released(join)
    assert join.delay(flights.key).id != first.id


def test_reject_with_requeue_runs_again(flights):
    result = late.delay(flights.key, "requeue")
    assert result.get(PATIENCE) == flights.key
    assert [event["id"] for event in flights.events("start")] == [result.id] * 2
    flights.until_released(late)


@pytest.mark.parametrize("how", ["retry", "retry_later"])
def test_a_retry_runs_under_the_same_id_and_frees_the_key(flights, how):
    result = join.delay(flights.key, how)
    assert result.get(PATIENCE)
    assert [(event["id"], event["retries"]) for event in flights.events("start")] == [(result.id, 0), (result.id, 1)]
    flights.until_released(join)


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
        flights.until_released(join, key)


def test_a_call_that_cannot_be_published_frees_the_key(flights):
    with pytest.raises(EncodeError):
        join.delay(flights.key, object())
    assert flights.free(join)


def test_a_call_that_celery_refuses_frees_the_key(flights):
    with pytest.raises(TypeError):
        join.apply_async((flights.key,), expires=object())
    assert flights.free(join)
    assert join.delay(flights.key).get(PATIENCE).startswith(flights.key)


def test_revoked_before_its_start(flights):
    result = join.apply_async((flights.key,), countdown=2)
    assert not flights.free(join)
    app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_free(join)


def test_expired_before_its_start(flights):
    result = join.apply_async((flights.key,), countdown=0.3, expires=0.1)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_released(join)


def test_a_killed_child_holds_the_key_for_no_longer_than_its_lease(flights):
    result = join.delay(flights.key, gated=True)
    os.kill(flights.until("start")["pid"], signal.SIGKILL)
    flights.until_released(join)
    with pytest.raises(WorkerLostError):
        result.get(PATIENCE)


def test_a_message_that_a_killed_child_left_takes_its_own_key_over(flights):
    result = requeued.delay(flights.key, gated=True)
    os.kill(flights.until("start")["pid"], signal.SIGKILL)
    flights.open()
    assert result.get(PATIENCE).startswith(flights.key)
    assert [event["id"] for event in flights.events("start")] == [result.id] * 2
    flights.until_released(requeued)


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
    flights.until_released(join)


def test_hard_time_limit(flights):
    result = join.apply_async((flights.key,), {"gated": True}, time_limit=0.5)
    with pytest.raises(TimeLimitExceeded):
        result.get(PATIENCE)
    flights.until_released(join)


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
    flights.until_released(join)


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


def test_a_lost_lease_interrupts_the_run_wherever_it_is(flights):
    result = interrupted.delay(flights.key, gated=True)  # whose gate never opens
    flights.until("start")
    record = flights.record(interrupted)
    until(lambda: record.fields().get("k") == result.id)
    record.client.delete(record.key)
    with pytest.raises(LockLost):
        result.get(PATIENCE)


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


def test_a_soft_time_limit_that_the_task_obeys_is_a_success(flights):
    result = join.apply_async((flights.key, "stop_softly"), soft_time_limit=1)
    assert result.get(PATIENCE) == f"{flights.key} in time"
    flights.until_released(join)


def test_a_retry_that_arrives_while_its_task_goes_on_waits_for_the_end(flights):
    result = join.delay(flights.key, "retry_and_go_on")
    flights.until("retried")
    flights.until("parked")
    assert len(flights.events("start")) == 1
    flights.open(f"{flights.key}-retried")
    until(lambda: result.state == "SUCCESS")
    flights.until_free(join)
    assert [event["what"] for event in flights.all() if event["what"] in ("start", "end")] == ["start", "end"] * 2


def test_a_task_id_that_is_used_again_runs_again(flights):
    values = []
    for _ in range(2):
        values.append(join.apply_async((flights.key,), task_id=f"mine-{flights.key}").get(PATIENCE))
        flights.until_free(join)
        app.AsyncResult(f"mine-{flights.key}").forget()
    assert values[0] != values[1]
    assert len(flights.events("start")) == 2


@pytest.mark.parametrize("scope", ["flight", "running"])
@pytest.mark.parametrize("on_duplicate", ["join", "rerun", "wait"])
def test_an_early_retry_of_a_task_id_that_is_used_again_runs(flights, scope, on_duplicate):
    task, mine = TASKS[scope, on_duplicate], f"mine-{flights.key}"
    task.apply_async((flights.key, "retry"), task_id=mine).get(PATIENCE)
    flights.until_free(task)
    app.AsyncResult(mine).forget()
    task.apply_async((flights.key, "retry_and_go_on"), task_id=mine)
    flights.until("parked")
    flights.open(f"{flights.key}-retried")
    flights.until("end", 4)
    flights.until_free(task)


def test_our_results_revoke_frees_the_key_at_once(flights):
    result = join.apply_async((flights.key,), countdown=3)
    joined = join.delay(flights.key)
    assert joined.id == result.id
    joined.revoke()
    assert flights.free(join)
    assert join.delay(flights.key).get(PATIENCE).startswith(flights.key)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    flights.until_free(join)


def test_our_results_revoke_frees_the_key_of_a_waiting_retry_at_once(flights):
    result = join.delay(flights.key, "retry_in_a_while")
    until(lambda: flights.record(join).fields().get("r") == "queued" and flights.events("end"))
    joined = join.delay(flights.key)
    assert joined.id == result.id
    joined.revoke()
    assert flights.free(join)
    assert join.delay(flights.key).get(PATIENCE).startswith(flights.key)
    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    assert [event["id"] for event in flights.events("start")].count(result.id) == 1
    flights.until_free(join)


def test_our_results_revoke_leaves_a_run_its_key(flights):
    result = join.delay(flights.key, gated=True)
    flights.until("start")
    token = flights.record(join).holder()
    result.revoke(wait=True, timeout=1)  # by then all workers have stored what they do
    assert flights.record(join).holder() == token
    flights.open()
    flights.until("end")
    flights.until_free(join)
    until(lambda: app.AsyncResult(result.id).successful())  # asked anew: see the next test


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
@pytest.mark.skipif(celery.VERSION < (5, 6), reason="before Celery 5.6 workers store nothing when they are told")
def test_celery_calls_a_run_revoked_until_it_ends_where_another_worker_is_told_so(flights):
    """Workers that do not know a task store REVOKED for it: since 5.7 not over STARTED, which the run's own stores."""
    runs = [join, late] if celery.VERSION >= (5, 7) else [join]
    results = [task.apply_async((flights.key,), {"gated": True}) for task in runs]
    flights.until("start", len(runs))
    if late in runs:
        until(lambda: results[1].state == "STARTED")
    for result in results:
        result.revoke(wait=True, timeout=1)
    assert results[0].state == "REVOKED"
    flights.open()
    for result in results[1:]:
        assert result.get(PATIENCE).startswith(flights.key)
    until(lambda: app.AsyncResult(results[0].id).successful())


@pytest.mark.parametrize("how", ["revoke", "our revoke", "expire"])
def test_what_is_parked_takes_over_from_a_flight_that_never_starts(flights, how):
    options = {"countdown": 3, "expires": 2} if how == "expire" else {"countdown": 3}
    first = join.apply_async((flights.key,), **options)
    second = join.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    if how == "revoke":
        app.control.revoke(first.id)
    elif how == "our revoke":
        first.revoke()
    assert second.get(PATIENCE).startswith(flights.key)
    with pytest.raises(TaskRevokedError):
        first.get(PATIENCE)
    flights.until_free(join)
    assert [event["id"] for event in flights.events("start")] == [second.id]


def test_a_purged_flight_holds_its_key_until_the_queue_timeout(flights):
    first = brief.apply_async((flights.key,), queue="nobody")
    assert brief.delay(flights.key).id == first.id
    purged = app.control.purge()  # of the queues that this app knows by now
    with app.connection_for_write() as connection:
        purged += connection.default_channel.queue_purge("nobody")
    assert purged
    flights.until_free(brief)
    assert brief.delay(flights.key).get(PATIENCE).startswith(flights.key)


@pytest.mark.parametrize("how", ["requeue", "retry", "retry_later"])
def test_what_is_parked_waits_for_the_end_of_a_flight_that_comes_again(flights, how):
    first = late.delay(flights.key, how, gated=True)
    flights.until("start")
    second = late.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    flights.open()
    assert first.get(PATIENCE) == second.get(PATIENCE)
    flights.until_free(late)
    assert [event["id"] for event in flights.events("start")] == [first.id] * 2


@pytest.mark.parametrize("how", ["ignore", "reject", "replace", "retry_with_another_key"])
def test_what_is_parked_runs_itself_after_a_flight_without_outcome(flights, how):
    first = join.delay(flights.key, how, gated=True)
    flights.until("start")
    second, third = (join.apply_async((flights.key,), task_id=f"{n}-{flights.key}") for n in (2, 3))
    flights.until("parked", 2)
    flights.open()
    values = {result.get(PATIENCE) for result in (second, third)}
    assert len(values) <= 2
    assert all(value.startswith(flights.key) for value in values)
    if how not in ("ignore", "reject"):
        assert first.get(PATIENCE)
    flights.until_free(join)
    runs = [event["what"] for event in flights.all() if event["what"] in ("start", "end")]
    assert runs == ["start", "end"] * (len(runs) // 2)


def test_a_long_outcome_is_looked_up(flights):
    first = join.delay(flights.key, "long", gated=True)
    flights.until("start")
    second = join.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    flights.open()
    value = first.get(PATIENCE)
    assert second.get(PATIENCE) == value
    assert len(value) > LONGEST_CARRIED
    assert len(flights.events("start")) == 1


def test_a_long_outcome_that_nobody_keeps_is_carried(flights):
    followed = follow.s().set(task_id=f"followed-{flights.key}")
    join.apply_async((flights.key, "long"), {"gated": True}, ignore_result=True, task_id=f"first-{flights.key}")
    flights.until("start")
    join.apply_async((flights.key,), task_id=f"second-{flights.key}", link=followed)
    flights.until("parked")
    flights.open()
    (value,) = app.AsyncResult(followed.options["task_id"]).get(PATIENCE)
    assert value.startswith(flights.key)
    assert len(flights.events("start")) == 1


def test_an_exception_of_the_projects_own_is_handed_on_by_json(flights):
    first = join.delay(flights.key, "refuse", gated=True)
    flights.until("start")
    second = join.apply_async((flights.key,), task_id=f"second-{flights.key}")
    flights.until("parked")
    flights.open()
    errors = [result.get(PATIENCE, propagate=False) for result in (first, second)]
    assert [type(error) for error in errors] == [Refused] * 2
    assert errors[0].args == errors[1].args == (flights.key, "é" * 10_000)


def test_those_that_wait_need_no_result(flights):
    for _ in range(3):
        silent.apply_async((flights.key,), {"gated": True})
    flights.until("start")
    flights.open()
    flights.until("end", 3)
    flights.until_free(silent)
    assert [event["what"] for event in flights.all() if event["what"] in ("start", "end")] == ["start", "end"] * 3
