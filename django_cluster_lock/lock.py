"""The handle of a lock: its blocking face, and its asyncio face with the prefix ``a``, over the same flows."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from django_cluster_lock.arguments import positive
from django_cluster_lock.errors import LockError
from django_cluster_lock.fencing import Fencing, Text, Value
from django_cluster_lock.holding import UNSET, Unset, innermost
from django_cluster_lock.lease import Lease, Place
from django_cluster_lock.protocol import Flow

T = TypeVar("T")


def current_lock() -> "Lock | None":
    """The innermost lock held here, for code that runs under a decorator; None if there is none."""
    return cast("Lock | None", innermost())


class Lock(Fencing):
    """A lock on Redis Cluster, or several that are held together. Made by `cache_lock`.

    Each thread and asyncio task that acquires through one handle has a lease of its own. All times are seconds.

    Args:
        name: a name, or several: then all are acquired, or none.
        alias: which entry of CLUSTER_LOCKS it belongs to.
        timeout: the length of a lease; by default the setting TIMEOUT.
        blocking: whether `acquire` waits.
        blocking_timeout: how long it waits; None for as long as it takes; by default the setting BLOCKING_TIMEOUT.
        renew: whether a held lease is renewed until it is released.
        max_hold: how long it is renewed at most.
        tag: a hash tag to share with other keys in Redis Cluster.
        release_on: leaving ``with`` inside an open transaction frees the lock when that ends ("commit", whether it
            commits or rolls back) or at once ("exit").
        raise_on_release_error: whether leaving ``with`` raises when the release fails.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message names it.
    """

    # The blocking face

    def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | Unset | None = UNSET,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquire the lock, and return whether it was acquired; arguments default to the handle's.

        Args:
            token: what is to identify the lease, unique among all leases ever; by default a random one. After
                LockUnavailable, whoever tries again with the token gets the lease if the first try did.

        Raises:
            LockUnavailable: Redis could not be asked. LockNotReplicated: too few replicas acknowledged.
            LockError: this thread or task holds it already, so that waiting would never end.
        """
        before = self._leases.copy()
        try:
            return self._run(self._acquiring_if_free(blocking, blocking_timeout, token))
        except BaseException as interruption:
            self._take_back(before, interruption)
            raise

    def release(self) -> None:
        """Frees the lock.

        Raises:
            LockNotHeld: nothing is held here.
            LockLost: the lease had ended before.
            LockUnavailable: Redis could not be told. It is told again later, unless the token is the caller's own; the
                lock comes free then, or when the lease ends.
        """
        try:
            self._run(self._releasing())
        except BaseException as interruption:
            self._end_again(interruption, self._releasing())
            raise

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Adds to the time left of the lease, or sets it.

        Raises:
            LockNotHeld: nothing is held here. LockLost: the lease has ended. LockUnavailable: it could not be asked.
        """
        return self._run(self._extending(positive("additional_time", additional_time), replace_ttl))

    def reacquire(self) -> bool:
        """Sets the time left of the lease to the full timeout. Raises as `extend`."""
        return self._run(self._extending(self.timeout, replace=True))

    def owned(self) -> bool:
        """Whether Redis too says that the lock is held by this handle's lease."""
        return self._run(self._owning())

    def locked(self) -> bool:
        """Whether anybody holds the lock; of several, any of them."""
        return self._run(self._looking())

    def detach(self) -> str:
        """Renew the lease once, leave it to itself, and return the token with which it can be attached once.

        Raises:
            LockNotHeld, LockLost, LockUnavailable: as `extend`.
        """
        return self._run(self._detaching())

    def attach(self, token: str | bytes) -> None:
        """Take over a detached lease, once, and hold it from then on: with a new token, a new fence and its full time.

        Several names: all of them, or none.

        Raises:
            LockLost: it has ended, or was attached before. Of several names, the other leases are freed.
            LockUnavailable: Redis could not be asked. LockNotReplicated: too few replicas acknowledged. After either
                the lease may have been freed: attach it again, and where that raises LockLost, acquire the lock anew.
        """
        before = self._leases.copy()
        try:
            self._run(self._attaching(token))
        except BaseException as interruption:
            self._take_back(before, interruption)
            raise

    def guarded(self, script: str, keys: Sequence[Text] = (), args: Sequence[Value] = ()) -> Any:
        """Runs a Lua script on keys beside the lock, unless a later lease of it has written there this way.

        It is tried again only as long as it cannot have run: if its answer is lost, it may or may not have been done,
        and may yet be. It never is after one that began since its answer was missed, or after one of a later lease.

        Args:
            script: sees these keys and arguments as KEYS and ARGV; what it returns is the result, strings as bytes.
            keys: what it uses. Their hash tag is the lock's, as given by ``tag``.

        Raises:
            StaleFence: a later lease has written, or this one since, or it is older than 3.5 days. Nothing is done.
            LockNotHeld, LockLost: the lease has ended. Nothing is done.
            LockUnavailable: no answer came. LockNotReplicated: it is done, but too few replicas acknowledged it.
            LockError: the script failed; Redis takes nothing back of what it had done before.
            TypeError, ValueError: a value cannot be sent, or a key is in another slot than the lock.
        """
        return self._run(self._guarding(script, keys, args))

    def guarded_set(self, key: Text, value: Value, timeout: float | None = None) -> None:
        """Sets a key beside the lock, unless a later lease of it has written there by `guarded`. Raises as that.

        Args:
            timeout: after how many seconds it expires.
        """
        self._run(self._setting(key, value, timeout))

    def __enter__(self) -> Self:
        before = self._leases.copy()
        try:
            self._run(self._acquiring())
            return self
        except BaseException as interruption:
            self._take_back(before, interruption)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._run(self._leaving(error))
        except BaseException as interruption:
            self._end_again(interruption, self._leaving(interruption))
            raise

    def _take_back(self, before: Mapping[Place, list[Lease]], interruption: BaseException) -> None:
        """Free what was taken since, after a signal's exception at just any line: the handle may live on."""
        if isinstance(interruption, LockError):
            return
        held = self._find()
        if held and not any(held is each for each in before.values()):
            self._run(self._releasing())

    def _end_again(self, interruption: BaseException, ending: Flow[None]) -> None:
        """End what is still held, after a signal's exception at just any line: the handle may live on."""
        if not isinstance(interruption, LockError) and self._find():
            self._run(ending)

    # The asyncio face

    async def aacquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | Unset | None = UNSET,
        token: str | bytes | None = None,
    ) -> bool:
        """`acquire` for asyncio."""
        return await self._arun(self._acquiring_if_free(blocking, blocking_timeout, token))

    async def arelease(self) -> None:
        """`release` for asyncio."""
        await self._arun(self._releasing())

    async def aextend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """`extend` for asyncio."""
        return await self._arun(self._extending(positive("additional_time", additional_time), replace_ttl))

    async def areacquire(self) -> bool:
        """`reacquire` for asyncio."""
        return await self._arun(self._extending(self.timeout, replace=True))

    async def aowned(self) -> bool:
        """`owned` for asyncio."""
        return await self._arun(self._owning())

    async def alocked(self) -> bool:
        """`locked` for asyncio."""
        return await self._arun(self._looking())

    async def adetach(self) -> str:
        """`detach` for asyncio."""
        return await self._arun(self._detaching())

    async def aattach(self, token: str | bytes) -> None:
        """`attach` for asyncio."""
        await self._arun(self._attaching(token))

    async def aguarded(self, script: str, keys: Sequence[Text] = (), args: Sequence[Value] = ()) -> Any:
        """`guarded` for asyncio."""
        return await self._arun(self._guarding(script, keys, args))

    async def aguarded_set(self, key: Text, value: Value, timeout: float | None = None) -> None:
        """`guarded_set` for asyncio."""
        await self._arun(self._setting(key, value, timeout))

    async def __aenter__(self) -> Self:
        await self._arun(self._acquiring())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._arun(self._leaving(error))

    def _run(self, flow: Flow[T]) -> T:
        return self._alias.run(flow)

    async def _arun(self, flow: Flow[T]) -> T:
        return await self._alias.arun(flow)
