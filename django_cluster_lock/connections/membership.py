"""Who belongs to a shard: every node that could be promoted for its slots, as CLUSTER NODES and CLUSTER SHARDS tell.

A replica that is down counts, since it may come back and be promoted. So does one that still follows a primary which
died: its own configuration lags behind, not its right to be elected (Redis Cluster specification, "Replica election and
promotion"). And so does that former primary, once it comes back as a replica. CLUSTER FORGET takes a node out.

Servers from Redis 7.2 and Valkey on know for each node to which shard it belongs. Before that, the nodes which a former
primary left behind are counted where its slots went, as far as this process has seen that; otherwise for every shard
that has fewer members than the largest one, or for all where none has.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from django_cluster_lock.actions import Address

DOWN = frozenset({"fail", "fail?"})


class Line(NamedTuple):
    """One node, as a line of CLUSTER NODES tells it; `follows` is the id of its primary, "-" for a primary."""

    id: str
    host: str
    port: int
    hostname: str
    flags: frozenset[str]
    follows: str
    serves: bool

    @property
    def is_primary(self) -> bool:
        return "master" in self.flags


def parse_nodes(text: str) -> dict[str, Line]:
    """Return the nodes of an answer to CLUSTER NODES by their ids.

    Raises:
        ValueError: it is no such answer.
    """
    lines = {}
    for row in text.splitlines():
        node_id, where, flags, follows, *rest = row.split()
        address, _, names = where.partition("@")
        host, _, port = address.rpartition(":")
        # After the port of the bus: a hostname, then fields that have names.
        hostname = next((name for name in names.split(",")[1:] if name and "=" not in name), "")
        serves = any(not slots.startswith("[") for slots in rest[4:])
        line = Line(node_id, host, int(port), hostname, frozenset(flags.split(",")), follows, serves)
        if "handshake" not in line.flags:  # not a member of the cluster yet
            lines[node_id] = line
    return lines


def members_by_primary(
    lines: Mapping[str, Line],
    shards: object,
    owners: Mapping[int, str],
    served: Mapping[str, int],
    *,
    knows_shards: bool,
) -> dict[str, tuple[Line, ...]]:
    """Return for each primary the other members of its shard.

    Args:
        lines: the nodes by their ids.
        shards: the answer to CLUSTER SHARDS, an error where the server does not know it.
        owners: the ids of the primaries that serve these slots.
        served: by a node's id, a slot that its shard has served before.
        knows_shards: whether the server knows to which shard a node belongs, whomever it follows.
    """
    members: dict[str, set[str]] = {line.id: set() for line in lines.values() if line.is_primary}
    adrift = set()
    for line in lines.values():
        primary = _primary_of(line, lines)
        if primary:
            members[primary].add(line.id)
        else:
            adrift.add(line.id)
    followers = {primary: set(group) for primary, group in members.items()}
    for group in _ids_by_shard(shards):
        # A node that stands still since its shard was formed may not have told yet to which it belongs.
        whole = (group & lines.keys()).union(*(followers.get(node_id, ()) for node_id in group))
        for primary in whole & members.keys():
            members[primary] |= whole
    if not knows_shards:
        _add_left_behind(members, lines, adrift, owners, served)
    return {
        primary: tuple(lines[node_id] for node_id in sorted(group - {primary})) for primary, group in members.items()
    }


def _primary_of(line: Line, lines: Mapping[str, Line]) -> str:
    """Return the id of the primary that a node follows, itself or through other replicas; nothing if it is unknown."""
    for _ in range(len(lines)):
        if line.is_primary:
            return line.id
        if line.follows not in lines:
            return ""
        line = lines[line.follows]
    return ""


def _add_left_behind(
    members: dict[str, set[str]],
    lines: Mapping[str, Line],
    adrift: Set[str],
    owners: Mapping[int, str],
    served: Mapping[str, int],
) -> None:
    """Add to the shards that serve slots the nodes of those that serve none any more.

    Args:
        adrift: the replicas of a primary that nobody knows any more.
    """
    serving = [node_id for node_id in members if lines[node_id].serves]
    sizes = {node_id: len(members[node_id]) for node_id in serving}
    short = [node_id for node_id in serving if sizes[node_id] < max(sizes.values())] or serving
    left_behind = [{node_id} for node_id in adrift]
    for node_id, group in members.items():
        line = lines[node_id]
        # One that has only just been replaced is not down, and may have served as this process has seen.
        if not line.serves and (line.flags & DOWN or node_id in served):
            left_behind.append(set(group))
    for group in left_behind:
        slots = {served[node_id] for node_id in group if node_id in served}
        heirs = {owners[slot] for slot in slots if slot in owners} & members.keys()
        for node_id in heirs or short:
            members[node_id] |= group


def addresses_of(line: Line, shards: object) -> frozenset[Address]:
    """Return the addresses by which a primary may know a node as its replica."""
    ports = {line.port}
    for told in _nodes_told(shards):
        if told.get(b"id") == line.id.encode():
            ports |= {port for name in (b"port", b"tls-port") if isinstance(port := told.get(name), int)}
    hosts = {line.host, f"::ffff:{line.host}"} if "." in line.host else {line.host}
    return frozenset((host.encode(), b"%d" % port) for host in hosts for port in ports)


def endpoints_of(shards: object) -> dict[str, str]:
    """Return by a node's id the host at which clients are to ask it, as far as CLUSTER SHARDS tells one."""
    told = {node[b"id"].decode(): node.get(b"endpoint") for node in _nodes_told(shards)}
    return {node_id: host.decode() for node_id, host in told.items() if host and host != b"?"}


def _ids_by_shard(shards: object) -> Iterator[set[str]]:
    for shard in shards if isinstance(shards, list) else ():
        yield {told[b"id"].decode() for told in _nodes_told([shard])}


def _nodes_told(shards: object) -> Iterator[Mapping[Any, Any]]:
    for shard in shards if isinstance(shards, list) else ():
        yield from map(_fields, _fields(shard).get(b"nodes", ()))


def _fields(pairs: Sequence[Any]) -> dict[Any, Any]:
    """Return a list of names and values, each followed by the other, as a dictionary."""
    return dict(zip(pairs[::2], pairs[1::2], strict=False))
