"""Many callers in one process: their connections are bounded, their leases kept, and their turns come in order."""

import threading

import pytest
import redis

from django_cluster_lock import cache_lock, embedded
from django_cluster_lock.aliases import aliases
from tests.programs import Program

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))"
SOCKETS = """
def is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except FileNotFoundError:  # closed meanwhile: by the thread that closes what is idle, or the listing's own
        return False
def sockets():
    return sum(map(is_socket, os.listdir("/proc/self/fd")))
"""
LEASES = """
held = [cache_lock(f"held:{number}") for number in range(7)]
for lock in held:
    lock.acquire()
blocker = cache_lock("a")
blocker.acquire()
COUNT, got, most = 120, [], 0
"""
THREADS = """
def wait(number):
    global most
    with cache_lock("a", blocking_timeout=90):
        got.append(number)
        most = max(most, sockets())
threads = [threading.Thread(target=wait, args=(number,)) for number in range(COUNT)]
for number, thread in enumerate(threads):
    thread.start()
    while waiters() <= number:
        time.sleep(0.001)
time.sleep(3)  # longer than a lease
blocker.release()
for thread in threads:
    thread.join()
"""
COROUTINES = """
import asyncio
async def wait(number):
    global most
    async with cache_lock("a", blocking_timeout=90):
        got.append(number)
        most = max(most, sockets())
async def main():
    tasks = []
    for number in range(COUNT):
        tasks.append(asyncio.create_task(wait(number)))
        while await asyncio.to_thread(waiters) <= number:
            await asyncio.sleep(0.001)
    await asyncio.sleep(3)  # longer than a lease
    await blocker.arelease()
    await asyncio.gather(*tasks)
asyncio.run(main())
"""
WAITERS = """
from django_cluster_lock import locks
def waiters():
    return len(locks["default"].show("a").waiters)
"""
END = """
say(got == sorted(got), len(got), most <= 80, sum(lock.owned() for lock in held), any(lock.lost for lock in held))
"""


@pytest.mark.parametrize("crowd", [THREADS, COROUTINES], ids=["threads", "coroutines"])
def test_waiters_leave_connections_to_the_leases_of_their_process(locks, crowd):
    """They come first in, first out, although many of them have no connection to sleep on."""
    code = SOCKETS + WAITERS + LEASES + crowd + END
    with Program(code, locks, first=LIMIT.format(100)) as program:
        assert program.hear(120) == "True 120 True 7 False"
        assert program.wait() == 0


COLD_THREADS = """
barrier, failed = threading.Barrier(100), []
def work(number):
    barrier.wait()
    try:
        with cache_lock(f"own:{number}"):
            pass
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(100)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say(failed, sockets() <= 100)
"""
COLD_COROUTINES = """
import asyncio
async def work(number):
    async with cache_lock(f"own:{number}"):
        pass
async def main():
    ended = await asyncio.gather(*(work(number) for number in range(500)), return_exceptions=True)
    say([each for each in ended if each], sockets() <= 3 * 64 + 20)
asyncio.run(main())
"""


@pytest.mark.parametrize("crowd", [COLD_THREADS, COLD_COROUTINES], ids=["threads", "coroutines"])
def test_a_crowd_in_a_new_process(locks, crowd):
    with Program(SOCKETS + crowd, locks, first=LIMIT.format(300)) as program:
        assert program.hear(60) == "[] True"
        assert program.wait() == 0


@pytest.fixture
def crowded(tmp_path, settings, prefix):
    """A client of a server of the test's own that takes eight clients, this one included, where all locks are."""
    running = embedded.up(tmp_path / "server", cluster=False, owner=True)
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": running.urls[0], "KEY_PREFIX": prefix, "TIMEOUT": 3}}
    with redis.Redis.from_url(running.urls[0]) as client:
        client.config_set("maxclients", 8)
        yield client
    aliases.close()
    embedded.down(running.directory)


def test_a_server_that_takes_no_more_clients(crowded):
    """The callers of a process share the connections that it got, and its leases are kept."""
    held = [cache_lock(f"held:{number}") for number in range(5)]
    for lock in held:
        lock.acquire()
    had, barrier = [], threading.Barrier(60)

    def call(number):
        barrier.wait()
        with cache_lock(f"own:{number}", blocking_timeout=30):
            had.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(had) == list(range(60))
    assert crowded.info("stats")["rejected_connections"] > 0
    assert all(lock.owned() for lock in held)
