"""Looking at the locks of an alias and putting them in order: ``locks["default"]``, for operators and their tools."""

import math
import re
import time
from collections import Counter

from django_cluster_lock import fences, names, protocol, scripts
from django_cluster_lock.actions import Actions
from django_cluster_lock.aliases import aliases
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.inspection.evicting import fence_off
from django_cluster_lock.inspection.reading import know_layout, listing, look_at, name_of, snapshot_of
from django_cluster_lock.inspection.spreading import spread
from django_cluster_lock.inspection.verifying import verification
from django_cluster_lock.protocol import Call
from django_cluster_lock.snapshots import Distribution, ForcedRelease, Listing, LockSnapshot, Verification


class Locks:
    """The locks of one alias of CLUSTER_LOCKS. Everything reads the primaries at the time of the call."""

    def __init__(self, alias: str) -> None:
        self._alias = aliases[alias]
        self._prefix = self._alias.settings.key_prefix
        self._where = alias, self._prefix, self._alias.topology

    def list(
        self,
        pattern: str | None = None,
        *,
        node: str | None = None,
        task: str | None = None,
        older_than: float | None = None,
    ) -> Listing:
        """The locks that are held or waited for; of an unreachable shard's, it says so instead.

        Args:
            pattern: what their names match: ``*`` stands for any characters, ``?`` for one, all else for itself.
            node: which primary they are on, as host:port.
            task: what the Celery task of their holder matches.
            older_than: for how many seconds they have been held at least.

        Raises:
            LockUnavailable: no node could be asked.
        """
        found = self._alias.perform(listing(*self._where))
        chosen = (
            lock
            for lock in found
            if (pattern is None or matches(pattern, lock.name))
            and (node is None or lock.node == node)
            and (task is None or matches(task, lock.owner.task))
            and (older_than is None or (lock.token and lock.age >= older_than))
        )
        return Listing(tuple(chosen), found.unread)

    def show(self, name: str, tag: str | None = None) -> LockSnapshot:
        """One lock; "free" if nobody holds it or waits for it, and it may never have existed.

        Raises:
            LockUnavailable: its shard could not be asked, or something else is stored there.
            ValueError: no lock can have that name or tag.
        """
        return self._alias.perform(self._showing(names.keys_of(self._prefix, name, tag)))

    def release(self, name: str, *, token: str, tag: str | None = None, fence: bool = True) -> ForcedRelease:
        """Ends a lease from outside; its lock goes to the first waiter. Its holder learns it at the next renewal.

        Where the app of fences is installed, each database that has its table refuses the holder's ``lock.atomic()``
        before that: nothing is released if one cannot be told to. So whenever this raises, a holder that keeps its
        lease in Redis may be refused by databases already.

        Args:
            token: the lease's, as `show` tells it. A lock that has another holder by now is left alone.
            fence: whether to fence the holder off in the databases.

        Raises:
            NotFencedOff: a database cannot be asked or written, or the holder is in the middle of a transaction there.
            LockUnavailable: its shard could not be asked.
            RuntimeError: a transaction is open already on one of the databases.
        """
        keys = names.keys_of(self._prefix, name, tag)
        if fence and fences.installed():
            shown = self.show(name, tag)
            if shown.token == token:
                fence_off(self._where[0], self._prefix, shown)
        own = token.encode(errors="surrogateescape")
        deadline = time.monotonic() + self._alias.patience
        call = Call(keys, scripts.RELEASE, protocol.released(keys, own, mark=False), deadline)
        reply = self._alias.run(protocol.ask(call))
        outcome = "released" if protocol.was_released(reply, math.inf) else "left"
        return ForcedRelease(name, tag, token, "handed" if reply.status == b"handed" else outcome)

    def verify(self, *, repair: bool = False) -> Verification:
        """Compares all that is stored under the prefix with what should be; looks at every key there is (SCAN).

        Args:
            repair: whether to put right what is safe to. It never touches a live lease or waiter, nor what is not ours.

        Raises:
            LockUnavailable: no node could be asked.
        """
        return self._alias.perform(verification(*self._where, repair=repair, patience=self._alias.patience))

    def distribution(self) -> Distribution:
        """How locks and waiters are spread over nodes and slots.

        Raises:
            LockUnavailable: no node could be asked.
        """
        return self._alias.perform(self._distributing())

    def _showing(self, keys: names.Keys) -> Actions[LockSnapshot]:
        alias, _, topology = self._where
        yield from know_layout(alias, topology)
        ((_, told, parked),) = yield from look_at([keys], self._prefix, topology)
        if told.failed:
            raise LockUnavailable(keys.name, told.reason)
        shown = snapshot_of(keys, told, parked)
        if shown is None:
            raise LockUnavailable(keys.name, f"the hash {keys.record.decode()!r} is no lock's record")
        return shown

    def _distributing(self) -> Actions[Distribution]:
        found = yield from listing(*self._where)
        topology = self._alias.topology
        slots_of = Counter(name_of(node) for node in map(topology.primary, range(names.SLOTS)) if node)
        return spread(found, slots_of)


def matches(pattern: str, text: str) -> bool:
    """Tell whether a text matches: ``*`` stands for any characters, ``?`` for one, all else for itself."""
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


class _Aliases:
    """``locks``: gives the `Locks` of an alias."""

    def __getitem__(self, alias: str) -> Locks:
        return Locks(alias)


locks = _Aliases()
