"""What a blocking and an asyncio connection share: the bytes, and how long to wait for them."""

import time
from collections.abc import Sequence

import hiredis
from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, RedisError, ResponseError

from django_cluster_lock.actions import BRIEFLY, Answer, Command, NoAnswer, Refusal, Send

CHUNK = 65536  # more than a record of TLS holds: of one read in part, a selector does not see the rest
IDLE_CHECK = 1.0  # seconds of idleness after which a pooled connection is looked at before it is used
FAILURES = (OSError, RedisError)
_NOTHING = object()


class Inbox:
    """Takes in bytes, gives out answers; error answers are `Refusal` objects among them."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=Refusal, notEnoughData=_NOTHING)

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the server closed the connection")
        self._reader.feed(data)

    def take(self, values: list[object], count: int) -> bool:
        """Adds the answers that are complete; whether there are that many now."""
        while len(values) < count:
            value = self._reader.gets()
            if value is _NOTHING:
                return False
            values.append(value)
        return True


def pack(commands: Sequence[Command]) -> bytes:
    packed = map(hiredis.pack_command, commands)  # type: ignore[arg-type]  # its stub knows no length
    return b"".join(packed)


def patience(send: Send, now: float, socket_timeout: float) -> float:
    """How many seconds to wait for the answers to a request."""
    return send.blocks + min(socket_timeout, max(send.deadline - now - send.blocks, BRIEFLY))


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
