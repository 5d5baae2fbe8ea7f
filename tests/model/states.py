"""A shard and two clients of one lock as a value, and all that may happen next."""

from typing import NamedTuple

from tests.model import world
from tests.model.answers import Addresses, Answers
from tests.model.flows import Flows, is_script
from tests.model.twin import SCRIPTS
from tests.model.world import DEAD, LEASE, NO_FENCE, RUNNING, UNIT, Facts, Kind, Node

NAMES = "AB"  # of the clients
LATE = 1  # requests that may be on their way without anybody waiting for the answer
LONGEST = 60  # requests of one call; more would be a call that never ends
PROMISES = ("exclusion", "fences", "strangers", "replicas")
TAKES = {"acquire", "attach"}  # what gives a new lease
# What may become of a request that is on its way, that runs, and whose wait for replicas is over.
PENDING = ("go", "step", "lost", "late", "unheard", "count")
RUNNING_THERE = ("answer", "unheard", "count")
COUNTED = ("answer", "unheard")
DOES = {
    "acquire": "{} asks for the lock",
    "renew": "{} renews its lease",
    "keep": "{} renews its lease in a batch",
    "detach": "{} detaches its lease and gives the token on",
    "attach": "{} attaches the detached lease",
    "release": "{} releases its lease",
    "its request": "{} goes on with its request",
}
FATES = {"lost": "lost", "late": "given up, but still on its way", "hold": "slow, and not there yet"}
PLAIN = {"go", "answer"}  # the others are faults, or slowness, which counts as one
EVENTS = {
    "time": "time passes: a third of a lease",
    "stall": "{0} stands still",
    "resume": "{0} goes on",
    "die": "{0} dies",
    "restart": "{0} starts again with its data",
    "restart empty": "{0} starts again without its data",
    "lag": "what is written reaches {0} no more",
    "catch up": "{0} has caught up",
    "cut": "{0} loses its connection to the node it copies from",
    "copy": "{0} connects to {1} and copies all it has",
    "attach": "{0} is attached to {1} as a replica from outside and copies all it has",
    "elect": "{0} is promoted",
    "hear": "{0} hears who serves the slots and whom the others follow",
}


class Lease(NamedTuple):
    """What a client believes to hold, valid for so many units more."""

    token: bytes
    fence: int
    left: int
    unanswered: bool


class Waiting(NamedTuple):
    """A request that has run and waits for replicas: the answers so far, who has it (bits), how many WAIT counted."""

    values: tuple
    has: int
    acks: int | None


class Call(NamedTuple):
    """What a client is doing.

    Args:
        step: where its flow stands, as a number of `Flows.steps`.
        since: units of time since it last asked something.
        what: "acquire", "attach", "renew", "keep" or "release".
        token: of the lease.
        got: the fence that was answered last.
        place: the node that answered it.
        waiting: the request runs at its node.
    """

    step: int
    since: int
    what: str
    token: bytes
    got: int
    place: int
    waiting: Waiting | None


class Client(NamedTuple):
    """One process with one lock: what it knows of the cluster (`Flows.topologies`), and what it holds and does."""

    known: int
    tried: int
    lease: Lease | None
    call: Call | None


class State(NamedTuple):
    nodes: tuple[Node, ...]
    facts: Facts
    clients: tuple[Client, ...]


class Broken(NamedTuple):
    """What must never be."""

    promise: str
    told: str


class Model:
    """All that may happen to a shard of one kind.

    Args:
        kind: of the shard.
        promises: which are watched: "exclusion", "fences" (I3), "strangers" (I4) and "replicas" (I9).
        scripts: those of the lock, in Python.
        tries: how many leases each client tries for.
        keeps: they renew and release them, too.
        detaches: they detach them, and attach what was detached.
    """

    def __init__(self, kind: Kind, promises=PROMISES, *, scripts=SCRIPTS, tries=2, keeps=True, detaches=False):
        self.kind, self.promises, self.scripts, self.tries, self.keeps = kind, promises, scripts, tries, keeps
        self.detaches = detaches
        self.addresses = Addresses(kind)
        self.flows = Flows(self.addresses.nodes)
        self.answer = Answers(self.addresses)
        self.asked_first = (*range(kind.members), self.addresses.other)
        self._strangers = None  # what a script has done that it must not
        self.log = None  # a list takes what happens in words
        self.ran = set()  # the scripts' runs: record, call, answer, record after

    def begin(self):
        nodes, facts = world.begin(self.kind)
        client = Client(self.flows.unlearned, 0, None, None)
        return State(nodes, facts, (client,) * len(NAMES))

    def after(self, state):
        """Give all that may happen: the event, the state after it, and what it broke."""
        for event, after, broken in self._after(state):
            strangers, self._strangers = self._strangers, None
            yield event, after, broken or strangers

    def _after(self, state):
        nodes, facts, clients = state
        for event, nodes_after, facts_after, caught in world.events(self.kind, nodes, facts):
            found, known = nodes_after, facts_after
            clients_after = self._caught_up(clients, *caught) if caught else clients
            if known.late and event[0] == "die":
                known = known._replace(late=tuple(request for request in known.late if request[0] != event[1]))
            if known.epoch != facts.epoch:
                found, known = ranked(found, known)
            yield event, State(found, known, clients_after), None
        for request in sorted(set(facts.late)):
            if nodes[request[0]].runs == RUNNING:
                yield ("late", *request), self._arrives_late(state, request), None
        if facts.times:
            yield ("time",), self._later(state), None
        for number, client in enumerate(clients):
            yield from self._calls(state, number, client)

    def _caught_up(self, clients, source, place):
        return tuple(
            client._replace(call=client.call._replace(waiting=waiting._replace(has=waiting.has | 1 << place)))
            if client.call and (waiting := client.call.waiting) and self._target(client.call)[0] == source
            else client
            for client in clients
        )

    # Time

    def _later(self, state):
        """A unit of time passes."""
        nodes, facts, clients = state
        nodes = tuple(node._replace(data=world.age(node.data)) for node in nodes)
        clients = tuple(
            client._replace(
                known=self.flows.older(client.known),
                lease=lease._replace(left=lease.left - 1) if (lease := client.lease) and lease.left > 1 else None,
                call=call._replace(since=min(call.since + 1, LEASE)) if (call := client.call) else None,
            )
            for client in clients
        )
        fences = {node.data.fence for node in nodes if node.data} | {facts.highest}
        for client in clients:
            fences |= {client.lease.fence} if client.lease else set()
            if client.call:
                fences.add(client.call.got)
                if client.call.waiting:
                    fences |= set(fences_in(client.call.waiting.values))
        order = sorted(fences - {NO_FENCE})
        new = {fence: place - len(order) for place, fence in enumerate(order)} | {NO_FENCE: NO_FENCE}
        nodes = tuple(
            node._replace(data=node.data._replace(fence=new[node.data.fence])) if node.data else node for node in nodes
        )
        clients = tuple(
            client._replace(
                lease=client.lease and client.lease._replace(fence=new[client.lease.fence]),
                call=client.call
                and client.call._replace(
                    got=new[client.call.got],
                    waiting=client.call.waiting
                    and client.call.waiting._replace(values=with_fences(client.call.waiting.values, new)),
                ),
            )
            for client in clients
        )
        times = facts.times - 1 if facts.times > 0 else facts.times
        return State(nodes, facts._replace(highest=new[facts.highest], times=times), clients)

    # What clients do

    def _calls(self, state, number, client):
        """Give what a client may begin or what may become of its request."""
        name = NAMES[number]
        if client.call:
            waits = client.call.waiting
            fates = PENDING if not waits else RUNNING_THERE if waits.acks is None else COUNTED
            for fate in self._possible(fates, state):
                yield from self._whoever_is_asked((name, "its request"), state, number, fate)
            return
        if number and not client.tried and not state.clients[0].tried:
            return  # the clients are alike: it is the first that begins
        if client.lease and self.detaches:
            yield (name, "detach", "go", 0), self._detached(state, number), None
        for what in self._does(state, number):
            for first in self.asked_first:
                begun, asked, problem = self._begin(state, number, what, first)
                event = (name, what)
                if begun.clients[number].call is None:
                    yield (*event, "go", first), begun, problem
                else:
                    if state.facts.mishaps:
                        yield (*event, "hold", first), one_mishap_less(begun), problem
                    for fate in self._possible(PENDING, state):
                        yield from self._whoever_is_asked(event, begun, number, fate, first)
                if not asked:
                    break

    def _does(self, state, number):
        """Return what a client may ask for."""
        client = state.clients[number]
        if client.lease:
            # One renews alone, the other as the renewer does, in a batch.
            return ("keep" if number else "renew", "release") if self.keeps else ()
        if client.tried >= self.tries:
            return ()
        return ("acquire", "attach") if state.facts.detached else ("acquire",)

    def _detached(self, state, number):
        """Return the state once a client has given its lease out of its hands."""
        client = state.clients[number]
        facts = state.facts._replace(detached=client.lease.token)
        return with_client(state._replace(facts=facts), number, client._replace(lease=None))

    def _possible(self, fates, state):
        """Return the fates that a request may meet, as long as something may go wrong."""
        fates = fates if state.facts.mishaps else [fate for fate in fates if fate in PLAIN]
        return [fate for fate in fates if self.kind.gap or fate != "count"]

    def _whoever_is_asked(self, event, state, number, fate, first=0):
        """Give what becomes of a request, for each order in which the client may look for the layout."""
        after, asked, problem = self._becomes(state, number, fate, first)
        if after is not None:
            yield (*event, fate, first), after, problem
        if asked:
            for other in self.asked_first:
                if other != first:
                    after, _, problem = self._becomes(state, number, fate, other)
                    if after is not None:
                        yield (*event, fate, other), after, problem

    def again(self, state, event):
        """Return the state after an event of a client, as `after` gave it, and tell what happens in `log`."""
        name, what, fate, first = event
        number = NAMES.index(name)
        if what == "detach":
            return self._detached(state, number)
        if what != "its request":
            state, _, _ = self._begin(state, number, what, first)
        if fate != "hold" and state.clients[number].call:
            state, _, _ = self._becomes(state, number, fate, first)
        return state

    def _begin(self, state, number, what, first):
        client = state.clients[number]
        lease = client.lease
        if what in TAKES:
            token = b"%s%d" % (NAMES[number].encode(), client.tried + 1)
            asked_for = (what, token) if what == "acquire" else (what, token, state.facts.detached)
            client = client._replace(tried=client.tried + 1)
        else:
            token = lease.token
            asked_for = what, token, lease.left, lease.unanswered
            if what == "release":
                client = client._replace(lease=None)
        step = self.flows.start(client.known, asked_for, first)
        call = Call(step, 0, what, token, lease.fence if lease else NO_FENCE, 0, None)
        return self._on_its_way(with_client(state, number, client._replace(call=call)), number, first)

    def _becomes(self, state, number, fate, first):
        """Return the state once a request has met its fate, or None if it cannot; whether it matters whom to ask."""
        call = state.clients[number].call
        place, calls = self._target(call)
        runs = state.nodes[place].runs
        if fate not in PLAIN:
            state = one_mishap_less(state)
        if fate in ("lost", "late"):
            facts = state.facts
            if fate == "late":
                if len(facts.late) >= LATE:
                    return None, False, None
                facts = facts._replace(late=(*facts.late, *((place, one) for one in calls)))
            elif runs == DEAD:
                return None, False, None
            return self._feed(state._replace(facts=facts), number, None, first)
        if not call.waiting:
            if runs != RUNNING:
                return None, False, None
            state, satisfied = self._run(state, number, place)
            if fate == "count":
                return (None, False, None) if satisfied is None else (self._counted(state, number, place), False, None)
            if fate == "step" and satisfied is False:
                return state, False, None
        if fate == "unheard":
            self._tell("its answer is lost")
            return self._feed(state, number, None, first)
        if runs != RUNNING:
            return None, False, None
        if fate == "count":
            return self._counted(state, number, place), False, None
        state, asked, problem = self._answer(state, number, place, first)
        while fate == "go" and problem is None and (call := state.clients[number].call):
            place, _ = self._target(call)
            if state.nodes[place].runs != RUNNING:
                state, more, problem = self._feed(state, number, None, first)
            else:
                state, _ = self._run(state, number, place)
                state, more, problem = self._answer(state, number, place, first)
            asked = asked or more
        return state, asked, problem

    def _target(self, call):
        step = self.flows.steps[call.step]
        return self.addresses.places[step.sends[0][0]], step.calls

    # What nodes do with a request

    def _run(self, state, number, place):
        """Run the commands up to the wait for replicas; whether that is over at once, None if there is none."""
        call = state.clients[number].call
        _, commands = self.flows.steps[call.step].sends[0]
        nodes, values, calls = list(state.nodes), [], iter(self.flows.steps[call.step].calls)
        wanted = None
        for command in commands:
            if is_script(command):
                called = next(calls)
                if nodes[place].follows != place:
                    host, port = self.addresses.nodes[nodes[place].owner]
                    values.append(f"MOVED 0 {host}:{port}")
                else:
                    values.append(self._run_script(nodes, place, called))
                self._tell(f"{self.name(place)} answers {tell_value(values[-1])}")
            elif command[0] == b"WAIT":
                wanted = int(command[1])
                break
            else:
                values.append(self.answer(nodes, state.facts, place, command))
        waiting = Waiting(tuple(values), world.copied(nodes, place), None)
        client = state.clients[number]
        state = State(tuple(nodes), state.facts, state.clients)
        state = with_client(state, number, client._replace(call=call._replace(waiting=waiting)))
        if wanted is None:
            return state, None
        return state, nodes[place].follows != place or acks(nodes, place, waiting.has) >= wanted

    def _run_script(self, nodes, place, called):
        name, token, other = called
        before = nodes[place].data
        told, after = self.scripts[name](before, token, other)
        self.ran.add((before, called, told, after))
        if "strangers" in self.promises:
            self._check_script(called, told, before, after)
        if after != before or told[0] in (b"own", b"ok"):
            world.write(nodes, place, after)
        return told

    def _check_script(self, called, told, before, after):
        """I4: nobody but its holder, or who attaches it, changes a lease, and none comes back."""
        name, token, other = called
        held = before is not None and before.token is not None and before.left > 0
        if name == "renew" and told[0] == b"ok" and not (held and before.token == token):
            self._strangers = Broken("strangers", f"the lease {token.decode()} comes back")
        elif (
            held
            and before.token != (other if name == "attach" and token != before.token else token)
            and (after is None or (after.token, after.left) != (before.token, before.left))
        ):
            self._strangers = Broken(
                "strangers", f"{name} of {token.decode()} changes the lease {before.token.decode()}"
            )

    def _counted(self, state, number, place):
        """The wait for replicas is over, and the rest of the commands has not run yet."""
        client = state.clients[number]
        waiting = client.call.waiting
        waiting = waiting._replace(acks=acks(state.nodes, place, waiting.has))
        self._tell(f"{waiting.acks} have acknowledged it")
        return with_client(state, number, client._replace(call=client.call._replace(waiting=waiting)))

    def _answer(self, state, number, place, first):
        """Run the rest of the commands, and let the client have the answers."""
        call = state.clients[number].call
        _, commands = self.flows.steps[call.step].sends[0]
        values, has, counted = call.waiting
        nodes = state.nodes
        told = list(values)
        for command in commands[len(values) :]:
            if command[0] != b"WAIT":
                told.append(self.answer(nodes, state.facts, place, command))
            elif nodes[place].follows != place:
                told.append("UNBLOCKED force unblock from blocking operation, instance state changed")
            else:
                told.append(acks(nodes, place, has) if counted is None else counted)
                who = [self.name(other) for other, node in enumerate(nodes) if node.link == place and has >> other & 1]
                self._tell(f"WAIT {int(command[1])} gives {told[-1]} ({', '.join(who) or 'nobody'})")
        got = next((value for value in values if isinstance(value, tuple) and value[0] in (b"own", b"ok")), None)
        if got:
            state = with_client(
                state, number, state.clients[number]._replace(call=call._replace(got=got[1], place=place))
            )
        return self._feed(state, number, tuple(map(to_client, told)), first)

    def _arrives_late(self, state, request):
        place, called = request
        late = list(state.facts.late)
        late.remove(request)
        nodes = list(state.nodes)
        if nodes[place].follows == place:
            self._run_script(nodes, place, called)
        return State(tuple(nodes), state.facts._replace(late=tuple(late)), state.clients)

    # What clients make of answers

    def _feed(self, state, number, answers, first):
        """Give a client the answers to a request, or None where it hears nothing."""
        client = state.clients[number]
        call = client.call
        step = self.flows.feed(call.step, call.since, (answers,), first)
        asked = self.flows.steps[step].asked
        state = with_client(state, number, client._replace(call=call._replace(step=step, since=0, waiting=None)))
        state, more, problem = self._on_its_way(state, number, first)
        return state, asked or more, problem

    def _on_its_way(self, state, number, first):
        """Let a client find its way until its request can reach a node, or its call ends."""
        asked = False
        client = state.clients[number]
        call = client.call
        place, since = call.step, call.since
        for _ in range(LONGEST):
            step = self.flows.steps[place]
            asked = asked or step.asked
            if step.known is not None:
                state, problem = self._ended(state, number, step)
                return state, asked, problem
            if step.calls and state.nodes[self.addresses.places[step.sends[0][0]]].runs != DEAD:
                call = call._replace(step=place, since=since)
                return with_client(state, number, client._replace(call=call)), asked, None
            told = []
            for node, commands in step.sends:
                asked_node = self.addresses.places[node]
                runs = state.nodes[asked_node].runs if asked_node < len(state.nodes) else RUNNING
                if runs == RUNNING:
                    told.append(
                        tuple(
                            to_client(self.answer(state.nodes, state.facts, asked_node, command))
                            for command in commands
                        )
                    )
                    self._tell(f"asks {self.name(asked_node)} for the layout")
                else:
                    told.append(False if runs == DEAD else None)
                    self._tell(f"asks {self.name(asked_node)} in vain")
            place, since = self.flows.feed(place, since, tuple(told), first), 0
        raise AssertionError(f"a call that does not end: {call.what}")

    def _ended(self, state, number, step):
        """Let a client have the result of its call; what that breaks."""
        client = state.clients[number]
        call, lease = client.call, client.lease
        result = step.result
        client = client._replace(known=step.known, call=None)
        self._tell(tell_result(NAMES[number], call.what, result))
        if call.what in ("renew", "keep") and result is None:
            lease = None
        granted = isinstance(result, tuple) and result[0] == "granted" and result[1] > 0
        if not granted:
            return with_client(state, number, client._replace(lease=lease)), None
        _, left, unanswered = result
        fence, highest = call.got, state.facts.highest
        if call.what not in TAKES:
            left, unanswered = (
                max(left, lease.left if lease else 0),
                unanswered or (lease is not None and lease.unanswered),
            )
        lease = Lease(call.token, fence, left, unanswered)
        problem = self._judge(state, number, call, fence, highest)
        state = State(state.nodes, state.facts._replace(highest=max(fence, highest)), state.clients)
        return with_client(state, number, client._replace(lease=lease)), problem

    def _judge(self, state, number, call, fence, highest):
        """Return what a lease breaks that a client gets or renews."""
        name = NAMES[number]
        others = [NAMES[other] for other, client in enumerate(state.clients) if client.lease and other != number]
        if "exclusion" in self.promises and others:
            return Broken("exclusion", f"{name} and {others[0]} hold the lock at once")
        if "fences" in self.promises:
            if call.what in TAKES and fence <= highest:
                return Broken("fences", f"{name} is granted a fence that is not above all before")
            if call.what not in TAKES and fence < highest:
                return Broken("fences", f"{name} has its lease again, after a later one")
        if "replicas" in self.promises:
            return self._not_everywhere(state, call)
        return None

    def _not_everywhere(self, state, call):
        """I9: every node that could be promoted without copying once more has the lease."""
        granting = state.nodes[call.place]
        if granting.follows != call.place or not granting.data or granting.data.token != call.token:
            return None  # its answer comes so late that the lease has passed on
        for place, node in enumerate(state.nodes[: self.kind.members]):
            if place != call.place and node.recent and not (node.data and node.data.token == call.token):
                return Broken("replicas", f"{self.name(place)} does not have the lease, and could be promoted")
        return None

    # Words

    def tell(self, state, event):
        """Return what an event is, in words."""
        kind, *where = event
        if kind in NAMES:
            self.log = []
            try:
                self.again(state, event)
                return self._tell_call(state, event, self.log)
            finally:
                self.log = None
        names = [self.name(place) for place in where if isinstance(place, int)]
        if kind == "late":
            return f"a late request arrives at {names[0]}: {where[1][0]} {where[1][1].decode()}"
        return EVENTS[kind].format(*names)

    def _tell_call(self, state, event, log):
        name, what, fate, _ = event
        told = [DOES[what].format(name), *(["which is " + FATES[fate]] if fate in FATES else []), *log]
        return "; ".join(told)

    def name(self, place):
        """Return a node's name in traces."""
        if place == 0:
            return "P"
        if place < self.kind.members:
            return f"R{place}"
        if place < self.kind.members + self.kind.foreign:
            return "F"
        return "the other shard"

    def _tell(self, words):
        if self.log is not None:
            self.log.append(words)


def with_client(state, number, client):
    clients = state.clients
    return State(state.nodes, state.facts, (*clients[:number], client, *clients[number + 1 :]))


def one_mishap_less(state):
    mishaps = state.facts.mishaps
    return state._replace(facts=state.facts._replace(mishaps=mishaps - 1)) if mishaps > 0 else state


def acks(nodes, place, has):
    """Return how many replicas that are connected have a write, by the bits of those that have."""
    return sum(node.link == place and has >> other & 1 for other, node in enumerate(nodes))


def ranked(nodes, facts):
    """Return nodes and facts with the smallest epochs that have the same order."""
    new = {
        epoch: place for place, epoch in enumerate(sorted({node.epoch for node in nodes if node.sees} | {facts.epoch}))
    }
    nodes = tuple(node._replace(epoch=new.get(node.epoch, 0)) for node in nodes)
    return nodes, facts._replace(epoch=new[facts.epoch])


def fences_in(values):
    return [value[1] for value in values if isinstance(value, tuple) and value[0] in (b"own", b"ok")]


def with_fences(values, new):
    return tuple(
        (value[0], new[value[1]]) if isinstance(value, tuple) and value[0] in (b"own", b"ok") else value
        for value in values
    )


def to_client(value):
    """Return an answer as a client is told it. All fences are one to it: it only hands them on, as `Call.got` does."""
    if isinstance(value, tuple) and value:
        if value[0] in (b"own", b"ok"):
            return value[0], 1
        if value[0] == b"busy":
            return b"busy", UNIT * 1000, 0, b"", b"", b"", b""
        if value[0] in (b"released", b"not owner"):
            return value[0]
    return value


def tell_result(name, what, result):
    """Return in words how a call ended."""
    if isinstance(result, tuple) and result[0] == "granted":
        return f"{name} counts on it"
    if isinstance(result, tuple):
        return f"{name} gets {result[0]}"
    if what == "release":
        return f"{name} is told that it {'was' if result else 'was not'} the holder"
    return f"{name} is told that its lease is lost"


def tell_value(value):
    if isinstance(value, tuple):
        return " ".join(part.decode() if isinstance(part, bytes) else str(part) for part in value)
    return str(value)
