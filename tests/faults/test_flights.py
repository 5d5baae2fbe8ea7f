"""What a network may do to the call of a task: no key stays taken for a message that never went out."""

import pytest
from celery import Celery

from django_cluster_lock import LockUnavailable, single_flight
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.policy import POLICY
from tests.faults.proxy import Rule
from tests.records import Record, until

app = Celery("faulty", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task(name="faulty", shared=False)
@single_flight
def task(key):
    return key


@pytest.fixture
def record(proxy, cluster, prefix):
    def of(key):
        return Record(cluster, prefix, name_of(task, getattr(task, POLICY), (key,), {}))

    return of


def warm_up():
    """Brings the scripts to all servers, so that a fault meets what it is meant for."""
    for key in range(20):
        task.delay(key)


def test_a_claim_without_an_answer_is_taken_back_once_its_shard_can_be_asked(proxy, record):
    warm_up()
    proxy.harm(Rule("claim", reply="drop", times=float("inf")))
    for command in ("release", "land"):
        proxy.harm(Rule(command, request="drop", times=float("inf")))
    with pytest.raises(LockUnavailable):
        task.delay("a")
    assert record("a").holder().startswith("~")
    proxy.heal()
    until(lambda: record("a").holder() is None)


@pytest.mark.parametrize("fault", [{"request": "drop"}, {"reply": "drop"}, {"request": "double"}])
def test_a_claim_is_made_once(proxy, record, fault):
    warm_up()
    rule = proxy.harm(Rule("claim", **fault))
    result = task.delay("a")
    assert len(rule.begun) == 1
    assert record("a").fields()["k"] == result.id
    assert task.delay("a").id == result.id
