"""When to learn the layout of the cluster, and from whom. Without I/O, as the exchange."""

import math

from django_cluster_lock.actions import (
    BRIEFLY,
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


def is_outdated(routes: Routes, now: float) -> bool:
    """Return whether the layout is to be learned anew: nobody is told of replicas that are added or forgotten."""
    return now - routes.learned_at >= LAYOUT_LASTS


def update(routes: Routes, node: Node, now: float) -> Actions[None]:
    """Learn the layout anew from a node that has just answered: no other one may keep a call waiting."""
    routes.learned_at = now  # whoever comes next need not
    yield from learn_from(routes, node)


def learn_from(routes: Routes, node: Node) -> Actions[Answer | NoAnswer]:
    """Learn the layout from one node, and give its answer."""
    outcome = yield from sent(Send(node, LAYOUT, 0, 0, reserved=True))
    routes.learned_at = outcome.now
    if isinstance(outcome, NoAnswer):
        routes.suspect(node)
    elif not routes.learn(outcome.values, node):
        return NoAnswer("", outcome.now, outcome.sent)
    else:
        yield Retain(frozenset(routes.candidates()))
    return outcome


def learn(routes: Routes, now: float | None = None, deadline: float = math.inf) -> Actions[str | None]:
    """Learn the layout anew from the first node that tells it before the deadline, unless that was just done.

    One call asks at a time, of all in the process; the others wait for it and use what it learned.

    Returns:
        Why the last node that was asked did not tell it: nothing if it did, None if none was asked.
    """
    if now is not None and now - routes.learned_at < LAYOUT_KEEPS:
        return None
    own = Learning()
    while (other := routes.learning.setdefault(LAYOUT_KEY, own)) is not own:  # one step, also among threads
        if (yield from _waited_for(other, routes, deadline)):
            return other.silence
    try:
        yield from _ask(own, routes, deadline)
    finally:
        if routes.learning.get(LAYOUT_KEY) is own:
            del routes.learning[LAYOUT_KEY]
    return own.silence


def _waited_for(other: Learning, routes: Routes, deadline: float) -> Actions[bool]:
    """Wait until another call has learned the layout or the deadline is over; False if it takes too long."""
    now: float = yield Pause(FIRST_LOOK)
    until, overdue, look = max(deadline, now + BRIEFLY), now + LEARNING_TAKES, FIRST_LOOK
    while routes.learning.get(LAYOUT_KEY) is other and now < until:
        if now >= overdue:  # it hangs, or was interrupted where it could not tell
            routes.learning.pop(LAYOUT_KEY, None)
            return False
        look = min(look * 2, LONGEST_LOOK)
        now = yield Pause(look)
    return True


def _ask(own: Learning, routes: Routes, deadline: float) -> Actions[None]:
    own.silence = ""
    for node in routes.candidates():
        outcome = yield from learn_from(routes, node)
        if isinstance(outcome, Answer):
            own.silence = ""
            break
        own.silence = outcome.reason or own.silence
        if outcome.now >= deadline:
            break


def sent(send: Send) -> Actions[Answer | NoAnswer]:
    """Send a request whose failure is an outcome as any other."""
    try:
        answer: Answer = yield send
    except NoAnswer as failure:
        return failure
    return answer
