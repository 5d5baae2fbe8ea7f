"""The connections to one node, for the blocking face and for an event loop: who gets one, and who waits for it.

Without I/O. A bound holds for all that are open. Ordinary requests leave some of them to those that keep or end a
lease, and the sleeps of waiters take half at most. What an exception leaks is garbage, and does not count any more.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice
from math import inf
from threading import RLock
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

from django_cluster_lock.actions import Waiter

LIFE = 60.0  # seconds without a use after which a connection is closed
OPENERS = 8  # connections that ordinary requests open at the same time: the others get what comes back meanwhile
# Questions a second of all waiters together that have no seat, and the least seconds between two of one of them.
POLLS, SHORTEST_STAND = 50, 0.1


class Wire(Protocol):
    used_at: float
    is_open: bool

    def close(self) -> None: ...


W = TypeVar("W", bound=Wire)


class Claim(Generic[W]):
    """One who waits for a connection; `wake` is called once `wire` is there, perhaps still to be opened."""

    __slots__ = ("reserved", "wake", "wire")

    def __init__(self, wake: Callable[[], object], *, reserved: bool) -> None:
        self.wake, self.reserved = wake, reserved
        self.wire: W | None = None


class Pool(Generic[W]):
    """The connections to one node; the one used last is taken first. From any thread, and from finalisers.

    Args:
        make: makes a connection that is not open yet.
        most: how many may be open.
    """

    def __init__(self, make: Callable[[], W], most: int) -> None:
        self._make = make
        self._limits = most - max(1, most // 8), most  # in use, for ordinary requests and for reserved ones
        self._claims: tuple[deque[Claim[W]], deque[Claim[W]]] = deque(), deque()
        self._changing = RLock()  # reentrant: the garbage collector may run a finaliser that releases a lock
        self._open: set[ref[W]] = set()
        self._is_ample = True  # all that are open could be in use, whoever uses them
        self.idle: list[W] = []
        self.served = 0  # claims so far
        self.seats = Seats(most // 2)

    @property
    def count(self) -> int:
        """How many are open, or being opened."""
        return len(self._open)

    def take(self, reserved: bool) -> W | None:
        """Return an idle connection, unless others wait for one or the rest is kept for reserved requests."""
        if not self._claims[reserved] and (self._is_ample or self._has_room(reserved)):
            try:
                return self.idle.pop()
            except IndexError:
                pass
        return None

    def claim(self, wake: Callable[[], object], *, reserved: bool) -> Claim[W]:
        """Queue up for a connection, which may come at once."""
        claim = Claim[W](wake, reserved=reserved)
        with self._changing:
            self._claims[reserved].append(claim)
            self.serve()
        return claim

    def withdraw(self, claim: Claim[W]) -> W | None:
        """End the wait for a connection; return what came."""
        with self._changing:
            if claim in self._claims[claim.reserved]:
                self._claims[claim.reserved].remove(claim)
            return claim.wire

    def give(self, wire: W, now: float) -> None:
        """Take back a connection that can be used again."""
        wire.used_at = now
        self.idle.append(wire)
        if self._claims[0] or self._claims[1]:
            self.serve()

    def remove(self, wire: W) -> None:
        """Forget a connection that was taken, and is closed."""
        self._open.discard(ref(wire))
        self.serve()

    def serve(self) -> None:
        """Hand what is idle, or room for another connection, to those who wait."""
        for reserved in (True, False):
            claims = self._claims[reserved]
            with self._changing:
                while claims:
                    claim = claims.popleft()
                    claim.wire = self._next(reserved)
                    if claim.wire is None:
                        claims.appendleft(claim)
                        break
                    self.served += 1
                    claim.wake()

    def drop(self, before: float = inf) -> list[W]:
        """Forget the idle connections that were last used before that time, and return them to be closed."""
        dropped = []
        with self._changing:
            for wire in [each for each in self.idle if each.used_at < before]:
                try:
                    self.idle.remove(wire)
                except ValueError:  # it was just taken
                    continue
                self._open.discard(ref(wire))
                dropped.append(wire)
        return dropped

    def _has_room(self, reserved: bool) -> bool:
        self._is_ample = len(self._open) <= self._limits[False]
        return len(self._open) - len(self.idle) < self._limits[reserved]

    def _next(self, reserved: bool) -> W | None:
        if not self._has_room(reserved):
            return None
        try:
            return self.idle.pop()
        except IndexError:
            pass
        opening = sum(not wire.is_open for each in tuple(self._open) if (wire := each()))
        if opening >= OPENERS and not reserved:
            return None
        wire = self._make()
        self._open.add(ref(wire, self._open.discard))
        self._is_ample = len(self._open) <= self._limits[False]
        return wire


class Seats:
    """Which waiters may sleep on a connection to the node: the first that came, as many as there are seats.

    The others poll, so that they keep their places in the queues of their locks.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._changing = RLock()
        self._seated = WeakSet[Waiter]()
        self._standing = WeakKeyDictionary[Waiter, Callable[[], object]]()  # in the order in which they came

    def sit(self, waiter: Waiter) -> bool:
        """Return whether it has a seat, which it keeps until it leaves."""
        if waiter in self._seated:
            return True
        if waiter.seats is not self:
            waiter.leave()  # of a node that served its lock before
            waiter.seats = self
        with self._changing:
            self._standing.setdefault(waiter, _nobody)
            if not self._may_sit(waiter):
                return False
            del self._standing[waiter]
            self._seated.add(waiter)
        return True

    def stand(self, waiter: Waiter, seconds: float, wake: Callable[[], object]) -> float:
        """Return how long to wait before it polls, those seconds at most; `wake` is called once it may sit."""
        with self._changing:
            self._standing[waiter] = wake
            return 0.0 if self._may_sit(waiter) else min(seconds, max(len(self._standing) / POLLS, SHORTEST_STAND))

    def leave(self, waiter: Waiter) -> None:
        with self._changing:
            self._seated.discard(waiter)
            self._standing.pop(waiter, None)
            wakes = [self._standing[each] for each in self._first()]
        for wake in wakes:
            wake()

    def _may_sit(self, waiter: Waiter) -> bool:
        return waiter in self._first()

    def _first(self) -> list[Waiter]:
        """Return those for whom there are seats."""
        return list(islice(self._standing, max(self._count - len(self._seated), 0)))


def _nobody() -> None:
    """Stand for the wake-up of a waiter that polls just now."""
