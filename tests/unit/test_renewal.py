"""What the renewer asks a node at once."""

from django_cluster_lock import protocol
from django_cluster_lock.lease import Lease, Place
from django_cluster_lock.names import keys_of
from django_cluster_lock.renewal import LARGEST_BATCH, Cancel, batches_of

KEYS = keys_of("shop", "a")
TERMS = protocol.Terms(30.0, 1.0, None, (), 3.0)


def lease():
    return Lease(protocol.Grant(KEYS, b"T", 1, 40.0, unanswered=False), TERMS, max_hold=60.0, place=Place.here())


def cancel():
    return Cancel(protocol.give_up(KEYS, b"T", mark=True), 60.0)


def test_leases_are_not_given_the_short_time_of_cancels():
    leases, cancels = [lease(), lease()], [cancel(), cancel()]
    assert batches_of([cancels[0], leases[0], cancels[1], leases[1]]) == [leases, cancels]


def test_there_is_a_largest_batch():
    leases = [lease() for _ in range(LARGEST_BATCH + 1)]
    assert batches_of(leases) == [leases[:LARGEST_BATCH], leases[LARGEST_BATCH:]]
