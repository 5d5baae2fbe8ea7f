"""Fencing off the holder of a lock that is released by force, where the database knows fences."""

from django.db import Error

from django_cluster_lock.errors import NotFencedOff
from django_cluster_lock.snapshots import LockSnapshot


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
            rows.evict(rows.Showing(digest, lock.name, lock.fence, rows.EVICTED), using)
    except Error as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise NotFencedOff(lock.name, f"database {using!r}: {told}", str(lock.owner)) from error
