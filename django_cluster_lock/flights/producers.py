"""What stands in for a producer while Celery makes the message of a call."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from celery import Celery

from django_cluster_lock.errors import LockUnavailable
from django_cluster_lock.flights.ground import Claim
from django_cluster_lock.flights.messages import HEADER, Message

# Whoever has it may take a producer before its claim is answered. One call at a time, and not the only producer that
# there is: a shard that does not answer must not keep them from others.
_early = threading.Lock()


class Borrowed:
    """A producer of the app's pool, which is taken when something is wanted of it, until the ``with`` ends.

    Args:
        own: the caller's own, if it gives one, which is used instead.
    """

    _lender: Any = None
    _producer: Any = None

    def __init__(self, app: Celery, own: Any = None) -> None:
        self._app, self._own = app, own

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lender:
            self._lender.__exit__(*raised)  # which closes a connection that something has failed on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._taken(), name)

    def _taken(self) -> Any:
        if self._producer is None:
            lender = self._lend()
            self._producer, self._lender = lender.__enter__(), lender
        return self._producer

    def _lend(self) -> AbstractContextManager[Any]:
        lender: AbstractContextManager[Any] = self._app.producer_or_acquire(self._own)
        return lender


class Recorder(Borrowed):
    """Keeps the message of a call that Celery would have published; it needs no broker for that."""

    message: Message | None = None

    @property
    def connection(self) -> Any:
        """The one that those of the pool are copies of: what Celery asks of it needs no broker either."""
        return self._app.producer_pool.connections.connection

    def publish(self, body: Any, **options: Any) -> None:
        """Keeps the first message; what follows is Celery's event about it."""
        if self.message is None:
            self.message = Message.of_call(self._app, body, options)
        else:
            self._taken().publish(body, **options)


class Duplicate(Exception):
    """The key is taken: Celery must not go on with the call."""


class Gate(Borrowed):
    """Lets Celery make the message while the claim is on its way; what it wants then has to wait for the answer.

    Up to that moment Celery has done nothing that others could see, and told nobody.

    Args:
        answer: waits for the claim.
        keeps: whether the message of a duplicate is kept, for it to be parked under its own id; else, and if it is to
            replace another, the call ends with `Duplicate`.
    """

    claim: Claim | None = None
    unanswered = False  # whether a claim may have been made that nobody was told of

    def __init__(self, app: Celery, answer: Callable[[], Claim], *, keeps: bool) -> None:
        super().__init__(app)
        self._answer: Callable[[], Claim] | None = answer
        self._keeps = keeps

    def __exit__(self, *raised: object) -> None:
        try:
            super().__exit__(*raised)
        finally:
            try:
                self.flies()
            except LockUnavailable as error:  # what ended the call before it came here is more important
                self.unanswered = error.unanswered

    def flies(self) -> bool:
        """Whether the key is the call's, once the answer is there."""
        if self._answer:
            answer, self._answer = self._answer, None
            self.claim = answer()
        return self.claim is not None and self.claim.status == "own"

    @property
    def message(self) -> Message | None:
        """That of a duplicate."""
        return self._producer.message if isinstance(self._producer, Recorder) else None

    def publish(self, body: Any, **options: Any) -> Any:
        """Publishes what Celery has made; the message of a flight also tells the place of its call."""
        producer = self._taken()
        ticket = (options.get("headers") or {}).get(HEADER)
        if self.claim and ticket is not None:
            ticket["place"] = self.claim.place
        return producer.publish(body, **options)

    def _lend(self) -> AbstractContextManager[Any]:
        producer = None
        if _early.acquire(blocking=False):
            try:
                producer = self._taken_early()
            finally:
                _early.release()
        if self.flies():
            return super()._lend() if producer is None else producer
        if self._keeps and self.claim and not self.claim.waiting:
            return Recorder(self._app)
        raise Duplicate

    def _taken_early(self) -> Any:
        """A producer for a flight, taken before it is known to be one: that lasts about as long as the answer needs.

        It is made as the app's pool of producers makes its own, but waits for no connection: a duplicate has no need of
        one. (Without waiting, kombu may open one more than its limit where threads meet.)
        """
        producers: Any = self._app.producer_pool
        pool = producers.connections
        if pool.limit == 1:
            return None
        try:
            connection = pool.acquire()
        except pool.LimitExceeded:
            return None
        lent = False
        try:
            producer = producers.Producer(connection)
            producer.release = connection.release
            lent = self.flies()
        finally:
            if not lent:
                connection.release()
        return producer if lent else None
