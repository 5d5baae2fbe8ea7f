"""Interleavings of flights that a random search meets rarely, or has met once, each gone through step by step."""

import pytest

from tests.model.agents import Agent
from tests.model.flight_mutants import AFTER_A_LATER_CALL, AFTER_ITS_COPY, BEFORE_THOSE_LEFT_BEHIND
from tests.model.flights import FlightMachine
from tests.model.ledger import Violation

pytestmark = pytest.mark.usefixtures("quiet")


class Scene(FlightMachine):
    """A machine that is told what happens next."""

    def __init__(self, connection, prefix, mode, mutant=None):
        super().__init__(connection, prefix, mutant and mutant.texts(), modes=[mode])
        self.choose(0, acks_late=True, rejects=False)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.teardown()

    def called(self, task_id=""):
        for attempt in range(2):  # to the ledger, what is used again is another's
            self.ledger.stories.pop(f"{task_id}:{attempt}", None)
        version = next(self.versions)
        caller = Agent("caller", lambda: self.job.call(version, forced_as=task_id))
        caller.call = self.ledger.call(version)
        self._begin(caller)
        self.goes_on(caller)

    def sent(self):
        """By its name: nobody claims the key for it."""
        self._send(0)

    def taken(self):
        """The message that the broker has had for the shortest time comes to a worker."""
        return self._take(self.broker.ready[-1])

    def delivered_again(self):
        """What has not been acknowledged, but whose worker is alive: its copy comes to another one."""
        self._redeliver(0)
        return self.taken()

    def goes_on(self, agent, how="succeed"):
        while agent in self.agents:
            self._step(agent, how)

    def runs(self):
        """The versions that have run, in their order."""
        return [run.version for run in self.ledger.runs.values()]


@pytest.fixture
def scene(flights_node, prefix):
    return lambda mode, mutant=None: Scene(flights_node, prefix, mode, mutant)


def message_after_its_copy(scene):
    scene.called()
    original = scene.taken()
    scene.goes_on(scene.delivered_again())
    scene.goes_on(original)
    assert scene.runs() == [1]


def message_after_a_later_call(scene):
    scene.called()
    late = scene.broker.ready[0]
    scene.let_time_pass(110_000)
    scene.called()
    scene.goes_on(scene.taken())
    scene.goes_on(scene._take(late))
    assert scene.runs() == [2]


@pytest.mark.parametrize(
    ("mode", "happens", "mutant"),
    [("join", message_after_its_copy, AFTER_ITS_COPY), ("rerun", message_after_a_later_call, AFTER_A_LATER_CALL)],
    ids=["F5", "F7"],
)
def test_what_comes_late_does_not_run(scene, mode, happens, mutant):
    with scene(mode) as as_it_is:
        happens(as_it_is)
    with pytest.raises(Violation, match=mutant.breaks), scene(mode, mutant) as changed:
        happens(changed)


def arrival_behind_what_a_dead_worker_left(scene):
    scene.called()
    run = scene.taken()
    scene._step(run)
    scene.called()
    scene._kill(run, "before", host=True, noticed=False)
    scene.let_time_pass(110_000)
    scene.sent()
    scene.goes_on(scene.taken())
    scene.goes_on(scene.taken())
    assert scene.runs() == [1, 2]


def test_an_arrival_runs_after_those_left_behind(scene):
    with scene("wait") as as_it_is:
        arrival_behind_what_a_dead_worker_left(as_it_is)
    mutant = BEFORE_THOSE_LEFT_BEHIND
    with pytest.raises(Violation, match=mutant.breaks), scene("wait", mutant) as changed:
        arrival_behind_what_a_dead_worker_left(changed)


def test_a_message_that_has_met_its_running_copy_does_not_run_after_it(scene):
    with scene("wait") as machine:
        machine.sent()
        original = machine.taken()
        copy = machine.delivered_again()
        machine._step(copy)
        machine._step(original)
        machine.goes_on(copy)
        machine.goes_on(original)
    assert machine.runs() == [1]


def test_the_retry_of_a_copy_that_was_sent_without_a_call_settles_no_later_call(scene):
    with scene("rerun") as machine:
        machine.sent()
        original = machine.taken()
        machine.goes_on(machine.delivered_again(), "retry")
        retry = machine.taken()
        machine.called()
        machine.goes_on(retry)
        machine.goes_on(original)
        machine.goes_on(machine.taken())
        assert machine.runs() == [1, 1, 2]


def test_a_copy_of_an_earlier_use_of_a_task_id_leaves_what_the_later_one_has_parked(scene):
    with scene("wait") as machine:
        machine.called("mine")
        machine.goes_on(machine.taken(), "retry")
        retry = machine.taken()
        copy = machine.delivered_again()
        machine.goes_on(retry)
        machine.called("mine")
        run = machine.taken()
        machine._step(run)
        machine._step(run, "retry")
        machine._step(run)
        machine.goes_on(machine.taken())
        assert machine.shard.look(machine.keys).parked
        machine.goes_on(copy)
        machine.goes_on(run)
    assert machine.runs() == [1, 1, 2, 2]


def test_a_request_that_comes_after_the_end_of_its_run_takes_the_key_for_nobody(scene):
    with scene("join") as machine:
        machine.called()
        run = machine.taken()
        machine._delay(run)
        machine.goes_on(run)
        machine._deliver_late(0)
        assert not machine.shard.look(machine.keys).held(machine.shard.now)
