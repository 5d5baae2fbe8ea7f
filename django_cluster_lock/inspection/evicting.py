"""Fencing off the holder of a lock that is released by force, where the database knows fences."""

from django.db import Error

from django_cluster_lock.errors import NotFencedOff
from django_cluster_lock.snapshots import LockSnapshot


def fence_off(alias: str, prefix: str, lock: LockSnapshot) -> None:
    """Makes each database that has the table of fences refuse the holder's transactions from now on.

    Raises:
        NotFencedOff: one could not be told; it names all of those. The others refuse the holder.
    """
    from django_cluster_lock.fences import rows

    showing = rows.Showing(rows.digest_of(alias, prefix, lock.name, lock.tag), lock.name, lock.fence, rows.EVICTED)
    failures: dict[str, Error] = {}
    for using in rows.databases():
        try:
            if rows.has_table(using):
                rows.evict(showing, using)
        except Error as error:
            failures[using] = error
    if failures:
        told = "; ".join(f"database {using!r}: {_told(error)}" for using, error in failures.items())
        raise NotFencedOff(lock.name, told, str(lock.owner)) from next(iter(failures.values()))


def _told(error: Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
