"""A name that leads to one server now and to another later, as providers and operators switch it."""

import asyncio
import threading
from contextlib import suppress

from tests.faults.namespace import HOST

CHUNK = 1 << 16


class Name:
    """An address that clients connect to. A connection that is open stays with the server it has.

    Args:
        port: of the server that it leads to at first.
    """

    def __init__(self, port):
        self.leads_to = port
        self._serving = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="name", daemon=True)
        self._thread.start()
        self.port = self._call(self._open())

    def close(self):
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _open(self):
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self._server.sockets[0].getsockname()[1]

    async def _shut(self):
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._serving.add(task)  # nothing else keeps it from being collected
        server = None
        try:
            answers, server = await asyncio.open_connection(HOST, self.leads_to)
            passing = {asyncio.ensure_future(way) for way in (_pass_on(reader, server), _pass_on(answers, writer))}
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in passing:
                    way.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in filter(None, (server, writer)):
                end.close()
            self._serving.discard(task)


async def _pass_on(reader, writer):
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
