"""How the exchange keeps to the layout of the cluster: when to ask for it, and for the number of replicas.

Without I/O, as the exchange.
"""

import math

from django_cluster_lock.actions import BRIEFLY, Actions, Answer, Command, Learning, NoAnswer, Node, Pause, Routes, Send
from django_cluster_lock.protocol import Call

LAYOUT: list[Command] = [(b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"NODES"), (b"INFO", b"replication")]
# Asked in the same write where a shard has fewer replicas than it should: one that has just come (back) must count.
CENSUS: list[Command] = [(b"CLUSTER", b"NODES"), (b"INFO", b"replication")]
LAYOUT_KEEPS, LAYOUT_LASTS = 0.1, 30.0  # seconds in which it is not asked for again, after which it is in any case
LAYOUT_KEY = "layout"
# Seconds: how often those who wait for another to learn the layout look, at first and later, and when they do without.
FIRST_LOOK, LONGEST_LOOK, LEARNING_TAKES = 0.005, 0.05, 1.0


def needed_by(call: Call, routes: Routes, node: Node) -> int:
    return routes.replicas(node) if call.replicas is None else call.replicas


def to_be_counted(call: Call, routes: Routes, node: Node) -> bool:
    """Whether all replicas must have it, and it is not certain how many that are."""
    return call.replicas is None and routes.short_handed(node)


def census_taken(answer: Answer, routes: Routes, node: Node) -> Answer:
    """The answer without that to `CENSUS`, which the routes have learned."""
    routes.recount(answer.values[-len(CENSUS) :], node)
    return answer._replace(values=answer.values[: -len(CENSUS)])


def is_outdated(routes: Routes, now: float) -> bool:
    """Whether the layout is to be learned anew: replicas are added without anybody being told."""
    return now - routes.learned_at >= LAYOUT_LASTS


def update(routes: Routes, now: float) -> Actions[None]:
    routes.learned_at = now  # whoever comes next need not
    yield from learn(routes)


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
        outcome = yield from sent(Send(node, LAYOUT, 0, 0))
        routes.learned_at = outcome.now
        if isinstance(outcome, NoAnswer):
            routes.suspect(node)
            own.silence = outcome.reason
        elif routes.learn(outcome.values, node):
            own.silence = ""
            break
        if outcome.now >= deadline:
            break


def sent(send: Send) -> Actions[Answer | NoAnswer]:
    try:
        answer: Answer = yield send
    except NoAnswer as failure:
        return failure
    return answer
