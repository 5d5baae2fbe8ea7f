"""What the exchange and those who carry out its actions say to each other."""

import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
# The error of a script's command, which stands within that of the script before Redis 7.
_OF_COMMAND = re.compile(r"@user_script: \d+: -?([A-Z]+) ")
Node: TypeAlias = tuple[str, int]
Address: TypeAlias = tuple[bytes, bytes]  # host and port, as a primary tells them of its replicas
Command: TypeAlias = tuple[bytes, ...]

LONGEST_TOLD = 1000  # characters of an error
BRIEFLY = 0.5  # seconds for what is asked beside the point: enough to set TLS up for it on a loaded machine
OVERTIME = 0.15  # seconds past the caller's time in which the answer to a last question may still come
# Errors that pass: of a cluster that moves or fails over, of a server that is short of memory, disk or replicas.
TRANSIENT = {
    *("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "BUSY"),
    *("MISCONF", "OOM", "UNBLOCKED"),
}


class Member(NamedTuple):
    """A node of a shard beside its primary: where it can be asked, and by which addresses its primary may know it."""

    node: Node
    addresses: frozenset[Address]


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
    def told_at(self, node: Node) -> float: ...
    def recognizes(self, node: Node, listed: tuple[Address, ...]) -> bool: ...
    def is_news(self, node: Node, listed: tuple[Address, ...]) -> bool: ...
    def members(self, node: Node) -> tuple[Member, ...]: ...
    def endpoint(self, node: Node) -> Node: ...
    def missing(self, node: Node, listed: Iterable[Address]) -> list[Member]: ...
    def warn_of_no_replicas(self, node: Node) -> None: ...
    def redirected(self, to: str, asked: Node) -> Node: ...
    def moved(self, slot: int, node: Node) -> None: ...
    def suspect(self, node: Node) -> None: ...
    def silences(self, node: Node) -> int: ...
    def candidates(self) -> list[Node]: ...
    def learn(self, values: Sequence[object], asked: Node, now: float) -> bool: ...


class Seats(Protocol):
    """Where waiters sleep; see `connections.pool`."""

    def leave(self, waiter: "Waiter") -> None: ...


class Waiter:
    """One wait for a lock, from its first sleep to its end."""

    __slots__ = ("__weakref__", "seats")

    def __init__(self) -> None:
        self.seats: Seats | None = None

    def leave(self) -> None:
        """Give up the connection that was kept for its sleeps, if any was."""
        if self.seats is not None:
            self.seats.leave(self)
            self.seats = None


@dataclass(slots=True)
class Block:
    """A sleep before a call, on the same connection, that a push to this key ends; whose sleep it is, where known."""

    key: bytes
    seconds: float
    waiter: Waiter | None = field(default=None, compare=False)


@dataclass(slots=True)
class Send:
    """Commands to write to a node in one go, whose answers are read back in order.

    Args:
        blocks: how many seconds the server may hold the answers back on purpose.
        deadline: the monotonic time to stop at, if sooner than the socket timeout.
        reserved: whether it keeps or ends a lease: a connection is always there for that.
        block: the sleep it begins with. Where no connection may sleep now, the answer is `Awake`, after some time.
        overtime: for how many seconds after the deadline the answers may still come, or from now on, if it has passed.
        at_most: seconds to wait for them in any case, beside those in which the server holds them back.
    """

    node: Node
    commands: list[Command]
    blocks: float
    deadline: float
    reserved: bool = False
    block: Block | None = None
    overtime: float = OVERTIME
    at_most: float = inf


class SendAll(NamedTuple):
    """Several of them at once: all are written before the first answer is read."""

    sends: list[Send]


class Pause(NamedTuple):
    """A sleep; the driver answers with the monotonic time after it."""

    seconds: float


class Forget(NamedTuple):
    """Close what connections to a node are idle: its name may stand for another server by now."""

    node: Node


class Retain(NamedTuple):
    """Close what connections are idle to other nodes than these, which are those of the layout."""

    nodes: frozenset[Node]


Action: TypeAlias = Send | SendAll | Pause | Forget | Retain
Actions: TypeAlias = Generator[Action, Any, T]


class Refusal(Exception):
    """An error answer of a server; one that is long is cut off."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}...")

    @property
    def code(self) -> str:
        text = str(self)
        of_command = _OF_COMMAND.search(text) if text.startswith("ERR Error running script") else None
        return of_command[1] if of_command else text.partition(" ")[0]


class Answer(NamedTuple):
    """The answers to one `Send`, and the monotonic times around it."""

    values: list[object]
    sent: float
    now: float


class Awake(NamedTuple):
    """The answer to a `Send` that was to sleep and was not sent, since too many others sleep."""

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
