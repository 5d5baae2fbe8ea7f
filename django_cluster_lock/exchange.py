"""Carries a call of the protocol through to its answer, whatever the cluster does meanwhile. Without I/O.

`carry` turns a flow of calls into a flow of the few actions that a driver can take: `Send`, `SendAll`, `Pause`.
Redirections, failovers, missing scripts and lost connections are settled here and nowhere else, within the call's
deadline. (Redis Cluster specification, "MOVED Redirection", "ASK redirection", "Multiple keys operations".)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from django_cluster_lock.acknowledgement import NOT_ASKED, Acknowledged, ReplicaCheck, check_replicas
from django_cluster_lock.actions import (
    OVERTIME,
    TRANSIENT,
    Actions,
    Answer,
    Awake,
    Command,
    Forget,
    NoAnswer,
    Node,
    Pause,
    Refusal,
    Routes,
    Send,
    SendAll,
)
from django_cluster_lock.errors import LockError, LockUnavailable
from django_cluster_lock.layout import is_outdated, learn, learn_own, update
from django_cluster_lock.protocol import GRACE, Batch, Call, Flow, Replies, Reply, Step
from django_cluster_lock.scripts import answers

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.3
REDIRECTIONS = 3  # that are followed without a pause


def carry(flow: Flow[T], routes: Routes, leave: Callable[[Call], None] | None = None) -> Actions[T]:
    """Carry each call of a flow through; ``leave`` gets those that failed and linger. What is thrown in reaches it."""
    reply: object = None
    error: BaseException | None = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            error = None  # which refers to this frame: else both would wait for the collector of garbage
        try:
            reply = yield from exchange(step, routes) if isinstance(step, Call) else exchange_all(step, routes)
        except BaseException as raised:
            error = raised
        if leave and (error or type(reply) is list):
            for call in failed(step, error or reply):
                leave(call)


def failed(step: Step, outcome: object) -> list[Call]:
    """Return those calls of a step that linger and did not come to their answers."""
    calls = [step] if isinstance(step, Call) else step.calls
    outcomes = outcome if isinstance(outcome, list) else [outcome] * len(calls)
    return [
        call for call, reply in zip(calls, outcomes, strict=True) if call.lingers and isinstance(reply, BaseException)
    ]


def exchange(call: Call, routes: Routes, outcome: Answer | NoAnswer | Awake | None = None) -> Actions[Reply]:
    """One call, carried through.

    Args:
        outcome: of a first attempt that was sent already.

    Raises:
        LockUnavailable: no answer before the deadline, or an error that repeating will not change.
    """
    course = Course(call, routes)
    while True:
        if outcome is None:
            if course.node is None and (call.deadline or not call.lingers):
                yield from course.learn()
                course.find_node()
            if course.node and call.replicas is None and routes.required(course.node) is None:
                # Who has to acknowledge it is not known there yet.
                yield from learn_own(routes, course.node, call.deadline)
            try:
                outcome = (yield course.request()) if course.node else (yield from course.nowhere())
            except NoAnswer as failure:
                outcome = failure
        if isinstance(outcome, Answer):
            value = outcome.values[course.skips]
            if not isinstance(value, Refusal):
                check = course.replica_check
                acknowledged = NOT_ASKED if check is None else check.in_ordinary_case(outcome)
                if acknowledged is None:
                    assert check is not None
                    acknowledged = yield from check.settle(outcome)
                if course.blocking and (rest := course.rest_after(outcome, value)):
                    outcome = outcome._replace(now=(yield Pause(rest)))
                assert course.node is not None
                # Not after the end of a lease: whoever frees a lock should not wait for the layout.
                if not call.script.reserved and is_outdated(routes, course.node, outcome.now):
                    yield from update(routes, course.node)
                return replied(call, outcome, value, acknowledged, course.first_sent, unanswered=course.unanswered)
            if value.code == "READONLY" and course.node:
                yield Forget(course.node)
            course.refused(value, outcome.now)
        elif isinstance(outcome, Awake):
            course.blocking, outcome = False, None
            continue
        else:
            course.unheard(outcome)
        if course.layout_is_old:
            yield from course.learn(outcome)
        if course.pause:
            yield Pause(course.rest_before_next(outcome))
        course.find_node()
        outcome = None


class Course:
    """How the next attempt at a call is to be made, and what the earlier ones left behind."""

    asking = in_full = layout_is_old = unanswered = False
    skips = 0  # how many answers come before the script's
    replica_check: ReplicaCheck | None = None
    first_sent: float | None = None
    pause = 0.0
    _next: Node | None = None
    _silence = ""  # why no node told the layout
    _backoff = FIRST_PAUSE
    _redirections = 0
    _reason = ""  # why the last attempt failed
    _tried_at = float("-inf")  # when

    def __init__(self, call: Call, routes: Routes) -> None:
        self.call, self.routes = call, routes
        self.node = routes.primary(call.keys.slot)
        self.blocking = call.block is not None

    def request(self) -> Send:
        """The request to the node: a sleep at the first attempt, the script, the wait for replicas."""
        call, blocks = self.call, 0.0
        commands: list[Command] = []
        assert self.node is not None
        if self.blocking and call.block:
            commands.append((b"BLPOP", call.block.key, b"%.3f" % call.block.seconds))
            blocks += call.block.seconds
        if self.asking:
            commands.append((b"ASKING",))
        self.skips = len(commands)
        commands.append(command(call, in_full=self.in_full))
        if call.replicas != 0:
            within = call.acknowledged_within
            if call.deadline:  # what was done before has taken some of the time
                left = call.deadline - max(self._tried_at, self.routes.learned_at)
                within = min(within, max(left / 2, GRACE))
            check = ReplicaCheck(call.replicas, within, self.routes, self.node)
            self.replica_check = check
            commands += check.commands
            blocks += check.blocks
        block = call.block if self.blocking else None
        return Send(self.node, commands, blocks, call.deadline, call.script.reserved, block, overtime_of(call, blocks))

    def rest_after(self, answer: Answer, value: object) -> float:
        """How long to rest before the next slice: a slot on the move refuses the sleep, and must not make us spin."""
        waits = isinstance(value, list) and value[:1] == [b"queued"]
        kept_awake = waits and isinstance(answer.values[0], Refusal)
        return min(self.call.block.seconds, LONGEST_PAUSE) if kept_awake and self.call.block else 0.0

    def learn(self, outcome: Answer | NoAnswer | None = None) -> Actions[None]:
        """Learn the layout; after an answer from its node first, since another could keep the call waiting."""
        answered_by = self.node if isinstance(outcome, Answer) else None
        silence = yield from learn(self.routes, outcome.now if outcome else None, self.call.deadline, answered_by)
        if silence is not None and not (self._silence and self.routes.learned_at >= self.call.deadline):
            self._silence = silence  # unless only the caller's time cut the question off

    def nowhere(self) -> Actions[NoAnswer]:
        reason = self._silence or f"no node serves its slot {self.call.keys.slot}"
        return NoAnswer(reason, (yield Pause(0)))

    def find_node(self) -> None:
        """Where to send the next attempt.

        Raises:
            LockUnavailable: every node refuses to let us in.
        """
        if self.routes.refused:
            raise self._unavailable(self.routes.refused)
        self.node, self._next = self._next or self.routes.primary(self.call.keys.slot), None

    def unheard(self, failure: NoAnswer) -> None:
        """An attempt stayed without an answer."""
        if failure.sent is not None:
            self.unanswered = True
            self.first_sent = self.first_sent or failure.sent
        if self.node:
            self.routes.suspect(self.node)
        self._later(failure.reason, failure.now)

    def refused(self, refusal: Refusal, now: float) -> None:
        """A server answered with an error: a redirection, something that passes, or the end."""
        code = refusal.code
        if code == "NOSCRIPT":
            self._at_once(self.node)
            self.in_full = True
        elif code in {"MOVED", "ASK"} and self.node:
            target = self.routes.redirected(str(refusal).split()[-1], self.node)
            self._redirections += 1
            if self._redirections <= REDIRECTIONS:
                self._at_once(target)
            else:
                self._later(str(refusal), now)
            self.asking, self._next = code == "ASK", target
            if code == "MOVED":
                self.routes.moved(self.call.keys.slot, target)
                self.layout_is_old = True
        elif code in TRANSIENT:
            self._later(str(refusal), now)
        else:
            raise self._unavailable(str(refusal))

    def _at_once(self, node: Node | None) -> None:
        self._next, self.pause = node, 0.0
        self.blocking = self.asking = self.layout_is_old = False

    def rest_before_next(self, outcome: Answer | NoAnswer) -> float:
        """How long to pause before the next attempt.

        Raises:
            LockUnavailable: learning the layout has taken until the deadline.
        """
        left = self.call.deadline - max(outcome.now, self.routes.learned_at)
        if left <= 0:
            raise self._unavailable(self._reason)
        return min(self.pause, max(left, 0.001))

    def _later(self, reason: str, now: float) -> None:
        self._tried_at = now
        if self.call.once and self.unanswered:
            raise self._unavailable(reason)
        if now >= self.call.deadline:
            raise self._unavailable(self._reason or reason)  # the first tells more, if the time cut the last one off
        self._reason = reason
        self._at_once(None)
        self.pause, self.layout_is_old = self._backoff, True
        self._backoff = min(self._backoff * 2, LONGEST_PAUSE)

    def _unavailable(self, reason: str) -> LockUnavailable:
        error = LockUnavailable(self.call.keys.name, reason)
        error.unanswered = self.unanswered
        return error


def replied(
    call: Call, answer: Answer, value: object, by: Acknowledged, first: float | None = None, *, unanswered: bool = False
) -> Reply:
    """Return a script's answer, and who acknowledged it, in the protocol's terms.

    Raises:
        LockUnavailable: it is no answer of that script, but of a proxy, say, or of a server that is no Redis.
    """
    read = answers.read(call.script.name, value)
    if read is None:
        error = LockUnavailable(call.keys.name, f"its server gave an answer that makes no sense: {repr(value)[:200]}")
        error.unanswered = True
        raise error
    status, details = read
    first, now = first or answer.sent, max(answer.now, by.now)
    return Reply(status, details, answer.sent, now, by.by, by.needed, first, unanswered, by.objection)


def exchange_all(batch: Batch, routes: Routes) -> Actions[Replies]:
    """Several calls at once, one write and one WAIT to each node; those that were refused go on one by one."""
    deadline = max(call.deadline for call in batch.calls)
    if any(routes.primary(call.keys.slot) is None for call in batch.calls):
        yield from learn(routes, None, deadline)
    by_node: dict[Node | None, list[int]] = defaultdict(list)
    for position, call in enumerate(batch.calls):
        by_node[routes.primary(call.keys.slot)].append(position)
    sends, checks = dict[Node, Send](), dict[Node | None, ReplicaCheck | None]()
    for node, positions in by_node.items():
        if node is not None:
            calls = [batch.calls[position] for position in positions]
            if routes.required(node) is None and any(call.replicas is None for call in calls):
                yield from learn_own(routes, node, deadline)
            check = checks[node] = check_replicas(calls, routes, node)
            sends[node] = request_all(calls, node, check)
    outcomes: list[Answer | NoAnswer] = yield SendAll(list(sends.values()))
    answered: dict[Node | None, Answer | NoAnswer] = dict(zip(sends, outcomes, strict=True))
    acknowledged: dict[Node | None, Acknowledged] = {}
    for node, outcome in answered.items():
        if isinstance(outcome, Answer):
            acknowledged[node] = NOT_ASKED if (check := checks[node]) is None else (yield from check.settle(outcome))
    for node, outcome in answered.items():
        if isinstance(outcome, NoAnswer) and node is not None:
            routes.suspect(node)
            if outcome.now < deadline:
                yield from learn(routes, outcome.now, deadline)
    results: dict[int, Reply | LockError] = {}
    again: list[int] = []
    for node, positions in by_node.items():
        shared = answered.get(node)
        unknown = False
        for place, position in enumerate(positions):
            call, own = batch.calls[position], shared
            if isinstance(shared, Answer) and node is not None:
                value = shared.values[place]
                if not isinstance(value, Refusal):
                    by = acknowledged[node] if call.replicas != 0 else NOT_ASKED
                    try:
                        results[position] = replied(call, shared, value, by)
                    except LockUnavailable as error:
                        results[position] = error
                    continue
                if unknown and value.code == "NOSCRIPT":
                    again.append(position)  # the node has learned the script from the first that it did not know
                    continue
                unknown = value.code == "NOSCRIPT"
                own = Answer([value], shared.sent, shared.now)
            try:
                results[position] = yield from exchange(call, routes, own)
            except LockError as error:
                results[position] = error
    if again:
        replies = yield from exchange_all(Batch([batch.calls[position] for position in again]), routes)
        results.update(zip(again, replies, strict=True))
    for node, outcome in answered.items():
        ends = all(batch.calls[position].script.reserved for position in by_node[node])
        if node and not ends and isinstance(outcome, Answer) and is_outdated(routes, node, outcome.now):
            yield from update(routes, node)
    return [results[position] for position in range(len(batch.calls))]


def request_all(
    calls: Sequence[Call], node: Node, check: ReplicaCheck | None, commands: Sequence[Command] = ()
) -> Send:
    """Return one request for several calls.

    Args:
        commands: theirs, where they are not the plain ones.
    """
    commands = [*(commands or map(command, calls)), *(check.commands if check else ())]
    blocks = check.blocks if check else 0.0
    reserved = any(call.script.reserved for call in calls)
    overtime = min(overtime_of(call, blocks) for call in calls)
    return Send(node, commands, blocks, max(call.deadline for call in calls), reserved=reserved, overtime=overtime)


def overtime_of(call: Call, blocks: float) -> float:
    """Return for how long after its deadline an answer to a call may come."""
    return OVERTIME if call.deadline else call.within + blocks


def command(call: Call, *, in_full: bool = False) -> Command:
    keys = (call.keys.record, call.keys.index)[: call.script.key_count] + call.also
    how = (b"EVAL", call.script.text) if in_full else (b"EVALSHA", call.script.sha)
    return (*how, b"%d" % len(keys), *keys, *call.args)
