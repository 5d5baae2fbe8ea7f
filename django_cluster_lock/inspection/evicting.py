"""Fencing off the holder of a lock that is released by force, where the database knows fences."""

from django.db import Error

from django_cluster_lock.errors import LockError
from django_cluster_lock.snapshots import LockSnapshot


class NotFencedOff(LockError):
    """The database could not be told to refuse a lock's holder, so that its lease was not ended."""

    problem = "was not released, since its holder could not be fenced off"
    hint = (
        "End the holder's transaction or bring the database back; or release it in Redis alone: "
        "'manage.py locks release --no-fence', or fence=False."
    )


def fence_off(alias: str, prefix: str, lock: LockSnapshot) -> None:
    """Makes the database refuse the holder's transactions from now on, if it has the table of fences.

    Raises:
        NotFencedOff: it could not be told.
    """
    from django_cluster_lock.fences import rows

    using = rows.database()
    digest = rows.digest_of(alias, prefix, lock.name, lock.tag)
    try:
        if rows.has_table(using):
            rows.evict(rows.Claim(digest, lock.name, lock.fence, rows.EVICTED), using)
    except Error as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise NotFencedOff(lock.name, f"database {using!r}: {told}", str(lock.owner)) from error
