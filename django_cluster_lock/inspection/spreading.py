"""How locks are spread over the nodes and slots of a cluster."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from django_cluster_lock.snapshots import Distribution, Listing, NodeShare, SlotShare

FULLEST = 10  # slots that are named
BY_CHANCE = 4.0  # standard deviations: beyond them a node has more locks than chance explains


def spread(found: Listing, slots_of: Mapping[str, int]) -> Distribution:
    """The distribution of these locks over the nodes, which serve so many slots each."""
    unread = {part.node for part in found.unread}
    by_node, by_slot = Counter[str](), Counter[tuple[int, str]]()
    waiters_by_node, waiters_by_slot = Counter[str](), Counter[tuple[int, str]]()
    for lock in found:
        slot = lock.slot, lock.node
        by_node[lock.node] += 1
        by_slot[slot] += 1
        waiters_by_node[lock.node] += len(lock.waiters)
        waiters_by_slot[slot] += len(lock.waiters)
    nodes = tuple(
        NodeShare(node, slots, by_node[node], waiters_by_node[node])
        for node, slots in sorted(slots_of.items())
        if node not in unread
    )
    slots = tuple(
        SlotShare(slot, node, locks, waiters_by_slot[slot, node])
        for (slot, node), locks in sorted(by_slot.items(), key=lambda item: (-item[1], item[0]))[:FULLEST]
    )
    skew = max(share.locks for share in nodes) * len(nodes) / len(found) if len(found) else 1.0
    return Distribution(
        locks=len(found),
        waiters=waiters_by_node.total(),
        skew=round(skew, 2),
        nodes=nodes,
        slots=slots,
        warnings=tuple(_warnings(nodes, slots)),
        unread=found.unread,
    )


def _warnings(nodes: tuple[NodeShare, ...], fullest: tuple[SlotShare, ...]) -> Iterator[str]:
    locks, slots = sum(share.locks for share in nodes), sum(share.slots for share in nodes)
    for share in nodes:
        expected = locks * share.slots / slots
        if share.locks > expected + BY_CHANCE * math.sqrt(expected):
            slot = next(slot for slot in fullest if slot.node == share.node)
            yield (
                f"{share.node} has {share.locks} of {locks} locks, where {expected:.0f} would be its share. Slot "
                f"{slot.slot} alone has {slot.locks} of them: locks that share a tag share a slot."
            )
