"""asyncio connections: redis-py opens them (TLS, ACL), then the transport and hiredis do the work."""

import asyncio
import math
import select
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from functools import partial

from django_cluster_lock.actions import Action, Answer, Awake, Block, Forget, NoAnswer, Node, Retain, Send, SendAll
from django_cluster_lock.connections.options import ConnectionOptions
from django_cluster_lock.connections.pool import LIFE, Pool
from django_cluster_lock.connections.wire import (
    FAILURES,
    NONE_CAME,
    Inbox,
    failed,
    pack,
    patience,
    refusal,
    wait_for_one,
)


class AsyncWire(asyncio.Protocol):
    """One connection to a node, of one event loop, open once `open` has returned."""

    def __init__(self, options: ConnectionOptions, node: Node) -> None:
        self._options, self._node = options, node
        self.is_open = False
        self.used_at = 0.0
        self._asked: asyncio.Future[list[object]] | None = None
        self._count = 0
        self._values: list[object] = []
        self._inbox = Inbox()
        self._readable: select.poll | None = None

    async def open(self, within: float) -> None:
        connection = self._options.async_connection(self._node, within)
        await connection._connect()  # noqa: SLF001 - what it opens is ours to close, at once where it comes to nothing
        reader, writer = connection._reader, connection._writer  # noqa: SLF001 - they have no public names
        assert reader is not None
        assert writer is not None
        self._writer, self._transport = writer, writer.transport
        try:
            await connection.on_connect()
        except BaseException:
            self.close()
            raise
        finally:
            connection._reader = connection._writer = None  # noqa: SLF001
        self._transport.set_protocol(self)
        if self._transport.get_extra_info("ssl_object") is None:
            self._readable = select.poll()
            self._readable.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        self.is_open = True
        if reader.at_eof():
            self.close()

    def data_received(self, data: bytes) -> None:
        asked = self._asked
        if asked is None or asked.done():  # nobody asked for it
            self.close()
            return
        try:
            self._inbox.feed(data)
            if not self._inbox.take(self._values, self._count):
                return
        except FAILURES as error:
            self._asked = None
            asked.set_exception(error)
        else:
            self._asked = None
            asked.set_result(self._values)

    def connection_lost(self, exc: Exception | None) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_exception(exc or ConnectionError("the server closed the connection"))

    def is_quiet(self) -> bool:
        """Return whether the server neither closed the connection nor said something that nobody asked for."""
        return not (self._transport.is_closing() or (self._readable and self._readable.poll(0)))

    async def ask(self, send: Send) -> list[object]:
        self._values, self._count = [], len(send.commands)
        self._asked = asked = asyncio.get_running_loop().create_future()
        self._transport.write(pack(send.commands))
        values: list[object] = await asked
        return values

    def close(self) -> None:
        """Close with a reset, so that the server drops what it has not run yet."""
        with suppress(RuntimeError):  # its event loop is closed
            self._transport.abort()


class AsyncConnections:
    """A pool of them for each node, of one event loop. Takes the actions of a flow."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._pools: dict[Node, Pool[AsyncWire]] = {}
        self._end_of_loop = self._until_end_of_loop()
        self._closer: asyncio.TimerHandle | None = None  # of what is idle for long

    @classmethod
    async def open(cls, options: ConnectionOptions) -> "AsyncConnections":
        """The pool of the running event loop; it closes its connections when the loop ends."""
        connections = cls(options)
        await anext(connections._end_of_loop)
        return connections

    async def _until_end_of_loop(self) -> AsyncGenerator[None, None]:
        """Suspended until the event loop shuts its asynchronous generators down, which it does before it closes."""
        try:
            yield
        finally:
            self.forget()
            await asyncio.sleep(0)  # lets the transports close

    async def perform(self, action: Action) -> object:
        """What an action of the exchange answers.

        Raises:
            NoAnswer: a `Send` failed.
        """
        if isinstance(action, Send):
            if action.block is not None and not await self._seated(action.node, action.block):
                return Awake(time.monotonic())
            outcome = await self._outcome(action)
            if isinstance(outcome, NoAnswer):
                raise outcome
            return outcome
        if isinstance(action, SendAll):
            return await asyncio.gather(*map(self._outcome, action.sends))
        if isinstance(action, Forget | Retain):
            self._close_idle([action.node] if isinstance(action, Forget) else self._pools.keys() - action.nodes)
            return None
        await asyncio.sleep(action.seconds)
        return time.monotonic()

    def forget(self) -> None:
        """Close all idle connections."""
        self._close_idle(self._pools.keys())
        if self._closer is not None:
            self._closer.cancel()
            self._closer = None

    async def _outcome(self, send: Send) -> Answer | NoAnswer:
        wire: AsyncWire | None = None
        sent: float | None = None
        pool = self._pool(send.node)
        try:
            wire = await self._wire(pool, send)
            async with asyncio.timeout(patience(send, time.monotonic(), self._options.socket_timeout)):
                sent = time.monotonic()
                values = await wire.ask(send)
        except FAILURES as error:
            if wire is None:
                answer = refusal(send, error)
                if answer:
                    return answer
            else:
                self._lose(pool, wire)
                if sent is not None:  # those used since have just been seen to work
                    self._close_idle([send.node], sent)
            return failed(send, error, sent)
        except BaseException:
            if wire:
                self._lose(pool, wire)
            raise
        now = time.monotonic()
        pool.give(wire, now)
        if self._closer is None:
            self._closer = asyncio.get_running_loop().call_later(LIFE, self._close_expired)
        return Answer(values, sent, now)

    async def _wire(self, pool: Pool[AsyncWire], send: Send) -> AsyncWire:
        while True:
            now = time.monotonic()
            wire = pool.take(send.reserved) or await self._waited_for(pool, send, now)
            if not wire.is_open:
                within = patience(send, now, self._options.socket_timeout)
                try:
                    async with asyncio.timeout(within):
                        await wire.open(within)
                except BaseException:
                    pool.remove(wire)
                    raise
                pool.serve()
                return wire
            if now - wire.used_at < LIFE and wire.is_quiet():
                return wire
            self._lose(pool, wire)

    async def _waited_for(self, pool: Pool[AsyncWire], send: Send, now: float) -> AsyncWire:
        """Return a connection to open, or one that comes back: within the request's time, while any come back."""
        woken = asyncio.Event()
        claim = pool.claim(woken.set, reserved=send.reserved)
        step, served = wait_for_one(send, now, self._options.socket_timeout), pool.served
        try:
            while not await _set(woken, step) and served != pool.served and time.monotonic() < send.deadline:
                served = pool.served
        except BaseException:
            if wire := pool.withdraw(claim):
                pool.give(wire, wire.used_at) if wire.is_open else pool.remove(wire)
            raise
        if wire := pool.withdraw(claim):
            return wire
        raise TimeoutError(NONE_CAME)

    async def _seated(self, node: Node, block: Block) -> bool:
        """Return whether a waiter may sleep on a connection; if not, some time has passed."""
        seats, waiter = self._pool(node).seats, block.waiter
        if waiter is None or seats.sit(waiter):
            return True
        woken = asyncio.Event()
        await _set(woken, seats.stand(waiter, block.seconds, woken.set))
        return False

    def _pool(self, node: Node) -> Pool[AsyncWire]:
        pool = self._pools.get(node)
        if pool is None:
            make = partial(AsyncWire, self._options, node)
            pool = self._pools[node] = Pool(make, self._options.max_connections)
        return pool

    def _lose(self, pool: Pool[AsyncWire], wire: AsyncWire) -> None:
        wire.close()
        pool.remove(wire)

    def _close_idle(self, nodes: Iterable[Node], before: float = math.inf) -> None:
        for pool in filter(None, map(self._pools.get, list(nodes))):
            for wire in pool.drop(before):
                wire.close()

    def _close_expired(self) -> None:
        """Close what nobody has used for long, and look again as long as anything is idle."""
        now = time.monotonic()
        self._close_idle(self._pools.keys(), now - LIFE)
        idle = [wire.used_at for pool in self._pools.values() for wire in pool.idle]
        wait = max(min(idle) + LIFE - now, 0) + 0.01 if idle else None
        self._closer = None if wait is None else asyncio.get_running_loop().call_later(wait, self._close_expired)


async def _set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, those seconds at most; return whether it came."""
    if not event.is_set() and seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
    return event.is_set()
