import pytest

from tests.actors import Actor, AsyncActor
from tests.records import Record

TIMEOUT, SKEW = 3, 0.2  # seconds: longer than a busy machine may stand still


@pytest.fixture
def locks(cluster, prefix):
    """A setting CLUSTER_LOCKS for the Valkey cluster, with short leases: a slice of a wait is a second."""
    return {
        "default": {
            "LOCATION": cluster.urls,
            "KEY_PREFIX": prefix,
            "TIMEOUT": TIMEOUT,
            "BLOCKING_TIMEOUT": 20,
            "CLOCK_SKEW": SKEW,
        }
    }


@pytest.fixture
def record(cluster, prefix):
    """The record of the lock "a" on the Valkey cluster."""
    return Record(cluster, prefix, "a")


@pytest.fixture
def actors():
    """Makes actors, with a blocking face or one for asyncio."""
    made = []

    def make(*, in_loop=False):
        made.append(AsyncActor() if in_loop else Actor())
        return made[-1]

    yield make
    for actor in made:
        actor.close()
