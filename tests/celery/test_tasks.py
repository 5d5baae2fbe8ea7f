"""The library's own tasks, by a real worker."""

import logging

import pytest

from django_cluster_lock import LockUnavailable, names
from django_cluster_lock.tasks import MOST_LOGGED, verify_locks
from tests.celery.workload import app

PATIENCE = 60
NAME = "django_cluster_lock.tasks.verify_locks"


@pytest.fixture
def litter(flights, setup):
    """Leaves entries in the index that nobody holds or waits for."""

    def leave(count=1):
        for number in range(count):
            keys = names.keys_of(setup["locks"]["verified"]["KEY_PREFIX"], f"{flights.key}-{number}")
            flights.cluster.admin().zadd(keys.index, {keys.member: 1})

    yield leave
    verify_locks("verified", repair=True)


def test_verify_by_a_worker(flights, prefork, litter):
    litter()
    found = {"alias": "verified", "keys": 1, "findings": {"dead-entry": 1}, "repaired": 0, "unread": 0}
    by_name = app.send_task(NAME, kwargs={"alias": "verified"})
    assert by_name.get(PATIENCE) == found
    flights.until_free(verify_locks, "verified")
    assert verify_locks.delay("verified", repair=True).get(PATIENCE) == found | {"repaired": 1}
    flights.until_free(verify_locks, "verified")
    assert verify_locks.delay("verified").get(PATIENCE) == found | {"keys": 0, "findings": {}}


def test_one_run_for_each_alias(flights):
    first = verify_locks.apply_async(queue="nobody")
    second = verify_locks.delay("default", repair=True)
    assert (second.state, second.flight_id) == ("SKIPPED", first.id)


def test_findings_are_logged(flights, litter, caplog):
    litter()
    with caplog.at_level(logging.INFO, "django_cluster_lock"):
        verify_locks("verified")
        verify_locks("verified", repair=True)
    told = [record for record in caplog.records if record.message == "locks.finding"]
    assert [(each.levelname, each.repaired) for each in told] == [("WARNING", False), ("INFO", True)]
    details = {(each.alias, each.kind, each.lock, each.tag, each.detail) for each in told}
    assert details == {("verified", "dead-entry", f"{flights.key}-0", None, "nobody holds it or waits for it")}
    assert all(each.key and each.node for each in told)


def test_a_flood_of_findings_is_counted(flights, litter, caplog):
    litter(MOST_LOGGED + 1)
    assert verify_locks("verified")["findings"] == {"dead-entry": MOST_LOGGED + 1}
    assert len([record for record in caplog.records if record.message == "locks.finding"]) == MOST_LOGGED


def test_a_cluster_that_cannot_be_asked_is_an_error(flights):
    with pytest.raises(LockUnavailable):
        verify_locks("nowhere")
