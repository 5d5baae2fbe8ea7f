"""Who belongs to a shard: every node that could be promoted for its slots, as CLUSTER NODES and CLUSTER SHARDS tell.

A replica that is down counts, since it may come back and be promoted. So does one that still follows a primary which
died: its own configuration lags behind, not its right to be elected (Redis Cluster specification, "Replica election and
promotion"). And so does that former primary, once it comes back as a replica. CLUSTER FORGET takes a node out.

Servers from Redis 7.2 and Valkey on know for each node to which shard it belongs. Before that, the nodes which a dead
primary left behind are counted where its slots went, as far as this process has seen that; otherwise for every shard
that has fewer members than the largest one.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    lines: Mapping[str, Line], shards: object, owners: Mapping[int, str], served: Mapping[str, int]
) -> dict[str, tuple[Line, ...]]:
    """Return for each primary the other members of its shard.

    Args:
        lines: the nodes by their ids.
        shards: the answer to CLUSTER SHARDS, an error where the server does not know it.
        owners: the ids of the primaries that serve these slots.
        served: by a node's id, a slot that its shard has served before.
    """
    followers: dict[str, set[str]] = {node_id: set() for node_id in lines}
    for line in lines.values():
        if line.follows in followers:
            followers[line.follows].add(line.id)
    groups = [group & lines.keys() for group in _ids_by_shard(shards)]
    members = {}
    for line in lines.values():
        if line.is_primary:
            group = set().union(followers[line.id], *(group for group in groups if line.id in group))
            members[line.id] = group - {line.id}
    if not _tells_shards(shards):
        _add_left_behind(members, lines, followers, owners, served)
    return {primary: tuple(lines[node_id] for node_id in sorted(group)) for primary, group in members.items()}


def _add_left_behind(
    members: dict[str, set[str]],
    lines: Mapping[str, Line],
    followers: Mapping[str, set[str]],
    owners: Mapping[int, str],
    served: Mapping[str, int],
) -> None:
    """Add to the shards that serve slots the nodes of those whose primary is dead and serves none any more."""
    serving = [line.id for line in lines.values() if line.is_primary and line.serves]
    largest = max((len(members[node_id]) for node_id in serving), default=0)
    short = [node_id for node_id in serving if len(members[node_id]) < largest]
    for line in lines.values():
        if not line.is_primary or line.serves or not line.flags & DOWN:
            continue
        left_behind = {line.id, *followers[line.id]}
        if any(left_behind & members[node_id] for node_id in serving):
            continue  # the server knows where they belong
        heir = owners.get(served[line.id]) if line.id in served else None
        for node_id in [heir] if heir in members else short:
            members[node_id] |= left_behind - {node_id}


def addresses_of(line: Line, shards: object) -> frozenset[Address]:
    """Return the addresses by which a primary may know a node as its replica."""
    ports = {line.port}
    for told in _nodes_told(shards):
        if told.get(b"id") == line.id.encode():
            ports |= {port for name in (b"port", b"tls-port") if isinstance(port := told.get(name), int)}
    hosts = {line.host, f"::ffff:{line.host}"} if "." in line.host else {line.host}
    return frozenset((host.encode(), b"%d" % port) for host in hosts for port in ports)


def _ids_by_shard(shards: object) -> Iterator[set[str]]:
    for shard in shards if isinstance(shards, list) else ():
        yield {told[b"id"].decode() for told in _nodes_told([shard])}


def _tells_shards(shards: object) -> bool:
    """Return whether the server gives each shard an id, or two primaries to one: it knows who belongs together."""
    for shard in shards if isinstance(shards, list) else ():
        primaries = [told for told in _nodes_told([shard]) if told.get(b"role") == b"master"]
        if b"id" in _fields(shard) or len(primaries) > 1:
            return True
    return False


def _nodes_told(shards: object) -> Iterator[Mapping[Any, Any]]:
    for shard in shards if isinstance(shards, list) else ():
        yield from map(_fields, _fields(shard).get(b"nodes", ()))


def _fields(pairs: Sequence[Any]) -> dict[Any, Any]:
    """Return a list of names and values, each followed by the other, as a dictionary."""
    return dict(zip(pairs[::2], pairs[1::2], strict=False))
