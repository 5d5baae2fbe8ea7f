"""How the exchange keeps to the layout of the cluster: when to ask for it, and for the number of replicas.

Without I/O, as the exchange.
"""

import math

from django_cluster_lock.actions import Actions, Answer, Command, NoAnswer, Node, Routes, Send
from django_cluster_lock.protocol import Call

LAYOUT: list[Command] = [(b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"NODES"), (b"INFO", b"replication")]
# Asked in the same write where a shard has fewer replicas than it should: one that has just come (back) must count.
CENSUS: list[Command] = [(b"CLUSTER", b"NODES"), (b"INFO", b"replication")]
LAYOUT_KEEPS, LAYOUT_LASTS = 0.1, 30.0  # seconds in which it is not asked for again, after which it is in any case


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
    """Learns the layout anew from the first node that tells it before the deadline, unless that was just done.

    Returns:
        Why the last node that was asked did not tell it: nothing if it did, None if none was asked.
    """
    if now is not None and now - routes.learned_at < LAYOUT_KEEPS:
        return None
    silence = ""
    for node in routes.candidates():
        outcome = yield from sent(Send(node, LAYOUT, 0, 0))
        routes.learned_at = outcome.now
        if isinstance(outcome, NoAnswer):
            routes.suspect(node)
            silence = outcome.reason
        elif routes.learn(outcome.values, node):
            return ""
        if outcome.now >= deadline:
            break
    return silence


def sent(send: Send) -> Actions[Answer | NoAnswer]:
    try:
        answer: Answer = yield send
    except NoAnswer as failure:
        return failure
    return answer
