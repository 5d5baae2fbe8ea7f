"""The checker on histories made by hand, each of which breaks one rule."""

import math

import pytest

from tests.faults import checker, history
from tests.faults.history import Attempt, Commit, Happening, History


def lease(client, start, end, fence, *, contestant="auto", lock="a", called=None, wait=1.0, valid_until=None):
    """A lease held from then to then, and released by its holder."""
    return Attempt(
        client,
        contestant,
        lock,
        start if called is None else called,
        wait,
        returned=start,
        outcome="granted",
        fence=fence,
        valid_until=end + 1 if valid_until is None else valid_until,
        ended=end,
    )


def verdict(attempts=(), **others):
    told = History(attempts=list(attempts), end=100.0, **others)
    return checker.judge(told)["auto"]


def commits(*of):
    """What was committed, each by the version it had read and its fence."""
    return [Commit("auto", "a", read, fence) for read, fence in of]


def outside(injected=1.0, over=2.0, locks=("a",), *, holds=False, in_order=True):
    return Happening("FLUSHALL", 0, list(locks), injected, healed=over, over=over, holds=holds, in_order=in_order)


def test_a_history_without_faults():
    found = verdict(
        [lease("x", 11, 12, 10), lease("y", 12.1, 13, 11), lease("x", 13.5, 14, 12)],
        commits=commits((0, 10), (1, 11), (2, 12)),
    )
    assert (found.leases, found.commits, found.in_order) == (3, 3, 1)  # both had just started before
    assert not (found.overlaps + found.overlaps_outside + found.disorder + found.stale + found.hangs + found.overtaken)


def test_two_holders():
    (found,) = verdict([lease("x", 1, 3, 10), lease("y", 2, 4, 11)]).overlaps
    assert found.clients == ("x", "y")
    assert found.at == 2


def test_a_long_lease_over_several():
    found = verdict([lease("x", 1, 9, 10), lease("y", 2, 3, 11), lease("z", 4, 5, 12)])
    assert [each.clients for each in found.overlaps] == [("x", "y"), ("x", "z")]


def test_holders_of_different_locks_and_contestants():
    attempts = [lease("x", 1, 3, 10), lease("y", 2, 4, 11, lock="b"), lease("z", 2, 4, 11, contestant="other")]
    assert not verdict(attempts).overlaps


def test_a_lease_ends_when_its_handle_says_so():
    """Its holder went on for longer, but its time was up, which the handle would have told."""
    assert not verdict([lease("x", 1, 3, 10, valid_until=1.9), lease("y", 2, 4, 11)]).overlaps


def test_a_holder_that_never_came_back():
    """It was killed: as far as anybody knows it believed in its lease until that ran out."""
    killed = lease("x", 1, 3, 10)
    killed.ended = None
    assert verdict([killed, lease("y", 3.9, 4.5, 11)]).overlaps
    assert not verdict([killed, lease("y", 4.1, 4.5, 11)]).overlaps


def test_a_grant_that_came_too_late():
    """By the time its `acquire` returned the lease was over: nobody believed in it."""
    late = lease("x", 5, 6, 10, called=0.5, valid_until=4.5)
    found = verdict([late, lease("y", 4.6, 5.5, 11)])
    assert not found.overlaps
    assert not found.disorder


@pytest.mark.parametrize(
    ("happening", "excused"),
    [
        (outside(), True),
        (outside(over=math.inf), True),
        (outside(locks=["b"]), False),
        (outside(holds=True), False),
        (outside(injected=2.5, over=3.0), False),  # too late to be the cause
        (outside(injected=-3.0, over=-1.0), False),  # the first was granted only afterwards
    ],
)
def test_what_excuses_an_overlap(happening, excused):
    found = verdict([lease("x", 0.5, 3, 10), lease("y", 2, 4, 11)], happenings=[happening])
    assert len(found.overlaps_outside) == excused
    assert len(found.overlaps) == (not excused)


def test_a_fence_that_does_not_grow():
    assert len(verdict([lease("x", 1, 2, 10), lease("y", 3, 4, 10)]).disorder) == 1
    assert len(verdict([lease("x", 1, 2, 10), lease("y", 3, 4, 9), lease("z", 5, 6, 10)]).disorder) == 2


def test_of_leases_that_overlap_the_order_is_unknown():
    found = verdict([lease("x", 1, 3, 10), lease("y", 2, 4, 9)])
    assert found.overlaps
    assert not found.disorder


@pytest.mark.parametrize(
    ("injected", "over", "locks", "strayed"),
    [
        (1.0, 2.0, ["a"], True),
        (1.0, 2.0, ["b"], False),
        (1.5, 2.0, ["a"], False),  # the first had its fence before
        (0.1, 0.4, ["a"], False),  # or after
    ],
)
def test_a_clock_that_strays_excuses_the_order_of_fences(injected, over, locks, strayed):
    happening = outside(injected, over, locks, in_order=False)
    found = verdict([lease("x", 1, 2, 10, called=0.5), lease("y", 3, 4, 9)], happenings=[happening])
    assert len(found.disorder_outside) == strayed
    assert len(found.disorder) == (not strayed)


def test_nothing_else_excuses_a_fence_and_nothing_a_stale_write():
    found = verdict(
        [lease("x", 1, 2, 10), lease("y", 3, 4, 9)],
        happenings=[outside()],
        commits=commits((0, 10), (1, 9)),
    )
    assert found.disorder
    assert found.stale


def test_a_stale_commit():
    (found,) = verdict(
        commits=[Commit("auto", "a", 0, 10), Commit("auto", "a", 1, 12), Commit("auto", "a", 2, 11)]
    ).stale
    assert "fence 11 committed after 12" in str(found)


def test_a_read_that_missed_a_commit():
    """The fences are in order, and yet an update is lost."""
    (found,) = verdict(
        commits=[Commit("auto", "a", 0, 10), Commit("auto", "a", 1, 11), Commit("auto", "a", 1, 12)]
    ).stale
    assert "had read version 1, not 2" in str(found)


def call(wait=1.0, returned=None, client="x"):
    outcome = "LockTimeout" if returned else ""
    return Attempt(client, "auto", "a", called=10.0, wait=wait, returned=returned, outcome=outcome)


def test_a_call_that_returns_late():
    allowed = 11.0 + checker.ALLOWANCE
    assert not verdict([call(returned=allowed - 0.1)]).hangs
    assert verdict([call(returned=allowed + 0.1)]).hangs


def test_a_call_that_is_not_to_wait():
    allowed = 10.0 + checker.PATIENCE + checker.ALLOWANCE
    assert not verdict([call(wait=0, returned=allowed - 0.1)]).hangs
    assert verdict([call(wait=0, returned=allowed + 0.1)]).hangs


def test_a_call_that_never_returns():
    assert verdict([call()]).hangs
    assert not verdict([call()], deaths={"x": 11.0}).hangs
    assert verdict([call()], deaths={"y": 11.0}).hangs


def test_a_paused_client_is_not_late():
    assert not verdict([call(returned=18.0)], pauses={"x": [(10.5, 17.5)]}).hangs
    assert verdict([call(returned=28.0)], pauses={"x": [(10.5, 17.5)]}).hangs
    assert verdict([call(returned=18.0)], pauses={"y": [(10.5, 17.5)]}).hangs


def test_a_call_before_all_had_begun():
    """The machine was busy with starting clients: it counts from then on."""
    assert not verdict([call(returned=18.0)], warm=12.0).hangs
    assert verdict([call(returned=22.0)], warm=12.0).hangs


def test_a_call_that_returns_a_little_late():
    allowed = 11.0 + checker.LATE
    assert not verdict([call(returned=allowed - 0.1)]).late
    assert verdict([call(returned=allowed + 0.1)]).late
    assert not verdict([call(wait=0, returned=10.0 + checker.PATIENCE + checker.LATE - 0.1)]).late


@pytest.mark.parametrize(
    ("stalls", "late"),
    [
        ({"x": [(10.2, 10.7)]}, False),
        ({"": [(10.2, 10.7)]}, False),  # the suite itself stood still, so the machine did
        ({"y": [(10.2, 10.7)]}, True),
        ({"x": [(9.0, 10.2)]}, True),  # before it was called
        ({"x": [(10.2, 10.35)] * 2, "": [(10.2, 10.35)]}, True),  # the same time counts once
    ],
)
def test_where_the_machine_stands_still_nobody_is_late(stalls, late):
    assert bool(verdict([call(returned=11.5)], stalls=stalls).late) is late


def lost(at=9.0, *, client="x", fence=10):
    """A lease of four seconds that was renewed last at 5, and lost at 9."""
    held = lease(client, 1, at, fence, valid_until=9.0)
    held.timeout, held.lost = 4.0, at
    return held


def test_a_lease_that_is_lost_without_a_fault():
    found = verdict([lost(), lease("y", 10, 11, 11)])
    assert found.leases_lost == 1
    assert [each.clients for each in found.lost_without_fault] == [("x",)]
    assert not verdict([lost(fence=0)]).lost_without_fault  # of a lock that renews nothing


@pytest.mark.parametrize(
    ("injected", "over", "locks", "clients", "excused"),
    [
        (6.0, 7.0, ["a"], (), True),
        (6.0, 7.0, [], ["x"], True),
        (6.0, 7.0, ["b"], ["y"], False),  # another shard, another client
        (1.0, 4.0, ["a"], (), False),  # it was renewed after that
        (1.0, 4.9, ["a"], (), True),  # just before: what it broke has to be found anew
        (6.0, math.inf, ["a"], (), True),
        (9.5, 9.9, ["a"], (), False),
    ],
)
def test_what_explains_a_lost_lease(injected, over, locks, clients, excused):
    happening = outside(injected, over, locks, holds=True)
    happening.clients = list(clients)
    assert bool(verdict([lost()], happenings=[happening]).lost_without_fault) is not excused


def test_a_machine_that_stands_still_may_cost_a_lease():
    for spans, excused in (([(6.0, 6.9)], False), ([(6.0, 7.1)], True), ([(1.0, 4.0)], False)):
        assert bool(verdict([lost()], stalls={"x": spans}).lost_without_fault) is not excused
        assert bool(verdict([lost()], pauses={"x": spans}).lost_without_fault) is not excused


def test_locks_that_are_to_be_had_again_and_are_not():
    swapped = outside(1.0, 8.0, holds=True)
    swapped.usable, end = 2.0, 2.0 + checker.BACK
    assert not verdict([lease("x", end - 0.1, 7, 10)], happenings=[swapped]).useless
    assert verdict([lease("x", end + 0.1, 7, 10)], happenings=[swapped]).useless
    assert verdict([lease("x", 1.9, 7, 10)], happenings=[swapped]).useless
    assert verdict([lease("x", end - 0.1, 7, 10, lock="b")], happenings=[swapped]).useless
    swapped.healed = end - 0.1  # it was taken back before that could be told
    assert not verdict([lease("x", 1.9, 7, 10)], happenings=[swapped]).useless


def test_a_waiter_that_is_overtaken():
    earlier = [lease(client, 0, 0.1, 1, lock="b", called=-2) for client in ("first", "second")]
    attempts = [*earlier, lease("first", 5, 6, 12, called=1), lease("second", 3, 4, 11, called=2)]
    (found,) = verdict(attempts).overtaken
    assert found.clients == ("second", "first")
    assert not verdict(attempts, happenings=[outside(holds=True)]).overtaken
    assert not verdict(attempts, pauses={"first": [(2.0, 2.5)]}).overtaken
    assert not verdict(attempts[1:]).overtaken  # it had just started, and was not in the queue yet


def test_an_error_that_is_none_of_the_locks():
    raised = call(returned=10.5)
    raised.outcome = "error: KeyError: 'x'"
    held = lease("y", 20, 21, 10)
    held.error = "OperationalError"
    assert len(verdict([raised, held]).errors) == 2


def test_what_clients_write_is_what_is_read(tmp_path):
    log = history.Log(tmp_path / f"auto.7{history.LOG}")
    log.write("call", 1, "a", 0.5, 4, at=1.0)
    log.write("grant", 1, "5.000000", 77, at=1.5)
    log.write("call", 2, "b", 2, 4, at=2.0)
    log.write("seen", 1, "6.000000", at=2.5)
    log.write("fail", 2, "LockTimeout", at=4.0)
    log.write("lost", 1, at=4.5)
    log.write("lost", 1, at=4.7)
    log.write("stall", 0, "0.250000", at=4.75)
    log.write("call", 3, "c", 2, 4, at=5.0)
    with (tmp_path / f"auto.7{history.LOG}").open("a") as file:
        file.write("grant 3 6.0 9")  # killed in the middle of a line
    (one, two, three), stalls = history.read(tmp_path)
    assert one == Attempt("auto.7", "auto", "a", 1.0, 0.5, 1.5, "granted", 77, 6.0, 4.5, timeout=4.0, lost=4.5)
    assert stalls == {"auto.7": [(4.5, 4.75)]}
    assert one.believed() == (1.5, 4.5)
    assert (two.outcome, two.returned, two.believed()) == ("LockTimeout", 4.0, None)
    assert (three.outcome, three.returned) == ("", None)
