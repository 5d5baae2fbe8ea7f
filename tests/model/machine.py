"""Clients, a network that may do anything, and time, interleaved at will on one real shard."""

import itertools
from collections import Counter, deque

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_cluster_lock import protocol, scripts
from django_cluster_lock.actions import Answer, NoAnswer, Refusal
from django_cluster_lock.names import keys_of
from tests.model.clients import ROLE, Clock, Handle, Operation
from tests.model.ledger import Ledger, require
from tests.model.shard import Shard

TAG = "model"
OWNER = (b"host", b"1", b"main", b"")
TIMEOUTS = [3, 6, 12]  # seconds; a waiter's life is two thirds of it
# How fast a client's clock runs, and what skew its lock allows for: enough for that over the longest timeout.
CLOCKS = [(1.0, 1.0), (1.0, 0.0), (0.93, 1.0), (1.07, 1.0)]
CROWD = 8  # operations under way
MILLISECOND = 1000
SLOW = 2500 * MILLISECOND  # longer than the skew, shorter than the shortest lease
FAULTS = [
    "lose",
    "never_send",
    "hold_the_answer",
    "answer_late",
    "lose_the_answer",
    "delay",
    "run_twice",
    "refuse",
    "refuse_for_good",
]
FATES = ["lost", "late", "ran"]
EVENTS = ["release_by_force", "sweep", "lose_record", "fall_behind", "fall_behind", "catch_up", "fail_over"]

some = st.integers(0, 99)  # among larger ones Hypothesis mixes what stands in the modules that are imported by then
timeouts = st.sampled_from(TIMEOUTS)
clocks = st.sampled_from(CLOCKS)
which_lock = st.sampled_from([0, 0, 0, 1])
an_operation = precondition(lambda machine: machine.operations)
a_handle = precondition(lambda machine: machine.handles)
room = precondition(lambda machine: len(machine.operations) < CROWD)


class LockMachine(RuleBasedStateMachine):
    """What must hold is in `ledger`, and in `believed_leases_are_real`.

    Args:
        connection: a redis-py client of the node that serves `TAG`.
        prefix: the test's KEY_PREFIX.
        mutations: changed texts of scripts, by name.
        seen: counts what happened, so that a test can tell that enough did.
    """

    examples = itertools.count()

    def __init__(self, connection, prefix, mutations=None, seen=None):
        super().__init__()
        self.shard = Shard(connection, mutations)
        self.seen = Counter() if seen is None else seen
        prefix = f"{prefix}-{next(self.examples)}"
        self.locks = [keys_of(prefix, name, TAG) for name in ("a", "b")]
        self.ledgers = {keys.record: Ledger() for keys in self.locks}
        for keys in self.locks:
            self.shard.add(keys)
        self.tokens = itertools.count()
        self.operations, self.handles = [], []
        self.late = []  # requests that may still arrive
        self.past = deque(maxlen=CROWD)  # requests that did, of which copies may follow
        self.replica = None  # what the replica has, once it has fallen behind
        self.unloaded = set()

    def teardown(self):
        for operation in self.operations:
            operation.abandon()
        self.shard.clear()

    # Clients begin something

    @room
    @rule(which=which_lock, timeout=timeouts, patience=st.sampled_from([0, 2, 30]), kind=clocks)
    def acquire(self, which, timeout, patience, kind):
        clock, terms = asking(self.shard, timeout, *kind)
        now = clock()
        until, blocking = now + patience, patience > 0
        flow = protocol.acquire(self.locks[which], self._token(), terms, now=now, until=until, blocking=blocking)
        self._start("acquire", clock, flow, lambda grant: self._got(clock, terms, grant))

    @room
    @rule(timeout=timeouts, patience=st.sampled_from([0, 30]), kind=clocks)
    def acquire_all(self, timeout, patience, kind):
        clock, terms = asking(self.shard, timeout, *kind)
        now = clock()
        until, blocking = now + patience, patience > 0
        flow = protocol.acquire_all(self.locks, self._token, terms, now=now, until=until, blocking=blocking)
        self._start("acquire_all", clock, flow, lambda grants: self._got(clock, terms, *grants))

    @a_handle
    @rule(pick=some, timeout=timeouts)
    def renew(self, pick, timeout):
        handle = self._pick(self.handles, pick)

        def then(grant):
            if grant:
                handle.renewed(grant)
            else:
                require(not self._is_sound(handle), "I7", "a holder within its time was told that it lost", handle)
                handle.believed = False

        terms = handle.terms.lasting(timeout)
        flow = protocol.renew(handle.grant, terms, deadline=handle.clock() + 2)
        self._start("renew", handle.clock, flow, then)

    @a_handle
    @rule(pick=some)
    def release(self, pick):
        handle = self._given_up(pick)

        def then(was_owner):
            within = handle.clock() < handle.grant.valid_until and not self._is_evicted(handle)
            require(was_owner or not within, "I2", "a release within its time was not the owner's", handle)

        deadline, valid_until = handle.clock() + 2, handle.grant.valid_until
        flow = protocol.release(handle.grant, deadline=deadline, valid_until=valid_until)
        self._start("release", handle.clock, flow, then)

    # The network and the servers do something to requests

    @an_operation
    @rule(pick=some)
    def deliver(self, pick):
        self._deliver(*self._picked(pick))

    @an_operation
    @rule()
    def deliver_everything(self):
        for operation in list(self.operations):
            for request in operation.waiting():
                self._deliver(operation, request)

    @an_operation
    @rule(pick=some, fault=st.sampled_from(FAULTS))
    def disturb(self, pick, fault):
        getattr(self, f"_{fault}")(*self._picked(pick))

    @precondition(lambda self: self.late)
    @rule(pick=some)
    def deliver_late(self, pick):
        self._run_commands(self.late.pop(pick % len(self.late)))

    @precondition(lambda self: self.past)
    @rule(pick=some)
    def deliver_again(self, pick):
        self._run_commands(self._pick(self.past, pick))

    def _lose(self, operation, request):
        """The request, or the answer that is on its way."""
        self._settle(operation, request, NoAnswer("lost", operation.clock(), request.sent))

    def _never_send(self, operation, request):
        if request.values is None and request.asleep_since is None:
            self._settle(operation, request, NoAnswer("not reached", operation.clock()))

    def _hold_the_answer(self, operation, request):
        self._run(request)

    def _answer_late(self, operation, request):
        if self._run(request):
            self._move_time(SLOW)
            self._deliver(operation, request)

    def _lose_the_answer(self, operation, request):
        if self._run(request):
            self._lose(operation, request)

    def _delay(self, operation, request):
        """The client gives up, but the request may still arrive."""
        if request.values is None:
            self.late.append(request.commands)
        self._lose(operation, request)

    def _run_twice(self, operation, request):
        """I2: asked again at once, a script says and does the same, but that a release is done only once."""
        if request.values is not None or self._sleeps(request):
            return
        for command in request.commands:
            if command[0] in (b"EVALSHA", b"EVAL"):
                first, second = self._run_script(command), self._run_script(command)
                once = second.status == b"not owner" if first.name == "release" else second.answer == first.answer
                require(once, "I2", "asked twice, answered wrongly", first, second)
                require(second.after.fields == first.after.fields, "I2", "asked twice, changed twice", first, second)
        self._lose(operation, request)

    def _refuse(self, operation, request, code="LOADING"):
        if request.values is None:
            request.values = [Refusal(f"{code} says the model") for _ in request.commands]
            self._deliver(operation, request)

    def _refuse_for_good(self, operation, request):
        self._refuse(operation, request, "OOM")

    # Clients meet misfortune

    @an_operation
    @rule(pick=some, fate=st.sampled_from(FATES))
    def interrupt(self, pick, fate):
        operation, request = self._picked(pick)
        self._meets(request, fate)
        operation.interrupt()
        self._tidy()

    @an_operation
    @rule(pick=some, fate=st.sampled_from(FATES))
    def crash(self, pick, fate):
        operation, _ = self._picked(pick)
        for request in operation.waiting():
            self._meets(request, fate)
        self.operations.remove(operation)
        operation.abandon()

    @a_handle
    @rule(pick=some)
    def crash_while_holding(self, pick):
        self._given_up(pick)

    # Operators and servers

    @rule(event=st.sampled_from(EVENTS), which=which_lock)
    def happen(self, event, which):
        getattr(self, f"_{event}")(self.locks[which])

    def _release_by_force(self, keys):
        shown = self.shard.look(keys)
        if shown.holder:
            self._ledger(keys).evicted.add((shown.holder, shown.fence))
            args = protocol.released(keys, shown.holder, mark=True)
            self._run_script((b"EVALSHA", scripts.RELEASE.sha, b"1", keys.record, *args))

    def _sweep(self, keys):
        self._run_script((b"EVALSHA", scripts.SWEEP.sha, b"2", keys.record, keys.index, keys.member))

    def _lose_record(self, keys):
        """As eviction or a failover without acknowledgements does: who held it goes on believing, alone."""
        self._ledger(keys).record_lost(self.shard.look(keys))
        self.shard.lose(keys)
        if self.replica:
            self._fall_behind(keys)
        self._move_time(MILLISECOND)

    def _fall_behind(self, keys):
        """From now on the replica acknowledges nothing."""
        self.replica = self.shard.copy(), {record: ledger.copy() for record, ledger in self.ledgers.items()}

    def _catch_up(self, keys):
        self.replica = None

    def _fail_over(self, keys):
        """To the replica, which has all that it acknowledged, but no scripts."""
        self.unloaded = {script.sha for script, _ in self.shard.texts.values()}
        if self.replica:
            copy, ledgers = self.replica
            self.shard.restore(copy)
            for record, ledger in ledgers.items():
                self.ledgers[record].return_to(ledger)
            self.replica = None
            self.seen["rolled back"] += 1
        self._move_time(MILLISECOND)

    # Time

    @rule(milliseconds=st.sampled_from([0.001, 0.7, 1, 300, 1000, 2500, 61_000]))
    def let_time_pass(self, milliseconds):
        self._move_time(round(milliseconds * MILLISECOND))

    @rule(which=st.integers(0, 3), offset=st.sampled_from([-MILLISECOND, -1, 0, 1, MILLISECOND]))
    def move_to_what_is_due(self, which, offset):
        """To just before, at or just after the next event, or one of those that follow."""
        due = sorted(moment for moment in set(self._due()) if moment + offset > self.shard.micros)
        if due:
            self._move_time(due[min(which, len(due) - 1)] + offset - self.shard.micros)

    @a_handle
    @rule(pick=some, offset=st.sampled_from([-1, 0]))
    def move_to_the_end_of_a_lease(self, pick, offset):
        keys = self._pick(self.handles, pick).grant.keys
        self._move_time(max(self.shard.records[keys.record].deadline * MILLISECOND + offset - self.shard.micros, 0))

    # What must hold at any time

    @invariant()
    def believed_leases_are_real(self):
        """I1, I7: who counts on a lease is alone, and the server agrees, whatever the clocks and the network did."""
        for keys in self.locks:
            sound = [handle for handle in self.handles if handle.grant.keys == keys and self._is_sound(handle)]
            require(len(sound) <= 1, "I1", "two valid handles", sound)
            record = self.shard.records[keys.record]
            for handle in sound:
                self.seen["valid"] += 1
                same = handle.lease == (record.holder, record.fence)
                require(same, "I1 I7", "a valid handle is not the record's", handle, record)
                require(record.held(self.shard.now), "I7", "a handle outlives its lease", handle, record)

    # How it is done

    def _token(self):
        return b"t%015d" % next(self.tokens)

    def _ledger(self, keys):
        return self.ledgers[keys.record]

    def _is_evicted(self, handle):
        return handle.lease in self._ledger(handle.grant.keys).evicted

    def _is_sound(self, handle):
        return handle.is_valid() and not self._is_evicted(handle)

    def _pick(self, things, pick):
        return things[pick % len(things)]

    def _picked(self, pick):
        waiting = [(operation, request) for operation in self.operations for request in operation.waiting()]
        return self._pick(waiting, pick)

    def _given_up(self, pick):
        """A handle that its client stops counting on from now."""
        handle = self._pick(self.handles, pick)
        self.handles.remove(handle)
        handle.believed = False
        return handle

    def _got(self, clock, terms, *grants):
        self.handles.extend(Handle(clock, terms, grant) for grant in grants)
        self.seen["granted"] += len(grants)

    def _start(self, kind, clock, flow, then):
        operation = Operation(kind, clock, flow, then)
        self.operations.append(operation)
        operation.start()
        self._tidy()

    def _settle(self, operation, request, outcome):
        operation.settle(request, outcome)
        self._tidy()

    def _tidy(self):
        self.operations = [operation for operation in self.operations if not operation.finished]
        self.handles = [handle for handle in self.handles if handle.believed]

    def _meets(self, request, fate):
        if fate == "ran":
            self._run(request)
        elif fate == "late" and request.values is None:
            self.late.append(request.commands)

    def _deliver(self, operation, request):
        if self._run(request):
            self._settle(operation, request, Answer(request.values, request.sent, operation.clock()))

    def _sleeps(self, request):
        """Whether the server sleeps in the request's BLPOP."""
        first = request.commands[0]
        if first[0] != b"BLPOP":
            return False
        if request.asleep_since is None:
            request.asleep_since = self.shard.micros
        return self.shard.micros < request.wakes_at and not self.shard.has_push(first[1])

    def _run(self, request):
        """Runs a request at the server, unless it ran or sleeps there; whether it has answers now."""
        if request.values is None and not self._sleeps(request):
            request.values = self._run_commands(request.commands)
            self.past.append(request.commands)
        return request.values is not None

    def _run_commands(self, commands):
        values, wrote = [], False
        for command in commands:
            if command[0] == b"BLPOP":
                values.append(self.shard.pop(command[1]))
            elif command[0] == b"WAIT":
                values.append(0 if wrote and self.replica else 1)
            elif command[0] == b"ROLE":
                values.append(ROLE)
            elif command[0] in (b"CLUSTER", b"INFO"):
                values.append(None)
            elif command[0] == b"EVALSHA" and command[1] in self.unloaded:
                values.append(Refusal("NOSCRIPT No matching script."))
            else:
                ran = self._run_script(command)
                wrote = wrote or ran.writes > 0
                values.append(ran.answer)
        return values

    def _run_script(self, command):
        keys, ran = self.shard.run(command)
        self.seen[ran.name, ran.status] += 1
        self.unloaded.discard(ran.sha)
        self._ledger(keys).check(ran)
        return ran

    def _move_time(self, micros):
        for keys, record in self.shard.move_time(micros):
            self._ledger(keys).record_expired(record, self.shard.now)

    def _due(self):
        """When something ends: leases, waiters' lives, records, sleeps, what clients count on; in microseconds."""
        for record in self.shard.records.values():
            yield from (record.deadline * MILLISECOND, record.expires * MILLISECOND)
        for ledger in self.ledgers.values():
            yield from (until * MILLISECOND for until in (*ledger.queue.values(), *ledger.ended.values()))
        for operation in self.operations:
            yield from (request.wakes_at for request in operation.waiting() if request.asleep_since is not None)
        yield from (handle.clock.server_time(handle.grant.valid_until) for handle in self.handles)


def asking(shard, timeout, rate, skew):
    """A client's clock, and what it asks for."""
    return Clock(shard, rate), protocol.Terms(timeout, skew, replicas=1, owner=OWNER, patience=2.0)
