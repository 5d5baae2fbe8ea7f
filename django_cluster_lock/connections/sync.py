"""Blocking connections: redis-py opens them (TLS, ACL), then the socket and hiredis do the work."""

import math
import select
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import ref

from django_cluster_lock.actions import Action, Answer, Awake, Block, Forget, NoAnswer, Node, Retain, Send, SendAll
from django_cluster_lock.connections.options import ConnectionOptions
from django_cluster_lock.connections.pool import LIFE, Pool
from django_cluster_lock.connections.wire import (
    CHUNK,
    FAILURES,
    NONE_CAME,
    Inbox,
    failed,
    pack,
    patience,
    refusal,
    wait_for_one,
)

NOTICEABLE = 0.05  # seconds of waiting for a connection that count for the time in which an answer is to come


class Wire:
    """One connection to a node, open once `open` has returned."""

    pool: "Pool[Wire]"

    def __init__(self, options: ConnectionOptions, node: Node) -> None:
        self._options, self._node = options, node
        self.is_open, self.used_at = False, 0.0

    def open(self, timeout: float) -> None:
        self._connection = self._options.connection(self._node, timeout)
        self._connection.connect()
        sock: Any = self._connection._sock  # noqa: SLF001 - it has no public name
        self.socket = sock
        self._timeout: float | None = None
        readable = select.poll()
        readable.register(self.socket, select.POLLIN)
        self.poll = readable.poll
        self._inbox = Inbox()
        self.feed_inbox, self.take = self._inbox.feed, self._inbox.take
        self.is_open = True

    def write(self, send: Send, timeout: float) -> None:
        if timeout != self._timeout:
            self.socket.settimeout(timeout)
            self._timeout = timeout
        self.socket.sendall(pack(send.commands))

    def feed(self) -> None:
        self.feed_inbox(self.socket.recv(CHUNK))

    def says_nothing(self) -> bool:
        """Return whether the server neither closed the connection nor said something that nobody asked for.

        If `poll` finds that something has come, it may be TLS's own.
        """
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
        """Close with a reset, so that the server drops what it has not run yet."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.socket.close()
        self.close()


class Connections:
    """A pool of them for each node. Takes the actions of a flow, from any thread or greenlet."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._pools: dict[Node, Pool[Wire]] = {}
        self._watching: threading.Event | None = None  # set to end the thread that closes what is idle for long
        self._changing = threading.RLock()

    def perform(self, action: Action) -> object:
        """Return what an action of the exchange answers; a `Send` that fails raises NoAnswer."""
        if isinstance(action, Send):
            return self.send(action) if action.block else self._written(action)()
        if isinstance(action, SendAll):
            return self.send_all(action.sends)
        if isinstance(action, Forget | Retain):
            self._close_idle([action.node] if isinstance(action, Forget) else self._pools.keys() - action.nodes)
            return None
        time.sleep(action.seconds)
        return time.monotonic()

    def begin(self, action: Action) -> Callable[[], object]:
        """Write what a `Send` asks for; what is returned does the rest of the action, and has to be called."""
        return self._written(action) if isinstance(action, Send) else partial(self.perform, action)

    def send(self, send: Send) -> Answer | Awake:
        if send.block is not None and not self._seated(send.node, send.block):
            return Awake(time.monotonic())
        return self._written(send)()

    def _written(self, send: Send) -> Callable[[], Answer]:
        wire: Wire | None = None
        sent: float | None = None
        try:
            now = time.monotonic()
            timeout = patience(send, now, self._options.socket_timeout)
            wire = self._wire(send, now, timeout)
            sent = time.monotonic()
            if sent - now > NOTICEABLE:
                timeout = patience(send, sent, self._options.socket_timeout)
            wire.write(send, timeout)
        except FAILURES as error:
            return partial(self._settle, send, wire, error, sent)
        except BaseException:
            if wire:
                lose(wire)
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
            lose(wire)
            raise
        now = time.monotonic()
        wire.pool.give(wire, now)
        if self._watching is None:
            self._watch()
        return Answer(values, sent, now)

    def send_all(self, sends: Sequence[Send]) -> list[Answer | NoAnswer]:
        """Write to all nodes, then read from any that answers: a dead one keeps none of the others waiting.

        All callers take their connections in the same order, one to a node: none holds what another waits for.
        """
        outcomes: dict[int, Answer | NoAnswer] = {}
        while left := [place for place in range(len(sends)) if place not in outcomes]:
            first = {sends[place].node: place for place in reversed(left)}
            self._send_to_each({place: sends[place] for _, place in sorted(first.items())}, outcomes)
        return [outcomes[place] for place in range(len(sends))]

    def _send_to_each(self, sends: dict[int, Send], outcomes: dict[int, Answer | NoAnswer]) -> None:
        if len(sends) == 1:
            ((place, send),) = sends.items()
            outcomes[place] = self._outcome(send)
            return
        open_: dict[int, tuple[Wire, float, float]] = {}
        with selectors.DefaultSelector() as selector:
            try:
                for place, send in sends.items():
                    wire, sent = None, None
                    try:
                        now = time.monotonic()
                        timeout = patience(send, now, self._options.socket_timeout)
                        wire = self._wire(send, now, timeout)
                        sent = time.monotonic()
                        if sent - now > NOTICEABLE:
                            timeout = patience(send, sent, self._options.socket_timeout)
                        open_[place] = (wire, sent, sent + timeout)
                        wire.write(send, timeout)
                        selector.register(wire.socket, selectors.EVENT_READ, (place, []))
                    except FAILURES as error:
                        open_.pop(place, None)
                        outcomes[place] = self._given_up(send, wire, error, sent)
                self._collect(sends, selector, open_, outcomes)
            except BaseException:
                for wire, _, _ in open_.values():
                    lose(wire)
                raise

    def _collect(
        self,
        sends: dict[int, Send],
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
                    del open_[place]  # before it is given back: what interrupts us must not close it for its next user
                    selector.unregister(wire.socket)
                    wire.pool.give(wire, answered)
                    if self._watching is None:
                        self._watch()
                except FAILURES as error:
                    selector.unregister(wire.socket)
                    outcomes[place] = self._given_up(sends[place], wire, error, sent)
                    open_.pop(place, None)

    def forget(self, *, close: bool = True) -> None:
        """Drop all idle connections; after a fork without closing what the parent still uses."""
        if not close:  # threads that are not here may have held the locks
            for wire in [wire for pool in self._pools.values() for wire in pool.idle]:
                wire.socket.close()
            return
        self._close_idle(self._pools.keys())
        if self._watching is not None:
            self._watching.set()

    def close_expired(self, now: float) -> float | None:
        """Close what nobody has used for long; return when to look again, None if nothing is idle."""
        self._close_idle(self._pools.keys(), now - LIFE)
        idle = [wire.used_at for pool in list(self._pools.values()) for wire in list(pool.idle)]
        return max(min(idle) + LIFE - now, 0) + 0.01 if idle else None

    def _close_idle(self, nodes: Iterable[Node], before: float = math.inf) -> None:
        for pool in filter(None, map(self._pools.get, list(nodes))):
            for wire in pool.drop(before):
                with suppress(OSError):
                    wire.close()

    def _seated(self, node: Node, block: Block) -> bool:
        """Return whether a waiter may sleep on a connection; if not, some time has passed."""
        seats, waiter = self._pool(node).seats, block.waiter
        if waiter is None or seats.sit(waiter):
            return True
        woken = threading.Event()
        woken.wait(seats.stand(waiter, block.seconds, woken.set))
        return False

    def _wire(self, send: Send, now: float, timeout: float) -> Wire:
        pool = self._pools.get(send.node) or self._pool(send.node)
        while True:
            wire = pool.take(send.reserved) or self._waited_for(pool, send, now)
            if not wire.is_open:
                wire.pool = pool
                try:
                    wire.open(timeout)
                except BaseException:
                    pool.remove(wire)
                    raise
                pool.serve()
                return wire
            if now - wire.used_at < LIFE and (not wire.poll(0) or wire.says_nothing()):
                return wire
            wire.close()
            pool.remove(wire)

    def _pool(self, node: Node) -> Pool[Wire]:
        pool = self._pools.get(node)
        if pool is None:
            pool = Pool(partial(Wire, self._options, node), self._options.max_connections)
            pool = self._pools.setdefault(node, pool)
        return pool

    def _waited_for(self, pool: Pool[Wire], send: Send, now: float) -> Wire:
        """Return a connection to open, or one that comes back: within the request's time, while any come back."""
        woken = threading.Event()
        claim = pool.claim(woken.set, reserved=send.reserved)
        step, served = wait_for_one(send, now, self._options.socket_timeout), pool.served
        try:
            while not woken.wait(step) and served != pool.served and time.monotonic() < send.deadline:
                served = pool.served
        except BaseException:
            if wire := pool.withdraw(claim):
                pool.give(wire, wire.used_at) if wire.is_open else pool.remove(wire)
            raise
        if wire := pool.withdraw(claim):
            return wire
        raise TimeoutError(NONE_CAME)

    def _watch(self) -> None:
        """Have a thread close what stays idle for long, as long as anything is idle."""
        with self._changing:
            if self._watching is not None:
                return
            self._watching = ended = threading.Event()
        thread = threading.Thread(target=_close_by_time, args=(ref(self), ended), name="cluster-lock-idle", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # too many threads, or the interpreter is ending: it is looked at when it is used next
            self._watching = None

    def ended(self, watching: threading.Event) -> None:
        """Note that the thread of that event has ended."""
        if self._watching is watching:
            self._watching = None

    def _outcome(self, send: Send) -> Answer | NoAnswer:
        try:
            return self._written(send)()
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
            lose(wire)
            if sent is not None:  # those used since have just been seen to work
                self._close_idle([send.node], sent)
        return failed(send, error, sent)


def lose(wire: Wire) -> None:
    """Close a connection in the middle of a request."""
    wire.abort()
    wire.pool.remove(wire)


def _close_by_time(of: "ref[Connections]", ended: threading.Event) -> None:
    wait: float | None = LIFE
    while wait is not None and not ended.wait(wait):
        connections = of()
        if connections is None:
            return
        wait = connections.close_expired(time.monotonic())
        if wait is None:
            connections.ended(ended)  # what comes back from here on starts another
            wait = connections.close_expired(time.monotonic())
        del connections
