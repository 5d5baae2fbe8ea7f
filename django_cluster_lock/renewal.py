"""The renewer: a thread for each node that keeps the leases there alive, many in one round trip.

A node's thread asks that node alone, by a connection of its own. So whatever one node does, the leases on others are
renewed in time. The thread also sends the cancels that a node did not answer while their callers waited.

It serves the asyncio face too: a thread keeps a lease even while the event loop is busy, as long as `max_hold`
allows. It holds leases weakly, so that a handle nobody has any more is not renewed, and its thread ends when there
is nothing left to do.
"""

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from django_cluster_lock.actions import BRIEFLY, Actions, NoAnswer, Node, Refusal, Routes
from django_cluster_lock.batches import ask_node
from django_cluster_lock.errors import LockError
from django_cluster_lock.layout import learn_from, learn_from_any
from django_cluster_lock.lease import Lease
from django_cluster_lock.protocol import Call, Reply, renewal, renewed
from django_cluster_lock.signals import lock_lost

logger = logging.getLogger("django_cluster_lock")

RESOLUTION = 0.25  # seconds: leases due within the same stretch are renewed together
LARGEST_BATCH = 1000
SETTLED_AFTER = 0.2  # seconds: what was sent on twice within them pauses, since nodes may send to each other for ever
LONGEST_PAUSE = 2.0  # seconds between two attempts at a cancel
CANCEL_TAKES = 0.3  # seconds for one attempt at it: the leases of its node wait for that
SILENCE = 10.0  # seconds in which a failure of the same kind is not logged again
NAMES_TOLD = 3  # how many locks a line of the log names


@dataclass(eq=False)
class Cancel:
    """A release or a cancel without a caller, sent until the node answers or nothing is left to take back."""

    call: Call
    until: float
    pause: float = RESOLUTION

    @property
    def slot(self) -> int:
        """The slot of its lock."""
        return self.call.keys.slot

    @property
    def name(self) -> str:
        """The name of its lock."""
        return self.call.keys.name


Job: TypeAlias = Lease | Cancel
Failure: TypeAlias = Refusal | NoAnswer | LockError


class Renewer:
    """Renews leases a third of their length after they were last renewed, each by the thread of its node.

    Args:
        routes: tell which node that is.
        perform: carries out a flow that speaks to nodes itself.
    """

    def __init__(self, routes: Routes, perform: Callable[[Actions[Any]], Any]) -> None:
        self.routes, self.perform = routes, perform
        self._nodes: dict[Node | None, NodeRenewer] = {}
        self._cancels: set[Cancel] = set()  # nobody else holds them
        self.unstarted: set[NodeRenewer] = set()  # those whose threads could not be started
        self._moved_at: WeakKeyDictionary[Job, float] = WeakKeyDictionary()

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on, until it is closed, lost, held for too long or garbage."""
        self.assign(lease, lease.valid_until - lease.terms.timeout * 2 / 3, stretch_of(lease))

    def cancel(self, call: Call) -> None:
        """Send a release or a cancel that its caller no longer waits for."""
        now = time.monotonic()
        cancel = Cancel(replace(call, deadline=0.0, within=CANCEL_TAKES), now + call.lingers)
        self._cancels.add(cancel)
        self.assign(cancel, now)

    def is_done(self, cancel: Cancel) -> None:
        """Forget a cancel."""
        self._cancels.discard(cancel)

    def assign(self, job: Job, at: float, stretch: float = RESOLUTION) -> None:
        """Have a job done by the thread of the node that serves its slot now; see `NodeRenewer.schedule`."""
        self.node(self.routes.primary(job.slot)).schedule(job, at, stretch)
        if self.unstarted:
            for node in list(self.unstarted):
                node.start()

    def node(self, node: Node | None) -> "NodeRenewer":
        """Return the renewer of a node; None stands for slots that no node is known to serve."""
        return self._nodes.get(node) or self._nodes.setdefault(node, NodeRenewer(self, node))

    def may_move(self, job: Job, now: float) -> bool:
        """Note that a job goes to another node, and return whether it may go at once."""
        before, self._moved_at[job] = self._moved_at.get(job, -math.inf), now
        return now - before > SETTLED_AFTER

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads at work."""
        return [thread for node in list(self._nodes.values()) if (thread := node.thread)]


class NodeRenewer:
    """Does the jobs of one node, in a thread that runs while there are any."""

    def __init__(self, renewer: Renewer, node: Node | None) -> None:
        self.thread: threading.Thread | None = None
        self._renewer, self._node = renewer, node
        self._lock = threading.RLock()  # itself, since entering it by the condition takes longer
        self._changed = threading.Condition(self._lock)
        self._due: dict[float, WeakSet[Job]] = {}
        self._wakes = math.inf
        self._asking: WeakSet[Job] = WeakSet()  # those sent here for once by the owner of their slot
        self._told: dict[str, float] = {}  # when each failure was logged

    @property
    def name(self) -> str:
        """The node, as the log names it."""
        return f"{self._node[0]}:{self._node[1]}" if self._node else "no node"

    def schedule(self, job: Job, at: float, stretch: float = RESOLUTION, *, asking: bool = False) -> None:
        """Do a job then, or up to that many seconds earlier, together with what is due in the same stretch of time."""
        at = at // stretch * stretch
        with self._lock:
            if asking:
                self._asking.add(job)
            due = self._due.get(at)
            if due is None:
                due = self._due[at] = WeakSet()
            due.add(job)
            if self.thread is None:
                self._start()
            elif at < self._wakes:
                self._changed.notify()

    def _schedule_late(self, job: Job, at: float) -> None:
        """Do a job not before that time, but together with what is due soon after."""
        stretch = stretch_of(job) if isinstance(job, Lease) else RESOLUTION
        self.schedule(job, at + stretch, stretch)

    def start(self) -> None:
        """Start the thread if there is none."""
        with self._lock:
            if self.thread is None:
                self._start()

    def _start(self) -> None:
        self._renewer.unstarted.discard(self)
        thread = threading.Thread(target=self._work, name="cluster-lock-renewer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter is ending: the lease lasts as it is
            self._renewer.unstarted.add(self)
            guarded(logger.error, "lock.renewal_failed: %s", error, extra={"node": self.name, "reason": str(error)})
        else:
            self.thread = thread

    def _work(self) -> None:
        try:
            while True:
                jobs = self._next()
                if jobs is None:
                    return
                if jobs:
                    self._do(jobs)
                del jobs  # a lease that is only waited for is not held
        finally:
            with self._lock:
                if self.thread is threading.current_thread():  # and not one that was started since
                    self.thread = None

    def _next(self) -> list[Job] | None:
        """Wait until jobs are due and return them; None once there are none at all."""
        with self._lock:
            while True:
                self._due = {at: jobs for at, jobs in self._due.items() if jobs}
                if not self._due:
                    self.thread = None  # under the same lock: what comes from here on starts another
                    return None
                self._wakes = min(self._due)
                now = time.monotonic()
                if self._wakes <= now:
                    return [job for at in sorted(self._due) if at <= now for job in self._due.pop(at)]
                self._changed.wait(self._wakes - now)

    def _do(self, jobs: Sequence[Job]) -> None:
        lost: list[tuple[Lease, str]] = []
        failures: dict[str, list[Job]] = defaultdict(list)
        ready = [job for job in jobs if self._is_ready(job, time.monotonic(), lost)]
        silence: NoAnswer | None = None
        for planned in batches_of(ready):
            batch = [job for job in planned if not is_over(job)]
            if not batch:
                continue
            # To a node that was silent just now the rest is not sent before the next attempt.
            results = [silence] * len(batch) if silence else self._ask(batch)
            silence = next((result for result in results if isinstance(result, NoAnswer)), None)
            for job, result in zip(batch, results, strict=True):
                if not is_over(job):
                    self._settle(job, result, lost, failures)
        self._tell_failures(failures)
        for lease, reason in lost:
            tell_loss(lease, reason)

    def _is_ready(self, job: Job, now: float, lost: list[tuple[Lease, str]]) -> bool:
        """Return whether a job is to be done here and now; see to it if not."""
        if is_over(job):
            return False
        if isinstance(job, Cancel):
            if now >= job.until:
                self._renewer.is_done(job)
                return False
        elif job.lost or now >= job.valid_until:
            held_too_long = "it was held for longer than max_hold" if now >= job.hold_until else ""
            lost.append((job, held_too_long or job.trouble(now)))
            return False
        elif now >= job.hold_until:
            self._schedule_late(job, job.valid_until)
            return False
        if job not in self._asking and self._renewer.routes.primary(job.slot) != self._node:
            self._renewer.assign(job, now)
            return False
        return True

    def _ask(self, jobs: Sequence[Job]) -> "Sequence[Reply | Failure]":
        """Ask the node, and for the layout if that may have changed."""
        now, routes = time.monotonic(), self._renewer.routes
        calls = [renewal(job.grant, job.terms) if isinstance(job, Lease) else job.call for job in jobs]
        asking = {position for position, job in enumerate(jobs) if job in self._asking}
        for position in asking:
            self._asking.discard(jobs[position])
        results: Sequence[Reply | Failure]
        try:
            if self._node is None:
                results = [NoAnswer(f"no node serves slot {job.slot}", now) for job in jobs]
            else:
                results = self._renewer.perform(ask_node(self._node, calls, routes, asking=asking))
            if any(isinstance(result, NoAnswer) for result in results):
                if self._node is not None:
                    routes.suspect(self._node)
                self._renewer.perform(learn_from_any(routes, time.monotonic() + BRIEFLY))
            elif self._node is not None and any(isinstance(result, Refusal) for result in results):
                self._renewer.perform(learn_from(routes, self._node))  # which answers, so that no other need be asked
        except Exception as error:
            guarded(logger.exception, "lock.renewal_failed")
            results = [LockError(job.name, f"the renewal failed: {error!r}") for job in jobs]
        return results

    def _settle(
        self, job: Job, result: Reply | Failure, lost: list[tuple[Lease, str]], failures: dict[str, list[Job]]
    ) -> None:
        """Go on with a job as its answer says."""
        now = time.monotonic()
        try:
            if isinstance(result, Refusal) and self._is_sent_on(job, result, now):
                return
        except Exception as error:  # of the user's address_remap
            guarded(logger.exception, "lock.renewal_failed")
            result = LockError(job.name, f"the renewal failed: {error!r}")
        try:
            if isinstance(result, LockError):
                raise result
            if isinstance(result, Reply):
                self._take(job, result, lost)
                return
            reason = result.reason if isinstance(result, NoAnswer) else str(result)
        except LockError as error:
            reason = error.detail
        if self._renewer.routes.primary(job.slot) != self._node and self._renewer.may_move(job, now):
            self._renewer.assign(job, now)
            return
        failures[reason].append(job)
        if isinstance(job, Lease):
            self._schedule_late(job, min(now + job.terms.timeout / 12, job.valid_until))
        else:
            self._schedule_late(job, now + job.pause)
            job.pause = min(job.pause * 2, LONGEST_PAUSE)

    def _take(self, job: Job, reply: Reply, lost: list[tuple[Lease, str]]) -> None:
        """Take an answer over.

        Raises:
            LockNotReplicated: too few replicas have the renewal.
        """
        if isinstance(job, Cancel):
            self._renewer.is_done(job)
            return
        grant = renewed(job.grant, job.terms, reply)
        if grant is None:
            lost.append((job, "Redis no longer knows its lease"))
        else:
            job.renewed(grant)
            self._renewer.add(job)

    def _is_sent_on(self, job: Job, refusal: Refusal, now: float) -> bool:
        """Have a job done by the node that the answer names; return whether it names one that may be asked at once."""
        if refusal.code not in {"MOVED", "ASK"} or self._node is None:
            return False
        routes = self._renewer.routes
        target = routes.redirected(str(refusal).split()[-1], self._node)
        if refusal.code == "MOVED":
            routes.moved(job.slot, target)
        if target == self._node or not self._renewer.may_move(job, now):
            return False
        self._renewer.node(target).schedule(job, now, asking=refusal.code == "ASK")
        return True

    def _tell_failures(self, failures: dict[str, list[Job]]) -> None:
        """Log what failed: one line for each reason, and not again for a while."""
        now = time.monotonic()
        self._told = {reason: at for reason, at in self._told.items() if now - at < SILENCE}
        for reason, jobs in failures.items():
            names = sorted(job.name for job in jobs if isinstance(job, Lease))
            if not names or reason in self._told:
                continue
            self._told[reason] = now
            told = ", ".join(map(repr, names[:NAMES_TOLD])) + (", ..." if len(names) > NAMES_TOLD else "")
            guarded(
                logger.warning,
                "lock.renewal_failed: %d on %s (%s): %s",
                len(names),
                self.name,
                told,
                reason,
                extra={"locks": names, "node": self.name, "count": len(names), "reason": reason},
            )


def stretch_of(lease: Lease) -> float:
    """Return the length of the stretches of time within which a lease is renewed together with others."""
    return min(RESOLUTION, lease.terms.timeout / 12)


def batches_of(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Return what to ask at once: leases first, apart from cancels, which are given less time for an answer."""
    leases = [job for job in jobs if isinstance(job, Lease)]
    cancels = [job for job in jobs if isinstance(job, Cancel)]
    kinds: tuple[Sequence[Job], ...] = leases, cancels
    return [kind[start : start + LARGEST_BATCH] for kind in kinds for start in range(0, len(kind), LARGEST_BATCH)]


def is_over(job: Job) -> bool:
    """Return whether a lease was given up: what is heard of it after that is ignored."""
    return isinstance(job, Lease) and job.closed


def tell_loss(lease: Lease, reason: str) -> None:
    """Log a loss, call those who asked to be told, and send the signal."""
    guarded(logger.error, "lock.lost", extra={"lock": lease.name, "reason": reason})
    lease.lost = reason
    while True:
        guarded(lease.lose, reason)
        if not lease.on_lost:
            break
    guarded(lock_lost.send_robust, Lease, lease=lease, reason=reason)


def guarded(call: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call what others have a hand in, and go on whatever they raise: other leases are to be renewed all the same."""
    try:
        call(*args, **kwargs)
    except BaseException:
        with suppress(BaseException):  # of a filter or handler of the log itself, so that nothing can be logged
            logger.exception("lock.callback_failed")
