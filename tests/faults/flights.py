"""Single flight as a workload: storms of calls of Celery's tasks, whose runs are judged like all leases.

A storm calls, and kills children and whole workers, by itself; faults happen to the cluster that has its locks. The
broker is a server of its own, to which nothing is done: what is lost there is not the lock's to keep.
"""

import json
import os
import signal
import subprocess
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from django_cluster_lock import embedded
from tests.celery.storm import process
from tests.celery.storm.keys import POLICIES, keys_of, lock_of
from tests.celery.storm.log import Log
from tests.faults.checker import ALLOWANCE, PATIENCE, Finding, Verdict, by_lock, judge_attempts
from tests.faults.contestants import FLIGHTS, OPTIONS
from tests.faults.crew import HERE, THERE
from tests.faults.history import Attempt
from tests.faults.nodes import until
from tests.workers import setup_of

KEYS = 4  # of each policy
WORKERS = {"flights": 2, "undecorated": 1}
PAUSE = 0.1  # seconds between two calls
LONG_RUNS = 0.05  # of all runs
LAST_WAIT = 90.0  # seconds for the last calls to be answered
LOCKS = [lock_of(key) for policy in POLICIES for key in keys_of(policy, KEYS)]


@dataclass
class Flown:
    """What a storm leaves: its log, its own account, and what it said if it came to none."""

    events: list[dict]
    account: dict | None
    errors: str


@dataclass
class FlightVerdict(Verdict):
    """That on leases, and on the answers that callers got; what a fault outside of promise 1 explains is apart."""

    calls: int = 0
    killed: Counter = field(default_factory=Counter)
    parked: int = 0
    lost: Counter = field(default_factory=Counter)
    unanswered: list[Finding] = field(default_factory=list)
    misled: list[Finding] = field(default_factory=list)
    answers_outside: list[Finding] = field(default_factory=list)


@contextmanager
def storms(folder, nodes, *, skew, seed, divided):
    """A storm for each contestant, in processes of its own, that calls until it is told to end."""
    broker = embedded.up(folder / "broker", cluster=False, owner=True)
    started = {}
    try:
        for name, contestant in FLIGHTS.items():
            place = folder / name
            place.mkdir()
            setup = setup_of(nodes, broker, place, name)
            started[name] = Storm(place, _with_locks(setup, contestant, skew, divided), WORKERS[name], seed)
        for storm in started.values():
            until(storm.calls, "the storm to call")
        yield started
    finally:
        for storm in started.values():
            storm.close()
        embedded.down(broker.directory)


def _with_locks(setup, contestant, skew, divided):
    sources = {"source": HERE, "sources": [HERE, THERE]} if divided else {}
    values = process.values_of(setup, bare=not contestant.promises) | sources | {"long_runs": LONG_RUNS}
    timing = {"TIMEOUT": 4, "CLOCK_SKEW": skew, "OPTIONS": OPTIONS}
    return values | {"locks": values["locks"] | {"default": values["locks"]["default"] | timing}}


class Storm:
    """One storm, and its workers."""

    def __init__(self, place, setup, workers, seed):
        self._log, self._errors = setup["log"], place / "errors"
        options = ["--until-closed", "--keys", str(KEYS * len(POLICIES)), "--workers", str(workers)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        with self._errors.open("w") as errors:
            numbers = ["--calls", str(10**9), "--seed", str(seed), "--pause", str(PAUSE)]
            self._process = process.start(setup, *options, *numbers, stderr=errors, **pipes)

    def calls(self):
        """Whether it has begun to."""
        return bool(Log(self._log).read())

    def end(self):
        """Lets it have its answers; gives what it leaves."""
        try:
            output, _ = self._process.communicate(timeout=LAST_WAIT)
        except subprocess.TimeoutExpired:
            output = ""
        events = Log(self._log).read()
        return Flown(events, json.loads(output) if output else None, self._errors.read_text())

    def close(self):
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def attempts_of(contestant, events):
    """The calls and the runs of a storm, as those of a lock: a run is a lease that was granted as it began."""
    runs, calls, running, arrived = [], {}, {}, {}
    for event in events:
        what, pid, at = event["what"], event["pid"], event["at"]
        client = f"{contestant}.{pid}"
        if what == "arrived":
            arrived[pid] = at
        elif what == "start":
            lock = lock_of(event["key"])
            run = Attempt(client, contestant, lock, at, 0, at, "granted", event["fence"], event["until"])
            run.since = arrived[pid]  # its body may begin long after its grant
            running[pid] = run
            runs.append(run)
        elif what == "seen":
            running[pid].valid_until = event["until"]
        elif what == "end":
            run = running.pop(pid)
            run.ended, run.valid_until = at, max(run.valid_until, event["until"])
        elif what == "killed":
            for run in [running.pop(dead) for dead in event["pids"] if dead in running]:
                run.ended = at
        elif what == "call":
            patience = (PATIENCE + ALLOWANCE) * len(event["numbers"]) - ALLOWANCE
            calls[tuple(event["numbers"])] = Attempt(client, contestant, lock_of(event["key"]), at, patience)
        elif what == "called":
            call = calls[tuple(event["numbers"])]
            call.returned, call.outcome = at, event["error"] or "called"
    return [*runs, *calls.values()]


def judge(contestant, flown, history):
    """The verdict on a storm, whose own account tells which answers were wrong."""
    attempts, account = attempts_of(contestant, flown.events), flown.account
    verdict = FlightVerdict(calls=sum(each.outcome == "called" for each in attempts))
    for own in by_lock(attempts)[contestant].values():
        judge_attempts(verdict, own, history)
    if account is None:
        verdict.errors.append(Finding("", history.end, (), f"no account: {flown.errors[-2000:]}"))
        return verdict
    verdict.killed, verdict.parked = Counter(account["killed"]), account["parked"]
    verdict.lost = Counter(account["lost by Celery or its broker"])
    verdict.refused = Counter(account["refused"])
    for kind in ("unanswered", "misled"):
        for told in account[kind]:
            lock, at = lock_of(told["key"]), told["at"]
            causes = [each.injected for each in history.happenings if forgets(each, lock, at)]
            found = verdict.answers_outside if causes else getattr(verdict, kind)
            found.append(Finding(lock, max([at, *causes[:1]]), (), f"{kind}: {told['what']}"))
    return verdict


def forgets(happening, lock, since):
    """Whether a fault outside of promise 1 can have lost what a call since then had left at a lock."""
    met = happening.over >= since and happening.injected <= since + process.PATIENCE
    return not happening.holds and lock in happening.locks and met
