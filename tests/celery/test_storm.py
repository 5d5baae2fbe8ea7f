"""Many callers, few keys, and kills: no two runs of a key overlap, and every caller gets an answer that is its own."""

import json
import os
import subprocess

import pytest

from tests.celery.storm import process
from tests.celery.storm.__main__ import WRONG

pytestmark = pytest.mark.slow

CALLS = os.environ.get("CLUSTER_LOCK_STORM_CALLS", "400")


@pytest.fixture
def storm(setup, cluster):
    """Makes a storm, and gives its account."""

    def make(*options, bare=False):
        values = process.values_of(setup, bare=bare)
        finished = process.run(values, *options, stdout=subprocess.PIPE, text=True)
        print(finished.stdout)  # noqa: T201 - shown if the test fails
        return finished.returncode, json.loads(finished.stdout)

    return make


@pytest.mark.alone
def test_no_overlap_and_every_call_is_answered(storm):
    code, account = storm("--calls", CALLS)
    assert account["killed"]["child"] > 0
    assert account["killed"]["worker"] > 0
    assert account["parked"] > 0
    assert {wrong: account[wrong] for wrong in WRONG if account[wrong]} == {}
    assert code == 0


def test_without_single_flight_runs_overlap(storm):
    code, account = storm("--calls", "150", bare=True)
    assert account["overlaps"]
    assert code == 1
