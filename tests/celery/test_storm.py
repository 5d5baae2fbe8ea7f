"""Many callers, few keys: no two runs of a key overlap, and every caller is answered."""

import random

import pytest
from celery import chord

from tests.celery.workload import gather, join

pytestmark = pytest.mark.usefixtures("prefork")
PATIENCE = 40


def test_no_two_runs_of_a_key_overlap(flights):
    keys = [f"{flights.key}-{number}" for number in range(4)]
    chance = random.Random(flights.key)
    results = []
    for _ in range(60):
        key, how = chance.choice(keys), chance.choice(["succeed", "fail", "retry", "retry_later"])
        match chance.randrange(4):
            case 0:
                results.append(join.apply_async((key, how), task_id=f"{flights.key}-{len(results)}"))
            case 1:
                results.append(chord([join.si(key), join.si(key), join.si(chance.choice(keys))])(gather.s()))
            case _:
                results.append(join.delay(key, how))
    for result in results:
        value = result.get(PATIENCE, propagate=False)
        assert value is not None
    for key in keys:
        sequence = [event for event in flights.all(key) if event["what"] in ("start", "end")]
        assert [event["what"] for event in sequence] == ["start", "end"] * (len(sequence) // 2)
        flights.until_free(join, key)
