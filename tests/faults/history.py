"""What happened, as each side wrote it down itself: all times by the machine's monotonic clock.

A client writes its attempts to a file of its own, line by line and at once, so that they outlive it. The suite adds
the faults, and the database its journal of what was committed.
"""

import math
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
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
        called, wait, timeout: when it was called, how long it was to wait at most, how long its lease is.
        returned: when it returned or raised; None if it never did.
        outcome: "granted", "busy", the name of an error of ours, or "error: " and what it was.
        valid_until: until when the holder may count on the lease, as its handle said last.
        ended: when the holder called `release`, or saw that it had lost it; None if it did neither.
        refused: the error by which `atomic()` kept its transaction from being committed.
        error: what else went wrong while it was held.
        lost: when its holder saw that it had lost it; None if it did not.
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
    timeout: float = 0.0
    lost: float | None = None

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
        usable: from when on its locks were to be had again, though it was not taken back; never if infinite.
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
    usable: float = math.inf


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

    Stalls are spans in which a thread of a client, or of the suite, did not run although it could have: the machine
    was busy, or the client with itself.

    Before ``warm`` the clients were still starting, on a busy machine: they called one by one, but asked in any order.
    """

    attempts: list[Attempt] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    pauses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stalls: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    deaths: dict[str, float] = field(default_factory=dict)
    warm: float = 0.0
    end: float = 0.0

    @cached_property
    def first_calls(self):
        """When each client first asked for a lock."""
        firsts = {}
        for attempt in self.attempts:
            firsts[attempt.client] = min(attempt.called, firsts.get(attempt.client, math.inf))
        return firsts


def read(folder):
    """The attempts in all files of a folder, and the stalls of each client."""
    attempts, stalls = [], {}
    for path in sorted(Path(folder).glob(f"*{LOG}")):
        own, stalls[path.stem] = read_one(path)
        attempts += own
    return attempts, stalls


def read_one(path):
    """What one client tells, whose name and contestant are in the file's: ``CONTESTANT.NUMBER.log``."""
    client, contestant = path.stem, path.stem.partition(".")[0]
    attempts, stalls = {}, []
    with path.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # the client was killed while it wrote
            kind, number, time_, *words = line.split(maxsplit=3)
            at, rest = float(time_), words[0].rstrip("\n") if words else ""
            if kind == "call":
                lock, wait, timeout = rest.split()
                attempts[number] = Attempt(client, contestant, lock, at, float(wait), timeout=float(timeout))
            elif kind == "stall":
                stalls.append((at - float(rest), at))
            else:
                tell(attempts[number], kind, at, rest)
    return list(attempts.values()), stalls


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
        attempt.ended = attempt.lost = attempt.ended or at
    elif kind == "end":
        attempt.valid_until, attempt.ended = max(attempt.valid_until, float(words)), at
    elif kind == "refused":
        attempt.refused = words
    elif kind == "error":
        attempt.error = words
