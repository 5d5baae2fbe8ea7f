"""What a handle holds, and what it does as flows of the protocol: written once for both faces of the lock."""

import binascii
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Literal, TypeAlias, TypeVar
from weakref import ReferenceType, WeakValueDictionary, ref

from django_cluster_lock import names, protocol, scripts, transactions
from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.arguments import given_names, given_token, own_token, positive, wait_of
from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.errors import LockBusy, LockError, LockLost, LockNotHeld, LockUnavailable
from django_cluster_lock.lease import Lease, Place, Rescue, letting_go
from django_cluster_lock.names import Keys
from django_cluster_lock.protocol import Call, Flow, Grant, Reply, Terms
from django_cluster_lock.transactions import Kept

T = TypeVar("T")
ReleaseOn: TypeAlias = Literal["commit", "exit"]
MAX_HOLD = 3600.0
HELD_HERE = "it is held right here already, so that waiting for it would never end"
logger = logging.getLogger("django_cluster_lock")


class Unset:
    """Stands for an argument that was not given, where None means something."""


UNSET = Unset()
_held_anywhere: WeakValueDictionary[tuple[str, bytes], Lease] = WeakValueDictionary()  # by alias and record
Held: TypeAlias = tuple[ReferenceType["Holding"], ReferenceType[Lease]]  # a handle, and the first lease it holds
current: ContextVar[tuple[Held, ...]] = ContextVar("django_cluster_lock_current", default=())
os.register_at_fork(after_in_child=lambda: current.set(()))  # the leases stay with the parent


class Holding:
    """The state of a handle and its flows; `Lock` puts the two faces on it."""

    def __init__(
        self,
        name: str | Iterable[str],
        *,
        alias: str = DEFAULT_ALIAS,
        timeout: float | Unset = UNSET,
        blocking: bool = True,
        blocking_timeout: float | Unset | None = UNSET,
        renew: bool = True,
        max_hold: float = MAX_HOLD,
        tag: str | None = None,
        release_on: ReleaseOn = "commit",
        raise_on_release_error: bool = True,
    ) -> None:
        self.names = tuple(map(names.check_name, given_names(name)))
        if release_on not in ("commit", "exit"):
            raise ValueError(f"release_on must be 'commit' or 'exit', not {release_on!r}")
        self.alias = alias
        self.tag = tag
        self.blocking = blocking
        self.renew = renew
        self.max_hold = positive("max_hold", max_hold)
        self.release_on = release_on
        self.raise_on_release_error = raise_on_release_error
        self._timeout = timeout if isinstance(timeout, Unset) else positive("timeout", timeout)
        self._blocking_timeout = blocking_timeout
        if not isinstance(blocking_timeout, Unset):
            wait_of(blocking_timeout)
        self._leases: dict[Place, list[Lease]] = {}  # by where they were acquired

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(map(repr, self.names))}>"

    @property
    def name(self) -> str:
        """The lock's name; of several, all of them."""
        return ", ".join(self.names)

    @property
    def timeout(self) -> float:
        """The length of a lease in seconds."""
        return self._alias.settings.timeout if isinstance(self._timeout, Unset) else self._timeout

    @property
    def fence(self) -> int:
        """The number of this lease, greater than that of every earlier lease of the lock; of several, see `fences`.

        Raises:
            LockNotHeld: nothing is held here.
        """
        if len(self.names) > 1:
            raise ValueError(f"{self!r} holds several locks, each with a fence of its own: use lock.fences[name]")
        return self._held()[0].grant.fence

    @property
    def fences(self) -> Mapping[str, int]:
        """The fence of each lock by its name."""
        return {lease.name: lease.grant.fence for lease in self._held()}

    @property
    def token(self) -> str:
        """What identifies the lease held here."""
        return _joined(self._held())

    @property
    def lost(self) -> bool:
        """Whether the lease held here can no longer be trusted."""
        return any(lease.trouble() for lease in self._held())

    @property
    def valid_for(self) -> float:
        """For how many seconds the lease held here can be trusted; renewal moves that on."""
        now = time.monotonic()
        return max(0.0, min(0.0 if lease.trouble(now) else lease.valid_until - now for lease in self._held()))

    def raise_if_lost(self) -> None:
        """Raises LockLost once the lease can no longer be trusted, LockNotHeld if there is none."""
        for lease in self._held():
            if reason := lease.trouble():
                raise LockLost(lease.name, reason)

    def when_lost(self, call: Callable[[Lease], None]) -> None:
        """Has it called once, in the renewer's thread, when a lease held here is found lost."""
        for lease in self._held():
            lease.on_lost.append(call)

    # Flows

    def _acquiring(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | Unset | None = UNSET,
        token: str | bytes | None = None,
        *,
        scoped: bool = True,
    ) -> Flow[None]:
        """Acquire the locks; those of a block, which are `scoped`, are freed too if its end was not seen."""
        place, locks = Place.here(), self._keys()
        if token is not None and len(locks) > 1:
            raise TypeError(f"{self!r}: a token of your own is for a single lock")
        wait = self._wait(blocking, blocking_timeout)
        kept = transactions.kept_here(self.alias, locks, place)
        if token is not None and kept:  # its lease has another
            if wait:
                raise LockError(self.name, HELD_HERE)
            kept = {}
        missing = [keys for keys in locks if keys not in kept] if kept else locks
        if wait:
            self._refuse_if_held_here(missing, place)
        terms = self._terms()
        now = time.monotonic()
        until = now + wait
        rescue = Rescue(self._alias.run)
        grants: list[Grant] = []
        try:
            if len(missing) == 1:
                own = new_token()
                if token is not None:
                    own, terms = own_token(token), terms.for_own_token()
                rescue.asked[own] = missing[0]
                flow = protocol.acquire(missing[0], own, terms, now=now, until=until, blocking=wait > 0)
                grants = [(yield from flow)]
            elif missing:
                flows = protocol.acquire_all(missing, new_token, terms, now=now, until=until, blocking=wait > 0)
                grants = yield from rescue.watch(flows)
        except (LockBusy, LockUnavailable):  # the flow's own: they leave nothing behind
            rescue.disarm()
            raise
        self._hold(place, grants, terms, kept, scoped=scoped)
        rescue.disarm()

    def _refuse_if_held_here(self, locks: Iterable[Keys], place: Place) -> None:
        """Raise a LockError if one of the locks is held here, by whatever handle and in whatever context."""
        for keys in locks:
            held = _held_anywhere.get((self.alias, keys.record))
            if held and held.place == place and held.pid == os.getpid() and not held.closed and not held.trouble():
                raise LockError(keys.name, HELD_HERE)

    def _acquiring_if_free(
        self, blocking: bool | None, blocking_timeout: float | Unset | None, token: str | bytes | None
    ) -> Flow[bool]:
        try:
            yield from self._acquiring(blocking, blocking_timeout, token, scoped=False)
        except LockBusy:
            return False
        return True

    def _releasing(self) -> Flow[None]:
        leases = self._held()
        for lease in leases:
            lease.free_if_dropped(self._alias.run)  # wherever this is interrupted
        self._drop(leases)
        own = [lease for lease in leases if not transactions.put_back(lease)]
        if own:
            yield from letting_go(own, patience=self._alias.patience)
        for lease in leases:
            if lease not in own and (reason := lease.trouble()):
                raise LockLost(lease.name, reason)

    def _leaving(self, error: BaseException | None) -> Flow[None]:
        """Frees the lock at the end of a ``with``, or keeps it for the transactions that are open.

        What the block raised is more telling than a failing release.
        """
        try:
            unfinished = transactions.open_connections() if self.release_on == "commit" else []
            if unfinished and not self.lost:
                transactions.keep(self._alias, self._give_up(), unfinished)
            else:
                yield from self._releasing()
        except LockError as failure:
            if error is None and self.raise_on_release_error:
                raise
            logger.warning("lock.release_failed", extra={"lock": self.name, "reason": str(failure)})

    def _extending(self, additional_time: float, replace: bool) -> Flow[bool]:
        for lease in self._held():
            now = time.monotonic()
            if reason := lease.trouble(now):
                raise LockLost(lease.name, reason)
            left = 0.0 if replace else lease.valid_until - now
            terms = lease.terms.lasting(left + additional_time)
            grant = yield from protocol.renew(lease.grant, terms, deadline=min(lease.valid_until, now + terms.patience))
            if grant is None:
                lease.lose("Redis no longer knows its lease")
                raise LockLost(lease.name, lease.lost)
            lease.renewed(grant)
            if replace:
                lease.valid_until = grant.valid_until
        return True

    def _owning(self) -> Flow[bool]:
        leases = self._find()
        for lease in leases:
            reply = yield from self._look(lease.grant.keys)
            if reply.status != b"held" or reply.details[0] != lease.grant.token:
                return False
        return bool(leases)

    def _looking(self) -> Flow[bool]:
        for keys in self._keys():
            reply = yield from self._look(keys)
            if reply.status == b"held":
                return True
        return False

    def _look(self, keys: Keys) -> Flow[Reply]:
        return protocol.ask(Call(keys, scripts.LOOK, (), time.monotonic() + self._alias.patience))

    def _detaching(self) -> Flow[str]:
        yield from self._extending(self.timeout, replace=True)
        leases = self._give_up()
        for lease in leases:
            lease.given_up = True
            transactions.put_back(lease)
        token = _joined(leases)
        for lease in leases:
            lease.close()
        return token

    def _attaching(self, token: str | bytes) -> Flow[None]:
        locks, terms, now = self._keys(), self._terms(), time.monotonic()
        tokens = given_token(token).split(SEPARATOR) if len(locks) > 1 else [given_token(token)]
        if len(tokens) != len(locks):
            raise ValueError(f"{self!r} holds {len(locks)} locks, but the token is for {len(tokens)}")
        pairs = list(zip(locks, tokens, strict=True))
        rescue = Rescue(self._alias.run)
        try:
            grants = yield from rescue.watch(protocol.attach_all(pairs, new_token, terms, now=now))
        except (LockBusy, LockUnavailable):  # the flow's own: they leave nothing behind
            rescue.disarm()
            raise
        self._hold(Place.here(), grants, terms, {})
        rescue.disarm()

    # State

    def _terms(self) -> Terms:
        return self._alias.terms(self.timeout)

    @property
    def _alias(self) -> Alias:
        return aliases[self.alias]

    def _keys(self) -> list[Keys]:
        """The locks in the order all callers share, so that none waits for the other in a circle."""
        prefix = self._alias.settings.key_prefix
        locks = [names.keys_of(prefix, name, self.tag) for name in self.names]
        return sorted(locks, key=_order) if len(locks) > 1 else locks

    def _wait(self, blocking: bool | None, blocking_timeout: float | Unset | None) -> float:
        """How many seconds to wait, 0 for not at all."""
        if not (self.blocking if blocking is None else blocking):
            return 0.0
        if isinstance(blocking_timeout, Unset):
            blocking_timeout = self._blocking_timeout
        if isinstance(blocking_timeout, Unset):
            blocking_timeout = self._alias.settings.blocking_timeout
        return wait_of(blocking_timeout)

    def _hold(
        self, place: Place, grants: Iterable[Grant], terms: Terms, kept: Mapping[Keys, Kept], *, scoped: bool = False
    ) -> None:
        leases = own = [Lease(grant, terms, max_hold=self.max_hold, place=place) for grant in grants]
        if kept:
            lent = [keeper.lend(keys) for keys, keeper in kept.items()]
            leases = sorted(lent + own, key=lambda lease: _order(lease.grant.keys))
        if self._leases:
            self._forget(place)
        self._leases[place] = leases
        for lease in own:
            _held_anywhere[self.alias, lease.grant.keys.record] = lease
            if scoped:
                lease.free_if_dropped(self._alias.run)
            if self.renew:
                self._alias.renewer.add(lease)
        current.set((*self._others_current(), (ref(self), ref(leases[0]))))

    def _forget(self, place: Place) -> None:
        """Drop the leases held at a place before, and those of threads that have ended."""
        for lease in self._leases.get(place, ()):
            lease.close()
        for ended in [other for other in list(self._leases) if other.thread() is None]:
            self._leases.pop(ended, None)

    def _give_up(self) -> list[Lease]:
        """Takes the leases held here off the handle."""
        leases = self._held()
        self._drop(leases)
        return leases

    def _drop(self, leases: list[Lease]) -> None:
        for place, held in list(self._leases.items()):
            if held is leases:
                del self._leases[place]
        current.set(self._others_current())

    def _others_current(self) -> tuple[Held, ...]:
        return tuple([held for held in current.get() if held[0]() not in (self, None)])

    def _held(self) -> list[Lease]:
        leases = self._find()
        if not leases:
            raise LockNotHeld(self.name)
        return leases

    def _find(self) -> list[Lease]:
        """The leases held here: acquired here, or by the code that started the task or thread this runs in.

        That is told by the context, which asyncio and asgiref hand on. Any other task's leases are its own, unless
        it has ended: `asyncio.wait_for` runs what it waits for in a task of its own before Python 3.12.
        """
        place = Place.here()
        leases = self._leases.get(place) or self._inherited()
        if leases is None and place.task:
            others = [
                held
                for other, held in list(self._leases.items())
                if other.task_is_done and other.thread is place.thread
            ]
            leases = others[0] if len(others) == 1 else None
        return leases if leases and leases[0].pid == os.getpid() else []

    def _inherited(self) -> list[Lease] | None:
        first = next((lease() for handle, lease in current.get() if handle() is self), None)
        return next((held for held in list(self._leases.values()) if held[0] is first), None)


def innermost() -> Holding | None:
    """The handle that was last acquired of those held here."""
    return next((handle for held, _ in reversed(current.get()) if (handle := held()) and handle._find()), None)  # noqa: SLF001


SEPARATOR = b"."
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def new_token() -> bytes:
    """A token that no other lease has: 16 characters of 96 random bits."""
    return binascii.b2a_base64(os.urandom(12), newline=False).translate(_URL_SAFE)


def _order(keys: Keys) -> tuple[int, str]:
    return keys.slot, keys.name


def _joined(leases: Iterable[Lease]) -> str:
    return SEPARATOR.join(lease.grant.token for lease in leases).decode(errors="surrogateescape")
