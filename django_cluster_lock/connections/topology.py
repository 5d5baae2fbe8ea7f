"""The layout of a cluster, as CLUSTER SLOTS, CLUSTER NODES, CLUSTER SHARDS and INFO tell it.

SLOTS has the addresses that clients should use (hostnames, TLS ports), NODES every node that is known, SHARDS which of
them belong together: a lease must reach each member of a shard to survive any promotion. A standalone server serves all
slots.
"""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django_cluster_lock.actions import TRANSIENT, Address, Learning, Member, Node, Refusal, Verdict
from django_cluster_lock.connections.membership import Line, addresses_of, members_by_primary, parse_nodes
from django_cluster_lock.names import SLOTS

Remap = Callable[[Node], Node]
logger = logging.getLogger("django_cluster_lock")

# How servers say that they are no cluster: Redis and Valkey; Dragonfly; those that know no CLUSTER at all.
NO_CLUSTER = (
    "cluster support disabled",
    "cluster is disabled",
    "unknown command 'cluster'",
    "unknown command `cluster`",
)


class Topology:
    """What is known of a cluster; shared by all connections of an alias, replaced whole when learned anew."""

    def __init__(self, startup: Sequence[Node], remap: Remap | None = None) -> None:
        self.startup = tuple(startup)
        self.learned_at = float("-inf")
        self.is_cluster = True
        self.lists_roles = True  # whether ROLE may be asked; else INFO is
        self.refused = ""  # why no node would tell the layout, if they all answered
        self._remap = remap
        self._primaries: list[Node | None] = [None] * SLOTS
        self._members: dict[Node, tuple[Member, ...]] = {}
        self._served: dict[str, int] = {}  # by a node's id, a slot that its shard has served
        self._most_connected = 0  # replicas that a standalone server had at once so far
        self._verdicts: dict[tuple[Node, tuple[Address, ...]], Verdict] = {}
        self._foreign: dict[Node, int] = {}
        self._suspects: dict[Node, int] = {}
        self.learning: dict[str, Learning] = {}  # the call that asks for the layout at the moment
        self._has_warned = False

    def primary(self, slot: int) -> Node | None:
        return self._primaries[slot]

    def primaries(self) -> list[Node]:
        """Return the nodes that serve slots, in order of their first."""
        return list(dict.fromkeys(node for node in self._primaries if node))

    # Who has to acknowledge

    def required(self, node: Node) -> int | None:
        """Return how many other members the shard of a primary has, or None for a node that is not known."""
        if not self.is_cluster:
            return self._most_connected
        members = self._members.get(node)
        return None if members is None else len(members)

    def most_required(self) -> int:
        """Return the most that any shard requires: what a node has to do with until it is known."""
        return max(map(len, self._members.values()), default=0)

    def foreign(self, node: Node) -> int:
        """Return how many of the replicas that were last seen connected to a primary are no members of its shard."""
        return self._foreign.get(node, 0)

    def verdict(self, node: Node, listed: tuple[Address, ...]) -> Verdict | None:
        """Return how many members are among the replicas listed; None while one of them has yet to be identified."""
        verdict = self._verdicts.get((node, listed))
        if verdict:
            return verdict
        if self.is_cluster:
            members, known = self._matched(node, listed)
            if len(known) < len(frozenset(listed)):
                return None
            verdict = Verdict(members, 0, known)
        else:
            # Nothing tells who belongs to it. What was once connected may be promoted later, so that it counts on.
            self._most_connected = max(self._most_connected, len(listed))
            verdict = Verdict(len(listed), 0, frozenset(listed))
        return self._keep_verdict(node, listed, verdict)

    def missing(self, node: Node, listed: Iterable[Address]) -> list[Member]:
        """Return the members of a primary's shard that none of the addresses belongs to."""
        addresses = frozenset(listed)
        return [member for member in self._members.get(node, ()) if not member.addresses & addresses]

    def identify(self, node: Node, listed: tuple[Address, ...], present: int) -> Verdict:
        """Settle who the replicas listed are: ``present`` members are among those whose addresses are not known."""
        members, known = self._matched(node, listed)
        unknown = len(frozenset(listed)) - len(known)
        if present >= unknown:  # each of them is a member that is connected by another address
            return self._keep_verdict(node, listed, Verdict(members + unknown, 0, frozenset(listed)))
        return self._keep_verdict(node, listed, Verdict(members + present, unknown - present, known))

    def _matched(self, node: Node, listed: tuple[Address, ...]) -> tuple[int, frozenset[Address]]:
        """Return how many members some of the addresses belong to, and which addresses those are."""
        addresses = frozenset(listed)
        matches = [member.addresses & addresses for member in self._members.get(node, ())]
        return sum(map(bool, matches)), frozenset().union(*matches)

    def _keep_verdict(self, node: Node, listed: tuple[Address, ...], verdict: Verdict) -> Verdict:
        self._verdicts[node, listed] = verdict
        self._foreign[node] = verdict.foreign
        return verdict

    def warn_of_no_replicas(self, node: Node) -> None:
        """Log, once, that a lease under "auto" rests on one node alone."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("lock.no_replicas", extra={"node": f"{node[0]}:{node[1]}"})

    # Where to ask

    def moved(self, slot: int, node: Node) -> None:
        self._primaries[slot] = node
        if node not in self._members:
            self.learned_at = float("-inf")  # the layout is to be learned at once
        self._suspects.pop(node, None)

    def redirected(self, to: str, asked: Node) -> Node:
        """Return where a MOVED or ASK leads; without a host it means another port of the node that was asked."""
        host, _, port = to.rpartition(":")
        if not port.isdecimal():  # no answer of Redis: the node is asked again
            return asked
        return self._address((host or asked[0]).strip("[]"), int(port))

    def suspect(self, node: Node) -> None:
        """Note that a node did not answer, so that others are asked for the layout first."""
        self._suspects[node] = self._suspects.get(node, 0) + 1

    def silences(self, node: Node) -> int:
        """Return how often a node did not answer since it last did."""
        return self._suspects.get(node, 0)

    def candidates(self) -> list[Node]:
        """Return whom to ask for the layout, the most promising first."""
        nodes = list(dict.fromkeys((*self._primaries, *self.startup)))
        known = [node for node in nodes if node]
        random.shuffle(known)
        return sorted(known, key=lambda node: self._suspects.get(node, 0))

    # What a node tells

    def learn(self, values: Sequence[object], asked: Node) -> bool:
        """Take over what a node tells; return False if it tells nothing of use."""
        slots, nodes, shards, info = values
        alone = isinstance(slots, Refusal) and _is_no_cluster(slots, info)
        if alone and len(self.startup) > 1:
            self.refused = f"{asked[0]}:{asked[1]} is in no cluster: of such servers, LOCATION may name one alone"
            return False
        for answer in (info,) if alone else (slots, nodes):
            if isinstance(answer, Refusal):
                self.refused = "" if answer.code in TRANSIENT else str(answer)
                return False
        try:
            learned = self._learn_alone(info, asked) if alone else self._learn_cluster(slots, nodes, shards, asked)
        except (AttributeError, LookupError, TypeError, ValueError):  # no answer of Redis
            return False
        if learned:
            self.is_cluster, self.refused = not alone, ""
            self._suspects = {node: count for node, count in self._suspects.items() if node != asked}
        return learned

    def _learn_alone(self, info: Any, asked: Node) -> bool:
        self._most_connected = max(self._most_connected, _connected_replicas(info.decode()))
        self._primaries = [asked] * SLOTS
        self._replace_members({asked: ()})
        return True

    def _learn_cluster(self, slots: Any, nodes: Any, shards: Any, asked: Node) -> bool:
        lines = parse_nodes(nodes.decode())
        owners = {start: node_id.decode() for start, _, (_, _, node_id, *_), *_ in slots}
        remembered = {slot: owner for slot in self._served.values() if (owner := _owner(slots, slot))}
        groups = members_by_primary(lines, shards, remembered, self._served)
        members = {
            self._address(host, line.port): self._reachable(groups[line.id], shards)
            for line in lines.values()
            if line.is_primary
            for host in (line.host, line.hostname)
            if host
        }
        primaries: list[Node | None] = [None] * SLOTS
        for start, end, (host, port, node_id, *_), *_ in slots:
            known = host not in (None, b"", b"?")  # a server that does not know its own name says nothing or "?"
            node = self._address(host.decode() if known else asked[0], port)
            members[node] = self._reachable(groups[node_id.decode()], shards)
            for slot in range(start, end + 1):
                primaries[slot] = node
        if not slots:
            return False
        self._primaries = primaries
        self._replace_members(members)
        served = {node_id: slot for node_id, slot in self._served.items() if node_id in lines}
        for slot, primary in owners.items():
            served |= dict.fromkeys((primary, *(line.id for line in groups[primary])), slot)
        self._served = served
        return True

    def _reachable(self, lines: Iterable[Line], shards: object) -> tuple[Member, ...]:
        """Return members with the addresses by which they can be asked, and are known to their primary."""
        return tuple(
            Member(self._address(line.host or line.hostname, line.port), addresses_of(line, shards)) for line in lines
        )

    def _replace_members(self, members: dict[Node, tuple[Member, ...]]) -> None:
        self._members, self._verdicts = members, {}  # who could not be identified is asked anew

    def _address(self, host: str, port: int) -> Node:
        return self._remap((host, port)) if self._remap else (host, port)


def _is_no_cluster(refusal: Refusal, info: object) -> bool:
    """Return whether a server that refuses CLUSTER is none of a cluster, and does not just keep it from its users."""
    told = info.splitlines() if isinstance(info, bytes) else ()
    return b"cluster_enabled:0" in told or any(text in str(refusal).lower() for text in NO_CLUSTER)


def _owner(slots: Any, slot: int) -> str:
    """Return the id of the primary that serves a slot, or nothing."""
    return next((told[2].decode() for start, end, told, *_ in slots if start <= slot <= end), "")


def _connected_replicas(info: str) -> int:
    """Return how many replicas a server tells of; a service that does not tell has none to promote that is known."""
    counts = [int(line.partition(":")[2]) for line in info.splitlines() if line.startswith("connected_slaves:")]
    return max(counts, default=0)
