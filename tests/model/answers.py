"""What the nodes of the world answer to a client that finds its way, or asks who has acknowledged."""

from tests.model.world import NOBODY, RUNNING, Node

WRITTEN, NOT_YET = 1000, 990  # offsets of replication: a primary's, and a replica's that lacks something
SEEN, LAST_TOLD = Node._fields.index("sees"), Node._fields.index("behind") + 1
ALONE = "ERR This instance has cluster support disabled"
UNKNOWN = "ERR unknown subcommand 'SHARDS'. Try CLUSTER HELP."


class Addresses:
    """Where the nodes are: those of the world, then those of another shard in good health, as large as the first."""

    def __init__(self, kind):
        self.kind = kind
        self.others = range(kind.members + kind.foreign, 2 * kind.members + kind.foreign)
        self.other = self.others[0]  # its primary
        self.nodes = tuple((f"10.0.0.{place + 1}", 7001 + place) for place in range(self.others[-1] + 1))
        self.places = {node: place for place, node in enumerate(self.nodes)}

    def id(self, place):
        return f"{place + 1:040x}"

    def told(self, place):
        host, port = self.nodes[place]
        return host.encode(), port


class Answers:
    """What nodes answer to questions that change nothing; remembered, as only part of the world has to do with it."""

    def __init__(self, addresses):
        self._addresses = addresses
        self._told = {}

    def __call__(self, nodes, facts, place, command):
        seen = nodes[place][SEEN] if place < len(nodes) else facts.owner
        key = place, command[:2], seen, *(node[:LAST_TOLD] for node in nodes)
        if key not in self._told:
            self._told[key] = answer(self._addresses, nodes, facts, place, command)
        return self._told[key]


def answer(addresses, nodes, facts, place, command):
    words = b" ".join(command[:2]).upper()
    is_foreign = addresses.kind.members <= place < addresses.others[0]
    if is_foreign and words.startswith(b"CLUSTER"):
        return ALONE  # only a server of no cluster can be attached by REPLICAOF
    if words == b"CLUSTER SLOTS":
        return slots(addresses, view(addresses, nodes, facts, place))
    if words == b"CLUSTER NODES":
        return cluster_nodes(addresses, view(addresses, nodes, facts, place), place, nodes)
    if words == b"CLUSTER SHARDS":
        return shards(addresses, view(addresses, nodes, facts, place), nodes)
    if command[0] == b"INFO":
        return info(addresses, nodes, place)
    if words == b"ROLE":
        return role(addresses, nodes, place)
    if words == b"ASKING":
        return b"OK"
    if command[0] == b"BLPOP":
        return None
    raise AssertionError(command)


def view(addresses, nodes, facts, place):
    """Return who serves the slots and whom each member follows, as far as a node knows. Other shards know all."""
    if place in addresses.others:
        return facts.owner, tuple(node.follows for node in nodes[: addresses.kind.members])
    return nodes[place].owner, nodes[place].sees


def slots(addresses, seen):
    owner, sees = seen
    replicas = [member for member, followed in enumerate(sees) if followed == owner != member]
    first = (0, 0, *(_in_slots(addresses, member) for member in (owner, *replicas)))
    return first, (1, 1, *(_in_slots(addresses, member) for member in addresses.others))


def _in_slots(addresses, place):
    return *addresses.told(place), addresses.id(place).encode(), ()


def cluster_nodes(addresses, seen, place, nodes):
    owner, sees = seen
    lines = []
    for member, followed in [*enumerate(sees), *((member, addresses.other) for member in addresses.others)]:
        is_primary = followed == member
        flags = ["myself"] if member == place else []
        flags.append("master" if is_primary else "slave")
        if member < len(nodes) and nodes[member].runs != RUNNING:
            flags.append("fail")
        host, port = addresses.nodes[member]
        primary = "-" if is_primary else addresses.id(followed)
        served = [" 0"] if member == owner else [" 1"] if member == addresses.other else []
        where = f"{host}:{port}@{port + 10000}"
        lines.append(f"{addresses.id(member)} {where} {','.join(flags)} {primary} 0 0 1 connected{''.join(served)}\n")
    return "".join(lines).encode()


def shards(addresses, seen, nodes):
    owner, sees = seen
    servers = addresses.kind.servers
    if servers == "6.2":
        return UNKNOWN
    everybody = range(addresses.kind.members)
    if servers == "7.0":  # it has a shard for each primary that it knows
        groups = [
            [member for member in everybody if sees[member] == primary]
            for primary in everybody
            if sees[primary] == primary
        ]
    else:
        groups = [list(everybody)]
    told = []
    for group in (*groups, list(addresses.others)):
        served = (0, 0) if owner in group else (1, 1) if addresses.other in group else ()
        members = tuple(
            _in_shards(addresses, member, member == addresses.other or (member < len(sees) and sees[member] == member))
            for member in group
        )
        name = (b"id", addresses.id(group[0]).encode()) if servers == "valkey" else ()
        told.append((b"slots", served, b"nodes", members, *name))
    return tuple(told)


def _in_shards(addresses, place, is_primary):
    host, port = addresses.told(place)
    role = b"master" if is_primary else b"replica"
    return b"id", addresses.id(place).encode(), b"port", port, b"ip", host, b"endpoint", host, b"role", role


def _replicas(addresses, nodes, place):
    """Return the replicas connected to a node: address and offset."""
    if place in addresses.others:
        return (
            [(*addresses.told(member), WRITTEN) for member in addresses.others[1:]] if place == addresses.other else []
        )
    return [
        (*addresses.told(member), NOT_YET if node.behind else WRITTEN)
        for member, node in enumerate(nodes)
        if node.link == place
    ]


def _history(nodes, place):
    """Return the id of the replication history that a node writes or copies."""
    while place < len(nodes) and nodes[place].link != NOBODY:
        place = nodes[place].link
    epoch = nodes[place].epoch if place < len(nodes) else 0
    return f"{place:020x}{epoch:020x}"


def _copies_from(addresses, nodes, place):
    if place in addresses.others:
        return addresses.other, True
    return nodes[place].follows, nodes[place].link != NOBODY


def info(addresses, nodes, place):
    source, up = _copies_from(addresses, nodes, place)
    lines = ["# Replication"]
    if source == place:
        lines.append("role:master")
    else:
        host, port = addresses.nodes[source]
        lines += ["role:slave", f"master_host:{host}", f"master_port:{port}"]
        lines.append(f"master_link_status:{'up' if up else 'down'}")
    replicas = _replicas(addresses, nodes, place)
    lines.append(f"connected_slaves:{len(replicas)}")
    for number, (host, port, offset) in enumerate(replicas):
        lines.append(f"slave{number}:ip={host.decode()},port={port},state=online,offset={offset},lag=0")
    lines += [f"master_replid:{_history(nodes, place)}", f"master_repl_offset:{WRITTEN}"]
    return "\r\n".join((*lines, "")).encode()


def role(addresses, nodes, place):
    source, up = _copies_from(addresses, nodes, place)
    if source == place:
        replicas = _replicas(addresses, nodes, place)
        return b"master", WRITTEN, tuple((host, b"%d" % port, b"%d" % offset) for host, port, offset in replicas)
    host, port = addresses.told(source)
    return b"slave", host, port, b"connected" if up else b"connect", WRITTEN
