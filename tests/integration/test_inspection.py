"""Looking at the locks of an alias, on every server; and putting right what was damaged by hand."""

import os
import signal
import threading
from contextlib import contextmanager

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured

from django_cluster_lock import LockLost, LockUnavailable, cache_lock, locks, names
from django_cluster_lock.actions import NoAnswer, SendAll
from django_cluster_lock.connections.sync import Connections
from django_cluster_lock.inspection import verifying
from tests.records import Record, until

pytestmark = pytest.mark.usefixtures("without_fences")
NAMES = ["invoice:42", "{", "a}b{ c}", "per%cent", "%7B", "line\nbreak", "ünï", "x" * 500, " "]


def use(settings, server, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": server.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10, "OPTIONS": {"socket_timeout": 1}}
    }


@pytest.fixture
def on_every_server(settings, server, prefix):
    use(settings, server, prefix)
    return server


@pytest.fixture
def on_cluster(settings, cluster, prefix):
    use(settings, cluster, prefix)
    return cluster


@contextmanager
def waiting(server, prefix, name, count):
    """That many threads wait for a lock, which the block is to free."""
    threads, seen = [], []

    def wait():
        with cache_lock(name, blocking_timeout=30):
            seen.append(threading.current_thread().name)

    record = Record(server, prefix, name)
    for place in range(count):
        thread = threading.Thread(target=wait, name=f"waiter-{place}")
        thread.start()
        threads.append(thread)
        until(lambda: len(record.waiters()) > place)  # noqa: B023 - it is asked at once
    yield record
    for thread in threads:
        thread.join()
    assert seen == [thread.name for thread in threads]


def put(server, prefix, name, tag=None, *, index=True, expires=60, **fields):
    """Writes a record by hand, as a script would have."""
    keys, admin = names.keys_of(prefix, name, tag), server.admin()
    admin.hset(keys.record, mapping=fields)
    if expires:
        admin.expire(keys.record, expires)
    if index:
        admin.zadd(keys.index, {keys.member: 1})
    return keys


def queue(*alive, now, first=0):
    """The fields of a queue whose waiters live until so many ms from now."""
    places = list(enumerate(alive, start=first))
    return {
        "f": 1,
        "a": now + max(alive),
        "qh": first,
        "qt": first + len(alive),
        **{f"q{seq}": f"token-{seq}" for seq, _ in places},
        **{f"wtoken-{seq}": f"{seq}:{now + ms}" for seq, ms in places},
    }


def kinds(verification):
    return [(finding.kind, finding.name, finding.repaired) for finding in verification.findings]


def test_lists_what_is_held_and_what_is_waited_for(on_every_server, prefix):
    with cache_lock("b") as lock, cache_lock("a"):
        now = Record(on_every_server, prefix, "c").now()
        put(on_every_server, prefix, "c", **queue(60_000, now=now))
        put(on_every_server, prefix, "free", f=7)
        found = locks["default"].list()
        assert [(each.name, each.state) for each in found] == [("a", "held"), ("b", "held"), ("c", "waited")]
        shown = found.locks[1]
        assert (shown.token, shown.fence) == (lock.token, lock.fence)
        assert shown.owner.thread == "MainThread"
        assert 0 <= shown.age < 10
        assert 0 < shown.lease_left <= 11
        assert found.unread == ()
    assert [each.name for each in locks["default"].list()] == ["c"]


def test_every_name_is_listed_and_shown_as_it_was_given(on_every_server):
    with cache_lock(NAMES), cache_lock("total", tag="order:7"):
        found = locks["default"].list()
        assert {lock.name for lock in found} == {*NAMES, "total"}
        assert {lock.name: lock.tag for lock in found}["total"] == "order:7"
        for lock in found:
            shown = locks["default"].show(lock.name, lock.tag)
            assert (shown.token, shown.slot, shown.node) == (lock.token, lock.slot, lock.node)
        assert locks["default"].show("total").state == "free"
        assert locks["default"].verify().findings == ()


def test_one_whose_holder_died_is_listed_as_expired(on_every_server, prefix):
    now = Record(on_every_server, prefix, "a").now()
    put(on_every_server, prefix, "a", t="token", f=5, d=now - 1000, s=now - 61_000, h="web-1")
    (lock,) = locks["default"].list()
    assert (lock.state, lock.owner.host, lock.lease_left) == ("expired", "web-1", 0)
    assert 60 < lock.age < 90


def test_waiters_are_shown_in_order_without_the_dead(on_every_server, prefix):
    lock = cache_lock("a")
    lock.acquire()
    with waiting(on_every_server, prefix, "a", 3) as record:
        shown = locks["default"].show("a")
        assert [waiter.token for waiter in shown.waiters] == record.waiters()
        assert all(0 < waiter.alive_for <= 8 for waiter in shown.waiters)
        lock.release()
    put(on_every_server, prefix, "b", **queue(-1, 60_000, -1, 50_000, now=record.now(), first=9))
    assert [waiter.token for waiter in locks["default"].show("b").waiters] == ["token-10", "token-12"]


def test_filters(on_cluster, prefix):
    now = Record(on_cluster, prefix, "a").now()
    for name, age, task in [("invoice:1", 5, "shop.bill"), ("invoice:2", 500, "shop.report"), ("stock", 900, "")]:
        put(on_cluster, prefix, name, t="token", f=5, d=now + 60_000, s=now - 1000 * age, k=task)

    def listed(*pattern, **filters):
        return [lock.name for lock in locks["default"].list(*pattern, **filters)]

    assert listed("invoice:*") == ["invoice:1", "invoice:2"]
    assert listed("INVOICE:*") == []
    assert listed("invoice:?") == ["invoice:1", "invoice:2"]
    assert listed(task="shop.*") == ["invoice:1", "invoice:2"]
    assert listed(older_than=400) == ["invoice:2", "stock"]
    assert listed("invoice:*", task="*.report", older_than=400) == ["invoice:2"]
    node = locks["default"].show("stock").node
    assert "stock" in listed(node=node)
    assert listed(node="10.0.0.1:6379") == []


def test_brackets_in_a_pattern_stand_for_themselves(on_cluster):
    with cache_lock("cart[1]"), cache_lock("cart1"), cache_lock("cart\n[1]"):
        assert [lock.name for lock in locks["default"].list("cart[1]")] == ["cart[1]"]
        assert [lock.name for lock in locks["default"].list("cart*[1]")] == ["cart\n[1]", "cart[1]"]


def test_a_name_too_long_to_be_stored(on_cluster):
    name = "x" * 100_000
    with cache_lock(name) as lock:
        (listed,) = locks["default"].list("xxx*")
        assert listed.name == lock.name == names.bounded(name)
        for shown in (locks["default"].show(name), locks["default"].show(listed.name)):
            assert (shown.name, shown.token) == (listed.name, lock.token)
        assert len(repr(listed)) < 2000
        assert not cache_lock(name).acquire(blocking=False)
        assert not cache_lock(lock.name).acquire(blocking=False)
    assert not locks["default"].verify().findings


def test_released_by_force(on_every_server):
    lock = cache_lock("a")
    lock.acquire()
    assert not locks["default"].release("a", token="another")
    assert lock.owned()
    released = locks["default"].release("a", token=lock.token)
    assert released
    assert released.outcome == "released"
    assert not lock.locked()
    assert not locks["default"].release("a", token=released.token)
    with pytest.raises(LockLost):
        lock.release()


def test_release_by_force_leaves_a_lock_alone_that_changed_hands(on_every_server):
    cache_lock("a").acquire()
    shown = locks["default"].show("a")
    assert locks["default"].release("a", token=shown.token)
    with cache_lock("a") as lock:
        assert locks["default"].release("a", token=shown.token).outcome == "left"
        assert lock.owned()


def test_release_by_force_hands_to_the_first_waiter(on_every_server, prefix):
    lock = cache_lock("a")
    lock.acquire()
    with waiting(on_every_server, prefix, "a", 2):
        assert locks["default"].release("a", token=lock.token).outcome == "handed"


def test_what_is_no_lock_is_told_not_shown(on_cluster, prefix):
    on_cluster.admin().set(names.keys_of(prefix, "a").record, "a string")
    on_cluster.admin().hset(names.keys_of(prefix, "b").record, "colour", "red")
    for name in ("a", "b"):
        with pytest.raises(LockUnavailable):
            locks["default"].show(name)


def test_an_alias_that_is_not_set(on_cluster):
    with pytest.raises(ImproperlyConfigured, match="defualt"):
        locks["defualt"]


def test_locks_are_spread_evenly_unless_they_share_a_tag(on_cluster):
    with cache_lock([f"invoice:{number}" for number in range(300)]):
        even = locks["default"].distribution()
        assert even.locks == sum(share.locks for share in even.nodes) == 300
        assert sum(share.slots for share in even.nodes) == names.SLOTS
        assert len(even.nodes) == 3
        assert even.skew < 1.3
        assert even.warnings == ()
        with cache_lock([f"line:{number}" for number in range(200)], tag="order:7"):
            skewed = locks["default"].distribution()
    assert skewed.slots[0].locks >= 200
    assert skewed.skew > 1.5
    assert len(skewed.warnings) == 1
    assert str(skewed.slots[0].slot) in skewed.warnings[0]
    assert locks["default"].distribution().skew == 1


def test_verify_finds_nothing_while_locks_come_and_go(on_every_server):
    stop = threading.Event()

    def work(number):
        while not stop.is_set():
            with cache_lock(f"busy:{number % 3}", timeout=5, blocking_timeout=30):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    found = [finding for _ in range(30) for finding in locks["default"].verify().findings]
    stop.set()
    for thread in threads:
        thread.join()
    assert found == []


def test_a_dead_entry_is_swept(on_every_server, prefix):
    keys = names.keys_of(prefix, "gone")
    on_every_server.admin().zadd(keys.index, {keys.member: 1})
    with cache_lock("healthy") as lock:
        assert kinds(locks["default"].verify()) == [("dead-entry", "gone", False)]
        assert kinds(locks["default"].verify(repair=True)) == [("dead-entry", "gone", True)]
        assert kinds(locks["default"].verify()) == []
        assert lock.owned()
    assert not on_every_server.admin().exists(keys.index)


@pytest.mark.parametrize("tag", [None, "order:7"])
def test_a_missing_entry_is_added(on_every_server, prefix, tag):
    admin = on_every_server.admin()
    with cache_lock("a", tag=tag), cache_lock("healthy") as lock:
        keys = names.keys_of(prefix, "a", tag)
        assert admin.zrem(keys.index, keys.member)
        assert [each.name for each in locks["default"].list()] == ["healthy"]
        (finding,) = locks["default"].verify().findings
        assert (finding.kind, finding.name, finding.tag, finding.repaired) == ("missing-entry", "a", tag, False)
        assert kinds(locks["default"].verify(repair=True)) == [("missing-entry", "a", True)]
        assert [each.name for each in locks["default"].list()] == ["a", "healthy"]
        assert lock.owned()


def test_a_missing_entry_of_a_name_too_long_for_its_key_is_told(on_cluster, prefix):
    name = "x" * 500
    with cache_lock(name) as lock:
        keys = names.keys_of(prefix, name)
        on_cluster.admin().zrem(keys.index, keys.member)
        (finding,) = locks["default"].verify(repair=True).findings
        assert (finding.kind, finding.name, finding.repair, finding.repaired) == ("missing-entry", "", "", False)
        assert finding.key == keys.record.decode()
        assert lock.owned()


@pytest.mark.parametrize("name", ["a", "x" * 500])
def test_a_record_without_expiry_gets_one(on_every_server, prefix, name):
    admin = on_every_server.admin()
    with cache_lock(name, renew=False) as lock, cache_lock("healthy") as healthy:
        record = names.keys_of(prefix, name).record
        assert admin.persist(record)
        assert kinds(locks["default"].verify()) == [("no-expiry", name, False)]
        assert kinds(locks["default"].verify(repair=True)) == [("no-expiry", name, True)]
        assert 0 < admin.pttl(record) <= 13_000
        assert lock.owned()
        assert healthy.owned()


def test_a_queue_of_the_dead_is_dropped(on_every_server, prefix):
    now = Record(on_every_server, prefix, "a").now()
    keys = put(on_every_server, prefix, "a", **queue(*[-1] * 150, now=now))
    with cache_lock("healthy") as lock:
        found = locks["default"].verify()
        assert kinds(found) == [("dead-entry", "a", False), ("dead-waiters", "a", False)]
        assert "150" in found.findings[1].detail
        locks["default"].verify(repair=True)
        assert kinds(locks["default"].verify()) == []
        assert not [field for field in on_every_server.admin().hkeys(keys.record) if field[0] in "qw"]
        assert lock.owned()


def test_dead_waiters_ahead_of_a_live_one_are_dropped(on_every_server, prefix):
    now = Record(on_every_server, prefix, "a").now()
    fields = queue(-1, -1, 60_000, now=now) | {"t": "token", "d": now + 60_000}
    put(on_every_server, prefix, "a", **fields)
    assert kinds(locks["default"].verify(repair=True)) == [("dead-waiters", "a", True)]
    shown = locks["default"].show("a")
    assert (shown.state, shown.token, [waiter.token for waiter in shown.waiters]) == ("held", "token", ["token-2"])


def test_a_push_without_expiry_gets_one(on_every_server, prefix):
    admin, keys = on_every_server.admin(), names.keys_of(prefix, "a")
    for token in ("old", "new"):
        admin.lpush(keys.wake + token.encode(), "1")
    admin.expire(keys.wake + b"new", 1000)
    assert kinds(locks["default"].verify()) == [("wake-no-expiry", "a", False)]
    assert kinds(locks["default"].verify(repair=True)) == [("wake-no-expiry", "a", True)]
    assert 0 < admin.pttl(keys.wake + b"old") <= 8000
    assert admin.ttl(keys.wake + b"new") > 900


def test_what_is_not_ours_is_told_and_never_touched(on_cluster, prefix):
    admin = on_cluster.admin()
    keys, other = names.keys_of(prefix, "a"), names.keys_of(prefix, "b")
    foreign = {
        keys.record: admin.set,
        keys.index: admin.set,
        keys.wake + b"token": admin.set,
        f"{prefix}:index:nobody's".encode(): admin.set,
    }
    for key, write in foreign.items():
        write(key, "a string")
    admin.hset(other.record, "colour", "red")
    admin.hset(f"{prefix}:lock:no-tag", "f", "1")
    admin.zadd(other.index, {b"a": 1, b"\xff": 1})  # neither belongs into this slot's index
    admin.set(f"{prefix}:1:cached", "of another family: nothing of ours")
    with cache_lock("healthy") as lock:
        found = locks["default"].verify(repair=True)
        assert {finding.kind for finding in found.findings} == {"foreign"}
        assert not any(finding.repair or finding.repaired for finding in found.findings)
        assert len(found.findings) == 8
        assert lock.owned()
        assert [each.name for each in locks["default"].list()] == ["healthy"]
    assert all(admin.get(key) == "a string" for key in foreign)
    assert admin.hgetall(other.record) == {"colour": "red"}
    assert admin.zcard(other.index) == 2


def test_nothing_is_repaired_on_a_node_that_could_not_be_read_to_the_end(on_cluster, prefix, monkeypatch):
    litter = [names.keys_of(prefix, f"litter:{number}") for number in range(30)]
    for keys in litter:
        on_cluster.admin().zadd(keys.index, {keys.member: 1})
    silent, perform = locks["default"].show("litter:0").node, Connections.perform

    def without_the_last_page(self, action):
        outcomes = perform(self, action)
        for place, send in enumerate(action.sends if isinstance(action, SendAll) else ()):
            if send.commands[0][0] == b"SCAN" and f"{send.node[0]}:{send.node[1]}" == silent:
                last = outcomes[place].values[0][0] == b"0"
                outcomes[place] = NoAnswer("silent", 0.0) if last else outcomes[place]
        return outcomes

    monkeypatch.setattr(verifying, "PAGE", 3)
    with monkeypatch.context() as patched:
        patched.setattr(Connections, "perform", without_the_last_page)
        found = locks["default"].verify(repair=True)
    assert {(part.node, part.reason) for part in found.unread} == {(silent, "silent")}
    assert {finding.node for finding in found.findings if not finding.repaired} == {silent}
    assert all(finding.repaired for finding in found.findings if finding.node != silent)
    found = locks["default"].verify(repair=True)
    assert {(finding.node, finding.repaired) for finding in found.findings} == {(silent, True)}
    assert locks["default"].verify().findings == ()


def test_a_prefix_is_no_pattern(settings, cluster, prefix):
    odd = f"{prefix}[a]*"
    cluster.admin().set(f"{prefix}a:lock:x", "another project's")
    use(settings, cluster, odd)
    with cache_lock("a"):
        found = locks["default"].verify()
    assert (found.keys, found.findings) == (2, ())


def test_the_locks_of_a_slot_on_the_move_are_listed(settings, own_cluster, prefix):
    use(settings, own_cluster, prefix)
    keys, admin = names.keys_of(prefix, "moving"), own_cluster.admin()
    with cache_lock("moving") as lock, cache_lock("staying"):
        source, target = move(admin, own_cluster, keys)
        assert [each.name for each in locks["default"].list()] == ["moving", "staying"]
        shown = locks["default"].show("moving")
        assert (shown.token, shown.node) == (lock.token, f"127.0.0.1:{target}")
        assert kinds(locks["default"].verify()) == []
        assert source != target


def move(admin, server, keys):
    """Moves a lock's keys to another node, and leaves the slot between the two."""
    source, target = admin.get_node_from_key(keys.record).port, None
    ids = {node.port: node for node in admin.get_primaries()}
    target = next(port for port in ids if port != source)
    of = {port: server.node(port).execute_command("CLUSTER MYID") for port in (source, target)}
    server.node(target).execute_command("CLUSTER SETSLOT", keys.slot, "IMPORTING", of[source])
    server.node(source).execute_command("CLUSTER SETSLOT", keys.slot, "MIGRATING", of[target])
    password = server.embedded.password
    server.node(source).execute_command(
        "MIGRATE", "127.0.0.1", target, "", 0, 5000, "AUTH", password, "KEYS", keys.record, keys.index
    )
    return source, target


def test_a_dead_shard_hides_no_other_shards_locks(settings, own_cluster, prefix):
    use(settings, own_cluster, prefix)
    cache_lock([f"lock:{number}" for number in range(60)], timeout=300, renew=False).acquire()
    before = locks["default"].list()
    dead = before.locks[0].node
    litter = [names.keys_of(prefix, f"litter:{number}") for number in range(20)]
    for keys in litter:
        own_cluster.admin().zadd(keys.index, {keys.member: 1})
    kill_shard(own_cluster, int(dead.rpartition(":")[2]))

    found = locks["default"].list()
    assert {lock.name for lock in found} == {lock.name for lock in before if lock.node != dead}
    assert {part.node for part in found.unread} == {dead}
    assert sum(last - first + 1 for part in found.unread for first, last in part.slots) in {5461, 5462}
    with pytest.raises(LockUnavailable):
        locks["default"].show(next(lock.name for lock in before if lock.node == dead))
    assert dead not in {share.node for share in locks["default"].distribution().nodes}

    verified = locks["default"].verify(repair=True)
    assert {part.node for part in verified.unread} == {dead}
    assert 0 < len(verified.findings) < len(litter)
    assert all(finding.repaired for finding in verified.findings)


def kill_shard(server, port):
    replicas = [int(each["port"]) for name, each in server.node(port).info("replication").items() if name == "slave0"]
    for victim in (*replicas, port):  # the replicas first, so that none is promoted
        os.kill(server.embedded.pid(victim), signal.SIGKILL)
        until(lambda: not answers(server, victim))  # noqa: B023 - it is asked at once


def answers(server, port):
    try:
        return server.node(port).ping()
    except redis.RedisError:
        return False


def test_nothing_can_be_read(settings):
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": ["redis://127.0.0.1:1"], "KEY_PREFIX": "x"}}
    for look in (locks["default"].list, locks["default"].verify, locks["default"].distribution):
        with pytest.raises(LockUnavailable, match=r"CLUSTER_LOCKS\['default'\] cannot be read: node 127.0.0.1:1: "):
            look()
    with pytest.raises(LockUnavailable):
        locks["default"].show("a")


def test_a_wrong_password(settings, cluster, prefix):
    urls = [url.replace(cluster.password, "wrong") for url in cluster.urls]
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": urls, "KEY_PREFIX": prefix}}
    with pytest.raises(LockUnavailable, match=r"(?i)invalid username-password pair"):
        locks["default"].list()
