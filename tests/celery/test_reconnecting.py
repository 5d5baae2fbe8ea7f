"""A worker that loses its broker for a moment goes on with all else it does; Celery drops readers and timers then."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from kombu import Connection

from tests.celery import workload
from tests.celery.workload import join
from tests.records import until
from tests.workers import Flights, Worker

QUEUE, DATABASE = "reconnecting", "7"


@pytest.fixture(scope="module")
def apart(setup):
    """A database of the broker's, and locks, that only this module uses: its worker sweeps."""
    prefix = f"{setup['prefix']}-{QUEUE}"
    locks = setup["locks"]["default"] | {"KEY_PREFIX": prefix, "SWEEP_INTERVAL": 0.5}
    own = {"prefix": prefix, "locks": setup["locks"] | {"default": locks}}
    return setup | own | {"broker": setup["broker"].removesuffix("0") + DATABASE, "backend": setup["broker"]}


@pytest.fixture(scope="module")
def worker(apart):
    worker = Worker(apart, "prefork", QUEUE, 1).ready()
    yield worker
    worker.stop()


@pytest.fixture
def flights(settings, apart, cluster):
    settings.CLUSTER_LOCKS = apart["locks"]
    return Flights(apart, cluster)


@pytest.fixture
def lose(apart, worker):
    """Has the worker lose its broker, and waits until it has noticed."""

    def count():
        return worker.log.read_text().count("onnection to broker lost")

    with redis.Redis.from_url(apart["broker"]) as client:

        def lose():
            before = count()
            for each in client.client_list():
                if each["db"] == DATABASE and each["id"] != str(client.client_id()):
                    client.client_kill_filter(_id=each["id"])
            until(lambda: count() > before)

        yield lose


def watched(pid):
    """How many processes a worker's event loop waits for, as the kernel shows it; None if that cannot be said."""
    with suppress(FileNotFoundError):  # one was closed meanwhile
        opened = {each.name: str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
        polls = [Path(f"/proc/{pid}/fdinfo/{name}") for name, what in opened.items() if what.endswith("[eventpoll]")]
        polled = re.findall(r"tfd:\s*(\d+)", "".join(each.read_text() for each in polls))
        return sum(opened.get(name) == "anon_inode:[pidfd]" for name in polled)


@pytest.mark.parametrize("moment", ["before the run", "during the run", "at both times"])
def test_it_watches_its_children(flights, apart, worker, lose, moment):
    if moment != "during the run":
        lose()
    options = workload.app.conf.broker_transport_options | {"global_keyprefix": f"{apart['prefix']}:celery:"}
    with Connection(apart["broker"], transport_options=options) as connection:
        join.apply_async((flights.key,), {"gated": True}, queue=QUEUE, connection=connection)
    child = flights.until("start")["pid"]
    if moment != "before the run":
        lose()
    until(lambda: watched(worker.process.pid) == 1)
    os.kill(child, signal.SIGKILL)
    flights.until("recovered")


def test_it_sweeps(worker, lose):
    def sweeps():
        return worker.log.read_text().count("sweep_flights")

    until(sweeps)
    lose()
    count = sweeps()
    until(lambda: sweeps() > count)
