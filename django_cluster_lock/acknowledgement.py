"""Who acknowledged a write: the members of its shard, told apart from other replicas. Without I/O, as the exchange.

WAIT counts acknowledgements and does not say whose they are: a backup or a migration that follows the same primary may
have acknowledged in place of the replica that will be promoted. So ROLE follows WAIT in the same write and lists the
replicas that are connected. As long as those are members of the shard, the count is theirs. Where foreign ones are
among them, all that are connected have to acknowledge, or the offsets show that the members have.
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
    Refusal,
    Routes,
    Send,
    SendAll,
    Verdict,
)
from django_cluster_lock.layout import LAYOUT_DOUBTED, learn_from
from django_cluster_lock.protocol import Call

INFO: Command = (b"INFO", b"replication")
ROLE: Command = (b"ROLE",)
_REPLICA = re.compile(r"slave\d+$")
REPEATS = 3  # requests that are repeated since they were not waited for by enough replicas


class Replicas(NamedTuple):
    """The replicas connected to a primary: their addresses, how far each has acknowledged, how far the primary is."""

    addresses: tuple[Address, ...]
    offsets: tuple[int, ...]
    written: int


class Acknowledged(NamedTuple):
    """How many replicas that count have a write, how many have to, and why some do not, in words."""

    by: int
    needed: int
    objection: str = ""


NOT_ASKED = Acknowledged(0, 0)


class ReplicaCheck:
    """What one request to a node asks about its replicas, after the calls themselves.

    Args:
        replicas: how many have to acknowledge it; None for all members of the shard.
        within: seconds to wait for them.
        repeats: how often it was repeated because more replicas had to be waited for.
    """

    __slots__ = ("_node", "_repeats", "_replicas", "_routes", "_waits_for", "blocks", "commands")

    def __init__(self, replicas: int | None, within: float, routes: Routes, node: Node, repeats: int = 0) -> None:
        self._replicas, self._routes, self._node, self._repeats = replicas, routes, node, repeats
        self.blocks, self._waits_for = 0.0, self._needed()
        lists = ROLE if routes.lists_roles else INFO
        if self._waits_for:
            self._waits_for += routes.foreign(node)
            self.blocks = within
            self.commands: tuple[Command, ...] = (_wait(self._waits_for, within), lists)
        else:
            self.commands = (lists,)

    def settled(self, answer: Answer) -> Acknowledged | None:
        """Return who acknowledged in the ordinary case, where all are members and have; None in any other."""
        waits_for, told = self._waits_for, answer.values[-1]
        if not waits_for or type(told) is not list or len(told) != 3 or told[0] != b"master":
            return None
        acks = answer.values[-2]
        if type(acks) is not int or acks < waits_for:
            return None
        try:
            listed = tuple([(host, port) for host, port, _ in told[2]])
        except (TypeError, ValueError):
            return None
        verdict = self._routes.verdict(self._node, listed)
        if verdict is None or verdict.foreign or verdict.members < waits_for:
            return None
        if self._replicas is None and self._routes.required(self._node) != waits_for:
            return None
        return Acknowledged(waits_for, waits_for)

    def settle(self, answer: Answer) -> Actions[Acknowledged | None]:
        """Return who acknowledged, by the answers to `commands`, which come last; None to repeat the request."""
        replicas = read_replicas(answer.values[-1])
        if replicas is None:
            return self._refused(answer.values[-1])
        verdict = self._routes.verdict(self._node, replicas.addresses)
        if verdict is None:
            verdict = yield from identify(self._routes, self._node, replicas.addresses)
        needed = self._needed()
        acks = answer.values[-2] if self._waits_for else 0
        by = count(verdict, replicas, acks) if isinstance(acks, int) else 0
        if isinstance(acks, int) and needed > (self._routes.required(self._node) or 0):
            by = acks  # asked for more than there are members: a number chosen by the user, who counts them all
        if by >= needed:
            if not needed:
                self._routes.warn_of_no_replicas(self._node)
            return Acknowledged(by, needed)
        if self._waits_for < needed + verdict.foreign and self._repeats < REPEATS:
            return None
        if answer.now - self._routes.learned_at >= LAYOUT_DOUBTED:  # a member may have been forgotten meanwhile
            yield from learn_from(self._routes, self._node)
        return Acknowledged(by, needed, self._objection(acks, replicas.addresses))

    def _needed(self) -> int:
        if self._replicas is not None:
            return self._replicas
        required = self._routes.required(self._node)
        return self._routes.most_required() if required is None else required

    def _refused(self, told: object) -> Acknowledged | None:
        denied = isinstance(told, Refusal) and told.code in {"NOPERM", "ERR"}
        if self._routes.lists_roles and (denied or (isinstance(told, list) and told[:1] == [b"master"])):
            self._routes.lists_roles = False  # kept from its users, or told in a form of the server's own: INFO is not
            return None
        objection = str(told) if isinstance(told, Refusal) else "the node is no primary any more"
        return Acknowledged(0, max(self._needed(), 1), objection)

    def _objection(self, acks: object, listed: Sequence[Address]) -> str:
        if isinstance(acks, Refusal):
            return str(acks)
        missing = ", ".join(f"{member.node[0]}:{member.node[1]}" for member in self._routes.missing(self._node, listed))
        return f"not connected: {missing}" if missing else ""


@lru_cache(maxsize=64)
def _wait(replicas: int, seconds: float) -> Command:
    return b"WAIT", b"%d" % replicas, b"%d" % max(seconds * 1000, 1)


def check_replicas(calls: Sequence[Call], routes: Routes, node: Node, repeats: int = 0) -> ReplicaCheck | None:
    """Return the check that serves several calls in one request; None where none asks for acknowledgement."""
    asking = [call for call in calls if call.replicas != 0]
    if not asking:
        return None
    numbers = [call.replicas for call in asking if call.replicas is not None]
    replicas = max(numbers) if len(numbers) == len(asking) else None
    return ReplicaCheck(replicas, max(call.acknowledged_within for call in asking), routes, node, repeats)


def count(verdict: Verdict, replicas: Replicas, acks: int) -> int:
    """Return how many members of the shard have acknowledged, at least.

    Args:
        verdict: who the replicas are.
        replicas: as the primary listed them after it had waited.
        acks: how many it counted.
    """
    if not verdict.foreign:
        return min(acks, verdict.members)
    if acks >= len(replicas.addresses):
        return verdict.members
    # What the primary has written by now lies behind the write in question: who has that, has this.
    # A replica that has connected anew may be listed twice for a while: its later connection counts.
    reached = {
        address
        for address, offset in zip(replicas.addresses, replicas.offsets, strict=True)
        if offset >= replicas.written
    }
    return min(len(verdict.known & reached), verdict.members)


def identify(routes: Routes, node: Node, listed: tuple[Address, ...]) -> Actions[Verdict]:
    """Find out who the replicas are of which a primary lists some that nobody knows.

    The primary is asked for its layout: a new member is known to it first. Behind a translation of addresses it sees a
    replica by another address than the cluster does. So the members that are not among those listed are asked whether
    they are connected, and copy from this very primary.
    """
    outcome = yield from learn_from(routes, node)
    verdict = routes.verdict(node, listed)
    if verdict is not None:
        return verdict
    present = 0
    missing = routes.missing(node, listed)
    if missing and isinstance(outcome, Answer):
        history = read_fields(outcome.values[-1]).get("master_replid")
        outcomes: list[Answer | NoAnswer] = yield SendAll([Send(member.node, [INFO], 0, 0) for member in missing])
        for told in outcomes:
            fields = read_fields(told.values[0]) if isinstance(told, Answer) else {}
            follows = fields.get("role") == "slave" and fields.get("master_link_status") == "up"
            present += bool(follows and history and fields.get("master_replid") == history)
    return routes.identify(node, listed, present)


def read_replicas(told: object) -> Replicas | None:
    """Return what a primary tells of its replicas in answer to ROLE or INFO; None where it does not."""
    try:
        return _from_role(told) if isinstance(told, list) else _from_info(told)
    except (KeyError, TypeError, ValueError):
        return None


def _from_role(told: list[Any]) -> Replicas | None:
    role, written, replicas = told
    if role != b"master":
        return None
    if len(replicas) == 1:  # the ordinary case, which has to be quick
        ((host, port, offset),) = replicas
        return Replicas(((host, port),), (int(offset),), written)
    addresses = tuple((host, port) for host, port, _ in replicas)
    return Replicas(addresses, tuple(int(offset) for *_, offset in replicas), written)


def _from_info(told: object) -> Replicas | None:
    fields = read_fields(told)
    if fields.get("role") != "master":
        return None
    rows = [dict(pair.split("=", 1) for pair in row.split(",")) for name, row in fields.items() if _REPLICA.match(name)]
    online = [row for row in rows if row["state"] == "online"]  # as ROLE has it
    addresses = tuple((row["ip"].encode(), row["port"].encode()) for row in online)
    return Replicas(addresses, tuple(int(row["offset"]) for row in online), int(fields["master_repl_offset"]))


def read_fields(told: object) -> dict[str, str]:
    """Return the fields of an answer to INFO; none where it is no such answer."""
    rows = told.decode(errors="replace").splitlines() if isinstance(told, bytes) else ()
    return {name: value for name, colon, value in (row.partition(":") for row in rows) if colon}
