"""What a look at the locks shows."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock. Any of it may be empty, as it is between a hand-over and the waiter's answer to it."""

    host: str = ""
    pid: str = ""
    thread: str = ""
    task: str = ""

    def __str__(self) -> str:
        parts = (self.host, self.pid and f"pid {self.pid}", self.thread, self.task and f"task {self.task}")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Waiter:
    """One place in a lock's queue; times are seconds."""

    token: str
    alive_for: float


@dataclass(frozen=True, slots=True)
class LockSnapshot:
    """One lock as its shard's primary showed it; times are seconds, by that server's clock.

    ``state`` is "held", "expired" (its holder's lease ended and nobody took over yet), "waited" (free, with live
    waiters) or "free".
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
