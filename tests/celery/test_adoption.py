"""However a task is made, and in whichever order it is decorated, it becomes one of single flight."""

import pickle
import subprocess
import sys
from copy import copy
from types import FunctionType

import pytest
from celery import Celery, Task, current_app, current_task, shared_task
from celery.local import PromiseProxy, Proxy
from celery.result import AsyncResult
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request

from django_cluster_lock import current_lock, single_flight
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.policy import POLICY
from django_cluster_lock.flights.request import Recovers
from django_cluster_lock.flights.started import is_wanted
from tests.celery.workload import based, join

pydantic = pytest.importorskip("pydantic")


@pytest.fixture
def app():
    with Celery("adoption", set_as_current=False) as app:
        app.conf.update(task_always_eager=False, broker_url="memory://", result_backend="cache+memory://")
        yield app


@pytest.fixture
def current(app):
    before = current_app._get_current_object()
    app.set_current()
    yield app
    before.set_current()


def is_adopted(task):
    policy = getattr(task, POLICY, None)
    return policy is not None and policy.key == "{number}" and type(task).__call__ is not Task.__call__


flying = single_flight(key="{number}")


def plain(number):
    return number


def bound(self, number):
    return number


def fresh(function):
    """A copy without the mark that an earlier test may have left."""
    return FunctionType(function.__code__, globals(), function.__name__)


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("options", [{}, {"bind": True}, {"autoretry_for": (KeyError,)}], ids=str)
@pytest.mark.parametrize("outermost", ["single_flight", "task"])
def test_app_task(app, finalized, options, outermost):
    if finalized:
        app.finalize()
    make, function = app.task(name="t", shared=False, **options), fresh(bound if "bind" in options else plain)
    task = flying(make(function)) if outermost == "single_flight" else make(flying(function))
    assert is_adopted(app.tasks["t"])
    assert task.name == "t"


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_task_that_exists_already(app, evaluated):
    task = app.task(name="t", shared=False)(fresh(plain))
    if evaluated:
        assert task.name == "t"
    assert flying(task) is task
    assert is_adopted(app.tasks["t"])


@pytest.mark.parametrize("outermost", ["single_flight", "shared_task"])
@pytest.mark.parametrize("options", [{}, {"bind": True}], ids=str)
def test_shared_task_in_every_app(current, options, outermost):
    name = f"shared-{outermost}-{'bind' in options}"
    function = fresh(bound if options else plain)
    if outermost == "single_flight":
        flying(shared_task(name=name, **options)(function))
    else:
        shared_task(name=name, **options)(flying(function))
    assert is_adopted(current.tasks[name])
    with Celery("another", set_as_current=False) as another:
        assert is_adopted(another.tasks[name])


def test_class_based(app):
    class Base(Task):
        name = "base"

        @single_flight(key="{number}")
        def run(self, number):
            return number

    class Inherits(Base):
        name = "inherits"

    class Overrides(Base):
        name = "overrides"

        def run(self, number):
            return number

    tasks = [app.register_task(cls()) for cls in (Base, Inherits, Overrides)]
    assert [is_adopted(task) for task in tasks] == [True, True, False]
    assert tasks[2](5) == 5


class Told(AsyncResult):
    """A project's own result."""

    def told(self):
        return f"told {self.id}"


@pytest.mark.usefixtures("flights")
@pytest.mark.parametrize("whose", ["app", "task"])
def test_results_stay_of_the_projects_own_class(current, whose, flights):
    class Telling(Task):
        if whose == "task":

            def AsyncResult(self, task_id, **options):
                return Told(task_id, app=self.app, backend=self.backend, **options)

    if whose == "app":
        current.AsyncResult = current.subclass_with_self(Told, reverse="AsyncResult")
    task = current.task(name=f"told-{whose}", shared=False, base=Telling)(flying(fresh(plain)))
    results = [task.apply_async((flights.key,), queue="nobody") for _ in range(2)]
    again = pickle.loads(pickle.dumps(results[1]))
    for result in (*results, again, copy(results[0])):
        assert result.told() == f"told {results[0].id}"
        assert isinstance(result, Told)
    assert not flights.free(task)
    again.revoke()
    assert not flights.free(task)
    results[1].revoke()
    assert flights.free(task)


def test_a_bases_own_methods_are_called(app, flights):
    calls = []

    class Base(Task):
        abstract = True

        def apply_async(self, args=None, kwargs=None, **options):
            calls.append("apply_async")
            options.setdefault("queue", "nobody")
            return super().apply_async(args, kwargs, **options)

        def __call__(self, *args, **kwargs):
            calls.append("call")
            return super().__call__(*args, **kwargs)

    class Mine(Request):
        pass

    task = app.task(name="t", shared=False, base=Base, Request=Mine)(flying(fresh(plain)))
    first = task.delay(flights.key)
    assert task.delay(flights.key).id == first.id
    assert calls == ["apply_async"]
    assert task(f"{flights.key}-other") == f"{flights.key}-other"
    assert calls == ["apply_async", "call"]
    assert issubclass(task.Request, Mine)


def test_a_base_with_its_own_call_in_a_worker(flights, prefork):
    results = [based.delay(flights.key, gated=True) for _ in range(2)]
    flights.until("start")
    flights.open()
    assert results[0].get(20) == results[1].get(20)
    assert [event["id"] for event in flights.events("base") + flights.events("start")] == [results[0].id] * 2
    flights.until_free(based)


def test_pydantic_models_and_their_dumps_are_the_same_key(app, flights):
    class Order(pydantic.BaseModel):
        number: str
        amount: int = 1

    @app.task(name="t", shared=False, pydantic=True)
    @single_flight
    def pay(order: Order) -> None:
        return None

    order = Order(number=flights.key)
    policy = getattr(pay, POLICY)
    assert name_of(pay, policy, [order], {}) == name_of(pay, policy, [], {"order": order.model_dump()})
    assert pay.delay(order.model_dump()).id == pay.delay(order=order.model_dump()).id


def test_arguments_are_checked_at_the_call(app, flights):
    task = app.task(name="t", shared=False)(flying(fresh(plain)))
    with pytest.raises(TypeError, match="argument"):
        task.delay()
    with pytest.raises(TypeError, match="argument"):
        task.delay(1, 2)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="decorates a task's function"):
        single_flight(key="{x}")(42)
    with pytest.raises(TypeError, match="has no parameter 'x'"):
        single_flight(key="{x}")(plain)
    with pytest.raises(TypeError, match=r"write '\{number\}' for its argument"):
        single_flight(key="number")(plain)
    with pytest.raises(TypeError, match="after the task's call has returned"):

        @single_flight
        async def later():
            pass


@pytest.mark.parametrize(
    "options",
    [
        {"on_duplicate": "ignore"},
        {"on_lost": "raise"},
        {"on_unavailable": "skip"},
        {"queue_timeout": 0},
        {"timeout": -1},
        {"max_hold": True},
    ],
    ids=str,
)
def test_a_bad_argument_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        single_flight(**options)


def test_what_does_not_exist_is_unknown():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        single_flight(limit=2)


def test_a_web_process_does_not_load_the_worker():
    code = "import sys, django_cluster_lock as d; d.single_flight; print('celery.worker.request' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


@pytest.fixture
def classes(app):
    """Makes tasks of classes, each with the attributes given, and with the one before as its base."""

    def make(*bodies):
        base, tasks = Task, []
        for number, body in enumerate(bodies):
            base = type(f"Class{number}", (base,), body | {"name": f"class-{number}"})
            tasks.append(app.register_task(base()))
        return tasks

    return make


def flight(**attributes):
    """The body of a class whose ``run`` is decorated."""
    return {"run": flying(fresh(bound))} | attributes


def no_flight(**attributes):
    return {"run": fresh(bound)} | attributes


def test_started_is_not_stored_for_duplicates(app):
    @app.task(name="t", shared=False, track_started=True)
    @flying
    def task(number):
        return number

    assert (task.track_started, is_wanted(task)) == (False, True)
    assert (join.track_started, is_wanted(join)) == (False, False)


@pytest.mark.parametrize("by_app", [False, True])
def test_started_of_a_run_that_is_not_decorated_is_what_the_app_wants(app, classes, by_app):
    app.conf.task_track_started = by_app
    base, heir = classes(flight(), no_flight())
    assert (base.track_started, is_wanted(base)) == (False, by_app)
    assert heir.track_started is by_app


def test_started_of_a_run_that_is_not_decorated_is_what_its_author_wants(classes):
    *_, of_base, own = classes(flight(track_started=True), no_flight(), no_flight(track_started=False))
    assert (of_base.track_started, own.track_started) == (True, False)


@pytest.mark.parametrize("heir", [flight, dict])
def test_started_is_deferred_in_each_class_that_asks_for_it(classes, heir):
    base, task = classes(flight(track_started=False), heir(track_started=True))
    assert (base.track_started, is_wanted(base)) == (False, False)
    assert (task.track_started, is_wanted(task)) == (False, True)


class Mine(Request):
    pass


@pytest.mark.parametrize("heir", [flight, dict])
def test_each_class_may_bring_its_own_request(classes, heir):
    base, task, below = classes(flight(), heir(Request=Mine), heir())
    assert issubclass(base.Request, Recovers)
    assert not issubclass(base.Request, Mine)
    assert issubclass(task.Request, Recovers)
    assert issubclass(task.Request, Mine)
    assert below.Request is task.Request


def test_the_request_of_a_run_that_is_not_decorated_is_its_own(classes):
    _, plain, mine = classes(flight(), no_flight(), no_flight(Request=Mine))
    assert symbol_by_name(plain.Request) is Request
    assert mine.Request is Mine


@pytest.mark.parametrize("heir", [flight, dict])
def test_each_class_may_bring_its_own_methods(app, classes, flights, heir):
    calls = []

    def brings(number):
        def apply_async(self, args=None, kwargs=None, **options):
            calls.append(f"apply_async {number}")
            return super(tasks[number].__class__, self).apply_async(args, kwargs, **options)

        def __call__(self, *args, **kwargs):  # noqa: N807
            calls.append(f"call {number}")
            return super(tasks[number].__class__, self).__call__(*args, **kwargs)

        return {"apply_async": apply_async, "__call__": __call__}

    tasks = classes(flight(**brings(0)), heir(**brings(1)), heir())
    first = tasks[2].apply_async((flights.key,), queue=flights.key)
    assert calls == ["apply_async 1", "apply_async 0"]
    assert tasks[2].delay(flights.key).id == first.id
    with app.connection_for_read() as connection, connection.SimpleQueue(flights.key) as queue:
        assert queue.get(timeout=5).headers["id"] == first.id
        with pytest.raises(queue.Empty):
            queue.get_nowait()
    assert calls == ["apply_async 1", "apply_async 0"]
    assert tasks[2](f"{flights.key}-other") == f"{flights.key}-other"
    assert calls[2:] == ["call 1", "call 0"]


def test_methods_of_a_class_below_are_part_of_the_flight(classes, flights):
    held = []

    def __call__(self, number):  # noqa: N807
        held.append(current_lock().name)
        return Task.__call__(self, number)

    _, task = classes(flight(), {"__call__": __call__})
    task(flights.key)
    assert held == [f"flight:class-1:{flights.key}"]


@pytest.mark.parametrize(
    "proxy",
    [current_task, current_app, Proxy(lambda: plain), Proxy(dict), PromiseProxy(dict)],
    ids=["current_task", "current_app", "closure", "class", "promise"],
)
def test_what_stands_for_something_else_is_refused(proxy):
    with pytest.raises(TypeError, match="single_flight decorates"):
        flying(proxy)
