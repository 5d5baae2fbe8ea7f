"""Ways to break the flights' protocol, each of which the model has to notice."""

from django_cluster_lock.flights import outbox, run
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.results import outcome_of
from tests.model.mutants import ScriptMutant

OUTBOX = ("claim", "start", "land", "drain", "confirm")

# Those that a random search may take minutes to notice: rare interleavings show them.
AFTER_ITS_COPY = ScriptMutant(
    "a message runs after its copy",
    ("start",),
    "return copied == 'c' and place > 0 and place <= ended",
    "return false",
    "F5",
)
AFTER_A_LATER_CALL = ScriptMutant(
    "a late message runs after a later call's run",
    ("start",),
    "if latest_place > place then",
    "if false then",
    "F7",
    mode="rerun",
)
BEFORE_THOSE_LEFT_BEHIND = ScriptMutant(
    "an arrival passes those left behind",
    ("start",),
    "(place == 0 or number(first[2]) < place)",
    "false",
    "F6",
    mode="wait",
)

SCRIPT_MUTANTS = [
    ScriptMutant(
        "a parked message gets no place",
        OUTBOX,
        "redis.call('ZADD', order, text(place == 0 and new_place(fence, mode) or place), entry)",
        "",
        "F3",
    ),
    ScriptMutant(
        "an outbox stays on the list",
        OUTBOX,
        "redis.call('DEL', messages)\n      redis.call('ZREM', outboxes, member)",
        "redis.call('DEL', messages)",
        "F3",
    ),
    ScriptMutant(
        "a copy of an ended message runs",
        ("start",),
        "if copy then return place == 0 or ended == 0 or place <= ended end",
        "if copy then return false end",
        "F5",
        mode="wait",
    ),
    ScriptMutant(
        "a call passes those left behind",
        ("claim",),
        "local behind = not held and ordered and redis.call('ZCARD', order) > 0",
        "local behind = false",
        "F6",
        mode="wait",
    ),
    ScriptMutant(
        "a call claims a held key", ("claim",), "not (held or waits or behind)", "not (waits or behind)", "F1"
    ),
    ScriptMutant(
        "a fence may lie below what was parked",
        OUTBOX,
        "return text(math.max(next_fence(previous), last_sequence() + 1))",
        "return text(next_fence(previous))",
        "F2",
    ),
    ScriptMutant(
        "a run settles those that want another",
        ("land",),
        "upto = '(' .. place",
        "",
        "F7",
        mode="rerun",
    ),
    ScriptMutant(
        "a run settles what came after its call",
        ("land",),
        "upto = '(' .. place",
        "upto = '(' .. fence",
        "F7",
        mode="rerun",
    ),
    ScriptMutant(
        "a message is not replaced",
        ("claim",),
        "park(entry, message, mode, fence, member, 0, replaces)",
        "park(entry, message, mode, fence, member, 0)",
        "F4",
        mode="rerun",
    ),
    ScriptMutant(
        "a late message counts as the latest",
        ("start",),
        "park(entry, message, mode, fence, member, place)",
        "park(entry, message, mode, fence, member, 0)",
        "F7",
        mode="rerun",
    ),
    ScriptMutant(
        "what has gone out is replaced",
        ("start", "land", "drain", "claim"),
        "if redis.call('HGET', messages, 'rerun') == entry then redis.call('HDEL', messages, 'rerun') end",
        "",
        "F7",
        mode="rerun",
    ),
    ScriptMutant(
        "an arrival passes a later call that was left behind",
        ("start",),
        "place > 0 and number(last[2]) > place",
        "false",
        "F7",
        mode="rerun",
    ),
    ScriptMutant("the sweep takes a held key", ("drain",), "if held then", "if false then", "F1", mode="wait"),
    ScriptMutant(
        "the claim of any message counts",
        ("start", "land", "claim"),
        "return attempt and task .. ':' .. attempt == entry",
        "return attempt",
        "F1",
    ),
    ScriptMutant(
        "a message takes a held key",
        ("start",),
        "if mine or claimed or not (held or waits or behind) then",
        "if true then",
        "F1",
    ),
    ScriptMutant(
        "anyone may end a run",
        ("land",),
        "if not holder or not (holder == token or (by_claim",
        "if not holder or false and not (holder == token or (by_claim",
        "F1",
    ),
    ScriptMutant(
        "the last that waits is the first",
        ("land", "drain", "claim"),
        "mode == 'rerun' and 'ZREVRANGE' or 'ZRANGE'",
        "'ZREVRANGE'",
        "F6",
        mode="wait",
    ),
    ScriptMutant(
        "the first update counts",
        ("land", "drain", "claim"),
        "mode == 'rerun' and 'ZREVRANGE' or 'ZRANGE'",
        "'ZRANGE'",
        "F7",
        mode="rerun",
    ),
]


def confirmed_before_it_is_published(monkeypatch):
    original = Ground.publish_next

    def publish_next(ground, reply, *args, **options):
        parked = outbox.parked_of(reply)
        ground.alias.run(outbox.confirm(ground.outbox, parked, deadline=0.0, once=True))
        original(ground, reply, *args, **options)

    monkeypatch.setattr(Ground, "publish_next", publish_next)


def parked_messages_always_taken_back(monkeypatch):
    original = outbox.claim

    def claim(box, token, terms, entry, **options):
        try:
            return (yield from original(box, token, terms, entry, **options))
        except outbox.LockError:
            yield from outbox.confirm(box, [outbox.Parked(entry.encode(), b"", b"")], deadline=0.0, once=True)
            raise

    monkeypatch.setattr(outbox, "claim", claim)


def outcomes_kept_for_whoever_comes(monkeypatch):
    original = run._Arrival._decide

    def decide(arrival):
        known = list(arrival.task.backend.results)
        outcome = outcome_of(arrival.task, known[-1]) if known else None
        return arrival._settled(outcome) if outcome else original(arrival)

    monkeypatch.setattr(run._Arrival, "_decide", decide)


FLOW_MUTANTS = [
    (confirmed_before_it_is_published, "F4", "wait"),
    (parked_messages_always_taken_back, "F4", "rerun"),
    (outcomes_kept_for_whoever_comes, "F8", "join"),
]
