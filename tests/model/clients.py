"""Clients of the model: real flows of the protocol, whose every request a test decides on."""

from dataclasses import dataclass, field

from django_cluster_lock import exchange, protocol
from django_cluster_lock.actions import NoAnswer, Pause, SendAll
from tests.model.ledger import require
from tests.model.shard import START

NODE = ("shard", 1)
NOTHING = object()


REPLICA = (b"replica", b"1")
ROLE = [b"master", 0, [[*REPLICA, b"0"]]]


class OneShard:
    """Routes to the one node there is, which has one replica."""

    learned_at = 0.0
    refused = ""
    learning = {}  # noqa: RUF012 - the model never learns a layout
    lists_roles = True

    def primary(self, slot):
        return NODE

    def required(self, node):
        return 1

    def told_at(self, node):
        return float("inf")  # it never changes

    def recognizes(self, node, listed):
        return True

    def members(self, node):
        return ()

    def missing(self, node, listed):
        return []

    def learn(self, values, asked, now):
        return False  # it has nothing to tell

    def moved(self, slot, node):
        raise NotImplementedError

    redirected = is_news = warn_of_no_replicas = moved

    def suspect(self, node):
        pass

    def silences(self, node):
        return 0

    def candidates(self):
        return []


ROUTES = OneShard()


@dataclass
class Clock:
    """A client's monotonic clock: it has its own zero, and runs a little fast or slow.

    Over the longest lease its error stays below the skew that leases allow for.
    """

    shard: object
    rate: float = 1.0

    def __call__(self):
        return (self.shard.micros - START) / 1e6 * self.rate

    def server_time(self, reading):
        """The server's microseconds when this clock shows that."""
        return START + round(reading / self.rate * 1e6)


@dataclass(eq=False)
class Handle:
    """What a client believes to hold."""

    clock: Clock
    terms: protocol.Terms
    grant: protocol.Grant
    believed: bool = True

    @property
    def lease(self):
        return self.grant.token, self.grant.fence

    def is_valid(self):
        return self.believed and self.clock() < self.grant.valid_until

    def renewed(self, grant):
        """A renewal never takes away what an earlier one gave."""
        if grant.valid_until > self.grant.valid_until:
            self.grant = grant


@dataclass(eq=False)
class Request:
    """Commands on their way to the shard, and back."""

    commands: list
    sent: float
    asleep_since: int | None = None  # at the server, in a BLPOP
    values: list | None = None  # answers that are on their way back
    outcome: object = NOTHING  # what the client made of it

    @property
    def wakes_at(self):
        return self.asleep_since + round(float(self.commands[0][2]) * 1e6)


@dataclass(eq=False)
class Operation:
    """One flow under way.

    Args:
        kind: acquire, acquire_all, release or renew.
        then: takes the flow's result.
    """

    kind: str
    clock: Clock
    flow: object
    then: object
    handle: Handle | None = None
    requests: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    all_at_once: bool = False
    finished: bool = False
    unanswered: set = field(default_factory=set)  # tokens of acquires that had no answer
    interruptions: int = 0

    def start(self):
        self.flow = exchange.carry(observed(self.flow, self.steps), ROUTES)
        self._go(self.flow.send, None)

    def waiting(self):
        return [request for request in self.requests if request.outcome is NOTHING]

    def settle(self, request, outcome):
        """Gives a request's outcome to the flow once all that were sent together have one."""
        request.outcome = outcome
        if isinstance(outcome, NoAnswer) and outcome.sent is not None:
            self._note_unanswered(request)
        if self.waiting():
            return
        outcomes = [request.outcome for request in self.requests]
        if self.all_at_once:
            self._go(self.flow.send, outcomes)
        elif isinstance(outcome, NoAnswer):
            self._go(self.flow.throw, outcome)
        else:
            self._go(self.flow.send, outcome)

    def interrupt(self):
        self.interruptions += 1
        for request in self.waiting():
            self._note_unanswered(request)
        self._go(self.flow.throw, KeyboardInterrupt())

    def abandon(self):
        """Ends the flow, which nobody listens to any more."""
        while not self.finished:
            try:
                self.flow.throw(SystemExit())
            except SystemExit:
                self.finished = True

    def _go(self, advance, value):
        try:
            action = advance(value)
            while isinstance(action, Pause):
                action = self.flow.send(self.clock())
        except StopIteration as stop:
            self.finished, self.requests = True, []
            granted = stop.value if isinstance(stop.value, list) else [stop.value]
            self._check_clean_up(granted)
            self.then(stop.value)
        except (protocol.LockError, KeyboardInterrupt) as error:
            self.finished, self.requests = True, []
            plainly_busy = type(error) is protocol.LockBusy and not self.unanswered
            self._check_clean_up(nothing_left=plainly_busy)
        else:
            self.all_at_once = isinstance(action, SendAll)
            sends = action.sends if self.all_at_once else [action]
            self.requests = [Request(list(send.commands), self.clock()) for send in sends]

    def _note_unanswered(self, request):
        for command in request.commands:
            if command[0] in (b"EVALSHA", b"EVAL") and command[1] in (
                protocol.scripts.ACQUIRE.sha,
                protocol.scripts.ACQUIRE.text,
            ):
                self.unanswered.add(command[3 + int(command[2])])

    def _check_clean_up(self, granted=(), *, nothing_left=False):
        """I6: an acquire takes back, once, each token that it did not get, and ends it if it may still be asked for.

        The last one may have been told "busy" without queueing: then it has nothing to take back.
        """
        if not self.kind.startswith("acquire") or self.interruptions > 1:
            return
        tried, cancels, last = set(), [], None
        for step in self.steps:
            for call in step.calls if isinstance(step, protocol.Batch) else [step]:
                if call.script is protocol.scripts.ACQUIRE:
                    last = call.args[0]
                    tried.add(last)
                elif call.script is protocol.scripts.RELEASE:
                    cancels.append(call.args[:2])
        cancelled = {token for token, _ in cancels}
        left = tried - {grant.token for grant in granted}
        require(
            cancelled == left or (nothing_left and cancelled == left - {last}),
            "I6",
            "not what was tried in vain was taken back",
            left,
            cancels,
        )
        once = len(cancels) == len(cancelled) or (self.kind == "acquire_all" and self.interruptions)
        require(once, "I6", "a token was taken back more than once", cancels)
        ended = {token for token, mark in cancels if mark == b"1"}
        noted = {grant.token for grant in granted if grant.unanswered}
        require(self.unanswered <= ended | noted, "I6", "a token without an answer was not ended", self.unanswered)


def observed(flow, steps):
    """The flow, with a list of what it asks for."""
    reply = error = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(reply)
        except StopIteration as stop:
            return stop.value
        steps.append(step)
        error = None
        try:
            reply = yield step
        except BaseException as raised:
            error = raised
