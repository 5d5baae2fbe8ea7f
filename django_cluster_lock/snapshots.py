"""What a look at the locks shows. Times are seconds, by the clock of the server that told them.

The ``locks`` command prints these as JSON, field by field: their names are part of the public interface.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from django_cluster_lock.printable import escaped


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock. Any of it may be empty, as it is between a hand-over and the waiter's answer to it."""

    host: str = ""
    pid: str = ""
    thread: str = ""
    task: str = ""

    def __str__(self) -> str:
        parts = (self.host, self.pid and f"pid {self.pid}", self.thread, self.task and f"task {self.task}")
        return escaped(", ".join(part for part in parts if part))


@dataclass(frozen=True, slots=True)
class Waiter:
    """One live place in a lock's queue."""

    token: str
    alive_for: float


@dataclass(frozen=True, slots=True)
class LockSnapshot:
    """One lock as its shard's primary showed it.

    ``state`` is "held", "queued" (held for a flight whose run has not begun), "expired" (its holder's lease ended and
    nobody took over yet), "waited" (free, with live waiters) or "free". ``age`` is the time since it was granted,
    ``fence`` the last one granted, ``parked`` how many messages wait behind a flight.
    """

    name: str
    tag: str | None
    slot: int
    node: str
    state: str
    token: str
    fence: int
    owner: Owner
    age: float
    lease_left: float
    waiters: tuple[Waiter, ...] = field(default=())
    parked: int = 0


@dataclass(frozen=True, slots=True)
class Unread:
    """Slots that could not be read, as ranges of first and last, of which node, and why."""

    node: str
    slots: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The locks that are held or waited for, by name; those in ``unread`` slots are missing."""

    locks: tuple[LockSnapshot, ...]
    unread: tuple[Unread, ...] = ()

    def __iter__(self) -> Iterator[LockSnapshot]:
        return iter(self.locks)

    def __len__(self) -> int:
        return len(self.locks)


@dataclass(frozen=True, slots=True)
class ForcedRelease:
    """What became of a lease that was to end; true if it was ended.

    ``outcome`` is "released", "handed" (released, and the first waiter has the lock), or "left": the lock has another
    holder than the one shown, or none any more. The command also says "free" of a lock that nobody held when it
    looked, "unavailable" of one whose shard could not be asked, and "unfenced" of one whose holder could not be fenced
    off in the database, and which was not released therefore.
    """

    name: str
    tag: str | None
    token: str
    outcome: str

    def __bool__(self) -> bool:
        return self.outcome in {"released", "handed"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in Redis that should be otherwise.

    ``kind`` is "dead-entry", "missing-entry", "dead-waiters", "no-expiry", "wake-no-expiry", "orphans" (messages parked
    behind a flight that is gone) or "foreign". ``name`` is the lock's, or empty where the key does not tell it.
    ``repair`` says what a repair does, empty if that is up to you.
    """

    kind: str
    name: str
    tag: str | None
    node: str
    key: str
    detail: str
    repair: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found among so many keys; of what is ``unread`` nothing was repaired."""

    keys: int
    findings: tuple[Finding, ...]
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What one node has of the slots and locks."""

    node: str
    slots: int
    locks: int
    waiters: int


@dataclass(frozen=True, slots=True)
class SlotShare:
    """What one slot has of the locks."""

    slot: int
    node: str
    locks: int
    waiters: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the locks are spread: ``skew`` is the most that a node has over the mean, ``slots`` are the fullest ones."""

    locks: int
    waiters: int
    skew: float
    nodes: tuple[NodeShare, ...]
    slots: tuple[SlotShare, ...]
    warnings: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()
