"""A short run: what the long one does, with the faults that break locks without acknowledgement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]
RUNS = {
    "3+6": (
        36,
        "one replica paused, the other promoted and killed, the first promoted",
        "replicas cut off, others attached that are no members, then the primary killed",
        "partition: primary and some clients, majority and other clients",
        "holder paused (SIGSTOP), and its renewer with it",
        "CLUSTER FAILOVER",
        "CLIENT KILL of all clients",
    ),
    "pair": (
        8,
        "replica lags and is no longer seen, then the primary killed",
        "primary cut off from its replica, then killed",
        "replica promoted while the primary serves on",
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def verdicts(request, tmp_path_factory):
    """What a run of a program of its own found, by contestant."""
    seconds, *kinds = RUNS[request.param]
    file = tmp_path_factory.mktemp("faults") / "verdicts.json"
    command = [sys.executable, "-m", "tests.faults", "--layout", request.param, "--seconds", str(seconds)]
    options = ["--short", "--leases-only", "--verdicts", file, *(word for kind in kinds for word in ("--kind", kind))]
    done = subprocess.run([*command, *options], text=True, capture_output=True, cwd=Path.cwd(), timeout=300)
    assert file.exists(), done.stderr
    return json.loads(file.read_text())


def test_no_promise_is_broken(verdicts):
    assert verdicts["auto"]["leases"] > 500
    assert verdicts["auto"]["commits"] > 5
    assert verdicts["fenced"]["commits"] > 5
    assert {name: each["broken"] for name, each in verdicts.items() if each["broken"]} == {}


def test_the_controls_break_theirs(verdicts):
    """Under the same faults; else they would be too mild to show anything."""
    controls = verdicts.keys() & {"fenced", "bare", "redis-py", "some"}
    assert sum(verdicts[name]["overlaps"] for name in controls) > 0
    assert verdicts["redis-py"]["stale"] > 0
