"""Reading keys all over a cluster, without I/O: pipelined to all nodes at once, and past those that do not answer."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from django_cluster_lock.actions import Actions, Answer, Command, NoAnswer, Node, Refusal, Send, SendAll
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.layout import learn
from django_cluster_lock.names import (
    SLOTS,
    Keys,
    index_key,
    is_flight,
    keys_of,
    name_and_tag,
    outbox_keys,
    outboxes_key,
)
from django_cluster_lock.printable import escaped
from django_cluster_lock.snapshots import Listing, LockSnapshot, Owner, Unread, Waiter

Question: TypeAlias = tuple[int, Command]  # for whichever node serves that slot
CHUNK = 2000  # questions in one write to a node
OWNER = (b"h", b"p", b"r", b"k")  # the fields of a record that name its holder


class ClusterUnavailable(LockUnavailable):
    """Nothing of an alias's cluster could be read. Its name is the alias's."""

    hint = "Check LOCATION and OPTIONS, and whether the servers run."

    def __str__(self) -> str:
        reason = escaped(self.detail.rstrip("."))
        return f"The cluster of CLUSTER_LOCKS[{self.name!r}] cannot be read: {reason}. {self.hint}"


class Told(NamedTuple):
    """What a node answered (a `Refusal` or `NoAnswer` if it did not), and its clock just before, in ms."""

    value: Any
    node: str
    now: int

    @property
    def failed(self) -> bool:
        return isinstance(self.value, Refusal | NoAnswer)

    @property
    def reason(self) -> str:
        return self.value.reason if isinstance(self.value, NoAnswer) else str(self.value)


class Record(NamedTuple):
    """A lock's hash; times in ms of its server's clock. The queue is tokens, each with its alive-until."""

    token: str
    fence: int
    deadline: int
    since: int
    owner: Owner
    queue: tuple[tuple[str, int], ...]

    def is_held(self, now: int) -> bool:
        return self.token != "" and self.deadline > now

    def waiting(self, now: int) -> list[tuple[str, int]]:
        """Its queue without the dead."""
        return [(token, until) for token, until in self.queue if until > now]


def listing(alias: str, prefix: str, topology: Topology) -> Actions[Listing]:
    """All locks, at the cost of one short question for each slot and each lock, whatever else is stored there.

    Raises:
        ClusterUnavailable: no slot could be read.
    """
    yield from know_layout(alias, topology)
    locks, failed = yield from _entries(index_key, prefix, topology)
    if len(failed) == SLOTS:
        raise ClusterUnavailable(alias, failed[0].reason)
    looks = yield from look_at(locks, prefix, topology)
    found = []
    for keys, told, parked in looks:
        if told.failed and not is_foreign(told):
            failed[keys.slot] = told
        lock = None if told.failed else snapshot_of(keys, told, parked)
        if lock and lock.state != "free":
            found.append(lock)
    found.sort(key=lambda lock: (lock.name, lock.tag or ""))
    return Listing(tuple(found), unread(failed))


def look_at(locks: Sequence[Keys], prefix: str, topology: Topology) -> Actions[list[tuple[Keys, Told, int]]]:
    """Each lock with its record, as HGETALL tells it, and how many messages are parked behind it."""
    flights = [keys for keys in locks if is_flight(keys.name)]
    records = [(keys.slot, (b"HGETALL", keys.record)) for keys in locks]
    counts = [(keys.slot, (b"ZCARD", outbox_keys(prefix, keys).order)) for keys in flights]
    told = yield from ask([*records, *counts], topology)
    parked = {keys: told.value for keys, told in zip(flights, told[len(locks) :], strict=True) if not told.failed}
    return [(keys, record, parked.get(keys, 0)) for keys, record in zip(locks, told, strict=False)]


def parked(alias: str, prefix: str, topology: Topology) -> Actions[list[Keys]]:
    """The locks behind which messages are parked; those in slots that cannot be read are missing.

    Raises:
        ClusterUnavailable: nothing is known of the cluster.
    """
    yield from know_layout(alias, topology)
    locks, _ = yield from _entries(outboxes_key, prefix, topology)
    return locks


def _entries(
    index: Callable[[str, int], bytes], prefix: str, topology: Topology
) -> Actions[tuple[list[Keys], dict[int, Told]]]:
    """The locks that the indexes tell of, and the slots whose index could not be read."""
    questions = [(slot, (b"ZRANGE", index(prefix, slot), b"0", b"-1")) for slot in range(SLOTS)]
    indexes = yield from ask(questions, topology)
    locks: list[Keys] = []
    failed: dict[int, Told] = {}
    for slot, told in enumerate(indexes):
        if told.failed:
            failed[slot] = told
        elif told.value:
            locks += filter(None, (keys_in_slot(prefix, slot, member) for member in told.value))
    return locks, failed


def know_layout(alias: str, topology: Topology) -> Actions[None]:
    """Learns which node serves what; what was known before will do if no node tells it now.

    Raises:
        ClusterUnavailable: nothing is known.
    """
    silence = yield from learn(topology)
    if not topology.primaries():
        reason = topology.refused or silence
        raise ClusterUnavailable(alias, reason or "no node of it serves any slot")


def ask(questions: Sequence[Question], topology: Topology) -> Actions[list[Told]]:
    """The answers, in the order of the questions. Redirections are followed, twice at most."""
    told = [Told(NoAnswer("no node serves it", 0.0), "", 0)] * len(questions)
    where: dict[Node, list[int]] = defaultdict(list)
    for place, (slot, _) in enumerate(questions):
        node = topology.primary(slot)
        if node:
            where[node].append(place)
    for asking in (False, True, True):
        yield from _ask_each(questions, where, told, asking=asking)
        where = _redirected(questions, where, told, topology)
        if not where:
            break
    return told


def _ask_each(
    questions: Sequence[Question], where: dict[Node, list[int]], told: list[Told], *, asking: bool
) -> Actions[None]:
    """Puts to each node its questions, in chunks to all nodes at once, and notes what they tell.

    Each chunk begins with a look at the node's clock, by which leases are to be judged.
    """
    introduction: list[Command] = [(b"ASKING",)] if asking else []
    rest = dict(where)
    while rest:
        chunks = {node: places[:CHUNK] for node, places in rest.items()}
        sends = []
        for node, places in chunks.items():
            commands: list[Command] = [(b"TIME",)]
            for place in places:
                commands += (*introduction, questions[place][1])
            sends.append(Send(node, commands, 0, math.inf))
        outcomes: list[Answer | NoAnswer] = yield SendAll(sends)
        for (node, places), outcome in zip(chunks.items(), outcomes, strict=True):
            name = name_of(node)
            values = outcome.values if isinstance(outcome, Answer) else [outcome]
            clock = values[0]
            if isinstance(clock, list):
                now = int(clock[0]) * 1000 + int(clock[1]) // 1000
                for place, value in zip(places, values[1 + asking :: 1 + asking], strict=True):
                    told[place] = Told(value, name, now)
                rest[node] = rest[node][CHUNK:]
            else:
                for place in rest[node]:
                    told[place] = Told(clock, name, 0)
                rest[node] = []
        rest = {node: places for node, places in rest.items() if places}


def _redirected(
    questions: Sequence[Question], where: dict[Node, list[int]], told: Sequence[Told], topology: Topology
) -> dict[Node, list[int]]:
    """Where the questions are to go that were answered with MOVED or ASK."""
    further: dict[Node, list[int]] = defaultdict(list)
    for asked, places in where.items():
        for place in places:
            value = told[place].value
            if isinstance(value, Refusal) and value.code in {"MOVED", "ASK"}:
                node = topology.redirected(str(value).split()[2], asked)
                if value.code == "MOVED":
                    topology.moved(questions[place][0], node)
                further[node].append(place)
    return further


def keys_in_slot(prefix: str, slot: int, member: bytes) -> Keys | None:
    """The lock that an entry of a slot's index stands for; None if it stands for none."""
    try:
        keys = keys_of(prefix, *name_and_tag(member))
    except ValueError:
        return None
    return keys if keys.slot == slot and keys.member == member else None


def tag_of(keys: Keys) -> str | None:
    return name_and_tag(keys.member)[1] if keys.member.startswith(b"{") else None


def record_of(value: Sequence[bytes]) -> Record | None:
    """A record as HGETALL tells it, empty where there is none; None if the hash is nobody's lock."""
    pairs = iter(value)
    fields = dict(zip(pairs, pairs, strict=True))
    if fields and b"f" not in fields and b"a" not in fields:
        return None
    get = fields.get
    try:
        return Record(
            token=text(get(b"t", b"")),
            fence=int(get(b"f", 0)),
            deadline=int(get(b"d", 0)),
            since=int(get(b"s", 0)),
            owner=Owner(*[get(field, b"").decode(errors="replace") for field in OWNER]),
            queue=_queue(fields) if b"qh" in fields else (),
        )
    except ValueError:
        return None


def _queue(fields: dict[bytes, bytes]) -> tuple[tuple[str, int], ...]:
    places = sorted(
        (int(field[1:]), token) for field, token in fields.items() if field[:1] == b"q" and field[1:].isdigit()
    )
    return tuple((text(token), int(fields.get(b"w" + token, b":0").rpartition(b":")[2])) for _, token in places)


def snapshot_of(keys: Keys, told: Told, parked: int = 0) -> LockSnapshot | None:
    """What the answer to HGETALL shows of a lock; None if the hash is nobody's lock."""
    record, now = record_of(told.value), told.now
    if record is None:
        return None
    waiters = tuple(Waiter(token, (until - now) / 1000) for token, until in record.waiting(now))
    held = "queued" if is_claim(record.token) else "held"
    taken, waited = (held if record.is_held(now) else "expired"), ("waited" if waiters else "free")
    return LockSnapshot(
        name=keys.name,
        tag=tag_of(keys),
        slot=keys.slot,
        node=told.node,
        state=taken if record.token else waited,
        token=record.token,
        fence=record.fence,
        owner=record.owner,
        age=max(now - record.since, 0) / 1000 if record.token else 0.0,
        lease_left=max(record.deadline - now, 0) / 1000 if record.token else 0.0,
        waiters=waiters,
        parked=parked,
    )


def unread(failed: dict[int, Told]) -> tuple[Unread, ...]:
    """The failures by slot, told by node and reason."""
    slots: dict[tuple[str, str], list[int]] = defaultdict(list)
    for slot, told in sorted(failed.items()):
        slots[told.node, told.reason].append(slot)
    return tuple(Unread(node, ranges(which), reason) for (node, reason), which in slots.items())


def ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as ranges of first and last."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return tuple(found)


def is_foreign(told: Told) -> bool:
    """Whether something else than ours is stored at a key."""
    return isinstance(told.value, Refusal) and told.value.code == "WRONGTYPE"


def name_of(node: Node) -> str:
    return f"{node[0]}:{node[1]}"


def is_claim(token: str) -> bool:
    """Whether a lease is the claim of a flight that is queued; see outbox.lua."""
    return token.startswith("~")


def text(token: bytes) -> str:
    """A token to show, from which the bytes can be had back."""
    return token.decode(errors="surrogateescape")
