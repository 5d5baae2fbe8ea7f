"""asyncio connections: redis-py opens them (TLS, ACL), then the streams and hiredis do the work."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

from django_cluster_lock.actions import Action, Answer, NoAnswer, Node, Send, SendAll
from django_cluster_lock.connections.idle import Idle
from django_cluster_lock.connections.options import ConnectionOptions
from django_cluster_lock.connections.wire import CHUNK, FAILURES, Inbox, failed, pack, patience, refusal


class AsyncWire:
    """One open connection to a node, of one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._inbox = Inbox()
        self.used_at = time.monotonic()

    @classmethod
    async def open(cls, options: ConnectionOptions, node: Node, within: float) -> "AsyncWire":
        connection = options.async_connection(node, within)
        await connection._connect()  # noqa: SLF001 - what it opens is ours to close, at once where it comes to nothing
        reader, writer = connection._reader, connection._writer  # noqa: SLF001 - they have no public names
        assert reader is not None
        assert writer is not None
        wire = cls(reader, writer)
        try:
            await connection.on_connect()
        except BaseException:
            wire.close()
            raise
        finally:
            connection._reader = connection._writer = None  # noqa: SLF001
        return wire

    def is_quiet(self) -> bool:
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, send: Send) -> list[object]:
        self._writer.write(pack(send.commands))
        values: list[object] = []
        while not self._inbox.take(values, len(send.commands)):
            self._inbox.feed(await self._reader.read(CHUNK))
        return values

    def close(self) -> None:
        """Closes with a reset, so that the server drops what it has not run yet."""
        with suppress(RuntimeError):  # its event loop is closed
            self._writer.transport.abort()


class AsyncConnections:
    """A pool of them for each node, of one event loop. Takes the actions of a flow."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._idle = Idle[AsyncWire]()
        self._end_of_loop = self._until_end_of_loop()

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
            outcome = await self._outcome(action)
            if isinstance(outcome, NoAnswer):
                raise outcome
            return outcome
        if isinstance(action, SendAll):
            return await asyncio.gather(*map(self._outcome, action.sends))
        await asyncio.sleep(action.seconds)
        return time.monotonic()

    async def _outcome(self, send: Send) -> Answer | NoAnswer:
        wire: AsyncWire | None = None
        sent: float | None = None
        timeout = patience(send, time.monotonic(), self._options.socket_timeout)
        try:
            async with asyncio.timeout(timeout):
                wire = await self._wire(send.node, timeout)
                sent = time.monotonic()
                values = await wire.ask(send)
        except FAILURES as error:
            if wire is None:
                answer = refusal(send, error)
                if answer:
                    return answer
            else:
                wire.close()
                for idle in self._idle.drop(send.node):  # the next attempt gets a fresh one
                    idle.close()
            return failed(send, error, sent)
        except BaseException:
            if wire:
                wire.close()
            raise
        now = time.monotonic()
        self._idle.give(send.node, wire, now)
        return Answer(values, sent, now)

    async def _wire(self, node: Node, within: float) -> AsyncWire:
        while wire := self._idle.take(node):
            if wire.is_quiet():
                return wire
            wire.close()
        return await AsyncWire.open(self._options, node, within)

    def forget(self) -> None:
        """Closes all idle connections."""
        for wire in self._idle.drop_all():
            wire.close()
