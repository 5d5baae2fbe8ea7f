"""Carries a call of the protocol through to its answer, whatever the cluster does meanwhile. Without I/O.

`carry` turns a flow of calls into a flow of the few actions that a driver can take: `Send`, `SendAll`, `Pause`.
Redirections, failovers, missing scripts and lost connections are settled here and nowhere else, within the call's
deadline. (Redis Cluster specification, "MOVED Redirection", "ASK redirection", "Multiple keys operations".)
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from django_cluster_lock.actions import (
    TRANSIENT,
    Actions,
    Answer,
    Command,
    NoAnswer,
    Node,
    Pause,
    Refusal,
    Routes,
    Send,
    SendAll,
)
from django_cluster_lock.errors import LockError, LockUnavailable
from django_cluster_lock.layout import CENSUS, census_taken, is_outdated, learn, needed_by, to_be_counted, update
from django_cluster_lock.protocol import Batch, Call, Flow, Replies, Reply

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.3
REDIRECTIONS = 3  # that are followed without a pause


def carry(flow: Flow[T], routes: Routes) -> Actions[T]:
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


def exchange(call: Call, routes: Routes, outcome: Answer | NoAnswer | None = None) -> Actions[Reply]:
    """One call, carried through.

    Args:
        outcome: of a first attempt that was sent already.

    Raises:
        LockUnavailable: no answer before the deadline, or an error that repeating will not change.
    """
    course = Course(call, routes)
    while True:
        if outcome is None:
            if course.node is None:
                yield from course.learn()
                course.find_node()
            try:
                outcome = (yield course.request()) if course.node else (yield from course.nowhere())
            except NoAnswer as failure:
                outcome = failure
        if isinstance(outcome, Answer):
            if course.counts:
                outcome = course.counted(outcome)
            value = outcome.values[course.skips]
            if not isinstance(value, Refusal):
                if course.counts and course.too_few_asked():
                    outcome = None
                    continue
                if course.blocking and (rest := course.rest_after(outcome, value)):
                    outcome = outcome._replace(now=(yield Pause(rest)))
                if is_outdated(routes, outcome.now):
                    yield from update(routes, outcome.now)
                acks = outcome.values[-1] if course.needed else 0
                return replied(outcome, value, acks, course.needed, course.first_sent, unanswered=course.unanswered)
            course.refused(value, outcome.now)
        else:
            course.unheard(outcome)
        if course.layout_is_old:
            yield from course.learn(outcome.now)
        if course.pause:
            yield Pause(course.rest_before_next(outcome))
        course.find_node()
        outcome = None


class Course:
    """How the next attempt at a call is to be made, and what the earlier ones left behind."""

    asking = in_full = layout_is_old = unanswered = counts = False
    needed = 0
    skips = 0  # how many answers come before the script's
    first_sent: float | None = None
    pause = 0.0
    _next: Node | None = None
    _silence = ""  # why no node told the layout
    _backoff = FIRST_PAUSE
    _redirections = 0
    _reason = ""  # why the last attempt failed

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
            self.needed = needed_by(call, self.routes, self.node)
            self.counts = to_be_counted(call, self.routes, self.node)
        if self.needed:
            commands.append(wait(self.needed, call.acknowledged_within))
            blocks += call.acknowledged_within
        if self.counts:
            commands += CENSUS
        return Send(self.node, commands, blocks, call.deadline)

    def counted(self, answer: Answer) -> Answer:
        """The answer without the count of replicas, which is taken over."""
        assert self.node is not None
        return census_taken(answer, self.routes, self.node)

    def too_few_asked(self) -> bool:
        """Whether the node turned out to have more replicas than were waited for: then it is to be done again."""
        if self.node is None or needed_by(self.call, self.routes, self.node) <= self.needed:
            return False
        self._at_once(self.node)
        return True

    def rest_after(self, answer: Answer, value: object) -> float:
        """How long to rest before the next slice: a slot on the move refuses the sleep, and must not make us spin."""
        waits = isinstance(value, list) and value[0] == b"queued"
        kept_awake = waits and isinstance(answer.values[0], Refusal)
        return min(self.call.block.seconds, LONGEST_PAUSE) if kept_awake and self.call.block else 0.0

    def learn(self, now: float | None = None) -> Actions[None]:
        silence = yield from learn(self.routes, now, self.call.deadline)
        if silence is not None:
            self._silence = silence

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
        self._reason = reason
        if (self.call.once and self.unanswered) or now >= self.call.deadline:
            raise self._unavailable(reason)
        self._at_once(None)
        self.pause, self.layout_is_old = self._backoff, True
        self._backoff = min(self._backoff * 2, LONGEST_PAUSE)

    def _unavailable(self, reason: str) -> LockUnavailable:
        error = LockUnavailable(self.call.keys.name, reason)
        error.unanswered = self.unanswered
        return error


def replied(
    answer: Answer, value: object, acks: object, needed: int, first: float | None = None, *, unanswered: bool = False
) -> Reply:
    """A script's answer, and that of the wait for replicas, in the protocol's terms."""
    status, details = (value[0], value[1:]) if isinstance(value, list) else (value, ())
    assert isinstance(status, bytes)
    count, objection = (acks, "") if isinstance(acks, int) else (0, str(acks) if isinstance(acks, Refusal) else "")
    first = first or answer.sent
    return Reply(status, details, answer.sent, answer.now, count, needed, first, unanswered, objection)


def exchange_all(batch: Batch, routes: Routes) -> Actions[Replies]:
    """Several calls at once, one write and one WAIT to each node; those that were refused go on one by one."""
    deadline = max(call.deadline for call in batch.calls)
    if any(routes.primary(call.keys.slot) is None for call in batch.calls):
        yield from learn(routes, None, deadline)
    by_node: dict[Node | None, list[int]] = defaultdict(list)
    for position, call in enumerate(batch.calls):
        by_node[routes.primary(call.keys.slot)].append(position)
    sends, counting, needed = dict[Node, Send](), set[Node](), dict[int, int]()
    for node, positions in by_node.items():
        if node is not None:
            calls = [batch.calls[position] for position in positions]
            sends[node] = request_all(calls, node, routes)
            needed.update((position, needed_by(batch.calls[position], routes, node)) for position in positions)
            if any(to_be_counted(call, routes, node) for call in calls):
                counting.add(node)
    outcomes: list[Answer | NoAnswer] = yield SendAll(list(sends.values()))
    answered: dict[Node | None, Answer | NoAnswer] = {
        node: census_taken(outcome, routes, node) if node in counting and isinstance(outcome, Answer) else outcome
        for node, outcome in zip(sends, outcomes, strict=True)
    }
    for node, outcome in answered.items():
        if isinstance(outcome, NoAnswer) and node is not None:
            routes.suspect(node)
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
                    if node in counting and needed_by(call, routes, node) > needed[position]:
                        again.append(position)
                        continue
                    acks = shared.values[-1] if needed[position] else 0
                    results[position] = replied(shared, value, acks, needed[position])
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
        repeated = yield from exchange_all(Batch([batch.calls[position] for position in again]), routes)
        results.update(zip(again, repeated, strict=True))
    if outcomes and is_outdated(routes, outcomes[0].now):
        yield from update(routes, outcomes[0].now)
    return [results[position] for position in range(len(batch.calls))]


def request_all(calls: Sequence[Call], node: Node, routes: Routes) -> Send:
    commands = [command(call) for call in calls]
    needed = max(needed_by(call, routes, node) for call in calls)
    blocks = 0.0
    if needed:
        blocks = max(call.acknowledged_within for call in calls)
        commands.append(wait(needed, blocks))
    if any(to_be_counted(call, routes, node) for call in calls):
        commands += CENSUS
    return Send(node, commands, blocks, max(call.deadline for call in calls))


def command(call: Call, *, in_full: bool = False) -> Command:
    keys = (call.keys.record, call.keys.index)[: call.script.key_count] + call.also
    how = (b"EVAL", call.script.text) if in_full else (b"EVALSHA", call.script.sha)
    return (*how, b"%d" % len(keys), *keys, *call.args)


def wait(replicas: int, seconds: float) -> Command:
    return b"WAIT", b"%d" % replicas, b"%d" % max(seconds * 1000, 1)
