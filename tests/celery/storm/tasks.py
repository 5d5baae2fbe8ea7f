"""The tasks of the storm, one for each policy: they write down when their runs begin and end. Workers load this."""

import math
import random
import time

from django_cluster_lock import current_lock, single_flight
from tests.celery.storm.keys import POLICIES
from tests.celery.workload import app, note, setup
from tests.faults.client import come_from

LATE = {"acks_late": True, "reject_on_worker_lost": True}
LOOK = 0.05  # seconds between two looks of a run at its lease
SHORT = 0.05  # seconds that most runs take at most
bare = setup.get("bare", False)
# Of the runs, how many take longer than a lease that is not renewed may last.
long_runs = setup.get("long_runs", 0)

if setup.get("source"):
    come_from(setup["source"])


class Failed(Exception):
    pass


class Run:
    """A run, and what it sees of its lease. Without `single_flight` it counts on its key for ever."""

    def __init__(self, key, request):
        self.key, self.id = key, request.id
        self.name = f"{request.id}:{request.retries}:{time.monotonic_ns()}"
        self._lock = None if bare else current_lock()
        self._until = self._seen()
        fence = self._lock.fence if self._lock else 0
        note("start", key, id=self.id, run=self.name, until=self._until, fence=fence)

    def work(self):
        """Does something slow, with an eye on the lease."""
        end = time.monotonic() + (random.uniform(0.5, 5) if random.random() < long_runs else random.uniform(0, SHORT))
        while self._until and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
            before, self._until = self._until, self._seen()
            if self._until > before + 0.001:
                note("seen", self.key, run=self.name, until=self._until)

    def end(self, answers):
        """Raises LockLost if the lease is lost.

        Args:
            answers: whether the run has an outcome that callers may get.
        """
        until = self._seen()
        note("end", self.key, id=self.id, run=self.name, until=until, answers=bool(until and answers))
        if not until:
            self._lock.raise_if_lost()

    def _seen(self):
        """Until when it may count on its lease; 0 if it has lost it."""
        if not self._lock:
            return math.inf
        now, left = time.monotonic(), self._lock.valid_for
        return now + left if left else 0


def task_of(policy):
    options = {"scope": "running" if policy == "running" else "flight", "queue_timeout": 15}
    if policy not in ("running", "early"):
        options["on_duplicate"] = policy

    def body(self, key, number, how="succeed"):
        run = Run(key, self.request)
        run.work()
        retries = how == "retry" and not self.request.retries
        run.end(answers=not retries)
        if retries:
            raise self.retry(countdown=0)
        if how == "fail":
            raise Failed(number, run.name)
        return [number, run.name]

    if not bare:
        body = single_flight(key="{key}", **options)(body)
    return app.task(bind=True, name=f"storm-{policy}", **({} if policy == "early" else LATE))(body)


TASKS = {policy: task_of(policy) for policy in POLICIES}


@app.task(name="storm-gather", **LATE)
def gather(values):
    return values


@app.task(name="storm-follow", **LATE)
def follow(value):
    return value
