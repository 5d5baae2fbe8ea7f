"""One shard of a cluster as a value: its nodes, what each of them believes, has and copies; and what may happen to it.

Nothing here changes in place. A world is a tuple of nodes and a few facts; an event makes another one. All times are
relative to now, in units of `UNIT` seconds, so that two moments which differ in nothing that matters are one state.

Elections are those of Redis Cluster: a replica whose primary has failed may be promoted if the other shards' primaries
know of no newer owner of its slots, and if it was connected to a primary since its process began; nobody compares
offsets unless several replicas stand for election at once. What a node has copied since counts for nothing.
"""

from typing import NamedTuple

UNIT = 16  # seconds
LEASE = 3  # units for which a server keeps a lease that its holder counts on for two; the third holds the skew
MARK = 4  # units for which the mark of a cancelled token stays
NOBODY = -1
DEAD, STALLED, RUNNING = range(3)


class Record(NamedTuple):
    """A lock as one node has it: `left` are the units until the deadline, `marks` the cancelled tokens with theirs."""

    token: bytes | None
    fence: int
    left: int
    marks: tuple[tuple[bytes, int], ...] = ()


class Node(NamedTuple):
    """A member of the shard, or a foreign replica.

    Args:
        runs: whether the process runs, stands still or is gone.
        follows: the primary by its own configuration; itself if it is one.
        owner: who serves the slots, as far as it knows.
        epoch: the configuration epoch of that owner.
        link: the node from which it copies at the moment.
        lags: what is written there does not reach it for now.
        behind: something was written that has not reached it.
        recent: it was a replica in touch with a primary since its process began, so that it may be promoted.
        data: the lock's record.
        sees: whom each member follows, as far as it knows.
    """

    runs: int
    follows: int
    owner: int
    epoch: int
    link: int
    lags: bool
    behind: bool
    recent: bool
    data: Record | None
    sees: tuple[int, ...]


class Facts(NamedTuple):
    """What the rest of the world knows.

    Args:
        owner: the node that won the last election, as the other shards' primaries know.
        epoch: of that election.
        highest: the highest fence of an acknowledged lease.
        late: requests that may still arrive: each a node and the script's call.
        faults: how many more times a node or a connection may fail; below 0: any number of times.
        mishaps: how many more times a request may be lost, late, slow, or unheard; below 0: any number of times.
        times: how many more units of time may pass; below 0: any number.
        detached: the token of the lease that was detached last; whoever is told may attach it, and more than once.
    """

    owner: int
    epoch: int
    highest: int
    late: tuple[tuple[int, tuple], ...]
    faults: int
    mishaps: int
    times: int
    detached: bytes | None = None


class Kind(NamedTuple):
    """What sort of shard it is.

    Args:
        members: its nodes, the first of which is the primary at first.
        foreign: replicas that are attached by REPLICAOF and belong to no shard.
        servers: whose rules apply: "valkey" and "7.2" know the shard of each node; "7.0" and "6.2" do not.
        stays_recent: a former primary may be promoted before it has copied from its successor, as before Redis 6.2.4.
        any_age: `cluster-replica-validity-factor 0`: a replica may be promoted however old its data are.
        empties: a former primary may start again without its data while a replica has not heard of its successor.
        gap: a moment may lie between the wait for replicas and the commands of the request that follow it.
        faults, mishaps, times: of `Facts`, at first.
    """

    members: int = 3
    foreign: int = 0
    servers: str = "valkey"
    stays_recent: bool = False
    any_age: bool = False
    empties: bool = False
    gap: bool = False
    faults: int = -1
    mishaps: int = -1
    times: int = -1


def begin(kind: Kind) -> tuple[tuple[Node, ...], Facts]:
    """Return a shard in good health: one primary, and replicas that have all it has."""
    roles = (0,) * kind.members
    primary = Node(RUNNING, 0, 0, 1, NOBODY, False, False, kind.stays_recent, None, roles)
    replica = primary._replace(link=0, recent=True)
    foreign = replica._replace(recent=False, sees=())
    nodes = (primary, *(replica,) * (kind.members - 1), *(foreign,) * kind.foreign)
    return nodes, Facts(0, 1, NO_FENCE, (), kind.faults, kind.mishaps, kind.times)


# Fences: numbers from 0 on within the present unit of time, negative ones before, in order.
NO_FENCE = -99


def next_fence(previous: int | None) -> int:
    """Return what the scripts make of the fence before and the server's clock, which stands at 0."""
    return 0 if previous is None else max(previous + 1, 0)


# Copying


def write(nodes: list[Node], place: int, data: Record | None) -> None:
    """Write at a node, and at all that copy from it and do not lag."""
    nodes[place] = nodes[place]._replace(data=data)
    for other, node in enumerate(nodes):
        if node.link == place:
            if node.lags or node.runs != RUNNING:
                if not node.behind:
                    nodes[other] = node._replace(behind=True)
            else:
                write(nodes, other, data)


def catch_up(nodes: list[Node], place: int) -> None:
    """Let a replica have all that was written where it copies from."""
    node = nodes[place]
    nodes[place] = node._replace(lags=False, behind=False)
    if node.behind:
        write(nodes, place, nodes[node.link].data)


def loosen(nodes: list[Node], place: int) -> None:
    """Drop the connections of a node's replicas."""
    for other, node in enumerate(nodes):
        if node.link == place:
            nodes[other] = node._replace(link=NOBODY, lags=False, behind=False)


def copied(nodes: tuple[Node, ...] | list[Node], place: int) -> int:
    """Return who has all that was written at a node, as bits."""
    return sum(1 << other for other, node in enumerate(nodes) if node.link == place and not node.behind)


# What may happen. Each event has a name, the nodes it concerns, and gives the nodes and facts after it.


def events(kind: Kind, nodes: tuple[Node, ...], facts: Facts):
    """Give all that may happen to the shard: the event, nodes and facts after it, and who has caught up with whom."""
    twins = kind.members == 3 and nodes[1] == nodes[2] and all(node.sees[1:2] == node.sees[2:3] for node in nodes)
    for place, node in enumerate(nodes):
        if twins and place == 2:
            continue  # the replicas are alike: it happens to the first
        if facts.faults:
            yield from _faults(kind, nodes, facts, place, node)
        if node.runs == RUNNING:
            yield from _recoveries(kind, nodes, facts, place, node)
        elif node.runs == STALLED:
            after = list(nodes)
            after[place] = node._replace(runs=RUNNING)
            caught = ()
            if node.behind and not node.lags and nodes[node.link].runs == RUNNING:
                catch_up(after, place)
                caught = (node.link, place)
            yield ("resume", place), tuple(after), facts, caught
        elif place < kind.members:
            back = node._replace(runs=RUNNING, recent=kind.any_age)
            yield ("restart", place), _with(nodes, place, back), facts, ()
            if facts.faults and node.data is not None and _may_lose_its_data(kind, nodes, facts, place):
                lost = facts._replace(faults=facts.faults - 1) if facts.faults > 0 else facts
                yield ("restart empty", place), _with(nodes, place, back._replace(data=None)), lost, ()


def _may_lose_its_data(kind: Kind, nodes: tuple[Node, ...], facts: Facts, place: int) -> bool:
    """Return whether a node may start again without its data.

    A primary must not, as the guarantees say; nor a former one as long as a replica follows it that has not heard of
    its successor.
    """
    others = (node for other, node in enumerate(nodes) if other != place)
    return facts.owner != place and (kind.empties or all(node.follows != place for node in others))


def _faults(kind: Kind, nodes: tuple[Node, ...], facts: Facts, place: int, node: Node):
    if facts.faults > 0:
        facts = facts._replace(faults=facts.faults - 1)
    if node.runs == RUNNING:
        if place < kind.members:
            yield ("stall", place), _with(nodes, place, node._replace(runs=STALLED)), facts, ()
        if node.link != NOBODY and not node.lags:
            yield ("lag", place), _with(nodes, place, node._replace(lags=True)), facts, ()
    if node.link != NOBODY:
        yield ("cut", place), _with(nodes, place, node._replace(link=NOBODY, lags=False, behind=False)), facts, ()
    if node.runs != DEAD and place < kind.members:
        after = list(nodes)
        after[place] = node._replace(runs=DEAD, link=NOBODY, lags=False, behind=False, recent=kind.any_age)
        loosen(after, place)
        yield ("die", place), tuple(after), facts, ()


def _recoveries(kind: Kind, nodes: tuple[Node, ...], facts: Facts, place: int, node: Node):
    if node.lags and nodes[node.link].runs == RUNNING:
        after = list(nodes)
        catch_up(after, place)
        yield ("catch up", place), tuple(after), facts, (node.link, place)
    if place >= kind.members:
        if node.link == NOBODY:
            for source in range(kind.members):
                if nodes[source].runs == RUNNING and nodes[source].follows == source:
                    yield ("attach", place, source), _synced(nodes, place, source), facts, (source, place)
        return
    source = node.follows
    if source == place:
        heard = _heard(kind, nodes, facts, place)
        if heard is not None:
            yield ("hear", place), heard, facts, ()
        return
    primary = nodes[source]
    if node.link == NOBODY and primary.runs == RUNNING and (primary.follows == source or primary.link != NOBODY):
        yield ("copy", place, source), _synced(nodes, place, source), facts, (source, place)
    if primary.runs != RUNNING and node.recent and source == node.owner == facts.owner and node.epoch == facts.epoch:
        after = list(nodes)
        sees = tuple(place if member == place else seen for member, seen in enumerate(node.sees))
        epoch = facts.epoch + 1
        after[place] = node._replace(
            follows=place, owner=place, epoch=epoch, link=NOBODY, lags=False, behind=False, sees=sees,
            recent=kind.stays_recent or kind.any_age,
        )  # fmt: skip
        loosen(after, place)
        yield ("elect", place), tuple(after), facts._replace(owner=place, epoch=epoch), ()
    heard = _heard(kind, nodes, facts, place)
    if heard is not None:
        yield ("hear", place), heard, facts, ()


def _with(nodes: tuple[Node, ...], place: int, node: Node) -> tuple[Node, ...]:
    return (*nodes[:place], node, *nodes[place + 1 :])


def _synced(nodes: tuple[Node, ...], place: int, source: int) -> tuple[Node, ...]:
    """Let a node copy all that another has, and follow it from then on."""
    after, node = list(nodes), nodes[place]
    data = nodes[source].data
    if data != node.data:
        loosen(after, place)
    after[place] = node._replace(data=data, link=source, recent=node.sees != (), follows=source)
    return tuple(after)


def _heard(kind: Kind, nodes: tuple[Node, ...], facts: Facts, place: int) -> tuple[Node, ...] | None:
    """Return the nodes once one of them knows who serves the slots, and whom those that run follow; None if it does."""
    node = nodes[place]
    if node.epoch < facts.epoch:
        node = node._replace(
            owner=facts.owner, epoch=facts.epoch, follows=facts.owner, link=NOBODY, lags=False, behind=False
        )
    sees = tuple(
        node.follows if member == place else nodes[member].follows if nodes[member].runs == RUNNING else seen
        for member, seen in enumerate(node.sees)
    )
    node = node._replace(sees=sees)
    return None if node == nodes[place] else _with(nodes, place, node)


# Time


def age(data: Record | None) -> Record | None:
    """Return what is left of a record after a unit of time."""
    if data is None:
        return None
    left = max(data.left - 1, 0)
    marks = tuple((token, units - 1) for token, units in data.marks if units > 1)
    if not left and not marks:
        return None
    return data._replace(left=left, marks=marks)
