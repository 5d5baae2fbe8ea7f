"""A short run: what the long one does in half an hour, with the faults that break locks without acknowledgement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]
KINDS = (
    "primary killed while its replica lags",
    "partition: primary and some clients, majority and other clients",
    "primary cut off from its replica, then killed",
    "holder paused (SIGSTOP), and its renewer with it",
    "CLUSTER FAILOVER",
    "connections closed before the reply",
    "CLIENT KILL of all clients",
)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What a run of a program of its own found, by contestant."""
    file = tmp_path_factory.mktemp("faults") / "verdicts.json"
    command = [sys.executable, "-m", "tests.faults", "--seconds", "45", "--short", "--leases-only", "--verdicts", file]
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    done = subprocess.run([*command, *kinds], text=True, capture_output=True, cwd=Path.cwd(), timeout=300)
    assert file.exists(), done.stderr
    return json.loads(file.read_text())


def test_no_promise_is_broken(verdicts):
    assert verdicts["auto"]["leases"] > 1000
    assert verdicts["auto"]["commits"] > 10
    assert verdicts["fenced"]["commits"] > 10
    assert {name: each["broken"] for name, each in verdicts.items() if each["broken"]} == {}


def test_the_controls_break_theirs(verdicts):
    """Under the same faults; else they would be too mild to show anything."""
    assert sum(verdicts[name]["overlaps"] for name in ("fenced", "bare", "redis-py")) > 0
    assert all(verdicts[name]["stale"] > 0 for name in ("bare", "redis-py"))
