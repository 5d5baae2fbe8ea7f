"""How long it takes from the holder's call of release to the waiter's return from acquire, in two processes."""

import multiprocessing
import statistics
import time

SETTLE = 0.03  # seconds in which the waiter comes to wait; longer than any request takes


def measure(contestants, urls, rounds):
    """Seconds of each hand-over by contestant, in interleaved rounds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=wait, args=(contestants, urls, there), daemon=True)
    child.start()
    holders = {kind: kind(urls, "handover") for kind in contestants}
    times = {kind: [] for kind in contestants}
    here.recv()
    for number in range(rounds + 5):  # the first five warm up
        for kind, holder in holders.items():
            holder.acquire()
            here.send(kind)
            here.recv()
            time.sleep(SETTLE + (number * 0.0137) % 0.1)  # so that what polls is met at any moment of its sleep
            started = time.monotonic()
            holder.release()
            granted = here.recv()
            if number >= 5:
                times[kind].append(granted - started)
    here.send(None)
    child.join()
    return times


def wait(contestants, urls, pipe):
    waiters = {kind: kind(urls, "handover") for kind in contestants}
    pipe.send("ready")
    while kind := pipe.recv():
        waiter = waiters[kind]
        pipe.send("waiting")
        getattr(waiter, "acquire_second", waiter.acquire)()
        granted = time.monotonic()
        getattr(waiter, "release_second", waiter.release)()
        pipe.send(granted)


def summary(times):
    ordered = sorted(times)
    return statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
