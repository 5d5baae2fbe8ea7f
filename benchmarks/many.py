"""Many locks: taken together, renewed, and what one costs in memory."""

import resource
import statistics
import time

from django_cluster_lock.lock import Lock


def together(alias, count, rounds):
    """Seconds for so many locks in one acquire and release, and one by one."""
    all_at_once, one_by_one = [], []
    for number in range(rounds):
        names = [f"many-{number}-{place}" for place in range(count)]
        started = time.perf_counter()
        with Lock(names, alias=alias):
            pass
        all_at_once.append(time.perf_counter() - started)
        started = time.perf_counter()
        for name in names:
            with Lock(name, alias=alias):
                pass
        one_by_one.append(time.perf_counter() - started)
    return statistics.median(all_at_once), statistics.median(one_by_one)


def renewed(alias, count, seconds):
    """The share of a core that renewing so many leases of 30 s takes, and whether all are still held."""
    locks = []
    for start in range(0, count, 100):
        lock = Lock([f"renewed-{number}" for number in range(start, start + 100)], alias=alias, timeout=30)
        lock.acquire()
        locks.append(lock)
    before, started = _cpu(), time.monotonic()
    time.sleep(seconds)
    share = (_cpu() - before) / (time.monotonic() - started)
    held = all(not lock.lost for lock in locks)
    for lock in locks:
        lock.release()
    return share, held


def memory(alias, client, count):
    """Bytes of a record with its owner, and of its entry in the index."""
    records, indexes = [], []
    for number in range(count):
        with Lock(f"invoice:{number:08}", alias=alias) as lock:
            keys = lock._keys()[0]  # noqa: SLF001
            records.append(client.memory_usage(keys.record, samples=0))
            indexes.append(client.memory_usage(keys.index, samples=0))
    return statistics.mean(records), statistics.mean(indexes)


def _cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
