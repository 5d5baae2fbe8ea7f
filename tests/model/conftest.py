"""What the tests of the flights' model stand on."""

import logging

import pytest
import redis
from django.dispatch import Signal

from django_cluster_lock import signals
from django_cluster_lock.flights import recovery, watching
from django_cluster_lock.names import keys_of
from tests.model.agents import NAME


@pytest.fixture(scope="module")
def flights_node(cluster):
    """A client of the node that serves the key of the model's flights."""
    port = cluster.admin().get_node_from_key(keys_of("any", NAME).record.decode()).port
    with redis.Redis("127.0.0.1", port, password=cluster.embedded.password) as client:
        yield client


@pytest.fixture
def quiet(monkeypatch):
    """Nobody is told: the receivers of the workers' tests write into their log."""
    monkeypatch.setattr(logging.getLogger("django_cluster_lock"), "disabled", True)
    # What would be tried again after a while in real time is left to the lease.
    monkeypatch.setattr(watching, "later", lambda *_: recovery._shards.clear())
    for signal in vars(signals).values():
        if isinstance(signal, Signal):
            monkeypatch.setattr(signal, "receivers", [])
