"""The messages of tasks: what single flight writes on them, and keeping and publishing them whole."""

import base64
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery import Celery, Task
from celery.app.task import Context
from celery.utils.time import maybe_make_aware
from kombu import Exchange
from kombu.serialization import dumps, registry  # type: ignore[attr-defined]
from kombu.transport.native_delayed_delivery import MAX_LEVEL, MAX_NUMBER_OF_BITS_TO_USE, level_name
from kombu.utils import json
from kombu.utils.encoding import str_to_bytes

HEADER = "cluster_lock"
# Also a header, once a worker's parent process has taken the message: the token that its run's lease will have.
RUN_TOKEN = "cluster_lock_run"  # noqa: S105 - the name of a field
CONTENT_TYPE = "cluster_lock_content_type"  # likewise: that of the message
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds until a message that cannot be started is delivered again
# What Celery writes into a message's headers, but for `eta`; all else that a request has it got from elsewhere.
_HEADERS = (
    "lang", "task", "id", "shadow", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
)  # fmt: skip
_OF_ONE_DELIVERY = {
    *("redelivered", "compression"),  # kombu's
    *(RUN_TOKEN, CONTENT_TYPE),
    # RabbitMQ's, of a message that it kept for a while: it drops one that is to be kept again and still has them.
    *("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"),
    *("x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"),
}
# For quorum queues, Celery has RabbitMQ keep a message until its time: it begins its key with the seconds, in binary.
_KEPT_FOR = re.compile(rf"^(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}")
# Of what a producer is told, all that says where a message goes and how; how to try again is said anew.
_PROPERTIES = ("exchange", "routing_key", "priority", "delivery_mode", "correlation_id", "reply_to", "expiration")


class Ticket(NamedTuple):
    """What a message says of its flight.

    Args:
        name: of the flight's lock; empty if the message was published without `apply_async`.
        flight_of: the task whose flight it is a duplicate of.
        turns: how often it could not be started.
        again: whether it was parked, so that there may be copies of it.
        place: of the call among those of the key, as Redis numbers them; 0 if it has not got one yet.
        after: the task that ended without an outcome and left it the key; empty if that is not known.
        outcome: of the flight it waited for, packed.
    """

    name: str = ""
    flight_of: str | None = None
    turns: int = 0
    again: bool = False
    place: int = 0
    after: str | None = None
    outcome: dict[str, Any] | None = None

    @classmethod
    def of(cls, message: Mapping[str, Any] | Context) -> "Ticket":
        """What the headers or the request of a message say.

        Not a request's ``headers``: with tools that trace, these are what a header of that name holds.
        """
        told = message.get(HEADER) or {}
        return cls(**{field: told[field] for field in cls._fields if field in told})

    def headers(self) -> dict[str, Any]:
        told = zip(self._fields, self, _UNTOLD, strict=True)
        return {HEADER: {field: value for field, value, default in told if value != default}}


_UNTOLD = Ticket()


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it goes to the broker: its body as bytes, its headers, and the properties it has."""

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]

    @classmethod
    def of_request(cls, task: "Task[..., Any]", ticket: Ticket) -> "Message":
        """The message that is being run, as it came."""
        request = task.request
        headers = {key: value for key in _HEADERS if (value := request.get(key)) is not None}
        own = request.headers or {}
        if own and RUN_TOKEN not in own:  # what tracing tools send as one header of that name
            own = {"headers": own}
        headers |= {key: value for key, value in own.items() if key not in _OF_ONE_DELIVERY}
        embedded = {key: getattr(request, key) for key in ("callbacks", "errbacks", "chain", "chord")}
        delivery: Mapping[str, Any] = request.delivery_info or {}
        properties = {
            "exchange": delivery.get("exchange") or "",
            "routing_key": delivery.get("routing_key"),
            "priority": delivery.get("priority"),
            "delivery_mode": (request.properties or {}).get("delivery_mode"),
            "correlation_id": request.correlation_id,
            "reply_to": request.reply_to,
        }
        serializer = registry.type_to_name.get(request.get(CONTENT_TYPE), task.serializer)
        return cls._made((request.args, request.kwargs, embedded), serializer, headers | ticket.headers(), properties)

    @classmethod
    def of_call(cls, app: Celery, body: Any, options: Mapping[str, Any]) -> "Message":
        """The one that a producer is told to publish, with all that says where it goes and how."""
        properties = {key: options.get(key) for key in _PROPERTIES}
        queues: Any = app.amqp.queues
        # Celery makes sure that the app's own queue exists, which the message will need when it goes out as well.
        properties["declare"] = [each.name for each in options.get("declare") or () if queues.get(each.name) is each]
        if isinstance(exchange := properties["exchange"], Exchange):
            properties["exchange"] = exchange.name
        return cls._made(body, options.get("serializer"), options["headers"], properties)

    @classmethod
    def _made(cls, body: Any, serializer: str | None, headers: dict[str, Any], properties: dict[str, Any]) -> "Message":
        content_type, encoding, data = dumps(body, serializer)
        kept = {key: value for key, value in properties.items() if value is not None}
        return cls(str_to_bytes(data), content_type, encoding, headers, kept)

    def dumps(self) -> bytes:
        """As it is stored."""
        body = base64.b64encode(self.body).decode()
        stored = (body, self.content_type, self.content_encoding, self.headers, self.properties)
        return json.dumps(stored).encode()

    @classmethod
    def loads(cls, stored: bytes) -> "Message":
        body, *rest = json.loads(stored)
        return cls(base64.b64decode(body), *rest)

    @property
    def ticket(self) -> Ticket:
        return Ticket.of(self.headers)

    def publish(self, app: Celery, ticket: Ticket | None = None, *, delay: float = 0.0) -> None:
        """Publishes it as it is, but for another ticket, at once or for a little later."""
        headers = self.headers | (ticket.headers() if ticket else {})
        headers.setdefault("eta", None)
        if delay:
            headers["eta"] = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=delay)).isoformat()
        properties = _kept_for(delay_of(app, headers), self.properties)
        properties = properties | {"declare": _queues(app, properties.get("declare", ()))}
        body: Any = self.body
        if self.content_encoding == "utf-8":
            body = self.body.decode()
        with app.producer_pool.acquire(block=True) as producer:
            producer.publish(
                body,
                headers=headers,
                content_type=self.content_type,
                content_encoding=self.content_encoding,
                serializer=None,
                retry=True,
                retry_policy=app.conf.task_publish_retry_policy,
                **properties,
            )


def _queues(app: Celery, names: Sequence[str]) -> list[Any]:
    """Those of them that the app knows, or may make."""
    queues: Any = app.amqp.queues
    return [queues[name] for name in names if name in queues or queues.create_missing]


def _kept_for(seconds: float, properties: dict[str, Any]) -> dict[str, Any]:
    """The properties of a message that RabbitMQ keeps, or has kept, until its time: for as long as is left of that."""
    key, found = _KEPT_FOR.subn("", properties.get("routing_key") or "", count=1)
    if not found:
        return properties
    bits = f"{int(seconds):0{MAX_NUMBER_OF_BITS_TO_USE}b}"
    return properties | {"exchange": level_name(MAX_LEVEL), "routing_key": ".".join((*bits, key))}


def delay_of(app: Celery, told: Mapping[str, Any]) -> float:
    """For how many seconds a message will wait before anybody may run it, by a call's options or by its headers."""
    eta = told.get("eta")
    if not eta:
        return max(0.0, told.get("countdown") or 0.0)
    due = maybe_make_aware(datetime.datetime.fromisoformat(eta) if isinstance(eta, str) else eta, app.timezone)
    return max(0.0, (due - app.now()).total_seconds())


def send_back(task: "Task[..., Any]", ticket: Ticket) -> None:
    """Publishes the message that is being run again, for a little later."""
    turn = ticket._replace(turns=ticket.turns + 1)
    delay = min(FIRST_DELAY * 2**ticket.turns, LONGEST_DELAY)
    Message.of_request(task, turn).publish(task.app, delay=delay)
