"""Uncontended acquire and release."""

import statistics
import time

PAIRS = 200


def measure(contestants, urls, rounds):
    """Seconds of one pair by contestant: the median of interleaved rounds."""
    locks = {kind: kind(urls, "pair") for kind in contestants}
    times = {kind: [] for kind in contestants}
    for number in range(rounds + 1):  # the first warms up
        for kind, lock in locks.items():
            started = time.perf_counter()
            for _ in range(PAIRS):
                lock.acquire()
                lock.release()
            if number:
                times[kind].append((time.perf_counter() - started) / PAIRS)
    return {kind: statistics.median(values) for kind, values in times.items()}
