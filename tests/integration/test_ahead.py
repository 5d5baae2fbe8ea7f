"""A request that is on its way while its caller does something else."""

import time
from contextlib import contextmanager

import pytest

from django_cluster_lock import cache_lock, protocol
from django_cluster_lock.aliases import aliases
from django_cluster_lock.holding import new_token
from tests.records import disconnect, until


@pytest.fixture
def alias(settings, locks, prefix):
    """One that knows the cluster, so that what a flow asks for first is what it is about."""
    settings.CLUSTER_LOCKS = {"default": locks["default"] | {"OPTIONS": {"client_name": prefix}}}
    with cache_lock("before"):
        return aliases["default"]


def taking(alias, record, token):
    now = time.monotonic()
    return protocol.acquire(record.keys, token, alias.terms(10), now=now, until=now + 5, blocking=False)


@contextmanager
def unanswered(record):
    """The shard writes nothing, and so leaves requests without an answer."""
    node = record.client.get_node_from_key(record.key)
    record.client.execute_command("CLIENT", "PAUSE", 5000, "WRITE", target_nodes=node)
    try:
        yield
    finally:
        record.client.execute_command("CLIENT", "UNPAUSE", target_nodes=node)


def test_it_is_done_before_its_answer_is_asked_for(alias, record):
    token = new_token()
    answer = alias.run_ahead(taking(alias, record, token))
    until(lambda: record.holder() == token.decode())
    assert answer().token == token
    assert record.holder() == token.decode()


def test_a_connection_that_broke_meanwhile_is_replaced(alias, record, prefix):
    token = new_token()
    with unanswered(record):
        answer = alias.run_ahead(taking(alias, record, token))
        disconnect(record.client, prefix)
    assert answer().token == token


def test_who_is_interrupted_as_it_is_sent_takes_it_back(alias, record, monkeypatch):
    begin = alias.connections.begin

    def interrupted(action):
        begin(action)()
        raise KeyboardInterrupt

    monkeypatch.setattr(alias.connections, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        alias.run_ahead(taking(alias, record, new_token()))
    assert record.holder() is None
