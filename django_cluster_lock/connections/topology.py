"""The layout of a cluster, as CLUSTER SLOTS, CLUSTER NODES, CLUSTER SHARDS and INFO tell it.

SLOTS has the addresses that clients should use (hostnames, TLS ports), NODES every node that is known, SHARDS which of
them belong together: a lease must reach each member of a shard to survive any promotion. A standalone server serves all
slots.
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django_cluster_lock.actions import TRANSIENT, Address, Learning, Member, Node, Refusal
from django_cluster_lock.connections.membership import (
    Line,
    addresses_of,
    endpoints_of,
    members_by_primary,
    parse_nodes,
)
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
        self._all: tuple[Member, ...] = ()
        self._own_word: dict[Node, tuple[Member, ...]] = {}  # the members as a primary itself has told them
        self._endpoints: dict[Node, Node] = {}  # where members are to be asked that have a name for it
        self._told_at: dict[Node, float] = {}
        self._listed: dict[Node, tuple[Address, ...]] = {}  # what was not recognized, and has been asked about
        self._recognized: dict[tuple[Node, tuple[Address, ...]], bool] = {}
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
        """Return how many other members the shard of a primary has; None until it has told that itself."""
        if not self.is_cluster:
            return self._most_connected
        members = self._members.get(node)  # once, since another thread may replace them
        return None if members is None or node not in self._told_at else len(members)

    def told_at(self, node: Node) -> float:
        """Return when a node last told the layout."""
        return self._told_at.get(node, float("-inf"))

    def recognizes(self, node: Node, listed: tuple[Address, ...]) -> bool:
        """Return whether the replicas that a primary lists are members of its shard, each another one.

        A node of the cluster that is listed is a member from then on, though the layout does not say so yet.
        """
        known = self._recognized.get((node, listed))
        if known is not None:
            return known
        if self.is_cluster:
            self._adopt(node, listed)
            members = [member for member in self.members(node) if member.addresses & frozenset(listed)]
            known = len(members) == len(listed)
        else:
            # Nothing tells who belongs to it. What was once connected may be promoted later, so that it counts on.
            self._most_connected = max(self._most_connected, len(frozenset(listed)))
            known = True
        self._recognized[node, listed] = known
        return known

    def is_news(self, node: Node, listed: tuple[Address, ...]) -> bool:
        """Return whether a primary has not told this list of replicas the last time, and remember it."""
        if self._listed.get(node) == listed:
            return False
        self._listed[node] = listed
        return True

    def members(self, node: Node) -> tuple[Member, ...]:
        """Return the other members of a primary's shard."""
        return self._members.get(node, ())

    def endpoint(self, node: Node) -> Node:
        """Return where a member is to be asked: by its hostname if the cluster prefers those, as certificates may."""
        return self._endpoints.get(node, node)

    def missing(self, node: Node, listed: Iterable[Address]) -> list[Member]:
        """Return the members of a primary's shard that none of the addresses belongs to."""
        addresses = frozenset(listed)
        return [member for member in self.members(node) if not member.addresses & addresses]

    def _adopt(self, node: Node, listed: Iterable[Address]) -> None:
        addresses, members = frozenset(listed), self.members(node)
        new = [other for other in self._all if other.addresses & addresses and other not in members]
        if new and node in self._members:
            self._members = {**self._members, node: (*members, *new)}

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
        if not port.isdecimal() or len(port) > 5 or int(port) > 65535:  # no answer of Redis: the node is asked again
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

    def learn(self, values: Sequence[object], asked: Node, now: float = 0.0) -> bool:
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
            learned = (
                self._learn_alone(info, asked) if alone else self._learn_cluster(slots, nodes, shards, info, asked)
            )
        except (AttributeError, LookupError, TypeError, ValueError):  # no answer of Redis
            return False
        if learned:
            self.is_cluster, self.refused = not alone, ""
            self._told_at = {**self._told_at, asked: now}
            self._suspects = {node: count for node, count in self._suspects.items() if node != asked}
        return learned

    def _learn_alone(self, info: Any, asked: Node) -> bool:
        self._most_connected = max(self._most_connected, _connected_replicas(info.decode()))
        self._primaries = [asked] * SLOTS
        self._replace_members({asked: ()}, asked)
        return True

    def _learn_cluster(self, slots: Any, nodes: Any, shards: Any, info: Any, asked: Node) -> bool:
        if not slots:
            return False
        lines = parse_nodes(nodes.decode())
        owners = {start: node_id.decode() for start, _, (_, _, node_id, *_), *_ in slots}
        remembered = {slot: owner for slot in self._served.values() if (owner := _owner(slots, slot))}
        groups = members_by_primary(lines, shards, remembered, self._served, knows_shards=_knows_shards(info))
        reachable = {primary: self._reachable(group, shards) for primary, group in groups.items()}
        members = {
            self._address(host, lines[primary].port): group
            for primary, group in reachable.items()
            for host in (lines[primary].host, lines[primary].hostname)
            if host
        }
        own = next((line.id for line in lines.values() if "myself" in line.flags), "")
        if own in reachable:
            members[asked] = reachable[own]
        primaries: list[Node | None] = [None] * SLOTS
        for start, end, (host, port, node_id, *_), *_ in slots:
            known = host not in (None, b"", b"?")  # a server that does not know its own name says nothing or "?"
            node = self._address(host.decode() if known else asked[0], port)
            members[node] = reachable[node_id.decode()]
            for slot in range(start, end + 1):
                primaries[slot] = node
        self._primaries = primaries
        self._all = self._reachable(lines.values(), shards)
        self._endpoints = self._preferred(lines, shards)
        self._replace_members(members, asked)
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

    def _preferred(self, lines: Mapping[str, Line], shards: object) -> dict[Node, Node]:
        """Return where members are to be asked, unless several would be in one place: none may be counted twice."""
        preferred = endpoints_of(shards)
        told = {
            self._address(host, line.port): self._address(preferred.get(line.id, host), line.port)
            for line in lines.values()
            if (host := line.host or line.hostname)
        }
        everywhere = Counter(told.values())
        return {node: endpoint for node, endpoint in told.items() if endpoint != node and everywhere[endpoint] == 1}

    def _replace_members(self, members: dict[Node, tuple[Member, ...]], asked: Node) -> None:
        """Take over who belongs to which primary: what a node says of others adds to what they said of themselves."""
        told = {node: group for node, group in self._own_word.items() if node in members}
        if asked in members:
            told[asked] = members[asked]
        self._own_word = told
        self._members = {
            node: tuple(dict.fromkeys((*group, *(told.get(node, ()) if node != asked else ()))))
            for node, group in members.items()
        }
        self._recognized = {}

    def _address(self, host: str, port: object) -> Node:
        if not isinstance(port, int) or not 0 <= port < 65536:
            raise ValueError(f"{port!r} is no port")
        return self._remap((host, port)) if self._remap else (host, port)


def _is_no_cluster(refusal: Refusal, info: object) -> bool:
    """Return whether a server that refuses CLUSTER is none of a cluster, and does not just keep it from its users."""
    told = info.splitlines() if isinstance(info, bytes) else ()
    return b"cluster_enabled:0" in told or any(text in str(refusal).lower() for text in NO_CLUSTER)


def _knows_shards(info: object) -> bool:
    """Return whether a server keeps to which shard each node belongs: Redis from 7.2, and every Valkey."""
    told = re.search(rb"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE) if isinstance(info, bytes) else None
    return told is not None and (int(told[1]), int(told[2])) >= (7, 2)


def _owner(slots: Any, slot: int) -> str:
    """Return the id of the primary that serves a slot, or nothing."""
    return next((told[2].decode() for start, end, told, *_ in slots if start <= slot <= end), "")


def _connected_replicas(info: str) -> int:
    """Return how many replicas a server tells of; a service that does not tell has none to promote that is known."""
    counts = [int(line.partition(":")[2]) for line in info.splitlines() if line.startswith("connected_slaves:")]
    return max(counts, default=0)
