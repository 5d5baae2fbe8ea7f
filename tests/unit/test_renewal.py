"""What the renewer asks a node at once."""

import time

import pytest

from django_cluster_lock import protocol
from django_cluster_lock.actions import Refusal
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.errors import LockLost
from django_cluster_lock.lease import Lease, Place, letting_go
from django_cluster_lock.names import keys_of
from django_cluster_lock.renewal import LARGEST_BATCH, Cancel, NodeRenewer, Renewer, batches_of

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


def test_a_mapping_of_addresses_that_fails_costs_no_lease_its_renewal():
    here, elsewhere = ("10.0.0.1", 7000), "10.0.0.9:7000"
    routes = Topology([here], {here: here}.__getitem__)
    routes._primaries = [here] * len(routes._primaries)
    renewer = Renewer(routes, lambda _: [Refusal(f"MOVED {KEYS.slot} {elsewhere}")])
    held, node = lease(), NodeRenewer(renewer, here)
    held.valid_until = held.hold_until = time.monotonic() + 600
    node._do([held])
    assert [list(jobs) for jobs in node._due.values()] == [[held]]
    held.close()


def test_nobody_is_asked_for_leases_that_were_given_up_meanwhile():
    held = lease()
    held.valid_until = held.hold_until = time.monotonic() + 600
    here = ("10.0.0.1", 7000)
    renewer = Renewer(Topology([here]), lambda _: pytest.fail("there is nothing to ask"))
    node = NodeRenewer(renewer, here)
    node._is_ready = lambda job, now, lost: not job.close()
    node._do([held])


def test_a_renewal_amid_a_release_hides_no_loss():
    held = lease()
    held.valid_until = time.monotonic() + 600
    flow = letting_go([held], patience=3.0)
    next(flow)
    held.renewed(held.grant._replace(valid_until=held.valid_until + 1))
    with pytest.raises(LockLost):
        flow.send(protocol.Reply(b"not owner", (), 1.0, 1.1))
