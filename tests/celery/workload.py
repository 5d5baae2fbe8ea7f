"""The tasks that the tests run. What they do stands in a log on disk, a JSON object a line."""

import ast
import json
import os
import signal
import threading
import time
import uuid
from pathlib import Path

import celery
import django
from celery import Celery, Task, shared_task, states
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun, task_prerun
from django.dispatch import receiver
from kombu.serialization import register
from kombu.utils.encoding import bytes_to_str

import django_cluster_lock.tasks  # noqa: F401 - as `autodiscover_tasks` does
from django_cluster_lock import LockError, LockUnavailable, current_lock, signals, single_flight
from django_cluster_lock.flights.messages import Message

app = Celery("flight-tests")
# Unlike JSON it knows tuples.
register("literal", repr, lambda data: ast.literal_eval(bytes_to_str(data)), "application/x-literal", "utf-8")
setup = {}
PATIENCE = 60  # seconds in which a test is over


class Refused(Exception):
    pass


def configure(values):
    """Takes over where broker, locks and log are; in a worker they come from the environment."""
    setup.update(values)
    prefix = {"global_keyprefix": f"{values['prefix']}:celery:"}
    app.conf.update(
        broker_url=values["broker"],
        broker_connection_retry_on_startup=True,
        broker_transport_options=prefix | {"visibility_timeout": values.get("visibility_timeout", 3600)},
        result_backend=values.get("backend", values["broker"]),
        result_backend_transport_options=prefix,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=4,
        accept_content=["json", "literal"],
    )
    app.conf.update(values.get("conf", {}))


def note(what, key, **details):
    line = json.dumps({"what": what, "key": key, "pid": os.getpid(), "at": time.monotonic(), **details})
    with Path(setup["log"]).open("a") as log:
        log.write(line + "\n")


def gate(key):
    """The file for which a task of that key waits; a test creates it."""
    return Path(f"{setup['log']}.{key}")


def wait_for(key):
    while not gate(key).exists():
        time.sleep(0.005)


def doom(key, moment, victim="child"):
    """Has the child, or its whole worker, killed by SIGKILL when it first comes to a moment of that key's flight."""
    Path(f"{setup['log']}.{key}.{moment}").write_text(victim)


def meet(key, moment):
    """Dies here, if that was asked for."""
    told = Path(f"{setup['log']}.{key}.{moment}")
    if told.exists():
        victim = told.read_text()
        told.unlink()
        note("killed", key, moment=moment)
        if victim == "worker":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def work(task, key, how="succeed", gated=False, **details):
    """What every task does: it waits for its gate if it has one, and ends as it is told."""
    request = task.request
    note("start", key, id=request.id, retries=request.retries, thread=threading.current_thread().name, **details)
    try:
        if gated:
            wait_for(key)
        return ENDS[how](task, key)
    finally:
        note("end", key, id=request.id)


def succeed(task, key):
    return f"{key} {uuid.uuid4().hex}"


def fail(task, key):
    raise LookupError(key, uuid.uuid4().hex)


def refuse(task, key):
    """Fails with what is long, and no part of Python."""
    raise Refused(key, "é" * 10_000)


def long(task, key):
    return f"{key} {uuid.uuid4().hex * 1000}"


def last_value(task, key):
    return task.request.kwargs["value"]


def kind_of_value(task, key):
    return type(task.request.kwargs["value"]).__name__


def leave(task, key):
    raise SystemExit(1)


def vanish(task, key):
    """Ends the process as the kernel does where memory is short: nothing is unwound."""
    os._exit(137)


def stop_softly(task, key):
    try:
        time.sleep(PATIENCE)
    except SoftTimeLimitExceeded:
        return f"{key} in time"


def call_another(task, key):
    """Has published something, so that its connection to the broker is open, before it waits for its gate."""
    follow.delay(key)
    note("called", key)
    wait_for(key)
    return succeed(task, key)


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


def retry_and_go_on(task, key):
    """Asks for a retry, which arrives while this still runs."""
    if task.request.retries:
        return succeed(task, key)
    task.retry(countdown=0, throw=False)
    note("retried", key)
    wait_for(f"{key}-retried")
    raise Ignore


def retry(task, key):
    return again(task, key, countdown=0)


def retry_later(task, key):
    return again(task, key, countdown=0.3)


def retry_in_a_while(task, key):
    return again(task, key, countdown=2)


def retry_with_another_key(task, key):
    # Not at once: Celery stores RETRY after it has published the retry, which may have succeeded by then.
    return again(task, key, countdown=0.3, args=(f"{key}-other",), kwargs={"how": "succeed"})


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
    ours = ("cluster_lock", "cluster_lock_run", "cluster_lock_content_type", "redelivered")
    headers = {name: value for name, value in request.headers.items() if name not in ours}
    told = ("argsrepr", "kwargsrepr", "shadow", "root_id", "parent_id", "expires", "stamps", "correlation_id")
    details = {name: request.get(name) for name in told}
    return details | {"headers": headers, "priority": request.delivery_info["priority"], "args": request.args}


def unreachable(task, key):
    """Raises what the library itself raises where Redis cannot be asked."""
    raise LockUnavailable(key, "another lock's shard is down")


def let_go(task, key):
    """What a run must not do with its key."""
    refused = []
    for attempt in (current_lock().release, current_lock().detach):
        try:
            attempt()
        except LockError as error:
            refused.append(type(error).__name__)
    return refused


def fence(task, key):
    current_lock().raise_if_lost()
    return current_lock().fence


ENDS = {
    end.__name__: end
    for end in (
        succeed, fail, ignore, reject, requeue, replace, retry, retry_later, retry_in_a_while,
        retry_with_another_key,
        lose, lose_and_query, fence, message, unreachable, let_go, call_another,
        refuse, long, last_value, kind_of_value, leave, vanish, stop_softly, retry_and_go_on,
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


@app.task(bind=True, name="interrupted")
@single_flight(key="{key}", on_lost="interrupt")
def interrupted(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="brief")
@single_flight(key="{key}", queue_timeout=0.3)
def brief(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


@app.task(bind=True, name="brief_rerun")
@single_flight(key="{key}", on_duplicate="rerun", queue_timeout=0.3)
def brief_rerun(self, key, how="succeed", gated=False, value=None):
    return work(self, key, how, gated, value=value)


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


@app.task(bind=True, name="silent", ignore_result=True)
@single_flight(key="{key}", on_duplicate="wait")
def silent(self, key, how="succeed", gated=False):
    return work(self, key, how, gated)


def task_of(scope, on_duplicate):
    @app.task(bind=True, name=f"{scope}-{on_duplicate}")
    @single_flight(key="{key}", scope=scope, on_duplicate=on_duplicate)
    def task(self, key, how="succeed", gated=False, value=None):
        return work(self, key, how, gated, value=value)

    return task


def late_of(on_duplicate, *, acks_late=True, **options):
    name = f"{'late' if acks_late else 'early'}-{on_duplicate}-{'-'.join(options)}"

    @app.task(bind=True, name=name, acks_late=acks_late, **options)
    @single_flight(key="{key}", on_duplicate=on_duplicate)
    def task(self, key, how="succeed", gated=False, value=None):
        return work(self, key, how, gated, value=value)

    return task


TASKS = {
    (scope, on_duplicate): task_of(scope, on_duplicate)
    for scope in ("flight", "queued", "running")
    for on_duplicate in ("join", "skip", "raise", "rerun", "wait")
    if scope != "queued" or on_duplicate in ("join", "skip", "raise")
}
LATE = {on_duplicate: late_of(on_duplicate, reject_on_worker_lost=True) for on_duplicate in ("join", "rerun", "wait")}
NEVER_ACKED, NO_FAILURE_ACKED, NO_TIMEOUT_ACKED = (
    late_of("join", **{option: False})
    for option in ("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout")
)
LOST = [  # tasks, and whether a message comes again whose child was lost
    (late, False),
    (LATE["join"], True),
    (late_of("join", reject_on_worker_lost=True, acks_late=False), False),
    (NEVER_ACKED, False),
    (NO_FAILURE_ACKED, False),
    (late_of("join", reject_on_worker_lost=True, acks_on_failure_or_timeout=False), True),
    (late_of("join", reject_on_worker_lost=True, acks_on_failure=False), True),
    (late_of("join", reject_on_worker_lost=True, retry_on_worker_lost=True, max_retries=0), celery.VERSION < (5, 7)),
]
OVERDUE = [  # the same at a hard time limit
    (late, False),
    (LATE["join"], False),
    (NEVER_ACKED, True),
    (NO_FAILURE_ACKED, False),
    (NO_TIMEOUT_ACKED, celery.VERSION >= (5, 7)),
]
RETRIED = late_of("join", retry_on_worker_lost=True, max_retries=2, default_retry_delay=0)


class Hooked(Task):
    """A base whose hook fails, or retries, before the body is reached."""

    def before_start(self, task_id, args, kwargs):
        note("hook", args[0])
        if args[1] == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if args[1] == "fail":
            raise LookupError(args[0])
        if args[1] == "requeue" and not self.request.delivery_info["redelivered"]:
            raise Reject(args[0], requeue=True)


@app.task(bind=True, name="hooked", base=Hooked, acks_late=True)
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


@task_postrun.connect
def dropped(task, task_id, args, state, **_):
    if args and state == states.IGNORED:
        note("dropped", args[0], id=task_id)


@task_postrun.connect
def left(task, task_id, args, **_):
    """Its child is free for the next message."""
    if args:
        note("left", args[0], id=task_id)


@receiver(signals.flight_parked)
def parked(name, task_id, **_):
    note("parked", key_of(name), id=task_id)
    meet(key_of(name), "parked")


@receiver(signals.flight_ended)
def ended(name, task_id, **_):
    meet(key_of(name), "ended")


@receiver(signals.flight_settled)
def settled(name, task_id, **_):
    note("settled", key_of(name), id=task_id)


@receiver(signals.flight_recovered)
def recovered(name, task_id, status, **_):
    note("recovered", key_of(name), id=task_id, status=status)


def meet_around_publication():
    """Parked messages are published by `Message.publish`: a worker may die before and after."""
    publish = Message.publish

    def wrapped(self, *args, **options):
        meet(key_of(self.ticket.name), "publishing")
        publish(self, *args, **options)
        meet(key_of(self.ticket.name), "published")

    Message.publish = wrapped


if "FLIGHT_TESTS" in os.environ:
    meet_around_publication()
    configure(json.loads(os.environ["FLIGHT_TESTS"]))
    django.setup()
