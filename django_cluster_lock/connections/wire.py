"""What a blocking and an asyncio connection share: the bytes, and how long to wait for them."""

import time
from collections.abc import Sequence

import hiredis
from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, RedisError, ResponseError

from django_cluster_lock.actions import Answer, Command, NoAnswer, Refusal, Send

CHUNK = 65536  # more than a record of TLS holds: of one read in part, a selector does not see the rest
FAILURES = (OSError, RedisError, UnicodeError)  # the last for a host that can be no name
NONE_CAME = "all connections to it are in use, as many as max_connections allows"
LONGEST_LINE = 65536  # bytes of an error or status: each chunk of it is looked through from its start
_LINES = (b"+", b"-", b":")
_NOTHING = object()


class Inbox:
    """Takes in bytes, gives out answers; error answers are `Refusal` objects among them."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader(protocolError=InvalidResponse, replyError=Refusal, notEnoughData=_NOTHING)
        self._is_empty, self.begins = True, b""  # the first byte of what comes in, where known

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._is_empty:
            self._is_empty, self.begins = False, data[:1]
        self.reader.feed(data)

    def take(self, values: list[object], count: int) -> bool:
        """Add the answers that are complete; return whether there are that many now. More are a failure."""
        known = len(values)
        for _ in range(count - known):
            value = self.reader.gets()
            if value is _NOTHING:
                refuse_endless(self, others=len(values) > known)
                return False
            values.append(value)
        if self.reader.has_data():
            raise InvalidResponse("it gave more answers than it was asked for")  # which of them answers what?
        self._is_empty = True
        return True


def refuse_endless(inbox: Inbox, *, others: bool) -> None:
    """Raise InvalidResponse if what comes in is a line that is too long; not known if others came just before it."""
    if others:
        inbox.begins = b""
    elif inbox.begins in _LINES and inbox.reader.len() > LONGEST_LINE:
        raise InvalidResponse(f"its answer is a line of more than {LONGEST_LINE} bytes")


def pack(commands: Sequence[Command]) -> bytes:
    packed = map(hiredis.pack_command, commands)  # type: ignore[arg-type]  # its stub knows no length
    return b"".join(packed)


def patience(send: Send, now: float, socket_timeout: float) -> float:
    """Return how many seconds to wait for the answers to a request."""
    return min(send.blocks + socket_timeout, send.blocks + send.at_most, max(send.deadline - now, 0.0) + send.overtime)


def wait_for_one(send: Send, now: float, socket_timeout: float) -> float:
    """Return how many seconds to wait for a connection that none comes back to."""
    return min(socket_timeout, send.at_most, max(send.deadline - now, 0.0) + send.overtime)


def failed(send: Send, error: Exception, sent: float | None) -> NoAnswer:
    """The failure of a request, in the words of the exchange."""
    host, port = send.node
    reason = str(error) or type(error).__name__
    return NoAnswer(f"node {host}:{port}: {reason}", time.monotonic(), sent)


def refusal(send: Send, error: Exception) -> Answer | None:
    """The answer that a server's refusal to let us in stands for: it will not change by trying again."""
    if not isinstance(error, AuthenticationError | AuthorizationError | ResponseError):
        return None
    now = time.monotonic()
    return Answer([Refusal(str(error))] * len(send.commands), now, now)
