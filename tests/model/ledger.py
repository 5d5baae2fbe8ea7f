"""What must be true of one lock, kept from the outside: from the scripts' answers, never from the record's fields.

The invariants are those of the design: I1 one holder, I2 idempotence, I3 fences grow, I4 strangers change nothing,
I5 first come first served and never early, I6 nothing is left behind, I7 no client believes longer than the server,
I8 what is held or queued is in the index.
"""

from dataclasses import dataclass, field, replace

RETENTION = 2000  # ms
MARK_LIFE, MARKS = 60_000, 8


class Violation(AssertionError):
    """An invariant does not hold."""


def require(condition, invariant, *told):
    if not condition:
        raise Violation(f"{invariant}:", *told)


@dataclass
class Ledger:
    """One lock's history as it has to be: its queue, its ended tokens, its last fence.

    Attributes:
        queue: token to alive-until, in the order of queueing.
        ended: marked tokens to the end of the mark.
        evicted: leases taken away from their holders by force or with the record: (token, fence).
    """

    queue: dict = field(default_factory=dict)
    ended: dict = field(default_factory=dict)
    last_fence: int = 0
    evicted: set = field(default_factory=set)

    def copy(self):
        return replace(self, queue=dict(self.queue), ended=dict(self.ended))

    def return_to(self, copy):
        """After a failover: what the replica did not have never was, but for fences and evictions."""
        self.queue, self.ended = dict(copy.queue), dict(copy.ended)

    def waiting(self, now):
        return [token for token, alive in self.queue.items() if alive > now]

    def is_ended(self, token, now):
        """Whether a token must be over: the last eight are; of those of one millisecond, any may be the last."""
        until = self.ended.get(token, 0)
        return until > now and sum(other >= until for other in self.ended.values()) <= MARKS

    def record_expired(self, record_before, now):
        """The record is gone by its own expiry: nothing alive may go with it."""
        require(not record_before.held(now), "I1", "a held record expired", record_before)
        require(not self.waiting(now), "I5", "a record expired together with its queue", self.queue)
        require(not any(until > now for until in self.ended.values()), "I6", "a record expired with live marks")
        self.queue, self.ended = {}, {}

    def record_lost(self, record_before):
        self.evicted.add((record_before.holder, record_before.fence))
        self.queue, self.ended = {}, {}

    def check(self, ran):
        """Judges one run of a script, and takes note of it."""
        self._lease(ran)
        self._durations(ran)
        getattr(self, f"_{ran.name}")(ran)
        self._record(ran)

    def _lease(self, ran):
        before, after, now = ran.before, ran.after, ran.now
        entitled = ran.name == "release" and ran.token == before.holder
        if before.held(now) and not entitled:
            same = (after.holder, after.fence) == (before.holder, before.fence)
            require(same, "I1 I4", "a living lease was changed by a request of another", ran)
            require(after.deadline >= before.deadline, "I4", "a living lease was shortened", ran)
            if ran.token != before.holder:
                require(after.lease() == before.lease(), "I4", "a stranger changed a lease", ran)
        if ran.status in (b"lost", b"over", b"busy"):
            kept = {f: v for f, v in after.fields.items() if f not in (b"qh", b"qt") and f[:1] not in b"qw"}
            had = {f: v for f, v in before.fields.items() if f not in (b"qh", b"qt") and f[:1] not in b"qw"}
            require(kept == had, "I4", "an answer that denies changed the record", ran)
        if after.held(now) and (after.holder, after.fence) != (before.holder, before.fence):
            require(after.fence > self.last_fence, "I3", "a fence did not grow", self.last_fence, ran)
            require(after.fence >= ran.micros, "I3", "a fence lies behind the clock", ran)
            require(not self.is_ended(after.holder, now), "I6", "an ended token got the lock", ran)
            self.last_fence = after.fence

    def _durations(self, ran):
        """No request makes a lease longer than what it asks for; a waiter's lease is its life."""
        before, after, now = ran.before, ran.after, ran.now
        own = ran.before.deadline if before.held(now) and before.holder == after.holder else 0
        longest = {
            "acquire": lambda: max(own, now + int(ran.args[1])),
            "renew": lambda: max(own, now + int(ran.args[1])),
            "release": lambda: max(own, self.queue.get(after.holder, 0)),
            "sweep": lambda: own,
        }[ran.name]()
        if after.held(now):
            require(after.deadline <= longest, "I6", "a lease became longer than asked for", longest, ran)

    def _acquire(self, ran):
        before, now, token = ran.before, ran.now, ran.token
        ttl, alive = int(ran.args[1]), int(ran.args[2])
        waiting = self.waiting(now)
        if self.is_ended(token, now):
            require(ran.status == b"over", "I6", "an ended token was not told so", ran)
            return
        if ran.status == b"over":
            require(self.ended.get(token, 0) > now, "I6", "a token that nobody ended is over", ran)
            return
        if before.held(now) and before.holder == token:
            require(ran.answer == [b"own", before.fence], "I2", "the holder asked again and got another answer", ran)
        elif before.held(now):
            require(ran.status == (b"queued" if alive else b"busy"), "I1", "a held lock was given away", ran)
            left = ran.answer[1]
            require(left == before.deadline - now, "I5", "the time left is not the lease's", ran)
        elif not waiting or waiting[0] == token:
            require(ran.status == b"own", "I5", "a free lock was denied to the first", ran)
        else:
            require(ran.status == (b"queued" if alive else b"busy"), "I5", "somebody was overtaken", waiting, ran)
        if ran.status == b"own":
            self._owns(ran, token, now + ttl)
            self.queue.pop(token, None)
        elif ran.status == b"queued":
            if token not in waiting:
                self.queue.pop(token, None)
            self.queue[token] = max(self.queue.get(token, 0), now + alive)
            first = self.waiting(now)[0] == token
            require(ran.answer[2] == int(first), "I5", "who is first was told wrongly", ran)

    def _renew(self, ran):
        if ran.before.held(ran.now) and ran.before.holder == ran.token:
            require(ran.answer == [b"ok", ran.before.fence], "I2", "a living lease was not renewed", ran)
            self._owns(ran, ran.token, ran.now + int(ran.args[1]))
        else:
            require(ran.status == b"lost", "I4", "a lease that is over was renewed", ran)

    def _owns(self, ran, token, deadline):
        after = ran.after
        require((after.holder, after.fence) == (token, ran.answer[1]), "I1", "the answer is not the record's", ran)
        require(after.deadline >= deadline, "I7", "the lease is shorter than asked for", ran)
        require(ran.writes, "acknowledgement", "an answer that grants wrote nothing, so that WAIT says nothing", ran)

    def _release(self, ran):
        before, after, now, token = ran.before, ran.after, ran.now, ran.token
        mine = before.holder == token
        self.queue.pop(token, None)
        waiting = self.waiting(now)
        if not before.held(now) or mine:
            expected = waiting[0] if waiting else None
            got = after.holder if after.held(now) else None
            require(got == expected, "I5", "the lock did not go to the first live waiter", waiting, ran)
            handed = [ran.args[4] + expected] if expected else []
            require(ran.pushed == handed, "I5", "another than the new holder was woken", ran)
            if expected:
                del self.queue[expected]
        else:
            require(not ran.pushed, "I4", "a stranger's release woke somebody", ran)
        released = b"handed" if waiting else b"released"
        expected = released if mine and before.held(now) else b"not owner"
        require(ran.status == expected, "I2", "the answer to a release is wrong", expected, ran)
        if ran.args[1] == b"1":
            self.ended[token] = now + MARK_LIFE

    def _sweep(self, ran):
        alive = ran.before.held(ran.now) or self.waiting(ran.now)
        require(ran.status == (b"kept" if alive else b"removed"), "I8", "a sweep judged wrongly", ran)
        require(ran.after.lease() == ran.before.lease(), "I4", "a sweep changed a lease", ran)

    def _record(self, ran):
        after, now = ran.after, ran.now
        require(after.queue(now) == self.waiting(now), "I5", "the queue is not the order of queueing", self.queue, ran)
        alive = [after.deadline, *(self.queue[token] for token in self.waiting(now))]
        alive += [until for until in self.ended.values() if until > now]
        if max(alive) > now:
            require(after.expires >= max(alive) + RETENTION, "I5 I6", "the record expires before what it holds", ran)
        if after.fields:
            require(after.expires > 0, "I6", "a record without an expiry", ran)
        if after.held(now) or self.waiting(now):
            require(after.indexed, "I8", "a held or queued record is not in the index", ran)
