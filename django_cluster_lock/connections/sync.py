"""Blocking connections: redis-py opens them (TLS, ACL), then the socket and hiredis do the work."""

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from django_cluster_lock.actions import Action, Answer, NoAnswer, Node, Send, SendAll
from django_cluster_lock.connections.idle import Idle
from django_cluster_lock.connections.options import ConnectionOptions
from django_cluster_lock.connections.wire import CHUNK, FAILURES, IDLE_CHECK, Inbox, failed, pack, patience, refusal


class Wire:
    """One open connection to a node."""

    def __init__(self, options: ConnectionOptions, node: Node, timeout: float) -> None:
        self._connection = options.connection(node, timeout)
        self._connection.connect()
        self.socket: Any = self._connection._sock  # noqa: SLF001 - it has no public name
        self._timeout: float | None = None
        self._inbox = Inbox()
        self.take = self._inbox.take
        self.used_at = time.monotonic()

    def write(self, send: Send, timeout: float) -> None:
        if timeout != self._timeout:
            self.socket.settimeout(timeout)
            self._timeout = timeout
        self.socket.sendall(pack(send.commands))

    def feed(self) -> None:
        self._inbox.feed(self.socket.recv(CHUNK))

    def is_quiet(self) -> bool:
        """Whether the server neither closed the connection nor said something unasked."""
        self.socket.settimeout(0)
        self._timeout = 0
        try:
            self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._connection.disconnect()

    def abort(self) -> None:
        """Closes with a reset, so that the server drops what it has not run yet."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.socket.close()
        self.close()


class Connections:
    """A pool of them for each node. Takes the actions of a flow, from any thread or greenlet."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._idle = Idle[Wire]()

    def perform(self, action: Action) -> object:
        """What an action of the exchange answers; a `Send` that fails raises NoAnswer."""
        if isinstance(action, Send):
            return self.send(action)
        if isinstance(action, SendAll):
            return self.send_all(action.sends)
        time.sleep(action.seconds)
        return time.monotonic()

    def begin(self, action: Action) -> Callable[[], object]:
        """Writes what a `Send` asks for; what is returned does the rest of the action, and has to be called."""
        return self._written(action) if isinstance(action, Send) else partial(self.perform, action)

    def send(self, send: Send) -> Answer:
        return self._written(send)()

    def _written(self, send: Send) -> Callable[[], Answer]:
        wire: Wire | None = None
        sent: float | None = None
        try:
            now = time.monotonic()
            timeout = patience(send, now, self._options.socket_timeout)
            wire = self._wire(send.node, now, timeout)
            sent = time.monotonic()
            wire.write(send, timeout)
        except FAILURES as error:
            return partial(self._settle, send, wire, error, sent)
        except BaseException:
            if wire:
                wire.abort()
            raise
        return partial(self._answer, send, wire, sent)

    def _answer(self, send: Send, wire: Wire, sent: float) -> Answer:
        values: list[object] = []
        count = len(send.commands)
        try:
            wire.feed()
            while not wire.take(values, count):
                wire.feed()
        except FAILURES as error:
            return self._settle(send, wire, error, sent)
        except BaseException:
            wire.abort()
            raise
        now = time.monotonic()
        self._idle.give(send.node, wire, now)
        return Answer(values, sent, now)

    def send_all(self, sends: Sequence[Send]) -> list[Answer | NoAnswer]:
        """Writes to all nodes, then reads from whichever answers: a dead one keeps none of the others waiting."""
        if len(sends) == 1:
            return [self._outcome(sends[0])]
        outcomes: dict[int, Answer | NoAnswer] = {}
        open_: dict[int, tuple[Wire, float, float]] = {}
        with selectors.DefaultSelector() as selector:
            try:
                for place, send in enumerate(sends):
                    wire, sent = None, None
                    try:
                        now = time.monotonic()
                        timeout = patience(send, now, self._options.socket_timeout)
                        wire = self._wire(send.node, now, timeout)
                        sent = time.monotonic()
                        open_[place] = (wire, sent, sent + timeout)
                        wire.write(send, timeout)
                        selector.register(wire.socket, selectors.EVENT_READ, (place, []))
                    except FAILURES as error:
                        open_.pop(place, None)
                        outcomes[place] = self._given_up(send, wire, error, sent)
                self._collect(sends, selector, open_, outcomes)
            except BaseException:
                for wire, _, _ in open_.values():
                    wire.abort()
                raise
        return [outcomes[place] for place in range(len(sends))]

    def _collect(
        self,
        sends: Sequence[Send],
        selector: selectors.BaseSelector,
        open_: dict[int, tuple[Wire, float, float]],
        outcomes: dict[int, Answer | NoAnswer],
    ) -> None:
        while open_:
            now = time.monotonic()
            for place, (wire, sent, end) in list(open_.items()):
                if now >= end:
                    selector.unregister(wire.socket)
                    del open_[place]
                    outcomes[place] = self._given_up(sends[place], wire, TimeoutError("timed out"), sent)
            nearest = min((end for _, _, end in open_.values()), default=now)
            for key, _ in selector.select(max(nearest - now, 0)):
                place, values = key.data
                wire, sent, _ = open_[place]
                try:
                    wire.feed()
                    if not wire.take(values, len(sends[place].commands)):
                        continue
                    answered = time.monotonic()
                    outcomes[place] = Answer(values, sent, answered)
                    selector.unregister(wire.socket)
                    self._idle.give(sends[place].node, wire, answered)
                except FAILURES as error:
                    selector.unregister(wire.socket)
                    outcomes[place] = self._given_up(sends[place], wire, error, sent)
                del open_[place]

    def forget(self, *, close: bool = True) -> None:
        """Drops all idle connections; after a fork without closing what the parent still uses."""
        for wire in self._idle.drop_all():
            wire.close() if close else wire.socket.close()

    def _wire(self, node: Node, now: float, timeout: float) -> Wire:
        while wire := self._idle.take(node):
            if now - wire.used_at < IDLE_CHECK or wire.is_quiet():
                return wire
            wire.close()
        return Wire(self._options, node, timeout)

    def _outcome(self, send: Send) -> Answer | NoAnswer:
        try:
            return self.send(send)
        except NoAnswer as failure:
            return failure

    def _settle(self, send: Send, wire: Wire | None, error: Exception, sent: float | None) -> Answer:
        outcome = self._given_up(send, wire, error, sent)
        if isinstance(outcome, NoAnswer):
            raise outcome from error
        return outcome

    def _given_up(self, send: Send, wire: Wire | None, error: Exception, sent: float | None) -> Answer | NoAnswer:
        if wire is None:
            answer = refusal(send, error)
            if answer:
                return answer
        else:
            wire.abort()
            for idle in self._idle.drop(send.node):  # the next attempt gets a fresh one
                idle.close()
        return failed(send, error, sent)
