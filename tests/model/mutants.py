"""Ways to break the protocol, each of which the model has to notice: what its invariants are worth."""

from dataclasses import dataclass

from django_cluster_lock import exchange, layout, protocol
from django_cluster_lock.actions import NoAnswer, Send
from django_cluster_lock.protocol import Reply
from tests.model.clients import NODE
from tests.model.shard import ALL_SCRIPTS, FLIGHT_SCRIPTS

EVERY = tuple(script.name for script in ALL_SCRIPTS)


@dataclass(frozen=True)
class ScriptMutant:
    """A change to the text of scripts.

    Args:
        what: goes wrong.
        scripts: names of those that have the text; each must have it once.
        old: the text.
        new: what takes its place.
        breaks: the invariants it is aimed at.
        mode: of flights: what duplicates get where it shows soonest.
    """

    what: str
    scripts: tuple
    old: str
    new: str
    breaks: str
    mode: str = "join"

    def texts(self):
        changed = {}
        for script in {*ALL_SCRIPTS, *FLIGHT_SCRIPTS}:
            if script.name in self.scripts:
                if script.text.count(self.old.encode()) != 1:
                    raise ValueError(f"{script.name} does not have once: {self.old}")
                changed[script.name] = script.text.replace(self.old.encode(), self.new.encode())
        return changed


# Those that a random search may take minutes to notice: rare interleavings show them.
ACQUIRE_SHORTENS = ScriptMutant(
    "an acquire may shorten a lease",
    ("acquire",),
    "deadline = math.max(deadline, now + ttl)",
    "deadline = now + ttl",
    "I4",
)
RENEWAL_SHORTENS = ScriptMutant(
    "a renewal may shorten a lease",
    ("renew",),
    "deadline = math.max(deadline, now + tonumber(ARGV[2]))",
    "deadline = now + tonumber(ARGV[2])",
    "I4",
)

SCRIPT_MUTANTS = [
    ScriptMutant("ended tokens are granted", ("acquire",), "return {'over'}", "", "I6"),
    ScriptMutant("anyone may release", ("release",), "local mine = holder == token", "local mine = holder", "I4"),
    ScriptMutant("anyone may renew", ("renew",), "field[1] ~= ARGV[1] or deadline <= now", "deadline <= now", "I4"),
    ScriptMutant(
        "a renewal brings a lease back",
        ("renew",),
        "field[1] ~= ARGV[1] or deadline <= now",
        "field[1] ~= ARGV[1]",
        "I4",
    ),
    ScriptMutant("fences only count", EVERY, "math.max(number(previous) + 1, micros)", "number(previous) + 1", "I3"),
    ScriptMutant("fences only tell the time", EVERY, "math.max(number(previous) + 1, micros)", "micros", "I3"),
    ScriptMutant(
        "a record dies with its holder", EVERY, "math.max(deadline, alive, now)", "math.max(deadline, now)", "I5"
    ),
    ScriptMutant(
        "a newcomer overtakes the queue",
        ("acquire",),
        "(not held and not more and (not first or first == token))",
        "not held",
        "I5",
    ),
    ScriptMutant(
        "a lease is granted a second early",
        ("acquire",),
        "local held = holder and deadline > now",
        "local held = holder and deadline > now + 1000",
        "I1|I2",
    ),
    ScriptMutant(
        "a grant is told without a write",
        ("acquire",),
        "if mine or (",
        "if mine and deadline >= now + ttl then return {'own', tonumber(fence)} end\nif mine or (",
        "acknowledgement",
    ),
    ScriptMutant("a hand-over wakes nobody", ("release",), "wake(wakes .. next)", "", "I5"),
    ScriptMutant(
        "waiters are not in the index", ("release",), "elseif deadline <= now and not more then", "else", "I8"
    ),
]


def push_grants(monkeypatch):
    original = exchange.exchange

    def taken_for_granted(call, routes, outcome=None):
        if not call.block:
            return (yield from original(call, routes, outcome))
        sleep = (b"BLPOP", call.block.key, b"%.3f" % call.block.seconds)
        answer = yield from layout.sent(Send(NODE, [sleep], call.block.seconds, call.deadline))
        call.block = None
        if isinstance(answer, NoAnswer) or answer.values[0] is None:
            return (yield from original(call, routes))
        return Reply(b"own", [0], answer.sent, answer.now, 1, 1)

    monkeypatch.setattr(exchange, "exchange", taken_for_granted)


def ended_without_a_mark(monkeypatch):
    original = protocol.give_up
    monkeypatch.setattr(protocol, "give_up", lambda *args, **kwargs: original(*args, **kwargs | {"mark": False}))


def valid_from_the_answer(monkeypatch):
    original = protocol.granted

    def granted(keys, token, terms, reply, **kwargs):
        reply.sent = reply.now
        return original(keys, token, terms, reply, **kwargs)

    monkeypatch.setattr(protocol, "granted", granted)


def no_allowance_for_skew(monkeypatch):
    original = protocol.Terms.__init__

    def asked_for(terms, timeout, skew, *args, **kwargs):
        original(terms, timeout, 0.0, *args, **kwargs)

    monkeypatch.setattr(protocol.Terms, "__init__", asked_for)


def no_allowance_for_whole_milliseconds(monkeypatch):
    original = protocol.milliseconds
    monkeypatch.setattr(protocol, "milliseconds", lambda seconds: original(seconds - 0.001))


def acknowledgements_ignored(monkeypatch):  # a rare interleaving shows it
    original = protocol.granted

    def granted(keys, token, terms, reply, **kwargs):
        reply.acks = reply.needed
        return original(keys, token, terms, reply, **kwargs)

    monkeypatch.setattr(protocol, "granted", granted)


FLOW_MUTANTS = [
    (push_grants, "I1|I7"),
    (ended_without_a_mark, "I6"),
    (valid_from_the_answer, "I1|I7"),
    (no_allowance_for_skew, "I1|I7"),
    (no_allowance_for_whole_milliseconds, "I1|I7"),
]
