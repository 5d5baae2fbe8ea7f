"""The outbox of a flight's lock: messages that are parked behind the flight, and how one flight follows another.

Flows of the protocol, like those of the lock, over scripts of its own: each decides on the lock and the outbox at once.
An entry is "task id:attempt", the one message of one run.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from django_cluster_lock import protocol, scripts
from django_cluster_lock.errors import LockError
from django_cluster_lock.names import Keys, OutboxKeys
from django_cluster_lock.protocol import Call, Flow, Grant, Reply, Terms
from django_cluster_lock.scripts import Script

_NOT_CLAIMED = (b"busy", b"parked", b"gone")
_FLAG = b"0", b"1"
GRACE = b"5000"  # ms for whoever handed the key over to publish the message


class Outbox(NamedTuple):
    """The outbox behind a lock; ``mode`` is what duplicates get, as the decorator has it."""

    lock: Keys
    keys: OutboxKeys
    mode: bytes


def entry_of(task_id: str, retries: int | None, replaced: int | None = 0) -> str:
    """The entry of a task's attempt: how often it was retried, and how often it has replaced itself before."""
    return f"{task_id}:{retries or 0}.{replaced}" if replaced else f"{task_id}:{retries or 0}"


class Parked(NamedTuple):
    """An entry with its place in the outbox, and its message."""

    entry: bytes
    sequence: bytes
    message: bytes


@dataclass(frozen=True, slots=True)
class Landing:
    """How a run, or a message without one, ends.

    Args:
        entry: which.
        token: of the run's lease; empty if it has none.
        ended: whether for good: copies of its message are dropped then.
        copied: whether it was a copy: the message itself is dropped then, too.
        kept: the entry that the key is kept for.
        by_claim: whether the key is also let go if it still is the entry's claim.
        place: of the run's call among those of the key; 0 if that is not known.
    """

    entry: str
    token: bytes = b""
    ended: bool = True
    copied: bool = False
    kept: str = ""
    by_claim: bool = False
    place: int = 0


def claim(
    outbox: Outbox,
    token: bytes,
    terms: Terms,
    entry: str,
    *,
    now: float,
    new: bool = False,
    message: bytes = b"",
    replaces: bool = False,
    replaceable: bool = False,
) -> Flow[Reply]:
    """Takes the key for a call; with a message, parks that if the key is taken.

    A claim keeps duplicates away, but excludes nobody: so no replica has to acknowledge it, as one must a message.

    Args:
        new: whether the entry's task id was made for this call, so that nothing can be known of it yet.
        replaces: whether the message takes the place of the one that is parked as this entry.
        replaceable: whether that of a later call may take its place.

    Raises:
        LockUnavailable, LockNotReplicated: whether it was done is unknown, and it was undone where possible.
    """
    raw = entry.encode()
    task, _, attempt = raw.rpartition(b":")
    owner = *terms.owner[:3], task  # of the terms, which know no task
    of_call = raw, outbox.mode, message, _FLAG[replaces], _FLAG[replaceable]
    args = (token, terms.ttl, outbox.lock.member, *owner, *of_call)
    call = _call(outbox, scripts.CLAIM, args, now + terms.patience, *(() if new else (raw,)))
    call.replicas = terms.replicas if message else 0
    parks = raw if message and not replaceable else b""  # else other callers may count on it as well
    return _undone_if_it_fails(outbox, call, _claim_token(attempt, token), parks, _NOT_CLAIMED)


def start(
    outbox: Outbox,
    token: bytes,
    terms: Terms,
    entry: str,
    *,
    now: float,
    claim_terms: Terms,
    message: bytes = b"",
    flight_of: str = "",
    copy: bool = False,
    place: int = 0,
) -> Flow[Reply | Grant]:
    """Takes the key for a run; with a message, parks that if the key is taken, or is due to one parked before.

    Args:
        claim_terms: of the claim that the one before it gets.
        place: of its call among those of the key; 0 if that is not known.

    Raises:
        LockUnavailable, LockNotReplicated: whether it was done is unknown, and it was undone where possible.
    """
    raw = entry.encode()
    args = (token, terms.ttl, outbox.lock.member, *terms.owner, raw, outbox.mode, message)
    further = flight_of.encode(), _FLAG[copy], b"%d" % place, claim_terms.ttl
    call = _call(outbox, scripts.START, (*args, *further), now + terms.patience, raw)
    call.replicas = terms.replicas
    # What it may have parked stays: its message comes again under the same entry, and may be parked anew before this.
    reply = yield from _undone_if_it_fails(outbox, call, token, b"", (b"parked",))  # busy, the token is used once more
    if reply.status == b"own":
        return protocol.granted(outbox.lock, token, terms, reply, unanswered=reply.unanswered)
    return reply


def land(
    outbox: Outbox,
    landing: Landing,
    claim: tuple[bytes, Terms],
    lease_ttl: bytes,
    published: Sequence[Parked],
    *,
    outcome: bytes,
    deadline: float,
    once: bool = False,
) -> Flow[Reply]:
    """Ends a flight, or a step of that; see the script. ``claim`` is for the entry that follows.

    Args:
        outcome: for those parked behind it; empty if it has none.
    """
    token, terms = claim
    place = outbox.lock.member, outbox.lock.wake, outbox.mode
    entry, kept = landing.entry.encode(), landing.kept.encode()
    ended = b"%d%s" % (landing.place, b"c" if landing.copied else b"") if landing.ended else b""
    run = entry, token, _FLAG[landing.by_claim], ended, outcome, kept, b"%d" % landing.place
    args = (landing.token, terms.ttl, lease_ttl, *place, *run, *_places(published))
    call = _call(outbox, scripts.LAND, args, deadline, entry, kept or entry)
    call.once = once
    return protocol.ask(call)


def drain(outbox: Outbox, claim: tuple[bytes, Terms], *, deadline: float) -> Flow[Reply]:
    """Hands the key to the first of the messages that nobody else will publish."""
    token, terms = claim
    args = (token, terms.ttl, outbox.lock.member, GRACE)
    return protocol.ask(_call(outbox, scripts.DRAIN, args, deadline))


def confirm(outbox: Outbox, published: Sequence[Parked], *, deadline: float, once: bool = False) -> Flow[Reply]:
    """Drops what was published."""
    args = (outbox.lock.member, *_places(published))
    call = _call(outbox, scripts.CONFIRM, args, deadline)
    call.once = once
    return protocol.ask(call)


def refuse(outbox: Outbox, token: bytes) -> Flow[Reply]:
    """Has what was asked for with that token, and comes late, answered "over"; one attempt."""
    return protocol.ask(protocol.give_up(outbox.lock, token, mark=True))


def lengthen(outbox: Outbox, entry: str, token: bytes, terms: Terms, *, deadline: float) -> Flow[Reply]:
    """Makes the claim of an entry last longer, if it is that of this token."""
    _, _, attempt = entry.encode().rpartition(b":")
    args = (_claim_token(attempt, token), terms.ttl)
    return protocol.ask(Call(outbox.lock, scripts.RENEW, args, deadline))


def course(outbox: Outbox, entry: str, *, deadline: float) -> Flow[str]:
    """How far the run of an entry is: "ended" for good, "running", or "open": neither."""
    task, _, _ = entry.encode().rpartition(b":")
    call = Call(outbox.lock, scripts.ENDED, (task,), deadline, also=(outbox.keys.ended + entry.encode(),))
    reply = yield from protocol.ask(call)
    return reply.status.decode()


def queued_for(outbox: Outbox, *, deadline: float) -> Flow[str]:
    """The entry whose claim has the lock; empty if none has."""
    reply = yield from protocol.ask(Call(outbox.lock, scripts.LOOK, (), deadline))
    token, *_, task = reply.details if reply.status == b"held" else (b"", b"")
    if not token.startswith(b"~"):
        return ""
    _, attempt, _ = token.split(b"~", 2)
    return (task + b":" + attempt).decode()


def parked_of(reply: Reply) -> list[Parked]:
    """What is to be published, by an answer 'settle' or 'next'."""
    details = reply.details
    return [Parked(*details[place : place + 3]) for place in range(0, len(details), 3)]


def _call(outbox: Outbox, script: Script, args: tuple[bytes, ...], deadline: float, *entries: bytes) -> Call:
    *keys, ended = outbox.keys
    return Call(outbox.lock, script, args, deadline, also=(*keys, *map(ended.__add__, entries)))


def _undone_if_it_fails(
    outbox: Outbox, call: Call, token: bytes, parks: bytes, refused: tuple[bytes, ...]
) -> Flow[Reply]:
    """A call that may leave a lease behind, or a message that it parks as that entry.

    Args:
        refused: the answers after which its token is not used any more; an attempt that comes late finds that out.
    """
    try:
        reply: Reply = yield call
        if reply.status in (b"own", b"parked", b"next") and not protocol.is_acknowledged(reply):
            raise protocol.not_replicated(outbox.lock, reply)
        if reply.unanswered and reply.status in refused:
            with suppress(LockError):
                yield protocol.give_up(outbox.lock, token, mark=True)
    except GeneratorExit:
        raise
    except BaseException as error:
        mark = getattr(error, "unanswered", not isinstance(error, LockError))
        with suppress(LockError):
            yield protocol.give_up(outbox.lock, token, mark=mark)
            if parks:
                yield from confirm(outbox, [Parked(parks, b"", b"")], deadline=0.0, once=True)
        raise
    return reply


def _claim_token(attempt: bytes, token: bytes) -> bytes:
    return b"~%s~%s" % (attempt, token)


def _places(published: Sequence[Parked]) -> tuple[bytes, ...]:
    return tuple(chain.from_iterable((parked.entry, parked.sequence) for parked in published))
