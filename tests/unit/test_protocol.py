"""The flows of the protocol, answered by hand in the server's place."""

import asyncio

import pytest

from django_cluster_lock import protocol, scripts
from django_cluster_lock.errors import LockBusy, LockLost, LockNotReplicated, LockTimeout, LockUnavailable
from django_cluster_lock.names import keys_of
from django_cluster_lock.protocol import Batch, Block, Reply, Terms

LOCK, OTHER, THIRD = (keys_of("unit", name) for name in "abc")
TERMS = Terms(timeout=9, skew=1, replicas=1, owner=(b"host", b"1", b"main", b""), patience=2.0)
HOLDER = [b"web-2", b"17", b"main", b""]


def own(fence=7, *, sent=0.0, now=0.1, acks=1, unanswered=False):
    return Reply(b"own", [fence], sent, now, acks, 1, sent, unanswered)


def queued(left=5000, *, first=1, now=0.1, unanswered=False):
    return Reply(b"queued", [left, first, *HOLDER], now, now, 1, 1, now, unanswered)


def busy(*, now=0.1, unanswered=False):
    return Reply(b"busy", [5000, 0, *HOLDER], now, now, 1, 1, now, unanswered)


def said(status, *, now=0.1, unanswered=False, first_sent=0.0):
    return Reply(status, (), now, now, 1, 1, first_sent, unanswered)


def unavailable(*, unanswered):
    error = LockUnavailable("a", "down")
    error.unanswered = unanswered
    return error


begun = []


@pytest.fixture(autouse=True)
def ended():
    """Ends what a test left halfway: a flow that is dropped has something to take back, and complains."""
    yield
    while begun:
        played = begun.pop()
        while not played.is_over:
            played.go_on(SystemExit())


class Played:
    """A flow after these answers; an exception among them is thrown in.

    Attributes:
        steps: what it asked for.
        result: what it returned, once it did.
        error: what it raised, if it did.
    """

    def __init__(self, flow, *answers):
        self.flow, self.steps, self.result, self.error = flow, [], None, None
        begun.append(self)
        self.go_on(None)
        for answer in answers:
            assert not self.is_over, f"over before {answer}"
            self.go_on(answer)

    @property
    def is_over(self):
        return self.steps[-1] is None

    def go_on(self, answer):
        try:
            if isinstance(answer, BaseException):
                self.steps.append(self.flow.throw(answer))
            else:
                self.steps.append(self.flow.send(answer))
        except StopIteration as stop:
            self.result = stop.value
            self.steps.append(None)
        except BaseException as error:
            self.error = error
            self.steps.append(None)

    @property
    def calls(self):
        return [call for step in self.steps[:-1] for call in (step.calls if isinstance(step, Batch) else [step])]

    @property
    def cancels(self):
        """Token and mark of each release it asked for."""
        return [call.args[:2] for call in self.calls if call.script is scripts.RELEASE]


def acquiring(*answers, until=10.0, blocking=True, keep=None):
    flow = protocol.acquire(LOCK, b"T", TERMS, now=0.0, until=until, blocking=blocking, keep=keep)
    return Played(flow, *answers)


def test_the_request():
    call = acquiring().steps[0]
    assert call.args == (b"T", b"10001", b"6000", LOCK.member, *TERMS.owner)
    assert (call.keys, call.script, call.replicas, call.deadline, call.block) == (LOCK, scripts.ACQUIRE, 1, 10.0, None)
    assert acquiring(blocking=False).steps[0].args[2] == b"0", "who does not wait does not queue"


@pytest.mark.parametrize(
    ("timeout", "skew", "least"), [(30, 1, 31_001), (0.1, 0, 101), (0.0005, 0, 2), (1 / 3, 0, 335)]
)
def test_a_lease_on_the_server_outlasts_its_holders_view_by_the_skew(timeout, skew, least):
    """By a millisecond more, since a script's clock may be as much behind."""
    assert least <= int(Terms(timeout, skew, 0, TERMS.owner, 2.0).ttl) <= least + 1


def test_granted_until_the_timeout_after_the_request_was_sent():
    played = acquiring(own(fence=7, sent=0.5, now=3.0))
    assert played.result == protocol.Grant(LOCK, b"T", 7, 9.5, unanswered=False)
    assert played.cancels == []


def test_a_grant_knows_that_a_request_stayed_unanswered():
    assert acquiring(own(unanswered=True)).result.unanswered
    assert acquiring(queued(unanswered=True), own()).result.unanswered


def test_a_wait_sleeps_a_slice_and_asks_again():
    played = acquiring(queued(first=0, now=1.0), own())
    first, second = played.steps[:2]
    assert first.block is None
    assert second.block == Block(LOCK.wake + b"T", 3.0), "a third of the timeout"
    assert second.args == first.args
    assert played.result.token == b"T"


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (queued(left=1200, first=1), 1.201),
        (queued(left=1200, first=0), 3.0),
        (queued(left=0, first=1), 0.001),
        (queued(left=90_000, first=1), 3.0),
        (queued(first=0, now=9.5), 0.5),
        (queued(first=0, now=9.9999), 0.001),
    ],
)
def test_how_long_a_slice_is(reply, seconds):
    assert acquiring(reply).steps[1].block.seconds == pytest.approx(seconds)


def test_no_slice_is_longer_than_four_seconds():
    terms = Terms(3600, 1, 0, TERMS.owner, 2.0)
    flow = protocol.acquire(LOCK, b"T", terms, now=0.0, until=100.0, blocking=True)
    assert Played(flow, queued(first=0)).steps[1].block.seconds == 4.0


def test_who_does_not_wait_takes_no_for_an_answer():
    played = acquiring(busy(), blocking=False)
    assert type(played.error) is LockBusy
    assert played.error.holder == "web-2, pid 17, main"
    assert played.cancels == [], "nothing was left behind"


def test_who_does_not_wait_takes_back_what_an_unanswered_request_may_leave():
    played = acquiring(busy(unanswered=True), said(b"not owner"), blocking=False)
    assert type(played.error) is LockBusy
    assert played.cancels == [(b"T", b"1")]


def test_the_time_is_up():
    played = acquiring(queued(), queued(now=10.0), said(b"not owner"))
    assert type(played.error) is LockTimeout
    assert played.error.holder == "web-2, pid 17, main"
    assert played.cancels == [(b"T", b"0")]


def test_the_last_answer_may_still_be_yes():
    assert acquiring(queued(), own(sent=9.9, now=10.1)).result.valid_until == pytest.approx(18.9)


def test_too_few_replicas():
    """They are asked again until the caller's time is up."""
    played = acquiring(own(acks=0), own(acks=0, sent=9.9, now=10.0), said(b"released"))
    assert type(played.error) is LockNotReplicated
    assert played.steps[1].block == Block(LOCK.wake + b"T", protocol.RECHECK)
    assert played.cancels == [(b"T", b"0")]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_replica_that_was_away_for_a_while(blocking):
    played = acquiring(own(acks=0), own(sent=1.0, now=1.1), blocking=blocking)
    assert played.result.valid_until == 10.0
    assert [call.args[2] for call in played.calls] == [TERMS.alive if blocking else b"0"] * 2
    assert played.cancels == []


@pytest.mark.parametrize("blocking", [True, False])
def test_a_lock_that_another_got_before_a_replica_came_back(blocking):
    lost = [queued(now=10.0), said(b"not owner")] if blocking else [busy(now=10.0)]
    played = acquiring(own(acks=0), *lost, blocking=blocking)
    assert type(played.error) is (LockTimeout if blocking else LockBusy)


def test_an_ended_token():
    played = acquiring(queued(), said(b"over"), said(b"not owner"))
    assert type(played.error) is LockBusy
    assert len(played.cancels) == 1


def test_an_answer_that_comes_when_the_lease_is_over_grants_nothing():
    played = acquiring(own(sent=0.0, now=9.0), own(sent=9.0, now=9.1))
    assert played.steps[1].block is None, "nobody pushes to a holder"
    assert played.result.valid_until == 18.0


def test_such_an_answer_to_who_does_not_wait():
    played = acquiring(own(sent=0.0, now=9.0), said(b"released"), blocking=False)
    assert isinstance(played.error, LockUnavailable)
    assert played.cancels == [(b"T", b"0")]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("unanswered", "mark"), [(True, b"1"), (False, b"0")])
def test_a_token_is_ended_if_a_request_of_it_may_still_arrive(blocking, unanswered, mark):
    played = acquiring(unavailable(unanswered=unanswered), said(b"not owner"), blocking=blocking)
    assert type(played.error) is LockUnavailable
    assert played.cancels == [(b"T", mark)]


def test_it_is_remembered_from_earlier_answers():
    played = acquiring(queued(unanswered=True), queued(), queued(now=11.0), said(b"not owner"))
    assert type(played.error) is LockTimeout
    assert played.cancels == [(b"T", b"1")]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("before", [[], [queued()]])
def test_interrupted(interruption, before):
    played = acquiring(*before, interruption(), said(b"not owner"))
    assert type(played.error) is interruption
    assert played.cancels == [(b"T", b"1")]
    cancel = played.calls[-1]
    assert cancel.once
    assert cancel.replicas == 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_interrupted_twice(interruption):
    played = acquiring(interruption(), interruption())
    assert type(played.error) is interruption
    assert played.is_over
    assert len(played.cancels) == 1


def test_a_cancel_that_fails_hides_nothing():
    played = acquiring(KeyboardInterrupt(), unavailable(unanswered=True))
    assert type(played.error) is KeyboardInterrupt
    assert len(played.cancels) == 1


def test_an_error_from_outside_says_nothing_of_the_request_under_way():
    """As a handler of signals may raise LockLost for another lock."""
    played = acquiring(LockLost("other", "its time ended"), said(b"not owner"))
    assert type(played.error) is LockLost
    assert played.cancels == [(b"T", b"1")]


def test_what_has_a_token_of_its_callers_own_is_not_taken_back_behind_his_back():
    """He may have asked with it again meanwhile."""
    for terms, lingers in ((TERMS, True), (TERMS.for_own_token(), False)):
        flow = protocol.acquire(LOCK, b"T", terms, now=0.0, until=1.0, blocking=True)
        (cancel,) = Played(flow, unavailable(unanswered=True), said(b"not owner")).calls[1:]
        assert bool(cancel.lingers) is lingers


# Keeping and giving up

GRANT = protocol.Grant(LOCK, b"T", 7, 9.0, unanswered=False)
NOTED = protocol.Grant(LOCK, b"T", 7, 9.0, unanswered=True)


@pytest.mark.parametrize(
    ("reply", "was_owner"),
    [
        (said(b"released"), True),
        (said(b"handed"), True),
        (said(b"not owner"), False),
        (said(b"not owner", unanswered=True, first_sent=8.9), True),
        (said(b"not owner", unanswered=True, first_sent=9.0), False),
        (said(b"not owner", unanswered=False, first_sent=8.9), False),
    ],
)
def test_released(reply, was_owner):
    assert Played(protocol.release(GRANT, deadline=2.0, valid_until=9.0), reply).result is was_owner


def test_a_release_ends_the_token_of_a_grant_with_a_request_at_large():
    for grant, mark in ((GRANT, b"0"), (NOTED, b"1")):
        call = Played(protocol.release(grant, deadline=2.0, valid_until=9.0)).steps[0]
        assert call.args == (b"T", mark, LOCK.member, LOCK.index, LOCK.wake)
        assert not call.once


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupted_release_is_asked_for_once_more(interruption):
    played = Played(protocol.release(GRANT, deadline=2.0, valid_until=9.0), interruption(), said(b"released"))
    assert type(played.error) is interruption
    assert len(played.cancels) == 2
    assert played.calls[-1].once


def test_so_is_one_that_an_error_for_another_lock_interrupted():
    played = Played(protocol.release(GRANT, deadline=2.0, valid_until=9.0), LockLost("other", ""), said(b"released"))
    assert type(played.error) is LockLost
    assert len(played.cancels) == 2


def test_a_release_that_got_no_answer_is_not_asked_for_again():
    played = Played(protocol.release(GRANT, deadline=2.0, valid_until=9.0), unavailable(unanswered=True))
    assert type(played.error) is LockUnavailable
    assert len(played.cancels) == 1


def test_renewed():
    played = Played(protocol.renew(GRANT, TERMS, deadline=2.0), Reply(b"ok", [7], 5.0, 5.1, 1, 1, 5.0))
    assert played.steps[0].args == (b"T", b"10001")
    assert played.result == protocol.Grant(LOCK, b"T", 7, 14.0, unanswered=False)


def test_not_renewed():
    assert Played(protocol.renew(GRANT, TERMS, deadline=2.0), said(b"lost")).result is None
    too_few = Reply(b"ok", [7], 5.0, 5.1, 0, 1, 5.0)
    assert type(Played(protocol.renew(GRANT, TERMS, deadline=2.0), too_few).error) is LockNotReplicated


@pytest.mark.parametrize(
    "flow",
    [
        protocol.acquire(LOCK, b"T", TERMS, now=0.0, until=1.0, blocking=True),
        protocol.acquire_all((LOCK, OTHER), lambda: b"T", TERMS, now=0.0, until=1.0, blocking=True),
        protocol.release(protocol.Grant(LOCK, b"T", 1, 9.0, unanswered=False), deadline=1.0, valid_until=9.0),
        protocol.release_all([protocol.Grant(LOCK, b"T", 1, 9.0, unanswered=False)], deadline=1.0, valid_until=9.0),
    ],
    ids=["acquire", "acquire_all", "release", "release_all"],
)
def test_a_flow_that_is_dropped_ends_quietly(flow):
    next(flow)
    flow.close()
    assert flow.gi_frame is None


# Several names


def acquiring_all(*answers, locks=(LOCK, OTHER, THIRD), blocking=True):
    tokens = iter([b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"])
    flow = protocol.acquire_all(locks, lambda: next(tokens), TERMS, now=0.0, until=20.0, blocking=blocking)
    return Played(flow, *answers)


def asked(step):
    return [(call.script.name, call.keys.name, call.args[0]) for call in step.calls]


def test_all_at_once():
    played = acquiring_all([own(1), own(2), own(3)])
    assert asked(played.steps[0]) == [("acquire", "a", b"1"), ("acquire", "b", b"2"), ("acquire", "c", b"3")]
    assert {call.args[2] for call in played.calls} == {b"0"}, "who tries all does not queue"
    assert [(grant.keys.name, grant.token, grant.fence) for grant in played.result] == [
        ("a", b"1", 1),
        ("b", b"2", 2),
        ("c", b"3", 3),
    ]


def test_waits_for_the_first_busy_one_holding_smaller_ones_alone():
    played = acquiring_all(
        [own(1), busy(), own(3)],
        [said(b"not owner"), said(b"released")],
        queued(now=1.0),
        [Reply(b"ok", [1], 4.0, 4.1, 1, 1, 4.0)],
        own(2, sent=4.2, now=4.3),
        [own(5, sent=4.4, now=4.5)],
    )
    _, given_back, wait, renewal, again, rest, _ = played.steps
    assert asked(given_back) == [("release", "b", b"2"), ("release", "c", b"3")]
    assert (wait.script, wait.keys, wait.args[0], wait.args[2]) == (scripts.ACQUIRE, OTHER, b"4", b"6000")
    assert asked(renewal) == [("renew", "a", b"1")]
    assert (again.args[0], again.block.key) == (b"4", OTHER.wake + b"4")
    assert asked(rest) == [("acquire", "c", b"5")]
    assert [(grant.token, grant.valid_until) for grant in played.result] == [
        (b"1", 13.0),
        (b"4", pytest.approx(13.2)),
        (b"5", pytest.approx(13.4)),
    ]


def test_what_is_given_back_is_ended_if_it_may_still_be_asked_for():
    late = unavailable(unanswered=True)
    refused = unavailable(unanswered=False)
    played = acquiring_all(
        [busy(unanswered=True), late, refused], [said(b"not owner")] * 3, KeyboardInterrupt(), said(b"not owner")
    )
    assert played.cancels == [(b"1", b"1"), (b"2", b"1"), (b"3", b"0"), (b"4", b"1")]
    assert type(played.error) is KeyboardInterrupt


def test_all_or_none_where_nobody_waits():
    played = acquiring_all([own(1), busy(), own(3, unanswered=True)], [said(b"released")] * 3, blocking=False)
    assert type(played.error) is LockBusy
    assert played.error.name == "b"
    assert sorted(played.cancels) == [(b"1", b"0"), (b"2", b"0"), (b"3", b"1")]


def test_all_or_none_where_a_shard_is_down():
    played = acquiring_all([own(1), unavailable(unanswered=True), own(3)], [said(b"released")] * 3)
    assert type(played.error) is LockUnavailable
    assert sorted(played.cancels) == [(b"1", b"0"), (b"2", b"1"), (b"3", b"0")]


def test_all_or_none_where_a_replica_is_missing():
    late = own(2, acks=0, sent=19.9, now=20.0)
    played = acquiring_all(
        [own(1), own(2, acks=0), own(3)], [said(b"released")] * 2, late, said(b"released"), [said(b"released")]
    )
    assert type(played.error) is LockNotReplicated
    assert sorted(token for token, _ in played.cancels) == [b"1", b"2", b"3", b"4"]


def test_all_where_a_replica_comes_back():
    flow = (
        [own(1), own(2, acks=0), own(3)],
        [said(b"released")] * 2,
        own(4, sent=1.0, now=1.1),
        [own(5, sent=1.2, now=1.3)],
    )
    played = acquiring_all(*flow)
    assert [grant.keys for grant in played.result] == [LOCK, OTHER, THIRD]


def attaching(*answers):
    tokens = iter([b"1", b"2"])
    return Played(protocol.attach_all([(LOCK, b"x"), (OTHER, b"y")], lambda: next(tokens), TERMS, now=0.0), *answers)


def test_attaching_waits_for_a_replica_that_is_away_for_a_while():
    played = attaching([own(1), own(2, acks=0)], own(2, acks=0, sent=0.2, now=0.3), own(2, sent=0.4, now=0.5))
    assert [(grant.token, grant.valid_until) for grant in played.result] == [(b"1", 9.0), (b"2", 9.4)]
    assert played.cancels == []


def test_attaching_takes_back_what_too_few_replicas_have():
    played = attaching([own(1), own(2, acks=0)], own(2, acks=0, sent=1.9, now=2.0), [said(b"released")] * 2)
    assert type(played.error) is LockNotReplicated
    assert sorted(played.cancels) == [(b"1", b"0"), (b"2", b"0")]


def test_all_or_none_where_one_held_is_lost():
    played = acquiring_all(
        [own(1), busy()],
        [said(b"not owner")],
        queued(now=1.0),
        [said(b"lost")],
        said(b"not owner"),
        [said(b"not owner")],
        locks=(LOCK, OTHER),
    )
    assert type(played.error) is LockLost
    assert played.error.name == "a"
    assert played.cancels == [(b"2", b"0"), (b"3", b"0"), (b"1", b"0")]


def test_a_renewal_without_an_answer_leaves_what_is_held():
    played = acquiring_all(
        [own(1), busy()],
        [said(b"not owner")],
        queued(now=1.0),
        [unavailable(unanswered=True)],
        own(2, sent=1.1, now=1.2),
        locks=(LOCK, OTHER),
    )
    assert [grant.valid_until for grant in played.result] == [9.0, pytest.approx(10.1)]


def test_all_or_none_where_one_held_ends_before_the_rest_is_got():
    played = acquiring_all(
        [own(1), busy()],
        [said(b"not owner")],
        queued(now=1.0),
        [unavailable(unanswered=True)],
        own(2, sent=9.1, now=9.2),
        [said(b"not owner"), said(b"released")],
        locks=(LOCK, OTHER),
    )
    assert type(played.error) is LockLost
    assert played.error.name == "a"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_all_or_none_interrupted(interruption):
    played = acquiring_all(interruption(), [said(b"not owner")] * 3)
    assert type(played.error) is interruption
    assert sorted(played.cancels) == [(b"1", b"1"), (b"2", b"1"), (b"3", b"1")]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_all_or_none_interrupted_while_waiting_and_again(interruption):
    start = [own(1), busy()], [said(b"not owner")], queued(now=1.0)
    played = acquiring_all(*start, interruption(), interruption(), [said(b"released")], locks=(LOCK, OTHER))
    assert type(played.error) is interruption
    assert played.cancels[-1] == (b"1", b"0"), "what is held is given back all the same"
    played = acquiring_all(interruption(), interruption())
    assert type(played.error) is interruption
    assert len(played.cancels) == 3


def test_released_all():
    grants = [protocol.Grant(keys, b"T", 1, 9.0, unanswered=False) for keys in (LOCK, OTHER, THIRD)]
    down = unavailable(unanswered=True)
    flow = protocol.release_all(grants, deadline=2.0, valid_until=9.0)
    played = Played(flow, [said(b"released"), said(b"not owner"), down])
    assert played.result == [grants[1], down]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_interrupted_releases_are_asked_for_once_more(interruption):
    grants = [protocol.Grant(keys, b"T", 1, 9.0, unanswered=False) for keys in (LOCK, OTHER)]
    flow = protocol.release_all(grants, deadline=2.0, valid_until=9.0)
    played = Played(flow, interruption(), [said(b"released")] * 2)
    assert type(played.error) is interruption
    assert len(played.cancels) == 4
