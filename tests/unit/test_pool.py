"""Who gets a connection to a node, who waits for one, and which are closed. Without a server."""

import gc

import pytest

from django_cluster_lock.actions import Waiter
from django_cluster_lock.connections.pool import OPENERS, Pool, Seats


class Wire:
    used_at = 0.0
    is_open = False

    def close(self):
        raise NotImplementedError


class Crowd:
    """Requests to a node with so many connections; each opens at once what it is given."""

    def __init__(self, most):
        self.pool = Pool(Wire, most)

    def take(self, *, reserved=False):
        """A connection; a claim where there is none."""
        if wire := self.pool.take(reserved):
            return wire
        claim = self.pool.claim(list, reserved=reserved)
        if claim.wire is None:
            return claim
        claim.wire.is_open = True
        return claim.wire


@pytest.fixture
def crowd():
    return Crowd(16)  # of which two are kept for reserved requests


def test_the_one_used_last_is_taken_first(crowd):
    wires = [crowd.take() for _ in range(3)]
    for now, wire in enumerate(wires):
        crowd.pool.give(wire, now)
    assert [crowd.take() for _ in range(3)] == wires[::-1]
    assert crowd.pool.count == 3


def test_beyond_the_bound_requests_wait_in_order(crowd):
    wires = [crowd.take() for _ in range(14)]
    first, second = crowd.take(), crowd.take()
    assert (first.wire, second.wire, crowd.pool.count) == (None, None, 14)
    crowd.pool.give(wires[0], 1)
    assert (first.wire, second.wire) == (wires[0], None)
    crowd.pool.remove(wires[1])  # room for a new one
    assert second.wire not in (None, *wires)


def test_some_are_kept_for_reserved_requests(crowd):
    wires = [crowd.take() for _ in range(14)]
    waiting = crowd.take()
    wires += [crowd.take(reserved=True) for _ in range(2)]
    also = crowd.take(reserved=True)
    assert (waiting.wire, also.wire, crowd.pool.count) == (None, None, 16)


def test_what_reserved_requests_give_back_is_not_for_others_while_it_is_kept(crowd):
    ordinary = [crowd.take() for _ in range(14)]
    reserved = [crowd.take(reserved=True) for _ in range(2)]
    waiting = crowd.take()
    crowd.pool.give(reserved[0], 1)
    assert waiting.wire is None
    assert crowd.pool.take(False) is None
    assert crowd.take(reserved=True) is reserved[0]
    crowd.pool.give(ordinary[0], 2)
    assert waiting.wire is None, "two are in use by reserved requests, and one of 14 is not"
    crowd.pool.give(reserved[1], 3)
    crowd.pool.give(reserved[0], 3)
    assert waiting.wire in (*ordinary, *reserved)


def test_who_does_not_wait_any_more_gets_nothing(crowd):
    wires = [crowd.take() for _ in range(14)]
    first, second = crowd.take(), crowd.take()
    assert crowd.pool.withdraw(first) is None
    crowd.pool.give(wires[0], 1)
    assert crowd.pool.withdraw(first) is None
    assert crowd.pool.withdraw(second) is wires[0]


def test_few_open_connections_at_a_time_and_the_rest_get_what_comes_back(crowd):
    opening = [crowd.pool.claim(list, reserved=False).wire for _ in range(OPENERS)]
    waiting = [crowd.pool.claim(list, reserved=False) for _ in range(2)]
    assert [claim.wire for claim in waiting] == [None, None]
    assert crowd.pool.claim(list, reserved=True).wire, "reserved requests open one all the same"
    opening[0].is_open = True
    crowd.pool.give(opening[0], 1)
    assert waiting[0].wire is opening[0]
    opening[1].is_open = True
    crowd.pool.serve()
    assert waiting[1].wire
    assert waiting[1].wire not in opening


def test_what_an_exception_leaked_does_not_count(crowd):
    wires = [crowd.take() for _ in range(14)]
    del wires[3:]
    gc.collect()
    assert crowd.pool.count == 3
    assert isinstance(crowd.take(), Wire)


def test_what_was_last_used_before_a_time_is_dropped(crowd):
    wires = [crowd.take() for _ in range(4)]
    for now, wire in enumerate(wires[:3]):
        crowd.pool.give(wire, now)
    assert crowd.pool.drop(2) == wires[:2]
    assert crowd.pool.count == 2
    assert crowd.pool.drop() == wires[2:3]
    assert crowd.pool.take(False) is None


def test_as_many_waiters_sleep_as_there_are_seats_the_first_that_came():
    seats, waiters, woken = Seats(2), [Waiter() for _ in range(5)], []
    assert [seats.sit(waiter) for waiter in waiters] == [True, True, False, False, False]
    for waiter in waiters[2:]:
        assert seats.stand(waiter, 5.0, lambda waiter=waiter: woken.append(waiter))
    assert seats.sit(waiters[0]), "it keeps its seat from one slice to the next"
    waiters[1].leave()
    assert woken == [waiters[2]]
    assert [seats.sit(waiter) for waiter in waiters[3:]] == [False, False], "it is another's turn"
    assert seats.sit(waiters[2])
    waiters[3].leave()  # it does not wait any more
    waiters[0].leave()
    assert seats.sit(waiters[4])


def test_a_seat_that_became_free_before_it_was_waited_for():
    seats, one, other = Seats(1), Waiter(), Waiter()
    assert seats.sit(one)
    assert not seats.sit(other)
    one.leave()
    assert seats.stand(other, 5.0, list) == 0


def test_all_that_stand_poll_so_often_together():
    seats, waiters = Seats(0), [Waiter() for _ in range(1000)]
    assert not any(map(seats.sit, waiters))
    assert [seats.stand(waiters[place], 4.0, list) for place in (0, 999)] == [4.0, 4.0], "never longer than a slice"
    for waiter in waiters[100:]:
        waiter.leave()
    assert seats.stand(waiters[0], 4.0, list) == 2.0
    assert seats.stand(waiters[0], 1.0, list) == 1.0


def test_a_waiter_that_moves_to_another_node_leaves_its_seat():
    old, new, waiter, other = Seats(1), Seats(1), Waiter(), Waiter()
    assert old.sit(waiter)
    assert new.sit(waiter)
    assert old.sit(other)


def test_a_waiter_that_is_garbage_has_no_seat():
    seats = Seats(1)
    assert seats.sit(Waiter())
    gc.collect()
    assert seats.sit(Waiter())
