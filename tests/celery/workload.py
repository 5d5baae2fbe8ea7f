"""The tasks that the tests run. What they do stands in a log on disk, a JSON object a line."""

import json
import os
import threading
import time
import uuid
from pathlib import Path

import django
from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Reject
from celery.signals import task_prerun
from django.dispatch import receiver

import django_cluster_lock.tasks  # noqa: F401 - as `autodiscover_tasks` does
from django_cluster_lock import current_lock, signals, single_flight

app = Celery("flight-tests")
setup = {}


def configure(values):
    """Takes over where broker, locks and log are; in a worker they come from the environment."""
    setup.update(values)
    prefix = {"global_keyprefix": f"{values['prefix']}:celery:"}
    app.conf.update(
        broker_url=values["broker"],
        broker_connection_retry_on_startup=True,
        broker_transport_options=prefix,
        result_backend=values["broker"],
        result_backend_transport_options=prefix,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=4,
    )


def note(what, key, **details):
    line = json.dumps({"what": what, "key": key, "pid": os.getpid(), **details})
    with Path(setup["log"]).open("a") as log:
        log.write(line + "\n")


def gate(key):
    """The file for which a task of that key waits; a test creates it."""
    return Path(f"{setup['log']}.{key}")


def work(task, key, how="succeed", gated=False, **details):
    """What every task does: it waits for its gate if it has one, and ends as it is told."""
    request = task.request
    note("start", key, id=request.id, retries=request.retries, thread=threading.current_thread().name, **details)
    try:
        while gated and not gate(key).exists():
            time.sleep(0.005)
        return ENDS[how](task, key)
    finally:
        note("end", key, id=request.id)


def succeed(task, key):
    return f"{key} {uuid.uuid4().hex}"


def fail(task, key):
    raise LookupError(key, uuid.uuid4().hex)


def ignore(task, key):
    raise Ignore


def reject(task, key):
    raise Reject(key, requeue=False)


def requeue(task, key):
    if task.request.delivery_info["redelivered"]:
        return key
    raise Reject(key, requeue=True)


def again(task, key, **options):
    if task.request.retries:
        return succeed(task, key)
    raise task.retry(**options)


def retry(task, key):
    return again(task, key, countdown=0)


def retry_later(task, key):
    return again(task, key, countdown=0.3)


def retry_with_another_key(task, key):
    return again(task, key, countdown=0, args=(f"{key}-other",), kwargs={"how": "succeed"})


def replace(task, key):
    return task.replace(task.si(key))


def lose(task, key):
    """Waits until the lease is lost, then goes on without looking."""
    while not current_lock().lost:
        time.sleep(0.005)
    note("lost", key)
    return key


def lose_and_query(task, key):
    from django.db import connection

    lose(task, key)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    note("queried", key)


def message(task, key):
    """What its message says, but for the ticket, and when and how often it was delivered."""
    request = task.request
    ours = ("cluster_lock", "cluster_lock_run", "redelivered")
    headers = {name: value for name, value in request.headers.items() if name not in ours}
    told = ("argsrepr", "kwargsrepr", "shadow", "root_id", "parent_id", "expires", "stamps", "correlation_id")
    details = {name: request.get(name) for name in told}
    return details | {"headers": headers, "priority": request.delivery_info["priority"], "args": request.args}


def fence(task, key):
    current_lock().raise_if_lost()
    return current_lock().fence


ENDS = {
    end.__name__: end
    for end in (
        succeed, fail, ignore, reject, requeue, replace, retry, retry_later, retry_with_another_key,
        lose, lose_and_query, fence, message,
    )
}  # fmt: skip


@app.task(bind=True, name="join")
@single_flight(key="{key}")
def join(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@single_flight(key=["key"], on_duplicate="skip")
@app.task(bind=True, name="skip")
def skip(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@shared_task(bind=True, name="raise")
@single_flight(key=lambda key, *_, **__: key, on_duplicate="raise")
def raising(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="late", acks_late=True, track_started=True)
@single_flight(key="{key}")
def late(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="tell")
@single_flight(key="{key}", on_lost="tell")
def tell(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="brief")
@single_flight(key="{key}", queue_timeout=0.3)
def brief(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="requeued", acks_late=True, reject_on_worker_lost=True)
@single_flight(key="{key}")
def requeued(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="cut_off")
@single_flight(key="{key}", alias="nowhere")
def cut_off(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="carefree")
@single_flight(key="{key}", alias="nowhere", on_unavailable="run")
def carefree(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="autoretry", autoretry_for=(LookupError,), default_retry_delay=0, max_retries=2)
@single_flight(key="{key}")
def autoretry(self, key):
    return work(self, key, "succeed" if self.request.retries else "fail")


class Hooked(Task):
    """A base whose hook fails, or retries, before the body is reached."""

    def before_start(self, task_id, args, kwargs):
        note("hook", args[0])
        if args[1] == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if args[1] == "fail":
            raise LookupError(args[0])


@app.task(bind=True, name="hooked", base=Hooked)
@single_flight(key="{key}")
def hooked(self, key, before):
    return work(self, key)


@app.task(name="every_argument")
@single_flight
def every_argument(a, b=2, *, c=3):
    return a


@app.task(bind=True, name="optional")
@single_flight(key=["key", "region", "options"])
def optional(self, key, region=None, *, options=None, gated=False):
    return work(self, key, "succeed", gated)


@app.task(bind=True, name="whole")
@single_flight(key=[])
def whole(self, key):
    return work(self, key)


@app.task(name="gather")
def gather(values):
    return values


@app.task(name="follow")
def follow(value):
    return [value]


class Counting(Task):
    """A base with a `__call__` of its own, as users have them."""

    def __call__(self, *args, **kwargs):
        note("base", args[0], id=self.request.id)
        return super().__call__(*args, **kwargs)


@app.task(bind=True, name="based", base=Counting)
@single_flight(key="{key}")
def based(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@task_prerun.connect
def arrived(task, task_id, args, kwargs, **_):
    if args:
        note("arrived", args[0], id=task_id)


def key_of(name):
    return name.rpartition(":")[2]


@receiver(signals.flight_parked)
def parked(name, task_id, **_):
    note("parked", key_of(name), id=task_id)


@receiver(signals.flight_recovered)
def recovered(name, task_id, status, **_):
    note("recovered", key_of(name), id=task_id, status=status)


if "FLIGHT_TESTS" in os.environ:
    configure(json.loads(os.environ["FLIGHT_TESTS"]))
    django.setup()
