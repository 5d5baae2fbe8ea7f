"""The lock's protocol, without I/O: what to ask a shard, and what its answer means.

Each flow is a generator that yields calls and is sent their replies; whoever runs it carries the calls to Redis
(`exchange`, `drivers`). So the blocking and the asyncio face share every decision, and tests can answer in the
server's place. Time enters with the replies, as seconds of the caller's monotonic clock.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

from django_cluster_lock import scripts
from django_cluster_lock.actions import BRIEFLY, Block, Waiter
from django_cluster_lock.errors import LockBusy, LockError, LockLost, LockNotReplicated, LockTimeout, LockUnavailable
from django_cluster_lock.names import Keys
from django_cluster_lock.scripts import Script
from django_cluster_lock.snapshots import Owner

LONGEST_SLICE = 4.0
WAIT_FOR_REPLICAS = 1.0
OUTWAITED = "its lease ended while another lock was waited for"
RECHECK = 0.05  # seconds until replicas are asked again that have not acknowledged
GRACE = 0.1  # for the replicas, after a last question asked as the caller's time ends
CANCEL_WITHIN = 0.1  # seconds for a cancel that its caller waits for
MARK_LIFE = 60.0  # seconds for which a cancelled token is remembered
RENEW_WITHIN = 3.0  # seconds at most for one attempt at a renewal, of which the shortest lease has several


class Terms:
    """What a lease is asked for.

    Args:
        timeout: its length in seconds.
        skew: seconds by which servers' clocks may differ; the server adds them, its holder does not count on them.
        replicas: how many must acknowledge it; None for all.
        owner: who asks, as the record shows it.
        patience: seconds to try for where the caller sets no limit.
    """

    __slots__ = ("alive", "lingers", "owner", "patience", "replicas", "skew", "slice", "timeout", "ttl")

    def __init__(
        self, timeout: float, skew: float, replicas: int | None, owner: tuple[bytes, ...], patience: float
    ) -> None:
        self.timeout, self.skew, self.replicas, self.owner, self.patience = timeout, skew, replicas, owner, patience
        self.lingers = True  # what is to be taken back is tried again without the caller
        self.slice = min(LONGEST_SLICE, timeout / 3)  # of a wait
        self.ttl = milliseconds(timeout + skew + 0.001)  # the scripts cut the server's clock off to whole ones
        self.alive = milliseconds(2 * self.slice)  # how long a waiter is believed to live after its last sign

    def lasting(self, timeout: float) -> "Terms":
        """The same terms for another length."""
        return Terms(timeout, self.skew, self.replicas, self.owner, self.patience)

    def for_own_token(self) -> "Terms":
        """Return the same terms for a token of the caller's own, with which he may ask again at any time."""
        terms = self.lasting(self.timeout)
        terms.lingers = False
        return terms


@dataclass(slots=True)
class Call:
    """One script to run on one lock's shard, with keys ``also`` besides the lock's own.

    Args:
        replicas: how many must acknowledge what it wrote; None for all that the shard has.
        deadline: when to give up trying, on the monotonic clock, but after one attempt at least; 0 for one attempt.
        within: how many seconds that one attempt may take, beside those that the replicas get.
        once: it is not sent again once it was sent without an answer.
        lingers: for how many seconds it is sent again without its caller, where nobody answered.
    """

    keys: Keys
    script: Script
    args: tuple[bytes, ...]
    deadline: float
    replicas: int | None = 0
    acknowledged_within: float = WAIT_FOR_REPLICAS
    block: Block | None = None
    once: bool = False
    also: tuple[bytes, ...] = ()
    within: float = BRIEFLY
    lingers: float = 0.0


@dataclass(slots=True)
class Reply:
    """A script's answer: when its request was sent and when it came, and who acknowledged its writes.

    ``first_sent`` is the time of the first attempt, ``unanswered`` that one before this stayed without an answer,
    ``objection`` why the server did not want to wait for replicas.
    """

    status: bytes
    details: Sequence[Any]
    sent: float
    now: float
    acks: int = 0
    needed: int = 0
    first_sent: float = 0.0
    unanswered: bool = False
    objection: str = ""


@dataclass(slots=True)
class Batch:
    """Calls sent at once, one write to each node; a `Reply` or a `LockError` for each comes back."""

    calls: Sequence[Call]


class Grant(NamedTuple):
    """A lease as granted. Valid until then on the caller's monotonic clock, never later than on the server's."""

    keys: Keys
    token: bytes
    fence: int
    valid_until: float
    unanswered: bool


T = TypeVar("T")
Step: TypeAlias = Call | Batch
Replies: TypeAlias = list[Reply | LockError]
Flow: TypeAlias = Generator[Step, Any, T]


@lru_cache
def milliseconds(seconds: float) -> bytes:
    return b"%d" % math.ceil(seconds * 1000)


def acquire(
    keys: Keys, token: bytes, terms: Terms, *, now: float, until: float, blocking: bool, keep: list[Grant] | None = None
) -> Flow[Grant]:
    """Acquires a lock, waiting in its queue until then.

    Args:
        keep: leases to renew after each slice of the wait; they are replaced in the list.

    Raises:
        LockBusy, LockTimeout: others hold or wait for it, and it was not to be waited for, or not that long.
        LockUnavailable, LockNotReplicated: its shard did not answer, or too few replicas acknowledged the lease.
    """
    unanswered, pending, short = False, False, None
    deadline = until if blocking else now + terms.patience
    waiter: Waiter | None = None
    try:
        call = attempt(keys, token, terms, now=now, deadline=deadline, queues=blocking)
        while True:
            pending = True
            try:
                reply: Reply = yield call
            except LockUnavailable as error:
                raise told_by(error, keys, short) from None
            pending = False
            unanswered = unanswered or reply.unanswered
            own = reply.status == b"own"
            late = own and reply.now >= reply.sent + terms.timeout  # its answer took longer than the lease lasts
            if own and not late and (is_acknowledged(reply) or reply.now >= deadline):
                return granted(keys, token, terms, reply, unanswered=unanswered)
            if reply.status == b"busy" and not unanswered:
                break  # nothing was left behind
            if late and not blocking:
                raise LockUnavailable(keys.name, "its shard answered after the lease had ended")
            if not own and (not blocking or reply.status == b"over"):
                raise busy(keys, reply)
            if reply.now >= deadline:
                raise busy(keys, reply, LockTimeout)
            if keep:
                keep[:] = yield from keep_all(keep, terms)
            short = reply if own and not late else None
            seconds = 0.0 if late else min(RECHECK, deadline - reply.now) if own else nap(reply, until, terms)
            waiter = waiter or Waiter()
            block = Block(keys.wake + token, seconds, waiter) if seconds else None
            call = attempt(keys, token, terms, now=reply.now, deadline=deadline, queues=blocking, block=block)
    except GeneratorExit:
        raise
    except BaseException as error:
        # What comes from outside, be it a LockError, says nothing of the request under way.
        mark = unanswered or (pending and getattr(error, "unanswered", True))
        with suppress(LockError):
            yield give_up(keys, token, mark=mark, lingers=terms.timeout + terms.skew if terms.lingers else 0.0)
        raise
    finally:
        if waiter:
            waiter.leave()
    raise busy(keys, reply)


def attempt(
    keys: Keys, token: bytes, terms: Terms, *, now: float, deadline: float, queues: bool, block: Block | None = None
) -> Call:
    """One call of the acquire script, which may follow a sleep. Half the time left is the replicas' at most."""
    alive = terms.alive if queues else b"0"
    left = deadline - now - (block.seconds if block else 0)
    return Call(
        keys,
        scripts.ACQUIRE,
        (token, terms.ttl, alive, keys.member, *terms.owner),
        deadline,
        replicas=terms.replicas,
        acknowledged_within=min(WAIT_FOR_REPLICAS, max(left / 2, GRACE)),
        block=block,
    )


def nap(reply: Reply, until: float, terms: Terms) -> float:
    """How long the next slice of a wait is: the first in the queue also wakes when the lease ahead ends."""
    seconds = min(terms.slice, until - reply.now)
    lease_left, first = reply.details[:2]
    if first:
        seconds = min(seconds, lease_left / 1000 + 0.001)
    return max(seconds, 0.001)


def is_acknowledged(reply: Reply) -> bool:
    """Return whether enough replicas have what the script wrote."""
    return reply.acks >= reply.needed


def granted(keys: Keys, token: bytes, terms: Terms, reply: Reply, *, unanswered: bool = False) -> Grant:
    """The lease an answer stands for, once enough replicas have it."""
    if not is_acknowledged(reply):
        raise not_replicated(keys, reply)
    return Grant(keys, token, reply.details[0], reply.sent + terms.timeout, unanswered)


def not_replicated(keys: Keys, reply: Reply) -> LockNotReplicated:
    """Return the error for a write that too few replicas have, with the reason if one is known."""
    why = f" ({reply.objection})" if reply.objection else ""
    return LockNotReplicated(keys.name, f"{reply.acks} of {reply.needed} replicas acknowledged it{why}")


def told_by(error: LockUnavailable, keys: Keys, short: Reply | None) -> LockUnavailable:
    """Return the error for a call whose time ran out while it waited for replicas, if it did: that tells more."""
    if short is None:
        return error
    failure = not_replicated(keys, short)
    failure.unanswered = error.unanswered
    return failure


def give_up(keys: Keys, token: bytes, *, mark: bool, lingers: float = MARK_LIFE) -> Call:
    """Return the call that takes back whatever an acquire may have left behind: one attempt, waited for briefly.

    Args:
        lingers: for how many seconds it is tried again without the caller; after them nothing is left to take back.
    """
    args = released(keys, token, mark=mark)
    return Call(keys, scripts.RELEASE, args, deadline=0.0, once=True, within=CANCEL_WITHIN, lingers=lingers)


def released(keys: Keys, token: bytes, *, mark: bool) -> tuple[bytes, ...]:
    return (token, b"1" if mark else b"0", keys.member, keys.index, keys.wake)


def release(grant: Grant, *, deadline: float, valid_until: float, lingers: float = 0.0) -> Flow[bool]:
    """Releases a lease; its lock goes to the first waiter in the same script.

    Args:
        lingers: for how many seconds it is tried again without the caller, if no answer comes before the deadline.

    Returns:
        Whether the lease was still the holder's. An answer "not owner" after an attempt that stayed without one
        means that the first attempt did it, if the lease was valid when it was sent.
    """
    try:
        reply: Reply = yield releasing(grant, deadline, lingers)
    except (LockUnavailable, GeneratorExit):
        raise
    except BaseException:  # interrupted: the request may not have gone out
        with suppress(LockError):
            yield give_up(grant.keys, grant.token, mark=False, lingers=lingers)
        raise
    return was_released(reply, valid_until)


def releasing(grant: Grant, deadline: float, lingers: float) -> Call:
    """Return the call that releases a lease; see `release`."""
    args = released(grant.keys, grant.token, mark=grant.unanswered)
    return Call(grant.keys, scripts.RELEASE, args, deadline, lingers=lingers)


def was_released(reply: Reply, valid_until: float) -> bool:
    return reply.status != b"not owner" or (reply.unanswered and reply.first_sent < valid_until)


def acquire_all(
    locks: Sequence[Keys], mint: Callable[[], bytes], terms: Terms, *, now: float, until: float, blocking: bool
) -> Flow[list[Grant]]:
    """Acquires several locks or none, without deadlock: it waits for one only while holding smaller ones.

    All are tried at once. At the first busy one those after it are given back; it is waited for, and the rest
    tried again. What is held meanwhile is renewed.

    Args:
        locks: each once, in the order all callers share: by slot, then by name.
        mint: makes a new token.

    Raises:
        LockLost: one of those held ended during the wait for another.
        LockBusy, LockTimeout, LockUnavailable, LockNotReplicated: as `acquire`.
    """
    held: list[Grant] = []
    lasts = terms.timeout + terms.skew
    tried: dict[tuple[Keys, bytes], bool] = {}  # and whether a request for it may yet arrive
    try:
        while len(held) < len(locks):
            tried = {(keys, mint()): True for keys in locks[len(held) :]}
            deadline = min(until, now + terms.patience) if blocking else now + terms.patience
            calls = [attempt(keys, token, terms, now=now, deadline=deadline, queues=False) for keys, token in tried]
            replies: Replies = yield Batch(calls)
            tried = {lock: getattr(reply, "unanswered", True) for lock, reply in zip(tried, replies, strict=True)}
            for (keys, token), reply in zip(tried, replies, strict=True):
                if isinstance(reply, LockError):
                    raise reply
                now = max(now, reply.now)
                if reply.status != b"own" or reply.now >= reply.sent + terms.timeout or not is_acknowledged(reply):
                    break
                held.append(granted(keys, token, terms, reply, unanswered=reply.unanswered))
            else:
                continue
            if not blocking and reply.status != b"own":
                raise busy(keys, reply)
            got = {grant.keys for grant in held}
            yield Batch([give_up(k, t, mark=mark, lingers=lasts) for (k, t), mark in tried.items() if k not in got])
            tried = {}
            grant = yield from acquire(keys, mint(), terms, now=now, until=until, blocking=blocking, keep=held)
            held.append(grant)
            now = grant.valid_until - terms.timeout
        expired = next((grant for grant in held if grant.valid_until <= now), None)
        if expired:
            raise LockLost(expired.keys.name, OUTWAITED)
    except GeneratorExit:
        raise
    except BaseException:
        left = tried | {(grant.keys, grant.token): grant.unanswered for grant in held}
        if left:
            yield Batch([give_up(k, t, mark=mark, lingers=lasts) for (k, t), mark in left.items()])
        raise
    return held


def attach_all(
    locks: Sequence[tuple[Keys, bytes]], mint: Callable[[], bytes], terms: Terms, *, now: float
) -> Flow[list[Grant]]:
    """Take over detached leases, all or none. Each gets a new token and fence, so that a token is attached once.

    Args:
        locks: each with the token of its detached lease.
        mint: makes a new token.

    Raises:
        LockLost: one of them has ended, or was attached before. The others are freed.
        LockUnavailable, LockNotReplicated: as `acquire`.
    """
    deadline = now + terms.patience
    tried = {(keys, mint()): True for keys, _ in locks}  # and whether a request for it may yet arrive
    try:
        calls = [
            Call(keys, scripts.ATTACH, (old, new, terms.ttl, *terms.owner), deadline, replicas=terms.replicas)
            for (keys, old), (_, new) in zip(locks, tried, strict=True)
        ]
        replies: Replies = yield Batch(calls)
        for place, (call, reply) in enumerate(zip(calls, replies, strict=True)):
            if isinstance(reply, Reply) and reply.status == b"own" and not is_acknowledged(reply):
                again = replies[place] = yield from ask_until_acknowledged(call)
                again.unanswered |= reply.unanswered
        tried = {lock: getattr(reply, "unanswered", True) for lock, reply in zip(tried, replies, strict=True)}
        grants = []
        for (keys, token), reply in zip(tried, replies, strict=True):
            if isinstance(reply, LockError):
                raise reply
            if reply.status != b"own" or reply.now >= reply.sent + terms.timeout:
                raise LockLost(keys.name, "the detached lease has ended, was released, or was attached before")
            grants.append(granted(keys, token, terms, reply, unanswered=reply.unanswered))
    except GeneratorExit:
        raise
    except BaseException:
        with suppress(LockError):
            yield Batch([give_up(keys, token, mark=mark) for (keys, token), mark in tried.items()])
        raise
    return grants


def keep_all(held: Sequence[Grant], terms: Terms) -> Flow[list[Grant]]:
    """Renews leases; what could not be asked in time keeps the validity it has.

    Raises:
        LockLost: one of them ended.
    """
    replies: Replies = yield Batch([renewal(grant, terms) for grant in held])
    kept = []
    for grant, reply in zip(held, replies, strict=True):
        after = renewed(grant, terms, reply) if isinstance(reply, Reply) else grant
        if after is None:
            raise LockLost(grant.keys.name, OUTWAITED)
        kept.append(after)
    return kept


def release_all(
    grants: Sequence[Grant], *, deadline: float, valid_until: float, lingers: float = 0.0
) -> Flow[list[Grant | LockError]]:
    """Releases leases, all at once, as `release` does one.

    Returns:
        Those that were not the holder's any more, and the errors for those that could not be asked for.
    """
    calls = [releasing(grant, deadline, lingers) for grant in grants]
    try:
        replies: Replies = yield Batch(calls)
    except GeneratorExit:
        raise
    except BaseException:  # interrupted: the requests may not have gone out
        with suppress(LockError):
            yield Batch([give_up(grant.keys, grant.token, mark=False, lingers=lingers) for grant in grants])
        raise
    failed: list[Grant | LockError] = []
    for grant, reply in zip(grants, replies, strict=True):
        if isinstance(reply, LockError):
            failed.append(reply)
        elif not was_released(reply, valid_until):
            failed.append(grant)
    return failed


def renewal(grant: Grant, terms: Terms) -> Call:
    """Return the call that keeps a lease for another ``terms.timeout``: one attempt, to be repeated.

    It takes at most a sixth of the lease, most of which the replicas get, so that the lease has several.
    """
    args = (grant.token, terms.ttl)
    within = min(terms.timeout / 6, RENEW_WITHIN)
    for_replicas = min(within * 3 / 4, WAIT_FOR_REPLICAS)
    return Call(
        grant.keys,
        scripts.RENEW,
        args,
        0.0,
        replicas=terms.replicas,
        acknowledged_within=for_replicas,
        once=True,
        within=within - for_replicas,
    )


def renewed(grant: Grant, terms: Terms, reply: Reply) -> Grant | None:
    """The lease after a renewal, or None when it is lost."""
    if reply.status == b"lost":
        return None
    return granted(grant.keys, grant.token, terms, reply, unanswered=grant.unanswered or reply.unanswered)


def renew(grant: Grant, terms: Terms, *, deadline: float) -> Flow[Grant | None]:
    """Renews one lease, trying until the deadline; None when it is lost."""
    call = Call(grant.keys, scripts.RENEW, (grant.token, terms.ttl), deadline, replicas=terms.replicas)
    reply = yield from ask_until_acknowledged(call)
    return renewed(grant, terms, reply)


def busy(keys: Keys, reply: Reply, kind: type[LockBusy] = LockBusy) -> LockBusy:
    """The error for the answer 'busy' or 'queued', with the holder that it tells."""
    owner = owner_of(reply)
    error = kind(keys.name, holder=str(owner))
    error.owner = owner
    return error


def owner_of(reply: Reply) -> Owner:
    """The holder that an answer tells which did not grant the lock."""
    return Owner(*(value.decode(errors="replace") if isinstance(value, bytes) else "" for value in reply.details[2:6]))


def ask(call: Call) -> Flow[Reply]:
    """A flow of one call."""
    reply: Reply = yield call
    return reply


def ask_until_acknowledged(call: Call) -> Flow[Reply]:
    """Ask until enough replicas have what the script wrote, or the call's deadline has come.

    The script is one that may be repeated, and its first argument is a token.
    """
    reply: Reply = yield call
    unanswered = reply.unanswered
    while not is_acknowledged(reply) and reply.now < call.deadline:
        pause = Block(call.keys.wake + call.args[0], min(RECHECK, call.deadline - reply.now))
        try:
            reply = yield replace(call, block=pause)
        except LockUnavailable as error:
            raise told_by(error, call.keys, reply) from None
        unanswered = reply.unanswered = unanswered or reply.unanswered
    return reply


def ask_all(batch: Batch) -> Flow[Replies]:
    """A flow of one batch."""
    replies: Replies = yield batch
    return replies
