"""What travels with a task's message, and sending a message that came too early back to its queue."""

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

from celery import Task
from kombu.serialization import dumps

HEADER = "cluster_lock"
SENT_BACK = "_single_flight_sent_back"  # on the request: the claim goes on with its message
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds until it is delivered again
# What Celery writes into a message's headers, but for `eta`; all else that a request has it got from elsewhere.
_HEADERS = (
    "lang", "task", "id", "shadow", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
)  # fmt: skip


class Ticket(NamedTuple):
    """What a message says of its flight.

    Args:
        name: of the flight's lock; empty if the message was published without `apply_async`.
        token: of the claim that was taken for it.
        flight_of: the task whose flight it is a duplicate of.
        turns: how often it has come too early.
    """

    name: str = ""
    token: str | None = None
    flight_of: str | None = None
    turns: int = 0
    serializer: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> "Ticket":
        told = headers.get(HEADER) or {}
        return cls(**{field: told[field] for field in cls._fields if field in told})

    def headers(self) -> dict[str, Any]:
        return {HEADER: self._asdict()}


def send_back(task: "Task[..., Any]", ticket: Ticket) -> None:
    """Publishes the message that is being run again, as it is, for a little later and with another ticket."""
    request = task.request
    turn = ticket._replace(turns=ticket.turns + 1)
    delay = min(FIRST_DELAY * 2**ticket.turns, LONGEST_DELAY)
    eta = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=delay)
    headers = {key: value for key in _HEADERS if (value := request.get(key)) is not None}
    headers |= {key: value for key, value in (request.headers or {}).items() if key != "redelivered"}
    embedded = {
        "callbacks": request.callbacks,
        "errbacks": request.errbacks,
        "chain": request.chain,
        "chord": request.chord,
    }
    content_type, encoding, body = dumps((request.args, request.kwargs, embedded), ticket.serializer or task.serializer)
    delivery: Mapping[str, Any] = request.delivery_info or {}
    with task.app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            body,
            exchange=delivery.get("exchange") or "",
            routing_key=delivery.get("routing_key"),
            priority=delivery.get("priority"),  # type: ignore[arg-type]
            headers=headers | turn.headers() | {"eta": eta.isoformat()},
            content_type=content_type,
            content_encoding=encoding,
            serializer=None,
            correlation_id=request.correlation_id,
            reply_to=request.reply_to,
            delivery_mode=(request.properties or {}).get("delivery_mode"),
            retry=True,
        )
    request.update({SENT_BACK: True})
