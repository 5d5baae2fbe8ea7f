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

WARM_UP = 100  # pairs of calls
PLAIN = "a plain task"
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
        PLAIN: task("plain"),
        "single_flight": task("flight", single_flight(key="{key}")),
        "single_flight, REPLICAS auto": task("acknowledged", single_flight(key="{key}", alias=ALIAS)),
        "celery-singleton": task("singleton", base=Singleton),
        "celery-once": task("once", base=QueueOnce, once={"graceful": True}),
        'single_flight(on_duplicate="wait")': task("wait", single_flight(key="{key}", on_duplicate="wait")),
    }


def measure(cluster, broker, rounds):
    """By label, for first calls and for duplicates: seconds of the plain calls beside them, and of a call.

    Calls of a kind take turns with plain ones and with nothing else, as where one library is in use.
    """
    locks = {"LOCATION": list(cluster.urls), "KEY_PREFIX": "bench-flights"}
    aliases = {"default": {**locks, "REPLICAS": 0}, ALIAS: {**locks, "KEY_PREFIX": "bench-flights-2"}}
    settings.CLUSTER_LOCKS = aliases
    _empty(cluster, broker)
    app, tasks = contestants(broker.urls[0])
    plain = tasks.pop(PLAIN)
    first, duplicate = {}, {}
    with redis.Redis.from_url(broker.urls[0]) as client:
        for label, task in tasks.items():
            task.delay(0)
            first[label] = _side_by_side(client, plain, task, range(1, WARM_UP + rounds + 1))
            duplicate[label] = _side_by_side(client, plain, task, [0] * (WARM_UP + rounds))
    app.close()
    return first, duplicate


def _empty(cluster, broker):
    """Delete the claims of an earlier measurement, which would make duplicates of first calls."""
    with redis.RedisCluster.from_url(cluster.urls[0]) as client:
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
    with redis.Redis.from_url(broker.urls[0]) as client:
        client.flushall()


def _side_by_side(client, plain, task, keys):
    """The medians of plain calls and of the task's; of each, there is one for each key."""
    turns = random.Random(0)
    times = {plain: [], task: []}
    for number, key in enumerate(keys):
        for each in turns.sample([plain, task], 2):  # what a call costs depends on the one before it
            seconds = _timed(each, key)
            if number >= WARM_UP:
                times[each].append(seconds)
        client.delete("celery")  # nobody consumes them
    return [statistics.median(values) for values in times.values()]


def _timed(task, key):
    started = time.perf_counter()
    task.delay(key)
    return time.perf_counter() - started
