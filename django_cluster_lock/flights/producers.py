"""What stands in for a producer while Celery makes the message of a call."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from celery import Celery

from django_cluster_lock.errors import LockError
from django_cluster_lock.flights.ground import Claim
from django_cluster_lock.flights.messages import HEADER, Message


class Borrowed:
    """A producer of the app's pool, which is taken when something is wanted of it, until the ``with`` ends."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._producer: Any = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives back what it had to take."""
        if self._producer is not None:
            self._producer.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._taken(), name)

    def _taken(self) -> Any:
        if self._producer is None:
            self._producer = self._app.producer_pool.acquire(block=True)
        return self._producer


class Unopened:
    """The connection of who publishes nothing over it: Celery asks it for the errors that it could raise."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @staticmethod
    def _reraise_as_library_errors() -> nullcontext[None]:
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app.connection_for_write(), name)


class Recorder(Borrowed):
    """Keeps the message of a call that Celery would have published; it needs no broker for that."""

    message: Message | None = None

    @property
    def connection(self) -> Any:
        return Unopened(self._app)

    def publish(self, body: Any, **options: Any) -> None:
        """Keeps the first message; what follows is Celery's event about it."""
        if self.message is None:
            self.message = Message.of_call(body, options)
        else:
            self._taken().publish(body, **options)


class Duplicate(Exception):
    """The key is taken: Celery must not go on with the call."""


class Gate(Borrowed):
    """Lets Celery make the message while the claim is on its way; what it wants then has to wait for the answer.

    Up to that moment Celery has done nothing that others could see, and told nobody.

    Args:
        answer: waits for the claim.
        parks: whether the message of a duplicate is kept, for it to be parked; else the call ends with `Duplicate`.
    """

    claim: Claim | None = None

    def __init__(self, app: Celery, answer: Callable[[], Claim], *, parks: bool) -> None:
        super().__init__(app)
        self._answer: Callable[[], Claim] | None = answer
        self._parks = parks

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        with suppress(LockError):  # what ended the call before it came here is more important
            self._ask()

    @property
    def message(self) -> Message | None:
        """That of a duplicate."""
        return self._producer.message if isinstance(self._producer, Recorder) else None

    def publish(self, body: Any, **options: Any) -> Any:
        """Publishes what Celery has made; the message of a flight also tells the place of its call."""
        producer = self._taken()
        headers = options.get("headers") or {}
        if self.claim and HEADER in headers:
            options["headers"] = headers | {HEADER: headers[HEADER] | {"place": self.claim.place}}
        return producer.publish(body, **options)

    def _taken(self) -> Any:
        self._ask()
        if self._producer is None and not (self.claim and self.claim.status == "own"):
            if not self._parks:
                raise Duplicate
            self._producer = Recorder(self._app)
        return super()._taken()

    def _ask(self) -> None:
        if self._answer:
            answer, self._answer = self._answer, None
            self.claim = answer()
