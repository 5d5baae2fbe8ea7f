"""Asks one node for many things at once, and no other node. Without I/O, as the exchange.

The exchange follows a call wherever the cluster sends it. That makes one node's calls wait for another node. Renewals
must not, so here each call ends with the answer of the node it was meant for.
"""

from collections.abc import Collection, Sequence

from django_cluster_lock.acknowledgement import NOT_ASKED, Acknowledged, check_replicas
from django_cluster_lock.actions import Actions, Answer, Command, NoAnswer, Node, Refusal, Routes
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.exchange import command, replied, request_all
from django_cluster_lock.layout import learn_own, sent
from django_cluster_lock.protocol import Call, Reply
from django_cluster_lock.scripts import Script


def ask_node(
    node: Node,
    calls: Sequence[Call],
    routes: Routes,
    *,
    asking: Collection[int] = (),
    in_full: Collection[Script] = (),
) -> Actions[list[Reply | Refusal | NoAnswer]]:
    """Send calls to a node in one write, with one wait for its replicas; return for each its reply or its failure.

    Args:
        asking: the positions of those whose slot's owner sent them here for this once.
        in_full: the scripts that the node turned out not to know.
    """
    commands, places, unknown = list[Command](), list[int](), set(in_full)
    for position, call in enumerate(calls):
        if position in asking:
            commands.append((b"ASKING",))
        places.append(len(commands))
        commands.append(command(call, in_full=call.script in unknown))
        unknown.discard(call.script)  # from then on it knows it
    if routes.required(node) is None and any(call.replicas is None for call in calls):
        yield from learn_own(routes, node)
    check = check_replicas(calls, routes, node)
    outcome = yield from sent(request_all(calls, node, check, commands))
    if isinstance(outcome, NoAnswer):
        return [outcome] * len(calls)
    missing = {call.script for call, place in zip(calls, places, strict=True) if _is_unknown(outcome.values[place])}
    if missing and not in_full:
        return (yield from ask_node(node, calls, routes, asking=asking, in_full=missing))
    acknowledged = NOT_ASKED if check is None else (yield from check.settle(outcome))
    return [_result(call, outcome, place, acknowledged) for call, place in zip(calls, places, strict=True)]


def _result(call: Call, answer: Answer, place: int, acknowledged: Acknowledged) -> Reply | Refusal | NoAnswer:
    value = answer.values[place]
    if isinstance(value, Refusal):
        return value
    try:
        return replied(call, answer, value, acknowledged if call.replicas != 0 else NOT_ASKED)
    except LockUnavailable as error:  # it is no answer of the script
        return NoAnswer(str(error), answer.now, answer.sent)


def _is_unknown(value: object) -> bool:
    return isinstance(value, Refusal) and value.code == "NOSCRIPT"
