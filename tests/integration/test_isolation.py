"""Whatever one node does costs the locks of the other shards nothing, and its own callers no more than their time."""

import logging
import math
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from django_cluster_lock import LockError, LockUnavailable, cache_lock
from django_cluster_lock.aliases import Alias, aliases
from django_cluster_lock.signals import lock_lost
from tests.faults.proxy import Proxy, Rule
from tests.integration.conftest import SKEW, TIMEOUT
from tests.records import Record, until

NAMES = [f"isolated:{number}" for number in range(40)]
LATE = 0.3  # seconds by which a call may come back after its caller's time


class Everything(Rule):
    """A rule for every request."""

    def takes(self, request):
        return len(self.begun) < self.times


def hanging(**fault):
    """A rule for a node that hangs, or that fails in another way."""
    return Everything("", times=math.inf, **({"request": "drop"} | fault))


@pytest.fixture(scope="module")
def proxies(cluster):
    """A proxy before each node, each with rules of its own, by the node's port."""
    made = {port: Proxy([port]) for port in cluster.embedded.ports}
    yield made
    for proxy in made.values():
        proxy.close()


@pytest.fixture(autouse=True)
def locks_on(settings, locks, proxies):
    options = {"address_remap": lambda node: proxies[node[1]].remap(node) if node[1] in proxies else node}
    settings.CLUSTER_LOCKS = {"default": locks["default"] | {"OPTIONS": options}}
    yield
    for proxy in proxies.values():
        proxy.heal()
        proxy.forget()


@dataclass
class Shard:
    """The shard of the lock "a", and what is elsewhere.

    Attributes:
        proxy: before its primary.
        names: of locks on it.
        others: names of locks on other shards.
    """

    proxy: Proxy
    names: list
    others: list


@pytest.fixture
def shard(cluster, prefix, proxies, record):
    where = {name: Record(cluster, prefix, name) for name in NAMES}
    ports = {name: each.client.get_node_from_key(each.key).port for name, each in where.items()}
    own = record.client.get_node_from_key(record.key).port
    with cache_lock("a"):  # so that the layout is known
        pass
    return Shard(
        proxies[own],
        [name for name, port in ports.items() if port == own],
        [name for name, port in ports.items() if port != own],
    )


@contextmanager
def losses():
    """The names of the leases that are lost meanwhile."""
    told = []

    def note(lease, **_):
        told.append(lease.name)

    lock_lost.connect(note)
    try:
        yield told
    finally:
        lock_lost.disconnect(note)


class Ticks:
    """The time that passes while this process runs: a machine that stands still meanwhile adds nothing to it."""

    STEP = 0.01

    def __enter__(self):
        self.seconds, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self):
        while not self._over.wait(self.STEP):
            self.seconds += self.STEP

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def actor(request, actors):
    """Calls a lock's methods by one of its faces."""
    return actors(in_loop=request.param)


def take(actor, locks):
    """Acquires locks one after another, over half of a lease's time, so that they are not renewed together."""
    for lock in locks:
        started = time.monotonic()
        assert actor.do(lock, "acquire")
        until(lambda: time.monotonic() > started + TIMEOUT / 2 / len(locks))  # noqa: B023


FAULTS = {
    "hangs": {},
    "answers late": {"request": "pass", "late": 1.5},
    "breaks off": {"close": True},
}


@pytest.mark.parametrize(
    ("in_loop", "fault"), [(False, "hangs"), (True, "hangs"), (False, "answers late"), (True, "breaks off")]
)
def test_no_lease_of_another_shard_is_lost(shard, actors, in_loop, fault):
    """However a node fails, while it has leases that are to be renewed; they were taken one after another."""
    actor = actors(in_loop=in_loop)
    held = {name: cache_lock(name, timeout=TIMEOUT if name in shard.others else 4 * TIMEOUT) for name in NAMES}
    with losses() as lost:
        take(actor, held.values())
        shard.proxy.harm(hanging(**FAULTS[fault]))
        ends = time.monotonic() + 2 * TIMEOUT
        until(lambda: time.monotonic() > ends)
        assert not set(lost) & set(shard.others)
        shard.proxy.heal()
        for name in shard.others:
            actor.do(held[name], "release")
        for name in shard.names:  # else they are renewed in the next test
            with suppress(LockError):
                actor.do(held[name], "release")


def test_no_call_on_another_shard_asks_a_node_that_hangs(shard, actor, monkeypatch):
    """Not even where the layout has grown old, or where it was wrong."""
    topology, hangs, suspected = aliases["default"].topology, shard.proxy.remap(("", *shard.proxy.ports)), []
    monkeypatch.setattr(topology, "suspect", suspected.append)
    shard.proxy.harm(hanging())
    shard.proxy.forget()
    for number, name in enumerate(shard.others):
        lock = cache_lock(name)
        if number % 2:
            slot = lock._keys()[0].slot
            topology._primaries[slot] = next(
                node for node in topology.primaries() if node not in (hangs, topology.primary(slot))
            )
        topology.learned_at = -math.inf
        assert actor.do(lock, "acquire")
        actor.do(lock, "release")
    assert hangs not in suspected[:1]  # unless the node that answered fell silent, on a machine that stood still
    assert suspected or not shard.proxy.requests()


@pytest.mark.parametrize("blocking_timeout", [0.2, 1])
def test_an_acquire_ends_with_its_callers_time(shard, actor, record, blocking_timeout):
    """Though the node hangs; what it may have left behind is taken back once the node is heard again."""
    assert not actor.do(cache_lock("a"), "locked")  # by a connection that is open from then on
    shard.proxy.harm(hanging())
    with Ticks() as passed, pytest.raises(LockUnavailable):
        actor.do(cache_lock("a"), "acquire", blocking_timeout=blocking_timeout)
    assert passed.seconds < blocking_timeout + LATE
    shard.proxy.heal()
    until(record.cancelled)


def test_so_does_a_wait(shard, actors, actor, record):
    holder, lock = actors(), cache_lock("a")
    assert holder.do(lock, "acquire")
    with Ticks() as passed:
        waiting = actor.start(cache_lock("a"), "acquire", blocking_timeout=2)
        until(record.waiters)
        shard.proxy.harm(hanging())
        with pytest.raises(LockUnavailable):
            waiting.result()
    assert passed.seconds < 2 + LATE
    shard.proxy.heal()
    until(record.cancelled)
    assert not record.waiters()
    holder.do(lock, "release")


def test_so_does_any_other_call(shard, actor, monkeypatch):
    monkeypatch.setattr(Alias, "patience", 0.3)
    held = cache_lock("a", renew=False, timeout=20)
    assert actor.do(held, "acquire")
    shard.proxy.harm(hanging())
    calls = [
        (cache_lock("b", tag="a"), "acquire", {"blocking": False}),
        (held, "locked", {}),
        (held, "owned", {}),
        (held, "extend", {"additional_time": 20}),
        (held, "release", {}),
    ]
    for lock, method, arguments in calls:
        with Ticks() as passed, pytest.raises(LockUnavailable):
            actor.do(lock, method, **arguments)
        assert passed.seconds < 0.3 + LATE, method


@pytest.mark.parametrize("names", [["a"], ["a", "b"]], ids=["one", "several"])
def test_a_release_that_nobody_answered_is_told_later(shard, actor, record, monkeypatch, names):
    """Long before the lease ends."""
    monkeypatch.setattr(Alias, "patience", 0.3)
    held = cache_lock(names, tag="a", timeout=3600)
    assert actor.do(held, "acquire")
    shard.proxy.harm(hanging())
    with pytest.raises(LockUnavailable):
        actor.do(held, "release")
    shard.proxy.heal()
    for name in names:
        until(lambda: not cache_lock(name, tag="a").locked())  # noqa: B023


def test_but_not_with_a_token_of_ones_own(shard, actor, monkeypatch):
    """Its caller may ask with it again, and then it would be taken from him."""
    monkeypatch.setattr(Alias, "patience", 0.3)
    held = cache_lock("a", timeout=3600)
    assert actor.do(held, "acquire", token="own")
    shard.proxy.harm(hanging())
    with pytest.raises(LockUnavailable):
        actor.do(held, "release")
    assert not aliases["default"].renewer._cancels
    shard.proxy.heal()
    assert actor.do(cache_lock("a"), "acquire", token="own")


def test_a_lease_that_is_not_renewed_makes_few_attempts_and_few_lines(shard, record, caplog):
    """Though each attempt fails at once."""
    held = [cache_lock(f"failing:{number}", tag="a") for number in range(20)]
    for lock in held:
        lock.acquire()
    rule = shard.proxy.harm(Rule("renew", request="drop", close=True, times=math.inf))
    shard.proxy.forget()
    with losses() as lost:
        until(lambda: len(lost) == len(held))
    renewed = sum(request.commands.count("renew") for request in rule.begun)
    assert 2 * len(held) <= renewed <= 10 * len(held)
    lines = [entry for entry in caplog.records if entry.message.startswith("lock.renewal_failed")]
    assert 1 <= len(lines) <= 5
    assert lines[0].count == len(lines[0].locks)
    assert repr(lines[0].locks[0]) in lines[0].message


class Silly(BaseException):
    """What nobody should raise."""


@pytest.fixture
def silly_log():
    """A filter of the log that raises."""

    def refuse(record):
        raise Silly

    logger = logging.getLogger("django_cluster_lock")
    logger.addFilter(refuse)
    yield
    logger.removeFilter(refuse)


@pytest.mark.usefixtures("silly_log")
def test_what_others_raise_costs_no_lease(cluster, prefix, record):
    """One lease is lost, and everybody who is told of it raises; the other, of the same shard, is renewed."""
    told = []

    def complain(*_, **__):
        told.append(1)
        raise Silly

    lost, kept = cache_lock("a"), cache_lock("b", tag="a")
    lost.acquire()
    kept.acquire()
    lost.when_lost(complain)
    lost.when_lost(complain)
    lock_lost.connect(complain)
    try:
        record.client.delete(record.key)
        until(lambda: len(told) == 3)
    finally:
        lock_lost.disconnect(complain)
    ends = time.monotonic() + 2 * TIMEOUT
    until(lambda: time.monotonic() > ends)
    kept.release()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stalled"])
def test_a_failover_costs_no_lease_of_another_shard(settings, own_cluster, prefix, actors, how):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": own_cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": TIMEOUT, "CLOCK_SKEW": SKEW}
    }
    where = {name: Record(own_cluster, prefix, name) for name in NAMES}
    ports = {name: each.client.get_node_from_key(each.key).port for name, each in where.items()}
    victim, actor = ports[NAMES[0]], actors()
    held = {name: cache_lock(name, timeout=9 if ports[name] == victim else TIMEOUT) for name in NAMES}
    with losses() as lost:
        take(actor, held.values())
        pid = own_cluster.embedded.pid(victim)
        os.kill(pid, how)
        ends = time.monotonic() + 9
        until(lambda: time.monotonic() > ends)
        others = [name for name in NAMES if ports[name] != victim]
        assert not set(lost) & set(others)
        for name in others:
            actor.do(held[name], "release")
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
