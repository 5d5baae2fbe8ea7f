"""The contract of each script, on every server."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import redis

from django_cluster_lock import embedded, names, scripts
from tests.records import Record, until
from tests.servers import KINDS

OWNER = ("web-1", "4711", "MainThread", "")
RETENTION, MARK_LIFE, WAKE_LIFE, MARKS, SKIPS = 2000, 60_000, 8000, 8, 64
SLACK = 5000  # ms that a slow machine may take between two looks


class Lock(Record):
    """A lock whose scripts are asked for by hand, as the server's user."""

    def __init__(self, server, prefix, name="a"):
        super().__init__(server, prefix, name)
        port = self.client.get_node_from_key(self.key).port if server.is_cluster else server.embedded.ports[0]
        self.user = redis.Redis(
            "127.0.0.1", port, username=server.username, password=server.password, decode_responses=True
        )

    def ask(self, script, *args, on=None):
        keys = (self.keys.record, self.keys.index)[: script.key_count]
        connection = on or self.user
        try:
            return connection.evalsha(script.sha.decode(), len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return connection.eval(script.text, len(keys), *keys, *args)
        finally:
            assert self.client.pttl(self.key) != -1, "no record without an expiry, whatever was asked"

    def acquire(self, token, ttl=30_000, alive=0, owner=OWNER, **kwargs):
        return self.ask(scripts.ACQUIRE, token, ttl, alive, self.keys.member, *owner, **kwargs)

    def renew(self, token, ttl=30_000, **kwargs):
        return self.ask(scripts.RENEW, token, ttl, **kwargs)

    def attach(self, token, new, ttl=30_000, owner=OWNER, **kwargs):
        return self.ask(scripts.ATTACH, token, new, ttl, *owner, **kwargs)

    def release(self, token, mark=0):
        return self.ask(scripts.RELEASE, token, mark, self.keys.member, self.keys.index, self.keys.wake)

    def sweep(self):
        return self.ask(scripts.SWEEP, self.keys.member)

    def left(self):
        """How long the record has yet to live."""
        return self.client.pttl(self.key)

    def lease_left(self):
        return int(self.fields()["d"]) - self.now()

    def is_indexed(self):
        return self.client.zscore(self.keys.index, self.keys.member) is not None

    def pushes(self, token):
        return self.client.llen(self.keys.wake + token.encode())

    def wait_until(self, moment):
        until(lambda: self.now() > moment)

    def fill_queue(self, dead, live):
        """A queue as it is once so many waiters have died in it, before one that lives."""
        tokens = [f"dead{number}" for number in range(dead)]
        queue = {f"q{number}": token for number, token in enumerate([*tokens, live])}
        queue |= {f"w{token}": f"{number}:1" for number, token in enumerate(tokens)}
        queue |= {f"w{live}": f"{dead}:{self.now() + 60_000}", "qh": 0, "qt": dead + 1}
        self.client.hset(self.key, mapping=queue)


@pytest.fixture
def lock(server, prefix):
    lock = Lock(server, prefix)
    yield lock
    lock.user.close()


def near(value, expected):
    return expected - SLACK <= value <= expected


def test_a_free_lock_is_acquired(lock):
    before = lock.now()
    status, fence = lock.acquire("A")
    fields = lock.fields()
    assert status == "own"
    assert before * 1000 <= fence <= (lock.now() + 1) * 1000
    assert (fields["t"], fields["f"]) == ("A", str(fence))
    assert tuple(fields[name] for name in "hprk") == OWNER
    assert before <= int(fields["s"]) <= lock.now()
    assert near(lock.lease_left(), 30_000)
    assert near(lock.left(), 30_000 + RETENTION)
    assert lock.is_indexed()


def test_its_holder_gets_the_same_answer_again_and_no_shorter_lease(lock):
    first = lock.acquire("A")
    deadline = int(lock.fields()["d"])
    assert lock.acquire("A", ttl=10) == first
    assert int(lock.fields()["d"]) == deadline
    assert lock.acquire("A", ttl=60_000) == first
    assert int(lock.fields()["d"]) > deadline
    assert near(lock.left(), 60_000 + RETENTION)


def test_who_does_not_wait_is_told_the_holder_and_leaves_nothing(lock):
    lock.acquire("A")
    before = lock.fields()
    status, left, first, *owner = lock.acquire("B")
    assert (status, first, tuple(owner)) == ("busy", 0, OWNER)
    assert near(left, 30_000)
    assert lock.fields() == before


def test_waiters_queue_in_order(lock):
    lock.acquire("A", ttl=5000)
    assert lock.acquire("B", alive=10_000)[2:] == [1, *OWNER]
    assert lock.acquire("C", alive=20_000)[2:] == [0, *OWNER]
    assert lock.acquire("B", alive=10_000)[2] == 1, "to poll keeps the place"
    assert lock.waiters() == ["B", "C"]
    assert near(lock.left(), 20_000 + RETENTION), "a dead holder must not take its queue with it"


def test_a_dead_waiter_loses_its_place(lock):
    lock.acquire("A")
    lock.acquire("B", alive=1)
    lock.wait_until(lock.now() + 1)
    assert lock.acquire("C", alive=10_000)[2] == 1
    assert lock.acquire("B", alive=10_000)[2] == 0
    assert lock.waiters() == ["C", "B"]


def test_a_lease_that_is_over_goes_to_the_first_waiter_alone(lock):
    lock.acquire("A", ttl=300)
    fence = int(lock.fields()["f"])
    lock.acquire("B", alive=10_000)
    lock.acquire("C", alive=10_000)
    lock.wait_until(int(lock.fields()["d"]))
    assert lock.acquire("new")[:3] == ["busy", 0, 0]
    assert lock.acquire("C", alive=10_000)[:3] == ["queued", 0, 0]
    status, next_fence = lock.acquire("B", alive=10_000)
    assert status == "own"
    assert next_fence > fence
    assert lock.waiters() == ["C"]


def test_fences_grow_though_the_clock_does_not(lock):
    ahead = (lock.now() + 3_600_000) * 1000
    lock.client.hset(lock.key, "f", str(ahead))
    assert lock.acquire("A") == ["own", ahead + 1]
    lock.acquire("C", alive=10_000)
    assert lock.release("A") == "handed"
    assert lock.acquire("C", alive=10_000) == ["own", ahead + 2]


def test_renewed_by_its_holder_alone_and_never_shortened(lock):
    _, fence = lock.acquire("A")
    before = lock.fields()
    assert lock.renew("B") == ["lost"]
    assert lock.fields() == before
    assert lock.renew("A", ttl=60_000) == ["ok", fence]
    assert near(lock.lease_left(), 60_000)
    assert near(lock.left(), 60_000 + RETENTION)
    assert lock.renew("A", ttl=10) == ["ok", fence]
    assert near(lock.lease_left(), 60_000)


def test_no_renewal_brings_a_lease_back(lock):
    lock.acquire("A", ttl=10)
    lock.wait_until(int(lock.fields()["d"]))
    before = lock.fields()
    assert lock.renew("A") == ["lost"]
    assert lock.release("A") == "not owner"
    assert "t" in before
    assert "t" not in lock.fields()


def test_a_lease_that_is_attached_begins_anew(lock):
    _, fence = lock.acquire("A", ttl=60_000)
    since = int(lock.fields()["s"])
    lock.acquire("W", alive=10_000)
    other = ("web-2", "1", "Thread-1", "task")
    status, next_fence = lock.attach("A", "B", owner=other)
    fields = lock.fields()
    assert status == "own"
    assert (fields["t"], int(fields["f"])) == ("B", next_fence)
    assert next_fence > fence
    assert tuple(fields[name] for name in "hprk") == other
    assert int(fields["s"]) >= since
    assert near(lock.lease_left(), 30_000), "its time is its own, though it is shorter"
    assert near(lock.left(), 30_000 + RETENTION)
    assert lock.waiters() == ["W"]
    assert lock.attach("A", "C") == ["lost"], "of a token one handle is valid"
    assert lock.renew("A") == ["lost"]
    assert lock.attach("A", "B", ttl=40_000) == ["own", next_fence], "the same attempt once more"
    assert near(lock.lease_left(), 40_000)
    assert lock.attach("A", "B", ttl=10) == ["own", next_fence]
    assert near(lock.lease_left(), 40_000), "no late request shortens it"


def test_a_lease_that_is_over_is_not_attached(lock):
    assert lock.attach("A", "B") == ["lost"]
    lock.acquire("A", ttl=10)
    lock.wait_until(int(lock.fields()["d"]))
    before = lock.fields()
    assert lock.attach("A", "B") == ["lost"]
    assert lock.fields() == before
    lock.acquire("C")
    lock.release("D", mark=1)
    assert lock.attach("C", "D") == ["over"]
    assert lock.holder() == "C"


def test_released_by_its_holder_alone(lock):
    _, fence = lock.acquire("A")
    before = lock.fields()
    assert lock.release("B") == "not owner"
    assert lock.fields() == before
    assert lock.release("A") == "released"
    assert lock.fields() == {"f": str(fence)}, "the fence stays for the next"
    assert near(lock.left(), RETENTION)
    assert not lock.is_indexed()
    assert lock.release("A") == "not owner"


def test_handed_to_the_first_waiter_which_alone_is_woken(lock):
    _, fence = lock.acquire("A")
    lock.acquire("B", alive=4000)
    lock.acquire("C", alive=10_000)
    assert lock.release("A") == "handed"
    fields = lock.fields()
    assert fields["t"] == "B"
    assert int(fields["f"]) > fence
    assert not {"h", "p", "r", "k"} & fields.keys(), "the owner before is not the owner now"
    assert near(lock.lease_left(), 4000), "until the waiter's life ends"
    assert (lock.pushes("B"), lock.pushes("C")) == (1, 0)
    assert near(lock.client.pttl(lock.keys.wake + b"B"), WAKE_LIFE)
    assert lock.is_indexed()
    assert lock.acquire("B", alive=4000) == ["own", int(fields["f"])]
    assert near(lock.lease_left(), 30_000)


def test_a_waiter_that_gives_up_leaves_the_queue_to_the_others(lock):
    lock.acquire("A")
    for token in "BCD":
        lock.acquire(token, alive=10_000)
    assert lock.release("C") == "not owner"
    assert lock.waiters() == ["B", "D"]
    lock.release("B")
    assert lock.release("A") == "handed"
    assert lock.holder() == "D"


def test_a_release_steps_over_64_dead_waiters_and_the_next_call_goes_on(lock):
    lock.acquire("A", ttl=60_000)
    lock.fill_queue(SKIPS + 6, "B")
    assert lock.release("A") == "released"
    assert lock.holder() is None
    assert len(lock.waiters()) == 7
    assert lock.is_indexed()
    assert lock.acquire("B", alive=60_000)[0] == "own"
    assert lock.waiters() == []


def test_a_release_reaches_who_waits_among_the_first_64(lock):
    lock.acquire("A", ttl=60_000)
    lock.fill_queue(SKIPS - 1, "B")
    assert lock.release("A") == "handed"
    assert lock.holder() == "B"


def test_nobody_overtakes_a_queue_too_long_to_search(lock):
    lock.acquire("A", ttl=60_000)
    lock.fill_queue(SKIPS + 6, "B")
    lock.client.hset(lock.key, "d", 0)
    assert lock.acquire("new")[:2] == ["busy", 0], "not all were looked at"
    assert lock.acquire("new")[:2] == ["busy", 0], "B was seen"
    assert lock.acquire("B", alive=60_000)[0] == "own"


def test_an_ended_token_is_over_for_a_minute(lock):
    lock.acquire("A")
    assert lock.release("B", mark=1) == "not owner"
    before = lock.fields()
    assert lock.acquire("B") == ["over"]
    assert lock.acquire("B", alive=10_000) == ["over"]
    assert lock.fields() == before
    assert near(int(before["x0"].rpartition(":")[2]) - lock.now(), MARK_LIFE)
    assert near(lock.left(), MARK_LIFE + RETENTION)
    lock.client.hset(lock.key, "x0", f"B:{lock.now() - 1}")
    assert lock.acquire("B")[0] == "busy"


def test_an_ended_token_is_over_though_its_cancel_came_first(lock):
    assert lock.release("A", mark=1) == "not owner"
    assert lock.acquire("A") == ["over"]
    assert lock.acquire("B")[0] == "own"
    assert lock.acquire("A", alive=1000) == ["over"]


def test_the_last_eight_are_kept(lock):
    tokens = [f"T{number}" for number in range(MARKS + 1)]
    for token in tokens:
        lock.release(token, mark=1)
        lock.wait_until(lock.now())
    assert lock.cancelled() == set(tokens[1:])


def test_to_cancel_twice_ends_no_other_token(lock):
    tokens = [f"T{number}" for number in range(MARKS)]
    for token in [*tokens, *tokens[-1:] * MARKS]:
        lock.release(token, mark=1)
    assert lock.cancelled() == set(tokens)


def test_a_sweep_keeps_what_lives(lock):
    lock.acquire("A")
    lock.client.persist(lock.key)
    lock.client.delete(lock.keys.index)
    assert lock.sweep() == "kept"
    assert lock.is_indexed()
    assert near(lock.left(), 30_000 + RETENTION)
    assert lock.holder() == "A"


def test_a_sweep_keeps_what_is_waited_for(lock):
    lock.acquire("A")
    lock.acquire("B", alive=10_000)
    lock.client.hset(lock.key, "d", 0)
    assert lock.sweep() == "kept"
    assert lock.acquire("B", alive=10_000)[0] == "own"


def test_a_sweep_removes_what_is_over(lock):
    lock.acquire("A", ttl=10)
    lock.wait_until(int(lock.fields()["d"]))
    assert lock.is_indexed()
    assert lock.sweep() == "removed"
    assert not lock.is_indexed()
    assert lock.sweep() == "removed"


def test_a_record_stays_small(lock):
    longest = tuple(letter * 64 for letter in "hprk")
    lock.acquire("A" * 16, owner=longest)
    for number in range(3):
        lock.acquire(f"{number:016}", alive=10_000)
        lock.release(f"x{number:015}", mark=1)
    assert lock.client.object("encoding", lock.key) in {"listpack", "ziplist"}


# Servers of the test's own


@pytest.fixture(params=["valkey-standalone", "redis7-cluster", "redis62-cluster"])
def own_server(request, tmp_path):
    """A single server, of each make."""
    kind = replace(KINDS[request.param], name="own", is_cluster=False)
    server = kind.start(tmp_path)
    yield server
    server.close()
    embedded.down(server.embedded.directory)


def test_full_memory_keeps_leases_and_frees_locks(own_server, prefix):
    lock = Lock(own_server, prefix)
    _, fence = lock.acquire("A")
    lock.acquire("B", alive=10_000)
    lock.acquire("C", alive=10_000)
    lock.client.config_set("maxmemory-policy", "noeviction")
    lock.client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        lock.client.set("control", "value")
    assert lock.renew("A") == ["ok", fence]
    assert lock.acquire("A") == ["own", fence]
    assert lock.attach("A", "N")[0] == "own"
    assert lock.release("N") == "handed"
    assert lock.pushes("B") == 1
    assert lock.acquire("B", alive=10_000)[0] == "own"
    assert lock.release("B", mark=1) == "handed"
    assert lock.release("C") == "released"
    with pytest.raises(redis.exceptions.ResponseError, match=r"maxmemory|OOM"):
        Lock(own_server, prefix, "new").acquire("A")
    lock.user.close()


@pytest.mark.parametrize("new", [True, False])
def test_full_memory_refuses_the_claim_of_a_flight(own_server, prefix, new):
    lock = Lock(own_server, prefix)
    lock.client.config_set("maxmemory-policy", "noeviction")
    lock.client.config_set("maxmemory", 1)
    keys = names.outbox_keys(prefix, lock.keys)
    ended = () if new else (keys.ended + b"a:0",)
    place = lock.keys.record, lock.keys.index, keys.order, keys.messages, keys.outboxes, keys.latest, *ended
    args = b"token", b"1000", lock.keys.member, b"host", b"1", b"queued", b"a", b"a:0", b"join", b"", b"0", b"0"
    with pytest.raises(redis.exceptions.ResponseError, match=r"maxmemory|OOM"):
        lock.client.eval(scripts.CLAIM.text, len(place), *place, *args)
    assert not lock.client.exists(lock.keys.record)
    lock.user.close()


@contextmanager
def stopped(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_every_answer_that_grants_is_a_write_to_wait_for(own_cluster, prefix):
    """WAIT acknowledges a connection's own last write: after an answer that only read, it says yes at once."""
    lock = Lock(own_cluster, prefix)
    port = lock.user.connection_pool.connection_kwargs["port"]
    lock.acquire("A", ttl=120_000)
    lock.renew("A")
    questions = [
        lambda on: lock.acquire("A", on=on),
        lambda on: lock.renew("A", on=on),
        lambda on: lock.acquire("A", ttl=10, on=on),
        lambda on: lock.renew("A", ttl=10, on=on),
        lambda on: lock.attach("A", "B", on=on),
        lambda on: lock.attach("A", "B", on=on),
    ]
    nodes = own_cluster.embedded
    replicas = [node.pid for node in embedded.status(nodes.directory).nodes if node.primary_port]
    assert len(replicas) == 3
    with stopped(replicas):
        for question in questions:
            with redis.Redis("127.0.0.1", port, password=own_cluster.password, single_connection_client=True) as fresh:
                assert fresh.wait(1, 50) == 1, "without a write, the control"
                assert question(fresh)[0] in {b"own", b"ok"}
                assert fresh.wait(1, 50) == 0
