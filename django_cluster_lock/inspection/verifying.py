"""Comparing all that is stored under a prefix with what should be, page by page, and putting right what is safe to.

Locks come and go meanwhile: a finding is what was so before and after a look at its counterpart. Repairs are scripts
that look again themselves, and nothing is repaired on a node that could not be read as a whole.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from django_cluster_lock import protocol, scripts
from django_cluster_lock.actions import Actions, Answer, NoAnswer, Node, Pause, Send, SendAll
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.exchange import carry
from django_cluster_lock.inspection.reading import (
    ClusterUnavailable,
    Question,
    Record,
    Told,
    ask,
    is_foreign,
    keys_in_slot,
    know_layout,
    look_at,
    name_of,
    record_of,
    tag_of,
    unread,
)
from django_cluster_lock.names import SLOTS, Keys, index_key, keys_of, name_and_tag, outbox_keys, slot_of
from django_cluster_lock.protocol import Batch, Call, Reply
from django_cluster_lock.snapshots import Finding, Verification

PAGE = 1000  # keys that a node looks at for one answer, and locks that are repaired at once
SKIPS = 64  # dead waiters that one call of a script drops
WAKE_LIFE = b"8000"  # ms


class Suspect(NamedTuple):
    """A finding, and the lock that a sweep would put right, with how many calls; or the command that would."""

    finding: Finding
    keys: Keys | None = None
    sweeps: int = 1
    remedy: Question | None = None


class Look(NamedTuple):
    """What was told of a record: its fields before and after a look for its entry in the index, and its expiry."""

    before: Told
    entry: Told
    after: Told
    expiry: Told


def verification(
    alias: str, prefix: str, topology: Topology, *, repair: bool, patience: float
) -> Actions[Verification]:
    """Examines every key under the prefix, and repairs where told to.

    Raises:
        ClusterUnavailable: no node could be read.
    """
    yield from know_layout(alias, topology)
    examination = Examination(prefix, topology)
    yield from examination.scan()
    if len(examination.failed) == SLOTS:
        raise ClusterUnavailable(alias, examination.failed[0].reason)
    suspects = list(examination.suspects.values())
    if repair:
        unsure = {told.node for told in examination.failed.values()}
        suspects = yield from _repaired(suspects, topology, unsure, patience)
    findings = sorted((suspect.finding for suspect in suspects), key=lambda found: (found.kind, found.name, found.key))
    return Verification(examination.keys, tuple(findings), unread(examination.failed))


class Examination:
    """What a walk over all nodes finds; ``failed`` is what could not be read, by slot."""

    def __init__(self, prefix: str, topology: Topology) -> None:
        self.keys = 0
        self.failed: dict[int, Told] = {}
        self.suspects: dict[tuple[str, str, str], Suspect] = {}
        self._prefix, self._topology = prefix, topology
        self._families = {family: f"{prefix}:{family}:".encode() for family in ("lock", "index", "wake", "outboxes")}

    def scan(self) -> Actions[None]:
        """Walks over all nodes at once, a page of each at a time."""
        every = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self._prefix.encode()) + b":*"
        self._fail(None, NoAnswer("no node serves it", 0.0))
        cursors = dict.fromkeys(self._topology.primaries(), b"0")
        while cursors:
            sends = [
                Send(node, [(b"SCAN", cursor, b"MATCH", every, b"COUNT", b"%d" % PAGE)], 0, math.inf)
                for node, cursor in cursors.items()
            ]
            outcomes: list[Answer | NoAnswer] = yield SendAll(sends)
            page: list[bytes] = []
            for node, outcome in zip(list(cursors), outcomes, strict=True):
                told = outcome.values[0] if isinstance(outcome, Answer) else outcome
                if isinstance(told, list):
                    cursors[node] = told[0]
                    page += told[1]
                else:
                    self._fail(node, told)
                if not isinstance(told, list) or told[0] == b"0":
                    del cursors[node]
            yield from self._examine(page)

    def _fail(self, node: Node | None, why: object) -> None:
        told = Told(why, name_of(node) if node else "", 0)
        self.failed |= {slot: told for slot in range(SLOTS) if self._topology.primary(slot) == node}

    def _examine(self, page: Sequence[bytes]) -> Actions[None]:
        families = [[key for key in page if key.startswith(start)] for start in self._families.values()]
        records, indexes, wakes, outboxes = families
        self.keys += sum(map(len, families))
        yield from self._examine_records(records)
        yield from self._examine_indexes(indexes)
        yield from self._examine_wakes(wakes)
        yield from self._examine_outboxes(outboxes)

    def _examine_records(self, records: Sequence[bytes]) -> Actions[None]:
        locks = yield from self._locks_of(records)
        questions = []
        for key, lock in zip(records, locks, strict=True):
            slot, member = slot_of(key), lock.member if lock else b""
            record = (slot, (b"HGETALL", key))
            entry = (slot, (b"ZSCORE", index_key(self._prefix, slot), member))
            questions += [record, entry, record, (slot, (b"PTTL", key))]
        told = yield from ask(questions, self._topology)
        for place, (key, lock) in enumerate(zip(records, locks, strict=True)):
            look = Look(*told[4 * place : 4 * place + 4])
            if is_foreign(look.before):
                self._foreign(look.before, key, "it is no hash")
            elif self._all_told(key, look.before, look.after, look.expiry) and look.after.value:
                self._judge(key, lock, look)

    def _judge(self, key: bytes, lock: Keys | None, look: Look) -> None:
        before, after = record_of(look.before.value), record_of(look.after.value)
        if before is None or after is None:
            self._foreign(look.after, key, "the hash is no lock's record")
        elif lock is None and b"%h" not in key:
            self._foreign(look.after, key, "no lock has its record there")
        else:
            suspect = partial(self._suspect, told=look.after, key=key, lock=lock)
            if look.entry.value is None and _live(before, look.before.now) & _live(after, look.after.now):
                unlisted = "it is held or waited for, but not listed"
                why = "" if lock else "; its name is too long to be in its key"
                suspect("missing-entry", detail=unlisted + why, repair="add it to the index")
            if look.expiry.value == -1:
                suspect("no-expiry", detail="its record never expires", repair="let it expire with its last lease")
            dead = len(_dead_first(before, look.before.now) & _dead_first(after, look.after.now))
            if dead:
                detail, sweeps = f"{dead} at the head of its queue died", math.ceil(dead / SKIPS)
                suspect("dead-waiters", detail=detail, repair="drop them from the queue", sweeps=sweeps)

    def _examine_indexes(self, indexes: Sequence[bytes]) -> Actions[None]:
        told = yield from ask(
            [(slot_of(key), (b"ZRANGE", key, b"0", b"-1", b"WITHSCORES")) for key in indexes], self._topology
        )
        entries: list[tuple[bytes, Keys, bytes]] = []
        for key, listed in zip(indexes, told, strict=True):
            slot = slot_of(key)
            if key != index_key(self._prefix, slot):
                self._foreign(listed, key, "no slot has its index there")
            elif is_foreign(listed):
                self._foreign(listed, key, "it is no sorted set")
            elif self._all_told(key, listed):
                for member, score in _pairs(listed.value):
                    lock = keys_in_slot(self._prefix, slot, member)
                    if lock:
                        entries.append((key, lock, score))
                    else:
                        self._foreign(listed, key, f"its entry {_shown(member)!r} is no lock of slot {slot}")
        yield from self._examine_entries(entries)

    def _examine_entries(self, entries: Sequence[tuple[bytes, Keys, bytes]]) -> Actions[None]:
        questions: list[Question] = []
        for key, lock, _ in entries:
            questions.append((lock.slot, (b"HGETALL", lock.record)))
            questions.append((lock.slot, (b"ZSCORE", key, lock.member)))
        told = yield from ask(questions, self._topology)
        for (key, lock, score), look, entry in zip(entries, told[::2], told[1::2], strict=True):
            if is_foreign(look) or not self._all_told(key, look, entry):
                continue
            record = record_of(look.value)
            if record and not _live(record, look.now) and entry.value == score:
                detail = "nobody holds it or waits for it"
                self._suspect("dead-entry", look, key, lock, detail=detail, repair="remove it from the index")

    def _examine_wakes(self, wakes: Sequence[bytes]) -> Actions[None]:
        questions = [(slot_of(key), (command, key)) for key in wakes for command in (b"TYPE", b"PTTL")]
        told = yield from ask(questions, self._topology)
        for key, kind, expiry in zip(wakes, told[::2], told[1::2], strict=True):
            if not self._all_told(key, kind, expiry) or kind.value == b"none":
                continue
            place, _, _ = key.removeprefix(self._families["wake"]).rpartition(b":")
            if kind.value != b"list":
                self._foreign(kind, key, "it is no list")
            elif expiry.value == -1:
                lock = _lock_at(self._prefix, self._families["lock"], self._families["lock"] + place)
                remedy = (slot_of(key), (b"PEXPIRE", key, WAKE_LIFE))
                detail = "a waiter's push never expires"
                self._suspect("wake-no-expiry", kind, key, lock, detail=detail, repair="let it expire", remedy=remedy)

    def _examine_outboxes(self, outboxes: Sequence[bytes]) -> Actions[None]:
        listed = yield from ask([(slot_of(key), (b"ZRANGE", key, b"0", b"-1")) for key in outboxes], self._topology)
        flights: list[Keys] = []
        for key, told in zip(outboxes, listed, strict=True):
            if is_foreign(told):
                self._foreign(told, key, "it is no sorted set")
            elif self._all_told(key, told):
                flights += filter(None, (keys_in_slot(self._prefix, slot_of(key), member) for member in told.value))
        for lock, told, parked in (yield from look_at(flights, self._prefix, self._topology)):
            record = None if told.failed else record_of(told.value)
            if record and parked and not _live(record, told.now):
                detail = f"{parked} parked behind a flight that is gone; a sweep by a worker publishes them"
                self._suspect("orphans", told, outbox_keys(self._prefix, lock).order, lock, detail=detail)

    def _locks_of(self, records: Sequence[bytes]) -> Actions[list[Keys | None]]:
        """The locks of these records. A long name is in its key as a digest alone, and has to be found in the index."""
        locks = [_lock_at(self._prefix, self._families["lock"], key) for key in records]
        digests = [place for place, key in enumerate(records) if locks[place] is None and b"%h" in key]
        told = yield from ask(
            [
                (slot, (b"ZRANGE", index_key(self._prefix, slot), b"0", b"-1"))
                for slot in (slot_of(records[place]) for place in digests)
            ],
            self._topology,
        )
        for place, listed in zip(digests, told, strict=True):
            key = records[place]
            if not listed.failed:
                candidates = (keys_in_slot(self._prefix, slot_of(key), member) for member in listed.value)
                locks[place] = next((lock for lock in candidates if lock and lock.record == key), None)
        return locks

    def _all_told(self, key: bytes, *told: Told) -> bool:
        for each in told:
            if each.failed:
                self.failed[slot_of(key)] = each
                return False
        return True

    def _foreign(self, told: Told, key: bytes, detail: str) -> None:
        self._suspect("foreign", told, key, None, detail=f"{detail}: look at it yourself")

    def _suspect(
        self,
        kind: str,
        told: Told,
        key: bytes,
        lock: Keys | None,
        *,
        detail: str,
        repair: str = "",
        sweeps: int = 1,
        remedy: Question | None = None,
    ) -> None:
        name, tag = (lock.name, tag_of(lock)) if lock else ("", None)
        repair = repair if lock or remedy else ""
        finding = Finding(kind, name, tag, told.node, _shown(key), detail, repair)
        self.suspects[kind, finding.key, name or detail] = Suspect(finding, None if remedy else lock, sweeps, remedy)


def _repaired(
    suspects: Sequence[Suspect], topology: Topology, unsure: Iterable[str], patience: float
) -> Actions[list[Suspect]]:
    """The suspects after what can be done about them was done, but for those on nodes we are unsure of."""
    sound = [suspect for suspect in suspects if suspect.finding.node not in unsure]
    sweeps: dict[Keys, int] = {}
    for suspect in sound:
        if suspect.keys:
            sweeps[suspect.keys] = max(suspect.sweeps, sweeps.get(suspect.keys, 0))
    calls = [keys for keys, times in sweeps.items() for _ in range(times)]
    done: set[object] = set(calls)
    for start in range(0, len(calls), PAGE):
        now: float = yield Pause(0)
        batch = Batch([_sweep(keys, now + patience) for keys in calls[start : start + PAGE]])
        replies = yield from carry(protocol.ask_all(batch), topology)
        done -= {call.keys for call, reply in zip(batch.calls, replies, strict=True) if not isinstance(reply, Reply)}
    remedies = [suspect.remedy for suspect in sound if suspect.remedy]
    told = yield from ask(remedies, topology)
    done |= {remedy for remedy, answer in zip(remedies, told, strict=True) if not answer.failed}
    return [
        suspect._replace(finding=replace(suspect.finding, repaired=(suspect.keys or suspect.remedy) in done))
        for suspect in suspects
    ]


def _sweep(keys: Keys, deadline: float) -> Call:
    return Call(keys, scripts.SWEEP, (keys.member,), deadline, once=True)


def _lock_at(prefix: str, start: bytes, key: bytes) -> Keys | None:
    """The lock that has its record at a key, if the key tells it."""
    place = key.removeprefix(start)
    member = place[1:-1] if place.startswith(b"{") and place.endswith(b"}") else place
    try:
        keys = keys_of(prefix, *name_and_tag(member))
    except ValueError:
        return None
    return keys if keys.record == key else None


def _live(record: Record, now: int) -> set[str]:
    """The tokens of a lock's holder and waiters, the dead left out."""
    holder = {record.token} if record.is_held(now) else set()
    return holder.union(token for token, _ in record.waiting(now))


def _dead_first(record: Record, now: int) -> set[str]:
    """The waiters that died, up to the first live one: those that a sweep drops."""
    return {token for token, _ in takewhile(lambda place: place[1] <= now, record.queue)}


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    each = iter(flat)
    return zip(each, each, strict=True)


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
