"""What must be true of one key's flights, kept from outside: what was called, published, parked, run and answered.

The invariants: F1 one run at a time; F2 fences grow, and are higher than what was parked before; F3 the outbox is
whole; F4 no message is lost; F5 no message is answered twice; F6 under `wait` runs start in the order of their parking;
F7 under `rerun` no update is lost, and no run is in vain; F8 under `join` an outcome is that of a flight which had the
key when the call was made, or later; F9 the key is kept for somebody; F10 all comes to its end.
"""

import math
from dataclasses import dataclass, field

from django_cluster_lock.flights.messages import Message
from tests.model.ledger import require

ENDED_LIFE = 600_000  # ms
ENTRY, MESSAGE, COPY, PLACE = 7, 9, 11, 12  # where the arguments of `claim` and `start` have them
# Where those of `land` have the entry, what is kept of it if it has ended for good, its outcome for others, and the one
# that the key is kept for.
LANDED, ENDED, OUTCOME, KEPT = 6, 9, 10, 11


@dataclass(eq=False)
class Run:
    """A body that has begun."""

    entry: str
    version: int
    token: bytes
    begun: int
    claimed: float  # when the flight's claim was made; -inf if it had none
    settled: float = math.inf  # the time in ms at which it had an outcome for those that waited for it


@dataclass(eq=False)
class Call:
    """A call: when it began, when it took or left something at the key, as which entry, and the id its caller got."""

    version: int
    began: int
    claimed: float = math.inf
    entry: str = ""
    gives: str = ""


@dataclass(eq=False)
class Story:
    """One entry, once its message was published or its caller has a result.

    Attributes:
        excused: why it need not come to an end.
        ended: the moment, and the time in ms, of its ending for good.
    """

    entry: str
    called: int
    completed: bool = False
    excused: str = ""
    ended: tuple = ()


@dataclass
class FlightLedger:
    """The history of one key. Its moments are the numbers of what has happened."""

    mode: str
    moment: int = 0
    calm: bool = True  # nothing has been lost, died or expired so far
    last_fence: int = 0
    calls: dict = field(default_factory=dict)  # by version
    stories: dict = field(default_factory=dict)
    runs: dict = field(default_factory=dict)  # by outcome
    places: dict = field(default_factory=dict)  # by task id: its first place in the order
    needs: list = field(default_factory=list)  # moments from which another run was wanted
    made: dict = field(default_factory=dict)  # when calls got their places, by these
    parked: dict = field(default_factory=dict)  # when calls' messages were parked last, by entry and message
    had: dict = field(default_factory=dict)  # by task id: when it had the key last, as a claim or as a run
    got: dict = field(default_factory=dict)  # by outcome: the task ids that ended with it
    over: dict = field(default_factory=dict)  # entries that have ended: what is kept of that, and when (ms)
    place: int = 0  # of the call whose run has started last

    def tell(self, entry, call=None):
        """A message exists, or is promised to somebody."""
        return self.stories.setdefault(entry, Story(entry, call.began if call else self.moment))

    def excuse(self, entry, why):
        self.tell(entry).excused = why

    def call(self, version):
        self.calls[version] = Call(version, self.moment)
        return self.calls[version]

    def ran(self, ran, call=None):
        """Judges one run of a script."""
        self.moment += 1
        after, now = ran.after, ran.now
        self.see(ran.before, now)
        self._fences(ran)
        self._outbox(ran)
        for entry, sequence in after.parked.items():
            self.places.setdefault(_id(entry), sequence)
            self.made.setdefault(sequence, self.moment)
        if ran.name in ("claim", "start"):
            entry = ran.args[ENTRY].decode()
            getattr(self, f"_{ran.name}")(ran, entry, call)
        if ran.status == b"next" and after.holder != ran.before.holder:
            self._handed(ran, claimed_entry(after))
        if ran.name == "land" and ran.args[ENDED]:
            self._ended(ran.args[LANDED].decode(), ran.args[ENDED].decode(), now)
        if after.held(now):
            require(after.indexed, "F3", "a held lock is not in the index", ran)
        self.see(after, now)

    def see(self, record, now):
        if record.held(now):
            self.had[record.fields.get(b"k", b"").decode()] = self.moment

    def _fences(self, ran):
        before, after = ran.before, ran.after
        if after.held(ran.now) and (after.holder, after.fence) != (before.holder, before.fence):
            require(after.fence > self.last_fence, "F2", "a fence did not grow", self.last_fence, ran)
            self.last_fence = after.fence
            if ran.name in ("claim", "start", "land", "drain"):
                parked = [s for e, s in before.parked.items() if e in after.parked]
                require(after.fence > max(parked, default=0), "F2", "a fence is not above what was parked", ran)

    def _outbox(self, ran):
        after = ran.after
        require({e.encode() for e in after.parked} == set(after.stored), "F3", "order and messages differ", ran)
        require(after.listed == bool(after.order), "F3", "the list of outboxes is wrong", ran)
        for entry, message in after.stored.items():
            headers = Message.loads(message).headers
            require(f"{headers['id']}:{headers['retries']}" == entry.decode(), "F3", "another's message", entry)

    def _handed(self, ran, entry):
        if ran.name == "land" and entry == ran.args[KEPT].decode():
            return
        first, last = min(ran.after.parked.values()), max(ran.after.parked.values())
        if self.mode == "rerun":
            require(ran.after.parked[entry] == last, "F7", "the key was not handed to the latest call", entry, ran)
        else:
            require(ran.after.parked[entry] == first, "F6", "the key was not handed to the first call", entry, ran)

    def _claim(self, ran, entry, call):
        before, now, message = ran.before, ran.now, ran.args[MESSAGE]
        if not message:
            self.over.pop(entry, None)
        raw = entry.encode()
        if message and before.stored.get(raw) != message == ran.after.stored.get(raw):
            self.parked[entry, message] = self.moment  # anew, where another call's has replaced it meanwhile
        if ran.status == b"own":
            require(not before.held(now) or before.holder.endswith(ran.token), "F1", "a held key was claimed", ran)
            self.places.setdefault(_id(entry), ran.after.fence)
            self.made.setdefault(ran.after.fence, self.moment)
            passed = self.mode in ("wait", "rerun") and before.order and not before.held(now)
            require(not passed, "F6", "a call passed those that were left behind", ran)
            claimed = self.made[ran.after.fence]
        elif ran.status in (b"parked", b"next"):
            claimed = self.parked.get((entry, message))
            require(claimed or not call, "F4", "a message was not parked", ran)  # late, it may have flown meanwhile
        else:
            return
        self.needs.append(self.moment)
        if call:
            call.claimed, call.entry = claimed, entry

    def _start(self, ran, entry, _):
        before, now = ran.before, ran.now
        if ran.status in (b"parked", b"next") or (ran.status == b"own" and not before.held(now)):
            self.needs.append(self.moment)
        if ran.status != b"own":
            return
        mine = before.holder == ran.token
        if before.held(now) and not mine:
            theirs = before.holder.startswith(b"~") and claimed_entry(before) == entry
            require(theirs, "F1", "a run took a key that was not its own", ran)
        place, copy = int(ran.args[PLACE]), ran.args[COPY] == b"1"
        if entry in self.over and not mine:
            ended, at = self.over[entry]
            known = ended.endswith("c") and 0 < place <= int(ended[:-1]) and now - at < ENDED_LIFE
            require(not known, "F5", "a message ran after its copy", ran)
        self.place = place or (0 if copy else ran.after.fence)
        if self.mode == "wait" and not mine and (self.calm or not before.held(now)):
            own = self.places.get(_id(entry), math.inf)
            begun = {run.entry for run in self.runs.values()}  # had their turn, and come again
            waited = [e for e, sequence in before.parked.items() if sequence < own and e not in begun]
            passed = [e for e in waited if _id(e) != _id(entry)]
            require(not passed, "F6", "a run overtook those parked before it", entry, passed)
        if self.mode == "rerun" and place and not before.held(now):
            later = [e for e, sequence in before.parked.items() if sequence > place and e != entry]
            require(not later, "F7", "a run for an earlier call than one that waits", entry, later)
        self.places.setdefault(_id(entry), ran.after.fence)
        self.made.setdefault(ran.after.fence, self.moment)

    def begun(self, entry, version, token, outcome, now, *, first):
        """A body begins."""
        self.moment += 1
        if self.mode == "rerun":
            called = self.calls[version].claimed
            covered = [
                run
                for run in self.runs.values()
                if 0 <= now - run.settled < ENDED_LIFE and called < self.calls[run.version].claimed < math.inf
            ]
            require(not covered, "F7", "an update was undone", entry, version, covered)
        last = max((run.claimed for run in self.runs.values() if run.settled < math.inf), default=-1)
        if self.mode == "rerun" and self.calm and first:
            require(any(need > last for need in self.needs), "F7", "nobody wanted this run", entry, self.runs)
        self.runs[outcome] = Run(entry, version, token, self.moment, self.made.get(self.place, -math.inf))

    def settles(self, outcome, now):
        """A run gives its outcome to those that waited for it."""
        self.runs[outcome].settled = min(now, self.runs[outcome].settled)

    def _ended(self, entry, kept, now):
        """The message's own execution has told Redis that it ended for good."""
        self.over[entry] = kept, now
        story = self.tell(entry)
        story.ended = story.ended or (self.moment, now)
        story.completed = True

    def completed(self, entry, outcome, now, *, taken, own):
        """A message has come to its end.

        Args:
            outcome: that it got, if that was a run's.
            taken: the moment at which a worker got the message.
            own: whether it ran itself.
        """
        story = self.tell(entry)
        if story.ended:
            moment, at = story.ended
            again = story.completed and taken > moment and now - at < ENDED_LIFE
            require(not again, "F5", "a message was answered again", story)
        story.completed = True
        run, others = self.runs.get(outcome), self.got.setdefault(outcome, set())
        if run and not own:
            self._answered_by(story, run, others - {_id(entry)} | {_id(run.entry)})
        others.add(_id(entry))

    def _answered_by(self, story, run, flights):
        if self.mode in ("wait", "skip", "raise"):
            require(_id(run.entry) == _id(story.entry), "F8", "another's outcome under", self.mode, story, run)
        if self.mode == "join":
            had = max(self.had.get(flight, -1) for flight in flights)
            require(had >= story.called, "F8", "an outcome is older than the call that got it", story, run)
        if self.mode == "rerun":
            for call in self.calls.values():
                if call.gives == _id(story.entry) and call.claimed < math.inf:
                    require(run.begun > call.claimed, "F7", "a call got the outcome of an earlier run", call, run)

    def located(self, places, record):
        """F4, F9: whatever is known is somewhere."""
        for story in self.stories.values():
            if not story.completed and not story.excused:
                require(story.entry in places, "F4", "a message is nowhere", story)
        if self.calm and record is not None:
            entry = claimed_entry(record)
            require(entry is None or entry in places, "F9", "the key is kept for nobody", entry)

    def at_rest(self):
        """F10, F7: what must have happened once nothing happens any more."""
        for story in self.stories.values():
            require(story.completed or story.excused, "F10", "a message never ended", story)
        for call in self.calls.values():
            if not call.gives:
                continue
            stories = [story for story in self.stories.values() if _id(story.entry) == call.gives]
            require(stories or not self.calm, "F10", "a caller waits for nothing", call)
            if self.mode == "rerun" and call.claimed < math.inf and not any(s.excused for s in self.stories.values()):
                later = [
                    run
                    for run in self.runs.values()
                    if run.begun > call.claimed and self.calls[run.version].claimed >= call.claimed
                ]
                require(later, "F7", "an update was lost", call, self.calls, self.runs)


def claimed_entry(record):
    """The entry that a record is the claim of; None if it is no claim."""
    if not record.holder or not record.holder.startswith(b"~"):
        return None
    return f"{record.fields[b'k'].decode()}:{record.holder.split(b'~')[1].decode()}"


def _id(entry):
    return entry.rpartition(":")[0]
