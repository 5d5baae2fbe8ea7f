"""A dead child where the broker is a folder, for which Celery runs no event loop, or was lost for a moment."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from kombu import Connection

from tests.celery import workload
from tests.celery.workload import PATIENCE, join
from tests.records import until
from tests.workers import Worker

pytestmark = pytest.mark.slow


@pytest.fixture
def filesystem(tmp_path):
    """A broker that is a folder."""
    messages, control = tmp_path / "messages", tmp_path / "control"
    messages.mkdir()
    control.mkdir()
    folders = {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": str(control)}
    return "filesystem://", folders


def test_what_is_parked_takes_over_and_is_settled(flights, setup, filesystem):
    url, options = filesystem
    conf = {"broker_transport_options": options}
    worker = Worker(setup | {"broker": url, "backend": setup["broker"]}, "prefork", flights.key, conf=conf).ready()
    try:
        with Connection(url, transport_options=options) as connection:

            def call(number, **kwargs):
                task_id = f"{number}-{flights.key}"
                return join.apply_async(
                    (flights.key,), kwargs, queue=flights.key, task_id=task_id, connection=connection
                )

            call(1, gated=True)
            pid = flights.until("start")["pid"]
            behind = [call(number) for number in (2, 3)]
            flights.until("parked", 2)
            os.kill(pid, signal.SIGKILL)
            flights.until("start", 2)
            flights.open()
            assert behind[0].get(PATIENCE) == behind[1].get(PATIENCE)
            flights.until_free(join)
    finally:
        worker.stop()


@pytest.fixture
def own_database(setup):
    """The URL of a broker that only a test's own worker uses, and what closes all connections to it."""
    url = setup["broker"].replace("/0", "/7")
    with redis.Redis.from_url(url) as client:

        def lose():
            for each in client.client_list():
                if each["db"] == "7" and each["id"] != str(client.client_id()):
                    client.client_kill_filter(_id=each["id"])

        yield url, lose


def watched(pid):
    """How many processes a worker's event loop waits for, as the kernel shows it; None if that cannot be said."""
    with suppress(FileNotFoundError):  # one was closed meanwhile
        opened = {each.name: str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
        polls = [Path(f"/proc/{pid}/fdinfo/{name}") for name, what in opened.items() if what.endswith("[eventpoll]")]
        polled = re.findall(r"tfd:\s*(\d+)", "".join(each.read_text() for each in polls))
        return sum(opened.get(name) == "anon_inode:[pidfd]" for name in polled)


@pytest.mark.parametrize("moment", ["before the run", "during the run"])
def test_a_worker_watches_its_children_when_it_has_lost_its_broker(flights, setup, own_database, moment):
    url, lose = own_database
    worker = Worker(setup | {"broker": url, "backend": setup["broker"]}, "prefork", flights.key, 1).ready()
    try:
        with Connection(url, transport_options=workload.app.conf.broker_transport_options) as connection:

            def call():
                return join.apply_async((flights.key,), {"gated": True}, queue=flights.key, connection=connection)

            if moment == "before the run":
                lose()
            call()
            flights.until("start")
            if moment == "during the run":
                lose()
            until(lambda: "onnection to broker lost" in worker.log.read_text())
            until(lambda: watched(worker.process.pid) == 1)
            os.kill(flights.until("start")["pid"], signal.SIGKILL)
            flights.until("recovered")
    finally:
        worker.stop()
