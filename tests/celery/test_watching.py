"""How a worker's parent notices a dead child: a real event loop watches real processes."""

import logging
import subprocess
from types import SimpleNamespace

import pytest
from kombu.asynchronous import Hub

from django_cluster_lock.flights.connected import Connected
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.outbox import Landing
from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.flights.recovery import end
from django_cluster_lock.flights.watching import watch
from tests.celery.workload import app, join
from tests.records import until


class Consumer(SimpleNamespace):
    """What a worker's consumer is for those that follow its connections to the broker."""

    def connect(self):
        Connected(self).start(self)

    def lose_broker(self):
        """As each version of Celery does, but for those that do less."""
        self.hub.reset()
        self.timer.clear()


@pytest.fixture
def consumer():
    hub = Hub()
    consumer = Consumer(app=app, hub=hub, timer=hub.timer)
    consumer.connect()
    yield consumer
    Consumer(app=app, hub=None, timer=hub.timer).connect()
    hub.close()


@pytest.fixture
def hub(consumer):
    return consumer.hub


@pytest.fixture
def child():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def ended(hub, child, told):
    child.kill()
    until(lambda: hub.run_once() or told)
    return told


def test_the_latest_run_of_a_child_is_told_of_its_death(hub, child):
    told = []
    for run in ("first", "second"):
        watch(child.pid, lambda run=run: told.append(run))
    assert ended(hub, child, told) == ["second"]
    assert not hub.readers


@pytest.mark.parametrize("runs", [["first"], ["first", "second"]])
def test_a_child_is_watched_still_when_the_broker_was_lost(consumer, hub, child, runs):
    told = []
    watch(child.pid, lambda: told.append(runs[0]))
    consumer.lose_broker()
    consumer.connect()
    for run in runs[1:]:
        watch(child.pid, lambda run=run: told.append(run))
    assert ended(hub, child, told) == [runs[-1]]


def test_a_child_that_is_dead_by_then_is_told_at_once(hub, child):
    told = []
    child.kill()
    child.wait()
    watch(child.pid, lambda: told.append("dead"))
    assert told == ["dead"]
    assert not hub.readers


def test_what_failed_is_tried_again_when_the_broker_was_lost(consumer, hub, flights, caplog):
    def failures():
        return sum(record.message == "flight.not_freed" for record in caplog.records)

    caplog.set_level(logging.WARNING, "django_cluster_lock")
    end(join, Ground.of(app, Policy(alias="nowhere"), flights.key), Landing(f"{flights.key}:0"))
    for count in (2, 3):
        consumer.lose_broker()
        consumer.connect()
        assert failures() == count
    until(lambda: hub.run_once() or failures() > count)
