"""A broker for which Celery runs no event loop: its pool has to notice a dead child."""

import os
import signal

import pytest
from kombu import Connection

from tests.celery.workload import PATIENCE, join
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
