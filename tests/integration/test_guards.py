"""`cache_lock` as a decorator: of functions of every kind, by names made from their arguments."""

import asyncio
import threading
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
from django.contrib.auth import get_user_model

from django_cluster_lock import Lock, LockBusy, LockTimeout, cache_lock, current_lock


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10, "BLOCKING_TIMEOUT": 20}
    }


def held():
    """The names of the innermost lock held here."""
    lock = current_lock()
    assert lock.owned()
    return lock.names


async def aheld():
    lock = current_lock()
    assert await lock.aowned()
    return lock.names


def test_the_call_is_under_the_lock():
    @cache_lock("nightly")
    def run():
        return held()

    assert run() == ("nightly",)
    assert current_lock() is None
    assert not cache_lock("nightly").locked()


def test_the_lock_is_freed_when_the_call_raises():
    @cache_lock("nightly")
    def run():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert not cache_lock("nightly").locked()


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        (("A", 1), {}, "stock:A:1"),
        (("A",), {"size": 1}, "stock:A:1"),
        ((), {"size": 1, "sku": "A"}, "stock:A:1"),
        (("A",), {}, "stock:A:7"),
        (("A:1",), {}, "stock:A%3A1:7"),
    ],
    ids=["positional", "mixed", "keywords", "default", "escaped"],
)
def test_the_name_is_a_template_over_the_arguments(args, kwargs, name):
    @cache_lock("stock:{sku}:{size}")
    def take(sku, size=7):
        return held()

    assert take(*args, **kwargs) == (name,)


def test_values_give_the_decorators_name():
    @cache_lock("stock:{sku}")
    def take(sku):
        return held()

    with cache_lock("stock:{sku}", values={"sku": "A:{1}"}) as lock:
        names = lock.names
    assert take("A:{1}") == names


def test_models_are_named_by_their_primary_key():
    @cache_lock("user:{user}")
    def work(user):
        return held()

    assert work(get_user_model()(pk=42)) == ("user:42",)


def test_several_templates():
    @cache_lock(["account:{source}", "account:{target}"])
    def move(source, target):
        return held()

    assert move(1, 2) == ("account:1", "account:2")
    assert move(1, 1) == ("account:1",)


def test_keyword_arguments_without_a_parameter_are_values_too():
    @cache_lock("stock:{sku}")
    def take(**kwargs):
        return held()

    assert take(sku=1) == ("stock:1",)
    with pytest.raises(TypeError, match="needs a value for 'sku'"):
        take(size=1)


@dataclass
class Shop:
    pk: int

    @cache_lock("stock:{sku}")
    def method(self, sku):
        return held(), self.pk

    @cache_lock("stock:{sku}")
    @classmethod
    def lock_over_classmethod(cls, sku):
        return held(), cls

    @classmethod
    @cache_lock("stock:{sku}")
    def classmethod_over_lock(cls, sku):
        return held(), cls

    @cache_lock("stock:{sku}")
    @staticmethod
    def lock_over_staticmethod(sku):
        return held(), None

    @staticmethod
    @cache_lock("stock:{sku}")
    def staticmethod_over_lock(sku):
        return held(), None

    @cache_lock("stock:{sku}")
    async def coroutine(self, sku):
        return await aheld(), self.pk

    @cache_lock("shop:{self}")
    def named_by_itself(self):
        return held()


@pytest.mark.parametrize("owner", [Shop, Shop(pk=7)], ids=["class", "instance"])
@pytest.mark.parametrize(
    ("method", "second"),
    [
        ("lock_over_classmethod", Shop),
        ("classmethod_over_lock", Shop),
        ("lock_over_staticmethod", None),
        ("staticmethod_over_lock", None),
    ],
)
def test_class_and_static_methods(owner, method, second):
    assert getattr(owner, method)(sku=1) == (("stock:1",), second)


async def test_methods():
    assert Shop(pk=7).method(1) == (("stock:1",), 7)
    assert await Shop(pk=7).coroutine(1) == (("stock:1",), 7)


def test_self_names_the_lock_if_it_has_a_canonical_form():
    (name,) = Shop(pk=7).named_by_itself()
    assert name == cache_lock("shop:{shop}", values={"shop": Shop(pk=7)}).name


def test_partials():
    def take(sku, size):
        return held()

    assert cache_lock("stock:{sku}:{size}")(partial(take, size=5))("A") == ("stock:A:5",)


@pytest.mark.parametrize("workers", [8])
def test_one_function_in_many_threads(workers):
    inside, most, names = [], [], []

    @cache_lock("stock:{sku}", blocking_timeout=60)
    def take(sku):
        inside.append(sku)
        most.append(inside.count(sku))
        names.append(held())
        inside.remove(sku)

    threads = [threading.Thread(target=lambda n=n: [take(n % 2) for _ in range(5)]) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * workers * 5
    assert sorted(names) == sorted([("stock:0",), ("stock:1",)] * (workers * 5 // 2))


async def test_one_function_in_many_tasks():
    inside, most = [], []

    @cache_lock("total", blocking_timeout=60)
    async def work():
        inside.append(1)
        await aheld()
        most.append(len(inside))
        inside.pop()

    await asyncio.gather(*(work() for _ in range(20)))
    assert most == [1] * 20


async def test_async_function():
    @cache_lock("stock:{sku}")
    async def take(sku):
        return await aheld()

    assert asyncio.iscoroutinefunction(take)
    assert await take("A") == ("stock:A",)
    assert not await cache_lock("stock:A").alocked()


def test_a_busy_lock_raises():
    at_once = cache_lock("a", blocking=False)(lambda: None)
    in_time = cache_lock("a", blocking_timeout=0.1)(lambda: None)
    waiting_elsewhere = []

    def elsewhere():
        for function, expected in ((at_once, LockBusy), (in_time, LockTimeout)):
            with pytest.raises(expected) as caught:
                function()
            waiting_elsewhere.append(caught.type)

    with cache_lock("a"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert waiting_elsewhere == [LockBusy, LockTimeout]


def test_it_is_a_lock():
    lock = cache_lock("a")
    assert isinstance(lock, Lock)
    assert lock.acquire()
    lock.release()


def test_a_template_in_place_of_a_name_warns():
    with pytest.warns(UserWarning, match="did you mean an f-string") as caught, cache_lock("stock:{sku}") as lock:
        assert lock.name == "stock:{sku}"
    assert {each.filename for each in caught} == {__file__}
    assert "sku" not in str(caught[0].message), "the name may be anybody's, and each text is remembered"


def test_braces_in_values_are_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cache_lock("user:{name}", values={"name": "{admin}"}):
            pass
        cache_lock("user:{name}")(lambda name: current_lock().name)("{admin}")
        cache_lock(lambda name: f"user:{name}")(lambda name: current_lock().name)("{admin}")


def test_named_by_a_function():
    """It gets the arguments that it has parameters for, however they are given."""

    @cache_lock(lambda pk, size=7: f"stock:{int(pk)}:{size}")
    def take(request_id, pk, *, size=3):
        return current_lock().name

    assert take(1, "042") == take(request_id=1, pk=" 42") == take(1, 42, size=3) == "stock:42:3"

    class Shop:
        number = 7

        @cache_lock(lambda self: [f"shop:{self.number}", "shops"])
        def close(self, at):
            return sorted(current_lock().fences)

        @cache_lock(lambda pk: f"shop:{pk}")
        @staticmethod
        def look(pk, **more):
            return current_lock().name

        @cache_lock(lambda pk, colour=None: f"shop:{pk}:{colour}")
        @staticmethod
        def paint(pk, **more):
            return current_lock().name

    assert Shop().close(at=1) == ["shop:7", "shops"]
    assert Shop.look(5, colour=1) == "shop:5"
    assert Shop.paint(5) == "shop:5:None"
    assert Shop.paint(5, colour="red") == "shop:5:red"


async def test_named_by_a_function_in_async_code():
    @cache_lock(lambda pk: f"stock:{int(pk)}")
    async def take(pk):
        return current_lock().name

    assert await take("042") == "stock:42"


@pytest.mark.parametrize("use", [Lock.acquire, Lock.locked, Lock.__enter__])
def test_a_lock_that_a_call_names_is_a_decorator_alone(use):
    with pytest.raises(TypeError, match="it is a decorator alone"):
        use(cache_lock(lambda pk: f"stock:{pk}"))


async def name_of(pk):
    return "a"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (name_of, "makes a name, so it is a plain function"),
        (lambda *args: "a", r"by name, so it cannot have '\*args'"),
        (lambda **kwargs: "a", r"by name, so it cannot have '\*\*kwargs'"),
        (lambda pk, /: "a", "by name, so it cannot have 'pk'"),
        (lambda pk: "a", "has no parameter 'pk'"),
    ],
)
def test_functions_that_cannot_name_a_lock(name, problem):
    with pytest.raises(TypeError, match=problem):
        cache_lock(name)(lambda size: size)


def test_a_function_that_names_a_lock_takes_no_values():
    with pytest.raises(TypeError, match="values fill a template"):
        cache_lock(lambda pk: "a", values={})


@pytest.mark.parametrize("made", [7, None, [7], b"a"])
def test_what_a_function_returns_has_to_be_a_name(made):
    with pytest.raises(TypeError, match="name is a str"):
        cache_lock(lambda: made)(lambda: None)()


def generator():
    yield


async def async_generator():
    yield


class Task:
    apply_async = None

    def __call__(self):
        pass


@pytest.mark.parametrize(
    ("name", "function", "problem"),
    [
        ("a", generator, "is a generator"),
        ("a", async_generator, "is a generator"),
        ("a", Shop, "is a class"),
        ("a", Task(), "is a task"),
        ("a", 7, "decorates functions"),
        ("stock:{sku}", lambda size: size, "no parameter 'sku'"),
        (["stock:{size}", "stock:{sku}"], lambda size: size, "no parameter 'sku'"),
    ],
)
def test_what_cannot_be_decorated(name, function, problem):
    with pytest.raises(TypeError, match=problem):
        cache_lock(name)(function)


def test_attributes_in_templates_are_refused():
    with pytest.raises(ValueError, match=r"self\.pk"):
        cache_lock("shop:{self.pk}")(Shop.method)


def test_a_function_that_gives_a_coroutine_is_refused():
    async def work():
        pytest.fail("it would run without the lock")

    def start():
        return work()

    with pytest.raises(TypeError, match="make it an async function"):
        cache_lock("a")(start)()


@pytest.mark.parametrize("argument", ["sleep", "thread_local", "lock_class", "client", "version"])
def test_arguments_of_other_locks_warn(argument):
    with pytest.warns(UserWarning, match=argument) as caught:
        cache_lock("a", **{argument: None})
    assert caught[0].filename == __file__


def test_arguments_with_a_meaning_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache_lock("a", timeout=5, blocking=True, blocking_timeout=1, raise_on_release_error=False)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'tiemout'"):
        cache_lock("a", tiemout=5)


def test_a_decorated_function_looks_like_itself():
    def take(sku: str) -> int:
        """Takes one."""

    guarded = cache_lock("stock:{sku}")(take)
    assert (guarded.__name__, guarded.__doc__, guarded.__wrapped__) == ("take", "Takes one.", take)
