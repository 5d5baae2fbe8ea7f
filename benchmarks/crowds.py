"""A crowd that starts at once in a new process: ``python -m benchmarks.crowds LOCK CROWD COUNT URL...``.

Each caller takes a lock of its own and gives it back. The time runs from the first call, so that connecting and
learning the layout are in it, and starting Python is not.
"""

import asyncio
import json
import resource
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import redis
import redis.asyncio

from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.lock import Lock

DESCRIPTORS = 1024  # what a login shell allows
OURS, REDIS_PY = "django-cluster-lock, REPLICAS auto", "redis-py RedisCluster.lock()"
LOCKS = {"ours": OURS, "redis-py": REDIS_PY}


class Outcome(NamedTuple):
    """How long a crowd took, in seconds, and how many of it had their lock."""

    seconds: float
    had: int


def measure(lock, crowd, count, urls):
    """Have a new process run a crowd."""
    command = [sys.executable, "-m", "benchmarks.crowds", lock, crowd, str(count), *urls]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return Outcome(*json.loads(done.stdout))


def main():
    lock, crowd, count, *urls = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
    aliases["crowd"] = Alias(AliasSettings("crowd", tuple(urls), "crowd"))
    run = {"threads": _threads, "coroutines": _coroutines}[crowd]
    print(json.dumps(run(lock, int(count), urls)))


def _threads(lock, count, urls):
    if lock == "redis-py":
        client = redis.RedisCluster.from_url(urls[0])
    barrier, had = threading.Barrier(count + 1), []

    def work(number):
        name = f"crowd:{number}"
        barrier.wait()
        with client.lock(name, timeout=30) if lock == "redis-py" else Lock(name, alias="crowd"):
            had.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, len(had)


def _coroutines(lock, count, urls):
    async def all_of_them():
        client = redis.asyncio.RedisCluster.from_url(urls[0]) if lock == "redis-py" else None
        had = []

        async def work(number):
            name = f"crowd:{number}"
            async with client.lock(name, timeout=30) if client else Lock(name, alias="crowd"):
                had.append(number)

        started = time.perf_counter()
        await asyncio.gather(*map(work, range(count)), return_exceptions=True)
        seconds = time.perf_counter() - started
        if client:
            await client.aclose()
        return seconds, len(had)

    return asyncio.run(all_of_them())


if __name__ == "__main__":
    main()
