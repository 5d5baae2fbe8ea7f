"""Those who use locks in the tests: each a thread, with a blocking or an asyncio face on the same methods."""

import asyncio
from concurrent.futures import ThreadPoolExecutor


class Actor:
    """A thread that calls a lock's methods; a lease belongs to the actor that acquired it."""

    def __init__(self):
        self._executor = ThreadPoolExecutor(1)

    def start(self, lock, method, *args, **kwargs):
        """Begins a call; gives the future of its result."""
        return self._executor.submit(getattr(lock, method), *args, **kwargs)

    def do(self, lock, method, *args, **kwargs):
        """A call's result."""
        return self.start(lock, method, *args, **kwargs).result(60)

    def see(self, lock, attribute):
        """The value of an attribute, as the actor sees it."""
        return self._executor.submit(getattr, lock, attribute).result(60)

    def close(self):
        self._executor.shutdown()


class AsyncActor(Actor):
    """The same in an event loop, through the methods with the prefix ``a``."""

    def __init__(self):
        super().__init__()
        self._runner = self._executor.submit(self._make).result()

    def start(self, lock, method, *args, **kwargs):
        return self._executor.submit(self._run, getattr(lock, f"a{method}"), args, kwargs)

    def see(self, lock, attribute):
        async def get():
            return getattr(lock, attribute)

        return self._executor.submit(self._run, get, (), {}).result(60)

    def close(self):
        self._executor.submit(self._runner.close).result()
        super().close()

    def _make(self):
        runner = asyncio.Runner()
        runner.get_loop()
        return runner

    def _run(self, method, args, kwargs):
        return self._runner.run(method(*args, **kwargs))
