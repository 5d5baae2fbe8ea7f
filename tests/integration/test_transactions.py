"""A lock and the transactions around it: nobody else gets it before what was written under it is committed."""

import gc
import threading
from contextlib import ExitStack, closing, suppress
from types import ModuleType

import pytest
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client, TestCase
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.views import APIView

from django_cluster_lock import (
    LockBusy,
    LockError,
    LockLost,
    LockTimeout,
    LockUnavailable,
    cache_lock,
    current_lock,
    transactions,
)
from django_cluster_lock.aliases import Alias
from django_cluster_lock.signals import lock_lost

PATIENCE = 60  # seconds; a thread that waits longer has failed


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10, "BLOCKING_TIMEOUT": PATIENCE}
    }
    settings.MIDDLEWARE = []


@pytest.fixture
def mount(settings):
    """Make a view answer at /."""

    def mount(view):
        settings.ROOT_URLCONF = ModuleType("urls")
        settings.ROOT_URLCONF.urlpatterns = [path("", view)]

    return mount


@pytest.fixture
def waited_for(cluster, prefix):
    """Wait until somebody waits for the lock."""

    def waited_for(name, thread):
        while not any(field.startswith("w") for field in cluster.admin().hkeys(f"{prefix}:lock:{{{name}}}")):
            assert thread.is_alive()

    return waited_for


def units(using="default"):
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT units FROM stock")
        return cursor.fetchone()[0]


def write(number, using="default"):
    with connections[using].cursor() as cursor:
        cursor.execute("UPDATE stock SET units = %s", [number])


class Elsewhere(threading.Thread):
    """Runs a function in a thread with connections of its own; `result` waits for what it gives or raises."""

    def __init__(self, function, *args):
        super().__init__(daemon=True)
        self.outcome = None
        self.function = function
        self.args = args
        self.start()

    def run(self):
        with closing(ExitStack()) as stack:
            stack.callback(connections.close_all)
            try:
                self.outcome = self.function(*self.args), None
            except BaseException as error:
                self.outcome = None, error

    def result(self):
        self.join(PATIENCE)
        value, error = self.outcome
        if error:
            raise error
        return value


def request():
    return Client(raise_request_exception=False).get("/")


def is_free(name="stock"):
    """Whether another thread would get the lock."""

    def try_it():
        lock = cache_lock(name)
        if got := lock.acquire(blocking=False):
            lock.release()
        return got

    return Elsewhere(try_it).result()


# Two requests at once


class Shop:
    """Views that take a unit, in two steps, one request between them."""

    def __init__(self):
        self.read = []
        self.has_read, self.may_write, self.left_the_lock, self.may_return = (threading.Event() for _ in range(4))

    def take(self, request):
        number = units()
        self.read.append(number)
        self.has_read.set()
        assert self.may_write.wait(PATIENCE)
        write(number - 1)
        return HttpResponse()

    def guarded(self):
        return cache_lock("stock", blocking=True)(self.take)

    def guarded_class(self):
        shop = self

        @method_decorator(cache_lock("stock", blocking=True), name="dispatch")
        class Take(View):
            def get(self, request):
                return shop.take(request)

        return Take.as_view()

    def guarded_rest_class(self):
        shop = self

        @method_decorator(cache_lock("stock", blocking=True), name="dispatch")
        class Take(APIView):
            def get(self, request):
                return shop.take(request)

        return Take.as_view()

    def guarded_method(self):
        return type("Take", (View,), {"get": lambda _, request: self.guarded()(request)}).as_view()

    def with_lock(self, release_on="commit"):
        def view(request):
            with cache_lock("stock", release_on=release_on):
                response = self.take(request)
            self.left_the_lock.set()
            assert self.may_return.wait(PATIENCE)
            return response

        return view


@pytest.mark.parametrize("form", ["guarded", "guarded_class", "guarded_rest_class", "guarded_method"])
def test_no_update_is_lost(databases, mount, waited_for, form):
    shop = Shop()
    mount(getattr(shop, form)())
    first = Elsewhere(request)
    assert shop.has_read.wait(PATIENCE)
    second = Elsewhere(request)
    waited_for("stock", second)
    shop.may_write.set()
    assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert (shop.read, units()) == ([10, 9], 8)


def test_no_update_is_lost_though_the_lock_is_left_before_the_commit(databases, mount, waited_for):
    shop = Shop()
    shop.may_write.set()
    mount(shop.with_lock())
    first = Elsewhere(request)
    assert shop.left_the_lock.wait(PATIENCE)
    second = Elsewhere(request)
    waited_for("stock", second)
    assert shop.read == [10]
    shop.may_return.set()
    assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert (shop.read, units()) == ([10, 9], 8)


def test_an_update_is_lost_if_the_lock_is_free_before_the_commit(databases, mount):
    """The control for the two above: what they prevent does happen."""
    shop = Shop()
    mount(shop.with_lock(release_on="exit"))
    shop.may_write.set()
    first = Elsewhere(request)
    assert shop.left_the_lock.wait(PATIENCE)
    shop.has_read.clear()
    second = Elsewhere(request)
    assert shop.has_read.wait(PATIENCE)
    shop.may_return.set()
    statuses = [first.result().status_code, second.result().status_code]
    assert shop.read == [10, 10]
    if connection.vendor == "postgresql":
        assert (statuses, units()) == ([200, 200], 9)  # two were taken
    else:
        assert (statuses, units()) == ([200, 500], 9)  # SQLite refuses a write that rests on a stale read


# The request's transactions


def in_transaction():
    return sorted(alias for alias in connections if connections[alias].in_atomic_block)


def observing(seen):
    def view(request):
        seen.append(in_transaction())
        lock = current_lock()
        transaction.on_commit(lambda: seen.append(lock.owned()))
        return HttpResponse()

    return view


def test_the_request_is_committed_before_the_lock_is_free(databases, mount):
    seen = []
    mount(cache_lock("stock")(observing(seen)))
    assert request().status_code == 200
    assert seen == [["default", "other"], True]
    assert is_free()


@pytest.mark.parametrize(
    "decorate",
    [
        lambda view: transaction.non_atomic_requests(cache_lock("stock")(view)),
        lambda view: cache_lock("stock")(transaction.non_atomic_requests(view)),
        lambda view: cache_lock("stock")(cache_lock("more")(transaction.non_atomic_requests(view))),
    ],
    ids=["above", "below", "below two"],
)
def test_databases_without_atomic_requests_stay_without(databases, mount, decorate):
    seen = []
    mount(decorate(observing(seen)))
    assert request().status_code == 200
    assert seen[0] == ["other"]


@pytest.mark.parametrize("lock_is_above", [True, False])
def test_marks_of_class_based_views(databases, mount, lock_is_above):
    seen = []
    decorators = [cache_lock("stock"), transaction.non_atomic_requests]
    if not lock_is_above:
        decorators.reverse()
    view = observing(seen)

    @method_decorator(decorators, name="dispatch")
    class Observed(View):
        def get(self, request):
            return view(request)

    mount(Observed.as_view())
    assert [request().status_code for _ in range(2)] == [200, 200]
    assert seen == [["other"], True] * 2


def test_two_locks_on_a_view_are_both_taken_before_the_transaction(databases, mount):
    taken = []

    inner = cache_lock("inner")
    enter = inner._for_view
    inner._for_view = lambda names: (taken.append(in_transaction()), enter(names))[1]
    mount(cache_lock("outer")(inner(observing(taken))))
    assert request().status_code == 200
    assert taken == [[], ["default", "other"], True]


@pytest.mark.parametrize("form", ["function", "method"])
@pytest.mark.parametrize("error", [ZeroDivisionError, LockLost("stock"), LockBusy("deeper")], ids=str)
def test_an_error_rolls_the_request_back(databases, mount, form, error):
    def view(request):
        write(3)
        raise error

    guarded = cache_lock("stock")(view)
    mount(guarded if form == "function" else type("V", (View,), {"get": lambda _, request: guarded(request)}).as_view())
    assert request().status_code == (500 if error is ZeroDivisionError else 409)
    assert units() == 10
    assert is_free()


def test_a_lease_lost_during_the_view_rolls_it_back(databases, mount):
    def view(request):
        write(3)
        (lease,) = current_lock()._find()
        lease.lose("for the test")
        return HttpResponse()

    mount(cache_lock("stock")(view))
    assert request().status_code == 409
    assert units() == 10


@pytest.mark.parametrize("error", [LockTimeout("deeper"), LockUnavailable("deeper")], ids=str)
@pytest.mark.parametrize("by", ["decorator", "middleware"])
def test_what_a_hook_of_the_commit_raises_is_not_answered_as_if_nothing_were_done(
    databases, mount, settings, error, by
):
    def view(request):
        write(3)
        transaction.on_commit(fail)
        return HttpResponse()

    def fail():
        raise error

    settings.MIDDLEWARE = ["django_cluster_lock.views.ClusterLockMiddleware"] if by == "middleware" else []
    mount(view if by == "middleware" else cache_lock("stock")(view))
    assert request().status_code == 500
    assert units() == 3
    assert is_free()


@cache_lock("stock")
async def async_view(request):
    return HttpResponse()


@method_decorator(cache_lock("stock"), name="dispatch")
class AsyncView(View):
    async def get(self, request):
        return HttpResponse()


@pytest.mark.parametrize("view", [async_view, AsyncView.as_view()], ids=["function", "class"])
async def test_async_views_have_no_transactions(databases, mount, view):
    mount(view)
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        await AsyncClient().get("/")
    for alias in ("default", "other"):
        view = transaction.non_atomic_requests(alias)(view)
    assert (await AsyncClient().get("/")).status_code == 200


# Leaving the lock inside a transaction


def commit(atomic):
    atomic.__exit__(None, None, None)


def fail(atomic):
    with suppress(ZeroDivisionError):
        error = ZeroDivisionError()
        atomic.__exit__(ZeroDivisionError, error, None)


def set_rollback(atomic):
    transaction.set_rollback(True)
    atomic.__exit__(None, None, None)


def close(atomic):
    connection.close()
    atomic.__exit__(None, None, None)


def begin(using="default"):
    atomic = transaction.atomic(using=using)
    atomic.__enter__()
    return atomic


@pytest.mark.parametrize("end", [commit, fail, set_rollback, close])
def test_it_is_kept_until_the_transaction_ends(databases, end):
    atomic = begin()
    with cache_lock("stock") as lock:
        write(9)
    assert not is_free()
    assert current_lock() is None
    assert not lock.owned()  # by this handle
    end(atomic)
    assert is_free()


@pytest.mark.parametrize("first", ["default", "other"])
def test_it_is_kept_until_the_last_transaction_ends(databases, first):
    atomics = {using: begin(using) for using in ("default", "other")}
    with cache_lock("stock"):
        pass
    commit(atomics.pop(first))
    assert not is_free()
    commit(atomics.popitem()[1])
    assert is_free()


def test_it_is_kept_though_the_block_raises(databases):
    with transaction.atomic():
        with suppress(ZeroDivisionError), cache_lock("stock"):
            raise ZeroDivisionError
        assert not is_free()
    assert is_free()


def test_several_names_are_kept(databases):
    with transaction.atomic():
        with cache_lock(["a", "b"]):
            pass
        assert not is_free("a")
        assert not is_free("b")
    assert is_free("a")
    assert is_free("b")


def test_decorated_functions_keep_it(databases):
    @cache_lock("stock")
    def service():
        write(9)

    with transaction.atomic():
        service()
        assert not is_free()
    assert is_free()


def test_it_is_renewed_meanwhile(databases, cluster, prefix):
    def fence_and_deadline():
        return cluster.admin().hmget(f"{prefix}:lock:{{stock}}", "f", "d")

    with transaction.atomic():
        with cache_lock("stock", timeout=2):
            fence, deadline = fence_and_deadline()
        extensions = set()
        while len(extensions) < 3:
            assert not is_free()
            now, later = fence_and_deadline()
            assert now == fence
            extensions.add(later)
    assert deadline < max(extensions)
    assert is_free()


@pytest.mark.parametrize("how", ["exit", "release"])
def test_it_is_free_at_once_on_request(databases, how):
    with transaction.atomic():
        if how == "exit":
            with cache_lock("stock", release_on="exit"):
                pass
        else:
            lock = cache_lock("stock")
            lock.acquire()
            lock.release()
        assert is_free()


def test_without_a_transaction_it_is_free_at_once(databases):
    with cache_lock("stock"), transaction.atomic():
        write(9)
    assert is_free()


def test_a_transaction_of_another_thread_does_not_count(databases):
    def use():
        with cache_lock("stock"):
            pass
        return is_free()

    with transaction.atomic():
        assert Elsewhere(use).result()


# Entering it again


def test_it_is_entered_again_in_the_same_transaction(databases):
    with transaction.atomic():
        with cache_lock("stock") as lock:
            fence = lock.fence
        for blocking in (True, False):
            with cache_lock("stock", blocking=blocking) as lock:
                assert lock.fence == fence
                assert lock.owned()
                assert not is_free()
        assert not is_free()
    assert is_free()


def test_another_transaction_does_not_enter_it(databases):
    def other():
        with transaction.atomic(), cache_lock("stock", blocking=False):
            pytest.fail("it is kept for the first")

    with transaction.atomic():
        with cache_lock("stock"):
            pass
        with pytest.raises(LockBusy):
            Elsewhere(other).result()


def test_while_held_it_is_not_entered_a_second_time(databases):
    with transaction.atomic():
        with cache_lock("stock"):
            pass
        with cache_lock("stock"), pytest.raises(LockError, match="held right here already"):
            cache_lock("stock").acquire()
    assert is_free()


def test_while_kept_it_is_not_entered_with_a_token_of_ones_own(databases):
    with transaction.atomic():
        with cache_lock("stock"):
            pass
        with pytest.raises(LockError, match="held right here already"):
            cache_lock("stock").acquire(token="own")
        assert not cache_lock("stock").acquire(blocking=False, token="own")
    assert is_free()


def test_some_of_several_are_entered_again(databases):
    with transaction.atomic():
        with cache_lock("b") as lock:
            fence = lock.fence
        with cache_lock(["a", "b", "c"]) as locks:
            assert locks.fences["b"] == fence
            assert not is_free("a")
        assert not any(map(is_free, "abc"))
    assert all(map(is_free, "abc"))


def test_what_waits_in_vain_for_the_rest_leaves_what_was_kept(databases):
    held, done = threading.Event(), threading.Event()

    def hold():
        with cache_lock("a"):
            held.set()
            assert done.wait(PATIENCE)

    holder = Elsewhere(hold)
    assert held.wait(PATIENCE)
    with transaction.atomic():
        with cache_lock("b"):
            pass
        assert not cache_lock(["a", "b"]).acquire(blocking=False)
        assert not is_free("b")
        done.set()
        holder.result()
    assert is_free("b")


def test_releasing_it_the_second_time_leaves_it_to_the_transaction(databases):
    with transaction.atomic():
        with cache_lock("stock"):
            pass
        lock = cache_lock("stock")
        lock.acquire()
        lock.release()
        assert not is_free()
    assert is_free()


def test_detaching_it_takes_it_out_of_the_transaction(databases):
    with transaction.atomic():
        with cache_lock("stock"):
            pass
        lock = cache_lock("stock")
        lock.acquire()
        token = lock.detach()
    assert not is_free()
    lock.attach(token)
    lock.release()
    assert is_free()


def use():
    with cache_lock("stock"):
        pass


def roll_back_savepoint(work):
    with suppress(ZeroDivisionError), transaction.atomic():
        work()
        raise ZeroDivisionError


def test_a_savepoint_that_is_rolled_back_keeps_it(databases):
    """What was read under the lock may be written by the transaction that goes on."""
    with transaction.atomic():
        roll_back_savepoint(use)
        assert not is_free()
        roll_back_savepoint(lambda: roll_back_savepoint(use))
        assert not is_free()
        use()
        assert not is_free()
    assert is_free()


def test_a_savepoint_that_is_rolled_back_keeps_it_for_a_transaction_that_is_rolled_back(databases):
    def work():
        roll_back_savepoint(use)
        assert not is_free()

    roll_back_savepoint(work)
    assert is_free()


def test_a_savepoint_of_one_database_keeps_it_for_the_transactions_of_all(databases):
    with transaction.atomic(using="other"):
        with transaction.atomic():
            roll_back_savepoint(use)
        assert not is_free()
        with suppress(ZeroDivisionError), transaction.atomic(using="other"):
            raise ZeroDivisionError
        assert not is_free()
    assert is_free()


def test_without_a_savepoint_it_stays_likewise(databases):
    def work():
        with suppress(ZeroDivisionError), transaction.atomic(savepoint=False):
            use()
            raise ZeroDivisionError
        assert not is_free()

    with suppress(transaction.TransactionManagementError), transaction.atomic():
        work()
    assert is_free()


def test_a_savepoint_that_is_rolled_back_leaves_what_the_transaction_needs(databases):
    with transaction.atomic():
        use()
        roll_back_savepoint(use)
        assert not is_free()
    assert is_free()


def test_used_again_after_a_savepoint_it_stays_though_that_is_rolled_back(databases):
    with transaction.atomic():
        savepoint = begin()
        use()
        lock = cache_lock("stock")
        lock.acquire()
        fail(savepoint)
        assert lock.owned()
        lock.__exit__(None, None, None)
        assert not is_free()
    assert is_free()


def test_a_released_savepoint_leaves_it_to_the_transaction(databases):
    with transaction.atomic():
        with transaction.atomic():
            use()
        assert not is_free()
    assert is_free()


def test_held_beyond_the_transaction_it_is_free_at_the_end_of_with(databases):
    with transaction.atomic():
        use()
        lock = cache_lock("stock")
        lock.acquire()
    assert lock.owned()
    assert not is_free()
    lock.release()
    assert is_free()


# Losing it


def lose(cluster, prefix):
    cluster.admin().delete(f"{prefix}:lock:{{stock}}")


def test_a_lock_lost_while_kept_is_told_and_does_not_stop_the_commit(databases, cluster, prefix, caplog):
    told = threading.Event()

    def receive(**given):
        told.set()

    lock_lost.connect(receive)
    try:
        with transaction.atomic():
            with cache_lock("stock", timeout=2):
                write(9)
            lose(cluster, prefix)
            assert told.wait(PATIENCE)
            with pytest.raises(LockLost, match="transaction was still open"):
                cache_lock("stock").acquire()
    finally:
        lock_lost.disconnect(receive)
    assert "lock.lost" in [record.message for record in caplog.records]
    assert units() == 9
    assert is_free()


def test_leaving_a_lost_lock_raises_so_that_the_transaction_rolls_back(databases):
    def work():
        with transaction.atomic(), cache_lock("stock") as lock:
            write(9)
            lock._find()[0].lose("for the test")

    with pytest.raises(LockLost):
        work()
    assert units() == 10


def test_what_fails_at_the_end_is_logged_and_leaves_the_transaction_alone(databases, monkeypatch, caplog):
    def run(self, flow):
        raise KeyboardInterrupt("in the middle of it")

    with transaction.atomic():
        with cache_lock("stock"):
            write(9)
        monkeypatch.setattr(Alias, "run", run)
    assert [(record.message, record.lock) for record in caplog.records] == [("lock.release_failed", "stock")]
    assert units() == 9


def test_callbacks_that_fail_do_not_keep_it(databases):
    def fail():
        raise ZeroDivisionError

    @transaction.atomic
    def work():
        transaction.on_commit(fail)
        use()

    with pytest.raises(ZeroDivisionError) as collected:
        work()
    assert collected.tb  # and with it all that is in its frames
    assert is_free()


def test_collected_as_garbage_it_is_free(databases):
    atomic = begin()
    use()
    cycle = [hook for _, hook, _ in connection.run_on_commit]
    cycle.append(cycle)
    commit(atomic)
    assert not is_free()
    del cycle
    gc.collect()
    assert is_free()


def test_a_forked_process_frees_nothing_of_its_parents(databases):
    with transaction.atomic():
        use()
        (kept,) = [hook for _, hook, _ in connection.run_on_commit]
        (lease,) = kept.leases.values()
        lease.pid += 1
        del kept
    assert not is_free()


def test_nothing_is_left_behind(databases):
    with transaction.atomic():
        use()
        use()
        assert len(connection.run_on_commit) == 2
    assert not transactions._kept


# In Django's TestCase


class InTestCase(TestCase):
    """Its own transaction never commits; those of the code under test count."""

    def test_it_is_free_at_the_end_of_with(self):
        use()
        assert is_free()

    def test_it_is_kept_until_the_codes_transaction_ends(self):
        with transaction.atomic():
            with transaction.atomic():
                use()
                use()
            assert not is_free()
        assert is_free()

    def test_it_is_kept_until_a_rollback(self):
        free = []
        roll_back_savepoint(lambda: (use(), free.append(is_free())))
        assert [*free, is_free()] == [False, True]

    def test_transactions_without_a_savepoint(self):
        with transaction.atomic(savepoint=False):
            use()
            assert not is_free()
        assert is_free()

    def test_decorated_functions(self):
        @transaction.atomic
        def service():
            use()
            return is_free()

        assert [service(), is_free(), service(), is_free()] == [False, True, False, True]

    def test_durable_transactions_stay_durable(self):
        with transaction.atomic():
            use()
            with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
                pass
        with transaction.atomic(durable=True):
            use()
        assert is_free()

    def test_on_commit_callbacks_are_left_alone(self):
        with self.captureOnCommitCallbacks() as callbacks, transaction.atomic():
            use()
        assert callbacks == []
