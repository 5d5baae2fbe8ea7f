"""What is done to the table of fences."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from django_cluster_lock.errors import StaleFence
from django_cluster_lock.fences.models import Fence
from django_cluster_lock.fences.sql import AGE, DAY, KEPT, LONGEST, TABLE, dialect_of, is_passing

T = TypeVar("T")
ATTEMPTS, PATIENCE = 20, 10.0  # how often, and for how many seconds, a transaction is begun anew
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.2
EVICTED = b""  # the token that no lease has


class Showing(NamedTuple):
    """What a lease shows: the digest of its lock, and its fence and token."""

    digest: bytes
    name: str
    fence: int
    token: bytes


def digest_of(alias: str, prefix: str, name: str, tag: str | None) -> bytes:
    """The key of a lock's row: one for each lock of each alias, whatever the names."""
    return hashlib.sha256(json.dumps([alias, prefix, name, tag]).encode()).digest()


def database() -> str:
    """The database of the table, as the routers have it."""
    return router.db_for_write(Fence)


def databases() -> list[str]:
    """All in which the routers let the table be, that of `database` first."""
    allowed = (using for using in connections if router.allow_migrate_model(using, Fence))
    return list(dict.fromkeys([database(), *allowed]))


def has_table(using: str) -> bool:
    """Whether the table is there.

    Raises:
        django.db.DatabaseError: the database cannot be asked.
    """
    return TABLE in connections[using].introspection.table_names()


def show(showings: Sequence[Showing], using: str) -> None:
    """Shows fences to the database, in its open transaction: their rows stay locked until that ends.

    Raises:
        StaleFence: a later lease has shown its own, or this one was ended by force, or it is so old that a later one's
            may have been forgotten.
    """
    connection = connections[using]
    dialect = dialect_of(connection)
    now = connection.ops.adapt_datetimefield_value(timezone.now())
    with connection.cursor() as cursor:
        for showing in sorted(showings):
            # PostgreSQL has no zero characters. The name is there to be read, the digest identifies.
            values = {**showing._asdict(), "name": showing.name.replace("\0", "�"), "now": now}
            for statement in dialect.show:
                cursor.execute(statement, values)
            if not cursor.rowcount:
                raise _refusal(showing, using)


def evict(showing: Showing, using: str) -> None:
    """Makes the database refuse a lease from now on, as it does once a later one has written.

    Raises:
        django.db.DatabaseError: it cannot be asked, or the lease's transaction has the row locked.
    """

    def refuse() -> None:
        with transaction.atomic(using=using, durable=True):
            connection = connections[using]
            if limits_wait := dialect_of(connection).limits_wait:
                with connection.cursor() as cursor:
                    cursor.execute(limits_wait)
            with suppress(StaleFence):  # it is refused already
                show([showing._replace(token=EVICTED)], using)

    retried(refuse, connections[using])


def prune(days: float, using: str, *, dry_run: bool = False) -> int:
    """Forgets fences that are older; their number.

    Raises:
        ValueError: they could still be needed.
    """
    if not KEPT <= days * DAY < LONGEST:
        raise ValueError(f"fences are kept for {KEPT // DAY} days at least, and {days:g} is no such number of days")
    connection = connections[using]
    dialect = dialect_of(connection)

    def forget() -> int:
        with connection.cursor() as cursor:
            cursor.execute(dialect.counting if dry_run else dialect.deleting, {"age": int(days * DAY)})
            found: int = cursor.fetchone()[0] if dry_run else cursor.rowcount
        return found

    return retried(forget, connection)


def retried(function: Callable[[], T], connection: BaseDatabaseWrapper) -> T:
    """What a function that begins a transaction gives; called again while that meets what passes.

    Raises:
        django.core.exceptions.ImproperlyConfigured: the table is missing.
        django.db.DatabaseError: as the function; it may be one that would pass, if the time is up.
    """
    deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function()
        except DatabaseError as error:
            if attempt == ATTEMPTS or time.monotonic() > deadline or not is_passing(error, connection):
                _explain(error, connection.alias)
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError


def _refusal(showing: Showing, using: str) -> StaleFence:
    row = Fence.objects.using(using).filter(digest=showing.digest, fence__gte=showing.fence).first()
    if row is None:
        return StaleFence(
            showing.name,
            f"it is older than {AGE / DAY:g} days by the database's clock, and fences are not kept for ever",
        )
    if row.fence == showing.fence and bytes(row.token) == EVICTED:
        return StaleFence(showing.name, f"the lease with the fence {showing.fence} was ended by force")
    return StaleFence(showing.name, f"its fence is {showing.fence}, but another lease has shown {row.fence}")


def _explain(error: DatabaseError, using: str) -> None:
    """Raises what is wrong if it is that the table is missing."""
    try:
        missing = not has_table(using)
    except DatabaseError:
        return
    if missing:
        raise ImproperlyConfigured(
            f"The table of fences is missing in the database {using!r}: run 'manage.py migrate --database {using}'."
        ) from error
