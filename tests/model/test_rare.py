"""Interleavings of clients that a random search meets rarely, each gone through step by step."""

import pytest
import redis

from django_cluster_lock.names import keys_of
from tests.model.ledger import Violation
from tests.model.machine import CLOCKS, TAG, LockMachine
from tests.model.mutants import ACQUIRE_SHORTENS, RENEWAL_SHORTENS, acknowledgements_ignored

SHORT, LONG = 3, 12  # seconds


class Scene(LockMachine):
    """A machine that is told what happens next, and looks at what must hold after each step."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.teardown()

    def acquires(self, timeout):
        self.acquire(which=0, timeout=timeout, patience=0, kind=CLOCKS[0])
        self.goes_on()

    def renews(self, timeout):
        self.renew(pick=0, timeout=timeout)
        self.goes_on()

    def goes_on(self):
        while self.operations:
            self.deliver_everything()
            self.let_time_pass(300)  # in which it gives up what is asked in vain
        self.believed_leases_are_real()

    def happens(self, event):
        self.happen(event, which=0)
        self.believed_leases_are_real()


@pytest.fixture
def scene(cluster, prefix):
    key = keys_of("any", "any", TAG).record.decode()
    port = cluster.admin().get_node_from_key(key).port
    with redis.Redis("127.0.0.1", port, password=cluster.embedded.password) as client:
        yield lambda mutant=None: Scene(client, prefix, mutant and mutant.texts())


def an_acquire_comes_again_after_a_longer_renewal(scene):
    scene.acquires(SHORT)
    scene.renews(LONG)
    scene.deliver_again(pick=0)
    scene.goes_on()
    assert scene.handles


def a_renewal_for_a_shorter_time(scene):
    scene.acquires(LONG)
    scene.renews(SHORT)
    assert scene.handles


@pytest.mark.parametrize(
    ("happens", "mutant"),
    [
        (an_acquire_comes_again_after_a_longer_renewal, ACQUIRE_SHORTENS),
        (a_renewal_for_a_shorter_time, RENEWAL_SHORTENS),
    ],
    ids=["an-acquire", "a-renewal"],
)
def test_no_lease_is_shortened(scene, happens, mutant):
    with scene() as as_it_is:
        happens(as_it_is)
    with pytest.raises(Violation, match=mutant.breaks), scene(mutant) as changed:
        happens(changed)


def a_replica_without_the_lease_is_promoted(scene):
    scene.happens("fall_behind")
    scene.acquires(LONG)
    granted = len(scene.handles)
    scene.happens("fail_over")
    return granted


def test_a_lease_that_no_replica_has_is_not_counted_on(scene, monkeypatch):
    with scene() as as_it_is:
        assert not a_replica_without_the_lease_is_promoted(as_it_is)
    acknowledgements_ignored(monkeypatch)
    with pytest.raises(Violation, match="I1 I7"), scene() as changed:
        a_replica_without_the_lease_is_promoted(changed)
