"""What a call of a Celery task costs its caller, on a Redis broker: plain, the first of its key, and a duplicate."""

import itertools
import statistics
import time

import redis
from celery import Celery
from celery_once import QueueOnce
from celery_singleton import Singleton
from django.conf import settings

from django_cluster_lock import single_flight

CALLS = 50  # of each kind before the next has its turn
ALIAS = "acknowledged"  # of CLUSTER_LOCKS: its leases count once every replica has them; "default" waits for none


def contestants(broker):
    """Tasks by their label, all in one app. A task's calls differ in their key, but for its duplicates."""
    app = Celery("benchmark", broker=broker, backend=broker)
    once = {"backend": "celery_once.backends.Redis", "settings": {"url": broker, "default_timeout": 600}}
    app.conf.update(ONCE=once, singleton_lock_expiry=600)

    def task(label, decorate=lambda function: function, **options):
        def body(key):
            return key

        body.__module__, body.__name__ = "benchmark", label
        return app.task(decorate(body), name=label, **options)

    return app, {
        "a plain task": task("plain"),
        "single_flight": task("flight", single_flight(key="{key}")),
        "single_flight, REPLICAS auto": task("acknowledged", single_flight(key="{key}", alias=ALIAS)),
        "celery-singleton": task("singleton", base=Singleton),
        "celery-once": task("once", base=QueueOnce, once={"graceful": True}),
        'single_flight(on_duplicate="wait")': task("wait", single_flight(key="{key}", on_duplicate="wait")),
    }


def measure(cluster, broker, rounds):
    """Seconds of a call by label, for first calls and for duplicates: medians of single calls in interleaved rounds."""
    locks = {"LOCATION": list(cluster.urls), "KEY_PREFIX": "bench-flights"}
    aliases = {"default": {**locks, "REPLICAS": 0}, ALIAS: {**locks, "KEY_PREFIX": "bench-flights-2"}}
    settings.CLUSTER_LOCKS = aliases
    app, tasks = contestants(broker.urls[0])
    numbers = itertools.count()
    first = {label: [] for label in tasks}
    duplicate = {label: [] for label in tasks}
    with redis.Redis.from_url(broker.urls[0]) as client:
        for number in range(rounds + 1):  # the first warms up
            for times, keys in ((first, [next(numbers) for _ in range(CALLS)]), (duplicate, [0] * CALLS)):
                for label, task in tasks.items():
                    if times is duplicate:
                        task.delay(0)
                    seconds = [_timed(task, key) for key in keys]
                    if number:
                        times[label] += seconds
            client.delete("celery")  # nobody consumes them
    app.close()
    return [{label: statistics.median(values) for label, values in times.items()} for times in (first, duplicate)]


def _timed(task, key):
    started = time.perf_counter()
    task.delay(key)
    return time.perf_counter() - started
