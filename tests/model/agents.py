"""Single flight without Celery and without a network: its real code in greenlets, each of which stops at every step
that somebody else can see. A test decides how the step ends, or that the greenlet dies there.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import greenlet
from billiard.exceptions import WorkerLostError
from celery import states
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.result import AsyncResult

from django_cluster_lock import conf, drivers, protocol
from django_cluster_lock.actions import Pause
from django_cluster_lock.aliases import Alias
from django_cluster_lock.errors import DuplicateFlight, LockError
from django_cluster_lock.exchange import carry
from django_cluster_lock.flights import publish, run
from django_cluster_lock.flights.ground import Ground
from django_cluster_lock.flights.messages import Message
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.flights.request import Recovers
from django_cluster_lock.flights.started import WANTED
from tests.model.clients import ROUTES

ALIAS = "model"
NAME = "flight:job:job"
PROPERTIES = {"exchange": "", "routing_key": "q"}
TIMEOUT, QUEUE_TIMEOUT = 30.0, 100.0  # seconds


class Publication(NamedTuple):
    """A step: a message on its way to the broker."""

    message: Message


class Storing(NamedTuple):
    """A step: the result of a task is to be stored, after its body and before the end of its flight."""


class Body(NamedTuple):
    """A step: the body of a task, with its arguments, answered with the name of how it ends."""

    version: int = 0


class Failed(Exception):
    """What a task raises; its argument is its outcome."""


class BrokerDown(Exception):
    """What publishing raises."""


class Stopped(BaseException):
    """What ends a body whose process is being stopped."""


class Agent(greenlet.greenlet):
    """Code that runs by itself up to its next step.

    Attributes:
        step: that it waits for; None once it has ended.
        killed: whether nothing that it does counts any more.
    """

    step: Any = None
    killed = False

    def __init__(self, kind: str, work: Any, *, delivery: Any = None) -> None:
        super().__init__()
        self.kind, self.work, self.delivery = kind, work, delivery
        self.context = Context()
        self.result: Any = None

    def run(self, _: Any = None) -> None:
        self.result = self.work()

    def go_on(self, answer: Any = None) -> None:
        self.step = self.switch(answer)

    def fail(self, error: BaseException) -> None:
        self.step = self.throw(error)

    def die(self) -> None:
        self.killed, self.step = True, None
        if self:
            self.throw(greenlet.GreenletExit())


def ask(step: Any) -> Any:
    """Stops for a step; gives how it ended."""
    agent = greenlet.getcurrent()
    if agent.killed:
        raise greenlet.GreenletExit
    return agent.parent.switch(step)


class Network:
    """In the place of connections: each request is a step."""

    def perform(self, action: Any) -> Any:
        return time.monotonic() if isinstance(action, Pause) else ask(action)


class ModelAlias(Alias):
    """An alias whose requests a test answers, and whose leases it renews."""

    patience = 1e9  # seconds in real time, which plays no part

    def __init__(self, prefix: str) -> None:
        super().__init__(conf.AliasSettings(ALIAS, (), prefix, timeout=TIMEOUT, replicas=1))
        self.renewer = SimpleNamespace(add=lambda lease: None)

    def run(self, flow: Any) -> Any:
        return drivers.run(carry(flow, ROUTES), Network())


class Producer:
    """Of the broker; raw messages and those that Celery would make come out the same."""

    def publish(
        self,
        body: Any,
        *,
        headers: Any,
        serializer: Any,
        content_type: Any = "",
        content_encoding: Any = "",
        **options: Any,
    ) -> None:
        properties = {name: options[name] for name in ("exchange", "routing_key") if name in options}
        if serializer:
            message = Message._made(body, serializer, headers, properties)
        else:
            message = Message(body.encode(), content_type, content_encoding, headers, properties)
        ask(Publication(message))


class Queues(dict[str, Any]):
    """Those that the app knows: none has to be made."""

    create_missing = False


class App:
    """As much of a Celery app as single flight asks for."""

    conf = SimpleNamespace(
        task_always_eager=False, task_track_started=False, accept_content=["json"], task_publish_retry_policy={}
    )
    amqp = SimpleNamespace(queues=Queues())
    timezone = UTC
    producer_pool = SimpleNamespace(acquire=lambda **_: nullcontext(Producer()))

    def now(self) -> datetime:
        return datetime.now(UTC)


class Backend:
    """Results by task; a stored success stays, as in Celery's backends."""

    serializer, accept = "json", {"application/json"}

    def __init__(self) -> None:
        self.results: dict[str, tuple[str, Any]] = {}

    def store(self, task_id: str, state: str, result: Any) -> None:
        if self.results.get(task_id, ("",))[0] != states.SUCCESS:
            self.results[task_id] = state, result

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        state, result = self.results.get(task_id, (states.PENDING, None))
        return {"status": state, "result": result}

    def remove_pending_result(self, result: Any) -> None:
        """What Celery's results ask for when they are dropped."""

    def prepare_exception(self, error: BaseException) -> list[Any]:
        return list(error.args)

    def exception_to_python(self, content: list[Any]) -> BaseException:
        return Failed(*content)


class Job:
    """A single-flight task as its code finds it."""

    name, serializer, time_limit, typing, ignore_result = "job", "json", None, False, False
    acks_on_failure_or_timeout = True

    def __init__(self, on_duplicate: str, *, acks_late: bool, reject_on_worker_lost: bool) -> None:
        self.app, self.backend = App(), Backend()
        self.acks_late, self.reject_on_worker_lost = acks_late, reject_on_worker_lost
        self.policy = Policy(
            "job", on_duplicate, alias=ALIAS, timeout=TIMEOUT, queue_timeout=QUEUE_TIMEOUT, on_lost="tell"
        )
        setattr(self, POLICY, self.policy)
        setattr(self, WANTED, None)

    @property
    def request(self) -> Context:
        return greenlet.getcurrent().context

    @property
    def ground(self) -> Ground:
        return Ground.of(self.app, self.policy, NAME)

    def AsyncResult(self, task_id: str) -> AsyncResult:
        return AsyncResult(task_id, backend=self.backend, app=self.app)

    def apply_async(
        self, args: Any, task_id: str, headers: Any, retries: int = 0, producer: Any = None, **_: Any
    ) -> Any:
        """What Celery's does: makes a message of the call and publishes it."""
        told = headers | {"id": task_id, "task": self.name, "retries": retries}
        (producer or Producer()).publish((args, {}, {}), headers=told, serializer="json", **PROPERTIES)
        return self.AsyncResult(task_id)

    def message(self, version: int, task_id: str) -> Message:
        """What `send_task` makes."""
        told = {"id": task_id, "task": self.name, "retries": 0}
        return Message._made(((version,), {}, {}), "json", told, PROPERTIES)

    def run(self, version: int) -> str:
        """The body: its outcome tells its run."""
        request = self.request
        how, outcome = ask(Body(version))
        if how == "fail":
            raise Failed(outcome)
        if how == "ignore":
            raise Ignore
        if how == "requeue":
            raise Reject(how, requeue=True)
        if how == "stop":
            raise Stopped
        if how == "retry":
            again = {"task_id": request.id, "retries": request.retries + 1, "headers": request.headers}
            try:
                publish.publish(self, self.policy, self.apply_async, {"args": (version,), **again})
            except BrokerDown:
                raise Reject(how, requeue=False) from None
            raise Retry
        return outcome

    # What agents do

    def call(self, version: int, *, forced_as: str = "") -> Any:
        """A caller's: the result; None where it got an exception."""
        options = {"args": (version,), "task_id": forced_as or None}
        try:
            return publish.publish(self, self.policy, self.apply_async, options)
        except (LockError, DuplicateFlight, BrokerDown) as error:
            return error

    def execute(self, context: Context) -> str | None:
        """A child's, as Celery's tracer: the state in which the message ended."""
        greenlet.getcurrent().context = context
        state, value = None, None
        try:
            try:
                state, value = states.SUCCESS, run.run(self, self.policy, self.run, context.args, context.kwargs)
            except Retry as error:
                state, value = states.RETRY, error
            except Ignore as error:
                state, value = states.IGNORED, error
            except Reject as error:
                state, value = states.REJECTED, error
            except Stopped:
                state = None
            except (Failed, WorkerLostError, LockError, DuplicateFlight, BrokerDown) as error:
                state, value = states.FAILURE, error
            if state in (states.SUCCESS, states.FAILURE):
                ask(Storing())
                self.backend.store(context.id, state, value)
        finally:
            run._end(self, retval=value, state=state)
        return state

    def drain(self) -> Any:
        """The sweep's."""
        try:
            return self.ground.drain()
        except (LockError, BrokerDown) as error:
            return error

    def wait_inline(self, token: bytes) -> Any:
        """What an inline run does: it waits for the lock, runs, frees it, and looks for what it kept waiting."""
        alias, keys = self.ground.alias, self.ground.outbox.lock
        terms, now = alias.terms(TIMEOUT), time.monotonic()
        try:
            grant = alias.run(protocol.acquire(keys, token, terms, now=now, until=now + 600, blocking=True))
            greenlet.getcurrent().grant = grant
            ask(Body())
            alias.run(protocol.release(grant, deadline=time.monotonic() + 2, valid_until=grant.valid_until))
        except LockError as error:
            return error
        return self.drain()


@dataclass(eq=False)
class Delivery:
    """A message that the broker has, or gave to a worker."""

    message: Message
    redelivered: bool = False

    @property
    def entry(self) -> str:
        return f"{self.message.headers['id']}:{self.message.headers.get('retries', 0)}"

    @property
    def version(self) -> int:
        return version_of(self.message)


def version_of(message: Message) -> int:
    """Which call's arguments a message has."""
    return json.loads(message.body)[0][0]


class Broker:
    """Keeps what is ready, and what was given to a worker and not yet acknowledged. Promises no order."""

    def __init__(self) -> None:
        self.ready: list[Delivery] = []
        self.unacknowledged: list[Delivery] = []

    def put(self, message: Message) -> None:
        self.ready.append(Delivery(message))

    def give(self, delivery: Delivery) -> None:
        self.ready.remove(delivery)
        self.unacknowledged.append(delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        if delivery in self.unacknowledged:
            self.unacknowledged.remove(delivery)

    def requeue(self, delivery: Delivery) -> None:
        if delivery in self.unacknowledged:
            self.unacknowledged.remove(delivery)
            self.ready.append(Delivery(delivery.message, redelivered=True))


class Delivered:
    """What Celery's `Request` does with a delivery, as far as single flight builds on it."""

    _already_revoked = False
    content_type, expires, stamped_headers = "application/json", None, ()

    def __init__(self, job: Job, broker: Broker, delivery: Delivery) -> None:
        self.task, self.broker, self.delivery = job, broker, delivery
        self.request_dict: dict[str, Any] = dict(delivery.message.headers)
        self.delivery_info = {"redelivered": delivery.redelivered, "exchange": "", "routing_key": "q"}
        self.args, self.kwargs, _ = json.loads(delivery.message.body)

    @property
    def id(self) -> str:
        return self.request_dict["id"]

    @property
    def acknowledged(self) -> bool:
        return self.delivery not in self.broker.unacknowledged

    def context(self) -> Context:
        return Context(
            self.request_dict,
            args=self.args,
            kwargs=self.kwargs,
            called_directly=False,
            delivery_info=self.delivery_info,
            properties={},
        )

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        late = self.task.acks_late
        if self.task.backend.get_task_meta(self.id)["status"] == states.SUCCESS:
            self.broker.acknowledge(self.delivery)
        elif late and self.task.reject_on_worker_lost:
            self.reject(requeue=True)
        else:
            self.broker.acknowledge(self.delivery)
            self.task.backend.store(self.id, states.FAILURE, exc_info.exception)

    def reject(self, requeue: bool = False) -> None:
        self.broker.requeue(self.delivery)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self.broker.acknowledge(self.delivery)
        self.task.backend.store(self.id, states.REVOKED, reason)


class Received(Recovers, Delivered):
    """The parent process's request, with what single flight adds to it."""

    def child_was_lost(self, *, at_once: bool) -> None:
        """The parent's: told by the child's end, if that is noticed at once, and by Celery's pool in any case."""
        if at_once:
            self.child_died()
        self.on_failure(SimpleNamespace(exception=WorkerLostError("lost")))

    def drop(self) -> None:
        """The parent's: the message's task was revoked before it started."""
        self._announce_revoked("revoked", False, None, False)
