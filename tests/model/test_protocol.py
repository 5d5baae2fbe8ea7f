"""The protocol under everything that clients, networks and servers may do to it; and mutants of it."""

from collections import Counter

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from django_cluster_lock.names import keys_of
from tests.model.ledger import Violation
from tests.model.machine import TAG, LockMachine
from tests.model.mutants import FLOW_MUTANTS, SCRIPT_MUTANTS

pytestmark = pytest.mark.slow

ALWAYS_THE_SAME = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "print_blob": False,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
    "stateful_step_count": 80,
}
THOROUGH = settings(max_examples=600, phases=[Phase.generate, Phase.shrink], **ALWAYS_THE_SAME)
UNTIL_BROKEN = settings(max_examples=2000, phases=[Phase.generate], **ALWAYS_THE_SAME)

# What must have happened for the run to say anything.
HAPPENED = {
    ("acquire", b"own"),
    ("acquire", b"queued"),
    ("acquire", b"busy"),
    ("acquire", b"over"),
    ("release", b"released"),
    ("release", b"handed"),
    ("release", b"not owner"),
    ("renew", b"ok"),
    ("renew", b"lost"),
    ("sweep", b"kept"),
    ("sweep", b"removed"),
    "granted",
    "valid",
    "rolled back",
}


@pytest.fixture(scope="module")
def connection(cluster):
    """A client of the node that serves the model's keys."""
    key = keys_of("any", "any", TAG).record.decode()
    port = cluster.admin().get_node_from_key(key).port
    with redis.Redis("127.0.0.1", port, password=cluster.embedded.password) as client:
        yield client


def test_no_interleaving_breaks_an_invariant(connection, prefix):
    seen = Counter()
    run_state_machine_as_test(lambda: LockMachine(connection, prefix, seen=seen), settings=THOROUGH)
    assert min(seen[event] for event in HAPPENED) >= 20, seen


def search(machine):
    """Looks for a violation: in the same order each time, and where that finds none, in others.

    What the machine's requests meet depends on the length of random tokens too, so no order is sure to meet a mutant.
    """
    for options in ({}, {"derandomize": False}, {"derandomize": False}):
        run_state_machine_as_test(machine, settings=settings(UNTIL_BROKEN, **options))


# A mutant may be noticed by another invariant than the one it is aimed at, which stands in the test's name.
@pytest.mark.parametrize(
    "mutant", SCRIPT_MUTANTS, ids=lambda mutant: f"{mutant.what} {mutant.breaks}".replace(" ", "-")
)
def test_a_changed_script_is_noticed(connection, prefix, mutant):
    with pytest.raises(Violation):
        search(lambda: LockMachine(connection, prefix, mutant.texts()))


@pytest.mark.parametrize(
    "mutate",
    [mutate for mutate, _ in FLOW_MUTANTS],
    ids=[f"{mutate.__name__}-{breaks}" for mutate, breaks in FLOW_MUTANTS],
)
def test_a_changed_flow_is_noticed(connection, prefix, monkeypatch, mutate):
    mutate(monkeypatch)
    with pytest.raises(Violation):
        search(lambda: LockMachine(connection, prefix))
