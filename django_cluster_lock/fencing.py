"""Writing under a lock so that nothing stale lands: the fence is checked where the write goes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from django_cluster_lock import fences, protocol, scripts
from django_cluster_lock.arguments import positive
from django_cluster_lock.errors import LockError, LockNotReplicated, LockUnavailable, StaleFence
from django_cluster_lock.holding import Holding
from django_cluster_lock.names import Keys, slot_of
from django_cluster_lock.protocol import Call, Flow, Grant, Reply

if TYPE_CHECKING:
    from django_cluster_lock.fences.rows import Showing

T = TypeVar("T")
Text: TypeAlias = str | bytes
Value: TypeAlias = str | bytes | int | float
_SET = "redis.call('SET', KEYS[1], ARGV[1], unpack(ARGV[2] and {'PX', ARGV[2]} or {}))"


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
            StaleFence: a later lease has written, or this one was ended by force, or is older than 3.5 days. Nothing is
                written.
            LockLost, LockNotHeld: the lease has ended, before the block or before its commit. Nothing is written.
            RuntimeError: a transaction is open already.
            django.core.exceptions.ImproperlyConfigured: the app is not installed, or its table is missing.
        """
        with atomic([self], using):
            yield

    def _guarding(self, script: str, keys: Sequence[Text], args: Sequence[Value]) -> Flow[Any]:
        """Runs a script behind the guard: not again where it may have run, since that might do it twice."""
        self.raise_if_lost()
        (lease, *others), now = self._held(), time.monotonic()
        if others:
            raise ValueError(f"{self!r} holds several locks; a guarded write is under one of them")
        grant, turn = lease.grant, lease.turn
        also = (grant.keys.guard, *(_in_slot(key, grant.keys) for key in _several("keys", keys)))
        sent = (b"%d" % grant.fence, grant.token, b"%d" % turn, *map(_encoded, _several("args", args)))
        deadline = min(lease.valid_until, now + self._alias.patience)
        call = Call(
            grant.keys,
            scripts.guarded(script),
            sent,
            deadline,
            replicas=lease.terms.replicas,
            once=True,
            also=also,
        )
        try:
            reply: Reply = yield call
        except BaseException as error:
            lease.turn = max(lease.turn, turn + 1)  # it may yet arrive
            if isinstance(error, LockUnavailable) and "compiling script" in error.detail:
                raise ValueError(f"the guarded script cannot be used: {error.detail}") from None
            raise
        return _result(grant, reply)

    def _setting(self, key: Text, value: Value, timeout: float | None) -> Flow[None]:
        expiry = () if timeout is None else (protocol.milliseconds(positive("timeout", timeout)),)
        yield from self._guarding(_SET, [key], [value, *expiry])

    def _showings(self) -> "list[Showing]":
        """What the leases held here have to show."""
        from django_cluster_lock.fences.rows import Showing, digest_of

        self.raise_if_lost()
        prefix = self._alias.settings.key_prefix
        return [
            Showing(digest_of(self.alias, prefix, grant.keys.name, self.tag), grant.keys.name, grant.fence, grant.token)
            for grant in (lease.grant for lease in self._held())
        ]


def _result(grant: Grant, reply: Reply) -> Any:
    """What a guarded script gave."""
    name, told = grant.keys.name, [*reply.details, None][0]
    if reply.status == b"failed":
        raise LockError(name, f"the guarded script: {_shown(told)}")
    if reply.status == b"late":
        raise StaleFence(name, "a later one of the lease has overtaken it")
    if reply.status == b"stale" and told == b"0":
        raise StaleFence(name, "it is older than 3.5 days by the server's clock, and fences are not kept for ever")
    if reply.status == b"stale":
        raise StaleFence(name, f"its fence is {grant.fence}, but {_shown(told)} has been shown")
    if not protocol.is_acknowledged(reply):
        raise LockNotReplicated(name, f"it is written, but {reply.acks} of {reply.needed} replicas have it")
    return told


def _several(argument: str, given: Sequence[T]) -> Sequence[T]:
    """The sequence, or an error if it is a string, which is one too."""
    if isinstance(given, str | bytes):
        raise TypeError(f"{argument} has to be a list, not one {type(given).__name__}: write [{given!r}]")
    return given


def _in_slot(key: Text, lock: Keys) -> bytes:
    """The key, or an error if it is not where the lock is."""
    encoded = _encoded(key)
    if (slot := slot_of(encoded)) != lock.slot:
        raise ValueError(
            f"the key {_shown(encoded)!r} is in slot {slot}, but the lock {lock.name!r} in slot {lock.slot}: give both "
            "one hash tag, as in cache_lock(..., tag='order:7') and '{order:7}:total'"
        )
    return encoded


def _encoded(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"a guarded write takes bytes, str, int and float, not {type(value).__name__}: {value!r}")
    if isinstance(value, str):
        return value.encode()
    return b"%d" % value if isinstance(value, int) else repr(float(value)).encode()  # that of an enumeration's member


def _shown(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@contextmanager
def atomic(handles: Sequence[Fencing], using: str | None) -> Iterator[None]:
    """`Fencing.atomic` under the leases of several handles."""
    fences.require()
    from django_cluster_lock.fences import blocks

    with blocks.atomic([showing for handle in handles for showing in handle._showings()], using):  # noqa: SLF001
        for handle in handles:
            handle.raise_if_lost()  # the row may have been waited for
        yield
        for handle in handles:
            handle.raise_if_lost()  # while it can still be rolled back
