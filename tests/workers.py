"""A broker, real workers, and what the tests look at."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from django_cluster_lock import names
from tests.celery import workload
from tests.records import Record, until
from tests.servers import KINDS, PREFIX_STEM, WORKER

LEASE = 4  # seconds: longer than a busy machine may stand still


class Worker:
    """A worker in a process of its own.

    Args:
        name: of the worker, and of its queue if no other is given.
        conf: Celery's, beside what all have.
        app: the module of its tasks.
    """

    def __init__(
        self, setup, pool, name, concurrency=3, *, queue=None, conf=None, locks=None, app="tests.celery.workload"
    ):
        setup = setup | {"conf": setup.get("conf", {}) | (conf or {}), "locks": locks or setup["locks"]}
        self.log = Path(f"{setup['log']}.{name}.worker")
        command = [sys.executable, "-m", "celery", "-A", app, "worker"]
        options = [
            f"--pool={pool}",
            f"--concurrency={concurrency}",
            f"--queues={queue or name}",
            f"--hostname={name}@%h",
        ]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=info"]
        environment = os.environ | {
            "FLIGHT_TESTS": json.dumps(setup),
            "DJANGO_SETTINGS_MODULE": "tests.celery.settings",
            "PYTHONHASHSEED": "4711",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options, *quiet],
                cwd=self.log.parent,  # Celery puts it first on the path
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self):
        """Itself, once it takes messages."""
        until(lambda: self.process.poll() is not None or "ready." in self.log.read_text(), within=120)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def kill(self):
        """Ends it and its children at once, as if its host were gone."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # a failed test may have left a task behind its gate
            self.process.wait(10)
        self.process.kill()
        self.process.wait()


def setup_of(cluster, broker, folder, prefix, *, lease=2):
    """Where broker, locks and log are, for tests and their workers."""
    # Only workers that a test starts for it sweep: who sweeps seldom would keep those off who sweep often.
    locks = {"LOCATION": cluster.urls, "TIMEOUT": lease, "CLOCK_SKEW": 0.1, "SWEEP_INTERVAL": None}
    return {
        "broker": f"{broker.urls[0]}/0",
        "log": str(folder / "log"),
        "database": str(folder / "db.sqlite3"),
        "prefix": prefix,
        "locks": {
            "default": locks | {"KEY_PREFIX": prefix},
            "verified": locks | {"KEY_PREFIX": f"{prefix}-verified"},
            "nowhere": {
                "LOCATION": "redis://127.0.0.1:1",
                "KEY_PREFIX": "nowhere",
                "BLOCKING_TIMEOUT": 0.2,
                "OPTIONS": {"socket_timeout": 0.05},
            },
        },
    }


@pytest.fixture(scope="session")
def setup(start_server, tmp_path_factory):
    """That of this process of the tests."""
    cluster, broker = start_server(KINDS["valkey-cluster"]), start_server(KINDS["valkey-standalone"])
    prefix = f"{PREFIX_STEM}-flights-{os.environ.get(WORKER, 'main')}"
    values = setup_of(cluster, broker, tmp_path_factory.mktemp("flights"), prefix, lease=LEASE)
    Path(values["log"]).touch()
    workload.configure(values)
    return values


@pytest.fixture(scope="session")
def prefork(setup):
    """The worker that most tests share."""
    worker = Worker(setup, "prefork", "celery").ready()
    yield worker
    worker.stop()


class Flights:
    """One test's key and all that happened to it."""

    def __init__(self, setup, cluster):
        self.key = uuid.uuid4().hex[:12]
        self.setup, self.cluster = setup, cluster

    def events(self, what="start", key=None):
        return [event for event in self.all(key) if event["what"] == what]

    def all(self, key=None):
        whole, _, _ = Path(self.setup["log"]).read_text().rpartition("\n")  # the last line may be being written
        wanted = key or self.key
        lines = (line for line in whole.splitlines() if wanted in line)  # of all tests so far
        return [event for event in map(json.loads, lines) if event["key"] == wanted]

    def until(self, what="start", count=1, key=None):
        """Waits for so many events, and gives the last one."""
        return until(lambda: (found := self.events(what, key)) and len(found) >= count and found)[-1]

    def outbox(self, task, key=None):
        """The keys in Redis for what is parked."""
        keys = self.record(task, key).keys
        outbox = names.outbox_keys(self.setup["prefix"], keys)
        return outbox.order, outbox.messages

    def parked(self, task, key=None):
        """How many messages are parked."""
        order, _ = self.outbox(task, key)
        return self.record(task, key).client.zcard(order)

    def until_parked(self, task, count=1, key=None):
        """Waits for so many messages to be parked: by their callers, or by workers."""
        until(lambda: self.parked(task, key) >= count)

    def open(self, key=None):
        workload.gate(key or self.key).touch()

    def record(self, task, key=None):
        return Record(self.cluster, self.setup["prefix"], f"flight:{task.name}:{key or self.key}")

    def free(self, task, key=None):
        return self.record(task, key).holder() is None

    def until_free(self, task, key=None, **within):
        until(lambda: self.free(task, key), **within)

    def until_released(self, task, key=None):
        """Waits for the key to be given back, and fails if its lease ends first."""
        record = self.record(task, key)

        def released():
            now, fields = record.now(), record.fields()
            assert "t" not in fields or int(fields["d"]) > now
            return "t" not in fields

        until(released)


@pytest.fixture
def flights(settings, setup, cluster):
    settings.CLUSTER_LOCKS = setup["locks"]
    return Flights(setup, cluster)


class Hosts:
    """Two workers on one queue, so that there is another one if a test kills one of them."""

    def __init__(self, setup, queue="hosts", pool="prefork"):
        self.queue, self.pool = queue, pool
        self.locks = setup["locks"] | {"default": setup["locks"]["default"] | {"SWEEP_INTERVAL": 0.5}}
        self.setup, self.count, self.workers = setup, 0, []

    def both(self):
        """Starts what is missing, and waits for it."""
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        while len(self.workers) < 2:
            self.count += 1
            name = f"{self.queue}-{self.count}"
            self.workers.append(Worker(self.setup, self.pool, name, queue=self.queue, locks=self.locks))
        for worker in self.workers:
            worker.ready()
        return self.workers

    def of(self, event):
        """The worker that an event is of, or a child of it."""
        parent = int(Path(f"/proc/{event['pid']}/stat").read_text().rpartition(")")[2].split()[1])
        return next(worker for worker in self.workers if worker.process.pid in (event["pid"], parent))


@pytest.fixture(scope="session")
def all_hosts(setup):
    hosts = Hosts(setup)
    yield hosts
    for worker in hosts.workers:
        worker.stop()


@pytest.fixture
def hosts(all_hosts):
    all_hosts.both()
    return all_hosts


def redeliver(timeout=-1):
    """Delivers again what workers have not acknowledged for so many seconds, as the broker does by and by."""
    with workload.app.connection_for_write() as connection:
        channel = connection.default_channel
        index = channel.global_keyprefix + channel.unacked_index_key
        with redis.Redis(connection_pool=channel.pool) as client:
            tags = client.zrangebyscore(index, "-inf", time.time() - timeout)
        for tag in tags:  # not by `restore_visible`, which leaves it to a worker that is at it
            channel.qos.restore_by_tag(tag)
