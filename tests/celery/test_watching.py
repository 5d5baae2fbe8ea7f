"""How a worker's parent notices a dead child: a real event loop watches real processes."""

import subprocess

import pytest
from kombu.asynchronous import Hub

from django_cluster_lock.flights.recovery import watch, work_in
from tests.records import until


@pytest.fixture
def hub():
    hub = Hub()
    work_in(hub)
    yield hub
    work_in(None)
    hub.close()


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
def test_a_child_is_watched_still_when_the_loop_was_reset(hub, child, runs):
    """As a worker does when it loses its broker."""
    told = []
    watch(child.pid, lambda: told.append(runs[0]))
    hub.reset()
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
