"""Connections between two uses, for the blocking pool and for that of an event loop."""

from collections import defaultdict
from typing import Generic, Protocol, TypeVar

from django_cluster_lock.actions import Node

LIFE = 60.0  # seconds without a use after which a connection is closed


class Wire(Protocol):
    used_at: float

    def close(self) -> None: ...


W = TypeVar("W", bound=Wire)


class Idle(Generic[W]):
    """The open connections to each node that nobody uses; the one used last is taken first. From any thread."""

    def __init__(self) -> None:
        self._wires: dict[Node, list[W]] = defaultdict(list)

    def take(self, node: Node) -> W | None:
        try:
            return self._wires[node].pop()
        except IndexError:
            return None

    def give(self, node: Node, wire: W, now: float) -> None:
        """Keeps a connection, and closes one that has been left over for long, as a crowd of waiters leaves many."""
        wire.used_at = now
        wires = self._wires[node]
        wires.append(wire)
        try:
            if now - wires[0].used_at > LIFE:
                wires.pop(0).close()
        except IndexError:  # another thread has taken it
            pass

    def drop(self, node: Node) -> list[W]:
        """Those to a node, which are not kept any longer."""
        return self._wires.pop(node, [])

    def drop_all(self) -> list[W]:
        wires, self._wires = self._wires, defaultdict(list)
        return [wire for those in wires.values() for wire in those]
