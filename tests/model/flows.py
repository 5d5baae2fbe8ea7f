"""The real flows of the protocol, on the real routes, run once for each course that they may take and remembered.

A generator cannot be copied. So a flow is known by what was put into it: a tree, each node of which is a flow that
waits for an answer or has ended. To go on from a node, its flow is run again from the start, unless that was done
before. Two nodes are one where the flow stands at the same line with the same values, and knows the same of the
cluster. Times are compared relative to the client's clock at the node.
"""

import copy
import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isgenerator
from types import FunctionType, MethodType
from typing import Any
from unittest import mock

from django_cluster_lock import exchange, protocol, scripts
from django_cluster_lock.actions import Answer, NoAnswer, Pause, Refusal, Send, SendAll
from django_cluster_lock.connections import topology
from django_cluster_lock.errors import LockError
from django_cluster_lock.names import keys_of
from django_cluster_lock.protocol import Grant, Terms
from tests.model.world import UNIT

KEYS = keys_of("model", "lock")._replace(slot=0)
TERMS = Terms(2 * UNIT, 1, None, (b"host", b"1", b"main", b""), patience=0.15)
SCRIPTS = {
    digest: script.name
    for script in (scripts.ACQUIRE, scripts.ATTACH, scripts.RENEW, scripts.RELEASE)
    for digest in (script.sha, script.text)
}
# How long things take on the client's clock: far shorter than a unit of the world's time. What is answered or refused
# takes no time, so that as few moments as possible differ.
UNHEARD, PAUSED, BETWEEN = 0.1, 0.1, 0.2
START = 3  # parts of a key of how a flow began
ASLEEP = 2000
OLD = 2 * UNIT  # what is older than this is as good as that old


class Moment(float):
    """A time of the client's clock, told apart from a length of time."""

    __slots__ = ()

    def __add__(self, other):
        return Moment(float(self) + float(other))

    __radd__ = __add__

    def __sub__(self, other):
        difference = float(self) - float(other)
        return difference if isinstance(other, Moment) else Moment(difference)


class Order:
    """In place of chance: whom of the cluster a client asks first for the layout."""

    def __init__(self, nodes):
        self.nodes, self.first, self.asked = nodes, 0, False

    def shuffle(self, found):
        self.asked = True
        found.sort(key=lambda node: (self.nodes.index(node) - self.first) % len(self.nodes))


@dataclass(slots=True, eq=False)
class Step:
    """A flow at rest.

    Args:
        key: the step before it and what was put in there, or how it began.
        sends: what it asks of nodes, if it has not ended: for each the node's address and the commands.
        batch: the answers are wanted as a list.
        calls: the scripts among the commands: each a name, a token, and whether that is to be marked, or for an attach
            the token of the detached lease. None where the client finds its way.
        result: of a flow that has ended: "granted", the units of validity, and whether a request may still be under
            way; or the error's name and text; or what the flow returned.
        known: what the client knows of the cluster after that, as a number of `Flows.topologies`.
        asked: it depends on whom the client asks first.
    """

    key: tuple
    sends: tuple = ()
    batch: bool = False
    calls: tuple = ()
    result: Any = None
    known: int | None = None
    asked: bool = False


class Running:
    """A flow under way, with the routes it changes and the client's clock."""

    def __init__(self, routes, clock, what):
        self.routes, self.clock = routes, clock
        self.flow = exchange.carry(flow_of(what, clock), routes)

    def begin(self):
        return self._until_it_asks(self.flow.send, None)

    def put(self, step, since, answers):
        """Give it what it waits for; return what it asks for next.

        Args:
            step: where it stands.
            since: units of time since it asked.
            answers: for each request the tuple of values, or None where it was lost, or False where it was not sent.
        """
        sent, now, told = self.clock, self.clock + since * UNIT, []
        for (_, commands), values in zip(step.sends, answers, strict=True):
            if values is None:
                now = now + UNHEARD
                told.append(NoAnswer("no answer", now, sent))
            elif values is False:
                told.append(NoAnswer("connection refused", now))
            else:
                now = now + (PAUSED if commands[0][0] == b"BLPOP" else 0)
                told.append(Answer([thaw(value) for value in values], sent, now))
        self.clock = now
        if step.batch:
            return self._until_it_asks(self.flow.send, told)
        return self._until_it_asks(self.flow.throw if isinstance(told[0], NoAnswer) else self.flow.send, told[0])

    def _until_it_asks(self, give, value):
        action = give(value)
        while not isinstance(action, Send | SendAll):
            if isinstance(action, Pause):
                self.clock = self.clock + max(action.seconds, PAUSED)
                action = self.flow.send(self.clock)
            else:  # about connections, of which there are none here
                action = self.flow.send(None)
        return action


class Flows:
    """All courses of the flows of one kind of shard that were met so far.

    Args:
        nodes: the addresses of all nodes, which the clients know at first.
    """

    def __init__(self, nodes):
        self.order = Order(nodes)
        self.steps: list[Step] = []
        self.topologies: list[tuple[topology.Topology, Moment]] = []
        self._known: dict[Any, int] = {}
        self._after: dict[Any, int] = {}
        self._asleep: dict[int, Running] = {}  # what stands at a step and can go on from there
        with self.in_the_model():
            self.unlearned = self._keep(topology.Topology(nodes), Moment(0))

    @contextmanager
    def in_the_model(self):
        """Take chance out of the routes, all but two of a cluster's slots, and the log."""
        log = logging.getLogger("django_cluster_lock")
        with (
            mock.patch.object(topology, "random", self.order),
            mock.patch.object(topology, "SLOTS", 2),
            mock.patch.object(log, "disabled", True),
        ):
            yield

    def older(self, known):
        """Return what a client knows after a unit of time in which it did nothing."""
        key = ("older", known)
        place = self._after.get(key)
        if place is None:
            routes, clock = self.topologies[known]
            place = self._after[key] = self._keep(routes, clock + UNIT)
        return place

    def start(self, known, what, first):
        """Begin a flow, and give the number of its first step.

        Args:
            known: what the client knows of the cluster.
            what: "acquire" and a token; or "attach", a token, and the token of the detached lease; or "renew",
                "keep" or "release", the token, the units for which the lease is valid, and whether
                a request for it may still be under way.
            first: whom it asks first for the layout.
        """
        key = (known, what, first)
        place = self._after.get(key)
        if place is None:
            running = self._new(known, what)
            place = self._after[key] = self._run(running, key, first, running.begin)
        return place

    def feed(self, place, since, answers, first):
        """Go on from a step, and give the number of the next one; the arguments are those of `Running.put`."""
        key = (place, since, answers, first, None)
        after = self._after.get(key)
        if after is None:
            running = self._asleep.pop(place, None) or self._again(place)
            step = self.steps[place]
            after = self._after[key] = self._run(running, key, first, lambda: running.put(step, since, answers))
        return after

    def _new(self, known, what):
        routes, clock = self.topologies[known]
        return Running(copy.deepcopy(routes), clock + BETWEEN, what)

    def _again(self, place):
        """Run a flow again up to a step."""
        puts, key = [], self.steps[place].key
        while len(key) > START:
            puts.append(key)
            key = self.steps[key[0]].key
        known, what, first = key
        running = self._new(known, what)
        self.order.first = first
        running.begin()
        for before, since_asked, answers, preferred, _ in reversed(puts):
            self.order.first = preferred
            running.put(self.steps[before], since_asked, answers)
        return running

    def _run(self, running, key, first, advance):
        self.order.first, self.order.asked = first, False
        try:
            action = advance()
        except StopIteration as stop:
            return self._ended(running, key, stop.value)
        except LockError as error:
            return self._ended(running, key, error)
        batch = isinstance(action, SendAll)
        sends = tuple((send.node, tuple(send.commands)) for send in (action.sends if batch else [action]))
        calls = tuple(called(command) for _, commands in sends for command in commands if is_script(command))
        step = Step(key, sends, batch, calls, asked=self.order.asked)
        # Where a client finds its way, the rest of a list of nodes is nowhere to be seen; such steps stay apart.
        routes, clock = running.routes, running.clock
        same = (knowledge(routes, clock), frames(running.flow, clock), sends, step.asked) if calls else key
        place = self._known.get(same)
        if place is None:
            place = self._known[same] = len(self.steps)
            self.steps.append(step)
        if len(self._asleep) > ASLEEP:
            self._asleep.clear()
        self._asleep[place] = running
        return place

    def _ended(self, running, key, result):
        known = self._keep(running.routes, running.clock)
        if isinstance(result, list):
            (result,) = result
        if isinstance(result, Grant):
            left = math.ceil((result.valid_until - running.clock) / UNIT)
            result = ("granted", left, result.unanswered)
        elif isinstance(result, LockError):
            result = (type(result).__name__, str(result))
        same = ("ended", known, result, self.order.asked)
        place = self._known.get(same)
        if place is None:
            place = self._known[same] = len(self.steps)
            self.steps.append(Step(key, result=result, known=known, asked=self.order.asked))
        return place

    def _keep(self, routes, clock):
        routes = copy.deepcopy(routes)
        routes._suspects = {}  # it decides whom to ask first, which is anybody here
        if isinstance(routes.learned_at, Moment):
            routes.learned_at = rounded(clock, routes.learned_at)
        routes._told_at = {node: rounded(clock, at) for node, at in routes._told_at.items()}
        key = knowledge(routes, clock)
        place = self._known.get(key)
        if place is None:
            place = self._known[key] = len(self.topologies)
            self.topologies.append((routes, clock))
        return place


def rounded(clock, at):
    """A time of the past to the unit, never in the future."""
    return clock - min((clock - at) // UNIT * UNIT, OLD)


def flow_of(what, clock):
    kind, token, *lease = what
    if kind == "acquire":
        return protocol.acquire(KEYS, token, TERMS, now=clock, until=clock, blocking=False)
    if kind == "attach":
        return protocol.attach_all([(KEYS, *lease)], lambda: token, TERMS, now=clock)
    left, unanswered = lease
    grant = Grant(KEYS, token, 1, clock + left * UNIT, unanswered)
    if kind == "renew":
        return protocol.renew(grant, TERMS, deadline=clock + TERMS.patience)
    if kind == "keep":
        return protocol.keep_all([grant], TERMS)
    return protocol.release(grant, deadline=clock + TERMS.patience, valid_until=grant.valid_until)


def is_script(command):
    return command[0] in (b"EVALSHA", b"EVAL")


def called(command):
    """Return a script's name, the token it is called with, and the other argument: see `Step.calls`."""
    name = SCRIPTS[command[1]]
    token, argument, *_ = command[3 + int(command[2]) :]
    if name == "attach":
        return name, argument, token
    return name, token, name == "release" and argument == b"1"


def thaw(value):
    """Return an answer in the form in which it comes from a server; a text stands for an error."""
    if isinstance(value, tuple):
        return [thaw(one) for one in value]
    return Refusal(value) if isinstance(value, str) else value


# What a flow is, as a value that can be compared


def knowledge(routes, clock):
    """Return what routes know."""
    known = {name: value for name, value in vars(routes).items() if name not in ("startup", "_remap")}
    return freeze(known, clock)


def freeze(value, clock):
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, Moment):
        return "@", max(round(float(value) - float(clock), 3), -OLD)
    if isinstance(value, float):
        return value
    if value is KEYS or value is TERMS or isinstance(value, topology.Topology):
        return type(value).__name__
    if isinstance(value, scripts.Script):
        return value.name
    if isinstance(value, dict):
        return "{}", tuple(sorted(((freeze(k, clock), freeze(v, clock)) for k, v in value.items()), key=repr))
    if isinstance(value, set | frozenset):
        return "set", tuple(sorted((freeze(one, clock) for one in value), key=repr))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(freeze(one, clock) for one in value)
    if isgenerator(value):
        return frames(value, clock)
    if isinstance(value, BaseException):
        return type(value).__name__, freeze(value.args, clock)
    if isinstance(value, FunctionType | MethodType | type):
        return value.__qualname__
    names = sorted({name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())} | _vars(value))
    return type(value).__name__, tuple((name, freeze(getattr(value, name, None), clock)) for name in names)


def _vars(value):
    return set(getattr(value, "__dict__", ()))


def frames(flow, clock):
    """Return where a flow stands, and with which values."""
    found = []
    while isgenerator(flow):
        values = tuple((name, freeze(value, clock)) for name, value in sorted(flow.gi_frame.f_locals.items()))
        found.append((flow.gi_code.co_qualname, flow.gi_frame.f_lasti, values))
        flow = flow.gi_yieldfrom
    return tuple(found)
