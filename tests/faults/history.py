"""What happened, as each side wrote it down itself: all times by the machine's monotonic clock.

A client writes its attempts to a file of its own, line by line and at once, so that they outlive it. The suite adds
the faults, and the database its journal of what was committed.
"""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

LOG = ".log"


class Log:
    """A client's file."""

    def __init__(self, path):
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(self, kind, attempt, *words, at=None):
        line = f"{kind} {attempt} {time.monotonic() if at is None else at:.6f} {' '.join(map(str, words))}\n"
        os.write(self._file, line.encode())


@dataclass(slots=True)
class Attempt:
    """One call of `acquire`, and the lease it gave.

    Attributes:
        called, wait: when it was called, and for how long it was to wait at most.
        returned: when it returned or raised; None if it never did.
        outcome: "granted", "busy", the name of an error of ours, or "error: " and what it was.
        valid_until: until when the holder may count on the lease, as its handle said last.
        ended: when the holder called `release`, or saw that it had lost it; None if it did neither.
        refused: the error by which `atomic()` kept its transaction from being committed.
        error: what else went wrong while it was held.
        since: when it was granted at the earliest, where its holder came to know of it later; else 0.
    """

    client: str
    contestant: str
    lock: str
    called: float
    wait: float
    returned: float | None = None
    outcome: str = ""
    fence: int = 0
    valid_until: float = 0.0
    ended: float | None = None
    refused: str = ""
    error: str = ""
    since: float = 0.0

    def believed(self):
        """From when to when its holder took itself for the holder; None if never."""
        if self.outcome != "granted":
            return None
        end = self.valid_until if self.ended is None else min(self.ended, self.valid_until)
        return (self.returned, end) if end > self.returned else None


@dataclass(slots=True)
class Happening:
    """One fault.

    Attributes:
        holds, in_order: whether promise 1 holds under it, and fences stay in order.
        shard: where it was begun.
        locks, clients: those it may have touched.
        injected, healed, over: when it began, when it was taken back, when everything was whole again.
    """

    kind: str
    shard: int
    locks: list[str]
    injected: float
    clients: list[str] = field(default_factory=list)
    healed: float = math.inf
    over: float = math.inf
    holds: bool = True
    in_order: bool = True


@dataclass(slots=True)
class Commit:
    """A transaction that was committed: the version it had read, the fence it was written under, and when."""

    contestant: str
    lock: str
    read: int
    fence: int
    at: float = 0.0


@dataclass
class History:
    """All of it. Commits are in their order; pauses are the spans in which a client did not run.

    Before ``warm`` the clients were still starting, on a busy machine: they called one by one, but asked in any order.
    """

    attempts: list[Attempt] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    pauses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    deaths: dict[str, float] = field(default_factory=dict)
    warm: float = 0.0
    end: float = 0.0


def read(folder):
    """The attempts in all files of a folder."""
    return [attempt for path in sorted(Path(folder).glob(f"*{LOG}")) for attempt in read_one(path)]


def read_one(path):
    """The attempts of one client, whose name and contestant are in the file's: ``CONTESTANT.NUMBER.log``."""
    client, contestant = path.stem, path.stem.partition(".")[0]
    attempts = {}
    with path.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # the client was killed while it wrote
            kind, number, time_, *words = line.split(maxsplit=3)
            at, rest = float(time_), words[0].rstrip("\n") if words else ""
            if kind == "call":
                lock, wait = rest.split()
                attempts[number] = Attempt(client, contestant, lock, at, float(wait))
            else:
                tell(attempts[number], kind, at, rest)
    return list(attempts.values())


def tell(attempt, kind, at, words):
    """Adds to an attempt what one line says of it."""
    if kind == "grant":
        valid_until, fence = words.split()
        attempt.returned, attempt.outcome = at, "granted"
        attempt.valid_until, attempt.fence = float(valid_until), int(fence)
    elif kind == "fail":
        attempt.returned, attempt.outcome = at, words
    elif kind == "seen":
        attempt.valid_until = float(words)
    elif kind == "lost":
        attempt.ended = attempt.ended or at
    elif kind == "end":
        attempt.valid_until, attempt.ended = max(attempt.valid_until, float(words)), at
    elif kind == "refused":
        attempt.refused = words
    elif kind == "error":
        attempt.error = words
