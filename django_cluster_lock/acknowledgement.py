"""Who acknowledged a write: the members of its shard, told apart from other replicas. Without I/O, as the exchange.

WAIT counts acknowledgements and does not say whose they are: a backup or a migration that follows the same primary may
have acknowledged in place of the replica that will be promoted. So ROLE follows WAIT in the same write and lists the
replicas that are connected. As long as each of them is another member of the shard, the count is theirs. Otherwise the
members are asked themselves how far they have copied: nothing is sent twice, and no address has to be known.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from django_cluster_lock.actions import (
    Actions,
    Address,
    Answer,
    Command,
    NoAnswer,
    Node,
    Pause,
    Refusal,
    Routes,
    Send,
    SendAll,
)
from django_cluster_lock.layout import LAYOUT_DOUBTED, learn_from
from django_cluster_lock.protocol import Call

INFO: Command = (b"INFO", b"replication")
ROLE: Command = (b"ROLE",)
_REPLICA = re.compile(r"slave\d+$")
ASK_AGAIN = (0.02, 0.1)  # seconds after which members are asked again that have not copied it yet


class Replicas(NamedTuple):
    """The replicas connected to a primary: their addresses, and the offset up to which the primary has written."""

    addresses: tuple[Address, ...]
    written: int


class Acknowledged(NamedTuple):
    """How many replicas that count have a write, how many have to, and why some do not, in words.

    ``now`` is the monotonic time when the last of them was heard, if they had to be asked.
    """

    by: int
    needed: int
    objection: str = ""
    now: float = 0.0


NOT_ASKED = Acknowledged(0, 0)


class ReplicaCheck:
    """What one request to a node asks about its replicas, after the calls themselves.

    Args:
        replicas: how many have to acknowledge it; None for all members of the shard.
        within: seconds to wait for them.
    """

    __slots__ = ("_node", "_replicas", "_routes", "_waits_for", "blocks", "commands")

    def __init__(self, replicas: int | None, within: float, routes: Routes, node: Node) -> None:
        self._replicas, self._routes, self._node = replicas, routes, node
        self._waits_for = self._needed()
        lists = ROLE if routes.lists_roles else INFO
        if self._waits_for:
            self.blocks = within
            self.commands: tuple[Command, ...] = (wait(self._waits_for, within), lists)
        else:
            self.blocks = 0.0
            self.commands = (lists,)

    def in_ordinary_case(self, answer: Answer) -> Acknowledged | None:
        """Return who acknowledged in the ordinary case, where all are members and have it; None in any other.

        It decides as `settle` does, for each acquire: no generator, and no list of replicas.
        """
        waits_for = self._waits_for
        if not waits_for:
            return None
        acks, told = answer.values[-2:]
        if type(acks) is not int or acks < waits_for or type(told) is not list:
            return None
        try:
            role, _, replicas = told
            recognized = self._routes.recognizes(self._node, tuple([(host, port) for host, port, _ in replicas]))
        except (TypeError, ValueError):
            return None
        if role != b"master" or not recognized:
            return None
        if self._replicas is None and self._routes.required(self._node) != waits_for:
            return None
        return Acknowledged(waits_for, waits_for)

    def settle(self, answer: Answer) -> Actions[Acknowledged]:
        """Return who acknowledged, by the answers to `commands`, which come last."""
        routes, node = self._routes, self._node
        told, acks, now = answer.values[-1], answer.values[-2] if self._waits_for else 0, answer.now
        replicas = read_replicas(told)
        if replicas is None and self._is_kept_from_us(told):
            routes.lists_roles = False  # INFO tells it too
            told, now = yield from _info_of(node)
            replicas = read_replicas(told)
        if replicas is None or not isinstance(acks, int):
            refusal = next((value for value in (acks, told) if isinstance(value, Refusal)), None)
            return Acknowledged(0, max(self._needed(), 1), str(refusal or "the node is no primary any more"), now)
        recognized = routes.recognizes(node, replicas.addresses)
        if not recognized and routes.is_news(node, replicas.addresses):
            now = (yield from learn_from(routes, node)).now  # a new member is known to its primary first
            recognized = routes.recognizes(node, replicas.addresses)
        by, needed = self._counted(acks, replicas, recognized=recognized), self._needed()
        if by < needed and routes.members(node) and not (recognized and self._waits_for >= needed):
            copied, now = yield from ask_members(routes, node, replicas.written)
            by = max(by, copied)
        if by >= needed:
            if not needed:
                routes.warn_of_no_replicas(node)
            return Acknowledged(by, needed, now=now)
        if now - routes.told_at(node) >= LAYOUT_DOUBTED:  # a member may have been forgotten meanwhile
            now = (yield from learn_from(routes, node)).now
        missing = ", ".join(f"{host}:{port}" for (host, port), _ in routes.missing(node, replicas.addresses))
        return Acknowledged(by, needed, f"not connected: {missing}" if missing else "", now)

    def _counted(self, acks: int, replicas: "Replicas", *, recognized: bool) -> int:
        """Return how many acknowledgements count, at least; members that are asked may turn out to be more."""
        members = len(self._routes.members(self._node))
        # Where a user asks for more than there are members, the others count too; a server alone knows no members.
        if recognized or (self._replicas is not None and self._replicas > members):
            return acks
        known = members - len(self._routes.missing(self._node, replicas.addresses))
        return max(0, acks - (len(replicas.addresses) - known))

    def _needed(self) -> int:
        if self._replicas is not None:
            return self._replicas
        required = self._routes.required(self._node)
        return 1 if required is None else required  # a primary that does not tell who belongs to it

    def _is_kept_from_us(self, told: object) -> bool:
        denied = isinstance(told, Refusal) and told.code in {"NOPERM", "ERR"}
        # A server may also tell it in a form of its own.
        return self._routes.lists_roles and (denied or (isinstance(told, list) and told[:1] == [b"master"]))


@lru_cache(maxsize=64)
def wait(replicas: int, seconds: float) -> Command:
    """Return the command that waits until so many replicas have acknowledged all that was written before it."""
    return b"WAIT", b"%d" % replicas, b"%d" % max(seconds * 1000, 1)


def check_replicas(calls: Sequence[Call], routes: Routes, node: Node) -> ReplicaCheck | None:
    """Return the check that serves several calls in one request; None where none asks for acknowledgement."""
    asking = [call for call in calls if call.replicas != 0]
    if not asking:
        return None
    numbers = [call.replicas for call in asking if call.replicas is not None]
    replicas = max(numbers) if len(numbers) == len(asking) else None
    return ReplicaCheck(replicas, max(call.acknowledged_within for call in asking), routes, node)


def ask_members(routes: Routes, node: Node, written: int) -> Actions[tuple[int, float]]:
    """Ask the members of a shard themselves, and return how many have copied what their primary had written, and when.

    A member's own word is proof: it copies the very history of this primary, and has come as far. It holds behind a
    translation of addresses, beside a backup that hangs, and for a replica of a replica.

    Args:
        written: an offset of the primary after the write in question.
    """
    nodes = (node, *(routes.endpoint(member.node) for member in routes.members(node)))
    pauses = iter(ASK_AGAIN)
    while True:
        outcomes: list[Answer | NoAnswer] = yield SendAll([Send(each, [INFO], 0, 0) for each in nodes])
        now = max(outcome.now for outcome in outcomes)
        primary, *others = [
            read_fields(outcome.values[0]) if isinstance(outcome, Answer) else {} for outcome in outcomes
        ]
        history = primary.get("master_replid")
        offsets = [offset for told in others if history and (offset := _copied(told, history)) is not None]
        copied = sum(offset >= written for offset in offsets)
        pause = next(pauses, None)
        if copied == len(offsets) or pause is None:  # who does not answer is not waited for
            return copied, now
        yield Pause(pause)


def _copied(told: dict[str, str], history: str) -> int | None:
    """Return up to which offset a node has copied that history; None if it copies another, or none."""
    offset = told.get("slave_repl_offset", "")
    copies = told.get("role") == "slave" and told.get("master_replid") == history
    return int(offset) if copies and offset.isdecimal() and len(offset) < 20 else None


def _info_of(node: Node) -> Actions[tuple[object, float]]:
    outcomes: list[Answer | NoAnswer] = yield SendAll([Send(node, [INFO], 0, 0)])
    (outcome,) = outcomes
    return outcome.values[0] if isinstance(outcome, Answer) else None, outcome.now


def read_replicas(told: object) -> Replicas | None:
    """Return what a primary tells of its replicas in answer to ROLE or INFO; None where it does not."""
    try:
        return _from_role(told) if isinstance(told, list) else _from_info(told)
    except (KeyError, TypeError, ValueError):
        return None


def _from_role(told: list[Any]) -> Replicas | None:
    role, written, replicas = told
    if role != b"master" or not isinstance(written, int):
        return None
    for host, port, _ in replicas:
        if not isinstance(host, bytes) or not isinstance(port, bytes):
            return None
    return Replicas(tuple((host, port) for host, port, _ in replicas), written)


def _from_info(told: object) -> Replicas | None:
    fields = read_fields(told)
    if fields.get("role") != "master":
        return None
    rows = [dict(pair.split("=", 1) for pair in row.split(",")) for name, row in fields.items() if _REPLICA.match(name)]
    online = [row for row in rows if row["state"] == "online"]  # as ROLE has it
    addresses = tuple((row["ip"].encode(), row["port"].encode()) for row in online)
    return Replicas(addresses, int(fields["master_repl_offset"]))


def read_fields(told: object) -> dict[str, str]:
    """Return the fields of an answer to INFO; none where it is no such answer."""
    rows = told.decode(errors="replace").splitlines() if isinstance(told, bytes) else ()
    return {name: value for name, colon, value in (row.partition(":") for row in rows) if colon}
