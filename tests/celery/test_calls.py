"""What a call does with Celery's producers, and what others see of it; no worker takes the messages."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Connection, pools
from kombu.exceptions import EncodeError

from django_cluster_lock import single_flight
from tests.celery.test_duplicates import captured
from tests.celery.workload import TASKS, app, join
from tests.faults.proxy import Proxy, Rule
from tests.records import until

QUEUE = "calls"
AGAIN = TASKS["flight", "rerun"], TASKS["flight", "wait"]


def call(task, key, **options):
    return task.apply_async((key,), queue=QUEUE, **options)


def with_producers(limit, flights):
    """A broker of the test's own: apps with the same one share their producers."""
    return {"broker_url": f"memory://{flights.key}", "broker_pool_limit": limit}


@pytest.fixture
def make_task(flights):
    """Makes a task of an app of its own: ``make_task(on_duplicate, base, app class, ...)``."""
    made = []

    def make(on_duplicate="join", *, base=Task, kind=Celery, conf=(), **options):
        own = kind("calls", set_as_current=False)
        own.conf.update({name: app.conf[name] for name in ("broker_url", "broker_transport_options", "result_backend")})
        own.conf.update(dict(conf))
        made.append(own)

        @own.task(name=f"calls-{on_duplicate}", base=base, shared=False, **options)
        @single_flight(key="{key}", on_duplicate=on_duplicate)
        def task(key):
            return key

        return task

    yield make
    for own in made:
        own.close()
    pools.set_limit(app.conf.broker_pool_limit)  # which an app sets for all others too


@pytest.mark.parametrize("task", AGAIN, ids=["rerun", "wait"])
@pytest.mark.parametrize("channel", ["connection", "producer", "publisher"])
def test_a_duplicate_with_a_channel_of_its_callers_is_parked(flights, task, channel):
    call(task, flights.key)
    with app.connection_for_write() as connection:
        given = connection if channel == "connection" else app.amqp.Producer(connection)
        call(task, flights.key, **{channel: given})
    assert flights.parked(task) == 1


@pytest.mark.parametrize("channel", ["connection", "producer", "publisher"])
def test_a_flight_goes_out_by_the_channel_of_its_caller(flights, channel):
    with Connection("memory://") as memory:
        given = memory if channel == "connection" else app.amqp.Producer(memory)
        result = call(join, flights.key, **{channel: given})
        message = memory.default_channel.basic_get(QUEUE)
        assert message.headers["id"] == result.id


class Elsewhere(Task):
    """A base that chooses the broker."""

    def apply_async(self, *args, **options):
        with self.app.connection_for_write() as connection:
            return super().apply_async(*args, **options | {"connection": connection})


@pytest.mark.parametrize("on_duplicate", ["rerun", "wait"])
def test_a_duplicate_that_its_base_sends_itself_is_sent_once(make_task, flights, on_duplicate):
    task, published = make_task(on_duplicate, base=Elsewhere), []
    first = call(task, flights.key)
    with captured(before_task_publish, published):
        second = call(task, flights.key)
    assert [headers["id"] for headers in published] == [second.id]
    assert first.id != second.id


def test_celery_is_told_of_no_message_that_there_will_not_be(flights):
    rerun, published = AGAIN[0], []
    with captured(before_task_publish, published):
        results = [call(rerun, flights.key) for _ in range(3)]
    assert [headers["id"] for headers in published] == [result.id for result in results]


def test_a_connection_that_a_call_has_failed_on_is_closed(flights):
    with app.producer_pool.acquire(block=True) as producer:
        used = producer.connection
        assert producer.channel
    assert used.connected
    with pytest.raises(EncodeError):
        call(join, flights.key, kwargs={"how": object()})
    assert not used.connected
    assert flights.free(join)


def test_celery_tells_of_a_duplicate_by_the_producer_of_its_caller(make_task, flights):
    """A group has one for all its members: who took another one beside it could wait for other groups for ever."""
    task = make_task("wait", conf={"task_send_sent_event": True})
    call(task, flights.key)
    with task.app.connection_for_write() as connection:
        producer, published = task.app.amqp.Producer(connection), []
        publish = producer.publish
        producer.publish = lambda body, **options: (published.append(body), publish(body, **options))
        call(task, flights.key, producer=producer)
    assert [body["type"] for body in published] == ["task-sent"]
    assert flights.parked(task) == 1


@pytest.fixture
def taken():
    """Takes all producers of a task's app for a while: ``with taken(task): ...``"""

    @contextmanager
    def take(task):
        with ExitStack() as stack:
            for _ in range(task.app.pool.limit):
                stack.enter_context(task.app.producer_pool.acquire(block=True))
            yield

    return take


@pytest.mark.parametrize("limit", [1, 2])
def test_a_flight_waits_for_a_producer_where_all_are_taken(make_task, flights, taken, limit):
    task = make_task(conf=with_producers(limit, flights))
    call(task, f"{flights.key}-before")  # the layout of the cluster is known from now on
    with ThreadPoolExecutor(1) as thread:
        with taken(task):
            flight = thread.submit(call, task, flights.key)
            until(lambda: flight.done() or not flights.free(task))
            assert not flight.done(), flight.exception()
        assert call(task, flights.key).id == flight.result(30).id


@pytest.mark.parametrize("limit", [1, 2])
def test_a_duplicate_waits_for_no_producer(make_task, flights, taken, limit):
    task = make_task(conf=with_producers(limit, flights))
    first = call(task, flights.key)
    with ThreadPoolExecutor(1) as thread, taken(task):
        assert thread.submit(call, task, flights.key).result(30).id == first.id


@pytest.mark.parametrize("limit", [1, 2])
def test_a_duplicate_gives_back_the_producer_that_it_took(make_task, flights, limit):
    task = make_task(conf=with_producers(limit, flights))
    assert {call(task, flights.key).id for _ in range(4)} == {call(task, flights.key).id}


def watching(method, seen):
    """The method, as a tool would patch it that looks for errors."""

    @wraps(method)
    def watched(*args, **options):
        try:
            return method(*args, **options)
        except Exception as error:
            seen.append(error)
            raise

    return watched


@pytest.mark.parametrize("place", ["apply_async", "send_task", "an app's send_task"])
def test_who_looks_on_sees_no_error_of_a_duplicate(make_task, flights, monkeypatch, place):
    seen, kind = [], Celery
    if place == "apply_async":
        monkeypatch.setattr(Task, place, watching(Task.apply_async, seen))
    elif place == "send_task":
        monkeypatch.setattr(Celery, place, watching(Celery.send_task, seen))
    else:
        kind = type("Watching", (Celery,), {"send_task": watching(Celery.send_task, seen)})
    task = make_task(kind=kind)
    first = call(task, flights.key)
    assert call(task, flights.key).id == first.id
    assert not seen


def test_a_duplicate_has_no_result_to_wait_for_where_results_are_ignored(make_task, flights):
    task = make_task(ignore_result=True)
    results = [call(task, flights.key) for _ in range(2)]
    assert [result.get(timeout=1) for result in results] == [None, None]


@pytest.fixture
def proxy(settings, flights, cluster):
    """Proxies before the nodes."""
    proxy = Proxy(cluster.embedded.ports)
    locks = flights.setup["locks"]["default"]
    settings.CLUSTER_LOCKS = {
        "default": locks | {"OPTIONS": {"address_remap": proxy.remap, "socket_timeout": 0.2}},
    }
    yield proxy
    proxy.close()


def test_a_claim_that_nobody_was_told_of_goes_when_its_call_failed(proxy, flights):
    with pytest.raises(ValueError, match="neve"):
        call(join, flights.key, expires="never")  # from here on its node knows the script
    claims = proxy.harm(Rule("claim", reply="drop", times=math.inf))
    proxy.harm(Rule("release", "drop", times=math.inf))
    with pytest.raises(ValueError, match="neve"):
        call(join, flights.key, expires="never")
    assert claims.done
    until(lambda: flights.free(join))
