"""The other pools: threads, greenlets, and the worker's only process itself."""

import pytest

from tests.celery.workload import join
from tests.workers import Worker

PATIENCE = 20


@pytest.fixture(params=["threads", "solo", "gevent"])
def pool(request, setup):
    worker = Worker(setup, request.param, request.param).ready()
    yield request.param
    worker.stop()


def test_one_run_its_retry_and_a_duplicate_that_is_awaited(flights, pool):
    first = join.apply_async((flights.key, "retry"), queue=pool)
    awaited = join.apply_async((flights.key,), task_id=f"awaited-{flights.key}", queue=pool)
    assert first.get(PATIENCE) == awaited.get(PATIENCE)
    starts = flights.events("start")
    assert [(event["id"], event["retries"]) for event in starts] == [(first.id, 0), (first.id, 1)]
    assert len({event["pid"] for event in starts}) == 1
    flights.until_free(join)
