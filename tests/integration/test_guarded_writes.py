"""Writes to Redis beside the lock: refused once a later lease has written there, whatever their sender believes."""

import asyncio
from contextlib import contextmanager

import pytest
from asgiref.sync import async_to_sync
from django.db.models import IntegerChoices

from django_cluster_lock import LockError, LockLost, LockNotHeld, LockUnavailable, StaleFence, cache_lock, locks, names
from django_cluster_lock.exchange import command
from django_cluster_lock.fences.sql import AGE, KEPT

APPEND = "return redis.call('RPUSH', KEYS[1], ARGV[1])"


def use(settings, server, prefix):
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": server.urls, "KEY_PREFIX": prefix, "TIMEOUT": 60}}


@pytest.fixture
def on_cluster(settings, cluster, prefix):
    use(settings, cluster, prefix)
    return cluster


@pytest.fixture
def key(prefix):
    """A key beside the locks with the tag "order:7"."""
    return f"{prefix}:{{order:7}}:total"


def tagged(name="a", **options):
    return cache_lock(name, tag="order:7", blocking=False, raise_on_release_error=False, **options)


@contextmanager
def stale(server, prefix):
    """A holder that believes in its lease, though Redis has forgotten it."""
    with tagged(renew=False) as lock:
        server.admin().delete(names.keys_of(prefix, "a", "order:7").record)
        yield lock


def asynchronous(method):
    return lambda lock, *args: async_to_sync(getattr(lock, f"a{method}"))(*args)


def blocking(method):
    return lambda lock, *args: getattr(lock, method)(*args)


@pytest.mark.parametrize("face", [blocking, asynchronous])
def test_a_write_and_what_refuses_it(settings, server, prefix, key, face):
    use(settings, server, prefix)
    write, client = face("guarded_set"), server.admin()
    with stale(server, prefix) as old, tagged() as new:
        write(old, key, "still early")
        assert client.get(key) == "still early"  # no later lease has written
        write(new, key, "new", 60)
        assert 0 < client.pttl(key) <= 60_000
        with pytest.raises(StaleFence, match=f"its fence is {old.fence}, but {new.fence} has been shown"):
            write(old, key, "stale")
        old.raise_if_lost()  # it does not know
        assert client.get(key) == "new"


def test_without_the_guard_it_lands(on_cluster, prefix, key):
    """The control for the one above."""
    client = on_cluster.admin()
    with stale(on_cluster, prefix) as old, tagged() as new:
        new.guarded_set(key, "new")
        old.raise_if_lost()
        client.set(key, "stale")
        assert client.get(key) == "stale"


@pytest.mark.parametrize("face", [blocking, asynchronous])
@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("return #KEYS + #ARGV", 4),
        ("return ARGV[2]", b"\xff"),
        ("return {KEYS[1]:sub(-5), ARGV[1], ARGV[3]}", [b"total", b"1.5", b"7"]),
        ("return redis.call('SET', KEYS[1], 1)", b"OK"),
        ("local nothing -- at all", None),
        ("return {}", []),
    ],
)
def test_a_script_and_its_result(on_cluster, key, face, script, result):
    with tagged() as lock:
        assert face("guarded")(lock, script, [key], [1.5, b"\xff", 7]) == result


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("\n\nerror('no')", LockError, r"the guarded script: user_script:3: no"),
        ("return redis.call('HGET', KEYS[1], 'x')", LockError, "WRONGTYPE"),
        ("return redis.pcall('HGET', KEYS[1], 'x')", LockError, "WRONGTYPE"),
        ("return redis.call('NOSUCH', KEYS[1])", LockError, "ERR|Unknown"),
        ("return redis.error_reply('MINE no')", LockError, "MINE no"),
        ("error()", LockError, "the guarded script: nil"),
        ("return record", LockError, "nonexistent global variable 'record'"),
        ("\nthis is no Lua", ValueError, r"cannot be used: .*user_script:2"),
    ],
)
def test_a_script_that_fails(on_cluster, key, script, error, message):
    with tagged() as lock:
        lock.guarded_set(key, "7")
        with pytest.raises(error, match=message) as told:
            lock.guarded(script, [key])
        assert not isinstance(told.value, LockUnavailable)
        lock.guarded_set(key, "8")


def test_what_cannot_be_written(on_cluster, prefix, key):
    with tagged() as lock:
        with pytest.raises(ValueError, match=r"the key 'elsewhere' is in slot \d+, but the lock 'a' in slot \d+: give"):
            lock.guarded_set("elsewhere", 1)
        with pytest.raises(TypeError, match="not NoneType: None"):
            lock.guarded_set(key, None)
        with pytest.raises(TypeError, match="not bool: True"):
            lock.guarded_set(key, True)
        with pytest.raises(TypeError, match=r"keys has to be a list, not one str: write \['shop'\]"):
            lock.guarded(APPEND, "shop", [1])
        with pytest.raises(TypeError, match=r"args has to be a list, not one bytes: write \[b'50'\]"):
            lock.guarded(APPEND, [key], b"50")
        with pytest.raises(ValueError, match="timeout must be a positive number"):
            lock.guarded_set(key, 1, timeout=0)
    with pytest.raises(LockNotHeld):
        lock.guarded_set(key, 1)
    with tagged(["a", "b"]) as both, pytest.raises(ValueError, match="under one of them"):
        both.guarded_set(key, 1)
    with tagged() as lost:
        lost._find()[0].lose("for the test")
        with pytest.raises(LockLost, match="for the test"):
            lost.guarded_set(key, 1)
    assert on_cluster.admin().get(key) is None


class Status(IntegerChoices):
    PAID = 2


def test_a_member_of_an_enumeration_is_its_number(on_cluster, key):
    with tagged() as lock:
        lock.guarded_set(key, Status.PAID)
    assert on_cluster.admin().get(key) == "2"


def test_beside_a_lock_without_a_tag(on_cluster, prefix):
    with cache_lock("a") as lock:
        lock.guarded_set(f"{prefix}:{{a}}:total", 7)
    assert on_cluster.admin().get(f"{prefix}:{{a}}:total") == "7"


def test_the_note_outlives_any_lease_that_could_be_stale(on_cluster, prefix, key):
    note = names.keys_of(prefix, "a", "order:7").guard
    with tagged() as lock:
        lock.guarded_set(key, 1)
        week = KEPT // 1000
        assert week - 60_000 < on_cluster.admin().pttl(note) <= week + 60_000
        (lease,) = lock._find()
        lease.grant = lease.grant._replace(fence=lease.grant.fence - AGE - 10**9)
        on_cluster.admin().delete(note)
        with pytest.raises(StaleFence, match=r"older than 3\.5 days"):
            lock.guarded_set(key, 2)
    assert on_cluster.admin().get(key) == "1"
    assert locks["default"].verify().findings == ()


# Requests that arrive late


def unanswered(lock, script, *args):
    """A request that its sender gives up on, and which is still on its way."""
    flow = lock._guarding(script, *args)
    call = next(flow)
    with pytest.raises(LockUnavailable):
        flow.throw(LockUnavailable(lock.name))
    return command(call, in_full=True)


@pytest.fixture
def arrive(on_cluster):
    def arrive(request):
        status, *_ = on_cluster.admin().execute_command(request[0].decode(), *request[1:])
        return status

    return arrive


def test_a_late_request_does_not_undo_a_later_one_of_the_same_lease(on_cluster, key, arrive):
    with tagged() as lock:
        lock.guarded(APPEND, [key], ["first"])
        late = unanswered(lock, APPEND, [key], ["late"])
        lock.guarded(APPEND, [key], ["second"])
        assert arrive(late) == "late"
        lock.guarded(APPEND, [key], ["third"])
    assert on_cluster.admin().lrange(key, 0, -1) == ["first", "second", "third"]


def test_a_late_request_is_done_while_nothing_has_come_after_it(on_cluster, key, arrive):
    with tagged() as lock:
        late = unanswered(lock, APPEND, [key], ["late"])
        assert arrive(late) == "done"
        lock.guarded(APPEND, [key], ["second"])
    assert on_cluster.admin().lrange(key, 0, -1) == ["late", "second"]


def test_a_late_request_does_not_undo_that_of_a_later_lease(on_cluster, key, arrive):
    with tagged() as old:
        late = unanswered(old, APPEND, [key], ["late"])
    with tagged() as new:
        new.guarded(APPEND, [key], ["new"])
    assert arrive(late) == "stale"
    assert on_cluster.admin().lrange(key, 0, -1) == ["new"]


def test_a_lease_that_is_handed_on_and_back_goes_on_writing(on_cluster, key, arrive):
    lock = tagged()
    lock.acquire()
    late = unanswered(lock, APPEND, [key], ["late"])
    for number in range(3):
        lock.guarded(APPEND, [key], [number])
        token = lock.detach()
        lock = tagged()
        lock.attach(token)
    lock.guarded(APPEND, [key], [3])
    assert arrive(late) == "stale"
    lock.release()
    assert on_cluster.admin().lrange(key, 0, -1) == ["0", "1", "2", "3"]


def test_a_lease_that_was_taken_over_without_being_handed_on(on_cluster, key):
    """Its first handle is refused, and told so."""
    first, second = tagged(), tagged()
    first.acquire()
    first.guarded(APPEND, [key], ["first"])
    second.attach(first.token)
    second.guarded(APPEND, [key], ["second"])
    with pytest.raises(StaleFence, match="refused a write of this lease: its fence is"):
        first.guarded(APPEND, [key], ["late"])
    with pytest.raises(LockLost):
        first.release()
    second.release()
    assert on_cluster.admin().lrange(key, 0, -1) == ["first", "second"]


def test_what_is_sent_at_once_is_all_done(on_cluster, key):
    async def work():
        async with tagged() as lock:
            await asyncio.gather(*(lock.aguarded(APPEND, [key], [number]) for number in range(20)))

    async_to_sync(work)()
    assert sorted(map(int, on_cluster.admin().lrange(key, 0, -1))) == list(range(20))
