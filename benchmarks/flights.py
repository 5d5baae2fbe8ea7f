"""What a call of a Celery task costs its caller, on a Redis broker: plain, the first of its key, and a duplicate."""

import random
import statistics
import time

import redis
from celery import Celery
from celery_once import QueueOnce
from celery_singleton import Singleton
from django.conf import settings

from django_cluster_lock import single_flight

WARM_UP = 100  # rounds
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
    """Seconds of a call by label, for first calls and for duplicates: medians of calls taking turns at random."""
    locks = {"LOCATION": list(cluster.urls), "KEY_PREFIX": "bench-flights"}
    aliases = {"default": {**locks, "REPLICAS": 0}, ALIAS: {**locks, "KEY_PREFIX": "bench-flights-2"}}
    settings.CLUSTER_LOCKS = aliases
    app, tasks = contestants(broker.urls[0])
    turns = random.Random(0)
    first, duplicate = ({label: [] for label in tasks} for _ in range(2))
    with redis.Redis.from_url(broker.urls[0]) as client:
        for task in tasks.values():
            task.delay(0)
        for number in range(-WARM_UP, rounds):
            for times, key in (first, number + WARM_UP + 1), (duplicate, 0):
                for label in turns.sample(list(tasks), len(tasks)):  # what a call costs depends on the one before it
                    seconds = _timed(tasks[label], key)
                    if number >= 0:
                        times[label].append(seconds)
            client.delete("celery")  # nobody consumes them
    app.close()
    return [{label: statistics.median(values) for label, values in times.items()} for times in (first, duplicate)]


def _timed(task, key):
    started = time.perf_counter()
    task.delay(key)
    return time.perf_counter() - started
