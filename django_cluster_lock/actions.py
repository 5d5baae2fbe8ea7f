"""What the exchange and those who carry out its actions say to each other."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
Node: TypeAlias = tuple[str, int]
Address: TypeAlias = tuple[bytes, bytes]  # host and port, as a primary tells them of its replicas
Command: TypeAlias = tuple[bytes, ...]

BRIEFLY = 0.5  # seconds for what is asked beside the point, the layout or a cancel: enough to set TLS up for it
# Errors that pass: of a cluster that moves or fails over, of a server that is short of memory, disk or replicas.
TRANSIENT = {
    *("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "BUSY"),
    *("MISCONF", "OOM", "UNBLOCKED"),
}


class Member(NamedTuple):
    """A node of a shard beside its primary: where it can be asked, and by which addresses its primary may know it."""

    node: Node
    addresses: frozenset[Address]


class Verdict(NamedTuple):
    """Who the replicas connected to a primary are: how many members of its shard, how many foreign ones.

    ``known`` are those whose address is a member's.
    """

    members: int
    foreign: int
    known: frozenset[Address]


@dataclass(slots=True, eq=False)
class Learning:
    """One call that learns the layout, for itself and others: why the last node it asked did not tell it."""

    silence: str | None = None


class Routes(Protocol):
    """What is known of the cluster: which node serves a slot, and who belongs to that node's shard."""

    learned_at: float
    refused: str
    learning: dict[str, Learning]
    lists_roles: bool

    def primary(self, slot: int) -> Node | None: ...
    def required(self, node: Node) -> int | None: ...
    def most_required(self) -> int: ...
    def foreign(self, node: Node) -> int: ...
    def verdict(self, node: Node, listed: tuple[Address, ...]) -> Verdict | None: ...
    def missing(self, node: Node, listed: Iterable[Address]) -> list[Member]: ...
    def identify(self, node: Node, listed: tuple[Address, ...], present: int) -> Verdict: ...
    def warn_of_no_replicas(self, node: Node) -> None: ...
    def redirected(self, to: str, asked: Node) -> Node: ...
    def moved(self, slot: int, node: Node) -> None: ...
    def suspect(self, node: Node) -> None: ...
    def candidates(self) -> list[Node]: ...
    def learn(self, values: Sequence[object], asked: Node) -> bool: ...


@dataclass(slots=True)
class Send:
    """Commands to write to a node in one go, whose answers are read back in order.

    Args:
        blocks: how many seconds the server may hold the answers back on purpose.
        deadline: the monotonic time to stop at, if sooner than the socket timeout, but never within `BRIEFLY`.
    """

    node: Node
    commands: list[Command]
    blocks: float
    deadline: float


class SendAll(NamedTuple):
    """Several of them at once: all are written before the first answer is read."""

    sends: list[Send]


class Pause(NamedTuple):
    """A sleep; the driver answers with the monotonic time after it."""

    seconds: float


Action: TypeAlias = Send | SendAll | Pause
Actions: TypeAlias = Generator[Action, Any, T]


class Refusal(Exception):
    """An error answer of a server."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Answer(NamedTuple):
    """The answers to one `Send`, and the monotonic times around it."""

    values: list[object]
    sent: float
    now: float


class NoAnswer(Exception):
    """A node could not be reached or did not answer in time.

    Args:
        reason: what happened.
        now: the monotonic time it happened.
        sent: when the request was written; None if it never was, so that the server cannot have run it.
    """

    def __init__(self, reason: str, now: float, sent: float | None = None) -> None:
        super().__init__(reason, now, sent)
        self.reason, self.now, self.sent = reason, now, sent
