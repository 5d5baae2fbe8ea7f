"""How many function calls one acquire and release makes in Python: a figure that no machine changes."""

import statistics
import sys
from collections import Counter

PAIRS = 200


def measure(contestants, urls):
    """Return by contestant the median numbers of calls of Python functions and of built-in ones in one pair.

    Only the thread that locks is counted.
    """
    return {kind: _counted(kind(urls, "calls")) for kind in contestants}


def _counted(lock):
    for _ in range(PAIRS):  # the first pairs connect, learn the layout and load the scripts
        lock.acquire()
        lock.release()
    pairs = [_one(lock.acquire, lock.release) for _ in range(PAIRS)]
    idle = _one()
    return tuple(statistics.median(events[kind] for events in pairs) - idle[kind] for kind in ("call", "c_call"))


def _one(*calls):
    """Count the calls that these make; without any, the one that ends the count."""
    events = Counter()

    def count(_frame, event, _function):
        events[event] += 1

    sys.setprofile(count)
    try:
        for call in calls:
            call()
    finally:
        sys.setprofile(None)
    return events
