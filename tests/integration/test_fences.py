"""Fences in the database: whatever a holder believes, its transaction is refused once a later lease has written."""

import gc
import itertools
import json
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import ModuleType

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import Celery
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpResponse
from django.test import Client, TestCase
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

from django_cluster_lock import (
    LockError,
    LockLost,
    LockNotHeld,
    NotFencedOff,
    StaleFence,
    cache_lock,
    current_lock,
    locks,
    names,
    single_flight,
)
from django_cluster_lock.aliases import aliases
from django_cluster_lock.fences import blocks, rows
from django_cluster_lock.fences.models import Fence
from django_cluster_lock.fences.sql import DAY
from tests import postgres
from tests.programs import Program
from tests.records import PATIENCE, until

NOW = timezone.now()


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 60}}
    settings.MIDDLEWARE = []
    yield
    gc.collect()  # of handles that were not released, those that only a traceback has kept
    assert current_lock() is None  # else other tests would be under it


@pytest.fixture(scope="session")
def postgres_settings():
    if not postgres.binaries():
        pytest.skip("apt install postgresql")
    return postgres.postgres(f"fences_{time.monotonic_ns()}")


def in_postgres(request, isolation):
    return {**request.getfixturevalue("postgres_settings"), "OPTIONS": {"isolation_level": isolation}}


def in_postgres_binding_there(request):
    found = in_postgres(request, 2)
    return {**found, "OPTIONS": {**found["OPTIONS"], "server_side_binding": True}}


def in_sqlite(request, mode):
    found = postgres.sqlite(request.getfixturevalue("tmp_path"), "fences")
    return {**found, "OPTIONS": {**found["OPTIONS"], "transaction_mode": mode}}


def in_mariadb(request, isolation):
    return {**request.getfixturevalue("mariadb"), "OPTIONS": {"isolation_level": isolation}}


def later(name):
    """A lock whose holder does not wait, so that it does not mind that a stale one is this thread's too."""
    return cache_lock(name, blocking=False, raise_on_release_error=False)


KINDS = {
    "postgresql": lambda request: in_postgres(request, 2),  # READ COMMITTED, as psycopg counts
    "postgresql-repeatable": lambda request: in_postgres(request, 3),
    "postgresql-serializable": lambda request: in_postgres(request, 4),
    "postgresql-binding": in_postgres_binding_there,  # values go to the server apart from the statement
    "sqlite": lambda request: in_sqlite(request, "DEFERRED"),
    "sqlite-immediate": lambda request: in_sqlite(request, "IMMEDIATE"),
    "mariadb": lambda request: in_mariadb(request, "read committed"),
    "mariadb-repeatable": lambda request: in_mariadb(request, "repeatable read"),
}


@contextmanager
def tables(settings, blocker):
    """The database alone, with what the transactions here write."""
    with postgres.in_place({"default": settings}, blocker):
        execute("DROP TABLE IF EXISTS entries")
        execute("DROP TABLE IF EXISTS newest")
        execute("CREATE TABLE entries (fence bigint, seen bigint)")
        execute("CREATE TABLE newest (fence bigint)")
        execute("INSERT INTO newest VALUES (0)")
        yield


@pytest.fixture(params=KINDS)
def database(request, django_db_blocker):
    """Each kind of database in turn."""
    with tables(KINDS[request.param](request), django_db_blocker):
        yield request.param


@pytest.fixture
def some_database(request, django_db_blocker):
    """One of them, for what does not differ."""
    kind = "postgresql" if postgres.binaries() else "sqlite"
    with tables(KINDS[kind](request), django_db_blocker):
        yield


@pytest.fixture
def stale(cluster, prefix):
    """Makes holders that believe in their lease, though Redis has forgotten it: ``stale("a")``."""
    made, one_by_one = [], threading.Lock()

    def make(name):
        lock = cache_lock(name, renew=False)
        made.append(lock)
        with one_by_one:
            assert lock.acquire(blocking=False)
            for each in lock.names:
                cluster.admin().delete(names.keys_of(prefix, each).record)
        return lock

    yield make
    for lock in made:
        with suppress(LockError):
            lock.release()


def execute(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else None


def write(fence):
    """Reads the newest entry and adds one."""
    ((seen,),) = execute("SELECT fence FROM newest")
    execute("INSERT INTO entries VALUES (%s, %s)", fence, seen)
    execute("UPDATE newest SET fence = %s", fence)


def written():
    return [fence for (fence,) in execute("SELECT fence FROM entries ORDER BY fence")]


def write_under(lock):
    with lock.atomic():
        write(lock.fence)


def elsewhere(executor, function, *args):
    """Calls a function in a thread, which closes its connections then."""

    def call():
        try:
            return function(*args)
        finally:
            connections.close_all()

    return executor.submit(call)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(16) as executor:
        yield executor


# The promise


def test_a_stale_holder_is_refused_once_a_later_one_has_written(database, stale):
    old = stale("a")
    with later("a") as new:
        write_under(new)
        with pytest.raises(StaleFence, match=f"its fence is {old.fence}, but another lease has shown {new.fence}"):
            write_under(old)
        old.raise_if_lost()  # it does not know
        assert written() == [new.fence]
        write_under(new)
        assert written() == [new.fence] * 2


def test_without_the_check_it_writes(database, stale):
    """The control for all that is refused here: a transaction alone does not notice."""
    old = stale("a")
    with later("a") as new:
        write_under(new)
        with transaction.atomic():
            old.raise_if_lost()
            write(old.fence)
    assert execute("SELECT fence FROM newest") in ([(old.fence,)], ((old.fence,),))  # the later one's is gone


def until_blocked(waiting):
    """Waits until a transaction waits for another. SQLite does not tell; a test can only be too early there."""
    waits = {
        "postgresql": "SELECT COUNT(*) FROM pg_locks WHERE NOT granted",
        "mysql": "SELECT variable_value FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
        "sqlite": "SELECT 1",
    }
    until(lambda: int(execute(waits[connection.vendor])[0][0]) or waiting.done())
    assert not waiting.done()


def test_a_stale_holder_waits_for_a_later_one_that_writes_and_is_refused_then(database, stale, executor):
    believes, may_write = threading.Event(), threading.Event()

    def late():
        old = stale("a")
        connection.ensure_connection()
        believes.set()
        assert may_write.wait(PATIENCE)
        write_under(old)

    waiting = elsewhere(executor, late)
    assert believes.wait(PATIENCE)
    with cache_lock("a") as new:
        with new.atomic():
            write(new.fence)
            may_write.set()
            until_blocked(waiting)
        with pytest.raises(StaleFence):
            waiting.result(PATIENCE)
        assert written() == [new.fence]


PAUSED = """
from django.db import connection
from django_cluster_lock import StaleFence

def pause(execute, *args):
    if paused:
        say(paused.pop())
        os.kill(os.getpid(), signal.SIGSTOP)
    return execute(*args)

paused = ["it believes in its lease, and is about to begin"]
with cache_lock("a", timeout=2, raise_on_release_error=False) as lock, connection.execute_wrapper(pause):
    try:
        with lock.atomic():
            say("wrote")
    except StaleFence:
        say("stale")
"""


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_a_process_that_sleeps_through_the_end_of_its_lease(request, kind, django_db_blocker, settings):
    database = KINDS[kind](request)
    with (
        tables(database, django_db_blocker),
        Program(PAUSED, settings.CLUSTER_LOCKS, databases={"default": database}) as holder,
    ):
        assert holder.hear() == "it believes in its lease, and is about to begin"
        with cache_lock("a", blocking_timeout=PATIENCE) as new:
            write_under(new)
            holder.signal(signal.SIGCONT)
            assert holder.hear() == "stale"


def test_a_later_holder_waits_for_an_earlier_one_that_writes_and_sees_it(database, stale, executor):
    """Above READ COMMITTED its first snapshot is too old, which is a reason to begin anew."""
    old = stale("a")

    def next_one():
        with cache_lock("a") as new:
            write_under(new)
            return new.fence

    with old.atomic():
        waiting = elsewhere(executor, next_one)
        until_blocked(waiting)
        write(old.fence)
    assert execute("SELECT fence, seen FROM entries WHERE fence = %s", waiting.result(PATIENCE)) in (
        [(waiting.result(), old.fence)],
        ((waiting.result(), old.fence),),
    )


WRITERS = 8


def test_transactions_commit_in_the_order_of_fences_and_see_all_earlier_ones(database, stale, executor):
    """Many that all believe to be the one holder, at the same time."""
    start = threading.Barrier(WRITERS)

    def write_late():
        lock = stale("a")
        connection.ensure_connection()
        start.wait(PATIENCE)
        try:
            write_under(lock)
        except StaleFence:
            return None
        return lock.fence

    commits = []
    for _ in range(5):
        writers = [elsewhere(executor, write_late) for _ in range(WRITERS)]
        commits += sorted(filter(None, [writer.result(4 * PATIENCE) for writer in writers]))
    entries = sorted(execute("SELECT fence, seen FROM entries"))
    assert [fence for fence, _ in entries] == commits
    assert [seen for _, seen in entries] == [0, *commits[:-1]]
    assert execute("SELECT fence FROM newest")[0][0] == commits[-1]


def test_a_transaction_that_rolls_back_leaves_nothing(database, stale):
    old = stale("a")
    with later("a") as new:
        with suppress(ZeroDivisionError), new.atomic():
            write(new.fence)
            raise ZeroDivisionError
        with new.atomic():
            write(new.fence)
            transaction.set_rollback(True)
    assert not Fence.objects.exists()
    write_under(old)
    assert written() == [old.fence]


def test_savepoints_inside_are_as_ever(database):
    with cache_lock("a") as lock, lock.atomic():
        write(lock.fence)
        with suppress(ZeroDivisionError), transaction.atomic():
            write(lock.fence)
            raise ZeroDivisionError
        fence = lock.fence
    assert written() == [fence]


def test_several_locks_are_all_checked(database, stale):
    old = stale(["a", "b", "c"])
    with later("b") as new:
        write_under(new)
        with pytest.raises(StaleFence, match="Lock 'b'"), old.atomic():
            pytest.fail("one of them is stale")
    assert [fence.name for fence in Fence.objects.all()] == ["b"]
    with later(["a", "b"]) as both, both.atomic():
        pass
    assert {fence.name for fence in Fence.objects.all()} == {"a", "b"}


@pytest.mark.parametrize("name", ["\0", "ünï \N{SNOWMAN}", "x" * 500, "'; DROP TABLE x; --", "%s %(name)s"])
def test_names_of_any_kind(database, stale, name):
    old = stale(name)
    with later(name) as new:
        write_under(new)
        with pytest.raises(StaleFence):
            write_under(old)
    assert Fence.objects.get().name == name.replace("\0", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_row_can_be_read(database, settings, use_tz):
    settings.USE_TZ = use_tz
    before = timezone.now()
    with CaptureQueriesContext(connection) as queries, cache_lock("a") as lock:
        write_under(lock)
        fence, token = lock.fence, lock.token
    assert any("cluster_lock_fence" in query["sql"] for query in queries)
    row = Fence.objects.get()
    assert (bytes(row.digest), row.name, row.fence) == (lock_digest("a"), "a", fence)
    assert bytes(row.token) == token.encode()
    assert before - timedelta(seconds=1) <= row.updated_at <= timezone.now()


def lock_digest(name):
    return rows.digest_of("default", aliases["default"].settings.key_prefix, name, None)


def test_locks_that_differ_have_rows_of_their_own(some_database, settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        **settings.CLUSTER_LOCKS,
        "second": {"LOCATION": cluster.urls, "KEY_PREFIX": f"{prefix}-second"},
    }
    for lock in (cache_lock("a"), cache_lock("a", tag="t"), cache_lock("a", alias="second"), cache_lock("b")):
        with lock, lock.atomic():
            pass
    assert Fence.objects.count() == 4


# What passes


@pytest.mark.parametrize("mode", ["DEFERRED", "IMMEDIATE"])
def test_a_busy_file_is_tried_again(request, mode, django_db_blocker, executor):
    options = in_sqlite(request, mode)
    options["OPTIONS"]["timeout"] = 0.01
    refusals = []

    def note(execute, sql, *args):
        try:
            return execute(sql, *args)
        except OperationalError as error:
            refusals.append(str(error))
            raise

    def wait():
        with connection.execute_wrapper(note), cache_lock("a") as lock:
            write_under(lock)

    with tables(options, django_db_blocker):
        with transaction.atomic():
            execute("UPDATE newest SET fence = 7")
            waiting = elsewhere(executor, wait)
            until(lambda: len(refusals) >= 3)
        waiting.result(PATIENCE)
        assert set(refusals) == {"database is locked"}
        assert execute("SELECT seen FROM entries") == [(7,)]


def test_what_does_not_pass_is_raised_in_the_end(request, django_db_blocker, executor, monkeypatch):
    options = in_sqlite(request, "IMMEDIATE")
    options["OPTIONS"]["timeout"] = 0.01
    monkeypatch.setattr(rows, "PATIENCE", 0.1)

    def wait():
        with cache_lock("a") as lock:
            write_under(lock)

    with tables(options, django_db_blocker), transaction.atomic():
        execute("UPDATE newest SET fence = 7")
        with pytest.raises(OperationalError, match="database is locked"):
            elsewhere(executor, wait).result(PATIENCE)
        assert written() == []


def test_rows_are_taken_in_one_order(some_database, executor, monkeypatch):
    """Whichever order the locks come in: else two transactions would wait for each other."""
    monkeypatch.setattr(rows, "ATTEMPTS", 1)
    fence, start = time.time_ns() // 1000, threading.Barrier(WRITERS)
    showings = [rows.Showing(bytes([number]) * 32, str(number), fence, b"t") for number in range(20)]

    def work(ordered):
        for _ in range(10):
            start.wait(PATIENCE)
            with blocks.atomic(ordered):
                write(fence)

    writers = [elsewhere(executor, work, order) for order in (showings, showings[::-1]) * (WRITERS // 2)]
    for writer in writers:
        writer.result(4 * PATIENCE)
    assert len(written()) == 10 * WRITERS


# What is refused


def test_it_is_not_nested(some_database):
    with cache_lock("a") as lock, transaction.atomic():
        with pytest.raises(RuntimeError, match=r"put lock.atomic\(\) in the place of transaction.atomic\(\)"):
            write_under(lock)
        assert written() == []
    with cache_lock("a") as lock, lock.atomic(), pytest.raises(RuntimeError, match="for several locks"):
        write_under(lock)


def test_it_does_not_trust_a_connection_whose_transactions_never_end(some_database):
    transaction.set_autocommit(False)
    try:
        with cache_lock("a") as lock, pytest.raises(RuntimeError, match="autocommit is off"):
            write_under(lock)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_without_a_lease_it_does_not_begin(some_database):
    lock = cache_lock("a")
    with pytest.raises(LockNotHeld), lock.atomic():
        pytest.fail("it is not held")
    with suppress(LockLost), lock:
        lock._find()[0].lose("for the test")
        with pytest.raises(LockLost, match="for the test"), lock.atomic():
            pytest.fail("it is lost")
    assert not Fence.objects.exists()


def lose(lock):
    lock._find()[0].lose("for the test")


@pytest.mark.parametrize(("end", "error"), [(lose, LockLost), (lambda lock: lock.release(), LockNotHeld)])
def test_a_lease_that_ends_inside_rolls_it_back(some_database, end, error):
    lock = cache_lock("a", raise_on_release_error=False)
    lock.acquire()

    def work():
        with lock.atomic():
            write(lock.fence)
            end(lock)

    with pytest.raises(error):
        work()
    assert written() == []


def test_a_signal_at_any_line_of_the_beginning_leaves_no_transaction_open(some_database):
    """The next task of the process would write into it, and nobody would commit."""
    lock, before = cache_lock("a"), sys.gettrace()

    def interrupted_at(line):
        lines = itertools.count(1)

        def trace(frame, event, _):
            if frame.f_code.co_filename == blocks.__file__:
                if event == "line" and next(lines) == line:
                    raise KeyboardInterrupt
                return trace
            return None

        try:
            sys.settrace(trace)
            with lock.atomic():
                sys.settrace(before)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    with lock:
        for line in itertools.count(1):
            if not interrupted_at(line):
                break
            assert not connection.in_atomic_block
    assert line > 5


def test_it_names_the_app_that_is_missing(some_database, without_fences):
    with (
        cache_lock("a") as lock,
        pytest.raises(ImproperlyConfigured, match=r'add "django_cluster_lock\.fences" to INSTALLED_APPS'),
    ):
        write_under(lock)


def test_it_names_the_table_that_is_missing(database):
    execute("DROP TABLE cluster_lock_fence")
    with cache_lock("a") as lock, pytest.raises(ImproperlyConfigured, match=r"manage\.py migrate --database default"):
        write_under(lock)
    assert written() == []


async def test_in_async_code_it_says_what_to_do(some_database):
    async with cache_lock("a") as lock:
        with pytest.raises(SynchronousOnlyOperation, match=r"await sync_to_async\(function\)"):
            write_under(lock)


def test_an_async_holder_writes_in_a_thread(some_database):
    async def work():
        async with cache_lock("a") as lock:
            await sync_to_async(write_under)(lock)
            return lock.fence

    assert async_to_sync(work)() == written()[0]


# Age


def aged(lock, days):
    """Makes a lease that many days older."""
    (lease,) = lock._find()
    lease.grant = lease.grant._replace(fence=time.time_ns() // 1000 - int(days * DAY))
    return lock


def test_a_lease_that_is_too_old_is_refused(database):
    with cache_lock("a") as lock:
        with pytest.raises(StaleFence, match=r"older than 3\.5 days by the database's clock.*\. Nothing was written"):
            write_under(aged(lock, 3.6))
        write_under(aged(lock, 3.4))
        with pytest.raises(StaleFence):
            write_under(aged(lock, 3.6))
    assert len(written()) == 1


def test_what_is_forgotten_lets_no_older_lease_pass(database):
    for name, days in {"young": 6.9, "old": 7.1}.items():
        Fence.objects.create(
            digest=name.encode(), name=name, fence=time.time_ns() // 1000 - int(days * DAY), token=b"t", updated_at=NOW
        )
    assert rows.prune(7, "default", dry_run=True) == 1
    assert Fence.objects.count() == 2
    assert rows.prune(7, "default") == 1
    assert Fence.objects.get().name == "young"
    with pytest.raises(ValueError, match=r"kept for 7 days at least, and 6\.5 is no"):
        rows.prune(6.5, "default")


# By force


def test_a_holder_whose_lease_was_ended_by_force_is_refused(database, stale):
    with cache_lock("a", raise_on_release_error=False) as lock:
        write_under(lock)
        showing = lock._showings()[0]
        for _ in range(2):
            rows.evict(showing, "default")
            with pytest.raises(StaleFence, match="ended by force"):
                write_under(lock)
    with cache_lock("a") as new:
        write_under(new)
        rows.evict(showing, "default")
        write_under(new)


def test_evicting_waits_for_a_transaction_only_so_long(request, django_db_blocker, executor, monkeypatch):
    with tables(KINDS["postgresql"](request), django_db_blocker), cache_lock("a") as lock, lock.atomic():
        write(lock.fence)
        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(executor, rows.evict, lock._showings()[0], "default").result(PATIENCE)
    # and what it waited for is left alone


def by_force(lock, **options):
    return locks["default"].release(lock.name, token=lock.token, **options)


def test_force_release_fences_the_holder_off_and_its_next_renewal_tells_it(some_database, settings):
    settings.CLUSTER_LOCKS = {"default": {**settings.CLUSTER_LOCKS["default"], "TIMEOUT": 2}}
    with cache_lock("a", raise_on_release_error=False) as lock:
        assert by_force(lock).outcome == "released"
        lock.raise_if_lost()
        with pytest.raises(StaleFence, match="ended by force"):
            write_under(lock)
        with later("a") as new:
            write_under(new)
            fence = new.fence
        until(lambda: lock.lost)
    assert written() == [fence]


@pytest.mark.parametrize("name", ["a", "per%cent {x y}", "ünï", "x" * 500])
@pytest.mark.parametrize("tag", [None, "order:7"])
def test_force_release_finds_the_row_of_each_lock(some_database, name, tag):
    with cache_lock(name, tag=tag, raise_on_release_error=False) as lock:
        write_under(lock)
        for shown in locks["default"].list():
            assert locks["default"].release(shown.name, token=shown.token, tag=shown.tag)
        with pytest.raises(StaleFence, match="ended by force"):
            write_under(lock)


def test_force_release_leaves_a_later_holder_alone(some_database, stale):
    old = stale("a")
    with later("a") as new:
        assert locks["default"].release("a", token=old.token).outcome == "left"
        write_under(new)


def test_force_release_without_the_fence_releases_in_redis_alone(some_database):
    with cache_lock("a", raise_on_release_error=False) as lock:
        assert by_force(lock, fence=False).outcome == "released"
        write_under(lock)


@pytest.mark.parametrize("without", ["app", "table"])
def test_force_release_needs_no_fences(some_database, request, without):
    if without == "app":
        request.getfixturevalue("without_fences")
    else:
        execute("DROP TABLE cluster_lock_fence")
    with cache_lock("a", raise_on_release_error=False) as lock:
        assert by_force(lock).outcome == "released"


@pytest.fixture
def no_database(django_db_blocker):
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/at/all"}
    before, wrapper = connections.settings["default"], connections["default"]
    del connections["default"]
    connections.settings.update(connections.configure_settings({"default": settings}))
    with django_db_blocker.unblock():
        yield
    del connections["default"]
    connections.settings["default"] = before
    connections["default"] = wrapper


def test_force_release_releases_nothing_while_the_database_cannot_be_asked(no_database):
    with cache_lock("a") as lock:
        with pytest.raises(NotFencedOff, match="database 'default': unable to open database file") as told:
            by_force(lock)
        assert "--no-fence" in str(told.value)
        assert lock.owned()


def test_force_release_fences_the_holder_off_in_each_database_that_has_the_table(databases, settings):
    def refused(lock, using):
        with pytest.raises(StaleFence, match="ended by force"), lock.atomic(using):
            pytest.fail("it is stale")

    with cache_lock("a", raise_on_release_error=False) as lock:
        assert by_force(lock).outcome == "released"
        for using in databases:
            refused(lock, using)
    settings.DATABASE_ROUTERS = [Router()]
    with cache_lock("b", raise_on_release_error=False) as lock:
        assert by_force(lock).outcome == "released"
        refused(lock, "other")
        with lock.atomic("default"):
            pass  # the control: it is left out there


def test_force_release_names_each_database_that_cannot_be_told(databases, monkeypatch):
    lost = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/at/all"}
    added = connections.configure_settings({"default": {}, "lost": lost, "gone": lost})
    for using in ("lost", "gone"):
        monkeypatch.setitem(connections.settings, using, added[using])
    told = "; ".join(f"database '{using}': unable to open database file" for using in ("lost", "gone"))
    with cache_lock("a") as lock:
        with pytest.raises(NotFencedOff, match=told):
            by_force(lock)
        assert lock.owned()
        with pytest.raises(StaleFence, match="ended by force"), lock.atomic("other"):
            pytest.fail("it is refused by those that could be told")
    for using in ("lost", "gone"):
        del connections[using]


def test_the_command_says_so(no_database, capsys):
    with cache_lock("a", raise_on_release_error=False) as lock:
        with pytest.raises(SystemExit) as stop:
            call_command("locks", "release", "a", "--no-input")
        printed = capsys.readouterr()
        assert (stop.value.code, lock.owned()) == (2, True)
        assert "could not be fenced off" in printed.err
        assert "a: not released: its holder cannot be fenced off\nReleased 0 locks.\n" in printed.out
        call_command("locks", "release", "a", "--no-input", "--no-fence")
        assert "a: released\n" in capsys.readouterr().out


def prune_fences(*args):
    call_command("locks", "prune-fences", *args)


def test_the_command_that_forgets(some_database, capsys):
    old = time.time_ns() // 1000 - 8 * DAY
    Fence.objects.create(digest=b"a", name="a", fence=old, token=b"t", updated_at=NOW)
    prune_fences("--older-than", "9")
    prune_fences("--older-than", "7", "--dry-run")
    prune_fences("--older-than", "7", "--json")
    *told, printed = capsys.readouterr().out.splitlines()
    assert told == ["Forgot 0 fences.", "Would forget 1 fence."]
    assert json.loads(printed) == {"dry_run": False, "database": "default", "pruned": 1}
    assert not Fence.objects.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--older-than", "6"], "kept for 7 days at least"),
        (["--older-than", "nan"], "kept for 7 days at least"),
        (["--older-than", "inf"], "inf is no such number"),
        (["--older-than", "7", "--database", "nowhere"], "nowhere"),
    ],
)
def test_the_command_that_forgets_says_what_is_wrong(some_database, args, message):
    with pytest.raises(CommandError, match=message) as error:
        prune_fences(*args)
    assert error.value.returncode == 2


def test_the_command_that_forgets_needs_a_database(no_database):
    with pytest.raises(CommandError, match="unable to open database file") as error:
        prune_fences("--older-than", "7")
    assert error.value.returncode == 2


def test_the_command_that_forgets_needs_the_app(without_fences):
    with pytest.raises(CommandError, match="INSTALLED_APPS") as error:
        prune_fences("--older-than", "7")
    assert error.value.returncode == 2


# Databases, views, tests


class Router:
    """Keeps the fences in `other` alone."""

    def db_for_write(self, model, **hints):
        return "other" if model is Fence else None

    def allow_migrate(self, db, app_label, **hints):
        return db == "other" if app_label == "cluster_lock_fences" else None


def test_the_database_is_that_of_the_routers_or_the_one_asked_for(databases, settings):
    with cache_lock("a") as lock:
        with lock.atomic():
            assert connections["default"].in_atomic_block
        with lock.atomic(using="other"):
            assert [connections[alias].in_atomic_block for alias in ("default", "other")] == [False, True]
        settings.DATABASE_ROUTERS = [Router()]
        with lock.atomic():
            assert [connections[alias].in_atomic_block for alias in ("default", "other")] == [False, True]


def request_to(view, settings):
    settings.ROOT_URLCONF = ModuleType("urls")
    settings.ROOT_URLCONF.urlpatterns = [path("", view)]
    return Client(raise_request_exception=False).get("/")


def shown():
    return {
        (using, fence.name) for using in ("default", "other") for fence in Fence.objects.using(using).order_by("name")
    }


def test_the_transactions_of_a_decorated_view_show_the_fences_of_its_locks(databases, settings):
    seen = []

    @cache_lock("outer")
    @cache_lock("inner")
    def view(request):
        seen.append([connections[alias].in_atomic_block for alias in ("default", "other")])
        return HttpResponse()

    assert request_to(view, settings).status_code == 200
    assert seen == [[True, True]]
    assert shown() == {(using, name) for using in ("default", "other") for name in ("outer", "inner")}


def test_a_view_whose_lease_is_stale_is_answered_by_409(databases, settings):
    @cache_lock("outer")
    @cache_lock("inner")
    def view(request):
        pytest.fail("it is stale")

    with cache_lock("outer") as lock:
        with lock.atomic():
            pass
        Fence.objects.update(fence=lock.fence + 10**12)
    assert request_to(view, settings).status_code == 409


def test_a_database_that_is_not_to_have_the_table_is_left_without(databases, settings):
    settings.DATABASE_ROUTERS = [Router()]

    @cache_lock("a")
    def view(request):
        assert all(connections[alias].in_atomic_block for alias in ("default", "other"))
        return HttpResponse()

    assert request_to(view, settings).status_code == 200
    assert shown() == {("other", "a")}


def test_without_the_app_views_are_as_ever(databases, settings, without_fences):

    @cache_lock("a")
    def view(request):
        assert current_lock().fence
        return HttpResponse()

    assert request_to(view, settings).status_code == 200
    assert shown() == set()


def test_a_task_writes_under_the_lock_of_its_flight(some_database):
    with Celery("fences", set_as_current=False) as app:

        @app.task
        @single_flight(key="{number}")
        def bill(number):
            write_under(current_lock())

        bill(7)
        assert written() == [Fence.objects.get().fence]


class InTestCase(TestCase):
    """Its own transaction does not count."""

    def test_it_is_a_transaction(self):
        with cache_lock("a") as lock:
            for _ in range(2):
                with lock.atomic():
                    assert Fence.objects.get().fence == lock.fence
            with suppress(ZeroDivisionError), lock.atomic():
                Fence.objects.all().delete()
                raise ZeroDivisionError
            assert Fence.objects.exists()
            Fence.objects.update(fence=lock.fence + 1)
            with pytest.raises(StaleFence), lock.atomic():
                pass

    def test_it_is_not_nested(self):
        with cache_lock("a") as lock, transaction.atomic(), pytest.raises(RuntimeError, match="one is open"):
            write_under(lock)
