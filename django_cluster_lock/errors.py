"""The exceptions of the lock.

All that an error tells is in its ``args``, so that it survives pickle and Celery's JSON result backend whole.
Those that redis-py's lock has too subclass its classes, so that existing ``except`` clauses go on working. The
others are no ``ValueError``, as redis-py's lock errors are: a form would take one for a validation failure.
"""

from redis.exceptions import LockError as RedisLockError
from redis.exceptions import LockNotOwnedError as RedisLockNotOwnedError

from django_cluster_lock.printable import escaped
from django_cluster_lock.snapshots import Owner


class LockError(Exception):
    """Something about a lock failed.

    Args:
        name: the lock's name; of several locks, the one concerned.
        detail: what happened, in words.
        holder: who holds the lock, where known.
    """

    problem = "failed"
    hint = ""

    def __init__(self, name: str, detail: str = "", holder: str = "") -> None:
        Exception.__init__(self, name, detail, holder)
        self.name = name
        self.detail = detail
        self.holder = holder
        # What redis-py's lock errors carry.
        self.message: str | None = str(self)
        self.lock_name: str | None = name

    def __str__(self) -> str:
        held = f" (held by {escaped(self.holder)})" if self.holder else ""
        told = f": {escaped(self.detail.rstrip('.'))}" if self.detail else ""
        return f"Lock {self.name!r} {self.problem}{held}{told}.{' ' if self.hint else ''}{self.hint}"

    __repr__ = Exception.__repr__


class LockBusy(LockError, RedisLockError):
    """Somebody else holds the lock, and the caller did not want to wait.

    ``owner`` is the holder in parts, for who catches it where it was raised; Celery's JSON backend leaves it behind.
    """

    problem = "is busy"
    hint = "Try again later, or wait for it with blocking_timeout."
    owner = Owner()


class LockTimeout(LockBusy):
    """The lock did not come free within ``blocking_timeout``."""

    problem = "did not come free in time"
    hint = "Look at its holder with 'manage.py locks show', or raise blocking_timeout."


class LockLost(LockError, RedisLockNotOwnedError):
    """The lease ended before it was released: the work under it may no longer have been alone."""

    problem = "was lost while held"
    hint = "Roll back what was done under it; raise timeout, or max_hold, if the work takes longer."


class LockNotHeld(LockError, RedisLockError):
    """The handle holds no lock to release, extend or check."""

    problem = "is not held by this handle"
    hint = "Acquire it first; a lock is released once."


class LockUnavailable(LockError):
    """Redis could not be asked within the caller's time. Whether the lock is free is unknown.

    ``unanswered`` tells the protocol that a request may still reach the server.
    """

    problem = "cannot be reached"
    hint = "Look at the servers of its shard; if no lock can be reached, at LOCATION, OPTIONS and the network."
    unanswered = False


class LockNotReplicated(LockUnavailable):
    """Fewer replicas acknowledged the lease than REPLICAS asks for, so that a failover could lose it."""

    problem = "was not acknowledged by enough replicas"
    hint = "Bring the replicas back, or lower REPLICAS for availability at the price of safety."


class StaleFence(LockError):
    """The lease may not write: a later one has, or it was ended by force, or it is too old for that to be known."""

    problem = "refused a write of this lease"
    hint = "Nothing was written; start again with a new lease."


class NotFencedOff(LockError):
    """A database could not be told to refuse a lock's holder, so that its lease was not ended."""

    problem = "was not released, since its holder could not be fenced off"
    hint = (
        "End the holder's transaction or bring the database back; or release it in Redis alone: "
        "'manage.py locks release --no-fence', or fence=False."
    )


class DuplicateFlight(LockError):
    """A flight of this task and key is already under way.

    Args:
        flight_id: the id of its Celery task; empty if it runs without one.
    """

    problem = "is in flight already"
    hint = "Wait for that flight, or choose another on_duplicate."

    def __init__(self, name: str, detail: str = "", holder: str = "", flight_id: str = "") -> None:
        super().__init__(name, detail, holder)
        self.args = (name, detail, holder, flight_id)
        self.flight_id = flight_id
