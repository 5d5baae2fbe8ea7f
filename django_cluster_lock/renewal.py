"""The renewer: one thread a process and alias that keeps leases alive, many in one round trip.

It serves the asyncio face too: a thread keeps a lease even while the event loop is busy, as long as `max_hold`
allows. It holds leases weakly, so that a handle nobody has any more is not renewed, and its thread ends when there
is nothing left to do.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakSet

from django_cluster_lock.errors import LockError
from django_cluster_lock.lease import Lease
from django_cluster_lock.protocol import Batch, Flow, Replies, Reply, ask_all, renewal, renewed
from django_cluster_lock.signals import lock_lost

logger = logging.getLogger("django_cluster_lock")

RESOLUTION = 0.25  # seconds: leases due within the same stretch are renewed together
LARGEST_BATCH = 1000


class Renewer:
    """Renews leases a third of their length after they were last renewed.

    Args:
        run: carries a flow of the protocol through and gives its result.
    """

    def __init__(self, run: Callable[[Flow[Replies]], Replies]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._due: dict[int, WeakSet[Lease]] = {}
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        """Renews a lease from now on, until it is closed, lost, held for too long or garbage."""
        self._schedule(lease, lease.valid_until - lease.terms.timeout * 2 / 3)

    def _schedule(self, lease: Lease, at: float) -> None:
        stretch = int(min(at, lease.hold_until, lease.valid_until) / RESOLUTION)
        with self._changed:
            self._due.setdefault(stretch, WeakSet()).add(lease)
            if self._thread is None or not self._thread.is_alive():
                self._start(lease)
            elif stretch < self._wakes:
                self._changed.notify()

    def _start(self, lease: Lease) -> None:
        thread = threading.Thread(target=self._work, name="cluster-lock-renewer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter is ending: the lease lasts as it is
            logger.error("lock.renewal_failed", extra={"lock": lease.name, "reason": str(error)})  # noqa: TRY400
        else:
            self._thread = thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._due = {stretch: leases for stretch, leases in self._due.items() if leases}
                if not self._due:
                    self._thread = None
                    return
                self._wakes = min(self._due)
                wait = self._wakes * RESOLUTION - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                due = [lease for lease in self._due.pop(int(self._wakes)) if not lease.closed]
            for start in range(0, len(due), LARGEST_BATCH):
                self._renew(due[start : start + LARGEST_BATCH])
            del due

    def _renew(self, leases: Sequence[Lease]) -> None:
        now = time.monotonic()
        current = []
        for lease in leases:
            if lease.closed:  # while an earlier batch was under way
                continue
            if now >= lease.valid_until:
                held_too_long = "it was held for longer than max_hold" if now >= lease.hold_until else ""
                self._lost(lease, held_too_long or lease.trouble(now))
            elif now >= lease.hold_until:
                self._schedule(lease, lease.valid_until)
            else:
                current.append(lease)
        if not current:
            return
        try:
            replies = self._run(ask_all(Batch([renewal(lease.grant, lease.terms) for lease in current])))
        except Exception:
            logger.exception("lock.renewal_failed")
            replies = [LockError(lease.name, "the renewal failed") for lease in current]
        for lease, reply in zip(current, replies, strict=True):
            if not lease.closed:
                self._settle(lease, reply)

    def _settle(self, lease: Lease, reply: Reply | LockError) -> None:
        try:
            if isinstance(reply, LockError):
                raise reply
            grant = renewed(lease.grant, lease.terms, reply)
        except LockError as error:
            logger.warning("lock.renewal_failed", extra={"lock": lease.name, "reason": str(error)})
            self._schedule(lease, time.monotonic() + max(lease.terms.timeout / 12, RESOLUTION))
            return
        if grant is None:
            self._lost(lease, "Redis no longer knows its lease")
            return
        lease.renewed(grant)
        self.add(lease)

    def _lost(self, lease: Lease, reason: str) -> None:
        logger.error("lock.lost", extra={"lock": lease.name, "reason": reason})
        try:
            lease.lose(reason)
        except Exception:  # of a callback: the other leases are to be renewed all the same
            logger.exception("lock.callback_failed")
        lock_lost.send_robust(Lease, lease=lease, reason=reason)
