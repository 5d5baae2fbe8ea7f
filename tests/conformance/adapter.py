"""What redis-py's tests of its lock expect around them: its constructor, and its key where ours is a record."""

from types import SimpleNamespace

from django_cluster_lock import Lock, names
from django_cluster_lock.aliases import aliases

ROUNDING = 1  # ms that Redis keeps a lease longer than its holder counts on it; CLOCK_SKEW is 0 in these tests
FOREIGN = 60_000  # ms that a lock is held which a test gives to somebody else


class Adapter(Lock):
    """Our lock by redis-py's constructor. Without a timeout it is renewed, with one it is not, as it is there."""

    def __init__(
        self,
        client,
        name,
        *,
        timeout=None,
        sleep=0.1,
        blocking=True,
        blocking_timeout=None,
        thread_local=True,
        raise_on_release_error=True,
    ):
        terms = {"renew": True} if timeout is None else {"renew": False, "timeout": timeout}
        super().__init__(
            name,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            raise_on_release_error=raise_on_release_error,
            **terms,
        )
        client.renewed[name] = timeout is None

    @property
    def local(self):
        return SimpleNamespace(token=self.token.encode() if self._find() else None)


class AsyncAdapter(Adapter):
    """The same with the asyncio face under the blocking one's names, as it is there."""

    acquire = Adapter.aacquire
    release = Adapter.arelease
    extend = Adapter.aextend
    reacquire = Adapter.areacquire
    owned = Adapter.aowned
    locked = Adapter.alocked


class Client:
    """The commands with which those tests look at a lock's key or change it, on its record.

    Args:
        redis: a redis-py client.
    """

    def __init__(self, redis):
        self._redis = redis
        self.renewed = {}

    def get(self, name):
        token, left = self._state(name)
        return token if left > 0 else None

    def pttl(self, name):
        _, left = self._state(name)
        if left <= 0:
            return -2
        return -1 if self.renewed[name] else left

    def ttl(self, name):
        left = self.pttl(name)
        return left if left < 0 else (left + 500) // 1000

    def set(self, name, token):
        """Gives the lock to somebody else."""
        record = self._record(name)
        self._redis.hset(record, mapping={"t": token, "f": 1, "d": self._now(record) + FOREIGN})
        return self._redis.pexpire(record, FOREIGN)

    def pexpire(self, name, left):
        record = self._record(name)
        self._redis.hset(record, "d", self._now(record) + left)
        return self._redis.pexpire(record, left)

    def _state(self, name):
        record = self._record(name)
        token, deadline = self._redis.hmget(record, "t", "d")
        return token and token.encode(), int(deadline or 0) - ROUNDING - self._now(record)

    def _record(self, name):
        return names.keys_of(aliases["default"].settings.key_prefix, name).record

    def _now(self, record):
        seconds, micros = self._redis.execute_command("TIME", target_nodes=self._redis.get_node_from_key(record))
        return int(seconds) * 1000 + int(micros) // 1000


class AsyncClient:
    """The same to be awaited."""

    def __init__(self, redis):
        self._client = Client(redis)
        self.renewed = self._client.renewed

    def __getattr__(self, command):
        async def run(*args):
            return getattr(self._client, command)(*args)

        return run
