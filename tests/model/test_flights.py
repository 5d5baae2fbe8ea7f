"""The flights' protocol under everything that callers, brokers, workers and servers may do to it; and mutants of it."""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.flight_mutants import FLOW_MUTANTS, SCRIPT_MUTANTS
from tests.model.flights import MODES, FlightMachine
from tests.model.ledger import Violation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

ALWAYS_THE_SAME = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "print_blob": False,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
    "stateful_step_count": 60,
}
EXAMPLES = int(os.environ.get("CLUSTER_LOCK_TEST_EXAMPLES", "150"))  # more, for a longer run
UNTIL_BROKEN = settings(max_examples=10_000, phases=[Phase.generate], **ALWAYS_THE_SAME)
THOROUGH = settings(max_examples=EXAMPLES, phases=[Phase.generate, Phase.shrink], **ALWAYS_THE_SAME)

# What must have happened for the run to say anything; of a longer run, more.
HAPPENED = {
    *(("claim", status) for status in (b"own", b"busy", b"parked")),
    *(("start", status) for status in (b"own", b"busy", b"parked")),
    *(("land", status) for status in (b"settle", b"next", b"kept", b"released", b"lost")),
    *(("drain", status) for status in (b"next", b"busy", b"empty")),
    *((what, mode) for what in ("begun", "gave an outcome") for mode in MODES),
}
if EXAMPLES >= 1000:
    HAPPENED |= {("claim", b"next"), ("start", b"ended"), ("start", b"apart"), ("land", b"handed")}


def test_no_interleaving_breaks_an_invariant(flights_node, prefix):
    seen = Counter()
    run_state_machine_as_test(lambda: FlightMachine(flights_node, prefix, seen=seen), settings=THOROUGH)
    assert not [event for event in HAPPENED if not seen[event]], seen


# A mutant may be noticed by another invariant than the one it is aimed at, which stands in the test's name.
@pytest.mark.parametrize(
    "mutant", SCRIPT_MUTANTS, ids=lambda mutant: f"{mutant.what} {mutant.breaks}".replace(" ", "-")
)
def test_a_changed_script_is_noticed(flights_node, prefix, mutant):
    with pytest.raises(Violation):
        run_state_machine_as_test(
            lambda: FlightMachine(flights_node, prefix, mutant.texts(), modes=[mutant.mode]), settings=UNTIL_BROKEN
        )


@pytest.mark.parametrize(
    ("mutate", "mode"),
    [(mutate, mode) for mutate, _, mode in FLOW_MUTANTS],
    ids=[f"{mutate.__name__}-{breaks}" for mutate, breaks, _ in FLOW_MUTANTS],
)
def test_a_changed_flow_is_noticed(flights_node, prefix, monkeypatch, mutate, mode):
    mutate(monkeypatch)
    with pytest.raises(Violation):
        run_state_machine_as_test(lambda: FlightMachine(flights_node, prefix, modes=[mode]), settings=UNTIL_BROKEN)
