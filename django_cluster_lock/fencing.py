"""Writing under a lock so that nothing stale lands: the fence is checked where the write goes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from django.db import router, transaction
from django.http import HttpRequest

from django_cluster_lock import fences
from django_cluster_lock.holding import Holding

if TYPE_CHECKING:
    from django_cluster_lock.fences.rows import Claim


_LOCKS = "_cluster_locks"


class Fencing(Holding):
    """The part of a handle that writes."""

    @contextmanager
    def atomic(self, using: str | None = None) -> Iterator[None]:
        """A database transaction that begins only while no later lease of the lock has written in that database.

        Such transactions commit in the order of their fences, and each sees all earlier ones, whether or not its
        holder still has the lock. Needs the app ``django_cluster_lock.fences``.

        Args:
            using: the database; by default the one that the routers have for the table of fences.

        Raises:
            StaleFence: a later lease has written, or this one was ended by force. Nothing is written.
            LockLost, LockNotHeld: the lease has ended, before the block or before its commit; or it is older than
                3.5 days. Nothing is written.
            RuntimeError: a transaction is open already.
            django.core.exceptions.ImproperlyConfigured: the app is not installed, or its table is missing.
        """
        with _atomic([self], using):
            yield

    def _claims(self) -> "list[Claim]":
        """What the leases held here have to show."""
        from django_cluster_lock.fences.rows import Claim, digest_of

        self.raise_if_lost()
        prefix = self._alias.settings.key_prefix
        return [
            Claim(digest_of(self.alias, prefix, lease.name, self.tag), lease.name, lease.grant.fence, lease.grant.token)
            for lease in self._held()
        ]


def around(request: HttpRequest, lock: Fencing) -> list[Fencing]:
    """The locks of a view's decorators, of which this one is the innermost so far."""
    outer: list[Fencing] = getattr(request, _LOCKS, [])
    locks = [*(each for each in outer if each._find()), lock]  # noqa: SLF001
    setattr(request, _LOCKS, locks)
    return locks


def begin(locks: Sequence[Fencing], using: str) -> AbstractContextManager[None]:
    """A request's transaction on a database, which checks the fences of the locks around it.

    Where the app of fences is not installed, or its table has no place in the database, it is one without fences.
    """
    if fences.installed():
        from django_cluster_lock.fences.models import Fence

        if router.allow_migrate_model(using, Fence):
            return _atomic(locks, using)
    return transaction.atomic(using=using)


@contextmanager
def _atomic(handles: Sequence[Fencing], using: str | None) -> Iterator[None]:
    fences.require()
    from django_cluster_lock.fences import blocks

    with blocks.atomic([claim for handle in handles for claim in handle._claims()], using):  # noqa: SLF001
        for handle in handles:
            handle.raise_if_lost()  # the row may have been waited for
        yield
        for handle in handles:
            handle.raise_if_lost()  # while it can still be rolled back
