"""Judges a history by what stands in it, and by nothing else.

Promise 1 may be broken by faults that are outside of its assumptions: overlaps that such a fault can have caused are
counted apart. Promise 2 has no such exceptions.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter

# How much later than its caller's time an `acquire` may return. By the clients' OPTIONS: just before the time ends the
# layout may be asked for (0.5 s); then comes a last attempt, with its wait for replicas (1 s), and a cancel, which may
# have to ask for the layout too (1 s); the rest is for a busy machine. A call that is not to wait tries for as long as
# `Alias.patience` says.
ALLOWANCE, PATIENCE = 5.0, 2.0
# How much later than its caller's time an `acquire` may return where nothing stalls; and for how long a fault that is
# over may still cost a lease, whose connections and layout have to be found anew.
LATE, RECOVERY = 0.3, 0.5
# By what part of a lease a stall of the machine may hold up its renewal without being the cause of its loss.
SLACK = 0.25
# Within how many seconds locks must be granted that are to be had again.
BACK = 3.0
# For how long the answer that grants a lease may be on its way, waiting for replicas among others.
ON_ITS_WAY = 2.0
# Of two that begin to wait at least so far apart, the first is first in the queue.
APART = 0.3
# How long before a wait, and after it, no fault may have happened for its place in the queue to be certain.
CALM = 2.0


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: with which lock, when, whose, and what."""

    lock: str
    at: float
    clients: tuple[str, ...]
    what: str

    def __str__(self):
        return f"{self.lock} at {self.at:.3f}: {self.what} ({', '.join(self.clients)})"


@dataclass
class Verdict:
    """What one contestant did, and what was wrong."""

    leases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    overlaps: list[Finding] = field(default_factory=list)
    overlaps_outside: list[Finding] = field(default_factory=list)
    fences: int = 0
    disorder: list[Finding] = field(default_factory=list)
    disorder_outside: list[Finding] = field(default_factory=list)
    in_order: int = 0
    overtaken: list[Finding] = field(default_factory=list)
    hangs: list[Finding] = field(default_factory=list)
    late: list[Finding] = field(default_factory=list)
    leases_lost: int = 0
    lost_without_fault: list[Finding] = field(default_factory=list)
    useless: list[Finding] = field(default_factory=list)
    errors: list[Finding] = field(default_factory=list)
    commits: int = 0
    refused: Counter = field(default_factory=Counter)
    stale: list[Finding] = field(default_factory=list)


def judge(history):
    """The verdict on each contestant."""
    attempts, commits = by_lock(history.attempts), by_lock(history.commits)
    verdicts = {contestant: Verdict() for contestant in attempts.keys() | commits.keys()}
    for contestant, verdict in verdicts.items():
        for own in attempts[contestant].values():
            judge_attempts(verdict, own, history)
        verdict.useless += useless(attempts[contestant], history)
        for own in commits[contestant].values():
            verdict.commits += len(own)
            verdict.stale += stale(own)
    return verdicts


def by_lock(things):
    """Those of each contestant's locks, in the order they have."""
    sorted_out = defaultdict(lambda: defaultdict(list))
    for thing in things:
        sorted_out[thing.contestant][thing.lock].append(thing)
    return sorted_out


def judge_attempts(verdict, attempts, history):
    verdict.leases += sum(each.outcome == "granted" for each in attempts)
    verdict.outcomes.update(each.outcome.partition(" ")[0] for each in attempts)
    verdict.refused.update(each.refused for each in attempts if each.refused)
    verdict.errors += errors(attempts)
    verdict.hangs += hangs(attempts, history)
    verdict.late += late(attempts, history)
    verdict.leases_lost += sum(each.lost is not None for each in attempts)
    verdict.lost_without_fault += lost_without_fault(attempts, history)
    leases = sorted((each for each in attempts if each.believed()), key=attrgetter("returned"))
    verdict.fences += sum(each.fence > 0 for each in leases)
    for one, other in disorder(leases):
        strayed = any(lets_stray(happening, one) for happening in history.happenings)
        what = f"fence {other.fence} after {one.fence}"
        found = verdict.disorder_outside if strayed else verdict.disorder
        found.append(Finding(other.lock, other.returned, (one.client, other.client), what))
    for one, other in overlaps(leases):
        excused = any(excuses(happening, one, other) for happening in history.happenings)
        (verdict.overlaps_outside if excused else verdict.overlaps).append(told(one, other))
    ahead, in_order = overtaken(attempts, history)
    verdict.overtaken += ahead
    verdict.in_order += in_order


def overlaps(leases):
    """Pairs of leases of one lock that two holders believed in at once, of leases in the order they were granted."""
    longest = None
    for lease in leases:
        start, end = lease.believed()
        if longest and start < longest.believed()[1]:
            yield longest, lease
        if longest is None or end > longest.believed()[1]:
            longest = lease


def excuses(happening, one, other):
    """Whether a fault that promise 1 does not cover can have made the two overlap: it met the first of the leases."""
    touched = not happening.holds and one.lock in happening.locks
    met = one.called <= happening.over and one.returned <= happening.over + ON_ITS_WAY
    return touched and met and happening.injected <= other.returned


def lets_stray(happening, lease):
    """Whether a lease may have a fence that later ones need not exceed, of a clock that was too far from the others."""
    met = happening.injected <= lease.returned and lease.called <= happening.over
    return not happening.in_order and lease.lock in happening.locks and met


def told(one, other):
    (start, end), (start2, end2) = one.believed(), other.believed()
    what = f"fence {one.fence} {start:.3f}-{end:.3f} and fence {other.fence} {start2:.3f}-{end2:.3f}"
    return Finding(one.lock, start2, (one.client, other.client), what)


def disorder(leases):
    """Pairs of leases of which the later one has no higher fence; not of a contestant without fences.

    Of two that overlap, which is wrong enough, nobody can tell from outside which was granted first.
    """
    highest = None
    for lease in leases:
        if highest and lease.fence <= highest.fence:
            if (lease.since or lease.returned) < highest.believed()[1]:
                continue
            yield highest, lease
        elif lease.fence:
            highest = lease


def stale(commits):
    """Commits of one lock that come after one with a higher fence, or had not seen the one before."""
    highest = commits[0].fence if commits else 0
    for before, commit in pairwise(commits):
        if commit.read != before.read + 1:
            what = f"fence {commit.fence} had read version {commit.read}, not {before.read + 1}"
            yield Finding(commit.lock, commit.at, (), what)
        elif commit.fence < highest:
            yield Finding(commit.lock, commit.at, (), f"fence {commit.fence} committed after {highest}")
        highest = max(highest, commit.fence)


def errors(attempts):
    """What was raised that is no error of the lock's."""
    for each in attempts:
        if each.error or each.outcome.startswith("error"):
            yield Finding(each.lock, each.called, (each.client,), each.error or each.outcome)


def hangs(attempts, history):
    """Calls that returned far too long after the caller's time, or never."""
    yield from _later(attempts, history, ALLOWANCE)


def late(attempts, history):
    """Calls that returned after the caller's time, by more than the machine stood still meanwhile."""
    yield from _later(attempts, history, LATE)


def _later(attempts, history, allowance):
    for each in attempts:
        until = each.returned or history.deaths.get(each.client) or history.end
        called = max(each.called, history.warm)
        over = until - called - (each.wait or PATIENCE)
        if over > allowance and (over := over - stalled(each, called, until, history)) > allowance:
            what = f"{over:.2f} s after {each.wait:g} s, {each.outcome or 'not returned'}"
            yield Finding(each.lock, until, (each.client,), what)


def stalled(attempt, start, end, history):
    """For how long of this time its process, or the suite, did not run: then no call goes on."""
    spans = [
        *history.pauses.get(attempt.client, ()),
        *history.stalls.get(attempt.client, ()),
        *history.stalls.get("", ()),
    ]
    total, reached = 0.0, start
    for one, other in sorted(spans):
        total += shared(max(one, reached), end, one, other)
        reached = max(reached, other)
    return total


def lost_without_fault(attempts, history):
    """Leases that were lost though no fault touched their lock or holder since they were renewed last.

    What touches another shard does not count: a fault there is to cost nobody here anything.
    """
    for each in attempts:
        if each.lost is None or not each.fence:  # the lock without fences renews nothing
            continue
        since = each.valid_until - each.timeout
        end = max(each.lost, each.valid_until)
        touched = any(
            (each.lock in happening.locks or each.client in happening.clients)
            and since <= happening.over + RECOVERY
            and happening.injected <= end
            for happening in history.happenings
        )
        if not touched and stalled(each, since, end, history) < SLACK * each.timeout:
            what = f"fence {each.fence} of {each.timeout:g} s, renewed last at {since:.3f}"
            yield Finding(each.lock, each.lost, (each.client,), what)


def useless(by_name, history):
    """Faults after which none of the locks was granted that were to be had again."""
    for happening in history.happenings:
        end = happening.usable + BACK
        if end > happening.healed:
            continue
        granted = any(
            happening.usable <= each.returned <= end
            for lock in happening.locks
            for each in by_name.get(lock, ())
            if each.outcome == "granted"
        )
        if not granted:
            yield Finding("", end, (), f"no lock was granted for {BACK:g} s after: {happening.kind}")


def overtaken(attempts, history):
    """Waiters that somebody overtook who had come later, while no fault was near; and how many were in order."""
    calm = [
        each for each in attempts if each.outcome == "granted" and each.called > history.warm and in_calm(each, history)
    ]
    wrong, newest = [], None
    for each in sorted(calm, key=attrgetter("returned")):
        if newest and each.called < newest.called - APART:
            what = f"who came at {newest.called:.3f} before {each.called:.3f}"
            wrong.append(Finding(each.lock, newest.returned, (newest.client, each.client), what))
        if newest is None or each.called > newest.called:
            newest = each
    return wrong, len(calm) - len(wrong)


def in_calm(attempt, history):
    """Whether nothing happened that may cost a waiter its place; a client that has just started has none yet."""
    if attempt.called < history.first_calls.get(attempt.client, -math.inf) + CALM:
        return False
    span = attempt.called - CALM, attempt.returned + CALM
    return not any(
        (attempt.lock in happening.locks or attempt.client in happening.clients)
        and shared(*span, happening.injected, happening.over)
        for happening in history.happenings
    ) and not any(shared(*span, *pause) for pause in history.pauses.get(attempt.client, ()))


def shared(start, end, start2, end2):
    """For how long both spans last."""
    return max(0.0, min(end, end2) - max(start, start2))
