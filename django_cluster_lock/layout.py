"""When to learn the layout of the cluster, and from whom. Without I/O, as the exchange."""

import math

from django_cluster_lock.actions import (
    BRIEFLY,
    OVERTIME,
    Actions,
    Answer,
    Command,
    Learning,
    NoAnswer,
    Node,
    Pause,
    Retain,
    Routes,
    Send,
)

LAYOUT: list[Command] = [
    (b"CLUSTER", b"SLOTS"),
    (b"CLUSTER", b"NODES"),
    (b"CLUSTER", b"SHARDS"),
    (b"INFO",),
]
# Seconds in which the layout is not asked for again, after which it is if replicas are missing, and in any case.
LAYOUT_KEEPS, LAYOUT_DOUBTED, LAYOUT_LASTS = 0.1, 1.0, 30.0
LAYOUT_KEY = "layout"
# Seconds: how often those who wait for another to learn the layout look, at first and later, and when they do without.
FIRST_LOOK, LONGEST_LOOK, LEARNING_TAKES = 0.005, 0.05, 1.0


def is_outdated(routes: Routes, node: Node, now: float) -> bool:
    """Return whether a node is to tell the layout anew: nobody is told of nodes that are added or forgotten."""
    return now - routes.told_at(node) >= LAYOUT_LASTS


def update(routes: Routes, node: Node) -> Actions[None]:
    """Learn the layout anew from a node that has just answered, unless another call does: nobody is kept waiting."""
    if _key_of(node) not in routes.learning:
        yield from learn_own(routes, node)


def learn_own(routes: Routes, node: Node, deadline: float = 0.0) -> Actions[None]:
    """Have a node tell itself who belongs to its shard. One call asks at a time, the others wait for it."""
    own, key = Learning(), _key_of(node)
    other = routes.learning.setdefault(key, own)  # one step, also among threads
    if other is not own:
        yield from _waited_for(other, routes, deadline, key)
        return
    try:
        yield from learn_from(routes, node, deadline)
    finally:
        if routes.learning.get(key) is own:
            del routes.learning[key]


def _key_of(node: Node) -> str:
    return f"{node[0]}:{node[1]}"


def learn_from(routes: Routes, node: Node, deadline: float = 0.0) -> Actions[Answer | NoAnswer]:
    """Learn the layout from one node, and give its answer."""
    # A node that was silent gets more time: on a loaded machine a connection by TLS may take longer than usual.
    at_most = BRIEFLY * (1 + min(routes.silences(node), 3))
    request = Send(node, LAYOUT, 0, deadline, reserved=True, overtime=_overtime(deadline), at_most=at_most)
    outcome = yield from sent(request)
    if isinstance(outcome, NoAnswer):
        routes.suspect(node)
    elif not routes.learn(outcome.values, node, outcome.now):
        return NoAnswer("", outcome.now, outcome.sent)
    else:
        routes.learned_at = outcome.now
        yield Retain(frozenset(routes.candidates()))
    return outcome


def learn(
    routes: Routes, now: float | None = None, deadline: float = math.inf, answered_by: Node | None = None
) -> Actions[str | None]:
    """Learn the layout anew from the first node that tells it before the deadline, unless that was just done.

    One call asks at a time, of all in the process; the others wait for it and use what it learned.

    Args:
        answered_by: the node that has just answered. It is asked first, and nobody is waited for: neither a node nor
            another call may keep a healthy shard's call waiting.

    Returns:
        Why the last node that was asked did not tell it: nothing if it did, None if none was asked.
    """
    if now is not None and now - routes.learned_at < LAYOUT_KEEPS:
        return None
    if answered_by and isinstance((yield from learn_from(routes, answered_by, deadline)), Answer):
        return ""
    own = Learning()
    while (other := routes.learning.setdefault(LAYOUT_KEY, own)) is not own:  # one step, also among threads
        if (yield from _waited_for(other, routes, deadline)):
            return other.silence
    try:
        own.silence = yield from learn_from_any(routes, deadline)
    finally:
        if routes.learning.get(LAYOUT_KEY) is own:
            del routes.learning[LAYOUT_KEY]
    return own.silence


def _waited_for(other: Learning, routes: Routes, deadline: float, key: str = LAYOUT_KEY) -> Actions[bool]:
    """Wait until another call has learned the layout or the deadline is over; False if it takes too long."""
    now: float = yield Pause(FIRST_LOOK)
    until, overdue, look = max(deadline, now) + _overtime(deadline), now + LEARNING_TAKES, FIRST_LOOK
    while routes.learning.get(key) is other and now < until:
        if now >= overdue:  # it hangs, or was interrupted where it could not tell
            routes.learning.pop(key, None)
            return False
        look = min(look * 2, LONGEST_LOOK)
        now = yield Pause(look)
    return True


def learn_from_any(routes: Routes, deadline: float = math.inf) -> Actions[str]:
    """Learn the layout from the first node that tells it before the deadline, and return why the last one did not."""
    silence = ""
    for node in routes.candidates():
        outcome = yield from learn_from(routes, node, deadline)
        routes.learned_at = outcome.now  # or asked for in vain: nobody asks again at once
        if isinstance(outcome, Answer):
            return ""
        silence = outcome.reason or silence
        if outcome.now >= deadline:
            break
    return silence


def _overtime(deadline: float) -> float:
    """Return for how long after a deadline the layout may be learned; without one it is, briefly, in any case."""
    return OVERTIME if deadline else BRIEFLY


def sent(send: Send) -> Actions[Answer | NoAnswer]:
    """Send a request whose failure is an outcome as any other."""
    try:
        answer: Answer = yield send
    except NoAnswer as failure:
        return failure
    return answer
