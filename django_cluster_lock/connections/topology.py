"""The layout of a cluster, as CLUSTER SLOTS, CLUSTER NODES and INFO tell it.

SLOTS has the addresses that clients should use (hostnames, TLS ports), NODES every replica that is known, failed
ones too: a lease must reach each of them to survive any promotion. A standalone server serves all slots.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from django_cluster_lock.actions import TRANSIENT, Learning, Node, Refusal
from django_cluster_lock.names import SLOTS

Remap = Callable[[Node], Node]
Layout: TypeAlias = tuple[list[Node | None], dict[Node, int]]


class Topology:
    """What is known of a cluster; shared by all connections of an alias, replaced whole when learned anew."""

    def __init__(self, startup: Sequence[Node], remap: Remap | None = None) -> None:
        self.startup = tuple(startup)
        self.learned_at = float("-inf")
        self.is_cluster = True
        self._remap = remap
        self._primaries: list[Node | None] = [None] * SLOTS
        self._replicas: dict[Node, int] = {}
        self._most = 0  # replicas that any node had so far
        self._suspects: dict[Node, int] = {}
        self.learning: dict[str, Learning] = {}  # the call that asks for the layout at the moment
        self.refused = ""  # why no node would tell the layout, if they all answered

    def primary(self, slot: int) -> Node | None:
        return self._primaries[slot]

    def primaries(self) -> list[Node]:
        """The nodes that serve slots, in order of their first."""
        return list(dict.fromkeys(node for node in self._primaries if node))

    def replicas(self, node: Node) -> int:
        """How many replicas a node has; until the layout tells, as many as others: no lease may do with none."""
        known = self._replicas.get(node)
        return max(self._replicas.values(), default=0) if known is None else known

    def short_handed(self, node: Node) -> bool:
        """Whether it has fewer replicas than nodes have here, as after a failover: others may come any moment."""
        return self.replicas(node) < self._most

    def recount(self, values: Sequence[Any], asked: Node) -> None:
        """Takes over how many replicas a node says it has: those that it knows and those that are connected."""
        nodes, info = values
        counts = [self.replicas(asked)]
        with suppress(AttributeError, LookupError, ValueError):  # a refusal, or no answer of Redis
            counts.append(_connected_replicas(info.decode()))
        with suppress(AttributeError, LookupError, ValueError):
            counts.append(_own_replicas(nodes.decode()))
        self._replicas = {**self._replicas, asked: max(counts)}

    def moved(self, slot: int, node: Node) -> None:
        self._primaries[slot] = node
        if node not in self._replicas:
            self.learned_at = float("-inf")  # the layout is to be learned at once
        self._suspects.pop(node, None)

    def redirected(self, to: str, asked: Node) -> Node:
        """Where a MOVED or ASK leads; without a host it means another port of the node that was asked."""
        host, _, port = to.rpartition(":")
        if not port.isdecimal():  # no answer of Redis: the node is asked again
            return asked
        return self._address((host or asked[0]).strip("[]"), int(port))

    def suspect(self, node: Node) -> None:
        """Notes that a node did not answer, so that others are asked for the layout first."""
        self._suspects[node] = self._suspects.get(node, 0) + 1

    def candidates(self) -> list[Node]:
        """Whom to ask for the layout, the most promising first."""
        nodes = list(dict.fromkeys((*self._primaries, *self._replicas, *self.startup)))
        known = [node for node in nodes if node]
        random.shuffle(known)
        return sorted(known, key=lambda node: self._suspects.get(node, 0))

    def learn(self, values: Sequence[object], asked: Node) -> bool:
        """Takes over what a node tells; False if it tells nothing of use."""
        slots, nodes, info = values
        alone = isinstance(slots, Refusal) and "cluster support disabled" in str(slots)
        if alone and len(self.startup) > 1:
            self.refused = f"{asked[0]}:{asked[1]} is in no cluster: of such servers, LOCATION may name one alone"
            return False
        for answer in (info,) if alone else (slots, nodes):
            if isinstance(answer, Refusal):
                self.refused = "" if answer.code in TRANSIENT else str(answer)
                return False
        try:
            primaries, replicas = self._alone(info, asked) if alone else self._cluster(slots, nodes, asked)
        except (AttributeError, LookupError, TypeError, ValueError):  # no answer of Redis
            return False
        if not replicas:
            return False
        self.is_cluster, self._primaries, self._replicas, self.refused = not alone, primaries, replicas, ""
        self._most = max(self._most, *replicas.values())
        self._suspects = {node: count for node, count in self._suspects.items() if node != asked}
        return True

    def _alone(self, info: Any, asked: Node) -> Layout:
        return [asked] * SLOTS, {asked: _connected_replicas(info.decode())}

    def _cluster(self, slots: Any, nodes: Any, asked: Node) -> Layout:
        counts = _replicas_by_primary(nodes.decode())
        primaries: list[Node | None] = [None] * SLOTS
        replicas: dict[Node, int] = {}
        for start, end, (host, port, node_id, *_), *_ in slots:
            known = host not in (None, b"", b"?")  # a server that does not know its own name says nothing or "?"
            node = self._address(host.decode() if known else asked[0], port)
            replicas[node] = counts[node_id.decode()]
            for slot in range(start, end + 1):
                primaries[slot] = node
        return primaries, replicas

    def _address(self, host: str, port: int) -> Node:
        return self._remap((host, port)) if self._remap else (host, port)


def _replicas_by_primary(nodes: str) -> dict[str, int]:
    """How many replicas each node has, by its id."""
    lines = [line.split() for line in nodes.splitlines()]
    counts = {node_id: 0 for node_id, *_ in lines}
    for _, _, flags, primary, *_ in lines:
        if "slave" in flags.split(","):
            counts[primary] = counts.get(primary, 0) + 1
    return counts


def _own_replicas(nodes: str) -> int:
    """How many replicas the node has that tells this."""
    (own,) = [line.split()[0] for line in nodes.splitlines() if "myself" in line.split()[2]]
    return _replicas_by_primary(nodes)[own]


def _connected_replicas(info: str) -> int:
    counts = [int(line.partition(":")[2]) for line in info.splitlines() if line.startswith("connected_slaves:")]
    return counts[0]
