"""Carries a call of the protocol through to its answer, whatever the cluster does meanwhile. Without I/O.

`carry` turns a flow of calls into a flow of the few actions that a driver can take: `Send`, `SendAll`, `Pause`.
Redirections, failovers, missing scripts and lost connections are settled here and nowhere else, within the call's
deadline. (Redis Cluster specification, "MOVED Redirection", "ASK redirection", "Multiple keys operations".)
"""

import math
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from django_cluster_lock.errors import LockError, LockUnavailable
from django_cluster_lock.protocol import Batch, Call, Reply, Step

Node: TypeAlias = tuple[str, int]
Command: TypeAlias = tuple[bytes, ...]
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.3
BRIEFLY = 0.5  # seconds for what is asked beside the point: the layout, a cancel
LAYOUT: list[Command] = [(b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"NODES"), (b"INFO", b"replication")]
REDIRECTIONS = 3  # that are followed without a pause
LAYOUT_KEEPS = 0.1  # seconds in which it is not asked for again
TRANSIENT = {"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "BUSY"}


class Routes(Protocol):
    """What is known of the cluster: which node serves a slot, and how many replicas that has."""

    learned_at: float
    refused: str

    def primary(self, slot: int) -> Node | None: ...
    def replicas(self, slot: int) -> int: ...
    def redirected(self, to: str, asked: Node) -> Node: ...
    def moved(self, slot: int, node: Node) -> None: ...
    def suspect(self, node: Node) -> None: ...
    def candidates(self) -> list[Node]: ...
    def learn(self, values: Sequence[object], asked: Node) -> bool: ...


@dataclass(slots=True)
class Send:
    """Commands to write to a node in one go, whose answers are read back in order.

    Args:
        blocks: how many seconds the server may hold the answers back on purpose.
        deadline: the monotonic time to stop at, if sooner than the socket timeout, but never within `BRIEFLY`.
    """

    node: Node
    commands: list[Command]
    blocks: float
    deadline: float


class SendAll(NamedTuple):
    """Several of them at once: all are written before the first answer is read."""

    sends: list[Send]


class Pause(NamedTuple):
    """A sleep; the driver answers with the monotonic time after it."""

    seconds: float


Action: TypeAlias = Send | SendAll | Pause


class Refusal(Exception):
    """An error answer of a server."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Answer(NamedTuple):
    """The answers to one `Send`, and the monotonic times around it."""

    values: list[object]
    sent: float
    now: float


class NoAnswer(Exception):
    """A node could not be reached or did not answer in time.

    Args:
        reason: what happened.
        now: the monotonic time it happened.
        sent: when the request was written; None if it never was, so that the server cannot have run it.
    """

    def __init__(self, reason: str, now: float, sent: float | None = None) -> None:
        super().__init__(reason, now, sent)
        self.reason, self.now, self.sent = reason, now, sent


def carry(flow: Generator[Step, object, T], routes: Routes) -> Generator[Action, object, T]:
    """The flow with each of its calls carried through. What a driver throws in reaches the flow."""
    reply: object = None
    error: BaseException | None = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        try:
            reply = yield from exchange(step, routes) if isinstance(step, Call) else exchange_all(step, routes)
        except BaseException as raised:
            error = raised


def exchange(call: Call, routes: Routes, outcome: Answer | NoAnswer | None = None) -> Generator[Action, object, Reply]:
    """One call, carried through.

    Args:
        outcome: of a first attempt that was sent already.

    Raises:
        LockUnavailable: no answer before the deadline, or an error that repeating will not change.
    """
    slot = call.keys.slot
    node, asking, in_full = routes.primary(slot), False, False
    first_sent: float | None = None
    unanswered, blocking, pause, redirections = False, call.block is not None, FIRST_PAUSE, 0
    while True:
        if outcome is None:
            if node is None:
                yield from learn(routes, None, call.deadline)
                if routes.refused:
                    raise unavailable(call, routes.refused, unanswered=unanswered)
                node = routes.primary(slot)
            outcome = yield from attempt(call, node, routes, asking=asking, in_full=in_full, blocking=blocking)
        asked, node, was_asking = node, None, asking
        retry_now = asking = False
        if isinstance(outcome, NoAnswer):
            reason = outcome.reason
            if outcome.sent is not None:
                unanswered = True
                first_sent = first_sent or outcome.sent
        else:
            value = outcome.values[int(blocking) + int(was_asking)]
            if not isinstance(value, Refusal):
                if blocking and isinstance(outcome.values[0], Refusal):
                    yield Pause(FIRST_PAUSE)  # the sleep failed at once: a slot on the move must not make us spin
                needed = needed_by(call, routes)
                acks = outcome.values[-1] if needed else 0
                parts = value if isinstance(value, list) else [value]
                return Reply(
                    parts[0],
                    parts[1:],
                    outcome.sent,
                    outcome.now,
                    acks if isinstance(acks, int) else 0,
                    needed,
                    first_sent or outcome.sent,
                    unanswered,
                )
            reason = str(value)
            if value.code == "NOSCRIPT":
                node, in_full, retry_now = asked, True, True
            elif value.code in {"MOVED", "ASK"} and asked is not None:
                redirections += 1
                node, retry_now = routes.redirected(reason.split()[2], asked), redirections <= REDIRECTIONS
                asking = value.code == "ASK"
                if not asking:
                    routes.moved(slot, node)
                    yield from learn(routes, outcome.now)
            elif value.code not in TRANSIENT:
                raise unavailable(call, reason, unanswered=unanswered)
        if not retry_now:
            if call.once or outcome.now >= call.deadline:
                raise unavailable(call, reason, unanswered=unanswered)
            if asked is not None and isinstance(outcome, NoAnswer):
                routes.suspect(asked)
            yield from learn(routes, outcome.now, call.deadline)
            yield Pause(min(pause, max(call.deadline - outcome.now, 0.001)))
            pause = min(pause * 2, LONGEST_PAUSE)
        blocking = False
        node = node or routes.primary(slot)
        outcome = None


def attempt(
    call: Call, node: Node | None, routes: Routes, *, asking: bool, in_full: bool, blocking: bool
) -> Generator[Action, object, Answer | NoAnswer]:
    """One request to one node, and what came of it."""
    if node is None:
        return NoAnswer(f"no node serves its slot {call.keys.slot}", routes.learned_at)
    needed = needed_by(call, routes)
    commands: list[Command] = []
    blocks = 0.0
    if blocking and call.block:
        commands.append((b"BLPOP", call.block.key, b"%.3f" % call.block.seconds))
        blocks += call.block.seconds
    if asking:
        commands.append((b"ASKING",))
    commands.append(command(call, in_full=in_full))
    if needed:
        commands.append((b"WAIT", b"%d" % needed, b"%d" % (call.acknowledged_within * 1000)))
        blocks += call.acknowledged_within
    return (yield from sent(Send(node, commands, blocks, call.deadline)))


def sent(send: Send) -> Generator[Action, object, Answer | NoAnswer]:
    try:
        answer = yield send
    except NoAnswer as failure:
        return failure
    assert isinstance(answer, Answer)
    return answer


def exchange_all(batch: Batch, routes: Routes) -> Generator[Action, object, list[Reply | LockError]]:
    """Several calls at once, one write and one WAIT to each node; those that were refused go on one by one."""
    if any(routes.primary(call.keys.slot) is None for call in batch.calls):
        yield from learn(routes)
    by_node: dict[Node | None, list[int]] = defaultdict(list)
    for position, call in enumerate(batch.calls):
        by_node[routes.primary(call.keys.slot)].append(position)
    sends = {
        node: request_all([batch.calls[position] for position in positions], node, routes)
        for node, positions in by_node.items()
        if node is not None
    }
    outcomes = yield SendAll(list(sends.values()))
    assert isinstance(outcomes, list)
    answered: dict[Node | None, Answer | NoAnswer] = dict(zip(sends, outcomes, strict=True))
    for node, outcome in answered.items():
        if isinstance(outcome, NoAnswer) and node is not None:
            routes.suspect(node)
            yield from learn(routes, outcome.now)
    results: dict[int, Reply | LockError] = {}
    for node, positions in by_node.items():
        shared = answered.get(node)
        for place, position in enumerate(positions):
            own = shared
            if isinstance(shared, Answer):
                own = Answer([shared.values[place], shared.values[-1]], shared.sent, shared.now)
            try:
                results[position] = yield from exchange(batch.calls[position], routes, own)
            except LockError as error:
                results[position] = error
    return [results[position] for position in range(len(batch.calls))]


def request_all(calls: Sequence[Call], node: Node, routes: Routes) -> Send:
    commands = [command(call) for call in calls]
    needed = max(needed_by(call, routes) for call in calls)
    blocks = 0.0
    if needed:
        blocks = max(call.acknowledged_within for call in calls)
        commands.append((b"WAIT", b"%d" % needed, b"%d" % (blocks * 1000)))
    return Send(node, commands, blocks, max(call.deadline for call in calls))


def command(call: Call, *, in_full: bool = False) -> Command:
    keys = (call.keys.record, call.keys.index)[: call.script.key_count]
    how = (b"EVAL", call.script.text) if in_full else (b"EVALSHA", call.script.sha)
    return (*how, b"%d" % len(keys), *keys, *call.args)


def needed_by(call: Call, routes: Routes) -> int:
    return routes.replicas(call.keys.slot) if call.replicas is None else call.replicas


def learn(routes: Routes, now: float | None = None, deadline: float = math.inf) -> Generator[Action, object, None]:
    """Learns the layout anew from the first node that tells it before the deadline, unless that was just done."""
    if now is not None and now - routes.learned_at < LAYOUT_KEEPS:
        return
    for node in routes.candidates():
        outcome = yield from sent(Send(node, LAYOUT, 0, 0))
        routes.learned_at = outcome.now
        if isinstance(outcome, NoAnswer):
            routes.suspect(node)
        elif routes.learn(outcome.values, node):
            return
        if outcome.now >= deadline:
            return


def unavailable(call: Call, reason: str, *, unanswered: bool) -> LockUnavailable:
    error = LockUnavailable(call.keys.name, reason)
    error.unanswered = unanswered
    return error
