"""What is made of a storm's log and account: on logs made by hand, each of which breaks one rule."""

from tests.faults import flights
from tests.faults.flights import Flown
from tests.faults.history import Happening, History

LOCK, KEY = "flight:storm-join:join-0", "join-0"
ACCOUNT = {
    "killed": {"child": 1},
    "parked": 2,
    "lost by Celery or its broker": {},
    "refused": {},
    "unanswered": [],
    "misled": [],
}


def event(what, pid, at, **details):
    return {"what": what, "key": KEY, "pid": pid, "at": at, **details}


def run(pid, start, end, fence, *, until=None, arrived=None):
    """A run that ends by itself, with a lease until then."""
    until = end + 3 if until is None else until
    return [
        event("arrived", pid, start - 0.05 if arrived is None else arrived),
        event("start", pid, start, fence=fence, until=until),
        event("end", pid, end, until=until),
    ]


def began(until):
    """A run of which more is to be told."""
    return [event("arrived", 1, 0.9), event("start", 1, 1, fence=10, until=until)]


def verdict(*events, happenings=(), **account):
    told = History(happenings=list(happenings), end=100.0)
    ordered = sorted(events, key=lambda each: each["at"])
    return flights.judge("flights", Flown(ordered, ACCOUNT | account, ""), told)


def flushed(at):
    return Happening("FLUSHALL", 0, [LOCK], at, healed=at, over=at, holds=False)


def missing(at):
    return [{"key": KEY, "at": at, "what": "delay"}]


def test_two_runs_after_each_other():
    found = verdict(*run(1, 1, 2, 10), *run(2, 2.1, 3, 11))
    assert (found.leases, found.parked, found.overlaps, found.disorder) == (2, 2, [], [])


def test_a_lower_fence():
    assert len(verdict(*run(1, 1, 2, 11), *run(2, 3, 4, 10)).disorder) == 1


def test_a_lower_fence_that_may_have_been_granted_first():
    assert not verdict(*run(1, 1, 2, 11), *run(2, 3, 4, 10, arrived=0.9)).disorder


def test_two_runs_at_once():
    (found,) = verdict(*run(1, 1, 3, 10), *run(2, 2, 4, 11)).overlaps
    assert (found.lock, found.at, found.clients) == (LOCK, 2, ("flights.1", "flights.2"))


def test_a_run_goes_on_after_its_lease():
    assert not verdict(*began(until=5), event("end", 1, 7, until=0), *run(2, 6, 8, 11)).overlaps


def test_a_run_counts_on_what_renewal_gave():
    renewed = *began(until=5), event("seen", 1, 4, until=9), event("end", 1, 7, until=0)
    assert verdict(*renewed, *run(2, 6, 8, 11)).overlaps


def test_a_killed_run_counts_on_nothing():
    killed = event("killed", 9, 2, pids=[1])
    assert not verdict(*began(until=9), killed, *run(2, 3, 4, 11)).overlaps


def test_two_runs_at_once_after_a_fault_outside():
    found = verdict(*run(1, 1, 3, 10), *run(2, 2, 4, 11), happenings=[flushed(1.5)])
    assert (len(found.overlaps), len(found.overlaps_outside)) == (0, 1)


def test_a_call_that_takes_too_long():
    told = [event("call", 1, 1, numbers=[1]), event("called", 1, 9, numbers=[1], error="LockUnavailable")]
    found = verdict(*told)
    assert found.outcomes["LockUnavailable"] == 1
    assert len(found.hangs) == 1


def test_a_call_that_never_returns():
    assert len(verdict(event("call", 1, 1, numbers=[1, 2, 3])).hangs) == 1


def test_a_call_without_an_answer():
    assert len(verdict(unanswered=missing(1)).unanswered) == 1
    assert len(verdict(misled=missing(1)).misled) == 1


def test_a_fault_outside_may_cost_the_answers_of_earlier_calls_alone():
    before, after, long_before = (verdict(unanswered=missing(at), happenings=[flushed(90)]) for at in (80, 95, 40))
    assert (len(before.unanswered), len(before.answers_outside)) == (0, 1)
    assert (len(after.unanswered), len(after.answers_outside)) == (1, 0)
    assert (len(long_before.unanswered), len(long_before.answers_outside)) == (1, 0)


def test_a_storm_without_an_account():
    (found,) = flights.judge("flights", Flown([], None, "Traceback"), History(end=100.0)).errors
    assert "Traceback" in str(found)
