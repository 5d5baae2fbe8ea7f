"""A lock must not come free before the transaction that wrote under it has ended.

Around a view the lock is taken before the request's transaction begins (`mark`, `wanted`, `on`). Where a transaction
is open already, the lock outlives its ``with`` (`keep`) until that ends.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakValueDictionary

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest

from django_cluster_lock.aliases import Alias
from django_cluster_lock.errors import LockLost
from django_cluster_lock.lease import Lease, Place, letting_go
from django_cluster_lock.names import Keys

logger = logging.getLogger("django_cluster_lock")
_kept: WeakValueDictionary[tuple[str, bytes], "Kept"] = WeakValueDictionary()
MARKS = "_non_atomic_requests"  # where Django looks up for which databases a view wants no transaction


class Kept:
    """Leases that stay until the transactions which were open when their holder left have ended.

    Django has a hook for a commit, none for a rollback. But it drops what `on_commit` registered when the transaction
    ends either way. So nothing else refers to this, unless a lock of the same
    name takes the lease over for a while: the last reference that goes frees the leases.
    """

    def __init__(self, alias: Alias, leases: Iterable[Lease]) -> None:
        self._alias = alias
        self.leases = {lease.grant.keys: lease for lease in leases}

    def __call__(self) -> None:
        """What Django calls after the commit, to drop it then."""

    def lend(self, keys: Keys) -> Lease:
        """One of the leases, for a handle here; `put_back` ends that."""
        lease = self.leases[keys]
        lease.keeper = self
        return lease

    def __del__(self) -> None:
        # It may run in any thread, amid anything, and at the end of the process.
        leases = [lease for lease in self.leases.values() if lease.pid == os.getpid() and not lease.given_up]
        if not leases or sys.is_finalizing():
            return
        try:
            self._alias.run(letting_go(leases, patience=self._alias.patience))
        except BaseException as failure:
            name = ", ".join(lease.name for lease in leases)
            logger.warning("lock.release_failed", extra={"lock": name, "reason": str(failure)})


class _Block:
    """Takes the place of a block of `atomic` in its connection's list, to be dropped when it ends."""

    _from_testcase = False

    def __init__(self) -> None:
        self.kept: list[Kept] = []


def keep(alias: Alias, leases: Sequence[Lease], connections: Iterable[BaseDatabaseWrapper]) -> None:
    """Keeps leases that nobody holds any more until the last of the open transactions has ended."""
    keepers = {lease.keeper for lease in leases if isinstance(lease.keeper, Kept)}
    own = [lease for lease in leases if not put_back(lease)]
    if own:
        kept = Kept(alias, own)
        keepers.add(kept)
        for keys in kept.leases:
            _kept[alias.settings.alias, keys.record] = kept
    for connection in connections:
        for keeper in keepers:
            _register(connection, keeper)


def kept_here(alias: str, locks: Iterable[Keys], here: Place) -> dict[Keys, Kept]:
    """Which of the locks are kept for a transaction that is open here, and free for it to enter again.

    Raises:
        LockLost: the lease of one has ended, so that the transaction should not commit.
    """
    found = {}
    for keys in locks if _kept else ():
        kept = _kept.get((alias, keys.record))
        lease = kept.leases[keys] if kept else None
        if kept and lease and lease.place == here and lease.pid == os.getpid() and not (lease.closed or lease.keeper):
            if reason := lease.trouble():
                raise LockLost(lease.name, f"{reason}, while the transaction was still open")
            found[keys] = kept
    return found


def put_back(lease: Lease) -> bool:
    """Gives a lease back to the transaction it is kept for; False if it is kept for none."""
    taken_over = lease.keeper is not None
    lease.keeper = None
    return taken_over


def _register(connection: BaseDatabaseWrapper, kept: Kept) -> None:
    blocks = cast("list[object]", connection.atomic_blocks)
    if not _from_testcase(blocks[0]):
        connection.on_commit(kept)
        # As if it were registered outside all savepoints, since Django drops the hooks of one that is rolled back. And
        # the first to be called and dropped: if another's raises, the rest lives as long as the exception does.
        hooks = cast("list[tuple[Any, ...]]", connection.run_on_commit)
        _, *hook = hooks.pop()
        hooks.insert(0, (set(), *hook))
        return
    # Here no commit will come: the end of the outermost block of the code under test stands for it.
    outermost = next(place for place, block in enumerate(blocks) if not _from_testcase(block))
    block = blocks[outermost]
    if not isinstance(block, _Block):
        block = blocks[outermost] = _Block()
    block.kept.append(kept)


class OpensItsOwn(set[str]):
    """Marks a view that opens the request's transactions itself: to Django it wants none for any database.

    What it holds are the databases for which the view's author wants none.
    """

    def __contains__(self, _: object) -> bool:
        return True


def open_connections() -> list[BaseDatabaseWrapper]:
    """The connections with an open transaction here. One that a TestCase opened never commits: it does not count."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block and not all(map(_from_testcase, connection.atomic_blocks))
    ]


def mark(view: Callable[..., Any]) -> None:
    """Keeps Django from opening the request's transactions around a view that has a lock to take first."""
    setattr(view, MARKS, OpensItsOwn(getattr(view, MARKS, ())))


def is_marked(view: object) -> bool:
    return isinstance(getattr(view, MARKS, None), OpensItsOwn)


def wanted(request: HttpRequest, function: object) -> list[str]:
    """The databases for which Django would have opened a transaction, had the view of the request not been marked.

    Args:
        function: what was decorated, whose own marks may not have reached the view.
    """
    view = getattr(request.resolver_match, "func", None)
    if not is_marked(view):
        return []
    unwanted = {*getattr(view, MARKS), *getattr(function, MARKS, ())}
    unwanted.update(connection.alias for connection in open_connections())
    return [
        alias for alias, options in connections.settings.items() if options["ATOMIC_REQUESTS"] and alias not in unwanted
    ]


@contextmanager
def on(databases: Iterable[str], begin: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """A transaction on each database, begun by the function."""
    with ExitStack() as stack:
        for alias in databases:
            stack.enter_context(begin(alias))
        yield


def refuse_async(request: HttpRequest, function: object) -> None:
    """Raises what Django raises for an async view that is to be in a transaction."""
    if wanted(request, function):
        raise RuntimeError("You cannot use ATOMIC_REQUESTS with async views.")


def roll_back_request() -> None:
    """Rolls back the request's transactions that are open around a view that answers with an error."""
    for connection in open_connections():
        if connection.settings_dict["ATOMIC_REQUESTS"]:
            connection.set_rollback(True)


def _from_testcase(block: object) -> bool:
    return bool(getattr(block, "_from_testcase", False))
