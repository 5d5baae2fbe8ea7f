"""Callers, a broker, workers and the misfortunes of all of them, interleaved at will around one key's flights."""

import itertools
import sys
import time
from collections import Counter

import hypothesis.strategies as st
from celery import states
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_cluster_lock import names, scripts
from django_cluster_lock.actions import Answer, NoAnswer, Send
from django_cluster_lock.aliases import aliases
from django_cluster_lock.flights.outbox import Outbox
from tests.model import agents
from tests.model.agents import (
    ALIAS,
    NAME,
    Agent,
    Body,
    Broker,
    BrokerDown,
    Delivery,
    Job,
    ModelAlias,
    Publication,
    Received,
)
from tests.model.clients import ROLE
from tests.model.flight_ledger import OUTCOME, FlightLedger
from tests.model.ledger import require
from tests.model.shard import FlightShard

MODES = ["join", "join", "rerun", "rerun", "wait", "wait", "skip", "raise"]
CROWD = 8  # agents at work
LONG = 20  # steps: most agents have less
MILLISECOND = 1000
RENEWAL = 10_000  # ms between renewals
ENDS = ["succeed", "succeed", "succeed", "fail", "ignore", "retry", "retry", "requeue", "stop"]
FAULTS = [
    *("lose", "lose_for_good", "unreached", "lose_answer", "lose_answer_for_good"),
    *("delay", "delay_for_good", "unreplicated"),
]
EVENTS = [
    *("send", "sweep", "run_inline", "redeliver", "redeliver", "revoke"),
    *("stall", "lose_message", "deliver_late", "deliver_late"),
    *("fall_behind", "fall_behind", "catch_up"),
]

some = st.integers(0, 99)  # among larger ones Hypothesis mixes what stands in the modules that are imported by then


class FlightMachine(RuleBasedStateMachine):
    """What must hold is in `flight_ledger`, and in the machine's own invariants.

    Args:
        connection: a redis-py client of the node that serves the key.
        prefix: the test's KEY_PREFIX.
        mutations: changed texts of scripts, by name.
        seen: counts what happened, so that a test can tell that enough did.
        modes: what duplicates may get.
    """

    examples = itertools.count()

    def __init__(self, connection, prefix, mutations=None, seen=None, modes=MODES):
        super().__init__()
        self.seen, self.modes = Counter() if seen is None else seen, modes
        prefix = f"{prefix}-{next(self.examples)}"
        lock = names.keys_of(prefix, NAME)
        self.shard = FlightShard(connection, Outbox(lock, names.outbox_keys(prefix, lock), b""), mutations)
        self.keys = lock
        aliases[ALIAS] = ModelAlias(prefix)
        self.broker = Broker()
        self.agents, self.late, self.slow = [], [], []
        self.versions, self.numbers = itertools.count(1), itertools.count(1)
        self.job = self.ledger = None

    @initialize(mode=some, acks_late=st.booleans(), rejects=st.booleans())
    def choose(self, mode, acks_late, rejects):
        mode = _picked(self.modes, mode)
        self.job = Job(mode, acks_late=acks_late, reject_on_worker_lost=rejects)
        self.ledger = FlightLedger(mode)

    def teardown(self):
        try:
            if self.job and sys.exc_info()[0] is None:
                self._come_to_rest()
        finally:
            for agent in self.agents:
                agent.die()
            self.shard.clear()
            aliases.pop(ALIAS, None)

    # Calls are made, and things take their course

    def _room(self):
        return len(self.agents) < CROWD

    @precondition(_room)
    @rule(forced=st.sampled_from([False, False, True]))
    def call(self, forced):
        version = next(self.versions)
        agent = Agent("caller", lambda: self.job.call(version, forced_as=f"forced{version}" if forced else ""))
        agent.call = self.ledger.call(version)
        self._begin(agent)

    @precondition(lambda self: self._moves())
    @rule(pick=some)
    def go_on(self, pick):
        self._move(_picked(self._moves(), pick))

    @precondition(lambda self: self._moves())
    @rule(picks=st.lists(some, min_size=2, max_size=6))
    def go_on_for_a_while(self, picks):
        for pick in picks:
            if moves := self._moves():
                self._move(_picked(moves, pick))
                self.runs_are_alone()
                self.messages_are_somewhere()

    @precondition(lambda self: self._moves())
    @rule()
    def everybody_goes_on(self):
        for move in self._moves():
            if move in self.agents or move in self.broker.ready:
                self._move(move)

    @precondition(lambda self: self._moves())
    @rule(pick=some, how=st.sampled_from(ENDS))
    def one_goes_on_alone(self, pick, how):
        """As far as it can, while all others stand still: that is what separates them most."""
        move = _picked(self._moves(), pick)
        agent = move if isinstance(move, Agent) else self._take(move)
        for _ in range(LONG):
            if agent not in self.agents:
                break
            self._step(agent, how)

    @precondition(lambda self: self._bodies())
    @rule(pick=some, how=st.sampled_from(ENDS))
    def end_body(self, pick, how):
        self._end_body(_picked(self._bodies(), pick), how)

    @precondition(_room)
    @rule(event=st.sampled_from(EVENTS), pick=some)
    def happen(self, event, pick):
        getattr(self, f"_{event}")(pick)

    @rule(milliseconds=st.sampled_from([1, 300, 6000, 40_000, 110_000]))
    def let_time_pass(self, milliseconds):
        self._move_time(milliseconds)

    # Misfortunes

    @precondition(lambda self: self._steps())
    @rule(pick=some, fault=st.sampled_from(FAULTS))
    def disturb(self, pick, fault):
        agent = _picked(self._steps(), pick)
        self.ledger.calm = False
        if isinstance(agent.step, Send):
            getattr(self, f"_{fault}")(agent)
        elif isinstance(agent.step, Publication):
            if fault == "lose_answer":
                self._put(agent, agent.step.message)
            self._resume(agent, error=BrokerDown())

    @precondition(lambda self: self.agents)
    @rule(pick=some, fate=st.sampled_from(["before", "after", "late"]), host=st.booleans(), noticed=st.booleans())
    def kill(self, pick, fate, host, noticed):
        self._kill(_picked(self.agents, pick), fate, host, noticed)

    def _send(self, pick):
        """A message that nobody has claimed the key for."""
        call = self.ledger.call(next(self.versions))
        self.broker.put(self.job.message(call.version, f"sent{call.version}"))
        self.ledger.tell(self.broker.ready[-1].entry, call)

    def _sweep(self, pick):
        self._begin(Agent("sweep", self.job.drain))

    def _run_inline(self, pick):
        if not any(agent.kind == "inline" for agent in self.agents):
            token = b"inline%010d" % next(self.numbers)
            self._begin(Agent("inline", lambda: self.job.wait_inline(token)))

    def _redeliver(self, pick):
        """The broker takes a worker for dead that is slow."""
        if self.broker.unacknowledged:
            delivery = _picked(self.broker.unacknowledged, pick)
            self.broker.ready.append(Delivery(delivery.message, redelivered=True))
            self.slow.extend(agent for agent in self.agents if agent.delivery is delivery)

    def _revoke(self, pick):
        """A worker drops a message before its start."""
        if self.broker.ready:
            delivery = _picked(self.broker.ready, pick)
            self.ledger.excuse(delivery.entry, "revoked")
            self.broker.give(delivery)
            self._begin(Agent("parent", Received(self.job, self.broker, delivery).drop, delivery=delivery))

    def _fall_behind(self, pick):
        """A message or a process is slow: all others may go on for long before it does."""
        if moves := self._moves():
            self.slow.append(_picked(moves, pick))

    def _catch_up(self, pick):
        if self.slow:
            self.slow.pop(pick % len(self.slow))

    def _stall(self, pick):
        """A process that stands still renews no lease."""
        if self._bodies():
            self.ledger.calm = False
            _picked(self._bodies(), pick).renews = False

    def _lose_message(self, pick):
        if self.broker.ready:
            self.ledger.calm = False
            delivery = self.broker.ready.pop(pick % len(self.broker.ready))
            self.ledger.excuse(delivery.entry, "lost by the broker")

    def _deliver_late(self, pick):
        if self.late:
            self._run_commands(None, self.late.pop(pick % len(self.late)))

    # What must hold at any time

    @invariant()
    def runs_are_alone(self):
        """F1: who counts on a lease has it."""
        record = self.shard.records[self.keys.record]
        for agent in self.agents:
            if agent.holds and agent.lease_until > self.shard.now:
                self.seen["running"] += 1
                mine = record.held(self.shard.now) and record.holder == agent.token
                require(mine, "F1", "the key of a run is not its own", agent.kind, agent.token, record)

    @invariant()
    def messages_are_somewhere(self):
        if self.ledger is None:
            return
        record = self.shard.records[self.keys.record]
        places = set(record.parked)
        places.update(delivery.entry for delivery in (*self.broker.ready, *self.broker.unacknowledged))
        places.update(agent.delivery.entry for agent in self.agents if agent.delivery)
        settled = all(agent.kind in ("child", "inline") for agent in self.agents) and record.held(self.shard.now)
        self.ledger.located(places, record if settled else None)

    # How it is done

    def _steps(self):
        return [agent for agent in self.agents if not isinstance(agent.step, Body)]

    def _moves(self):
        """What goes on by itself: agents that wait for a step, messages that wait for a worker."""
        moves = [*self._steps(), *(self.broker.ready if self._room() else [])]
        return [move for move in moves if move not in self.slow]

    def _move(self, move):
        self._go_on(move) if isinstance(move, Agent) else self._take(move)

    def _bodies(self):
        return [agent for agent in self.agents if isinstance(agent.step, Body)]

    def _begin(self, agent):
        agent.holds, agent.renews, agent.lease_until, agent.token, agent.outcome = False, True, 0, None, None
        agent.taken = self.ledger.moment
        agent.ran, agent.how = False, ""
        self.agents.append(agent)
        self._resume(agent)

    def _take(self, delivery):
        self.broker.give(delivery)
        request = Received(self.job, self.broker, delivery)
        if not self.job.acks_late:
            self.broker.acknowledge(delivery)
        agent = Agent("child", lambda: self.job.execute(request.context()), delivery=delivery)
        agent.received = request
        self._begin(agent)
        return agent

    def _resume(self, agent, answer=None, error=None):
        agent.fail(error) if error else agent.go_on(answer)
        if agent.step is None:
            self.agents.remove(agent)
            self._finished(agent)
        elif isinstance(agent.step, Body):
            self._body(agent)
        elif isinstance(agent.step, Send) and _script(agent.step) in (scripts.LAND.sha, scripts.RELEASE.sha):
            agent.holds = False  # what it asks for may happen at any time now

    def _body(self, agent):
        if agent.kind == "inline":
            agent.holds = True
            return
        agent.ran = True
        agent.outcome = f"{agent.delivery.entry}#{next(self.numbers)}"
        first = agent.delivery.message.headers["retries"] == 0 and not agent.delivery.redelivered
        entry, version, now = agent.delivery.entry, agent.step.version, self.shard.now
        self.ledger.begun(entry, version, agent.token, agent.outcome, now, first=first)
        self.seen["begun", self.ledger.mode] += 1

    def _end_body(self, agent, how):
        if how == "requeue" and not self.job.acks_late:
            how = "succeed"
        agent.how = how
        self._resume(agent, (how, agent.outcome))

    def _step(self, agent, how="succeed"):
        self._end_body(agent, how) if isinstance(agent.step, Body) else self._go_on(agent)
        self.runs_are_alone()
        self.messages_are_somewhere()

    def _go_on(self, agent):
        step = agent.step
        if isinstance(step, Send):
            self._answer(agent, self._run_commands(agent, step.commands))
        else:
            if isinstance(step, Publication):
                self._put(agent, step.message)
            self._resume(agent)

    def _answer(self, agent, values):
        now = time.monotonic()
        acknowledged = values[-1] == 1
        status = _status(values, self.job)
        if status == b"own" and agent.kind == "child" and acknowledged:
            agent.holds = agent.lease_until > self.shard.now
        self._resume(agent, Answer(values, now, now))

    def _put(self, agent, message):
        self.broker.put(message)
        self.ledger.tell(self.broker.ready[-1].entry, getattr(agent, "call", None))

    # Faults of requests

    def _lose(self, agent):
        self._resume(agent, error=NoAnswer("lost", time.monotonic(), time.monotonic()))

    def _lose_for_good(self, agent):
        self._resume(agent, error=NoAnswer("lost", 1e12, time.monotonic()))

    def _unreached(self, agent):
        self._resume(agent, error=NoAnswer("not reached", 1e12))

    def _lose_answer(self, agent):
        self._run_commands(agent, agent.step.commands)
        self._lose(agent)

    def _lose_answer_for_good(self, agent):
        self._run_commands(agent, agent.step.commands)
        self._lose_for_good(agent)

    def _delay(self, agent):
        self.late.append(agent.step.commands)
        self._lose(agent)

    def _delay_for_good(self, agent):
        self.late.append(agent.step.commands)
        self._lose_for_good(agent)

    def _unreplicated(self, agent):
        values = self._run_commands(agent, agent.step.commands)
        for place, command in enumerate(agent.step.commands):
            if command[0] == b"WAIT":
                values[place] = 0
        self._answer(agent, values)

    def _run_commands(self, agent, commands):
        values = []
        for command in commands:
            if command[0] == b"BLPOP":
                values.append(self.shard.pop(command[1]))
            elif command[0] == b"WAIT":
                values.append(1)
            elif command[0] == b"ROLE":
                values.append(ROLE)
            elif command[0] in (b"CLUSTER", b"INFO"):
                values.append(None)
            else:
                values.append(self._run_script(agent, command))
        return values

    def _run_script(self, agent, command):
        _, ran = self.shard.run(command)
        self.seen[ran.name, ran.status] += 1
        if agent and ran.status == b"own" and ran.name in ("start", "acquire"):
            agent.token, agent.lease_until = ran.token, ran.now + int(ran.args[1])
        self.ledger.ran(ran, getattr(agent, "call", None))
        if ran.name == "land" and agent and agent.ran and ran.args[OUTCOME]:
            self.ledger.settles(agent.outcome, ran.now)
            self.seen["gave an outcome", self.ledger.mode] += 1
        return ran.answer

    # Ends of agents

    def _finished(self, agent):
        getattr(self, f"_finished_{agent.kind}")(agent)

    def _finished_caller(self, agent):
        result = agent.result
        self.seen["called", type(result).__name__] += 1
        if isinstance(result, Exception) or result is None:
            return
        agent.call.gives = result.id
        if agent.call.entry == f"{result.id}:0":
            self.ledger.tell(agent.call.entry, agent.call)

    def _finished_child(self, agent):
        state, context, delivery = agent.result, agent.context, agent.delivery
        entry = delivery.entry
        self.seen["ended", state] += 1
        agent.holds = False
        if state == states.REJECTED and self.job.acks_late:
            agent.received.reject(requeue=True)
            return
        if state is None:
            if self.job.acks_late:
                self.broker.requeue(delivery)
            else:
                self.ledger.excuse(entry, "its process was stopped")
            return
        self.broker.acknowledge(delivery)
        if context.get("_single_flight_moved_on"):
            return
        self.ledger.completed(entry, self._outcome(agent), self.shard.now, taken=agent.taken, own=agent.ran)

    def _outcome(self, agent):
        _, value = self.job.backend.results.get(agent.delivery.message.headers["id"], (None, None))
        if isinstance(value, agents.Failed):
            value = value.args[0]
        return value if isinstance(value, str) else None

    def _finished_parent(self, agent):
        pass

    _finished_sweep = _finished_inline = _finished_parent

    def _kill(self, agent, fate, host, noticed):
        self.ledger.calm = False
        step = agent.step
        if fate == "after" and isinstance(step, Send):
            self._run_commands(agent, step.commands)
        elif fate == "after" and isinstance(step, Publication):
            self._put(agent, step.message)
        elif fate == "late" and isinstance(step, Send):
            self.late.append(step.commands)
        self.agents.remove(agent)
        agent.die()
        delivery = agent.delivery
        if agent.kind == "child":
            self._child_died(agent, delivery, host, noticed)
        elif agent.kind == "parent" and delivery in self.broker.unacknowledged:
            self.broker.requeue(delivery)

    def _child_died(self, agent, delivery, host, noticed):
        entry = delivery.entry
        succeeded = self.job.backend.get_task_meta(agent.context.id or "")["status"] == states.SUCCESS
        comes_again = self.job.acks_late and (host or (self.job.reject_on_worker_lost and not succeeded))
        if not comes_again or delivery not in self.broker.unacknowledged:
            self.ledger.excuse(entry, "its process died")
        if host:
            self.broker.requeue(delivery)
        else:
            self._begin(Agent("parent", lambda: agent.received.child_was_lost(at_once=noticed), delivery=delivery))

    # Time

    def _move_time(self, milliseconds):
        while milliseconds > 0:
            step = min(milliseconds, RENEWAL)
            before = self.shard.records[self.keys.record]
            self.shard.move_time(step * MILLISECOND)
            milliseconds -= step
            if self.ledger:
                after = self.shard.records[self.keys.record]
                if before.holder and before.deadline <= self.shard.now:
                    self.ledger.calm = False
                self.ledger.see(after, self.shard.now)
            for agent in self.agents:
                if agent.holds and agent.renews and agent.lease_until > self.shard.now:
                    args = agent.token, b"31001"
                    command = b"EVALSHA", scripts.RENEW.sha, b"1", self.keys.record, *args
                    answer = self._run_script(None, command)
                    require(answer[0] == b"ok", "F1", "the lease of a run was lost", agent.token)
                    agent.lease_until = self.shard.now + 31001

    def _come_to_rest(self):
        self.late.clear()
        for turn in range(300):
            for agent in list(self.agents):
                if agent in self.agents:
                    self._step(agent)
            for delivery in list(self.broker.ready):
                self._take(delivery)
            if any(agent.kind != "inline" for agent in self.agents):
                continue
            for delivery in list(self.broker.unacknowledged):
                self.broker.requeue(delivery)
            record = self.shard.look(self.keys)
            if not (self.agents or self.broker.ready or record.order or record.held(self.shard.now)):
                break
            if not self.broker.ready:
                self._move_time(6000 if turn % 3 else 20_000)
                self._begin(Agent("sweep", self.job.drain))
        else:
            require(False, "F10", "it never came to rest", self.agents, self.shard.look(self.keys))
        require(not record.listed, "F3", "an empty outbox is listed", record)
        self.ledger.at_rest()


def _script(send):
    return next((command[1] for command in send.commands if command[0] == b"EVALSHA"), None)


def _status(values, job):
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return value[0]
    return None


def _picked(things, pick):
    return things[pick % len(things)]
